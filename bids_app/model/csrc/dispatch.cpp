/*
 * The library's interface: plain C functions, called through ctypes. They select the kernels of the requested
 * instruction set and distribute windows over threads.
 *
 * If the program has already loaded a GNU OpenMP runtime (as torch does), its threads are used: they are running, and a
 * second set would compete for the cores. Otherwise threads are started for each call.
 */
#include "kernels.h"

#include <atomic>
#include <cstring>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

#if defined(_WIN32)
#define EXPORT extern "C" __declspec(dllexport)
#else
#define EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace neurostorm {

extern const Kernels kernels_baseline;
#if defined(NS_X86)
extern const Kernels kernels_avx2;
extern const Kernels kernels_avx512;
#endif

static const Kernels *find(const char *isa) {
#if defined(NS_X86)
    if (!std::strcmp(isa, "avx512"))
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
                       __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512bw") &&
                       __builtin_cpu_supports("fma")
                   ? &kernels_avx512
                   : nullptr;
    if (!std::strcmp(isa, "avx2"))
        return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") ? &kernels_avx2 : nullptr;
#endif
    return std::strcmp(isa, "baseline") ? nullptr : &kernels_baseline;
}

static long own_process() {
#if defined(_WIN32)
    return 0;
#else
    return getpid();
#endif
}

typedef void (*GompParallel)(void (*)(void *), void *, unsigned n_threads, unsigned flags);
static GompParallel gomp_parallel = nullptr;
static long gomp_process = 0; /* threads do not survive a fork: a child starts new ones */

/* Calls `work` on at most n_threads threads; with fewer threads, these must do all of the work. */
static void on_threads(int n_threads, void (*work)(void *), void *data) {
    if (n_threads > 1 && gomp_parallel && gomp_process == own_process()) {
        gomp_parallel(work, data, static_cast<unsigned>(n_threads), 0);
        return;
    }
    std::vector<std::thread> threads;
    try {
        for (int i = 1; i < n_threads; ++i) threads.emplace_back(work, data);
    } catch (const std::system_error &) { /* no more threads available: the existing ones do the rest */
    }
    work(data);
    for (auto &thread : threads) thread.join();
}

/* Runs work(thread, first, last) on contiguous shares of `count` units; the shares are deterministic. */
template <class Work> static void share(int64_t count, int n_threads, const Work &work) {
    struct Shares {
        const Work &work;
        int64_t count;
        int n;
        std::atomic<int> next;
    } shares{work, count, static_cast<int>(n_threads < count ? n_threads : count), {0}};
    if (shares.n < 1) return;
    on_threads(shares.n, [](void *data) {
        auto &s = *static_cast<Shares *>(data);
        for (int i; (i = s.next.fetch_add(1)) < s.n;) s.work(i, s.count * i / s.n, s.count * (i + 1) / s.n);
    }, &shares);
}

/*
 * As share(), but with many small shares and dynamic scheduling, because other processes may use the cores. Only for
 * work without sums over units, whose result does not depend on the schedule.
 */
template <class Work> static void take_turns(int64_t count, int n_threads, const Work &work) {
    const int64_t step = count / (16 * n_threads) + 1;
    std::atomic<int64_t> next{0};
    share(n_threads, n_threads, [&](int thread, int64_t, int64_t) {
        for (int64_t first; (first = next.fetch_add(step)) < count;)
            work(thread, first, first + step < count ? first + step : count);
    });
}

} /* namespace neurostorm */

using namespace neurostorm;

EXPORT int ns_abi_version() { return 6; }

/* Sets the GOMP_parallel of the OpenMP runtime whose threads are used; null: start our own threads. */
EXPORT void ns_use_gomp(void *function) {
    gomp_parallel = reinterpret_cast<GompParallel>(function);
    gomp_process = own_process();
}

/* True if the processor supports the instruction set and this build has its kernels. */
EXPORT int ns_has(const char *isa) { return find(isa) != nullptr; }

EXPORT int64_t ns_scan_scratch_floats(int64_t n_channels) { return scan_scratch_floats(n_channels); }

EXPORT int ns_scan_forward(const char *isa, const Scan *scan, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    const int64_t units = scan->n_windows * kernels->n_blocks(scan->n_channels);
    take_turns(units, n_threads, [&](int, int64_t first, int64_t last) { kernels->scan_forward(scan, first, last); });
    return 0;
}

/* Parameter arrays in `grad`, and its scratch, hold n_threads consecutive copies. */
EXPORT int ns_scan_backward(const char *isa, const Scan *scan, const ScanGrad *grad, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    const int64_t d = scan->n_channels;
    share(scan->n_windows, n_threads, [&](int thread, int64_t first, int64_t last) {
        ScanGrad own = *grad;
        own.da += thread * d * kStates;
        own.dskip += thread * d;
        own.ddelta_bias += thread * d;
        own.scratch += thread * scan_scratch_floats(d);
        kernels->scan_backward(scan, &own, first, last);
    });
    return 0;
}

EXPORT int ns_conv_forward(const char *isa, const Conv *conv, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels || conv->taps > 16) return 1;
    take_turns(conv->n_windows, n_threads,
               [&](int, int64_t first, int64_t last) { kernels->conv_forward(conv, first, last); });
    return 0;
}

/* As ns_scan_backward; scratch holds n_tokens * 16 floats per thread. */
EXPORT int ns_conv_backward(const char *isa, const Conv *conv, const ConvGrad *grad, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels || conv->taps > 16) return 1;
    share(conv->n_windows, n_threads, [&](int thread, int64_t first, int64_t last) {
        ConvGrad own = *grad;
        own.dweight += thread * conv->n_channels * conv->taps;
        own.dbias += thread * conv->n_channels;
        own.scratch += thread * conv->n_tokens * 16;
        kernels->conv_backward(conv, &own, first, last);
    });
    return 0;
}

/* Packed weights, then the scratch of each thread. */
EXPORT int64_t ns_block_workspace_floats(const char *isa, const Block *block, int n_threads) {
    const Kernels *kernels = find(isa);
    return kernels ? kernels->block_packed_floats(block) + n_threads * kernels->block_scratch_floats(block) : -1;
}

EXPORT int ns_block_forward(const char *isa, const Block *block, float *workspace, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels || block->taps > 16) return 1;
    share(n_threads, n_threads,
          [&](int thread, int64_t, int64_t) { kernels->block_pack(block, workspace, thread, n_threads); });
    float *scratch = workspace + kernels->block_packed_floats(block);
    const int64_t own = kernels->block_scratch_floats(block);
    int64_t windows = block->batch, tokens = block->batch;
    for (int axis = 0; axis < 4; ++axis) {
        windows *= block->padded[axis] / block->window[axis];
        tokens *= block->grid[axis];
    }
    /* With few windows, some threads would be idle; the MLP, half of the work, is distributed more finely. */
    const bool together = windows >= 8 * n_threads;
    take_turns(windows, n_threads, [&](int thread, int64_t first, int64_t last) {
        for (int64_t window = first; window < last; ++window)
            kernels->block_window(block, window, workspace, scratch + thread * own, together);
    });
    if (!together) {
        const int64_t tile = 32, tiles = (tokens + tile - 1) / tile;
        take_turns(tiles, n_threads, [&](int thread, int64_t first, int64_t last) {
            const int64_t end = last * tile < tokens ? last * tile : tokens;
            kernels->block_mlp(block, first * tile, end, workspace, scratch + thread * own);
        });
    }
    return 0;
}

EXPORT int64_t ns_patch_workspace_floats(const char *isa, const Patch *patch, int) {
    const Kernels *kernels = find(isa);
    return kernels ? kernels->patch_packed_floats(patch) : -1;
}

EXPORT int ns_patch_forward(const char *isa, const Patch *patch, float *workspace, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    kernels->patch_pack(patch, workspace);
    int64_t patches = patch->batch;
    for (int axis = 0; axis < 3; ++axis) patches *= patch->size[axis] / patch->patch[axis];
    take_turns(patches, n_threads, [&](int, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) kernels->patch_forward(patch, i, workspace);
    });
    return 0;
}

/* Packed weights, then the scratch of each thread. */
EXPORT int64_t ns_merge_workspace_floats(const char *isa, const Merge *merge, int n_threads) {
    const Kernels *kernels = find(isa);
    return kernels ? kernels->merge_packed_floats(merge) + n_threads * kernels->merge_scratch_floats(merge) : -1;
}

EXPORT int ns_merge_forward(const char *isa, const Merge *merge, float *workspace, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    kernels->merge_pack(merge, workspace);
    float *scratch = workspace + kernels->merge_packed_floats(merge);
    const int64_t own = kernels->merge_scratch_floats(merge);
    const int64_t places = merge->batch * (merge->grid[0] / 2) * (merge->grid[1] / 2) * (merge->grid[2] / 2);
    take_turns(places, n_threads, [&](int thread, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) kernels->merge_forward(merge, i, workspace, scratch + thread * own);
    });
    return 0;
}

EXPORT int64_t ns_linear_workspace_floats(const char *isa, const Linear *linear, int) {
    const Kernels *kernels = find(isa);
    return kernels ? kernels->linear_packed_floats(linear) : -1;
}

EXPORT int ns_linear_forward(const char *isa, const Linear *linear, float *workspace, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    share(n_threads, n_threads,
          [&](int thread, int64_t, int64_t) { kernels->linear_pack(linear, workspace, thread, n_threads); });
    const int64_t tile = 64, tiles = (linear->rows + tile - 1) / tile;
    take_turns(tiles, n_threads, [&](int, int64_t first, int64_t last) {
        const int64_t end = last * tile < linear->rows ? last * tile : linear->rows;
        kernels->linear_forward(linear, first * tile, end, workspace);
    });
    return 0;
}

/* dweight holds n_threads consecutive copies. */
EXPORT int ns_linear_weight_grad(const char *isa, const LinearGrad *grad, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    share(grad->rows, n_threads, [&](int thread, int64_t first, int64_t last) {
        LinearGrad own = *grad;
        own.dweight += thread * grad->n_out * grad->n_in;
        kernels->linear_weight_grad(&own, first, last);
    });
    return 0;
}

EXPORT int ns_spline_sample(const char *isa, const Spline *spline, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels || !(spline->order == 1 || (spline->order == 3 && spline->channels == 1))) return 1;
    take_turns(spline->n_points, n_threads,
               [&](int, int64_t first, int64_t last) { kernels->spline_sample(spline, first, last); });
    return 0;
}

/* x (batch, places, volumes, width) += space (places, width) + time (volumes, width) */
EXPORT int ns_add_position(const char *isa, float *x, const float *space, const float *time, int64_t batch,
                           int64_t places, int64_t volumes, int64_t width, int n_threads) {
    const Kernels *kernels = find(isa);
    if (!kernels) return 1;
    take_turns(batch * places, n_threads, [&](int, int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i)
            kernels->add_position(x + i * volumes * width, space + i % places * width, time, volumes, width);
    });
    return 0;
}
