//! The logistic domain in integers: where probabilities are mixed.
//!
//! ```text
//! stretch(p) = ln(p / (1 - p))        p: 1/65536 to 65535/65536, in 65536ths; stretch(p): in 256ths, -2839 to 2839
//! squash(x)  = 1 / (1 + e^-x)         its inverse
//! ```
//!
//! Both are tables, which are made of integers alone, so that they are the same on every machine.

use std::sync::LazyLock;

/// One, in the unit of probabilities.
pub const ONE: u32 = 1 << 16;
/// The least that a decision's probability may be, and the least that it may be short of one.
pub const LEAST: u32 = 1;
/// The largest value of [`Logistic::stretch`]: what `squash` takes to 65535/65536.
pub const FURTHEST: i32 = 2839;

/// Probabilities below this, and as far below one, have an entry each; between them 16 share one.
const FINE: u32 = 4096;
const SHARED: u32 = 4;

/// The two tables.
#[derive(Debug)]
pub struct Logistic {
    squash: Vec<u16>,
    ends: Vec<i16>,
    middle: Vec<i16>,
}

pub static LOGISTIC: LazyLock<Logistic> = LazyLock::new(Logistic::new);

impl Logistic {
    fn new() -> Self {
        let exact = exact_squash();
        let at = |x: i32| exact[(2 * (x + FURTHEST)) as usize];
        let squash = (-FURTHEST..=FURTHEST).map(|x| (rounded(at(x)).clamp(LEAST, ONE - LEAST)) as u16).collect();
        // The x nearest to a probability: half a step on either side belongs to it.
        let halves: Vec<u64> = exact.iter().skip(1).step_by(2).copied().collect();
        let nearest = |p: u64| (halves.partition_point(|&half| half <= p) as i32 - FURTHEST) as i16;
        let ends = (0..FINE).map(|p| nearest(u64::from(p.max(LEAST)) << 46)).collect();
        let middle = (0..ONE >> SHARED).map(|i| nearest(u64::from(2 * i + 1) << (46 + SHARED - 1))).collect();
        Self { squash, ends, middle }
    }

    /// `ln(p / (1 - p))` in 256ths, of a probability in 65536ths.
    #[inline]
    pub fn stretch(&self, p: u32) -> i32 {
        i32::from(if p < FINE {
            self.ends[p as usize]
        } else if p > ONE - FINE {
            -self.ends[(ONE - p) as usize]
        } else {
            self.middle[(p >> SHARED) as usize]
        })
    }

    /// `1 / (1 + e^-x)` in 65536ths, of an x in 256ths; of one that is out of bounds that of the bound.
    #[inline]
    pub fn squash(&self, x: i32) -> u32 {
        u32::from(self.squash[(x.clamp(-FURTHEST, FURTHEST) + FURTHEST) as usize])
    }
}

/// `2^62 / (1 + e^-x)` for x = -2839, -2838.5, ... 2839, in 256ths.
fn exact_squash() -> Vec<u64> {
    const UNIT: u128 = 1 << 62;
    // e^(-1/512) by its series.
    let (mut step, mut term, mut negative) = (UNIT, UNIT, true);
    for n in 1..16 {
        term /= 512 * n;
        step = if negative { step - term } else { step + term };
        negative = !negative;
    }
    let half = 2 * FURTHEST as usize;
    let mut above = vec![UNIT / 2];
    let mut power = UNIT;
    for _ in 0..half {
        power = (power * step) >> 62;
        above.push((UNIT << 62) / (UNIT + power));
    }
    let below = above[1..].iter().rev().map(|p| UNIT - p);
    below.chain(above.iter().copied()).map(|p| p as u64).collect()
}

/// From 2^62 to 65536ths.
fn rounded(p: u64) -> u32 {
    ((p + (1 << 45)) >> 46) as u32
}
