//! `plot`: the loss curves of runs in one picture.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Context, Result, ensure};
use clap::ValueEnum;
use plotters::prelude::*;

use super::printable::xml_line;
use super::runs::{self, Needs, PICTURE};
use super::{life, outputs};
use crate::train::{METRICS_FILE, Metrics, Record, latest_manifest};

/// Draw the loss curves of runs into one SVG
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Directories of runs, or `latest`, the run of the highest number under runs/ that has measured something
    #[arg(value_name = "RUN", required = true)]
    runs: Vec<PathBuf>,
    /// File to write
    #[arg(long, value_name = "PATH", default_value = "loss.svg")]
    svg: PathBuf,
    /// What to draw the loss over
    #[arg(long, value_enum, default_value_t = Over::Bytes)]
    over: Over,
    /// Highest bits per byte in the picture [default: what leaves out the first tenth of each run]
    #[arg(long, value_name = "BPC")]
    max: Option<f64>,
}

/// The horizontal axis.
#[derive(Clone, Copy, Debug, PartialEq, ValueEnum)]
pub enum Over {
    Steps,
    Bytes,
    Seconds,
}

impl Over {
    /// Where a record stands.
    fn at(self, step: u64, bytes: f64, seconds: f64) -> f64 {
        match self {
            Self::Steps => step as f64,
            Self::Bytes => bytes / 1e6,
            Self::Seconds => seconds,
        }
    }
}

/// The curve of one run.
pub struct Curve {
    name: String,
    /// Training loss.
    train: Vec<(f64, f64)>,
    /// Scores of the validation split.
    valid: Vec<(f64, f64)>,
}

pub fn run(args: &Args) -> Result<ExitCode> {
    if let Some(max) = args.max {
        ensure!(max > 0.0 && max.is_finite(), "--max {max} cannot be used: use a number above 0");
    }
    let runs = args.runs.iter().map(|run| runs::find(run, Needs::Curve)).collect::<Result<Vec<_>>>()?;
    for run in &runs {
        let metrics = run.join(METRICS_FILE);
        outputs::refuse_inputs("--svg", &args.svg, [("RUN", &**run), ("RUN", &*metrics)])?;
    }
    outputs::refuse_place("--svg", &args.svg, Some(PICTURE))?;
    let curves = runs.iter().map(|run| Curve::read(run, args.over)).collect::<Result<Vec<_>>>()?;
    life::whole_at(&args.svg, || draw(&args.svg, &curves, args.over, args.max))
        .with_context(|| format!("cannot draw {}", args.svg.display()))?;
    say!("{}", args.svg.display());
    Ok(ExitCode::SUCCESS)
}

impl Curve {
    /// Of the run in a directory, which must have measured something.
    pub fn read(run: &Path, over: Over) -> Result<Self> {
        ensure!(run.join(METRICS_FILE).exists(), "there is no {METRICS_FILE} in {}: name a run", run.display());
        let records = Metrics::read(run)?;
        let (mut train, mut valid) = (Vec::new(), Vec::new());
        // What a validation is drawn over in bytes stands in the record before it. A run too short for a record has its checkpoint.
        let position = latest_manifest(run)?.map(|(_, manifest)| manifest.position);
        let bytes_of_step = position.map_or(0.0, |at| at.bytes as f64 / at.step.max(1) as f64);
        let mut bytes = None;
        for record in &records {
            match record {
                Record::Train(record) => {
                    bytes = Some(record.bytes as f64);
                    let at = over.at(record.step, record.bytes as f64, record.seconds);
                    train.extend(record.train_bpc.map(|bpc| (at, bpc)));
                }
                Record::Valid(record) => {
                    let bytes = bytes.unwrap_or(record.step as f64 * bytes_of_step);
                    let at = over.at(record.step, bytes, record.seconds);
                    valid.extend(record.bpc.map(|bpc| (at, bpc)));
                }
                Record::Test(_) => {}
            }
        }
        ensure!(
            !train.is_empty() || !valid.is_empty(),
            "the run in {} has measured nothing yet: its first record comes after --log-every steps, or with a validation",
            run.display()
        );
        Ok(Self { name: xml_line(&run.display().to_string()), train, valid })
    }

    /// The last place at which anything was measured.
    fn end(&self) -> f64 {
        self.train.iter().chain(&self.valid).map(|(at, _)| *at).fold(0.0, f64::max)
    }

    /// The highest loss after the first tenth; of a run that has none the highest score.
    fn highest(&self) -> f64 {
        let end = self.train.last().map_or(0.0, |(at, _)| *at);
        let points = if self.train.is_empty() { &self.valid } else { &self.train };
        let late = points.iter().filter(|(at, _)| *at >= end / 10.0).map(|(_, bpc)| *bpc);
        late.fold(0.0, f64::max)
    }

    /// The lowest loss or score.
    fn lowest(&self) -> f64 {
        self.train.iter().chain(&self.valid).map(|(_, bpc)| *bpc).fold(f64::INFINITY, f64::min)
    }
}

/// Draws curves; bits per byte above `max` are left out.
pub fn draw(path: &Path, curves: &[Curve], over: Over, max: Option<f64>) -> Result<()> {
    let end = curves.iter().map(Curve::end).fold(0.0, f64::max);
    let high = max.unwrap_or_else(|| curves.iter().map(Curve::highest).fold(0.0, f64::max) * 1.05);
    let low = curves.iter().map(Curve::lowest).fold(f64::INFINITY, f64::min).min(high) * 0.95;
    // The marks of an axis without an end are never all found.
    ensure!(
        (high - low).is_finite() && end.is_finite(),
        "its measurements cannot be drawn: they reach from {low:e} to {high:e} bits per byte; look into {METRICS_FILE}"
    );
    // Written whole or not at all.
    let mut svg = String::new();
    {
        let root = SVGBackend::with_string(&mut svg, (900, 480)).into_drawing_area();
        root.fill(&WHITE)?;
        let mut chart = ChartBuilder::on(&root)
            .margin(12)
            .x_label_area_size(44)
            .y_label_area_size(56)
            // A run of no step has no width.
            .build_cartesian_2d(0.0..if end > 0.0 { end } else { 1.0 }, low..high.max(low + 0.01))?;
        let unit = match over {
            Over::Steps => "steps",
            Over::Bytes => "million bytes trained on",
            Over::Seconds => "seconds",
        };
        let mesh = &mut chart.configure_mesh();
        mesh.x_desc(unit).y_desc("bits per byte").light_line_style(WHITE).draw()?;
        for (i, curve) in curves.iter().enumerate() {
            let color = Palette99::pick(i).to_rgba();
            let visible = curve.train.iter().copied().filter(|(_, bpc)| *bpc <= high);
            chart
                .draw_series(LineSeries::new(visible, color.stroke_width(1)))?
                .label(&curve.name)
                .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], color.stroke_width(2)));
            // One point alone is no line.
            if let [(at, bpc)] = curve.train[..] {
                chart.draw_series([Circle::new((at, bpc), 2, color.filled())])?;
            }
            let points = curve.valid.iter().filter(|(_, bpc)| *bpc <= high);
            chart.draw_series(points.map(|&point| Circle::new(point, 4, color.filled())))?;
        }
        if curves.iter().any(|curve| !curve.valid.is_empty()) {
            // A legend alone, of the points of all runs.
            chart
                .draw_series(std::iter::empty::<Circle<(f64, f64), i32>>())?
                .label("validation")
                .legend(|(x, y)| Circle::new((x + 9, y), 4, BLACK.filled()));
        }
        chart
            .configure_series_labels()
            .position(SeriesLabelPosition::UpperRight)
            .border_style(BLACK.mix(0.3))
            .background_style(WHITE.mix(0.8))
            .draw()?;
        root.present()?;
    }
    outputs::write(path, svg)
}
