//! The CUDA source of every kernel, made without a device, so that a compiler can be asked about it
//! (`scripts/cuda-kernels.py`).

use burn_cubecl::cubecl::Compiler;
use burn_cubecl::cubecl::cuda::CudaRuntime;
use burn_cubecl::cubecl::prelude::*;
use half::bf16;

use super::dropout::{self, Mask, MaskCompilationArg};
use super::lamb::{self, OptionsCompilationArg};
use super::lstm::{self, Keeps, SizesCompilationArg};
use super::{UNITS, attention, boom, decoder_loss, layer_norm, persistent};

type Builder<'a> = &'a mut KernelBuilder;

const PLAIN: ArrayCompilationArg = ArrayCompilationArg { inplace: None };

fn read<T: CubePrimitive>(builder: Builder) -> NativeExpand<Array<T>> {
    <Array<T> as LaunchArg>::expand(&PLAIN, builder)
}

fn write(builder: Builder) -> NativeExpand<Array<f32>> {
    write_as(builder)
}

fn write_as<T: CubePrimitive>(builder: Builder) -> NativeExpand<Array<T>> {
    <Array<T> as LaunchArg>::expand_output(&PLAIN, builder)
}

/// As many tensors as a kernel is given at most.
fn tensors<T: LaunchArg>(one: T::CompilationArg) -> <Sequence<T> as LaunchArg>::CompilationArg {
    std::iter::repeat_n(one, lamb::MAX_TENSORS).collect()
}

fn read_all(builder: Builder) -> <Sequence<Array<f32>> as CubeType>::ExpandType {
    Sequence::expand(&tensors::<Array<f32>>(PLAIN), builder)
}

fn write_all(builder: Builder) -> <Sequence<Array<f32>> as CubeType>::ExpandType {
    Sequence::expand_output(&tensors::<Array<f32>>(PLAIN), builder)
}

fn numbers(builder: Builder) -> <Sequence<u32> as CubeType>::ExpandType {
    Sequence::expand(&tensors::<u32>(()), builder)
}

fn number<T: LaunchArg<CompilationArg = ()>>(builder: Builder) -> T::ExpandType {
    T::expand(&(), builder)
}

fn mask(builder: Builder) -> <Mask as CubeType>::ExpandType {
    let given = MaskCompilationArg { key0: (), key1: (), step: (), first_lane: (), threshold: (), scale: () };
    Mask::expand(&given, builder)
}

/// The source of a kernel that `body` expands.
fn source(name: &str, body: impl FnOnce(Builder)) -> String {
    let mut builder = KernelBuilder::default();
    builder.runtime_properties(CudaRuntime::target_properties());
    let settings = KernelSettings::default().cube_dim(CubeDim::new_1d(UNITS)).kernel_name(name);
    settings.address_type.register(&mut builder.scope);
    let address = settings.address_type.unsigned_type();
    body(&mut builder);
    // As on every GPU since capability 7.0: what is not a tensor is passed by value.
    let mut options = <<CudaRuntime as Runtime>::Compiler as Compiler>::CompilationOptions::default();
    options.supports_features.grid_constants = true;
    let kernel = <CudaRuntime as Runtime>::Compiler::default().compile(
        builder.build(settings),
        &options,
        ExecutionMode::Checked,
        address,
    );
    let kernel = kernel.unwrap_or_else(|error| panic!("{name}: {error:?}"));
    // All of a kernel's shared memory is given to it at its launch: its source does not say how much that is.
    format!("// dynamic shared memory: {}\n{kernel}", kernel.shared_memory_size())
}

/// One kernel: its name, what it is called with, in this order, and what is known when it is compiled.
macro_rules! kernel {
    ($name:expr, $module:ident::$kernel:ident $(<$($type:ty),*>)?, [$($arg:ident: $given:expr),* $(,)?], [$($known:expr),*]) => {{
        let name = $name.to_string();
        let source = source(&name, |builder| {
            $(let $arg = $given(builder);)*
            $module::$kernel::expand$(::<$($type),*>)?(&mut builder.scope, $($arg,)* $($known,)*);
        });
        (name, source)
    }};
}

fn sizes(builder: Builder) -> <lstm::Sizes as CubeType>::ExpandType {
    lstm::Sizes::expand(&SizesCompilationArg { seq_len: (), lanes: (), d: () }, builder)
}

fn options(builder: Builder) -> <lamb::Options as CubeType>::ExpandType {
    let given = OptionsCompilationArg {
        lr: (),
        beta1: (),
        beta2: (),
        one_minus_beta1: (),
        one_minus_beta2: (),
        eps: (),
        weight_decay: (),
        max_weight_norm: (),
        min_trust: (),
        max_trust: (),
    };
    lamb::Options::expand(&given, builder)
}

/// A step of the LSTM in the middle of a segment, and the first and last ones where they differ.
fn lstm_kernels<E: Float>(operands: &str, mma: bool) -> Vec<(String, String)> {
    let keeps = Keeps { gates: true, cells: true };
    let mut kernels = Vec::new();
    for (which, first, last) in [("first", true, false), ("middle", false, false), ("last", false, true)] {
        if !last {
            kernels.push(kernel!(
                format!("lstm_forward_{which}_{operands}"),
                lstm::forward_kernel<E>,
                [
                    projected: read::<f32>, weight: read::<E>, bias_ih: read::<f32>, bias_hh: read::<f32>, h0: read::<f32>,
                    c0: read::<f32>, output: write, gates: write, cells: write, sizes: sizes, step: number::<u32>,
                ],
                [first, keeps, mma]
            ));
        }
        kernels.push(kernel!(
            format!("lstm_backward_{which}_{operands}"),
            lstm::backward_kernel<E>,
            [
                weight: read::<E>, gates: read::<f32>, cells: read::<f32>, c0: read::<f32>, grad: read::<f32>, dgates: write,
                dcells: write, sizes: sizes, step: number::<u32>,
            ],
            [first, last, mma]
        ));
    }
    kernels
}

fn attention_kernels<E: Float>(operands: &str) -> Vec<(String, String)> {
    vec![
        kernel!(
            format!("attention_softmax_{operands}"),
            attention::softmax_kernel<E>,
            [
                scores: read::<f32>, weights: write_as::<E>, dropped: write_as::<E>, mask: mask, rows: number::<u32>,
                rows_of_lane: number::<u32>, seq_len: number::<u32>, key_len: number::<u32>,
            ],
            [true]
        ),
        kernel!(
            format!("attention_backward_{operands}"),
            attention::backward_kernel<E>,
            [
                grads: read::<f32>, weights: read::<E>, scores: write_as::<E>, dropped: write_as::<E>, mask: mask,
                rows: number::<u32>, rows_of_lane: number::<u32>, key_len: number::<u32>,
            ],
            [true]
        ),
    ]
}

fn kernels() -> Vec<(String, String)> {
    let mut kernels = vec![
        kernel!(
            "dropout",
            dropout::apply_kernel,
            [x: read::<f32>, out: write, mask: mask, inner: number::<u32>, columns: number::<u32>, first: number::<u32>],
            [false]
        ),
        kernel!(
            "layer_norm_forward",
            layer_norm::forward_kernel,
            [
                x: read::<f32>, weight: read::<f32>, bias: read::<f32>, added: read::<f32>, out: write, mask: mask,
                rows: number::<u32>, lanes: number::<u32>, eps: number::<f32>,
            ],
            [true, true]
        ),
        kernel!(
            "layer_norm_backward",
            layer_norm::backward_kernel,
            [
                x: read::<f32>, weight: read::<f32>, grad: read::<f32>, dx: write, scaled: write, dropped: write,
                mask: mask, rows: number::<u32>, lanes: number::<u32>, eps: number::<f32>,
            ],
            [true]
        ),
        kernel!(
            "boom_forward",
            boom::forward_kernel,
            [
                z: read::<f32>, bias: read::<f32>, out: write, mask: mask, d: number::<u32>, lanes: number::<u32>,
                slope: number::<f32>,
            ],
            [true]
        ),
        kernel!(
            "boom_backward",
            boom::backward_kernel,
            [
                z: read::<f32>, bias: read::<f32>, grad: read::<f32>, dz: write, mask: mask, d: number::<u32>,
                lanes: number::<u32>, slope: number::<f32>,
            ],
            [true]
        ),
        kernel!(
            "decoder_loss_forward",
            decoder_loss::forward_kernel<i32>,
            [logits: read::<f32>, bias: read::<f32>, targets: read::<i32>, log_probs: write, losses: write],
            []
        ),
        kernel!(
            "decoder_loss_backward",
            decoder_loss::backward_kernel<i32>,
            [
                log_probs: read::<f32>, targets: read::<i32>, grad: read::<f32>, out: write, n: number::<u32>,
                per_row: number::<f32>,
            ],
            []
        ),
        kernel!(
            "lamb_moments",
            lamb::moments_kernel,
            [
                params: read_all, grads: read_all, firsts: write_all, seconds: write_all, scale: read::<f32>,
                counts: read::<f32>, sums: write, ends: numbers, options: options,
            ],
            []
        ),
        kernel!(
            "lamb_ratio",
            lamb::ratio_kernel,
            [
                sums: read::<f32>, weight_norm: write, adam_norm: write, trust_ratio: write, ends: numbers,
                first_param: number::<u32>, options: options,
            ],
            []
        ),
        kernel!(
            "lamb_apply",
            lamb::apply_kernel,
            [
                params: write_all, firsts: read_all, seconds: read_all, trust_ratio: read::<f32>, counts: read::<f32>,
                ends: numbers, first_param: number::<u32>, options: options,
            ],
            []
        ),
        kernel!(
            "squared_norm",
            lamb::squares_kernel,
            [xs: read_all, sums: write, ends: numbers, first_sum: number::<u32>],
            []
        ),
        kernel!("squared_norm_sum", lamb::add_up_kernel, [x: read::<f32>, sum: write], []),
    ];
    kernels.extend(attention_kernels::<f32>("f32"));
    kernels.extend(attention_kernels::<bf16>("bf16"));
    kernels.extend(lstm_kernels::<f32>("f32", false));
    kernels.extend(lstm_kernels::<bf16>("bf16", true));
    kernels.extend(persistent::sources());
    kernels
}

/// Written to the directory that `SHARNN_CUDA_SOURCES` names, if it does.
#[test]
fn every_kernel_has_a_cuda_source() {
    let directory = std::env::var_os("SHARNN_CUDA_SOURCES").map(std::path::PathBuf::from);
    for (name, source) in kernels() {
        assert!(source.contains("__global__"), "{name}:\n{source}");
        let has_mma = source.contains("wmma::mma_sync")
            || (source.contains("mma.sync.aligned") && source.contains("#define SHARNN_BF16 1"));
        let wants_mma = name.starts_with("lstm") && name.ends_with("bf16") && !name.starts_with("lstm_backward_last");
        assert_eq!(has_mma, wants_mma, "{name}:\n{source}");
        if let Some(directory) = &directory {
            std::fs::write(directory.join(format!("{name}.cu")), source).unwrap();
        }
    }
}
