// Runs CUDA kernels on one CPU thread, so that they can be tested where there is no GPU: include this, then the kernels,
// then EMULATE(...) each of them once, and call `emulate`.
//
// A thread of a block is a fiber; it gives way only where it has to wait for others: at a warp's collective or a barrier.
// What is found: wrong results, collectives that not all lanes reach, deadlocks. What is not: races, the memory model.
#pragma once

#include <algorithm>
#include <csetjmp>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <cstring>
#include <functional>
#include <map>
#include <memory>
#include <string>
#include <vector>

#include <ucontext.h>

#define __global__
#define __device__
#define __shared__ static
#define __launch_bounds__(threads)

namespace emulation {

struct Dim {
    unsigned x, y, z;
};

}  // namespace emulation

static emulation::Dim threadIdx, blockIdx, blockDim, gridDim;

namespace emulation {

constexpr unsigned kLanes = 32;
constexpr size_t kStack = 256 * 1024;

struct Group {  // a warp at a collective, or a block at a barrier
    unsigned members = 0, arrived = 0, generation = 0;
    const char* operation = nullptr;
    uint32_t values[2][kLanes] = {};
};

struct Fiber {
    jmp_buf place;
    ucontext_t start;
    std::unique_ptr<char[]> stack;
    unsigned thread = 0;
    bool started = false, waits = false;
};

struct Machine {
    jmp_buf scheduler;
    std::vector<std::unique_ptr<Fiber>> fibers;
    Fiber* current = nullptr;
    const std::function<void()>* kernel = nullptr;
    unsigned next_thread = 0, events = 0;
    bool reverse = false;
    std::string error;
    std::vector<Group> warps;
    Group block;
};

inline Machine machine;

inline void give_way() {
    if (!_setjmp(machine.current->place)) _longjmp(machine.scheduler, 1);
}

// A fiber runs threads of the block until there are none left that nobody has begun.
inline void live() {
    for (;;) {
        while (machine.next_thread < blockDim.x) {
            const unsigned n = machine.next_thread++;
            machine.current->thread = threadIdx.x = machine.reverse ? blockDim.x - 1 - n : n;
            (*machine.kernel)();
            ++machine.events;
        }
        machine.current->waits = false;
        give_way();
    }
}

inline void resume(Fiber& fiber) {
    machine.current = &fiber;
    threadIdx.x = fiber.thread;
    if (_setjmp(machine.scheduler)) return;
    if (fiber.started) _longjmp(fiber.place, 1);
    fiber.started = true;
    fiber.stack.reset(new char[kStack]);
    getcontext(&fiber.start);
    fiber.start.uc_stack.ss_sp = fiber.stack.get();
    fiber.start.uc_stack.ss_size = kStack;
    fiber.start.uc_link = nullptr;
    makecontext(&fiber.start, live, 0);
    setcontext(&fiber.start);
}

inline const uint32_t* meet(Group& group, const char* operation, unsigned member, uint32_t value) {
    if (group.arrived == 0) group.operation = operation;
    if (group.operation != operation)
        machine.error = std::string(operation) + " meets " + group.operation;
    const unsigned mine = group.generation;
    if (member < kLanes) group.values[mine % 2][member] = value;
    if (++group.arrived == group.members) {
        group.arrived = 0;
        ++group.generation;
        ++machine.events;
    }
    while (group.generation == mine) {
        machine.current->waits = true;
        give_way();
    }
    return group.values[mine % 2];
}

inline const uint32_t* meet_warp(const char* operation, uint32_t value) {
    return meet(machine.warps[threadIdx.x / kLanes], operation, threadIdx.x % kLanes, value);
}

inline void run_block() {
    machine.warps.assign((blockDim.x + kLanes - 1) / kLanes, Group{});
    for (unsigned w = 0; w < machine.warps.size(); ++w)
        machine.warps[w].members = std::min(kLanes, blockDim.x - w * kLanes);
    machine.block = Group{};
    machine.block.members = blockDim.x;
    machine.next_thread = 0;
    for (size_t i = 0; machine.next_thread < blockDim.x && machine.error.empty(); ++i) {
        if (i == machine.fibers.size()) machine.fibers.push_back(std::make_unique<Fiber>());
        resume(*machine.fibers[i]);
    }
    for (bool any = true; any && machine.error.empty();) {
        any = false;
        const unsigned before = machine.events;
        for (const auto& fiber : machine.fibers) {
            if (!fiber->waits || !machine.error.empty()) continue;
            any = true;
            resume(*fiber);
        }
        if (any && machine.events == before) machine.error = "deadlock: some threads never reach a collective";
    }
    if (!machine.error.empty()) machine.fibers.clear();
}

using Kernel = std::function<void(const void*)>;

inline std::map<std::string, Kernel>& kernels() {
    static std::map<std::string, Kernel> all;
    return all;
}

struct Register {
    Register(const char* name, Kernel kernel) { kernels()[name] = std::move(kernel); }
};

}  // namespace emulation

#define EMULATE(kernel, Argument)                      \
    static const emulation::Register register_##kernel( \
        #kernel, [](const void* argument) { kernel(*static_cast<const Argument*>(argument)); })

// Runs a kernel of one argument; returns an error, empty if there was none. `reverse`: blocks run, and threads of a
// block begin, in reverse order; so a block that reads what a lower one writes in the same launch finds it missing.
extern "C" __attribute__((visibility("default"))) const char* emulate(const char* name, unsigned blocks, unsigned threads, const void* argument, int reverse) {
    using namespace emulation;
    machine.error.clear();
    const auto found = kernels().find(name);
    if (found == kernels().end()) {
        machine.error = "no such kernel";
        return machine.error.c_str();
    }
    const std::function<void()> run = [&] { found->second(argument); };
    machine.kernel = &run;
    machine.reverse = reverse != 0;
    gridDim = {blocks, 1, 1};
    blockDim = {threads, 1, 1};
    for (unsigned b = 0; b < blocks && machine.error.empty(); ++b) {
        blockIdx = {machine.reverse ? blocks - 1 - b : b, 0, 0};
        run_block();
    }
    return machine.error.c_str();
}

// ------------------------------------------------------------------------------------------------ device functions

inline uint32_t emulated_bits(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float emulated_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline float __shfl_xor_sync(unsigned, float value, int mask) {
    return emulated_float(emulation::meet_warp("__shfl_xor_sync", emulated_bits(value))[(threadIdx.x ^ mask) % 32]);
}
inline unsigned __ballot_sync(unsigned, bool mine) {
    const uint32_t* all = emulation::meet_warp("__ballot_sync", mine);
    unsigned bits = 0;
    for (unsigned lane = 0; lane < emulation::kLanes; ++lane) bits |= (all[lane] & 1u) << lane;
    return bits;
}
inline bool __any_sync(unsigned, bool mine) {
    const uint32_t* all = emulation::meet_warp("__any_sync", mine);
    bool any = false;
    for (unsigned lane = 0; lane < emulation::kLanes; ++lane) any = any || all[lane];
    return any;
}
inline bool __all_sync(unsigned, bool mine) {
    const uint32_t* all = emulation::meet_warp("__all_sync", mine);
    bool every = true;
    for (unsigned lane = 0; lane < emulation::kLanes; ++lane) every = every && all[lane];
    return every;
}
inline void __syncwarp() { emulation::meet_warp("__syncwarp", 0); }
inline void __syncthreads() { emulation::meet(emulation::machine.block, "__syncthreads", emulation::kLanes, 0); }
inline int __popc(unsigned value) { return __builtin_popcount(value); }
inline unsigned __float_as_uint(float value) { return emulated_bits(value); }
inline int __ffs(int value) { return __builtin_ffs(value); }
inline float atomicAdd(float* at, float value) {
    const float before = *at;
    *at += value;
    return before;
}
inline unsigned atomicAdd(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at += value;
    return before;
}
inline unsigned atomicOr(unsigned* at, unsigned value) {
    const unsigned before = *at;
    *at |= value;
    return before;
}
