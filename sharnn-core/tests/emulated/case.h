// Runs lstm.cu and poison.cu, which stand in front of this in a namespace of their own, and forgets what they were compiled for.

// Reads seq_len steps of inputs and a gradient; writes `raised`, the error flag, output, gates, cells, and `raised`, the flag, gradients of gates and of
// the first cells of a backward pass that starts from what this forward pass left.
// Each launch finds the word `raised` as it is given.
inline void run(const emulated::Case& its, unsigned seq_len, unsigned raised, unsigned seed, std::FILE* in, std::FILE* out) {
    const size_t all = static_cast<size_t>(seq_len) * LANES * D, state = static_cast<size_t>(LANES) * D;
    const auto projected = emulated::read(in, 4 * all), given = emulated::read(in, 4ul * D * D);
    const auto bias_ih = emulated::read(in, 4 * D), bias_hh = emulated::read(in, 4 * D);
    const auto h0 = emulated::read(in, state), c0 = emulated::read(in, state), grad = emulated::read(in, all + state);
    std::vector<Weight> weight(given.size());
    for (size_t i = 0; i < given.size(); ++i) {
#if SHARNN_BF16
        weight[i] = rounded(given[i]);
#else
        weight[i] = given[i];
#endif
    }
    auto output = emulated::room(all + state), gates = emulated::room(4 * all), cells = emulated::room(all);
    {
        emulated::Scratch scratch(its.forward_scratch);
        unsigned word = raised;
        emulated::flag = scratch.get();
        emulated::launch(BLOCKS, THREADS, seed, its.forward_shared, [&](unsigned char* shared) {
            const auto pass = [&] {
                persistent_forward(
                    projected.data(), weight.data(), bias_ih.data(), bias_hh.data(), h0.data(), c0.data(), output.data(), gates.data(),
                    cells.data(), scratch.get(), shared, seq_len
                );
            };
            run_or_spoil(scratch.get(), &word, pass, [&] { poison(output.data(), output.size()); });
        });
        emulated::write(out, &word, 1);
        emulated::write(out, scratch.get(), 1);
    }
    emulated::write(out, output.data(), output.size());
    emulated::write(out, gates.data(), gates.size());
    emulated::write(out, cells.data(), cells.size());
    auto dgates = emulated::room(4 * all), dcells = emulated::room(state);
    {
        emulated::Scratch scratch(its.backward_scratch);
        unsigned word = raised;
        emulated::flag = scratch.get();
        emulated::launch(BLOCKS, THREADS, seed, its.backward_shared, [&](unsigned char* shared) {
            const auto pass = [&] {
                persistent_backward(
                    weight.data(), gates.data(), cells.data(), c0.data(), grad.data(), dgates.data(), dcells.data(), scratch.get(),
                    shared, seq_len
                );
            };
            const auto spoil = [&] {
                poison(dgates.data(), dgates.size());
                poison(dcells.data(), dcells.size());
            };
            run_or_spoil(scratch.get(), &word, pass, spoil);
        });
        emulated::write(out, &word, 1);
        emulated::write(out, scratch.get(), 1);
    }
    emulated::write(out, dgates.data(), dgates.size());
    emulated::write(out, dcells.data(), dcells.size());
}

const emulated::Case CASE = {
    Forward::SHARED_BYTES, Backward::SHARED_BYTES, Forward::SCRATCH_WORDS, Backward::SCRATCH_WORDS, run,
};

#undef SHARNN_D
#undef SHARNN_LANES
#undef SHARNN_BLOCKS
#undef SHARNN_BF16
#undef SHARNN_KEEPS_GATES
#undef SHARNN_KEEPS_CELLS
#undef SHARNN_SPINS
#undef SHARNN_THREADS
