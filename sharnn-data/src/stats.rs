//! Statistics of bytes.

/// Order-0 entropy in bits per byte: H = Σ p(b) log2(1 / p(b)) over the relative frequencies of the byte values. What a
/// model that ignores all context can reach at best, from 0 (one value, or no bytes at all) to 8 (all values alike).
pub fn order0_entropy(bytes: &[u8]) -> f64 {
    let mut counts = ByteCounts::default();
    counts.add(bytes);
    counts.order0_entropy()
}

/// How often each byte value occurs, of bytes that are read piece by piece.
#[derive(Clone, Debug)]
pub struct ByteCounts([u64; 256]);

impl Default for ByteCounts {
    fn default() -> Self {
        Self([0; 256])
    }
}

impl ByteCounts {
    /// Counts these bytes too.
    pub fn add(&mut self, bytes: &[u8]) {
        for &byte in bytes {
            self.0[usize::from(byte)] += 1;
        }
    }

    /// [`order0_entropy`] of all that was counted.
    pub fn order0_entropy(&self) -> f64 {
        let n = self.0.iter().sum::<u64>() as f64;
        self.0
            .into_iter()
            .filter(|&count| count > 0)
            .map(|count| {
                let count = count as f64;
                count / n * (n / count).log2()
            })
            .fold(0.0, |sum, bits| sum + bits)
    }
}

#[cfg(test)]
mod tests {
    use super::order0_entropy;

    #[test]
    fn entropy_of_distributions_known_by_hand() {
        let all: Vec<u8> = (0..=255).collect();
        assert_eq!(order0_entropy(&all), 8.0);
        assert_eq!(order0_entropy(b"abab"), 1.0);
        // p = 1/2, 1/4, 1/4.
        assert_eq!(order0_entropy(b"aabc"), 1.5);
        // p = 3/4, 1/4: 2 - 3/4 log2 3; the tolerance is a few roundings of an f64.
        assert!((order0_entropy(b"aaab") - (2.0 - 0.75 * 3f64.log2())).abs() < 1e-15);
    }

    #[test]
    fn one_value_or_none_has_no_entropy() {
        assert_eq!(order0_entropy(b"aaaa"), 0.0);
        assert_eq!(order0_entropy(b""), 0.0);
    }
}
