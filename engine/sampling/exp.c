/* A portable exponential: argument reduction by log 2 and a Taylor polynomial, in plain float
 * operations of a fixed order (the build forbids contraction) and without branches, so that the
 * compiler may do several at once without changing a bit. See sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

#include <float.h>
#include <math.h>
#include <string.h>

#define LOG2_E 0x1.715476p+0f
#define LN_2_HIGH 0x1.63p-1f /* nine bits: times a whole number below 2^15 it is exact */
#define LN_2_LOW (-0x1.bd0106p-13f)
#define ROUNDER 0x1.8p23f /* adding it rounds to a whole number, which is then in the low bits */
#define SMALLEST (-87.0f) /* e to that is still normal */

#define LANES 16 /* of a block's sum: floats added up one by one, then together as doubles */

/* e^x for SMALLEST <= x <= 0, within two units of the last place. */
static inline float portable_exp(float x)
{
    float rounded = x * LOG2_E + ROUNDER;
    float k = rounded - ROUNDER;
    float r = (x - k * LN_2_HIGH) - k * LN_2_LOW; /* |r| <= log(2) / 2 */

    float p = 1.0f / 5040; /* 1 / 7!, then down to 1 / 0! */
    p = p * r + 1.0f / 720;
    p = p * r + 1.0f / 120;
    p = p * r + 1.0f / 24;
    p = p * r + 1.0f / 6;
    p = p * r + 1.0f / 2;
    p = p * r + 1.0f;
    p = p * r + 1.0f;

    uint32_t bits;
    float power;
    memcpy(&bits, &rounded, sizeof(bits));
    bits = (bits + 127) << 23; /* 2^k: the sign and exponent of ROUNDER are shifted out */
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

static double sum_block(const float *weights, size_t n)
{
    float lanes[LANES] = {0};
    double sum = 0;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += weights[i + lane];
    for (size_t lane = 0; i < n; i++, lane++)
        lanes[lane] += weights[i];
    for (size_t lane = 0; lane < LANES; lane++)
        sum += lanes[lane];
    return sum;
}

/* Numbers are brought into range, raised and summed while they are near. */
static void weigh_block(const float *logits, size_t n, float max, float scale, float *weights)
{
    float x[SAMPLING_BLOCK];
    for (size_t i = 0; i < n; i++) {
        float scaled = (logits[i] - max) * scale;
        x[i] = scaled > SMALLEST ? scaled : SMALLEST; /* also for NaN */
    }
    for (size_t i = 0; i < n; i++)
        weights[i] = portable_exp(x[i]);
    for (size_t i = 0; i < n; i++)
        weights[i] = x[i] > SMALLEST ? weights[i] : 0;
}

double sampling_weigh(const float *logits, size_t n, float max, double scale, float *weights)
{
    float finite = (float)fmin(scale, FLT_MAX); /* times 0 it is 0 */
    double sum = 0;
    if (isinf(max)) { /* differences would be NaN */
        for (size_t i = 0; i < n; i++)
            weights[i] = logits[i] == max;
        return sampling_sum(weights, n);
    }
    for (size_t i = 0; i < n; i += SAMPLING_BLOCK) {
        weigh_block(logits + i, sampling_block(i, n), max, finite, weights + i);
        sum += sum_block(weights + i, sampling_block(i, n));
    }
    return sum;
}

double sampling_sum(const float *weights, size_t n)
{
    double sum = 0;
    for (size_t i = 0; i < n; i += SAMPLING_BLOCK)
        sum += sum_block(weights + i, sampling_block(i, n));
    return sum;
}

double sampling_sum_above(const float *weights, size_t n, float least)
{
    double sum = 0;
    for (size_t i = 0; i < n; i += SAMPLING_BLOCK) {
        float kept[SAMPLING_BLOCK];
        size_t n_block = sampling_block(i, n);
        for (size_t j = 0; j < n_block; j++)
            kept[j] = weights[i + j] >= least ? weights[i + j] : 0;
        sum += sum_block(kept, n_block);
    }
    return sum;
}
