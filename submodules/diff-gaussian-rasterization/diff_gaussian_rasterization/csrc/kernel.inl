// One build of the kernel, compiled once for each instruction set: define GS_BUILD before including this.
//
// A tile of 16x16 pixels is cut into 16 blocks of 4x4. A splat visits only those blocks that its ellipse of alpha 1/255
// reaches: one vector test finds all of them. Pixels of a block are the lanes of one or more vectors.
#define GS_VECTORS "simd.h"

#include <cstdint>
#include <cstring>

#include "pair_math.h"
#include "state.h"

namespace gs {
namespace GS_BUILD {
namespace {

constexpr int kBlockPixels = kBlock * kBlock;
constexpr int kParts = kBlockPixels / kWidth;  // vectors of a block
constexpr uint32_t kAliveCheck = 32;           // entries between looks for blocks whose pixels have all ended

// Positions of the pixels of all blocks, block after block, and of the blocks' corners, relative to the tile.
struct alignas(64) Grid {
    float x[kTilePixels], y[kTilePixels], corner_x[kBlockPixels], corner_y[kBlockPixels];
    constexpr Grid() : x(), y(), corner_x(), corner_y() {
        for (int b = 0; b < kBlockPixels; ++b) {
            corner_x[b] = static_cast<float>(kBlock * (b % kBlock));
            corner_y[b] = static_cast<float>(kBlock * (b / kBlock));
            for (int l = 0; l < kBlockPixels; ++l) {
                x[b * kBlockPixels + l] = corner_x[b] + static_cast<float>(l % kBlock);
                y[b * kBlockPixels + l] = corner_y[b] + static_cast<float>(l / kBlock);
            }
        }
    }
};
constexpr Grid kGrid;

struct TilePlace {
    int64_t view;
    int x, y;            // of its first pixel
    int width, height;   // inside the image
    uint32_t first, last;  // entries
};

inline TilePlace place(const Frame& f, int64_t tile) {
    const int64_t per_view = int64_t(f.columns) * f.rows, index = tile % per_view;
    TilePlace t;
    t.view = tile / per_view;
    t.x = static_cast<int>(index % f.columns) * kTile;
    t.y = static_cast<int>(index / f.columns) * kTile;
    t.width = f.views.width - t.x < kTile ? f.views.width - t.x : kTile;
    t.height = f.views.height - t.y < kTile ? f.views.height - t.y : kTile;
    t.first = f.tile_starts[tile];
    t.last = f.tile_starts[tile + 1];
    return t;
}

// Copies the tile's part of one plane of an image into block order, or back.
template <bool Read>
inline void move_plane(const Frame& f, const TilePlace& t, float* plane, float* blocks) {
    for (int y = 0; y < t.height; ++y) {
        float* line = plane + (int64_t(t.y) + y) * f.views.width + t.x;
        float* inside = blocks + (y / kBlock) * kBlock * kBlockPixels + (y % kBlock) * kBlock;
        for (int x = 0; x < t.width; ++x) {
            float& pixel = inside[(x / kBlock) * kBlockPixels + x % kBlock];
            if (Read)
                pixel = line[x];
            else
                line[x] = pixel;
        }
    }
}

// 1 inside the image, -1 outside: a negative transmittance marks a pixel that has ended.
inline void start_transmittance(const TilePlace& t, float* transmittance) {
    for (int i = 0; i < kTilePixels; ++i)
        transmittance[i] = kGrid.x[i] < static_cast<float>(t.width) && kGrid.y[i] < static_cast<float>(t.height) ? 1.0f
                                                                                                                : -1.0f;
}

inline uint32_t alive_blocks(const float* transmittance) {
    uint32_t alive = 0;
    for (int b = 0; b < kBlockPixels; ++b) {
        uint32_t any = 0;
        for (int p = 0; p < kParts; ++p)
            any |= at_least(load(transmittance + b * kBlockPixels + p * kWidth), Floats{} + kMinTransmittance);
        alive |= static_cast<uint32_t>(any != 0) << b;
    }
    return alive;
}

// Blocks in which the exponent somewhere reaches the smallest alpha.
GS_HD uint32_t visible_blocks(const Splat& s, float tile_x, float tile_y) {
    const float reach = kBlock - 1;
    uint32_t visible = 0;
    for (int p = 0; p < kParts; ++p) {
        const Floats x = load(kGrid.corner_x + p * kWidth) - (s.x - tile_x);
        const Floats y = load(kGrid.corner_y + p * kWidth) - (s.y - tile_y);
        visible |= at_least(largest_exponent(s, x, y, reach, reach), Floats{} + least_exponent(s)) << (p * kWidth);
    }
    return visible;
}

GS_HD Alpha<Floats> alpha_of(const Splat& s, float x, float y, int pixel) {
    return alpha_at<Floats>(s, x - load(kGrid.x + pixel), y - load(kGrid.y + pixel));
}

// ---------------------------------------------------------------------------------------------- tiles, forward

struct alignas(64) Canvas {
    float transmittance[kTilePixels];
    float plane[5][kTilePixels];  // red, green, blue, depth, alpha
};

GS_HD void blend_pixels(const Splat& s, float x, float y, int pixel, Canvas& c) {
    Floats transmittance = load(c.transmittance + pixel);
    const Floats weight = blend(alpha_of(s, x, y, pixel), transmittance);
    store(c.transmittance + pixel, transmittance);
    for (int k = 0; k < 3; ++k) store(c.plane[k] + pixel, load(c.plane[k] + pixel) + weight * s.color[k]);
    store(c.plane[3] + pixel, load(c.plane[3] + pixel) + weight * s.depth);
}

void draw_tile(const Frame& f, int64_t tile) {
    const TilePlace t = place(f, tile);
    Canvas c = {};
    start_transmittance(t, c.transmittance);
    uint32_t alive = alive_blocks(c.transmittance), next = t.first;
    const float tile_x = static_cast<float>(t.x), tile_y = static_cast<float>(t.y);
    while (next < t.last && alive) {
        const uint32_t stop = t.last - next < kAliveCheck ? t.last : next + kAliveCheck;
        for (; next < stop; ++next) {
            Entry& entry = f.entries[next];
            const Splat& s = f.splats[entry.splat];
            if (next + 4 < t.last) prefetch(&f.splats[f.entries[next + 4].splat]);
            entry.blocks = visible_blocks(s, tile_x, tile_y) & alive;
            for (uint32_t left = entry.blocks; left; left &= left - 1) {
                const int pixel = lowest_bit(left) * kBlockPixels;
                for (int p = 0; p < kParts; ++p) blend_pixels(s, s.x - tile_x, s.y - tile_y, pixel + p * kWidth, c);
            }
        }
        alive = alive_blocks(c.transmittance);
    }
    f.tile_used[tile] = next - t.first;

    const int64_t pixels = int64_t(f.views.width) * f.views.height;
    const float* background = f.views.background + 3 * t.view;
    for (int i = 0; i < kTilePixels; ++i) {
        const float rest = c.transmittance[i] < 0 ? -c.transmittance[i] : c.transmittance[i];
        for (int k = 0; k < 3; ++k) c.plane[k][i] += rest * background[k];
        c.plane[4][i] = 1.0f - rest;
    }
    for (int k = 0; k < 3; ++k) move_plane<false>(f, t, f.images.color + (3 * t.view + k) * pixels, c.plane[k]);
    move_plane<false>(f, t, f.images.depth + t.view * pixels, c.plane[3]);
    move_plane<false>(f, t, f.images.alpha + t.view * pixels, c.plane[4]);
}

// ---------------------------------------------------------------------------------------------- tiles, backward

struct alignas(64) Replay {
    float transmittance[kTilePixels];
    float behind[kTilePixels];           // what is still to come, dotted with the image's gradients
    float gradient[5][kTilePixels];      // of red, green, blue, depth, alpha
};

template <bool Absolute>
GS_HD void differentiate_pixels(const Splat& s, float x, float y, int pixel, Replay& r, Floats* sums) {
    Floats gradient[5], transmittance = load(r.transmittance + pixel), behind = load(r.behind + pixel);
    for (int k = 0; k < 5; ++k) gradient[k] = load(r.gradient[k] + pixel);
    differentiate<Absolute>(s, alpha_of(s, x, y, pixel), gradient, transmittance, behind, sums);
    store(r.behind + pixel, behind);
    store(r.transmittance + pixel, transmittance);
}

template <int Count>
inline void store_sums(Floats* sums, float* out) {
    if constexpr (Count <= kWidth) {
        store(out, lane_sums<Count>(sums));
    } else {
        store(out, lane_sums<kWidth>(sums));
        store_sums<Count - kWidth>(sums + kWidth, out + kWidth);
    }
}

constexpr int position_of(int sum, int count) {
    int offset = 0;
    while (count > kWidth && sum >= kWidth) {
        sum -= kWidth;
        count -= kWidth;
        offset += kWidth;
    }
    return offset + lane_of(sum, count < kWidth ? count : kWidth);
}

template <bool Absolute>
void differentiate_entries(const Frame& f, int64_t tile) {
    constexpr int count = Absolute ? kSums : kAbsX;
    const TilePlace t = place(f, tile);
    const uint32_t used = f.tile_used[tile];
    if (used == 0) return;
    Replay r = {};
    start_transmittance(t, r.transmittance);
    const int64_t pixels = int64_t(f.views.width) * f.views.height;
    alignas(64) float image[kTilePixels] = {};
    for (int k = 0; k < 5; ++k) {
        const gs_images &g = f.image_gradients, &o = f.images;
        float* gradient = k < 3 ? g.color : k == 3 ? g.depth : g.alpha;
        float* output = k < 3 ? o.color : k == 3 ? o.depth : o.alpha;
        const int64_t offset = (k < 3 ? 3 * t.view + k : t.view) * pixels;
        if (!gradient) continue;
        move_plane<true>(f, t, gradient + offset, r.gradient[k]);
        move_plane<true>(f, t, output + offset, image);
        for (int i = 0; i < kTilePixels; ++i) r.behind[i] += r.gradient[k][i] * image[i];
    }
    const float tile_x = static_cast<float>(t.x), tile_y = static_cast<float>(t.y);
    for (uint32_t next = t.first; next < t.first + used; ++next) {
        const Entry& entry = f.entries[next];
        if (next + 4 < t.last) prefetch(&f.splats[f.entries[next + 4].splat]);
        if (!entry.blocks) continue;
        const Splat& s = f.splats[entry.splat];
        Floats sums[count] = {};
        for (uint32_t left = entry.blocks; left; left &= left - 1) {
            const int pixel = lowest_bit(left) * kBlockPixels;
            for (int p = 0; p < kParts; ++p)
                differentiate_pixels<Absolute>(s, s.x - tile_x, s.y - tile_y, pixel + p * kWidth, r, sums);
        }
        store_sums<count>(sums, f.sums + int64_t(entry.slot) * kSumFloats);
        f.summed[entry.slot] = 1;
    }
}

void differentiate_tile(const Frame& f, int64_t tile) {
    if (f.gradients.absolute2d)
        differentiate_entries<true>(f, tile);
    else
        differentiate_entries<false>(f, tile);
}

// ---------------------------------------------------------------------------------------------- Gaussians, forward

// kWidth Gaussians from `first` on; lanes past `last` repeat the last one.
struct Batch {
    int64_t first, last;
    int size;
    int64_t index[kWidth];
    Batch(int64_t begin, int64_t end) : first(begin), last(end) {
        size = static_cast<int>(end - begin < kWidth ? end - begin : kWidth);
        for (int i = 0; i < kWidth; ++i) index[i] = begin + (i < size ? i : size - 1);
    }
    template <int N>
    void gather(const float* rows, int64_t stride, Floats* out) const {
        alignas(64) float lanes[N][kWidth];
        for (int i = 0; i < kWidth; ++i)
            for (int k = 0; k < N; ++k) lanes[k][i] = rows[index[i] * stride + k];
        for (int k = 0; k < N; ++k) out[k] = load(lanes[k]);
    }
    template <int N>
    void scatter(const Floats* in, float* rows, int64_t stride) const {
        for (int i = 0; i < size; ++i)
            for (int k = 0; k < N; ++k) rows[index[i] * stride + k] = in[k][i];
    }
};

inline void gather_shape(const Frame& f, int64_t view, const Batch& b, Shape<Floats>& shape) {
    const gs_gaussians& g = f.gaussians;
    const int64_t offset = (g.shape_views == 1 ? 0 : view) * g.count;
    shape.from_entries = g.covariances != nullptr;
    if (shape.from_entries) {
        b.gather<6>(g.covariances + offset * 6, 6, shape.entries);
    } else {
        b.gather<3>(g.scales + offset * 3, 3, shape.scale);
        b.gather<4>(g.rotations, 4, shape.quaternion);
        for (Floats& s : shape.scale) s *= f.views.scale_modifier;
    }
}

// The coefficients of a batch's harmonics.
struct Harmonics {
    const gs_gaussians& gaussians;
    const Batch& batch;
    void operator()(int k, Floats coefficient[3]) const {
        batch.gather<3>(gaussians.shs + 3 * k, 3 * gaussians.coefficients, coefficient);
    }
};

// Colours before they are held at zero from below, or as given.
inline void colors_of(const Frame& f, int64_t view, const Camera<float>& camera, const Batch& b, const Floats mean[3],
                      Floats color[3]) {
    const gs_gaussians& g = f.gaussians;
    if (g.colors) {
        b.gather<3>(g.colors + (g.color_views == 1 ? 0 : view) * g.count * 3, 3, color);
        return;
    }
    Floats direction[3];
    direction_to(mean, camera.position, direction);
    sh_color(f.views.degrees[view], direction, Harmonics{g, b}, color);
}

// Zero in lanes where every number is finite, else NaN.
template <int N>
inline Floats poison(const Floats* values) {
    Floats p = {};
    for (int i = 0; i < N; ++i) p += values[i] * 0.0f;
    return p;
}

bool project_range(const Frame& f, int64_t view, int64_t first, int64_t last) {
    const gs_gaussians& g = f.gaussians;
    const Camera<float> camera = camera_of(f.views, view);
    Floats finite = {};
    for (int64_t begin = first; begin < last; begin += kWidth) {
        const Batch b(begin, last);
        Floats mean[3], opacity, color[3];
        Shape<Floats> shape;
        Projection<Floats> p;
        b.gather<3>(g.means, 3, mean);
        b.gather<1>(g.opacities, 1, &opacity);
        gather_shape(f, view, b, shape);
        colors_of(f, view, camera, b, mean, color);
        finite += poison<3>(mean) + poison<1>(&opacity) + poison<3>(color);
        finite += shape.from_entries ? poison<6>(shape.entries) : poison<3>(shape.scale) + poison<4>(shape.quaternion);
        project(camera, mean, shape, p);
        const Floats radius = screen_radius(p);
        if (f.views.antialiasing) opacity *= antialiasing_factor(p);
        const float blur = static_cast<float>(kBlur);
        for (int i = 0; i < b.size; ++i) {
            const int64_t at = view * g.count + b.index[i];
            Planar planar = {p.point[2][i], {p.pixel[0][i], p.pixel[1][i]}, p.det[i], {}, {}, radius[i], opacity[i], {}};
            for (int k = 0; k < 3; ++k) planar.conic[k] = p.conic[k][i];
            for (int k = 0; k < 3; ++k) planar.color[k] = color[k][i];
            for (int k = 0; k < 2; ++k) planar.variance[k] = p.sharp[2 * k][i] + blur;
            f.radii[at] = place(planar, !g.colors, f.views.width, f.views.height, f.splats[at], f.rects[at]);
            std::memcpy(&f.depth_keys[at], &planar.depth, sizeof planar.depth);
        }
    }
    bool good = true;
    for (int i = 0; i < kWidth; ++i) good = good && finite[i] == 0.0f;
    return good;
}

// ---------------------------------------------------------------------------------------------- Gaussians, backward

// Adds up a batch's sums over tiles in one view; false if no tile had any.
template <int Count>
bool gather_sums(const Frame& f, int64_t view, const Batch& b, Floats* out) {
    bool any = false;
    alignas(64) float lanes[kSumFloats][kWidth] = {};
    for (int i = 0; i < b.size; ++i) {
        const int64_t at = view * f.gaussians.count + b.index[i];
        constexpr int vectors = kSumFloats / kWidth;
        Floats total[vectors] = {};
        bool found = false;
        for (uint32_t slot = f.slot_starts[at]; slot < f.slot_starts[at + 1]; ++slot) {
            if (!f.summed[slot]) continue;
            found = true;
            for (int v = 0; v < vectors; ++v) total[v] += load(f.sums + int64_t(slot) * kSumFloats + v * kWidth);
        }
        if (!found) continue;
        any = true;
        for (int k = 0; k < Count; ++k) lanes[k][i] = total[position_of(k, Count) / kWidth][position_of(k, Count) % kWidth];
    }
    for (int k = 0; k < Count; ++k) out[k] = load(lanes[k]);
    return any;
}

inline void scatter_shape(const Frame& f, int64_t view, const Batch& b, Shape<Floats>& g_shape) {
    const gs_gradients& out = f.gradients;
    const int64_t offset = (f.gaussians.shape_views == 1 ? 0 : view) * f.gaussians.count;
    for (Floats& s : g_shape.scale) s *= f.views.scale_modifier;
    if (out.covariances) b.scatter<6>(g_shape.entries, out.covariances + 6 * offset, 6);
    if (out.scales) b.scatter<3>(g_shape.scale, out.scales + 3 * offset, 3);
    for (Floats& s : g_shape.scale) s = Floats{};
    for (Floats& e : g_shape.entries) e = Floats{};
}

template <int Count>
void differentiate_gaussians(const Frame& f, int64_t first, int64_t last) {
    const gs_gaussians& g = f.gaussians;
    const gs_gradients& out = f.gradients;
    for (int64_t begin = first; begin < last; begin += kWidth) {
        const Batch b(begin, last);
        Floats mean[3], g_mean[3] = {}, g_opacity = {}, g_colors[3] = {};
        Shape<Floats> shape, g_shape = {};
        Floats g_shs[16][3];
        if (g.shs)
            for (int64_t k = 0; k < g.coefficients; ++k)
                for (Floats& c : g_shs[k]) c = Floats{};
        b.gather<3>(g.means, 3, mean);
        for (int64_t view = 0; view < f.views.count; ++view) {
            Floats sums[Count], planar[2] = {}, absolute[2] = {}, g_color[3] = {};
            const int64_t offset = view * g.count;
            if (gather_sums<Count>(f, view, b, sums)) {
                const Camera<float> camera = camera_of(f.views, view);
                Projection<Floats> p;
                gather_shape(f, view, b, shape);
                project(camera, mean, shape, p);
                const PlanarGradient<Floats> gradient = planar_gradient(p, sums, f.views.antialiasing != 0);
                Floats opacity;
                b.gather<1>(g.opacities, 1, &opacity);
                // Lanes without sums may hold a Gaussian behind the camera: nothing of theirs may enter.
                Ints seen;
                for (int i = 0; i < kWidth; ++i)
                    seen[i] = f.slot_starts[offset + b.index[i]] < f.slot_starts[offset + b.index[i] + 1] ? -1 : 0;
                const Floats per_opacity = select(seen, sums[kS] / opacity, Floats{});
                g_opacity += per_opacity;
                Floats d_mean[3] = {};
                Shape<Floats> d_shape = {};
                project_backward(camera, shape, p, gradient, f.views.antialiasing, d_mean, d_shape);
                for (int c = 0; c < 3; ++c) g_color[c] = sums[kRed + c];
                if (g.shs)
                    sh_color_backward(f.views.degrees[view], camera, mean, Harmonics{g, b}, g_color, g_shs, d_mean);
                for (int i = 0; i < 2; ++i) {
                    planar[i] = select(seen, gradient.pixel[i] * (0.5f * camera.size[i]), Floats{});
                    if constexpr (Count == kSums)
                        absolute[i] = sums[kAbsX + i] * (0.5f * camera.size[i] / kLog2e);
                }
                for (int i = 0; i < 3; ++i) g_mean[i] += select(seen, d_mean[i], Floats{});
                for (int i = 0; i < 3; ++i) g_shape.scale[i] += select(seen, d_shape.scale[i], Floats{});
                for (int i = 0; i < 4; ++i) g_shape.quaternion[i] += select(seen, d_shape.quaternion[i], Floats{});
                for (int i = 0; i < 6; ++i) g_shape.entries[i] += select(seen, d_shape.entries[i], Floats{});
            }
            if (out.means2d) {
                b.scatter<2>(planar, out.means2d + offset * out.means2d_stride, out.means2d_stride);
                for (int i = 0; out.means2d_stride > 2 && i < b.size; ++i)
                    out.means2d[(offset + b.index[i]) * out.means2d_stride + 2] = 0.0f;
            }
            if (out.absolute2d) b.scatter<2>(absolute, out.absolute2d + offset * 2, 2);
            if (g.shape_views > 1) scatter_shape(f, view, b, g_shape);
            if (g.color_views > 1 && out.colors) b.scatter<3>(g_color, out.colors + offset * 3, 3);
            for (int c = 0; c < 3; ++c) g_colors[c] += g_color[c];
        }
        if (g.shape_views == 1) scatter_shape(f, 0, b, g_shape);
        if (g.color_views == 1 && out.colors) b.scatter<3>(g_colors, out.colors, 3);
        if (out.means) b.scatter<3>(g_mean, out.means, 3);
        if (out.opacities) b.scatter<1>(&g_opacity, out.opacities, 1);
        if (out.rotations) b.scatter<4>(g_shape.quaternion, out.rotations, 4);
        if (out.shs)
            for (int64_t k = 0; k < g.coefficients; ++k)
                b.scatter<3>(g_shs[k], out.shs + 3 * k, 3 * g.coefficients);
    }
}

void project_backward_range(const Frame& f, int64_t first, int64_t last) {
    if (f.gradients.absolute2d)
        differentiate_gaussians<kSums>(f, first, last);
    else
        differentiate_gaussians<kAbsX>(f, first, last);
}

}  // namespace

extern const Kernel kernel;
const Kernel kernel = {project_range, draw_tile, differentiate_tile, project_backward_range};

}  // namespace GS_BUILD
}  // namespace gs
