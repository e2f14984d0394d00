// Batch normalisation of [rows, width] over its rows, with the ReLU behind it, forward and backward.
//
// A plain C interface over raw pointers, called through ctypes by src/funnelrank/nn/norm.py, which owns every buffer.
// A column's sums have one order whatever the number of threads: each thread has columns of its own. Chunks of rows that
// a core's own cache holds are summed in float, chunks together in double.

#include <cmath>
#include <cstdint>

#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(ROWS_PORTABLE)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace {

constexpr int64_t CHUNK = 64;        // rows summed in float
constexpr int64_t LANES = 64;        // columns worked on together

struct Norm {
    int64_t rows, width, relu, threads;
    const float *x;                  // [rows, width]
    const float *weight, *bias;      // [width]
    float *mean, *rstd;              // [width]: forward writes, backward reads
    float *variance;                 // [width] forward only: of the batch, divided by rows
    float *y;                        // [rows, width] forward only
    const float *g;                  // [rows, width] backward only: gradient of y
    float *dx;                       // [rows, width]
    float *dweight, *dbias;          // [width]
    double eps;
};

// A block's numbers per column, on the stack; unused lanes hold zeros.
struct Lanes {
    float at[LANES];
};

CLONES void forward_block(const Norm &n, int64_t low, int64_t count) {
    double mean[LANES] = {}, spread[LANES] = {};
    for (int64_t start = 0; start < n.rows; start += CHUNK) {
        const int64_t end = start + CHUNK < n.rows ? start + CHUNK : n.rows, size = end - start;
        Lanes sum{}, square{};
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * n.width + low;
            for (int64_t c = 0; c < count; c++) sum.at[c] += x[c];
        }
        for (int64_t c = 0; c < count; c++) sum.at[c] /= static_cast<float>(size);
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * n.width + low;
            for (int64_t c = 0; c < count; c++) {
                const float d = x[c] - sum.at[c];
                square.at[c] += d * d;
            }
        }
        // two sets of rows together: Chan, Golub and LeVeque (1979)
        const double total = static_cast<double>(end), share = static_cast<double>(size) / total;
        for (int64_t c = 0; c < count; c++) {
            const double d = sum.at[c] - mean[c];
            mean[c] += d * share;
            spread[c] += square.at[c] + d * d * static_cast<double>(start) * share;
        }
    }
    Lanes scale{}, shift{};
    for (int64_t c = 0; c < count; c++) {
        const double variance = spread[c] / static_cast<double>(n.rows), rstd = 1 / std::sqrt(variance + n.eps);
        n.mean[low + c] = static_cast<float>(mean[c]);
        n.rstd[low + c] = static_cast<float>(rstd);
        n.variance[low + c] = static_cast<float>(variance);
        scale.at[c] = n.rstd[low + c] * n.weight[low + c];
        shift.at[c] = n.bias[low + c] - n.mean[low + c] * scale.at[c];
    }
    const float floor = n.relu ? 0.0f : -INFINITY;
    for (int64_t b = 0; b < n.rows; b++) {
        const float *x = n.x + b * n.width + low;
        float *y = n.y + b * n.width + low;
        for (int64_t c = 0; c < count; c++) {
            const float v = x[c] * scale.at[c] + shift.at[c];
            y[c] = v < floor ? floor : v;                    // NaN stays NaN
        }
    }
}

CLONES void backward_block(const Norm &n, int64_t low, int64_t count) {
    double whole[LANES] = {}, along[LANES] = {};
    Lanes scale{}, shift{}, mean{}, rstd{};
    for (int64_t c = 0; c < count; c++) {
        mean.at[c] = n.mean[low + c], rstd.at[c] = n.rstd[low + c];
        scale.at[c] = rstd.at[c] * n.weight[low + c];
        shift.at[c] = n.bias[low + c] - mean.at[c] * scale.at[c];
    }
    const float floor = n.relu ? 0.0f : -INFINITY;
    for (int64_t start = 0; start < n.rows; start += CHUNK) {
        const int64_t end = start + CHUNK < n.rows ? start + CHUNK : n.rows;
        Lanes sum{}, product{};
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * n.width + low, *g = n.g + b * n.width + low;
            for (int64_t c = 0; c < count; c++) {
                const float v = x[c] * scale.at[c] + shift.at[c], kept = v > floor ? g[c] : 0.0f;
                sum.at[c] += kept;
                product.at[c] += kept * ((x[c] - mean.at[c]) * rstd.at[c]);
            }
        }
        for (int64_t c = 0; c < count; c++) whole[c] += sum.at[c], along[c] += product.at[c];
    }
    Lanes first{}, second{};
    for (int64_t c = 0; c < count; c++) {
        n.dbias[low + c] = static_cast<float>(whole[c]);
        n.dweight[low + c] = static_cast<float>(along[c]);
        first.at[c] = static_cast<float>(whole[c] / static_cast<double>(n.rows));
        second.at[c] = static_cast<float>(along[c] / static_cast<double>(n.rows));
    }
    for (int64_t b = 0; b < n.rows; b++) {
        const float *x = n.x + b * n.width + low, *g = n.g + b * n.width + low;
        float *dx = n.dx + b * n.width + low;
        for (int64_t c = 0; c < count; c++) {
            const float v = x[c] * scale.at[c] + shift.at[c], kept = v > floor ? g[c] : 0.0f;
            dx[c] = scale.at[c] * (kept - first.at[c] - (x[c] - mean.at[c]) * rstd.at[c] * second.at[c]);
        }
    }
}

template <void (*BLOCK)(const Norm &, int64_t, int64_t)>
void run_blocks(const Norm &n) {
    const int64_t blocks = (n.width + LANES - 1) / LANES, shares = blocks < n.threads ? blocks : n.threads;
    struct Job { const Norm *n; int64_t blocks, shares; } all{&n, blocks, shares};
    threads::run(shares, [](void *argument, int64_t t) {
        const Job &job = *static_cast<Job *>(argument);
        for (int64_t k = job.blocks * t / job.shares; k < job.blocks * (t + 1) / job.shares; k++) {
            const int64_t low = k * LANES, left = job.n->width - low;
            BLOCK(*job.n, low, left < LANES ? left : LANES);
        }
    }, &all);
}

}  // namespace

EXPORT void norm_forward(const Norm *n) { run_blocks<forward_block>(*n); }

EXPORT void norm_backward(const Norm *n) { run_blocks<backward_block>(*n); }
