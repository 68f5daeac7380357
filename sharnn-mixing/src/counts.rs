//! What was seen in a context, in one byte: how often its next bit was 0 and 1, roughly, and which came last.
//!
//! The counts are small and the newer bit is believed: where a 1 comes, the zeros above two are forgotten by about half, and where both
//! were seen often neither is remembered well. This is the idea of PAQ's bit histories (Mahoney 2005, "Adaptive Weighing of
//! Context Models for Lossless Data Compression"); the counts and their limits are our own.

use std::sync::LazyLock;

/// A context's counts, by number: 0 where nothing was seen.
#[derive(Debug)]
pub struct Counts {
    /// The next number, by the bit that came.
    next: [[u8; 2]; 256],
    /// How many zeros and ones.
    seen: [[u8; 2]; 256],
    /// How many numbers are in use.
    len: usize,
}

pub static COUNTS: LazyLock<Counts> = LazyLock::new(Counts::new);

/// Counts that are told apart.
const STEPS: [u8; 14] = [0, 1, 2, 3, 4, 5, 6, 7, 8, 12, 16, 24, 40, 41];

/// How often one bit may have been seen beside so many of the other.
fn limit(other: u8) -> u8 {
    match other {
        0 | 1 => 40,
        2 => 12,
        3 => 8,
        4 => 6,
        5 => 5,
        _ => 4,
    }
}

fn fits(counts: [u8; 2]) -> bool {
    counts[0] <= limit(counts[1]) && counts[1] <= limit(counts[0])
}

/// The largest count that is told apart and is at most this.
fn step(count: u8) -> u8 {
    STEPS[STEPS.partition_point(|&step| step <= count) - 1]
}

fn after(mut counts: [u8; 2], bit: usize) -> [u8; 2] {
    let (same, other) = (counts[bit], counts[1 - bit]);
    counts[bit] = STEPS[STEPS.partition_point(|&step| step <= same)].min(40);
    counts[1 - bit] = match other {
        0..=2 => other,
        3 | 4 => other - 1,
        5..=8 => other / 2 + 1,
        _ => 6,
    };
    // What came gives way first where it is too often for the other; then the other.
    while !fits(counts) {
        let gives = if counts[bit] > limit(counts[1 - bit]) { bit } else { 1 - bit };
        counts[gives] = step(counts[gives] - 1);
    }
    counts
}

impl Counts {
    fn new() -> Self {
        let mut states = vec![([0, 0], 0)];
        for zeros in STEPS.into_iter().take_while(|&step| step <= 40) {
            for ones in STEPS.into_iter().take_while(|&step| step <= 40) {
                let last = |bit: usize| (0..[zeros, ones][bit].min(1)).map(move |_| ([zeros, ones], bit));
                if fits([zeros, ones]) {
                    states.extend(last(0).chain(last(1)));
                }
            }
        }
        assert!(states.len() <= 256, "{} states for a byte", states.len());
        let mut counts = Self { next: [[0; 2]; 256], seen: [[0; 2]; 256], len: states.len() };
        for (number, &(seen, _)) in states.iter().enumerate() {
            counts.seen[number] = seen;
            for bit in 0..2 {
                let next = states.iter().position(|&state| state == (after(seen, bit), bit));
                counts.next[number][bit] = next.expect("what follows fits") as u8;
            }
        }
        counts
    }

    #[inline]
    pub fn next(&self, number: u8, bit: bool) -> u8 {
        self.next[usize::from(number)][usize::from(bit)]
    }

    /// How much was seen.
    #[inline]
    pub fn total(&self, number: u8) -> u32 {
        let [zeros, ones] = self.seen[usize::from(number)];
        u32::from(zeros) + u32::from(ones)
    }

    /// Whether there are counts of this number.
    pub fn knows(&self, number: u8) -> bool {
        usize::from(number) < self.len
    }

    /// The first guess of the probability of a 1, in 65536ths: `(ones + 0.4) / (zeros + ones + 0.8)`.
    pub fn guess(&self, number: u8) -> u32 {
        let [zeros, ones] = self.seen[usize::from(number)].map(u32::from);
        (65536 * (10 * ones + 4)) / (10 * (zeros + ones) + 8)
    }
}
