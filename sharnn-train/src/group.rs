//! Processes that train one run together: what they need of each other, and nothing more.
//!
//! Every process holds all of the model and some lanes of the batch. After the backward the gradients are averaged, so all
//! of them make the same step; the first one writes what is kept. [`Alone`] is a group of one; `MpiGroup` (feature
//! `mpi`) is one of many.
//!
//! Here lives what processes say to each other, and MPI, over which they say it; what a process does with it is elsewhere.
//! It uses no other room; optim, eval, run and trainer may use it.

mod json_difference;
#[cfg(feature = "mpi")]
mod mpi;

use std::fmt;
use std::ops::Range;
use std::path::PathBuf;
use std::sync::Arc;

use serde::Serialize;
use serde_json::Value;

#[cfg(feature = "mpi")]
pub use self::mpi::MpiGroup;
pub(crate) use json_difference::json_difference;

/// A group of processes, numbered from 0; the first is the one that speaks and writes.
///
/// All of them must call the same methods in the same order, and each call waits for the others. A process that can't go
/// on must [`abort`](Self::abort), or the others wait for it forever.
pub trait Group: fmt::Debug + Send + Sync {
    /// The number of this process.
    fn rank(&self) -> usize;

    /// How many processes there are.
    fn size(&self) -> usize;

    /// The number of this process among those of its machine.
    fn local_rank(&self) -> usize;

    /// How many processes are on this machine.
    fn local_size(&self) -> usize;

    /// Replaces values by their sums over all processes: the same bits in each of them, and the same each time for processes that
    /// are as many and placed alike.
    fn sum(&self, values: &mut [f32]);

    /// As [`sum`](Self::sum), in double precision.
    fn sum_f64(&self, values: &mut [f64]);

    /// Replaces bytes by those of the first process, whatever length they have.
    fn broadcast(&self, bytes: &mut Vec<u8>);

    /// Brings the bytes of every process to the first one, in their order; the others get nothing.
    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>>;

    /// Ends all processes at once, with this exit status.
    fn abort(&self, status: i32) -> !;

    /// Whether this is the process that speaks and writes.
    fn is_first(&self) -> bool {
        self.rank() == 0
    }

    /// The share of this process of `n` things in a row; shares differ by one at most.
    fn share(&self, n: usize) -> Range<usize> {
        n * self.rank() / self.size()..n * (self.rank() + 1) / self.size()
    }
}

/// A process by itself.
#[derive(Clone, Copy, Debug, Default)]
pub struct Alone;

impl Group for Alone {
    fn rank(&self) -> usize {
        0
    }

    fn size(&self) -> usize {
        1
    }

    fn local_rank(&self) -> usize {
        0
    }

    fn local_size(&self) -> usize {
        1
    }

    fn sum(&self, _values: &mut [f32]) {}

    fn sum_f64(&self, _values: &mut [f64]) {}

    fn broadcast(&self, _bytes: &mut Vec<u8>) {}

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        vec![bytes.to_vec()]
    }

    fn abort(&self, status: i32) -> ! {
        std::process::exit(status)
    }
}

/// What processes of a group do not agree on, or what failed in one of them.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum GroupError {
    /// Some process cannot begin; told by the first one.
    #[error("process {rank} of {size} cannot train: {error}")]
    Failed {
        /// Its number.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// What it said.
        error: String,
    },
    /// Some process was started otherwise.
    #[error(
        "process {rank} of {size} has {field} = {found} where process 0 has {expected}: all must run the same program with \
         the same options on the same data"
    )]
    Differs {
        /// Its number.
        rank: usize,
        /// Number of processes.
        size: usize,
        /// What differs, as `recipe.phases[0].lr`.
        field: String,
        /// What it has.
        found: String,
        /// What the first process has.
        expected: String,
    },
    /// Weights that should be the same everywhere are not.
    #[error(
        "after step {step} the weights of process {rank} of {size} differ from those of process 0: the machines do not compute \
         alike (another CPU, another backend, kernels that were chosen by timing them as with the feature autotune, or broken \
         memory). Resume from the last checkpoint, on machines of one kind"
    )]
    Weights {
        /// The step.
        step: u64,
        /// Number of the process.
        rank: usize,
        /// Number of processes.
        size: usize,
    },
    /// The batch can't be shared out evenly.
    #[error("{batch_size} lanes cannot be shared by {size} processes: use a multiple of {size}, or fewer processes")]
    Batch {
        /// Lanes of the whole batch.
        batch_size: usize,
        /// Number of processes.
        size: usize,
    },
    /// The run directory of this process is not the one that the first process writes to.
    #[error("it does not see {}, which process 0 has opened: name a directory that all machines share", run_dir.display())]
    RunDir {
        /// The directory.
        run_dir: PathBuf,
    },
    /// Another process failed, and the first one says why.
    #[error("another process of the group failed")]
    Elsewhere,
}

/// Tells every process whether all of them did well. Where one did not, the first process gets its own error, or that of the first
/// other one that failed, and is to tell of it; the others get [`GroupError::Elsewhere`].
pub(crate) fn all_ok<T, E>(group: &dyn Group, result: Result<T, E>) -> Result<T, E>
where
    E: fmt::Display + From<GroupError>,
{
    if group.size() == 1 {
        return result;
    }
    let said = result.as_ref().err().map(ToString::to_string).unwrap_or_default();
    let all = group.gather(said.as_bytes());
    let failed = all.iter().position(|said| !said.is_empty());
    let mut verdict = vec![u8::from(failed.is_some())];
    group.broadcast(&mut verdict);
    if verdict == [0] {
        return result;
    }
    match (failed, result) {
        (Some(0), Err(error)) => Err(error),
        (Some(rank), _) => {
            let error = String::from_utf8_lossy(&all[rank]).into_owned();
            Err(GroupError::Failed { rank, size: group.size(), error }.into())
        }
        (None, _) => Err(GroupError::Elsewhere.into()),
    }
}

/// Checks that all processes have the same `setup`.
pub(crate) fn agree(group: &dyn Group, setup: &impl Serialize) -> Result<(), GroupError> {
    if group.size() == 1 {
        return Ok(());
    }
    let mine = serde_json::to_vec(setup).expect("a setup is plain data");
    let all = group.gather(&mine);
    let parse = |bytes: &Vec<u8>| serde_json::from_slice::<Value>(bytes).unwrap_or(Value::Null);
    let different = match all.split_first() {
        Some((first, others)) => {
            let first = parse(first);
            others.iter().enumerate().find_map(|(i, other)| {
                let (field, found, expected) = json_difference("", &parse(other), &first)?;
                Some(GroupError::Differs { rank: i + 1, size: group.size(), field, found, expected })
            })
        }
        None => None,
    };
    all_ok(group, different.map_or(Ok(()), Err))
}

/// Checks that all processes hold the same weights, of which `checksum` is one.
pub(crate) fn same_weights(group: &dyn Group, step: u64, checksum: u64) -> Result<(), GroupError> {
    if group.size() == 1 {
        return Ok(());
    }
    let all = group.gather(&checksum.to_le_bytes());
    let other = all.iter().position(|other| other[..] != all[0][..]);
    all_ok(group, other.map_or(Ok(()), |rank| Err(GroupError::Weights { step, rank, size: group.size() })))
}

/// Whether a launcher of MPI started this process as one of many.
pub fn launched_by_mpi() -> bool {
    let number = |variable| std::env::var(variable).ok().and_then(|value| value.parse::<usize>().ok());
    // Open MPI's own, that of a process manager, and Slurm's, which stands in every job but counts only where it is one of MPI.
    let is_of_pmix = std::env::var_os("PMIX_RANK").is_some();
    let sizes = [number("OMPI_COMM_WORLD_SIZE"), number("PMI_SIZE"), number("SLURM_NTASKS").filter(|_| is_of_pmix)];
    sizes.into_iter().flatten().any(|size| size > 1)
}

/// A shared group; [`Alone`] unless said otherwise.
pub type SharedGroup = Arc<dyn Group>;
