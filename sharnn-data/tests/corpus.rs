//! Corpora and splits: what opens, what is refused, and what the refusal says.

use std::fs;
use std::path::PathBuf;

use proptest::prelude::*;
use sharnn_data::{Corpus, DataError, Splits, enwik8};
use tempfile::TempDir;

/// A file with these bytes, and the folder that goes when the test ends.
fn file(bytes: &[u8]) -> (TempDir, PathBuf) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("text.txt");
    fs::write(&path, bytes).unwrap();
    (dir, path)
}

/// A file of `len` bytes that takes no room: zeros after `head`.
fn sparse_file(head: &[u8], len: u64) -> (TempDir, PathBuf) {
    let (dir, path) = file(head);
    fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(len).unwrap();
    (dir, path)
}

#[test]
fn mapped_read_and_held_bytes_are_the_same() {
    let bytes = b"some bytes, \x00 and \xff among them";
    let (_dir, path) = file(bytes);
    let mapped = Corpus::open(&path).unwrap();
    assert_eq!(&*mapped, bytes);
    assert_eq!(mapped.name(), "text.txt");
    assert_eq!(&*Corpus::read(&path).unwrap(), bytes);
    assert_eq!(&*Corpus::from_bytes(bytes.to_vec()), bytes);
    assert_eq!(&*Corpus::from_bytes(&bytes[..]), bytes);
}

#[test]
fn clone_outlives_the_first_handle() {
    let (_dir, path) = file(b"shared");
    let corpus = Corpus::open(&path).unwrap();
    let split = corpus.split(1..4).unwrap();
    drop(corpus);
    assert_eq!(&*split, b"har");
}

#[test]
fn digest_of_a_split_is_that_of_its_bytes() {
    // The test vector of FIPS 180 for "abc".
    let split = Corpus::from_bytes(&b"xxabcxx"[..]).split(2..5).unwrap();
    assert_eq!(split.sha256(), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
}

#[test]
fn head_is_the_first_bytes_and_never_more_than_there_are() {
    let split = Corpus::from_bytes(&b"0123456789"[..]).split(2..8).unwrap();
    assert_eq!(&*split.head(3), b"234");
    assert_eq!(split.head(3).range(), 2..5);
    assert_eq!(&*split.head(usize::MAX), b"234567");
    assert!(split.head(0).is_empty());
}

#[test]
fn a_range_past_the_end_or_backwards() {
    let corpus = Corpus::from_bytes(&b"0123"[..]);
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..5, 3..2, 5..5] {
        let error = corpus.split(range.clone()).unwrap_err();
        assert!(matches!(&error, DataError::Range { range: r, len: 4, .. } if *r == range), "{error}");
    }
    assert!(corpus.split(4..4).unwrap().is_empty());
}

#[test]
fn a_missing_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere");
    for error in [
        Corpus::open(&path).unwrap_err(),
        Corpus::read(&path).unwrap_err(),
        enwik8::open_any(path.join("below")).unwrap_err(),
    ] {
        assert!(matches!(error, DataError::NotFound { .. }), "{error:?}");
        assert!(error.to_string().contains("nowhere"), "{error}");
        assert!(error.to_string().contains(enwik8::URL), "{error}");
    }
}

#[test]
fn a_path_below_a_file() {
    let (_dir, path) = file(b"text");
    let error = Corpus::open(path.join("enwik8")).unwrap_err();
    assert!(matches!(error, DataError::NotFound { .. }), "{error:?}");
}

#[test]
fn a_directory() {
    let dir = tempfile::tempdir().unwrap();
    let error = Corpus::open(dir.path()).unwrap_err();
    assert!(matches!(error, DataError::NotAFile { .. }), "{error:?}");
    assert!(error.to_string().contains("is a directory"), "{error}");
}

#[cfg(unix)]
#[test]
fn a_device() {
    let error = Corpus::open("/dev/null").unwrap_err();
    assert!(matches!(error, DataError::NotAFile { .. }), "{error:?}");
}

#[cfg(unix)]
#[test]
fn a_file_that_may_not_be_read() {
    use std::os::unix::fs::PermissionsExt;
    let (_dir, path) = file(b"secret");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o000)).unwrap();
    let opened = Corpus::open(&path);
    if fs::File::open(&path).is_ok() {
        // The superuser may read it all the same; then so may the corpus.
        assert_eq!(&*opened.unwrap(), b"secret");
    } else {
        let error = opened.unwrap_err();
        assert!(matches!(error, DataError::Unreadable { .. }), "{error:?}");
    }
}

#[test]
fn an_empty_file() {
    let (_dir, path) = file(b"");
    for error in [Corpus::open(&path).unwrap_err(), Corpus::read(&path).unwrap_err()] {
        assert!(matches!(error, DataError::Empty { .. }), "{error:?}");
    }
}

#[test]
fn a_file_of_three_bytes_opens_but_cannot_be_split() {
    let (_dir, path) = file(b"abc");
    assert_eq!(&*Corpus::open(&path).unwrap(), b"abc");
    let error = enwik8::open_any(&path).unwrap_err();
    assert!(matches!(error, DataError::TooShort { len: 3, needed: 40, .. }), "{error:?}");
    assert!(error.to_string().contains("40 bytes would do"), "{error}");
}

#[test]
fn fractions_that_leave_nothing() {
    let corpus = Corpus::from_bytes(vec![0; 1000]);
    for (valid, test) in [
        (f64::NAN, 0.1),
        (0.1, f64::NAN),
        (-0.1, 0.1),
        (0.1, -0.1),
        (0.0, 0.1),
        (0.1, 0.0),
        (0.5, 0.5),
        (f64::INFINITY, 0.1),
        (1.0, 1e-9),
    ] {
        let error = Splits::by_fractions(corpus.clone(), valid, test).unwrap_err();
        assert!(matches!(error, DataError::Fractions { .. }), "{error:?}");
    }
    // Fractions that are sound, but too small or too large for this corpus.
    for (valid, test) in [(1e-300, 0.1), (0.001, 0.1), (0.5, 0.4999)] {
        let error = Splits::by_fractions(corpus.clone(), valid, test).unwrap_err();
        assert!(matches!(error, DataError::TooShort { len: 1000, .. }), "{error:?}");
    }
}

#[test]
fn fractions_say_how_they_cut() {
    let splits = Splits::by_fractions(Corpus::from_bytes(vec![0; 1000]), 0.05, 0.025).unwrap();
    assert_eq!(splits.train.range(), 0..925);
    assert_eq!(splits.valid.range(), 925..975);
    assert_eq!(splits.test.range(), 975..1000);
    assert_eq!(splits.name, "bytes in memory (92.5 / 5 / 2.5 %)");
}

#[test]
fn a_sampled_digest_sees_the_first_byte_the_last_one_and_the_length() {
    let len = 10_000_000;
    let (_dir, path) = sparse_file(b"begin", len);
    let sampled = || Corpus::open(&path).unwrap().whole().sampled_sha256();
    let first = sampled();
    assert_eq!(first, sampled());
    let write = |at: u64, byte: u8| {
        use std::io::{Seek, SeekFrom, Write};
        let mut file = fs::OpenOptions::new().write(true).open(&path).unwrap();
        file.seek(SeekFrom::Start(at)).unwrap();
        file.write_all(&[byte]).unwrap();
    };
    for at in [0, len - 1] {
        write(at, b'x');
        assert_ne!(sampled(), first, "byte {at}");
        write(at, if at == 0 { b'b' } else { 0 });
        assert_eq!(sampled(), first);
    }
    // One that is short is read whole.
    let short = Corpus::from_bytes(vec![7; 1000]).whole();
    assert_eq!(short.sampled_sha256(), short.sha256());
}

#[test]
fn a_corpus_knows_where_it_was_read_from() {
    let (_dir, path) = file(b"text");
    assert_eq!(Corpus::open(&path).unwrap().path(), Some(&*path));
    assert_eq!(Corpus::from_bytes(&b"text"[..]).path(), None);
}

/// Pages that are gone read as zeros, and the corpus says so; what is appended is not seen.
#[cfg(unix)]
#[test]
fn a_file_that_is_cut_short_while_it_is_read_is_told_and_kills_nobody() {
    let bytes: Vec<u8> = (0..200_000).map(|i| (i % 251) as u8 + 1).collect();
    for kept in [0, 5000, 199_999] {
        let (_dir, path) = file(&bytes);
        let corpora = [Corpus::open(&path).unwrap(), Corpus::open(&path).unwrap()];
        let other = file(&bytes);
        let other = Corpus::open(&other.1).unwrap();
        corpora[0].check().unwrap();
        fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(kept).unwrap();
        for corpus in &corpora {
            // Those of the page before the end are read from a thread too.
            let read = corpus.clone();
            let sum = std::thread::spawn(move || read.iter().map(|&byte| u64::from(byte)).sum::<u64>()).join().unwrap();
            let expected: u64 = bytes[..kept as usize].iter().map(|&byte| u64::from(byte)).sum();
            assert_eq!(sum, expected);
            let error = corpus.check().unwrap_err();
            assert!(matches!(error, DataError::Shrunk { expected: 200_000, found: Some(found), .. } if found == kept));
            assert!(
                error.to_string().contains("was cut short while it was read: it had 200000 bytes and has"),
                "{error}"
            );
        }
        // It stays so, though the file be written anew, where pages were missing.
        if kept == 0 {
            fs::write(&path, &bytes).unwrap();
            corpora[0].check().unwrap_err();
        }
        other.check().unwrap();
        assert_eq!(&*other, &bytes[..]);
    }
}

#[test]
fn a_file_that_grows_or_goes_away_is_read_as_it_was() {
    let (dir, path) = file(b"text of before");
    let corpus = Corpus::open(&path).unwrap();
    assert!(!corpus.was_written());
    fs::write(&path, b"text of before, and more").unwrap();
    corpus.check().unwrap();
    assert_eq!(&*corpus, b"text of before");
    fs::remove_file(&path).unwrap();
    corpus.check().unwrap();
    assert_eq!(&*corpus, b"text of before");
    drop(dir);
}

proptest! {
    #[test]
    fn fractions_cut_into_contiguous_parts_or_say_the_length_that_would_do(
        len in 0usize..5000,
        valid in 0.001f64..0.6,
        test in 0.001f64..0.39,
    ) {
        let split = |len| Splits::by_fractions(Corpus::from_bytes(vec![7; len]), valid, test);
        match split(len) {
            Ok(splits) => {
                prop_assert_eq!(splits.train.range().start, 0);
                prop_assert_eq!(splits.train.range().end, splits.valid.range().start);
                prop_assert_eq!(splits.valid.range().end, splits.test.range().start);
                prop_assert_eq!(splits.test.range().end, len);
                for part in [splits.train, splits.valid, splits.test] {
                    prop_assert!(part.len() >= 2);
                }
            }
            Err(DataError::TooShort { needed, .. }) => {
                prop_assert!(needed > len);
                prop_assert!(split(needed).is_ok());
                prop_assert!(split(needed - 1).is_err());
            }
            Err(error) => prop_assert!(false, "{}", error),
        }
    }
}

#[test]
fn a_file_of_the_size_of_enwik8_that_is_none() {
    let (_dir, path) = sparse_file(b"<mediawiki ", enwik8::SIZE as u64);
    // By its length and its first bytes it is taken for enwik8; only its checksum can tell.
    let splits = enwik8::open_any(&path).unwrap();
    assert_eq!(splits.name, "enwik8");
    assert_eq!(splits.train.range(), 0..90_000_000);
    assert_eq!(splits.valid.range(), 90_000_000..95_000_000);
    assert_eq!(splits.test.range(), 95_000_000..100_000_000);
    let error = enwik8::verify(splits.train.corpus()).unwrap_err();
    assert!(
        matches!(&error, DataError::Checksum { part: "train", expected, found, .. }
            if *expected == enwik8::TRAIN_SHA256 && found.len() == 64 && found != expected),
        "{error:?}"
    );
    assert!(error.to_string().contains(enwik8::TRAIN_SHA256), "{error}");
}

#[test]
fn a_file_of_that_size_that_is_no_dump_is_split_by_fractions() {
    let (_dir, path) = sparse_file(b"prose", enwik8::SIZE as u64);
    let splits = enwik8::open_any(&path).unwrap();
    assert_eq!(splits.name, "text.txt (90 / 5 / 5 %)");
    assert_eq!(splits.train.len(), 90_000_000);
}

#[test]
fn enwik8_cut_short_by_a_byte() {
    assert!(enwik8::is_enwik8_size(100_000_000));
    assert!(!enwik8::is_enwik8_size(99_999_999));
    let (_dir, path) = sparse_file(b"<mediawiki ", enwik8::SIZE as u64 - 1);
    for error in [enwik8::open(&path).unwrap_err(), enwik8::verify(&Corpus::open(&path).unwrap()).unwrap_err()] {
        assert!(matches!(error, DataError::NotEnwik8 { found: 99_999_999, .. }), "{error:?}");
    }
}

/// With the real file at hand (its path in `SHARNN_ENWIK8`): every checksum, and its statistics.
#[test]
fn the_real_enwik8_verifies() {
    let Some(path) = std::env::var_os("SHARNN_ENWIK8") else {
        return;
    };
    let splits = enwik8::open(&path).unwrap();
    let corpus = splits.train.corpus();
    enwik8::verify(corpus).unwrap();
    assert_eq!(corpus.whole().sha256(), enwik8::SHA256);
    assert_eq!(splits.train.sha256(), enwik8::TRAIN_SHA256);
    assert_eq!(splits.valid.sha256(), enwik8::VALID_SHA256);
    assert_eq!(splits.test.sha256(), enwik8::TEST_SHA256);
    assert_eq!(enwik8::open_any(&path).unwrap().name, "enwik8");
    let mut seen = [false; 256];
    corpus.iter().for_each(|&byte| seen[usize::from(byte)] = true);
    assert_eq!(seen.into_iter().filter(|&seen| seen).count(), 205);

    // A flipped bit in the last byte is found, and in the right split.
    let mut bytes = corpus.to_vec();
    *bytes.last_mut().unwrap() ^= 1;
    let error = enwik8::verify(&Corpus::from_bytes(bytes)).unwrap_err();
    assert!(matches!(error, DataError::Checksum { part: "test", .. }), "{error:?}");
}
