// The plain C interface of the CPU kernel: what the Python side calls, and nothing else is exported.
//
// All floats are 32-bit, all arrays contiguous. P Gaussians, C views, H x W pixels. Null: not given, or not wanted.
#pragma once

#include <cstdint>

#if defined(_WIN32)
#define GS_API extern "C" __declspec(dllexport)
#else
#define GS_API extern "C" __attribute__((visibility("default")))
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

enum gs_status { GS_OK = 0, GS_NOT_FINITE = 1, GS_OUT_OF_MEMORY = 2, GS_TOO_MANY_PAIRS = 3 };

// Draws. `state`, if not null, receives what gs_backward needs; give it back by gs_release.
GS_API int gs_forward(const gs_gaussians* gaussians, const gs_views* views, int threads, const gs_images* images,
                      int32_t* radii, void** state);
// Writes every gradient whose pointer is set. `images` and the inputs are those of the forward call.
GS_API int gs_backward(void* state, const gs_gaussians* gaussians, const gs_views* views, int threads,
                       const gs_images* images, const gs_images* image_gradients, const gs_gradients* gradients);
GS_API void gs_release(void* state);
// Builds in this library that the machine can run, best first, separated by spaces.
GS_API const char* gs_instruction_sets();
// Chooses one of them for all later calls; 0 if there is none of that name.
GS_API int gs_use_instruction_set(const char* name);
