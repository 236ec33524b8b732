/* Lets a CPU without AVX-512 run avx512.c: SIMDe's portable versions stand in for the intrinsics,
 * and those that older versions lack are made of 256-bit halves or lane by lane. Included before
 * everything else by the compiler's -include. */
#ifndef OVERFILL_TESTS_EMULATE_AVX512_H
#define OVERFILL_TESTS_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <float.h>
#include <math.h>
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
#include <stdint.h>
#include <string.h>

#ifndef _mm512_cvtph_ps
#define _mm512_cvtph_ps(halves)                                                                    \
    ({                                                                                             \
        simde__m512_private floats_;                                                               \
        floats_.m256[0] = simde_mm256_cvtph_ps(simde_mm256_castsi256_si128(halves));               \
        floats_.m256[1] = simde_mm256_cvtph_ps(simde_mm256_extracti128_si256(halves, 1));          \
        simde__m512_from_private(floats_);                                                         \
    })
#endif

#ifndef _mm512_cvtepi32_ps
#define _mm512_cvtepi32_ps(integers)                                                               \
    ({                                                                                             \
        simde__m512i_private integers_ = simde__m512i_to_private(integers);                        \
        simde__m512_private floats_;                                                               \
        floats_.m256[0] = simde_mm256_cvtepi32_ps(integers_.m256i[0]);                             \
        floats_.m256[1] = simde_mm256_cvtepi32_ps(integers_.m256i[1]);                             \
        simde__m512_from_private(floats_);                                                         \
    })
#endif

#ifndef _mm512_cvtps_epi32
#define _mm512_cvtps_epi32(floats)                                                                 \
    ({                                                                                             \
        simde__m512_private floats_ = simde__m512_to_private(floats);                              \
        simde__m512i_private integers_;                                                            \
        integers_.m256i[0] = simde_mm256_cvtps_epi32(floats_.m256[0]);                             \
        integers_.m256i[1] = simde_mm256_cvtps_epi32(floats_.m256[1]);                             \
        simde__m512i_from_private(integers_);                                                      \
    })
#endif

#ifndef _mm512_srai_epi32
#define _mm512_srai_epi32(integers, n)                                                             \
    ({                                                                                             \
        simde__m512i_private integers_ = simde__m512i_to_private(integers);                        \
        integers_.m256i[0] = simde_mm256_srai_epi32(integers_.m256i[0], n);                        \
        integers_.m256i[1] = simde_mm256_srai_epi32(integers_.m256i[1], n);                        \
        simde__m512i_from_private(integers_);                                                      \
    })
#endif

/* Lanes that the mask leaves out are not read. */
#ifndef _mm512_maskz_loadu_epi32
#define _mm512_maskz_loadu_epi32(mask, p)                                                          \
    ({                                                                                             \
        int32_t lanes_[16] = {0};                                                                  \
        for (int i_ = 0; i_ < 16; i_++)                                                            \
            if ((mask) >> i_ & 1)                                                                  \
                memcpy(&lanes_[i_], (const int32_t *)(const void *)(p) + i_, sizeof(int32_t));     \
        simde_mm512_loadu_si512(lanes_);                                                           \
    })
#endif

#ifndef _mm512_maskz_loadu_ps
#define _mm512_maskz_loadu_ps(mask, p)                                                             \
    simde_mm512_castsi512_ps(_mm512_maskz_loadu_epi32((mask), (p)))
#endif

/* What an operand or a result that is no normal number counts as. */
static inline float emulated_flush(float x)
{
    return fabsf(x) < FLT_MIN ? copysignf(0, x) : x;
}

static inline float emulated_bf16(uint16_t half)
{
    uint32_t bits = (uint32_t)half << 16;
    float value;
    memcpy(&value, &bits, sizeof(value));
    return emulated_flush(value);
}

/* sums[i] += a[2i + 1] * b[2i + 1], then a[2i] * b[2i]; memory of 16 floats, 32 bf16. */
static inline void emulated_dpbf16(float *sums, const uint16_t *a, const uint16_t *b)
{
    for (size_t i = 0; i < 16; i++) {
        float sum = emulated_flush(sums[i]);
        for (size_t j = 2 * i + 2; j-- > 2 * i;)
            sum = emulated_flush(fmaf(emulated_bf16(a[j]), emulated_bf16(b[j]), sum));
        sums[i] = sum;
    }
}

/* Sixteen floats as bf16, rounded to the nearest, of two as near to the even one. */
static inline void emulated_to_bf16(const float *x, uint16_t *halves)
{
    for (size_t i = 0; i < 16; i++) {
        float flushed = emulated_flush(x[i]);
        uint32_t bits;
        memcpy(&bits, &flushed, sizeof(bits));
        halves[i] = (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
    }
}

#undef _mm512_cvtne2ps_pbh
#define _mm512_cvtne2ps_pbh(high, low)                                                             \
    ({                                                                                             \
        float x_[2][16];                                                                           \
        uint16_t halves_[32];                                                                      \
        simde_mm512_storeu_ps(x_[0], low);                                                         \
        simde_mm512_storeu_ps(x_[1], high);                                                        \
        emulated_to_bf16(x_[0], halves_);                                                          \
        emulated_to_bf16(x_[1], halves_ + 16);                                                     \
        simde_mm512_loadu_si512(halves_);                                                          \
    })

#undef _mm512_dpbf16_ps
#define _mm512_dpbf16_ps(sums, a, b)                                                               \
    ({                                                                                             \
        float sums_[16];                                                                           \
        uint16_t a_[32], b_[32];                                                                   \
        simde_mm512_storeu_ps(sums_, sums);                                                        \
        simde_mm512_storeu_si512(a_, (simde__m512i)(a));                                           \
        simde_mm512_storeu_si512(b_, (simde__m512i)(b));                                           \
        emulated_dpbf16(sums_, a_, b_);                                                            \
        simde_mm512_loadu_ps(sums_);                                                               \
    })

#define KERNELS_AVX512 KERNELS_AVX512_EMULATED
#define KERNELS_AVX512_BF16 KERNELS_AVX512_BF16_EMULATED

#endif
