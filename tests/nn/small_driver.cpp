// Random small layers in buffers of exactly their size, for the sanitizers.
#include "../../csrc/small.cpp"

#include <cstdio>
#include <cstdlib>
#include <memory>
#include <random>

int main() {
    std::mt19937 random(1);
    const auto draw = [&](int64_t low, int64_t high) { return low + static_cast<int64_t>(random() % (high - low + 1)); };
    std::vector<std::unique_ptr<float[]>> kept;
    const auto numbers = [&](int64_t n) {
        kept.emplace_back(new float[n]);
        for (int64_t i = 0; i < n; i++) kept.back()[i] = static_cast<float>(random() % 2001) / 1000 - 1;
        return kept.back().get();
    };
    for (int trial = 0; trial < 100; trial++) {
        kept.clear();
        const int64_t rows = trial % 50 ? draw(2, 200) : draw(8200, 9000), count = draw(1, 3), stack = draw(1, 3);
        std::vector<Layer> layers(count);
        int64_t width = draw(1, 70);
        for (int64_t l = 0; l < count; l++) {
            Layer &k = layers[l] = {};
            const bool bare = l == 0 && draw(0, 3) == 0;          // a norm without a product before it
            k.stack = bare ? 1 : stack, k.in = bare ? stack * width : width, k.out = bare ? k.in : draw(1, 70);
            k.norm = bare || draw(0, 1), k.relu = draw(0, 1), k.momentum = 0.1, k.eps = 1e-5;
            if (!bare) {
                k.weight = numbers(k.stack * k.out * k.in), k.dweight = numbers(k.stack * k.out * k.in);
                if (draw(0, 1)) k.bias = numbers(k.width()), k.dbias = numbers(k.width());
                width = k.out;
            }
            if (k.norm) {
                k.gain = numbers(k.width()), k.shift = numbers(k.width());
                k.dgain = numbers(k.width()), k.dshift = numbers(k.width());
                k.running_mean = numbers(k.width()), k.running_var = numbers(k.width());
                k.mean = numbers(k.width()), k.rstd = numbers(k.width());
            }
            k.g = numbers(rows * k.width());
            k.z = bare ? nullptr : numbers(rows * k.width());
        }
        Small all{rows, count, draw(1, 3), numbers(rows * layers[0].before()), nullptr, nullptr, layers.data()};
        if (!layers[0].weight) layers[0].z = const_cast<float *>(all.x);
        all.y = layers.back().norm ? numbers(rows * layers.back().width()) : layers.back().z;
        if (draw(0, 2)) all.dx = numbers(rows * layers[0].before());
        small_forward(&all);
        small_backward(&all);
    }
    std::puts("100 networks");
}
