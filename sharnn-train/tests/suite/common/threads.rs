//! A group of threads, in place of processes.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use sharnn_train::{Group, SharedGroup};

#[derive(Debug)]
struct Shared {
    meeting: Mutex<Meeting>,
    changed: Condvar,
}

/// Where the threads wait for each other.
#[derive(Debug)]
struct Meeting {
    slots: Vec<Vec<u8>>,
    waiting: usize,
    /// How often all have come together.
    rounds: u64,
    /// Whether one is gone that the others would wait for.
    over: bool,
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, Meeting> {
        self.meeting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all threads have come here. Should one never come, the others are to fail as well.
    fn wait<'a>(&'a self, mut meeting: MutexGuard<'a, Meeting>) -> MutexGuard<'a, Meeting> {
        meeting.waiting += 1;
        if meeting.waiting == meeting.slots.len() {
            (meeting.waiting, meeting.rounds) = (0, meeting.rounds + 1);
            self.changed.notify_all();
            return meeting;
        }
        let round = meeting.rounds;
        let comes = |meeting: &mut Meeting| meeting.rounds == round && !meeting.over;
        let meeting = self.changed.wait_while(meeting, comes).unwrap_or_else(PoisonError::into_inner);
        assert!(meeting.rounds > round, "another thread of the group has ended");
        meeting
    }
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
        let mut meeting = self.shared.lock();
        meeting.slots[self.rank] = bytes;
        let meeting = self.shared.wait(meeting);
        let all = meeting.slots.clone();
        drop(self.shared.wait(meeting));
        all
    }
}

/// Tells the others when a thread is done, well or not.
struct Ends(Arc<Shared>);

impl Drop for Ends {
    fn drop(&mut self) {
        self.0.lock().over = true;
        self.0.changed.notify_all();
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
    let meeting = Meeting { slots: vec![Vec::new(); size], waiting: 0, rounds: 0, over: false };
    let shared = Arc::new(Shared { meeting: Mutex::new(meeting), changed: Condvar::new() });
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..size)
            .map(|rank| {
                let group = Arc::new(Thread { rank, size, shared: shared.clone() });
                let (job, ends) = (&job, Ends(shared.clone()));
                scope.spawn(move || {
                    let _ends = ends;
                    job(group)
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    })
}
