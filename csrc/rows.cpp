// Rows of embedding tables on a CPU: gathered and pooled, gradients reduced to distinct rows, rows moved in place.
//
// A plain C interface over raw pointers, called through ctypes by src/funnelrank/embedding/native.py, which owns every
// buffer. Results do not depend on the number of threads or on the instruction set: each sum has one order, and the
// file is built without contraction of a * b + c (-ffp-contract=off).

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "threads.h"

#if defined(__linux__)
#include <sys/mman.h>
#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25             // Linux 6.1; older ones refuse it
#endif
#endif

#define INLINE static inline __attribute__((always_inline))
#define EXPORT extern "C" __attribute__((visibility("default")))

using threads::run;

namespace {

constexpr int64_t VERSION = 12;      // of the whole library's interface; kernels.py checks it
constexpr int64_t BLOCK = 32;        // batch rows that are written together: what a core's own cache holds
constexpr int64_t AHEAD = 16;        // lookups between asking for a row and using it
constexpr int64_t NEXT = 8;          // batch rows between asking for their columns of an output and using them
constexpr int64_t CHUNK = 256;       // table rows that are moved together

// 16 floats; rows need not be aligned to them
typedef float v16 __attribute__((vector_size(64), aligned(4), may_alias));

enum Kind : int64_t { ID, POOL, JAGGED, NUMBER };

// One feature's way from the batch to a column of an output.
struct Item {
    int64_t kind, source;            // column of ids or numbers, or number of the list
    int64_t table, offset, size;     // the space: rows offset .. offset + size of the table
    int64_t output, column, width;   // where to, and how many columns
    int64_t mean;                    // POOL: divide by the bag's length, or by its weights
};

// The same columns once more in another output. Sorted by item.
struct Copy {
    int64_t item, output, column;
};

struct Work {
    int64_t rows, id_columns, number_columns, values, tables, items, copies, threads;
    const int32_t *id;               // [rows, id_columns]
    const float *number;             // [rows, number_columns]
    const int32_t *value;            // [values]
    const int64_t *offset;           // [lists * rows + 1]
    const float *weight;             // [values] or null
    const Item *item;
    const Copy *copy;
    float *const *table;             // weights of each table
    const int64_t *step;             // floats from one row of it to the next
    float *const *output;            // in backward: gradients, null where there is none
    const int64_t *stride;           // columns of each output
    int64_t bad[3];                  // what forward refused: item, row of the batch, id
};

// How the touched rows of one table move.
struct Move {
    int64_t kind, width;
    int64_t step, state_step, average_step, seen_step;   // numbers from one row to the next: w, s1 and s2, average, seen
    float *w, *s1, *s2;              // weights and the optimiser's state
    float *average;                  // or null
    double *seen;                    // sum of log decays when a row's average was last brought up to date
    double before, after;            // that sum before and after this step
    float keep;                      // 1 - this step's decay
    float lr, eps, l1, l2;
    float a1, b2, a2, c2;            // Adam: 1 - beta1, beta2, 1 - beta2, 1 - beta2^step; lr holds 1 - beta1^step
};
enum Optimiser : int64_t { NONE, SGD, ADAGRAD, ROWWISE, ADAM, FTRL };

// One table's distinct rows and their gradients. Thread t owns some of the rows, and segment t of each buffer.
struct Distinct {
    int64_t width, capacity;
    uint32_t *slot;                  // [table rows] where a row stands in `row`; only believed if `row` agrees
    int32_t *row;                    // [threads, capacity]
    int32_t *first;                  // [threads, capacity] the lookup that met it first
    float *gradient;                 // [threads, capacity, width]
    int64_t *used;                   // [threads]
    const Move *move;                // move the rows at once, or null
};

// ---- rows as vectors: N * 16 floats held in registers, or N = 0 for any width, in memory, or N = ONE float

constexpr int ONE = -1;

// Ask for `count` floats that will be needed soon; they need not start on a cache line.
template <bool WRITE = false>
INLINE void ask(const float *start, int64_t count) {
    const char *at = reinterpret_cast<const char *>(start), *end = reinterpret_cast<const char *>(start + count);
    for (; at < end; at += 64) __builtin_prefetch(at, WRITE);
    __builtin_prefetch(end - 1, WRITE);
}

template <int N>
INLINE void zero(float *to, int64_t width) {
    if constexpr (N > 0)
        for (int k = 0; k < N; k++) reinterpret_cast<v16 *>(to)[k] = v16{};
    else if constexpr (N == ONE)
        *to = 0;
    else
        for (int64_t d = 0; d < width; d++) to[d] = 0;
}

template <int N>
INLINE void copy(float *__restrict to, const float *__restrict from, int64_t width) {
    if constexpr (N > 0)
        for (int k = 0; k < N; k++) reinterpret_cast<v16 *>(to)[k] = reinterpret_cast<const v16 *>(from)[k];
    else if constexpr (N == ONE)
        *to = *from;
    else
        for (int64_t d = 0; d < width; d++) to[d] = from[d];
}

template <int N>
INLINE void add(float *__restrict to, const float *__restrict from, float scale, int64_t width) {
    if constexpr (N > 0)
        for (int k = 0; k < N; k++) reinterpret_cast<v16 *>(to)[k] += scale * reinterpret_cast<const v16 *>(from)[k];
    else if constexpr (N == ONE)
        *to += scale * *from;
    else
        for (int64_t d = 0; d < width; d++) to[d] += scale * from[d];
}

template <int N>
INLINE void set(float *__restrict to, const float *__restrict from, float scale, int64_t width) {
    if constexpr (N > 0)
        for (int k = 0; k < N; k++) reinterpret_cast<v16 *>(to)[k] = scale * reinterpret_cast<const v16 *>(from)[k];
    else if constexpr (N == ONE)
        *to = scale * *from;
    else
        for (int64_t d = 0; d < width; d++) to[d] = scale * from[d];
}

// What a bag's pooled sum is multiplied with.
INLINE float share(const Work &w, const Item &item, int64_t low, int64_t high) {
    if (!item.mean || low == high) return 1;
    if (!w.weight) return 1.0f / static_cast<float>(high - low);
    float total = 0;
    for (int64_t j = low; j < high; j++) total += w.weight[j];
    return total > 0 ? 1.0f / total : 1;
}

// ---- forward

struct Refused {                     // the first id outside its space
    int64_t item = -1, row = 0, id = 0;
    void note(int64_t i, int64_t r, int64_t value) {
        if (item < 0 || i < item || (i == item && r < row)) item = i, row = r, id = value;
    }
};

INLINE bool inside(int32_t id, const Item &item) { return static_cast<uint64_t>(static_cast<int64_t>(id)) <
                                                          static_cast<uint64_t>(item.size); }

template <int N>
INLINE void gather_ids(const Work &w, int64_t i, int64_t low, int64_t high, Refused &refused) {
    const Item &item = w.item[i];
    const int64_t D = item.width, S = w.step[item.table], stride = w.stride[item.output], F = w.id_columns;
    const float *table = w.table[item.table] + item.offset * S;
    const int32_t *ids = w.id + item.source;
    float *out = w.output[item.output] + item.column;
    for (int64_t b = low; b < high; b++) {
        if (b + AHEAD < w.rows && inside(ids[(b + AHEAD) * F], item)) ask(table + ids[(b + AHEAD) * F] * S, D);
        if (b + NEXT < w.rows) ask<true>(out + (b + NEXT) * stride, D);
        const int32_t id = ids[b * F];
        if (id == 0) {
            zero<N>(out + b * stride, D);
        } else if (inside(id, item)) {
            copy<N>(out + b * stride, table + id * S, D);
        } else {
            refused.note(i, b, id);
        }
    }
}

template <int N, bool WEIGHTED>
INLINE void gather_bags(const Work &w, int64_t i, int64_t low, int64_t high, Refused &refused) {
    const Item &item = w.item[i];
    const int64_t D = item.width, S = w.step[item.table], stride = w.stride[item.output];
    const int64_t *offset = w.offset + item.source * w.rows;
    const float *table = w.table[item.table] + item.offset * S;
    float *out = w.output[item.output] + item.column;
    for (int64_t b = low; b < high; b++) {
        if (b + NEXT < w.rows) ask<true>(out + (b + NEXT) * stride, D);
        v16 sum[N > 0 ? N : 1] = {};
        float one = 0, *to = out + b * stride;
        if (!N) zero<N>(to, D);
        for (int64_t j = offset[b]; j < offset[b + 1]; j++) {
            if (j + AHEAD < w.values && inside(w.value[j + AHEAD], item)) ask(table + w.value[j + AHEAD] * S, D);
            const int32_t id = w.value[j];
            if (id == 0) continue;
            if (!inside(id, item)) {
                refused.note(i, b, id);
                continue;
            }
            const float *from = table + id * S;
            const float weight = WEIGHTED ? w.weight[j] : 1;
            if constexpr (N == ONE)
                one += WEIGHTED ? weight * *from : *from;
            else if constexpr (N > 0)
                for (int k = 0; k < N; k++) {
                    const v16 row = reinterpret_cast<const v16 *>(from)[k];
                    sum[k] += WEIGHTED ? weight * row : row;
                }
            else
                add<N>(to, from, weight, D);
        }
        const float scale = share(w, item, offset[b], offset[b + 1]);
        if constexpr (N == ONE)
            *to = scale * one;
        else if constexpr (N > 0)
            for (int k = 0; k < N; k++) reinterpret_cast<v16 *>(to)[k] = scale * sum[k];
        else
            for (int64_t d = 0; d < D; d++) to[d] *= scale;
    }
}

template <int N>
INLINE void gather_jagged(const Work &w, int64_t i, int64_t low, int64_t high, Refused &refused) {
    const Item &item = w.item[i];
    const int64_t D = item.width, S = w.step[item.table];
    const int64_t *offset = w.offset + item.source * w.rows;
    const float *table = w.table[item.table] + item.offset * S;
    float *out = w.output[item.output];
    for (int64_t b = low; b < high; b++)
        for (int64_t j = offset[b]; j < offset[b + 1]; j++) {
            if (j + AHEAD < w.values && inside(w.value[j + AHEAD], item)) ask(table + w.value[j + AHEAD] * S, D);
            const int32_t id = w.value[j];
            float *to = out + (j - offset[0]) * D;
            if (id == 0) {
                zero<N>(to, D);
            } else if (inside(id, item)) {
                copy<N>(to, table + id * S, D);
            } else {
                refused.note(i, b, id);
            }
        }
}

template <int N>
INLINE void gather_item(const Work &w, int64_t i, int64_t low, int64_t high, Refused &refused) {
    if (w.item[i].kind == ID)
        gather_ids<N>(w, i, low, high, refused);
    else if (w.item[i].kind == JAGGED)
        gather_jagged<N>(w, i, low, high, refused);
    else if (w.weight)
        gather_bags<N, true>(w, i, low, high, refused);
    else
        gather_bags<N, false>(w, i, low, high, refused);
}

template <int N>
INLINE void repeat(const Work &w, const Item &item, const Copy &more, int64_t low, int64_t high) {
    for (int64_t b = low; b < high; b++)
        copy<N>(w.output[more.output] + b * w.stride[more.output] + more.column,
                w.output[item.output] + b * w.stride[item.output] + item.column, item.width);
}

INLINE void gather_body(const Work &w, int64_t first_block, int64_t last_block, Refused &refused) {
    for (int64_t block = first_block; block < last_block; block++) {
        const int64_t low = block * BLOCK, high = low + BLOCK < w.rows ? low + BLOCK : w.rows;
        for (int64_t i = 0, c = 0; i < w.items; i++) {
            const Item &item = w.item[i];
            if (item.kind == NUMBER) {
                for (int64_t b = low; b < high; b++)
                    copy<0>(w.output[item.output] + b * w.stride[item.output] + item.column,
                            w.number + b * w.number_columns + item.source, item.width);
            } else if (item.width == 1) {
                gather_item<ONE>(w, i, low, high, refused);
            } else if (item.width == 16) {
                gather_item<1>(w, i, low, high, refused);
            } else if (item.width == 32) {
                gather_item<2>(w, i, low, high, refused);
            } else if (item.width == 64) {
                gather_item<4>(w, i, low, high, refused);
            } else {
                gather_item<0>(w, i, low, high, refused);
            }
            for (; c < w.copies && w.copy[c].item == i; c++)
                if (item.width == 16)
                    repeat<1>(w, item, w.copy[c], low, high);
                else
                    repeat<0>(w, item, w.copy[c], low, high);
        }
    }
}

// ---- backward: one gradient per distinct row

// One thread's distinct rows of one table, with what is used in every lookup at hand.
struct Part {
    uint32_t *slot;
    int32_t *row, *first;
    float *gradient;
    int64_t used, width;
    uint32_t part, parts;            // of the space that is under way: see Share

    // 16 neighbours stay together, so that threads do not write one cache line of `slot`
    bool mine(int64_t g) const {
        const uint32_t mixed = static_cast<uint32_t>(g >> 4) * 2654435761u;
        return parts == 1 || static_cast<uint64_t>(mixed) * parts >> 32 == part;
    }
};

// What one thread does of one item: all of its rows, or, where a space has more than a thread's share of the lookups,
// those of one part. Every row has one owner, which meets its lookups in the batch's order.
struct Share {
    int64_t item;
    uint32_t part, parts;
};

template <int N>
INLINE void meet(Part &p, int64_t g, int32_t lookup, const float *gradient, float scale) {
    const uint32_t at = p.slot[g];
    if (static_cast<int64_t>(at) < p.used && p.row[at] == g) {
        add<N>(p.gradient + at * p.width, gradient, scale, p.width);
    } else {
        p.slot[g] = static_cast<uint32_t>(p.used);
        p.row[p.used] = static_cast<int32_t>(g), p.first[p.used] = lookup;
        set<N>(p.gradient + p.used * p.width, gradient, scale, p.width);
        p.used++;
    }
}

// Ask for what `meet` will need: first the slot, later what the slot points at.
INLINE void expect(const Part &p, int64_t g) {
    if (p.mine(g)) __builtin_prefetch(p.slot + g, 1);
}
INLINE void expect_gradient(const Part &p, int64_t g) {
    if (!p.mine(g)) return;
    const int64_t at = p.slot[g];
    if (at < p.used) {
        __builtin_prefetch(p.row + at);
        ask(p.gradient + at * p.width, p.width);
    }
}

INLINE void expect_output(const Work &w, const Item &item, int64_t b) {
    if (b + NEXT < w.rows && w.output[item.output])
        ask(w.output[item.output] + (b + NEXT) * w.stride[item.output] + item.column, item.width);
}

// The gradient of item i at batch row b: its columns of the output, plus those of its copies. null: there is none.
template <int N>
INLINE const float *gradient_at(const Work &w, const Item &item, int64_t c, int64_t end, int64_t b, float *sum) {
    const float *own = w.output[item.output];
    if (own) own += b * w.stride[item.output] + item.column;
    if (c == end) return own;
    if (own)
        copy<N>(sum, own, item.width);
    else
        zero<N>(sum, item.width);
    for (; c < end; c++)
        if (const float *other = w.output[w.copy[c].output])
            add<N>(sum, other + b * w.stride[w.copy[c].output] + w.copy[c].column, 1, item.width);
    return sum;
}

template <int N>
INLINE void reduce_ids(const Work &w, const Item &item, int64_t c, int64_t end, int64_t low, int64_t high, Part &part,
                       int32_t lookup, float *sum) {
    Part p = part;                   // in registers: no store of floats can change it
    const int64_t F = w.id_columns;
    const int32_t *ids = w.id + item.source;
    for (int64_t b = low; b < high; b++, lookup++) {
        expect_output(w, item, b);
        if (b + 2 * AHEAD < w.rows && inside(ids[(b + 2 * AHEAD) * F], item))
            expect(p, item.offset + ids[(b + 2 * AHEAD) * F]);
        if (b + AHEAD < w.rows && inside(ids[(b + AHEAD) * F], item))
            expect_gradient(p, item.offset + ids[(b + AHEAD) * F]);
        const int32_t id = ids[b * F];
        if (id == 0 || !inside(id, item) || !p.mine(item.offset + id)) continue;
        meet<N>(p, item.offset + id, lookup, gradient_at<N>(w, item, c, end, b, sum), 1);
    }
    part.used = p.used;
}

template <int N>
INLINE void reduce_lists(const Work &w, const Item &item, int64_t c, int64_t end, int64_t low, int64_t high, Part &part,
                         int32_t lookup, float *sum) {
    Part p = part;                   // in registers: no store of floats can change it
    const int64_t *offset = w.offset + item.source * w.rows;
    for (int64_t b = low; b < high; b++) {
        if (item.kind == POOL) expect_output(w, item, b);
        if (offset[b] == offset[b + 1]) continue;
        const float *gradient = nullptr;
        float scale = 1;
        if (item.kind == POOL) {
            gradient = gradient_at<N>(w, item, c, end, b, sum);
            scale = share(w, item, offset[b], offset[b + 1]);
        }
        for (int64_t j = offset[b]; j < offset[b + 1]; j++, lookup++) {
            if (j + 2 * AHEAD < w.values && inside(w.value[j + 2 * AHEAD], item))
                expect(p, item.offset + w.value[j + 2 * AHEAD]);
            if (j + AHEAD < w.values && inside(w.value[j + AHEAD], item))
                expect_gradient(p, item.offset + w.value[j + AHEAD]);
            const int32_t id = w.value[j];
            if (id == 0 || !inside(id, item) || !p.mine(item.offset + id)) continue;
            if (item.kind == JAGGED)
                meet<N>(p, item.offset + id, lookup, w.output[item.output] + (j - offset[0]) * item.width, 1);
            else
                meet<N>(p, item.offset + id, lookup, gradient, w.weight ? scale * w.weight[j] : scale);
        }
    }
    part.used = p.used;
}

template <int N>
INLINE void reduce_item(const Work &w, const Item &item, int64_t c, int64_t end, int64_t low, int64_t high, Part &p,
                        int32_t lookup, float *sum) {
    if (item.kind == ID)
        reduce_ids<N>(w, item, c, end, low, high, p, lookup, sum);
    else
        reduce_lists<N>(w, item, c, end, low, high, p, lookup, sum);
}

// `shares` of this thread, sorted by item; the last one names no item.
INLINE void reduce_body(const Work &w, const Share *shares, Part *parts, float *sum) {
    int32_t lookup = 0;
    for (int64_t low = 0; low < w.rows; low += BLOCK) {
        const int64_t high = low + BLOCK < w.rows ? low + BLOCK : w.rows;
        const Share *share = shares;
        for (int64_t i = 0, c = 0; i < w.items; i++) {
            const Item &item = w.item[i];
            if (item.kind == NUMBER) continue;
            int64_t end = c;
            while (end < w.copies && w.copy[end].item == i) end++;
            for (; share->item == i; share++) {
                Part &p = parts[item.table];
                p.part = share->part, p.parts = share->parts;
                if (item.width == 1)
                    reduce_item<ONE>(w, item, c, end, low, high, p, lookup, sum);
                else if (item.width == 16)
                    reduce_item<1>(w, item, c, end, low, high, p, lookup, sum);
                else if (item.width == 32)
                    reduce_item<2>(w, item, c, end, low, high, p, lookup, sum);
                else if (item.width == 64)
                    reduce_item<4>(w, item, c, end, low, high, p, lookup, sum);
                else
                    reduce_item<0>(w, item, c, end, low, high, p, lookup, sum);
            }
            const int64_t start = item.source * w.rows;
            lookup += static_cast<int32_t>(item.kind == ID ? high - low : w.offset[start + high] - w.offset[start + low]);
            c = end;
        }
    }
}

// Who does what: spaces go to threads by the number of their lookups, the largest first, each to the least busy.
// Results do not depend on it.
std::vector<std::vector<Share>> shared_out(const Work &w) {
    struct Space {
        int64_t table, offset, lookups;
        std::vector<int64_t> items;
    };
    std::vector<Space> spaces;
    int64_t total = 0;
    for (int64_t i = 0, c = 0; i < w.items; i++) {
        const Item &item = w.item[i];
        bool any = w.output[item.output] != nullptr;
        for (; c < w.copies && w.copy[c].item <= i; c++) any |= w.output[w.copy[c].output] != nullptr;
        if (item.kind == NUMBER || !any) continue;
        const int64_t lookups = item.kind == ID ? w.rows : w.offset[(item.source + 1) * w.rows] -
                                                               w.offset[item.source * w.rows];
        auto space = std::find_if(spaces.begin(), spaces.end(), [&](const Space &s) {
            return s.table == item.table && s.offset == item.offset;
        });
        if (space == spaces.end()) space = spaces.insert(spaces.end(), Space{item.table, item.offset, 0, {}});
        space->lookups += lookups, total += lookups;
        space->items.push_back(i);
    }
    std::sort(spaces.begin(), spaces.end(), [](const Space &a, const Space &b) { return a.lookups > b.lookups; });
    const size_t threads = static_cast<size_t>(w.threads);
    std::vector<std::vector<Share>> shares(threads);
    std::vector<int64_t> busy(threads, 0);
    for (const Space &space : spaces) {
        const int64_t fair = (2 * space.lookups * w.threads + total) / (2 * total + 1);       // rounded
        const uint32_t parts = static_cast<uint32_t>(fair < 1 ? 1 : fair > w.threads ? w.threads : fair);
        for (uint32_t part = 0; part < parts; part++) {
            const auto least = std::min_element(busy.begin(), busy.end());
            *least += space.lookups / parts;
            for (const int64_t item : space.items)
                shares[static_cast<size_t>(least - busy.begin())].push_back(Share{item, part, parts});
        }
    }
    for (auto &mine : shares) {
        std::sort(mine.begin(), mine.end(), [](const Share &a, const Share &b) {
            return a.item != b.item ? a.item < b.item : a.part < b.part;
        });
        mine.push_back(Share{-1, 0, 1});
    }
    return shares;
}

// ---- row optimisers and the average of rows

// e^x for x <= 0, to about 1e-9, in steps that a compiler turns into vectors.
INLINE void decays(const double *x, float *out, int64_t n) {
    for (int64_t i = 0; i < n; i++) {
        const double v = x[i] > -600 ? (x[i] < 0 ? x[i] : 0.0) : -600.0;
        const double shifted = v * 1.4426950408889634 + 6755399441055744.0;         // 1.5 * 2^52: rounds to an integer
        const double k = shifted - 6755399441055744.0;
        const double r = (v - k * 0.693147180369123816490) - k * 1.90821492927058770002e-10;
        double p = 1.0 / 362880;
        p = p * r + 1.0 / 40320;
        p = p * r + 1.0 / 5040;
        p = p * r + 1.0 / 720;
        p = p * r + 1.0 / 120;
        p = p * r + 1.0 / 24;
        p = p * r + 1.0 / 6;
        p = p * r + 0.5;
        p = p * r + 1;
        p = p * r + 1;
        int64_t bits;
        std::memcpy(&bits, &shifted, 8);
        bits = static_cast<int64_t>((static_cast<uint64_t>(bits) + 1023) << 52);                 // 2^k
        double power;
        std::memcpy(&power, &bits, 8);
        out[i] = static_cast<float>(p * power);
    }
}

template <int64_t KIND, bool AVERAGE>
INLINE void move_row(const Move &m, float *__restrict w, float *__restrict s1, float *__restrict s2,
                     const float *__restrict g, const float *__restrict old, float *__restrict average, float held,
                     int64_t width) {
    const float lr = m.lr, eps = m.eps, l2 = m.l2;
    float root = 0;
    if constexpr (KIND == ROWWISE) {
        float lane[16] = {}, mean = 0;                               // one order, whatever the vectors' width
        for (int64_t d = 0; d < width; d++) {
            const float x = g[d] + l2 * w[d];
            lane[d & 15] += x * x;
        }
        for (int k = 0; k < 16; k++) mean += lane[k];
        s1[0] += mean / static_cast<float>(width);
        root = std::sqrt(s1[0]) + eps;
    }
    for (int64_t d = 0; d < width; d++) {
        const float was = KIND == NONE ? old[d] : w[d];
        const float x = KIND == NONE ? 0 : g[d] + l2 * was;
        float now = w[d];
        if constexpr (KIND == SGD) now = was - lr * x;
        if constexpr (KIND == ADAGRAD) {
            s1[d] += x * x;
            now = was - lr * x / (std::sqrt(s1[d]) + eps);
        }
        if constexpr (KIND == ROWWISE) now = was - lr * x / root;
        if constexpr (KIND == ADAM) {
            s1[d] += m.a1 * (x - s1[d]);
            s2[d] = s2[d] * m.b2 + m.a2 * (x * x);
            now = was - lr * s1[d] / (std::sqrt(s2[d] / m.c2) + eps);
        }
        if constexpr (KIND == FTRL) {
            const float n = s1[d] + x * x, up = std::sqrt(n);
            const float z = s2[d] + lr * x - (up - std::sqrt(s1[d])) * was;
            const float size = std::fabs(z) - m.l1;
            s1[d] = n, s2[d] = z;
            const float moved = size > 0 ? -std::copysign(size, z) / (up + eps) : 0;
            now = n > 0 ? moved : was;
        }
        if constexpr (AVERAGE) {
            const float caught_up = was + held * (average[d] - was);
            average[d] = caught_up + m.keep * (now - caught_up);
        }
        if constexpr (KIND != NONE) w[d] = now;
    }
}

template <int64_t KIND, bool AVERAGE, class Index>
INLINE void move_rows(const Move &m, const Index *row, const float *gradient, const float *old, int64_t count) {
    const int64_t D = m.width, state = KIND == ROWWISE ? 1 : D;
    const int64_t S = m.step, T = m.state_step, A = m.average_step, Q = m.seen_step;
    double x[CHUNK];
    float held[CHUNK];
    for (int64_t low = 0; low < count; low += CHUNK) {
        const int64_t n = count - low < CHUNK ? count - low : CHUNK;
        if constexpr (AVERAGE) {
            for (int64_t i = 0; i < n; i++) {
                if (low + i + 32 < count) __builtin_prefetch(m.seen + row[low + i + 32] * Q, 1);
                x[i] = m.before - m.seen[row[low + i] * Q];
                m.seen[row[low + i] * Q] = m.after;
            }
            decays(x, held, n);
        }
        for (int64_t i = 0; i < n; i++) {
            if (low + i + AHEAD < count) {
                const int64_t next = row[low + i + AHEAD];
                ask(m.w + next * S, D);
                if (AVERAGE) ask(m.average + next * A, D);
                if (KIND > SGD) ask(m.s1 + next * T, state);
                if (KIND >= ADAM) ask(m.s2 + next * T, state);
            }
            const int64_t g = row[low + i];
            float *w = m.w + g * S, *average = AVERAGE ? m.average + g * A : nullptr;
            float *s1 = KIND > SGD ? m.s1 + g * T : nullptr, *s2 = KIND >= ADAM ? m.s2 + g * T : nullptr;
            const float *x1 = KIND == NONE ? nullptr : gradient + (low + i) * D;
            const float *x2 = KIND == NONE ? old + (low + i) * D : nullptr;
            const float h = AVERAGE ? held[i] : 0;
            if (D == 16)
                move_row<KIND, AVERAGE>(m, w, s1, s2, x1, x2, average, h, 16);
            else if (D == 1)
                move_row<KIND, AVERAGE>(m, w, s1, s2, x1, x2, average, h, 1);
            else
                move_row<KIND, AVERAGE>(m, w, s1, s2, x1, x2, average, h, D);
        }
    }
}

template <class Index>
INLINE void move_body(const Move &m, const Index *row, const float *gradient, const float *old, int64_t count) {
#define MOVE(KIND) \
    m.average ? move_rows<KIND, true>(m, row, gradient, old, count) \
              : move_rows<KIND, false>(m, row, gradient, old, count)
    switch (m.kind) {
        case NONE: MOVE(NONE); break;
        case SGD: MOVE(SGD); break;
        case ADAGRAD: MOVE(ADAGRAD); break;
        case ROWWISE: MOVE(ROWWISE); break;
        case ADAM: MOVE(ADAM); break;
        case FTRL: MOVE(FTRL); break;
    }
#undef MOVE
}

// ---- one version of each kernel per instruction set; the widest that the machine has is taken

struct Kernels {
    const char *name;
    void (*gather)(const Work &, int64_t, int64_t, Refused &);
    void (*reduce)(const Work &, const Share *, Part *, float *);
    void (*move32)(const Move &, const int32_t *, const float *, const float *, int64_t);
    void (*move64)(const Move &, const int64_t *, const float *, const float *, int64_t);
};

#define KERNELS(NAME, ...) \
    __VA_ARGS__ void gather_##NAME(const Work &w, int64_t a, int64_t b, Refused &r) { gather_body(w, a, b, r); } \
    __VA_ARGS__ void reduce_##NAME(const Work &w, const Share *m, Part *p, float *s) { reduce_body(w, m, p, s); } \
    __VA_ARGS__ void move32_##NAME(const Move &m, const int32_t *r, const float *g, const float *o, int64_t n) { \
        move_body(m, r, g, o, n); } \
    __VA_ARGS__ void move64_##NAME(const Move &m, const int64_t *r, const float *g, const float *o, int64_t n) { \
        move_body(m, r, g, o, n); } \
    const Kernels NAME = {#NAME, gather_##NAME, reduce_##NAME, move32_##NAME, move64_##NAME};

KERNELS(portable)
#if defined(__x86_64__) && !defined(ROWS_PORTABLE)     // under sanitizers one version is enough
KERNELS(avx2, __attribute__((target("avx2"))))
KERNELS(avx512, __attribute__((target("avx512f,avx512bw,avx512dq,avx512vl"))))
#endif

// level 0: portable; 1: at most AVX2; 2: at most AVX-512
const Kernels *best(int64_t level) {
#if defined(__x86_64__) && !defined(ROWS_PORTABLE)
    __builtin_cpu_init();
    if (level >= 2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
        __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
        return &avx512;
    if (level >= 1 && __builtin_cpu_supports("avx2")) return &avx2;
#endif
    (void)level;
    return &portable;
}

const Kernels *kernels = best(2);

struct Call {
    Work *work;
    Distinct *distinct;
    std::vector<Refused> refused;
    std::vector<std::vector<Share>> shares;
    std::atomic<bool> out_of_memory{false};
};

}  // namespace

EXPORT int64_t rows_version() { return VERSION; }

// Use at most this instruction set; returns the name of what is used.
EXPORT const char *rows_level(int64_t level) {
    kernels = best(level);
    return kernels->name;
}

// Ask for large pages under a table: random rows then miss the address cache far less often. Only a wish.
EXPORT void rows_large_pages(void *start, int64_t bytes) {
#if defined(__linux__)
    constexpr uintptr_t PAGE = 1 << 21;
    const uintptr_t low = (reinterpret_cast<uintptr_t>(start) + PAGE - 1) / PAGE * PAGE;
    const uintptr_t high = (reinterpret_cast<uintptr_t>(start) + static_cast<uintptr_t>(bytes)) / PAGE * PAGE;
    if (low >= high) return;
    madvise(reinterpret_cast<void *>(low), high - low, MADV_HUGEPAGE);
    madvise(reinterpret_cast<void *>(low), high - low, MADV_COLLAPSE);      // what was written before
#else
    (void)start, (void)bytes;
#endif
}

// Every item into its columns. 0: done; 1: `bad` says which id is outside its space; 2: offsets lead outside the
// values; 3: no memory. After 1, 2 and 3 the outputs hold nothing of use.
EXPORT int64_t rows_gather(Work *work, int64_t lists) {
    for (int64_t k = 0; k < lists * work->rows; k++)
        if (work->offset[k] < 0 || work->offset[k] > work->offset[k + 1] || work->offset[k + 1] > work->values) return 2;
    Call call{work, nullptr, {}, {}};
    try {
        call.refused.resize(static_cast<size_t>(work->threads));
        run(work->threads, [](void *argument, int64_t t) {
            Call &c = *static_cast<Call *>(argument);
            const int64_t blocks = (c.work->rows + BLOCK - 1) / BLOCK, T = c.work->threads;
            Refused refused;
            kernels->gather(*c.work, blocks * t / T, blocks * (t + 1) / T, refused);
            c.refused[static_cast<size_t>(t)] = refused;
        }, &call);
    } catch (const std::bad_alloc &) {
        return 3;
    }
    Refused first;
    for (const Refused &r : call.refused)
        if (r.item >= 0) first.note(r.item, r.row, r.id);
    work->bad[0] = first.item, work->bad[1] = first.row, work->bad[2] = first.id;
    return first.item >= 0 ? 1 : 0;
}

// Gradients of the outputs to one gradient per distinct row and table; where `move` is given, the rows move at once.
// The offsets are those that rows_gather accepted. 0: done; 3: no memory.
EXPORT int64_t rows_reduce(Work *work, Distinct *distinct) {
    Call call{work, distinct, {}, {}};
    try {
        call.shares = shared_out(*work);
        run(work->threads, [](void *argument, int64_t t) {
            Call &c = *static_cast<Call *>(argument);
            const int64_t tables = c.work->tables;
            std::vector<Part> parts;
            std::vector<float> sum;
            try {
                int64_t widest = 1;
                for (int64_t k = 0; k < tables; k++) {
                    const Distinct &d = c.distinct[k];
                    const int64_t start = t * d.capacity;
                    parts.push_back(Part{d.slot, d.row + start, d.first + start, d.gradient + start * d.width, 0,
                                         d.width, 0, 1});
                    if (d.width > widest) widest = d.width;
                }
                sum.resize(static_cast<size_t>(widest));
            } catch (const std::bad_alloc &) {
                c.out_of_memory = true;
                return;
            }
            kernels->reduce(*c.work, c.shares[static_cast<size_t>(t)].data(), parts.data(), sum.data());
            for (int64_t k = 0; k < tables; k++) {
                const Distinct &d = c.distinct[k];
                const Part &p = parts[static_cast<size_t>(k)];
                d.used[t] = p.used;
                if (d.move) kernels->move32(*d.move, p.row, p.gradient, nullptr, p.used);
            }
        }, &call);
    } catch (const std::bad_alloc &) {
        return 3;
    }
    return call.out_of_memory ? 3 : 0;
}

// The threads' segments as one list, in the order in which rows were first met: rows, gradients, and the weights that
// the rows have now.
EXPORT void rows_collect(const Distinct *d, int64_t threads, const float *weight, int64_t step, int64_t *rows,
                         float *gradient, float *old) {
    const int64_t D = d->width;
    std::vector<int64_t> at(static_cast<size_t>(threads), 0);
    for (int64_t u = 0;; u++) {
        int64_t next = -1;
        for (int64_t t = 0; t < threads; t++) {
            const int64_t i = at[static_cast<size_t>(t)];
            if (i < d->used[t] && (next < 0 || d->first[t * d->capacity + i] <
                                                   d->first[next * d->capacity + at[static_cast<size_t>(next)]]))
                next = t;
        }
        if (next < 0) return;
        const int64_t i = next * d->capacity + at[static_cast<size_t>(next)]++;
        rows[u] = d->row[i];
        std::memcpy(gradient + u * D, d->gradient + i * D, static_cast<size_t>(D) * 4);
        std::memcpy(old + u * D, weight + rows[u] * step, static_cast<size_t>(D) * 4);
    }
}

// Move distinct rows whose gradients lie open; kind NONE brings only their averages up to date, `old` being the weights
// before the step.
EXPORT void rows_move(const Move *move, const int64_t *rows, const float *gradient, const float *old, int64_t count,
                      int64_t threads) {
    struct Range { const Move *m; const int64_t *rows; const float *g, *old; int64_t n, threads; };
    Range all{move, rows, gradient, old, count, threads};
    run(threads, [](void *argument, int64_t t) {
        const Range &r = *static_cast<Range *>(argument);
        const int64_t low = r.n * t / r.threads, high = r.n * (t + 1) / r.threads, D = r.m->width;
        kernels->move64(*r.m, r.rows + low, r.g ? r.g + low * D : nullptr, r.old ? r.old + low * D : nullptr,
                        high - low);
    }, &all);
}
