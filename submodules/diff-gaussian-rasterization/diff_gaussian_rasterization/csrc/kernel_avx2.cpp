#define GS_BUILD avx2
#include "kernel.inl"
