//! The states of all lanes of a batch, brought together for a checkpoint.

use burn::tensor::{Tensor, TensorData, backend::Backend};
use sharnn_core::{BlockState, LstmState, ShaRnnState};

use crate::group::Group;
use crate::params::host_values;

/// The state of all lanes, for the first process of a group; each brings those of its own. `None` in the others.
pub(crate) fn gather_state<B: Backend>(
    group: &dyn Group,
    state: &ShaRnnState<B>,
    device: &B::Device,
) -> Option<ShaRnnState<B>> {
    if group.size() == 1 {
        return Some(state.clone());
    }
    let block = |block: &BlockState<B>| {
        let lstm = block.lstm.as_ref().map(|LstmState { h, c }| (gather(group, h, device), gather(group, c, device)));
        let memory = block.memory.as_ref().map(|memory| gather(group, memory, device));
        BlockState { lstm: lstm.and_then(|(h, c)| Some(LstmState { h: h?, c: c? })), memory: memory.flatten() }
    };
    // Every process takes part in every tensor, whatever it gets.
    let blocks = state.blocks.iter().map(block).collect();
    let recent = state.recent.as_ref().and_then(|recent| gather(group, &recent.clone().float(), device));
    group.is_first().then_some(ShaRnnState { blocks, recent: recent.map(|recent| recent.int()) })
}

/// A tensor of all lanes, the first dimension, for the first process.
fn gather<B: Backend, const D: usize>(
    group: &dyn Group,
    own: &Tensor<B, D>,
    device: &B::Device,
) -> Option<Tensor<B, D>> {
    let bytes: Vec<u8> = host_values(own.clone()).iter().flat_map(|x| x.to_le_bytes()).collect();
    let all = group.gather(&bytes).concat();
    if !group.is_first() {
        return None;
    }
    let values: Vec<f32> = all.chunks_exact(4).map(|x| f32::from_le_bytes([x[0], x[1], x[2], x[3]])).collect();
    let mut dims = own.dims();
    let of_lane: usize = dims[1..].iter().product();
    dims[0] = values.len() / of_lane.max(1);
    Some(Tensor::from_data(TensorData::new(values, dims), (device, own.dtype())))
}
