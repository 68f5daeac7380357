//! Files that are evidently not text, by how they begin: archives, pictures, text of another width.
//!
//! To a model of bytes they are noise of about 8 bits a byte, so that whoever names one most likely meant what is in it.

use std::path::Path;

use crate::shell::quoted_path;

/// How many bytes of a file [`recognize`] looks at.
pub const HEAD: usize = 512;

/// A format that is no text of bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Format {
    /// Its name with its article: "a zip archive".
    pub name: &'static str,
    /// What to do in place of reading it; `FILE` stands for its name.
    advice: &'static str,
    /// The command that makes text of what comes through a pipe, where there is one.
    filter: Option<&'static str>,
}

/// How a format begins: at which byte, with which bytes.
type Magic = (usize, &'static [u8]);

/// A format, by how it begins: its name, what to do with a file of it, and what with a pipe.
type Known = (&'static [Magic], &'static str, &'static str, Option<&'static str>);

/// The formats that are known. Of an offset other than 0 there are few.
const FORMATS: [Known; 19] = [
    (&[(0, b"\x1f\x8b")], "gzip data", "unpack it: gzip -dc FILE > text", Some("gzip -dc")),
    (&[(0, b"PK\x03\x04")], "a zip archive", "unpack it: unzip -p FILE > text", Some("funzip")),
    (&[(0, b"PK\x05\x06")], "a zip archive", "there is nothing in it", None),
    (&[(0, b"\xfd7zXZ\0")], "xz data", "unpack it: xz -dc FILE > text", Some("xz -dc")),
    (&[(0, b"\x28\xb5\x2f\xfd")], "zstd data", "unpack it: zstd -dc FILE > text", Some("zstd -dc")),
    (
        &[(0, b"BZh"), (4, b"\x31\x41\x59\x26\x53\x59")],
        "bzip2 data",
        "unpack it: bzip2 -dc FILE > text",
        Some("bzip2 -dc"),
    ),
    (&[(0, b"BZh"), (4, b"\x17\x72\x45\x38\x50\x90")], "bzip2 data", "there is nothing in it", None),
    (&[(0, b"7z\xbc\xaf\x27\x1c")], "a 7z archive", "unpack it: 7z e -so FILE > text", None),
    (&[(0, b"\x04\x22\x4d\x18")], "lz4 data", "unpack it: lz4 -dc FILE > text", Some("lz4 -dc")),
    (&[(257, b"ustar")], "a tar archive", "unpack it: tar -xOf FILE > text", Some("tar -xO")),
    (&[(0, b"%PDF-")], "a PDF", "take its text: pdftotext FILE text", Some("pdftotext - -")),
    (&[(0, b"\x89PNG\r\n\x1a\n")], "a PNG picture", "name a file of text", None),
    (&[(0, b"\xff\xd8\xff")], "a JPEG picture", "name a file of text", None),
    (&[(0, b"GIF87a")], "a GIF picture", "name a file of text", None),
    (&[(0, b"GIF89a")], "a GIF picture", "name a file of text", None),
    (&[(0, b"RIFF"), (8, b"WEBP")], "a WebP picture", "name a file of text", None),
    (
        &[(0, b"\xff\xfe\0\0")],
        "UTF-32 text",
        "make it UTF-8: iconv -f UTF-32 -t UTF-8 FILE > text",
        Some("iconv -f UTF-32 -t UTF-8"),
    ),
    (
        &[(0, b"\xff\xfe")],
        "UTF-16 text",
        "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE > text",
        Some("iconv -f UTF-16 -t UTF-8"),
    ),
    (
        &[(0, b"\xfe\xff")],
        "UTF-16 text",
        "make it UTF-8: iconv -f UTF-16 -t UTF-8 FILE > text",
        Some("iconv -f UTF-16 -t UTF-8"),
    ),
];

/// The format of a file that begins so, where it is evidently not text. [`HEAD`] bytes are enough, fewer may be too few.
pub fn recognize(head: &[u8]) -> Option<Format> {
    let begins =
        |magic: &[Magic]| magic.iter().all(|&(at, bytes)| head.get(at..).is_some_and(|x| x.starts_with(bytes)));
    let known = FORMATS.iter().find(|(magic, ..)| begins(magic));
    known.map(|&(_, name, advice, filter)| Format { name, advice, filter })
}

impl Format {
    /// One line that says what a file is, and what to do.
    pub fn describe(&self, file: impl AsRef<Path>) -> String {
        let file = file.as_ref();
        self.line(&file.display().to_string(), &self.advice.replace("FILE", &quoted_path(file)))
    }

    /// The same of standard input, which has no name that could be typed.
    pub fn describe_stdin(&self) -> String {
        let advice = match self.filter {
            Some(filter) => format!("pipe it through {filter} first"),
            None => "pipe text into it".into(),
        };
        self.line("standard input", &advice)
    }

    fn line(&self, name: &str, advice: &str) -> String {
        format!("{name} is {}: to a model of bytes that is noise, not text; {advice}", self.name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_format_is_known_by_how_it_begins() {
        for (magic, name, ..) in FORMATS {
            let mut head = vec![b' '; HEAD];
            magic.iter().for_each(|&(at, bytes)| head[at..at + bytes.len()].copy_from_slice(bytes));
            assert_eq!(recognize(&head).unwrap().name, name);
        }
    }

    #[test]
    fn text_is_no_format() {
        for text in
            [&b""[..], b"P", b"PK", b"BZh is no archive", b"RIFF and no more", b"<mediawiki ", b"\xef\xbb\xbftext"]
        {
            assert_eq!(recognize(text), None, "{text:?}");
        }
    }

    #[test]
    fn the_line_names_the_file_and_the_way_out() {
        let zip = recognize(b"PK\x03\x04").unwrap();
        assert_eq!(
            zip.describe("enwik8.zip"),
            "enwik8.zip is a zip archive: to a model of bytes that is noise, not text; unpack it: unzip -p enwik8.zip > text"
        );
        assert!(zip.describe("it's.zip").ends_with(r"unzip -p 'it'\''s.zip' > text"));
        assert!(zip.describe("-x.zip").ends_with("unzip -p ./-x.zip > text"));
        assert!(zip.describe_stdin().ends_with("not text; pipe it through funzip first"));
        for (magic, ..) in FORMATS {
            let mut head = vec![b' '; HEAD];
            magic.iter().for_each(|&(at, bytes)| head[at..at + bytes.len()].copy_from_slice(bytes));
            let line = recognize(&head).unwrap().describe_stdin();
            assert!(!line.contains("FILE") && !line.contains(" > text"), "{line}");
        }
    }
}
