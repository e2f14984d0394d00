// Small sums over the parts of each row, whose tensors [rows, parts, width] torch would walk through several times:
//
//   mix      gate = softmax over parts of score,  out_v = sum_n gate_vn x_n       what a mixture of experts gives
//   gate     the same of one view whose scores are scale <key_n, x_n>             what AITM's candidates ask themselves
//   pairs    sum_f v_f and sum_f v_f^2                                            all that FM's pairs need
//
// A plain C interface over raw pointers, called through ctypes by src/funnelrank/nn/mix.py, which owns every buffer.
// Rows are worked on one by one, so results do not depend on the number of threads.

#include <cstdint>

#include "power.h"
#include "threads.h"

#define EXPORT extern "C" __attribute__((visibility("default")))
#if defined(__x86_64__) && defined(__linux__) && defined(__GNUC__)
#define CLONES __attribute__((target_clones("avx512f", "avx2", "default")))
#else
#define CLONES
#endif

namespace {

struct Mix {
    int64_t rows, views, parts, width, threads;
    const float *score;              // [rows, views, parts]
    const float *x;                  // [rows, parts, width]
    float *gate;                     // [rows, views, parts]: forward writes, backward reads
    float *out;                      // [rows, views, width]
    const float *g;                  // [rows, views, width] the gradient of out
    float *dscore, *dx;
};

struct Gate {
    int64_t rows, parts, width, threads;
    const float *key, *x;            // [rows, parts, width]
    float *gate, *out;               // [rows, parts], [rows, width]
    const float *g;                  // [rows, width] the gradient of out
    float *dkey, *dx;
    float scale;
};

struct Pairs {
    int64_t rows, parts, width, threads;
    const float *v;                  // [rows, parts, width]
    float *sum, *square;             // [rows, width]
    const float *gsum, *gsquare;     // their gradients
    float *dv;
};

inline float dot(const float *a, const float *b, int64_t n) {              // one order, whatever the vectors' width
    float lane[16] = {}, sum = 0;
    int64_t i = 0;
    for (; i + 16 <= n; i += 16)
        for (int k = 0; k < 16; k++) lane[k] += a[i + k] * b[i + k];
    for (int k = 0; k < 16; k++) sum += lane[k];
    for (; i < n; i++) sum += a[i] * b[i];
    return sum;
}

// Scores in `gate` become shares that sum to 1.
inline void softmax(float *gate, int64_t n) {
    float most = gate[0], total = 0;
    for (int64_t i = 1; i < n; i++) most = gate[i] > most ? gate[i] : most;
    for (int64_t i = 0; i < n; i++) gate[i] = power(gate[i] - most);
    for (int64_t i = 0; i < n; i++) total += gate[i];
    for (int64_t i = 0; i < n; i++) gate[i] /= total;
}

CLONES void mix_rows(const Mix &m, int64_t low, int64_t high) {
    const int64_t V = m.views, N = m.parts, H = m.width;
    for (int64_t i = low * V; i < high * V; i++) {
        float *gate = m.gate + i * N;
        for (int64_t n = 0; n < N; n++) gate[n] = m.score[i * N + n];
        softmax(gate, N);
        const float *x = m.x + i / V * N * H;
        float *__restrict out = m.out + i * H;
        for (int64_t h = 0; h < H; h++) out[h] = gate[0] * x[h];
        for (int64_t n = 1; n < N; n++)
            for (int64_t h = 0; h < H; h++) out[h] += gate[n] * x[n * H + h];
    }
}

CLONES void mix_rows_back(const Mix &m, int64_t low, int64_t high) {
    const int64_t V = m.views, N = m.parts, H = m.width;
    for (int64_t b = low; b < high; b++) {
        const float *x = m.x + b * N * H;
        float *dx = m.dx + b * N * H;
        for (int64_t v = 0; v < V; v++) {
            const float *g = m.g + (b * V + v) * H, *gate = m.gate + (b * V + v) * N;
            float *dscore = m.dscore + (b * V + v) * N, mean = 0;
            for (int64_t n = 0; n < N; n++) {
                const float *part = x + n * H;
                float *__restrict to = dx + n * H;
                const float share = gate[n];
                if (v == 0)
                    for (int64_t h = 0; h < H; h++) to[h] = share * g[h];
                else
                    for (int64_t h = 0; h < H; h++) to[h] += share * g[h];
                dscore[n] = dot(g, part, H);
                mean += share * dscore[n];
            }
            for (int64_t n = 0; n < N; n++) dscore[n] = gate[n] * (dscore[n] - mean);
        }
    }
}

CLONES void gate_rows(const Gate &m, int64_t low, int64_t high) {
    const int64_t N = m.parts, H = m.width;
    for (int64_t b = low; b < high; b++) {
        const float *key = m.key + b * N * H, *x = m.x + b * N * H;
        float *gate = m.gate + b * N, *__restrict out = m.out + b * H;
        for (int64_t n = 0; n < N; n++) gate[n] = m.scale * dot(key + n * H, x + n * H, H);
        softmax(gate, N);
        for (int64_t h = 0; h < H; h++) out[h] = gate[0] * x[h];
        for (int64_t n = 1; n < N; n++)
            for (int64_t h = 0; h < H; h++) out[h] += gate[n] * x[n * H + h];
    }
}

CLONES void gate_rows_back(const Gate &m, int64_t low, int64_t high) {
    const int64_t N = m.parts, H = m.width;
    for (int64_t b = low; b < high; b++) {
        const float *gate = m.gate + b * N, *g = m.g + b * H;
        float mean = 0;
        for (int64_t n = 0; n < N; n++) mean += gate[n] * dot(g, m.x + (b * N + n) * H, H);
        for (int64_t n = 0; n < N; n++) {
            const float *key = m.key + (b * N + n) * H, *x = m.x + (b * N + n) * H;
            float *__restrict dkey = m.dkey + (b * N + n) * H, *__restrict dx = m.dx + (b * N + n) * H;
            const float share = gate[n], slope = m.scale * share * (dot(g, x, H) - mean);
            for (int64_t h = 0; h < H; h++) {
                dkey[h] = slope * x[h];
                dx[h] = slope * key[h] + share * g[h];
            }
        }
    }
}

CLONES void pair_rows(const Pairs &p, int64_t low, int64_t high) {
    const int64_t F = p.parts, D = p.width;
    for (int64_t b = low; b < high; b++) {
        const float *v = p.v + b * F * D;
        float *__restrict sum = p.sum + b * D, *__restrict square = p.square + b * D;
        for (int64_t d = 0; d < D; d++) sum[d] = square[d] = 0;
        for (int64_t f = 0; f < F; f++)
            for (int64_t d = 0; d < D; d++) {
                const float x = v[f * D + d];
                sum[d] += x, square[d] += x * x;
            }
    }
}

CLONES void pair_rows_back(const Pairs &p, int64_t low, int64_t high) {
    const int64_t F = p.parts, D = p.width;
    for (int64_t b = low; b < high; b++) {
        const float *v = p.v + b * F * D, *g = p.gsum + b * D, *q = p.gsquare + b * D;
        float *__restrict dv = p.dv + b * F * D;
        for (int64_t f = 0; f < F; f++)
            for (int64_t d = 0; d < D; d++) dv[f * D + d] = g[d] + 2 * v[f * D + d] * q[d];
    }
}

}  // namespace

using threads::share_out;

EXPORT void mix_forward(const Mix *m) { share_out<Mix, mix_rows>(*m); }

EXPORT void mix_backward(const Mix *m) { share_out<Mix, mix_rows_back>(*m); }

EXPORT void gate_forward(const Gate *m) { share_out<Gate, gate_rows>(*m); }

EXPORT void gate_backward(const Gate *m) { share_out<Gate, gate_rows_back>(*m); }

EXPORT void pairs_forward(const Pairs *p) { share_out<Pairs, pair_rows>(*p); }

EXPORT void pairs_backward(const Pairs *p) { share_out<Pairs, pair_rows_back>(*p); }
