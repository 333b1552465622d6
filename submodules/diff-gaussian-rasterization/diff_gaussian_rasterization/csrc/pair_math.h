// The mathematics of one splat at one pixel, forward and backward, in one place for every compiled backend.
//
// Templates on R: float, or a vector of them (one pixel a lane). A negative transmittance marks a pixel that has ended.
#pragma once

#include "gaussian_math.h"

namespace gs {
namespace GS_BUILD {

constexpr float kMinAlpha = 1.0f / 255.0f;
constexpr float kMinTransmittance = 1e-4f;
constexpr float kLevelSlack = 0.01f;  // the test of a rectangle errs on the side of visiting

// Whether the exponent may reach the smallest alpha in pixels [x0, x0 + width] x [y0, y0 + height], given relative to
// the centre: the result is at least `least_exponent`. The largest exponent over a rectangle that does not contain the
// centre lies on one of the edges that face the centre.
template <class R>
GS_HD R largest_exponent(const Splat& s, R x0, R y0, float width, float height) {
    const R x1 = x0 + width, y1 = y0 + height;
    const R x = minimum(maximum(x0, R{}), x1), y = minimum(maximum(y0, R{}), y1);
    const R along_x = minimum(maximum(s.ridge_x * y, x0), x1);
    const R along_y = minimum(maximum(s.ridge_y * x, y0), y1);
    const R on_x = x * (s.xx * x + s.xy * along_y) + s.yy * along_y * along_y;
    const R on_y = along_x * (s.xx * along_x + s.xy * y) + s.yy * y * y;
    return maximum(on_x, on_y);
}

GS_HD float least_exponent(const Splat& s) { return kLog2MinAlpha - kLevelSlack - s.level; }

template <class R>
struct Alpha {
    R dx, dy, raw, alpha;  // raw: opacity times Gaussian; alpha: held below the cap, 0 where too small
};

// At offset (dx, dy) from the pixel to the centre.
template <class R>
GS_HD Alpha<R> alpha_at(const Splat& s, R dx, R dy) {
    Alpha<R> a;
    a.dx = dx;
    a.dy = dy;
    const R slope = fused(R{} + s.xx, dx, s.xy * dy);
    a.raw = exp2(fused(s.yy * dy, dy, fused(slope, dx, R{} + s.level)));
    const R held = minimum(a.raw, R{} + s.cap);
    a.alpha = select(held >= kMinAlpha, held, R{});
    return a;
}

// Updates the transmittance and returns the splat's weight in the pixel.
template <class R>
GS_HD R blend(const Alpha<R>& a, R& transmittance) {
    const R before = transmittance, after = fused(-before, a.alpha, before);
    const auto keep = after >= kMinTransmittance;
    // A pixel that ends keeps its transmittance, with the sign that marks it.
    transmittance = select(keep, after, minus_abs(before));
    return select(keep, before * a.alpha, R{});
}

// Adds to the splat's sums. The pixels are replayed front to back with the forward pass's decisions. `gradient` is that
// of red, green, blue, depth and alpha; `behind` what is still to come, dotted with it. With v = dL/dweight of this
// splat and `behind` the same of all that follows: dL/dalpha = T v - behind / (1 - alpha).
// Returns the weight.
template <bool Absolute, class R>
GS_HD R differentiate(const Splat& s, const Alpha<R>& a, const R gradient[5], R& transmittance, R& behind, R* sums) {
    const R weight = blend(a, transmittance);
    R value = gradient[4] + s.depth * gradient[3];
    for (int k = 0; k < 3; ++k) value += s.color[k] * gradient[k];
    behind -= weight * value;
    const R alpha = select(weight > 0.0f, a.alpha, R{});
    const R slope = weight * value - alpha * behind * reciprocal(1.0f - alpha);
    const R g = select(a.raw > kMaxAlpha, R{}, slope);
    const R gx = g * a.dx, gy = g * a.dy;
    sums[kS] += g;
    sums[kSx] += gx;
    sums[kSy] += gy;
    sums[kSxx] += gx * a.dx;
    sums[kSxy] += gx * a.dy;
    sums[kSyy] += gy * a.dy;
    for (int k = 0; k < 3; ++k) sums[kRed + k] += weight * gradient[k];
    sums[kDepth] += weight * gradient[3];
    if (Absolute) {
        const R along_x = 2.0f * s.xx * gx + s.xy * gy, along_y = s.xy * gx + 2.0f * s.yy * gy;
        sums[kAbsX] += maximum(along_x, -along_x);
        sums[kAbsY] += maximum(along_y, -along_y);
    }
    return weight;
}

}  // namespace GS_BUILD
}  // namespace gs
