//! What goes in comes out, whatever it is; and what is damaged is told, and loses no more than it must.

use std::sync::LazyLock;

use allocation_counter::measure;
use burn::backend::Flex;
use proptest::prelude::*;
use sharnn_codec::{Codec, CodecError, HEADER_LEN, Options, Records, Totals};
use sharnn_core::{DecodeEngine, NGramConfig, NGramSite, ShaRnnConfig, Streams, WeightFormat};
use sharnn_kernels::team;
use sharnn_train::{ImportOptions, SaveOptions, WeightType, import_weights, save_weights_as};

fn config() -> ShaRnnConfig {
    let ngrams = NGramConfig { orders: vec![2, 3], rows: 64, width: 2, at: NGramSite::Both };
    ShaRnnConfig { d_model: 12, d_ff: 24, n_layers: 2, ..ShaRnnConfig::xs() }.with_mem_len(9).with_ngrams(ngrams)
}

fn engine(seed: u64) -> DecodeEngine {
    config().init_seeded::<Flex>(seed, &Default::default()).engine(WeightFormat::Exact)
}

static CODEC: LazyLock<Codec> = LazyLock::new(|| Codec::new(engine(1)).unwrap());

fn compressed(text: &[u8], options: &Options) -> (Vec<u8>, Totals) {
    let mut file = Vec::new();
    let totals = CODEC.compress(text, &mut file, options, &mut |_| true).unwrap();
    assert_eq!((totals.text, totals.code), (text.len() as u64, file.len() as u64));
    (file, totals)
}

fn decompressed(file: &[u8]) -> Result<Vec<u8>, CodecError> {
    let mut text = Vec::new();
    CODEC.decompress(file, &mut text, &mut |_| true).map(|totals| {
        assert_eq!((totals.text, totals.code), (text.len() as u64, file.len() as u64));
        text
    })
}

fn small() -> Options {
    Options { lanes: 2, block: 1 << 10, memory: Some(1 << 20) }
}

/// So many bytes of lines that repeat, and of some that do not.
fn text(bytes: usize) -> Vec<u8> {
    let line = |i: usize| format!("{} line {} of {}\n", ["a", "another", "no"][i % 3], i * i % 97, i % 11);
    (0..).flat_map(|i| line(i).into_bytes()).take(bytes).collect()
}

/// So many bytes that nothing is known of.
fn noise(bytes: usize) -> Vec<u8> {
    let mut x = 1u32;
    let next = || {
        x = x.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (x >> 24) as u8
    };
    std::iter::repeat_with(next).take(bytes).collect()
}

#[test]
fn lanes_are_shared_out_among_threads_without_a_trace() {
    for (lanes, bytes) in [(1, 3000), (2, 9000), (7, 20_000)] {
        let (text, options) = (text(bytes), Options { lanes, ..Options::default() });
        let (file, totals) = compressed(&text, &options);
        // The team is at work here, so that one thread does everything.
        team::run(2, |member| {
            if member.index == 0 {
                assert_eq!(compressed(&text, &options), (file.clone(), totals));
                assert_eq!(decompressed(&file).unwrap(), text);
            }
        });
    }
}

#[test]
fn texts_of_all_sizes_come_back() {
    for bytes in [0, 1, 2, 100, 1023, 1024, 1025, 5000, 20_000] {
        for options in [small(), Options { memory: None, ..small() }, Options { lanes: 7, ..Options::default() }] {
            let text = text(bytes);
            let (file, totals) = compressed(&text, &options);
            assert_eq!(decompressed(&file).unwrap(), text, "{bytes} bytes, {options:?}");
            assert_eq!(totals.blocks, bytes.div_ceil(options.block) as u32);
            // What is not the decisions' is headers and ends of blocks.
            let most = totals.bits / 8.0 * 1.001 + 64.0 * f64::from(totals.blocks + 1);
            assert!(file.len() as f64 <= most, "{bytes} bytes: {} for {} bits", file.len(), totals.bits);
        }
    }
}

#[test]
fn what_repeats_becomes_cheap_and_what_is_random_does_not_grow() {
    let (file, _) = compressed(&text(50_000), &Options::default());
    assert!(file.len() < 12_000, "{}", file.len());
    let noise = noise(3000);
    let (file, totals) = compressed(&noise, &small());
    assert!(file.len() <= noise.len() + 44 + 20 + 3 * 32 && totals.bits == 8.0 * 3000.0, "{totals:?}");
    assert_eq!(decompressed(&file).unwrap(), noise);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    #[test]
    fn any_bytes_in_any_lanes_and_blocks_come_back(
        text in proptest::collection::vec(any::<u8>(), 0..3000),
        lanes in 1usize..=9,
        block in 1usize << 10..4000,
        mixes in any::<bool>(),
    ) {
        let options = Options { lanes, block, memory: mixes.then_some(1 << 20) };
        prop_assert_eq!(decompressed(&compressed(&text, &options).0).unwrap(), text);
    }

    /// No damage is taken for the text, and nothing panics.
    #[test]
    fn damage_is_told(at in 0usize..2000, value in any::<u8>(), cut in any::<bool>()) {
        let original = text(3000);
        let (mut file, _) = compressed(&original, &small());
        let at = at % file.len();
        if cut {
            file.truncate(at);
        } else if file[at] == value {
            return Ok(());
        } else {
            file[at] = value;
        }
        let error = decompressed(&file).unwrap_err().to_string();
        prop_assert!(!error.is_empty());
        let (mut saved, mut lost) = (Vec::new(), 0);
        let result = CODEC.salvage(&*file, &mut saved, &mut |_| true, &mut |_| lost += 1);
        if result.is_ok() && !cut {
            prop_assert!(lost > 0);
            prop_assert_eq!(saved.len(), original.len());
            let differ = saved.iter().zip(&original).filter(|(a, b)| a != b).count();
            prop_assert!(differ <= 1024, "{} bytes differ", differ);
        }
    }

    #[test]
    fn records_come_back(text in proptest::collection::vec(any::<u8>(), 0..400)) {
        let record = RECORDS.compress(&text).unwrap();
        prop_assert!(record.len() <= text.len() + 4);
        prop_assert_eq!(RECORDS.decompress(&record).unwrap(), text);
    }

    #[test]
    fn whatever_bytes_are_no_panic(bytes in proptest::collection::vec(any::<u8>(), 0..60)) {
        let _ = RECORDS.decompress(&bytes);
        let _ = decompressed(&bytes);
        let (file, _) = compressed(b"some text", &small());
        let _ = decompressed(&[&file[..44], &bytes].concat());
    }
}

static RECORDS: LazyLock<Records> = LazyLock::new(|| Records::new(engine(1), None, Some(1 << 20)).unwrap());

/// Whoever made it, a record costs no more time than a message of the longest kind does.
#[test]
fn a_record_of_a_longer_message_is_refused() {
    let message = vec![b'a'; Records::LONGEST];
    let record = RECORDS.compress(&message).unwrap();
    assert_eq!(RECORDS.decompress(&record).unwrap(), message);
    let error = RECORDS.compress(&[&message[..], b"a"].concat()).unwrap_err();
    assert!(matches!(error, CodecError::Long { bytes } if bytes == Records::LONGEST + 1), "{error}");
    // The length of 639,542 bytes, a sum, and a code of few.
    let claimed = [&[0xEC, 0x88, 0x4E, 0xEC][..], &[0xEC; 70]].concat();
    assert!(matches!(RECORDS.decompress(&claimed).unwrap_err(), CodecError::Record { bytes: 74 }));
}

#[test]
fn a_lost_block_loses_no_other() {
    let original = text(4 * 1024 + 100);
    let (file, _) = compressed(&original, &small());
    let blocks: Vec<_> = file.windows(4).enumerate().filter(|(_, mark)| mark == b"\x93BLK").map(|(at, _)| at).collect();
    assert_eq!(blocks.len(), 5);
    // The third one is taken out, or some of its bytes are.
    for damaged in [
        [&file[..blocks[2]], &file[blocks[3]..]].concat(),
        [&file[..blocks[2] + 40], &file[blocks[2] + 60..]].concat(),
        [&file[..blocks[2] + 5], &file[blocks[2] + 6..]].concat(),
    ] {
        let (mut saved, mut lost) = (Vec::new(), Vec::new());
        CODEC.salvage(&*damaged, &mut saved, &mut |_| true, &mut |error| lost.push(error.to_string())).unwrap();
        assert!(!lost.is_empty());
        let mut want = original.clone();
        want[2048..3072].fill(0);
        assert!(saved == want, "{lost:?}: {} bytes", saved.len());
        let mut before = Vec::new();
        CODEC.decompress(&*damaged, &mut before, &mut |_| true).unwrap_err();
        assert_eq!(before, original[..2048], "what comes before the damage is written");
    }
}

/// The header of a block that is stored as it is, and says this of its sizes.
fn stored(index: u32, text: &[u8], sizes: [u32; 2]) -> Vec<u8> {
    let sum = crc32fast::hash(text);
    let numbers = [index, 1 << 16 | 1, sizes[0], sizes[1], sum, sum];
    let mut block = [b"\x93BLK".to_vec(), numbers.map(u32::to_le_bytes).concat()].concat();
    block.extend(crc32fast::hash(&block).to_le_bytes());
    block
}

/// What is searched for the next mark is passed over once, and not moved for each byte that could begin one: that took minutes.
#[test]
fn a_large_block_is_lost_and_no_time_with_it() {
    const BLOCK: usize = 16 << 20;
    let options = Options { block: BLOCK, ..small() };
    let (empty, _) = compressed(b"", &options);
    let (header, end) = empty.split_at(HEADER_LEN);
    let mut first = noise(BLOCK);
    let (second, n) = (b"and the next one", BLOCK as u32);
    let headers = [stored(0, &first, [n; 2]), stored(1, second, [second.len() as u32; 2])];
    first[BLOCK / 2] ^= 1;
    let damaged = [header, &headers[0], &first, &headers[1], second, end].concat();
    let (mut saved, mut lost) = (Vec::new(), Vec::new());
    CODEC.salvage(&*damaged, &mut saved, &mut |_| true, &mut |error| lost.push(error.to_string())).unwrap();
    assert!(lost[0].contains("its bytes have changed") && lost[0].contains("16777216 bytes at 0"), "{lost:?}");
    assert!(saved[..BLOCK].iter().all(|&byte| byte == 0) && &saved[BLOCK..] == second);
}

/// Whatever a file says of its sizes.
#[test]
fn memory_is_taken_for_what_there_is() {
    let (empty, _) = compressed(b"", &Options { block: 64 << 20, memory: None, ..small() });
    let text = text(1 << 10);
    for sizes in [[64 << 20; 2], [64 << 20, 1 << 10], [1 << 31; 2], [u32::MAX; 2]] {
        let file = [&empty[..HEADER_LEN], &stored(0, &text, sizes), &text].concat();
        let used = measure(|| assert!(decompressed(&file).is_err())).bytes_max;
        assert!(used < 256 << 10, "{used} bytes for a file of {} that speaks of {sizes:?}", file.len());
    }
}

#[test]
fn another_model_is_refused_by_name_and_so_is_what_is_no_file() {
    let (file, _) = compressed(b"some text", &small());
    let other = Codec::new(engine(2)).unwrap();
    let refused = |codec: &Codec, file: &[u8]| codec.decompress(file, Vec::new(), &mut |_| true).unwrap_err();
    assert!(matches!(refused(&other, &file), CodecError::OtherModel { .. }));
    for start in [&b""[..], b"PK\x03\x04", &file[..7]] {
        assert!(matches!(refused(&CODEC, start), CodecError::NotCompressed), "{start:?}");
    }
    assert!(matches!(refused(&CODEC, &file[..43]), CodecError::Header));
    // What no writer says, under the right sum: bytes that are zeros, a block neither coded nor stored.
    let with = |at: usize, value: u8, part: std::ops::Range<usize>| {
        let mut file = file.clone();
        file[at] = value;
        let (body, sum) = file[part].split_last_chunk_mut().unwrap();
        *sum = crc32fast::hash(body).to_le_bytes();
        file
    };
    assert!(matches!(refused(&CODEC, &with(12, 1, 0..HEADER_LEN)), CodecError::Header));
    assert!(matches!(refused(&CODEC, &with(HEADER_LEN + 8, 2, HEADER_LEN..HEADER_LEN + 32)), CodecError::Lost { .. }));
    assert!(matches!(refused(&CODEC, &[&file[..], b"\n"].concat()), CodecError::Lost { .. }));
    assert!(matches!(refused(&CODEC, &file[..60]), CodecError::CutShort { .. }));
    let model = ShaRnnConfig { d_model: 8, d_ff: 8, ..ShaRnnConfig::xs() }.init_seeded::<Flex>(1, &Default::default());
    let bf16 = model.engine(WeightFormat::Bf16);
    assert!(matches!(Codec::new(bf16).unwrap_err(), CodecError::NotExact { found: "bf16" }));
    for options in
        [Options { lanes: 0, ..small() }, Options { block: 3, ..small() }, Options { memory: Some(1), ..small() }]
    {
        let error = CODEC.compress(&b""[..], Vec::new(), &options, &mut |_| true).unwrap_err();
        assert!(matches!(error, CodecError::Option { .. }), "{error}");
    }
}

#[test]
fn whoever_watches_can_stop_it() {
    let text = text(100_000);
    let mut seen = Vec::new();
    let mut watch = |progress: sharnn_codec::Progress| {
        seen.push(progress.text);
        seen.len() < 3
    };
    let stopped = CODEC.compress(&*text, Vec::new(), &Options::default(), &mut watch).unwrap_err();
    assert!(matches!(stopped, CodecError::Stopped));
    assert!(seen.is_sorted() && seen.len() == 3, "{seen:?}");
    // Blocks that are stored take next to no time each, and there may be many.
    let (file, totals) = compressed(&noise(5 << 10), &small());
    let mut seen = Vec::new();
    let stopped = CODEC.decompress(&*file, Vec::new(), &mut |progress| {
        seen.push(progress.text);
        seen.len() < 3
    });
    assert!(matches!(stopped.unwrap_err(), CodecError::Stopped) && totals.blocks == 5);
    assert_eq!(seen, [0, 1 << 10, 2 << 10]);
}

/// The model of [`the_first_files_are_still_read`].
fn first_model() -> DecodeEngine {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/first/model.safetensors");
    let model = import_weights::<Flex>(path.as_ref(), &ImportOptions::default(), &Default::default()).unwrap();
    model.engine(WeightFormat::Exact)
}

/// The same bits for all instructions and numbers of threads, beside others or not, however the text is divided.
#[test]
fn logits_after_ten_thousand_bytes_are_these() {
    let (engine, text) = (first_model(), text(10_000));
    let mut three = engine.streams(3);
    for (i, part) in text.chunks(997).enumerate() {
        let others = &part[..part.len() / (i + 1)];
        three.read(&[others, part, &[]], &mut |_, _, _| ());
    }
    let mut one = engine.streams(1);
    one.read(&[&text], &mut |_, _, _| ());
    let digest = |logits: Option<&[f32]>| {
        let bytes = logits.unwrap().iter().flat_map(|x| x.to_bits().to_le_bytes());
        bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
    };
    assert_eq!(digest(one.logits(0)), digest(three.logits(1)));
    assert_eq!(digest(one.logits(0)), 0x4c21_636e_90d0_ba43);
}

/// A file from when the format was made, one of several lanes, and the model that made them: they are read for ever.
#[test]
fn the_first_files_are_still_read() {
    let codec = Codec::new(first_model()).unwrap();
    let blocks = (include_bytes!("first/text.sharn").as_slice(), text(3000), small());
    let several = Options { lanes: 3, block: 8 << 20, ..small() };
    let lanes = (include_bytes!("first/lanes.sharn").as_slice(), [text(8000), noise(1001)].concat(), several);
    for (file, text, options) in [blocks, lanes] {
        let mut read = Vec::new();
        codec.decompress(file, &mut read, &mut |_| true).unwrap();
        assert_eq!(read, text);
        let mut written = Vec::new();
        codec.compress(&*read, &mut written, &options, &mut |_| true).unwrap();
        assert!(written == file, "and still written so");
    }
}

/// Weights of 8 bits in a file are those that the engine has, so the model is the same one.
#[test]
fn a_model_and_its_file_of_8_bits_have_one_digest() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let model = config().init_seeded::<Flex>(5, &Default::default());
    let of = |model: &sharnn_core::ShaRnn<Flex>| model.engine(WeightFormat::Exact).digest();
    for collapse in [false, true] {
        save_weights_as(&model, &path, &SaveOptions { dtype: WeightType::Int8, collapse, ..SaveOptions::default() })
            .unwrap();
        let read = import_weights::<Flex>(&path, &ImportOptions::default(), &Default::default()).unwrap();
        // What collapses a gate rounds as it likes.
        assert_eq!(of(&read) == of(&model), !collapse);
        let file = std::fs::read(&path).unwrap();
        save_weights_as(&read, &path, &SaveOptions { dtype: WeightType::Int8, collapse, ..SaveOptions::default() })
            .unwrap();
        assert!(std::fs::read(&path).unwrap() == file, "and writing it again changes nothing");
    }
}
