// What a kernel does that has given up: its results must not be taken for good ones.

// Whether a launch before this one has given up, so that nothing need be waited for again.
__device__ inline bool is_raised(unsigned* raised) { return __syncthreads_or(atomicAdd(raised, 0u) != 0u); }

// Whether a block of this launch has given up waiting. The word `raised` then says so to the host, whenever it looks.
__device__ inline bool was_given_up(unsigned* scratch, unsigned* raised) {
    // What this block wrote is out before it looks: a block that gives up later writes over it.
    __threadfence();
    if (!__syncthreads_or(atomicAdd(scratch, 0u) != 0u)) return false;
    if (threadIdx.x == 0) atomicOr(raised, 1u);
    return true;
}

// Makes all values NaN. Each block that has given up makes all of them so: others may have left before, with values written.
__device__ inline void poison(float* values, unsigned long long count) {
    for (unsigned long long at = threadIdx.x; at < count; at += blockDim.x) values[at] = __int_as_float(0x7fc00000);
}

// A pass, and what becomes of its results where it or a launch before it has given up.
template <typename Pass, typename Spoil>
__device__ __forceinline__ void run_or_spoil(unsigned* scratch, unsigned* raised, Pass pass, Spoil spoil) {
    bool given_up = is_raised(raised);
    if (!given_up) {
        pass();
        given_up = was_given_up(scratch, raised);
    }
    if (given_up) spoil();
}
