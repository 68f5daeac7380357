//! Showing a run to a person: one live line on a terminal, plain lines elsewhere.

use std::env::var_os;
use std::io::{IsTerminal, Write, stderr};
use std::time::Duration;

use console::Term;
use indicatif::{HumanBytes, HumanCount, HumanDuration, ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{Event, Observer, printable_line};
use crate::run::{EvalRecord, Moved, TrainRecord};

/// Writes a run's progress to standard error.
///
/// On a terminal one line is kept up to date: step, share of the epoch, bytes a second, smoothed training loss, learning
/// rate, gradient norm and the time left. Elsewhere, as in a log file or on a terminal that [cannot](draws_live_lines) draw over
/// a line, every training record is a line.
pub struct Progress {
    out: Out,
}

enum Out {
    Live(ProgressBar),
    Plain(Box<dyn Write + Send>),
}

/// Whether standard error is a terminal on which a line can be drawn over: it says what it is (TERM, other than `dumb`) and how wide
/// it is, and neither NO_COLOR nor CI asks for plain text.
pub fn draws_live_lines() -> bool {
    let says_no = ["NO_COLOR", "CI"].iter().any(|name| var_os(name).is_some_and(|value| !value.is_empty()));
    // Consoles of Windows set no TERM.
    let named = var_os("TERM").map_or(cfg!(windows), |term| !term.is_empty() && term != "dumb");
    stderr().is_terminal() && named && !says_no && Term::stderr().size_checked().is_some()
}

impl Progress {
    /// A live line where standard error [draws](draws_live_lines) one, plain lines elsewhere.
    pub fn new() -> Self {
        if !draws_live_lines() {
            return Self::plain(stderr());
        }
        let bar = ProgressBar::with_draw_target(None, ProgressDrawTarget::stderr());
        bar.set_style(ProgressStyle::with_template("{spinner} {wide_msg}").expect("a valid template"));
        Self { out: Out::Live(bar) }
    }

    /// Plain lines to any writer. What cannot be written is dropped: a closed pipe is no reason to end a run.
    pub fn plain(writer: impl Write + Send + 'static) -> Self {
        Self { out: Out::Plain(Box::new(writer)) }
    }

    /// A line that stays.
    fn line(&mut self, text: &str) {
        let text = printable_line(text);
        match &mut self.out {
            Out::Live(bar) => bar.println(text),
            Out::Plain(writer) => drop(writeln!(writer, "{text}").and_then(|()| writer.flush())),
        }
    }

    /// The live line; a line that stays where there is none and `lasting` says so.
    fn update(&mut self, text: String, lasting: bool) {
        match &mut self.out {
            Out::Live(bar) => {
                bar.set_message(printable_line(&text));
                bar.tick();
            }
            Out::Plain(_) if lasting => self.line(&text),
            Out::Plain(_) => {}
        }
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Progress {
    fn drop(&mut self) {
        if let Out::Live(bar) = &self.out {
            bar.finish_and_clear();
        }
    }
}

impl Observer for Progress {
    fn on(&mut self, event: Event<'_>) {
        match event {
            Event::Started { step, parameters, backend } => {
                let from = if step > 0 { format!("resuming after step {step}") } else { "starting".into() };
                self.line(&format!("{from}: {} parameters on {backend}", HumanCount(parameters as u64)));
            }
            Event::Moved(Moved { what, from, to }) => {
                self.line(&format!(
                    "the run goes on, but no longer bit for bit as if it had never stopped: its {what} changed from \
                     {from} to {to}"
                ));
            }
            Event::NotLocked { run_dir } => {
                self.line(&format!(
                    "the file system of {} has no locks: see to it that no second process trains there",
                    run_dir.display()
                ));
            }
            Event::Train { record, smoothed_bpc, epoch_done, remaining_seconds } => {
                self.update(train_line(record, smoothed_bpc, epoch_done, remaining_seconds), true);
            }
            Event::Notice(line) => self.line(line),
            Event::Skipped { step, in_a_row } => {
                let text = "loss or gradient was not finite; nothing was changed";
                self.line(&format!("step {step} was skipped ({in_a_row} in a row): {text}"));
            }
            Event::Evaluating { split, done, total } => {
                let text = format!("scoring the {split} split: {:.0} %", 100.0 * done as f64 / total as f64);
                self.update(text, false);
            }
            Event::Valid(record) => {
                let best = if record.best { ", the best so far" } else { "" };
                self.line(&format!("{}{best}", score_line("validation", record)));
            }
            Event::Test(record) => self.line(&score_line("test", record)),
            Event::Checkpoint { path, .. } => self.update(format!("saved {}", path.display()), true),
            Event::NotSaved { step } => {
                self.line(&format!(
                    "step {step} is not saved while steps are being skipped; the checkpoint before stays"
                ));
            }
            Event::Phase { phase, best } => {
                self.line(&format!(
                    "phase {phase} starts from the weights of step {} ({:.4} bpc)",
                    best.step, best.bpc
                ));
            }
        }
    }
}

fn train_line(record: &TrainRecord, smoothed_bpc: f64, epoch_done: f64, remaining_seconds: Option<f64>) -> String {
    let grad_norm = record.grad_norm.map_or("-".into(), |norm| format!("{norm:.3}"));
    let eta = remaining_seconds.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok());
    format!(
        "step {} | epoch {} {:.1} % | {}/s | train {smoothed_bpc:.4} bpc | lr {:.2e} | grad {grad_norm} | ETA {}",
        record.step,
        record.epoch,
        100.0 * epoch_done,
        HumanBytes(record.bytes_per_s as u64),
        record.lr,
        eta.map_or("-".into(), |eta| HumanDuration(eta).to_string()),
    )
}

fn score_line(split: &str, record: &EvalRecord) -> String {
    let bpc = record.bpc.map_or("not finite".into(), |bpc| format!("{bpc:.4} bpc"));
    format!("{split} after step {}: {bpc} over {} bytes", record.step, HumanCount(record.bytes))
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Buffer(Arc<Mutex<Vec<u8>>>);

    impl Write for Buffer {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    fn record() -> TrainRecord {
        TrainRecord {
            step: 120,
            phase: 0,
            epoch: 3,
            bytes: 1 << 20,
            seconds: 10.0,
            train_bpc: Some(2.5),
            lr: 2e-3,
            grad_norm: Some(0.1234),
            bytes_per_s: 51200.0,
            skipped: 0,
        }
    }

    #[test]
    fn plain_lines_hold_every_number() {
        let buffer = Buffer::default();
        let mut progress = Progress::plain(buffer.clone());
        let record = record();
        progress.on(Event::Train {
            record: &record,
            smoothed_bpc: 2.34567,
            epoch_done: 0.256,
            remaining_seconds: Some(7200.0),
        });
        progress.on(Event::Evaluating { split: "valid", done: 1, total: 2 });
        progress.on(Event::Notice("the device has something to say"));
        progress.on(Event::Skipped { step: 121, in_a_row: 2 });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        let lines: Vec<_> = text.lines().collect();
        assert_eq!(
            lines[0],
            "step 120 | epoch 3 25.6 % | 50.00 KiB/s | train 2.3457 bpc | lr 2.00e-3 | grad 0.123 | ETA 2 hours"
        );
        assert_eq!(lines[1], "the device has something to say");
        assert!(lines.len() == 3 && lines[2].starts_with("step 121 was skipped (2 in a row)"), "{text}");
    }

    #[test]
    fn a_path_moves_no_cursor() {
        let buffer = Buffer::default();
        Progress::plain(buffer.clone()).on(Event::Checkpoint { step: 1, path: "runs/\x1b[2J".as_ref() });
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(text, "saved runs/\u{FFFD}[2J\n");
    }

    #[test]
    fn a_run_that_goes_on_elsewhere_says_what_changed() {
        let buffer = Buffer::default();
        let moved = Moved { what: "instructions", from: "avx512".into(), to: "avx2".into() };
        Progress::plain(buffer.clone()).on(Event::Moved(&moved));
        let text = String::from_utf8(buffer.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "the run goes on, but no longer bit for bit as if it had never stopped: its instructions changed from \
             avx512 to avx2\n"
        );
    }

    #[test]
    fn a_closed_pipe_does_not_end_the_run() {
        struct Closed;
        impl Write for Closed {
            fn write(&mut self, _: &[u8]) -> std::io::Result<usize> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }

            fn flush(&mut self) -> std::io::Result<()> {
                Err(std::io::ErrorKind::BrokenPipe.into())
            }
        }
        Progress::plain(Closed).on(Event::NotSaved { step: 1 });
    }
}
