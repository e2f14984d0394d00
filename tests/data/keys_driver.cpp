// Random work for csrc/keys.cpp in buffers of exactly the size that is promised, to be run under sanitizers.

#include "../../csrc/keys.cpp"

#include <cstdio>
#include <cstdlib>
#include <map>
#include <random>
#include <string>
#include <vector>

static std::mt19937 draw(1);

static void check(bool good, const char* what) {
    if (!good) std::fprintf(stderr, "%s\n", what), std::exit(1);
}

static std::vector<uint64_t> slots_for(int64_t n) {
    int64_t size = 2;
    while (size <= n) size *= 2;                       // fuller than they ever are
    return std::vector<uint64_t>(size, ~uint64_t{0});
}

template <class Value>
static std::map<Value, int64_t> first_places(const std::vector<Value>& keys) {
    std::map<Value, int64_t> first;
    for (size_t i = 0; i < keys.size(); ++i) first.emplace(keys[i], i);
    return first;
}

template <class Value>
static void compare(const std::vector<Value>& keys, const std::vector<Value>& query, int64_t repeated,
                    const std::vector<int64_t>& found) {
    const auto first = first_places(keys);
    check(repeated == int64_t(keys.size() - first.size()), "repeated");
    for (size_t i = 0; i < query.size(); ++i) {
        const auto at = first.find(query[i]);
        check(found[i] == (at == first.end() ? -1 : at->second), "found");
    }
}

struct Packed {
    std::vector<int64_t> offsets{0};
    std::vector<char> bytes;

    explicit Packed(const std::vector<std::string>& texts) {
        for (const auto& text : texts) {
            bytes.insert(bytes.end(), text.begin(), text.end());
            offsets.push_back(bytes.size());
        }
        bytes.shrink_to_fit();
    }
    const char* data() const { return bytes.empty() ? reinterpret_cast<const char*>(offsets.data()) : bytes.data(); }
};

int main() {
    for (int turn = 0; turn < 400; ++turn) {
        const int64_t n = draw() % 300, m = draw() % 300, longest = draw() % 20;
        std::vector<std::string> texts(n), others(m);
        for (auto* all : {&texts, &others})
            for (auto& text : *all)
                for (int64_t left = draw() % (longest + 1); left; --left) text.push_back('a' + draw() % 3);
        const Packed keys(texts), query(others);
        auto slots = slots_for(n);
        std::vector<int64_t> found(m);
        std::vector<int64_t> first(n);
        const int64_t repeated = keys_index(n, keys.offsets.data(), keys.data(), slots.size(), slots.data(),
                                            turn % 2 ? first.data() : nullptr);
        if (turn % 2)
            for (int64_t i = 0; i < n; ++i) check(first_places(texts)[texts[i]] == first[i], "first");
        keys_find(m, query.offsets.data(), query.data(), keys.offsets.data(), keys.data(), slots.size(), slots.data(),
                  found.data());
        compare(texts, others, repeated, found);
        std::vector<int64_t> numbers(n), asked(m);
        for (auto* all : {&numbers, &asked})
            for (auto& number : *all) number = int64_t(draw() % 500) * (turn % 2 ? 1 : INT64_MAX / 500);
        slots = slots_for(n);
        const int64_t twice = keys_index(n, numbers.data(), nullptr, slots.size(), slots.data(), nullptr);
        keys_find(m, asked.data(), nullptr, numbers.data(), nullptr, slots.size(), slots.data(), found.data());
        compare(numbers, asked, twice, found);
    }
}
