//! Compression and decompression of a text in lanes: streams, mixing and coding together, on as many threads as there are cores.

use burn::backend::Flex;
use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use sharnn_codec::{Codec, Options};
use sharnn_core::{ShaRnnConfig, WeightFormat};

fn codec(c: &mut Criterion) {
    let model =
        ShaRnnConfig { d_model: 192, d_ff: 384, ..ShaRnnConfig::xs() }.init_seeded::<Flex>(1, &Default::default());
    let codec = Codec::new(model.engine(WeightFormat::Exact)).expect("a codec's model");
    let text = include_str!("../README.md").repeat(220).into_bytes();

    let mut group = c.benchmark_group("codec");
    group.sample_size(10).throughput(Throughput::Bytes(text.len() as u64));
    for lanes in [16, 64] {
        let options = Options { lanes, ..Options::default() };
        let mut small = Vec::new();
        codec.compress(&*text, &mut small, &options, &mut |_| true).expect("it compresses");
        group.bench_function(format!("compress, lanes {lanes}"), |b| {
            b.iter(|| codec.compress(&*text, std::io::sink(), &options, &mut |_| true).expect("it compresses"));
        });
        group.bench_function(format!("decompress, lanes {lanes}"), |b| {
            b.iter(|| codec.decompress(&*small, std::io::sink(), &mut |_| true).expect("it comes back"));
        });
    }
    group.finish();
}

criterion_group!(benches, codec);
criterion_main!(benches);
