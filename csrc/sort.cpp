// Unsigned keys sorted in place, by their bytes from the lowest to the highest. A plain C interface over raw pointers.
//
// Its time does not depend on the processor's instructions: on some, those with which vectorised sorts write what
// they keep of a vector are so slow that such a sort takes six times as long.

#include <cstdint>
#include <cstring>
#include <utility>

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

template <class T>
void sort(T *keys, T *scratch, int64_t n) {
    constexpr int DIGITS = sizeof(T), VALUES = 256;
    int64_t count[DIGITS][VALUES] = {};
    for (int64_t i = 0; i < n; i++)
        for (int d = 0; d < DIGITS; d++) count[d][keys[i] >> (8 * d) & 255]++;
    T *from = keys, *to = scratch;
    for (int d = 0; d < DIGITS; d++) {
        int64_t *at = count[d];
        if (n && at[from[0] >> (8 * d) & 255] == n) continue;                // all alike
        int64_t start = 0;
        for (int v = 0; v < VALUES; v++) {
            const int64_t size = at[v];
            at[v] = start, start += size;
        }
        for (int64_t i = 0; i < n; i++) to[at[from[i] >> (8 * d) & 255]++] = from[i];
        std::swap(from, to);
    }
    if (from != keys) std::memcpy(keys, from, static_cast<size_t>(n) * sizeof(T));
}

}  // namespace

// n keys of 4 or 8 bytes, and as much room again.
EXPORT void sort_keys(void *keys, void *scratch, int64_t n, int64_t bytes) {
    if (bytes == 4)
        sort(static_cast<uint32_t *>(keys), static_cast<uint32_t *>(scratch), n);
    else
        sort(static_cast<uint64_t *>(keys), static_cast<uint64_t *>(scratch), n);
}
