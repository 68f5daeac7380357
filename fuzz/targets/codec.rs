//! Compressed files and records: bytes as they are, and with the sums that a writer would have given them.

#![no_main]

use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sharnn::burn::backend::Flex;
use sharnn::codec::{Codec, Options, Records};
use sharnn::{DecodeEngine, ShaRnnConfig, WeightFormat};
use sharnn_fuzz::{config, harmless, seed};

static ENGINE: LazyLock<DecodeEngine> = LazyLock::new(|| {
    let model = ShaRnnConfig { vocab_size: 256, ..config() }.init_seeded::<Flex>(1, &Default::default());
    model.engine(WeightFormat::Exact)
});
static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::new(ENGINE.clone()).unwrap());
static RECORDS: LazyLock<Records> = LazyLock::new(|| Records::new(ENGINE.clone(), None, Some(1 << 20)).unwrap());
const SMALL: Options = Options { lanes: 2, block: 1 << 10, memory: Some(1 << 20) };
/// No more text is made of an input: it takes time alone.
const MOST: u64 = 1 << 15;

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    harmless(RECORDS.decompress(bytes));
    for bytes in [bytes.to_vec(), summed(bytes)] {
        let mut text = Vec::new();
        let whole = harmless(CODEC.decompress(&*bytes, &mut text, &mut |progress| progress.text < MOST));
        if whole.is_some() {
            assert_eq!(whole.map(|totals| totals.text), Some(text.len() as u64));
        }
        let mut saved = Vec::new();
        let lost = &mut |error| drop(harmless::<(), _>(Err(error)));
        harmless(CODEC.salvage(&*bytes, &mut saved, &mut |progress| progress.text < MOST, lost));
        assert!(saved.starts_with(&text) || text.is_empty());
    }
});

/// The same with right sums wherever a header or a mark seems to be.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    let mut sum = |at: usize, len: usize| {
        if let Some(part) = file.get_mut(at..at + len) {
            let (body, sum) = part.split_at_mut(len - 4);
            sum.copy_from_slice(&crc32fast::hash(body).to_le_bytes());
        }
    };
    sum(0, 44);
    for at in 44..bytes.len() {
        match bytes[at..].get(..4) {
            Some(b"\x93BLK") => sum(at, 32),
            Some(b"\x93END") => sum(at, 20),
            _ => {}
        }
    }
    file
}

fn seeds() -> Vec<Vec<u8>> {
    let text: Vec<_> = (0..3000).map(|i| b"what repeats, becomes cheap "[i * i % 97 % 28]).collect();
    let mut file = Vec::new();
    CODEC.compress(&*text, &mut file, &SMALL, &mut |_| true).unwrap();
    vec![file, RECORDS.compress(&text[..200]).unwrap(), RECORDS.compress(&text[..3]).unwrap()]
}
