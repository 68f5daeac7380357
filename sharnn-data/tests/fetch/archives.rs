//! What an archive can hold: the right file, another one, or an attempt to do harm.

use sharnn_data::FetchError;
use zip::CompressionMethod;

use super::server::{Reply, Server};
use super::{ENTRY, Place, archive, archive_as, content, expect};

/// What fetching the real content from an archive of these bytes fails with; nothing may be left behind.
fn refusal(body: Vec<u8>) -> FetchError {
    let place = Place::new();
    let server = Server::start(move |_, _| Reply::whole(&body));
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    assert_eq!(place.names(), [""; 0], "{error}");
    error
}

#[test]
fn stored_archive() {
    let body = archive_as(CompressionMethod::Stored, &[(ENTRY, &content())]);
    let server = Server::start(move |_, _| Reply::whole(&body));
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
}

#[test]
fn wrong_checksum() {
    let mut other = content();
    other[25_000] ^= 1;
    let error = refusal(archive(&[(ENTRY, &other)]));
    let right = expect(&content()).sha256;
    assert!(
        matches!(&error, FetchError::WrongChecksum { expected, found, .. }
            if *expected == right && *found == expect(&other).sha256),
        "{error:?}"
    );
}

#[test]
fn wrong_size() {
    for len in [0, 49_999, 50_001, 400_000] {
        let error = refusal(archive(&[(ENTRY, &vec![b'a'; len])]));
        assert!(
            matches!(&error, FetchError::WrongSize { found, .. } if *found == len as u64),
            "{error:?}"
        );
    }
}

/// A zip bomb: the archive says that its entry has the right size, and it unpacks to a thousand times as much.
#[test]
fn size_in_the_archive_is_a_lie() {
    let bomb = vec![0u8; 50_000_000];
    let mut body = archive(&[(ENTRY, &bomb)]);
    let (said, lie) = (50_000_000u32.to_le_bytes(), 50_000u32.to_le_bytes());
    let mut changed = 0;
    for i in 0..body.len() - 4 {
        if body[i..i + 4] == said {
            body[i..i + 4].copy_from_slice(&lie);
            changed += 1;
        }
    }
    assert_eq!(changed, 2, "the local header and the directory");
    let error = refusal(body);
    assert!(
        matches!(&error, FetchError::Archive { reason } if reason.contains("larger than its declared")),
        "{error:?}"
    );
}

#[test]
fn archive_without_the_entry() {
    let content = content();
    for name in [
        "enwik9",
        "../enwik8",
        "/enwik8",
        "data/enwik8",
        "ENWIK8",
        "enwik8/",
    ] {
        let error = refusal(archive(&[(name, &content)]));
        assert!(
            matches!(&error, FetchError::MissingEntry { found, .. } if found.contains(name)),
            "{error:?}"
        );
    }
    let error = refusal(archive(&[]));
    assert!(error.to_string().contains("but nothing"), "{error}");
    let many = [
        ("a", &b""[..]),
        ("b", b""),
        ("c", b""),
        ("d", b""),
        ("e", b""),
    ];
    let error = refusal(archive(&many));
    assert!(
        error.to_string().contains("`a`, `b`, `c`, 2 more"),
        "{error}"
    );
}

#[test]
fn entry_beside_others_that_try_to_climb_out() {
    let content = content();
    let body = archive(&[("../../evil", b"evil"), (ENTRY, &content)]);
    let server = Server::start(move |_, _| Reply::whole(&body));
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content)).unwrap();
    place.assert_fetched();
}

#[test]
fn what_came_is_no_archive() {
    let page = b"<html>Log in to the wireless network</html>".to_vec();
    let mut damaged = archive(&[(ENTRY, &content())]);
    damaged[10_000..10_100].fill(0xff);
    for body in [page, Vec::new(), damaged] {
        let error = refusal(body);
        assert!(matches!(error, FetchError::Archive { .. }), "{error:?}");
    }
}
