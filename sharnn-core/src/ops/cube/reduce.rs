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
    fold(value, shared, false)
}

/// The largest value of all units, for each of them.
#[cube]
pub(super) fn largest(value: f32, shared: &mut SharedMemory<f32>) -> f32 {
    fold(value, shared, true)
}

#[cube]
fn fold(value: f32, shared: &mut SharedMemory<f32>, #[comptime] largest: bool) -> f32 {
    let unit = UNIT_POS as usize;
    shared[unit] = value;
    sync_cube();
    #[unroll]
    for level in 0..comptime!(UNITS.ilog2()) {
        let half = comptime!((UNITS >> (level + 1)) as usize);
        if unit < half {
            if comptime!(largest) {
                shared[unit] = max(shared[unit], shared[unit + half]);
            } else {
                shared[unit] = shared[unit] + shared[unit + half];
            }
        }
        sync_cube();
    }
    let result = shared[0];
    sync_cube();
    result
}
