//! Reductions over the units of a cube.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::prelude::*;

use super::UNITS;

/// Shared memory for the reductions of a cube.
#[cube]
pub(super) fn shared() -> SharedMemory<f32> {
    SharedMemory::<f32>::new(comptime!(UNITS as usize))
}

/// Sum over all units, for each of them, always in the same order.
#[cube]
pub(super) fn sum(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!((UNITS >> (level + 1)) as usize);
        if unit < half {
            shared[unit] = shared[unit] + shared[unit + half];
        }
        sync_cube();
    }
    let sum = shared[0];
    sync_cube();
    sum
}

/// The largest value of all units, for each of them.
#[cube]
pub(super) fn largest(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!((UNITS >> (level + 1)) as usize);
        if unit < half {
            shared[unit] = max(shared[unit], shared[unit + half]);
        }
        sync_cube();
    }
    let largest = shared[0];
    sync_cube();
    largest
}
