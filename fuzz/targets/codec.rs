//! Compressed files and records: bytes as they are, and with the sums that a writer would have given them.

#![no_main]

use std::io::{self, Write};
use std::sync::LazyLock;

use libfuzzer_sys::fuzz_target;
use sharnn::burn::backend::Flex;
use sharnn::codec::{Codec, HEADER_LEN, Options, Progress, Records};
use sharnn::{DecodeEngine, ShaRnnConfig, WeightFormat};
use sharnn_fuzz::{config, harmless, seed, within};

static ENGINE: LazyLock<DecodeEngine> = LazyLock::new(|| {
    let model = ShaRnnConfig { vocab_size: 256, ..config() }.init_seeded::<Flex>(1, &Default::default());
    model.engine(WeightFormat::Exact)
});
static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::new(ENGINE.clone()).unwrap());
static RECORDS: LazyLock<Records> = LazyLock::new(|| Records::new(ENGINE.clone(), None, Some(1 << 20)).unwrap());
const SMALL: Options = Options { lanes: 2, block: 1 << 10, memory: Some(1 << 20) };
/// Bytes of a block's header, and of an end mark.
const BLOCK: usize = 32;
const END: usize = 20;
/// No more text is made of an input, where it can be told before: it takes time alone.
const MOST: u32 = 1 << 8;
/// A block's text and its code and the mixer's memory are the most that is held, whatever a file says.
const LARGEST: usize = 3 * (64 << 20);

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    if claimed(bytes).is_none_or(|text| text <= MOST as usize || text > Records::LONGEST) {
        harmless(RECORDS.decompress(bytes));
    }
    let other = Some(summed(bytes)).filter(|summed| summed != bytes);
    for bytes in [Some(bytes.to_vec()), other].into_iter().flatten() {
        let watch = &mut |progress: Progress| progress.text < u64::from(MOST);
        let (mut text, mut saved) = (Beginning::default(), Beginning::default());
        within(LARGEST, bytes.len(), "a file", || {
            if let Some(totals) = harmless(CODEC.decompress(&*bytes, &mut text, watch)) {
                assert_eq!(totals.text, text.len);
            }
            let lost = &mut |error| assert!(harmless::<(), _>(Err(error)).is_none());
            harmless(CODEC.salvage(&*bytes, &mut saved, watch, lost));
        });
        assert!(saved.len >= text.len && saved.bytes.starts_with(&text.bytes));
    }
});

/// What is written, of which only the beginning is kept.
#[derive(Default)]
struct Beginning {
    bytes: Vec<u8>,
    len: u64,
}

impl Write for Beginning {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let rest = (1 << 16) - self.bytes.len();
        self.bytes.extend(&bytes[..rest.min(bytes.len())]);
        self.len += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// The bytes of text that a record says it has.
fn claimed(record: &[u8]) -> Option<usize> {
    let last = record.iter().take(4).position(|byte| byte >> 7 == 0)?;
    Some(record[..=last].iter().rev().fold(0, |number, byte| number << 7 | usize::from(byte & 0x7F)) >> 1)
}

/// The same with right sums wherever a header or a mark seems to be.
fn summed(bytes: &[u8]) -> Vec<u8> {
    let mut file = bytes.to_vec();
    for at in 0..file.len() {
        let part = &mut file[at..];
        let len = match part {
            _ if at == 0 => HEADER_LEN,
            [0x93, b'B', b'L', b'K', ..] => BLOCK,
            [0x93, b'E', b'N', b'D', ..] => END,
            _ => continue,
        };
        if len == BLOCK {
            sum_block(part);
        }
        if let Some((body, sum)) = part.get_mut(..len).and_then(<[u8]>::split_last_chunk_mut) {
            *sum = crc32fast::hash(body).to_le_bytes();
        }
    }
    file
}

/// Gives a block the sum of its code, and of its text where that is stored. One that says that it is long says that it is short instead.
fn sum_block(block: &mut [u8]) -> Option<()> {
    let (header, code) = block.split_first_chunk_mut::<BLOCK>()?;
    let numbers = header.as_chunks_mut::<4>().0;
    let [_, _, stored, text, n, of_text, of_code, _] = numbers else { unreachable!("eight of them") };
    let claimed = u32::from_le_bytes(*text);
    if (MOST..=64 << 20).contains(&claimed) {
        *text = (claimed % MOST).to_le_bytes();
    }
    *of_code = crc32fast::hash(code.get(..u32::from_le_bytes(*n) as usize)?).to_le_bytes();
    if stored[..2] == [1, 0] {
        *of_text = *of_code;
    }
    Some(())
}

fn seeds() -> Vec<Vec<u8>> {
    let text: Vec<_> = (0..200).map(|i| b"what repeats, becomes cheap "[i * i % 97 % 28]).collect();
    let compressed = |text: &[u8]| {
        let mut file = Vec::new();
        CODEC.compress(text, &mut file, &SMALL, &mut |_| true).unwrap();
        file
    };
    // Blocks shorter than a writer makes them: one that is coded, one that is stored, and one that says that its lanes are two.
    let mut file = compressed(&[])[..HEADER_LEN].to_vec();
    for (index, text, lanes) in [(0u32, &text[..], 1u16), (1, b"xyz", 1), (2, &text[..50], 2)] {
        let mut block = compressed(text)[HEADER_LEN..].to_vec();
        block.truncate(block.len() - END);
        block[4..8].copy_from_slice(&index.to_le_bytes());
        block[10..12].copy_from_slice(&lanes.to_le_bytes());
        file.extend(block);
    }
    file.extend([&b"\x93END"[..], &3u32.to_le_bytes(), &253u64.to_le_bytes(), &[0; 4]].concat());
    vec![
        summed(&file),
        compressed(&text),
        RECORDS.compress(&text[..200]).unwrap(),
        RECORDS.compress(&text[..3]).unwrap(),
    ]
}
