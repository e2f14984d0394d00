// The exponential that kernels share.

#pragma once

#include <cstdint>
#include <cstring>

// e^x for x <= 0, to 2e-7, without a call, so that it becomes vectors. NaN stays NaN.
inline float power(float x) {
    const float v = x < -87.0f ? -87.0f : x;
    const float shifted = v * 1.44269504f + 12582912.0f;                   // 1.5 * 2^23: rounds to an integer
    const float k = shifted - 12582912.0f;
    const float r = (v - k * 0.693359375f) + k * 2.12194440e-4f;
    float p = 1.9875691500e-4f;
    p = p * r + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    uint32_t bits;
    std::memcpy(&bits, &shifted, 4);
    bits = (bits + 127) << 23;                                             // 2^k
    float scale;
    std::memcpy(&scale, &bits, 4);
    return p * scale;
}
