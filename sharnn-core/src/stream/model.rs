//! Streams of a model on any backend.

use std::fmt;

use burn::tensor::{Int, Tensor, TensorData};

use sharnn_stream::{BlockValues, StateError, StreamError, StreamShape, StreamState, StreamValues, Streams};

use super::values;
use crate::{Backend, BlockState, LstmState, Pass, ShaRnn, ShaRnnState};

/// Tokens of a stream that go through the model at once, at most: the paper's segment.
const MOST_STEPS: usize = 1024;
/// Tokens of all streams that go through the model at once, at most: the paper's batch of segments.
const MOST_TOKENS: usize = 16 * 1024;

/// Streams of a [`ShaRnn`], side by side, on the model's backend and device, in f32 and without dropout.
///
/// A stream's tokens see what they see where [`ShaRnn::forward`] gets the stream in segments of `segment_len`: before each
/// the memory is cut to `mem_len - segment_len` rows, be the last one shorter or not. Tokens are not waited for to fill a
/// segment: any part of one gives the same, up to rounding, and as many as come go through the model at once. So
/// `segment_len` 1 lets a token see most, and reads fast until the memory is full; longer segments read fast beyond that.
///
/// Streams that have read as much as each other are lanes of one batch.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use sharnn_core::{ModelStreams, ShaRnnConfig, Streams};
///
/// let model = ShaRnnConfig::xs().with_mem_len(100).init_seeded::<Flex>(1, &Default::default());
/// let mut streams = ModelStreams::new(&model, 2, 1).unwrap();
/// streams.read(&[b"Hello", b"you"], &mut |_, _, _| {});
/// assert_eq!(streams.logits(1).unwrap().len(), 256);
/// assert_eq!(streams.state(0).memory_rows(), 5);
/// # }
/// ```
#[derive(Clone)]
pub struct ModelStreams<B: Backend> {
    /// Keeps as many rows as a segment's last token sees.
    model: ShaRnn<B>,
    device: B::Device,
    shape: StreamShape,
    /// Every stream is in one of them.
    groups: Vec<Group<B>>,
    /// Of each stream `[vocab_size]`.
    logits: Vec<Option<Vec<f32>>>,
}

/// Streams that stand alike: the lanes of one state.
#[derive(Clone)]
struct Group<B: Backend> {
    streams: Vec<usize>,
    state: ShaRnnState<B>,
    /// Tokens of the segment that has begun.
    position: usize,
}

impl<B: Backend> fmt::Debug for ModelStreams<B> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ModelStreams")
            .field("n_streams", &self.n_streams())
            .field("shape", &self.shape)
            .finish_non_exhaustive()
    }
}

impl<B: Backend> Group<B> {
    fn is_like(&self, other: &Self) -> bool {
        let place = |group: &Self| (group.position, group.state.memory_rows());
        place(self) == place(other)
    }

    /// The streams that `goes` names, and the others.
    fn part(self, goes: impl Fn(usize) -> bool) -> [Option<Self>; 2] {
        [true, false].map(|wanted| {
            let lanes: Vec<_> = (0..self.streams.len()).filter(|&lane| goes(self.streams[lane]) == wanted).collect();
            if lanes.len() == self.streams.len() {
                return Some(self.clone());
            }
            let states: Vec<_> = lanes.iter().map(|&lane| self.state.clone().lanes(lane..lane + 1)).collect();
            let streams = lanes.iter().map(|&lane| self.streams[lane]).collect();
            (!lanes.is_empty()).then(|| Self { streams, state: ShaRnnState::join(states), position: self.position })
        })
    }

    /// Groups that are alike as one.
    fn join(groups: Vec<Self>) -> Option<Self> {
        let position = groups.first()?.position;
        let streams = groups.iter().flat_map(|group| &group.streams).copied().collect();
        let state = ShaRnnState::join(groups.into_iter().map(|group| group.state).collect());
        Some(Self { streams, state, position })
    }
}

impl<B: Backend> ModelStreams<B> {
    /// `n` streams at their start, read in segments of `segment_len` tokens. The model is shared, not copied; its value
    /// gates are collapsed. Give one without gradients (`model.valid()`).
    ///
    /// # Errors
    /// If segments cannot be of this length: of 0, or longer than the memory.
    ///
    /// # Panics
    /// If `n` is 0.
    pub fn new(model: &ShaRnn<B>, n: usize, segment_len: usize) -> Result<Self, StreamError> {
        assert!(n > 0, "there must be a stream");
        let mem_len = model.mem_len;
        if segment_len == 0 || (model.attends() && mem_len > 0 && segment_len > mem_len) {
            return Err(StreamError::SegmentLen { segment_len, mem_len });
        }
        let shape = model.stream_shape(segment_len);
        let start = StreamState::start(&shape);
        let device = model.encoder.weight.device();
        let state = lane(&start, &device);
        let group = Group { streams: (0..n).collect(), state: ShaRnnState::join(vec![state; n]), position: 0 };
        // Without a memory, a segment's tokens see each other still.
        let model = model.clone().collapse().with_mem_len(if mem_len == 0 { segment_len } else { mem_len });
        Ok(Self { model, device, shape, groups: vec![group], logits: vec![None; n] })
    }

    /// Takes out streams that stand alike and go on.
    fn take(&mut self, goes: impl Fn(usize) -> bool) -> Option<Group<B>> {
        let (mut taken, mut left): (Vec<Group<B>>, _) = (Vec::new(), Vec::new());
        for group in self.groups.drain(..) {
            let [going, staying] = group.part(&goes);
            match going {
                Some(going) if taken.first().is_none_or(|first| first.is_like(&going)) => taken.push(going),
                going => left.extend(going),
            }
            left.extend(staying);
        }
        self.groups = left;
        Group::join(taken)
    }

    /// Tokens that may go through the model at once: those up to the segment's end, and further segments as long as the
    /// memory would not be cut before them.
    fn room(&self, group: &Group<B>) -> usize {
        let most = (MOST_TOKENS / group.streams.len()).clamp(1, MOST_STEPS);
        if !self.model.attends() {
            return most;
        }
        let (kept, segment_len) = (self.model.mem_len, self.shape.segment_len);
        let rows = if group.position == 0 {
            group.state.memory_rows().min(kept - segment_len)
        } else {
            group.state.memory_rows()
        };
        let left = segment_len - group.position;
        let further = match (kept - segment_len).checked_sub(rows + left) {
            Some(uncut) => uncut / segment_len + 1,
            None => 0,
        };
        most.min(left + further * segment_len)
    }

    /// Reads as many tokens for each stream of a group, `[streams, len]`, and returns the logits,
    /// `[streams, len, vocab_size]`.
    fn run(&self, group: &mut Group<B>, tokens: Vec<i32>, len: usize) -> Vec<f32> {
        let segment_len = self.shape.segment_len;
        let mut state = std::mem::replace(&mut group.state, self.model.empty_state());
        if group.position == 0 {
            state = state.truncate_memory(self.model.mem_len.saturating_sub(segment_len));
        }
        let tokens = TensorData::new(tokens, [group.streams.len(), len]);
        let tokens: Tensor<B, 2, Int> = Tensor::from_data(tokens, &self.device);
        let pass = Pass::default();
        let (h, state) = self.model.hidden(tokens, state, &pass);
        group.position = (group.position + len) % segment_len;
        // Between two segments there is no memory where none is kept.
        let ended = self.shape.mem_len == 0 && group.position == 0;
        group.state = if ended { state.drop_memory().detach() } else { state.detach() };
        values(self.model.decode(h.detach(), &pass).detach())
    }

    /// The group of a stream, and its lane there.
    fn find(&self, stream: usize) -> (&Group<B>, usize) {
        let n = self.n_streams();
        let found = self.groups.iter().find_map(|group| {
            let lane = group.streams.iter().position(|&other| other == stream)?;
            Some((group, lane))
        });
        found.unwrap_or_else(|| panic!("stream {stream} of {n}"))
    }
}

impl<B: Backend> Streams for ModelStreams<B> {
    fn n_streams(&self) -> usize {
        self.logits.len()
    }

    fn shape(&self) -> &StreamShape {
        &self.shape
    }

    fn read(&mut self, texts: &[&[u8]], each: &mut dyn FnMut(usize, usize, &[f32])) {
        let (n, vocab_size) = (self.n_streams(), self.shape.vocab_size);
        assert_eq!(texts.len(), n, "{} texts for {n} streams", texts.len());
        for &token in texts.iter().copied().flatten() {
            assert!(usize::from(token) < vocab_size, "token {token} of a vocabulary of {vocab_size}");
        }
        let mut done = vec![0; n];
        while let Some(mut group) = self.take(|stream| done[stream] < texts[stream].len()) {
            let left = group.streams.iter().map(|&stream| texts[stream].len() - done[stream]);
            let len = left.min().unwrap_or(0).min(self.room(&group));
            let text = |&stream: &usize| texts[stream][done[stream]..][..len].iter().map(|&token| i32::from(token));
            let tokens = group.streams.iter().flat_map(text).collect();
            let logits = self.run(&mut group, tokens, len);
            for (&stream, logits) in group.streams.iter().zip(logits.chunks_exact(len * vocab_size)) {
                for logits in logits.chunks_exact(vocab_size) {
                    each(stream, done[stream], logits);
                    done[stream] += 1;
                }
                self.logits[stream] = Some(logits[(len - 1) * vocab_size..].to_vec());
            }
            self.groups.push(group);
        }
    }

    fn logits(&self, stream: usize) -> Option<&[f32]> {
        assert!(stream < self.n_streams(), "stream {stream} of {}", self.n_streams());
        self.logits[stream].as_deref()
    }

    fn reset(&mut self, stream: usize) {
        self.set_state(stream, &StreamState::start(&self.shape)).expect("it is of these streams");
    }

    fn state(&self, stream: usize) -> StreamState {
        let (group, lane) = self.find(stream);
        let one = group.state.clone().lanes(lane..lane + 1);
        let block = |BlockState { lstm, memory }: BlockState<B>| {
            let LstmState { h, c } = lstm.expect("streams have states from their start on");
            BlockValues { h: values(h), c: values(c), memory: memory.map_or(Vec::new(), values) }
        };
        let values = StreamValues {
            position: group.position,
            oldest: 0,
            recent: one.recent.map_or(Vec::new(), tokens),
            blocks: one.blocks.into_iter().map(block).collect(),
            logits: self.logits[stream].clone(),
        };
        StreamState::new(self.shape.clone(), values)
    }

    fn set_state(&mut self, stream: usize, state: &StreamState) -> Result<(), StateError> {
        state.fits(&self.shape)?;
        let _ = self.find(stream);
        self.groups = self.groups.drain(..).flat_map(|group| group.part(|other| other == stream)[1].take()).collect();
        let position = state.position();
        self.groups.push(Group { streams: vec![stream], state: lane(state, &self.device), position });
        self.logits[stream] = state.values().logits.clone();
        Ok(())
    }
}

/// A state of one lane.
fn lane<B: Backend>(state: &StreamState, device: &B::Device) -> ShaRnnState<B> {
    let (shape, StreamValues { blocks, recent, .. }) = (state.shape(), state.values());
    let d = shape.d_model;
    let row = |x: &[f32]| Tensor::from_data(TensorData::new(x.to_vec(), [1, d]), device);
    let block = |block: &BlockValues| {
        let BlockValues { h, c, memory } = block;
        let rows = TensorData::new(memory.clone(), [1, memory.len() / d, d]);
        BlockState {
            lstm: Some(LstmState { h: row(h), c: row(c) }),
            memory: (!memory.is_empty()).then(|| Tensor::from_data(rows, device)),
        }
    };
    // Said as well at the start, so that states can be joined.
    let context = shape.context;
    let recent = (context > 0).then(|| {
        let before = std::iter::repeat_n(-1, context - recent.len());
        let tokens: Vec<i32> = before.chain(recent.iter().map(|&token| token as i32)).collect();
        Tensor::from_data(TensorData::new(tokens, [1, context]), device)
    });
    ShaRnnState { blocks: blocks.iter().map(block).collect(), recent }
}

/// The tokens of one lane, without those before the start.
fn tokens<B: Backend>(recent: Tensor<B, 2, Int>) -> Vec<usize> {
    recent.into_data().iter::<i64>().filter_map(|token| usize::try_from(token).ok()).collect()
}
