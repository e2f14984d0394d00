// Small layers one behind another: product, batch norm over the rows, ReLU, forward and backward, each as one call.
//
// A layer may be n of them side by side, each with columns of its own. torch walks through the rows several times for
// every one of them, and asks its libraries for products that are too small to pay for the asking; here a block of rows
// stays in a core's own cache from one layer's norm to the next one's product.
//
// A plain C interface over raw pointers, called through ctypes by src/funnelrank/nn/small.py, which owns what is kept.
// Rows are cut into parts by their number alone, and parts are summed in their order, so that a result depends neither
// on the number of threads nor on the processor's instructions.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__) && !defined(ROWS_PORTABLE)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif
#define INLINE inline __attribute__((always_inline))

namespace {

constexpr int64_t BLOCK = 128;       // rows worked on together
constexpr int64_t PARTS = 64;        // of all rows, at most
constexpr int64_t MOST = 256;        // columns of a layer, on either side
constexpr int64_t LANES = 16;
constexpr int64_t TALL = 8;          // sums of LANES that stay in registers
constexpr int64_t WIDE = MOST + LANES;                             // of a row in a block, with room to read beyond it

typedef float v16 __attribute__((vector_size(64)));

struct Layer {
    int64_t stack, in, out, norm, relu;
    const float *weight, *bias;      // [stack, out, in], [stack, out]; no weight: what comes in goes on to the norm
    const float *gain, *shift;       // [stack * out], of the norm
    float *running_mean, *running_var;   // forward moves them
    float *z;                        // [rows, stack * out], before the norm; without one, behind the ReLU
    float *mean, *rstd;              // [stack * out] of these rows: forward writes, backward reads
    float *g;                        // [rows, stack * out] backward: the gradient of what the layer gives
    float *dweight, *dbias, *dgain, *dshift;
    double momentum, eps;

    int64_t width() const { return stack * out; }
    int64_t before() const { return stack * in; }
};

struct Small {
    int64_t rows, layers, threads;
    const float *x;                  // [rows, before() of the first layer]
    float *y;                        // [rows, width() of the last], where that has a norm; else its z
    float *dx;                       // the gradient of x, or null
    const Layer *layer;
};

// What parts of the rows add up to, and weights laid out for the products.
struct Sums {
    std::vector<double> first, second;      // [parts, width]: means and squares around them, or what a norm's gradient needs
    std::vector<float> weight, bias;        // [parts, ...] of the gradient
    std::vector<float> packed;              // LANES columns of a product at a time
};

struct Rows {
    int64_t all, parts, each;

    explicit Rows(int64_t rows) : all(rows) {
        const int64_t blocks = (rows + BLOCK - 1) / BLOCK;
        parts = std::max<int64_t>(1, std::min(PARTS, blocks));
        each = (blocks + parts - 1) / parts * BLOCK;
    }

    int64_t low(int64_t p) const { return std::min(all, p * each); }
};

INLINE int64_t chunks(int64_t width) { return (width + LANES - 1) / LANES; }

INLINE v16 load(const float *at) {
    v16 found;
    std::memcpy(&found, at, sizeof found);
    return found;
}

INLINE void store(float *at, const v16 &what, int64_t lanes) {
    if (lanes >= LANES) std::memcpy(at, &what, sizeof what);
    else std::memcpy(at, &what, static_cast<size_t>(lanes) * sizeof(float));
}

INLINE void give(float *at, v16 v, bool relu, int64_t lanes) {
    if (relu) v = v < 0.0f ? v16{} : v;
    store(at, v, lanes);
}

INLINE void add(float *at, const v16 &v, int64_t lanes) {
    if (lanes >= LANES) store(at, load(at) + v, LANES);
    else
        for (int64_t i = 0; i < lanes; i++) at[i] += v[i];
}

// sum[i] += over r of a[i * ai + r * ar] * b[r * br ...], for TALL rows i, or for one.
template <int64_t N>
INLINE void multiply(const float *a, int64_t ai, int64_t ar, const float *b, int64_t br, int64_t n, v16 *sum) {
    v16 own[N];
    for (int64_t i = 0; i < N; i++) own[i] = sum[i];
    for (int64_t r = 0; r < n; r++) {
        const v16 row = load(b + r * br);
#pragma GCC unroll 8
        for (int64_t i = 0; i < N; i++) own[i] += a[i * ai + r * ar] * row;
    }
    for (int64_t i = 0; i < N; i++) sum[i] = own[i];
}

// [stack, rows, columns] as [stack, chunks of columns, rows, LANES], or its transpose so, with zeros behind the last.
void pack(const float *from, int64_t stack, int64_t rows, int64_t columns, bool transposed, std::vector<float> &to) {
    const int64_t n = transposed ? columns : rows, width = transposed ? rows : columns;
    to.assign(static_cast<size_t>(stack * chunks(width) * n * LANES), 0.0f);
    for (int64_t s = 0; s < stack; s++)
        for (int64_t c = 0; c < width; c++)
            for (int64_t r = 0; r < n; r++)
                to[static_cast<size_t>(((s * chunks(width) + c / LANES) * n + r) * LANES + c % LANES)] =
                    from[s * rows * columns + (transposed ? c * columns + r : r * columns + c)];
}

// What layer k makes of rows of its z: [n, width] -> to [n, WIDE].
INLINE void activate(const Layer &k, const float *z, int64_t n, float *to) {
    const int64_t W = k.width();
    const float floor = k.relu ? 0.0f : -INFINITY;
    if (!k.norm) {
        for (int64_t r = 0; r < n; r++) std::memcpy(to + r * WIDE, z + r * W, static_cast<size_t>(W) * sizeof(float));
        return;
    }
    float scale[MOST], shift[MOST];
    for (int64_t c = 0; c < W; c++) {
        scale[c] = k.rstd[c] * k.gain[c];
        shift[c] = k.shift[c] - k.mean[c] * scale[c];
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < W; c++) {
            const float v = z[r * W + c] * scale[c] + shift[c];
            to[r * WIDE + c] = v < floor ? floor : v;                       // NaN stays NaN
        }
}

// Means and squares around them of `n` rows more: two sets together, Chan, Golub and LeVeque (1979).
INLINE void measure(const float *z, int64_t n, int64_t W, double before, double *mean, double *square) {
    float sum[MOST] = {}, around[MOST] = {};
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < W; c++) sum[c] += z[r * W + c];
    for (int64_t c = 0; c < W; c++) sum[c] /= static_cast<float>(n);
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < W; c++) {
            const float d = z[r * W + c] - sum[c];
            around[c] += d * d;
        }
    const double share = static_cast<double>(n) / (before + static_cast<double>(n));
    for (int64_t c = 0; c < W; c++) {
        const double d = sum[c] - mean[c];
        mean[c] += d * share;
        square[c] += around[c] + d * d * before * share;
    }
}

// z of layer k for a part of the rows, and what its norm has to know of them.
CLONES void forward_part(const Small &all, int64_t l, const Rows &rows, Sums &sums, int64_t p) {
    const Layer &k = all.layer[l];
    const int64_t W = k.width(), before = k.before();
    double *mean = sums.first.data() + p * W, *square = sums.second.data() + p * W;
    float held[BLOCK * WIDE];
    const int64_t end = rows.low(p + 1);
    for (int64_t low = rows.low(p); low < end; low += BLOCK) {
        const int64_t n = std::min(BLOCK, end - low);
        float *z = k.z + low * W;
        if (k.weight) {
            const float *y = all.x + low * before;
            int64_t step = before;
            if (l) {
                activate(all.layer[l - 1], all.layer[l - 1].z + low * before, n, held);
                y = held, step = WIDE;
            }
            for (int64_t s = 0; s < k.stack; s++)
                for (int64_t c = 0; c < chunks(k.out); c++) {
                    const float *w = sums.packed.data() + (s * chunks(k.out) + c) * k.in * LANES;
                    const int64_t lanes = k.out - c * LANES;
                    v16 bias = {};
                    if (k.bias) std::memcpy(&bias, k.bias + s * k.out + c * LANES, static_cast<size_t>(
                        std::min(LANES, lanes)) * sizeof(float));
                    float *at = z + s * k.out + c * LANES;
                    const bool relu = k.relu && !k.norm;
                    int64_t r = 0;
                    for (; r + TALL <= n; r += TALL) {
                        v16 sum[TALL];
                        for (int64_t i = 0; i < TALL; i++) sum[i] = bias;
                        multiply<TALL>(y + r * step + s * k.in, step, 1, w, LANES, k.in, sum);
                        for (int64_t i = 0; i < TALL; i++) give(at + (r + i) * W, sum[i], relu, lanes);
                    }
                    for (; r < n; r++) {
                        v16 sum = bias;
                        multiply<1>(y + r * step + s * k.in, step, 1, w, LANES, k.in, &sum);
                        give(at + r * W, sum, relu, lanes);
                    }
                }
        }
        if (k.norm) measure(z, n, W, static_cast<double>(low - rows.low(p)), mean, square);
    }
}

CLONES void answer_part(const Small &all, int64_t l, const Rows &rows, Sums &, int64_t p) {
    const Layer &k = all.layer[l];
    const int64_t W = k.width(), end = rows.low(p + 1);
    float held[BLOCK * WIDE];
    for (int64_t low = rows.low(p); low < end; low += BLOCK) {
        const int64_t n = std::min(BLOCK, end - low);
        activate(k, k.z + low * W, n, held);
        for (int64_t r = 0; r < n; r++)
            std::memcpy(all.y + (low + r) * W, held + r * WIDE, static_cast<size_t>(W) * sizeof(float));
    }
}

// Of a norm's rows with the gradient g of what comes behind its ReLU: sums of g, and of g times the normalised.
INLINE void along(const Layer &k, const float *z, const float *g, int64_t n, double *whole, double *product) {
    const int64_t W = k.width();
    const float floor = k.relu ? 0.0f : -INFINITY;
    float scale[MOST], shift[MOST], sum[MOST] = {}, times[MOST] = {};
    for (int64_t c = 0; c < W; c++) {
        scale[c] = k.rstd[c] * k.gain[c];
        shift[c] = k.shift[c] - k.mean[c] * scale[c];
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < W; c++) {
            const float x = z[r * W + c], kept = x * scale[c] + shift[c] > floor ? g[r * W + c] : 0.0f;
            sum[c] += kept;
            times[c] += kept * ((x - k.mean[c]) * k.rstd[c]);
        }
    for (int64_t c = 0; c < W; c++) whole[c] += sum[c], product[c] += times[c];
}

CLONES void sums_part(const Small &all, int64_t l, const Rows &rows, Sums &sums, int64_t p) {
    const Layer &k = all.layer[l];
    const int64_t W = k.width(), end = rows.low(p + 1);
    for (int64_t low = rows.low(p); low < end; low += BLOCK)
        along(k, k.z + low * W, k.g + low * W, std::min(BLOCK, end - low), sums.first.data() + p * W,
              sums.second.data() + p * W);
}

// The gradient of z [n, width], in `to` [n, WIDE]. dgain and dshift hold the sums over all rows by now.
INLINE void through(const Layer &k, const float *z, const float *g, int64_t n, int64_t all, float *to) {
    const int64_t W = k.width();
    const float floor = k.relu ? 0.0f : -INFINITY;
    if (!k.norm) {
        for (int64_t r = 0; r < n; r++)
            for (int64_t c = 0; c < W; c++) to[r * WIDE + c] = z[r * W + c] > floor ? g[r * W + c] : 0.0f;
        return;
    }
    float scale[MOST], shift[MOST], first[MOST], second[MOST];
    for (int64_t c = 0; c < W; c++) {
        scale[c] = k.rstd[c] * k.gain[c];
        shift[c] = k.shift[c] - k.mean[c] * scale[c];
        first[c] = k.dshift[c] / static_cast<float>(all);
        second[c] = k.dgain[c] / static_cast<float>(all);
    }
    for (int64_t r = 0; r < n; r++)
        for (int64_t c = 0; c < W; c++) {
            const float x = z[r * W + c], kept = x * scale[c] + shift[c] > floor ? g[r * W + c] : 0.0f;
            to[r * WIDE + c] = scale[c] * (kept - first[c] - (x - k.mean[c]) * k.rstd[c] * second[c]);
        }
}

// Gradients of layer l from those of what it gives: of its weights, and of what it reads.
CLONES void backward_part(const Small &all, int64_t l, const Rows &rows, Sums &sums, int64_t p) {
    const Layer &k = all.layer[l];
    const int64_t W = k.width(), before = k.before(), end = rows.low(p + 1);
    float *to = l ? all.layer[l - 1].g : all.dx;
    float *dweight = sums.weight.data() + p * k.stack * k.out * k.in, *dbias = sums.bias.data() + p * W;
    float dz[BLOCK * WIDE], held[BLOCK * WIDE];
    if (k.weight)                                       // lanes that are read beyond a row count for nothing
        for (int64_t r = 0; r < BLOCK; r++) std::fill_n(held + r * WIDE + before, LANES, 0.0f);
    for (int64_t low = rows.low(p); low < end; low += BLOCK) {
        const int64_t n = std::min(BLOCK, end - low);
        through(k, k.z + low * W, k.g + low * W, n, rows.all, dz);
        if (!k.weight) {
            for (int64_t r = 0; r < n; r++)
                std::memcpy(to + (low + r) * W, dz + r * WIDE, static_cast<size_t>(W) * sizeof(float));
            continue;
        }
        if (l) activate(all.layer[l - 1], all.layer[l - 1].z + low * before, n, held);
        else
            for (int64_t r = 0; r < n; r++)
                std::memcpy(held + r * WIDE, all.x + (low + r) * before, static_cast<size_t>(before) * sizeof(float));
        for (int64_t s = 0; s < k.stack; s++)
            for (int64_t c = 0; c < chunks(k.in); c++) {
                const int64_t lanes = std::min(LANES, k.in - c * LANES);
                float *into = dweight + s * k.out * k.in + c * LANES;
                const float *own = dz + s * k.out, *y = held + s * k.in + c * LANES;
                int64_t o = 0;
                for (; o + TALL <= k.out; o += TALL) {
                    v16 sum[TALL] = {};
                    multiply<TALL>(own + o, 1, WIDE, y, WIDE, n, sum);
                    for (int64_t i = 0; i < TALL; i++) add(into + (o + i) * k.in, sum[i], lanes);
                }
                for (; o < k.out; o++) {
                    v16 sum = {};
                    multiply<1>(own + o, 1, WIDE, y, WIDE, n, &sum);
                    add(into + o * k.in, sum, lanes);
                }
                if (!to) continue;
                const float *w = sums.packed.data() + (s * chunks(k.in) + c) * k.out * LANES;
                float *at = to + low * before + s * k.in + c * LANES;
                int64_t r = 0;
                for (; r + TALL <= n; r += TALL) {
                    v16 sum[TALL] = {};
                    multiply<TALL>(own + r * WIDE, WIDE, 1, w, LANES, k.out, sum);
                    for (int64_t i = 0; i < TALL; i++) store(at + (r + i) * before, sum[i], lanes);
                }
                for (; r < n; r++) {
                    v16 sum = {};
                    multiply<1>(own + r * WIDE, WIDE, 1, w, LANES, k.out, &sum);
                    store(at + r * before, sum, lanes);
                }
            }
        if (k.dbias)
            for (int64_t r = 0; r < n; r++)
                for (int64_t c = 0; c < W; c++) dbias[c] += dz[r * WIDE + c];
        if (l && all.layer[l - 1].norm)
            along(all.layer[l - 1], all.layer[l - 1].z + low * before, to + low * before, n,
                  sums.first.data() + p * before, sums.second.data() + p * before);
    }
}

template <void (*PART)(const Small &, int64_t, const Rows &, Sums &, int64_t)>
void share_out(const Small &all, int64_t l, const Rows &rows, Sums &sums) {
    struct Job { const Small *all; int64_t l; const Rows *rows; Sums *sums; int64_t shares; } job{
        &all, l, &rows, &sums, std::min(rows.parts, all.threads)};
    threads::run(job.shares, [](void *argument, int64_t t) {
        const Job &j = *static_cast<Job *>(argument);
        for (int64_t p = j.rows->parts * t / j.shares; p < j.rows->parts * (t + 1) / j.shares; p++)
            PART(*j.all, j.l, *j.rows, *j.sums, p);
    }, &job);
}

void clear(Sums &sums, size_t n) {
    sums.first.assign(n, 0.0), sums.second.assign(n, 0.0);
}

// All parts' means and squares: the norm's statistics, and the running ones moved as torch moves them.
void settle(const Layer &k, const Rows &rows, const Sums &sums) {
    const int64_t W = k.width();
    const double all = static_cast<double>(rows.all);
    for (int64_t c = 0; c < W; c++) {
        double mean = 0, square = 0, seen = 0;
        for (int64_t p = 0; p < rows.parts && rows.low(p) < rows.all; p++) {
            const double n = static_cast<double>(rows.low(p + 1) - rows.low(p));
            const double d = sums.first[static_cast<size_t>(p * W + c)] - mean;
            square += sums.second[static_cast<size_t>(p * W + c)] + d * d * seen * n / (seen + n);
            mean += d * n / (seen + n), seen += n;
        }
        const double variance = square / all;
        k.mean[c] = static_cast<float>(mean);
        k.rstd[c] = static_cast<float>(1 / std::sqrt(variance + k.eps));
        const float own = static_cast<float>(k.momentum);
        k.running_mean[c] += own * (k.mean[c] - k.running_mean[c]);
        k.running_var[c] += own * (static_cast<float>(square / (all - 1)) - k.running_var[c]);
    }
}

template <class Number>
void add_up(const Number *parts, int64_t n, int64_t width, float *to) {
    for (int64_t c = 0; c < width; c++) {
        double sum = 0;
        for (int64_t p = 0; p < n; p++) sum += parts[p * width + c];
        to[c] = static_cast<float>(sum);
    }
}

}  // namespace

EXPORT void small_forward(const Small *work) {
    const Small &all = *work;
    const Rows rows(all.rows);
    Sums sums;
    for (int64_t l = 0; l < all.layers; l++) {
        const Layer &k = all.layer[l];
        if (k.weight) pack(k.weight, k.stack, k.out, k.in, true, sums.packed);
        clear(sums, static_cast<size_t>(rows.parts * k.width()));
        if (k.weight || k.norm) share_out<forward_part>(all, l, rows, sums);
        if (k.norm) settle(k, rows, sums);
    }
    if (all.layer[all.layers - 1].norm) share_out<answer_part>(all, all.layers - 1, rows, sums);
}

EXPORT void small_backward(const Small *work) {
    const Small &all = *work;
    const Rows rows(all.rows);
    Sums sums;
    for (int64_t l = all.layers - 1; l >= 0; l--) {
        const Layer &k = all.layer[l];
        if (k.norm) {
            if (l == all.layers - 1) {
                clear(sums, static_cast<size_t>(rows.parts * k.width()));
                share_out<sums_part>(all, l, rows, sums);
            }
            add_up(sums.first.data(), rows.parts, k.width(), k.dshift);
            add_up(sums.second.data(), rows.parts, k.width(), k.dgain);
        }
        if (k.weight) {
            pack(k.weight, k.stack, k.out, k.in, false, sums.packed);
            sums.weight.assign(static_cast<size_t>(rows.parts * k.stack * k.out * k.in), 0.0f);
            sums.bias.assign(static_cast<size_t>(rows.parts * k.width()), 0.0f);
            clear(sums, static_cast<size_t>(rows.parts * k.before()));
        } else if (!all.dx) {
            continue;
        }
        share_out<backward_part>(all, l, rows, sums);
        if (k.weight) add_up(sums.weight.data(), rows.parts, k.stack * k.out * k.in, k.dweight);
        if (k.dbias) add_up(sums.bias.data(), rows.parts, k.width(), k.dbias);
    }
}
