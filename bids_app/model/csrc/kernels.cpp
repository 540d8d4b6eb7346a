/*
 * All kernels for one instruction set: this file is compiled once for each, with ISA set to its name, and
 * dispatch.cpp chooses at run time.
 *
 * This file uses no standard library: the linker could keep its copy of an inline function for the whole library, which
 * would then fail on older processors.
 */
#include "block.h"
#include "conv.h"
#include "linear.h"
#include "merge.h"
#include "patch.h"
#include "scan.h"
#include "spline.h"

#ifndef ISA
#define ISA baseline
#endif
#define TEXT(x) #x
#define QUOTE(x) TEXT(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

namespace neurostorm {
extern const Kernels JOIN(kernels_, ISA);
const Kernels JOIN(kernels_, ISA) = {
    QUOTE(ISA),
    n_blocks,
    scan_forward,
    scan_backward,
    conv_forward,
    conv_backward,
    block_packed_floats,
    block_scratch_floats,
    block_pack,
    block_window,
    block_mlp,
    patch_packed_floats,
    patch_pack,
    patch_forward,
    merge_packed_floats,
    merge_scratch_floats,
    merge_pack,
    merge_forward,
    linear_packed_floats,
    linear_pack,
    linear_forward,
    linear_weight_grad,
    spline_sample,
    add_position,
};
} /* namespace neurostorm */
