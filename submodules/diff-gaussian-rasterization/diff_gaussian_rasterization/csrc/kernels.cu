// The CUDA kernels: plain CUDA C++, no headers but our own. `cuda.py` has NVRTC compile them, and launches them; the
// tests run them on a CPU as well.
//
// All cameras of a batch share every launch. A Gaussian is projected into each view (gs_project); all of them are sorted
// by depth (gs_sort_depths, four passes) and it is added up how many tiles they touch (gs_add_up); pairs of tile and
// splat are listed in that order (gs_list_pairs) and, sorted stably by the bits of the tile that are in use
// (gs_count_tiles, gs_sort_tiles), become the tiles' lists (gs_list_tiles). There is room for `capacity` pairs. If they
// are more, which the host learns only later, every tile walks all Gaussians in order of depth instead: slower, the same
// image.
//
// A warp owns 8x4 pixels of a tile and takes splats 32 at a time: every lane tests one against the warp's pixels, and
// those that reach them are blended one after the other. Warps do not wait for each other.
#include "pair_math.h"
#include "radix_sort.h"

namespace gs {

struct CudaFrame {
    gs_gaussians gaussians;
    gs_views views;
    gs_images images;
    gs_images image_gradients;
    gs_gradients gradients;
    Splat* splats;    // (C, P)
    TileRect* rects;  // (C, P)
    int32_t* radii;   // (C, P)
    uint32_t* order;  // (C P): all of them by depth, ties by index; those that touch no tile last
    uint32_t* ends;   // (C P): sums of the tiles touched in that order, each from the start of its chunk to itself
    int64_t* totals;  // (sum_blocks): tiles touched in each chunk
    uint32_t* broken;       // bits of Broken, zero before the first launch
    uint32_t* entries;      // (capacity): the tiles' lists, one after the other
    uint32_t* tile_starts;  // (C tiles + 1)
    float* sums;            // (C, P, kSumStride), zero before the backward pass
    int64_t* report;        // pairs, and bits of Broken
    int64_t capacity;
    int32_t sum_blocks;  // 1 to kMaxChunks
    int32_t key_bytes;   // of a pair: 2 or 4
    RadixPass sort;      // that this launch makes, or prepares
};

namespace {

using namespace GS_BUILD;

// What is not finite; `cuda.py` has the names.
enum Broken { kMeans = 1, kOpacities = 2, kColors = 4, kShapes = 8, kCameras = 16 };

constexpr int kSumFloats = 16;    // that a warp folds
constexpr int kSumStride = kSums;  // in memory: 48 bytes, of which the 40 that most calls add to lie in two sectors
constexpr int kWarpWidth = 8, kWarpHeight = 4, kTileWarps = kTile * kTile / kWarp;
constexpr uint32_t kBeyondDepths = 0x7f800000u;  // the bits of an infinite float
constexpr int kSumsAThread = 4, kMaxChunks = kSumsAThread * kThreads;

__device__ int64_t global_thread() { return int64_t(blockIdx.x) * blockDim.x + threadIdx.x; }
__device__ int columns_of(const CudaFrame& f) { return (f.views.width + kTile - 1) / kTile; }
__device__ int rows_of(const CudaFrame& f) { return (f.views.height + kTile - 1) / kTile; }
__device__ int64_t tiles_of(const CudaFrame& f) { return f.views.count * columns_of(f) * rows_of(f); }
__device__ int64_t splats_of(const CudaFrame& f) { return f.views.count * f.gaussians.count; }
__device__ uint32_t area(const TileRect& r) { return uint32_t(r.x1 - r.x0) * uint32_t(r.y1 - r.y0); }
// Known after gs_list_pairs: how many pairs are listed; none if they do not fit.
__device__ int64_t listed_pairs(const CudaFrame& f) { return f.report[0] <= f.capacity ? f.report[0] : 0; }

__device__ int64_t tile_of_pair(const CudaFrame& f, const void* keys, int64_t i) {
    return f.key_bytes == 2 ? static_cast<const uint16_t*>(keys)[i] : static_cast<const uint32_t*>(keys)[i];
}

__device__ bool finite(const float* values, int count) {
    bool good = true;
    for (int i = 0; i < count; ++i) good = good && fabsf(values[i]) <= kLargest;
    return good;
}

__device__ void report_broken(const CudaFrame& f, int what) {
    if (what) atomicOr(f.broken, static_cast<unsigned>(what));
}

__device__ bool camera_is_good(const gs_views& v, int64_t view) {
    return finite(v.viewmatrix + 16 * view, 16) && finite(v.projmatrix + 16 * view, 16) &&
           finite(v.campos + 3 * view, 3) && finite(v.background + 3 * view, 3) && finite(v.tanfov + 2 * view, 2) &&
           v.tanfov[2 * view] > 0.0f && v.tanfov[2 * view + 1] > 0.0f;
}

// Returns whether the shape is finite.
__device__ bool load_shape(const CudaFrame& f, int64_t view, int64_t index, Shape<float>& shape) {
    const gs_gaussians& g = f.gaussians;
    const int64_t at = (g.shape_views == 1 ? 0 : view) * g.count + index;
    shape.from_entries = g.covariances != nullptr;
    if (shape.from_entries) {
        for (int i = 0; i < 6; ++i) shape.entries[i] = g.covariances[6 * at + i];
        return finite(shape.entries, 6);
    }
    for (int i = 0; i < 3; ++i) shape.scale[i] = g.scales[3 * at + i] * f.views.scale_modifier;
    for (int i = 0; i < 4; ++i) shape.quaternion[i] = g.rotations[4 * index + i];
    return finite(shape.scale, 3) && finite(shape.quaternion, 4);
}

struct Harmonics {
    const float* coefficients;
    __device__ void operator()(int k, float c[3]) const {
        for (int i = 0; i < 3; ++i) c[i] = coefficients[3 * k + i];
    }
};

__device__ Harmonics harmonics_of(const gs_gaussians& g, int64_t index) {
    return Harmonics{g.shs + 3 * g.coefficients * index};
}

// ---------------------------------------------------------------------------------------------- tiles

struct TilePlace {
    int64_t tile, view;
    int x, y;  // of the tile's first pixel
    int column, row;
    int inside_x, inside_y;  // of this lane's pixel, from the tile's first
    bool in_image;
};

__device__ TilePlace place_of_lane(const CudaFrame& f) {
    TilePlace t;
    const int columns = columns_of(f), per_view = columns * rows_of(f);
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    t.tile = blockIdx.x;
    t.view = t.tile / per_view;
    t.column = static_cast<int>(t.tile % per_view) % columns;
    t.row = static_cast<int>(t.tile % per_view) / columns;
    t.x = t.column * kTile;
    t.y = t.row * kTile;
    t.inside_x = warp % (kTile / kWarpWidth) * kWarpWidth + lane % kWarpWidth;
    t.inside_y = warp / (kTile / kWarpWidth) * kWarpHeight + lane / kWarpWidth;
    t.in_image = t.x + t.inside_x < f.views.width && t.y + t.inside_y < f.views.height;
    return t;
}

// The i-th splat of this tile's list, or of the walk over all Gaussians; negative if it does not touch the tile.
__device__ int64_t splat_at(const CudaFrame& f, const TilePlace& t, bool walk, int64_t i) {
    if (!walk) return f.entries[i];
    const int64_t splat = f.order[i];
    const TileRect r = f.rects[splat];
    const bool touches = splat / f.gaussians.count == t.view && t.column >= r.x0 && t.column < r.x1 && t.row >= r.y0 &&
                         t.row < r.y1;
    return touches ? splat : -1;
}

// Gives `pixel` every splat that may reach the warp's pixels, front to back, until all of them have ended.
template <class Pixel>
__device__ void visit_splats(const CudaFrame& f, const TilePlace& t, Pixel& pixel) {
    __shared__ Splat staged[kTileWarps][kWarp];
    __shared__ int64_t indices[kTileWarps][kWarp];
    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    const bool walk = f.report[0] > f.capacity;
    const int64_t first = walk ? 0 : f.tile_starts[t.tile];
    const int64_t last = walk ? splats_of(f) : f.tile_starts[t.tile + 1];
    const float corner_x = static_cast<float>(t.inside_x - lane % kWarpWidth);
    const float corner_y = static_cast<float>(t.inside_y - lane / kWarpWidth);
    for (int64_t base = first; base < last; base += kWarp) {
        if (__all_sync(kAllLanes, pixel.transmittance < kMinTransmittance)) return;
        const int64_t splat = base + lane < last ? splat_at(f, t, walk, base + lane) : -1;
        bool reaches = false;
        if (splat >= 0) {
            const Splat s = f.splats[splat];
            const float x = corner_x - (s.x - static_cast<float>(t.x)), y = corner_y - (s.y - static_cast<float>(t.y));
            reaches = largest_exponent(s, x, y, kWarpWidth - 1.0f, kWarpHeight - 1.0f) >= least_exponent(s);
            staged[warp][lane] = s;
            indices[warp][lane] = splat;
        }
        __syncwarp();
        for (unsigned left = __ballot_sync(kAllLanes, reaches); left; left &= left - 1) {
            const int k = __ffs(static_cast<int>(left)) - 1;
            const Splat& s = staged[warp][k];
            const float dx = (s.x - static_cast<float>(t.x)) - static_cast<float>(t.inside_x);
            const float dy = (s.y - static_cast<float>(t.y)) - static_cast<float>(t.inside_y);
            pixel.visit(s, indices[warp][k], alpha_at(s, dx, dy));
        }
        __syncwarp();
    }
}

__device__ int64_t pixel_of(const CudaFrame& f, const TilePlace& t) {
    return int64_t(t.y + t.inside_y) * f.views.width + t.x + t.inside_x;
}

struct DrawnPixel {
    float transmittance;
    float color[3], depth;

    __device__ void visit(const Splat& s, int64_t, const Alpha<float>& a) {
        const float weight = blend(a, transmittance);
        for (int k = 0; k < 3; ++k) color[k] += weight * s.color[k];
        depth += weight * s.depth;
    }
};

// The sum over the warp of values[i], in lanes 2 i and 2 i + 1: halves are folded onto each other, 16 exchanges in all.
__device__ float warp_sums(float values[kSumFloats]) {
    const int lane = threadIdx.x % kWarp;
    for (int half = kSumFloats / 2; half > 0; half /= 2) {
        const bool upper = lane & (2 * half);
        for (int i = 0; i < half; ++i) {
            const float sent = upper ? values[i] : values[i + half];
            const float kept = upper ? values[i + half] : values[i];
            values[i] = kept + __shfl_xor_sync(kAllLanes, sent, 2 * half);
        }
    }
    return values[0] + __shfl_xor_sync(kAllLanes, values[0], 1);
}

template <bool Absolute>
struct ReplayedPixel {
    float transmittance, behind;
    float gradient[5];
    float* out;

    __device__ void visit(const Splat& s, int64_t splat, const Alpha<float>& a) {
        float sums[kSumFloats] = {};
        const float weight = differentiate<Absolute>(s, a, gradient, transmittance, behind, sums);
        if (!__any_sync(kAllLanes, weight > 0.0f)) return;
        const float sum = warp_sums(sums);
        const int lane = threadIdx.x % kWarp;
        if (lane % 2 == 0 && lane / 2 < (Absolute ? kSums : kAbsX)) atomicAdd(out + splat * kSumStride + lane / 2, sum);
    }
};

template <bool Absolute>
__device__ void replay(const CudaFrame& f) {
    const TilePlace t = place_of_lane(f);
    const int64_t pixels = int64_t(f.views.width) * f.views.height;
    ReplayedPixel<Absolute> p = {t.in_image ? 1.0f : -1.0f, 0.0f, {}, f.sums};
    for (int k = 0; k < 5; ++k) {
        const gs_images &g = f.image_gradients, &o = f.images;
        const float* gradient = k < 3 ? g.color : k == 3 ? g.depth : g.alpha;
        const float* output = k < 3 ? o.color : k == 3 ? o.depth : o.alpha;
        const int64_t offset = (k < 3 ? 3 * t.view + k : t.view) * pixels + pixel_of(f, t);
        p.gradient[k] = gradient && t.in_image ? gradient[offset] : 0.0f;
        if (t.in_image) p.behind += p.gradient[k] * output[offset];
    }
    visit_splats(f, t, p);
}

__device__ void scatter_shape(const CudaFrame& f, int64_t at, Shape<float>& g) {
    const gs_gradients& out = f.gradients;
    for (int i = 0; out.covariances && i < 6; ++i) out.covariances[6 * at + i] = g.entries[i];
    for (int i = 0; out.scales && i < 3; ++i) out.scales[3 * at + i] = g.scale[i] * f.views.scale_modifier;
    for (float& s : g.scale) s = 0.0f;
    for (float& e : g.entries) e = 0.0f;
}

// ---------------------------------------------------------------------------------------------- pairs

// Where the pairs of each chunk of Gaussians start. All threads of the block; `starts` has room for kMaxChunks + 1.
__device__ void starts_of_chunks(const CudaFrame& f, int64_t* starts) {
    __shared__ int64_t sums[kThreads];
    const int thread = threadIdx.x;
    int64_t mine[kSumsAThread], sum = 0;
    for (int k = 0; k < kSumsAThread; ++k) {
        const int chunk = thread * kSumsAThread + k;
        mine[k] = chunk < f.sum_blocks ? f.totals[chunk] : 0;
        sum += mine[k];
    }
    int64_t start = sum_up_to_here(sum, sums) - sum;
    for (int k = 0; k < kSumsAThread; ++k) {
        starts[thread * kSumsAThread + k] = start;
        start += mine[k];
    }
    if (thread == kThreads - 1) starts[kMaxChunks] = start;
    __syncthreads();
}

// One pair after the other, in order: tiles of a Gaussian row by row, then those of the next one in depth.
struct PairWalk {
    int64_t place;  // in order of depth
    int64_t left;   // pairs of this Gaussian that are still to come, this one included
    uint32_t splat, first_tile;  // of the view
    TileRect rect;
    int x, y;

    // Begins at pair i, which there is.
    __device__ PairWalk(const CudaFrame& f, const int64_t* starts, int64_t i) {
        int low = 0, high = kMaxChunks - 1;  // the first chunk of Gaussians that ends beyond i
        while (low < high) {
            const int middle = (low + high) / 2;
            if (starts[middle + 1] > i)
                high = middle;
            else
                low = middle + 1;
        }
        const auto within = static_cast<uint32_t>(i - starts[low]);
        const int64_t splats = splats_of(f), size = chunk_size(splats, f.sum_blocks, kThreads);
        place = low * size;  // and in it the first Gaussian whose end lies beyond i
        int64_t last = (place + size < splats ? place + size : splats) - 1;
        while (place < last) {
            const int64_t middle = (place + last) / 2;
            if (f.ends[middle] > within)
                last = middle;
            else
                place = middle + 1;
        }
        enter(f);
        const int nth = static_cast<int>(within - (f.ends[place] - area(rect))), width = rect.x1 - rect.x0;
        left -= nth;
        x += nth % width;
        y += nth / width;
    }

    __device__ void enter(const CudaFrame& f) {
        splat = f.order[place];
        rect = f.rects[splat];
        left = area(rect);
        x = rect.x0;
        y = rect.y0;
        first_tile = splat / static_cast<uint32_t>(f.gaussians.count) * (columns_of(f) * rows_of(f));
    }

    __device__ uint32_t tile(const CudaFrame& f) const { return first_tile + y * columns_of(f) + x; }

    // To the next pair, which there is. All Gaussians up to the last pair's touch a tile.
    __device__ void next(const CudaFrame& f) {
        if (--left == 0) {
            ++place;
            enter(f);
        } else if (++x == rect.x1) {
            x = rect.x0;
            ++y;
        }
    }
};

}  // namespace
}  // namespace gs

using namespace gs;

// One thread for each Gaussian in each view, and at least one for each view.
extern "C" __global__ void gs_project(CudaFrame f) {
    const gs_gaussians& g = f.gaussians;
    const int64_t at = global_thread();
    if (at < f.views.count && !camera_is_good(f.views, at)) report_broken(f, kCameras);
    if (at >= splats_of(f)) return;
    const int64_t view = at / g.count, index = at % g.count;
    const Camera<float> camera = camera_of(f.views, view);
    const float* mean = g.means + 3 * index;
    float opacity = g.opacities[index];
    Planar planar;
    if (g.colors) {
        const float* color = g.colors + 3 * ((g.color_views == 1 ? 0 : view) * g.count + index);
        for (int c = 0; c < 3; ++c) planar.color[c] = color[c];
    } else {
        float direction[3];
        direction_to(mean, camera.position, direction);
        sh_color(f.views.degrees[view], direction, harmonics_of(g, index), planar.color);
    }
    Shape<float> shape;
    Projection<float> p;
    int broken = load_shape(f, view, index, shape) ? 0 : kShapes;
    if (!finite(mean, 3)) broken |= kMeans;
    if (!finite(&opacity, 1)) broken |= kOpacities;
    if (!(broken & kMeans) && !finite(planar.color, 3)) broken |= kColors;
    report_broken(f, broken);
    project(camera, mean, shape, p);
    if (f.views.antialiasing) opacity *= antialiasing_factor(p);
    planar.depth = broken ? 0.0f : p.point[2];
    planar.det = p.det;
    planar.radius = screen_radius(p);
    planar.opacity = opacity;
    for (int i = 0; i < 3; ++i) planar.conic[i] = p.conic[i];
    for (int i = 0; i < 2; ++i) planar.pixel[i] = p.pixel[i];
    for (int i = 0; i < 2; ++i) planar.variance[i] = p.sharp[2 * i] + static_cast<float>(kBlur);
    Splat splat = {};
    TileRect rect;
    f.radii[at] = place(planar, !g.colors, f.views.width, f.views.height, splat, rect);
    f.splats[at] = splat;
    f.rects[at] = rect;
    // Depths that are drawn are positive, so their bits are ordered as they are. Behind them come those that touch no
    // tile, in whatever order: bits of their own, so that not all of them are counted in one place. A depth may be
    // infinite, and still lies before them.
    const auto place = static_cast<uint32_t>(at);
    const uint32_t depth_key = __float_as_uint(fminf(planar.depth, kLargest));
    const uint32_t key = area(rect) ? depth_key : kBeyondDepths | (place & 0x7fffffu);
    static_cast<uint32_t*>(f.sort.keys)[at] = key;
    count_digit(f.sort, chunk_size(splats_of(f), f.sort.blocks, kBatch), place, key, f.sort.shift, f.sort.counts);
}

// A pass of the sort by depth.
extern "C" __global__ void __launch_bounds__(256) gs_sort_depths(CudaFrame f) {
    scatter<uint32_t>(f.sort, splats_of(f));
}

// `sum_blocks` blocks, one for each chunk of the Gaussians in order of depth.
extern "C" __global__ void __launch_bounds__(256) gs_add_up(CudaFrame f) {
    __shared__ uint32_t sums[kThreads];
    const Chunk chunk = chunk_of_block(splats_of(f), f.sum_blocks, kThreads);
    int64_t total = 0;
    for (int64_t base = chunk.first; base < chunk.last; base += kThreads) {
        const int64_t at = base + threadIdx.x;
        const uint32_t end = sum_up_to_here(at < chunk.last ? area(f.rects[f.order[at]]) : 0u, sums);
        // If 32 bits do not hold it, the pairs are more than there is ever room for, and nobody reads it.
        if (at < chunk.last) f.ends[at] = static_cast<uint32_t>(total) + end;
        total += sums[kThreads - 1];
        __syncthreads();
    }
    if (threadIdx.x == 0) f.totals[blockIdx.x] = total;
}

// `sort.blocks` blocks: each lists its chunk of the pairs, and counts what the first pass of their sort wants to know.
// A thread walks along a few pairs, which takes one search; by way of shared memory they are written side by side.
extern "C" __global__ void __launch_bounds__(256) gs_list_pairs(CudaFrame f) {
    __shared__ int64_t starts[kMaxChunks + 1];
    __shared__ uint32_t found[kThreads], tiles[kBatch], splats[kBatch];
    const int thread = threadIdx.x;
    starts_of_chunks(f, starts);
    const int64_t total = starts[kMaxChunks];
    if (blockIdx.x == 0 && thread == 0) {
        f.report[0] = total;
        f.report[1] = *f.broken;
    }
    if (total > f.capacity) return;
    ChunkCounts counts(found);
    const Chunk chunk = chunk_of_block(total, f.sort.blocks, kBatch);
    for (int64_t batch = chunk.first; batch < chunk.last; batch += kBatch) {
        const int size = static_cast<int>(chunk.last - batch < kBatch ? chunk.last - batch : kBatch);
        const int first = thread * kItems, last = first + kItems < size ? first + kItems : size;
        if (first < last) {
            PairWalk walk(f, starts, batch + first);
            for (int i = first; i < last; ++i) {
                if (i > first) walk.next(f);
                tiles[i] = walk.tile(f);
                splats[i] = walk.splat;
            }
        }
        __syncthreads();
        for (int i = thread; i < size; i += kThreads) {
            if (f.key_bytes == 2)
                static_cast<uint16_t*>(f.sort.keys)[batch + i] = static_cast<uint16_t>(tiles[i]);
            else
                static_cast<uint32_t*>(f.sort.keys)[batch + i] = tiles[i];
            f.sort.values[batch + i] = splats[i];
            counts.add(f.sort, tiles[i]);
        }
        __syncthreads();
    }
    counts.store(f.sort);
}

// A pass of the sort by tile, and before every pass but the first its counts.
extern "C" __global__ void __launch_bounds__(256) gs_sort_tiles(CudaFrame f) {
    if (f.key_bytes == 2)
        scatter<uint16_t>(f.sort, listed_pairs(f));
    else
        scatter<uint32_t>(f.sort, listed_pairs(f));
}
extern "C" __global__ void __launch_bounds__(256) gs_count_tiles(CudaFrame f) {
    __shared__ uint32_t found[kThreads];
    const Chunk chunk = chunk_of_block(listed_pairs(f), f.sort.blocks, kBatch);
    ChunkCounts counts(found);
    for (int64_t i = chunk.first + threadIdx.x; i < chunk.last; i += kThreads)
        counts.add(f.sort, static_cast<uint32_t>(tile_of_pair(f, f.sort.keys, i)));
    counts.store(f.sort);
}

// One thread for each pair that there is room for, and one more.
extern "C" __global__ void gs_list_tiles(CudaFrame f) {
    const int64_t i = global_thread(), pairs = listed_pairs(f), tiles = tiles_of(f);
    if (i > pairs || f.report[0] > f.capacity) return;  // then nobody reads the lists
    const int64_t here = i < pairs ? tile_of_pair(f, f.sort.sorted_keys, i) : tiles;
    const int64_t before = i ? tile_of_pair(f, f.sort.sorted_keys, i - 1) : -1;
    for (int64_t tile = before + 1; tile <= here; ++tile) f.tile_starts[tile] = static_cast<uint32_t>(i);
}

// One block of 256 threads for each tile of each view.
extern "C" __global__ void __launch_bounds__(256) gs_draw(CudaFrame f) {
    const TilePlace t = place_of_lane(f);
    DrawnPixel p = {t.in_image ? 1.0f : -1.0f, {}, 0.0f};
    visit_splats(f, t, p);
    if (!t.in_image) return;
    const int64_t pixels = int64_t(f.views.width) * f.views.height, pixel = pixel_of(f, t);
    const float rest = fabsf(p.transmittance);
    for (int k = 0; k < 3; ++k)
        f.images.color[(3 * t.view + k) * pixels + pixel] = p.color[k] + rest * f.views.background[3 * t.view + k];
    f.images.depth[t.view * pixels + pixel] = p.depth;
    f.images.alpha[t.view * pixels + pixel] = 1.0f - rest;
}

// As gs_draw; adds to `sums`.
extern "C" __global__ void __launch_bounds__(256) gs_replay(CudaFrame f) { replay<false>(f); }
extern "C" __global__ void __launch_bounds__(256) gs_replay_absolute(CudaFrame f) { replay<true>(f); }

// One thread for each Gaussian: from its sums in all views to all of its gradients.
extern "C" __global__ void gs_project_backward(CudaFrame f) {
    const gs_gaussians& g = f.gaussians;
    const gs_gradients& out = f.gradients;
    const int64_t index = global_thread();
    if (index >= g.count) return;
    const float* mean = g.means + 3 * index;
    float g_mean[3] = {}, g_opacity = 0.0f, g_colors[3] = {}, g_shs[16][3] = {};
    Shape<float> shape, g_shape = {};
    for (int64_t view = 0; view < f.views.count; ++view) {
        const int64_t at = view * g.count + index;
        float planar[2] = {}, absolute[2] = {}, g_color[3] = {};
        if (area(f.rects[at]) > 0) {
            const float* sums = f.sums + kSumStride * at;
            const Camera<float> camera = camera_of(f.views, view);
            Projection<float> p;
            load_shape(f, view, index, shape);
            project(camera, mean, shape, p);
            const PlanarGradient<float> gradient = planar_gradient(p, sums, f.views.antialiasing != 0);
            g_opacity += sums[kS] / g.opacities[index];
            project_backward(camera, shape, p, gradient, f.views.antialiasing != 0, g_mean, g_shape);
            for (int c = 0; c < 3; ++c) g_color[c] = sums[kRed + c];
            if (g.shs)
                sh_color_backward(f.views.degrees[view], camera, mean, harmonics_of(g, index), g_color, g_shs, g_mean);
            for (int i = 0; i < 2; ++i) {
                planar[i] = gradient.pixel[i] * (0.5f * camera.size[i]);
                absolute[i] = sums[kAbsX + i] * (0.5f * camera.size[i] / kLog2e);
            }
        }
        for (int i = 0; out.means2d && i < out.means2d_stride; ++i)
            out.means2d[at * out.means2d_stride + i] = i < 2 ? planar[i] : 0.0f;
        for (int i = 0; out.absolute2d && i < 2; ++i) out.absolute2d[2 * at + i] = absolute[i];
        if (g.shape_views > 1) scatter_shape(f, at, g_shape);
        for (int c = 0; g.color_views > 1 && out.colors && c < 3; ++c) out.colors[3 * at + c] = g_color[c];
        for (int c = 0; c < 3; ++c) g_colors[c] += g_color[c];
    }
    if (g.shape_views == 1) scatter_shape(f, index, g_shape);
    for (int c = 0; g.color_views == 1 && out.colors && c < 3; ++c) out.colors[3 * index + c] = g_colors[c];
    for (int i = 0; out.means && i < 3; ++i) out.means[3 * index + i] = g_mean[i];
    if (out.opacities) out.opacities[index] = g_opacity;
    for (int i = 0; out.rotations && i < 4; ++i) out.rotations[4 * index + i] = g_shape.quaternion[i];
    for (int64_t k = 0; out.shs && k < 3 * g.coefficients; ++k) out.shs[3 * g.coefficients * index + k] = g_shs[k / 3][k % 3];
}
