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
        let len = i32::try_from(bytes.len()).expect("a process brings less than 2 GB together");
        // A slice of nothing may lie at address 1, which Open MPI takes for MPI_IN_PLACE.
        let somewhere = [0];
        let bytes = if bytes.is_empty() { &somewhere[..0] } else { bytes };
        if !self.is_first() {
            first.gather_into(&len);
            first.gather_varcount_into(bytes);
            return Vec::new();
        }
        let mut lens = vec![0; self.size];
        first.gather_into_root(&len, &mut lens[..]);
        let starts: Vec<i32> = lens
            .iter()
            .scan(0i32, |next, len| {
                let start = *next;
                *next = start.checked_add(*len).expect("all processes bring less than 2 GB together");
                Some(start)
            })
            .collect();
        let mut all = vec![0; lens.iter().map(|&len| len as usize).sum::<usize>().max(1)];
        first.gather_varcount_into_root(bytes, &mut PartitionMut::new(&mut all[..], &lens[..], &starts[..]));
        let part = |(&start, &len): (&i32, &i32)| all[start as usize..(start + len) as usize].to_vec();
        starts.iter().zip(&lens).map(part).collect()
    }

    fn abort(&self, status: i32) -> ! {
        world().abort(status)
    }
}
