// The engine: runs a build of the kernel over Gaussians and tiles, and makes the lists of the tiles in between.
//
// Every list is in order of depth, ties by index, and every sum over tiles or views in a fixed order, so results have
// the same bits for any number of threads.
#include "rasterizer.h"

#include <algorithm>
#include <atomic>
#include <cstdio>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <new>
#include <string>
#include <vector>

#include "state.h"
#include "thread_pool.h"
#if defined(GS_HAS_AVX2) || defined(GS_HAS_AVX512)
#include "processor.h"
#endif

namespace gs {
namespace portable {
extern const Kernel kernel;
}
#if defined(GS_HAS_AVX2)
namespace avx2 {
extern const Kernel kernel;
}
#endif
#if defined(GS_HAS_AVX512)
namespace avx512 {
extern const Kernel kernel;
}
#endif

namespace {

constexpr int64_t kGaussiansPerTask = 1024;
constexpr int64_t kMaxPairs = int64_t(1) << 31;

struct Build {
    const char* name;
    const Kernel* kernel;
};

const std::vector<Build>& builds() {
    static const std::vector<Build> found = [] {
        std::vector<Build> b;
#if defined(GS_HAS_AVX512)
        if (Processor().avx512) b.push_back({"avx512", &avx512::kernel});
#endif
#if defined(GS_HAS_AVX2)
        if (Processor().avx2) b.push_back({"avx2", &avx2::kernel});
#endif
        b.push_back({"portable", &portable::kernel});
        return b;
    }();
    return found;
}

std::atomic<const Kernel*> chosen{nullptr};

const Kernel& kernel() {
    const Kernel* k = chosen.load();
    return k ? *k : *builds().front().kernel;
}

// Bytes that the system can give without swapping; a great number where it does not say.
int64_t available_memory() {
    int64_t kilobytes = 0;
    char name[64];
    if (std::FILE* file = std::fopen("/proc/meminfo", "r")) {
        long long value = 0;
        while (std::fscanf(file, "%63s %lld kB", name, &value) == 2)
            if (std::strcmp(name, "MemAvailable:") == 0) kilobytes = value;
        std::fclose(file);
    }
    return kilobytes ? 1024 * kilobytes : std::numeric_limits<int64_t>::max();
}

// Systems promise more memory than they have, and end the process that uses it: what is large is refused beforehand.
void require_memory(int64_t bytes) {
    constexpr int64_t large = int64_t(1) << 28;
    if (bytes > large && bytes > available_memory()) throw std::bad_alloc();
}

// Memory that grows and is never initialised.
template <class T>
class Buffer {
  public:
    T* ensure(int64_t size) {
        if (size > capacity_) {
            memory_.reset();
            capacity_ = 0;
            const int64_t wanted = size + size / 4 + 64, bytes = static_cast<int64_t>(sizeof(T)) * wanted;
            require_memory(bytes);
            memory_.reset(static_cast<T*>(::operator new(static_cast<size_t>(bytes), std::align_val_t(64))));
            capacity_ = wanted;
        }
        return memory_.get();
    }
    T* get() const { return memory_.get(); }

  private:
    struct Free {
        void operator()(T* p) const { ::operator delete(p, std::align_val_t(64)); }
    };
    std::unique_ptr<T, Free> memory_;
    int64_t capacity_ = 0;
};

// All memory of one call, kept for its backward pass and then for later calls.
struct State {
    const Kernel* kernel = nullptr;
    Frame frame{};
    int64_t pairs = 0;
    Buffer<Splat> splats;
    Buffer<TileRect> rects;
    Buffer<uint32_t> depth_keys, order, order_scratch, slot_starts, tile_starts, tile_used, seen;
    Buffer<Entry> entries;
    Buffer<float> sums;
    Buffer<uint8_t> summed;
};

// A few finished states wait here, so that a training loop allocates nothing after its first step.
class StateCache {
  public:
    std::unique_ptr<State> take() {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.empty()) return std::make_unique<State>();
        std::unique_ptr<State> s = std::move(idle_.back());
        idle_.pop_back();
        return s;
    }
    void give(std::unique_ptr<State> s) {
        const std::lock_guard<std::mutex> lock(mutex_);
        if (idle_.size() < 2) idle_.push_back(std::move(s));
    }

  private:
    std::mutex mutex_;
    std::vector<std::unique_ptr<State>> idle_;
};

StateCache& cache() {
    static StateCache* c = new StateCache;
    return *c;
}

// Stable, by three passes of eleven bits; passes in which all agree are skipped.
void sort_by_key(const uint32_t* keys, uint32_t* items, uint32_t* scratch, int64_t count) {
    constexpr int bits = 11, buckets = 1 << bits;
    uint32_t histogram[3 * buckets] = {};  // on the stack: tasks must not throw
    for (int64_t i = 0; i < count; ++i)
        for (int pass = 0; pass < 3; ++pass)
            ++histogram[pass * buckets + ((keys[items[i]] >> (bits * pass)) & (buckets - 1))];
    for (int pass = 0; pass < 3; ++pass) {
        uint32_t* slots = &histogram[pass * buckets];
        uint32_t sum = 0;
        bool single = false;
        for (int b = 0; b < buckets; ++b) {
            single = single || slots[b] == count;
            const uint32_t n = slots[b];
            slots[b] = sum;
            sum += n;
        }
        if (single) continue;
        for (int64_t i = 0; i < count; ++i)
            scratch[slots[(keys[items[i]] >> (bits * pass)) & (buckets - 1)]++] = items[i];
        std::copy(scratch, scratch + count, items);
    }
}

// Fills entries and tile_starts. Returns false if there are too many pairs of Gaussian and tile.
bool list_tiles(State& s, int threads) {
    Frame& f = s.frame;
    const int64_t count = f.gaussians.count, views = f.views.count, tiles = int64_t(f.columns) * f.rows;
    uint32_t* starts = s.slot_starts.ensure(views * count + 1);
    uint32_t* order = s.order.ensure(views * count);
    uint32_t* scratch = s.order_scratch.ensure(views * count);
    uint32_t* seen = s.seen.ensure(views);

    int64_t pairs = 0;
    for (int64_t i = 0; i < views * count; ++i) {
        const TileRect& r = f.rects[i];
        starts[i] = static_cast<uint32_t>(pairs);
        pairs += int64_t(r.x1 - r.x0) * (r.y1 - r.y0);
        if (pairs >= kMaxPairs) return false;
    }
    starts[views * count] = static_cast<uint32_t>(pairs);
    s.pairs = pairs;
    f.slot_starts = starts;
    f.entries = s.entries.ensure(pairs);

    parallel_for(views, threads, [&](int64_t view) {
        uint32_t* items = order + view * count;
        uint32_t n = 0;
        for (int64_t i = view * count; i < (view + 1) * count; ++i)
            if (starts[i + 1] > starts[i]) items[n++] = static_cast<uint32_t>(i);
        seen[view] = n;
        sort_by_key(f.depth_keys, items, scratch + view * count, n);
    });

    // Counting sort; a task owns a band of a view's rows of tiles.
    const int64_t bands = std::min<int64_t>(f.rows, std::max<int64_t>(1, 2 * threads / std::max<int64_t>(views, 1)));
    uint32_t* tile_starts = s.tile_starts.ensure(views * tiles + 1);
    const auto for_bands = [&](auto&& visit) {
        parallel_for(views * bands, threads, [&](int64_t task) {
            const int64_t view = task / bands, band = task % bands;
            const int low = static_cast<int>(f.rows * band / bands), high = static_cast<int>(f.rows * (band + 1) / bands);
            visit(view, low, high);
        });
    };
    const auto for_pairs = [&](int64_t view, int low, int high, auto&& visit) {
        const uint32_t* items = order + view * count;
        for (uint32_t i = 0; i < seen[view]; ++i) {
            const TileRect r = f.rects[items[i]];
            const int width = r.x1 - r.x0;
            for (int y = std::max<int>(r.y0, low); y < std::min<int>(r.y1, high); ++y) {
                const int64_t tile = view * tiles + int64_t(y) * f.columns;
                const uint32_t slot = starts[items[i]] + static_cast<uint32_t>((y - r.y0) * width);
                for (int x = r.x0; x < r.x1; ++x) visit(tile + x, items[i], slot + static_cast<uint32_t>(x - r.x0));
            }
        }
    };
    uint32_t* cursor = tile_starts + 1;
    for_bands([&](int64_t view, int low, int high) {
        std::fill(cursor + view * tiles + int64_t(low) * f.columns, cursor + view * tiles + int64_t(high) * f.columns, 0u);
        for_pairs(view, low, high, [&](int64_t tile, uint32_t, uint32_t) { ++cursor[tile]; });
    });
    tile_starts[0] = 0;
    uint32_t sum = 0;
    for (int64_t tile = 0; tile < views * tiles; ++tile) {
        const uint32_t n = cursor[tile];
        cursor[tile] = sum;  // becomes the tile's end, which is the next one's start, as entries are filled in
        sum += n;
    }
    for_bands([&](int64_t view, int low, int high) {
        for_pairs(view, low, high, [&](int64_t tile, uint32_t splat, uint32_t slot) {
            Entry& e = f.entries[cursor[tile]++];
            e.splat = splat;
            e.slot = slot;
        });
    });
    f.tile_starts = tile_starts;
    f.tile_used = s.tile_used.ensure(views * tiles);
    return true;
}

int forward(State& s, const gs_gaussians& gaussians, const gs_views& views, int threads, const gs_images& images,
            int32_t* radii) {
    Frame& f = s.frame;
    f = Frame{};
    s.kernel = &kernel();
    f.gaussians = gaussians;
    f.views = views;
    f.images = images;
    f.columns = (views.width + kTile - 1) / kTile;
    f.rows = (views.height + kTile - 1) / kTile;
    f.radii = radii;
    const int64_t total = views.count * gaussians.count;
    if (total >= kMaxPairs) return GS_TOO_MANY_PAIRS;
    const int64_t image_floats = 5 * views.count * views.width * views.height;
    require_memory(static_cast<int64_t>(sizeof(float)) * image_floats);  // the caller's, not yet written to
    f.splats = s.splats.ensure(total);
    f.rects = s.rects.ensure(total);
    f.depth_keys = s.depth_keys.ensure(total);

    const int64_t chunks = (gaussians.count + kGaussiansPerTask - 1) / kGaussiansPerTask;
    std::atomic<bool> finite{true};
    parallel_for(views.count * chunks, threads, [&](int64_t task) {
        const int64_t first = task % chunks * kGaussiansPerTask;
        const int64_t last = std::min(gaussians.count, first + kGaussiansPerTask);
        if (!s.kernel->project(f, task / chunks, first, last)) finite = false;
    });
    if (!finite) return GS_NOT_FINITE;
    if (!list_tiles(s, threads)) return GS_TOO_MANY_PAIRS;
    parallel_for(views.count * f.columns * f.rows, threads, [&](int64_t tile) { s.kernel->draw_tile(f, tile); });
    return GS_OK;
}

void backward(State& s, int threads) {
    Frame& f = s.frame;
    f.sums = s.sums.ensure(s.pairs * kSumFloats);
    f.summed = s.summed.ensure(s.pairs);
    std::memset(f.summed, 0, static_cast<size_t>(s.pairs));
    parallel_for(f.views.count * f.columns * f.rows, threads,
                 [&](int64_t tile) { s.kernel->differentiate_tile(f, tile); });
    const int64_t count = f.gaussians.count, step = kGaussiansPerTask / 4;
    parallel_for((count + step - 1) / step, threads, [&](int64_t task) {
        s.kernel->project_backward(f, task * step, std::min(count, (task + 1) * step));
    });
}

}  // namespace
}  // namespace gs

int gs_forward(const gs_gaussians* gaussians, const gs_views* views, int threads, const gs_images* images,
               int32_t* radii, void** state) try {
    std::unique_ptr<gs::State> s = gs::cache().take();
    const int status = gs::forward(*s, *gaussians, *views, threads, *images, radii);
    if (status == GS_OK && state)
        *state = s.release();
    else
        gs::cache().give(std::move(s));
    return status;
} catch (const std::bad_alloc&) {
    return GS_OUT_OF_MEMORY;
}

int gs_backward(void* state, const gs_gaussians* gaussians, const gs_views* views, int threads,
                const gs_images* images, const gs_images* image_gradients, const gs_gradients* gradients) try {
    gs::State& s = *static_cast<gs::State*>(state);
    s.frame.gaussians = *gaussians;
    s.frame.views = *views;
    s.frame.images = *images;
    s.frame.image_gradients = *image_gradients;
    s.frame.gradients = *gradients;
    gs::backward(s, threads);
    return GS_OK;
} catch (const std::bad_alloc&) {
    return GS_OUT_OF_MEMORY;
}

void gs_release(void* state) { gs::cache().give(std::unique_ptr<gs::State>(static_cast<gs::State*>(state))); }

const char* gs_instruction_sets() {
    static const std::string names = [] {
        std::string all;
        for (const gs::Build& b : gs::builds()) all += (all.empty() ? "" : " ") + std::string(b.name);
        return all;
    }();
    return names.c_str();
}

int gs_use_instruction_set(const char* name) {
    for (const gs::Build& b : gs::builds())
        if (std::strcmp(b.name, name) == 0) {
            gs::chosen = b.kernel;
            return 1;
        }
    return 0;
}
