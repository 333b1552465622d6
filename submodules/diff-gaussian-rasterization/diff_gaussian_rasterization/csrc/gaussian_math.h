// The mathematics of one Gaussian seen by one camera, forward and backward, in one place for every compiled backend.
//
// Templates on R: float or double, or a vector of them (one Gaussian a lane), so everything is free of branches on data.
// Conventions: matrices are the field's transposed ones, read as flat arrays (column-major for column vectors);
// quaternions are (w, x, y, z) and not normalised; integer pixel coordinates are pixel centres.
#pragma once

#if !defined(__CUDACC_RTC__)
#include <cmath>
#endif

#include "splat.h"

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define GS_HD __device__ __forceinline__
#define GS_CUDA 1
#else
#define GS_CUDA 0
#if defined(_MSC_VER) && !defined(__clang__)
#define GS_HD __forceinline
#else
#define GS_HD inline __attribute__((always_inline))
#endif
#endif

// Each build of the CPU kernel gives its own name, so that the linker never mixes instruction sets.
#ifndef GS_BUILD
#define GS_BUILD scalar
#endif

namespace gs {
namespace GS_BUILD {

template <class R>
struct ElementOf {
    using type = R;
};
template <class R>
using Element = typename ElementOf<R>::type;

GS_HD float select(bool mask, float a, float b) { return mask ? a : b; }
GS_HD double select(bool mask, double a, double b) { return mask ? a : b; }
GS_HD float root(float a) { return sqrtf(a); }
GS_HD double root(double a) { return ::sqrt(a); }
GS_HD float minimum(float a, float b) { return a < b ? a : b; }
GS_HD float maximum(float a, float b) { return a > b ? a : b; }
GS_HD float minus_abs(float a) { return -fabsf(a); }
GS_HD float exp2(float a) { return exp2f(a); }
// a b + c rounded once. Where the forward pass's decisions depend on it, it must not be left to a compiler, which may
// choose otherwise in the backward pass.
GS_HD float fused(float a, float b, float c) { return fmaf(a, b, c); }
#if GS_CUDA
GS_HD float reciprocal(float a) { return __fdividef(1.0f, a); }
#else
GS_HD float reciprocal(float a) { return 1.0f / a; }
#endif

}  // namespace GS_BUILD
}  // namespace gs

#ifdef GS_VECTORS
#include GS_VECTORS  // vector types with their ElementOf, select and root
#endif

namespace gs {
namespace GS_BUILD {

constexpr double kNear = 0.2;          // view depth up to which nothing is drawn
constexpr double kFrustum = 1.3;       // how far outside the field of view the Jacobian is taken
constexpr double kBlur = 0.3;          // square pixels added to the diagonal of the projected covariance
constexpr double kMinSharpness = 2.5e-5;  // floor of the antialiasing factor's square

template <class S>
struct Camera {
    S view[16], clip[16], position[3];
    S limit[2];  // kFrustum times the tangents of half the field of view
    S focal[2];  // pixels
    S size[2];   // pixels
};

GS_HD Camera<float> camera_of(const gs_views& v, int64_t view) {
    Camera<float> c;
    for (int i = 0; i < 16; ++i) c.view[i] = v.viewmatrix[16 * view + i];
    for (int i = 0; i < 16; ++i) c.clip[i] = v.projmatrix[16 * view + i];
    for (int i = 0; i < 3; ++i) c.position[i] = v.campos[3 * view + i];
    for (int i = 0; i < 2; ++i) {
        c.size[i] = static_cast<float>(i ? v.height : v.width);
        c.focal[i] = c.size[i] / (2.0f * v.tanfov[2 * view + i]);
        c.limit[i] = static_cast<float>(kFrustum) * v.tanfov[2 * view + i];
    }
    return c;
}

// A 3-D covariance, either as scales and a quaternion or as its six entries xx, xy, xz, yy, yz, zz.
template <class R>
struct Shape {
    bool from_entries;
    R scale[3], quaternion[4], entries[6];
};

template <class R>
struct Projection {
    R point[3];           // in camera space
    R clip[2], inverse_w;
    R pixel[2];
    R slope[2], inside[2];  // slope held near the frustum; 1 where it was inside, else 0
    R map[2][3];            // world displacement to pixels: Jacobian times rotation
    R rotation[3][3];
    R rotated[2][3];        // map * rotation (scales apart); with entries: map * covariance
    R sharp[3];             // xx, xy, yy of the projected covariance before the blur
    R det_sharp, det;       // before and after the blur
    R conic[3];             // inverse of the blurred covariance
};

template <class R>
GS_HD R row(const Element<R>* m, int i, const R p[3]) {
    return m[i] * p[0] + m[4 + i] * p[1] + m[8 + i] * p[2] + m[12 + i];
}

template <class R>
GS_HD void rotation_matrix(const R q[4], R m[3][3]) {
    using S = Element<R>;
    const R w = q[0], x = q[1], y = q[2], z = q[3];
    m[0][0] = S(1) - S(2) * (y * y + z * z);
    m[0][1] = S(2) * (x * y - w * z);
    m[0][2] = S(2) * (x * z + w * y);
    m[1][0] = S(2) * (x * y + w * z);
    m[1][1] = S(1) - S(2) * (x * x + z * z);
    m[1][2] = S(2) * (y * z - w * x);
    m[2][0] = S(2) * (x * z - w * y);
    m[2][1] = S(2) * (y * z + w * x);
    m[2][2] = S(1) - S(2) * (x * x + y * y);
}

// dL/dquaternion from g = dL/d(rotation matrix).
template <class R>
GS_HD void rotation_matrix_backward(const R q[4], const R g[3][3], R out[4]) {
    using S = Element<R>;
    const R w = q[0], x = q[1], y = q[2], z = q[3];
    out[0] = S(2) * (x * (g[2][1] - g[1][2]) + y * (g[0][2] - g[2][0]) + z * (g[1][0] - g[0][1]));
    out[1] = S(2) * (y * (g[0][1] + g[1][0]) + z * (g[0][2] + g[2][0]) + w * (g[2][1] - g[1][2])) -
             S(4) * x * (g[1][1] + g[2][2]);
    out[2] = S(2) * (x * (g[0][1] + g[1][0]) + z * (g[1][2] + g[2][1]) + w * (g[0][2] - g[2][0])) -
             S(4) * y * (g[0][0] + g[2][2]);
    out[3] = S(2) * (x * (g[0][2] + g[2][0]) + y * (g[1][2] + g[2][1]) + w * (g[1][0] - g[0][1])) -
             S(4) * z * (g[0][0] + g[1][1]);
}

// Finite for any finite mean with depth > kNear; elsewhere the caller discards the result. `scale_modifier` is already
// in the scales.
template <class R>
GS_HD void project(const Camera<Element<R>>& camera, const R mean[3], const Shape<R>& shape, Projection<R>& p) {
    using S = Element<R>;
    for (int i = 0; i < 3; ++i) p.point[i] = row(camera.view, i, mean);
    p.inverse_w = S(1) / (row(camera.clip, 3, mean) + S(1e-7));
    const R inverse_depth = S(1) / p.point[2];
    for (int i = 0; i < 2; ++i) {
        p.clip[i] = row(camera.clip, i, mean);
        p.pixel[i] = ((p.clip[i] * p.inverse_w + S(1)) * camera.size[i] - S(1)) * S(0.5);
        const R slope = p.point[i] * inverse_depth;
        const R limit = R{} + camera.limit[i];
        p.inside[i] = select((slope < limit) & (slope > -limit), R{} + S(1), R{});
        p.slope[i] = select(slope > limit, limit, select(slope < -limit, -limit, slope));
        const R reach = camera.focal[i] * inverse_depth;
        for (int k = 0; k < 3; ++k)
            p.map[i][k] = reach * (camera.view[4 * k + i] - p.slope[i] * camera.view[4 * k + 2]);
    }
    if (shape.from_entries) {
        const R* e = shape.entries;
        for (int i = 0; i < 2; ++i) {
            const R* m = p.map[i];
            p.rotated[i][0] = m[0] * e[0] + m[1] * e[1] + m[2] * e[2];
            p.rotated[i][1] = m[0] * e[1] + m[1] * e[3] + m[2] * e[4];
            p.rotated[i][2] = m[0] * e[2] + m[1] * e[4] + m[2] * e[5];
        }
        for (int k = 0; k < 3; ++k) {
            const int i = k == 2, j = k > 0;
            p.sharp[k] = p.rotated[i][0] * p.map[j][0] + p.rotated[i][1] * p.map[j][1] + p.rotated[i][2] * p.map[j][2];
        }
        p.det_sharp = p.sharp[0] * p.sharp[2] - p.sharp[1] * p.sharp[1];
    } else {
        rotation_matrix(shape.quaternion, p.rotation);
        R factor[2][3];
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 3; ++j) {
                p.rotated[i][j] = p.map[i][0] * p.rotation[0][j] + p.map[i][1] * p.rotation[1][j] +
                                  p.map[i][2] * p.rotation[2][j];
                factor[i][j] = p.rotated[i][j] * shape.scale[j];
            }
        for (int k = 0; k < 3; ++k) {
            const int i = k == 2, j = k > 0;
            p.sharp[k] = factor[i][0] * factor[j][0] + factor[i][1] * factor[j][1] + factor[i][2] * factor[j][2];
        }
        // The determinant of a product with its own transpose, by cross product: no cancellation for needles.
        const R u = factor[0][1] * factor[1][2] - factor[0][2] * factor[1][1];
        const R v = factor[0][2] * factor[1][0] - factor[0][0] * factor[1][2];
        const R w = factor[0][0] * factor[1][1] - factor[0][1] * factor[1][0];
        p.det_sharp = u * u + v * v + w * w;
    }
    p.det = p.det_sharp + S(kBlur) * (p.sharp[0] + p.sharp[2]) + S(kBlur * kBlur);
    const R inverse_det = S(1) / p.det;
    p.conic[0] = (p.sharp[2] + S(kBlur)) * inverse_det;
    p.conic[1] = -p.sharp[1] * inverse_det;
    p.conic[2] = (p.sharp[0] + S(kBlur)) * inverse_det;
}

// Three standard deviations along the longer axis, not yet rounded up.
template <class R>
GS_HD R screen_radius(const Projection<R>& p) {
    using S = Element<R>;
    const R middle = S(0.5) * (p.sharp[0] + p.sharp[2]) + S(kBlur);
    const R spread = middle * middle - p.det;
    return S(3) * root(middle + root(select(spread > S(0.1), spread, R{} + S(0.1))));
}

// What the opacity is multiplied with so that a Gaussian keeps its energy under the blur.
template <class R>
GS_HD R antialiasing_factor(const Projection<R>& p) {
    using S = Element<R>;
    const R ratio = p.det_sharp / p.det;
    return root(select(ratio > S(kMinSharpness), ratio, R{} + S(kMinSharpness)));
}

// Gradients that come from the image, of one Gaussian in one view.
template <class R>
struct PlanarGradient {
    R pixel[2], conic[3], depth, factor;  // factor: dL/d(antialiasing factor)
};

// Adds to dL/dmean and to dL/dshape (scales without the modifier, quaternion, or entries).
template <class R>
GS_HD void project_backward(const Camera<Element<R>>& camera, const Shape<R>& shape, const Projection<R>& p,
                            const PlanarGradient<R>& g, bool antialiasing, R mean[3], Shape<R>& out) {
    using S = Element<R>;
    // The derivative of an inverse: dcovariance = -conic dconic conic.
    const R *k = p.conic, half = S(0.5) * g.conic[1];
    const R u00 = k[0] * g.conic[0] + k[1] * half, u01 = k[0] * half + k[1] * g.conic[2];
    const R u10 = k[1] * g.conic[0] + k[2] * half, u11 = k[1] * half + k[2] * g.conic[2];
    R xx = -(u00 * k[0] + u01 * k[1]), xy = S(-2) * (u00 * k[1] + u01 * k[2]), yy = -(u10 * k[1] + u11 * k[2]);
    if (antialiasing) {
        const R ratio = p.det_sharp / p.det;
        const R g_ratio = select(ratio > S(kMinSharpness), g.factor * S(0.5) / antialiasing_factor(p), R{});
        const R g_blurred = -g_ratio * ratio / p.det, g_both = g_ratio / p.det + g_blurred;
        xx += g_both * p.sharp[2] + S(kBlur) * g_blurred;
        yy += g_both * p.sharp[0] + S(kBlur) * g_blurred;
        xy -= S(2) * g_both * p.sharp[1];
    }
    R g_map[2][3];
    if (shape.from_entries) {
        for (int j = 0; j < 3; ++j) {
            g_map[0][j] = S(2) * xx * p.rotated[0][j] + xy * p.rotated[1][j];
            g_map[1][j] = S(2) * yy * p.rotated[1][j] + xy * p.rotated[0][j];
        }
        for (int i = 0, entry = 0; i < 3; ++i)
            for (int j = i; j < 3; ++j, ++entry) {
                const R outer = xx * p.map[0][i] * p.map[0][j] + yy * p.map[1][i] * p.map[1][j] +
                                S(0.5) * xy * (p.map[0][i] * p.map[1][j] + p.map[0][j] * p.map[1][i]);
                out.entries[entry] += i == j ? outer : S(2) * outer;
            }
    } else {
        R g_rotated[2][3], g_rotation[3][3], g_quaternion[4];
        for (int j = 0; j < 3; ++j) {
            const R s = shape.scale[j], m0 = p.rotated[0][j] * s, m1 = p.rotated[1][j] * s;
            const R g0 = S(2) * xx * m0 + xy * m1, g1 = S(2) * yy * m1 + xy * m0;
            out.scale[j] += g0 * p.rotated[0][j] + g1 * p.rotated[1][j];
            g_rotated[0][j] = g0 * s;
            g_rotated[1][j] = g1 * s;
        }
        for (int i = 0; i < 2; ++i)
            for (int n = 0; n < 3; ++n)
                g_map[i][n] = g_rotated[i][0] * p.rotation[n][0] + g_rotated[i][1] * p.rotation[n][1] +
                              g_rotated[i][2] * p.rotation[n][2];
        for (int n = 0; n < 3; ++n)
            for (int j = 0; j < 3; ++j)
                g_rotation[n][j] = p.map[0][n] * g_rotated[0][j] + p.map[1][n] * g_rotated[1][j];
        rotation_matrix_backward(shape.quaternion, g_rotation, g_quaternion);
        for (int i = 0; i < 4; ++i) out.quaternion[i] += g_quaternion[i];
    }
    const R inverse_depth = S(1) / p.point[2];
    R g_point[3] = {R{}, R{}, g.depth}, g_clip[2], g_w = R{};
    for (int i = 0; i < 2; ++i) {
        const R along = g_map[i][0] * p.map[i][0] + g_map[i][1] * p.map[i][1] + g_map[i][2] * p.map[i][2];
        const R g_slope = -camera.focal[i] * inverse_depth *
                          (g_map[i][0] * camera.view[2] + g_map[i][1] * camera.view[6] + g_map[i][2] * camera.view[10]);
        g_point[i] = g_slope * p.inside[i] * inverse_depth;
        g_point[2] -= (along + g_slope * p.inside[i] * p.slope[i]) * inverse_depth;
        g_clip[i] = g.pixel[i] * (S(0.5) * camera.size[i]) * p.inverse_w;
        g_w -= g_clip[i] * p.clip[i] * p.inverse_w;
    }
    for (int n = 0; n < 3; ++n)
        mean[n] += camera.view[4 * n] * g_point[0] + camera.view[4 * n + 1] * g_point[1] +
                   camera.view[4 * n + 2] * g_point[2] + camera.clip[4 * n] * g_clip[0] +
                   camera.clip[4 * n + 1] * g_clip[1] + camera.clip[4 * n + 3] * g_w;
}

constexpr double kSh0 = 0.28209479177387814, kSh1 = 0.4886025119029199;
constexpr double kSh2a = 1.0925484305920792, kSh2b = 0.31539156525252005, kSh2c = 0.5462742152960396;
constexpr double kSh3a = 0.5900435899266435, kSh3b = 2.890611442640554, kSh3c = 0.4570457994644658;
constexpr double kSh3d = 0.3731763325901154, kSh3e = 1.445305721320277;

// Real spherical harmonics at a unit direction, (degree + 1)^2 of them, with the field's signs.
template <class R>
GS_HD void sh_basis(int degree, const R d[3], R* b) {
    using S = Element<R>;
    b[0] = R{} + S(kSh0);
    if (degree < 1) return;
    const R x = d[0], y = d[1], z = d[2];
    b[1] = S(-kSh1) * y;
    b[2] = S(kSh1) * z;
    b[3] = S(-kSh1) * x;
    if (degree < 2) return;
    const R xx = x * x, yy = y * y, zz = z * z;
    b[4] = S(kSh2a) * x * y;
    b[5] = S(-kSh2a) * y * z;
    b[6] = S(kSh2b) * (S(2) * zz - xx - yy);
    b[7] = S(-kSh2a) * x * z;
    b[8] = S(kSh2c) * (xx - yy);
    if (degree < 3) return;
    b[9] = S(-kSh3a) * y * (S(3) * xx - yy);
    b[10] = S(kSh3b) * x * y * z;
    b[11] = S(-kSh3c) * y * (S(4) * zz - xx - yy);
    b[12] = S(kSh3d) * z * (S(2) * zz - S(3) * xx - S(3) * yy);
    b[13] = S(-kSh3c) * x * (S(4) * zz - xx - yy);
    b[14] = S(kSh3e) * z * (xx - yy);
    b[15] = S(-kSh3a) * x * (xx - S(3) * yy);
}

// dL/ddirection from t[k] = dL/db[k].
template <class R>
GS_HD void sh_basis_backward(int degree, const R d[3], const R* t, R g[3]) {
    using S = Element<R>;
    g[0] = g[1] = g[2] = R{};
    if (degree < 1) return;
    const R x = d[0], y = d[1], z = d[2];
    g[0] = S(-kSh1) * t[3];
    g[1] = S(-kSh1) * t[1];
    g[2] = S(kSh1) * t[2];
    if (degree < 2) return;
    const R xx = x * x, yy = y * y, zz = z * z;
    g[0] += S(kSh2a) * (y * t[4] - z * t[7]) - S(2 * kSh2b) * x * t[6] + S(2 * kSh2c) * x * t[8];
    g[1] += S(kSh2a) * (x * t[4] - z * t[5]) - S(2 * kSh2b) * y * t[6] - S(2 * kSh2c) * y * t[8];
    g[2] += S(-kSh2a) * (y * t[5] + x * t[7]) + S(4 * kSh2b) * z * t[6];
    if (degree < 3) return;
    g[0] += S(-6 * kSh3a) * x * y * t[9] + S(kSh3b) * y * z * t[10] + S(2 * kSh3c) * x * y * t[11] -
            S(6 * kSh3d) * x * z * t[12] - S(kSh3c) * (S(4) * zz - S(3) * xx - yy) * t[13] +
            S(2 * kSh3e) * x * z * t[14] - S(3 * kSh3a) * (xx - yy) * t[15];
    g[1] += S(-3 * kSh3a) * (xx - yy) * t[9] + S(kSh3b) * x * z * t[10] -
            S(kSh3c) * (S(4) * zz - xx - S(3) * yy) * t[11] - S(6 * kSh3d) * y * z * t[12] +
            S(2 * kSh3c) * x * y * t[13] - S(2 * kSh3e) * y * z * t[14] + S(6 * kSh3a) * x * y * t[15];
    g[2] += S(kSh3b) * x * y * t[10] - S(8 * kSh3c) * y * z * t[11] +
            S(kSh3d) * (S(6) * zz - S(3) * xx - S(3) * yy) * t[12] - S(8 * kSh3c) * x * z * t[13] +
            S(kSh3e) * (xx - yy) * t[14];
}

// Unit direction from the camera to the mean; returns the inverse of the distance.
template <class R>
GS_HD R direction_to(const R mean[3], const Element<R> position[3], R d[3]) {
    using S = Element<R>;
    for (int i = 0; i < 3; ++i) d[i] = mean[i] - position[i];
    const R squared = d[0] * d[0] + d[1] * d[1] + d[2] * d[2];
    const R inverse = S(1) / root(select(squared > S(1e-24), squared, R{} + S(1e-24)));
    for (int i = 0; i < 3; ++i) d[i] *= inverse;
    return inverse;
}

// Adds to dL/dmean what g = dL/d(unit direction) says.
template <class R>
GS_HD void direction_backward(const R d[3], R inverse, const R g[3], R mean[3]) {
    const R radial = d[0] * g[0] + d[1] * g[1] + d[2] * g[2];
    for (int i = 0; i < 3; ++i) mean[i] += (g[i] - d[i] * radial) * inverse;
}

GS_HD int coefficients_of(int degree) { return (degree + 1) * (degree + 1); }

// The colour before it is held at zero from below. `coefficient(k, c)` gives the k-th coefficient of all channels in c.
template <class R, class Load>
GS_HD void sh_color(int degree, const R direction[3], const Load& coefficient, R color[3]) {
    using S = Element<R>;
    R basis[16], c[3];
    sh_basis(degree, direction, basis);
    for (int i = 0; i < 3; ++i) color[i] = R{} + S(0.5);
    for (int k = 0; k < coefficients_of(degree); ++k) {
        coefficient(k, c);
        for (int i = 0; i < 3; ++i) color[i] += basis[k] * c[i];
    }
}

// Adds to dL/dcoefficients and to dL/dmean what g_color = dL/dcolour says, and zeroes it in channels that were held.
template <class R, class Load>
GS_HD void sh_color_backward(int degree, const Camera<Element<R>>& camera, const R mean[3], const Load& coefficient,
                             R g_color[3], R g_coefficients[16][3], R g_mean[3]) {
    R direction[3], basis[16], toward[16], g_direction[3], color[3], c[3];
    const R inverse = direction_to(mean, camera.position, direction);
    sh_color(degree, direction, coefficient, color);
    for (int i = 0; i < 3; ++i) g_color[i] = select(color[i] > Element<R>(0), g_color[i], R{});
    sh_basis(degree, direction, basis);
    for (int k = 0; k < coefficients_of(degree); ++k) {
        for (int i = 0; i < 3; ++i) g_coefficients[k][i] += basis[k] * g_color[i];
        coefficient(k, c);
        toward[k] = c[0] * g_color[0] + c[1] * g_color[1] + c[2] * g_color[2];
    }
    if (degree == 0) return;
    sh_basis_backward(degree, direction, toward, g_direction);
    direction_backward(direction, inverse, g_direction, g_mean);
}

constexpr float kLog2e = 1.44269504f;
constexpr float kLargest = 3.402823466e38f;
constexpr float kMaxAlpha = 0.99f;
constexpr float kLog2MinAlpha = -7.99435344f;

// A projected Gaussian that is one number a field.
struct Planar {
    float depth, pixel[2], det, conic[3], variance[2], radius, opacity, color[3];  // variance: with the blur
};

GS_HD float clamped(float v, float high) { return v < 0.0f ? 0.0f : v > high ? high : v; }

// Tiles [low, high) along one axis: those of the square of three deviations, as far as pixel centres within `extent`.
GS_HD void tile_range(float center, float radius, float extent, int tiles, int pixels, int square[2], int tight[2]) {
    const float limit = static_cast<float>(tiles);
    square[0] = static_cast<int>(clamped((center - radius) / kTile, limit));
    square[1] = static_cast<int>(clamped((center + radius + (kTile - 1)) / kTile, limit));
    const float last = static_cast<float>(pixels);
    const int low = static_cast<int>(clamped(ceilf(center - extent), last));
    const int high = static_cast<int>(clamped(floorf(center + extent) + 1.0f, last));
    tight[0] = low / kTile > square[0] ? low / kTile : square[0];
    tight[1] = (high + kTile - 1) / kTile < square[1] ? (high + kTile - 1) / kTile : square[1];
    if (low >= high || tight[0] >= tight[1]) tight[0] = tight[1] = 0;
}

// Fills `splat` and `rect` if pixels can see the Gaussian, else leaves `rect` empty. Returns its radius, 0 if the field
// takes it for not drawn. Colours that come from harmonics are held at zero from below.
GS_HD int place(const Planar& g, bool held, int width, int height, Splat& splat, TileRect& rect) {
    rect = TileRect{};
    const float rounded = ceilf(g.radius);
    const bool drawable = g.depth > static_cast<float>(kNear) && g.det > 0.0f && g.conic[0] > 0.0f &&
                          g.det <= kLargest && rounded <= kLargest && fabsf(g.pixel[0]) <= kLargest &&
                          fabsf(g.pixel[1]) <= kLargest;
    if (!drawable) return 0;
    const float level = g.opacity > 0.0f ? log2f(g.opacity) : -kLargest;
    const float span = level - kLog2MinAlpha;  // in powers of two
    const float reach = span > 0.0f ? 2.0f / kLog2e * span : 0.0f;
    int square[2][2], tight[2][2];
    for (int i = 0; i < 2; ++i) {
        const int pixels = i ? height : width;
        tile_range(g.pixel[i], rounded, sqrtf(reach * g.variance[i]) + 0.01f, (pixels + kTile - 1) / kTile, pixels,
                   square[i], tight[i]);
    }
    if (square[0][0] >= square[0][1] || square[1][0] >= square[1][1]) return 0;
    const int radius = rounded < 1073741824.0f ? static_cast<int>(rounded) : 1073741824;
    if (!(span >= 0.0f) || tight[0][0] >= tight[0][1] || tight[1][0] >= tight[1][1]) return radius;
    rect.x0 = static_cast<uint16_t>(tight[0][0]);
    rect.y0 = static_cast<uint16_t>(tight[1][0]);
    rect.x1 = static_cast<uint16_t>(tight[0][1]);
    rect.y1 = static_cast<uint16_t>(tight[1][1]);
    splat.x = g.pixel[0];
    splat.y = g.pixel[1];
    splat.xx = -0.5f * kLog2e * g.conic[0];
    splat.xy = -kLog2e * g.conic[1];
    splat.yy = -0.5f * kLog2e * g.conic[2];
    splat.level = level;
    splat.cap = g.opacity < kMaxAlpha ? g.opacity : kMaxAlpha;
    for (int c = 0; c < 3; ++c) splat.color[c] = !held || g.color[c] > 0.0f ? g.color[c] : 0.0f;
    splat.depth = g.depth;
    splat.ridge_x = -g.conic[1] / g.conic[0];
    splat.ridge_y = -g.conic[1] / g.conic[2];
    splat.opacity = g.opacity;
    return radius;
}

// Sums over pixels of one splat. s is dL/dexponent (natural), times offsets from the centre; then weights in the image
// times gradients; then absolute values of the exponent's slopes (in powers of two) times s.
enum Sum { kS, kSx, kSy, kSxx, kSxy, kSyy, kRed, kGreen, kBlue, kDepth, kAbsX, kAbsY, kSums };

template <class R>
GS_HD PlanarGradient<R> planar_gradient(const Projection<R>& p, const R* sums, bool antialiasing) {
    using S = Element<R>;
    PlanarGradient<R> g;
    g.pixel[0] = -(p.conic[0] * sums[kSx] + p.conic[1] * sums[kSy]);
    g.pixel[1] = -(p.conic[1] * sums[kSx] + p.conic[2] * sums[kSy]);
    g.conic[0] = S(-0.5) * sums[kSxx];
    g.conic[1] = -sums[kSxy];
    g.conic[2] = S(-0.5) * sums[kSyy];
    g.depth = sums[kDepth];
    g.factor = R{};
    if (antialiasing) g.factor = sums[kS] / antialiasing_factor(p);
    return g;
}

}  // namespace GS_BUILD
}  // namespace gs
