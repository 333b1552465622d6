// Which instruction sets this processor, and the operating system, can run. Asked of the processor itself: the
// run-time library behind `__builtin_cpu_supports` answers "none" under some compilers.
#pragma once

#include <cpuid.h>

#include <cstdint>

namespace gs {

struct Processor {
    bool avx2 = false;    // and fused multiply-adds
    bool avx512 = false;  // F, DQ, BW and VL

    Processor() {
        uint32_t a, b, c, d;
        if (!__get_cpuid(1, &a, &b, &c, &d)) return;
        const bool fma = c >> 12 & 1, saves_registers = c >> 27 & 1;
        if (!saves_registers || !__get_cpuid_count(7, 0, &a, &b, &c, &d)) return;
        const uint32_t saved = saved_registers();
        constexpr uint32_t vectors = 0x6, masks_and_wide_vectors = 0xe0;
        if ((saved & vectors) != vectors || !fma) return;
        avx2 = b >> 5 & 1;
        avx512 = (saved & masks_and_wide_vectors) == masks_and_wide_vectors && b >> 16 & 1 && b >> 17 & 1 && b >> 30 & 1 &&
                 b >> 31 & 1;
    }

  private:
    // The registers that the operating system keeps for a thread.
    static uint32_t saved_registers() {
        uint32_t low, high;
        __asm__ volatile("xgetbv" : "=a"(low), "=d"(high) : "c"(0));
        return low;
    }
};

}  // namespace gs
