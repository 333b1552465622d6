// What the searches on CPU and GPU share: boxes, distances, and the three smallest of them.
#pragma once

#if defined(__CUDACC__) || defined(__CUDACC_RTC__)
#define KNN_HD __device__ __forceinline__
#else
#define KNN_HD inline
#endif

namespace knn {

KNN_HD float smaller(float a, float b) { return a < b ? a : b; }
KNN_HD float larger(float a, float b) { return a > b ? a : b; }

// Grows with the size of each argument, whatever the rounding: a box is never farther than a point inside of it.
KNN_HD float squared_length(float x, float y, float z) { return x * x + y * y + z * z; }

struct Box {
    float low[3], high[3];

    KNN_HD float squared_distance(const float p[3]) const {
        float d[3];
        for (int k = 0; k < 3; ++k) d[k] = larger(0.0f, larger(low[k] - p[k], p[k] - high[k]));
        return squared_length(d[0], d[1], d[2]);
    }

    KNN_HD void start(const float p[3]) {
        for (int k = 0; k < 3; ++k) low[k] = high[k] = p[k];
    }

    KNN_HD void include(const float from[3], const float to[3]) {
        for (int k = 0; k < 3; ++k) low[k] = smaller(low[k], from[k]);
        for (int k = 0; k < 3; ++k) high[k] = larger(high[k], to[k]);
    }
};

// The three smallest of the numbers that were added.
struct Nearest {
    static constexpr float kNone = 3.402823466e38f;
    float d[3] = {kNone, kNone, kNone};

    KNN_HD void add(float x) {
        d[2] = smaller(d[2], larger(d[1], x));
        d[1] = smaller(d[1], larger(d[0], x));
        d[0] = smaller(d[0], x);
    }

    KNN_HD float mean(int neighbors) const {
        float sum = 0.0f;
        for (int k = 0; k < neighbors; ++k) sum += d[k];
        return sum / static_cast<float>(neighbors);
    }
};

}  // namespace knn
