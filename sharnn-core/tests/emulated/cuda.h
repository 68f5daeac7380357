// Stands in for CUDA where the persistent LSTM (src/ops/cube/persistent/lstm.cu) is compiled as C++ for the CPU.
//
// A block is a thread of the operating system. Its own threads are contexts that run in turn: one runs until it comes to a barrier of
// the block, or to an operation of its warp, and then the next one does. So this shows what passes between blocks; what passes between
// threads of one block is in an order that a device does not promise.
//
// Counters are atomic operations of the orders that the instructions on a device have.
// Everything else that passes between blocks is plain memory: ThreadSanitizer reports it where no counter orders it.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <functional>
#include <limits>
#include <memory>
#include <string>
#include <thread>
#include <utility>
#include <vector>

#define SHARNN_EMULATED
#define SHARNN_DELAY() emulated::delay()
#define __device__
#define __forceinline__ inline

struct alignas(16) uint4 {
    unsigned x, y, z, w;
};
struct alignas(8) uint2 {
    unsigned x, y;
};
struct alignas(8) float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
inline float2 make_float2(float x, float y) { return {x, y}; }
inline float4 make_float4(float x, float y, float z, float w) { return {x, y, z, w}; }

struct Index {
    unsigned x;
};
// Of the context that runs now, and of this thread.
inline thread_local Index threadIdx, blockIdx, blockDim;

namespace emulated {

constexpr unsigned NOBODY = ~0u;

// A block that does not arrive until others have given up, and the word that says so.
inline unsigned stalled = NOBODY;
inline unsigned* flag = nullptr;

[[noreturn]] inline void fail(const std::string& what) {
    std::fprintf(stderr, "emulation: %s\n", what.c_str());
    std::fflush(stderr);
    std::_Exit(2);
}

// What a warp multiplies: each thread's operands, then each thread's sums.
struct Warp {
    unsigned a[32][4], b[32][2];
    float sums[32][4];
};

inline float bf16(unsigned word, unsigned half) {
    const unsigned bits = (half ? word >> 16 : word & 0xffffu) << 16;
    float value;
    std::memcpy(&value, &bits, 4);
    return value;
}

// The product of a tile as the tensor core has it: where each value is comes from the description of mma.m16n8k16.
inline void multiply(Warp& warp) {
    float a[16][16], b[16][8];
    for (unsigned t = 0; t < 32; ++t) {
        for (unsigned half = 0; half < 2; ++half) {
            const unsigned row = t / 4, term = t % 4 * 2 + half;
            a[row][term] = bf16(warp.a[t][0], half);
            a[row + 8][term] = bf16(warp.a[t][1], half);
            a[row][term + 8] = bf16(warp.a[t][2], half);
            a[row + 8][term + 8] = bf16(warp.a[t][3], half);
            b[term][t / 4] = bf16(warp.b[t][0], half);
            b[term + 8][t / 4] = bf16(warp.b[t][1], half);
        }
    }
    for (unsigned t = 0; t < 32; ++t) {
        for (unsigned i = 0; i < 4; ++i) {
            const unsigned row = t / 4 + i / 2 * 8, column = t % 4 * 2 + i % 2;
            float sum = warp.sums[t][i];
            for (unsigned term = 0; term < 16; ++term) {
                sum += a[row][term] * b[term][column];
            }
            warp.sums[t][i] = sum;
        }
    }
}

// The threads of a block.
class Block {
public:
    Block(unsigned threads, unsigned seed, std::function<void()> body)
        : body_(std::move(body)), random_(seed * 2654435761u | 1u), threads_(threads), warps_(threads / 32), at_warp_(threads / 32) {
        for (unsigned t = 0; t < threads; ++t) {
            threads_[t].stack.reset(new char[STACK]);
        }
    }

    // Runs all threads to their end.
    void run() {
        current = this;
        for (auto& thread : threads_) {
            getcontext(&thread.context);
            thread.context.uc_stack.ss_sp = thread.stack.get();
            thread.context.uc_stack.ss_size = STACK;
            thread.context.uc_link = &scheduler_;
            makecontext(&thread.context, reinterpret_cast<void (*)()>(&Block::enter), 0);
        }
        for (bool all_ended = false; !all_ended;) {
            bool moved = false;
            all_ended = true;
            for (unsigned t = 0; t < threads_.size(); ++t) {
                auto& thread = threads_[t];
                if (!thread.ended && (thread.waits_for == nullptr || *thread.waits_for != thread.since)) {
                    threadIdx.x = running_ = t;
                    swapcontext(&scheduler_, &thread.context);
                    moved = true;
                }
                all_ended &= thread.ended;
            }
            if (!moved) {
                fail("a barrier that not all threads of a block come to");
            }
        }
    }

    void sync_block() { meet(at_block_, threads_.size(), [] {}); }

    // Whether any thread has given something other than 0.
    bool any(int x) {
        any_ = any_ || x != 0;
        meet(at_block_, threads_.size(), [this] { met_any_ = std::exchange(any_, false); });
        return met_any_;
    }

    void sync_warp() { meet(at_warp_[running_ / 32], 32, [] {}); }

    void multiply_tile(float (&sums)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
        const unsigned t = running_ % 32;
        auto& warp = warps_[running_ / 32];
        std::copy(a, a + 4, warp.a[t]);
        std::copy(b, b + 2, warp.b[t]);
        std::copy(sums, sums + 4, warp.sums[t]);
        meet(at_warp_[running_ / 32], 32, [&] { multiply(warp); });
        std::copy(warp.sums[t], warp.sums[t] + 4, sums);
    }

    unsigned random() {
        random_ ^= random_ << 13;
        random_ ^= random_ >> 17;
        return random_ ^= random_ << 5;
    }

    static thread_local Block* current;

private:
    static constexpr size_t STACK = 64 << 10;

    struct Thread {
        ucontext_t context;
        std::unique_ptr<char[]> stack;
        // The barrier's count of meetings, and what it was when this thread came.
        const unsigned* waits_for = nullptr;
        unsigned since = 0;
        bool ended = false;
    };

    struct Barrier {
        unsigned meetings = 0, present = 0;
    };

    static void enter() {
        current->body_();
        current->threads_[current->running_].ended = true;
    }

    // Waits until `all` threads are here; the last one does what is to be done once.
    template <typename Once>
    void meet(Barrier& barrier, unsigned all, Once once) {
        auto& thread = threads_[running_];
        if (++barrier.present == all) {
            once();
            barrier.present = 0;
            ++barrier.meetings;
            return;
        }
        thread.waits_for = &barrier.meetings;
        thread.since = barrier.meetings;
        swapcontext(&thread.context, &scheduler_);
        thread.waits_for = nullptr;
    }

    std::function<void()> body_;
    unsigned random_;
    unsigned running_ = 0;
    ucontext_t scheduler_;
    std::vector<Thread> threads_;
    std::vector<Warp> warps_;
    Barrier at_block_;
    bool any_ = false, met_any_ = false;
    std::vector<Barrier> at_warp_;
};

inline thread_local Block* Block::current = nullptr;

// Lets other blocks go first, now and then.
inline void delay() {
    if (threadIdx.x % 32 != 0) {
        return;
    }
    if (blockIdx.x == stalled) {
        for (unsigned waited = 0; __atomic_load_n(flag, __ATOMIC_RELAXED) == 0; ++waited) {
            if (waited == 20000) {
                fail("no block gave up");
            }
            std::this_thread::sleep_for(std::chrono::milliseconds(1));
        }
    }
    const unsigned chance = Block::current->random() % 256;
    if (chance == 0) {
        std::this_thread::sleep_for(std::chrono::microseconds(Block::current->random() % 256));
    } else if (chance < 64) {
        std::this_thread::yield();
    }
}

// Runs `body` once for each thread of each block.
inline void launch(unsigned blocks, unsigned threads, unsigned seed, size_t shared_bytes, const std::function<void(unsigned char*)>& body) {
    std::vector<std::thread> running;
    for (unsigned block = 0; block < blocks; ++block) {
        running.emplace_back([=, &body] {
            blockIdx.x = block;
            blockDim.x = threads;
            // Whatever is read before it was written is not a number.
            std::vector<uint64_t> shared(shared_bytes / 8 + 3, ~0ull);
            auto* aligned = reinterpret_cast<unsigned char*>((reinterpret_cast<uintptr_t>(shared.data()) + 15) / 16 * 16);
            Block(threads, seed * 1000 + block, [&] { body(aligned); }).run();
        });
    }
    for (auto& thread : running) {
        thread.join();
    }
}

// A shape and division that lstm.cu was compiled for.
struct Case {
    size_t forward_shared, backward_shared, forward_scratch, backward_scratch;
    void (*run)(const Case&, unsigned seq_len, unsigned raised, unsigned seed, std::FILE* in, std::FILE* out);
};

inline std::vector<float> read(std::FILE* in, size_t count) {
    std::vector<float> values(count);
    if (std::fread(values.data(), 4, count, in) != count) {
        fail("the input ends early");
    }
    return values;
}

inline void write(std::FILE* out, const void* values, size_t count) {
    if (std::fwrite(values, 4, count, out) != count) {
        fail("can't write");
    }
}

// Memory that nobody has written is not a number.
inline std::vector<float> room(size_t count) { return std::vector<float>(count, std::numeric_limits<float>::quiet_NaN()); }

// Scratch memory: zeros, on an address as a device has them.
class Scratch {
public:
    explicit Scratch(size_t words) : words_(words + 4) {}
    unsigned* get() { return reinterpret_cast<unsigned*>((reinterpret_cast<uintptr_t>(words_.data()) + 15) / 16 * 16); }

private:
    std::vector<unsigned> words_;
};

}  // namespace emulated

inline void __syncthreads() { emulated::Block::current->sync_block(); }
inline void __syncwarp() { emulated::Block::current->sync_warp(); }
inline int __syncthreads_or(int x) { return emulated::Block::current->any(x); }

// An access of its own: ThreadSanitizer knows no fences.
inline void __threadfence() {
    static unsigned word = 0;
    __atomic_fetch_add(&word, 0u, __ATOMIC_SEQ_CST);
}
inline unsigned atomicAdd(unsigned* at, unsigned x) { return __atomic_fetch_add(at, x, __ATOMIC_RELAXED); }
inline unsigned atomicOr(unsigned* at, unsigned x) { return __atomic_fetch_or(at, x, __ATOMIC_RELAXED); }

inline float __int_as_float(int bits) {
    float x;
    std::memcpy(&x, &bits, 4);
    return x;
}

inline unsigned __float_as_uint(float x) {
    unsigned bits;
    std::memcpy(&bits, &x, 4);
    return bits;
}

#ifdef LEAVE_OUT_RELEASE
constexpr int RELEASE = __ATOMIC_RELAXED;
#else
constexpr int RELEASE = __ATOMIC_RELEASE;
#endif

inline void add_release(unsigned* counter) { __atomic_fetch_add(counter, 1u, RELEASE); }
inline unsigned load_acquire(const unsigned* counter) { return __atomic_load_n(counter, __ATOMIC_ACQUIRE); }
inline unsigned load_relaxed(const unsigned* flag) { return __atomic_load_n(flag, __ATOMIC_RELAXED); }
inline void store_relaxed(unsigned* flag, unsigned value) { __atomic_store_n(flag, value, __ATOMIC_RELAXED); }
inline void spin_pause() { std::this_thread::yield(); }

inline uint4 load_published(const uint4* at) {
    uint4 value;
    std::memcpy(&value, at, 16);
    return value;
}
inline float load_published(const float* at) { return *at; }
inline void begin_copy(float* to, const float* from) { *to = *from; }
inline void wait_copies() {}

inline void multiply_tile(float (&sums)[4], unsigned a0, unsigned a1, unsigned a2, unsigned a3, uint2 b) {
    emulated::Block::current->multiply_tile(sums, {a0, a1, a2, a3}, {b.x, b.y});
}
