//! A group of threads, in place of processes.

use std::sync::{Arc, Barrier, Mutex};

use sharnn_train::{Group, SharedGroup};

#[derive(Debug)]
struct Shared {
    barrier: Barrier,
    slots: Mutex<Vec<Vec<u8>>>,
}

#[derive(Debug)]
struct Thread {
    rank: usize,
    size: usize,
    shared: Arc<Shared>,
}

impl Thread {
    /// What every thread brought, in their order.
    fn exchange(&self, bytes: Vec<u8>) -> Vec<Vec<u8>> {
        self.shared.slots.lock().unwrap()[self.rank] = bytes;
        self.shared.barrier.wait();
        let all = self.shared.slots.lock().unwrap().clone();
        self.shared.barrier.wait();
        all
    }
}

macro_rules! sum {
    ($group:expr, $values:expr, $type:ty) => {{
        let bytes = $values.iter().flat_map(|x| x.to_le_bytes()).collect();
        let all = $group.exchange(bytes);
        $values.fill(0.0);
        for other in all {
            for (sum, x) in $values.iter_mut().zip(other.chunks_exact(size_of::<$type>())) {
                *sum += <$type>::from_le_bytes(x.try_into().unwrap());
            }
        }
    }};
}

impl Group for Thread {
    fn rank(&self) -> usize {
        self.rank
    }

    fn size(&self) -> usize {
        self.size
    }

    fn local_rank(&self) -> usize {
        self.rank
    }

    fn local_size(&self) -> usize {
        self.size
    }

    fn sum(&self, values: &mut [f32]) {
        sum!(self, values, f32);
    }

    fn sum_f64(&self, values: &mut [f64]) {
        sum!(self, values, f64);
    }

    fn broadcast(&self, bytes: &mut Vec<u8>) {
        *bytes = self.exchange(bytes.clone()).swap_remove(0);
    }

    fn gather(&self, bytes: &[u8]) -> Vec<Vec<u8>> {
        let all = self.exchange(bytes.to_vec());
        if self.is_first() { all } else { Vec::new() }
    }

    fn abort(&self, status: i32) -> ! {
        panic!("aborted with {status}")
    }
}

/// Runs `job` in so many threads that are a group, and returns what each gave.
pub fn in_group<T: Send>(size: usize, job: impl Fn(SharedGroup) -> T + Sync) -> Vec<T> {
    let shared = Arc::new(Shared { barrier: Barrier::new(size), slots: Mutex::new(vec![Vec::new(); size]) });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                let group = Arc::new(Thread { rank, size, shared: shared.clone() });
                let job = &job;
                scope.spawn(move || job(group))
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
