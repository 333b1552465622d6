// The vectors of simd.h in standard C++, for compilers without GNU's vector types. Loops of fixed length, which
// optimisers unroll or vectorise.
#pragma once

#include <cmath>
#include <cstdint>
#include <cstring>

namespace gs {
namespace GS_BUILD {

constexpr int kWidth = 4;

struct Floats {
    float v[kWidth];
    float& operator[](int i) { return v[i]; }
    float operator[](int i) const { return v[i]; }
};

struct Ints {
    int32_t v[kWidth];
    int32_t& operator[](int i) { return v[i]; }
    int32_t operator[](int i) const { return v[i]; }
};

template <class Operation>
GS_HD Floats each(const Operation& operation) {
    Floats r;
    for (int i = 0; i < kWidth; ++i) r.v[i] = operation(i);
    return r;
}

template <class Operation>
GS_HD Ints each_int(const Operation& operation) {
    Ints r;
    for (int i = 0; i < kWidth; ++i) r.v[i] = operation(i);
    return r;
}

GS_HD Floats broadcast(float a) {
    return each([=](int) { return a; });
}

#define GS_ARITHMETIC(op)                                                                                    \
    GS_HD Floats operator op(const Floats& a, const Floats& b) {                                             \
        return each([&](int i) { return a.v[i] op b.v[i]; });                                                \
    }                                                                                                        \
    GS_HD Floats operator op(const Floats& a, float b) { return a op broadcast(b); }                         \
    GS_HD Floats operator op(float a, const Floats& b) { return broadcast(a) op b; }                         \
    GS_HD Floats& operator op##=(Floats& a, const Floats& b) { return a = a op b; }                          \
    GS_HD Floats& operator op##=(Floats& a, float b) { return a = a op broadcast(b); }
GS_ARITHMETIC(+)
GS_ARITHMETIC(-)
GS_ARITHMETIC(*)
GS_ARITHMETIC(/)
#undef GS_ARITHMETIC

#define GS_COMPARISON(op)                                                                                    \
    GS_HD Ints operator op(const Floats& a, const Floats& b) {                                               \
        return each_int([&](int i) { return a.v[i] op b.v[i] ? -1 : 0; });                                   \
    }                                                                                                        \
    GS_HD Ints operator op(const Floats& a, float b) { return a op broadcast(b); }
GS_COMPARISON(<)
GS_COMPARISON(>)
GS_COMPARISON(>=)
#undef GS_COMPARISON

GS_HD Floats operator-(const Floats& a) {
    return each([&](int i) { return -a.v[i]; });
}
GS_HD Ints operator&(const Ints& a, const Ints& b) {
    return each_int([&](int i) { return a.v[i] & b.v[i]; });
}

GS_HD Floats select(const Ints& mask, const Floats& a, const Floats& b) {
    return each([&](int i) { return mask.v[i] ? a.v[i] : b.v[i]; });
}
GS_HD Floats load(const float* p) {
    return each([&](int i) { return p[i]; });
}
GS_HD void store(float* p, const Floats& a) {
    for (int i = 0; i < kWidth; ++i) p[i] = a.v[i];
}
GS_HD Floats minus_abs(const Floats& a) {
    return each([&](int i) { return -std::fabs(a.v[i]); });
}
GS_HD Floats root(const Floats& a) {
    return each([&](int i) { return std::sqrt(a.v[i]); });
}

// p times two to the power that stands in the lowest bits of `shifted`.
GS_HD Floats scale_by_power(const Floats& p, const Floats& shifted) {
    return each([&](int i) {
        uint32_t bits, power;
        std::memcpy(&bits, &p.v[i], sizeof bits);
        std::memcpy(&power, &shifted.v[i], sizeof power);
        bits += power << 23;
        float scaled;
        std::memcpy(&scaled, &bits, sizeof scaled);
        return scaled;
    });
}

// Within groups of G lanes: the folded halves of a in the lower half, those of b in the upper half.
template <int G>
GS_HD Floats fold_pair(const Floats& a, const Floats& b) {
    return each([&](int i) { return i % G < G / 2 ? a.v[i] + a.v[i + G / 2] : b.v[i - G / 2] + b.v[i]; });
}

}  // namespace GS_BUILD
}  // namespace gs
