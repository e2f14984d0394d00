// Rows of a split, in any order, as one contiguous batch. A plain C interface over raw pointers.
//
//   take_lists   where each row's lists begin, and the offsets they get in the batch
//   take_rows    copies columns and lists
//
// Rows lie scattered over memory far larger than a cache, so what is needed AHEAD rows later is asked for now; without
// that, waiting for memory is nine tenths of the time. Nothing outside the arrays is read, whatever rows and offsets say.

#include <cstdint>
#include <cstring>
#include <algorithm>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t AHEAD = 16;              // rows
constexpr int64_t LINE = 64;               // bytes of a cache line
constexpr int64_t LINES = 4;               // of one row's list or column that are asked for; hardware follows from there

struct Column {
    int64_t width;                         // bytes a row
    const char* from;                      // [rows, width]
    char* to;                              // [batch, width]
};

struct List {
    int64_t size;                          // values
    const int64_t* offsets;                // [rows + 1]
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

inline void ask(const char* at, int64_t bytes) {
    const char* end = at + std::min(bytes, LINE * LINES);
    for (; at < end; at += LINE) __builtin_prefetch(at);
    if (bytes > 0) __builtin_prefetch(end - 1);
}

template <int64_t WIDTH>
void copy_column(const Work& w, const Column& c) {
    const int64_t width = WIDTH ? WIDTH : c.width;
    for (int64_t i = 0; i < w.batch; ++i) {
        if (i + AHEAD < w.batch) ask(c.from + w.order[i + AHEAD] * width, width);
        std::memcpy(c.to + i * width, c.from + w.order[i] * width, width);
    }
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

// Fills starts and offsets; how many values all lists have, or -1 where a row or an offset lies outside.
API int64_t take_lists(const Work* work) {
    const Work& w = *work;
    for (int64_t i = 0; i < w.batch; ++i)
        if (w.order[i] < 0 || w.order[i] >= w.rows) return -1;
    int64_t end = 0;
    w.offsets[0] = 0;
    for (int64_t k = 0; k < w.lists; ++k) {
        const List& list = w.list[k];
        for (int64_t i = 0; i < w.batch; ++i) {
            if (i + AHEAD < w.batch) __builtin_prefetch(list.offsets + w.order[i + AHEAD]);
            const int64_t start = list.offsets[w.order[i]], stop = list.offsets[w.order[i] + 1];
            if (start < 0 || stop < start || stop > list.size) return -1;
            w.starts[k * w.batch + i] = start;
            w.offsets[k * w.batch + i + 1] = end += stop - start;
        }
    }
    return end;
}

API void take_rows(const Work* work) {
    const Work& w = *work;
    for (int64_t c = 0; c < w.columns; ++c) {
        const Column& column = w.column[c];
        if (column.width == 4) copy_column<4>(w, column);
        else if (column.width == 8) copy_column<8>(w, column);
        else copy_column<0>(w, column);
    }
    for (int64_t k = 0; k < w.lists; ++k) {
        copy_list(w, k, w.list[k].values, w.values);
        if (!w.weights) continue;
        if (w.list[k].weights) copy_list(w, k, w.list[k].weights, w.weights);
        else std::fill(w.weights + w.offsets[k * w.batch], w.weights + w.offsets[(k + 1) * w.batch], 1.0f);
    }
}
