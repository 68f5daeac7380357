//! The download of enwik8 as an earlier call may have left it: an archive that is complete, and the note beside it. The first two bytes
//! are the length of the note; 0 stands for the right one.

#![no_main]

use std::fs;
use std::io::{Cursor, Write};

use libfuzzer_sys::fuzz_target;
use sha2::{Digest, Sha256};
use sharnn::data::fetch::{Expected, enwik8_from};
use sharnn_fuzz::{bounded, harmless, place, seed};
use zip::CompressionMethod;
use zip::write::{SimpleFileOptions, ZipWriter};

const TEXT: &[u8] =
    b"a text that is long enough to be compressed, is it not? a text that is long enough to be compressed";
/// Nobody answers there: what is not complete ends at once.
const URL: &str = "http://127.0.0.1:1/text.zip";

fuzz_target!(init: seed(seeds()), |bytes: &[u8]| {
    let Some((len, rest)) = bytes.split_first_chunk() else { return };
    let (note, archive) = rest.split_at(usize::from(u16::from_le_bytes(*len)).min(rest.len()));
    let dir = place().join("fetched");
    let _ = fs::remove_dir_all(&dir);
    fs::create_dir_all(&dir).unwrap();
    let right = format!(r#"{{"url":"{URL}","validator":null,"total":{}}}"#, archive.len());
    fs::write(dir.join("text.zip.part"), archive).unwrap();
    fs::write(dir.join("text.zip.part.json"), if note.is_empty() { right.as_bytes() } else { note }).unwrap();
    let sha256 = format!("{:x}", Sha256::digest(TEXT));
    let expected = Expected { entry: "text".into(), size: TEXT.len() as u64, sha256 };
    let dest = dir.join("text");
    // Buffers to unpack with are of one size, a client and its certificates another.
    let fetched = bounded(bytes.len() + (64 << 10), "enwik8_from", || {
        harmless(enwik8_from(URL, &expected, &dest, &mut |_| {}))
    });
    assert_eq!(fetched.is_some(), dest.exists());
    if fetched.is_some() {
        assert_eq!(fs::read(&dest).unwrap(), TEXT);
    }
});

fn seeds() -> Vec<Vec<u8>> {
    let archive = |method| {
        let mut zip = ZipWriter::new(Cursor::new(Vec::new()));
        zip.start_file("text", SimpleFileOptions::default().compression_method(method)).unwrap();
        zip.write_all(TEXT).unwrap();
        zip.finish().unwrap().into_inner()
    };
    let note = format!(r#"{{"url":"{URL}","validator":"\"1\"","total":7}}"#);
    let mut with_note = (note.len() as u16).to_le_bytes().to_vec();
    with_note.extend_from_slice(note.as_bytes());
    with_note.extend_from_slice(b"archive");
    let [deflated, stored] = [CompressionMethod::Deflated, CompressionMethod::Stored].map(|method| {
        let mut seed = vec![0, 0];
        seed.extend(archive(method));
        seed
    });
    vec![deflated, stored, with_note]
}
