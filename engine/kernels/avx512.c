/* The integer products for AVX-512 with VNNI (F, BW, VL, VNNI). Same bits as scalar.c. The other
 * kernels are the 256-bit ones of x86_common.h. */
#if defined(__x86_64__)
#include "engine/kernels/x86_common.h"

/* Rows of one pass over a tile: integer and float sums fill most of the 32 registers. */
#define MAX_ROWS 8

/* Two activations, in every lane. */
INLINE __m512i broadcast2(const int16_t *q)
{
    int32_t two;
    memcpy(&two, q, sizeof(two));
    return _mm512_set1_epi32(two);
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

/* sum[row] += weights (pairs of 16 bits) times the row's pair of activations at x. */
INLINE void add_pairs(__m512i *sum, __m512i weights, const int16_t *x, size_t stride,
                      const int n_rows)
{
    for (int r = 0; r < n_rows; r++)
        sum[r] = _mm512_dpwssd_epi32(sum[r], weights, broadcast2(x + (size_t)r * stride));
}

/* The even bytes of int8 weights, or the odd ones, as 16 bits. */
INLINE __m512i q8_pairs(__m512i bytes, const int odd)
{
    return _mm512_srai_epi16(odd ? bytes : _mm512_slli_epi16(bytes, 8), 8);
}

/* Nibble i of each 16 bits. Shifts are immediate operands, which a multiple of i is not to every
 * compiler. */
INLINE __m512i q4_pairs(__m512i packed, const int i)
{
    const __m512i mask = _mm512_set1_epi16(15);
    switch (i) {
    case 0:
        return _mm512_and_si512(packed, mask);
    case 1:
        return _mm512_and_si512(_mm512_srli_epi16(packed, 4), mask);
    case 2:
        return _mm512_and_si512(_mm512_srli_epi16(packed, 8), mask);
    default:
        return _mm512_srli_epi16(packed, 12);
    }
}

/* Which pair of a block's activations meets nibble i of group g. */
INLINE size_t q4_pair_index(size_t g, int i)
{
    return 2 * g + (size_t)(i / 2 + i % 2 * 8);
}

/* The sums of a block. */
INLINE void add_block(__m512i *sum, const enum kernel_layout layout, const uint8_t *w,
                      const int16_t *x, size_t stride, const int n_rows)
{
    const bool q8 = layout == KERNEL_Q8;
    const size_t n_groups = q8 ? 8 : 4;
    X86_KEEP_LOOP
    for (size_t g = 0; g < n_groups; g++) {
        __m512i packed = _mm512_loadu_si512(w + g * 64);
        for (int i = 0; i < (q8 ? 2 : 4); i++) {
            size_t pair = q8 ? 2 * g + (size_t)i : q4_pair_index(g, i);
            add_pairs(sum, q8 ? q8_pairs(packed, i) : q4_pairs(packed, i), x + pair * 2, stride,
                      n_rows);
        }
    }
}

/* acc += the block's integer sums times their scales, and for Q4_MIN the block's minima. */
INLINE void scale_block(const struct matmul *m, const enum kernel_layout layout, const uint8_t *w,
                        size_t b, size_t row, const __m512i *sum, __m512 *acc, const int n_rows)
{
    const uint16_t *wscale = (const uint16_t *)(const void *)(w + kernel_weight_bytes(layout));
    __m512 ws = halves(wscale);
    __m512 wm = layout == KERNEL_Q4_MIN ? halves(wscale + KERNEL_TILE) : ws;

    for (int r = 0; r < n_rows; r++) {
        size_t xb = (row + (size_t)r) * m->x->stride + b;
        __m512 xscale = _mm512_set1_ps(m->x->scale[xb]);
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]), _mm512_mul_ps(ws, xscale), acc[r]);
        if (layout == KERNEL_Q4_MIN) {
            __m512 xsum = _mm512_cvtepi32_ps(_mm512_set1_epi32(m->x->sum[xb]));
            acc[r] = _mm512_fmadd_ps(wm, _mm512_mul_ps(xscale, xsum), acc[r]);
        }
    }
}

/* What the integer sums of an activation's block xb begin at. */
INLINE __m512i first_sum(const struct matmul *m, const enum kernel_layout layout, size_t xb)
{
    return layout == KERNEL_Q4 ? _mm512_set1_epi32(-8 * m->x->sum[xb]) : _mm512_setzero_si512();
}

INLINE void rows(const struct matmul *m, const enum kernel_layout layout, size_t t, size_t row,
                 const int n_rows)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK;
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    const int16_t *x = m->x->q + row * stride;
    __m512 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < m->n_blocks; b++, w += kernel_block_bytes(layout)) {
        __m512i sum[MAX_ROWS];
        for (int r = 0; r < n_rows; r++)
            sum[r] = first_sum(m, layout, (row + (size_t)r) * m->x->stride + b);
        x86_prefetch_block(w, layout);
        add_block(sum, layout, w, x + b * KERNEL_BLOCK, stride, n_rows);
        scale_block(m, layout, w, b, row, sum, acc, n_rows);
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, acc[r]);
}

X86_DEFINE_MATMUL(matmul_q8, KERNEL_Q8, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4, KERNEL_Q4, MAX_ROWS)
X86_DEFINE_MATMUL(matmul_q4_min, KERNEL_Q4_MIN, MAX_ROWS)

const struct kernels KERNELS_AVX512 = X86_TABLE("avx512");
#endif
