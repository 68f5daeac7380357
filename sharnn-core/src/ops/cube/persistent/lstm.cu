// The LSTM over a whole segment in one launch: the weights stay on the multiprocessors, hidden states travel through the L2 cache.
//
// Forward. A block owns some hidden units, and keeps their four rows of W_hh in shared memory. Each step it reads the hidden states of
// all units, multiplies, computes gates, cells and hidden states of its own units, and publishes those. All blocks wait for all.
//
// Backward. Blocks form a rectangle: I groups of columns (hidden units, whose gradient is a sum over all gates) by J groups of terms (the
// gates). Block (i, j) keeps that rectangle of W_hh, and owns a J-th part of the units of group i. Each step has two halves:
//   1. an owner adds up the J partial sums of its units, in the order of j, and publishes the gradients of its gates;
//   2. block (i, j) waits for the owners of its terms alone, multiplies, and publishes its partial sums of group i.
// An owner waits for the J blocks of its group alone.
//
// What is published lies in two buffers, used in turn. Whoever writes a buffer again has waited, directly or through others, for all who
// read it two steps ago.
//
// Sums have a fixed order, so results are the same in every run: a warp's terms, then warps, then groups of terms.
//
// Text in front of this file defines
//   SHARNN_D            hidden units
//   SHARNN_LANES        1 to 64
//   SHARNN_BLOCKS       blocks of the launch; all must be on the device at once
//   SHARNN_BF16         1: operands of the product are bfloat16, on tensor cores; 0: all is f32
//   SHARNN_KEEPS_GATES  1: the forward pass writes `gates`
//   SHARNN_KEEPS_CELLS  1: the forward pass writes `cells`
//   SHARNN_SPINS        loads after which a wait is given up (optional)
// and, where the host computed them, SHARNN_FORWARD_SHARED and SHARNN_BACKWARD_SHARED (bytes), SHARNN_FORWARD_SCRATCH and
// SHARNN_BACKWARD_SCRATCH (words): they are compared with what is needed.
//
// Scratch memory, 32-bit words, is all zero at launch. Its first word is the error flag: where it is 1 afterwards, a wait was given up,
// all blocks have left, and the results are void.

#ifndef SHARNN_SPINS
#define SHARNN_SPINS (1u << 22)
#endif
#ifndef SHARNN_THREADS
#define SHARNN_THREADS 256
#endif
// Where a test puts in delays.
#ifndef SHARNN_DELAY
#define SHARNN_DELAY()
#endif

#if SHARNN_BF16
// The bits of a bfloat16.
typedef unsigned short Weight;
#else
typedef float Weight;
#endif

constexpr int D = SHARNN_D;
constexpr int LANES = SHARNN_LANES;
constexpr int BLOCKS = SHARNN_BLOCKS;
constexpr int THREADS = SHARNN_THREADS;
constexpr bool BF16 = SHARNN_BF16;
constexpr int WARPS = THREADS / 32;

__device__ constexpr int ceiling(int a, int b) { return (a + b - 1) / b; }
__device__ constexpr int least(int a, int b) { return a < b ? a : b; }
__device__ constexpr int most(int a, int b) { return a > b ? a : b; }

// A tile of the product has 16 lanes, 16 terms, 8 columns.
constexpr int LANE_TILES = ceiling(LANES, 16);
constexpr int ROWS = 16 * LANE_TILES;
// Words of 16 published terms of all lanes: two bfloat16 a word, or one f32.
constexpr int TERM_TILE_WORDS = LANE_TILES * (BF16 ? 128 : 256);
// Bytes of 16 terms of 8 columns of the weights.
constexpr int WEIGHT_TILE_BYTES = BF16 ? 256 : 512;
// Tiles of columns whose sums a thread holds at once: 64 registers at most, and as many elements as there are threads.
constexpr int MOST_COLUMN_TILES = least(least(BF16 ? 8 : 4, most(1, 16 / LANE_TILES)), WARPS);

static_assert(LANES >= 1 && LANES <= 64, "1 to 64 lanes");
static_assert(THREADS % 32 == 0, "whole warps");

// The sums of all warps, one tile of lanes at a time. Eight more columns put neighbouring rows into other banks.
__device__ constexpr int sums_stride(int column_tiles) { return 8 * column_tiles + 8; }

// Bytes where the warps' sums meet; in f32, before that, where each warp has 16 terms of all lanes.
__device__ constexpr int sums_bytes(int column_tiles) {
    return most(WARPS * 16 * sums_stride(column_tiles) * 4, BF16 ? 0 : WARPS * 16 * ROWS * 4);
}

// Whether a block's weights are held in registers: where all columns are multiplied at once, and 96 registers of a thread are enough.
// To read 64 KB of shared memory would take 512 cycles of each step.
__device__ constexpr bool are_held(int term_tiles, int column_tiles, int at_once) {
    return BF16 && at_once == column_tiles && ceiling(term_tiles, WARPS) * column_tiles <= 48;
}

// Bytes of the weights and the sums, and where in them the sums begin: in the place of the weights, where those are held.
__device__ constexpr int product_bytes(int term_tiles, int column_tiles, int at_once) {
    const int weights = term_tiles * column_tiles * WEIGHT_TILE_BYTES, sums = sums_bytes(at_once);
    return are_held(term_tiles, column_tiles, at_once) ? most(weights, sums) : weights + sums;
}
__device__ constexpr int sums_begin(int term_tiles, int column_tiles, int at_once) {
    return are_held(term_tiles, column_tiles, at_once) ? 0 : term_tiles * column_tiles * WEIGHT_TILE_BYTES;
}

// Shared memory begins with the word that says to leave; what follows is aligned to 16 bytes.
constexpr int LEAVE_BYTES = 16;

// Words of scratch memory between two counters: a line of the cache each.
constexpr int LINE = 32;

// How the forward pass is divided.
struct Forward {
    // Hidden units of a block, two in a tile of columns.
    static constexpr int UNITS = 2 * ceiling(ceiling(D, BLOCKS), 2);
    static constexpr int COLUMN_TILES = UNITS / 2;
    static constexpr int USED_BLOCKS = ceiling(D, UNITS);
    static constexpr int TERM_TILES = ceiling(D, 16);
    static constexpr int AT_ONCE = least(COLUMN_TILES, MOST_COLUMN_TILES);
    static constexpr int PASSES = ceiling(COLUMN_TILES, AT_ONCE);
    // Elements (lane, unit) of a pass and a tile of lanes: a thread has one at most.
    static constexpr int ELEMENTS = 16 * 2 * AT_ONCE;
    static constexpr int SLOTS = PASSES * LANE_TILES * ELEMENTS;

    static constexpr int WEIGHTS_AT = LEAVE_BYTES;
    static constexpr int SUMS_AT = WEIGHTS_AT + sums_begin(TERM_TILES, COLUMN_TILES, AT_ONCE);
    static constexpr int SLOTS_AT = WEIGHTS_AT + product_bytes(TERM_TILES, COLUMN_TILES, AT_ONCE);
    static constexpr int BIAS_AT = SLOTS_AT + 6 * SLOTS * 4;
    static constexpr int SHARED_BYTES = BIAS_AT + COLUMN_TILES * 8 * 4;

    static constexpr int COUNTER_AT = LINE;
    static constexpr int STATES_AT = 2 * LINE;
    static constexpr int STATES_WORDS = TERM_TILES * TERM_TILE_WORDS;
    static constexpr int SCRATCH_WORDS = STATES_AT + 2 * STATES_WORDS;
};

// How the backward pass is divided.
struct Backward {
    static constexpr int TERM_GROUPS = BLOCKS >= 64 ? 8 : BLOCKS >= 16 ? 4 : BLOCKS >= 4 ? 2 : 1;
    // Hidden units that a block owns.
    static constexpr int UNITS = ceiling(D, BLOCKS / TERM_GROUPS * TERM_GROUPS);
    static constexpr int COLUMN_GROUPS = ceiling(D, UNITS * TERM_GROUPS);
    static constexpr int USED_BLOCKS = COLUMN_GROUPS * TERM_GROUPS;
    // Hidden units that are columns of a block, and those whose gates are its terms.
    static constexpr int COLUMNS = TERM_GROUPS * UNITS;
    static constexpr int TERM_UNITS = COLUMN_GROUPS * UNITS;
    static constexpr int COLUMN_TILES = ceiling(COLUMNS, 8);
    static constexpr int TERM_TILES = ceiling(TERM_UNITS, 4);
    static constexpr int AT_ONCE = least(COLUMN_TILES, MOST_COLUMN_TILES);
    static constexpr int PASSES = ceiling(COLUMN_TILES, AT_ONCE);
    // Elements (lane, unit) that a block owns.
    static constexpr int SLOTS = LANES * UNITS;

    static constexpr int WEIGHTS_AT = LEAVE_BYTES;
    static constexpr int SUMS_AT = WEIGHTS_AT + sums_begin(TERM_TILES, COLUMN_TILES, AT_ONCE);
    static constexpr int SLOTS_AT = WEIGHTS_AT + product_bytes(TERM_TILES, COLUMN_TILES, AT_ONCE);
    static constexpr int SHARED_BYTES = SLOTS_AT + 8 * SLOTS * 4;

    static constexpr int TERMS_COUNTER_AT = LINE;
    static constexpr int COLUMNS_COUNTER_AT = LINE * (1 + TERM_GROUPS);
    static constexpr int GRADS_AT = LINE * (1 + TERM_GROUPS + COLUMN_GROUPS);
    static constexpr int GROUP_WORDS = TERM_TILES * TERM_TILE_WORDS;
    static constexpr int GRADS_WORDS = TERM_GROUPS * GROUP_WORDS;
    static constexpr int PARTS_AT = GRADS_AT + 2 * GRADS_WORDS;
    static constexpr int PART_WORDS = ROWS * 8 * COLUMN_TILES;
    static constexpr int PARTS_WORDS = USED_BLOCKS * PART_WORDS;
    static constexpr int SCRATCH_WORDS = PARTS_AT + 2 * PARTS_WORDS;
};

#ifdef SHARNN_FORWARD_SHARED
static_assert(SHARNN_FORWARD_SHARED == Forward::SHARED_BYTES, "shared memory, forward");
#endif
#ifdef SHARNN_BACKWARD_SHARED
static_assert(SHARNN_BACKWARD_SHARED == Backward::SHARED_BYTES, "shared memory, backward");
#endif
#ifdef SHARNN_FORWARD_SCRATCH
static_assert(SHARNN_FORWARD_SCRATCH == Forward::SCRATCH_WORDS, "scratch memory, forward");
#endif
#ifdef SHARNN_BACKWARD_SCRATCH
static_assert(SHARNN_BACKWARD_SCRATCH == Backward::SCRATCH_WORDS, "scratch memory, backward");
#endif

// --- What a device does in instructions of its own. The emulation has these functions in C++. ---

#ifndef SHARNN_EMULATED

__device__ __forceinline__ size_t global_address(const void* at) { return __cvta_generic_to_global(at); }

// Adds one. What this block wrote before its last __syncthreads() is seen by whoever sees the sum.
__device__ __forceinline__ void add_release(unsigned* counter) {
    asm volatile("red.release.gpu.global.add.u32 [%0], 1;" ::"l"(global_address(counter)) : "memory");
}

__device__ __forceinline__ unsigned load_acquire(const unsigned* counter) {
    unsigned value;
    asm volatile("ld.acquire.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global_address(counter)) : "memory");
    return value;
}

__device__ __forceinline__ unsigned load_relaxed(const unsigned* flag) {
    unsigned value;
    asm volatile("ld.relaxed.gpu.global.u32 %0, [%1];" : "=r"(value) : "l"(global_address(flag)) : "memory");
    return value;
}

__device__ __forceinline__ void store_relaxed(unsigned* flag, unsigned value) {
    asm volatile("st.relaxed.gpu.global.u32 [%0], %1;" ::"l"(global_address(flag)), "r"(value) : "memory");
}

__device__ __forceinline__ void spin_pause() {}

// Published values are read once by each block: they need no place in its L1 cache.
__device__ __forceinline__ uint4 load_published(const uint4* at) {
    uint4 v;
    asm volatile("ld.global.cg.v4.u32 {%0, %1, %2, %3}, [%4];"
                 : "=r"(v.x), "=r"(v.y), "=r"(v.z), "=r"(v.w)
                 : "l"(global_address(at))
                 : "memory");
    return v;
}

__device__ __forceinline__ float load_published(const float* at) {
    float v;
    asm volatile("ld.global.cg.f32 %0, [%1];" : "=f"(v) : "l"(global_address(at)) : "memory");
    return v;
}

// Begins to copy a value into shared memory; wait_copies() of the same thread waits for it.
__device__ __forceinline__ void begin_copy(float* to, const float* from) {
    const unsigned address = static_cast<unsigned>(__cvta_generic_to_shared(to));
    asm volatile("cp.async.ca.shared.global [%0], [%1], 4;" ::"r"(address), "l"(global_address(from)) : "memory");
}

__device__ __forceinline__ void wait_copies() { asm volatile("cp.async.wait_all;" ::: "memory"); }

// sums += a b. Of a (16 lanes by 16 terms) a thread has rows t / 4 and t / 4 + 8, of b column t / 4, of the sums those rows in columns
// t % 4 * 2 and the one after; terms t % 4 * 2, the one after, and both plus 8.
__device__ __forceinline__ void multiply_tile(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, uint2 b) {
    asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
        : "+f"(sums[0]), "+f"(sums[1]), "+f"(sums[2]), "+f"(sums[3])
        : "r"(a0), "r"(a1), "r"(a2), "r"(a3), "r"(b.x), "r"(b.y));
}

#endif

// --- Between blocks. ---

// The thread that counts and waits for its block: of the last warp, which has the fewest elements.
constexpr int WAITER = THREADS - 32;

// Publishes what this block wrote before its last __syncthreads().
__device__ __forceinline__ void arrive(unsigned* counter) {
    SHARNN_DELAY();
    if (threadIdx.x == WAITER) {
        add_release(counter);
    }
    SHARNN_DELAY();
}

// Waits until `counter` is `target`. Whether it came to that: if not, the block has to leave.
__device__ __forceinline__ bool arrived(const unsigned* counter, unsigned target, unsigned* flag, unsigned* leave) {
    SHARNN_DELAY();
    if (threadIdx.x == WAITER) {
        for (unsigned spins = 0; load_acquire(counter) < target; ++spins) {
            if (spins >= SHARNN_SPINS || (spins % 64 == 63 && load_relaxed(flag) != 0)) {
                store_relaxed(flag, 1);
                *leave = 1;
                break;
            }
            spin_pause();
        }
    }
    __syncthreads();
    SHARNN_DELAY();
    return *leave == 0;
}

// --- Numbers. ---

__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

#if SHARNN_BF16
// To the nearest bfloat16, to the even one of two.
__device__ __forceinline__ unsigned short rounded(float x) {
    const unsigned bits = __float_as_uint(x);
    const unsigned short nearest = static_cast<unsigned short>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16);
    return x == x ? nearest : 0x7fff;
}
#endif

// --- Operands. ---

// Where a published value is, from the first of its 16 terms of all lanes on. In bf16 a thread's part of a tensor core's tile is 16
// bytes: four terms of row t / 4, then of row t / 4 + 8. (A product does not care in which order its terms are, and the weights are in
// the same one.)
__device__ __forceinline__ int published_at(int lane, int term) {
    if (BF16) {
        return ((lane / 16 * 8 + lane % 8) * 4 + term / 4) * 8 + lane % 16 / 8 * 4 + term % 4;
    }
    return term * ROWS + lane;
}

// Publishes the value of a term, of the terms from `to` on.
__device__ __forceinline__ void publish(unsigned* to, int lane, int term, float value) {
    const int at = term / 16 * (BF16 ? 2 : 1) * TERM_TILE_WORDS + published_at(lane, term % 16);
#if SHARNN_BF16
    reinterpret_cast<unsigned short*>(to)[at] = rounded(value);
#else
    reinterpret_cast<float*>(to)[at] = value;
#endif
}

// Brings a block's weights into shared memory: `value(term, column)` for each, in the order in which they are multiplied.
template <int TERM_TILES, int COLUMN_TILES, typename Value>
__device__ __forceinline__ void bring_weights(unsigned char* weights, Value value) {
#pragma unroll 8
    for (int at = threadIdx.x; at < TERM_TILES * COLUMN_TILES * 128; at += THREADS) {
        if (BF16) {
            const int tile = at / 128, thread = at % 128 / 4;
            const int term = tile / COLUMN_TILES * 16 + thread % 4 * 4 + at % 4;
            reinterpret_cast<Weight*>(weights)[at] = value(term, tile % COLUMN_TILES * 8 + thread / 4);
        } else {
            reinterpret_cast<Weight*>(weights)[at] = value(at / (8 * COLUMN_TILES), at % (8 * COLUMN_TILES));
        }
    }
}

// --- The product of published values and weights. ---

#if SHARNN_BF16

// Each warp multiplies its share of the terms: every WARPS-th tile.
template <int TERM_TILES, int COLUMN_TILES, int AT_ONCE>
struct Product {
    static constexpr int OWN_TILES = ceiling(TERM_TILES, WARPS);
    // Loads that are under way at once hide one another's latency.
    static constexpr int DEEP = most(1, least(8 / LANE_TILES, OWN_TILES));
    static constexpr bool HELD = are_held(TERM_TILES, COLUMN_TILES, AT_ONCE);
    static constexpr int UNROLLED = HELD ? OWN_TILES : 1;

    float sums[AT_ONCE][LANE_TILES][4];
    uint2 held[HELD ? OWN_TILES : 1][HELD ? COLUMN_TILES : 1];

    __device__ __forceinline__ uint2 weight(const unsigned char* weights, int term_tile, int column_tile) const {
        return reinterpret_cast<const uint2*>(weights)[(term_tile * COLUMN_TILES + column_tile) * 32 + threadIdx.x % 32];
    }

    // To be called once, when the weights are in shared memory. Where they are held, the sums take their place.
    __device__ __forceinline__ void hold(const unsigned char* weights) {
        if (HELD) {
#pragma unroll
            for (int own = 0; own < OWN_TILES; ++own) {
                const int term_tile = threadIdx.x / 32 + own * WARPS;
#pragma unroll
                for (int c = 0; c < COLUMN_TILES; ++c) {
                    held[HELD ? own : 0][HELD ? c : 0] = weight(weights, least(term_tile, TERM_TILES - 1), c);
                }
            }
            __syncthreads();
        }
    }

    __device__ __forceinline__ void multiply(const unsigned* published, const unsigned char* weights, int first, unsigned char*) {
        const uint4* states = reinterpret_cast<const uint4*>(published) + threadIdx.x % 32;
#pragma unroll
        for (int c = 0; c < AT_ONCE; ++c) {
#pragma unroll
            for (int m = 0; m < LANE_TILES; ++m) {
                sums[c][m][0] = sums[c][m][1] = sums[c][m][2] = sums[c][m][3] = 0.0f;
            }
        }
#pragma unroll UNROLLED
        for (int from = 0; from < OWN_TILES; from += DEEP) {
            uint4 a[DEEP][LANE_TILES];
#pragma unroll
            for (int i = 0; i < DEEP; ++i) {
                const int term_tile = threadIdx.x / 32 + (from + i) * WARPS;
                if (term_tile < TERM_TILES) {
#pragma unroll
                    for (int m = 0; m < LANE_TILES; ++m) {
                        a[i][m] = load_published(states + (term_tile * LANE_TILES + m) * 32);
                    }
                }
            }
#pragma unroll
            for (int i = 0; i < DEEP; ++i) {
                const int own = from + i, term_tile = threadIdx.x / 32 + own * WARPS;
                if (term_tile < TERM_TILES) {
#pragma unroll
                    for (int c = 0; c < AT_ONCE; ++c) {
                        if (first + c < COLUMN_TILES) {
                            const uint2 b = HELD ? held[HELD ? least(own, OWN_TILES - 1) : 0][HELD ? c : 0]
                                                 : weight(weights, term_tile, first + c);
#pragma unroll
                            for (int m = 0; m < LANE_TILES; ++m) {
                                multiply_tile(sums[c][m], a[i][m].x, a[i][m].z, a[i][m].y, a[i][m].w, b);
                            }
                        }
                    }
                }
            }
        }
    }

    // Writes this warp's sums of a tile of lanes.
    __device__ __forceinline__ void write(float* to, int lane_tile) const {
        const int thread = threadIdx.x % 32;
        float* row = to + (threadIdx.x / 32 * 16 + thread / 4) * sums_stride(AT_ONCE) + thread % 4 * 2;
#pragma unroll
        for (int m = 0; m < LANE_TILES; ++m) {
            if (m == lane_tile) {
#pragma unroll
                for (int c = 0; c < AT_ONCE; ++c) {
                    *reinterpret_cast<float2*>(row + c * 8) = make_float2(sums[c][m][0], sums[c][m][1]);
                    *reinterpret_cast<float2*>(row + c * 8 + 8 * sums_stride(AT_ONCE)) = make_float2(sums[c][m][2], sums[c][m][3]);
                }
            }
        }
    }
};

#else

// The same in f32: a thread has columns t, t + 32, ... of all lanes.
template <int TERM_TILES, int COLUMN_TILES, int AT_ONCE>
struct Product {
    static constexpr int OWN = ceiling(AT_ONCE, 4);
    float sums[OWN][ROWS];

    __device__ __forceinline__ void hold(const unsigned char*) {}

    __device__ __forceinline__ void multiply(const unsigned* published, const unsigned char* weights, int first, unsigned char* room) {
        constexpr int LOADS = 2 * LANE_TILES;
        constexpr int COLUMNS = 8 * COLUMN_TILES;
        const int thread = threadIdx.x % 32;
        const uint4* states = reinterpret_cast<const uint4*>(published) + thread;
        float4* tile = reinterpret_cast<float4*>(room) + threadIdx.x / 32 * 4 * ROWS;
        const float* columns = reinterpret_cast<const float*>(weights) + first * 8 + thread;
#pragma unroll
        for (int c = 0; c < OWN; ++c) {
#pragma unroll
            for (int row = 0; row < ROWS; ++row) {
                sums[c][row] = 0.0f;
            }
        }
        uint4 next[LOADS];
        int term_tile = threadIdx.x / 32;
        if (term_tile < TERM_TILES) {
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                next[i] = load_published(states + term_tile * 4 * ROWS + i * 32);
            }
        }
#pragma unroll 1
        for (; term_tile < TERM_TILES; term_tile += WARPS) {
#pragma unroll
            for (int i = 0; i < LOADS; ++i) {
                reinterpret_cast<uint4*>(tile)[i * 32 + thread] = next[i];
            }
            __syncwarp();
            if (term_tile + WARPS < TERM_TILES) {
#pragma unroll
                for (int i = 0; i < LOADS; ++i) {
                    next[i] = load_published(states + (term_tile + WARPS) * 4 * ROWS + i * 32);
                }
            }
#pragma unroll 2
            for (int term = 0; term < 16; ++term) {
                float weight[OWN];
#pragma unroll
                for (int c = 0; c < OWN; ++c) {
                    const bool there = first * 8 + thread + 32 * c < COLUMNS;
                    weight[c] = there ? columns[(term_tile * 16 + term) * COLUMNS + 32 * c] : 0.0f;
                }
#pragma unroll
                for (int row = 0; row < ROWS / 4; ++row) {
                    const float4 state = tile[term * (ROWS / 4) + row];
#pragma unroll
                    for (int c = 0; c < OWN; ++c) {
                        sums[c][4 * row] += weight[c] * state.x;
                        sums[c][4 * row + 1] += weight[c] * state.y;
                        sums[c][4 * row + 2] += weight[c] * state.z;
                        sums[c][4 * row + 3] += weight[c] * state.w;
                    }
                }
            }
            __syncwarp();
        }
        // The sums are written where tiles were.
        __syncthreads();
    }

    __device__ __forceinline__ void write(float* to, int lane_tile) const {
        const int thread = threadIdx.x % 32;
#pragma unroll
        for (int m = 0; m < LANE_TILES; ++m) {
            if (m == lane_tile) {
#pragma unroll
                for (int c = 0; c < OWN; ++c) {
                    if (thread + 32 * c < 8 * AT_ONCE) {
#pragma unroll
                        for (int row = 0; row < 16; ++row) {
                            to[(threadIdx.x / 32 * 16 + row) * sums_stride(AT_ONCE) + thread + 32 * c] = sums[c][16 * m + row];
                        }
                    }
                }
            }
        }
    }
};

#endif

// The sum of all warps, of four columns of a row.
template <int AT_ONCE>
__device__ __forceinline__ float4 sum_warps(const float* sums, int row, int column) {
    float4 total = make_float4(0.0f, 0.0f, 0.0f, 0.0f);
#pragma unroll
    for (int warp = 0; warp < WARPS; ++warp) {
        const float4 part = *reinterpret_cast<const float4*>(sums + (warp * 16 + row) * sums_stride(AT_ONCE) + column);
        total.x += part.x;
        total.y += part.y;
        total.z += part.z;
        total.w += part.w;
    }
    return total;
}

// --- The forward pass. ---

// Values of one element, each thread's own: pre-activations that come from the input, then the gates; the cell; the hidden state.
__device__ __forceinline__ float* forward_slot(unsigned char* shared, int pass, int lane_tile) {
    return reinterpret_cast<float*>(shared + Forward::SLOTS_AT) + (pass * LANE_TILES + lane_tile) * Forward::ELEMENTS + threadIdx.x;
}

// Calls `body(slot, lane, unit of the block, hidden unit)` for this thread's element of a pass and a tile of lanes, if it has one.
template <typename Body>
__device__ __forceinline__ void forward_element(unsigned char* shared, int pass, int lane_tile, Body body) {
    constexpr int UNITS = 2 * Forward::AT_ONCE;
    const int at = threadIdx.x;
    const int lane = lane_tile * 16 + at / UNITS, unit = pass * UNITS + at % UNITS;
    const int hidden = blockIdx.x * Forward::UNITS + unit;
    if (at < Forward::ELEMENTS && lane < LANES && unit < Forward::UNITS && hidden < D) {
        body(forward_slot(shared, pass, lane_tile), lane, unit, hidden);
    }
}

template <typename Body>
__device__ __forceinline__ void forward_elements(unsigned char* shared, Body body) {
    for (int pass = 0; pass < Forward::PASSES; ++pass) {
        for (int lane_tile = 0; lane_tile < LANE_TILES; ++lane_tile) {
            forward_element(shared, pass, lane_tile, body);
        }
    }
}

__device__ __forceinline__ void persistent_forward(
    const float* projected,
    const Weight* weight,
    const float* bias_ih,
    const float* bias_hh,
    const float* h0,
    const float* c0,
    float* output,
    float* gates,
    float* cells,
    unsigned* scratch,
    unsigned char* shared,
    unsigned seq_len
) {
    using L = Forward;
    constexpr int S = L::SLOTS;
    if (blockIdx.x >= L::USED_BLOCKS) {
        return;
    }
    unsigned* leave = reinterpret_cast<unsigned*>(shared);
    unsigned char* weights = shared + L::WEIGHTS_AT;
    float* sums = reinterpret_cast<float*>(shared + L::SUMS_AT);
    float* bias = reinterpret_cast<float*>(shared + L::BIAS_AT);
    unsigned* counter = scratch + L::COUNTER_AT;
    unsigned* states = scratch + L::STATES_AT;

    if (threadIdx.x == 0) {
        *leave = 0;
    }
    // Column 4 u + k of a block is gate k of its unit u.
    bring_weights<L::TERM_TILES, L::COLUMN_TILES>(weights, [&](int term, int column) {
        const int hidden = blockIdx.x * L::UNITS + column / 4;
        const size_t row = static_cast<size_t>(column % 4) * D + hidden;
        return term < D && hidden < D ? weight[row * D + term] : Weight(0);
    });
    for (int column = threadIdx.x; column < 8 * L::COLUMN_TILES; column += THREADS) {
        const int hidden = blockIdx.x * L::UNITS + column / 4;
        const int row = column % 4 * D + hidden;
        bias[column] = hidden < D ? bias_ih[row] + bias_hh[row] : 0.0f;
    }
    const auto begin_step = [&](unsigned step) {
        forward_elements(shared, [&](float* slot, int lane, int, int hidden) {
            const float* from = projected + (static_cast<size_t>(step) * LANES + lane) * 4 * D + hidden;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) {
                begin_copy(slot + gate * S, from + gate * D);
            }
        });
    };
    forward_elements(shared, [&](float* slot, int lane, int, int hidden) {
        slot[4 * S] = c0[lane * D + hidden];
        publish(states, lane, hidden, h0[lane * D + hidden]);
    });
    __syncthreads();
    arrive(counter);
    begin_step(0);
    Product<L::TERM_TILES, L::COLUMN_TILES, L::AT_ONCE> product;
    product.hold(weights);

#pragma unroll 1
    for (unsigned step = 0; step < seq_len; ++step) {
        if (!arrived(counter, L::USED_BLOCKS * (step + 1), scratch, leave)) {
            return;
        }
        const unsigned* before = states + step % 2 * L::STATES_WORDS;
        unsigned* after = states + (step + 1) % 2 * L::STATES_WORDS;
        wait_copies();
#pragma unroll 1
        for (int pass = 0; pass < L::PASSES; ++pass) {
            product.multiply(before, weights, pass * L::AT_ONCE, reinterpret_cast<unsigned char*>(sums));
#pragma unroll 1
            for (int lane_tile = 0; lane_tile < LANE_TILES; ++lane_tile) {
                product.write(sums, lane_tile);
                __syncthreads();
                forward_element(shared, pass, lane_tile, [&](float* slot, int lane, int unit, int hidden) {
                    const float4 z = sum_warps<L::AT_ONCE>(sums, lane % 16, (unit - pass * 2 * L::AT_ONCE) * 4);
                    const float* b = bias + unit * 4;
                    const float i = sigmoid(z.x + slot[0] + b[0]);
                    const float f = sigmoid(z.y + slot[S] + b[1]);
                    const float g = tanhf(z.z + slot[2 * S] + b[2]);
                    const float o = sigmoid(z.w + slot[3 * S] + b[3]);
                    const float cell = f * slot[4 * S] + i * g;
                    const float h = o * tanhf(cell);
                    publish(after, lane, hidden, h);
                    slot[0] = i;
                    slot[S] = f;
                    slot[2 * S] = g;
                    slot[3 * S] = o;
                    slot[4 * S] = cell;
                    slot[5 * S] = h;
                });
                __syncthreads();
            }
        }
        if (step + 1 < seq_len) {
            arrive(counter);
        }
        // Nobody waits for what follows.
        forward_elements(shared, [&](float* slot, int lane, int, int hidden) {
            const size_t row = static_cast<size_t>(step) * LANES + lane;
            const float cell = slot[4 * S];
            output[row * D + hidden] = slot[5 * S];
            if (SHARNN_KEEPS_GATES) {
#pragma unroll
                for (int gate = 0; gate < 4; ++gate) {
                    gates[(row * 4 + gate) * D + hidden] = slot[gate * S];
                }
            }
            if (SHARNN_KEEPS_CELLS) {
                cells[row * D + hidden] = cell;
            }
            if (step + 1 == seq_len) {
                output[(row + LANES) * D + hidden] = cell;
            }
        });
        if (step + 1 < seq_len) {
            begin_step(step + 1);
        }
    }
}

// --- The backward pass. ---

// Calls `body(slot, lane, unit of the block, hidden unit)` for each element of this thread. A slot has the four gates, then their
// gradients; the cell, the one before it, the gradient of the output, the cell's gradient from the steps after.
template <typename Body>
__device__ __forceinline__ void backward_elements(unsigned char* shared, Body body) {
    using L = Backward;
#pragma unroll 1
    for (int at = threadIdx.x; at < L::SLOTS; at += THREADS) {
        const int unit = at % L::UNITS;
        const int hidden = blockIdx.x * L::UNITS + unit;
        if (hidden < D) {
            body(reinterpret_cast<float*>(shared + L::SLOTS_AT) + at, at / L::UNITS, unit, hidden);
        }
    }
}

__device__ __forceinline__ void persistent_backward(
    const Weight* weight,
    const float* gates,
    const float* cells,
    const float* c0,
    const float* grad,
    float* dgates,
    float* dcells,
    unsigned* scratch,
    unsigned char* shared,
    unsigned seq_len
) {
    using L = Backward;
    constexpr int S = L::SLOTS;
    constexpr int CELL = 4 * S, BEFORE = 5 * S, GRAD = 6 * S, CARRY = 7 * S;
    if (blockIdx.x >= L::USED_BLOCKS) {
        return;
    }
    const int column_group = blockIdx.x / L::TERM_GROUPS, term_group = blockIdx.x % L::TERM_GROUPS;
    // The group whose terms are the gates of this block's own units, and the first of those units in it.
    const int own_group = blockIdx.x / L::COLUMN_GROUPS, own_first = blockIdx.x % L::COLUMN_GROUPS * L::UNITS;
    unsigned* leave = reinterpret_cast<unsigned*>(shared);
    unsigned char* weights = shared + L::WEIGHTS_AT;
    float* sums = reinterpret_cast<float*>(shared + L::SUMS_AT);
    unsigned* terms_counter = scratch + L::TERMS_COUNTER_AT + term_group * LINE;
    unsigned* own_counter = scratch + L::TERMS_COUNTER_AT + own_group * LINE;
    unsigned* columns_counter = scratch + L::COLUMNS_COUNTER_AT + column_group * LINE;
    unsigned* grads = scratch + L::GRADS_AT;
    float* parts = reinterpret_cast<float*>(scratch + L::PARTS_AT);

    if (threadIdx.x == 0) {
        *leave = 0;
    }
    // Term 4 u + k of a group is gate k of its unit u.
    bring_weights<L::TERM_TILES, L::COLUMN_TILES>(weights, [&](int term, int column) {
        const int hidden = column_group * L::COLUMNS + column;
        const int of_term = term_group * L::TERM_UNITS + term / 4;
        const bool there = column < L::COLUMNS && hidden < D && term / 4 < L::TERM_UNITS && of_term < D;
        return there ? weight[(static_cast<size_t>(term % 4) * D + of_term) * D + hidden] : Weight(0);
    });
    const auto begin_step = [&](unsigned step) {
        backward_elements(shared, [&](float* slot, int lane, int, int hidden) {
            const size_t row = static_cast<size_t>(step) * LANES + lane;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) {
                begin_copy(slot + gate * S, gates + (row * 4 + gate) * D + hidden);
            }
            begin_copy(slot + BEFORE, step == 0 ? c0 + lane * D + hidden : cells + (row - LANES) * D + hidden);
            begin_copy(slot + GRAD, grad + row * D + hidden);
        });
    };
    backward_elements(shared, [&](float* slot, int lane, int, int hidden) {
        const size_t row = static_cast<size_t>(seq_len - 1) * LANES + lane;
        slot[CELL] = cells[row * D + hidden];
        slot[CARRY] = grad[(row + LANES) * D + hidden];
    });
    begin_step(seq_len - 1);
    __syncthreads();
    Product<L::TERM_TILES, L::COLUMN_TILES, L::AT_ONCE> product;
    product.hold(weights);

#pragma unroll 1
    for (unsigned done = 0; done < seq_len; ++done) {
        const unsigned step = seq_len - 1 - done;
        if (done > 0 && !arrived(columns_counter, L::TERM_GROUPS * done, scratch, leave)) {
            return;
        }
        const float* own_parts = parts + (done + 1) % 2 * L::PARTS_WORDS + column_group * L::TERM_GROUPS * L::PART_WORDS
            + term_group * L::UNITS;
        unsigned* to = grads + done % 2 * L::GRADS_WORDS + own_group * L::GROUP_WORDS;
        wait_copies();
        backward_elements(shared, [&](float* slot, int lane, int unit, int) {
            float dh = slot[GRAD];
            if (done > 0) {
                const float* part = own_parts + lane * 8 * L::COLUMN_TILES + unit;
                float of_group[L::TERM_GROUPS];
#pragma unroll
                for (int group = 0; group < L::TERM_GROUPS; ++group) {
                    of_group[group] = load_published(part + group * L::PART_WORDS);
                }
                float total = of_group[0];
#pragma unroll
                for (int group = 1; group < L::TERM_GROUPS; ++group) {
                    total += of_group[group];
                }
                dh += total;
            }
            const float i = slot[0], f = slot[S], g = slot[2 * S], o = slot[3 * S];
            const float before = slot[BEFORE];
            const float tanh_c = tanhf(slot[CELL]);
            const float dc = slot[CARRY] + dh * o * (1.0f - tanh_c * tanh_c);
            const float di = dc * g * i * (1.0f - i);
            const float df = dc * before * f * (1.0f - f);
            const float dg = dc * i * (1.0f - g * g);
            const float d_o = dh * tanh_c * o * (1.0f - o);
            const int term = 4 * (own_first + unit);
            publish(to, lane, term, di);
            publish(to, lane, term + 1, df);
            publish(to, lane, term + 2, dg);
            publish(to, lane, term + 3, d_o);
            slot[0] = di;
            slot[S] = df;
            slot[2 * S] = dg;
            slot[3 * S] = d_o;
            slot[CELL] = before;
            slot[CARRY] = dc * f;
        });
        __syncthreads();
        if (step > 0) {
            arrive(own_counter);
        }
        // Nobody waits for what follows.
        backward_elements(shared, [&](float* slot, int lane, int, int hidden) {
            float* to = dgates + (static_cast<size_t>(step) * LANES + lane) * 4 * D + hidden;
#pragma unroll
            for (int gate = 0; gate < 4; ++gate) {
                to[gate * D] = slot[gate * S];
            }
            if (step == 0) {
                dcells[lane * D + hidden] = slot[CARRY];
            }
        });
        if (step == 0) {
            return;
        }
        begin_step(step - 1);
        if (!arrived(terms_counter, L::COLUMN_GROUPS * (done + 1), scratch, leave)) {
            return;
        }
        const unsigned* from = grads + done % 2 * L::GRADS_WORDS + term_group * L::GROUP_WORDS;
        float* own_part = parts + done % 2 * L::PARTS_WORDS + blockIdx.x * L::PART_WORDS;
#pragma unroll 1
        for (int pass = 0; pass < L::PASSES; ++pass) {
            product.multiply(from, weights, pass * L::AT_ONCE, reinterpret_cast<unsigned char*>(sums));
#pragma unroll 1
            for (int lane_tile = 0; lane_tile < LANE_TILES; ++lane_tile) {
                product.write(sums, lane_tile);
                __syncthreads();
#pragma unroll 1
                for (int at = threadIdx.x; at < 16 * 2 * L::AT_ONCE; at += THREADS) {
                    const int row = at / (2 * L::AT_ONCE), column = at % (2 * L::AT_ONCE) * 4;
                    const int of_block = pass * 8 * L::AT_ONCE + column;
                    if (of_block < 8 * L::COLUMN_TILES) {
                        float* at_row = own_part + (lane_tile * 16 + row) * 8 * L::COLUMN_TILES;
                        *reinterpret_cast<float4*>(at_row + of_block) = sum_warps<L::AT_ONCE>(sums, row, column);
                    }
                }
                __syncthreads();
            }
        }
        arrive(columns_counter);
    }
}
