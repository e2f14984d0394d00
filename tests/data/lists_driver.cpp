// Random work for csrc/lists.cpp in buffers of exactly the size that is promised, to be run under sanitizers.

#include "../../csrc/lists.cpp"

#include <cstdio>
#include <cstdlib>
#include <random>

static std::mt19937 draw(1);

static void check(bool good, const char* what) {
    if (!good) std::fprintf(stderr, "%s\n", what), std::exit(1);
}

static std::vector<int64_t> offsets_of(int64_t n, int64_t longest) {
    std::vector<int64_t> offsets(n + 1);
    for (int64_t i = 0; i < n; ++i) offsets[i + 1] = offsets[i] + draw() % (longest + 1);
    return offsets;
}

static std::vector<int64_t> codes_of(int64_t size, int64_t low, int64_t span) {
    std::vector<int64_t> codes(size);
    for (auto& code : codes) code = low + int64_t(draw() % span);
    return codes;
}

int main() {
    for (int turn = 0; turn < 400; ++turn) {
        const int64_t n = draw() % 20, span = 1 + draw() % 40, low = turn % 3 ? 0 : INT64_MIN;
        auto a_offsets = offsets_of(n, draw() % 30), b_offsets = offsets_of(n, draw() % 30);
        const auto a = codes_of(a_offsets[n], low, span), b = codes_of(b_offsets[n], low, span);
        std::vector<uint8_t> inside(a.size()), known(n, turn % 2);
        check(!lists_inside(n, a.data(), a.size(), a_offsets.data(), b.data(), b.size(), b_offsets.data(),
                            inside.data()), "inside");
        for (int64_t row = 0; row < n; ++row)
            for (int64_t i = a_offsets[row]; i < a_offsets[row + 1]; ++i)
                check(inside[i] == (std::find(b.begin() + b_offsets[row], b.begin() + b_offsets[row + 1], a[i])
                                    != b.begin() + b_offsets[row + 1]), "inside");
        const auto own = codes_of(n, low, span);
        std::vector<int64_t> count(n);
        std::vector<double> recency(n);
        check(!lists_match(n, own.data(), known.data(), a.data(), a.size(), a_offsets.data(), turn % 2, count.data(),
                           recency.data()), "match");
        const int64_t r = 1 + draw() % 10;
        const auto each = offsets_of(r, 12);
        auto codes = codes_of(each[r], 0, 40);
        for (int64_t i = 0; i < r; ++i) std::sort(codes.begin() + each[i], codes.begin() + each[i + 1]);
        const auto mine = codes_of(n, -1, r + 1), listed = codes_of(a.size(), -1, r + 1);
        check(!lists_match_sets(n, mine.data(), listed.data(), listed.size(), a_offsets.data(), r, codes.data(),
                                each.data(), turn % 2, count.data(), recency.data()), "sets");
        std::vector<int64_t> out(listed.size() + 1);
        const int64_t size = lists_offsets(r, each.data(), listed.size(), listed.data(), out.data());
        std::vector<int64_t> places(size);
        lists_places(each.data(), listed.size(), listed.data(), out.data(), places.data());
        for (const int64_t place : places) check(place >= 0 && place < each[r], "places");
        const auto keys = codes_of(50, turn % 2 ? INT64_MIN : -20, 60), table = codes_of(30, 0, 9);
        std::vector<int64_t> found(50);
        lists_find(50, keys.data(), -10, 30, table.data(), found.data());
        if (n) {                           // whatever offsets and rows say
            a_offsets[n] += turn % 2 ? 1 : -a_offsets[n] - 1;
            check(lists_inside(n, a.data(), a.size(), a_offsets.data(), b.data(), b.size(), b_offsets.data(),
                               inside.data()) == -1, "offsets outside");
            auto wrong = mine;
            wrong[draw() % n] = turn % 2 ? r : -2;
            check(lists_offsets(r, each.data(), n, wrong.data(), out.size() > size_t(n) ? out.data() : nullptr) == -1,
                  "a row outside");
        }
    }
}
