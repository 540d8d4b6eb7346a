/* The causal depthwise convolution along a window's tokens, then SiLU, forward and backward. */
#pragma once

#include "lanes.h"

namespace {

struct ConvForwardBlocks {
    const Conv &c;
    int64_t window;
    template <int W> void run(int64_t channel) const {
        const Vec<W> bias = load<W>(c.bias + channel);
        Vec<W> weight[16];
        for (int64_t tap = 0; tap < c.taps; ++tap)
            for (int lane = 0; lane < W; ++lane) weight[tap][lane] = c.weight[(channel + lane) * c.taps + tap];
        for (int64_t token = 0; token < c.n_tokens; ++token) {
            Vec<W> sum = bias;
            for (int64_t tap = 0; tap < c.taps; ++tap) {
                const int64_t from = token - c.taps + 1 + tap;
                if (from >= 0) sum += weight[tap] * load<W>(at(c.x, window, from, channel));
            }
            store<W>(at(c.y, window, token, channel), sum * sigmoid<W>(sum));
        }
    }
};

struct ConvBackwardBlocks {
    const Conv &c;
    const ConvGrad &g;
    int64_t window;
    template <int W> void run(int64_t channel) const {
        const Vec<W> bias = load<W>(c.bias + channel);
        Vec<W> weight[16], dweight[16], dbias{};
        for (int64_t tap = 0; tap < c.taps; ++tap) {
            dweight[tap] = Vec<W>{};
            for (int lane = 0; lane < W; ++lane) weight[tap][lane] = c.weight[(channel + lane) * c.taps + tap];
        }
        for (int64_t token = 0; token < c.n_tokens; ++token) {
            Vec<W> sum = bias;
            for (int64_t tap = 0; tap < c.taps; ++tap) {
                const int64_t from = token - c.taps + 1 + tap;
                if (from >= 0) sum += weight[tap] * load<W>(at(c.x, window, from, channel));
            }
            const Vec<W> gate = sigmoid<W>(sum);
            const Vec<W> dsum = load<W>(at(g.dy, window, token, channel)) * gate * (1.0f + sum * (1.0f - gate));
            store<W>(g.scratch + token * 16, dsum);
            dbias += dsum;
            for (int64_t tap = 0; tap < c.taps; ++tap) {
                const int64_t from = token - c.taps + 1 + tap;
                if (from >= 0) dweight[tap] += dsum * load<W>(at(c.x, window, from, channel));
            }
        }
        for (int64_t token = 0; token < c.n_tokens; ++token) {
            Vec<W> sum{};
            for (int64_t tap = 0; tap < c.taps; ++tap) {
                const int64_t to = token + c.taps - 1 - tap;
                if (to < c.n_tokens) sum += weight[tap] * load<W>(g.scratch + to * 16);
            }
            store<W>(at(g.dx, window, token, channel), sum);
        }
        store<W>(g.dbias + channel, load<W>(g.dbias + channel) + dbias);
        for (int64_t tap = 0; tap < c.taps; ++tap)
            for (int lane = 0; lane < W; ++lane) g.dweight[(channel + lane) * c.taps + tap] += dweight[tap][lane];
    }
};

void conv_forward(const Conv *c, int64_t first_window, int64_t last_window) {
    for (int64_t window = first_window; window < last_window; ++window)
        for_blocks(c->n_channels, ConvForwardBlocks{*c, window});
}

void conv_backward(const Conv *c, const ConvGrad *g, int64_t first_window, int64_t last_window) {
    for (int64_t window = first_window; window < last_window; ++window)
        for_blocks(c->n_channels, ConvBackwardBlocks{*c, *g, window});
}

} /* namespace */
