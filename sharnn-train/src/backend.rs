//! Choosing a backend by name, at run time, among those that were compiled in.
//!
//! Here lives all that knows backends by name; everything else is generic over them.
//! It uses no other room; it is for programs, and no room needs it.

#[cfg(feature = "cuda")]
mod cuda_probe;
mod missing;
#[cfg(feature = "wgpu")]
mod wgpu_probe;

use std::fmt;
use std::str::FromStr;
use std::sync::{Arc, RwLock};
use std::time::Duration;

pub use missing::MissingPiece;
#[cfg(feature = "cuda")]
use sharnn_core::UnfusedCuda;
#[cfg(feature = "wgpu")]
use sharnn_core::UnfusedWgpu;
use sharnn_core::{AutodiffBackend, Backend, ModelStreams, ShaRnn, Streams};

/// A Burn backend. Which ones a program has is decided by its cargo features.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum BackendKind {
    /// `burn-flex`: the CPU, in Rust, nothing to install.
    Flex,
    /// `burn-ndarray`: the CPU.
    NdArray,
    /// `burn-cuda`: NVIDIA GPUs.
    Cuda,
    /// `burn-wgpu`: any GPU with Vulkan, Metal or DirectX 12.
    Wgpu,
    /// `burn-tch`: LibTorch, on an NVIDIA GPU where it sees one, else on the CPU.
    Tch,
}

/// A backend that cannot be used.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum BackendError {
    /// No such backend.
    #[error("there is no backend {name:?}: use one of {}", names(&BackendKind::ALL))]
    Unknown {
        /// The name as it was given.
        name: String,
    },
    /// The backend exists, but not in this program.
    #[error("backend {kind} is not compiled in: rebuild with --features {kind}, or use one of: {}", names(available))]
    NotCompiledIn {
        /// The backend.
        kind: BackendKind,
        /// The backends of this program.
        available: Vec<BackendKind>,
    },
    /// The environment variable `SHARNN_FUSION` says what cannot be done.
    #[error("{FUSION}={value:?} cannot be used: {hint}")]
    Fusion {
        /// What it says.
        value: String,
        /// What would do.
        hint: &'static str,
    },
    /// The backend is in this program, but something that it needs is not on this machine.
    #[error("backend {kind} cannot be used on this machine: {missing}")]
    Missing {
        /// The backend.
        kind: BackendKind,
        /// What it needs.
        missing: MissingPiece,
    },
    /// The number of threads cannot be set, or not to this.
    #[error("{threads} threads cannot be set for backend {kind}: {hint}")]
    Threads {
        /// The backend.
        kind: BackendKind,
        /// The number.
        threads: usize,
        /// What would do.
        hint: String,
    },
    /// A variable of the environment that chooses how CUDA computes has a value that is not known.
    #[cfg(feature = "cuda")]
    #[error(transparent)]
    Variable(#[from] sharnn_core::ops::UnknownValue),
}

/// The environment variable that turns Burn's fusion off, with `off`, in a program with the feature `fusion`: for backends `cuda` and
/// `wgpu`, to measure what it brings, or to do without it.
const FUSION: &str = "SHARNN_FUSION";

/// More threads than this are taken for a mistake.
const MAX_THREADS: usize = 1024;

/// Work that runs on whichever backend was chosen: a function that is generic over the backend.
pub trait BackendJob {
    /// What it returns.
    type Output;

    /// Does the work on the backend's default device.
    fn run<B: AutodiffBackend>(self, device: B::Device) -> Self::Output;
}

impl BackendKind {
    /// Every backend, compiled in or not.
    pub const ALL: [Self; 5] = [Self::Flex, Self::NdArray, Self::Cuda, Self::Wgpu, Self::Tch];

    /// The name, which is that of the cargo feature too.
    pub fn name(self) -> &'static str {
        match self {
            Self::Flex => "flex",
            Self::NdArray => "ndarray",
            Self::Cuda => "cuda",
            Self::Wgpu => "wgpu",
            Self::Tch => "tch",
        }
    }

    /// Whether this program has the backend.
    pub fn is_available(self) -> bool {
        match self {
            Self::Flex => cfg!(feature = "flex"),
            Self::NdArray => cfg!(feature = "ndarray"),
            Self::Cuda => cfg!(feature = "cuda"),
            Self::Wgpu => cfg!(feature = "wgpu"),
            Self::Tch => cfg!(feature = "tch"),
        }
    }

    /// The backends of this program, the default first.
    pub fn available() -> Vec<Self> {
        Self::ALL.into_iter().filter(|kind| kind.is_available()).collect()
    }

    /// Whether a resumed run repeats an uninterrupted one bit for bit. It does where every operation sums in an order that
    /// is the same each time it is run: on the same kind of machine on `flex`, whatever the number of threads, and on `ndarray` with
    /// the same number of them.
    ///
    /// GPU backends may choose kernels by timing them, and LibTorch splits sums as it sees fit: they promise nothing. There a
    /// resumed run goes on from bit-identical weights, moments, state, data and masks, and may then differ in the last bits.
    pub fn resumes_bit_exactly(self) -> bool {
        matches!(self, Self::Flex | Self::NdArray)
    }

    /// Sets the number of threads of the CPU backends written in Rust, once and before anything is computed; without it they
    /// take one a core. Returns how many there are: fewer where the system refuses some. (The matrix products of `ndarray` read the environment variable `MATMUL_NUM_THREADS` instead.)
    ///
    /// # Errors
    /// [`BackendError::Threads`] for a number that cannot be meant, for a backend that has no such threads, and if they were
    /// set before.
    pub fn set_threads(self, threads: usize) -> Result<usize, BackendError> {
        let refuse = |hint: String| Err(BackendError::Threads { kind: self, threads, hint });
        match self {
            _ if !(1..=MAX_THREADS).contains(&threads) => refuse(format!("use 1 to {MAX_THREADS}")),
            Self::Cuda | Self::Wgpu => refuse("it computes on a GPU, leave the number out".into()),
            Self::Tch => refuse("set the environment variable OMP_NUM_THREADS".into()),
            Self::Flex | Self::NdArray => start(threads).or_else(refuse),
        }
    }

    /// Starts the threads of the CPU backends written in Rust, one a core (or as many as the variable `RAYON_NUM_THREADS` says) unless
    /// a number was set, or fewer where the system refuses some: without it, what computes first would panic there.
    pub fn start_threads(self) {
        if matches!(self, Self::Flex | Self::NdArray) {
            #[cfg(feature = "flex")]
            let threads = sharnn_core::kernels::team::default_threads();
            #[cfg(not(feature = "flex"))]
            let threads = std::thread::available_parallelism().map_or(1, usize::from);
            // Started already is as good.
            let _ = start(threads);
        }
    }

    /// `n` streams of a model on this backend, for bytes that come one at a time, computed in the way that takes least time:
    /// on `flex` with packed weights in f32, elsewhere by the model itself. Both have segments of one byte.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn streams<B: Backend>(self, model: &ShaRnn<B>, n: usize) -> Box<dyn Streams> {
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Box::new(model.engine(sharnn_core::WeightFormat::F32).streams(n)),
            _ => Box::new(ModelStreams::new(model, n, 1).expect("segments of one byte can be used with every memory")),
        }
    }

    /// Runs a job on this backend's default device, under autodiff. Backends `cuda` and `wgpu` do without Burn's fusion where
    /// the environment variable `SHARNN_FUSION` is `off`.
    ///
    /// # Errors
    /// [`BackendError::NotCompiledIn`], [`BackendError::Missing`] and [`BackendError::Fusion`], and then the job is not run.
    pub fn dispatch<J: BackendJob>(self, job: J) -> Result<J::Output, BackendError> {
        self.dispatch_on(0, job)
    }

    /// [`dispatch`](Self::dispatch) on the GPU of this number where the backend computes on GPUs: for many processes on one
    /// machine. Number 0 is the default device; numbers beyond the last GPU begin anew. The CPU has one device alone.
    ///
    /// # Errors
    /// As [`dispatch`](Self::dispatch).
    pub fn dispatch_on<J: BackendJob>(self, gpu: usize, job: J) -> Result<J::Output, BackendError> {
        #[allow(unused_imports)] // Which names there are is up to the features.
        use burn::backend::*;
        let _ = (&job, gpu); // Used by no arm where no such backend is compiled in.
        self.check(gpu).map_err(|missing| BackendError::Missing { kind: self, missing })?;
        match self {
            #[cfg(feature = "flex")]
            Self::Flex => Ok(job.run::<Autodiff<Flex>>(Default::default())),
            #[cfg(feature = "ndarray")]
            Self::NdArray => Ok(job.run::<Autodiff<NdArray<f32>>>(Default::default())),
            #[cfg(feature = "cuda")]
            Self::Cuda => {
                // Asked for here, where an error can be told; what computes would panic.
                sharnn_core::ops::CudaLstm::current()?;
                sharnn_core::ops::cuda_tf32()?;
                let device = cuda::CudaDevice::new(wrapped::<Cuda>(gpu));
                // Where fusion is not compiled in, both are the same backend.
                Ok(if fuses()? { job.run::<Autodiff<Cuda>>(device) } else { job.run::<Autodiff<UnfusedCuda>>(device) })
            }
            #[cfg(feature = "wgpu")]
            Self::Wgpu => {
                let device = match wrapped::<Wgpu>(gpu) {
                    0 => Default::default(),
                    gpu => wgpu::WgpuDevice::DiscreteGpu(gpu),
                };
                Ok(if fuses()? { job.run::<Autodiff<Wgpu>>(device) } else { job.run::<Autodiff<UnfusedWgpu>>(device) })
            }
            #[cfg(feature = "tch")]
            Self::Tch => Ok(job.run::<Autodiff<LibTorch<f32>>>(sharnn_core::libtorch_device(gpu))),
            #[allow(unreachable_patterns)]
            kind => Err(BackendError::NotCompiledIn { kind, available: Self::available() }),
        }
    }
}

impl BackendKind {
    /// Whether all that the backend needs is on this machine.
    fn check(self, gpu: usize) -> Result<(), MissingPiece> {
        let _ = gpu;
        match self {
            #[cfg(feature = "cuda")]
            Self::Cuda => cuda_probe::check(gpu),
            #[cfg(feature = "wgpu")]
            Self::Wgpu => wgpu_probe::check(),
            _ => Ok(()),
        }
    }
}

/// Sets the threads of the kernels, and starts rayon's pool, which can be built once, whether or not that succeeds: so it is asked for as
/// many as there can be: so many are returned. An error says what would do.
fn start(threads: usize) -> Result<usize, String> {
    let mut threads = threads;
    while threads > 1 && !has_room_for(threads) {
        threads /= 2;
    }
    // The pool and the kernels have as many each; whoever waits for signals and whoever shows progress have one.
    let wanted = 2 * threads + 2;
    let had = threads_to_be_had(wanted);
    // What took all that the system gives would leave nothing to compute in.
    let most = if had < wanted { (had / 4).max(1) } else { threads };
    let threads = threads.min(most);
    #[cfg(feature = "flex")]
    if let Err(holds) = sharnn_core::kernels::team::set_threads(threads) {
        return Err(format!("the kernels have {holds} already: set it before anything is computed"));
    }
    let pool = rayon::ThreadPoolBuilder::new().num_threads(threads);
    let pool = if had < 4 { pool.use_current_thread() } else { pool };
    pool.build_global().map_err(|error| error.to_string())?;
    Ok(threads)
}

/// Whether a limit of the address space, where there is one, leaves room for so many threads of the pool and as many of the kernels: each
/// takes a stack and what the allocator sets aside for it.
fn has_room_for(threads: usize) -> bool {
    const OF_ONE: usize = 66 << 20;
    // More than this is no sign of a limit: a system may refuse what is beyond its memory.
    const MOST: usize = 1 << 30;
    Vec::<u8>::new().try_reserve_exact((2 * threads * OF_ONE).min(MOST)).is_ok()
}

/// How many of so many threads the system lets live at once.
fn threads_to_be_had(wanted: usize) -> usize {
    let wait = Arc::new(RwLock::new(()));
    let hold = wait.write().unwrap_or_else(|poisoned| poisoned.into_inner());
    let start = || {
        let wait = wait.clone();
        std::thread::Builder::new().spawn(move || drop(wait.read())).ok()
    };
    let started: Vec<_> = (0..wanted).map_while(|_| start()).collect();
    let had = started.len();
    drop(hold);
    started.into_iter().for_each(|thread| drop(thread.join()));
    if had < wanted {
        // A thread that was joined counts for a moment yet.
        std::thread::sleep(Duration::from_millis(20));
    }
    had
}

/// The number of a GPU among those that there are, whose type has number 0 in both backends.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn wrapped<B: burn::tensor::backend::Backend>(gpu: usize) -> usize {
    // Nobody is asked for the first one.
    if gpu == 0 { 0 } else { gpu % B::device_count(0).max(1) }
}

/// Whether a GPU's element-wise operations are joined by Burn.
#[cfg(any(feature = "cuda", feature = "wgpu"))]
fn fuses() -> Result<bool, BackendError> {
    fuses_as_said(std::env::var_os(FUSION).map(|value| value.to_string_lossy().into_owned()))
}

/// [`fuses`] where [`FUSION`] has this value.
#[cfg(any(feature = "cuda", feature = "wgpu", test))]
fn fuses_as_said(value: Option<String>) -> Result<bool, BackendError> {
    let compiled_in = cfg!(feature = "fusion");
    match value.as_deref() {
        None => Ok(compiled_in),
        Some("off") => Ok(false),
        Some("on") if compiled_in => Ok(true),
        Some("on") => Err(BackendError::Fusion {
            value: "on".into(),
            hint: "rebuild with --features fusion, or leave the variable out",
        }),
        Some(value) => Err(BackendError::Fusion { value: value.into(), hint: "use on or off" }),
    }
}

/// The first backend that is compiled in, in the order of [`BackendKind::ALL`]; `Flex` where there is none.
impl Default for BackendKind {
    fn default() -> Self {
        Self::available().first().copied().unwrap_or(Self::Flex)
    }
}

impl fmt::Display for BackendKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl FromStr for BackendKind {
    type Err = BackendError;

    fn from_str(name: &str) -> Result<Self, BackendError> {
        let known = Self::ALL.into_iter().find(|kind| kind.name().eq_ignore_ascii_case(name));
        let kind = known.ok_or_else(|| BackendError::Unknown { name: name.into() })?;
        if !kind.is_available() {
            return Err(BackendError::NotCompiledIn { kind, available: Self::available() });
        }
        Ok(kind)
    }
}

/// Names in a row, for an error; says so where there are none.
fn names(kinds: &[BackendKind]) -> String {
    match kinds {
        [] => "none (this program was built without any)".into(),
        kinds => kinds.iter().map(|kind| kind.name()).collect::<Vec<_>>().join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_unknown_backend_is_refused_with_the_known_ones() {
        let error = "gpu".parse::<BackendKind>().unwrap_err();
        assert_eq!(error.to_string(), "there is no backend \"gpu\": use one of flex, ndarray, cuda, wgpu, tch");
    }

    #[test]
    fn a_missing_backend_is_refused_with_its_feature() {
        for kind in BackendKind::ALL {
            match kind.name().parse::<BackendKind>() {
                Ok(parsed) => assert!(parsed == kind && kind.is_available()),
                Err(error) => {
                    assert!(!kind.is_available());
                    let wanted = format!("rebuild with --features {}", kind.name());
                    assert!(error.to_string().contains(&wanted), "{error}");
                }
            }
        }
    }

    #[cfg(feature = "flex")]
    #[test]
    fn streams_predict_the_same_in_every_way_of_computing_them() {
        let config = sharnn_core::ShaRnnConfig { d_model: 8, d_ff: 16, ..sharnn_core::ShaRnnConfig::xs() };
        let model = config.with_mem_len(4).init_seeded::<burn::backend::Flex>(1, &Default::default());
        let [packed, whole] = [BackendKind::Flex, BackendKind::NdArray].map(|kind| {
            let mut streams = kind.streams(&model, 2);
            streams.read(&[b"longer than the memory", b"short"], &mut |_, _, _| {});
            (format!("{streams:?}"), [0, 1].map(|stream| streams.logits(stream).unwrap().to_vec()).concat())
        });
        assert!(packed.0.starts_with("DecodeStreams") && whole.0.starts_with("ModelStreams"), "{packed:?}");
        for (packed, whole) in packed.1.iter().zip(&whole.1) {
            assert!((packed - whole).abs() < 1e-5, "{packed} and {whole}");
        }
    }

    #[test]
    fn threads_that_cannot_be_meant_are_refused() {
        for (kind, threads, hint) in [
            (BackendKind::Flex, 0, "use 1 to 1024"),
            (BackendKind::NdArray, 99_999_999, "use 1 to 1024"),
            (BackendKind::Cuda, 2, "leave the number out"),
            (BackendKind::Tch, 2, "OMP_NUM_THREADS"),
        ] {
            let error = kind.set_threads(threads).unwrap_err().to_string();
            assert!(error.starts_with(&format!("{threads} threads")) && error.contains(hint), "{error}");
        }
    }

    #[test]
    fn fusion_is_as_it_was_compiled_unless_it_is_turned_off() {
        let said = |value: &str| fuses_as_said(Some(value.into()));
        assert_eq!(fuses_as_said(None), Ok(cfg!(feature = "fusion")));
        assert_eq!(said("off"), Ok(false));
        assert_eq!(said("on").is_ok(), cfg!(feature = "fusion"));
        assert_eq!(said("no").unwrap_err().to_string(), "SHARNN_FUSION=\"no\" cannot be used: use on or off");
    }

    #[test]
    fn a_job_runs_on_every_available_cpu_backend() {
        struct Sum;
        impl BackendJob for Sum {
            type Output = f32;
            fn run<B: AutodiffBackend>(self, device: B::Device) -> f32 {
                burn::tensor::Tensor::<B, 1>::from_floats([1.0, 2.0, 3.5], &device).sum().into_scalar().elem()
            }
        }
        use burn::tensor::ElementConversion;
        for kind in [BackendKind::Flex, BackendKind::NdArray] {
            match kind.dispatch(Sum) {
                Ok(sum) => assert_eq!(sum, 6.5),
                Err(error) => assert!(!kind.is_available(), "{error}"),
            }
        }
    }

    /// Neither a panic nor a job that is run without a device.
    #[cfg(any(feature = "cuda", feature = "wgpu"))]
    #[test]
    fn a_gpu_that_is_not_there_is_one_line() {
        struct Zero;
        impl BackendJob for Zero {
            type Output = ();
            fn run<B: AutodiffBackend>(self, device: B::Device) {
                burn::tensor::Tensor::<B, 1>::zeros([1], &device).into_data();
            }
        }
        for kind in [BackendKind::Cuda, BackendKind::Wgpu] {
            match kind.dispatch(Zero) {
                Ok(()) => assert!(kind.is_available()),
                Err(error) => {
                    let message = error.to_string();
                    assert!(
                        message.starts_with(&format!("backend {kind} ")) && message.lines().count() == 1,
                        "{message}"
                    );
                    assert_eq!(matches!(error, BackendError::Missing { .. }), kind.is_available(), "{message}");
                }
            }
        }
    }

    #[test]
    #[cfg(feature = "flex")]
    fn flex_is_the_default_where_it_is_compiled_in() {
        assert_eq!(BackendKind::default(), BackendKind::Flex);
    }
}
