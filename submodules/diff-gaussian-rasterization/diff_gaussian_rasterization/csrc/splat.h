// A Gaussian as the pixels of one view see it. Plain data, the same for every compiled backend and build.
#pragma once

#include "scene.h"

namespace gs {

constexpr int kTile = 16;  // pixels a side

// alpha = min(cap, 2^(level + xx dx^2 + xy dx dy + yy dy^2)). One cache line.
struct alignas(64) Splat {
    float x, y;
    float xx, xy, yy;  // of the exponent: negative definite
    float level;       // log2 of the opacity
    float cap;
    float color[3];
    float depth;
    float ridge_x, ridge_y;  // the exponent is largest at dx = ridge_x dy for given dy, at dy = ridge_y dx for given dx
    float opacity;           // with the antialiasing factor
    float unused[2];
};

// Tiles [x0, x1) x [y0, y1) that a splat may touch.
struct TileRect {
    uint16_t x0, y0, x1, y1;
};

}  // namespace gs
