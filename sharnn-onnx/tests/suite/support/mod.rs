//! Models that hide no mistake, their segments, and the runtime that reads their files.

use std::collections::BTreeMap;
use std::ops::Range;

use burn::backend::Flex;
use burn::module::{Module, ModuleMapper, Param};
use burn::tensor::{Int, Tensor, TensorData};
use rand::{RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;
use sharnn_core::{Attend, NGramConfig, NGramSite, NGrams, ShaRnn, ShaRnnConfig, ShaRnnState};
use tract_onnx::prelude::*;

/// Tensors by name: what a graph takes and gives. Those of the state are called as the graph's inputs. Tokens are small enough for an
/// f32 to hold them exactly.
pub type Tensors = BTreeMap<String, (Vec<usize>, Vec<f32>)>;

/// Adds noise to every parameter: gates that start at 0 and norms at 1 would hide mistakes.
struct Noise(ChaCha8Rng);

impl ModuleMapper<Flex> for Noise {
    fn map_float<const D: usize>(&mut self, param: Param<Tensor<Flex, D>>) -> Param<Tensor<Flex, D>> {
        let shape = param.dims();
        let values: Vec<f32> = (0..shape.iter().product()).map(|_| self.0.random_range(-0.4..0.4)).collect();
        let noise = Tensor::from_data(TensorData::new(values, shape), &param.device());
        param.map(|x| x + noise)
    }
}

/// 18 wide, which no vector divides, with the Boom's activations in two chunks and a tail.
pub fn config(attend: Attend, mem_len: usize) -> ShaRnnConfig {
    ShaRnnConfig { vocab_size: 50, d_model: 18, d_ff: 45, n_layers: 3, ..ShaRnnConfig::xs() }
        .with_attend(attend)
        .with_mem_len(mem_len)
}

/// Orders with a gap, and tables of a size that shares no factor with the hash's.
pub fn ngrams(at: NGramSite) -> NGramConfig {
    NGramConfig { orders: vec![2, 3, 6], rows: 97, width: 5, at }
}

pub fn model(config: &ShaRnnConfig) -> ShaRnn<Flex> {
    let model = config.init_seeded::<Flex>(3, &Default::default());
    model.map(&mut Noise(ChaCha8Rng::seed_from_u64(5)))
}

/// Tokens of lanes side by side.
#[derive(Clone)]
pub struct Lanes(pub Vec<Vec<i64>>);

impl Lanes {
    /// Tokens of [`config`]'s vocabulary.
    pub fn new(batch: usize, len: usize) -> Self {
        let token = |lane: usize, step: usize| ((lane * 17 + step * 7 + step * step / 5) % 50) as i64;
        Self((0..batch).map(|lane| (0..len).map(|step| token(lane, step)).collect()).collect())
    }

    pub fn batch(&self) -> usize {
        self.0.len()
    }

    /// A segment's tokens, `[batch, steps]`.
    pub fn segment(&self, steps: Range<usize>) -> (Vec<usize>, Vec<i64>) {
        let ids = self.0.iter().flat_map(|lane| &lane[steps.clone()]).copied().collect();
        (vec![self.batch(), steps.len()], ids)
    }
}

fn values<const D: usize>(x: Tensor<Flex, D>) -> (Vec<usize>, Vec<f32>) {
    (x.dims().into(), x.into_data().into_vec().unwrap())
}

/// The state as the graph takes it: zeros, memories without rows and tokens of -1 where there is nothing.
pub fn state_tensors(model: &ShaRnn<Flex>, state: &ShaRnnState<Flex>, batch: usize) -> Tensors {
    let [_, d] = model.encoder.weight.dims();
    let zeros = || (vec![batch, d], vec![0.0; batch * d]);
    let mut tensors = Tensors::new();
    for (index, (block, state)) in model.blocks.iter().zip(&state.blocks).enumerate() {
        let lstm = state.lstm.as_ref();
        tensors.insert(format!("h.{index}"), lstm.map_or_else(zeros, |lstm| values(lstm.h.clone())));
        tensors.insert(format!("c.{index}"), lstm.map_or_else(zeros, |lstm| values(lstm.c.clone())));
        if block.attending.is_some() && model.mem_len > 0 {
            let empty = || (vec![batch, 0, d], vec![]);
            tensors.insert(format!("memory.{index}"), state.memory.clone().map_or_else(empty, values));
        }
    }
    if let Some(context) = model.ngrams.as_ref().map(NGrams::context) {
        let before_start = || (vec![batch, context], vec![-1.0; batch * context]);
        let recent = state.recent.clone().map(|recent| values(recent.float()));
        tensors.insert("recent".into(), recent.unwrap_or_else(before_start));
    }
    tensors
}

/// The model's own logits and state after a segment; the logits are called `logits`.
pub fn forward(
    model: &ShaRnn<Flex>,
    state: ShaRnnState<Flex>,
    lanes: &Lanes,
    steps: Range<usize>,
) -> (Tensors, ShaRnnState<Flex>) {
    let (shape, ids) = lanes.segment(steps);
    let ids: Vec<i32> = ids.into_iter().map(|id| id as i32).collect();
    let ids = Tensor::<Flex, 2, Int>::from_data(TensorData::new(ids, shape), &Default::default());
    let (logits, state) = model.forward(ids, state);
    let mut tensors = state_tensors(model, &state, lanes.batch());
    tensors.insert("logits".into(), values(logits));
    (tensors, state)
}

/// An exported graph.
pub struct Graph {
    runnable: Arc<TypedRunnableModel>,
    inputs: Vec<String>,
    outputs: Vec<String>,
}

impl Graph {
    /// Sizes stay unknown until the graph runs.
    pub fn read(bytes: &[u8]) -> Self {
        let model = tract_onnx::onnx().model_for_read(&mut &bytes[..]).unwrap();
        let name = |outlet: &OutletId| model.node(outlet.node).name.clone();
        let inputs = model.input_outlets().unwrap().iter().map(name).collect();
        let outputs = model.output_outlets().unwrap().iter().map(name).collect();
        let runnable = model.into_optimized().unwrap().into_runnable().unwrap();
        Self { runnable, inputs, outputs }
    }

    /// Runs a segment: logits and the next state, under the names of [`forward`].
    pub fn run(&self, state: &Tensors, lanes: &Lanes, steps: Range<usize>) -> TractResult<Tensors> {
        let input = |name: &String| match name.as_str() {
            "tokens" => {
                let (shape, ids) = lanes.segment(steps.clone());
                tract_onnx::prelude::Tensor::from_shape(&shape, &ids).unwrap().into()
            }
            "recent" => {
                let (shape, values) = &state["recent"];
                let ids: Vec<_> = values.iter().map(|&id| id as i64).collect();
                tract_onnx::prelude::Tensor::from_shape(shape, &ids).unwrap().into()
            }
            name => {
                let (shape, values) = &state[name];
                tract_onnx::prelude::Tensor::from_shape(shape, values).unwrap().into()
            }
        };
        let outputs = self.runnable.run(self.inputs.iter().map(input).collect())?;
        let output = |(name, value): (&String, &TValue)| {
            let view = value.view();
            let name = name.strip_prefix("next.").unwrap_or(name);
            let values = match name {
                "recent" => view.as_slice::<i64>().unwrap().iter().map(|&id| id as f32).collect(),
                _ => view.as_slice::<f32>().unwrap().to_vec(),
            };
            (name.to_string(), (value.shape().to_vec(), values))
        };
        Ok(self.outputs.iter().zip(&outputs).map(output).collect())
    }
}

/// The largest difference of any two values, of equal shapes. A tensor whose values reach beyond 50, as a memory's do, is taken as if
/// it were scaled to reach 50: f32 rounds it as much more coarsely.
pub fn largest_difference(got: &Tensors, want: &Tensors) -> f32 {
    assert_eq!(got.keys().collect::<Vec<_>>(), want.keys().collect::<Vec<_>>());
    let mut largest = 0.0;
    for (name, (shape, values)) in want {
        assert_eq!(&got[name].0, shape, "{name}");
        let reach = values.iter().fold(50.0, |reach, x| f32::max(reach, x.abs()));
        for (got, want) in got[name].1.iter().zip(values) {
            let difference = (got - want).abs();
            assert!(difference.is_finite(), "{name} has {got} for {want}");
            largest = f32::max(largest, difference / (reach / 50.0));
        }
    }
    largest
}
