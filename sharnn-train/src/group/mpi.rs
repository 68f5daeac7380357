//! A group over MPI: `mpirun -n 4 program ...`.

use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use super::Group;

/// The exit status of a Rust program that panicked.
const PANICKED: i32 = 101;

/// Values in one call: MPI counts in 32 bits.
const MAX_COUNT: usize = 1 << 28;

/// The processes that a launcher of MPI started together.
///
/// MPI itself ends all of them when one of them dies.
pub struct MpiGroup {
    // MPI is shut down with it.
    _universe: Universe,
    rank: usize,
    size: usize,
    local_rank: usize,
    local_size: usize,
}

impl MpiGroup {
    /// Joins the group of this process; `None` where MPI is in use already. MPI ends the process where it can't be started.
    pub fn join() -> Option<Self> {
        // Only the thread that trains calls it.
        let (universe, _) = mpi::initialize_with_threading(mpi::Threading::Funneled)?;
        let world = universe.world();
        let local = world.split_shared(world.rank());
        let [rank, size, local_rank, local_size] =
            [world.rank(), world.size(), local.rank(), local.size()].map(|n| n as usize);
        Some(Self { _universe: universe, rank, size, local_rank, local_size })
    }
}

/// A panic ends the others too: MPI would wait for them to come to its end, and they for this process.
impl Drop for MpiGroup {
    fn drop(&mut self) {
        if std::thread::panicking() {
            world().abort(PANICKED);
        }
    }
}

impl std::fmt::Debug for MpiGroup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "process {} of {}", self.rank, self.size)
    }
}

fn world() -> SimpleCommunicator {
    SimpleCommunicator::world()
}

/// Replaces values by their sums.
macro_rules! sum {
    ($values:expr) => {{
        let own = $values.to_vec();
        for (own, sum) in own.chunks(MAX_COUNT).zip($values.chunks_mut(MAX_COUNT)) {
            world().all_reduce_into(own, sum, SystemOperation::sum());
        }
    }};
}

impl Group for MpiGroup {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.local_rank
    }

    fn local_size(&self) -> usize {
        self.local_size
    }

    fn sum(&self, values: &mut [f32]) {
        sum!(values);
    }

    fn sum_f64(&self, values: &mut [f64]) {
        sum!(values);
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) {
        let (world, mut len) = (world(), bytes.len() as u64);
        let first = world.process_at_rank(0);
        first.broadcast_into(&mut len);
        bytes.resize(len as usize, 0);
        for part in bytes.chunks_mut(MAX_COUNT) {
            first.broadcast_into(part);
        }
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        // All processes' together can be counted.
        self.gather_in_rounds(bytes, MAX_COUNT / self.size)
    }

    fn abort(&self, status: i32) -> ! {
        world().abort(status)
    }
}

impl MpiGroup {
    /// [`gather`](Group::gather), of each process at most so many bytes at a time.
    fn gather_in_rounds(&self, bytes: &[u8], at_once: usize) -> Vec<Vec<u8>> {
        let world = world();
        let first = world.process_at_rank(0);
        let len = bytes.len() as u64;
        let mut lens = vec![0u64; self.size];
        match self.is_first() {
            true => first.gather_into_root(&len, &mut lens[..]),
            false => first.gather_into(&len),
        }
        let mut largest = lens.iter().copied().max().unwrap_or_default();
        first.broadcast_into(&mut largest);

        let mut all: Vec<Vec<u8>> = lens.iter().map(|&len| Vec::with_capacity(len as usize)).collect();
        // A slice of nothing may lie at address 1, which Open MPI takes for MPI_IN_PLACE.
        let somewhere = [0];
        for start in (0..largest as usize).step_by(at_once) {
            let left = |len: usize| len.saturating_sub(start).min(at_once);
            let part = match left(bytes.len()) {
                0 => &somewhere[..0],
                len => &bytes[start..][..len],
            };
            if !self.is_first() {
                first.gather_varcount_into(part);
                continue;
            }
            let counts: Vec<i32> = lens.iter().map(|&len| left(len as usize) as i32).collect();
            let next = |next: &mut i32, &count: &i32| Some(std::mem::replace(next, *next + count));
            let starts: Vec<i32> = counts.iter().scan(0, next).collect();
            let mut parts = vec![0; counts.iter().map(|&count| count as usize).sum()];
            first.gather_varcount_into_root(part, &mut PartitionMut::new(&mut parts[..], &counts[..], &starts[..]));
            for (all, (&start, &count)) in all.iter_mut().zip(starts.iter().zip(&counts)) {
                all.extend_from_slice(&parts[start as usize..][..count as usize]);
            }
        }
        if self.is_first() { all } else { Vec::new() }
    }
}

/// Each test runs itself again, in processes that MPI starts.
#[cfg(test)]
mod tests {
    use std::process::{Command, Output};

    use super::*;

    const PROCESSES: usize = 3;

    /// The group, in a process that [`launch`] started; `None` in the test's own.
    fn group() -> Option<MpiGroup> {
        crate::group::launched_by_mpi().then(|| MpiGroup::join().unwrap())
    }

    fn launch(test: &str) -> Output {
        let mut mpirun = Command::new("mpirun");
        mpirun.args(["--oversubscribe", "--bind-to", "none", "-n", &PROCESSES.to_string()]);
        // In containers there may be no other user.
        for allow in ["OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM"] {
            mpirun.env(allow, "1");
        }
        let test = format!("group::mpi::tests::{test}");
        mpirun.arg(std::env::current_exe().unwrap()).args(["--exact", &test, "--nocapture"]).output().unwrap()
    }

    #[test]
    fn bytes_and_numbers_of_all_processes_come_together() {
        let Some(group) = group() else {
            let output = launch("bytes_and_numbers_of_all_processes_come_together");
            assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
            return;
        };
        let rank = group.rank();
        assert_eq!((group.size(), group.local_size()), (PROCESSES, PROCESSES));
        let bytes_of = |rank: usize, len: usize| (0..rank * len).map(|i| (7 * i + rank) as u8).collect::<Vec<_>>();
        // The first process has none; the last ones need another round than those before.
        for (len, at_once) in [(0, 5), (1, 5), (5, 5), (6, 5), (100, 7), (100, MAX_COUNT)] {
            let all = group.gather_in_rounds(&bytes_of(rank, len), at_once);
            let expected: Vec<_> = (0..PROCESSES).map(|rank| bytes_of(rank, len)).collect();
            assert_eq!(all, if rank == 0 { expected } else { Vec::new() }, "{len} bytes, {at_once} at once");
        }
        let mut told = if rank == 0 { b"from the first".to_vec() } else { Vec::new() };
        group.broadcast(&mut told);
        assert_eq!(told, b"from the first");
        let (mut sums, mut precise) = ([rank as f32, 1.0], [0.5f64]);
        group.sum(&mut sums);
        group.sum_f64(&mut precise);
        assert_eq!((sums, precise), ([3.0, 3.0], [1.5]));
    }

    #[test]
    fn a_panic_in_one_process_ends_all() {
        let Some(group) = group() else {
            let output = launch("a_panic_in_one_process_ends_all");
            assert_eq!(output.status.code(), Some(PANICKED));
            let stderr = String::from_utf8_lossy(&output.stderr).into_owned();
            assert!(stderr.contains("the middle one fails"), "{stderr}");
            return;
        };
        assert_ne!(group.rank(), 1, "the middle one fails");
        // The others would wait for it.
        group.sum(&mut [1.0]);
    }
}
