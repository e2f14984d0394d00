// Random work for csrc/take.cpp in buffers of exactly the size that is promised, to be run under sanitizers.

#include "../../csrc/sort.cpp"
#include "../../csrc/take.cpp"

#include <cstdio>
#include <cstdlib>
#include <random>

static void check(bool good, const char* what) {
    if (!good) { std::fprintf(stderr, "%s\n", what); std::exit(1); }
}

int main() {
    std::mt19937 random(1);
    for (int turn = 0; turn < 300; ++turn) {
        const int64_t rows = 1 + random() % 60, batch = random() % 80, width = 1 + random() % 30;
        const int64_t apart = (width + turn % 3) * 4;              // rows, with a gap or without
        std::vector<int32_t> from(rows * apart / 4), to(batch * width);
        for (auto& x : from) x = int32_t(random());
        std::vector<int64_t> order(batch), offsets(rows + 1), starts(2 * batch), out(2 * batch + 1);
        for (auto& x : order) x = random() % rows;
        for (int64_t i = 0; i < rows; ++i) offsets[i + 1] = offsets[i] + random() % (turn % 2 ? 3 : 40);
        std::vector<int32_t> values(offsets[rows]);
        for (auto& x : values) x = int32_t(random());
        std::vector<float> weights(values.begin(), values.end());
        const Column column{width, apart, reinterpret_cast<char*>(from.data()), to.data()};
        const char* begins = reinterpret_cast<char*>(offsets.data());
        const List lists[2] = {{int64_t(values.size()), 8, begins, values.data(), weights.data()},
                               {int64_t(values.size()), 8, begins, values.data(), nullptr}};
        Work work{rows, batch, 1, 2, order.data(), &column, lists, starts.data(), out.data(), nullptr, nullptr};
        const int64_t size = take_rows(&work);
        check(size == out.back(), "the size is the last offset");
        std::vector<int32_t> taken(size);
        std::vector<float> weighed(size);
        work.values = taken.data(), work.weights = weighed.data();
        take_values(&work);
        for (int64_t i = 0, at = 0; i < 2 * batch; ++i) {
            const int64_t row = order[i % batch];
            check(!std::memcmp(to.data() + i % batch * width, from.data() + row * apart / 4, width * 4), "columns");
            for (int64_t v = offsets[row]; v < offsets[row + 1]; ++v, ++at)
                check(taken[at] == values[v] && weighed[at] == (i < batch ? weights[v] : 1), "lists");
        }
        if (batch) {                       // whatever rows and offsets say
            order[random() % batch] = turn % 2 ? rows : -1;
            check(take_rows(&work) == -1, "a row outside");
            order.assign(batch, rows - 1);
            offsets[rows] += turn % 2 ? 1 : -offsets[rows] - 1;
            check(take_rows(&work) == -1, "an offset outside");
        }
        std::vector<uint64_t> keys(turn % 50 ? random() % 1500 : 140000), scratch(keys.size());
        for (auto& x : keys) x = turn % 5 ? random() * 0x9E3779B97F4A7C15u : random() % 100;
        auto sorted = keys;
        std::sort(sorted.begin(), sorted.end());
        sort_keys(keys.data(), scratch.data(), int64_t(keys.size()), 8);
        check(keys == sorted, "sorted");
        std::vector<uint32_t> small(keys.size()), room(keys.size());
        for (auto& x : small) x = static_cast<uint32_t>(random());
        sort_keys(small.data(), room.data(), int64_t(small.size()), 4);
        check(std::is_sorted(small.begin(), small.end()), "small keys sorted");
    }
}
