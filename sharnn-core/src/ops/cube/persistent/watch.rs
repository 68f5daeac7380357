//! What has become of the persistent kernels on each device: whether they still may be used, and what is to be said of it.
//!
//! A launch that gives up leaves NaN and raises a word on the device. The host waits for that word after the first launch of
//! each kernel, and computes that segment again step by step where it was raised: so a kernel that cannot be
//! compiled, does not fit or never gets all of its blocks onto the device is found out at once, without a wrong value. Later
//! launches are not waited for. One that gives up, because another process holds the device, spoils its
//! step with NaN, which training skips, and scoring refuses. Launches after it see the word, and leave NaN at once. The word is
//! read when the training's log is, and from then on segments are computed step by step.

use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};

use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::server::{Binding, CubeCount, Handle, ServerError};

use super::plan::{Plan, Refused};
use super::task::PersistentTask;

/// By the device's number.
static WATCHES: Mutex<BTreeMap<usize, Watch>> = Mutex::new(BTreeMap::new());

/// Launches whose results stand.
static LAUNCHES: AtomicU64 = AtomicU64::new(0);

pub(super) fn launches() -> u64 {
    LAUNCHES.load(Ordering::Relaxed)
}

fn watches() -> MutexGuard<'static, BTreeMap<usize, Watch>> {
    // A panic in between leaves nothing half done that matters here.
    WATCHES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// One device.
#[derive(Default)]
pub(super) struct Watch {
    /// Kernels that have been seen to come to their end.
    proven: HashSet<Plan>,
    /// Whether a kernel has failed, after which none is launched.
    failed: bool,
    /// Lines that nobody has asked for yet.
    notices: Vec<String>,
    /// Those of sizes that were refused, each of which is said once.
    said: HashSet<String>,
    /// The word that a launch raises when it gives up.
    raised: Option<Handle>,
}

impl Watch {
    /// Takes in why a kernel cannot be used, where it is asked for. Returns whether that is new.
    fn refuse(&mut self, device: usize, reason: Refused) {
        let line =
            format!("CUDA device {device}: the LSTM is computed step by step, not by the persistent kernel: {reason}");
        if self.said.insert(line.clone()) {
            self.notices.push(line);
        }
    }

    /// Takes in what came of a launch that was waited for, or of those since the last look. Returns whether all is well.
    fn look(&mut self, device: usize, raised: Result<bool, String>) -> bool {
        let reason = match raised {
            Ok(false) => return !self.failed,
            Ok(true) => "a block waited for another one that did not come".into(),
            Err(reason) => reason,
        };
        if !self.failed {
            self.failed = true;
            self.notices.push(format!(
                "CUDA device {device}: the LSTM is computed step by step from here on, the persistent kernel failed: {reason}"
            ));
        }
        false
    }
}

/// The raised word, read from the device.
fn read(client: &ComputeClient<CudaRuntime>, raised: &Handle) -> Result<bool, String> {
    let bytes = client.read_one(raised.clone()).map_err(|error| summary(&error))?;
    Ok(bytes.iter().any(|&byte| byte != 0))
}

/// An error in one line, without the source of the kernel and without back traces.
fn summary(error: &ServerError) -> String {
    shortened(&error.to_string())
}

fn shortened(text: &str) -> String {
    let end = ["[Source]", "Backtrace", "BackTrace"].iter().filter_map(|mark| text.find(mark)).min();
    let words: Vec<_> = text[..end.unwrap_or(text.len())].split_whitespace().collect();
    words.join(" ")
}

/// Whether a device may be asked for a persistent kernel.
pub(super) fn is_open(device: usize) -> bool {
    watches().get(&device).is_none_or(|watch| !watch.failed)
}

pub(super) fn refuse(device: usize, reason: Refused) {
    watches().entry(device).or_default().refuse(device, reason);
}

/// Launches a kernel, unless one has failed before. Returns whether its results stand, or will be NaN where they do not.
pub(super) fn launch(
    client: &ComputeClient<CudaRuntime>,
    device: usize,
    plan: Plan,
    mut tensors: Vec<Binding>,
    seq_len: usize,
) -> bool {
    let mut watches = watches();
    let watch = watches.entry(device).or_default();
    if watch.failed {
        return false;
    }
    let is_first = !watch.proven.contains(&plan);
    if is_first {
        // What failed before would be taken for a failure of this kernel.
        client.flush().unwrap_or_else(|error| panic!("CUDA device {device} failed: {error}"));
    }
    let raised = watch.raised.get_or_insert_with(|| client.create_from_slice(&[0; 4])).clone();
    tensors.push(raised.clone().binding());
    let count = CubeCount::Static(plan.blocks as u32, 1, 1);
    let arguments = plan.arguments(tensors, seq_len);
    // SAFETY: the kernel writes within tensors of the sizes that it was compiled for, which the caller has made, and its waits
    // are bounded, also where another stream of the device has a kernel that waits.
    unsafe { client.launch_unchecked(Box::new(PersistentTask(plan)), count, arguments) };
    if is_first {
        if !watch.look(device, read(client, &raised)) {
            return false;
        }
        watch.proven.insert(plan);
    }
    LAUNCHES.fetch_add(1, Ordering::Relaxed);
    true
}

/// What is to be said of a device since it was last asked for. Waits for the device where it has launched a kernel.
pub(super) fn notices(device: usize, client: impl FnOnce() -> ComputeClient<CudaRuntime>) -> Vec<String> {
    let mut watches = watches();
    let Some(watch) = watches.get_mut(&device) else { return Vec::new() };
    if let Some(raised) = watch.raised.clone().filter(|_| !watch.failed) {
        let raised = read(&client(), &raised);
        watch.look(device, raised);
    }
    std::mem::take(&mut watch.notices)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn after_a_failure_all_is_stepwise_and_it_is_said_once() {
        let mut watch = Watch::default();
        assert!(watch.look(0, Ok(false)) && watch.notices.is_empty());
        assert!(!watch.look(0, Ok(true)) && watch.failed);
        assert!(!watch.look(0, Ok(true)) && !watch.look(0, Ok(false)));
        assert_eq!(watch.notices.len(), 1);
        assert!(watch.notices[0].contains("a block waited for another one that did not come"), "{:?}", watch.notices);
    }

    #[test]
    fn a_kernel_that_cannot_be_compiled_is_a_failure_with_its_reason() {
        let mut watch = Watch::default();
        assert!(!watch.look(1, Err(shortened("no such\n  thing\n[Source]\n__global__ ..."))));
        let line = "CUDA device 1: the LSTM is computed step by step from here on, the persistent kernel failed: no such thing";
        assert_eq!(watch.notices, [line]);
    }

    #[test]
    fn a_size_that_is_refused_is_said_once() {
        let mut watch = Watch::default();
        for lanes in [65, 65, 66] {
            watch.refuse(0, Refused::TooManyLanes { lanes });
        }
        assert!(watch.notices.len() == 2 && !watch.failed, "{:?}", watch.notices);
    }

    #[test]
    fn a_device_that_nobody_used_has_nothing_to_say() {
        assert!(notices(usize::MAX, || unreachable!("there is nothing to read")).is_empty());
    }
}
