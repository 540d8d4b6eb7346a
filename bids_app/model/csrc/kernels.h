/* Interface of the dispatcher and the kernels, which are compiled per instruction set. Plain C types only. */
#pragma once

#include <cstdint>

namespace neurostorm {

constexpr int64_t kStates = 16; /* the only supported number of states */
constexpr int64_t kChunk = 16;  /* tokens between two saved states */

/* A float32 array (n_windows, n_tokens, last) whose last axis is contiguous. */
struct View {
    float *data;
    int64_t window_stride, token_stride; /* in floats */
};

/* The arrays of the scan; see selective_scan in scan.py. */
struct Scan {
    int64_t n_windows, n_tokens, n_channels;
    View u, delta, b, c, z, y;
    const float *a;          /* (channels, 16) */
    const float *skip;       /* (channels) */
    const float *delta_bias; /* (channels) */
    float *saved;            /* states at the start of each chunk (windows, chunks, channels * 16), or null */
};

/* The gradients of the scan. Gradients of parameters have one copy per thread, summed by the caller. */
struct ScanGrad {
    View dy, du, ddelta, db, dc, dz;
    float *da, *dskip, *ddelta_bias; /* this thread's (channels, 16), (channels), (channels) */
    float *scratch;                  /* this thread's, scan_scratch_floats(n_channels) */
};

/* Causal depthwise convolution of `taps` tokens, then SiLU. */
struct Conv {
    int64_t n_windows, n_tokens, n_channels, taps;
    View x, y;
    const float *weight; /* (channels, taps) */
    const float *bias;   /* (channels) */
};

struct ConvGrad {
    View dy, dx;
    float *dweight, *dbias; /* this thread's (channels, taps), (channels) */
    float *scratch;         /* this thread's, n_tokens * 16 */
};

/* A block of the encoder; see Block in encoder.py. Weights in torch's layout, contiguous. */
struct Block {
    int64_t grid[4], window[4], shift[4], padded[4]; /* tokens along x, y, z, t */
    int64_t batch, width, inner, rank, taps, hidden, n_prompts;
    const float *x; /* (batch, grid, width) */
    float *y;
    const float *prompts; /* (n_prompts, width) */
    const float *norm1_weight, *norm1_bias, *in_proj, *conv_weight, *conv_bias, *x_proj, *dt_proj, *delta_bias, *a_log,
        *skip, *out_proj, *norm2_weight, *norm2_bias, *linear1, *bias1, *linear2, *bias2;
};

/* The patch embedding; see PatchEmbed. One channel, and patches of one volume. */
struct Patch {
    int64_t size[4], patch[3]; /* voxels of a clip along x, y, z and its volumes; of a patch */
    int64_t batch, width;
    const float *x; /* (batch, size) */
    float *y;       /* (batch, patches along x, y, z, volumes, width) */
    const float *weight, *bias;
};

/* Merging; see PatchMerging. Grid and width are those of its input. */
struct Merge {
    int64_t grid[4];
    int64_t batch, width;
    const float *x; /* (batch, grid, width) */
    float *y;       /* (batch, half the grid in space, 2 * width) */
    const float *norm_weight, *norm_bias, *reduction;
};

/* A linear layer: y = x weight^T + bias. Rows of y have at least n_out rounded up to a multiple of four floats. */
struct Linear {
    int64_t rows, n_in, n_out, x_stride, y_stride; /* strides of rows, in floats */
    const float *x, *weight, *bias;                /* weight (n_out, n_in); bias (n_out), or null */
    float *y;
};

/* The gradient of its weight: dweight (n_out, n_in), one copy per thread, summed by the caller. */
struct LinearGrad {
    int64_t rows, n_in, n_out, x_stride, dy_stride;
    const float *x, *dy;
    float *dweight;
};

/* A spline of order 1 or 3 at points that `matrix` maps to voxels; see spline.h. Order 3 has one channel. With `nearest`,
 * points beyond the border have the values of the border. */
struct Spline {
    int64_t size[3], channels, order, nearest, n_points;
    int64_t point_stride, axis_stride; /* of points, in doubles */
    double matrix[12];                 /* (3, 4) */
    const float *values;               /* (size, channels): voxels, or coefficients of order 3 */
    const double *points;
    float *out; /* (n_points, channels) */
};

/* The kernels of one instruction set. Units are channel blocks for scan_forward, otherwise windows or patches. */
struct Kernels {
    const char *name;
    int64_t (*n_blocks)(int64_t n_channels);
    void (*scan_forward)(const Scan *, int64_t first_unit, int64_t last_unit);
    void (*scan_backward)(const Scan *, const ScanGrad *, int64_t first_window, int64_t last_window);
    void (*conv_forward)(const Conv *, int64_t first_window, int64_t last_window);
    void (*conv_backward)(const Conv *, const ConvGrad *, int64_t first_window, int64_t last_window);
    int64_t (*block_packed_floats)(const Block *);
    int64_t (*block_scratch_floats)(const Block *);
    void (*block_pack)(const Block *, float *packed, int share, int n_shares);
    void (*block_window)(const Block *, int64_t window, const float *packed, float *scratch, bool with_mlp);
    void (*block_mlp)(const Block *, int64_t first_token, int64_t last_token, const float *packed, float *scratch);
    int64_t (*patch_packed_floats)(const Patch *);
    void (*patch_pack)(const Patch *, float *packed);
    void (*patch_forward)(const Patch *, int64_t patch, const float *packed);
    int64_t (*merge_packed_floats)(const Merge *);
    int64_t (*merge_scratch_floats)(const Merge *);
    void (*merge_pack)(const Merge *, float *packed);
    void (*merge_forward)(const Merge *, int64_t place, const float *packed, float *scratch);
    int64_t (*linear_packed_floats)(const Linear *);
    void (*linear_pack)(const Linear *, float *packed, int share, int n_shares);
    void (*linear_forward)(const Linear *, int64_t first_row, int64_t last_row, const float *packed);
    void (*linear_weight_grad)(const LinearGrad *, int64_t first_row, int64_t last_row);
    void (*spline_sample)(const Spline *, int64_t first_point, int64_t last_point);
    void (*add_position)(float *x, const float *place, const float *time, int64_t volumes, int64_t width);
};

inline int64_t scan_scratch_floats(int64_t n_channels) {
    /* states and decays of a chunk, gradients of B and C by lane, carried gradient of the states */
    return 4 * kChunk * kStates * 16 + kStates * n_channels;
}

} /* namespace neurostorm */
