//! Rows of `d` contiguous values for each lane of a batch, in whatever order lanes and rows lie.

use std::ops::Range;

use crate::buffer::Shared;
use crate::gemm::Mat;

/// `[lanes, rows, d]` with any strides of lanes and rows; time-major and batch-first tensors alike.
#[derive(Clone, Copy, Debug)]
pub struct Rows<'a> {
    data: &'a [f32],
    shape: [usize; 3],
    strides: [usize; 2],
}

/// [`Rows`] to write to.
pub struct RowsMut<'a> {
    data: &'a mut [f32],
    shape: [usize; 3],
    strides: [usize; 2],
}

fn check(len: usize, [lanes, rows, d]: [usize; 3], [lane_stride, row_stride]: [usize; 2]) {
    if lanes > 0 && rows > 0 && d > 0 {
        let last = (lanes - 1) * lane_stride + (rows - 1) * row_stride + d - 1;
        assert!(last < len, "{lanes} lanes of {rows} rows of {d} do not fit into {len} values");
    }
}

impl<'a> Rows<'a> {
    /// Element `(lane, row, i)` is `data[lane * strides[0] + row * strides[1] + i]`.
    ///
    /// # Panics
    /// If an element would lie outside of `data`.
    pub fn new(data: &'a [f32], shape: [usize; 3], strides: [usize; 2]) -> Self {
        check(data.len(), shape, strides);
        Self { data, shape, strides }
    }

    /// Lanes, rows of a lane, and values of a row.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    /// Distance of neighbouring rows of a lane.
    pub fn row_stride(&self) -> usize {
        self.strides[1]
    }

    /// Some rows and columns of a lane.
    ///
    /// # Panics
    /// If there are none such.
    pub(crate) fn mat(&self, lane: usize, rows: Range<usize>, cols: Range<usize>) -> Mat<'a> {
        let [lane_stride, row_stride] = self.strides;
        let data = match rows.is_empty() || cols.is_empty() {
            true => &[],
            false => &self.data[lane * lane_stride + rows.start * row_stride + cols.start..],
        };
        Mat::new(data, [rows.len(), cols.len()], [row_stride, 1])
    }

    /// What begins with the row; at least `d` values.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn from_row(&self, lane: usize, row: usize) -> &'a [f32] {
        debug_assert!(lane < self.shape[0] && row < self.shape[1]);
        &self.data[lane * self.strides[0] + row * self.strides[1]..]
    }

    /// One row.
    ///
    /// # Panics
    /// If there is no such row.
    #[inline(always)]
    pub fn row(&self, lane: usize, row: usize) -> &'a [f32] {
        &self.from_row(lane, row)[..self.shape[2]]
    }
}

impl<'a> RowsMut<'a> {
    /// As [`Rows::new`]. Rows must not overlap.
    ///
    /// # Panics
    /// If an element would lie outside of `data`.
    pub fn new(data: &'a mut [f32], shape: [usize; 3], strides: [usize; 2]) -> Self {
        check(data.len(), shape, strides);
        Self { data, shape, strides }
    }

    /// Lanes, rows of a lane, and values of a row.
    pub fn shape(&self) -> [usize; 3] {
        self.shape
    }

    pub(crate) fn share(&mut self) -> SharedRows {
        SharedRows { data: Shared::new(self.data), shape: self.shape, strides: self.strides }
    }
}

/// [`RowsMut`] whose rows the members of a team write to, each its own.
#[derive(Clone, Copy)]
pub(crate) struct SharedRows {
    data: Shared<f32>,
    shape: [usize; 3],
    strides: [usize; 2],
}

impl SharedRows {
    /// The first value of a row. Its neighbours in the lane are [`row_stride`](Self::row_stride) apart.
    ///
    /// # Safety
    /// The row exists, and no one else uses it meanwhile.
    #[inline(always)]
    pub(crate) unsafe fn row(self, lane: usize, row: usize) -> *mut f32 {
        debug_assert!(lane < self.shape[0] && row < self.shape[1]);
        // SAFETY: inside of the data, as was checked when it was made.
        unsafe { self.data.at(lane * self.strides[0] + row * self.strides[1]) }
    }

    pub(crate) fn row_stride(self) -> usize {
        self.strides[1]
    }
}
