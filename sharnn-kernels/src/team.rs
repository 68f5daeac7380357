//! A team of threads that work on one operation together, with a barrier that costs well under a microsecond.
//!
//! A recurrent step is tens of microseconds long, too short to be handed to a thread pool. So the members stay together
//! through an operation: the calling thread is member 0, the others are the team's own threads, which sleep between
//! operations. A team serves one operation at a time. A call that finds it at work (from another thread, or from inside an
//! operation) does its work alone, in the same order: results do not depend on how many members there are.

use std::any::Any;
use std::cell::UnsafeCell;
use std::hint::spin_loop;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::*};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread::{Thread, park, yield_now};

/// Turns of a waiting loop before the thread gives its core away: some tens of microseconds.
const SPINS: u32 = 2000;

/// The most threads that a team can have.
pub const MAX_THREADS: usize = 1024;

static THREADS: OnceLock<usize> = OnceLock::new();
static TEAM: OnceLock<Team> = OnceLock::new();

/// Sets the number of threads of this process's team. Without it they are as many as the variable `RAYON_NUM_THREADS`
/// says, or as there are cores.
///
/// # Errors
/// If the number is 0 or above [`MAX_THREADS`], or was set or used before: the number that holds.
pub fn set_threads(threads: usize) -> Result<(), usize> {
    let threads = if (1..=MAX_THREADS).contains(&threads) { threads } else { return Err(self::threads()) };
    match *THREADS.get_or_init(|| threads) {
        set if set == threads => Ok(()),
        set => Err(set),
    }
}

/// The number of threads of this process's team.
pub fn threads() -> usize {
    *THREADS.get_or_init(default_threads)
}

/// The number of threads where none is set.
pub fn default_threads() -> usize {
    let asked = std::env::var("RAYON_NUM_THREADS").ok().and_then(|n| n.parse().ok()).filter(|&n| n > 0);
    asked.unwrap_or_else(cores).min(MAX_THREADS)
}

fn cores() -> usize {
    static CORES: OnceLock<usize> = OnceLock::new();
    *CORES.get_or_init(|| std::thread::available_parallelism().map_or(1, usize::from))
}

/// Runs `work` on up to `wanted` members of this process's team, and returns when all have finished.
///
/// # Panics
/// If `work` panics on any member.
pub fn run(wanted: usize, work: impl Fn(&Member) + Sync) {
    TEAM.get_or_init(|| Team::new(threads())).run(wanted, &work);
}

/// Runs `task` for each of `0..n_tasks`, each on whichever member is free. Tasks must not depend on each other.
///
/// # Panics
/// If a task panics.
pub fn for_each(n_tasks: usize, task: impl Fn(usize) + Sync) {
    for_each_with(n_tasks, || (), |(), i| task(i));
}

/// [`for_each`] with a scratch value that each member makes once.
pub fn for_each_with<S>(n_tasks: usize, init: impl Fn() -> S + Sync, task: impl Fn(&mut S, usize) + Sync) {
    let next = AtomicUsize::new(0);
    run(n_tasks, |_| {
        let mut scratch = None;
        loop {
            let i = next.fetch_add(1, Relaxed);
            if i >= n_tasks {
                break;
            }
            task(scratch.get_or_insert_with(&init), i);
        }
    });
}

/// One thread's part in an operation.
pub struct Member<'a> {
    /// Which member this is, from 0.
    pub index: usize,
    /// How many there are.
    pub count: usize,
    barrier: &'a Barrier,
}

impl Member<'_> {
    /// Waits until every member has come here; what they wrote before is then seen by all.
    pub fn wait(&self) {
        self.barrier.wait(self.count);
    }

    /// Does part `number` of a sequence when parts `0..number` are done, whoever does those, and sees what they wrote. Each part must be
    /// some member's, and a member must come to its own in their order.
    ///
    /// # Panics
    /// If another member panicked.
    pub fn in_turn<R>(&self, turns: &Turns, number: usize, part: impl FnOnce() -> R) -> R {
        let is_next = || turns.next.0.load(Acquire) == number;
        wait_until(|| is_next() || self.barrier.failed.load(Relaxed), self.count);
        assert!(is_next(), "another member of the team panicked");
        let result = part();
        turns.next.0.store(number + 1, Release);
        result
    }

    /// This member's [`share`] of `0..n`.
    pub fn share(&self, n: usize) -> Range<usize> {
        share(n, self.index, self.count)
    }
}

/// The share of `0..n` that the one with this index has of so many: contiguous, and as equal as can be.
pub fn share(n: usize, index: usize, count: usize) -> Range<usize> {
    n * index / count..n * (index + 1) / count
}

/// How far a sequence has come, of which the members do parts: see [`Member::in_turn`].
#[derive(Default)]
pub struct Turns {
    next: Padded,
}

type Work<'a> = &'a (dyn Fn(&Member) + Sync);

/// A set of threads that work together.
pub struct Team {
    shared: Arc<Common>,
    helpers: Vec<Thread>,
    /// Held by the operation that the team is at.
    busy: Mutex<()>,
}

struct Common {
    /// Counts operations; a change is the call to work.
    epoch: AtomicUsize,
    job: UnsafeCell<Option<Job>>,
    /// Helpers that have finished the operation.
    finished: AtomicUsize,
    barrier: Barrier,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    quit: AtomicBool,
}

// SAFETY: `job` is written before `epoch` changes, while no helper reads it, and read after.
unsafe impl Sync for Common {}

#[derive(Clone, Copy)]
struct Job {
    work: *const (dyn Fn(&Member) + Sync),
    count: usize,
}

// SAFETY: the work is Sync, and outlives the operation.
unsafe impl Send for Job {}

impl Team {
    /// A team of `threads`, the caller's among them.
    pub fn new(threads: usize) -> Self {
        let helpers = threads.saturating_sub(1);
        let shared = Arc::new(Common {
            epoch: AtomicUsize::new(0),
            job: UnsafeCell::new(None),
            finished: AtomicUsize::new(0),
            barrier: Barrier::default(),
            panic: Mutex::new(None),
            quit: AtomicBool::new(false),
        });
        // Where the system refuses a thread, the team is smaller.
        let spawn = |i: usize| {
            let shared = shared.clone();
            let builder = std::thread::Builder::new().name(format!("sharnn-{}", i + 1));
            builder.spawn(move || shared.help(i)).ok().map(|handle| handle.thread().clone())
        };
        let helpers = (0..helpers).map_while(spawn).collect();
        Self { shared, helpers, busy: Mutex::new(()) }
    }

    /// Runs `work` on up to `wanted` members, and returns when all have finished.
    pub fn run(&self, wanted: usize, work: Work) {
        let count = wanted.clamp(1, self.helpers.len() + 1);
        let busy = if count > 1 { self.busy.try_lock() } else { Err(std::sync::TryLockError::WouldBlock) };
        let _busy = match busy {
            Ok(busy) => busy,
            // An operation that panicked left the team in order.
            Err(std::sync::TryLockError::Poisoned(busy)) => busy.into_inner(),
            Err(std::sync::TryLockError::WouldBlock) => {
                return work(&Member { index: 0, count: 1, barrier: &Barrier::default() });
            }
        };
        let shared = &*self.shared;
        shared.finished.store(0, Relaxed);
        shared.barrier.failed.store(false, Relaxed);
        // SAFETY: only the lifetime changes; every helper is done with it before this function returns.
        let work: Work<'static> = unsafe { std::mem::transmute(work) };
        // SAFETY: the helpers wait for the epoch to change.
        unsafe { *shared.job.get() = Some(Job { work, count }) };
        shared.epoch.fetch_add(1, SeqCst);
        // Costs a system call where a helper sleeps, and else one exchange. A flag of our own that says who sleeps saves
        // the exchange, but then two threads look at what the other has just stored, which emulators get wrong.
        self.helpers.iter().for_each(Thread::unpark);
        shared.work(Job { work, count }, 0);
        let helpers = self.helpers.len();
        wait_until(|| shared.finished.load(Acquire) == helpers, helpers + 1);
        if let Some(panic) = shared.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take() {
            resume_unwind(panic);
        }
    }
}

impl Drop for Team {
    fn drop(&mut self) {
        self.shared.quit.store(true, SeqCst);
        self.shared.epoch.fetch_add(1, SeqCst);
        self.helpers.iter().for_each(Thread::unpark);
    }
}

impl Common {
    /// A helper's life.
    fn help(&self, index: usize) {
        let mut seen = 0;
        loop {
            let called = || self.epoch.load(SeqCst) != seen;
            let mut spins = 0;
            while !called() && spins < SPINS {
                spin_loop();
                spins += 1;
            }
            while !called() {
                park();
            }
            seen = seen.wrapping_add(1);
            if self.quit.load(SeqCst) {
                return;
            }
            // SAFETY: written before the epoch changed, and not again before this helper has finished.
            if let Some(job) = unsafe { *self.job.get() } {
                self.work(job, index + 1);
            }
            self.finished.fetch_add(1, Release);
        }
    }

    /// One member's part. A panic is kept for the caller, and lets no other member wait for ever.
    fn work(&self, job: Job, index: usize) {
        if index >= job.count {
            return;
        }
        let member = Member { index, count: job.count, barrier: &self.barrier };
        // SAFETY: the caller of `run` waits for all members, so the work is alive.
        let work = unsafe { &*job.work };
        if let Err(panic) = catch_unwind(AssertUnwindSafe(|| work(&member))) {
            self.panic.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).get_or_insert(panic);
            self.barrier.failed.store(true, SeqCst);
        }
    }
}

/// Spins for a moment and then gives the core away between looks; at once where there are more threads than cores.
#[inline]
fn wait_until(done: impl Fn() -> bool, threads: usize) {
    let mut spins = if threads > cores() { SPINS } else { 0 };
    while !done() {
        if spins < SPINS {
            spins += 1;
            spin_loop();
        } else {
            yield_now();
        }
    }
}

/// A barrier that is used again and again. The fields lie on cache lines of their own.
#[derive(Default)]
struct Barrier {
    arrived: Padded,
    generation: Padded,
    failed: AtomicBool,
}

#[derive(Default)]
#[repr(align(128))]
struct Padded(AtomicUsize);

impl Barrier {
    fn wait(&self, count: usize) {
        if count == 1 {
            return;
        }
        let generation = self.generation.0.load(Acquire);
        if self.arrived.0.fetch_add(1, AcqRel) + 1 == count {
            self.arrived.0.store(0, Relaxed);
            self.generation.0.store(generation.wrapping_add(1), Release);
            return;
        }
        let passed = || self.generation.0.load(Acquire) != generation;
        wait_until(|| passed() || self.failed.load(Relaxed), count);
        if !passed() {
            // The member that failed has not come here and never will. Leave the barrier as it was.
            self.arrived.0.store(0, SeqCst);
            panic!("another member of the team panicked");
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::AtomicU64;

    use super::*;

    const SIZES: [usize; 4] = [1, 2, 3, 7];

    /// Every member adds to a common sum in turn: a step is wrong where anyone is early.
    fn rounds(team: &Team, rounds: u64) -> u64 {
        let sum = AtomicU64::new(0);
        team.run(usize::MAX, &|member: &Member| {
            for round in 0..rounds {
                assert_eq!(sum.load(SeqCst), round * member.count as u64);
                member.wait();
                sum.fetch_add(1, SeqCst);
                member.wait();
            }
        });
        sum.into_inner()
    }

    #[test]
    fn members_keep_together_with_fewer_and_more_threads_than_cores() {
        for threads in SIZES {
            let team = Team::new(threads);
            let n = if cfg!(miri) { 5 } else { 500 };
            assert_eq!(rounds(&team, n), n * threads as u64);
            assert_eq!(rounds(&team, 3), 3 * threads as u64);
        }
    }

    #[test]
    fn shares_cover_everything_once() {
        for count in SIZES {
            for n in [0, 1, 5, 16, 100] {
                let barrier = Barrier::default();
                let shares = (0..count).map(|index| Member { index, count, barrier: &barrier }.share(n));
                let all: Vec<_> = shares.flatten().collect();
                assert_eq!(all, (0..n).collect::<Vec<_>>());
            }
        }
    }

    #[test]
    fn concurrent_and_nested_calls_work_alone() {
        let team = Team::new(3);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..if cfg!(miri) { 2 } else { 50 } {
                        let outer = AtomicUsize::new(0);
                        team.run(3, &|member: &Member| {
                            member.wait();
                            let inner = AtomicUsize::new(0);
                            team.run(3, &|nested: &Member| {
                                nested.wait();
                                inner.fetch_add(nested.count, SeqCst);
                            });
                            // Inside an operation that works alone the team may be free.
                            let expected: &[usize] = if member.count == 1 { &[1, 9] } else { &[1] };
                            assert!(expected.contains(&inner.into_inner()));
                            outer.fetch_add(1, SeqCst);
                        });
                        assert!([1, 3].contains(&outer.into_inner()));
                    }
                });
            }
        });
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_lives_on() {
        let team = Team::new(3);
        for panicking in 0..3 {
            let run = || {
                team.run(3, &|member: &Member| {
                    member.wait();
                    assert!(member.index != panicking, "number {panicking} has had enough");
                    member.wait();
                })
            };
            assert!(catch_unwind(AssertUnwindSafe(run)).is_err());
            assert_eq!(rounds(&team, 4), 12);
        }
    }

    #[test]
    fn parts_are_done_in_turn_and_a_panic_ends_the_waiting() {
        const ROUNDS: usize = if cfg!(miri) { 3 } else { 300 };
        for threads in SIZES {
            let team = Team::new(threads);
            let parts = |panicking: usize| {
                let (turns, done) = (Turns::default(), Mutex::new(Vec::new()));
                team.run(usize::MAX, &|member: &Member| {
                    for number in (0..ROUNDS).map(|round| round * member.count + member.index) {
                        assert!(number != panicking, "number {number} has had enough");
                        member.in_turn(&turns, number, || done.lock().unwrap().push(number));
                    }
                });
                done.into_inner().unwrap()
            };
            assert_eq!(parts(usize::MAX), (0..ROUNDS * threads).collect::<Vec<_>>());
            assert!(catch_unwind(AssertUnwindSafe(|| parts(2 * threads - 1))).is_err());
            assert_eq!(rounds(&team, 4), 4 * threads as u64);
        }
    }

    /// Helpers fall asleep after a while without work, and a call may come at just that moment.
    #[test]
    fn a_call_at_any_moment_wakes_those_who_sleep() {
        let team = Team::new(2);
        for call in 0..if cfg!(miri) { 20 } else { 20_000 } {
            assert_eq!(rounds(&team, 1), 2);
            (0..call % 500 * 8).for_each(|_| spin_loop());
        }
    }

    #[test]
    fn every_task_is_done_once() {
        let done: Vec<_> = (0..100).map(|_| AtomicUsize::new(0)).collect();
        for_each(100, |i| {
            done[i].fetch_add(1, SeqCst);
        });
        assert!(done.into_iter().all(|n| n.into_inner() == 1));
    }
}
