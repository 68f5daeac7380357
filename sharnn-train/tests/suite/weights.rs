//! Weight files: what goes in comes out, and every kind of wrong file is refused with one clear error.

use std::collections::BTreeMap;
use std::path::PathBuf;

use burn::backend::Flex;
use burn::tensor::{Int, Tensor, bf16, f16};
use safetensors::Dtype;
use safetensors::tensor::TensorView;
use sharnn_core::{ShaRnn, ShaRnnConfig};
use sharnn_train::{
    HostTensor, WeightsError, collect_params, load_metadata, load_tensors, load_weights, save_tensors, save_weights,
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
    assert_eq!(metadata, BTreeMap::from([("format".to_string(), "pt".to_string())]));
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
    assert!(error.to_string().contains("collapse()"), "{error}");
    let error = Saved::new(&model(1)).load_changed(model(2).collapse(), |_| {}).unwrap_err();
    assert!(matches!(error, WeightsError::Uncollapsed { .. }), "{error}");
}

#[test]
fn a_missing_tensor_is_named() {
    for name in ["blocks.1.rnn.bias_hh_l0", "blocks.0.attn.vq.l1.bias", "decoder.bias"] {
        let saved = Saved::new(&model(1));
        let error = saved.load_changed(model(2), |tensors| drop(tensors.remove(name))).unwrap_err();
        assert!(matches!(&error, WeightsError::Missing { tensor, .. } if tensor == name), "{error}");
        assert!(error.to_string().contains("changed.safetensors"), "{error}");
    }
    let untied = config().with_tied(false).init_seeded(2, &Default::default());
    let error = Saved::new(&model(1)).load_changed(untied, |_| {}).unwrap_err();
    assert!(matches!(&error, WeightsError::Missing { tensor, .. } if tensor == "decoder.weight"), "{error}");
}

#[test]
fn an_unknown_tensor_is_named() {
    // Unused ones count as known only where the published model has them.
    for name in
        ["extra", "blocks.2.lnout.weight", "blocks.1.attn.qkvs", "blocks.x.lnout.weight", "blocks.0.lnmid.extra"]
    {
        let saved = Saved::new(&model(1));
        let error = saved.load_changed(model(2), |t| drop(t.insert(name.into(), zeros(&[8])))).unwrap_err();
        assert!(matches!(&error, WeightsError::Unexpected { tensor, .. } if tensor == name), "{error}");
    }
}

#[test]
fn a_wrong_shape_is_told_with_the_right_one() {
    let saved = Saved::new(&model(1));
    for (name, found) in
        [("encoder.weight", vec![8, 11]), ("blocks.0.attn.qs", vec![1, 8]), ("decoder.bias", vec![1, 1, 11])]
    {
        let error = saved.load_changed(model(2), |t| t.get_mut(name).unwrap().shape = found.clone()).unwrap_err();
        let WeightsError::Shape { tensor, found: told, .. } = &error else { panic!("{error}") };
        assert_eq!((tensor.as_str(), told), (name, &found));
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

#[test]
fn values_that_do_not_fill_their_shape_are_not_written() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("short.safetensors");
    let error = save_tensors(&path, &[("x".into(), vec![2, 2], vec![0.0; 3])], &BTreeMap::new()).unwrap_err();
    assert!(matches!(error, WeightsError::Length { expected: 4, found: 3, .. }), "{error}");
    assert!(!path.exists());
}
