//! What a model carries from one segment to the next: LSTM states and memories.

use std::ops::Range;

use burn::tensor::{BasicOps, Int, Tensor, backend::Backend};

/// State of one LSTM.
#[derive(Clone, Debug)]
pub struct LstmState<B: Backend> {
    /// Hidden state, `[batch_size, d_model]`.
    pub h: Tensor<B, 2>,
    /// Cell state, `[batch_size, d_model]`.
    pub c: Tensor<B, 2>,
}

/// State of one block.
#[derive(Clone, Debug)]
pub struct BlockState<B: Backend> {
    /// The LSTM's state; `None` stands for zeros.
    pub lstm: Option<LstmState<B>>,
    /// The memory, `[batch_size, rows, d_model]`, oldest row first; `None` while it is empty and in blocks that do not
    /// attend.
    pub memory: Option<Tensor<B, 3>>,
}

/// State of a model: one [`BlockState`] a block. Empty at the start of a stream.
///
/// Dropping the memory at any moment leaves a working LSTM language model: the paper's "back off".
#[derive(Clone, Debug)]
pub struct ShaRnnState<B: Backend> {
    /// One entry a block.
    pub blocks: Vec<BlockState<B>>,
    /// The newest tokens, `[batch_size, context]`, oldest first, -1 before the start: what a memory of n-grams goes on from. `None` at
    /// the start, and where the model has no such memory.
    pub recent: Option<Tensor<B, 2, Int>>,
}

impl<B: Backend> Default for BlockState<B> {
    fn default() -> Self {
        Self { lstm: None, memory: None }
    }
}

impl<B: Backend> ShaRnnState<B> {
    /// The state at the start of a stream, for a model of `n_layers` blocks.
    pub fn empty(n_layers: usize) -> Self {
        Self { blocks: (0..n_layers).map(|_| BlockState::default()).collect(), recent: None }
    }

    /// Every tensor in turn.
    fn map(
        self,
        lstm: impl Fn(Tensor<B, 2>) -> Tensor<B, 2>,
        memory: impl Fn(Tensor<B, 3>) -> Tensor<B, 3>,
        recent: impl Fn(Tensor<B, 2, Int>) -> Tensor<B, 2, Int>,
    ) -> Self {
        let block = |state: BlockState<B>| BlockState {
            lstm: state.lstm.map(|LstmState { h, c }| LstmState { h: lstm(h), c: lstm(c) }),
            memory: state.memory.map(&memory),
        };
        Self { blocks: self.blocks.into_iter().map(block).collect(), recent: self.recent.map(recent) }
    }

    /// Cuts the state out of the autodiff graph: no gradient flows into earlier segments. Call it once a segment.
    pub fn detach(self) -> Self {
        self.map(Tensor::detach, Tensor::detach, |recent| recent)
    }

    /// Moves the state to a device.
    pub fn to_device(self, device: &B::Device) -> Self {
        self.map(|x| x.to_device(device), |x| x.to_device(device), |x| x.to_device(device))
    }

    /// Keeps the newest `rows` rows of every memory.
    pub fn truncate_memory(mut self, rows: usize) -> Self {
        for block in &mut self.blocks {
            block.memory = block.memory.take().and_then(|memory| last_rows(memory, rows));
        }
        self
    }

    /// Forgets the memories and keeps the LSTM states.
    pub fn drop_memory(self) -> Self {
        self.truncate_memory(0)
    }

    /// Forgets the LSTM states and keeps the memories.
    pub fn drop_hidden(mut self) -> Self {
        for block in &mut self.blocks {
            block.lstm = None;
        }
        self
    }

    /// Rows of the longest memory.
    pub fn memory_rows(&self) -> usize {
        self.blocks.iter().filter_map(|block| block.memory.as_ref()).map(|memory| memory.dims()[1]).max().unwrap_or(0)
    }

    /// The lanes of a range alone.
    ///
    /// # Panics
    /// If there are no such lanes in a state that is not empty.
    pub fn lanes(self, range: Range<usize>) -> Self {
        self.map(|x| lanes(x, &range), |x| lanes(x, &range), |x| lanes(x, &range))
    }

    /// States side by side: the lanes of the first, then those of the next.
    ///
    /// # Panics
    /// If there are none, or they are not of the same blocks, all with as many rows of memory and with an LSTM's state or
    /// without.
    pub fn join(states: Vec<Self>) -> Self {
        let n_layers = states.first().expect("there must be a state").blocks.len();
        let (n, mut blocks) = (states.len(), vec![(Vec::new(), Vec::new(), Vec::new()); n_layers]);
        let mut recent = Vec::new();
        for state in states {
            assert_eq!(
                state.blocks.len(),
                n_layers,
                "a state is of {} blocks, the first of {n_layers}",
                state.blocks.len()
            );
            for ((h, c, memory), block) in blocks.iter_mut().zip(state.blocks) {
                if let Some(lstm) = block.lstm {
                    h.push(lstm.h);
                    c.push(lstm.c);
                }
                memory.extend(block.memory);
            }
            recent.extend(state.recent);
        }
        let cat = |parts: Vec<Tensor<B, 2>>| join(parts, n);
        let block = |(h, c, memory)| BlockState {
            lstm: cat(h).zip(cat(c)).map(|(h, c)| LstmState { h, c }),
            memory: join(memory, n),
        };
        Self { blocks: blocks.into_iter().map(block).collect(), recent: join(recent, n) }
    }

    /// Number of lanes, where the state is not empty.
    pub fn batch_size(&self) -> Option<usize> {
        self.blocks.iter().find_map(|block| {
            let lstm = block.lstm.as_ref().map(|lstm| lstm.h.dims()[0]);
            lstm.or_else(|| block.memory.as_ref().map(|memory| memory.dims()[0]))
        })
    }

    /// Size of the state in bytes, at four bytes a value.
    pub fn size_bytes(&self) -> usize {
        let block = |block: &BlockState<B>| {
            let lstm = block.lstm.as_ref().map_or(0, |lstm| 2 * lstm.h.shape().num_elements());
            lstm + block.memory.as_ref().map_or(0, |memory| memory.shape().num_elements())
        };
        let recent = self.recent.as_ref().map_or(0, |recent| recent.shape().num_elements());
        4 * (self.blocks.iter().map(block).sum::<usize>() + recent)
    }
}

fn lanes<B: Backend, const D: usize, K: BasicOps<B>>(x: Tensor<B, D, K>, range: &Range<usize>) -> Tensor<B, D, K> {
    if *range == (0..x.dims()[0]) { x } else { x.narrow(0, range.start, range.len()) }
}

/// Lanes of `n` states; `None` where none of them has any.
fn join<B: Backend, const D: usize, K: BasicOps<B>>(
    mut parts: Vec<Tensor<B, D, K>>,
    n: usize,
) -> Option<Tensor<B, D, K>> {
    let some = parts.len();
    assert!(some == 0 || some == n, "{some} of {n} states have an LSTM's state, a memory or newest tokens");
    if n == 1 { parts.pop() } else { (!parts.is_empty()).then(|| Tensor::cat(parts, 0)) }
}

/// The newest `rows` rows of a memory; `None` where nothing is left.
pub(crate) fn last_rows<B: Backend>(memory: Tensor<B, 3>, rows: usize) -> Option<Tensor<B, 3>> {
    let [_, len, _] = memory.dims();
    match rows.min(len) {
        0 => None,
        keep if keep == len => Some(memory),
        keep => Some(memory.narrow(1, len - keep, keep)),
    }
}
