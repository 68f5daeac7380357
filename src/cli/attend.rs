//! `attend`: a picture of where the attention heads look in a text, and of how much every character surprised the model.

mod html;
mod svg;

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, bail, ensure};
use burn::module::AutodiffModule;
use burn::tensor::{Int, Tensor, TensorData};

use super::adapt::{self, AdaptArgs};
use super::input::Input;
use super::life;
use super::machine::{MachineArgs, dispatch};
use super::model::ModelArgs;
use super::outputs;
use crate::core::{ByteDistribution, Looked};
use crate::{AutodiffBackend, BackendJob};

/// Draw where the attention heads look in a text, and how much every character surprised the model
///
/// The text is read in one segment, after a newline. A picture ending in .html shows the text, coloured by surprise, and where the
/// head looked before each character under the pointer; one ending in .svg shows all of it at once, for texts of up to 150
/// characters.
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    model: ModelArgs,
    /// The text
    #[arg(long, value_name = "TEXT", required_unless_present = "file", conflicts_with = "file")]
    text: Option<String>,
    /// A file with the text; - for standard input
    #[arg(long, value_name = "PATH")]
    file: Option<PathBuf>,
    /// Read so many bytes of the file, at most [default: all, up to the model's memory]
    #[arg(long, value_name = "N", requires = "file")]
    bytes: Option<usize>,
    /// File to write: .html or .svg
    #[arg(long, value_name = "PATH", default_value = "attention.html")]
    out: PathBuf,
    #[command(flatten)]
    adapt: AdaptArgs,
    #[command(flatten)]
    machine: MachineArgs,
}

/// A longer text makes a page that browsers choke on.
const MOST_BYTES: usize = 4000;
/// Characters that an SVG has room for.
const MOST_IN_SVG: usize = 150;

pub fn run(args: &Args) -> Result<ExitCode> {
    args.machine.set_threads()?;
    let draw = match args.out.extension().and_then(|extension| extension.to_str()) {
        Some("html" | "htm") => html::page,
        Some("svg") => svg::picture,
        _ => bail!("--out {} cannot be used: name a file that ends in .html or .svg", args.out.display()),
    };
    args.model.refuse_as_output("--out", &args.out, args.file.iter().map(|file| ("--file", file.as_path())))?;
    let seen = dispatch(args.machine.backend, Job { args, text: args.text()? })??;
    let in_svg = args.out.extension().is_some_and(|extension| extension == "svg");
    ensure!(
        !in_svg || seen.units.len() <= MOST_IN_SVG,
        "the text has {} characters, and an SVG has room for {MOST_IN_SVG}: write .html, or read fewer with --bytes",
        seen.units.len()
    );
    let picture = draw(&seen);
    life::whole_at(&args.out, || outputs::write(&args.out, picture))?;
    let name = if args.adapt.adapt { format!(", {},", adapt::NAME) } else { String::new() };
    say!("{:.3} bits per byte{name} over {} bytes; {}", seen.bits_per_byte(), seen.n_bytes, args.out.display());
    Ok(ExitCode::SUCCESS)
}

impl Args {
    fn text(&self) -> Result<Vec<u8>> {
        let mut text = match (&self.text, &self.file) {
            (Some(text), _) => text.clone().into_bytes(),
            (None, Some(path)) => read_head(path, self.bytes.unwrap_or(MOST_BYTES))?,
            (None, None) => unreachable!("one of them is required"),
        };
        text.truncate(self.bytes.unwrap_or(usize::MAX));
        ensure!(!text.is_empty(), "there is no text: give some");
        Ok(text)
    }
}

/// The first bytes of a file.
fn read_head(path: &Path, bytes: usize) -> Result<Vec<u8>> {
    let mut head = Vec::new();
    let read = Input::open(path)?.take(bytes as u64).read_to_end(&mut head);
    read.with_context(|| format!("cannot read {}", path.display()))?;
    Ok(head)
}

struct Job<'a> {
    args: &'a Args,
    text: Vec<u8>,
}

/// A text as the model saw it.
struct Seen {
    /// Name of the model.
    model: String,
    units: Vec<Unit>,
    heads: Vec<Head>,
    n_bytes: usize,
}

/// A character, or a byte that is part of none.
struct Unit {
    text: String,
    /// Sum over its bytes.
    bits: f64,
}

/// One head of one block.
struct Head {
    block: usize,
    head: usize,
    /// For each unit, what the query before it gave to each unit before, and in the first place to the newline before the text.
    weights: Vec<Vec<f32>>,
}

impl Seen {
    fn bits_per_byte(&self) -> f64 {
        self.units.iter().map(|unit| unit.bits).sum::<f64>() / self.n_bytes as f64
    }
}

impl BackendJob for Job<'_> {
    type Output = Result<Seen>;

    fn run<B: AutodiffBackend>(self, device: B::Device) -> Result<Seen> {
        let Self { args, mut text } = self;
        let loaded = args.model.load::<B>(&device)?;
        let model = loaded.model.valid();
        ensure!(model.vocab_size() == 256, "the model has {} tokens: it does not read bytes", model.vocab_size());
        ensure!(model.attends(), "no block of this model attends: there is nothing to see");
        // Without a memory a segment may be as long as it likes.
        let most = if model.mem_len == 0 { MOST_BYTES } else { model.mem_len.min(MOST_BYTES) };
        if args.file.is_some() && args.bytes.is_none() {
            text.truncate(most);
        }
        let len = text.len();
        ensure!(len <= MOST_BYTES, "the text is {len} bytes long, and a page has room for {MOST_BYTES}: give less");
        ensure!(
            len <= most,
            "the text is {len} bytes long, and the model sees at most {most}: give less, or a longer --mem-len"
        );
        // Every byte is predicted from those before it, the first from a newline.
        let read: Vec<i32> = [b'\n'].iter().chain(&text[..text.len() - 1]).map(|&byte| byte.into()).collect();
        let tokens = Tensor::<B::InnerBackend, 2, Int>::from_data(TensorData::new(read, [1, text.len()]), &device);
        let Looked { logits, weights, .. } = model.look(tokens, model.empty_state());
        let logits = logits.into_data().convert::<f32>().into_vec::<f32>().expect("was converted to f32");
        let mut mixer = args.adapt.mixer(args.adapt.adapt, None)?;
        let bits = |(logits, &byte): (&[f32], &u8)| match &mut mixer {
            Some(mixer) => mixer.cost(0, &ByteDistribution::of_logits(logits), byte) / std::f64::consts::LN_2,
            None => surprise(logits, byte),
        };
        ensure!(logits.iter().all(|logit| logit.is_finite()), "the model's logits are not finite: it has diverged");
        let bits: Vec<f64> = logits.chunks_exact(256).zip(&text).map(bits).collect();

        let spans = spans(&text);
        let mut heads = Vec::new();
        for (block, weights) in weights.into_iter().enumerate() {
            let Some(weights) = weights else { continue };
            let [_, n_heads, queries, keys] = weights.dims();
            let weights = weights.into_data().convert::<f32>().into_vec::<f32>().expect("was converted to f32");
            for head in 0..n_heads {
                let of_query = |query: usize| &weights[(head * queries + query) * keys..][..keys];
                let weights =
                    spans.iter().enumerate().map(|(i, span)| by_unit(of_query(span.start), &spans[..i])).collect();
                heads.push(Head { block, head, weights });
            }
        }
        let unit = |span: &Span| Unit { text: span.text.clone(), bits: bits[span.start..span.end].iter().sum() };
        let model = if mixer.is_some() { format!("{}, {}", loaded.name, adapt::NAME) } else { loaded.name };
        Ok(Seen { model, units: spans.iter().map(unit).collect(), heads, n_bytes: text.len() })
    }
}

/// Bits of surprise at a byte.
fn surprise(logits: &[f32], byte: u8) -> f64 {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&logit| f64::from(logit - max).exp()).sum();
    (sum.ln() - f64::from(logits[usize::from(byte)] - max)) / std::f64::consts::LN_2
}

/// Where a unit stands in the text.
struct Span {
    start: usize,
    end: usize,
    text: String,
}

/// The text in characters; a byte that is part of none stands alone.
fn spans(text: &[u8]) -> Vec<Span> {
    let mut spans = Vec::new();
    let mut start = 0;
    let mut push = |len: usize, text: String| {
        spans.push(Span { start, end: start + len, text });
        start += len;
    };
    for chunk in text.utf8_chunks() {
        chunk.valid().chars().for_each(|c| push(c.len_utf8(), c.to_string()));
        chunk.invalid().iter().for_each(|byte| push(1, format!("\\x{byte:02X}")));
    }
    spans
}

/// The weights that a query gave to the newline and to the units before it: position 0 is the newline, byte `i` at `i + 1`.
fn by_unit(weights: &[f32], before: &[Span]) -> Vec<f32> {
    let of_units = before.iter().map(|span| weights[span.start + 1..=span.end].iter().sum());
    std::iter::once(weights[0]).chain(of_units).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_is_cut_into_characters_and_stray_bytes() {
        let spans = spans("aé\n".as_bytes());
        assert_eq!(spans.iter().map(|span| (span.start, span.end)).collect::<Vec<_>>(), [(0, 1), (1, 3), (3, 4)]);
        let stray = super::spans(b"a\xFFb");
        assert_eq!(stray.iter().map(|span| span.text.as_str()).collect::<Vec<_>>(), ["a", "\\xFF", "b"]);
    }

    #[test]
    fn weights_are_summed_over_the_bytes_of_a_character() {
        let spans = spans("aéb".as_bytes());
        // The query before `b` has read the newline, `a` and both bytes of `é`.
        assert_eq!(by_unit(&[0.125, 0.25, 0.125, 0.5, 0.0], &spans[..2]), [0.125, 0.25, 0.625]);
        assert_eq!(by_unit(&[1.0, 0.0, 0.0, 0.0, 0.0], &spans[..0]), [1.0]);
    }

    #[test]
    fn even_odds_surprise_by_one_bit() {
        assert!((surprise(&[3.0, 3.0], 1) - 1.0).abs() < 1e-12);
    }

    /// A small text as a model might have seen it.
    fn seen() -> Seen {
        let unit = |text: &str, bits| Unit { text: text.into(), bits };
        let weights = vec![vec![1.0], vec![0.25, 0.75], vec![0.0, 0.5, 0.5]];
        let units = vec![unit("<", 1.5), unit("\n", 0.5), unit("&", 4.0)];
        Seen { model: "a <model>".into(), units, heads: vec![Head { block: 2, head: 0, weights }], n_bytes: 3 }
    }

    #[test]
    fn text_is_escaped_in_pictures() {
        assert!((seen().bits_per_byte() - 2.0).abs() < 1e-12);
        for picture in [html::page(&seen()), svg::picture(&seen())] {
            assert!(picture.contains("&lt;") && picture.contains("&amp;") && picture.contains("a &lt;model&gt;"));
            assert!(!picture.contains("<model>"));
        }
    }
}
