//! A corpus is bytes, and nothing else: a memory-mapped file of any size or bytes held in memory. A split is a byte
//! range of it.

mod mapped;

use std::borrow::Cow;
use std::fmt;
use std::fs::{self, File};
use std::ops::{Deref, Range};
use std::path::Path;
use std::sync::Arc;

use sha2::{Digest, Sha256};

use crate::error::{DataError, MIN_SCORED};
use mapped::MappedFile;

/// How many pieces of a split [`Split::sampled_sha256`] reads.
pub const PIECES: usize = 256;
/// Bytes of each.
const PIECE: usize = 1 << 14;

/// Bytes to learn from. Cloning is cheap: clones share the bytes.
#[derive(Clone)]
pub struct Corpus {
    name: Arc<str>,
    /// Where it was read from, as far as it was.
    path: Option<Arc<Path>>,
    bytes: Arc<Bytes>,
}

enum Bytes {
    Mapped(MappedFile),
    Held(Cow<'static, [u8]>),
}

impl Corpus {
    /// Maps a file into memory. Nothing is read until it is used, so a file may be larger than the memory.
    ///
    /// The file should stay as it is while the corpus lives. What is appended to it is not read. If another process cuts it
    /// short, zeros are read in the place of what is gone, and [`check`](Self::check) says so from then on: ask it before
    /// anything is made of what was read. Bytes that are written into it change the corpus under the reader. For a file that
    /// may change use [`Corpus::read`], which copies it.
    ///
    /// On Unix the first call installs a handler of SIGBUS, which passes on what is none of its files'.
    ///
    /// # Errors
    /// If the file is missing, is no regular file, is empty, may not be read, or cannot be mapped.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let mapped = MappedFile::new(path, open_regular(path)?)?;
        Ok(Self::of_file(path, Bytes::Mapped(mapped)))
    }

    /// Reads a whole file into memory: for files that may change while they are used.
    ///
    /// # Errors
    /// If the file is missing, is no regular file, is empty or may not be read.
    pub fn read(path: impl AsRef<Path>) -> Result<Self, DataError> {
        let path = path.as_ref();
        let mut file = open_regular(path)?;
        let mut bytes = Vec::new();
        std::io::Read::read_to_end(&mut file, &mut bytes).map_err(|source| DataError::from_io("read", path, source))?;
        if bytes.is_empty() {
            return Err(DataError::Empty { path: path.into() });
        }
        Ok(Self::of_file(path, Bytes::Held(bytes.into())))
    }

    /// Takes bytes that are in memory already: a `Vec<u8>`, a `&'static [u8]` or a `Cow` of either.
    pub fn from_bytes(bytes: impl Into<Cow<'static, [u8]>>) -> Self {
        Self { name: "bytes in memory".into(), path: None, bytes: Arc::new(Bytes::Held(bytes.into())) }
    }

    fn of_file(path: &Path, bytes: Bytes) -> Self {
        // Where the current directory is gone the path stays as it was given.
        let absolute = std::path::absolute(path).unwrap_or_else(|_| path.into());
        Self { name: file_name(path).into(), path: Some(absolute.into()), bytes: Arc::new(bytes) }
    }

    /// That the file still has all the bytes that it was opened with. Of bytes in memory nothing can be gone.
    ///
    /// # Errors
    /// [`DataError::Shrunk`]: what was read since the last check may be none of the file's.
    pub fn check(&self) -> Result<(), DataError> {
        match &*self.bytes {
            Bytes::Mapped(map) => map.check(),
            Bytes::Held(_) => Ok(()),
        }
    }

    /// Whether somebody wrote into the file, at its end or anywhere, since it was opened or since this was asked last.
    pub fn was_written(&self) -> bool {
        match &*self.bytes {
            Bytes::Mapped(map) => map.was_written(),
            Bytes::Held(_) => false,
        }
    }

    /// The same bytes under another name, which is what errors and reports call them.
    #[must_use]
    pub fn with_name(self, name: impl Into<Arc<str>>) -> Self {
        Self { name: name.into(), ..self }
    }

    /// What errors and reports call this corpus: the file's name without its folders.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The absolute path of its file, where it has one.
    pub fn path(&self) -> Option<&Path> {
        self.path.as_deref()
    }

    /// The whole corpus as one split.
    pub fn whole(&self) -> Split {
        Split { corpus: self.clone(), range: 0..self.len() }
    }

    /// The bytes in `range`, counted from the start of the corpus.
    ///
    /// # Errors
    /// If the range runs backwards or past the end.
    pub fn split(&self, range: Range<usize>) -> Result<Split, DataError> {
        if range.start > range.end || range.end > self.len() {
            return Err(DataError::Range { corpus: self.name().to_owned(), range, len: self.len() });
        }
        Ok(Split { corpus: self.clone(), range })
    }
}

impl Deref for Corpus {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &*self.bytes {
            Bytes::Mapped(map) => map,
            Bytes::Held(bytes) => bytes,
        }
    }
}

impl AsRef<[u8]> for Corpus {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Corpus {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Corpus").field("name", &self.name).field("path", &self.path).field("len", &self.len()).finish()
    }
}

/// A byte range of a corpus. Derefs to its bytes; cloning is cheap.
#[derive(Clone)]
pub struct Split {
    corpus: Corpus,
    range: Range<usize>,
}

impl Split {
    /// The corpus this is a part of.
    pub fn corpus(&self) -> &Corpus {
        &self.corpus
    }

    /// Where the split lies in its corpus, in bytes.
    pub fn range(&self) -> Range<usize> {
        self.range.clone()
    }

    /// The first `n_bytes` of this split, or all of it where it has fewer.
    #[must_use]
    pub fn head(&self, n_bytes: usize) -> Self {
        let end = self.range.start + n_bytes.min(self.range.len());
        Self { corpus: self.corpus.clone(), range: self.range.start..end }
    }

    /// SHA-256 of the bytes, as 64 lower-case hexadecimal digits: the identity of the data wherever one is recorded.
    /// Hashed where they lie, without a copy.
    pub fn sha256(&self) -> String {
        format!("{:x}", Sha256::digest(&**self))
    }

    /// SHA-256 of [`PIECES`] pieces of 16 KiB, spread evenly from the first byte to the last: the identity of data that are too
    /// large to be read before a run begins. A change between the pieces goes unseen.
    ///
    /// Of a split that is no longer than the pieces together it is that of all bytes.
    pub fn sampled_sha256(&self) -> String {
        if self.len() <= PIECES * PIECE {
            return self.sha256();
        }
        let mut sha = Sha256::new();
        let last = (self.len() - PIECE) as u128;
        for i in 0..PIECES {
            let start = (last * i as u128 / (PIECES as u128 - 1)) as usize;
            sha.update(&self[start..start + PIECE]);
        }
        format!("{:x}", sha.finalize())
    }
}

impl Deref for Split {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        &self.corpus[self.range.clone()]
    }
}

impl AsRef<[u8]> for Split {
    fn as_ref(&self) -> &[u8] {
        self
    }
}

impl fmt::Debug for Split {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Split").field("corpus", &self.corpus.name).field("range", &self.range).finish()
    }
}

/// A corpus cut into what is trained on, what chooses the weights and what they are judged by.
#[derive(Clone, Debug)]
pub struct Splits {
    /// Where the gradient comes from.
    pub train: Split,
    /// Where the best epoch is chosen.
    pub valid: Split,
    /// Where the result is reported from.
    pub test: Split,
    /// What reports call this data and the way it was cut.
    pub name: String,
}

impl Splits {
    /// Cuts a corpus into contiguous parts, in the order train, validation, test; the last two get
    /// `floor(len × fraction)` bytes each and training gets the rest.
    ///
    /// # Errors
    /// If a fraction is not above 0 (or is NaN), if they reach 1 together, or if a part would be too short to score
    /// one byte.
    pub fn by_fractions(corpus: Corpus, valid_fraction: f64, test_fraction: f64) -> Result<Self, DataError> {
        let (valid, test) = (valid_fraction, test_fraction);
        if !(valid > 0.0 && test > 0.0 && valid + test < 1.0) {
            return Err(DataError::Fractions { valid, test });
        }
        let len = corpus.len();
        let [n_train, n_valid, n_test] = part_lengths(len, valid, test);
        if n_train.min(n_valid).min(n_test) < MIN_SCORED {
            return Err(DataError::TooShort {
                corpus: corpus.name().to_owned(),
                len,
                train: n_train,
                valid: n_valid,
                test: n_test,
                needed: long_enough(len, valid, test),
            });
        }
        let percent = |fraction: f64| (fraction * 1e5).round() / 1e3;
        Ok(Self {
            train: corpus.split(0..n_train)?,
            valid: corpus.split(n_train..n_train + n_valid)?,
            test: corpus.split(n_train + n_valid..len)?,
            name: format!(
                "{} ({} / {} / {} %)",
                corpus.name(),
                percent(1.0 - valid - test),
                percent(valid),
                percent(test)
            ),
        })
    }
}

/// Bytes of the training, validation and test parts of a corpus of `len` bytes.
fn part_lengths(len: usize, valid: f64, test: f64) -> [usize; 3] {
    let n_valid = (len as f64 * valid) as usize;
    let n_test = (len as f64 * test) as usize;
    // Fractions that almost reach 1 could round up to all of it.
    [len.saturating_sub(n_valid.saturating_add(n_test)), n_valid, n_test]
}

/// A length above `too_few` that these fractions cut into parts of [`MIN_SCORED`] bytes or more.
fn long_enough(mut too_few: usize, valid: f64, test: f64) -> usize {
    let enough = |len: usize| part_lengths(len, valid, test).into_iter().min() >= Some(MIN_SCORED);
    let mut len = too_few + 1;
    while !enough(len) {
        too_few = len;
        match len.checked_mul(2) {
            Some(twice) => len = twice,
            None => return usize::MAX,
        }
    }
    // Bisect between a length that fails and one that works.
    while len - too_few > 1 {
        let middle = too_few + (len - too_few) / 2;
        if enough(middle) {
            len = middle;
        } else {
            too_few = middle;
        }
    }
    len
}

fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

/// Opens a regular file. What it is gets checked first: opening a pipe would wait for a writer.
fn open_regular(path: &Path) -> Result<File, DataError> {
    let metadata = fs::metadata(path).map_err(|e| DataError::from_io("open", path, e))?;
    if !metadata.is_file() {
        return Err(DataError::NotAFile {
            path: path.into(),
            found: if metadata.is_dir() { "a directory" } else { "a device, a pipe or a socket" },
        });
    }
    File::open(path).map_err(|e| DataError::from_io("open", path, e))
}
