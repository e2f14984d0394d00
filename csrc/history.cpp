// Histories beside their row's own item: entries [n, width] of rows that begin at offsets, targets [rows, width].
//
//   unit    both = [e_j, e_j * v_b]                    what DIN's activation unit reads of entry j of row b
//   spread  to_j += row_b                              what is computed once a row
//   pool    out_b = sum_j a_j e_j
//
// and backwards. A plain C interface over raw pointers, called through ctypes by src/funnelrank/nn/history.py, which
// owns every buffer. A row's entries are summed in their order, so results do not depend on the number of threads.

#include <cstdint>

#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace {

struct Work {
    int64_t rows, width, threads;
    const int64_t *offset;           // [rows + 1], from 0
    const float *e, *v;              // [n, width], [rows, width]
    float *both;                     // [n, 2 width]; backward reads its gradient
    float *de, *dv;
    const float *weight;             // [n]
    float *out;                      // [rows, width]
    const float *g;                  // [rows, width] the gradient of out
    float *dweight;                  // [n]
};

CLONES void unit_rows(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++)
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++) {
            const float *e = w.e + j * D, *v = w.v + b * D;
            float *__restrict to = w.both + 2 * j * D;
            for (int64_t d = 0; d < D; d++) to[d] = e[d], to[D + d] = e[d] * v[d];
        }
}

CLONES void unit_rows_back(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++) {
        const float *v = w.v + b * D;
        float *__restrict dv = w.dv + b * D;
        for (int64_t d = 0; d < D; d++) dv[d] = 0;
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++) {
            const float *e = w.e + j * D, *g = w.both + 2 * j * D;
            float *__restrict de = w.de + j * D;
            for (int64_t d = 0; d < D; d++) {
                de[d] = g[d] + g[D + d] * v[d];
                dv[d] += g[D + d] * e[d];
            }
        }
    }
}

CLONES void spread_rows(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++)
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++) {
            const float *row = w.v + b * D;
            float *__restrict to = w.both + j * D;
            for (int64_t d = 0; d < D; d++) to[d] += row[d];
        }
}

CLONES void spread_rows_back(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++) {
        float *__restrict dv = w.dv + b * D;
        for (int64_t d = 0; d < D; d++) dv[d] = 0;
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++)
            for (int64_t d = 0; d < D; d++) dv[d] += w.both[j * D + d];
    }
}

CLONES void pool_rows(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++) {
        float *__restrict out = w.out + b * D;
        for (int64_t d = 0; d < D; d++) out[d] = 0;
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++)
            for (int64_t d = 0; d < D; d++) out[d] += w.weight[j] * w.e[j * D + d];
    }
}

CLONES void pool_rows_back(const Work &w, int64_t low, int64_t high) {
    const int64_t D = w.width;
    for (int64_t b = low; b < high; b++)
        for (int64_t j = w.offset[b]; j < w.offset[b + 1]; j++) {
            const float *e = w.e + j * D, *g = w.g + b * D;
            const float weight = w.weight[j];
            float *__restrict de = w.de + j * D;
            float lane[16] = {}, sum = 0;
            int64_t d = 0;
            for (; d + 16 <= D; d += 16)
                for (int k = 0; k < 16; k++) lane[k] += g[d + k] * e[d + k];
            for (int k = 0; k < 16; k++) sum += lane[k];
            for (; d < D; d++) sum += g[d] * e[d];
            w.dweight[j] = sum;
            for (d = 0; d < D; d++) de[d] = weight * g[d];
        }
}

}  // namespace

using threads::share_out;

EXPORT void unit_forward(const Work *w) { share_out<Work, unit_rows>(*w); }

EXPORT void unit_backward(const Work *w) { share_out<Work, unit_rows_back>(*w); }

EXPORT void spread_forward(const Work *w) { share_out<Work, spread_rows>(*w); }

EXPORT void spread_backward(const Work *w) { share_out<Work, spread_rows_back>(*w); }

EXPORT void pool_forward(const Work *w) { share_out<Work, pool_rows>(*w); }

EXPORT void pool_backward(const Work *w) { share_out<Work, pool_rows_back>(*w); }
