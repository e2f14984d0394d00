// Rows of a split, in any order, as one contiguous batch. A plain C interface over raw pointers.
//
//   take_rows     copies columns, and finds where each row's lists begin and the offsets they get in the batch
//   take_values   copies lists
//
// Rows lie scattered over memory far larger than a cache, so what is needed AHEAD rows later is asked for now; without
// that, waiting for memory is nine tenths of the time. Columns side by side, as in a cache's records, are asked for as
// one piece. Nothing outside the arrays is read, whatever rows and offsets say.

#include <cstdint>
#include <cstring>
#include <algorithm>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t AHEAD = 16;              // rows
constexpr int64_t LINE = 64;               // bytes of a cache line
constexpr int64_t LINES = 4;               // of one row's list or piece that are asked for; hardware follows from there

struct Column {
    int64_t width;                         // 4 byte words a row
    int64_t stride;                        // bytes from row to row
    const char* from;                      // [rows, width]
    int32_t* to;                           // [batch, width]
};

struct List {
    int64_t size;                          // values
    int64_t stride;                        // bytes from offset to offset
    const char* offsets;                   // [rows + 1] int64
    const int32_t* values;                 // [size]
    const float* weights;                  // [size], or null: each weighs 1
};

struct Work {
    int64_t rows, batch, columns, lists;
    const int64_t* order;                  // [batch] rows
    const Column* column;                  // [columns]
    const List* list;                      // [lists]
    int64_t* starts;                       // [lists * batch]
    int64_t* offsets;                      // [lists * batch + 1]
    int32_t* values;                       // [offsets[last]]
    float* weights;                        // the same, or null: no list has weights
};

struct Piece {                             // of a row: one column, or several side by side
    const char* from;
    int64_t stride, bytes;
};

inline void ask(const char* at, int64_t bytes) {
    const char* end = at + std::min(bytes, LINE * LINES);
    for (; at < end; at += LINE) __builtin_prefetch(at);
    if (bytes > 0) __builtin_prefetch(end - 1);
}

inline int64_t number(const char* at) {
    int64_t n;
    std::memcpy(&n, at, sizeof n);
    return n;
}

std::vector<Piece> pieces(const Work& w) {
    std::vector<Piece> all, joined;
    for (int64_t c = 0; c < w.columns; ++c)
        all.push_back({w.column[c].from, w.column[c].stride, w.column[c].width * int64_t{sizeof(int32_t)}});
    for (int64_t k = 0; k < w.lists; ++k)
        for (int64_t end : {0, 1})
            all.push_back({w.list[k].offsets + end * w.list[k].stride, w.list[k].stride, int64_t{sizeof(int64_t)}});
    std::sort(all.begin(), all.end(), [](const Piece& a, const Piece& b) { return a.from < b.from; });
    for (const Piece& p : all) {
        const int64_t at = joined.empty() ? 0 : p.from - joined.back().from;
        if (!joined.empty() && p.stride == joined.back().stride && at <= joined.back().bytes + LINE)
            joined.back().bytes = std::max(joined.back().bytes, at + p.bytes);
        else
            joined.push_back(p);
    }
    return joined;
}

// Short and of many lengths, which a call of memcpy guesses wrong: 16 bytes at a time, the last 16 again.
template <class T>
inline void copy(T* to, const T* from, int64_t n) {
    constexpr int64_t STEP = 16 / sizeof(T);
    if (n < STEP) {
        for (int64_t i = 0; i < n; ++i) to[i] = from[i];
        return;
    }
    for (int64_t i = 0; i + STEP <= n; i += STEP) std::memcpy(to + i, from + i, 16);
    std::memcpy(to + n - STEP, from + n - STEP, 16);
}

template <class T>
void copy_list(const Work& w, int64_t k, const T* from, T* to) {
    const int64_t* starts = w.starts + k * w.batch;
    const int64_t* offsets = w.offsets + k * w.batch;
    for (int64_t i = 0; i < w.batch; ++i) {
        if (i + AHEAD < w.batch) {
            const int64_t next = i + AHEAD;
            ask(reinterpret_cast<const char*>(from + starts[next]), (offsets[next + 1] - offsets[next]) * sizeof(T));
        }
        copy(to + offsets[i], from + starts[i], offsets[i + 1] - offsets[i]);
    }
}

}  // namespace

// Fills columns, starts and offsets; how many values all lists have, or -1 where a row or an offset lies outside.
API int64_t take_rows(const Work* work) {
    const Work& w = *work;
    for (int64_t i = 0; i < w.batch; ++i)
        if (w.order[i] < 0 || w.order[i] >= w.rows) return -1;
    const std::vector<Piece> asked = pieces(w);
    bool good = true;
    for (int64_t i = 0; i < w.batch; ++i) {
        const int64_t row = w.order[i];
        if (i + AHEAD < w.batch)
            for (const Piece& p : asked) ask(p.from + w.order[i + AHEAD] * p.stride, p.bytes);
        for (int64_t c = 0; c < w.columns; ++c) {
            const Column& column = w.column[c];
            copy(column.to + i * column.width, reinterpret_cast<const int32_t*>(column.from + row * column.stride),
                 column.width);
        }
        for (int64_t k = 0; k < w.lists; ++k) {
            const List& list = w.list[k];
            const char* at = list.offsets + row * list.stride;
            const int64_t start = number(at), stop = number(at + list.stride);
            good &= 0 <= start && start <= stop && stop <= list.size;
            w.starts[k * w.batch + i] = start;
            w.offsets[k * w.batch + i + 1] = good ? stop - start : 0;
        }
    }
    if (!good) return -1;
    w.offsets[0] = 0;
    for (int64_t i = 0; i < w.lists * w.batch; ++i) w.offsets[i + 1] += w.offsets[i];
    return w.offsets[w.lists * w.batch];
}

API void take_values(const Work* work) {
    const Work& w = *work;
    for (int64_t k = 0; k < w.lists; ++k) {
        copy_list(w, k, w.list[k].values, w.values);
        if (!w.weights) continue;
        if (w.list[k].weights) copy_list(w, k, w.list[k].weights, w.weights);
        else std::fill(w.weights + w.offsets[k * w.batch], w.weights + w.offsets[(k + 1) * w.batch], 1.0f);
    }
}
