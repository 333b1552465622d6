#define GS_BUILD avx512
#include "kernel.inl"
