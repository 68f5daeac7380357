//! Whether all that Burn's CUDA backend needs is on this machine, asked before its first use: it panics, in a thread of its
//! own, over whatever it misses.

use std::collections::BTreeMap;
use std::ffi::CString;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use burn_cubecl::cubecl::cuda::install;
use cudarc::driver::result::{self as driver, DriverError, device};
use cudarc::driver::sys::{self as driver_sys, CUdevice_attribute};
use cudarc::nvrtc::result as compiler;
use cudarc::nvrtc::sys as compiler_sys;

use super::MissingPiece;

/// A version of CUDA: 13.0 is `[13, 0]`.
type Version = [i32; 2];

/// The header that every kernel includes first.
const HEADER: &str = "cuda_runtime.h";

/// What kernels include, and nothing to do.
const KERNEL: &str = "#include <cuda_runtime.h>\n#include <cuda_bf16.h>\n#include <cuda_fp16.h>\n#include <mma.h>\n\
    extern \"C\" __global__ void nothing() {}\n";

/// What is asked of a machine.
trait Machine {
    /// Whether the driver's library can be opened. Nothing below is asked where it can't be.
    fn has_driver(&self) -> bool;
    /// How many devices there are, or why the driver does not start.
    fn devices(&self) -> Result<i32, String>;
    /// The latest CUDA that the driver knows.
    fn driver_version(&self) -> Version;
    /// The compute capability of a device: 9.0 is `[9, 0]`.
    fn capability(&self, gpu: usize) -> Result<Version, String>;
    /// The toolkit's directory, as CubeCL takes it.
    fn toolkit(&self) -> Option<PathBuf>;
    /// The compiler's version, where its library can be opened. Nothing is compiled where it can't be.
    fn compiler_version(&self, toolkit: Option<&Path>) -> Option<Version>;
    /// Compiles; an error is what the compiler says.
    fn compile(&self, source: &str, options: &[String]) -> Result<(), String>;
}

/// Whether device number `gpu` can be computed on, or the first one where there is none of that number.
///
/// # Errors
/// What is missing.
pub(super) fn check(gpu: usize) -> Result<(), MissingPiece> {
    // To compile takes some tenths of a second, and a program may ask again with each of its jobs.
    static CHECKED: Mutex<BTreeMap<usize, Result<(), MissingPiece>>> = Mutex::new(BTreeMap::new());
    let mut checked = CHECKED.lock().unwrap_or_else(PoisonError::into_inner);
    checked.entry(gpu).or_insert_with(|| check_on(&ThisMachine, gpu)).clone()
}

fn check_on(machine: &impl Machine, gpu: usize) -> Result<(), MissingPiece> {
    if !machine.has_driver() {
        return Err(MissingPiece::CudaDriver);
    }
    let no_device = |reason| MissingPiece::CudaDevice { reason };
    let devices = machine.devices().map_err(no_device)?;
    if devices < 1 {
        return Err(no_device("it counts 0".into()));
    }
    let toolkit = machine.toolkit();
    let nvrtc = machine.compiler_version(toolkit.as_deref()).ok_or(MissingPiece::Nvrtc)?;
    let include = headers(toolkit.as_deref())?;
    let of_driver = machine.driver_version();
    if nvrtc > of_driver {
        return Err(MissingPiece::CudaVersion { nvrtc: dotted(nvrtc), driver: dotted(of_driver) });
    }
    let capability = machine.capability(gpu % devices as usize).map_err(no_device)?;
    let options = options(capability, &include);
    machine.compile(KERNEL, &options).map_err(|message| MissingPiece::CudaCompiler {
        nvrtc: dotted(nvrtc),
        architecture: dotted(capability),
        message,
    })
}

/// The directory of the toolkit's headers.
fn headers(toolkit: Option<&Path>) -> Result<PathBuf, MissingPiece> {
    let Some(toolkit) = toolkit else {
        let place = "CUDA_PATH is not set, and there is no /usr/local/cuda";
        return Err(MissingPiece::CudaHeaders { place: place.into() });
    };
    let include = toolkit.join("include");
    if include.join(HEADER).is_file() {
        return Ok(include);
    }
    Err(MissingPiece::CudaHeaders { place: format!("{} is not there", include.join(HEADER).display()) })
}

/// The options that CubeCL gives NVRTC.
fn options([major, minor]: Version, include: &Path) -> Vec<String> {
    let specific = if major >= 9 { "a" } else { "" };
    let mut options = vec![
        format!("--gpu-architecture=sm_{major}{minor}{specific}"),
        format!("--include-path={}", include.display()),
        "-lineinfo".into(),
    ];
    let cccl = include.join("cccl");
    if cccl.exists() {
        options.push(format!("--include-path={}", cccl.display()));
    }
    options
}

fn dotted([major, minor]: Version) -> String {
    format!("{major}.{minor}")
}

/// The first error in what a compiler says.
fn first_error(log: &str) -> String {
    let line = log.lines().find(|line| line.contains("error")).or(log.lines().next());
    line.unwrap_or("it does not say why").trim().into()
}

struct ThisMachine;

impl Machine for ThisMachine {
    fn has_driver(&self) -> bool {
        // SAFETY: opening the driver's library runs its initialisers, as Burn's backend does next.
        unsafe { driver_sys::is_culib_present() }
    }

    fn devices(&self) -> Result<i32, String> {
        driver::init().and_then(|()| device::get_count()).map_err(said)
    }

    fn driver_version(&self) -> Version {
        let mut version = 0;
        // SAFETY: the library is there, and writes one number.
        let failed = unsafe { driver_sys::cuDriverGetVersion(&mut version) }.result().is_err();
        // One that does not tell is not held against it.
        if failed { [i32::MAX, 0] } else { [version / 1000, version % 1000 / 10] }
    }

    fn capability(&self, gpu: usize) -> Result<Version, String> {
        let device = device::get(gpu as i32).map_err(said)?;
        // SAFETY: the device is one that the driver gave.
        let attribute = |which| unsafe { device::get_attribute(device, which) }.map_err(said);
        Ok([
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(CUdevice_attribute::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ])
    }

    fn toolkit(&self) -> Option<PathBuf> {
        install::cuda_path()
    }

    fn compiler_version(&self, toolkit: Option<&Path>) -> Option<Version> {
        // SAFETY: opening the compiler's library runs its initialisers, as Burn's backend does next.
        let present = || unsafe { compiler_sys::is_culib_present() };
        if !present() {
            open_compiler_of(toolkit?)?;
        }
        let [mut major, mut minor] = [0; 2];
        // SAFETY: the library is there, and writes two numbers.
        let version = present().then(|| unsafe { compiler_sys::nvrtcVersion(&mut major, &mut minor) });
        version.and_then(|version| version.result().ok()).map(|()| [major, minor])
    }

    fn compile(&self, source: &str, options: &[String]) -> Result<(), String> {
        let source = CString::new(source).expect("a source without zeros");
        let program = compiler::create_program(&source, None).map_err(|error| error.to_string())?;
        // SAFETY: the program was made above, and is destroyed below, once.
        let compiled = unsafe { compiler::compile_program(program, options) }.map_err(|error| {
            // SAFETY: as above.
            let log = unsafe { compiler::get_program_log(program) }.unwrap_or_default();
            let log: Vec<u8> = log.into_iter().map(|c| c as u8).take_while(|&c| c != 0).collect();
            if log.is_empty() { error.to_string() } else { first_error(&String::from_utf8_lossy(&log)) }
        });
        // SAFETY: as above. What could be freed no more is left.
        let _ = unsafe { compiler::destroy_program(program) };
        compiled
    }
}

/// What the driver says.
fn said(error: DriverError) -> String {
    match error.error_string() {
        Ok(text) => text.to_string_lossy().into_owned(),
        Err(_) => format!("{:?}", error.0),
    }
}

/// Opens the toolkit's own compiler, for good, where it is in no directory that libraries are looked for in: the system then
/// finds it by its name among those that are open. So it does its built-in functions, which NVRTC 13 looks for in the same way.
fn open_compiler_of(toolkit: &Path) -> Option<()> {
    let directory = ["lib64", "lib"].map(|name| toolkit.join(name)).into_iter().find(|path| path.is_dir())?;
    let names: Vec<_> = std::fs::read_dir(directory).ok()?.filter_map(|entry| Some(entry.ok()?.path())).collect();
    for stem in ["libnvrtc-builtins.so", "libnvrtc.so"] {
        let is_wanted =
            |path: &&PathBuf| path.file_name().is_some_and(|name| is_library(&name.to_string_lossy(), stem));
        let path = names.iter().filter(is_wanted).max()?;
        // SAFETY: opening the compiler's libraries runs their initialisers, as Burn's backend does next.
        std::mem::forget(unsafe { libloading::Library::new(path) }.ok()?);
    }
    Some(())
}

/// Whether this is the name of a library, with a version or without.
fn is_library(name: &str, stem: &str) -> bool {
    name.strip_prefix(stem).is_some_and(|rest| rest.chars().all(|c| c == '.' || c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A machine with all that is needed, in a directory; a test takes a piece away.
    struct Fake {
        driver: bool,
        devices: Result<i32, String>,
        toolkit: Option<PathBuf>,
        compiler: Option<Version>,
        compiles: Result<(), String>,
    }

    impl Fake {
        fn new(toolkit: &Path) -> Self {
            std::fs::create_dir_all(toolkit.join("include")).unwrap();
            std::fs::write(toolkit.join("include").join(HEADER), "").unwrap();
            Self {
                driver: true,
                devices: Ok(2),
                toolkit: Some(toolkit.into()),
                compiler: Some([13, 0]),
                compiles: Ok(()),
            }
        }
    }

    impl Machine for Fake {
        fn has_driver(&self) -> bool {
            self.driver
        }

        fn devices(&self) -> Result<i32, String> {
            self.devices.clone()
        }

        fn driver_version(&self) -> Version {
            [13, 0]
        }

        fn capability(&self, gpu: usize) -> Result<Version, String> {
            if gpu < 2 { Ok([[9, 0], [8, 6]][gpu]) } else { Err("invalid device ordinal".into()) }
        }

        fn toolkit(&self) -> Option<PathBuf> {
            self.toolkit.clone()
        }

        fn compiler_version(&self, _: Option<&Path>) -> Option<Version> {
            self.compiler
        }

        fn compile(&self, _: &str, options: &[String]) -> Result<(), String> {
            self.compiles.clone().map_err(|message| format!("{message} with {}", options.join(" ")))
        }
    }

    /// What is said when a piece is taken away.
    fn without(take: impl FnOnce(&mut Fake)) -> String {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = Fake::new(directory.path());
        assert_eq!(check_on(&machine, 0), Ok(()));
        take(&mut machine);
        let message = check_on(&machine, 0).unwrap_err().to_string();
        assert_eq!(message.lines().count(), 1, "{message}");
        message
    }

    #[test]
    fn each_missing_piece_is_named_with_what_to_do() {
        let message = without(|machine| machine.driver = false);
        assert!(message.contains("no libcuda") && message.contains("LD_LIBRARY_PATH"), "{message}");
        let message = without(|machine| machine.devices = Err("no CUDA-capable device is detected".into()));
        assert!(
            message.contains("(no CUDA-capable device is detected)") && message.contains("nvidia-smi"),
            "{message}"
        );
        let message = without(|machine| machine.devices = Ok(0));
        assert!(message.contains("offers no device"), "{message}");
        let message = without(|machine| machine.compiler = None);
        assert!(message.contains("no libnvrtc") && message.contains("CUDA_PATH"), "{message}");
        let message = without(|machine| machine.toolkit = None);
        assert!(message.contains("headers") && message.contains("CUDA_PATH is not set"), "{message}");
        let message = without(|machine| std::fs::remove_dir_all(machine.toolkit.as_ref().unwrap()).unwrap());
        assert!(message.contains(HEADER) && message.contains("is not there"), "{message}");
        let message = without(|machine| machine.compiler = Some([13, 1]));
        assert!(message.contains("NVRTC is of CUDA 13.1, the driver of CUDA 13.0"), "{message}");
        let message = without(|machine| machine.compiles = Err("error: no builtins".into()));
        assert!(message.contains("for 9.0: error: no builtins"), "{message}");
    }

    #[test]
    fn a_kernel_is_compiled_for_the_device_that_is_asked_for() {
        let directory = tempfile::tempdir().unwrap();
        let mut machine = Fake::new(directory.path());
        std::fs::create_dir(directory.path().join("include/cccl")).unwrap();
        machine.compiles = Err("error".into());
        for (gpu, wanted) in [(0, "=sm_90a "), (1, "=sm_86 "), (2, "=sm_90a ")] {
            let message = check_on(&machine, gpu).unwrap_err().to_string();
            assert!(message.contains(wanted) && message.ends_with("include/cccl"), "{message}");
        }
    }

    #[test]
    fn the_first_error_of_a_log_is_what_is_said() {
        assert_eq!(first_error("warning: old\n  x.cu(3): error: bad\nerror: worse\n"), "x.cu(3): error: bad");
        assert_eq!(first_error(""), "it does not say why");
    }

    #[test]
    fn a_library_is_known_by_its_name() {
        for (name, stem, is) in [
            ("libnvrtc.so", "libnvrtc.so", true),
            ("libnvrtc.so.13", "libnvrtc.so", true),
            ("libnvrtc.so.13.0.88", "libnvrtc.so", true),
            ("libnvrtc-builtins.so.13.0", "libnvrtc-builtins.so", true),
            ("libnvrtc-builtins.so.13.0", "libnvrtc.so", false),
            ("libnvrtc-builtins.alt.so.13.0", "libnvrtc-builtins.so", false),
            ("libnvrtc_static.a", "libnvrtc.so", false),
        ] {
            assert_eq!(is_library(name, stem), is, "{name}");
        }
    }

    #[test]
    fn what_is_no_library_is_not_opened() {
        let toolkit = tempfile::tempdir().unwrap();
        assert_eq!(open_compiler_of(toolkit.path()), None);
        std::fs::create_dir(toolkit.path().join("lib")).unwrap();
        assert_eq!(open_compiler_of(toolkit.path()), None);
        for name in ["libnvrtc-builtins.so.13.0", "libnvrtc.so.13"] {
            std::fs::write(toolkit.path().join("lib").join(name), "text").unwrap();
        }
        assert_eq!(open_compiler_of(toolkit.path()), None);
    }

    /// Neither a panic nor a thread that dies, whatever this machine has.
    #[test]
    fn this_machine_has_what_is_needed_or_says_what_it_lacks() {
        if let Err(missing) = check(0) {
            assert_eq!(missing.to_string().lines().count(), 1, "{missing}");
        }
    }
}
