// What a kernel does that has given up: its results must not be taken for good ones.

// Whether a block of this launch has given up waiting. The word `raised` then says so to the host, whenever it looks.
__device__ bool was_given_up(unsigned *scratch, unsigned *raised) {
    // What this block wrote is out before it looks: the block that gives up later poisons what it finds written.
    __threadfence();
    __syncthreads();
    if (atomicAdd(scratch, 0u) == 0u) return false;
    if (threadIdx.x == 0) atomicOr(raised, 1u);
    return true;
}

// Makes this block's share of the values NaN: every so many of them, so that no row is without one.
__device__ void poison(float *values, unsigned long long count) {
    const unsigned long long step = (unsigned long long)gridDim.x * blockDim.x;
    for (unsigned long long at = (unsigned long long)blockIdx.x * blockDim.x + threadIdx.x; at < count; at += step)
        values[at] = __int_as_float(0x7fc00000);
}
