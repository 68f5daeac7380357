use super::kernels::{MEMORY_BLOCK, Partial, attend, merge};
use super::*;
use crate::testing::{alone, assert_near, f64s, matmul, random, rounded, skip};
use crate::{Operands, team};

const SIZES: [usize; 7] = [1, 3, 16, 17, 33, 70, 256];

#[test]
fn packed_products_are_exact_products_of_the_stored_weights() {
    for rows in SIZES {
        for cols in SIZES {
            if skip(rows * cols) {
                continue;
            }
            let (weight, bias, x) = (random(rows * cols, 1), random(rows, 2), random(cols, 3));
            for (format, name) in WeightFormat::ALL {
                let stored = match format {
                    WeightFormat::F32 => f64s(&weight),
                    WeightFormat::Bf16 => rounded(&weight, Operands::Bf16),
                    WeightFormat::Int8 | WeightFormat::Exact => f64s(&crate::int8::rounded(&weight, [rows, cols])),
                };
                let multiplied = if format.is_whole() { whole_numbers(&x) } else { f64s(&x) };
                let packed = PackedRows::new(&weight, Some(&bias), [rows, cols], format);
                assert_eq!((packed.rows(), packed.cols()), (rows, cols));
                let mut y = vec![f32::NAN; rows];
                packed.multiply(&x, &mut y);
                let product = matmul(&stored, &multiplied, [rows, cols, 1]);
                let want: Vec<_> = product.iter().zip(&bias).map(|(y, &b)| y + f64::from(b)).collect();
                // Sums of up to 256 terms below 1 in f32.
                assert_near(&format!("{name} {rows} x {cols}"), &y, &want, 2e-6);
                assert_eq!(
                    y,
                    alone(|| {
                        let mut y = y.clone();
                        packed.multiply(&x, &mut y);
                        y
                    })
                );
            }
        }
    }
}

/// What activations are rounded to, all of which have one scale.
fn whole_numbers(x: &[f32]) -> Vec<f64> {
    let largest = x.iter().fold(0.0_f32, |largest, x| largest.max(x.abs()));
    let steps = (i32::MAX / (127 * x.len() as i32)).min(32767) as f32;
    x.iter().map(|x| f64::from((x * (steps / largest)).round_ties_even() * (largest / steps))).collect()
}

/// Sums of the largest values that there can be stay inside of 32 bits, and what is not finite shows.
#[test]
fn whole_numbers_of_activations_leave_no_range() {
    for cols in [1, 2, 3, 31, 516, 517, 2048, 70_000] {
        if skip(cols) {
            continue;
        }
        let signs: Vec<_> = (0..cols).map(|i| if i % 3 == 0 { -1.0 } else { 1.0 }).collect();
        let packed = PackedRows::new(&signs, None, [1, cols], WeightFormat::Exact);
        let mut y = [f32::NAN];
        for size in [1.0, 3.0e38 / cols as f32, 1.0e-30] {
            let x: Vec<_> = signs.iter().map(|x| x * size).collect();
            packed.multiply(&x, &mut y);
            let want = f64::from(size) * cols as f64;
            // The scale of the weights has been rounded.
            assert!((f64::from(y[0]) / want - 1.0).abs() < 4e-5, "{cols} times {size}: {} for {want}", y[0]);
        }
        packed.multiply(&vec![0.0; cols], &mut y);
        assert_eq!(y, [0.0]);
        packed.multiply(&vec![1.0e-38; cols], &mut y);
        assert_eq!(y, [0.0], "too small to be told from nothing");
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = signs.clone();
            x[cols / 2] = bad;
            packed.multiply(&x, &mut y);
            assert!(y[0].is_nan(), "{bad} among {cols}: {y:?}");
        }
    }
}

/// The bits of the exact format are pinned: they are the same for all instructions, and for ever.
#[test]
fn exact_logits_have_these_bits() {
    let digest = |model: &DecodeModel, steps: usize| {
        let bits = logits(model, 0..3, steps).concat();
        bits.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, x| {
            let bytes = x.to_bits().to_le_bytes();
            bytes.iter().fold(hash, |hash, &byte| (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3))
        })
    };
    let cases = [(70, 150, 2, 40, 90), (33, 66, 3, 9, 40), (5, 11, 1, 0, 6)];
    let pinned = [0x31da_7424_ec02_a392, 0xb9_76b3_4257_d680, 0xab2c_53f7_ac94_17d0];
    let cases: Vec<_> = cases.into_iter().zip(pinned).filter(|((d, .., steps), _)| !skip(d * steps)).collect();
    let got: Vec<_> = cases
        .iter()
        .map(|&((d, d_ff, n_heads, mem_len, steps), _)| {
            let model = model(d, d_ff, n_heads, mem_len, WeightFormat::Exact);
            digest(&if d == 33 { with_ngrams(model) } else { model }, steps)
        })
        .collect();
    let pinned: Vec<u64> = cases.into_iter().map(|(_, pinned)| pinned).collect();
    assert_eq!(got, pinned, "{got:#x?} with {:?}", crate::Isa::current());
}

/// What a model's digest is made of is the same bytes with all instructions, however they want weights to lie.
#[test]
fn whole_numbers_are_fed_in_pairs_of_columns() {
    for [rows, cols] in [[1, 1], [33, 7], [3, 20]] {
        let weight = random(rows * cols, 1);
        let scales = crate::int8::scales(&weight, [rows, cols]);
        let packed = PackedRows::new(&weight, None, [rows, cols], WeightFormat::Exact);
        let mut got = Vec::new();
        packed.digest(&mut |bytes| got.extend_from_slice(bytes));
        let mut want = Vec::new();
        for group in 0..rows.div_ceil(GROUP) {
            for pair in 0..cols.div_ceil(2) {
                for (row, col) in (0..2 * GROUP).map(|i| (group * GROUP + i / 2, 2 * pair + i % 2)) {
                    let inside = row < rows && col < cols;
                    want.push(if inside { crate::int8::whole(weight[row * cols + col], scales[row]) as u8 } else { 0 });
                }
            }
        }
        assert_eq!(got[..want.len()], want, "{rows} x {cols}");
        // A scale and a bias of each row follow.
        assert_eq!(got.len(), want.len() + 2 * rows.next_multiple_of(GROUP) * 4, "{rows} x {cols}");
    }
}

#[test]
fn a_column_of_the_identity_shows_each_stored_weight_within_half_a_step() {
    let (rows, cols) = (19, 11);
    let weight: Vec<_> = random(rows * cols, 4).iter().map(|w| w * w * w).collect();
    let packed = PackedRows::new(&weight, None, [rows, cols], WeightFormat::Int8);
    for col in 0..cols {
        let (mut x, mut y) = (vec![0.0; cols], vec![0.0; rows]);
        x[col] = 1.0;
        packed.multiply(&x, &mut y);
        for (row, y) in weight.chunks_exact(cols).zip(y) {
            let largest = row.iter().fold(0.0_f32, |largest, w| largest.max(w.abs()));
            assert!((y - row[col]).abs() <= largest / 127.0 * 0.500001, "{y} for {}", row[col]);
            assert!(row[col].abs() < largest || (y.abs() - largest).abs() <= 4e-5 * largest, "{y} for the largest");
        }
    }
}

#[test]
fn zeros_stay_zeros_and_what_is_not_finite_is_not_hidden() {
    for (format, name) in WeightFormat::ALL {
        let mut y = [f32::NAN; 3];
        let weight = [0.0, 0.0, f32::NAN, 1.0, f32::INFINITY, 1.0];
        PackedRows::new(&weight, None, [3, 2], format).multiply(&[1.0, 1.0], &mut y);
        assert!(y[0] == 0.0 && y[1].is_nan() && !y[2].is_finite(), "{name}: {y:?}");
        let tiny = [f32::from_bits(1), -f32::from_bits(200), 0.0];
        PackedRows::new(&tiny, None, [1, 3], format).multiply(&[1.0; 3], &mut y[..1]);
        assert!(y[0].abs() <= f32::from_bits(400), "{name}: {y:?}");
    }
}

#[test]
fn attention_in_parts_is_the_softmax_over_all_rows() {
    for (d, n_heads) in [(1, 1), (6, 2), (21, 3), (40, 1), (48, 4), (256, 1)] {
        for rows in [1, 2, 5, MEMORY_BLOCK, MEMORY_BLOCK + 1, 3 * MEMORY_BLOCK - 3] {
            if skip(rows * d) {
                continue;
            }
            let (memory, residual, gate) = (random(rows * d, 1), random(d, 2), random(d, 3));
            // Scores far apart, so that blocks differ in their largest.
            let query: Vec<_> = random(d, 4).iter().map(|q| 8.0 * q).collect();
            let of = Partial { d, n_heads };
            let mut partials = vec![f32::NAN; rows.div_ceil(MEMORY_BLOCK) * of.len()];
            for (rows, partial) in memory.chunks(MEMORY_BLOCK * d).zip(partials.chunks_exact_mut(of.len())) {
                // SAFETY: rows of a block at most, and as long as they have to be.
                unsafe { attend(WeightFormat::F32, rows, &query, of, partial) };
            }
            let mut y = vec![f32::NAN; d];
            for start in (0..d).step_by(16) {
                let end = d.min(start + 16);
                // SAFETY: columns of `d`.
                unsafe { merge(WeightFormat::F32, &partials, of, start, &residual, &gate, &mut y[start..end]) };
            }

            let d_head = d / n_heads;
            let mut want = f64s(&residual);
            for head in 0..n_heads {
                let columns = head * d_head..(head + 1) * d_head;
                let score =
                    |row: &[f32]| -> f64 { columns.clone().map(|i| f64::from(query[i]) * f64::from(row[i])).sum() };
                let scores: Vec<_> = memory.chunks_exact(d).map(score).collect();
                let largest = scores.iter().copied().fold(f64::NEG_INFINITY, f64::max);
                let total: f64 = scores.iter().map(|score| (score - largest).exp()).sum();
                for (row, score) in memory.chunks_exact(d).zip(&scores) {
                    for i in columns.clone() {
                        want[i] += f64::from(gate[i]) * f64::from(row[i]) * (score - largest).exp() / total;
                    }
                }
            }
            // Scores of up to 8 √d and more have errors of some 1e-6 times that.
            assert_near(&format!("{rows} rows of {d}, {n_heads} heads"), &y, &want, 1e-4);
        }
    }
}

struct Random(u64);

impl Random {
    fn values(&mut self, len: usize, scale: f32) -> Vec<f32> {
        self.0 += 1;
        random(len, self.0).iter().map(|x| x * scale).collect()
    }
}

/// Some model, with attention in every second block.
fn model(d: usize, d_ff: usize, n_heads: usize, mem_len: usize, format: WeightFormat) -> DecodeModel {
    let mut random = Random(10);
    let vocab_size = 19;
    let bias = random.values(vocab_size, 0.1);
    let mut model = DecodeModel::new(d, mem_len, random.values(vocab_size * d, 1.0), None, &bias, format);
    for block in 0..3 {
        let matrix = 1.0 / (d as f32).sqrt();
        let mut vectors = (0..16).map(|i| random.values(d, 0.5).iter().map(|x| x + (i % 2) as f32).collect::<Vec<_>>());
        let vectors: [Vec<f32>; 16] = std::array::from_fn(|_| vectors.next().expect("there are 16"));
        let norm = |i: usize| NormWeights { weight: &vectors[2 * i + 1], bias: &vectors[2 * i] };
        let [ih, hh] = [(); 2].map(|()| random.values(4 * d * d, matrix));
        let [bias_ih, bias_hh] = [(); 2].map(|()| random.values(4 * d, matrix));
        let (query, boom, boom_bias) =
            (random.values(d * d, matrix), random.values(d_ff * d, matrix), random.values(d_ff, matrix));
        let attention = AttentionWeights {
            norm_mid: norm(0),
            norm_mem: norm(1),
            query: &query,
            query_bias: &vectors[12],
            query_norm: norm(2),
            q_gate: &vectors[13],
            k_gate: &vectors[14],
            value_gate: &vectors[15],
            n_heads,
        };
        model.push(BlockWeights {
            norm_start: norm(3),
            weight_ih: &ih,
            weight_hh: &hh,
            bias_ih: &bias_ih,
            bias_hh: &bias_hh,
            attention: (block != 1).then_some(attention),
            norm_ff: norm(4),
            norm_xff: norm(5),
            boom: &boom,
            boom_bias: &boom_bias,
        });
    }
    model
}

fn with_ngrams(model: DecodeModel) -> DecodeModel {
    let (d, mut random) = (model.d_model(), Random(20));
    let (table, map) = (random.values(48 * 4, 1.0), random.values(d * 8, 0.5));
    model.with_ngrams(NGramWeights {
        orders: &[2, 4],
        rows: 24,
        table: &table,
        input: Some(&map),
        output: Some(&map),
        multiplier: 4093,
        modulus: 524_287,
    })
}

fn token(stream: usize, step: usize) -> usize {
    (7 * stream + 5 * step + step * step / 3) % 19
}

/// Each stream's logits of each step.
fn logits(model: &DecodeModel, streams: std::ops::Range<usize>, steps: usize) -> Vec<Vec<f32>> {
    let mut state = Streams::new(model, streams.len());
    let mut all = vec![Vec::new(); streams.len()];
    for step in 0..steps {
        let tokens: Vec<_> = streams.clone().map(|stream| Some(token(stream, step))).collect();
        let logits = model.step(&mut state, &tokens);
        for (all, logits) in all.iter_mut().zip(logits.chunks_exact(19)) {
            all.extend(logits);
        }
    }
    all
}

#[test]
fn neither_threads_nor_other_streams_change_a_bit() {
    let steps = if cfg!(miri) { 3 } else { 90 };
    for (d, d_ff, n_heads, mem_len) in [(70, 150, 2, 40), (16, 16, 1, 70), (5, 11, 1, 0)] {
        if skip(d * 20) {
            continue;
        }
        for (format, _) in WeightFormat::ALL {
            let model = model(d, d_ff, n_heads, mem_len, format);
            let together = logits(&model, 0..3, steps);
            assert!(together.iter().flatten().all(|x| x.is_finite()));
            assert_eq!(together, alone(|| logits(&model, 0..3, steps)), "alone with {} threads", team::threads());
            for (stream, one) in together.iter().enumerate() {
                assert_eq!(*one, logits(&model, stream..stream + 1, steps)[0], "stream {stream}");
            }
        }
    }
}

#[test]
fn streams_without_a_token_stay_as_they_are() {
    let steps = if cfg!(miri) { 6 } else { 40 };
    for mem_len in [0, 9, 70] {
        let model = model(8, 20, 2, mem_len, WeightFormat::Bf16);
        let alone: Vec<_> = (0..3).map(|stream| logits(&model, stream..stream + 1, steps).remove(0)).collect();
        let mut streams = Streams::new(&model, 3);
        let mut read = [0; 3];
        // One after the other, two and none.
        for step in 0..steps {
            let takes_part = |stream: usize| step % 4 != 3 && !(step + stream).is_multiple_of(3);
            let next = |stream: usize| takes_part(stream).then(|| token(stream, read[stream]));
            let tokens = [0, 1, 2].map(next);
            let got = model.step(&mut streams, &tokens).to_vec();
            for (stream, logits) in got.chunks_exact(19).enumerate() {
                read[stream] += usize::from(takes_part(stream));
                let want = read[stream].checked_sub(1).map_or(&[0.0; 19][..], |last| &alone[stream][last * 19..][..19]);
                assert_eq!(logits, want, "stream {stream}, step {step}");
            }
        }
        assert!(read.iter().all(|&read| read < steps && read > 0), "{read:?}");
    }
}

#[test]
fn only_the_newest_rows_of_memory_count() {
    let steps = if cfg!(miri) { 4 } else { 30 };
    for mem_len in [0, 1, 2, 9] {
        let model = model(8, 20, 2, mem_len, WeightFormat::F32);
        let mut streams = Streams::new(&model, 2);
        for step in 0..steps {
            let before: Vec<_> = [0, 2].map(|block| streams.memory(block, 1).concat()).into();
            let mut copy = Streams::new(&model, 2);
            for block in 0..3 {
                let (h, c) = streams.lstm(block, 1);
                copy.lstm_mut(block, 1).0.copy_from_slice(h);
                copy.lstm_mut(block, 1).1.copy_from_slice(c);
            }
            for (block, rows) in [0, 2].into_iter().zip(&before) {
                // Older rows than mem_len are dropped; what was oldest is cut by the step.
                let older = if rows.len() < mem_len * 8 { 0 } else { 16 };
                let rows = [&vec![f32::NAN; older], &rows[..]].concat();
                copy.set_memory(block, 1, &rows, streams.oldest(1));
            }
            for (block, rows) in [0, 2].into_iter().zip(&before) {
                assert_eq!(copy.memory(block, 1).concat(), *rows);
            }
            let got = model.step(&mut streams, &[Some(0), Some(token(1, step))]).to_vec();
            let copied = model.step(&mut copy, &[Some(0), Some(token(1, step))]);
            // Rows lie in the same places, and are added in the same order.
            assert_eq!(got[19..], copied[19..], "a copied stream");
            let after = streams.memory(2, 1).concat();
            assert_eq!(after.len(), mem_len.min(step + 1) * 8);
            let kept = before[1].len().min(mem_len.saturating_sub(1) * 8);
            assert_eq!(after[..kept], before[1][before[1].len() - kept..]);
        }
        let fresh = logits(&model, 1..2, 3);
        streams.reset(1);
        let again: Vec<_> =
            (0..3).flat_map(|step| model.step(&mut streams, &[Some(0), Some(token(1, step))])[19..].to_vec()).collect();
        assert_eq!(fresh[0], again);
    }
}

#[test]
#[should_panic(expected = "token 19 of a vocabulary of 19")]
fn a_token_outside_of_the_vocabulary_is_refused() {
    let model = model(8, 8, 1, 2, WeightFormat::F32);
    model.step(&mut Streams::new(&model, 1), &[Some(19)]);
}

#[test]
#[should_panic(expected = "these streams are not of this model")]
fn streams_of_another_model_are_refused() {
    let (small, large) = (model(8, 8, 1, 2, WeightFormat::F32), model(8, 8, 1, 3, WeightFormat::F32));
    large.step(&mut Streams::new(&small, 1), &[Some(0)]);
}
