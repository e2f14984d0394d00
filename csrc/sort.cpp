// Unsigned keys sorted in place by their bytes. A plain C interface over raw pointers.
//
// Many keys are parted by their highest byte until a part fits a core's own cache, and each part is sorted there from
// the lowest byte up: so memory is walked over once or twice instead of once a byte. Its time does not depend on the
// processor's instructions: on some, those with which vectorised sorts write what they keep of a vector are so slow
// that such a sort takes six times as long.

#include <cstdint>
#include <cstring>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

constexpr int VALUES = 256;                // of a byte
constexpr int64_t FITS = 1 << 16;          // keys of a part that is sorted within a cache
constexpr int64_t FEW = 32;                // keys that are sorted by insertion

template <class T>
int byte_of(T key, int d) { return static_cast<int>(key >> (8 * d) & 255); }

// Counts of each value of a byte become where the keys with it begin.
void begin_at(int64_t *count) {
    int64_t start = 0;
    for (int v = 0; v < VALUES; v++) {
        const int64_t size = count[v];
        count[v] = start, start += size;
    }
}

template <class T>
void insert(T *keys, int64_t n) {
    for (int64_t i = 1; i < n; i++) {
        const T key = keys[i];
        int64_t k = i;
        for (; k && keys[k - 1] > key; k--) keys[k] = keys[k - 1];
        keys[k] = key;
    }
}

// Keys that differ in bytes d .. 0 alone, from the lowest byte up. Where they end is returned: in keys, or in spare.
template <class T>
T *upwards(T *keys, T *spare, int64_t n, int d) {
    int64_t count[sizeof(T)][VALUES] = {};
    for (int64_t i = 0; i < n; i++)
        for (int k = 0; k <= d; k++) count[k][byte_of(keys[i], k)]++;
    for (int k = 0; k <= d; k++) {
        if (count[k][byte_of(keys[0], k)] == n) continue;                    // all alike
        begin_at(count[k]);
        for (int64_t i = 0; i < n; i++) spare[count[k][byte_of(keys[i], k)]++] = keys[i];
        std::swap(keys, spare);
    }
    return keys;
}

// The same of any number of them, into `keys` where they stay, or else into `spare`.
template <class T>
void sort(T *keys, T *spare, int64_t n, int d, bool stay) {
    T *end = keys;
    if (n <= FEW) {
        insert(keys, n);
    } else if (n <= FITS) {
        end = upwards(keys, spare, n, d);
    } else {
        for (; d >= 0; d--) {
            int64_t at[VALUES] = {};
            for (int64_t i = 0; i < n; i++) at[byte_of(keys[i], d)]++;
            if (at[byte_of(keys[0], d)] == n) continue;
            begin_at(at);
            for (int64_t i = 0; i < n; i++) spare[at[byte_of(keys[i], d)]++] = keys[i];
            for (int64_t v = 0, start = 0; v < VALUES; start = at[v], v++)       // `at` is where each part ends now
                sort(spare + start, keys + start, at[v] - start, d - 1, !stay);
            return;
        }
    }
    if (end != (stay ? keys : spare)) std::memcpy(stay ? keys : spare, end, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace

// n keys of 4 or 8 bytes, and as much room again.
EXPORT void sort_keys(void *keys, void *scratch, int64_t n, int64_t bytes) {
    if (bytes == 4)
        sort(static_cast<uint32_t *>(keys), static_cast<uint32_t *>(scratch), n, 3, true);
    else
        sort(static_cast<uint64_t *>(keys), static_cast<uint64_t *>(scratch), n, 7, true);
}
