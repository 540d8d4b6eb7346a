/*
 * Patch embedding directly from the clip: time is the fastest axis, so each voxel of a patch is a contiguous column of
 * volumes, and no rearranged copy is required.
 */
#pragma once

#include "gemm.h"

namespace {

int64_t patch_packed_floats(const Patch *p) {
    return padded(p->width) * p->patch[0] * p->patch[1] * p->patch[2] + padded(p->width);
}

void patch_pack(const Patch *p, float *to) {
    const int64_t voxels = p->patch[0] * p->patch[1] * p->patch[2];
    pack(p->weight, p->width, voxels, to, Share{0, 1});
    to += padded(p->width) * voxels;
    for (int64_t i = 0; i < padded(p->width); ++i) *to++ = i < p->width ? p->bias[i] : 0.0f;
}

/* `R` volumes of one patch, for one panel of outputs. */
template <int W, int V, int R>
INLINE void patch_tile(const Patch &p, const float *clip, const float *panel, const float *bias, float *out,
                       int64_t left) {
    Vec<W> sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = load<W>(bias + v * W);
    for (int64_t i = 0; i < p.patch[0]; ++i)
        for (int64_t j = 0; j < p.patch[1]; ++j) {
            const float *line = clip + (i * p.size[1] + j) * p.size[2] * p.size[3];
            for (int64_t k = 0; k < p.patch[2]; ++k, line += p.size[3]) {
                Vec<W> w[V];
                for (int v = 0; v < V; ++v, panel += W) w[v] = load<W>(panel);
                for (int r = 0; r < R; ++r)
                    for (int v = 0; v < V; ++v) sum[r][v] += line[r] * w[v];
            }
        }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            if (left >= (v + 1) * W)
                store<W>(out + r * p.width + v * W, sum[r][v]);
            else
                for (int64_t lane = 0; lane < left - v * W; ++lane) out[r * p.width + v * W + lane] = sum[r][v][lane];
        }
}

template <int W, int V>
void patch_panel(const Patch &p, const float *clip, const float *panel, const float *bias, float *out, int64_t left) {
    constexpr int rows = MAX_LANES == 16 ? 10 / V * 2 : 4;
    int64_t t = 0;
    for (; t + rows <= p.size[3]; t += rows)
        patch_tile<W, V, rows>(p, clip + t, panel, bias, out + t * p.width, left);
    for (; t < p.size[3]; ++t) patch_tile<W, V, 1>(p, clip + t, panel, bias, out + t * p.width, left);
}

/* All volumes of one patch; patches are in raster order over clips. */
void patch_forward(const Patch *patch, int64_t index, const float *packed) {
    const Patch &p = *patch;
    const int64_t voxels = p.patch[0] * p.patch[1] * p.patch[2];
    int64_t at[3], rest = index;
    for (int axis = 2; axis >= 0; --axis) {
        const int64_t count = p.size[axis] / p.patch[axis];
        at[axis] = rest % count * p.patch[axis];
        rest /= count;
    }
    const float *clip = p.x + (((rest * p.size[0] + at[0]) * p.size[1] + at[1]) * p.size[2] + at[2]) * p.size[3];
    const float *bias = packed + padded(p.width) * voxels;
    float *out = p.y + index * p.size[3] * p.width;
    for (int64_t column = 0; column < padded(p.width);) {
        const int64_t width = panel_width(padded(p.width) - column), left = p.width - column;
        if (width == 3 * MAX_LANES)
            patch_panel<MAX_LANES, 3>(p, clip, packed, bias + column, out + column, left);
        else if (width == 2 * MAX_LANES)
            patch_panel<MAX_LANES, 2>(p, clip, packed, bias + column, out + column, left);
        else if (width == MAX_LANES)
            patch_panel<MAX_LANES, 1>(p, clip, packed, bias + column, out + column, left);
#if MAX_LANES > 8
        else if (width == 8)
            patch_panel<8, 1>(p, clip, packed, bias + column, out + column, left);
#endif
#if MAX_LANES > 4
        else
            patch_panel<4, 1>(p, clip, packed, bias + column, out + column, left);
#endif
        packed += width * voxels;
        column += width;
    }
}

} /* namespace */
