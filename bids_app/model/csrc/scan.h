/* The selective scan, forward and backward; see the recurrence in scan.py. */
#pragma once

#include "lanes.h"

namespace {

INLINE int64_t chunks_of(int64_t n_tokens) { return (n_tokens + kChunk - 1) / kChunk; }

/* Decay rates of a block by state, times log2(e): out[s] holds the rates of its W channels. */
template <int W> INLINE void rates_by_state(const Scan &s, int64_t channel, Vec<W> *out) {
    for (int state = 0; state < kStates; ++state) {
        Vec<W> v{};
        for (int lane = 0; lane < W; ++lane) v[lane] = s.a[(channel + lane) * kStates + state] * kLog2e;
        out[state] = v;
    }
}

template <int W> void forward_block(const Scan &s, int64_t window, int64_t channel) {
    Vec<W> rate[kStates], h[kStates];
    rates_by_state<W>(s, channel, rate);
    for (int i = 0; i < kStates; ++i) h[i] = Vec<W>{};
    const Vec<W> bias = load<W>(s.delta_bias + channel), skip = load<W>(s.skip + channel);
    const int64_t n_chunks = chunks_of(s.n_tokens);
    for (int64_t token = 0; token < s.n_tokens; ++token) {
        if (s.saved && token % kChunk == 0) {
            float *to = s.saved + ((window * n_chunks + token / kChunk) * s.n_channels + channel) * kStates;
            for (int i = 0; i < kStates; ++i) store<W>(to + i * W, h[i]);
        }
        const Vec<W> u = load<W>(at(s.u, window, token, channel));
        const Vec<W> step = softplus<W>(load<W>(at(s.delta, window, token, channel)) + bias);
        const Vec<W> drive = step * u;
        const float *b = at(s.b, window, token, 0), *c = at(s.c, window, token, 0);
        Vec<W> y0 = skip * u, y1{}, y2{}, y3{};
#pragma GCC unroll 4
        for (int i = 0; i < kStates; i += 4) {
            h[i] = exp2_of<W>(step * rate[i]) * h[i] + drive * b[i];
            y0 += h[i] * c[i];
            h[i + 1] = exp2_of<W>(step * rate[i + 1]) * h[i + 1] + drive * b[i + 1];
            y1 += h[i + 1] * c[i + 1];
            h[i + 2] = exp2_of<W>(step * rate[i + 2]) * h[i + 2] + drive * b[i + 2];
            y2 += h[i + 2] * c[i + 2];
            h[i + 3] = exp2_of<W>(step * rate[i + 3]) * h[i + 3] + drive * b[i + 3];
            y3 += h[i + 3] * c[i + 3];
        }
        const Vec<W> z = load<W>(at(s.z, window, token, channel));
        store<W>(at(s.y, window, token, channel), ((y0 + y1) + (y2 + y3)) * (z * sigmoid<W>(z)));
    }
}

/*
 * Backward pass of one chunk of one block. States are recomputed from the one saved at the chunk's start; `carry` holds
 * the gradient of the states, from the next chunk and to the previous one. Gradients of B and C are sums over channels,
 * accumulated per lane over the blocks and summed over lanes once per chunk.
 */
template <int W>
void backward_chunk(const Scan &s, const ScanGrad &g, int64_t window, int64_t channel, int64_t first, int64_t last,
                    float *states, float *decays, float *b_lanes, float *c_lanes, float *carry) {
    Vec<W> rate[kStates], h[kStates], dh[kStates], da[kStates];
    rates_by_state<W>(s, channel, rate);
    const float *saved =
        s.saved + ((window * chunks_of(s.n_tokens) + first / kChunk) * s.n_channels + channel) * kStates;
    for (int i = 0; i < kStates; ++i) {
        h[i] = load<W>(saved + i * W);
        dh[i] = load<W>(carry + i * W);
        da[i] = Vec<W>{};
    }
    const Vec<W> bias = load<W>(s.delta_bias + channel), skip = load<W>(s.skip + channel);
    Vec<W> steps[kChunk];
    for (int64_t token = first; token < last; ++token) {
        const int64_t k = token - first;
        const Vec<W> step = softplus<W>(load<W>(at(s.delta, window, token, channel)) + bias);
        const Vec<W> drive = step * load<W>(at(s.u, window, token, channel));
        const float *b = at(s.b, window, token, 0);
        steps[k] = step;
        for (int i = 0; i < kStates; ++i) {
            const Vec<W> decay = exp2_of<W>(step * rate[i]);
            store<W>(decays + (k * kStates + i) * W, decay);
            store<W>(states + (k * kStates + i) * W, h[i]); /* before the token */
            h[i] = decay * h[i] + drive * b[i];
        }
    }
    Vec<W> dskip{}, dbias{};
    for (int64_t token = last - 1; token >= first; --token) {
        const int64_t k = token - first;
        const Vec<W> u = load<W>(at(s.u, window, token, channel)), z = load<W>(at(s.z, window, token, channel));
        const Vec<W> dy = load<W>(at(g.dy, window, token, channel));
        const Vec<W> gate = sigmoid<W>(z), step = steps[k], drive = step * u;
        const Vec<W> dout = dy * z * gate;
        const float *b = at(s.b, window, token, 0), *c = at(s.c, window, token, 0);
        Vec<W> out = skip * u, ddrive{}, dstep{};
        for (int i = 0; i < kStates; ++i) {
            const Vec<W> decay = load<W>(decays + (k * kStates + i) * W);
            const Vec<W> before = load<W>(states + (k * kStates + i) * W);
            const Vec<W> now = decay * before + drive * b[i];
            out += now * c[i];
            dh[i] += dout * c[i];
            float *bl = b_lanes + (k * kStates + i) * 16, *cl = c_lanes + (k * kStates + i) * 16;
            store<W>(bl, load<W>(bl) + dh[i] * drive);
            store<W>(cl, load<W>(cl) + dout * now);
            ddrive += dh[i] * b[i];
            const Vec<W> dexponent = dh[i] * before * decay;
            dstep += dexponent * rate[i];
            da[i] += dexponent * step;
            dh[i] *= decay;
        }
        const float ln2 = 0.6931471805599453f; /* the rates carry log2(e) */
        const Vec<W> raw = load<W>(at(s.delta, window, token, channel)) + bias;
        const Vec<W> ddelta = (dstep * ln2 + ddrive * u) * sigmoid<W>(raw);
        store<W>(at(g.ddelta, window, token, channel), ddelta);
        store<W>(at(g.du, window, token, channel), dout * skip + ddrive * step);
        store<W>(at(g.dz, window, token, channel), dy * out * gate * (1.0f + z * (1.0f - gate)));
        dskip += dout * u;
        dbias += ddelta;
    }
    store<W>(g.dskip + channel, load<W>(g.dskip + channel) + dskip);
    store<W>(g.ddelta_bias + channel, load<W>(g.ddelta_bias + channel) + dbias);
    for (int i = 0; i < kStates; ++i) {
        store<W>(carry + i * W, dh[i]);
        for (int lane = 0; lane < W; ++lane) g.da[(channel + lane) * kStates + i] += da[i][lane];
    }
}

struct ForwardBlocks {
    const Scan &s;
    int64_t window, first, last; /* blocks of this window to process */
    mutable int64_t block = 0;
    template <int W> void run(int64_t channel) const {
        if (block >= first && block < last) forward_block<W>(s, window, channel);
        ++block;
    }
};

struct BackwardBlocks {
    const Scan &s;
    const ScanGrad &g;
    int64_t window, first, last;
    float *states, *decays, *b_lanes, *c_lanes, *carry;
    template <int W> void run(int64_t channel) const {
        backward_chunk<W>(s, g, window, channel, first, last, states, decays, b_lanes, c_lanes,
                          carry + channel * kStates);
    }
};

struct CountBlocks {
    int64_t &count;
    template <int W> void run(int64_t) const { ++count; }
};

int64_t n_blocks(int64_t n_channels) {
    int64_t count = 0;
    for_blocks(n_channels, CountBlocks{count});
    return count;
}

void scan_forward(const Scan *s, int64_t first_unit, int64_t last_unit) {
    const int64_t per_window = n_blocks(s->n_channels);
    for (int64_t unit = first_unit; unit < last_unit;) {
        const int64_t window = unit / per_window, first = unit % per_window;
        const int64_t wanted = last_unit - unit < per_window - first ? last_unit - unit : per_window - first;
        for_blocks(s->n_channels, ForwardBlocks{*s, window, first, first + wanted});
        unit += wanted;
    }
}

void scan_backward(const Scan *s, const ScanGrad *g, int64_t first_window, int64_t last_window) {
    const int64_t lanes = kChunk * kStates * 16;
    float *states = g->scratch, *decays = states + lanes, *b_lanes = decays + lanes, *c_lanes = b_lanes + lanes;
    float *carry = c_lanes + lanes;
    for (int64_t window = first_window; window < last_window; ++window) {
        for (int64_t i = 0; i < kStates * s->n_channels; ++i) carry[i] = 0;
        for (int64_t chunk = chunks_of(s->n_tokens) - 1; chunk >= 0; --chunk) {
            const int64_t first = chunk * kChunk, end = first + kChunk;
            const int64_t last = end < s->n_tokens ? end : s->n_tokens;
            for (int64_t i = 0; i < 2 * lanes; ++i) b_lanes[i] = 0;
            for_blocks(s->n_channels,
                       BackwardBlocks{*s, *g, window, first, last, states, decays, b_lanes, c_lanes, carry});
            for (int64_t token = first; token < last; ++token) {
                float *db = at(g->db, window, token, 0), *dc = at(g->dc, window, token, 0);
                const float *bl = b_lanes + (token - first) * kStates * 16, *cl = c_lanes + (token - first) * kStates * 16;
                for (int i = 0; i < kStates; ++i) {
                    float b = 0, c = 0;
                    for (int lane = 0; lane < 16; ++lane) b += bl[i * 16 + lane], c += cl[i * 16 + lane];
                    db[i] = b;
                    dc[i] = c;
                }
            }
        }
    }
}

} /* namespace */
