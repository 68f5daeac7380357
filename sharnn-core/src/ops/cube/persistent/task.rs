//! A persistent kernel as CubeCL launches it: its source, and the representation that CubeCL's CUDA server wants of it.
//!
//! The server takes shared memory from the representation of a kernel that CubeCL has compiled, and hands parameters over as
//! CubeCL declares them. So a small CubeCL kernel with the same bindings, the same number of threads and the same
//! shared memory is compiled, the carrier; its representation is kept, and so are its types and its signature. What follows the signature
//! is ours.

use burn_cubecl::cubecl;
use burn_cubecl::cubecl::backtrace::BackTrace;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::prelude::*;
use burn_cubecl::cubecl::server::{Binding, KernelArguments};
use burn_cubecl::cubecl::{CompilationError, Compiler, CubeTask, InfoBuilder};
use half::bf16;

use super::plan::{Pass, Plan, THREADS};
use crate::ops::Precision;

pub(super) type CudaCompiler = <CudaRuntime as Runtime>::Compiler;

/// The kernels on the device.
const DEVICE_CODE: &str = include_str!("lstm.cu");

/// What they do when they have given up.
const POISON: &str = include_str!("poison.cu");

/// Bytes that the shared memory's first one is aligned to.
const ALIGNMENT: usize = 128;

/// One persistent kernel, for one set of `#define`s.
pub(super) struct PersistentTask(pub(super) Plan);

/// What tells a kernel from others, in this process and in a cache on the disk.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct Identity {
    plan: Plan,
    /// Of the device code.
    digest: u64,
}

/// FNV-1a: a cache of compiled kernels must notice that a source has changed.
const fn digest(text: &str, mut hash: u64) -> u64 {
    let bytes = text.as_bytes();
    let mut i = 0;
    while i < bytes.len() {
        hash = (hash ^ bytes[i] as u64).wrapping_mul(0x0100_0000_01b3);
        i += 1;
    }
    hash
}

const DIGEST: u64 = digest(POISON, digest(DEVICE_CODE, 0xcbf2_9ce4_8422_2325));

/// Uses what the kernel has: shared memory, and a tensor that it may write.
#[cube]
fn carrier(scratch: &mut Array<u32>, #[comptime] words: usize) {
    let mut shared = SharedMemory::<u32>::new_aligned(words, ALIGNMENT);
    shared[UNIT_POS as usize] = scratch[UNIT_POS as usize];
    sync_cube();
    scratch[UNIT_POS as usize] = shared[words - 1 - UNIT_POS as usize];
}

/// How a binding is used.
#[derive(Clone, Copy)]
enum Binds {
    Floats,
    Operands,
    FloatsOut,
    WordsOut,
}

impl Plan {
    /// The bindings, in order: those of the stepwise kernel, then scratch and the word that says that a launch has given up.
    fn bindings(&self) -> Vec<Binds> {
        use Binds::*;
        let of_pass: &[_] = match self.pass {
            Pass::Forward(_) => &[Floats, Operands, Floats, Floats, Floats, Floats, FloatsOut, FloatsOut, FloatsOut],
            Pass::Backward => &[Operands, Floats, Floats, Floats, Floats, FloatsOut, FloatsOut],
        };
        [of_pass, &[WordsOut, WordsOut]].concat()
    }

    fn definition(&self) -> KernelDefinition {
        const PLAIN: ArrayCompilationArg = ArrayCompilationArg { inplace: None };
        let mut builder = KernelBuilder::default();
        builder.runtime_properties(CudaRuntime::target_properties());
        let settings = KernelSettings::default().cube_dim(CubeDim::new_1d(THREADS as u32)).kernel_name(self.entry());
        settings.address_type.register(&mut builder.scope);
        let mut words = None;
        for binds in self.bindings() {
            match (binds, self.precision) {
                (Binds::Operands, Precision::Bf16) => {
                    <Array<bf16> as LaunchArg>::expand(&PLAIN, &mut builder);
                }
                (Binds::Operands, Precision::F32) | (Binds::Floats, _) => {
                    <Array<f32> as LaunchArg>::expand(&PLAIN, &mut builder);
                }
                (Binds::FloatsOut, _) => {
                    <Array<f32> as LaunchArg>::expand_output(&PLAIN, &mut builder);
                }
                (Binds::WordsOut, _) => {
                    words = Some(<Array<u32> as LaunchArg>::expand_output(&PLAIN, &mut builder));
                }
            }
        }
        // The number of steps.
        <u32 as LaunchArg>::expand(&(), &mut builder);
        let words = words.expect("scratch is among the bindings");
        carrier::expand(&mut builder.scope, words, self.shared.div_ceil(size_of::<u32>()));
        builder.build(settings)
    }

    /// What is called, after the signature.
    fn body(&self) -> String {
        let d_lanes = format!("{}ull", self.d * self.lanes);
        let call = match self.pass {
            Pass::Forward(_) => {
                "persistent_forward(buffer_0, reinterpret_cast<const Weight*>(buffer_1), buffer_2, buffer_3, buffer_4, \
                 buffer_5, buffer_6, buffer_7, buffer_8, buffer_9, dynamic_shared_mem, seq_len);"
            }
            Pass::Backward => {
                "persistent_backward(reinterpret_cast<const Weight*>(buffer_0), buffer_1, buffer_2, buffer_3, buffer_4, \
                 buffer_5, buffer_6, buffer_7, dynamic_shared_mem, seq_len);"
            }
        };
        let (scratch, raised, poison) = match self.pass {
            Pass::Forward(_) => ("buffer_9", "buffer_10", format!("poison(buffer_6, (seq_len + 1ull) * {d_lanes});")),
            Pass::Backward => (
                "buffer_7",
                "buffer_8",
                format!("poison(buffer_5, seq_len * 4ull * {d_lanes}); poison(buffer_6, {d_lanes});"),
            ),
        };
        format!(
            " {{
    extern __shared__ __align__({ALIGNMENT}) unsigned char dynamic_shared_mem[];
    const unsigned seq_len = info.scalars_uint32[0];
    const auto pass = [&] {{ {call} }};
    const auto spoil = [&] {{ {poison} }};
    run_or_spoil({scratch}, {raised}, pass, spoil);
}}
"
        )
    }

    /// Puts our code in the place of what the carrier does.
    fn source(&self, carrier: &str) -> Result<String, CompilationError> {
        let signature = carrier.find("extern \"C\" __global__").zip(carrier.find("\n) {\n"));
        let (Some((start, end)), true) = (signature, carrier.contains("__grid_constant__ info_st info\n)")) else {
            let reason = format!("CubeCL declares its kernels in another way than expected:\n{carrier}");
            return Err(CompilationError::Generic { reason, backtrace: BackTrace::capture() });
        };
        let defines: String =
            self.defines().into_iter().map(|(name, value)| format!("#define {name} {value}\n")).collect();
        let (types, signature) = (&carrier[..start], &carrier[start..end + "\n)".len()]);
        // One block has the multiprocessor to itself: its threads may have as many registers as there are, so nothing is spilled.
        let (bounds, alone) = (format!("__launch_bounds__({THREADS})"), format!("__launch_bounds__({THREADS}, 1)"));
        let signature = signature.replace(&bounds, &alone);
        Ok([types, &defines, DEVICE_CODE, "\n", POISON, "\n", &signature, &self.body()].concat())
    }

    /// The parameters of a launch.
    pub(super) fn arguments(&self, tensors: Vec<Binding>, seq_len: usize) -> KernelArguments {
        let address = AddressType::U32;
        let mut info = InfoBuilder::default();
        info.scalars.push(seq_len as u32);
        for (binds, tensor) in self.bindings().into_iter().zip(&tensors) {
            let size = match (binds, self.precision) {
                (Binds::Operands, Precision::Bf16) => size_of::<bf16>(),
                _ => size_of::<f32>(),
            };
            // Our code does not read them, but they are where CubeCL's signature has them.
            let len = tensor.size_in_used() / size as u64;
            info.metadata.register_array(len, len, address);
        }
        KernelArguments::new().with_buffers(tensors).with_info(info.finish(address))
    }
}

impl KernelMetadata for PersistentTask {
    fn id(&self) -> KernelId {
        let identity = Identity { plan: self.0, digest: DIGEST };
        KernelId::new::<Self>().info(identity).cube_dim(CubeDim::new_1d(THREADS as u32))
    }

    fn address_type(&self) -> StorageType {
        AddressType::U32.unsigned_type()
    }
}

impl CubeTask<CudaCompiler> for PersistentTask {
    fn compile(
        &self,
        compiler: &mut CudaCompiler,
        options: &<CudaCompiler as Compiler>::CompilationOptions,
        mode: ExecutionMode,
        address_type: StorageType,
    ) -> Result<CompiledKernel<CudaCompiler>, CompilationError> {
        let carrier = compiler.compile(self.0.definition(), options, mode, address_type)?;
        Ok(CompiledKernel {
            entrypoint_name: self.0.entry().into(),
            debug_name: Some(std::any::type_name::<Self>()),
            source: self.0.source(&carrier.to_string())?,
            repr: Some(carrier),
            cube_dim: CubeDim::new_1d(THREADS as u32),
            debug_info: None,
        })
    }
}

/// The kernel as it is compiled on a GPU.
#[cfg(test)]
pub(super) fn compiled(plan: Plan) -> CompiledKernel<CudaCompiler> {
    let mut options = <CudaCompiler as Compiler>::CompilationOptions::default();
    // As on every GPU since capability 7.0: what is not a tensor is passed by value.
    options.supports_features.grid_constants = true;
    let task = PersistentTask(plan);
    let address = task.address_type();
    let compiled = task.compile(&mut CudaCompiler::default(), &options, ExecutionMode::Unchecked, address);
    compiled.unwrap_or_else(|error| panic!("{plan:?}: {error}"))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use burn_cubecl::cubecl::server::Handle;
    use burn_cubecl::cubecl::stream_id::StreamId;

    use super::super::plan::tests::H100;
    use super::*;
    use crate::ops::cube::lstm::Keeps;

    const PASSES: [Pass; 4] = [
        Pass::Forward(Keeps { gates: true, cells: true }),
        Pass::Forward(Keeps { gates: false, cells: true }),
        Pass::Forward(Keeps { gates: false, cells: false }),
        Pass::Backward,
    ];

    fn plans() -> impl Iterator<Item = Plan> {
        let sizes = [[16, 1024], [1, 256], [3, 100], [64, 512]];
        let precisions = [Precision::F32, Precision::Bf16];
        let kinds = PASSES.into_iter().flat_map(move |pass| precisions.map(|precision| (pass, precision)));
        kinds.flat_map(move |(pass, precision)| sizes.map(|size| Plan::new(&H100, pass, precision, size).unwrap()))
    }

    /// The types and names of a signature's parameters.
    fn parameters(source: &str) -> Vec<String> {
        let signature = &source[source.find("extern \"C\" __global__").unwrap()..];
        let from = signature.find("(\n").unwrap() + 2;
        let to = signature.find("\n) {").unwrap();
        signature[from..to].split(',').map(|parameter| parameter.trim().replace("__restrict__ ", "")).collect()
    }

    #[test]
    fn a_task_has_a_representation_with_its_shared_memory() {
        for plan in plans() {
            let kernel = compiled(plan);
            let representation = kernel.repr.as_ref().expect("the CUDA server unwraps it");
            let bytes = representation.shared_memory_size();
            assert!((plan.shared..plan.shared + 4).contains(&bytes), "{plan:?}: {bytes}");
            assert_eq!(representation.cube_dim, CubeDim::new_1d(256));
            assert_eq!((kernel.cube_dim, &kernel.entrypoint_name[..]), (CubeDim::new_1d(256), plan.entry()));
            let entry = format!("extern \"C\" __global__ void __launch_bounds__(256, 1)\n{} (", plan.entry());
            let bounds = format!("extern \"C\" __global__ void __launch_bounds__(256, 1){} (", plan.entry());
            assert!(kernel.source.contains(&entry) || kernel.source.contains(&bounds), "{}", kernel.source);
        }
    }

    #[test]
    fn parameters_are_those_that_the_kernels_take() {
        for plan in plans() {
            let operand = match plan.precision {
                Precision::F32 => "const float*",
                Precision::Bf16 => "const __nv_bfloat16*",
            };
            let (input, output, words) = ("const float*", "float*", "uint32*");
            let types = match plan.pass {
                Pass::Forward(_) => {
                    vec![input, operand, input, input, input, input, output, output, output, words, words]
                }
                Pass::Backward => vec![operand, input, input, input, input, output, output, words, words],
            };
            let mut want: Vec<_> = types.iter().enumerate().map(|(i, kind)| format!("{kind} buffer_{i}")).collect();
            want.push("const __grid_constant__ info_st info".into());
            assert_eq!(parameters(&compiled(plan).source), want);
        }
    }

    #[test]
    fn the_number_of_steps_is_where_the_signature_has_it() {
        for plan in plans() {
            let n = plan.bindings().len();
            let source = compiled(plan).source;
            let fields: String = source.split_whitespace().collect::<Vec<_>>().join(" ");
            let info = format!("struct info_st {{ uint32 scalars_uint32[2];uint32 static_meta[{}]; }};", 2 * n);
            assert!(fields.contains(&info), "{source}");
            let tensors = (0..n).map(|_| Handle::new(StreamId::current(), 4 * 64).binding()).collect();
            let arguments = plan.arguments(tensors, 1024);
            assert_eq!((arguments.buffers.len(), arguments.info.data.len()), (n, 1 + n));
            assert_eq!(arguments.info.data[0], 1024);
            assert_eq!(arguments.info.dynamic_metadata_offset, arguments.info.data.len());
        }
    }

    #[test]
    fn every_set_of_defines_is_a_kernel_of_its_own_and_the_same_one_again() {
        let mut ids = HashSet::new();
        let (mut hashes, mut n) = (HashSet::new(), 0);
        for plan in plans() {
            let id = PersistentTask(plan).id();
            assert!(id == PersistentTask(plan).id() && id.stable_hash() == PersistentTask(plan).id().stable_hash());
            hashes.insert(id.stable_hash());
            ids.insert(id);
            n += 1;
        }
        let fewer_blocks = super::super::plan::Device { processors: 64, ..H100 };
        let plan = Plan::new(&fewer_blocks, Pass::Backward, Precision::Bf16, [16, 1024]).unwrap();
        ids.insert(PersistentTask(plan).id());
        assert_eq!((ids.len(), hashes.len()), (n + 1, n));
        assert_ne!(digest("a", 1), digest("b", 1));
    }

    #[test]
    fn sources_have_the_defines_before_the_device_code() {
        for plan in plans() {
            let source = compiled(plan).source;
            let code = source.find(DEVICE_CODE).expect("the device code as it is");
            for (name, value) in plan.defines() {
                let define = source.find(&format!("#define {name} {value}\n")).unwrap_or_else(|| panic!("{name}"));
                assert!(define < code, "{name}");
            }
            assert!(code < source.find(plan.entry()).unwrap());
        }
    }
}
