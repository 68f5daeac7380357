//! The last step: what came true of predictions like this one, in this context (an adaptive probability map, as in PAQ).

use std::hint::black_box;

use crate::logistic::{FURTHEST, LEAST, LOGISTIC, ONE};

/// Distance of two knots in the logistic domain.
const STEP: i32 = 128;
const KNOTS: usize = (2 * FURTHEST / STEP + 2) as usize;

/// For each context a curve from the predicted probability to the one that came true, straight between its knots.
#[derive(Clone, Debug)]
pub struct Refinement {
    curves: Vec<[u16; KNOTS]>,
}

impl Refinement {
    pub fn new(contexts: usize) -> Self {
        let at = |knot: usize| LOGISTIC.squash(knot as i32 * STEP - FURTHEST) as u16;
        Self { curves: vec![std::array::from_fn(at); contexts] }
    }

    /// The knot below, and how far above it, in 128ths.
    #[inline]
    fn knot(mixed: i32) -> (usize, u32) {
        let x = (mixed + FURTHEST) as u32;
        ((x / STEP as u32) as usize, x % STEP as u32)
    }

    /// Reads the ends of a curve, so that they are in the cache when one of them is asked for: most predictions are sure.
    #[inline]
    pub fn fetch(&self, context: usize) {
        let curve = &self.curves[context];
        black_box((curve[1], curve[KNOTS - 2]));
    }

    /// What a mixture comes to, in 65536ths.
    #[inline]
    pub fn refine(&self, context: usize, mixed: i32) -> u32 {
        let (knot, above) = Self::knot(mixed);
        let curve = &self.curves[context];
        let [low, high] = [curve[knot], curve[knot + 1]].map(u32::from);
        (low * (STEP as u32 - above) + high * above) / STEP as u32
    }

    /// Learns from a bit.
    #[inline]
    pub fn learn(&mut self, context: usize, mixed: i32, bit: bool) {
        let (knot, above) = Self::knot(mixed);
        let nearest = &mut self.curves[context][knot + usize::from(above >= STEP as u32 / 2)];
        let target = if bit { (ONE - LEAST) as i32 } else { LEAST as i32 };
        let value = i32::from(*nearest);
        *nearest = (value + ((target - value) >> RATE)) as u16;
    }

    pub fn values_mut(&mut self) -> &mut [u16] {
        self.curves.as_flattened_mut()
    }
}

/// An event moves a knot by 2^-6 of the way.
const RATE: u32 = 6;
