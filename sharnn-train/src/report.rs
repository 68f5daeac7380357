//! What a run tells whoever watches it, and how a person is shown it.
//!
//! Here lives what is said while a run goes on; what is kept of it is in run.
//! It may use run; trainer may use it.

mod observer;
mod printable;
mod progress;

pub use observer::{Event, Observer};
pub use printable::{printable, printable_line};
pub use progress::{Progress, draws_live_lines};
