// Distinct keys, texts or whole numbers, found by their value: a table of slots by open addressing, made by the caller.
// A plain C interface over raw pointers; data/tables.py does the same with sorted hashes in numpy.
//
//   keys_index   enters keys 0 .. n - 1 into slots, and says for each where the first one like it stands
//   keys_find    where each of other values stands among them
//
// A slot holds 16 bits of its key's hash above the key's number, and only a key whose bits agree is compared, byte by
// byte. Slots lie scattered over memory larger than a cache: those of a BLOCK of values are asked for before the first
// of them is looked at, and then the keys that they name.

#include <algorithm>
#include <cstdint>
#include <cstring>

#define API extern "C" __attribute__((visibility("default")))

namespace {

constexpr int NUMBER_BITS = 48;                                // of a slot
constexpr uint64_t NUMBER = (uint64_t{1} << NUMBER_BITS) - 1, EMPTY = ~uint64_t{0};
constexpr int64_t BLOCK = 64;
constexpr uint64_t ODD[] = {0x9E3779B97F4A7C15u, 0xD6E8FEB86659FD93u, 0xA0761D6478BD642Fu};

inline uint64_t mix(uint64_t a, uint64_t b) {
    const auto product = static_cast<unsigned __int128>(a) * b;
    return static_cast<uint64_t>(product) ^ static_cast<uint64_t>(product >> 64);
}

struct Texts {
    const int64_t* offsets;                                    // [n + 1]
    const char* bytes;

    int64_t size(int64_t i) const { return offsets[i + 1] - offsets[i]; }
    uint64_t hash(int64_t i) const {
        const char* at = bytes + offsets[i];
        int64_t left = size(i);
        uint64_t h = ODD[0] * static_cast<uint64_t>(left + 1), word = 0;
        for (; left >= 8; left -= 8, at += 8) {
            std::memcpy(&word, at, 8);
            h = mix(h ^ word, ODD[1]);
        }
        word = 0;
        if (left) std::memcpy(&word, at, left);
        return mix(mix(h ^ word, ODD[1]) ^ ODD[0], ODD[2]);
    }
    bool same(int64_t i, const Texts& other, int64_t j) const {
        const int64_t length = size(i);
        return length == other.size(j) && (!length || !std::memcmp(bytes + offsets[i], other.bytes + other.offsets[j],
                                                                   length));
    }
    void ask(int64_t i) const { __builtin_prefetch(offsets + i); }
};

struct Numbers {
    const int64_t* values;                                     // [n]

    uint64_t hash(int64_t i) const { return mix(mix(static_cast<uint64_t>(values[i]) ^ ODD[0], ODD[1]) ^ ODD[0],
                                                ODD[2]); }
    bool same(int64_t i, const Numbers& other, int64_t j) const { return values[i] == other.values[j]; }
    void ask(int64_t i) const { __builtin_prefetch(values + i); }
};

struct Slots {
    uint64_t* slots;                                           // [mask + 1], at least one of them EMPTY
    uint64_t mask;

    // The slot of a key with this hash, or the EMPTY one where it would be.
    template <class Keys>
    uint64_t& of(uint64_t hash, const Keys& keys, const Keys& query, int64_t i) const {
        for (uint64_t at = hash & mask;; at = (at + 1) & mask) {
            uint64_t& slot = slots[at];
            if (slot == EMPTY || (!((slot ^ hash) >> NUMBER_BITS) && query.same(i, keys, slot & NUMBER))) return slot;
        }
    }
    uint64_t& first(uint64_t hash) const { return slots[hash & mask]; }
};

// `work(i, hash, slot)` for each value of the query, its slot as `Slots::of` finds it.
template <class Keys, class Work>
void each(int64_t n, const Keys& query, const Keys& keys, const Slots& slots, Work work) {
    uint64_t hashes[BLOCK];
    for (int64_t start = 0; start < n; start += BLOCK) {
        const int64_t many = std::min(BLOCK, n - start);
        for (int64_t i = 0; i < many; ++i) {
            hashes[i] = query.hash(start + i);
            __builtin_prefetch(&slots.first(hashes[i]));
        }
        for (int64_t i = 0; i < many; ++i)
            if (const uint64_t slot = slots.first(hashes[i]); slot != EMPTY) keys.ask(slot & NUMBER);
        for (int64_t i = 0; i < many; ++i)
            work(start + i, hashes[i], slots.of(hashes[i], keys, query, start + i));
    }
}

template <class Keys>
int64_t index(int64_t n, const Keys& keys, const Slots& slots, int64_t* first) {
    int64_t repeated = 0;
    each(n, keys, keys, slots, [&](int64_t i, uint64_t hash, uint64_t& slot) {
        if (slot == EMPTY) slot = (hash & ~NUMBER) | static_cast<uint64_t>(i);
        else ++repeated;
        if (first) first[i] = static_cast<int64_t>(slot & NUMBER);
    });
    return repeated;
}

template <class Keys>
void find(int64_t n, const Keys& query, const Keys& keys, const Slots& slots, int64_t* out) {
    each(n, query, keys, slots, [&](int64_t i, uint64_t, uint64_t& slot) {
        out[i] = slot == EMPTY ? -1 : static_cast<int64_t>(slot & NUMBER);
    });
}

}  // namespace

// Texts are offsets [n + 1] and bytes; whole numbers are values [n], and null for bytes. `size` is a power of two and
// larger than n; slots [size] are all ones. Only the first of equal keys is found: `first` [n], or null, is where it
// stands. Returns how many keys are like one before.
API int64_t keys_index(int64_t n, const int64_t* keys, const char* bytes, int64_t size, uint64_t* slots,
                       int64_t* first) {
    const Slots all{slots, static_cast<uint64_t>(size - 1)};
    return bytes ? index(n, Texts{keys, bytes}, all, first) : index(n, Numbers{keys}, all, first);
}

// The number of each value [n] of `query` among the keys that `slots` was made of, -1 for one that is none.
API void keys_find(int64_t n, const int64_t* query, const char* query_bytes, const int64_t* keys, const char* bytes,
                   int64_t size, uint64_t* slots, int64_t* out) {
    const Slots all{slots, static_cast<uint64_t>(size - 1)};
    if (bytes) find(n, Texts{query, query_bytes}, Texts{keys, bytes}, all, out);
    else find(n, Numbers{query}, Numbers{keys}, all, out);
}
