//! Lanes and segments: every byte once, the target is the next byte, and a resume that changes nothing.

use proptest::prelude::*;
use sharnn_data::{Corpus, DataError, Lanes, Segment, SegmentLengths, Segments, SegmentsState};

fn lanes(len: usize, n_lanes: usize) -> Lanes {
    // A period of 251 is prime to every length that matters, so a byte tells where it lies.
    let bytes: Vec<u8> = (0..len).map(|i| (i % 251) as u8).collect();
    Lanes::new(Corpus::from_bytes(bytes).whole(), n_lanes).unwrap()
}

fn epoch(segments: &mut Segments) -> Vec<Segment> {
    segments.by_ref().collect()
}

fn segment_lens(segments: &mut Segments) -> Vec<usize> {
    epoch(segments).iter().map(|segment| segment.len).collect()
}

#[test]
fn lanes_are_contiguous_and_the_remainder_is_trimmed() {
    let lanes = Lanes::new(Corpus::from_bytes(&b"abcdefghijk"[..]).whole(), 3).unwrap();
    assert_eq!(lanes.lane_len(), 3);
    assert_eq!(lanes.n_targets(), 6);
    assert_eq!(lanes.lane(0), b"abc");
    assert_eq!(lanes.lane(1), b"def");
    assert_eq!(lanes.lane(2), b"ghi");
}

#[test]
#[should_panic(expected = "lane 3 of 3 lanes")]
fn a_lane_that_does_not_exist() {
    lanes(9, 3).lane(3);
}

#[test]
fn no_lanes_or_more_than_the_data_fills() {
    let try_lanes = |len: usize, n: usize| Lanes::new(Corpus::from_bytes(vec![0; len]).whole(), n).unwrap_err();
    for (len, n_lanes, largest) in [(11, 0, 5), (11, 6, 5), (11, usize::MAX, 5), (1, 1, 0), (0, 0, 0)] {
        let error = try_lanes(len, n_lanes);
        assert!(matches!(error, DataError::Lanes { max, .. } if max == largest), "{error:?}");
    }
    assert!(try_lanes(11, 6).to_string().contains("use 1 to 5"));
    assert!(try_lanes(2, 2).to_string().contains("only one works"));
    assert!(try_lanes(1, 1).to_string().contains("too short for any"));
    // The largest batch that is offered works.
    assert_eq!(lanes(11, 5).lane_len(), 2);
}

#[test]
fn lengths_that_no_data_has() {
    let (min, max) = (1, usize::MAX);
    let lengths = SegmentLengths::Random {
        base: max,
        short_base: min,
        short_probability: 0.0,
        std_dev: 1.0,
        min,
        max,
        multiple: 4,
    };
    let mut segments = Segments::new(lanes(20, 2), lengths, 1).unwrap();
    assert_eq!(segment_lens(&mut segments), [9]);
}

#[test]
fn fixed_segments_by_hand() {
    let lanes = Lanes::new(Corpus::from_bytes(&b"abcdefghijkl"[..]).whole(), 2).unwrap();
    let mut segments = Segments::new(lanes, SegmentLengths::Fixed { len: 3 }, 0).unwrap();
    assert_eq!(segments.epoch_len(), 5);
    assert_eq!(
        segments.next_segment(),
        Some(Segment {
            n_lanes: 2,
            len: 3,
            inputs: b"abcghi".to_vec(),
            targets: b"bcdhij".to_vec(),
            start: 0,
            first_lane: 0,
        })
    );
    assert_eq!(
        segments.next_segment(),
        Some(Segment {
            n_lanes: 2,
            len: 2,
            inputs: b"dejk".to_vec(),
            targets: b"efkl".to_vec(),
            start: 3,
            first_lane: 0,
        })
    );
    assert_eq!(segments.next_segment(), None);
    assert_eq!(segments.next_segment(), None);
    assert_eq!((segments.position(), segments.epoch()), (5, 0));
    segments.start_epoch();
    assert_eq!((segments.position(), segments.epoch()), (0, 1));
    assert_eq!(segments.next_segment().unwrap().inputs, b"abcghi");
}

#[test]
fn the_last_segment_may_be_one_byte() {
    let mut segments = Segments::new(lanes(8, 1), SegmentLengths::Fixed { len: 3 }, 0).unwrap();
    assert_eq!(segment_lens(&mut segments), [3, 3, 1]);
}

#[test]
fn first_lengths_of_a_seed_are_pinned() {
    let mut segments = Segments::new(lanes(16_000, 1), SegmentLengths::paper(), 1).unwrap();
    assert_eq!(segment_lens(&mut segments), PINNED_EPOCH_0);
    segments.start_epoch();
    assert_eq!(segment_lens(&mut segments)[..8], PINNED_EPOCH_1);
}

const PINNED_EPOCH_0: [usize; 17] =
    [1016, 1018, 1024, 1018, 1024, 1024, 1020, 1018, 1024, 1020, 1023, 1015, 508, 1022, 1013, 1024, 188];
const PINNED_EPOCH_1: [usize; 8] = [1024, 1024, 1024, 1024, 1021, 1024, 1024, 1020];

#[test]
fn paper_lengths_have_the_distribution_they_claim() {
    let mut segments = Segments::new(lanes(4_000_000, 1), SegmentLengths::paper(), 7).unwrap();
    let mut lens = segment_lens(&mut segments);
    lens.pop();
    let (short, long): (Vec<usize>, Vec<usize>) = lens.iter().partition(|&&len| len < 768);
    // About 4000 draws at 5 %: a standard deviation of 0.34 %; five of them either way.
    let share = short.len() as f64 / lens.len() as f64;
    assert!((share - 0.05).abs() < 0.0175, "{share}");
    // Normal(512, 5) truncated has mean 511.5; about 200 draws put 0.35 on it, five of those.
    let mean = short.iter().sum::<usize>() as f64 / short.len() as f64;
    assert!((mean - 511.5).abs() < 1.8, "{mean}");
    let deviation = (short.iter().map(|&len| (len as f64 - mean).powi(2)).sum::<f64>() / short.len() as f64).sqrt();
    assert!((3.7..6.3).contains(&deviation), "{deviation}");
    // Half of the long ones would pass 1024 and are cut to it; five standard deviations of 0.8 %.
    assert!(long.iter().all(|&len| (990..=1024).contains(&len)));
    let cut = long.iter().filter(|&&len| len == 1024).count() as f64 / long.len() as f64;
    assert!((cut - 0.5).abs() < 0.04, "{cut}");
}

#[test]
fn lengths_around_another_base_keep_within_it() {
    assert_eq!(
        SegmentLengths::around(64),
        SegmentLengths::Random {
            base: 64,
            short_base: 32,
            short_probability: 0.05,
            std_dev: 5.0,
            min: 5,
            max: 64,
            multiple: 1
        }
    );
    for base in 1..40 {
        let lengths = SegmentLengths::around(base);
        lengths.validate().unwrap();
        let mut segments = Segments::new(lanes(500, 1), lengths, 3).unwrap();
        let lens = segment_lens(&mut segments);
        assert!(lens.iter().all(|&len| (1..=base).contains(&len)), "{lens:?}");
        assert_eq!(lens.iter().sum::<usize>(), 499);
    }
    assert!(SegmentLengths::around(0).validate().is_err());
}

#[test]
fn lengths_may_all_be_multiples() {
    let lens = |lengths| {
        let mut segments = Segments::new(lanes(400_000, 1), lengths, 7).unwrap();
        let mut lens = segment_lens(&mut segments);
        assert_eq!(lens.iter().sum::<usize>(), 399_999);
        lens.pop();
        lens
    };
    let any = lens(SegmentLengths::paper());
    assert_eq!(lens(SegmentLengths::paper().with_multiple(1)), any);
    let eights = lens(SegmentLengths::paper().with_multiple(8));
    assert!(eights.iter().all(|len| len % 8 == 0 && *len <= 1024));
    // The same draws, each to the nearest multiple.
    assert!(any.iter().zip(&eights).all(|(any, eight)| any.abs_diff(*eight) <= 4));
    let kinds: std::collections::BTreeSet<_> = eights.iter().collect();
    assert!(kinds.len() <= 10 && any.iter().collect::<std::collections::BTreeSet<_>>().len() > 12, "{kinds:?}");
    // Bounds that are no multiples themselves.
    let mut narrow = SegmentLengths::around(50).with_multiple(16);
    if let SegmentLengths::Random { min, .. } = &mut narrow {
        *min = 17;
    }
    assert!(lens(narrow).iter().all(|len| [32, 48].contains(len)));
    assert_eq!(SegmentLengths::Fixed { len: 9 }.with_multiple(8), SegmentLengths::Fixed { len: 9 });
}

#[test]
fn lengths_that_make_no_sense() {
    let random = |change: &dyn Fn(&mut serde_json::Value)| {
        let mut json = serde_json::to_value(SegmentLengths::paper()).unwrap();
        change(&mut json);
        serde_json::from_value::<SegmentLengths>(json).unwrap()
    };
    let cases = [
        ("len", SegmentLengths::Fixed { len: 0 }),
        ("min", random(&|json| json["min"] = 0.into())),
        ("max", random(&|json| json["max"] = 4.into())),
        ("base", random(&|json| json["base"] = 1025.into())),
        ("base", random(&|json| json["base"] = 4.into())),
        ("short_base", random(&|json| json["short_base"] = 0.into())),
        ("short_probability", random(&|json| json["short_probability"] = 1.5.into())),
        ("short_probability", random(&|json| json["short_probability"] = (-0.5).into())),
        ("std_dev", random(&|json| json["std_dev"] = (-1.0).into())),
        ("multiple", random(&|json| json["multiple"] = 0.into())),
        ("multiple", random(&|json| json["multiple"] = 1025.into())),
        ("std_dev", with_std_dev(f64::NAN)),
        ("std_dev", with_std_dev(f64::INFINITY)),
    ];
    for (name, lengths) in cases {
        let error = Segments::new(lanes(100, 2), lengths, 0).unwrap_err();
        assert!(matches!(error, DataError::SegmentLengths { field, .. } if field == name), "{name}: {error:?}");
        assert!(error.to_string().contains(name), "{error}");
    }
}

fn with_std_dev(deviation: f64) -> SegmentLengths {
    let mut lengths = SegmentLengths::paper();
    if let SegmentLengths::Random { std_dev, .. } = &mut lengths {
        *std_dev = deviation;
    }
    lengths
}

#[test]
fn lengths_with_an_unknown_field_or_kind() {
    for json in [
        r#"{"kind": "fixed", "len": 8, "max": 9}"#,
        r#"{"kind": "fixed"}"#,
        r#"{"kind": "endless"}"#,
        r#"{"len": 8}"#,
        r#"{"kind": "fixed", "len": -8}"#,
    ] {
        assert!(serde_json::from_str::<SegmentLengths>(json).is_err(), "{json}");
    }
    let mut older = serde_json::to_value(SegmentLengths::paper()).unwrap();
    older.as_object_mut().unwrap().remove("multiple");
    assert_eq!(serde_json::from_value::<SegmentLengths>(older).unwrap(), SegmentLengths::paper());
    for lengths in [SegmentLengths::Fixed { len: 8 }, SegmentLengths::paper(), SegmentLengths::paper().with_multiple(8)]
    {
        let json = serde_json::to_string(&lengths).unwrap();
        assert_eq!(serde_json::from_str::<SegmentLengths>(&json).unwrap(), lengths);
    }
    assert_eq!(
        serde_json::from_str::<SegmentLengths>(r#"{"kind": "fixed", "len": 8}"#).unwrap(),
        SegmentLengths::Fixed { len: 8 }
    );
}

fn state(change: impl Fn(&mut SegmentsState)) -> SegmentsState {
    let mut state = Segments::new(lanes(100, 4), SegmentLengths::around(8), 0).unwrap().state();
    change(&mut state);
    state
}

#[test]
fn a_state_beyond_the_lane_or_of_other_lanes() {
    let restore = |state| Segments::restore(lanes(100, 4), SegmentLengths::around(8), state);
    // 24 of 25 bytes are targets: the end of the epoch is a position, the byte after it is none.
    assert!(restore(state(|s| s.position = 24)).unwrap().next_segment().is_none());
    for bad in [
        state(|s| s.position = 25),
        state(|s| s.position = u64::MAX),
        state(|s| s.n_lanes = 5),
        state(|s| s.lane_len = 24),
    ] {
        let error = restore(bad).unwrap_err();
        assert!(matches!(error, DataError::State { .. }), "{error:?}");
    }
    let error = Segments::restore(lanes(100, 4), SegmentLengths::Fixed { len: 0 }, state(|_| ())).unwrap_err();
    assert!(matches!(error, DataError::SegmentLengths { .. }), "{error:?}");
}

#[test]
fn a_state_with_a_generator_at_the_end_of_its_numbers() {
    let mut json = serde_json::to_string(&state(|_| ())).unwrap();
    let at = json.find("\"word_pos\":").unwrap() + "\"word_pos\":".len();
    let end = at + json[at..].find('}').unwrap();
    json.replace_range(at..end, &u128::MAX.to_string());
    let state: SegmentsState = serde_json::from_str(&json).unwrap();
    let mut segments = Segments::restore(lanes(100, 4), SegmentLengths::around(8), state).unwrap();
    assert_eq!(segment_lens(&mut segments).iter().sum::<usize>(), 24);
}

#[test]
fn a_state_with_an_unknown_or_missing_field() {
    let json = serde_json::to_value(state(|_| ())).unwrap();
    let mut more = json.clone();
    more["colour"] = "red".into();
    assert!(serde_json::from_value::<SegmentsState>(more).is_err());
    let mut less = json.clone();
    less.as_object_mut().unwrap().remove("rng");
    assert!(serde_json::from_value::<SegmentsState>(less).is_err());
    assert_eq!(serde_json::from_value::<SegmentsState>(json).unwrap(), state(|_| ()));
}

#[test]
fn lanes_that_cannot_be_selected() {
    let segments = Segments::new(lanes(100, 4), SegmentLengths::paper(), 0).unwrap();
    #[allow(clippy::reversed_empty_ranges)]
    for range in [0..0, 3..2, 2..5, 4..5] {
        let error = segments.clone().select_lanes(range).unwrap_err();
        assert!(matches!(error, DataError::LaneRange { n_lanes: 4, .. }), "{error:?}");
    }
}

proptest! {
    #[test]
    fn every_byte_but_the_first_of_a_lane_is_a_target_once(
        bytes in proptest::collection::vec(any::<u8>(), 2..3000),
        n_lanes in 1usize..9,
        base in 1usize..300,
        seed: u64,
    ) {
        prop_assume!(bytes.len() >= 2 * n_lanes);
        let lanes = Lanes::new(Corpus::from_bytes(bytes.clone()).whole(), n_lanes).unwrap();
        let lane_len = bytes.len() / n_lanes;
        let mut segments = Segments::new(lanes.clone(), SegmentLengths::around(base), seed).unwrap();
        for _ in 0..2 {
            let mut read = vec![Vec::new(); n_lanes];
            let mut scored = vec![Vec::new(); n_lanes];
            let mut start = 0;
            for segment in epoch(&mut segments) {
                prop_assert!(segment.len >= 1 && segment.len <= base);
                prop_assert_eq!(segment.start, start);
                prop_assert_eq!(segment.inputs.len(), n_lanes * segment.len);
                for lane in 0..n_lanes {
                    let row = lane * segment.len..(lane + 1) * segment.len;
                    read[lane].extend_from_slice(&segment.inputs[row.clone()]);
                    scored[lane].extend_from_slice(&segment.targets[row]);
                }
                start += segment.len;
            }
            for lane in 0..n_lanes {
                let whole = &bytes[lane * lane_len..(lane + 1) * lane_len];
                prop_assert_eq!(&read[lane], &whole[..lane_len - 1]);
                prop_assert_eq!(&scored[lane], &whole[1..]);
            }
            prop_assert_eq!(scored.iter().map(Vec::len).sum::<usize>(), lanes.n_targets());
            segments.start_epoch();
        }
    }

    #[test]
    fn a_restored_stream_goes_on_bit_for_bit(seed: u64, steps in 0usize..60) {
        let lengths = SegmentLengths::around(40);
        let mut straight = Segments::new(lanes(3000, 3), lengths, seed).unwrap();
        for _ in 0..steps {
            if straight.next_segment().is_none() {
                straight.start_epoch();
            }
        }
        let json = serde_json::to_string(&straight.state()).unwrap();
        let state = serde_json::from_str(&json).unwrap();
        let mut resumed = Segments::restore(lanes(3000, 3), lengths, state).unwrap();
        prop_assert_eq!(resumed.epoch(), straight.epoch());
        for _ in 0..3 {
            prop_assert_eq!(epoch(&mut resumed), epoch(&mut straight));
            resumed.start_epoch();
            straight.start_epoch();
        }
        prop_assert_eq!(resumed.state(), straight.state());
    }

    #[test]
    fn selected_lanes_are_rows_of_the_whole_batch(seed: u64, first in 0usize..5, n in 1usize..6) {
        let last = (first + n).min(5);
        let lengths = SegmentLengths::around(40);
        let mut whole = Segments::new(lanes(3000, 5), lengths, seed).unwrap();
        let mut part = whole.clone().select_lanes(first..last).unwrap();
        while let (Some(batch), Some(rows)) = (whole.next_segment(), part.next_segment()) {
            prop_assert_eq!((rows.first_lane, rows.n_lanes), (first, last - first));
            prop_assert_eq!((rows.start, rows.len), (batch.start, batch.len));
            let range = first * batch.len..last * batch.len;
            prop_assert_eq!(&rows.inputs, &batch.inputs[range.clone()]);
            prop_assert_eq!(&rows.targets, &batch.targets[range]);
            prop_assert_eq!(whole.state(), part.state());
        }
        prop_assert_eq!(whole.next_segment(), None);
        prop_assert_eq!(part.next_segment(), None);
    }
}
