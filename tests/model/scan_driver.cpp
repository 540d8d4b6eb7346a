/* Runs the scan's kernels outside of Python, for processors that are not here: floats in from a file, floats out. */
#include "kernels.h"

#include <cstdio>
#include <cstdlib>
#include <vector>

using namespace neurostorm;
extern "C" int ns_scan_forward(const char *, const Scan *, int);
extern "C" int ns_scan_backward(const char *, const Scan *, const ScanGrad *, int);

int main(int, char **argv) {
    const int64_t n = std::atoi(argv[3]), length = std::atoi(argv[4]), d = std::atoi(argv[5]);
    const int64_t rows = n * length * d, cells = n * length * kStates, chunks = (length + kChunk - 1) / kChunk;
    const int threads = 2;
    std::FILE *in = std::fopen(argv[1], "rb"), *out = std::fopen(argv[2], "wb");
    const auto read = [&](int64_t count) {
        std::vector<float> v(count);
        if (std::fread(v.data(), 4, count, in) != static_cast<size_t>(count)) std::exit(2);
        return v;
    };
    auto u = read(rows), delta = read(rows), a = read(d * kStates), b = read(cells), c = read(cells), skip = read(d);
    auto z = read(rows), bias = read(d), dy = read(rows);
    std::vector<float> y(rows), du(rows), ddelta(rows), dz(rows), db(cells), dc(cells), saved(n * chunks * d * kStates);
    std::vector<float> da(threads * d * kStates), dskip(threads * d), dbias(threads * d);
    std::vector<float> scratch(threads * scan_scratch_floats(d));
    const auto wide = [&](std::vector<float> &v) { return View{v.data(), length * d, d}; };
    const auto narrow = [&](std::vector<float> &v) { return View{v.data(), length * kStates, kStates}; };
    Scan scan{n,          length,    d,           wide(u),      wide(delta), narrow(b),   narrow(c),
              wide(z),    wide(y),   a.data(),    skip.data(),  bias.data(), saved.data()};
    ScanGrad grad{wide(dy),  wide(du),     wide(ddelta), narrow(db),   narrow(dc),
                  wide(dz),  da.data(),    dskip.data(), dbias.data(), scratch.data()};
    if (ns_scan_forward("baseline", &scan, threads) || ns_scan_backward("baseline", &scan, &grad, threads)) return 3;
    const auto add = [&](std::vector<float> &v) {
        for (size_t i = 0; i < v.size() / threads; ++i) v[i] += v[i + v.size() / threads];
        v.resize(v.size() / threads);
    };
    add(da), add(dskip), add(dbias);
    for (const auto *v : {&y, &du, &ddelta, &da, &db, &dc, &dskip, &dz, &dbias}) std::fwrite(v->data(), 4, v->size(), out);
    return std::fclose(out);
}
