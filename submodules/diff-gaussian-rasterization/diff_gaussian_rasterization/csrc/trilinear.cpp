// Trilinear interpolation in a dense grid of rows of four floats, last axis fastest, and its gradient to the grid.
#include <algorithm>
#include <cstdint>
#include <new>
#include <vector>

#include "rasterizer.h"
#include "thread_pool.h"

namespace gs {
namespace {

constexpr int CHANNELS = 4;
constexpr int64_t BLOCK = 1 << 14;  // points of a task

// Where a coordinate in [0, 1] lies on an axis; outside, and if it is no number, at the nearest cell's edge.
struct Place {
    int32_t low;
    float inside;

    Place(float coordinate, int32_t resolution) {
        const float held = coordinate > 0.0f ? (coordinate < 1.0f ? coordinate : 1.0f) : 0.0f;
        const float scaled = held * static_cast<float>(resolution - 1);
        low = std::min(static_cast<int32_t>(scaled), resolution - 2);
        inside = scaled - static_cast<float>(low);
    }
};

void interpolate(const float* table, int32_t side, const float* points, int64_t count, int64_t first, float* out) {
    const int64_t last = std::min(first + BLOCK, count);
    for (int64_t p = first; p < last; ++p) {
        const Place x(points[p], side), y(points[count + p], side), z(points[2 * count + p], side);
        const float* corner = table + CHANNELS * ((int64_t{x.low} * side + y.low) * side + z.low);
        const float xs[2] = {1.0f - x.inside, x.inside}, ys[2] = {1.0f - y.inside, y.inside};
        float sum[CHANNELS] = {};
        for (int i = 0; i < 2; ++i)
            for (int j = 0; j < 2; ++j) {
                const float* row = corner + CHANNELS * ((int64_t{i} * side + j) * side);
                const float low = xs[i] * ys[j] * (1.0f - z.inside), high = xs[i] * ys[j] * z.inside;
                for (int c = 0; c < CHANNELS; ++c) sum[c] += low * row[c] + high * row[CHANNELS + c];
            }
        for (int c = 0; c < CHANNELS; ++c) out[CHANNELS * p + c] = sum[c];
    }
}

// Planes of the grid across x, as many parts as there are threads, with about as many points in each.
std::vector<int32_t> cuts(const float* xs, int64_t count, int32_t side, int parts) {
    std::vector<int64_t> points(side, 0);
    for (int64_t p = 0; p < count; ++p) ++points[Place(xs[p], side).low];
    std::vector<int32_t> ends(1, 0);
    int64_t seen = 0;
    for (int32_t x = 0; x < side && static_cast<int>(ends.size()) < parts; ++x) {
        seen += points[x];
        if (seen * parts >= count * static_cast<int64_t>(ends.size())) ends.push_back(x + 1);
    }
    ends.push_back(side);
    return ends;
}

// The gradient of the planes from `begin` to `end`. Every row is summed in the order of points, whoever sums it.
void add_planes(const float* points, const float* gradient, int64_t count, int32_t side, int32_t begin, int32_t end,
                float* table_gradient) {
    const int64_t plane = int64_t{CHANNELS} * side * side;
    std::fill(table_gradient + plane * begin, table_gradient + plane * end, 0.0f);
    for (int64_t p = 0; p < count; ++p) {
        const Place x(points[p], side);
        if (x.low + 1 < begin || x.low >= end) continue;
        const float* g = gradient + CHANNELS * p;
        if (g[0] == 0.0f && g[1] == 0.0f && g[2] == 0.0f && g[3] == 0.0f) continue;  // behind a surface
        const Place y(points[count + p], side), z(points[2 * count + p], side);
        const float xs[2] = {1.0f - x.inside, x.inside}, ys[2] = {1.0f - y.inside, y.inside};
        for (int i = std::max(begin - x.low, 0); i < std::min(end - x.low, 2); ++i)
            for (int j = 0; j < 2; ++j) {
                float* row = table_gradient + plane * (x.low + i) + CHANNELS * (int64_t{y.low + j} * side + z.low);
                const float low = xs[i] * ys[j] * (1.0f - z.inside), high = xs[i] * ys[j] * z.inside;
                for (int c = 0; c < CHANNELS; ++c) {
                    row[c] += low * g[c];
                    row[CHANNELS + c] += high * g[c];
                }
            }
    }
}

}  // namespace
}  // namespace gs

int gs_interpolate(const float* table, int32_t side, const float* points, int64_t count, int threads, float* out) try {
    const int64_t blocks = (count + gs::BLOCK - 1) / gs::BLOCK;
    gs::parallel_for(blocks, threads,
                     [&](int64_t i) { gs::interpolate(table, side, points, count, i * gs::BLOCK, out); });
    return GS_OK;
} catch (const std::bad_alloc&) {
    return GS_OUT_OF_MEMORY;
}

int gs_interpolate_backward(const float* points, const float* gradient, int64_t count, int32_t side, int threads,
                            float* table_gradient) try {
    const std::vector<int32_t> ends = gs::cuts(points, count, side, threads);
    gs::parallel_for(static_cast<int64_t>(ends.size()) - 1, threads, [&](int64_t part) {
        gs::add_planes(points, gradient, count, side, ends[part], ends[part + 1], table_gradient);
    });
    return GS_OK;
} catch (const std::bad_alloc&) {
    return GS_OUT_OF_MEMORY;
}
