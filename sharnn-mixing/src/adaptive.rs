//! Probabilities that follow what happens.

use crate::logistic::{LEAST, ONE};

/// A probability that is learned: the mean of what happened, of the newest events mostly once there were many.
///
/// 22 bits of probability, 10 bits of how many events it knows of.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Learned(u32);

/// `65536 / (events + 1.5)`: how far an event moves a mean of so many.
const SHARES: [u32; 1024] = {
    let mut shares = [0; 1024];
    let mut n = 0;
    while n < 1024 {
        shares[n] = 131_072 / (2 * n as u32 + 3);
        n += 1;
    }
    shares
};

impl Learned {
    /// One that begins at a probability in 65536ths, as if nothing had happened yet.
    pub fn new(probability: u32) -> Self {
        Self(probability.clamp(LEAST, ONE - LEAST) << 16)
    }

    /// In 65536ths, neither 0 nor 1.
    #[inline]
    pub fn probability(self) -> u32 {
        (self.0 >> 16).clamp(LEAST, ONE - LEAST)
    }

    /// Learns whether it happened; of more than `most` events it remembers the newest.
    #[inline]
    pub fn learn(&mut self, happened: bool, most: u32) {
        let (probability, events) = ((self.0 >> 10) as i32, self.0 & 1023);
        let target = if happened { (1 << 22) - 1 } else { 0 };
        let share = i64::from(SHARES[events as usize]);
        let moved = probability + ((i64::from(target - probability) * share) >> 16) as i32;
        self.0 = (moved as u32) << 10 | if events < most { events + 1 } else { most };
    }

    pub fn to_bits(self) -> u32 {
        self.0
    }

    pub fn from_bits(bits: u32) -> Self {
        Self(bits)
    }
}
