// What passes between the engine and the builds of the kernel. Plain data: nothing here has code that could be linked
// from the wrong build.
#pragma once

#include "rasterizer.h"
#include "splat.h"

namespace gs {

constexpr int kBlock = 4;         // pixels a side of a block; a tile has 16 blocks of 16 pixels
constexpr int kTilePixels = kTile * kTile;
constexpr int kSumFloats = 16;    // one cache line

// A splat in the list of a tile.
struct Entry {
    uint32_t splat;   // view * P + index
    uint32_t slot;    // where its sums of the backward pass go; a splat's slots are consecutive
    uint32_t blocks;  // set by the forward pass: bit b for block b of the tile
};

// A run of the kernel over all views, read by all threads.
struct Frame {
    gs_gaussians gaussians;
    gs_views views;
    int32_t columns, rows;  // of tiles
    Splat* splats;          // (C, P)
    TileRect* rects;        // (C, P)
    uint32_t* depth_keys;   // (C, P): ordered as the depths
    int32_t* radii;         // (C, P)
    Entry* entries;
    const uint32_t* tile_starts;  // (C * tiles + 1)
    uint32_t* tile_used;          // (C * tiles): how many entries were looked at before all pixels had ended
    const uint32_t* slot_starts;  // (C * P + 1)
    float* sums;                  // (slots, kSumFloats)
    uint8_t* summed;              // (slots): whether sums were written
    gs_images images;
    gs_images image_gradients;
    gs_gradients gradients;
};

// One build of the kernel. Ranges are half open; different ranges touch different memory.
struct Kernel {
    // Gaussians [first, last) in one view; false if an input is not finite.
    bool (*project)(const Frame&, int64_t view, int64_t first, int64_t last);
    void (*draw_tile)(const Frame&, int64_t tile);
    void (*differentiate_tile)(const Frame&, int64_t tile);
    // Gaussians [first, last) over all views.
    void (*project_backward)(const Frame&, int64_t first, int64_t last);
};

}  // namespace gs
