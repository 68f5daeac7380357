# `just check` is what a change has to pass.

default: check

check: fmt clippy test doc bench-build

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets -- -D warnings

test:
    cargo test --workspace

doc:
    RUSTDOCFLAGS="-D warnings" cargo doc --workspace --no-deps

bench-build:
    cargo bench --workspace --no-run

# Every backend that compiles without anything installed.
backends:
    cargo clippy --workspace --no-default-features --features cuda,wgpu,autotune,fusion -- -D warnings
    cargo clippy --workspace --no-default-features --features ndarray,cli -- -D warnings

# The kernels of GPUs on a Vulkan device, such as Mesa's in software. Some 10 minutes, most of them to compile.
gpu-tests:
    cargo test -p sharnn-core --no-default-features --features wgpu --test suite wgpu::
    cargo test -p sharnn-core --no-default-features --features wgpu --test suite fusion::

bench:
    cargo bench

# Two processes, one run. Needs Open MPI and libclang.
mpi:
    cargo build --release --example enwik8 --features mpi
    mpirun --bind-to none -n 2 target/release/examples/enwik8 --steps 100

# Train for about three minutes.
quick:
    cargo run --release --example enwik8
