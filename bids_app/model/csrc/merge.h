/* Patch merging and in-place position embeddings, for inference. */
#pragma once

#include "block.h"

namespace {

int64_t merge_packed_floats(const Merge *m) { return padded(2 * m->width) * 8 * m->width; }

int64_t merge_scratch_floats(const Merge *m) {
    return m->grid[3] * (2 * 8 * m->width + padded(2 * m->width));
}

void merge_pack(const Merge *m, float *to) { pack(m->reduction, 2 * m->width, 8 * m->width, to, Share{0, 1}); }

/* All volumes of one position of the smaller grid; positions are in raster order over clips. */
void merge_forward(const Merge *merge, int64_t index, const float *packed, float *scratch) {
    const Merge &m = *merge;
    const int64_t c = m.width, t = m.grid[3];
    float *joined = scratch, *normed = joined + t * 8 * c, *out = normed + t * 8 * c;
    int64_t at[3], rest = index;
    for (int axis = 2; axis >= 0; --axis) {
        at[axis] = rest % (m.grid[axis] / 2) * 2;
        rest /= m.grid[axis] / 2;
    }
    for (int64_t neighbour = 0; neighbour < 8; ++neighbour) {
        const int64_t x = at[0] + neighbour / 4, y = at[1] + neighbour / 2 % 2, z = at[2] + neighbour % 2;
        const float *from = m.x + (((rest * m.grid[0] + x) * m.grid[1] + y) * m.grid[2] + z) * t * c;
        for (int64_t i = 0; i < t; ++i)
            for (int64_t j = 0; j < c; ++j) joined[(i * 8 + neighbour) * c + j] = from[i * c + j];
    }
    layer_norm(joined, t, 8 * c, m.norm_weight, m.norm_bias, normed);
    product(normed, 8 * c, t, packed, 8 * c, 2 * c, nullptr, out, padded(2 * c));
    for (int64_t i = 0; i < t; ++i)
        for (int64_t j = 0; j < 2 * c; ++j) m.y[(index * t + i) * 2 * c + j] = out[i * padded(2 * c) + j];
}

/* x (volumes, width) of one position += spatial embedding + temporal embedding of each volume. */
void add_position(float *x, const float *place, const float *time, int64_t volumes, int64_t width) {
    for (int64_t i = 0; i < volumes; ++i)
        for (int64_t j = 0; j < width; ++j) x[i * width + j] += place[j] + time[i * width + j];
}

} /* namespace */
