//! A group over MPI: `mpirun -n 4 program ...`.

use mpi::collective::SystemOperation;
use mpi::datatype::PartitionMut;
use mpi::environment::Universe;
use mpi::topology::SimpleCommunicator;
use mpi::traits::{Communicator, CommunicatorCollectives, Root};

use crate::Group;

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
        let world = world();
        let first = world.process_at_rank(0);
        let len = bytes.len() as u64;
        let mut lens = vec![0; self.size];
        match self.is_first() {
            true => first.gather_into_root(&len, &mut lens[..]),
            false => first.gather_into(&len),
        }
        let mut largest = lens.iter().copied().max().unwrap_or_default();
        first.broadcast_into(&mut largest);

        // So many bytes of each process at a time that all of them together can be counted.
        let at_once = MAX_COUNT / self.size;
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

    fn abort(&self, status: i32) -> ! {
        world().abort(status)
    }
}
