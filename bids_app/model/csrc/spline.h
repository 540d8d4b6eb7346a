/* Splines of an image, cubic or linear, evaluated at points. */
#pragma once

#include "lanes.h"

namespace {

/* Index of a coefficient beyond the border of an axis of `n` voxels, mirrored at the centres of the border voxels. */
INLINE int64_t mirrored(int64_t i, int64_t n) {
    if (n == 1) return 0;
    const int64_t period = 2 * (n - 1);
    i %= period;
    if (i < 0) i += period;
    return i < n ? i : period - i;
}

/* First of the four voxels around a coordinate, and their weights. */
INLINE int64_t spline_weights(double coordinate, float *weights) {
    const double whole = __builtin_floor(coordinate);
    const float t = static_cast<float>(coordinate - whole), s = 1.0f - t;
    weights[0] = s * s * s * (1.0f / 6.0f);
    weights[1] = (4.0f - 3.0f * t * t * (2.0f - t)) * (1.0f / 6.0f);
    weights[2] = (4.0f - 3.0f * s * s * (2.0f - s)) * (1.0f / 6.0f);
    weights[3] = t * t * t * (1.0f / 6.0f);
    return static_cast<int64_t>(whole) - 1;
}

/* Voxel coordinates of a point; false if one is not finite, or too large for an index. */
INLINE bool locate(const Spline &s, int64_t point, double *at) {
    const double *p = s.points + point * s.point_stride, *m = s.matrix;
    const double x = p[0], y = p[s.axis_stride], z = p[2 * s.axis_stride];
    bool finite = true;
    for (int axis = 0; axis < 3; ++axis, m += 4) {
        at[axis] = m[0] * x + m[1] * y + m[2] * z + m[3];
        finite = finite && at[axis] > -1e15 && at[axis] < 1e15;
        if (s.nearest) {
            const double last = static_cast<double>(s.size[axis] - 1);
            at[axis] = at[axis] < 0.0 ? 0.0 : at[axis] > last ? last : at[axis];
        }
    }
    return finite;
}

/* Cubic, with coefficients mirrored at the border. */
INLINE float cubic(const Spline &s, const double *at) {
    float weights[3][4];
    int64_t start[3];
    bool inside = true;
    for (int axis = 0; axis < 3; ++axis) {
        start[axis] = spline_weights(at[axis], weights[axis]);
        inside = inside && start[axis] >= 0 && start[axis] + 4 <= s.size[axis];
    }
    Vec<4> sum{};
    for (int i = 0; i < 4; ++i) {
        const int64_t row = inside ? start[0] + i : mirrored(start[0] + i, s.size[0]);
        for (int j = 0; j < 4; ++j) {
            const int64_t column = inside ? start[1] + j : mirrored(start[1] + j, s.size[1]);
            const float *line = s.values + (row * s.size[1] + column) * s.size[2];
            Vec<4> four{};
            if (inside)
                four = load<4>(line + start[2]);
            else
                for (int k = 0; k < 4; ++k) four[k] = line[mirrored(start[2] + k, s.size[2])];
            sum += four * (weights[0][i] * weights[1][j]);
        }
    }
    sum *= load<4>(weights[2]);
    return (sum[0] + sum[1]) + (sum[2] + sum[3]);
}

/* Linear, with zeros beyond the border. */
INLINE void linear(const Spline &s, const double *at, float *out) {
    int64_t start[3];
    float part[3];
    for (int axis = 0; axis < 3; ++axis) {
        const double whole = __builtin_floor(at[axis]);
        start[axis] = static_cast<int64_t>(whole), part[axis] = static_cast<float>(at[axis] - whole);
    }
    for (int64_t c = 0; c < s.channels; ++c) out[c] = 0.0f;
    for (int corner = 0; corner < 8; ++corner) {
        int64_t place = 0;
        float weight = 1.0f;
        bool inside = true;
        for (int axis = 0; axis < 3; ++axis) {
            const int side = corner >> (2 - axis) & 1;
            const int64_t i = start[axis] + side;
            inside = inside && i >= 0 && i < s.size[axis];
            place = place * s.size[axis] + i;
            weight *= side ? part[axis] : 1.0f - part[axis];
        }
        if (!inside || weight == 0.0f) continue;
        for (int64_t c = 0; c < s.channels; ++c) out[c] += weight * s.values[place * s.channels + c];
    }
}

/* Values at points that are not finite are 0. */
void spline_sample(const Spline *spline, int64_t first, int64_t last) {
    const Spline &s = *spline;
    double at[3];
    for (int64_t point = first; point < last; ++point) {
        float *out = s.out + point * s.channels;
        if (!locate(s, point, at))
            for (int64_t c = 0; c < s.channels; ++c) out[c] = 0.0f;
        else if (s.order == 1)
            linear(s, at, out);
        else
            out[0] = cubic(s, at);
    }
}

} /* namespace */
