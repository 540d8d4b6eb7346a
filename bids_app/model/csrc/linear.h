/* A linear layer and its gradients for training: many rows, few columns. */
#pragma once

#include "gemm.h"

namespace {

constexpr int64_t kLinearRows = 64; /* rows per call, which stay in the caches */
constexpr int64_t kGradRows = 128;  /* rows between two updates of the gradient in memory */

int64_t linear_packed_floats(const Linear *l) { return padded(l->n_out) * l->n_in + padded(l->n_out); }

void linear_pack(const Linear *l, float *to, int index, int count) {
    pack(l->weight, l->n_out, l->n_in, to, Share{index, count});
    if (index || !l->bias) return;
    to += padded(l->n_out) * l->n_in;
    for (int64_t i = 0; i < padded(l->n_out); ++i) to[i] = i < l->n_out ? l->bias[i] : 0.0f;
}

void linear_forward(const Linear *l, int64_t first, int64_t last, const float *packed) {
    const float *bias = l->bias ? packed + padded(l->n_out) * l->n_in : nullptr;
    for (int64_t row = first; row < last; row += kLinearRows)
        product(l->x + row * l->x_stride, l->x_stride, last - row < kLinearRows ? last - row : kLinearRows, packed,
                l->n_in, l->n_out, bias, l->y + row * l->y_stride, l->y_stride);
}

/* `R` rows and `V` vectors of the gradient of the weight, summed over some rows of the input. */
template <int W, int V, int R>
INLINE void grad_tile(const LinearGrad &g, int64_t first, int64_t last, int64_t out, int64_t in) {
    float *to = g.dweight + out * g.n_in + in;
    Vec<W> sum[R][V];
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) sum[r][v] = Vec<W>{};
    for (int64_t row = first; row < last; ++row) {
        const float *dy = g.dy + row * g.dy_stride + out, *x = g.x + row * g.x_stride + in;
        Vec<W> values[V];
        for (int v = 0; v < V; ++v) values[v] = load<W>(x + v * W);
        for (int r = 0; r < R; ++r)
            for (int v = 0; v < V; ++v) sum[r][v] += dy[r] * values[v];
    }
    for (int r = 0; r < R; ++r)
        for (int v = 0; v < V; ++v) {
            float *at = to + r * g.n_in + v * W;
            store<W>(at, load<W>(at) + sum[r][v]);
        }
}

template <int W, int V> void grad_panel(const LinearGrad &g, int64_t first, int64_t last, int64_t in) {
    int64_t out = 0;
    for (; out + kRows <= g.n_out; out += kRows) grad_tile<W, V, kRows>(g, first, last, out, in);
    for (; out + 2 <= g.n_out; out += 2) grad_tile<W, V, 2>(g, first, last, out, in);
    for (; out < g.n_out; ++out) grad_tile<W, V, 1>(g, first, last, out, in);
}

struct GradBlocks {
    const LinearGrad &g;
    int64_t first, last, start;
    template <int W> void run(int64_t in) const { grad_panel<W, 1>(g, first, last, start + in); }
};

/* dweight (n_out, n_in) += dy^T x, for rows `first` to `last`. */
void linear_weight_grad(const LinearGrad *grad, int64_t first, int64_t last) {
    const LinearGrad &g = *grad;
    for (int64_t row = first; row < last; row += kGradRows) {
        const int64_t end = last - row < kGradRows ? last : row + kGradRows;
        int64_t in = 0;
        for (; in + 3 * MAX_LANES <= g.n_in; in += 3 * MAX_LANES) grad_panel<MAX_LANES, 3>(g, row, end, in);
        for (; in + 2 * MAX_LANES <= g.n_in; in += 2 * MAX_LANES) grad_panel<MAX_LANES, 2>(g, row, end, in);
        for_blocks(g.n_in - in, GradBlocks{g, row, end, in});
    }
}

} /* namespace */
