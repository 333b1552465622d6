// A stable sort of whole numbers by their bits in use, on a CUDA device, that never asks the host how many there are.
//
// A pass sorts by one digit, the lowest first. Its elements are cut into chunks, one a block, and `counts` says how often
// each digit occurs in each chunk: from it a block knows where its elements of every digit go, and puts them there in
// order. So a pass is one launch, reads and writes every key and value once, and no block waits for another.
//
// Who counts is whoever writes what the pass reads. Where elements are few (Gaussians) that is the pass before, which
// knows the chunk of the next pass that an element goes to, and adds one there by an atomic instruction. Where they are
// many (pairs), so many instructions would take longer than to read the keys again, and a launch of its own counts in
// shared memory.
//
// A block reads all of `counts`, so there are at most 128 chunks of 256 digits (128 KB a block), or 256 of 64 (64 KB).
// A card of more than 128 multiprocessors has some idle in a pass of 256 digits. Two other ways: to count, add up and
// put apart is three launches a pass; blocks that look back at what their neighbours have added up need no counts, but
// wait for each other, which only a card can try out.
#pragma once

#include "scene.h"

namespace gs {

struct RadixPass {
    void* keys;
    uint32_t* values;      // null: 0, 1, 2...
    void* sorted_keys;     // null: not wanted
    uint32_t* sorted_values;
    uint32_t* counts;      // (blocks, 2^bits)
    uint32_t* next_counts;  // of the next pass, zero before this one; null: somebody else counts
    int32_t shift, bits;   // of the digit; at most kMaxDigits
    int32_t blocks;
};

namespace {

constexpr int kThreads = 256, kWarp = 32, kWarps = kThreads / kWarp;
constexpr int kMaxDigits = 256;  // not more than kThreads
constexpr int kItems = 8;        // that a thread holds at once
constexpr int kBatch = kThreads * kItems;
constexpr unsigned kAllLanes = 0xffffffffu;

// The sum of `value` over this thread and those before it. All threads of the block; `shared` has room for each.
template <class T>
__device__ T sum_up_to_here(T value, T* shared) {
    const int thread = threadIdx.x;
    shared[thread] = value;
    for (int step = 1; step < kThreads; step *= 2) {
        __syncthreads();
        const T before = thread >= step ? shared[thread - step] : T(0);
        __syncthreads();
        shared[thread] = value += before;
    }
    __syncthreads();
    return value;
}

// Of a part of [0, count), which every kernel that is told the same `blocks` cuts alike; a multiple of `unit`. `count`
// is below 2^31, so 32 bits hold the ends of all parts.
__device__ uint32_t chunk_size(int64_t count, int32_t blocks, uint32_t unit) {
    return ((static_cast<uint32_t>(count) + unit - 1) / unit + blocks - 1) / blocks * unit;
}

struct Chunk {
    int64_t size, first, last;  // empty if `last` is not beyond `first`
};

__device__ Chunk chunk_of_block(int64_t count, int32_t blocks, uint32_t unit) {
    Chunk c;
    c.size = chunk_size(count, blocks, unit);
    c.first = blockIdx.x * c.size;
    c.last = c.first + c.size < count ? c.first + c.size : count;
    return c;
}

__device__ uint32_t digit_of(uint32_t key, int shift, int bits) { return key >> shift & ((1u << bits) - 1); }

// Adds one to `counts` for the element at `place` in chunks of `size`; its digit there begins at bit `shift`.
__device__ void count_digit(const RadixPass& p, uint32_t size, uint32_t place, uint32_t key, int shift,
                            uint32_t* counts) {
    atomicAdd(counts + (place / size << p.bits) + digit_of(key, shift, p.bits), 1u);
}

// The digits of a block's own chunk, in shared memory. All threads of the block call all three, in this order.
struct ChunkCounts {
    uint32_t* found;

    __device__ explicit ChunkCounts(uint32_t* shared) : found(shared) {
        found[threadIdx.x] = 0;
        __syncthreads();
    }
    __device__ void add(const RadixPass& p, uint32_t key) { atomicAdd(found + digit_of(key, p.shift, p.bits), 1u); }
    __device__ void store(const RadixPass& p) {
        __syncthreads();
        if (threadIdx.x < 1u << p.bits) p.counts[(blockIdx.x << p.bits) + threadIdx.x] = found[threadIdx.x];
    }
};

// Where the block's first element of the digit `threadIdx.x` goes: behind all smaller digits, and behind the same digit
// of earlier chunks. Of no meaning for threads beyond the digits. All threads of the block.
__device__ uint32_t first_place(const RadixPass& p, int chunks) {
    __shared__ uint32_t sums[kThreads], earlier_sums[kThreads];
    const int thread = threadIdx.x, digits = 1 << p.bits;
    uint32_t all = 0, earlier = 0;
#pragma unroll 16
    for (int row = thread >> p.bits; row < chunks; row += kThreads >> p.bits) {
        const uint32_t count = p.counts[(row << p.bits) + (thread & (digits - 1))];
        all += count;
        if (row < static_cast<int>(blockIdx.x)) earlier += count;
    }
    sums[thread] = all;
    earlier_sums[thread] = earlier;
    __syncthreads();
    for (int other = thread + digits; thread < digits && other < kThreads; other += digits) {
        all += sums[other];
        earlier += earlier_sums[other];
    }
    if (thread >= digits) all = 0;
    __syncthreads();
    return sum_up_to_here(all, sums) - all + earlier;
}

// The lanes of a warp that are `present` and have this lane's digit. All lanes of the warp.
__device__ unsigned lanes_alike(uint32_t digit, int bits, bool present) {
    unsigned alike = __ballot_sync(kAllLanes, present);
    for (int bit = 0; bit < bits; ++bit) {
        const bool mine = digit >> bit & 1;
        const unsigned set = __ballot_sync(kAllLanes, mine);
        alike &= mine ? set : ~set;
    }
    return alike;
}

// One pass over `count` elements: `p.blocks` blocks of kThreads.
template <class Key>
__device__ void scatter(const RadixPass& p, int64_t count) {
    __shared__ uint32_t taken[kWarps][kMaxDigits];  // by the elements of a warp, then where its first element goes
    const Chunk chunk = chunk_of_block(count, p.blocks, kBatch);
    if (chunk.first >= chunk.last) return;
    const int thread = threadIdx.x, warp = thread / kWarp, lane = thread % kWarp, digits = 1 << p.bits;
    const auto* keys = static_cast<const Key*>(p.keys);
    auto* sorted_keys = static_cast<Key*>(p.sorted_keys);
    uint32_t place = first_place(p, static_cast<int>((count + chunk.size - 1) / chunk.size));
    for (int64_t batch = chunk.first; batch < chunk.last; batch += kBatch) {
        // A warp has consecutive elements, 32 after 32.
        const int64_t first = batch + warp * (kWarp * kItems) + lane;
        Key key[kItems];
        uint32_t value[kItems], rank[kItems];
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            const int64_t at = first + i * kWarp;
            key[i] = at < chunk.last ? keys[at] : Key(0);
            value[i] = at < chunk.last && p.values ? p.values[at] : static_cast<uint32_t>(at);
        }
        for (int w = 0; w < kWarps; ++w) taken[w][thread] = 0;
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            const bool present = first + i * kWarp < chunk.last;
            const uint32_t digit = digit_of(key[i], p.shift, p.bits);
            const unsigned alike = lanes_alike(digit, p.bits, present), before = alike & ((1u << lane) - 1);
            rank[i] = taken[warp][digit] + __popc(before);
            __syncwarp();
            if (present && before == 0) taken[warp][digit] += __popc(alike);
            __syncwarp();
        }
        __syncthreads();
        for (int w = 0; thread < digits && w < kWarps; ++w) {
            const uint32_t elements = taken[w][thread];
            taken[w][thread] = place;
            place += elements;
        }
        __syncthreads();
#pragma unroll
        for (int i = 0; i < kItems; ++i) {
            if (first + i * kWarp >= chunk.last) continue;
            const uint32_t to = taken[warp][digit_of(key[i], p.shift, p.bits)] + rank[i];
            if (sorted_keys) sorted_keys[to] = key[i];
            p.sorted_values[to] = value[i];
            if (p.next_counts)
                count_digit(p, static_cast<uint32_t>(chunk.size), to, key[i], p.shift + p.bits, p.next_counts);
        }
        __syncthreads();
    }
}

}  // namespace
}  // namespace gs
