// The neighbour search's CUDA kernels for a CPU.
#include "cuda_emulation.h"

#include "kernels.cu"

EMULATE(knn_codes, KnnFrame);
EMULATE(knn_boxes, KnnFrame);
EMULATE(knn_search, KnnFrame);
