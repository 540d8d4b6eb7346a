/*
 * A whole block of the encoder for inference: x + Mamba(LayerNorm(x)) in windows, then x + MLP(LayerNorm(x)).
 *
 * Each window is gathered, processed and written back before the next, so that intermediate arrays stay in the core's
 * caches. Windows do not overlap, so threads are independent and the output may overwrite the input.
 */
#pragma once

#include "conv.h"
#include "gemm.h"
#include "scan.h"

namespace {

constexpr int64_t kMlpRows = 64; /* tokens per MLP call */

/* LayerNorm of rows; the second pass over a row is in cache. */
void layer_norm(const float *in, int64_t rows, int64_t n, const float *weight, const float *bias, float *out) {
    for (int64_t r = 0; r < rows; ++r, in += n, out += n) {
        Vec<4> sums{};
        float sum = 0, squares = 0;
        int64_t i = 0;
        for (; i + 4 <= n; i += 4) sums += load<4>(in + i);
        for (; i < n; ++i) sum += in[i];
        const float mean = (sum + sums[0] + sums[1] + sums[2] + sums[3]) / n;
        sums = Vec<4>{};
        for (i = 0; i + 4 <= n; i += 4) {
            const Vec<4> v = load<4>(in + i) - mean;
            sums += v * v;
        }
        for (; i < n; ++i) squares += (in[i] - mean) * (in[i] - mean);
        const float scale = 1.0f / __builtin_sqrtf((squares + sums[0] + sums[1] + sums[2] + sums[3]) / n + 1e-5f);
        for (i = 0; i + 4 <= n; i += 4)
            store<4>(out + i, (load<4>(in + i) - mean) * scale * load<4>(weight + i) + load<4>(bias + i));
        for (; i < n; ++i) out[i] = (in[i] - mean) * scale * weight[i] + bias[i];
    }
}

void gelu_all(float *x, int64_t n) {
    int64_t i = 0;
    for (; i + MAX_LANES <= n; i += MAX_LANES) store<MAX_LANES>(x + i, gelu<MAX_LANES>(load<MAX_LANES>(x + i)));
    for (; i < n; ++i) store<1>(x + i, gelu<1>(load<1>(x + i)));
}

void add_rows(const float *from, int64_t from_stride, int64_t rows, int64_t n, float *to) {
    for (int64_t r = 0; r < rows; ++r)
        for (int64_t i = 0; i < n; ++i) to[r * n + i] += from[r * from_stride + i];
}

/* Calls work(place, token) for the window's tokens on the grid; place is the index within the window. */
template <class Work> INLINE void for_tokens(const Block &b, int64_t window, const Work &work) {
    int64_t at[4], place = 0, rest = window;
    for (int axis = 3; axis >= 0; --axis) {
        const int64_t count = b.padded[axis] / b.window[axis];
        at[axis] = rest % count * b.window[axis] + b.shift[axis];
        rest /= count;
    }
    const auto wrap = [&](int axis, int64_t i) {
        const int64_t p = at[axis] + i;
        return p < b.padded[axis] ? p : p - b.padded[axis];
    };
    for (int64_t i = 0; i < b.window[0]; ++i)
        for (int64_t j = 0; j < b.window[1]; ++j)
            for (int64_t k = 0; k < b.window[2]; ++k) {
                const int64_t x = wrap(0, i), y = wrap(1, j), z = wrap(2, k);
                const bool inside = x < b.grid[0] && y < b.grid[1] && z < b.grid[2];
                const int64_t line = (((rest * b.grid[0] + x) * b.grid[1] + y) * b.grid[2] + z) * b.grid[3];
                for (int64_t l = 0; l < b.window[3]; ++l, ++place) {
                    const int64_t t = wrap(3, l);
                    if (inside && t < b.grid[3]) work(place, line + t);
                }
            }
}

struct Workspace {
    float *tokens, *rows, *xz, *u, *low, *delta, *hidden, *out;
};

/* Divides `scratch` into arrays; returns the number of floats. With a null pointer it only counts. */
int64_t divide(const Block &b, float *scratch, Workspace *w) {
    const int64_t length = b.n_prompts + b.window[0] * b.window[1] * b.window[2] * b.window[3];
    const int64_t c = b.width, d = b.inner;
    int64_t used = 0;
    const auto take = [&](float *&piece, int64_t floats) {
        if (scratch) piece = scratch + used;
        used += floats;
    };
    take(w->tokens, length * c);
    take(w->rows, (length > kMlpRows ? length : kMlpRows) * padded(c));
    take(w->xz, length * padded(2 * d));
    take(w->u, length * d);
    take(w->low, length * padded(b.rank + 2 * kStates));
    take(w->delta, length * padded(d));
    take(w->hidden, kMlpRows * padded(b.hidden));
    take(w->out, kMlpRows * padded(c));
    return used;
}

int64_t block_scratch_floats(const Block *b) {
    Workspace w{};
    return divide(*b, nullptr, &w);
}

int64_t block_packed_floats(const Block *b) {
    const int64_t c = b->width, d = b->inner;
    return padded(2 * d) * c + padded(b->rank + 2 * kStates) * d + padded(d) * b->rank + padded(c) * d +
           padded(b->hidden) * c + padded(c) * b->hidden + padded(b->hidden) + padded(c) + d * kStates;
}

/* Weights in order of use, followed by the padded biases of the MLP and the decay rates. */
void block_pack(const Block *b, float *to, int index, int count) {
    const Share share{index, count};
    const int64_t c = b->width, d = b->inner, low = b->rank + 2 * kStates;
    pack(b->in_proj, 2 * d, c, to, share), to += padded(2 * d) * c;
    pack(b->x_proj, low, d, to, share), to += padded(low) * d;
    pack(b->dt_proj, d, b->rank, to, share), to += padded(d) * b->rank;
    pack(b->out_proj, c, d, to, share), to += padded(c) * d;
    pack(b->linear1, b->hidden, c, to, share), to += padded(b->hidden) * c;
    pack(b->linear2, c, b->hidden, to, share), to += padded(c) * b->hidden;
    if (index) return;
    for (int64_t i = 0; i < padded(b->hidden); ++i) *to++ = i < b->hidden ? b->bias1[i] : 0.0f;
    for (int64_t i = 0; i < padded(c); ++i) *to++ = i < c ? b->bias2[i] : 0.0f;
    for (int64_t i = 0; i < d * kStates; ++i) *to++ = -__builtin_expf(b->a_log[i]);
}

/* The mixer: w.tokens (length, C) normalised, prompts first, to w.rows (length, padded(C)). */
void mix(const Block &b, const Workspace &w, int64_t length, const float *packed, const float *rates) {
    const int64_t c = b.width, d = b.inner, low = b.rank + 2 * kStates;
    product(w.tokens, c, length, packed, c, 2 * d, nullptr, w.xz, padded(2 * d));
    packed += padded(2 * d) * c;
    Conv conv{1, length, d, b.taps, {w.xz, 0, padded(2 * d)}, {w.u, 0, d}, b.conv_weight, b.conv_bias};
    conv_forward(&conv, 0, 1);
    product(w.u, d, length, packed, d, low, nullptr, w.low, padded(low));
    packed += padded(low) * d;
    product(w.low, padded(low), length, packed, b.rank, d, nullptr, w.delta, padded(d));
    packed += padded(d) * b.rank;
    Scan scan{};
    scan.n_windows = 1, scan.n_tokens = length, scan.n_channels = d;
    scan.u = {w.u, 0, d}, scan.delta = {w.delta, 0, padded(d)};
    scan.b = {w.low + b.rank, 0, padded(low)}, scan.c = {w.low + b.rank + kStates, 0, padded(low)};
    scan.z = {w.xz + d, 0, padded(2 * d)}, scan.y = scan.u; /* in place: a token's input is not used after its output */
    scan.a = rates, scan.skip = b.skip, scan.delta_bias = b.delta_bias;
    scan_forward(&scan, 0, n_blocks(d));
    product(w.u, d, length, packed, d, c, nullptr, w.rows, padded(c));
}

/* x + Mamba(LayerNorm(x)) of one window: tokens to w.tokens, after the prompts. */
void mix_window(const Block &b, const Workspace &w, int64_t window, const float *packed) {
    const int64_t c = b.width, k = b.n_prompts;
    const int64_t n = b.window[0] * b.window[1] * b.window[2] * b.window[3];
    for (int64_t i = 0; i < k * c; ++i) w.tokens[i] = b.prompts[i];
    float *own = w.tokens + k * c;
    for (int64_t i = 0; i < n * c; ++i) own[i] = 0; /* padding is 0 after the norm */
    for_tokens(b, window, [&](int64_t place, int64_t token) {
        layer_norm(b.x + token * c, 1, c, b.norm1_weight, b.norm1_bias, own + place * c);
    });
    mix(b, w, k + n, packed, packed + block_packed_floats(&b) - b.inner * kStates);
    const float *mixed = w.rows + k * padded(c);
    for_tokens(b, window, [&](int64_t place, int64_t token) {
        for (int64_t i = 0; i < c; ++i) own[place * c + i] = b.x[token * c + i] + mixed[place * padded(c) + i];
    });
}

/* x + MLP(LayerNorm(x)) of `n` tokens, in place. */
void mlp_tokens(const Block &b, const Workspace &w, float *x, int64_t n, const float *packed) {
    const int64_t c = b.width;
    packed += padded(2 * b.inner) * c + padded(b.rank + 2 * kStates) * b.inner + padded(b.inner) * b.rank +
              padded(c) * b.inner;
    const float *linear2 = packed + padded(b.hidden) * c, *bias1 = linear2 + padded(c) * b.hidden;
    const float *bias2 = bias1 + padded(b.hidden);
    for (int64_t first = 0; first < n; first += kMlpRows) {
        const int64_t rows = n - first < kMlpRows ? n - first : kMlpRows;
        layer_norm(x + first * c, rows, c, b.norm2_weight, b.norm2_bias, w.rows);
        product(w.rows, c, rows, packed, c, b.hidden, bias1, w.hidden, padded(b.hidden));
        gelu_all(w.hidden, rows * padded(b.hidden));
        product(w.hidden, padded(b.hidden), rows, linear2, b.hidden, c, bias2, w.out, padded(c));
        add_rows(w.out, padded(c), rows, c, x + first * c);
    }
}

/* The mixer of one window, optionally followed by the MLP. */
void block_window(const Block *block, int64_t window, const float *packed, float *scratch, bool with_mlp) {
    const Block &b = *block;
    Workspace w{};
    divide(b, scratch, &w);
    const int64_t c = b.width;
    float *own = w.tokens + b.n_prompts * c;
    mix_window(b, w, window, packed);
    if (with_mlp) mlp_tokens(b, w, own, b.window[0] * b.window[1] * b.window[2] * b.window[3], packed);
    for_tokens(b, window, [&](int64_t place, int64_t token) {
        for (int64_t i = 0; i < c; ++i) b.y[token * c + i] = own[place * c + i];
    });
}

/* The MLP of output tokens `first` to `last`, after the mixer of all windows. */
void block_mlp(const Block *block, int64_t first, int64_t last, const float *packed, float *scratch) {
    Workspace w{};
    divide(*block, scratch, &w);
    mlp_tokens(*block, w, block->y + first * block->width, last - first, packed);
}

} /* namespace */
