//! A stream's state in a file: what is written is whole, and what is read is checked.

use std::error::Error;
use std::fs;
use std::path::Path;

use burn::backend::Flex;
use sharnn_core::{DecodeStreams, Scorer, ShaRnnConfig, StateError, Streams, WeightFormat};
use sharnn_train::{StateFileError, load_state, load_state_of, save_state, weights_digest};

fn scorer() -> Scorer<DecodeStreams> {
    let config = ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, mem_len: 6, ..ShaRnnConfig::xs() };
    let model = config.init_seeded::<Flex>(1, &Default::default());
    Scorer::new(model.engine(WeightFormat::Bf16).streams(1)).unwrap()
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> =
        fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_stream_goes_on_from_its_file_bit_for_bit() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream.state");
    let mut scorer = scorer();
    for part in [&b"the first part"[..], b"and the second, longer than the memory", b"x"] {
        scorer.score(part).unwrap();
        save_state(&scorer.state(), &path).unwrap();
        assert_eq!(names(dir.path()), ["stream.state"]);
        let mut resumed = self::scorer();
        resumed.set_state(&load_state(&path, resumed.streams().shape()).unwrap()).unwrap();
        assert_eq!(resumed.score(b"what comes then").unwrap(), scorer.clone().score(b"what comes then").unwrap());
    }
}

#[test]
fn files_that_are_no_state_of_these_streams() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream.state");
    let scorer = scorer();
    let shape = scorer.streams().shape();
    let most = shape.most_bytes();

    let error = load_state(&path, shape).unwrap_err();
    assert!(matches!(error, StateFileError::Io { action: "read", .. }), "{error}");
    assert!(matches!(load_state(dir.path(), shape).unwrap_err(), StateFileError::Io { action: "read", .. }));

    fs::write(&path, b"").unwrap();
    let error = load_state(&path, shape).unwrap_err();
    assert!(matches!(&error, StateFileError::State { source: StateError::Format { bytes: 0, .. }, .. }), "{error}");
    assert!(error.to_string().contains("stream.state"), "{error}");
    assert!(error.source().unwrap().to_string().starts_with("0 bytes are not a whole stream state"));

    // Much larger than any state; no more of it is read.
    fs::File::create(&path).unwrap().set_len(1 << 40).unwrap();
    let error = load_state(&path, shape).unwrap_err();
    assert!(
        matches!(error, StateFileError::State { source: StateError::TooLong { most: found }, .. } if found == most)
    );

    save_state(&scorer.state(), &path).unwrap();
    let mut bytes = fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    fs::write(&path, &bytes).unwrap();
    let error = load_state(&path, shape).unwrap_err();
    assert!(matches!(error, StateFileError::State { source: StateError::Damaged { .. }, .. }), "{error}");
}

#[test]
fn a_state_knows_its_weights_and_a_stranger_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("stream.state");
    let config = ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, mem_len: 6, ..ShaRnnConfig::xs() };
    let digest = |seed| weights_digest(&config.init_seeded::<Flex>(seed, &Default::default()));
    let (own, other) = (digest(1), digest(2));
    assert_ne!(own, other);
    assert_eq!(weights_digest(&config.init_seeded::<Flex>(1, &Default::default()).with_mem_len(3)), own);

    let mut scorer = scorer();
    scorer.score(b"some text").unwrap();
    let shape = scorer.streams().shape();
    save_state(&scorer.state().of_weights(own), &path).unwrap();
    let state = load_state_of(&path, shape, &own).unwrap();
    assert_eq!((state.weights(), &state), (Some(&own), &scorer.state().of_weights(own)));
    let error = load_state_of(&path, shape, &other).unwrap_err();
    assert!(matches!(error, StateFileError::OtherWeights { .. }), "{error}");
    assert!(error.to_string().contains("stream.state: it is the state of a stream of other weights"), "{error}");
    // What was said of the weights is under the file's checksum.
    let bytes = fs::read(&path).unwrap();
    let at = bytes.windows(9).position(|bytes| bytes == b" weights=").unwrap() + 9;
    let mut changed = bytes.clone();
    changed[at] = if changed[at] == b'0' { b'1' } else { b'0' };
    fs::write(&path, &changed).unwrap();
    let error = load_state(&path, shape).unwrap_err();
    assert!(matches!(error, StateFileError::State { source: StateError::Damaged { .. }, .. }), "{error}");
    changed[at] = b'g';
    fs::write(&path, &changed).unwrap();
    let error = load_state(&path, shape).unwrap_err();
    assert!(matches!(error, StateFileError::State { source: StateError::Format { .. }, .. }), "{error}");
    // One of before, which says nothing.
    save_state(&scorer.state(), &path).unwrap();
    assert_eq!(load_state_of(&path, shape, &own).unwrap().weights(), None);
}

#[test]
fn what_was_there_stays_when_nothing_can_be_written() {
    let dir = tempfile::tempdir().unwrap();
    let state = scorer().state();
    let missing = dir.path().join("no/such/stream.state");
    let error = save_state(&state, &missing).unwrap_err();
    assert!(matches!(error, StateFileError::Io { action: "write", .. }), "{error}");
    // A directory, and what is no name of a file.
    for path in [dir.path(), Path::new("/"), Path::new("")] {
        let error = save_state(&state, path).unwrap_err();
        assert!(matches!(error, StateFileError::Io { action: "write", .. }), "{path:?}: {error}");
    }
    assert!(names(dir.path()).is_empty());
}

#[cfg(unix)]
#[test]
fn devices_are_not_replaced_and_links_stay_links() {
    let dir = tempfile::tempdir().unwrap();
    let state = scorer().state();
    save_state(&state, Path::new("/dev/null")).unwrap();
    assert!(!fs::metadata("/dev/null").unwrap().is_file());
    // Linux's stand-in for a disk without room.
    if Path::new("/dev/full").exists() {
        let error = save_state(&state, Path::new("/dev/full")).unwrap_err();
        assert!(matches!(error, StateFileError::DiskFull { .. }), "{error}");
    }
    let (target, link) = (dir.path().join("target"), dir.path().join("link"));
    fs::write(&target, b"old").unwrap();
    std::os::unix::fs::symlink(&target, &link).unwrap();
    save_state(&state, &link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(load_state(&target, state.shape()).unwrap(), state);
}
