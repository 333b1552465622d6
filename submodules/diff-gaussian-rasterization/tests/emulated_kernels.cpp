// The rasterizer's CUDA kernels for a CPU.
#include "cuda_emulation.h"

#include "kernels.cu"

EMULATE(gs_project, CudaFrame);
EMULATE(gs_sort_depths, CudaFrame);
EMULATE(gs_add_up, CudaFrame);
EMULATE(gs_list_pairs, CudaFrame);
EMULATE(gs_count_tiles, CudaFrame);
EMULATE(gs_sort_tiles, CudaFrame);
EMULATE(gs_list_tiles, CudaFrame);
EMULATE(gs_draw, CudaFrame);
EMULATE(gs_replay, CudaFrame);
EMULATE(gs_replay_absolute, CudaFrame);
EMULATE(gs_project_backward, CudaFrame);

extern "C" __attribute__((visibility("default"))) size_t size_of_frame() { return sizeof(CudaFrame); }

// Faults that the emulation must find.
void half_a_warp(CudaFrame) {
    if (threadIdx.x % 2) __syncwarp();
}
void two_collectives(CudaFrame) {
    if (threadIdx.x % 2)
        __syncwarp();
    else
        __any_sync(~0u, true);
}
void half_a_block(CudaFrame) {
    if (threadIdx.x < 32) __syncthreads();
}
void after_a_lower_block(CudaFrame f) {
    if (threadIdx.x == 0) f.radii[blockIdx.x] = blockIdx.x ? f.radii[blockIdx.x - 1] + 1 : 1;
}
EMULATE(after_a_lower_block, CudaFrame);
EMULATE(half_a_warp, CudaFrame);
EMULATE(two_collectives, CudaFrame);
EMULATE(half_a_block, CudaFrame);
