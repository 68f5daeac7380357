//! What a GPU's backend can lack on a machine.

/// Something that a backend needs and does not find. Its message says what to do.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MissingPiece {
    /// NVIDIA's driver.
    #[error("NVIDIA's driver is missing (no libcuda): install it, or name its directory in LD_LIBRARY_PATH")]
    CudaDriver,
    /// A device that the driver may use.
    #[error("NVIDIA's driver offers no device ({reason}): see what nvidia-smi says, and CUDA_VISIBLE_DEVICES")]
    CudaDevice {
        /// What the driver says.
        reason: String,
    },
    /// The compiler of the kernels.
    #[error("NVRTC is missing (no libnvrtc): install the CUDA toolkit, and name its directory in CUDA_PATH")]
    Nvrtc,
    /// The headers that every kernel includes.
    #[error("the CUDA headers are missing ({place}): install the CUDA toolkit, and name its directory in CUDA_PATH")]
    CudaHeaders {
        /// Where they were looked for.
        place: String,
    },
    /// A driver that can load what the compiler writes.
    #[error(
        "NVRTC is of CUDA {nvrtc}, the driver of CUDA {driver}, which can't load what a later one compiles: \
         update the driver, or name the directory of an NVRTC of CUDA {driver} in LD_LIBRARY_PATH"
    )]
    CudaVersion {
        /// The compiler's version.
        nvrtc: String,
        /// The latest version that the driver knows.
        driver: String,
    },
    /// A compiler that works.
    #[error("NVRTC {nvrtc} can't compile a kernel for {architecture}: {message}")]
    CudaCompiler {
        /// The compiler's version.
        nvrtc: String,
        /// The device's architecture, as the compiler is told it.
        architecture: String,
        /// What the compiler says.
        message: String,
    },
    /// A device of Vulkan, Metal or DirectX 12.
    #[error(
        "no GPU is found by {api}: install the GPU's driver for it (a software device would do, such as Mesa's lavapipe)"
    )]
    Adapter {
        /// The interface that was asked.
        api: String,
    },
}
