// What every compiled backend is given: the C structures that Python fills in (`structures.py`).
//
// All floats are 32-bit, all arrays contiguous. P Gaussians, C views, H x W pixels. Null: not given, or not wanted.
#pragma once

#if defined(__CUDACC_RTC__)  // NVRTC has no standard headers
typedef signed char int8_t;
typedef unsigned char uint8_t;
typedef unsigned short uint16_t;
typedef short int16_t;
typedef int int32_t;
typedef unsigned int uint32_t;
typedef long long int64_t;
typedef unsigned long long uint64_t;
#else
#include <cstdint>
#endif

struct gs_gaussians {
    int64_t count;         // P
    int64_t coefficients;  // M of shs
    int64_t color_views;   // 1 or C: how many sets of colors there are
    int64_t shape_views;   // 1 or C: how many sets of scales or covariances
    const float* means;         // (P, 3)
    const float* opacities;     // (P)
    const float* shs;           // (P, M, 3)
    const float* colors;        // (1 or C, P, 3)
    const float* scales;        // (1 or C, P, 3)
    const float* rotations;     // (P, 4)
    const float* covariances;   // (1 or C, P, 6)
};

struct gs_views {
    int64_t count;  // C
    int32_t width, height;
    float scale_modifier;
    int32_t antialiasing;
    const float* viewmatrix;   // (C, 16) transposed
    const float* projmatrix;   // (C, 16) transposed
    const float* campos;       // (C, 3)
    const float* background;   // (C, 3)
    const float* tanfov;       // (C, 2)
    const int32_t* degrees;    // (C)
};

struct gs_images {
    float* color;  // (C, 3, H, W)
    float* depth;  // (C, 1, H, W)
    float* alpha;  // (C, 1, H, W)
};

struct gs_gradients {
    float* means;        // (P, 3)
    float* means2d;      // (C, P, means2d_stride), in units of normalised device coordinates
    float* absolute2d;   // (C, P, 2), the same, added up by absolute value over pixels
    float* opacities;    // (P)
    float* shs;          // (P, M, 3)
    float* colors;       // (1 or C, P, 3)
    float* scales;       // (1 or C, P, 3)
    float* rotations;    // (P, 4)
    float* covariances;  // (1 or C, P, 6)
    int64_t means2d_stride;
};
