//! A mixer as bytes.
//!
//! ```text
//! sharnn-mixing 2\n      magic and version
//! memory, lanes          u64 each, as all numbers little-endian
//! everything else        in the order of `parts`, each byte as what it differs by (XOR) from that of a mixer that has read nothing;
//!                        runs of zeros as their length: u32 n, n bytes, u32 m for m zeros, and so on, to the end
//! ```
//!
//! So a mixer that has read little is few bytes.

use crate::adaptive::Learned;
use crate::counts::COUNTS;
use crate::past::Place;
use crate::weights::is_weight;
use crate::{Mixer, MixerConfig};

const MAGIC: &[u8] = b"sharnn-mixing 2\n";
const HEADER: usize = MAGIC.len() + 16;
/// A shorter run of zeros is written as it is.
const SHORTEST_RUN: usize = 16;

/// Why bytes are not a mixer that can go on.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MixerError {
    /// They are no mixer, or one of another version.
    #[error("{len} bytes are no adaptive statistics of this version: begin without them")]
    Format {
        /// How many bytes there are.
        len: usize,
    },
    /// They are of another memory or of other lanes.
    #[error(
        "adaptive statistics of {found} bytes of memory and {found_lanes} lanes, expected {expected} and {expected_lanes}: use the same"
    )]
    Config {
        /// The memory that was expected.
        expected: usize,
        /// What they have.
        found: u64,
        /// The lanes that were expected.
        expected_lanes: usize,
        /// What they have.
        found_lanes: u64,
    },
    /// They hold what cannot be.
    #[error("adaptive statistics of {len} bytes are damaged ({what}): begin without them")]
    Damaged {
        /// How many bytes there are.
        len: usize,
        /// What cannot be.
        what: &'static str,
    },
}

/// Values of one kind in a mixer, seen as numbers.
enum Part<'a> {
    Bytes(&'a mut [u8]),
    U16(&'a mut [u16]),
    U32(&'a mut [u32]),
    I32(&'a mut [i32]),
    Learned(&'a mut [Learned]),
    U64(&'a mut u64),
    Place(&'a mut Place),
}

impl Part<'_> {
    fn into_bytes(self) -> Vec<u8> {
        let mut bytes = Vec::new();
        self.each(&mut |values| bytes.extend_from_slice(values));
        bytes
    }

    /// Calls `each` with the bytes of each value, and takes what it leaves there.
    fn each(self, each: &mut dyn FnMut(&mut [u8])) {
        fn values<T: Copy, const N: usize>(
            values: &mut [T],
            to: impl Fn(T) -> [u8; N],
            from: impl Fn([u8; N]) -> T,
            each: &mut dyn FnMut(&mut [u8]),
        ) {
            for value in values {
                let mut bytes = to(*value);
                each(&mut bytes);
                *value = from(bytes);
            }
        }
        let u64s = |numbers: &mut [u64], each: &mut dyn FnMut(&mut [u8])| {
            values(numbers, u64::to_le_bytes, u64::from_le_bytes, each);
        };
        let u32s = |numbers: &mut [u32], each: &mut dyn FnMut(&mut [u8])| {
            values(numbers, u32::to_le_bytes, u32::from_le_bytes, each);
        };
        match self {
            Self::Bytes(bytes) => each(bytes),
            Self::U16(numbers) => values(numbers, u16::to_le_bytes, u16::from_le_bytes, each),
            Self::U32(numbers) => u32s(numbers, each),
            Self::I32(numbers) => values(numbers, i32::to_le_bytes, i32::from_le_bytes, each),
            Self::Learned(learned) => {
                let from = |bytes| Learned::from_bits(u32::from_le_bytes(bytes));
                values(learned, |learned| learned.to_bits().to_le_bytes(), from, each);
            }
            Self::U64(number) => u64s(std::slice::from_mut(number), each),
            Self::Place(place) => {
                let Place { read, recent, word, word_before, lines: [this, before], matched, length, doubted } = place;
                [read, recent, this, before].into_iter().for_each(|number| u64s(std::slice::from_mut(number), each));
                let numbers = [word, word_before, matched, length, doubted];
                numbers.into_iter().for_each(|number| u32s(std::slice::from_mut(number), each));
            }
        }
    }
}

impl Mixer {
    /// All that it is made of but its options.
    fn parts(&mut self) -> Vec<Part<'_>> {
        let Self { config: _, lanes, learned, past, buckets, order0, meanings, matches, weights, last, refinements } =
            self;
        let (bytes, places) = past.parts_mut();
        let mut parts = vec![Part::U64(learned)];
        parts.extend(lanes.iter_mut().map(Part::Place));
        parts.extend([Part::Bytes(order0), Part::Learned(meanings.as_flattened_mut()), Part::Learned(matches)]);
        parts.extend(weights.iter_mut().map(|weights| Part::I32(weights.values_mut())));
        parts.push(Part::I32(last.values_mut()));
        parts.extend(refinements.iter_mut().map(|refinement| Part::U16(refinement.values_mut())));
        parts.extend([Part::Bytes(bytes), Part::U32(places), Part::Bytes(buckets.bytes_mut())]);
        parts
    }

    /// The mixer as bytes: as many as it has learned, at most a little more than its memory. Equal mixers give equal bytes.
    pub fn to_bytes(&self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        for number in [self.config.memory, self.lanes.len()] {
            bytes.extend((number as u64).to_le_bytes());
        }
        let mut runs = Runs::default();
        // A copy, so that one list of parts serves both ways.
        let (mut copy, mut fresh) = (self.clone(), Self::new(self.config, self.lanes.len()));
        for (part, fresh) in copy.parts().into_iter().zip(fresh.parts()) {
            let mut fresh = fresh.into_bytes().into_iter();
            part.each(&mut |values| {
                differ(values, &mut fresh);
                runs.push(values);
            });
        }
        bytes.extend(runs.finish());
        bytes
    }

    /// The options and the lanes of the mixer that [`to_bytes`](Self::to_bytes) made bytes of, as they say.
    ///
    /// # Errors
    /// If they are no mixer, or options that no mixer has.
    pub fn saved_config(bytes: &[u8]) -> Result<(MixerConfig, usize), MixerError> {
        let [memory, lanes] = header(bytes)?;
        let format = || MixerError::Format { len: bytes.len() };
        let config = MixerConfig { memory: usize::try_from(memory).map_err(|_| format())? };
        let lanes = usize::try_from(lanes).map_err(|_| format())?;
        if !MixerConfig::MEMORY.contains(&config.memory) || !(1..=config.most_lanes()).contains(&lanes) {
            return Err(format());
        }
        Ok((config, lanes))
    }

    /// Takes what [`to_bytes`](Self::to_bytes) made bytes of, which has to have the same options and lanes. Two mixers' memory is
    /// needed.
    ///
    /// # Errors
    /// Bytes that are no mixer, one of another size, or one that cannot be. This mixer is as before then.
    pub fn set_bytes(&mut self, bytes: &[u8]) -> Result<(), MixerError> {
        let [found, found_lanes] = header(bytes)?;
        let (expected, expected_lanes) = (self.config.memory, self.lanes.len());
        if (found, found_lanes) != (expected as u64, expected_lanes as u64) {
            return Err(MixerError::Config { expected, found, expected_lanes, found_lanes });
        }
        let damaged = |what| MixerError::Damaged { len: bytes.len(), what };
        let mut reader = Reader { bytes: &bytes[HEADER..], left: 0, zeros: 0, whole: true };
        let mut mixer = Self::new(self.config, expected_lanes);
        for part in mixer.parts() {
            part.each(&mut |values| {
                let fresh = values.to_vec();
                reader.fill(values);
                differ(values, &mut fresh.into_iter());
            });
        }
        if !reader.ends() {
            return Err(damaged("they do not fill what they say"));
        }
        mixer.check().map_err(damaged)?;
        *self = mixer;
        Ok(())
    }

    /// Whether every value is one that reading leads to, as far as anything depends on it.
    fn check(&self) -> Result<(), &'static str> {
        let (bytes, places) = self.past.parts();
        let is_place = |place: &Place| {
            let [this, before] = place.lines;
            place.read < 1 << 62 && before <= this && this <= place.read && (place.matched as usize) < bytes.len()
        };
        let known = |bucket: &[u8]| bucket[1..].iter().all(|&number| COUNTS.knows(number));
        let weights = self.weights.iter().flat_map(|weights| weights.values()).chain(self.last.values());
        match () {
            () if !self.lanes.iter().all(is_place) => Err("where a lane is"),
            () if !places.iter().all(|&place| place as usize <= bytes.len()) => Err("where bytes were read"),
            () if !self.order0.iter().all(|&number| COUNTS.knows(number)) => Err("counts"),
            () if !self.buckets.bytes().chunks(16).all(known) => Err("counts of contexts"),
            () if !weights.copied().all(is_weight) => Err("weights"),
            () => Ok(()),
        }
    }
}

/// What values differ by from others, and the other way round.
fn differ(values: &mut [u8], others: &mut impl Iterator<Item = u8>) {
    values.iter_mut().zip(others).for_each(|(value, other)| *value ^= other);
}

fn header(bytes: &[u8]) -> Result<[u64; 2], MixerError> {
    let numbers = bytes.strip_prefix(MAGIC).and_then(|rest| rest.first_chunk::<16>());
    let numbers = numbers.ok_or(MixerError::Format { len: bytes.len() })?.as_chunks::<8>().0;
    Ok([numbers[0], numbers[1]].map(u64::from_le_bytes))
}

/// Bytes in which runs of zeros are told by their length.
#[derive(Default)]
struct Runs {
    bytes: Vec<u8>,
    others: Vec<u8>,
    zeros: usize,
}

impl Runs {
    fn push(&mut self, values: &[u8]) {
        for &byte in values {
            if byte == 0 {
                self.zeros += 1;
                continue;
            }
            if self.zeros >= SHORTEST_RUN {
                self.write();
            }
            self.others.resize(self.others.len() + std::mem::take(&mut self.zeros), 0);
            self.others.push(byte);
        }
    }

    fn write(&mut self) {
        let zeros = std::mem::take(&mut self.zeros) as u32;
        self.bytes.extend((self.others.len() as u32).to_le_bytes());
        self.bytes.append(&mut self.others);
        self.bytes.extend(zeros.to_le_bytes());
    }

    fn finish(mut self) -> Vec<u8> {
        self.write();
        self.bytes
    }
}

/// Reads what [`Runs`] wrote.
struct Reader<'a> {
    bytes: &'a [u8],
    /// Of the bytes that are written as they are.
    left: usize,
    zeros: usize,
    /// Nothing was missing so far.
    whole: bool,
}

impl Reader<'_> {
    fn number(&mut self) -> usize {
        let Some((number, rest)) = self.bytes.split_first_chunk() else {
            self.whole = false;
            return 0;
        };
        self.bytes = rest;
        u32::from_le_bytes(*number) as usize
    }

    fn fill(&mut self, mut values: &mut [u8]) {
        while !values.is_empty() && self.whole {
            if self.left == 0 && self.zeros == 0 {
                self.left = self.number();
                self.after_others();
                self.whole &= self.left + self.zeros > 0;
            }
            let n = values.len().min(if self.left > 0 { self.left } else { self.zeros });
            let (now, later) = values.split_at_mut(n);
            values = later;
            if self.left == 0 {
                now.fill(0);
                self.zeros -= n;
                continue;
            }
            let Some((others, rest)) = self.bytes.split_at_checked(n) else {
                self.whole = false;
                return;
            };
            now.copy_from_slice(others);
            (self.bytes, self.left) = (rest, self.left - n);
            self.after_others();
        }
    }

    /// After the bytes that are written as they are, the zeros.
    fn after_others(&mut self) {
        if self.left == 0 {
            self.zeros = self.number();
        }
    }

    fn ends(&self) -> bool {
        self.whole && self.bytes.is_empty() && self.left == 0 && self.zeros == 0
    }
}
