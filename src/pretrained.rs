//! The small model that comes with the crate: 1.9 million parameters, trained on enwik8. What it was trained on, how, and what it
//! reaches is in [its card](https://github.com/sharnn/sharnn/blob/main/models/README.md).

use sharnn_core::{Backend, ShaRnn, ShaRnnConfig};
use sharnn_train::{ImportOptions, import_weights_from_bytes, read_config_from_bytes};

/// What errors call the file.
pub(crate) const NAME: &str = "the bundled model";

/// The file of its weights, in bf16 under the published PyTorch model's names.
pub const WEIGHTS: &[u8] = include_bytes!("../models/enwik8.safetensors");

/// The model, on a device.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use sharnn::{DecodeEngine, Scorer, WeightFormat, pretrained};
///
/// let model = pretrained::model::<Flex>(&Default::default());
/// let mut scorer = Scorer::new(DecodeEngine::new(&model, WeightFormat::F32).streams(1)).unwrap();
/// let cost = |nats: Vec<f64>| nats.iter().sum::<f64>();
/// let english = cost(scorer.score(b"The capital of France").unwrap());
/// scorer.reset();
/// let noise = cost(scorer.score(b"Tqe wapxtal zf Fjance").unwrap());
/// assert!(english < noise);
/// # }
/// ```
pub fn model<B: Backend>(device: &B::Device) -> ShaRnn<B> {
    let loaded = import_weights_from_bytes(NAME, WEIGHTS, &ImportOptions::default(), device);
    loaded.expect("the bundled file is whole, which is tested")
}

/// Its configuration.
pub fn config() -> ShaRnnConfig {
    let read = read_config_from_bytes(NAME, WEIGHTS, &ImportOptions::default());
    read.expect("the bundled file is whole, which is tested")
}
