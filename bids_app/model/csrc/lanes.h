/*
 * Vectors of W floats, with the portable vector extension of the compilers, and the vector functions of the kernels.
 * Included by kernels.cpp, once per instruction set.
 */
#pragma once

#include "kernels.h"

#if defined(__AVX512F__)
#include <immintrin.h>
#define MAX_LANES 16
#elif defined(__AVX__)
#define MAX_LANES 8
#else
#define MAX_LANES 4
#endif

#define INLINE inline __attribute__((always_inline))

namespace {

using namespace neurostorm;

/* W floats, aligned as a float because channel blocks may start anywhere. */
template <int W> struct Lanes {
    typedef float F __attribute__((vector_size(4 * W)));
    typedef uint32_t I __attribute__((vector_size(4 * W)));
    typedef float Unaligned __attribute__((vector_size(4 * W), aligned(4)));
};
template <int W> using Vec = typename Lanes<W>::F;

template <int W> INLINE Vec<W> load(const float *p) {
    return *reinterpret_cast<const typename Lanes<W>::Unaligned *>(p);
}
template <int W> INLINE void store(float *p, Vec<W> v) { *reinterpret_cast<typename Lanes<W>::Unaligned *>(p) = v; }
template <int W> INLINE Vec<W> all(float x) { return x - Vec<W>{}; }
template <int W> INLINE Vec<W> larger(Vec<W> a, Vec<W> b) { return a > b ? a : b; }
template <int W> INLINE Vec<W> smaller(Vec<W> a, Vec<W> b) { return a < b ? a : b; }

/* 2^x, relative error below 2e-7; exponents are clamped to -126 and 126. */
template <int W> INLINE Vec<W> exp2_of(Vec<W> x) {
    /* minimax of 2^f on [-0.5, 0.5] with 2^0 = 1 exactly, so that states without decay are unchanged */
    const float p0 = 1.0f, p1 = 0.6931469775989874f, p2 = 0.2402224208537634f, p3 = 0.05550733743476773f,
                p4 = 0.009671512639933474f, p5 = 0.0013264727137316601f;
#if defined(__AVX512DQ__) && defined(__AVX512VL__)
    constexpr int nearest = _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC;
    if constexpr (W == 16) {
        const __m512 whole = _mm512_maskz_roundscale_ps(0xFFFF, (__m512)x, nearest);
        const Vec<W> f = x - (Vec<W>)whole;
        const Vec<W> p = ((((p5 * f + p4) * f + p3) * f + p2) * f + p1) * f + p0;
        return (Vec<W>)_mm512_maskz_scalef_ps(0xFFFF, (__m512)p, whole);
    } else if constexpr (W == 8) {
        const __m256 whole = _mm256_maskz_roundscale_ps(0xFF, (__m256)x, nearest);
        const Vec<W> f = x - (Vec<W>)whole;
        const Vec<W> p = ((((p5 * f + p4) * f + p3) * f + p2) * f + p1) * f + p0;
        return (Vec<W>)_mm256_maskz_scalef_ps(0xFF, (__m256)p, whole);
    }
#endif
    typedef typename Lanes<W>::I I;
    x = smaller<W>(all<W>(126.0f), larger<W>(all<W>(-126.0f), x)); /* this order preserves NaN */
    const float magic = 12582912.0f; /* 1.5 * 2^23: adding it rounds to an integer in the low bits */
    const Vec<W> shifted = x + magic;
    const Vec<W> f = x - (shifted - magic);
    const Vec<W> p = ((((p5 * f + p4) * f + p3) * f + p2) * f + p1) * f + p0;
    return (Vec<W>)((I)p + ((I)shifted << 23));
}

const float kLog2e = 1.4426950408889634f;

template <int W> INLINE Vec<W> sigmoid(Vec<W> x) { return 1.0f / (1.0f + exp2_of<W>(x * -kLog2e)); }

/* log(1 + e^x) = max(x, 0) + log(1 + e^-|x|); the second term as e q(e), accurate for small steps. */
template <int W> INLINE Vec<W> softplus(Vec<W> x) {
    const Vec<W> e = exp2_of<W>(smaller<W>(x, -x) * kLog2e);
    /* minimax of log(1 + e) / e on [0, 1], relative error 3e-8 */
    Vec<W> q = all<W>(0.005232694261436778f);
    q = q * e - 0.02950523876575483f;
    q = q * e + 0.0782259518590001f;
    q = q * e - 0.13663245793189702f;
    q = q * e + 0.19106006760015506f;
    q = q * e - 0.24842982213526577f;
    q = q * e + 0.33319096807542453f;
    q = q * e - 0.4999949314048204f;
    q = q * e + 0.9999999698795629f;
    return larger<W>(Vec<W>{}, x) + e * q;
}

/* x / 2 (1 + erf(x / sqrt 2)), erf by Abramowitz and Stegun 7.1.26: absolute error below 2e-7. */
template <int W> INLINE Vec<W> gelu(Vec<W> x) {
    const Vec<W> a = larger<W>(x, -x) * 0.7071067811865476f;
    const Vec<W> t = 1.0f / (1.0f + 0.3275911f * a);
    const Vec<W> p =
        ((((1.061405429f * t - 1.453152027f) * t + 1.421413741f) * t - 0.284496736f) * t + 0.254829592f) * t;
    const Vec<W> tail = 0.5f * p * exp2_of<W>(a * a * -kLog2e); /* half of 1 - erf(a) */
    return x * (x < Vec<W>{} ? tail : 1.0f - tail);
}

INLINE float *at(const View &v, int64_t window, int64_t token, int64_t channel) {
    return v.data + window * v.window_stride + token * v.token_stride + channel;
}

/* Channels are processed in blocks of 16, 8, 4, 2 or 1, widest first. */
INLINE int block_width(int64_t left) {
    int width = MAX_LANES;
    while (width > left) width /= 2;
    return width;
}

/* Calls `f.template run<W>(channel)` for each block of channels. */
template <class Function> INLINE void for_blocks(int64_t n_channels, const Function &f) {
    for (int64_t channel = 0; channel < n_channels;) {
        const int width = block_width(n_channels - channel);
        switch (width) {
#if MAX_LANES >= 16
        case 16: f.template run<16>(channel); break;
#endif
#if MAX_LANES >= 8
        case 8: f.template run<8>(channel); break;
#endif
        case 4: f.template run<4>(channel); break;
        case 2: f.template run<2>(channel); break;
        default: f.template run<1>(channel); break;
        }
        channel += width;
    }
}

} /* namespace */
