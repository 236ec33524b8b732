/* What one SIMD lane computes, shared so that scalar and SIMD agree to the bit. Internal. */
#ifndef OVERFILL_ENGINE_KERNELS_LANES_H
#define OVERFILL_ENGINE_KERNELS_LANES_H

#include <math.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* In front of a loop that gcc would unroll and then run out of registers for, and of one of 16
 * rounds that it would not unroll. */
#if defined(__clang__)
#define X86_KEEP_LOOP
#define X86_UNROLL_16
#else
#define X86_KEEP_LOOP _Pragma("GCC unroll 1")
#define X86_UNROLL_16 _Pragma("GCC unroll 16")
#endif

/* exp(x) = 2^n * e^r, n = round(x / ln 2), |r| <= ln 2 / 2; e^r by its Taylor series up to r^7
 * (remainder below 1e-8). ln 2 in two parts (Cody and Waite) keeps r exact. x is clamped to where
 * 2^n is a normal float: never inf, never 0; NaN counts as the lower end. */
#define EXP_MIN (-87.0f)
#define EXP_MAX 88.0f
#define EXP_LOG2E 1.44269504088896341f
#define EXP_LN2_HI 0.693359375f
#define EXP_LN2_LO (-2.12194440e-4f)
#define EXP_C2 0.5f
#define EXP_C3 (1.0f / 6)
#define EXP_C4 (1.0f / 24)
#define EXP_C5 (1.0f / 120)
#define EXP_C6 (1.0f / 720)
#define EXP_C7 (1.0f / 5040)

static inline float lane_exp(float x)
{
    x = x > EXP_MIN ? x : EXP_MIN;
    x = x < EXP_MAX ? x : EXP_MAX;
    float n = rintf(x * EXP_LOG2E);
    float r = fmaf(n, -EXP_LN2_HI, x);
    r = fmaf(n, -EXP_LN2_LO, r);
    float p = fmaf(EXP_C7, r, EXP_C6);
    p = fmaf(p, r, EXP_C5);
    p = fmaf(p, r, EXP_C4);
    p = fmaf(p, r, EXP_C3);
    p = fmaf(p, r, EXP_C2);
    p = fmaf(p, r, 1.0f);
    p = fmaf(p, r, 1.0f);

    int32_t bits = ((int32_t)n + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof(power));
    return p * power;
}

#endif
