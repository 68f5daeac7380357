//! Weight files: what goes in comes out, and every kind of wrong file is refused with one clear error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::backend::Flex;
use burn::module::Param;
use burn::tensor::{Int, Tensor, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sharnn_core::{NGramConfig, NGramSite, ShaRnn, ShaRnnConfig};
use sharnn_train::{
    CONFIG_KEY, HostTensor, Mismatch, SaveOptions, WeightType, WeightsError, collect_params, load_metadata,
    load_tensors, load_weights, save_tensors, save_weights, save_weights_as,
};
use tempfile::TempDir;

fn config() -> ShaRnnConfig {
    ShaRnnConfig { d_model: 8, d_ff: 16, n_layers: 2, vocab_size: 11, ..ShaRnnConfig::xs() }
}

fn model(seed: u64) -> ShaRnn<Flex> {
    config().init_seeded(seed, &Default::default())
}

fn logits(model: &ShaRnn<Flex>) -> Vec<f32> {
    let tokens: Tensor<Flex, 2, Int> = Tensor::from_data([[1, 5, 3, 10]], &Default::default());
    model.forward(tokens, model.empty_state()).0.into_data().to_vec().unwrap()
}

type Tensors = BTreeMap<String, HostTensor>;

/// A saved model, to be changed and loaded again.
struct Saved {
    dir: TempDir,
    tensors: Tensors,
}

impl Saved {
    fn new(model: &ShaRnn<Flex>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("good.safetensors");
        save_weights(model, &path).unwrap();
        Self { tensors: load_tensors(&path).unwrap(), dir }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("changed.safetensors")
    }

    fn load_changed(
        &self,
        into: ShaRnn<Flex>,
        change: impl FnOnce(&mut Tensors),
    ) -> Result<ShaRnn<Flex>, WeightsError> {
        let mut tensors = self.tensors.clone();
        change(&mut tensors);
        let tensors: Vec<_> =
            tensors.into_iter().map(|(name, HostTensor { shape, data })| (name, shape, data)).collect();
        save_tensors(&self.path(), &tensors, &BTreeMap::new()).unwrap();
        load_weights(into, &self.path())
    }
}

/// What differs, where that is all that is wrong.
fn mismatch<T>(result: Result<T, WeightsError>) -> Mismatch {
    match result.err() {
        Some(WeightsError::Mismatch { mismatch, .. }) => mismatch,
        error => panic!("{error:?}"),
    }
}

/// The only tensor that differs: its name, the shape expected and the shape found.
fn only(mismatch: Mismatch) -> (String, Option<Vec<usize>>, Option<Vec<usize>>) {
    assert_eq!((mismatch.len(), mismatch.listed.len()), (1, 1), "{mismatch}");
    let it = mismatch.listed[0].clone();
    (it.tensor, it.expected, it.found)
}

fn zeros(shape: &[usize]) -> HostTensor {
    HostTensor { shape: shape.to_vec(), data: vec![0.0; shape.iter().product()] }
}

#[test]
fn weights_come_back_bit_for_bit() {
    for config in [config(), config().with_tied(false), config().with_heads(2)] {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("model.safetensors");
        let saved: ShaRnn<Flex> = config.init_seeded(1, &Default::default());
        save_weights(&saved, &path).unwrap();
        let loaded = load_weights(config.init_seeded(2, &Default::default()), &path).unwrap();
        assert_eq!(collect_params(&loaded), collect_params(&saved));
        assert_eq!(logits(&loaded), logits(&saved));
    }
}

#[test]
fn names_and_shapes_are_the_published_ones() {
    let saved = Saved::new(&model(1));
    let shape = |name: &str| saved.tensors.get(name).unwrap_or_else(|| panic!("{name} is missing")).shape.clone();
    assert_eq!(shape("blocks.0.attn.qs"), [1, 1, 8]);
    assert_eq!(shape("blocks.0.attn.ks"), [1, 1, 8]);
    assert_eq!(shape("blocks.0.attn.vs"), [1, 1, 8]);
    assert_eq!(shape("blocks.0.attn.vq.l1.weight"), [16, 8]);
    assert_eq!(shape("blocks.1.rnn.weight_hh_l0"), [32, 8]);
    assert_eq!(shape("blocks.1.ff.linear1.weight"), [16, 8]);
    assert_eq!(shape("encoder.weight"), [11, 8]);
    assert!(!saved.tensors.contains_key("decoder.weight"), "a tied decoder is not written twice");
    let metadata = load_metadata(&saved.dir.path().join("good.safetensors")).unwrap();
    assert_eq!(metadata.keys().collect::<Vec<_>>(), ["format", CONFIG_KEY]);
    assert_eq!(metadata["format"], "pt");
    assert_eq!(serde_json::from_str::<ShaRnnConfig>(&metadata[CONFIG_KEY]).unwrap(), config());
}

#[test]
fn a_published_file_loads_with_its_unused_parameters_and_tied_copy() {
    let saved = Saved::new(&model(1));
    let loaded = saved.load_changed(model(2), |tensors| {
        tensors.insert("decoder.weight".into(), tensors["encoder.weight"].clone());
        tensors.insert("blocks.0.attn.qkvs".into(), zeros(&[1, 3, 8]));
        tensors.insert("blocks.0.attn.r_gate".into(), zeros(&[1, 1, 8]));
        for name in ["blocks.0.lnout", "blocks.1.lnout", "blocks.1.lnmid", "blocks.1.lnmem"] {
            tensors.insert(format!("{name}.weight"), zeros(&[8]));
            tensors.insert(format!("{name}.bias"), zeros(&[8]));
        }
        // Gates as plain vectors do as well.
        tensors.get_mut("blocks.0.attn.qs").unwrap().shape = vec![8];
    });
    assert_eq!(collect_params(&loaded.unwrap()), collect_params(&model(1)));
}

#[test]
fn other_float_types_are_converted() {
    let saved = Saved::new(&model(1));
    let name = "encoder.weight";
    for dtype in [Dtype::F16, Dtype::BF16, Dtype::F64] {
        let convert = |x: &f32| match dtype {
            Dtype::F16 => (f16::from_f32(*x).to_le_bytes().to_vec(), f16::from_f32(*x).to_f32()),
            Dtype::BF16 => (bf16::from_f32(*x).to_le_bytes().to_vec(), bf16::from_f32(*x).to_f32()),
            _ => (f64::from(*x).to_le_bytes().to_vec(), *x),
        };
        let expected: Vec<f32> = saved.tensors[name].data.iter().map(|x| convert(x).1).collect();
        let bytes: BTreeMap<_, (Dtype, Vec<usize>, Vec<u8>)> = saved
            .tensors
            .iter()
            .map(|(key, HostTensor { shape, data })| {
                let (dtype, bytes) = match key == name {
                    true => (dtype, data.iter().flat_map(|x| convert(x).0).collect()),
                    false => (Dtype::F32, data.iter().flat_map(|x| x.to_le_bytes()).collect()),
                };
                (key.clone(), (dtype, shape.clone(), bytes))
            })
            .collect();
        let views = bytes
            .iter()
            .map(|(key, (dtype, shape, bytes))| (key.as_str(), TensorView::new(*dtype, shape.clone(), bytes).unwrap()));
        std::fs::write(saved.path(), safetensors::serialize(views, None).unwrap()).unwrap();
        let loaded = load_weights(model(2), &saved.path()).unwrap();
        assert_eq!(collect_params(&loaded)[0].data, expected, "{dtype}");
    }
}

#[test]
fn a_collapsed_model_comes_back_collapsed_only() {
    let collapsed = model(1).collapse();
    let saved = Saved::new(&collapsed);
    assert!(!saved.tensors.contains_key("blocks.0.attn.vq.l1.weight"));
    let loaded = saved.load_changed(model(2).collapse(), |_| {}).unwrap();
    assert_eq!(logits(&loaded), logits(&collapsed));

    let error = saved.load_changed(model(2), |_| {}).unwrap_err();
    assert!(matches!(error, WeightsError::Collapsed { .. }), "{error}");
    assert!(error.to_string().contains("load it into a collapsed one"), "{error}");
    let error = Saved::new(&model(1)).load_changed(model(2).collapse(), |_| {}).unwrap_err();
    assert!(matches!(error, WeightsError::Uncollapsed { .. }), "{error}");
}

#[test]
fn a_missing_tensor_is_named() {
    for name in ["blocks.1.rnn.bias_hh_l0", "blocks.0.attn.vq.l1.bias", "decoder.bias"] {
        let saved = Saved::new(&model(1));
        let (tensor, expected, found) =
            only(mismatch(saved.load_changed(model(2), |tensors| drop(tensors.remove(name)))));
        assert_eq!((tensor.as_str(), expected, found), (name, Some(saved.tensors[name].shape.clone()), None));
    }
    let untied = config().with_tied(false).init_seeded(2, &Default::default());
    let (tensor, expected, _) = only(mismatch(Saved::new(&model(1)).load_changed(untied, |_| {})));
    assert_eq!((tensor.as_str(), expected), ("decoder.weight", Some(vec![11, 8])));
}

#[test]
fn an_unknown_tensor_is_named() {
    // Unused ones count as known only where the published model has them.
    for name in
        ["extra", "blocks.2.lnout.weight", "blocks.1.attn.qkvs", "blocks.x.lnout.weight", "blocks.0.lnmid.extra"]
    {
        let saved = Saved::new(&model(1));
        let loaded = saved.load_changed(model(2), |t| drop(t.insert(name.into(), zeros(&[8]))));
        assert_eq!(only(mismatch(loaded)), (name.to_string(), None, Some(vec![8])));
    }
}

#[test]
fn a_wrong_shape_is_told_with_the_right_one() {
    let saved = Saved::new(&model(1));
    for (name, wrong) in
        [("encoder.weight", vec![8, 11]), ("blocks.0.attn.qs", vec![1, 8]), ("decoder.bias", vec![1, 1, 11])]
    {
        let loaded = saved.load_changed(model(2), |t| t.get_mut(name).unwrap().shape = wrong.clone());
        let (tensor, expected, found) = only(mismatch(loaded));
        assert_eq!((tensor.as_str(), expected, found), (name, Some(saved.tensors[name].shape.clone()), Some(wrong)));
    }
    let loaded = saved.load_changed(model(2), |t| drop(t.insert("decoder.weight".into(), zeros(&[8, 11]))));
    assert_eq!(only(mismatch(loaded)).1, Some(vec![11, 8]), "a tied decoder's copy has a shape too");
}

#[test]
fn everything_that_differs_is_told_at_once() {
    let saved = Saved::new(&model(1));
    let change = |tensors: &mut Tensors| {
        tensors.remove("decoder.bias");
        tensors.remove("blocks.1.lnff.weight");
        tensors.insert("extra".into(), zeros(&[2, 3]));
        tensors.get_mut("encoder.weight").unwrap().shape = vec![88];
    };
    let error = saved.load_changed(model(2), change).unwrap_err().to_string();
    let told = "4 tensors differ from the model's: encoder.weight has shape [88], not [11, 8]; blocks.1.lnff.weight [8] is \
                missing; decoder.bias [11] is missing; extra [2, 3] is unknown, in ";
    assert!(error.starts_with(told), "{error}");
    assert!(error.contains("changed.safetensors: load it with the configuration"), "{error}");

    let wider: ShaRnn<Flex> = ShaRnnConfig { d_model: 16, ..config() }.init_seeded(1, &Default::default());
    let other = mismatch(saved.load_changed(wider, |_| {}));
    // All but the bias of the decoder and of the Boom.
    assert_eq!((other.missing, other.unexpected, other.misshapen), (0, 0, saved.tensors.len() - 3), "{other}");
    assert_eq!(other.listed.len(), Mismatch::LISTED);
    assert!(other.to_string().ends_with(&format!("; and {} more", other.len() - 20)), "{other}");
}

#[test]
fn a_configuration_in_the_file_that_is_not_the_models_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    // No tensor shows how many heads there are.
    save_weights(&config().with_heads(2).init_seeded::<Flex>(1, &Default::default()), &path).unwrap();
    let error = load_weights(model(2), &path).unwrap_err();
    assert!(matches!(&error, WeightsError::Config { field: "n_heads", saved, .. } if saved == "2"), "{error}");
    assert!(error.to_string().contains("saved with n_heads = 2, but the model has 1"), "{error}");
    // What no tensor depends on may differ.
    let other = config().with_heads(2).with_mem_len(7).with_dropout(0.5).init_seeded(2, &Default::default());
    load_weights::<Flex>(other, &path).unwrap();

    let list: Vec<_> =
        Saved::new(&model(1)).tensors.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.data)).collect();
    let other = serde_json::to_string(&ShaRnnConfig { d_ff: 24, ..config() }).unwrap();
    let invalid = serde_json::to_string(&config().with_heads(3)).unwrap();
    for (json, told) in [
        (other.as_str(), "saved with d_ff = 24, but the model has 16"),
        (invalid.as_str(), "n_heads = 3 cannot be used"),
        ("{}", "is no configuration of this program: missing field"),
        ("[", "is no configuration of this program"),
    ] {
        save_tensors(&path, &list, &BTreeMap::from([(CONFIG_KEY.to_string(), json.to_string())])).unwrap();
        let error = load_weights(model(2), &path).unwrap_err().to_string();
        assert!(error.contains(told), "{json}: {error}");
    }
}

#[test]
fn a_value_that_is_not_finite_is_located() {
    let saved = Saved::new(&model(1));
    for value in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        let error = saved.load_changed(model(2), |t| t.get_mut("decoder.bias").unwrap().data[7] = value).unwrap_err();
        assert!(matches!(&error, WeightsError::NotFinite { index: 7, .. }), "{error}");
        assert!(error.to_string().contains("decoder.bias"), "{error}");
    }
}

#[test]
fn a_decoder_of_its_own_does_not_pass_for_tied() {
    let saved = Saved::new(&model(1));
    let error = saved.load_changed(model(2), |tensors| {
        let mut own = tensors["encoder.weight"].clone();
        own.data[5] += 1.0;
        tensors.insert("decoder.weight".into(), own);
    });
    let error = error.unwrap_err();
    assert!(matches!(error, WeightsError::NotTied { index: 5, .. }), "{error}");
}

#[test]
fn a_type_that_is_no_float_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("ids.safetensors");
    let bytes = [0; 16];
    let view = TensorView::new(Dtype::I64, vec![2], &bytes).unwrap();
    std::fs::write(&path, safetensors::serialize([("ids", view)], None).unwrap()).unwrap();
    let error = load_tensors(&path).unwrap_err();
    assert!(matches!(&error, WeightsError::Dtype { tensor, .. } if tensor == "ids"), "{error}");
}

#[test]
fn a_damaged_file_is_refused_wherever_it_is_cut() {
    let saved = Saved::new(&model(1));
    let bytes = std::fs::read(saved.dir.path().join("good.safetensors")).unwrap();
    for len in [0, 4, 8, 100, bytes.len() / 2, bytes.len() - 1] {
        std::fs::write(saved.path(), &bytes[..len]).unwrap();
        let error = load_weights(model(2), &saved.path()).unwrap_err();
        assert!(matches!(error, WeightsError::Format { .. }), "cut at {len}: {error}");
    }
    for (start, junk) in [(0, [0xff; 8]), (8, [b'x'; 8])] {
        let mut damaged = bytes.clone();
        damaged[start..start + 8].copy_from_slice(&junk);
        std::fs::write(saved.path(), &damaged).unwrap();
        let error = load_weights(model(2), &saved.path()).unwrap_err();
        assert!(matches!(error, WeightsError::Format { .. }), "junk at {start}: {error}");
    }
    let mut longer = bytes;
    longer.push(0);
    std::fs::write(saved.path(), &longer).unwrap();
    assert!(matches!(load_weights(model(2), &saved.path()), Err(WeightsError::Format { .. })));
}

#[test]
fn a_path_that_cannot_be_used_is_named() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("nowhere").join("model.safetensors");
    let error = load_weights(model(1), &path).unwrap_err();
    assert!(matches!(error, WeightsError::Io { action: "read", .. }), "{error}");
    let error = save_weights(&model(1), &path).unwrap_err();
    assert!(matches!(error, WeightsError::Io { action: "write", .. }), "{error}");
    assert!(error.to_string().contains("nowhere"), "{error}");
    let error = save_weights(&model(1), dir.path()).unwrap_err();
    assert!(matches!(error, WeightsError::Io { action: "write", .. }), "{error}");
    assert!(dir.path().is_dir());
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_told() {
    // Every write to this device says that there is no space.
    let error = save_weights(&model(1), std::path::Path::new("/dev/full")).unwrap_err();
    assert!(matches!(error, WeightsError::DiskFull { .. }), "{error}");
}

/// The largest relative error of a value that is rounded to nearest.
#[test]
fn smaller_types_round_and_say_what_they_cannot_hold() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    for (dtype, epsilon) in
        [(WeightType::F32, 0.0), (WeightType::F16, 2f32.powi(-11)), (WeightType::Bf16, 2f32.powi(-8))]
    {
        save_weights_as(&model(1), &path, &SaveOptions { dtype, ..SaveOptions::default() }).unwrap();
        let values: usize = collect_params(&model(1)).iter().map(|param| param.data.len()).sum();
        let header = std::fs::metadata(&path).unwrap().len() as usize - dtype.size() * values;
        assert!(header < 4096, "{}: {header}", dtype.name());
        let loaded = load_weights(model(2), &path).unwrap();
        for (loaded, saved) in collect_params(&loaded).iter().zip(collect_params(&model(1))) {
            for (loaded, saved) in loaded.data.iter().zip(saved.data) {
                // Below 2^-14 f16 has fixed steps.
                assert!((loaded - saved).abs() <= epsilon * saved.abs().max(2f32.powi(-14)), "{loaded} for {saved}");
            }
        }
    }
    let mut large = Saved::new(&model(1)).tensors;
    large.get_mut("decoder.bias").unwrap().data[3] = 70_000.0;
    let list: Vec<_> = large.into_iter().map(|(name, tensor)| (name, tensor.shape, tensor.data)).collect();
    save_tensors(&path, &list, &BTreeMap::new()).unwrap();
    let large = load_weights(model(2), &path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let as_f16 = SaveOptions { dtype: WeightType::F16, ..SaveOptions::default() };
    let error = save_weights_as(&large, &path, &as_f16).unwrap_err();
    assert!(matches!(&error, WeightsError::TooLarge { index: 3, value: 70_000.0, .. }), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), good);
    save_weights_as(&large, &path, &SaveOptions { dtype: WeightType::Bf16, ..as_f16 }).unwrap();
}

/// Each matrix apart: off by half of its scale at most, and not at all once it has been rounded. Vectors are as they were.
#[test]
fn matrices_of_8_bits_are_read_as_they_were_rounded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let ngrams = NGramConfig { orders: vec![2, 4], rows: 24, width: 8, at: NGramSite::Both };
    let config = model(1).config().with_ngrams(ngrams);
    let of = |seed| config.init_seeded::<Flex>(seed, &Default::default());
    let mut saved = of(1);
    let table = saved.ngrams.as_ref().unwrap().table.val();
    let rows = Tensor::arange(0..table.dims()[0] as i64, &Default::default()).float().unsqueeze_dim(1);
    saved.ngrams.as_mut().unwrap().table = Param::from_tensor(table + rows);
    let as_int8 = SaveOptions { dtype: WeightType::Int8, ..SaveOptions::default() };
    save_weights_as(&saved, &path, &as_int8).unwrap();

    let bytes = std::fs::read(&path).unwrap();
    let header: serde_json::Value =
        serde_json::from_slice(&bytes[8..][..u64::from_le_bytes(*bytes.first_chunk().unwrap()) as usize]).unwrap();
    let told = |name: &str| [header[name]["dtype"].to_string(), header[name]["shape"].to_string()];
    let d = config.d_model;
    assert_eq!(told("encoder.weight"), ["\"I8\"".into(), format!("[{},{d}]", config.vocab_size)]);
    assert_eq!(told("encoder.weight_scale")[0], "\"F32\"");
    assert_eq!(told("ngrams.table"), ["\"I8\"", "[48,8]"]);
    assert_eq!(told("ngrams.table_scale"), ["\"F32\"", "[6]"], "eight rows of eight have a scale");
    assert_eq!(told("decoder.bias")[0], "\"F32\"");

    let once = load_weights(of(2), &path).unwrap();
    for (read, saved) in collect_params(&once).into_iter().zip(collect_params(&saved)) {
        let most = saved.data.iter().fold(0.0, |max: f32, x| max.max(x.abs()));
        for (place, (read, value)) in read.data.iter().zip(&saved.data).enumerate() {
            let largest = match saved.name.as_str() {
                // Its rows grow, so that one scale for all of them would be too coarse for the first.
                "ngrams.table" => (place / 64 * 8 + 8) as f32,
                _ if saved.shape.len() == 2 => most,
                _ => 0.0,
            };
            assert!((read - value).abs() <= largest * 0.50002 / 127.0, "{}: {read} for {value}", saved.name);
        }
    }
    save_weights_as(&once, &path, &as_int8).unwrap();
    let twice = load_weights(of(3), &path).unwrap();
    for (twice, once) in collect_params(&twice).into_iter().zip(collect_params(&once)) {
        for (again, value) in twice.data.iter().zip(&once.data) {
            assert_eq!(again, value, "{}", once.name);
        }
    }
}

/// Name, type and shape of a tensor.
type Info = (&'static str, &'static str, &'static [usize]);

/// A tensor of 8 bits says nothing without what one is worth.
#[test]
fn scales_that_do_not_fit_are_refused() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    let cases: [(&str, &[Info], &str); 4] = [
        ("none", &[], "holds I8 without a_scale"),
        ("too many", &[("a_scale", "F32", &[3])], "I8 with 3 scales of F32 for 4 rows"),
        ("whole numbers themselves", &[("a_scale", "I8", &[4])], "I8 with 4 scales of I8 for 4 rows"),
        ("no numbers", &[("a_scale", "BOOL", &[4])], "I8 with scales of BOOL"),
    ];
    let file = |scales: &[Info], value: f32| {
        let mut header = serde_json::Map::new();
        let mut data: Vec<u8> = vec![1; 8];
        header.insert("a".into(), serde_json::json!({"dtype": "I8", "shape": [4, 2], "data_offsets": [0, 8]}));
        for (name, dtype, shape) in scales {
            let (start, n) = (data.len(), shape.iter().product::<usize>());
            match *dtype {
                "F32" => data.extend(std::iter::repeat_n(value.to_le_bytes(), n).flatten()),
                _ => data.extend(std::iter::repeat_n(1u8, n)),
            }
            let info = serde_json::json!({"dtype": dtype, "shape": shape, "data_offsets": [start, data.len()]});
            header.insert((*name).into(), info);
        }
        let header = serde_json::to_vec(&header).unwrap();
        std::fs::write(&path, [&(header.len() as u64).to_le_bytes()[..], &header, &data].concat()).unwrap();
    };
    for (what, scales, expected) in cases {
        file(scales, 1.0);
        let error = load_tensors(&path).unwrap_err();
        assert!(matches!(error, WeightsError::Dtype { .. }), "{what}: {error}");
        assert!(error.to_string().contains(expected), "{what}: {error}");
    }
    file(&[("a_scale", "F32", &[2])], 0.5);
    let tensors = load_tensors(&path).unwrap();
    assert_eq!(tensors.len(), 1, "scales are no tensor by themselves");
    assert_eq!(tensors["a"], HostTensor { shape: vec![4, 2], data: vec![0.5; 8] });
    file(&[("a_scale", "F32", &[2])], f32::INFINITY);
    let error = load_tensors(&path).unwrap_err();
    assert!(matches!(error, WeightsError::NotFinite { .. }), "{error}");
}

#[test]
fn a_tied_decoder_is_written_twice_and_gates_are_collapsed_on_demand() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save_weights_as(&model(1), &path, &SaveOptions { tied_twice: true, ..SaveOptions::default() }).unwrap();
    let tensors = load_tensors(&path).unwrap();
    assert_eq!(tensors["decoder.weight"], tensors["encoder.weight"]);
    assert_eq!(collect_params(&load_weights(model(2), &path).unwrap()), collect_params(&model(1)));

    save_weights_as(&model(1), &path, &SaveOptions { collapse: true, ..SaveOptions::default() }).unwrap();
    let loaded = load_weights(model(2).collapse(), &path).unwrap();
    assert_eq!(collect_params(&loaded), collect_params(&model(1).collapse()));
}

#[test]
fn the_same_model_gives_the_same_file() {
    let dir = tempfile::tempdir().unwrap();
    let files = [1, 2, 3].map(|i| {
        let path = dir.path().join(i.to_string());
        save_weights(&model(1), &path).unwrap();
        std::fs::read(path).unwrap()
    });
    assert!(files[0] == files[1] && files[1] == files[2]);
}

#[test]
fn a_file_is_replaced_by_a_whole_one_or_not_at_all() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.safetensors");
    save_weights(&model(1), &path).unwrap();
    let good = std::fs::read(&path).unwrap();
    let mut poisoned = model(2);
    poisoned.decoder.bias = poisoned.decoder.bias.map(|bias| bias.mul_scalar(f32::NAN));
    let error = save_weights(&poisoned, &path).unwrap_err();
    assert!(matches!(&error, WeightsError::NotFinite { tensor, index: 0, .. } if tensor == "decoder.bias"), "{error}");
    assert_eq!(std::fs::read(&path).unwrap(), good);
    save_weights(&model(2), &path).unwrap();
    assert_eq!(collect_params(&load_weights(model(1), &path).unwrap()), collect_params(&model(2)));
    assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_pickle_is_refused_with_a_way_to_convert_it() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.pt");
    for (bytes, kind) in [
        (&b"PK\x03\x04\0\0\x08\x08\0\0\0\0\0\0\0\0archive/data.pkl"[..], "zip archive"),
        (b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19.", "pickle"),
        (b"\x80\x04\x95\0\0\0\0\0\0\0\0}.", "pickle"),
    ] {
        std::fs::write(&path, bytes).unwrap();
        let error = load_weights(model(1), &path).unwrap_err();
        assert!(matches!(&error, WeightsError::Pickle { kind: told, .. } if *told == kind), "{error}");
        for line in ["import torch", "weights_only=True)", "save_file({name: x.clone().contiguous()"] {
            assert!(error.to_string().contains(line), "{error}");
        }
    }
    // The header of a good file may be as long as to begin like one: 640 = 0x280.
    let tensors = vec![("x".to_string(), vec![1], vec![1.0])];
    let with = |padding: usize| {
        save_tensors(&path, &tensors, &BTreeMap::from([("k".to_string(), "p".repeat(padding))])).unwrap();
        std::fs::read(&path).unwrap()
    };
    let short = u64::from_le_bytes(with(8)[..8].try_into().unwrap()) as usize;
    assert_eq!(with(8 + 640 - short)[..2], [0x80, 2]);
    assert_eq!(load_tensors(&path).unwrap()["x"].data, [1.0]);
}

#[test]
fn values_that_do_not_fill_their_shape_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.safetensors");
    let error = save_tensors(&path, &[("x".into(), vec![2, 2], vec![0.0; 3])], &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, WeightsError::Length { expected: 4, found: 3, .. }), "{error}");
    assert!(!path.exists());
}
