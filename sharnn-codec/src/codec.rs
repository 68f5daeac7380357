//! Files and streams: text in, blocks out, and back.

use std::io::{Read, Write};
use std::ops::RangeInclusive;

use sharnn_mixing::MixerConfig;
use sharnn_stream::{DecodeEngine, WeightFormat};

use crate::CodecError;
use crate::container::{BLOCK_LEN, BlockHeader, END_LEN, HEADER_LEN, Header, Marks, Next, end_to_bytes};
use crate::lanes::{Layout, Predictor};

/// How text is compressed. Decompression needs none of it: the file says how it was made.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Options {
    /// Lanes side by side, 1 to 256. More are faster, and each begins without knowing what came before it in the text. Short blocks
    /// have fewer.
    pub lanes: usize,
    /// Bytes of text in a block, 1 KiB to 64 MiB: what is learned, and lost with a damaged byte. All of it is held in memory.
    pub block: usize,
    /// Memory of adaptive mixing in bytes, 1 MiB to 64 MiB; `None` for the model alone.
    pub memory: Option<usize>,
}

impl Default for Options {
    fn default() -> Self {
        Self { lanes: 16, block: 8 << 20, memory: Some(MixerConfig::default().memory) }
    }
}

const LANES: RangeInclusive<usize> = 1..=256;
const BLOCK: RangeInclusive<usize> = 1 << 10..=64 << 20;
const MEMORY: RangeInclusive<usize> = 1 << 20..=64 << 20;
/// Bytes of a lane, at the least, where there is more than one.
const LANE: usize = 2048;

impl Options {
    fn check(&self) -> Result<(), CodecError> {
        let memory = self.memory.unwrap_or(*MEMORY.start());
        for (option, found, range) in
            [("lanes", self.lanes, LANES), ("block", self.block, BLOCK), ("memory", memory, MEMORY)]
        {
            if !range.contains(&found) {
                let expected = format!("{} to {}", range.start(), range.end());
                return Err(CodecError::Option { option, found, expected });
            }
        }
        Ok(())
    }
}

/// How far it has come.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Progress {
    /// Bytes of text, read or written.
    pub text: u64,
    /// Bytes of the compressed file.
    pub code: u64,
}

/// What was done.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Totals {
    /// Bytes of text.
    pub text: u64,
    /// Bytes of the compressed file.
    pub code: u64,
    /// Blocks.
    pub blocks: u32,
    /// What all decisions cost, in bits: `Σ -log2 p`. Blocks that are stored as they are count with their size.
    pub bits: f64,
}

/// Compresses and decompresses with a model.
///
/// ```
/// use burn::backend::Flex;
/// use sharnn_codec::{Codec, Options};
/// use sharnn_core::{ShaRnnConfig, WeightFormat};
///
/// # fn main() -> Result<(), sharnn_codec::CodecError> {
/// let model = ShaRnnConfig { d_model: 16, d_ff: 16, ..ShaRnnConfig::xs() }.init_seeded::<Flex>(1, &Default::default());
/// let codec = Codec::new(model.engine(WeightFormat::Exact))?;
/// let text = "what repeats becomes cheap; ".repeat(20);
/// let mut small = Vec::new();
/// codec.compress(text.as_bytes(), &mut small, &Options::default(), &mut |_| true)?;
/// assert!(small.len() < text.len() / 2);
/// let mut back = Vec::new();
/// codec.decompress(&*small, &mut back, &mut |_| true)?;
/// assert_eq!(back, text.as_bytes());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Debug)]
pub struct Codec {
    engine: DecodeEngine,
    model: [u8; 16],
}

/// Whoever watches: called now and then, and whether to go on.
pub(crate) type Watch<'a> = &'a mut dyn FnMut(Progress) -> bool;

/// The name of a format.
fn name(format: WeightFormat) -> &'static str {
    WeightFormat::ALL[format as usize].1
}

/// Refuses an engine whose predictions are not the same everywhere, or are not of bytes.
pub(crate) fn check(engine: &DecodeEngine) -> Result<(), CodecError> {
    if engine.format() != WeightFormat::Exact {
        return Err(CodecError::NotExact { found: name(engine.format()) });
    }
    match engine.vocab_size() {
        256 => Ok(()),
        found => Err(CodecError::Vocabulary { found }),
    }
}

fn hex(bytes: [u8; 16]) -> String {
    bytes[..6].iter().map(|byte| format!("{byte:02x}")).collect()
}

impl Codec {
    /// Of a model whose weights are packed in format [`Exact`](WeightFormat::Exact).
    ///
    /// # Errors
    /// [`CodecError::NotExact`] or [`CodecError::Vocabulary`].
    pub fn new(engine: DecodeEngine) -> Result<Self, CodecError> {
        check(&engine)?;
        let model = *engine.digest().first_chunk().expect("a digest is longer");
        Ok(Self { engine, model })
    }

    /// Whether a file that begins with these [`HEADER_LEN`](crate::HEADER_LEN) bytes was compressed with this model.
    pub fn is_of(&self, beginning: &[u8]) -> bool {
        Header::of(beginning).is_ok_and(|header| header.model == self.model)
    }

    /// Compresses all that there is to read. `watch` is called now and then, and says whether to go on. Memory: a block, what it is
    /// compressed to, the mixer's, and the streams'.
    ///
    /// # Errors
    /// [`CodecError::Option`], [`CodecError::Io`] or [`CodecError::Stopped`].
    pub fn compress(
        &self,
        mut from: impl Read,
        mut to: impl Write,
        options: &Options,
        watch: Watch,
    ) -> Result<Totals, CodecError> {
        options.check()?;
        let Options { lanes, block, memory } = *options;
        let header = Header { block: block as u32, memory: memory.unwrap_or(0) as u32, model: self.model };
        to.write_all(&header.to_bytes())?;
        let mut totals = Totals { code: HEADER_LEN as u64, ..Totals::default() };
        loop {
            let mut text = Vec::new();
            (&mut from).take(block as u64).read_to_end(&mut text)?;
            if text.is_empty() {
                break;
            }
            let lanes = lanes.min(text.len() / LANE).max(1);
            let before = Progress { text: totals.text, code: totals.code };
            let (mut code, bits) = self.encode(&text, lanes, memory, before, watch)?;
            let is_stored = code.len() >= text.len();
            let sum = crc32fast::hash(&text);
            totals.text += text.len() as u64;
            totals.bits += if is_stored { 8.0 * text.len() as f64 } else { bits };
            let n = text.len() as u32;
            if is_stored {
                code = text;
            }
            let block = BlockHeader {
                index: totals.blocks,
                is_stored,
                lanes: lanes as u16,
                text: n,
                code: code.len() as u32,
                sums: [sum, crc32fast::hash(&code)],
            };
            to.write_all(&block.to_bytes())?;
            to.write_all(&code)?;
            totals.code += (BLOCK_LEN + code.len()) as u64;
            totals.blocks += 1;
        }
        to.write_all(&end_to_bytes(totals.blocks, totals.text))?;
        to.flush()?;
        totals.code += END_LEN as u64;
        Ok(totals)
    }

    fn encode(
        &self,
        text: &[u8],
        lanes: usize,
        memory: Option<usize>,
        before: Progress,
        watch: Watch,
    ) -> Result<(Vec<u8>, f64), CodecError> {
        let layout = Layout::new(text.len(), lanes);
        let mut predictor = Predictor::new(&self.engine, lanes, memory);
        predictor.encode(text, layout, watched(before, watch)).ok_or(CodecError::Stopped)
    }

    /// Decompresses a file to its end. What comes before a damaged block has been written when that is told.
    ///
    /// # Errors
    /// Whatever is wrong with the file, [`CodecError::Io`] or [`CodecError::Stopped`].
    pub fn decompress(&self, from: impl Read, to: impl Write, watch: Watch) -> Result<Totals, CodecError> {
        self.read(from, to, watch, &mut Err)
    }

    /// Decompresses what can be had of a damaged file: of a block that is lost `lost` is told, and zeros are written in its place,
    /// but for a last one, whose size is not known.
    ///
    /// # Errors
    /// [`CodecError::Io`], [`CodecError::Stopped`], or what is wrong with the header.
    pub fn salvage(
        &self,
        from: impl Read,
        to: impl Write,
        watch: Watch,
        lost: &mut dyn FnMut(CodecError),
    ) -> Result<Totals, CodecError> {
        self.read(from, to, watch, &mut |error| {
            lost(error);
            Ok(())
        })
    }

    fn read(
        &self,
        from: impl Read,
        mut to: impl Write,
        watch: Watch,
        damaged: &mut dyn FnMut(CodecError) -> Result<(), CodecError>,
    ) -> Result<Totals, CodecError> {
        let mut marks = Marks::new(from);
        let header = Header::of(marks.look(HEADER_LEN)?)?;
        marks.take(HEADER_LEN);
        if header.model != self.model {
            return Err(CodecError::OtherModel { found: hex(header.model), own: hex(self.model) });
        }
        let memory = (header.memory > 0).then_some(header.memory as usize);
        let options = Options { lanes: 1, block: header.block as usize, memory };
        options.check()?;
        let size = u64::from(header.block);
        let mut totals = Totals::default();
        // Whether the block before was damaged: its bytes are passed over then.
        let mut is_told = false;
        loop {
            let Some((next, skipped)) = marks.next()? else {
                damaged(CodecError::CutShort { at: marks.at, index: totals.blocks })?;
                break;
            };
            // What comes next cannot lie before what there was.
            let index = match next {
                Next::Block(block) => block.index,
                Next::End { blocks, .. } => blocks,
            };
            if (skipped > 0 && !is_told) || index != totals.blocks {
                damaged(CodecError::Lost { at: marks.at })?;
            }
            if index < totals.blocks {
                continue;
            }
            // Of blocks that are lost all but the last of the file are as long as they say.
            let missing = u64::from(index - totals.blocks) * size;
            let missing = match next {
                Next::End { text, .. } => missing.min(text.saturating_sub(totals.text)),
                Next::Block(_) => missing,
            };
            // No more is made up than the file could hold the marks of.
            if missing > 0 && missing / size > marks.at / BLOCK_LEN as u64 + 1 {
                return Err(CodecError::Lost { at: marks.at });
            }
            totals.text += write_zeros(&mut to, missing)?;
            totals.blocks = index;
            let block = match next {
                Next::Block(block) => block,
                Next::End { text, .. } => {
                    if text != totals.text || !marks.is_at_end()? {
                        damaged(CodecError::Lost { at: marks.at })?;
                    }
                    break;
                }
            };
            let before = Progress { text: totals.text, code: marks.at };
            // A block that is stored, or damaged, gives no other occasion.
            if !watch(before) {
                return Err(CodecError::Stopped);
            }
            let block_read = self.block(block, &mut marks, &options, before, watch)?;
            is_told = block_read.is_err();
            match block_read {
                Ok((text, bits)) => {
                    to.write_all(&text)?;
                    totals.text += text.len() as u64;
                    totals.bits += bits;
                }
                Err(reason) => {
                    let bytes = u64::from(block.text).min(size);
                    damaged(CodecError::Damaged { index, bytes, offset: totals.text, reason })?;
                    totals.text += write_zeros(&mut to, bytes)?;
                }
            }
            totals.blocks += 1;
        }
        to.flush()?;
        totals.code = marks.at;
        Ok(totals)
    }

    /// The text of a block, and what it cost; or what is wrong with it.
    fn block<R: Read>(
        &self,
        block: BlockHeader,
        marks: &mut Marks<R>,
        options: &Options,
        before: Progress,
        watch: Watch,
    ) -> Result<Result<(Vec<u8>, f64), &'static str>, CodecError> {
        let BlockHeader { is_stored, lanes, text: n, code: len, sums, .. } = block;
        let (n, lanes) = (n as usize, usize::from(lanes));
        if n == 0 || n > options.block || len as usize > n || !LANES.contains(&lanes) {
            return Ok(Err("its sizes are impossible"));
        }
        // Of a block that is not whole nothing is taken: the next mark may lie in it, where bytes are missing.
        let code = marks.look(len as usize)?;
        if code.len() < len as usize {
            return Ok(Err("it is cut short"));
        }
        if crc32fast::hash(code) != sums[1] {
            return Ok(Err("its bytes have changed"));
        }
        let (text, bits) = match is_stored {
            true => (code.to_vec(), 8.0 * n as f64),
            false => self.decode(code, n, lanes, options.memory, before, watch)?,
        };
        marks.take(len as usize);
        if text.len() != n || crc32fast::hash(&text) != sums[0] {
            return Ok(Err("its text has another checksum"));
        }
        Ok(Ok((text, bits)))
    }

    fn decode(
        &self,
        code: &[u8],
        bytes: usize,
        lanes: usize,
        memory: Option<usize>,
        before: Progress,
        watch: Watch,
    ) -> Result<(Vec<u8>, f64), CodecError> {
        let layout = Layout::new(bytes, lanes);
        let mut predictor = Predictor::new(&self.engine, lanes, memory);
        predictor.decode(code, layout, watched(before, watch)).ok_or(CodecError::Stopped)
    }
}

/// Tells whoever watches how many bytes of a block are done.
fn watched(before: Progress, watch: Watch<'_>) -> impl FnMut(usize) -> bool + '_ {
    move |done| watch(Progress { text: before.text + done as u64, ..before })
}

fn write_zeros(to: &mut impl Write, mut bytes: u64) -> Result<u64, CodecError> {
    let all = bytes;
    let zeros = [0; 1 << 12];
    while bytes > 0 {
        let n = bytes.min(zeros.len() as u64);
        to.write_all(&zeros[..n as usize])?;
        bytes -= n;
    }
    Ok(all)
}
