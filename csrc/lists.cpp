// Lists of n rows, each a flat array and offsets [n + 1]: where some rows' elements lie, which stand in another list of
// the row, and which match the row's own value. A plain C interface over raw pointers; data/derive.py does the same in
// numpy. Functions return -1 where a row or an offset lies outside, before anything there is read.

#include <algorithm>
#include <cstdint>
#include <vector>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int64_t FEW = 8;                 // compared one by one

// The codes of one row's list, to be asked for others. Slots are not cleared between rows, but dated.
class Present {
    std::vector<int64_t> keys_;
    std::vector<uint32_t> dates_;
    uint32_t now_ = 0;
    int shift_ = 64;

    uint64_t slot(int64_t key) const { return (static_cast<uint64_t>(key) * 0x9E3779B97F4A7C15u) >> shift_; }

  public:
    void fill(const int64_t* codes, int64_t n) {
        int bits = 4;
        while ((int64_t{1} << bits) < 2 * n) ++bits;
        if (bits > 64 - shift_ || ++now_ == 0) {
            bits = std::max(bits, 64 - shift_);
            keys_.assign(int64_t{1} << bits, 0);
            dates_.assign(int64_t{1} << bits, 0);
            shift_ = 64 - bits;
            now_ = 1;
        }
        const uint64_t mask = dates_.size() - 1;
        for (int64_t i = 0; i < n; ++i) {
            uint64_t at = slot(codes[i]);
            while (dates_[at] == now_ && keys_[at] != codes[i]) at = (at + 1) & mask;
            dates_[at] = now_, keys_[at] = codes[i];
        }
    }
    bool has(int64_t code) const {
        const uint64_t mask = dates_.size() - 1;
        for (uint64_t at = slot(code); dates_[at] == now_; at = (at + 1) & mask)
            if (keys_[at] == code) return true;
        return false;
    }
};

inline bool among(int64_t code, const int64_t* codes, int64_t n) {
    bool found = false;
    for (int64_t i = 0; i < n; ++i) found |= codes[i] == code;
    return found;
}

// `common(row, place)` is how many matches the element at a place has with its row's own.
template <class Common>
void count_matches(int64_t n, const int64_t* offsets, int64_t last, int64_t* count, double* recency, Common common) {
    for (int64_t row = 0; row < n; ++row) {
        const int64_t start = offsets[row], stop = offsets[row + 1];
        int64_t all = 0, nearest = -1;
        for (int64_t place = start; place < stop; ++place) {
            const int64_t more = common(row, place);
            if (more && (last || nearest < 0)) nearest = place;
            all += more;
        }
        count[row] = all;
        recency[row] = all ? 1.0 / static_cast<double>(1 + (last ? stop - 1 - nearest : nearest - start)) : 0.0;
    }
}

bool rising(int64_t n, const int64_t* offsets, int64_t size) {
    if (offsets[0] < 0 || offsets[n] > size) return false;
    for (int64_t i = 0; i < n; ++i)
        if (offsets[i + 1] < offsets[i]) return false;
    return true;
}

bool within(int64_t n, const int64_t* rows, int64_t least, int64_t end) {
    for (int64_t i = 0; i < n; ++i)
        if (rows[i] < least || rows[i] >= end) return false;
    return true;
}

}  // namespace

// The cell of each key [n] in a table whose first stands for `low`; what is outside gets the last cell.
API void lists_find(int64_t n, const int64_t* keys, int64_t low, int64_t cells, const int64_t* table, int64_t* out) {
    const uint64_t first = static_cast<uint64_t>(low), last = static_cast<uint64_t>(cells - 1);
    for (int64_t i = 0; i < n; ++i) out[i] = table[std::min(static_cast<uint64_t>(keys[i]) - first, last)];
}

// Offsets [n + 1] of lists number `rows` [n], one after another; row -1 has an empty list. Returns their last.
API int64_t lists_offsets(int64_t lists, const int64_t* offsets, int64_t n, const int64_t* rows, int64_t* out) {
    if (!within(n, rows, -1, lists)) return -1;
    out[0] = 0;
    for (int64_t i = 0; i < n; ++i) {
        const int64_t length = rows[i] < 0 ? 0 : offsets[rows[i] + 1] - offsets[rows[i]];
        if (length < 0) return -1;
        out[i + 1] = out[i] + length;
    }
    return out[n];
}

// Places of their elements.
API void lists_places(const int64_t* offsets, int64_t n, const int64_t* rows, const int64_t* out, int64_t* places) {
    for (int64_t i = 0; i < n; ++i)
        if (rows[i] >= 0) {
            const int64_t start = offsets[rows[i]] - out[i];
            for (int64_t at = out[i]; at < out[i + 1]; ++at) places[at] = start + at;
        }
}

// inside [size of a]: whether each element of list a stands in list b of its row.
API int64_t lists_inside(int64_t n, const int64_t* a, int64_t a_size, const int64_t* a_offsets, const int64_t* b,
                         int64_t b_size, const int64_t* b_offsets, uint8_t* inside) {
    if (!rising(n, a_offsets, a_size) || !rising(n, b_offsets, b_size)) return -1;
    Present present;
    for (int64_t row = 0; row < n; ++row) {
        const int64_t start = a_offsets[row], stop = a_offsets[row + 1];
        const int64_t* codes = b + b_offsets[row];
        const int64_t many = b_offsets[row + 1] - b_offsets[row];
        if (many > FEW && stop > start) {
            present.fill(codes, many);
            for (int64_t i = start; i < stop; ++i) inside[i] = present.has(a[i]);
        } else {
            for (int64_t i = start; i < stop; ++i) inside[i] = among(a[i], codes, many);
        }
    }
    return 0;
}

// Elements that equal their row's own code, where it has one.
API int64_t lists_match(int64_t n, const int64_t* own, const uint8_t* known, const int64_t* codes, int64_t size,
                        const int64_t* offsets, int64_t last, int64_t* count, double* recency) {
    if (!rising(n, offsets, size)) return -1;
    count_matches(n, offsets, last, count, recency, [=](int64_t row, int64_t place) -> int64_t {
        return known[row] & (codes[place] == own[row]);
    });
    return 0;
}

// The same through a table of r rows: own [n] and listed [size] are rows of it, -1 for none. Each row has the codes
// codes[each[i]:each[i + 1]], rising and each once; a match is a code that both have.
API int64_t lists_match_sets(int64_t n, const int64_t* own, const int64_t* listed, int64_t size, const int64_t* offsets,
                             int64_t r, const int64_t* codes, const int64_t* each, int64_t last, int64_t* count,
                             double* recency) {
    if (!rising(n, offsets, size) || !within(n, own, -1, r) || !within(size, listed, -1, r)) return -1;
    count_matches(n, offsets, last, count, recency, [=](int64_t row, int64_t place) -> int64_t {
        if (own[row] < 0 || listed[place] < 0) return 0;
        const int64_t *mine = codes + each[own[row]], *end = codes + each[own[row] + 1];
        int64_t common = 0;
        for (int64_t i = each[listed[place]]; i < each[listed[place] + 1]; ++i)
            common += end - mine > FEW ? std::binary_search(mine, end, codes[i]) : among(codes[i], mine, end - mine);
        return common;
    });
    return 0;
}
