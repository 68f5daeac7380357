//! What can't be exported, and where it can't be written.

use std::fs;

use burn::backend::Flex;
use burn::module::Param;
use burn::tensor::{Tensor, TensorData};
use sharnn_core::{Attend, NGramSite, ShaRnn};
use sharnn_onnx::{OnnxError, OnnxExport, OnnxWeights};

use crate::support::{config, model, ngrams};

fn small() -> ShaRnn<Flex> {
    model(&config(Attend::SecondLast, 16))
}

/// Sets one value of a weight.
fn spoil(weight: &mut Param<Tensor<Flex, 2>>, value: f32) {
    *weight = weight.clone().map(|x| {
        let shape = x.dims();
        let mut values: Vec<f32> = x.into_data().into_vec().unwrap();
        values[41] = value;
        Tensor::from_data(TensorData::new(values, shape), &Default::default())
    });
}

fn spoilt(mut model: ShaRnn<Flex>, value: f32) -> ShaRnn<Flex> {
    spoil(&mut model.blocks[1].boom.linear.weight, value);
    model
}

#[test]
fn a_weight_that_is_no_number() {
    let error = OnnxExport::default().encode(&spoilt(small(), f32::NAN)).unwrap_err();
    let OnnxError::NotFinite { tensor, index: 41, value } = &error else { panic!("{error}") };
    assert_eq!(tensor, "blocks.1.boom.linear.weight");
    assert!(value.is_nan());
    assert!(error.to_string().contains("blocks.1.boom.linear.weight holds NaN at position 41"), "{error}");
}

#[test]
fn a_value_gate_that_is_no_number() {
    let mut model = small();
    let gate = &mut model.blocks[1].attending.as_mut().unwrap().attention.value_gate.gate;
    // Its sigmoid is 1.
    *gate = gate.clone().map(|x| x * f32::INFINITY);
    let error = OnnxExport::default().encode(&model).unwrap_err();
    assert!(
        matches!(&error, OnnxError::NotFinite { tensor, .. }
        if tensor == "blocks.1.attending.attention.value_gate.gate"),
        "{error}"
    );
}

#[test]
fn n_grams_that_are_no_number() {
    let sound = model(&config(Attend::SecondLast, 16).with_ngrams(ngrams(NGramSite::Both)));
    let spoilt = |weight: &str, value| {
        let mut model = sound.clone();
        let ngrams = model.ngrams.as_mut().unwrap();
        let weight = match weight {
            "ngrams.table" => &mut ngrams.table,
            "ngrams.input" => ngrams.input.as_mut().unwrap(),
            _ => ngrams.output.as_mut().unwrap(),
        };
        spoil(weight, value);
        model
    };
    for weight in ["ngrams.table", "ngrams.input", "ngrams.output"] {
        let error = OnnxExport::default().encode(&spoilt(weight, f32::NAN)).unwrap_err();
        assert!(matches!(&error, OnnxError::NotFinite { tensor, index: 41, .. } if tensor == weight), "{error}");
        let export = OnnxExport { weights: OnnxWeights::F16, ..Default::default() };
        let error = export.encode(&spoilt(weight, 1e6)).unwrap_err();
        assert!(matches!(&error, OnnxError::TooLargeForF16 { tensor, value: 1e6, .. } if tensor == weight), "{error}");
    }
}

#[test]
fn a_weight_too_large_for_f16() {
    let export = OnnxExport { weights: OnnxWeights::F16, ..Default::default() };
    // The largest f32 that rounds to a finite f16.
    export.encode(&spoilt(small(), 65519.0)).unwrap();
    let large = spoilt(small(), -65520.0);
    let error = export.encode(&large).unwrap_err();
    assert!(
        matches!(&error, OnnxError::TooLargeForF16 { tensor, value: -65520.0, .. }
        if tensor == "blocks.1.boom.linear.weight"),
        "{error}"
    );
    OnnxExport::default().encode(&large).unwrap();
}

#[test]
fn a_key_of_ours() {
    let metadata = [("sharnn.config".to_string(), "{}".to_string())].into();
    let error = OnnxExport { metadata, ..Default::default() }.encode(&small()).unwrap_err();
    assert!(matches!(&error, OnnxError::ReservedKey { key } if key == "sharnn.config"), "{error}");
}

#[test]
fn a_file_is_what_is_encoded() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    let export = OnnxExport::default();
    fs::write(&path, "an older file").unwrap();
    export.save(&small(), &path).unwrap();
    assert_eq!(fs::read(&path).unwrap(), export.encode(&small()).unwrap());
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn an_export_that_fails_leaves_the_older_file() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    fs::write(&path, "an older file").unwrap();
    OnnxExport::default().save(&spoilt(small(), f32::INFINITY), &path).unwrap_err();
    assert_eq!(fs::read(&path).unwrap(), b"an older file");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[test]
fn a_folder_that_is_missing() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("missing/model.onnx");
    let error = OnnxExport::default().save(&small(), &path).unwrap_err();
    let OnnxError::Io { file, source, .. } = &error else { panic!("{error}") };
    assert_eq!(file, &path.display().to_string());
    assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
    assert!(!dir.path().join("missing").exists());
}

#[test]
fn a_path_that_is_a_folder() {
    let dir = tempfile::tempdir().unwrap();
    let error = OnnxExport::default().save(&small(), dir.path()).unwrap_err();
    assert!(matches!(&error, OnnxError::Io { action: "replace", .. }), "{error}");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 0);
}

/// The test runs itself again under a limit on the sizes of files.
#[cfg(unix)]
#[test]
fn a_limit_on_the_size_of_files_is_told() {
    const PATH: &str = "SHARNN_ONNX_LIMITED";
    if let Some(path) = std::env::var_os(PATH) {
        let error = OnnxExport::default().save(&small(), path).unwrap_err();
        assert!(matches!(&error, OnnxError::Io { action: "write", .. }), "{error}");
        assert!(error.to_string().contains("(ulimit -f)"), "{error}");
        return;
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("model.onnx");
    fs::write(&path, "an older file").unwrap();
    // Through pipes: the limit holds for a file that the output goes to as well.
    let output = std::process::Command::new("sh")
        .args(["-c", r#"trap "" XFSZ; ulimit -f 8; exec "$0" "$@""#])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "refused::a_limit_on_the_size_of_files_is_told", "--nocapture"])
        .env(PATH, &path)
        .output()
        .unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert_eq!(fs::read(&path).unwrap(), b"an older file");
    assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
}

#[cfg(unix)]
#[test]
fn a_device_stays_and_a_link_too() {
    use std::os::unix::fs::{FileTypeExt, symlink};

    let error = OnnxExport::default().save(&small(), "/dev/null").unwrap_err();
    assert!(matches!(&error, OnnxError::Io { action: "replace", .. }), "{error}");
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());

    let dir = tempfile::tempdir().unwrap();
    let [file, link] = ["model.onnx", "link.onnx"].map(|name| dir.path().join(name));
    fs::write(&file, "an older file").unwrap();
    symlink(&file, &link).unwrap();
    OnnxExport::default().save(&small(), &link).unwrap();
    assert!(fs::symlink_metadata(&link).unwrap().is_symlink());
    assert_eq!(fs::read(&file).unwrap(), OnnxExport::default().encode(&small()).unwrap());
}
