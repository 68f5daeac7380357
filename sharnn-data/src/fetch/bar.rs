//! How far a fetch is, on standard error.

use std::io::{Write, stderr};

use indicatif::{HumanBytes, ProgressBar, ProgressStyle};

use super::FetchProgress;

/// What a fetch tells whoever waits: `fetch::enwik8(path, &mut fetch::progress(true))`. Where a line can be drawn over, a `live` one
/// is a bar with bytes, speed and time left; elsewhere, as in a log file, there is a line for each stage.
pub fn progress(live: bool) -> impl FnMut(FetchProgress) {
    let style = |template: &str| ProgressStyle::with_template(template).expect("the templates below are well-formed");
    let known = style("{msg:12} {wide_bar} {bytes}/{total_bytes} {bytes_per_sec} {eta}");
    let unknown = style("{msg:12} {spinner} {bytes} {bytes_per_sec}");
    let bar = if live { ProgressBar::no_length() } else { ProgressBar::hidden() };
    // A reader of standard error that has gone is no reason to stop.
    let line = |text: String| drop(writeln!(stderr(), "{}", text.replace(char::is_control, "\u{FFFD}")));
    let mut stage = "";
    move |progress| {
        let (name, bytes, total) = match progress {
            FetchProgress::Verifying { bytes, total } => ("verifying", bytes, Some(total)),
            FetchProgress::Downloading { bytes, total } => ("downloading", bytes, total),
            FetchProgress::Unpacking { bytes, total } => ("unpacking", bytes, Some(total)),
            FetchProgress::Retrying { wait, reason, .. } => {
                bar.suspend(|| line(format!("{reason}; trying again in {wait:?}")));
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
            if !live {
                line(total.map_or_else(|| name.into(), |total| format!("{name} {}", HumanBytes(total))));
            }
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
    fn every_stage_is_shown() {
        for live in [true, false] {
            let mut show = progress(live);
            let (bytes, total) = (1, 2);
            show(FetchProgress::Verifying { bytes, total });
            show(FetchProgress::Downloading { bytes, total: None });
            show(FetchProgress::Retrying { attempt: 1, wait: Duration::from_millis(1), reason: "a test".into() });
            show(FetchProgress::Downloading { bytes, total: Some(total) });
            show(FetchProgress::Unpacking { bytes, total });
            show(FetchProgress::Done);
        }
    }
}
