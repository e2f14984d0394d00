// Batch normalisation of [rows, width] over its rows, with the ReLU behind it, and Dice, forward and backward.
//
// A plain C interface over raw pointers, called through ctypes by src/funnelrank/nn/norm.py and activation.py, which own
// every buffer. A column's sums have one order whatever the number of threads: each thread has columns of its own.
// Chunks of rows that a core's own cache holds are summed in float, chunks together in double.
//
// Rows that are no whole number of vectors are walked through several at a time, as one long row: of 36 columns, 4 rows
// are 9 vectors, where each by itself would be 2 and a rest of 4 single numbers, which takes as long again.

#include <cmath>
#include <cstdint>
#include <numeric>

#include "power.h"
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
constexpr int64_t MOST = 4 * LANES;  // numbers of rows that are walked through together
constexpr int64_t VECTOR = 16;

struct Norm {
    int64_t rows, width, relu, threads;
    const float *x;                  // [rows, width]
    const float *weight, *bias;      // [width]; Dice's weight is its alpha, and it has no bias
    float *mean, *rstd;              // [width]: forward writes, backward reads
    float *variance;                 // [width] forward only: of the batch, divided by rows
    float *y;                        // [rows, width] forward only
    const float *g;                  // [rows, width] backward only: gradient of y
    float *dx;                       // [rows, width]
    float *dweight, *dbias;          // [width]
    double eps;
};

// A block's numbers per column, repeated for each row that is walked through with it; unused lanes hold zeros.
struct Lanes {
    float at[MOST];
};

// `count` columns from `low` on, `together` rows at a time: `steps` walks of `lanes` numbers, the last one of `rest`.
struct Block {
    int64_t low, count, together, steps, lanes, rest, stride;

    Block(const Norm &n, int64_t low, int64_t count) : low(low), count(count), together(1) {
        const int64_t rows = VECTOR / std::gcd(count, VECTOR);
        if (count == n.width && rows * count <= MOST) together = rows;
        steps = (n.rows + together - 1) / together, lanes = together * count, stride = together * n.width;
        rest = (n.rows - (steps - 1) * together) * count;
    }

    int64_t end(int64_t step) const { return step + 1 < steps ? lanes : rest; }

    template <class Number>
    void spread(Number *at) const {              // the columns' numbers to all lanes
        for (int64_t c = count; c < lanes; c++) at[c] = at[c - count];
    }

    void gather(double *at) const {              // the lanes' sums to their columns
        for (int64_t c = count; c < lanes; c++) at[c % count] += at[c];
    }
};

// Means, variances and 1 / deviations of a block's columns.
inline __attribute__((always_inline)) void measure(const Norm &n, const Block &k) {
    double mean[MOST] = {}, spread[MOST] = {};
    for (int64_t start = 0; start < k.steps; start += CHUNK) {
        // a last walk that is not whole stands by itself, since its lanes are not all there
        int64_t end = start + CHUNK < k.steps ? start + CHUNK : k.steps;
        if (end == k.steps && k.rest < k.lanes && end - start > 1) end--;
        const int64_t size = end - start, lanes = k.end(end - 1);
        Lanes sum{}, square{};
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * k.stride + k.low;
            for (int64_t c = 0; c < lanes; c++) sum.at[c] += x[c];
        }
        for (int64_t c = 0; c < lanes; c++) sum.at[c] /= static_cast<float>(size);
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * k.stride + k.low;
            for (int64_t c = 0; c < lanes; c++) {
                const float d = x[c] - sum.at[c];
                square.at[c] += d * d;
            }
        }
        // two sets of rows together: Chan, Golub and LeVeque (1979)
        const double total = static_cast<double>(end), share = static_cast<double>(size) / total;
        for (int64_t c = 0; c < lanes; c++) {
            const double d = sum.at[c] - mean[c];
            mean[c] += d * share;
            spread[c] += square.at[c] + d * d * static_cast<double>(start) * share;
        }
        if (end < start + CHUNK && end < k.steps) start = end - CHUNK;
    }
    for (int64_t c = 0; c < k.count; c++) {
        double rows = static_cast<double>(k.steps - (c >= k.rest)), m = mean[c], s = spread[c];
        for (int64_t lane = c + k.count; lane < k.lanes; lane += k.count) {
            const double more = static_cast<double>(k.steps - (lane >= k.rest)), d = mean[lane] - m;
            if (more == 0) continue;
            s += spread[lane] + d * d * rows * more / (rows + more);
            m += d * more / (rows + more);
            rows += more;
        }
        const double variance = s / rows;
        n.mean[k.low + c] = static_cast<float>(m);
        n.rstd[k.low + c] = static_cast<float>(1 / std::sqrt(variance + n.eps));
        n.variance[k.low + c] = static_cast<float>(variance);
    }
}

CLONES void forward_block(const Norm &n, int64_t low, int64_t count) {
    const Block k(n, low, count);
    measure(n, k);
    Lanes scale{}, shift{};
    for (int64_t c = 0; c < count; c++) {
        scale.at[c] = n.rstd[low + c] * n.weight[low + c];
        shift.at[c] = n.bias[low + c] - n.mean[low + c] * scale.at[c];
    }
    k.spread(scale.at), k.spread(shift.at);
    const float floor = n.relu ? 0.0f : -INFINITY;
    for (int64_t b = 0; b < k.steps; b++) {
        const float *x = n.x + b * k.stride + low;
        float *y = n.y + b * k.stride + low;
        const int64_t lanes = k.end(b);
        for (int64_t c = 0; c < lanes; c++) {
            const float v = x[c] * scale.at[c] + shift.at[c];
            y[c] = v < floor ? floor : v;                    // NaN stays NaN
        }
    }
}

CLONES void backward_block(const Norm &n, int64_t low, int64_t count) {
    const Block k(n, low, count);
    double whole[MOST] = {}, along[MOST] = {};
    Lanes scale{}, shift{}, mean{}, rstd{};
    for (int64_t c = 0; c < count; c++) {
        mean.at[c] = n.mean[low + c], rstd.at[c] = n.rstd[low + c];
        scale.at[c] = rstd.at[c] * n.weight[low + c];
        shift.at[c] = n.bias[low + c] - mean.at[c] * scale.at[c];
    }
    k.spread(mean.at), k.spread(rstd.at), k.spread(scale.at), k.spread(shift.at);
    const float floor = n.relu ? 0.0f : -INFINITY;
    for (int64_t start = 0; start < k.steps; start += CHUNK) {
        const int64_t end = start + CHUNK < k.steps ? start + CHUNK : k.steps;
        Lanes sum{}, product{};
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * k.stride + low, *g = n.g + b * k.stride + low;
            const int64_t lanes = k.end(b);
            for (int64_t c = 0; c < lanes; c++) {
                const float v = x[c] * scale.at[c] + shift.at[c], kept = v > floor ? g[c] : 0.0f;
                sum.at[c] += kept;
                product.at[c] += kept * ((x[c] - mean.at[c]) * rstd.at[c]);
            }
        }
        for (int64_t c = 0; c < k.lanes; c++) whole[c] += sum.at[c], along[c] += product.at[c];
    }
    k.gather(whole), k.gather(along);
    Lanes first{}, second{};
    for (int64_t c = 0; c < count; c++) {
        n.dbias[low + c] = static_cast<float>(whole[c]);
        n.dweight[low + c] = static_cast<float>(along[c]);
        first.at[c] = static_cast<float>(whole[c] / static_cast<double>(n.rows));
        second.at[c] = static_cast<float>(along[c] / static_cast<double>(n.rows));
    }
    k.spread(first.at), k.spread(second.at);
    for (int64_t b = 0; b < k.steps; b++) {
        const float *x = n.x + b * k.stride + low, *g = n.g + b * k.stride + low;
        float *dx = n.dx + b * k.stride + low;
        const int64_t lanes = k.end(b);
        for (int64_t c = 0; c < lanes; c++) {
            const float v = x[c] * scale.at[c] + shift.at[c], kept = v > floor ? g[c] : 0.0f;
            dx[c] = scale.at[c] * (kept - first.at[c] - (x[c] - mean.at[c]) * rstd.at[c] * second.at[c]);
        }
    }
}

// 1 / (1 + e^-z)
inline float sigmoid(float z) {
    const float e = power(z < 0 ? z : -z);
    return (z < 0 ? e : 1.0f) / (1.0f + e);
}

// y = p x + (1 - p) alpha x,  p = sigmoid((x - mean) rstd)
CLONES void dice_block(const Norm &n, int64_t low, int64_t count) {
    const Block k(n, low, count);
    measure(n, k);
    Lanes mean{}, rstd{}, alpha{};
    for (int64_t c = 0; c < count; c++)
        mean.at[c] = n.mean[low + c], rstd.at[c] = n.rstd[low + c], alpha.at[c] = n.weight[low + c];
    k.spread(mean.at), k.spread(rstd.at), k.spread(alpha.at);
    for (int64_t b = 0; b < k.steps; b++) {
        const float *x = n.x + b * k.stride + low;
        float *__restrict y = n.y + b * k.stride + low;
        const int64_t lanes = k.end(b);
        for (int64_t c = 0; c < lanes; c++) {
            const float p = sigmoid((x[c] - mean.at[c]) * rstd.at[c]);
            y[c] = x[c] * (p + (1 - p) * alpha.at[c]);
        }
    }
}

// With z = (x - mean) rstd and q = g x (1 - alpha) p (1 - p), the gradient of z:
// dx = g (p + (1 - p) alpha) + rstd (q - mean(q) - z mean(q z)),  dalpha = sum g (1 - p) x
CLONES void dice_block_back(const Norm &n, int64_t low, int64_t count) {
    const Block k(n, low, count);
    double whole[MOST] = {}, along[MOST] = {}, slope[MOST] = {};
    Lanes mean{}, rstd{}, alpha{};
    for (int64_t c = 0; c < count; c++)
        mean.at[c] = n.mean[low + c], rstd.at[c] = n.rstd[low + c], alpha.at[c] = n.weight[low + c];
    k.spread(mean.at), k.spread(rstd.at), k.spread(alpha.at);
    for (int64_t start = 0; start < k.steps; start += CHUNK) {
        const int64_t end = start + CHUNK < k.steps ? start + CHUNK : k.steps;
        Lanes sum{}, product{}, turn{};
        for (int64_t b = start; b < end; b++) {
            const float *x = n.x + b * k.stride + low, *g = n.g + b * k.stride + low;
            const int64_t lanes = k.end(b);
            for (int64_t c = 0; c < lanes; c++) {
                const float z = (x[c] - mean.at[c]) * rstd.at[c], p = sigmoid(z), rest = (1 - p) * (g[c] * x[c]);
                const float q = rest * p * (1 - alpha.at[c]);
                sum.at[c] += q;
                product.at[c] += q * z;
                turn.at[c] += rest;
            }
        }
        for (int64_t c = 0; c < k.lanes; c++)
            whole[c] += sum.at[c], along[c] += product.at[c], slope[c] += turn.at[c];
    }
    k.gather(whole), k.gather(along), k.gather(slope);
    Lanes first{}, second{};
    for (int64_t c = 0; c < count; c++) {
        n.dweight[low + c] = static_cast<float>(slope[c]);
        first.at[c] = static_cast<float>(whole[c] / static_cast<double>(n.rows));
        second.at[c] = static_cast<float>(along[c] / static_cast<double>(n.rows));
    }
    k.spread(first.at), k.spread(second.at);
    for (int64_t b = 0; b < k.steps; b++) {
        const float *x = n.x + b * k.stride + low, *g = n.g + b * k.stride + low;
        float *__restrict dx = n.dx + b * k.stride + low;
        const int64_t lanes = k.end(b);
        for (int64_t c = 0; c < lanes; c++) {
            const float z = (x[c] - mean.at[c]) * rstd.at[c], p = sigmoid(z), rest = (1 - p) * g[c];
            const float q = rest * x[c] * p * (1 - alpha.at[c]);
            dx[c] = g[c] * p + rest * alpha.at[c] + rstd.at[c] * (q - first.at[c] - z * second.at[c]);
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

EXPORT void dice_forward(const Norm *n) { run_blocks<dice_block>(*n); }

EXPORT void dice_backward(const Norm *n) { run_blocks<dice_block_back>(*n); }
