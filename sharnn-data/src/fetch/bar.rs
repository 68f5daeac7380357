//! A progress bar for a fetch, on the terminal's standard error.

use std::io::{Write, stderr};

use indicatif::{ProgressBar, ProgressStyle};

use super::FetchProgress;

/// A bar with bytes, speed and time left: `fetch::enwik8(path, &mut fetch::progress_bar())`. It shows nothing where
/// standard error is no terminal.
pub fn progress_bar() -> impl FnMut(FetchProgress) {
    let style = |template: &str| ProgressStyle::with_template(template).expect("the templates below are well-formed");
    let known = style("{msg:12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let unknown = style("{msg:12} {spinner} {bytes} {bytes_per_sec}");
    let bar = ProgressBar::no_length();
    let mut stage = "";
    move |progress| {
        let (name, bytes, total) = match progress {
            FetchProgress::Verifying { bytes, total } => ("verifying", bytes, Some(total)),
            FetchProgress::Downloading { bytes, total } => ("downloading", bytes, total),
            FetchProgress::Unpacking { bytes, total } => ("unpacking", bytes, Some(total)),
            FetchProgress::Retrying { wait, reason, .. } => {
                // A reader of standard error that has gone is no reason to stop.
                bar.suspend(|| drop(writeln!(stderr(), "{reason}; trying again in {wait:?}")));
                return;
            }
            FetchProgress::Done => {
                bar.finish_and_clear();
                return;
            }
        };
        if stage != name {
            stage = name;
            bar.set_message(name);
            bar.reset_eta();
        }
        match total {
            Some(total) => {
                bar.set_length(total);
                bar.set_style(known.clone());
            }
            None => {
                bar.unset_length();
                bar.set_style(unknown.clone());
            }
        }
        bar.set_position(bytes);
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    /// Panics if a template is malformed or a stage cannot be shown.
    #[test]
    fn bar_takes_every_stage() {
        let mut show = progress_bar();
        let (bytes, total) = (1, 2);
        show(FetchProgress::Verifying { bytes, total });
        show(FetchProgress::Downloading { bytes, total: None });
        show(FetchProgress::Retrying { attempt: 1, wait: Duration::from_millis(1), reason: "a test".into() });
        show(FetchProgress::Downloading { bytes, total: Some(total) });
        show(FetchProgress::Unpacking { bytes, total });
        show(FetchProgress::Done);
    }
}
