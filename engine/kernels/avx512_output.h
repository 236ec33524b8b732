/* Scales of a block, and a product's sums to where they go, with AVX-512. Internal. */
#ifndef OVERFILL_ENGINE_KERNELS_AVX512_OUTPUT_H
#define OVERFILL_ENGINE_KERNELS_AVX512_OUTPUT_H

#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"

#include <immintrin.h>

#define LINE 64 /* bytes of a vector, and of a tile's row */
#define TILE_BYTES 1024

INLINE size_t least(size_t a, size_t b)
{
    return a < b ? a : b;
}

INLINE __m512 halves(const uint16_t *p)
{
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}

INLINE void finish(const struct matmul *m, size_t row, size_t t, __m512 acc)
{
    float *out = m->out + (row - m->row_begin) * m->out_stride + (t - m->tile_begin) * KERNEL_TILE;
    _mm512_storeu_ps(out, m->accumulate ? _mm512_add_ps(_mm512_loadu_ps(out), acc) : acc);
}

#endif
