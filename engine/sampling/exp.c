/* A portable exponential: argument reduction by log 2 and a Taylor polynomial, in plain double
 * operations of a fixed order (the build forbids contraction). See sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

#include <string.h>

#define LOG2_E 0x1.71547652b82fep+0
#define LN2_HIGH 0x1.62e42fefa0000p-1 /* 41 bits: k * LN2_HIGH is exact for |k| < 2^11 */
#define LN2_LOW 0x1.cf79abc9e3b3ap-40
#define ROUNDER 0x1.8p52 /* adding it rounds to a whole number */
#define SMALLEST (-700.0)

double sampling_exp(double x)
{
    if (!(x >= SMALLEST)) /* also NaN */
        return 0;
    double k = (x * LOG2_E + ROUNDER) - ROUNDER;
    double r = (x - k * LN2_HIGH) - k * LN2_LOW; /* |r| <= log(2) / 2 */

    double p = 1.0 / 39916800; /* 1 / 11! */
    static const double factors[] = {
        1.0 / 3628800, 1.0 / 362880, 1.0 / 40320, 1.0 / 5040, 1.0 / 720, 1.0 / 120,
        1.0 / 24,      1.0 / 6,      1.0 / 2,     1,          1};
    for (size_t i = 0; i < sizeof(factors) / sizeof(factors[0]); i++)
        p = p * r + factors[i];

    uint64_t bits = (uint64_t)((int64_t)k + 1023) << 52; /* 2^k, a normal number */
    double power;
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}
