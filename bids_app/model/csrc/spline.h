/* Cubic B-splines of an image, evaluated at points. */
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

void spline_sample(const Spline *spline, int64_t first, int64_t last) {
    const Spline &s = *spline;
    const double *m = s.matrix;
    for (int64_t point = first; point < last; ++point) {
        const double *p = s.points + point * s.point_stride;
        const double x = p[0], y = p[s.axis_stride], z = p[2 * s.axis_stride];
        float weights[3][4];
        int64_t start[3];
        bool finite = true;
        for (int axis = 0; axis < 3; ++axis) {
            const double at = m[4 * axis] * x + m[4 * axis + 1] * y + m[4 * axis + 2] * z + m[4 * axis + 3];
            finite = finite && at > -1e15 && at < 1e15;
            if (finite) start[axis] = spline_weights(at, weights[axis]);
        }
        if (!finite) {
            s.out[point] = 0.0f;
            continue;
        }
        const bool inside = start[0] >= 0 && start[1] >= 0 && start[2] >= 0 && start[0] + 4 <= s.size[0] &&
                            start[1] + 4 <= s.size[1] && start[2] + 4 <= s.size[2];
        Vec<4> sum{};
        for (int i = 0; i < 4; ++i) {
            const int64_t row = inside ? start[0] + i : mirrored(start[0] + i, s.size[0]);
            for (int j = 0; j < 4; ++j) {
                const int64_t column = inside ? start[1] + j : mirrored(start[1] + j, s.size[1]);
                const float *line = s.coefficients + (row * s.size[1] + column) * s.size[2];
                Vec<4> values{};
                if (inside)
                    values = load<4>(line + start[2]);
                else
                    for (int k = 0; k < 4; ++k) values[k] = line[mirrored(start[2] + k, s.size[2])];
                sum += values * (weights[0][i] * weights[1][j]);
            }
        }
        sum *= load<4>(weights[2]);
        s.out[point] = (sum[0] + sum[1]) + (sum[2] + sum[3]);
    }
}

} /* namespace */
