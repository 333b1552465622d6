#define GS_BUILD portable
#include "kernel.inl"
