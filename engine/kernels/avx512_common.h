/* The kernels that gain from AVX-512 with VNNI (F, BW, VL, VNNI): integer products and attention.
 * Same bits as scalar.c. Compiled into avx512.c and amx.c, each with its own flags. Internal. */
#ifndef OVERFILL_ENGINE_KERNELS_AVX512_COMMON_H
#define OVERFILL_ENGINE_KERNELS_AVX512_COMMON_H

#include "engine/kernels/avx512_output.h"
#include "engine/kernels/x86_common.h"

/* Rows of one pass over a tile: integer and float sums fill most of the 32 registers. */
#define MAX_ROWS 8

/* Four digits, in every lane. */
INLINE __m512i broadcast4(const int8_t *digits)
{
    int32_t four;
    memcpy(&four, digits, sizeof(four));
    return _mm512_set1_epi32(four);
}

/* sum[row] += unsigned bytes times the row's four digits at x. */
INLINE void add_digits(__m512i *sum, __m512i bytes, const int8_t *x, size_t stride,
                       const int n_rows)
{
    for (int r = 0; r < n_rows; r++)
        sum[r] = _mm512_dpbusd_epi32(sum[r], bytes, broadcast4(x + (size_t)r * stride));
}

/* The sums of a block: of int8 weights, 128 added to each, times high and low digits apart. */
INLINE void add_block_q8(__m512i *high, __m512i *low, const uint8_t *w, const int8_t *x,
                         size_t stride, const int n_rows, const bool coarse)
{
    X86_KEEP_LOOP
    for (size_t g = 0; g < 8; g++) {
        __m512i bytes = _mm512_xor_si512(_mm512_loadu_si512(w + g * 64), _mm512_set1_epi8(-128));
        add_digits(high, bytes, x + 4 * g, stride, n_rows);
        if (!coarse)
            add_digits(low, bytes, x + KERNEL_BLOCK + 4 * g, stride, n_rows);
    }
}

/* The same of nibbles: sixteen times a nibble is a byte as well, so one sum takes both digits. */
INLINE void add_block_q4(__m512i *sum, const uint8_t *w, const int8_t *x, size_t stride,
                         const int n_rows, const bool coarse)
{
    const __m512i low_mask = _mm512_set1_epi8(0x0f);
    const __m512i high_mask = _mm512_set1_epi8((char)0xf0);
    X86_KEEP_LOOP
    for (size_t g = 0; g < 4; g++) {
        const int8_t *first = x + 4 * g; /* meets the low nibbles; 16 inputs on, the high ones */
        __m512i packed = _mm512_loadu_si512(w + g * 64);
        __m512i shifted = _mm512_and_si512(_mm512_slli_epi16(packed, 4), high_mask);
        add_digits(sum, shifted, first, stride, n_rows);
        add_digits(sum, _mm512_and_si512(packed, high_mask), first + 16, stride, n_rows);
        if (coarse)
            continue;
        add_digits(sum, _mm512_and_si512(packed, low_mask), first + KERNEL_BLOCK, stride, n_rows);
        shifted = _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_mask);
        add_digits(sum, shifted, first + 16 + KERNEL_BLOCK, stride, n_rows);
    }
}

/* What takes the offset of stored weights off the sum: Q4's 8, and the 128 of add_block_q8. */
INLINE __m512i first_sum(const struct matmul *m, const enum kernel_layout layout, size_t xb)
{
    const int offset = layout == KERNEL_Q8 ? 128 : 8;
    return layout == KERNEL_Q4_MIN ? _mm512_setzero_si512()
                                   : _mm512_set1_epi32(-offset * m->x->sum[xb]);
}

/* The integer sums of block b for n_rows rows from `row` on. */
INLINE void sum_block(const struct matmul *m, const enum kernel_layout layout, const uint8_t *w,
                      size_t b, size_t row, __m512i *sum, const int n_rows, const bool coarse)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK * sizeof(int16_t);
    const size_t first = row * m->x->stride + b;
    const int8_t *x = (const int8_t *)(m->x->q + first * KERNEL_BLOCK);
    __m512i high[MAX_ROWS];

    for (int r = 0; r < n_rows; r++) {
        sum[r] = first_sum(m, layout, first + (size_t)r * m->x->stride);
        high[r] = _mm512_setzero_si512();
    }
    if (layout != KERNEL_Q8) {
        add_block_q4(sum, w, x, stride, n_rows, coarse);
        return;
    }
    add_block_q8(high, sum, w, x, stride, n_rows, coarse);
    for (int r = 0; r < n_rows; r++)
        sum[r] = _mm512_add_epi32(sum[r], _mm512_slli_epi32(high[r], 4));
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
        float xscale = m->x->scale[xb];
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum[r]),
                                 _mm512_mul_ps(ws, _mm512_set1_ps(xscale)), acc[r]);
        if (layout == KERNEL_Q4_MIN)
            acc[r] = _mm512_fmadd_ps(wm, _mm512_set1_ps(xscale * (float)m->x->sum[xb]), acc[r]);
    }
}

INLINE void rows_of(const struct matmul *m, const enum kernel_layout layout, size_t t, size_t row,
                    const int n_rows, const bool coarse)
{
    const uint8_t *w = m->tiles + t * m->tile_bytes;
    __m512 acc[MAX_ROWS];

    for (int r = 0; r < n_rows; r++)
        acc[r] = _mm512_setzero_ps();
    for (size_t b = 0; b < m->n_blocks; b++, w += kernel_block_bytes(layout)) {
        __m512i sum[MAX_ROWS];
        x86_prefetch_block(w, layout);
        sum_block(m, layout, w, b, row, sum, n_rows, coarse);
        scale_block(m, layout, w, b, row, sum, acc, n_rows);
    }
    for (int r = 0; r < n_rows; r++)
        finish(m, row + (size_t)r, t, acc[r]);
}

INLINE void rows(const struct matmul *m, const enum kernel_layout layout, size_t t, size_t row,
                 const int n_rows)
{
    if (m->x->coarse)
        rows_of(m, layout, t, row, n_rows, true);
    else
        rows_of(m, layout, t, row, n_rows, false);
}

X86_DEFINE_MATMUL(vector_matmul_q8, KERNEL_Q8, MAX_ROWS)
X86_DEFINE_MATMUL(vector_matmul_q4, KERNEL_Q4, MAX_ROWS)
X86_DEFINE_MATMUL(vector_matmul_q4_min, KERNEL_Q4_MIN, MAX_ROWS)

static void quantize(const float *x, size_t n, bool coarse, int16_t *q, float *scale, int32_t *sum)
{
    x86_quantize(x, n, coarse, q, scale, sum, true);
}

/* x86_exp in twice the lanes. */
INLINE __m512 exp_512(__m512 x)
{
    x = _mm512_max_ps(x, _mm512_set1_ps(EXP_MIN));
    x = _mm512_min_ps(x, _mm512_set1_ps(EXP_MAX));
    __m512 n = _mm512_roundscale_ps(_mm512_mul_ps(x, _mm512_set1_ps(EXP_LOG2E)),
                                    _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m512 r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_HI), x);
    r = _mm512_fmadd_ps(n, _mm512_set1_ps(-EXP_LN2_LO), r);
    __m512 p = _mm512_fmadd_ps(_mm512_set1_ps(EXP_C7), r, _mm512_set1_ps(EXP_C6));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C5));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C4));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C3));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(EXP_C2));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    p = _mm512_fmadd_ps(p, r, _mm512_set1_ps(1.0f));
    __m512i power =
        _mm512_slli_epi32(_mm512_add_epi32(_mm512_cvtps_epi32(n), _mm512_set1_epi32(127)), 23);
    return _mm512_mul_ps(p, _mm512_castsi512_ps(power));
}

INLINE __m256 upper_half(__m512 v)
{
    return _mm256_castpd_ps(_mm512_extractf64x4_pd(_mm512_castps_pd(v), 1));
}

/* Sixteen elements of a page from i on. */
INLINE __m512 page_load(const void *elements, size_t i, const bool is_half)
{
    return is_half ? halves((const uint16_t *)elements + i)
                   : _mm512_loadu_ps((const float *)elements + i);
}

/* Scores of 32 keys for n queries at once. */
INLINE void page_scores(const struct attend_page *a, const bool is_half, const float *q,
                        const int n, __m512 scores[][2])
{
    for (int j = 0; j < n; j++)
        scores[j][0] = scores[j][1] = _mm512_setzero_ps();
    for (size_t d = 0; d < a->head_dim; d++) {
        __m512 low = page_load(a->keys, d * KERNEL_PAGE_TOKENS, is_half);
        __m512 high = page_load(a->keys, d * KERNEL_PAGE_TOKENS + 16, is_half);
        x86_page_prefetch(a->values, d * KERNEL_PAGE_TOKENS, KERNEL_PAGE_TOKENS, is_half);
        for (int j = 0; j < n; j++) {
            __m512 x = _mm512_set1_ps(q[(size_t)j * a->q_stride + d]);
            scores[j][0] = _mm512_fmadd_ps(x, low, scores[j][0]);
            scores[j][1] = _mm512_fmadd_ps(x, high, scores[j][1]);
        }
    }
}

/* See x86_page_softmax. */
INLINE float page_softmax(const __m512 scores[2], size_t n_keys, float *state, float *p)
{
    const __mmask16 in_range[2] = {(__mmask16)((1ull << n_keys) - 1),
                                   (__mmask16)(((1ull << n_keys) - 1) >> 16)};
    __m512 masked[2];
    for (int v = 0; v < 2; v++)
        masked[v] = _mm512_mask_mov_ps(_mm512_set1_ps(-INFINITY), in_range[v], scores[v]);
    __m512 max16 = _mm512_max_ps(masked[0], masked[1]);
    __m256 max8 = _mm256_max_ps(_mm512_castps512_ps256(max16), upper_half(max16));
    float max = x86_fold_max(_mm256_max_ps(max8, _mm256_set1_ps(state[0])));

    __m256 lanes = _mm256_setzero_ps();
    for (int v = 0; v < 2; v++) {
        __m512 e = exp_512(_mm512_sub_ps(masked[v], _mm512_set1_ps(max)));
        e = _mm512_maskz_mov_ps(in_range[v], e);
        lanes = _mm256_add_ps(lanes, _mm512_castps512_ps256(e));
        lanes = _mm256_add_ps(lanes, upper_half(e));
        _mm512_storeu_ps(p + 16 * v, e);
    }
    float correction = lane_exp(state[0] - max);
    state[1] = fmaf(state[1], correction, x86_fold(lanes));
    state[0] = max;
    return correction;
}

/* n_vectors * 16 elements of the sums, from d on, kept in registers while the values pass. */
INLINE void add_values(const struct attend_page *a, const bool is_half, const struct x86_queries *q,
                       const int n, size_t d, const int n_vectors)
{
    __m512 sum[ATTEND_QUERIES_512][2];
    for (int j = 0; j < n; j++)
        for (int v = 0; v < n_vectors; v++)
            sum[j][v] = _mm512_mul_ps(_mm512_loadu_ps(q->acc[j] + d + 16 * v),
                                      _mm512_set1_ps(q->correction[j]));
    const void *after = x86_page_after(a);
    for (size_t t = 0; t < q->n_common; t++) {
        __m512 values[2];
        x86_page_prefetch(after, t * a->head_dim + d, (size_t)n_vectors * 16, is_half);
        for (int v = 0; v < n_vectors; v++)
            values[v] = page_load(a->values, t * a->head_dim + d + 16 * (size_t)v, is_half);
        for (int j = 0; j < n; j++)
            for (int v = 0; v < n_vectors; v++)
                sum[j][v] = _mm512_fmadd_ps(_mm512_set1_ps(q->p[j][t]), values[v], sum[j][v]);
    }
    for (int j = 0; j < n; j++) {
        for (size_t t = q->n_common; t < q->n_keys[j]; t++)
            for (int v = 0; v < n_vectors; v++)
                sum[j][v] = _mm512_fmadd_ps(
                    _mm512_set1_ps(q->p[j][t]),
                    page_load(a->values, t * a->head_dim + d + 16 * (size_t)v, is_half), sum[j][v]);
        for (int v = 0; v < n_vectors; v++)
            _mm512_storeu_ps(q->acc[j] + d + 16 * v, sum[j][v]);
    }
}

/* Queries i..i+n-1, each with at least one key. */
INLINE void attend_n(const struct attend_page *a, const bool is_half, size_t i, const int n)
{
    __m512 scores[ATTEND_QUERIES_512][2];
    struct x86_queries q;

    page_scores(a, is_half, a->q + i * a->q_stride, n, scores);
    q.n_common = KERNEL_PAGE_TOKENS;
    for (int j = 0; j < n; j++) {
        float *state = a->state + (i + (size_t)j) * ATTEND_STATE(a->head_dim);
        q.n_keys[j] = a->n_keys[i + (size_t)j];
        q.n_common = q.n_keys[j] < q.n_common ? q.n_keys[j] : q.n_common;
        q.acc[j] = state + 2;
        q.correction[j] = page_softmax(scores[j], q.n_keys[j], state, q.p[j]);
    }
    size_t d = 0;
    for (; d + 32 <= a->head_dim; d += 32)
        add_values(a, is_half, &q, n, d, 2);
    if (d + 16 <= a->head_dim) {
        add_values(a, is_half, &q, n, d, 1);
        d += 16;
    }
    x86_add_values_tail(a, &q, n, d);
}

INLINE void attend_all(const struct attend_page *a, const bool is_half)
{
    size_t i = 0;
    while (i < a->n_q) {
        size_t n = x86_seeing_queries(a, i, ATTEND_QUERIES_512);
        n = n == ATTEND_QUERIES_512 || n < ATTEND_QUERIES ? n : ATTEND_QUERIES;
        if (n == ATTEND_QUERIES_512)
            attend_n(a, is_half, i, ATTEND_QUERIES_512);
        else if (n == 3)
            attend_n(a, is_half, i, 3);
        else if (n == 2)
            attend_n(a, is_half, i, 2);
        else if (n == 1)
            attend_n(a, is_half, i, 1);
        i += n ? n : 1;
    }
}

static void attend(const struct attend_page *a)
{
    if (a->is_half)
        attend_all(a, true);
    else
        attend_all(a, false);
}

#endif
