// Exact nearest neighbours of a point cloud by a k-d tree, behind a plain C interface.
//
// The tree is split at medians by count, so duplicates, lines and planes make it no deeper; its nodes have tight boxes,
// so empty space is never searched. Every point first looks through its own leaf, which bounds the rest of its search.
#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
#include <new>
#include <numeric>
#include <thread>
#include <utility>
#include <vector>

#include "nearest.h"

#if defined(_WIN32)
#define KNN_API extern "C" __declspec(dllexport)
#else
#define KNN_API extern "C" __attribute__((visibility("default")))
#endif

namespace {

using namespace knn;

constexpr uint32_t kLeafPoints = 8;
constexpr int64_t kLeavesPerTask = 256;

struct Node {
    Box box;
    uint32_t first, last;  // of the ordered points
    uint32_t children;     // index of two neighbours in the list of nodes, 0 for a leaf
};

class Tree {
  public:
    Tree(const float* points, int64_t count) : points_(points), order_(count), ordered_(3 * count) {
        std::iota(order_.begin(), order_.end(), 0u);
        nodes_.reserve(4 * count / kLeafPoints + 1);
        nodes_.push_back({box_of(0, static_cast<uint32_t>(count)), 0, static_cast<uint32_t>(count), 0});
        for (size_t n = 0; n < nodes_.size(); ++n) split(n);
        for (int64_t i = 0; i < count; ++i)
            for (int k = 0; k < 3; ++k) ordered_[3 * i + k] = points[3 * int64_t(order_[i]) + k];
        for (const Node& node : nodes_)
            if (node.children == 0) leaves_.push_back(static_cast<uint32_t>(&node - nodes_.data()));
    }

    int64_t leaves() const { return static_cast<int64_t>(leaves_.size()); }

    // Writes the mean squared distance of every point of a leaf to its `neighbors` nearest other points.
    void search_leaf(int64_t leaf, int neighbors, float* out) const {
        const uint32_t home = leaves_[leaf];
        for (uint32_t i = nodes_[home].first; i < nodes_[home].last; ++i) {
            Nearest nearest;
            scan(nodes_[home], i, nearest);
            descend(home, i, nearest);
            out[order_[i]] = nearest.mean(neighbors);
        }
    }

  private:
    Box box_of(uint32_t first, uint32_t last) const {
        Box box;
        box.start(&points_[3 * int64_t(order_[first])]);
        for (uint32_t i = first; i < last; ++i) {
            const float* p = &points_[3 * int64_t(order_[i])];
            box.include(p, p);
        }
        return box;
    }

    void split(size_t n) {
        const Node node = nodes_[n];
        if (node.last - node.first <= kLeafPoints) return;
        int axis = 0;
        for (int k = 1; k < 3; ++k)
            if (node.box.high[k] - node.box.low[k] > node.box.high[axis] - node.box.low[axis]) axis = k;
        const uint32_t middle = node.first + (node.last - node.first) / 2;
        std::nth_element(order_.begin() + node.first, order_.begin() + middle, order_.begin() + node.last,
                         [&](uint32_t a, uint32_t b) {
                             return points_[3 * int64_t(a) + axis] < points_[3 * int64_t(b) + axis];
                         });
        nodes_[n].children = static_cast<uint32_t>(nodes_.size());
        nodes_.push_back({box_of(node.first, middle), node.first, middle, 0});
        nodes_.push_back({box_of(middle, node.last), middle, node.last, 0});
    }

    void scan(const Node& node, uint32_t self, Nearest& nearest) const {
        const float* p = &ordered_[3 * int64_t(self)];
        for (uint32_t i = node.first; i < node.last; ++i) {
            const float* q = &ordered_[3 * int64_t(i)];
            if (i != self) nearest.add(squared_length(q[0] - p[0], q[1] - p[1], q[2] - p[2]));
        }
    }

    void descend(uint32_t home, uint32_t self, Nearest& nearest) const {
        struct Pending {
            uint32_t node;
            float distance;
        };
        Pending stack[64];  // the tree halves, so it is never deeper than the bits of a count
        int top = 0;
        const float* p = &ordered_[3 * int64_t(self)];
        stack[top++] = {0, 0.0f};
        while (top > 0) {
            const Pending next = stack[--top];
            if (next.distance >= nearest.d[2] || next.node == home) continue;
            const Node& node = nodes_[next.node];
            if (node.children == 0) {
                scan(node, self, nearest);
                continue;
            }
            Pending near{node.children, nodes_[node.children].box.squared_distance(p)};
            Pending far{node.children + 1, nodes_[node.children + 1].box.squared_distance(p)};
            if (far.distance < near.distance) std::swap(near, far);
            if (far.distance < nearest.d[2]) stack[top++] = far;
            if (near.distance < nearest.d[2]) stack[top++] = near;
        }
    }

    const float* points_;
    std::vector<uint32_t> order_;
    std::vector<float> ordered_;
    std::vector<Node> nodes_;
    std::vector<uint32_t> leaves_;
};

}  // namespace

// out[i]: mean squared distance of point i to its three nearest other points, to as many as there are if there are
// fewer, 0 for a single point. points (count, 3), finite. Returns 0, or 1 if there is not enough memory.
KNN_API int knn_mean_squared_distances(const float* points, int64_t count, int threads, float* out) try {
    if (count == 0) return 0;
    const int neighbors = static_cast<int>(std::min<int64_t>(3, count - 1));
    if (neighbors == 0) {
        out[0] = 0;
        return 0;
    }
    const Tree tree(points, count);
    std::atomic<int64_t> next{0};
    const auto work = [&] {
        for (int64_t first; (first = next.fetch_add(kLeavesPerTask)) < tree.leaves();)
            for (int64_t leaf = first; leaf < std::min(first + kLeavesPerTask, tree.leaves()); ++leaf)
                tree.search_leaf(leaf, neighbors, out);
    };
    std::vector<std::thread> helpers;
    helpers.reserve(threads);
    const int64_t useful = std::min<int64_t>(threads, (tree.leaves() + kLeavesPerTask - 1) / kLeavesPerTask);
    try {
        for (int64_t i = 1; i < useful; ++i) helpers.emplace_back(work);
    } catch (const std::exception&) {
        // The machine gives no more threads, or no memory for them: those at hand do the work.
    }
    work();
    for (std::thread& helper : helpers) helper.join();
    return 0;
} catch (const std::bad_alloc&) {
    return 1;
}
