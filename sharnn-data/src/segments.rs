//! Segments: lanes read side by side, a stretch at a time, as the batches of truncated backpropagation through time.

use std::ops::Range;

use rand::SeedableRng;
use rand_chacha::ChaCha8Rng;
use serde::{Deserialize, Serialize};

use crate::error::DataError;
use crate::lanes::Lanes;
use crate::segment_lengths::SegmentLengths;

/// One batch: the same stretch of every lane, and the byte after each of its bytes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch.
    pub n_lanes: usize,
    /// Columns of the batch, in bytes.
    pub len: usize,
    /// The bytes to read, batch-first: `[n_lanes, len]`.
    pub inputs: Vec<u8>,
    /// The bytes to predict, `[n_lanes, len]`: for every byte the next one of its lane.
    pub targets: Vec<u8>,
    /// Where in its lane the first input lies, in bytes.
    pub start: usize,
    /// Which lane of the whole batch the first row is; 0 unless lanes were selected.
    pub first_lane: usize,
}

/// A stream of segments over lanes, epoch after epoch. The lengths come from a seeded generator that gives the same
/// numbers on every machine and is part of the saved state.
///
/// As an iterator it ends with the epoch, and goes on after [`Segments::start_epoch`].
#[derive(Clone, Debug)]
pub struct Segments {
    lanes: Lanes,
    selected: Range<usize>,
    lengths: SegmentLengths,
    rng: ChaCha8Rng,
    position: usize,
    epoch: u64,
}

/// Where a stream of segments stands: enough, with the same data and the same lengths, to go on bit for bit. The
/// selection of lanes is no part of it, so what many processes saved one can resume.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SegmentsState {
    /// Lanes of the whole batch.
    pub n_lanes: u64,
    /// Length of every lane in bytes.
    pub lane_len: u64,
    /// The next byte to read, counted from the start of the lane; the last byte of a lane is never read.
    pub position: u64,
    /// Epochs begun before this one.
    pub epoch: u64,
    /// The generator of the lengths.
    pub rng: ChaCha8Rng,
}

impl Segments {
    /// A stream at the start of its first epoch.
    ///
    /// # Errors
    /// If the lengths are not valid (see [`SegmentLengths::validate`]).
    pub fn new(lanes: Lanes, lengths: SegmentLengths, seed: u64) -> Result<Self, DataError> {
        lengths.validate()?;
        Ok(Self {
            selected: 0..lanes.n_lanes(),
            lanes,
            lengths,
            rng: ChaCha8Rng::seed_from_u64(seed),
            position: 0,
            epoch: 0,
        })
    }

    /// The stream that was saved as `state`, over all of the lanes.
    ///
    /// # Errors
    /// If the lengths are not valid, or if the state was saved with another number or length of lanes or lies past
    /// the end of the lanes.
    pub fn restore(lanes: Lanes, lengths: SegmentLengths, state: SegmentsState) -> Result<Self, DataError> {
        lengths.validate()?;
        let n_targets = (lanes.lane_len() - 1) as u64;
        for (what, found, ok, expected) in [
            (
                "a number of lanes of",
                state.n_lanes,
                state.n_lanes == lanes.n_lanes() as u64,
                lanes.n_lanes().to_string(),
            ),
            (
                "a lane length in bytes of",
                state.lane_len,
                state.lane_len == lanes.lane_len() as u64,
                lanes.lane_len().to_string(),
            ),
            ("a position in the lane of", state.position, state.position <= n_targets, format!("at most {n_targets}")),
        ] {
            if !ok {
                return Err(DataError::State { what, found, expected });
            }
        }
        Ok(Self {
            selected: 0..lanes.n_lanes(),
            // Lossless: it is no larger than a length in memory.
            position: state.position as usize,
            epoch: state.epoch,
            rng: state.rng,
            lanes,
            lengths,
        })
    }

    /// Gives only the rows of these lanes from here on, as one of many processes that share a batch does. Lengths,
    /// positions and state stay those of the whole batch.
    ///
    /// # Errors
    /// If the range is empty or names a lane that does not exist.
    pub fn select_lanes(mut self, lanes: Range<usize>) -> Result<Self, DataError> {
        self.lanes.check_range(&lanes)?;
        self.selected = lanes;
        Ok(self)
    }

    /// The next segment, or `None` at the end of the epoch. The last segment of an epoch is as long as what is left,
    /// which may be a single byte.
    pub fn next_segment(&mut self) -> Option<Segment> {
        let left = self.epoch_len() - self.position;
        if left == 0 {
            return None;
        }
        let len = self.lengths.draw(&mut self.rng).min(left);
        let start = self.position;
        let n_lanes = self.selected.len();
        let mut inputs = Vec::with_capacity(n_lanes * len);
        let mut targets = Vec::with_capacity(n_lanes * len);
        for i in self.selected.clone() {
            let lane = self.lanes.lane(i);
            inputs.extend_from_slice(&lane[start..start + len]);
            targets.extend_from_slice(&lane[start + 1..start + 1 + len]);
        }
        self.position += len;
        Some(Segment { n_lanes, len, inputs, targets, start, first_lane: self.selected.start })
    }

    /// Goes back to the start of the lanes and counts one more epoch. The generator runs on, so every epoch is cut
    /// differently.
    pub fn start_epoch(&mut self) {
        self.position = 0;
        self.epoch += 1;
    }

    /// The lanes that are read.
    pub fn lanes(&self) -> &Lanes {
        &self.lanes
    }

    /// Which of the lanes the rows of a segment are.
    pub fn selected_lanes(&self) -> Range<usize> {
        self.selected.clone()
    }

    /// How long the segments are.
    pub fn lengths(&self) -> &SegmentLengths {
        &self.lengths
    }

    /// Bytes of every lane that were targets in this epoch, from 0 to [`Segments::epoch_len`].
    pub fn position(&self) -> usize {
        self.position
    }

    /// Targets in every lane in one epoch: its length less one, in bytes.
    pub fn epoch_len(&self) -> usize {
        self.lanes.lane_len() - 1
    }

    /// Epochs begun before this one.
    pub fn epoch(&self) -> u64 {
        self.epoch
    }

    /// What to save in order to go on from here.
    pub fn state(&self) -> SegmentsState {
        SegmentsState {
            n_lanes: self.lanes.n_lanes() as u64,
            lane_len: self.lanes.lane_len() as u64,
            position: self.position as u64,
            epoch: self.epoch,
            rng: self.rng.clone(),
        }
    }
}

impl Iterator for Segments {
    type Item = Segment;

    fn next(&mut self) -> Option<Segment> {
        self.next_segment()
    }
}
