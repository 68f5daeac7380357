//! The models that come with the crate, trained on enwik8: [`LARGE`], which every command uses where none is named, and [`SMALL`], for
//! speed. What they were trained on, how, and what they reach is in
//! [their card](https://github.com/sharnn/sharnn/blob/main/models/README.md).

use sharnn_core::{Backend, ShaRnn, ShaRnnConfig};
use sharnn_train::{ImportOptions, import_weights_from_bytes, read_config_from_bytes};

/// 4.4 million parameters, two million multiply-adds a byte.
pub static LARGE: Pretrained =
    Pretrained { name: "the bundled model", weights: include_bytes!("../models/enwik8.safetensors") };

/// 0.9 million parameters, half a million multiply-adds a byte.
pub static SMALL: Pretrained =
    Pretrained { name: "the small bundled model", weights: include_bytes!("../models/enwik8-small.safetensors") };

/// A model that comes with the crate.
///
/// ```
/// # #[cfg(feature = "flex")] {
/// use burn::backend::Flex;
/// use sharnn::{Scorer, WeightFormat, pretrained};
///
/// let model = pretrained::LARGE.model::<Flex>(&Default::default());
/// let mut scorer = Scorer::new(model.engine(WeightFormat::F32).streams(1)).unwrap();
/// let cost = |nats: Vec<f64>| nats.iter().sum::<f64>();
/// let english = cost(scorer.score(b"The capital of France").unwrap());
/// scorer.reset();
/// let noise = cost(scorer.score(b"Tqe wapxtal zf Fjance").unwrap());
/// assert!(english < noise);
/// # }
/// ```
#[derive(Debug)]
pub struct Pretrained {
    /// What errors call it.
    pub(crate) name: &'static str,
    weights: &'static [u8],
}

impl Pretrained {
    /// The file of its weights: rows of 8 bits under the published PyTorch model's names (docs/weights.md of the repository).
    pub fn weights(&self) -> &'static [u8] {
        self.weights
    }

    /// The model, on a device.
    pub fn model<B: Backend>(&self, device: &B::Device) -> ShaRnn<B> {
        let loaded = import_weights_from_bytes(self.name, self.weights, &ImportOptions::default(), device);
        loaded.expect("the bundled files are whole, which is tested")
    }

    /// Its configuration.
    pub fn config(&self) -> ShaRnnConfig {
        let read = read_config_from_bytes(self.name, self.weights, &ImportOptions::default());
        read.expect("the bundled files are whole, which is tested")
    }
}
