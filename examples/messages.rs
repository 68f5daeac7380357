//! A store of short messages, each compressed alone by what a model and earlier messages taught.
//!
//! ```sh
//! cargo run --release --example messages < log                        the first half of the lines is what came earlier
//! cargo run --release --example messages -- 4000 model < log          the first 4,000 lines, and weights of your own
//! ```

use std::collections::BTreeMap;
use std::io::BufRead;
use std::path::Path;

use burn::backend::Flex;
use sharnn::codec::{CodecError, Records};
use sharnn::train::ImportOptions;
use sharnn::{Mixer, MixerConfig, Scorer, WeightFormat, burn, import_weights, pretrained};

/// What a service would keep in its database.
struct Store {
    records: Records,
    kept: BTreeMap<u64, Vec<u8>>,
}

impl Store {
    fn put(&mut self, id: u64, message: &[u8]) -> Result<(), CodecError> {
        self.kept.insert(id, self.records.compress(message)?);
        Ok(())
    }

    fn get(&self, id: u64) -> Option<Result<Vec<u8>, CodecError>> {
        self.kept.get(&id).map(|record| self.records.decompress(record))
    }
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let lines = std::io::stdin().lock().lines().collect::<Result<Vec<_>, _>>()?;
    let mut args = std::env::args().skip(1);
    let n_earlier = args.next().map_or(Ok(lines.len() / 2), |n| n.parse())?;
    let (earlier, new) = lines.split_at_checked(n_earlier).ok_or("there are fewer lines")?;
    let model = match args.next() {
        Some(path) => import_weights::<Flex>(Path::new(&path), &ImportOptions::default(), &Default::default())?,
        None => pretrained::LARGE.model::<Flex>(&Default::default()),
    };

    let engine = model.engine(WeightFormat::Exact);
    let memory = MixerConfig { memory: 1 << 20 };
    let mut scorer = Scorer::adaptive(engine.streams(1), Mixer::new(memory, 1))?;
    for line in earlier {
        scorer.score(format!("{line}\n").as_bytes())?;
    }
    // What the stream knows now is kept in a file beside the database: see `save_state`.
    let records = Records::new(engine, Some(&scorer.state()), Some(memory.memory))?;

    let mut store = Store { records, kept: BTreeMap::new() };
    for (id, line) in (0..).zip(new) {
        store.put(id, line.as_bytes())?;
        assert_eq!(store.get(id).expect("it was put there")?, line.as_bytes());
    }
    let [bytes, kept] = [new.iter().map(String::len).sum::<usize>(), store.kept.values().map(Vec::len).sum()];
    println!("{} messages of {bytes} bytes are kept in {kept}", new.len());
    Ok(())
}
