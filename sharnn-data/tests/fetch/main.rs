//! Fetching, against a server on this machine: whole, resumed, and everything that a server or a disk can do wrong.

mod archives;
mod server;
mod transfers;

use std::fs;
use std::io::{Cursor, Write};
use std::path::{Path, PathBuf};

use server::{Reply, Server};
use sha2::{Digest, Sha256};
use sharnn_data::fetch::{self, Expected};
use sharnn_data::{FetchError, FetchProgress};
use tempfile::TempDir;
use zip::write::SimpleFileOptions;
use zip::{CompressionMethod, ZipWriter};

const ENTRY: &str = "enwik8";

/// Bytes that do not compress to nothing, so that an archive of them has a middle to be cut in.
fn content() -> Vec<u8> {
    let mut state = 1u32;
    (0..50_000)
        .map(|_| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            b'a' + (state >> 28) as u8
        })
        .collect()
}

fn expect(content: &[u8]) -> Expected {
    Expected {
        entry: ENTRY.into(),
        size: content.len() as u64,
        sha256: format!("{:x}", Sha256::digest(content)),
    }
}

fn archive(entries: &[(&str, &[u8])]) -> Vec<u8> {
    archive_as(CompressionMethod::Deflated, entries)
}

fn archive_as(method: CompressionMethod, entries: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
    for (name, bytes) in entries {
        zip.start_file(
            *name,
            SimpleFileOptions::default().compression_method(method),
        )
        .unwrap();
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

/// A folder to fetch into.
struct Place {
    dir: TempDir,
}

impl Place {
    fn new() -> Self {
        Self {
            dir: tempfile::tempdir().unwrap(),
        }
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("enwik8")
    }

    fn part(&self) -> PathBuf {
        self.dir.path().join("enwik8.zip.part")
    }

    fn fetch(&self, url: &str, expected: &Expected) -> Result<PathBuf, FetchError> {
        fetch::enwik8_from(url, expected, &self.dest(), &mut |_| ())
    }

    fn names(&self) -> Vec<String> {
        let mut names: Vec<String> = fs::read_dir(self.dir.path())
            .unwrap()
            .map(|entry| entry.unwrap().file_name().into_string().unwrap())
            .collect();
        names.sort();
        names
    }

    /// The destination holds the content, and nothing lies beside it.
    fn assert_fetched(&self) {
        assert_eq!(fs::read(self.dest()).unwrap(), content());
        assert_eq!(self.names(), ["enwik8"]);
    }
}

#[test]
fn whole_download() {
    let content = content();
    let body = archive(&[(ENTRY, &content)]);
    let len = body.len() as u64;
    let server = Server::start(move |_, _| Reply::whole(&body));
    let place = Place::new();
    // The folder is made on the way.
    let dest = place.dir.path().join("some/folder/enwik8");
    let mut progress = Vec::new();
    let path = fetch::enwik8_from(&server.url(), &expect(&content), &dest, &mut |step| {
        progress.push(step);
    })
    .unwrap();
    assert_eq!(path, dest);
    assert_eq!(fs::read(&dest).unwrap(), content);
    assert_eq!(fs::read_dir(dest.parent().unwrap()).unwrap().count(), 1);
    assert_eq!(server.requests().len(), 1);
    assert_eq!(server.requests()[0].field("range"), None);
    let downloaded = FetchProgress::Downloading {
        bytes: len,
        total: Some(len),
    };
    let unpacked = FetchProgress::Unpacking {
        bytes: 50_000,
        total: 50_000,
    };
    assert!(progress.contains(&downloaded) && progress.contains(&unpacked));
    assert_eq!(progress.last(), Some(&FetchProgress::Done));
}

#[test]
fn whole_download_without_a_length() {
    let body = archive(&[(ENTRY, &content())]);
    let server = Server::start(move |_, _| Reply::status(200).body(&body));
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
}

#[test]
fn destination_that_is_right_needs_no_network() {
    let place = Place::new();
    fs::write(place.dest(), content()).unwrap();
    let server = Server::start(|_, _| Reply::status(500));
    place.fetch(&server.url(), &expect(&content())).unwrap();
    assert_eq!(server.requests().len(), 0);
    place.assert_fetched();
}

#[test]
fn destination_that_holds_something_else_is_left_alone() {
    let server = Server::start(|_, _| Reply::status(500));
    let other_bytes = content().into_iter().rev().collect::<Vec<u8>>();
    for bytes in [b"my notes".to_vec(), other_bytes] {
        let place = Place::new();
        fs::write(place.dest(), &bytes).unwrap();
        let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
        assert!(matches!(error, FetchError::Destination { .. }), "{error:?}");
        assert_eq!(fs::read(place.dest()).unwrap(), bytes);
    }
    let place = Place::new();
    for dest in [place.dir.path(), Path::new("")] {
        let error =
            fetch::enwik8_from(&server.url(), &expect(&content()), dest, &mut |_| ()).unwrap_err();
        assert!(matches!(error, FetchError::Destination { .. }), "{error:?}");
    }
    assert_eq!(server.requests().len(), 0);
}

#[test]
fn folder_that_is_a_file() {
    let place = Place::new();
    fs::write(place.dest(), b"a file").unwrap();
    let below = place.dest().join("enwik8");
    let server = Server::start(|_, _| Reply::status(500));
    let error =
        fetch::enwik8_from(&server.url(), &expect(&content()), &below, &mut |_| ()).unwrap_err();
    assert!(matches!(error, FetchError::Io { .. }), "{error:?}");
    assert!(error.to_string().contains("enwik8"), "{error}");
}

#[test]
fn another_process_is_fetching() {
    let place = Place::new();
    let held = fs::File::create(place.part()).unwrap();
    held.try_lock().unwrap();
    let server = Server::start(|_, _| Reply::status(500));
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    assert!(matches!(error, FetchError::Busy { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 0);
}
