/* Lets a CPU without AVX-512 run avx512.c: SIMDe's portable versions stand in for the intrinsics,
 * and those that older versions lack are made of 256-bit halves or lane by lane. Included before
 * everything else by the compiler's -include. */
#ifndef OVERFILL_TESTS_EMULATE_AVX512_H
#define OVERFILL_TESTS_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>
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

#define KERNELS_AVX512 KERNELS_AVX512_EMULATED

#endif
