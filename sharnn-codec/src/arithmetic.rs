//! Arithmetic coding of decisions (Martin 1979), with carries.
//!
//! An interval of 32 bits is divided in proportion to the two sides' probabilities, in 65536ths; what is decided says which part is
//! kept. Where the interval has become smaller than 2²⁴ its first byte is settled, but for a carry.

/// Below this size of the interval a byte is settled.
const SETTLED: u32 = 1 << 24;

/// Writes decisions.
#[derive(Debug)]
pub(crate) struct Encoder {
    /// Where the interval begins; bit 32 is a carry.
    low: u64,
    range: u32,
    /// Bytes that are settled; a carry may still run through the last ones.
    bytes: Vec<u8>,
}

impl Default for Encoder {
    fn default() -> Self {
        Self { low: 0, range: u32::MAX, bytes: Vec::new() }
    }
}

impl Encoder {
    /// Writes a decision, of which a 1 has this probability in 65536ths, 1 to 65535.
    #[inline]
    pub fn write(&mut self, probability: u32, bit: bool) {
        let bound = (self.range >> 16) * probability;
        if bit {
            self.range = bound;
        } else {
            self.low += u64::from(bound);
            self.range -= bound;
        }
        while self.range < SETTLED {
            self.settle();
            self.range <<= 8;
        }
    }

    fn settle(&mut self) {
        if self.low >> 32 != 0 {
            // The whole code is below 1: there is a byte that takes the carry.
            let at = self.bytes.iter().rposition(|&byte| byte != 0xFF).expect("a code is below 1");
            self.bytes[at] += 1;
            self.bytes[at + 1..].fill(0);
        }
        self.bytes.push((self.low >> 24) as u8);
        self.low = self.low << 8 & 0xFFFF_FFFF;
    }

    /// The code: as few bytes as say which interval it is, where zeros follow them.
    pub fn finish(mut self) -> Vec<u8> {
        let end = self.low + u64::from(self.range);
        let rounded = |bits: u32| (self.low + (1 << bits) - 1) >> bits << bits;
        let bits = (0..=32).rev().find(|&bits| rounded(bits) < end).expect("the interval is not empty");
        self.low = rounded(bits);
        (0..4).for_each(|_| self.settle());
        while self.bytes.last() == Some(&0) {
            self.bytes.pop();
        }
        self.bytes
    }
}

/// Reads decisions. A code that is not one gives some decisions as well.
#[derive(Debug)]
pub(crate) struct Decoder<'a> {
    /// Where in the interval the code lies.
    code: u32,
    range: u32,
    rest: &'a [u8],
}

impl<'a> Decoder<'a> {
    pub fn new(bytes: &'a [u8]) -> Self {
        let mut decoder = Self { code: 0, range: u32::MAX, rest: bytes };
        (0..4).for_each(|_| decoder.shift());
        decoder
    }

    fn shift(&mut self) {
        let byte = self.rest.split_off_first().copied().unwrap_or(0);
        self.code = self.code << 8 | u32::from(byte);
    }

    /// Reads a decision, of which a 1 has this probability in 65536ths, 1 to 65535.
    #[inline]
    pub fn read(&mut self, probability: u32) -> bool {
        let bound = (self.range >> 16) * probability;
        let bit = self.code < bound;
        if bit {
            self.range = bound;
        } else {
            self.code -= bound;
            self.range -= bound;
        }
        while self.range < SETTLED {
            self.shift();
            self.range <<= 8;
        }
        bit
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn coded(decisions: &[(u32, bool)]) -> Vec<u8> {
        let mut encoder = Encoder::default();
        decisions.iter().for_each(|&(probability, bit)| encoder.write(probability, bit));
        encoder.finish()
    }

    fn cost(decisions: &[(u32, bool)]) -> f64 {
        let cost = |&(probability, bit): &(u32, bool)| {
            -(f64::from(if bit { probability } else { 65536 - probability }) / 65536.0).log2()
        };
        decisions.iter().map(cost).sum()
    }

    proptest! {
        #[test]
        fn decisions_are_read_as_they_were_written(
            decisions in proptest::collection::vec((prop_oneof![1u32..65536, Just(1), Just(65535)], any::<bool>()), 0..2000),
        ) {
            let code = coded(&decisions);
            prop_assert!(code.len() as f64 * 8.0 <= cost(&decisions) * 1.001 + 16.0, "{} bytes", code.len());
            let mut decoder = Decoder::new(&code);
            for &(probability, bit) in &decisions {
                prop_assert_eq!(decoder.read(probability), bit);
            }
        }

        #[test]
        fn whatever_bytes_are_decisions(bytes in proptest::collection::vec(any::<u8>(), 0..50)) {
            let mut decoder = Decoder::new(&bytes);
            for i in 0..1000u32 {
                decoder.read(1 + i * 7919 % 65535);
            }
        }
    }

    #[test]
    fn a_carry_runs_through_all_ones() {
        // Likely ones keep the interval at its lower end, zeros after them move it to the upper one.
        for n in 0..200 {
            let mut decisions = vec![(1, false); n];
            decisions.extend([(65535, true), (1, true), (32768, false), (32768, false)]);
            let code = coded(&decisions);
            let mut decoder = Decoder::new(&code);
            assert!(decisions.iter().all(|&(probability, bit)| decoder.read(probability) == bit), "{n}");
        }
    }

    #[test]
    fn nothing_takes_no_bytes() {
        assert!(coded(&[]).is_empty());
        assert!(coded(&vec![(65535, true); 100]).len() <= 1);
    }
}
