//! Wall-clock time of a run over all its interruptions.

use std::time::{Duration, Instant};

/// Counts the seconds of a run while it runs, and those of training apart.
#[derive(Debug)]
pub(crate) struct Clock {
    before: f64,
    started: Option<Instant>,
    mark: Instant,
    saved: Instant,
    /// What the last checkpoint took.
    saving: Duration,
}

/// How much longer than a checkpoint took a run trains before it writes one that nobody asked for.
const PER_CHECKPOINT: u32 = 20;
/// Nor are two of them closer together.
const BETWEEN_CHECKPOINTS: Duration = Duration::from_secs(10);

impl Clock {
    /// A clock that stands at so many seconds.
    pub(crate) fn at(seconds: f64) -> Self {
        let now = Instant::now();
        Self { before: seconds, started: None, mark: now, saved: now, saving: Duration::ZERO }
    }

    pub(crate) fn start(&mut self) {
        *self = Self { saving: self.saving, ..Self::at(self.seconds()) };
        self.started = Some(self.mark);
    }

    pub(crate) fn stop(&mut self) {
        *self = Self { saving: self.saving, ..Self::at(self.seconds()) };
    }

    /// Seconds since [`start`](Self::start).
    pub(crate) fn running(&self) -> Duration {
        self.started.map_or(Duration::ZERO, |started| started.elapsed())
    }

    /// Seconds of the whole run.
    pub(crate) fn seconds(&self) -> f64 {
        self.before + self.running().as_secs_f64()
    }

    /// Seconds of training since the last lap.
    pub(crate) fn lap(&mut self) -> f64 {
        let now = Instant::now();
        now.duration_since(std::mem::replace(&mut self.mark, now)).as_secs_f64()
    }

    /// Leaves out of the next lap what was done since the last one: an evaluation, a checkpoint.
    pub(crate) fn skip_lap(&mut self) {
        self.mark = Instant::now();
    }

    /// A checkpoint was written, which was begun then.
    pub(crate) fn saved(&mut self, begun: Instant) {
        self.saved = Instant::now();
        self.saving = self.saved.duration_since(begun);
        self.skip_lap();
    }

    /// Time since the last checkpoint, or since the start.
    pub(crate) fn since_saved(&self) -> Duration {
        self.saved.elapsed()
    }
}

impl Clock {
    /// Whether a checkpoint at the end of an epoch is worth what it costs: epochs may be as short as a step.
    pub(crate) fn has_earned_a_checkpoint(&self) -> bool {
        self.since_saved() >= (self.saving * PER_CHECKPOINT).max(BETWEEN_CHECKPOINTS)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_checkpoint_is_earned_by_the_time_that_the_last_one_took() {
        let mut clock = Clock::at(0.0);
        clock.start();
        assert!(!clock.has_earned_a_checkpoint());
        let Some(long_ago) = clock.saved.checked_sub(Duration::from_secs(60)) else { return };
        clock.saved = long_ago;
        assert!(clock.has_earned_a_checkpoint());
        clock.saving = Duration::from_secs(4);
        assert!(!clock.has_earned_a_checkpoint(), "it took 4 seconds, and 60 are less than 80");
    }

    #[test]
    fn a_stopped_clock_stands_still_and_goes_on_from_there() {
        let mut clock = Clock::at(100.0);
        assert_eq!(clock.seconds(), 100.0);
        clock.start();
        std::thread::sleep(Duration::from_millis(5));
        clock.stop();
        let stopped = clock.seconds();
        assert!(stopped >= 100.005, "{stopped}");
        std::thread::sleep(Duration::from_millis(5));
        assert_eq!(clock.seconds(), stopped);
        clock.start();
        assert!(clock.seconds() >= stopped);
    }

    #[test]
    fn a_skipped_lap_is_not_counted() {
        let mut clock = Clock::at(0.0);
        clock.start();
        std::thread::sleep(Duration::from_millis(50));
        clock.skip_lap();
        assert!(clock.lap() < 0.05);
    }
}
