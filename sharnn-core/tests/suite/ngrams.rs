//! The memory of n-grams: which rows, what they add, whose gradient, and the same in segments, in streams and in the decoder.

use burn::tensor::{Int, Tensor, TensorData};
use sharnn_core::{
    Attend, AutodiffBackend, Backend, NGRAM_MODULUS, NGRAM_MULTIPLIER, NGramConfig, NGramSite, Pass, SegmentLoss,
    ShaRnn, ShaRnnConfig,
};

const SITES: [NGramSite; 3] = [NGramSite::Embedding, NGramSite::Decoder, NGramSite::Both];

/// Orders with a gap, tables small enough for collisions.
pub(crate) fn ngrams(at: NGramSite) -> NGramConfig {
    NGramConfig { orders: vec![2, 3, 5], rows: 37, width: 3, at }
}

fn config(at: NGramSite) -> ShaRnnConfig {
    ShaRnnConfig { vocab_size: 50, d_model: 18, d_ff: 45, n_layers: 2, ..ShaRnnConfig::xs() }
        .with_attend(Attend::SecondLast)
        .with_mem_len(40)
        .with_ngrams(ngrams(at))
}

/// With values in the table, which begins as zeros.
fn model<B: Backend>(config: &ShaRnnConfig) -> ShaRnn<B> {
    let mut model = config.init_seeded::<B>(3, &Default::default());
    let ngrams = model.ngrams.as_mut().unwrap();
    let [rows, width] = ngrams.table.dims();
    let values: Vec<f32> = (0..rows * width).map(|i| ((i * 7919 % 1013) as f32 / 1013.0) - 0.5).collect();
    let values = Tensor::from_data(TensorData::new(values, [rows, width]), &ngrams.table.device());
    ngrams.table = ngrams.table.clone().map(|x| (x + values).detach().require_grad());
    model
}

fn text(lane: usize, len: usize) -> Vec<usize> {
    (0..len).map(|i| (lane * 17 + i * 7 + i * i / 5) % 50).collect()
}

fn tokens<B: Backend>(lanes: &[Vec<usize>]) -> Tensor<B, 2, Int> {
    let ids: Vec<i32> = lanes.iter().flatten().map(|&token| token as i32).collect();
    Tensor::from_data(TensorData::new(ids, [lanes.len(), lanes[0].len()]), &B::Device::default())
}

/// The row of an order at a token: the hash as a polynomial, in numbers that cannot overflow.
fn row(text: &[usize], at: usize, table: usize, order: usize, rows: usize) -> usize {
    let symbol = |back: usize| at.checked_sub(back).map_or(0, |place| text[place] as u128 + 1);
    let power = |back: usize| (0..back).fold(1, |power, _| power * NGRAM_MULTIPLIER as u128 % NGRAM_MODULUS as u128);
    let hash = (0..order).map(|back| symbol(back) * power(back)).sum::<u128>();
    table * rows + (hash % NGRAM_MODULUS as u128 % rows as u128) as usize
}

fn values<B: Backend, const D: usize>(x: Tensor<B, D>) -> Vec<f32> {
    x.into_data().convert::<f32>().to_vec().unwrap()
}

fn assert_near(got: &[f32], want: &[f32], tolerance: f32, what: &str) {
    assert_eq!(got.len(), want.len(), "{what}");
    let difference = got.iter().zip(want).map(|(got, want)| (got - want).abs()).fold(0.0, f32::max);
    assert!(difference <= tolerance, "{what}: {difference}");
}

on_backends!(rows_are_those_of_the_definition, a_split_stream_gives_what_the_whole_gives, only_rows_that_were_used);

/// Of two lanes over two segments, with the longest orders and the largest tables as well.
fn rows_are_those_of_the_definition<B: AutodiffBackend>() {
    for (orders, rows) in [(vec![2, 3, 5], 37), (vec![2], 1), (vec![4, 16], NGRAM_MODULUS), (vec![3], 65_536)] {
        let ngrams = NGramConfig { orders: orders.clone(), rows, width: 1, at: NGramSite::Embedding };
        let config = ShaRnnConfig { ngrams: Some(ngrams), ..config(NGramSite::Embedding) };
        let model = config.init_seeded::<B>(1, &Default::default());
        let lanes = [text(0, 24), text(1, 24)];
        let mut state = model.empty_state();
        for part in [0..3, 3..24] {
            let segment = lanes.each_ref().map(|lane| lane[part.clone()].to_vec());
            let input = tokens(&segment);
            let SegmentLoss { rows: used, state: next, .. } =
                model.segment_loss(input.clone(), input, state, &Pass::default());
            state = next.detach();
            let used: Vec<i64> = used.unwrap().rows.into_data().iter::<i64>().collect();
            // Time-major: of each token of each lane the rows of all orders.
            let mut at = used.iter();
            for place in part {
                for lane in &lanes {
                    for (table, &order) in orders.iter().enumerate() {
                        let want = row(lane, place, table, order, rows);
                        assert_eq!(*at.next().unwrap(), want as i64, "{orders:?} of {rows}, place {place}");
                    }
                }
            }
            assert_eq!(at.next(), None);
        }
    }
}

fn a_split_stream_gives_what_the_whole_gives<B: AutodiffBackend>() {
    for at in SITES {
        let model = model::<B>(&config(at));
        let data = tokens::<B>(&[text(0, 24), text(1, 24)]);
        let (whole, whole_state) = model.forward(data.clone(), model.empty_state());
        let (mut state, mut start) = (model.empty_state(), 0);
        for len in [1, 2, 10, 11] {
            let (logits, next) = model.forward(data.clone().narrow(1, start, len), state);
            let want = whole.clone().narrow(1, start, len);
            assert_near(&values(logits), &values(want), 2e-3, "a segment");
            (state, start) = (next, start + len);
        }
        let recent = |recent: Option<Tensor<B, 2, Int>>| recent.unwrap().into_data().iter::<i64>().collect::<Vec<_>>();
        assert_eq!(recent(state.recent), recent(whole_state.recent));
        // It matters what was before.
        let (cut, _) = model.forward(data.clone().narrow(1, 12, 12), model.empty_state());
        let want = values(whole.narrow(1, 12, 12));
        assert!(values(cut).iter().zip(&want).any(|(a, b)| (a - b).abs() > 1e-3));
    }
}

/// Rows enter as a leaf, which has a gradient; the table itself has none. (What the gradient is, finite differences say below.)
fn only_rows_that_were_used<B: AutodiffBackend>() {
    let model = model::<B>(&config(NGramSite::Both));
    let input = tokens::<B>(&[text(0, 9)]);
    let SegmentLoss { loss, rows, .. } =
        model.segment_loss(input.clone(), input.clone(), model.empty_state(), &Pass::default());
    let mut grads = loss.backward();
    let rows = rows.unwrap();
    let grad = rows.values.grad_remove(&mut grads).unwrap();
    assert_eq!(grad.dims(), [27, 3]);
    assert!(values(grad).iter().any(|x| x.abs() > 1e-6));
    assert!(model.ngrams.as_ref().unwrap().table.val().grad(&grads).is_none());
    for map in [&model.ngrams.as_ref().unwrap().input, &model.ngrams.as_ref().unwrap().output] {
        assert!(map.as_ref().unwrap().val().grad(&grads).is_some());
    }
}

/// In double precision: the gradients of rows and of both maps.
#[cfg(feature = "ndarray")]
#[test]
fn gradients_agree_with_finite_differences() {
    use burn::backend::{Autodiff, NdArray};
    type B = Autodiff<NdArray<f64>>;
    type Flat = Tensor<NdArray<f64>, 1>;

    // The default type of a device is shared by all backends on it.
    struct Double;
    impl burn::module::ModuleMapper<B> for Double {
        fn map_float<const D: usize>(
            &mut self,
            param: burn::module::Param<Tensor<B, D>>,
        ) -> burn::module::Param<Tensor<B, D>> {
            param.map(|x| Tensor::from_inner(x.inner().cast(burn::tensor::DType::F64)).require_grad())
        }
    }
    let model = burn::module::Module::map(model::<B>(&config(NGramSite::Both)), &mut Double);
    let lanes = [text(0, 9), text(1, 9)];
    let segment = |model: &ShaRnn<B>| {
        let input = tokens::<B>(&lanes);
        let targets = tokens::<B>(&lanes.each_ref().map(|lane| lane.iter().map(|token| token * 3 % 50).collect()));
        model.segment_loss(input, targets, model.empty_state(), &Pass::default())
    };
    let loss = |model: &ShaRnn<B>| segment(model).loss.into_scalar();
    let SegmentLoss { loss: tracked, rows, .. } = segment(&model);
    let mut grads = tracked.backward();
    let rows = rows.unwrap();
    let of_rows: Tensor<NdArray<f64>, 2> = rows.values.grad_remove(&mut grads).unwrap();
    let ngrams = model.ngrams.as_ref().unwrap();
    let table = ngrams.table.val().inner().zeros_like().select_assign(
        0,
        rows.rows.inner(),
        of_rows,
        burn::tensor::IndexingUpdateOp::Add,
    );
    let map = |map: &Option<burn::module::Param<Tensor<B, 2>>>| map.as_ref().unwrap().val().grad(&grads).unwrap();
    for (which, grad) in [table, map(&ngrams.input), map(&ngrams.output)].into_iter().enumerate() {
        let direction: Vec<f64> =
            (0..grad.shape().num_elements()).map(|i| ((i * 31 % 17) as f64 - 8.0) / 8.0).collect();
        let direction = Tensor::<NdArray<f64>, 1>::from_data(
            TensorData::new(direction.clone(), [direction.len()]),
            (&Default::default(), burn::tensor::DType::F64),
        )
        .reshape(grad.dims());
        let moved = |step: f64| {
            let mut model = model.clone();
            let ngrams = model.ngrams.as_mut().unwrap();
            let shift = |x: Tensor<B, 2>| x + Tensor::from_inner(direction.clone() * step);
            match which {
                0 => ngrams.table = ngrams.table.clone().map(shift),
                1 => ngrams.input = ngrams.input.take().map(|map| map.map(shift)),
                _ => ngrams.output = ngrams.output.take().map(|map| map.map(shift)),
            }
            loss(&model)
        };
        let difference = (moved(1e-5) - moved(-1e-5)) / 2e-5;
        let analytic: Flat = (grad * direction).sum();
        let analytic = analytic.into_scalar();
        assert!(analytic.abs() > 1e-4, "{which}: {analytic} tells nothing");
        assert!((difference - analytic).abs() < 1e-7 * (1.0 + analytic.abs()), "{which}: {analytic}, {difference}");
    }
}

#[test]
#[cfg(feature = "flex")]
fn a_model_tells_its_configuration_and_counts_its_parameters() {
    use burn::module::Module;
    for at in SITES {
        let config = config(at);
        let model = config.init_seeded::<burn::backend::Flex>(1, &Default::default());
        assert_eq!(model.config(), config);
        assert_eq!(model.num_params(), config.num_params());
    }
    // Without: nothing is drawn for it, a file says nothing of it, and all else is as it is with rows of zeros.
    let [with, without] =
        [Some(ngrams(NGramSite::Both)), None].map(|ngrams| ShaRnnConfig { ngrams, ..config(NGramSite::Both) });
    assert!(!serde_json::to_string(&without).unwrap().contains("ngrams"));
    let logits = |config: &ShaRnnConfig| {
        let model = config.init_seeded::<burn::backend::Flex>(7, &Default::default());
        values(model.forward(tokens(&[text(0, 12)]), model.empty_state()).0)
    };
    assert_eq!(logits(&with), logits(&without));
}

#[cfg(feature = "flex")]
mod streams {
    use burn::backend::Flex;
    use sharnn_core::{ModelStreams, StreamState, Streams, WeightFormat};

    use super::*;

    fn bytes(lane: usize, len: usize) -> Vec<u8> {
        text(lane, len).into_iter().map(|token| token as u8).collect()
    }

    fn read(streams: &mut impl Streams, texts: &[&[u8]]) -> Vec<Vec<f32>> {
        let mut all = vec![Vec::new(); texts.len()];
        streams.read(texts, &mut |stream, _, logits| all[stream].extend(logits));
        all
    }

    /// Each stream alone by `forward`, token by token.
    fn want(model: &ShaRnn<Flex>, text: &[u8]) -> Vec<f32> {
        let mut state = model.empty_state();
        let mut all = Vec::new();
        for &byte in text {
            let (logits, next) = model.forward(tokens(&[vec![byte.into()]]), state);
            all.extend(values(logits));
            state = next;
        }
        all
    }

    #[test]
    fn streams_and_decoder_are_the_model() {
        for at in SITES {
            let model = model::<Flex>(&config(at));
            let texts = [bytes(0, 30), bytes(1, 17), bytes(2, 30)];
            let texts = texts.each_ref().map(|text| &text[..]);
            let of_model = read(&mut ModelStreams::new(&model, 3, 1).unwrap(), &texts);
            for (format, tolerance) in [
                (WeightFormat::F32, 1e-4),
                (WeightFormat::Bf16, 0.05),
                (WeightFormat::Int8, 0.1),
                (WeightFormat::Exact, 0.1),
            ] {
                let engine = model.engine(format);
                let got = read(&mut engine.streams(3), &texts);
                for (i, text) in texts.iter().enumerate() {
                    let want = want(&model, text);
                    assert_near(&got[i], &want, tolerance, &format!("{at:?} {format:?}"));
                    assert_near(&of_model[i], &want, 1e-4, &format!("{at:?}"));
                    // A stream's bits are its own.
                    assert_eq!(read(&mut engine.streams(1), &[text])[0], got[i], "{at:?} {format:?}");
                }
            }
        }
    }

    #[test]
    fn a_state_carries_the_newest_tokens_in_any_place_and_as_bytes() {
        let model = model::<Flex>(&config(NGramSite::Both));
        let engine = model.engine(WeightFormat::F32);
        // Shorter than what the orders look back, and longer.
        for len in [0, 2, 20] {
            let (before, after) = (bytes(1, len), bytes(3, 9));
            let whole = [&before[..], &after].concat();
            let want = &read(&mut engine.streams(1), &[&whole])[0][len * 50..];
            let mut one = engine.streams(1);
            read(&mut one, &[&before]);
            let state = one.state(0);
            let state = StreamState::from_bytes(&state.to_bytes(), state.shape()).unwrap();
            let mut others = engine.streams(2);
            read(&mut others, &[b"\x01\x02\x03", b"\x04"]);
            others.set_state(1, &state).unwrap();
            assert_eq!(others.state(1), state);
            assert_eq!(read(&mut others, &[b"", &after])[1], want, "{len}");
            // The model's own streams go on from it too.
            let mut of_model = ModelStreams::new(&model, 2, 1).unwrap();
            of_model.read(&[b"\x05\x06", b"\x07\x08"], &mut |_, _, _| {});
            of_model.set_state(0, &state).unwrap();
            assert_near(&read(&mut of_model, &[&after, b""])[0], want, 1e-4, "of the model");
            // Begun anew, nothing is left of it.
            others.reset(1);
            assert_eq!(read(&mut others, &[b"", &whole])[1][len * 50..], *want);
        }
    }

    #[test]
    fn a_state_of_another_context_is_refused() {
        let model = model::<Flex>(&config(NGramSite::Both));
        let mut streams = model.engine(WeightFormat::F32).streams(1);
        read(&mut streams, &[&bytes(1, 9)]);
        let state = streams.state(0);
        let without = ShaRnnConfig { ngrams: None, ..config(NGramSite::Both) };
        let without = without.init_seeded::<Flex>(1, &Default::default());
        let mut others = without.engine(WeightFormat::F32).streams(1);
        let error = others.set_state(0, &state).unwrap_err().to_string();
        assert!(error.contains("context = 4, expected 0"), "{error}");
        // A state of a model without such a memory says nothing of it.
        let plain = others.state(0);
        assert!(!String::from_utf8_lossy(&plain.to_bytes()).contains("context"));
        assert_eq!(StreamState::from_bytes(&plain.to_bytes(), plain.shape()).unwrap(), plain);
        let error = StreamState::from_bytes(&plain.to_bytes(), state.shape()).unwrap_err().to_string();
        assert!(error.contains("context = 0, expected 4"), "{error}");
    }
}
