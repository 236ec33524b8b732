/* Lets a CPU without AVX-512 run avx512.c: SIMDe's portable versions stand in for the intrinsics,
 * and the two that older versions lack are made of 256-bit halves. Included before everything else
 * by the compiler's -include. */
#ifndef OVERFILL_TESTS_EMULATE_AVX512_H
#define OVERFILL_TESTS_EMULATE_AVX512_H

#define SIMDE_ENABLE_NATIVE_ALIASES
#include <simde/x86/avx512.h>
#include <simde/x86/f16c.h>

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

#define KERNELS_AVX512 KERNELS_AVX512_EMULATED

#endif
