/* A portable exponential: argument reduction by log 2 and a Taylor polynomial, in plain double
 * operations of a fixed order (the build forbids contraction) and without branches, so that the
 * compiler may do several at once without changing a bit. See sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

#include <math.h>
#include <string.h>

#define LOG2_E 0x1.71547652b82fep+0
#define LN_2 0x1.62e42fefa39efp-1
#define ROUNDER 0x1.8p52  /* adding it rounds to a whole number, which is then in the low bits */
#define SMALLEST (-700.0) /* e^-700 is 0 as a float */

#define BLOCK 256 /* numbers brought into range before they are raised: two loops, no branches */
#define LANES 4   /* of a sum: added up one by one, then together */

/* e^x for SMALLEST <= x <= 0, to more digits than a float has. */
static inline double portable_exp(double x)
{
    double rounded = x * LOG2_E + ROUNDER;
    double k = rounded - ROUNDER;
    double r = x - k * LN_2; /* |r| <= log(2) / 2 */

    double p = 1.0 / 362880; /* 1 / 9!, then down to 1 / 0! */
    p = p * r + 1.0 / 40320;
    p = p * r + 1.0 / 5040;
    p = p * r + 1.0 / 720;
    p = p * r + 1.0 / 120;
    p = p * r + 1.0 / 24;
    p = p * r + 1.0 / 6;
    p = p * r + 1.0 / 2;
    p = p * r + 1.0;
    p = p * r + 1.0;

    uint64_t bits;
    double power;
    memcpy(&bits, &rounded, sizeof(bits));
    bits = (bits + 1023) << 52; /* 2^k: the sign and exponent of ROUNDER are shifted out */
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

double sampling_weigh(const float *logits, size_t n, float max, double scale, float *weights)
{
    if (isinf(max)) { /* differences would be NaN */
        for (size_t i = 0; i < n; i++)
            weights[i] = logits[i] == max;
        return sampling_sum(weights, n);
    }
    for (size_t i = 0; i < n; i += BLOCK) {
        double x[BLOCK];
        size_t n_block = n - i < BLOCK ? n - i : BLOCK;
        for (size_t j = 0; j < n_block; j++) {
            double scaled = ((double)logits[i + j] - max) * scale;
            x[j] = scaled > SMALLEST ? scaled : SMALLEST; /* also for NaN */
        }
        for (size_t j = 0; j < n_block; j++)
            weights[i + j] = (float)portable_exp(x[j]);
    }
    return sampling_sum(weights, n);
}

double sampling_sum(const float *weights, size_t n)
{
    double lanes[LANES] = {0};
    size_t i = 0;
    for (; i + LANES <= n; i += LANES)
        for (size_t lane = 0; lane < LANES; lane++)
            lanes[lane] += weights[i + lane];
    for (; i < n; i++)
        lanes[0] += weights[i];
    return (lanes[0] + lanes[1]) + (lanes[2] + lanes[3]);
}
