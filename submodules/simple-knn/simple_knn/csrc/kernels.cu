// The CUDA kernels: plain CUDA C++, no headers but our own. `cuda.py` has NVRTC compile them, and launches them; the
// tests run them on a CPU as well.
//
// Points are put in Morton order (the host sorts), so that 32 consecutive ones are close; their boxes, in turn 32 to a
// box, are a tree. Every point looks through its own leaf, which bounds its search, then walks the tree.
#include "nearest.h"

namespace knn {

constexpr int kFan = 32;  // points of a leaf, and boxes of a box
constexpr int kMaxLevels = 8;

struct KnnFrame {
    const float* points;    // (P, 3)
    const float* bounds;    // (2, 3): smallest and largest coordinates
    long long* codes;       // (P)
    const long long* order;  // (P): indices in Morton order
    const float* ordered;   // (P, 3): points in that order
    Box* boxes;             // those of the leaves first, then level after level, up to one box
    float* out;             // (P)
    long long count;
    long long starts[kMaxLevels + 1];  // of the levels, in boxes
    int levels, level;                 // all; the one that is made
    int neighbors;
};

namespace {

__device__ long long global_thread() { return static_cast<long long>(blockIdx.x) * blockDim.x + threadIdx.x; }

// Moves the lowest 21 bits apart, two zeros between neighbours.
__device__ unsigned long long spread(unsigned long long x) {
    x = (x | x << 32) & 0x001f00000000ffffull;
    x = (x | x << 16) & 0x001f0000ff0000ffull;
    x = (x | x << 8) & 0x100f00f00f00f00full;
    x = (x | x << 4) & 0x10c30c30c30c30c3ull;
    return (x | x << 2) & 0x1249249249249249ull;
}

__device__ void scan(const KnnFrame& f, long long leaf, long long self, Nearest& nearest) {
    const float* p = f.ordered + 3 * self;
    const long long last = leaf * kFan + kFan < f.count ? leaf * kFan + kFan : f.count;
    for (long long i = leaf * kFan; i < last; ++i) {
        const float* q = f.ordered + 3 * i;
        if (i != self) nearest.add(squared_length(q[0] - p[0], q[1] - p[1], q[2] - p[2]));
    }
}

}  // namespace
}  // namespace knn

using namespace knn;

// One thread for each point.
extern "C" __global__ void knn_codes(KnnFrame f) {
    const long long i = global_thread();
    if (i >= f.count) return;
    float extent = 0.0f;
    for (int k = 0; k < 3; ++k) extent = larger(extent, f.bounds[3 + k] - f.bounds[k]);
    unsigned long long code = 0;
    for (int k = 0; k < 3; ++k) {
        const float unit = extent > 0.0f ? (f.points[3 * i + k] - f.bounds[k]) / extent : 0.0f;
        const float cell = smaller(larger(unit, 0.0f) * 2097152.0f, 2097151.0f);
        code |= spread(static_cast<unsigned long long>(cell)) << k;
    }
    f.codes[i] = static_cast<long long>(code);
}

// One thread for each box of `level`.
extern "C" __global__ void knn_boxes(KnnFrame f) {
    const long long i = global_thread();
    if (i >= f.starts[f.level + 1] - f.starts[f.level]) return;
    const bool leaf = f.level == 0;
    const long long below = leaf ? f.count : f.starts[f.level] - f.starts[f.level - 1];
    const long long first = i * kFan, last = first + kFan < below ? first + kFan : below;
    const Box* children = leaf ? nullptr : f.boxes + f.starts[f.level - 1];
    Box box;
    if (leaf)
        box.start(f.ordered + 3 * first);
    else
        box = children[first];
    for (long long c = first; c < last; ++c) {
        if (leaf)
            box.include(f.ordered + 3 * c, f.ordered + 3 * c);
        else
            box.include(children[c].low, children[c].high);
    }
    f.boxes[f.starts[f.level] + i] = box;
}

// One thread for each point, in Morton order.
extern "C" __global__ void knn_search(KnnFrame f) {
    const long long self = global_thread();
    if (self >= f.count) return;
    const long long home = self / kFan;
    const float p[3] = {f.ordered[3 * self], f.ordered[3 * self + 1], f.ordered[3 * self + 2]};
    Nearest nearest;
    scan(f, home, self, nearest);
    const int top = f.levels - 1;
    int level = top;
    for (long long node = 0;;) {
        const bool known = level == 0 && node == home;
        if (!known && f.boxes[f.starts[level] + node].squared_distance(p) < nearest.d[2]) {
            if (level > 0) {
                --level;
                node *= kFan;
                continue;
            }
            scan(f, node, self, nearest);
        }
        // The next one at this level under the same parent, or else after the parent.
        while (level < top && ((node + 1) % kFan == 0 || f.starts[level] + node + 1 == f.starts[level + 1])) {
            node /= kFan;
            ++level;
        }
        if (level == top) break;
        ++node;
    }
    f.out[f.order[self]] = nearest.mean(f.neighbors);
}
