//! Lanes: data cut into `n_lanes` contiguous stretches of equal length, read side by side as the rows of a batch.

use std::ops::{Deref, Range};

use crate::corpus::Split;
use crate::error::{DataError, MIN_SCORED};

/// Bytes (a [`Split`], or a slice) cut into contiguous lanes of `len / n_lanes` bytes. The remainder at the end is left
/// out. Lane `i` begins where lane `i - 1` ends; every lane starts cold, so its first byte is read but never scored.
/// Cloning is as cheap as that of the bytes' owner.
#[derive(Clone, Debug)]
pub struct Lanes<D = Split> {
    data: D,
    n_lanes: usize,
    lane_len: usize,
}

impl<D: Deref<Target = [u8]>> Lanes<D> {
    /// Cuts `data` into `n_lanes` lanes; `n_lanes` is the batch size.
    ///
    /// # Errors
    /// If `n_lanes` is 0 or a lane would be shorter than 2 bytes; the error says the largest batch that the data
    /// allows.
    pub fn new(data: D, n_lanes: usize) -> Result<Self, DataError> {
        let len = data.len();
        let lane_len = len.checked_div(n_lanes).unwrap_or(0);
        if lane_len < MIN_SCORED {
            return Err(DataError::Lanes { len, n_lanes, max: len / MIN_SCORED });
        }
        Ok(Self { data, n_lanes, lane_len })
    }

    /// The bytes that were cut.
    pub fn data(&self) -> &D {
        &self.data
    }

    /// How many lanes there are: the batch size.
    pub fn n_lanes(&self) -> usize {
        self.n_lanes
    }

    /// Length of every lane in bytes.
    pub fn lane_len(&self) -> usize {
        self.lane_len
    }

    /// Bytes scored in one epoch: all but the first of every lane, `n_lanes × (lane_len - 1)`.
    pub fn n_targets(&self) -> usize {
        self.n_lanes * (self.lane_len - 1)
    }

    /// The bytes of lane `i`.
    ///
    /// # Panics
    /// If there is no such lane.
    pub fn lane(&self, i: usize) -> &[u8] {
        assert!(i < self.n_lanes, "lane {i} of {} lanes", self.n_lanes);
        &self.data[i * self.lane_len..(i + 1) * self.lane_len]
    }

    /// Checks that `range` selects at least one lane and only lanes that exist.
    pub(crate) fn check_range(&self, range: &Range<usize>) -> Result<(), DataError> {
        if range.start < range.end && range.end <= self.n_lanes {
            Ok(())
        } else {
            Err(DataError::LaneRange { range: range.clone(), n_lanes: self.n_lanes })
        }
    }
}
