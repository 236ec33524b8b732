/* Lets a CPU without AVX-VNNI run what avx2.c makes of it: two AVX2 instructions stand in for its
 * one. Included before everything else by the compiler's -include. */
#ifndef OVERFILL_TESTS_EMULATE_AVXVNNI_H
#define OVERFILL_TESTS_EMULATE_AVXVNNI_H

#include <immintrin.h>

#define _mm256_dpwssd_avx_epi32(sum, a, b) _mm256_add_epi32(sum, _mm256_madd_epi16(a, b))
#define KERNELS_AVXVNNI KERNELS_AVXVNNI_EMULATED

#endif
