/* The table for AVX-512 with VNNI (F, BW, VL, VNNI). Same bits as scalar.c. */
#if defined(__x86_64__)
#include "engine/kernels/avx512_common.h"

const struct kernels KERNELS_AVX512 = X86_TABLE("avx512", vector_matmul_q8, vector_matmul_q4,
                                                vector_matmul_q4_min, NULL, false, NULL);
#endif
