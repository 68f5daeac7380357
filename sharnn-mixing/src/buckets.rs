//! The counts of contexts, in bounded memory: a hash table of buckets, each for four bits of a byte after one context.

use crate::counts::COUNTS;

/// What marks the context, and the counts of the 15 places that four bits go through.
type Bucket = [u8; SIZE];
const SIZE: usize = 16;
/// Buckets that a context may lie in: one line of the cache.
const LINE: usize = 4;

/// The table. What is new takes the place of what was seen least.
#[derive(Clone, Debug)]
pub struct Buckets {
    lines: Vec<[Bucket; LINE]>,
}

impl Buckets {
    /// What [`find`](Self::find) says of a context that has no bucket.
    pub const NONE: u32 = u32::MAX;

    /// A table of this size in bytes, rounded down; at least one line.
    pub fn new(bytes: usize) -> Self {
        Self { lines: vec![[[0; SIZE]; LINE]; (bytes / (SIZE * LINE)).max(1)] }
    }

    #[inline]
    fn line_of(&self, hash: u32) -> (usize, u8) {
        let line = (u64::from(hash) * self.lines.len() as u64) >> 32;
        // Not the bits that chose the line.
        (line as usize, (hash.wrapping_mul(0x9E37_79B1) >> 24).max(1) as u8)
    }

    /// The number of a context's bucket.
    #[inline]
    pub fn find(&self, hash: u32) -> u32 {
        let (line, mark) = self.line_of(hash);
        let of_line = &self.lines[line];
        let place =
            (0..LINE).rfold(Self::NONE, |found, place| if of_line[place][0] == mark { place as u32 } else { found });
        if place == Self::NONE { place } else { (line * LINE) as u32 + place }
    }

    /// The number of the counts at a place (1 to 15) of a bucket; 0 without a bucket.
    #[inline]
    pub fn get(&self, bucket: u32, place: usize) -> u8 {
        self.lines.as_flattened().get(bucket as usize).map_or(0, |bucket| bucket[place & (SIZE - 1)])
    }

    /// The bucket of a context; a new one if it has none.
    #[inline]
    pub fn claim(&mut self, hash: u32) -> &mut [u8; SIZE] {
        let (line, mark) = self.line_of(hash);
        let line = &mut self.lines[line];
        let place = line.iter().position(|bucket| bucket[0] == mark).unwrap_or_else(|| {
            let seen = |place: &usize| COUNTS.total(line[*place][1]);
            let place = (0..LINE).min_by_key(seen).expect("a line has buckets");
            line[place] = [0; SIZE];
            line[place][0] = mark;
            place
        });
        &mut line[place]
    }

    pub fn bytes(&self) -> &[u8] {
        self.lines.as_flattened().as_flattened()
    }

    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.lines.as_flattened_mut().as_flattened_mut()
    }
}
