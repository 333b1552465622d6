// Vectors of kWidth floats in the native width of this build, and the few operations that need an intrinsic.
// Wider vectors than the machine's are split into scalars by some compilers, so kWidth is never more than native.
#pragma once

#include <cstdint>
#include <cstring>

#if !defined(__GNUC__) && !defined(__clang__)
#define GS_STANDARD_VECTORS  // also a way to test them
#endif

#if defined(GS_STANDARD_VECTORS)
#include "simd_standard.h"
#else

#if defined(__AVX512F__) || defined(__AVX2__)
#include <immintrin.h>
#endif

namespace gs {
namespace GS_BUILD {

#if defined(__AVX512F__)
constexpr int kWidth = 16;
#elif defined(__AVX2__)
constexpr int kWidth = 8;
#else
constexpr int kWidth = 4;
#endif

typedef float Floats __attribute__((vector_size(4 * kWidth)));
typedef int32_t Ints __attribute__((vector_size(4 * kWidth)));
typedef float FloatsInMemory __attribute__((vector_size(4 * kWidth), may_alias));

GS_HD Floats select(Ints mask, Floats a, Floats b) { return mask ? a : b; }
GS_HD Floats load(const float* p) { return *reinterpret_cast<const FloatsInMemory*>(p); }  // aligned
GS_HD Floats minus_abs(Floats a) { return (Floats)((Ints)a | INT32_MIN); }
GS_HD void store(float* p, Floats v) { *reinterpret_cast<FloatsInMemory*>(p) = v; }        // aligned

#if defined(__AVX512F__)
GS_HD Floats minimum(Floats a, Floats b) { return (Floats)_mm512_min_ps((__m512)a, (__m512)b); }
GS_HD Floats maximum(Floats a, Floats b) { return (Floats)_mm512_max_ps((__m512)a, (__m512)b); }
GS_HD Floats root(Floats a) { return (Floats)_mm512_sqrt_ps((__m512)a); }
GS_HD uint32_t at_least(Floats a, Floats b) { return _mm512_cmp_ps_mask((__m512)a, (__m512)b, _CMP_GE_OQ); }
GS_HD Floats reciprocal(Floats a) {
    const Floats r = (Floats)_mm512_rcp14_ps((__m512)a);
    return r + r * (1.0f - a * r);
}
#elif defined(__AVX2__)
GS_HD Floats minimum(Floats a, Floats b) { return (Floats)_mm256_min_ps((__m256)a, (__m256)b); }
GS_HD Floats maximum(Floats a, Floats b) { return (Floats)_mm256_max_ps((__m256)a, (__m256)b); }
GS_HD Floats root(Floats a) { return (Floats)_mm256_sqrt_ps((__m256)a); }
GS_HD uint32_t at_least(Floats a, Floats b) {
    return static_cast<uint32_t>(_mm256_movemask_ps(_mm256_cmp_ps((__m256)a, (__m256)b, _CMP_GE_OQ)));
}
GS_HD Floats reciprocal(Floats a) {
    const Floats r = (Floats)_mm256_rcp_ps((__m256)a);
    return r + r * (1.0f - a * r);
}
#else
GS_HD Floats root(Floats a) {
    Floats r;
    for (int i = 0; i < kWidth; ++i) r[i] = __builtin_sqrtf(a[i]);
    return r;
}
#endif

#if !defined(__AVX512DQ__)
// p times two to the power that stands in the lowest bits of `shifted`.
GS_HD Floats scale_by_power(Floats p, Floats shifted) { return (Floats)((Ints)p + ((Ints)shifted << 23)); }
#endif

template <int... I>
struct Lanes {};
template <int N, int... I>
struct MakeLanes : MakeLanes<N - 1, N - 1, I...> {};
template <int... I>
struct MakeLanes<0, I...> {
    using type = Lanes<I...>;
};

template <int G, int... I>
GS_HD Floats fold_lanes(Floats a, Floats b, Lanes<I...>) {
#if defined(__clang__)
    const Floats low = __builtin_shufflevector(a, b, (I % G < G / 2 ? I : I - G / 2 + kWidth)...);
    const Floats high = __builtin_shufflevector(a, b, (I % G < G / 2 ? I + G / 2 : I + kWidth)...);
#else  // GCC has the other one from version 12 on
    const Floats low = __builtin_shuffle(a, b, Ints{(I % G < G / 2 ? I : I - G / 2 + kWidth)...});
    const Floats high = __builtin_shuffle(a, b, Ints{(I % G < G / 2 ? I + G / 2 : I + kWidth)...});
#endif
    return low + high;
}

// Within groups of G lanes: the folded halves of a in the lower half, those of b in the upper half.
template <int G>
GS_HD Floats fold_pair(Floats a, Floats b) {
    return fold_lanes<G>(a, b, typename MakeLanes<kWidth>::type{});
}

}  // namespace GS_BUILD
}  // namespace gs

#endif  // GS_STANDARD_VECTORS

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>
#endif

namespace gs {
namespace GS_BUILD {

template <>
struct ElementOf<Floats> {
    using type = float;
};

GS_HD Floats fused(Floats a, Floats b, Floats c) { return a * b + c; }  // contracted where the machine can

#if defined(_MSC_VER) && !defined(__clang__)
GS_HD int lowest_bit(uint32_t bits) {
    unsigned long index;
    _BitScanForward(&index, bits);
    return static_cast<int>(index);
}
GS_HD void prefetch(const void*) {}
#else
GS_HD int lowest_bit(uint32_t bits) { return __builtin_ctz(bits); }
GS_HD void prefetch(const void* p) { __builtin_prefetch(p); }
#endif

#if defined(GS_STANDARD_VECTORS) || !defined(__AVX2__)
GS_HD Floats minimum(Floats a, Floats b) { return select(a < b, a, b); }
GS_HD Floats maximum(Floats a, Floats b) { return select(a > b, a, b); }
GS_HD uint32_t at_least(Floats a, Floats b) {
    const Ints mask = a >= b;
    uint32_t bits = 0;
    for (int i = 0; i < kWidth; ++i) bits |= static_cast<uint32_t>(mask[i] & 1) << i;
    return bits;
}
GS_HD Floats reciprocal(Floats a) { return 1.0f / a; }
#endif

// 2^q for q up to about 100, relative error below 2e-7; 0 or nearly so for very negative q.
GS_HD Floats exp2(Floats q) {
#if defined(__AVX512DQ__) && !defined(GS_STANDARD_VECTORS)
    const Floats f = (Floats)_mm512_reduce_ps((__m512)q, 0x08);  // q minus the nearest integer
    const Floats whole = q - f;
#else
    q = maximum(q, Floats{} - 120.0f);
    const float magic = 12582912.0f;  // 1.5 * 2^23: adding it rounds to an integer
    const Floats shifted = q + magic;
    const Floats f = q - (shifted - magic);
#endif
    Floats p = 1.32647271e-3f * f + 9.67151265e-3f;
    p = p * f + 5.55073374e-2f;
    p = p * f + 2.40222421e-1f;
    p = p * f + 6.93146978e-1f;
    p = p * f + 1.0f;
#if defined(__AVX512DQ__) && !defined(GS_STANDARD_VECTORS)
    return (Floats)_mm512_scalef_ps((__m512)p, (__m512)whole);
#else
    return scale_by_power(p, shifted);
#endif
}

// Lane sums of `count` <= kWidth vectors: where[] (see lane_of) says which lane holds which.
template <int Count, int G = kWidth>
GS_HD Floats lane_sums(Floats* v) {
    if constexpr (G == 1) {
        return v[0];
    } else {
        constexpr int half = (Count + 1) / 2;
        for (int i = 0; i < half; ++i)
            v[i] = fold_pair<G>(v[i], i + half < Count ? v[i + half] : Floats{});
        return lane_sums<half, G / 2>(v);
    }
}

// The lane of lane_sums' result that holds the sum of vector `index` of `count`.
constexpr int lane_of(int index, int count) {
    int lane = 0;
    for (int g = kWidth; g > 1; g /= 2) {
        const int half = (count + 1) / 2;
        if (index >= half) {
            lane += g / 2;
            index -= half;
        }
        count = half;
    }
    return lane;
}

}  // namespace GS_BUILD
}  // namespace gs
