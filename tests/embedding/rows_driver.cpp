// Random work for csrc/rows.cpp in buffers of exactly the size that is promised, to be run under sanitizers.

#include "../../csrc/rows.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

template <class T>
struct Exact {                       // n elements and not one more
    std::unique_ptr<T[]> held;
    explicit Exact(int64_t n) : held(new T[static_cast<size_t>(n)]()) {}
    T *at() { return held.get(); }
    T &operator[](int64_t i) { return held[static_cast<size_t>(i)]; }
};

static void demand(bool holds, const char *what) {
    if (!holds) std::fprintf(stderr, "%s\n", what), std::exit(1);
}

static void once(uint32_t seed) {
    std::mt19937 random(seed);
    const auto draw = [&](int64_t n) { return static_cast<int64_t>(random() % static_cast<uint32_t>(n)); };
    const int64_t widths[] = {1, 3, 16, 32, 64, 24};
    const int64_t B = draw(4) ? draw(100) : draw(2), F = 1 + draw(3), K = draw(3), D = widths[draw(6)], T = 1 + draw(3);
    const int64_t space = 1 + draw(50), table_rows = 2 * space;
    const int64_t step = D + draw(2) * draw(9), gap = 1 + draw(3), spread = (table_rows - 1) * step + D;
    Exact<int32_t> ids(B * F);
    Exact<int64_t> offsets(K * B + 1);
    for (int64_t i = 0; i < K * B; i++) offsets[i + 1] = offsets[i] + draw(5);
    const int64_t n = offsets[K * B];
    Exact<int32_t> values(n);
    Exact<float> weights(n), numbers(B), table(spread);
    for (int64_t i = 0; i < B * F; i++) ids[i] = static_cast<int32_t>(draw(space));
    for (int64_t i = 0; i < n; i++) values[i] = static_cast<int32_t>(draw(space)), weights[i] = 0.5f;

    const int64_t W = (F + K) * D + 1;
    std::vector<Item> plan;
    std::vector<int64_t> strides{W};
    std::vector<std::unique_ptr<Exact<float>>> outputs;
    outputs.push_back(std::make_unique<Exact<float>>(B * W));
    for (int64_t f = 0; f < F; f++) plan.push_back({ID, f, 0, f % 2 * space, space, 0, f * D, D, 0});
    for (int64_t k = 0; k < K; k++) plan.push_back({POOL, k, 0, space, space, 0, (F + k) * D, D, k % 2});
    plan.push_back({NUMBER, 0, 0, 0, 0, 0, W - 1, 1, 0});
    std::vector<Copy> copies{{0, 1, 0}};
    outputs.push_back(std::make_unique<Exact<float>>(B * D));
    strides.push_back(D);
    for (int64_t k = 0; k < K; k++) {
        plan.push_back({JAGGED, k, 0, 0, space, 2 + k, 0, D, 0});
        outputs.push_back(std::make_unique<Exact<float>>((offsets[(k + 1) * B] - offsets[k * B]) * D));
        strides.push_back(D);
    }
    std::vector<float *> places;
    for (auto &output : outputs) places.push_back(output->at());
    float *tables[] = {table.at()};
    int64_t steps[] = {step};
    Work work{B, F, 1, n, 1, static_cast<int64_t>(plan.size()), 1, T, ids.at(), numbers.at(), values.at(), offsets.at(),
              draw(2) ? weights.at() : nullptr, plan.data(), copies.data(), tables, steps, places.data(), strides.data(), {}};
    demand(rows_gather(&work, K) == 0, "gather refused good ids");
    if (B) {
        for (const int32_t wrong : {-1, INT32_MIN, INT32_MAX, static_cast<int32_t>(space)}) {
            int32_t &id = n && draw(2) ? values[draw(n)] : ids[draw(B * F)];
            const int32_t right = id;
            id = wrong;
            demand(rows_gather(&work, K) == 1 && work.bad[2] == wrong, "gather took a wrong id");
            id = right;
        }
        if (K) {
            const int64_t at = draw(K * B), right = offsets[at];
            for (const int64_t wrong : {int64_t{-1}, n + 1, INT64_MAX}) {
                offsets[at] = wrong;
                demand(rows_gather(&work, K) == 2, "gather took wrong offsets");
            }
            offsets[at] = right;
        }
    }

    const int64_t capacity = std::min(table_rows, B * F + n);
    Exact<uint32_t> slot(table_rows);
    for (int64_t i = 0; i < table_rows; i++) slot[i] = static_cast<uint32_t>(random());           // of any content
    Exact<int32_t> row(T * capacity), first(T * capacity);
    Exact<float> gradient(T * capacity * D), average(spread), s1(spread), s2(spread);
    Exact<double> seen((table_rows - 1) * gap + 1);
    Exact<int64_t> used(T);
    for (int64_t kind = SGD; kind <= FTRL; kind++) {
        Move move{kind, D, step, step, step, gap, table.at(), kind > SGD ? s1.at() : nullptr, kind >= ADAM ? s2.at() : nullptr,
                  draw(2) ? average.at() : nullptr, seen.at(), -1, -1.1, 0.1f, 0.1f, 1e-8f, 0, 0, 0.1f, 0.9f, 0.1f, 0.9f};
        const bool fused = draw(2);
        Distinct distinct{D, capacity, slot.at(), row.at(), first.at(), gradient.at(), used.at(), fused ? &move : nullptr};
        if (K && draw(3) == 0) places.back() = nullptr;                                          // no gradient there
        demand(rows_reduce(&work, &distinct) == 0, "reduce failed");
        int64_t U = 0;
        for (int64_t t = 0; t < T; t++) U += used[t];
        Exact<int64_t> rows(U);
        Exact<float> grad(U * D), old(U * D);
        rows_collect(&distinct, T, table.at(), step, rows.at(), grad.at(), old.at());
        if (!fused) rows_move(&move, rows.at(), grad.at(), nullptr, U, T);
        move.kind = NONE, move.average = average.at();
        rows_move(&move, rows.at(), nullptr, old.at(), U, T);
    }
}

int main() {
    for (int64_t level = 0; level < 3; level++) {
        rows_level(level);
        for (uint32_t seed = 0; seed < 150; seed++) once(seed);
    }
}
