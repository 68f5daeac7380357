//! What a server can do: break off, ignore ranges, change its mind, refuse, or never stop.

use std::fs;
use std::io::{Read, Write};
use std::net::TcpListener;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use sharnn_data::{FetchError, FetchProgress, fetch};
use zip::CompressionMethod;

use super::server::{Reply, Request, Server};
use super::{ENTRY, Place, archive, archive_as, content, expect};

const TAG: &str = "\"version 1\"";

fn body() -> Vec<u8> {
    archive(&[(ENTRY, &content())])
}

/// The right answer to a request, ranges and `If-Range` understood.
fn serve(body: &[u8], tag: &str, request: &Request) -> Reply {
    let unchanged = request.field("if-range").is_none_or(|known| known == tag);
    match request.range_start() {
        Some(start) if unchanged => Reply::rest(body, start),
        _ => Reply::whole(body),
    }
    .with("ETag", tag)
}

/// The same archive with the entry under another checksum, as if it had been published anew.
fn older_body() -> Vec<u8> {
    let mut content = content();
    content.reverse();
    archive(&[(ENTRY, &content)])
}

#[test]
fn cut_connection_is_resumed_in_the_same_run() {
    let server = Server::start(|i, request| match i {
        0 => serve(&body(), TAG, request).cut_after(7_000),
        1 => serve(&body(), TAG, request).cut_after(5_000),
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    let mut retries = 0;
    fetch::enwik8_from(
        &server.url(),
        &expect(&content()),
        &place.dest(),
        &mut |step| {
            if let FetchProgress::Retrying { attempt, .. } = step {
                retries += 1;
                assert_eq!(attempt, retries);
            }
        },
    )
    .unwrap();
    place.assert_fetched();
    assert_eq!(retries, 2);
    let requests = server.requests();
    assert_eq!(requests.len(), 3);
    assert_eq!(requests[0].field("range"), None);
    assert_eq!(requests[1].field("range"), Some("bytes=7000-"));
    assert_eq!(requests[1].field("if-range"), Some(TAG));
    assert_eq!(requests[2].field("range"), Some("bytes=12000-"));
}

#[test]
fn cut_connection_is_resumed_by_the_next_run() {
    // Every connection breaks: the first run gives up.
    let left = AtomicUsize::new(5);
    let server = Server::start(move |i, request| {
        let reply = serve(&body(), TAG, request);
        if i == 0 {
            return reply.cut_after(9_000);
        }
        match left.fetch_sub(1, Ordering::SeqCst) {
            1 => reply,
            _ => reply.cut_after(0),
        }
    });
    let place = Place::new();
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    let len = body().len() as u64;
    assert!(
        matches!(&error, FetchError::Interrupted { received: 9_000, total: Some(total), part, .. }
            if *total == len && *part == place.part()),
        "{error:?}"
    );
    assert!(error.to_string().contains("run again to resume"), "{error}");
    assert_eq!(fs::read(place.part()).unwrap(), body()[..9_000]);

    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    let requests = server.requests();
    assert_eq!(requests.len(), 6);
    assert_eq!(requests[5].field("range"), Some("bytes=9000-"));
}

#[test]
fn archive_that_is_complete_is_not_fetched_again() {
    let server = Server::start(|_, request| serve(&body(), TAG, request));
    let place = Place::new();
    // Unpacking cannot begin: a folder is where its temporary file should be.
    let temporary = place.dir.path().join("enwik8.part");
    fs::create_dir(&temporary).unwrap();
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    assert!(matches!(error, FetchError::Io { .. }), "{error:?}");
    fs::remove_dir(&temporary).unwrap();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    assert_eq!(server.requests().len(), 1);
}

#[test]
fn last_modified_stands_in_for_a_weak_or_missing_tag() {
    const DATE: &str = "Wed, 01 Mar 2006 00:00:00 GMT";
    for tag in [Some("W/\"weak\""), None] {
        let server = Server::start(move |i, request| {
            let reply = serve(&body(), DATE, request).with("Last-Modified", DATE);
            let reply = match tag {
                Some(tag) => reply.without("ETag").with("ETag", tag),
                None => reply.without("ETag"),
            };
            if i == 0 {
                reply.cut_after(7_000)
            } else {
                reply
            }
        });
        let place = Place::new();
        place.fetch(&server.url(), &expect(&content())).unwrap();
        place.assert_fetched();
        assert_eq!(server.requests()[1].field("if-range"), Some(DATE));
        assert_eq!(server.requests()[1].range_start(), Some(7_000));
    }
}

#[test]
fn length_that_only_a_resumed_answer_tells() {
    // The first answer has no length and is chunked, so its end can be told from a cut; the rest comes in two parts.
    let server = Server::start(|i, request| match i {
        0 => Reply::status(200)
            .with("Transfer-Encoding", "chunked")
            .body(&[b"1388\r\n", &body()[..5_000], b"\r\n"].concat()),
        1 => {
            let body = body();
            Reply::status(206)
                .with("Content-Range", format!("bytes 5000-5999/{}", body.len()))
                .with("Content-Length", 1_000)
                .body(&body[5_000..6_000])
        }
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    assert_eq!(server.requests()[2].range_start(), Some(6_000));
}

#[test]
fn server_ignores_ranges() {
    let server = Server::start(|i, _| match i {
        0 => Reply::whole(&body()).cut_after(7_000),
        _ => Reply::whole(&body()),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    assert_eq!(server.requests()[1].range_start(), Some(7_000));
}

#[test]
fn archive_changed_between_two_requests() {
    let server = Server::start(|i, request| match i {
        0 => serve(&older_body(), "\"version 0\"", request).cut_after(7_000),
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    assert_eq!(server.requests().len(), 2);
}

/// A server that knows ranges but not `If-Range`: the change shows in the tag, or else in the length, of the answer.
#[test]
fn archive_changed_and_the_server_resumes_all_the_same() {
    // Without compression both versions have the same length.
    let stored = |content: &[u8]| archive_as(CompressionMethod::Stored, &[(ENTRY, content)]);
    let reversed: Vec<u8> = content().into_iter().rev().collect();
    let (old, new) = (stored(&reversed), stored(&content()));
    assert_eq!(old.len(), new.len());
    let longer = [&old[..], b"x"].concat();
    for (old, tags) in [(old, true), (longer, false)] {
        let new = new.clone();
        let server = Server::start(move |i, request| {
            let (body, tag) = match i {
                0 => (&old, "\"version 0\""),
                _ => (&new, TAG),
            };
            let reply = match request.range_start() {
                Some(start) => Reply::rest(body, start),
                None => Reply::whole(body),
            };
            let reply = if tags { reply.with("ETag", tag) } else { reply };
            if i == 0 {
                reply.cut_after(7_000)
            } else {
                reply
            }
        });
        let place = Place::new();
        place.fetch(&server.url(), &expect(&content())).unwrap();
        place.assert_fetched();
        assert_eq!(server.requests()[2].field("range"), None);
    }
}

#[test]
fn range_not_satisfiable_starts_afresh() {
    let server = Server::start(|i, request| match i {
        0 => serve(&body(), TAG, request).cut_after(7_000),
        1 => Reply::status(416),
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
    assert_eq!(server.requests()[2].field("range"), None);
}

#[test]
fn wrong_content_range_starts_afresh() {
    for range in [
        "bytes 0-6999/30000",
        "bytes 6999-7999/30000",
        "bytes 7000-6999/30000",
        "bytes 7000-99999/30000",
        "bytes 7000-99999999999999999999999/*",
        "bytes */30000",
        "pages 1-2/3",
        "",
    ] {
        let server = Server::start(move |i, request| match i {
            0 => serve(&body(), TAG, request).cut_after(7_000),
            1 => Reply::status(206)
                .with("Content-Range", range)
                .body(b"wrong"),
            _ => serve(&body(), TAG, request),
        });
        let place = Place::new();
        place.fetch(&server.url(), &expect(&content())).unwrap();
        place.assert_fetched();
        assert_eq!(server.requests()[2].field("range"), None, "{range}");
    }
}

#[test]
fn part_that_nobody_asked_for() {
    let server = Server::start(|_, _| Reply::rest(&body(), 100));
    let place = Place::new();
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    assert!(matches!(error, FetchError::Response { .. }), "{error:?}");
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn leftover_of_another_address_or_of_no_known_version() {
    let server = Server::start(|_, request| serve(&body(), TAG, request));
    let note = r#"{"url": "http://elsewhere/", "validator": null, "total": 99999}"#;
    for note in [Some(note), Some("{not json"), None] {
        let place = Place::new();
        fs::write(place.part(), b"bytes of who knows what").unwrap();
        if let Some(note) = note {
            fs::write(place.dir.path().join("enwik8.zip.part.json"), note).unwrap();
        }
        place.fetch(&server.url(), &expect(&content())).unwrap();
        place.assert_fetched();
    }
    assert!(
        server
            .requests()
            .iter()
            .all(|request| request.field("range").is_none())
    );
}

#[test]
fn not_found_is_not_tried_again() {
    let server = Server::start(|_, _| Reply::status(404).with("Content-Length", 0));
    let place = Place::new();
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    assert!(
        matches!(error, FetchError::Status { status: 404, .. }),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 1);
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn server_error_may_pass() {
    let server = Server::start(|i, request| match i {
        0 => Reply::status(503).with("Content-Length", 0),
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
}

#[test]
fn server_error_that_stays() {
    let server = Server::start(|_, _| Reply::status(503).with("Content-Length", 0));
    let error = Place::new()
        .fetch(&server.url(), &expect(&content()))
        .unwrap_err();
    assert!(
        matches!(error, FetchError::Status { status: 503, .. }),
        "{error:?}"
    );
    assert_eq!(server.requests().len(), 5);
}

#[test]
fn connection_refused_says_where_to_put_the_file() {
    // A port that was free a moment ago.
    let address = TcpListener::bind("127.0.0.1:0")
        .unwrap()
        .local_addr()
        .unwrap();
    let url = format!("http://{address}/enwik8.zip");
    let place = Place::new();
    let error = place.fetch(&url, &expect(&content())).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
    let message = error.to_string();
    let dest = place.dest().display().to_string();
    let sha256 = expect(&content()).sha256;
    for part in [&url, &dest, &sha256, "--data PATH"] {
        assert!(message.contains(part), "{part} in {message}");
    }
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn server_without_tls_behind_an_https_address() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let server = thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        stream
            .write_all(b"HTTP/1.1 400 Speak plainly\r\n\r\n")
            .unwrap();
        // Until the client hangs up; closing at once could lose the answer.
        let _ = stream.read_to_end(&mut Vec::new());
    });
    let error = Place::new().fetch(&url, &expect(&content())).unwrap_err();
    assert!(matches!(error, FetchError::Unreachable { .. }), "{error:?}");
    server.join().unwrap();
}

#[test]
fn server_that_hangs_up_without_an_answer() {
    let server = Server::start(|i, request| match i {
        0 | 1 => Reply::silence(),
        _ => serve(&body(), TAG, request),
    });
    let place = Place::new();
    place.fetch(&server.url(), &expect(&content())).unwrap();
    place.assert_fetched();
}

#[test]
fn address_that_is_none() {
    for url in [
        "",
        "enwik8.zip",
        "ht tp://x/",
        "file:///etc/hostname",
        "http://",
    ] {
        let error = Place::new().fetch(url, &expect(&content())).unwrap_err();
        assert!(matches!(error, FetchError::Url { .. }), "{url}: {error:?}");
    }
}

#[test]
fn endless_body() {
    let server = Server::start(|_, _| Reply::status(200).body(&[b'a'; 4096]).endless());
    let place = Place::new();
    let error = place.fetch(&server.url(), &expect(&content())).unwrap_err();
    // The content, and a mebibyte for headers.
    assert!(
        matches!(
            error,
            FetchError::TooLarge {
                limit: 1_098_576,
                ..
            }
        ),
        "{error:?}"
    );
    assert_eq!(place.names(), [""; 0]);
}

#[test]
fn length_that_no_archive_of_the_file_has() {
    let server = Server::start(|_, _| {
        Reply::status(200)
            .with("Content-Length", u64::MAX)
            .body(&[b'a'; 4096])
            .endless()
    });
    let error = Place::new()
        .fetch(&server.url(), &expect(&content()))
        .unwrap_err();
    assert!(matches!(error, FetchError::TooLarge { .. }), "{error:?}");
}
