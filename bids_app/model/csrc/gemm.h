/*
 * Products of small matrices, out = in * weight^T + bias, for tiles that fit into the caches.
 *
 * Weights are packed in panels: columns (outputs) in groups of 3, 2 or 1 vectors, and within a group the rows of the
 * inner axis in order. A few rows are processed at a time, with their sums in registers.
 */
#pragma once

#include "lanes.h"

namespace {

constexpr int kRows = MAX_LANES == 16 ? 8 : 4;

/* Outputs are padded to a multiple of four, so that each panel has at least four lanes. */
INLINE int64_t padded(int64_t n) { return (n + 3) / 4 * 4; }

/* Width of the next panel, with `left` columns (a multiple of 4) remaining. */
INLINE int64_t panel_width(int64_t left) {
    if (left >= 3 * MAX_LANES) return 3 * MAX_LANES;
    if (left >= 2 * MAX_LANES) return 2 * MAX_LANES;
    return block_width(left);
}

/* A thread's share in packing the weights. */
struct Share {
    int index, count;
};

/*
 * Packs weight (n_out, n_in) of torch's Linear into panels; `to` holds padded(n_out) * n_in floats. Each share packs
 * different panels.
 */
void pack(const float *weight, int64_t n_out, int64_t n_in, float *to, Share share) {
    int64_t panel = 0;
    for (int64_t column = 0; column < padded(n_out); ++panel) {
        const int64_t width = panel_width(padded(n_out) - column);
        if (panel % share.count == share.index)
            for (int64_t k = 0; k < n_in; ++k)
                for (int64_t j = 0; j < width; ++j)
                    to[k * width + j] = column + j < n_out ? weight[(column + j) * n_in + k] : 0.0f;
        to += width * n_in;
        column += width;
    }
}

template <int W, int V, int R>
INLINE void tile(const float *in, int64_t in_stride, const float *panel, int64_t n_in, const float *bias, float *out,
                 int64_t out_stride) {
    Vec<W> sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = bias ? load<W>(bias + v * W) : Vec<W>{};
    for (int64_t k = 0; k < n_in; ++k) {
        Vec<W> w[V];
        for (int v = 0; v < V; ++v) w[v] = load<W>(panel + (k * V + v) * W);
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) sum[r][v] += in[r * in_stride + k] * w[v];
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) store<W>(out + r * out_stride + v * W, sum[r][v]);
}

template <int W, int V>
void panel_product(const float *in, int64_t in_stride, int64_t rows, const float *panel, int64_t n_in, const float *bias,
                   float *out, int64_t out_stride) {
    int64_t r = 0;
    for (; r + kRows <= rows; r += kRows)
        tile<W, V, kRows>(in + r * in_stride, in_stride, panel, n_in, bias, out + r * out_stride, out_stride);
    for (; r + 2 <= rows; r += 2)
        tile<W, V, 2>(in + r * in_stride, in_stride, panel, n_in, bias, out + r * out_stride, out_stride);
    for (; r < rows; ++r)
        tile<W, V, 1>(in + r * in_stride, in_stride, panel, n_in, bias, out + r * out_stride, out_stride);
}

/* out (rows, padded(n_out)) = in (rows, n_in) * weight^T + bias; bias holds padded(n_out) floats, or is null. */
void product(const float *in, int64_t in_stride, int64_t rows, const float *packed, int64_t n_in, int64_t n_out,
             const float *bias, float *out, int64_t out_stride) {
    for (int64_t column = 0; column < padded(n_out);) {
        const int64_t width = panel_width(padded(n_out) - column);
        const float *own = bias ? bias + column : nullptr;
        float *to = out + column;
        if (width == 3 * MAX_LANES)
            panel_product<MAX_LANES, 3>(in, in_stride, rows, packed, n_in, own, to, out_stride);
        else if (width == 2 * MAX_LANES)
            panel_product<MAX_LANES, 2>(in, in_stride, rows, packed, n_in, own, to, out_stride);
        else if (width == MAX_LANES)
            panel_product<MAX_LANES, 1>(in, in_stride, rows, packed, n_in, own, to, out_stride);
#if MAX_LANES > 8
        else if (width == 8)
            panel_product<8, 1>(in, in_stride, rows, packed, n_in, own, to, out_stride);
#endif
#if MAX_LANES > 4
        else
            panel_product<4, 1>(in, in_stride, rows, packed, n_in, own, to, out_stride);
#endif
        packed += width * n_in;
        column += width;
    }
}

} /* namespace */
