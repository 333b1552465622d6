// The plain C interface of the CPU kernel: what the Python side calls, and nothing else is exported.
#pragma once

#include "scene.h"

#if defined(_WIN32)
#define GS_API extern "C" __declspec(dllexport)
#else
#define GS_API extern "C" __attribute__((visibility("default")))
#endif

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

// Rows of four floats of a grid of side^3 vertices (side at least 2), last axis fastest, between its vertices, at points
// of [0, 1]^3: all x, then all y, then all z.
GS_API int gs_interpolate(const float* table, int32_t side, const float* points, int64_t count, int threads,
                          float* out);
// The same bits whatever the number of threads.
GS_API int gs_interpolate_backward(const float* points, const float* gradient, int64_t count, int32_t side, int threads,
                                   float* table_gradient);
