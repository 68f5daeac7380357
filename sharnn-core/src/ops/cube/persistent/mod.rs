//! The LSTM on CUDA in one launch a segment: each multiprocessor keeps its part of the recurrent weights for all steps.
//!
//! `lstm.cu` holds the kernels, in CUDA C++, because CubeCL has no store that other blocks are sure to see. They leave what the
//! stepwise kernels leave, so that either backward follows either forward, and the stepwise kernels do what these cannot.

mod choice;
mod plan;
mod task;
mod watch;

use std::any::Any;

use burn::tensor::DType;
use burn_cubecl::CubeRuntime;
use burn_cubecl::cubecl::client::ComputeClient;
use burn_cubecl::cubecl::cuda::{CudaDevice, CudaRuntime};
use burn_cubecl::cubecl::prelude::Runtime;
use burn_cubecl::ops::numeric::zeros_client;
use burn_cubecl::tensor::CubeTensor;

pub use choice::{CUDA_LSTM_VARIABLE, CudaLstm};

use self::plan::{Device, Pass, Plan};
use super::lstm::{Keeps, Outputs};
use crate::ops::Precision;

/// A single step has no weights to keep for the next one.
const LEAST_STEPS: usize = 2;

/// A client of CUDA's, and the device's number; `None` for other runtimes.
fn on_cuda<R: CubeRuntime>(x: &CubeTensor<R>) -> Option<(&ComputeClient<CudaRuntime>, usize)> {
    let device: &CudaDevice = (&x.device as &dyn Any).downcast_ref()?;
    Some(((&x.client as &dyn Any).downcast_ref()?, device.index))
}

/// The kernel of a pass, where there is one on the device of `x`.
fn plan<R: CubeRuntime>(
    x: &CubeTensor<R>,
    pass: Pass,
    precision: Precision,
    [seq_len, lanes, d]: [usize; 3],
) -> Option<Plan> {
    let (client, device) = on_cuda(x)?;
    let way = CudaLstm::current().unwrap_or_else(|error| panic!("{error}"));
    if !way.may_be_persistent() || seq_len < LEAST_STEPS || !watch::is_open(device) {
        return None;
    }
    let plan = Plan::new(&Device::new(client.properties()), pass, precision, [lanes, d]);
    plan.map_err(|reason| watch::refuse(device, reason)).ok()
}

/// Launches a kernel. `tensors` are its bindings, but for scratch.
fn launch<R: CubeRuntime>(plan: Plan, tensors: &[&CubeTensor<R>], seq_len: usize) -> bool {
    let Some((client, device)) = on_cuda(tensors[0]) else { return false };
    let zeros = zeros_client(tensors[0].client.clone(), tensors[0].device.clone(), [plan.scratch].into(), DType::U32);
    let bindings = tensors.iter().copied().chain([&zeros]).map(|x| {
        assert!(x.is_contiguous(), "a kernel is given contiguous tensors, not {x:?}");
        x.handle.clone().binding()
    });
    watch::launch(client, device, plan, bindings.collect(), seq_len)
}

/// The steps forward. Returns whether they are done; where not, `outputs` is still to be written.
pub(super) fn forward<R: CubeRuntime>(
    projected: &CubeTensor<R>,
    weight: &CubeTensor<R>,
    [bias_ih, bias_hh, h0, c0]: &[CubeTensor<R>; 4],
    Outputs { output, gates, cells }: &Outputs<R>,
    shape: [usize; 3],
    keeps: Keeps,
) -> bool {
    let precision = if weight.dtype == DType::BF16 { Precision::Bf16 } else { Precision::F32 };
    let Some(plan) = plan(projected, Pass::Forward(keeps), precision, shape) else { return false };
    launch(plan, &[projected, weight, bias_ih, bias_hh, h0, c0, output, gates, cells], shape[0])
}

/// The steps backward. Returns whether they are done; where not, `grads`, of the gates and of `c0`, are still to be written.
///
/// `weight` makes the operand `W_hh`, `[4 d, d]`, where it is used.
pub(super) fn backward<R: CubeRuntime>(
    weight: impl FnOnce() -> CubeTensor<R>,
    [gates, cells, c0]: &[CubeTensor<R>; 3],
    grad: &CubeTensor<R>,
    [dgates, dcells]: &[CubeTensor<R>; 2],
    shape: [usize; 3],
    precision: Precision,
) -> bool {
    let Some(plan) = plan(grad, Pass::Backward, precision, shape) else { return false };
    launch(plan, &[&weight(), gates, cells, c0, grad, dgates, dcells], shape[0])
}

/// What is to be said of a device.
pub(super) fn notices<D: 'static>(device: &D) -> Vec<String> {
    match (device as &dyn Any).downcast_ref::<CudaDevice>() {
        Some(device) => watch::notices(device.index, || CudaRuntime::client(device)),
        None => Vec::new(),
    }
}

/// The sources of all kinds of kernels at the sizes that matter most, for devices with the numbers of an H100 and of an A100.
#[cfg(test)]
pub(super) fn sources() -> Vec<(String, String)> {
    let [h100, a100] = [plan::tests::H100, plan::tests::A100];
    let of_both = plan::Device { shared: a100.shared, ..h100 };
    let (training, scoring) = (Keeps { gates: true, cells: true }, Keeps { gates: false, cells: false });
    let passes = [("forward", Pass::Forward(training)), ("backward", Pass::Backward)];
    let mut wanted = Vec::new();
    for (name, pass) in passes {
        wanted.extend([256, 512, 768, 1024].map(|d| (format!("{name}_{d}"), h100, pass, [16, d])));
        wanted.extend([1, 64].map(|lanes| (format!("{name}_1024_{lanes}_lanes"), of_both, pass, [lanes, 1024])));
        wanted.push((format!("{name}_1024_108_blocks"), a100, pass, [16, 1024]));
    }
    wanted.push(("forward_1024_scoring".into(), h100, Pass::Forward(scoring), [16, 1024]));
    let mut sources = Vec::new();
    for (operands, precision) in [("f32", Precision::F32), ("bf16", Precision::Bf16)] {
        for (name, device, pass, size) in &wanted {
            if let Ok(plan) = Plan::new(device, *pass, precision, *size) {
                // All of it is given to the kernel at its launch: its source does not say how much that is.
                let source = format!("// dynamic shared memory: {}\n{}", plan.shared, task::compiled(plan).source);
                sources.push((format!("lstm_persistent_{name}_{operands}"), source));
            }
        }
    }
    sources
}
