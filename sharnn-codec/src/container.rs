//! The file: a header, blocks, an end. docs/codec.md of the repository states it.

use std::io::{self, Read};

use crate::CodecError;

/// What a file begins with: no text does, and what changes line ends or the eighth bit shows.
pub(crate) const MAGIC: [u8; 8] = *b"\x93sharn\r\n";
/// The version of the format: of the container, the order of lanes, the engine's arithmetic and the mixing.
pub(crate) const VERSION: u16 = 1;
const BLOCK: [u8; 4] = *b"\x93BLK";
const END: [u8; 4] = *b"\x93END";

/// Bytes of a file's header.
pub const HEADER_LEN: usize = 44;
pub(crate) const BLOCK_LEN: usize = 32;
pub(crate) const END_LEN: usize = 20;

/// What holds for the whole file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    /// Bytes of text in a block, but for the last.
    pub block: u32,
    /// Memory of the mixer; 0 for none.
    pub memory: u32,
    /// The beginning of the digest of the model.
    pub model: [u8; 16],
}

/// What stands before a block's bytes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct BlockHeader {
    pub index: u32,
    /// Whether the text is there as it is.
    pub is_stored: bool,
    pub lanes: u16,
    /// Bytes of text.
    pub text: u32,
    /// Bytes that follow.
    pub code: u32,
    /// CRC-32 of the text, and of the bytes that follow.
    pub sums: [u32; 2],
}

/// What comes next in a file.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Next {
    Block(BlockHeader),
    End { blocks: u32, text: u64 },
}

/// Appends a sum of what is there.
fn sealed(mut bytes: Vec<u8>) -> Vec<u8> {
    bytes.extend(crc32fast::hash(&bytes).to_le_bytes());
    bytes
}

/// What is sealed, if its sum agrees.
fn unsealed(bytes: &[u8]) -> Option<&[u8]> {
    let (body, sum) = bytes.split_last_chunk::<4>()?;
    (crc32fast::hash(body) == u32::from_le_bytes(*sum)).then_some(body)
}

fn take<const N: usize>(bytes: &mut &[u8]) -> [u8; N] {
    let (first, rest) = bytes.split_first_chunk().expect("lengths are those of the format");
    *bytes = rest;
    *first
}

impl Header {
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        // Reserved.
        bytes.extend([0; 6]);
        bytes.extend(self.block.to_le_bytes());
        bytes.extend(self.memory.to_le_bytes());
        bytes.extend(self.model);
        sealed(bytes)
    }

    /// The header that some bytes begin with.
    pub fn of(bytes: &[u8]) -> Result<Self, CodecError> {
        if !bytes.starts_with(&MAGIC) {
            return Err(CodecError::NotCompressed);
        }
        let whole = bytes.get(..HEADER_LEN).and_then(unsealed).ok_or(CodecError::Header)?;
        let mut body = &whole[MAGIC.len()..];
        let version = u16::from_le_bytes(take(&mut body));
        if version != VERSION {
            return Err(CodecError::Version { found: version, known: VERSION });
        }
        let reserved: [u8; 6] = take(&mut body);
        if reserved != [0; 6] {
            return Err(CodecError::Header);
        }
        let [block, memory] = [(); 2].map(|()| u32::from_le_bytes(take(&mut body)));
        Ok(Self { block, memory, model: take(&mut body) })
    }
}

impl BlockHeader {
    pub fn to_bytes(self) -> Vec<u8> {
        let mut bytes = BLOCK.to_vec();
        bytes.extend(self.index.to_le_bytes());
        bytes.extend(u16::from(self.is_stored).to_le_bytes());
        bytes.extend(self.lanes.to_le_bytes());
        for number in [self.text, self.code, self.sums[0], self.sums[1]] {
            bytes.extend(number.to_le_bytes());
        }
        sealed(bytes)
    }

    fn of(bytes: &[u8]) -> Option<Self> {
        let mut body = unsealed(bytes)?.strip_prefix(&BLOCK)?;
        let index = u32::from_le_bytes(take(&mut body));
        let [stored, lanes] = [(); 2].map(|()| u16::from_le_bytes(take(&mut body)));
        let [text, code, a, b] = [(); 4].map(|()| u32::from_le_bytes(take(&mut body)));
        (stored <= 1).then_some(Self { index, is_stored: stored == 1, lanes, text, code, sums: [a, b] })
    }
}

/// The end mark of a file.
pub(crate) fn end_to_bytes(blocks: u32, text: u64) -> Vec<u8> {
    let mut bytes = END.to_vec();
    bytes.extend(blocks.to_le_bytes());
    bytes.extend(text.to_le_bytes());
    sealed(bytes)
}

fn end_of(bytes: &[u8]) -> Option<Next> {
    let mut body = unsealed(bytes)?.strip_prefix(&END)?;
    Some(Next::End { blocks: u32::from_le_bytes(take(&mut body)), text: u64::from_le_bytes(take(&mut body)) })
}

/// A file that is read mark by mark, and searched for the next one where it is damaged.
pub(crate) struct Marks<R> {
    from: R,
    /// What was read last, of which the first bytes are behind.
    read: Vec<u8>,
    behind: usize,
    /// Where in the file the bytes ahead begin.
    pub at: u64,
}

impl<R: Read> Marks<R> {
    pub fn new(from: R) -> Self {
        Self { from, read: Vec::new(), behind: 0, at: 0 }
    }

    /// So many bytes ahead, or as many as there are. Room is made as they come, whatever number it is.
    pub fn look(&mut self, n: usize) -> io::Result<&[u8]> {
        let ahead = self.read.len() - self.behind;
        if ahead < n {
            // Less than was asked for is moved, however much is behind.
            self.read.drain(..std::mem::take(&mut self.behind));
            (&mut self.from).take((n - ahead) as u64).read_to_end(&mut self.read)?;
        }
        let ahead = &self.read[self.behind..];
        Ok(&ahead[..n.min(ahead.len())])
    }

    /// Goes on behind so many bytes that were looked at.
    pub fn take(&mut self, n: usize) {
        self.behind += n;
        self.at += n as u64;
    }

    /// The mark that comes next, and how many bytes were passed over to find it; `None` where the file ends before.
    pub fn next(&mut self) -> io::Result<Option<(Next, u64)>> {
        let start = self.at;
        loop {
            let skipped = self.at - start;
            let bytes = self.look(BLOCK_LEN)?;
            if bytes.is_empty() {
                return Ok(None);
            }
            let block = bytes.get(..BLOCK_LEN).and_then(BlockHeader::of).map(|block| (Next::Block(block), BLOCK_LEN));
            let end = || bytes.get(..END_LEN).and_then(end_of).map(|end| (end, END_LEN));
            if let Some((next, len)) = block.or_else(end) {
                self.take(len);
                return Ok(Some((next, skipped)));
            }
            // On to the next byte that may begin a mark.
            let step = bytes[1..].iter().position(|&byte| byte == BLOCK[0]).map_or(bytes.len(), |at| at + 1);
            self.take(step);
        }
    }

    /// Whether nothing comes any more.
    pub fn is_at_end(&mut self) -> io::Result<bool> {
        Ok(self.look(1)?.is_empty())
    }
}
