//! Weights that mix predictions, learned while they are used.
//!
//! ```text
//! mixed  = Σ weight · input            inputs and their mixture in the logistic domain
//! weight += rate · (bit - squash(mixed)) · input
//! ```
//!
//! That is a step against the gradient of what the bit cost: -ln of its probability (Mahoney 2005, section 4). The steps grow shorter.

use crate::logistic::{FURTHEST, LOGISTIC, ONE};

/// 1.0 as a weight.
pub const UNIT: i32 = 1 << 16;
/// No weight is further from 0: the sum of 24 products of it and the largest input, both in 16 bits, has 32.
const MOST: i32 = 6 * UNIT - 1;

/// Sets of weights, one of which a prediction is mixed with.
#[derive(Clone, Debug)]
pub struct Weights<const INPUTS: usize> {
    sets: Vec<[i32; INPUTS]>,
}

impl<const INPUTS: usize> Weights<INPUTS> {
    const FITS: () = assert!(INPUTS <= 24);

    pub fn new(n: usize, first: [i32; INPUTS]) -> Self {
        const { Self::FITS };
        Self { sets: vec![first; n] }
    }

    /// The mixture, in the logistic domain.
    #[inline]
    pub fn mix(&self, set: usize, inputs: &[i16; INPUTS]) -> i32 {
        let products = self.sets[set].iter().zip(inputs);
        let sum: i32 = products.map(|(&weight, &input)| i32::from((weight >> 4) as i16) * i32::from(input)).sum();
        (sum >> 12).clamp(-FURTHEST, FURTHEST)
    }

    /// Learns from a bit, after what was mixed of these inputs before; `rate` is at most 31.
    #[inline]
    pub fn learn(&mut self, set: usize, inputs: &[i16; INPUTS], mixed: i32, bit: bool, rate: i32) {
        let error = if bit { ONE as i32 } else { 0 } - LOGISTIC.squash(mixed) as i32;
        let step = ((error * rate) >> 6) as i16;
        for (weight, &input) in self.sets[set].iter_mut().zip(inputs) {
            let change = (i32::from(input) * i32::from(step) + (1 << 11)) >> 12;
            *weight = (*weight + change).clamp(-MOST, MOST);
        }
    }

    pub fn values(&self) -> &[i32] {
        self.sets.as_flattened()
    }

    /// Takes weights that were kept.
    pub fn values_mut(&mut self) -> &mut [i32] {
        self.sets.as_flattened_mut()
    }
}

/// Whether there may be such a weight.
pub fn is_weight(value: i32) -> bool {
    (-MOST..=MOST).contains(&value)
}
