/* The kernels outside the integer products, in 256-bit vectors: most are bound by memory or by
 * their chains of additions, so AVX-512 would not help; avx512_common.h has those that gain.
 * Compiled into avx2.c, avx512.c and amx.c, each with its own flags. Internal. */
#ifndef OVERFILL_ENGINE_KERNELS_X86_COMMON_H
#define OVERFILL_ENGINE_KERNELS_X86_COMMON_H

#include "engine/base/half.h"
#include "engine/kernels/kernels.h"
#include "engine/kernels/lanes.h"

#include <immintrin.h>
#include <math.h>
#include <string.h>

/* Weights are asked for this far ahead: a pass of one row does too little work to hide their way
 * from memory. */
#define X86_PREFETCH_BYTES 4096

/* Called for each block w of a tile, and tiles follow each other: asks for every line once. */
INLINE void x86_prefetch_block(const uint8_t *w, const enum kernel_layout layout)
{
    for (size_t i = 0; i < kernel_block_bytes(layout); i += 64)
        _mm_prefetch((const char *)w + i + X86_PREFETCH_BYTES, _MM_HINT_T0);
}

INLINE __m256 x86_exp(__m256 x)
{
    x = _mm256_max_ps(x, _mm256_set1_ps(EXP_MIN));
    x = _mm256_min_ps(x, _mm256_set1_ps(EXP_MAX));
    __m256 n = _mm256_round_ps(_mm256_mul_ps(x, _mm256_set1_ps(EXP_LOG2E)),
                               _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    __m256 r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXP_LN2_HI), x);
    r = _mm256_fmadd_ps(n, _mm256_set1_ps(-EXP_LN2_LO), r);
    __m256 p = _mm256_fmadd_ps(_mm256_set1_ps(EXP_C7), r, _mm256_set1_ps(EXP_C6));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C5));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C4));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C3));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(EXP_C2));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    p = _mm256_fmadd_ps(p, r, _mm256_set1_ps(1.0f));
    __m256i power =
        _mm256_slli_epi32(_mm256_add_epi32(_mm256_cvtps_epi32(n), _mm256_set1_epi32(127)), 23);
    return _mm256_mul_ps(p, _mm256_castsi256_ps(power));
}

/* Lanes 8 -> 4 -> 2 -> 1, halves folded onto each other. */
INLINE float x86_fold(__m256 v)
{
    __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}

INLINE float x86_fold_max(__m256 v)
{
    __m128 four = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    __m128 two = _mm_max_ps(four, _mm_movehl_ps(four, four));
    return _mm_cvtss_f32(_mm_max_ss(two, _mm_shuffle_ps(two, two, 1)));
}

static void x86_rmsnorm(const float *x, const float *weight, size_t n, size_t width, float eps,
                        float *out)
{
    __m256 low = _mm256_setzero_ps();
    __m256 high = _mm256_setzero_ps();
    size_t i = 0;
    for (; i + 16 <= n; i += 16) {
        __m256 a = _mm256_loadu_ps(x + i);
        __m256 b = _mm256_loadu_ps(x + i + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    if (i < n) { /* zeros change no lane */
        float tail[16] = {0};
        memcpy(tail, x + i, (n - i) * sizeof(float));
        __m256 a = _mm256_loadu_ps(tail);
        __m256 b = _mm256_loadu_ps(tail + 8);
        low = _mm256_fmadd_ps(a, a, low);
        high = _mm256_fmadd_ps(b, b, high);
    }
    float scale = 1.0f / sqrtf(x86_fold(_mm256_add_ps(low, high)) / (float)width + eps);

    __m256 s = _mm256_set1_ps(scale);
    for (i = 0; i + 8 <= n; i += 8)
        _mm256_storeu_ps(out + i, _mm256_mul_ps(_mm256_mul_ps(_mm256_loadu_ps(x + i), s),
                                                _mm256_loadu_ps(weight + i)));
    for (; i < n; i++)
        out[i] = x[i] * scale * weight[i];
}

/* 32 values as v in eight lanes of four vectors. */
INLINE void x86_round_block(const float *x, const bool coarse, __m256i n[4], float *scale,
                            int32_t *sum)
{
    const float q_max = coarse ? KERNEL_Q_COARSE_MAX : KERNEL_Q_MAX;
    const __m256 no_sign = _mm256_castsi256_ps(_mm256_set1_epi32(0x7fffffff));
    __m256 v[4];
    __m256 max8 = _mm256_setzero_ps();
    for (int i = 0; i < 4; i++) {
        v[i] = _mm256_loadu_ps(x + 8 * i);
        max8 = _mm256_max_ps(_mm256_and_ps(v[i], no_sign), max8);
    }
    float max = x86_fold_max(max8);
    __m256 inverse = _mm256_set1_ps(max > 0 ? q_max / max : 0);

    __m256i total = _mm256_setzero_si256();
    for (int i = 0; i < 4; i++) {
        n[i] = _mm256_cvtps_epi32(_mm256_mul_ps(v[i], inverse));
        if (coarse)
            n[i] = _mm256_slli_epi32(n[i], 4);
        total = _mm256_add_epi32(total, n[i]);
    }
    __m128i four = _mm_add_epi32(_mm256_castsi256_si128(total), _mm256_extracti128_si256(total, 1));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0x4e));
    four = _mm_add_epi32(four, _mm_shuffle_epi32(four, 0xb1));
    *scale = max / (coarse ? q_max * KERNEL_Q_COARSE_STEP : q_max);
    *sum = _mm_cvtsi128_si32(four);
}

/* As 16 bits in the order 0, 2, 1, 3. */
INLINE void x86_store_pairs(const __m256i n[4], int16_t *q)
{
    for (int i = 0; i < 2; i++) { /* the pack works within 128-bit halves */
        __m256i packed = _mm256_packs_epi32(_mm256_shuffle_epi32(n[2 * i], 0xd8),
                                            _mm256_shuffle_epi32(n[2 * i + 1], 0xd8));
        _mm256_storeu_si256((__m256i *)(q + 16 * i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
}

/* 32 bytes of 32 lanes that hold bytes. */
INLINE __m256i x86_pack_bytes(const __m256i n[4])
{
    __m256i packed =
        _mm256_packs_epi16(_mm256_packs_epi32(n[0], n[1]), _mm256_packs_epi32(n[2], n[3]));
    /* the packs work within 128-bit halves */
    return _mm256_permutevar8x32_epi32(packed, _mm256_setr_epi32(0, 4, 1, 5, 2, 6, 3, 7));
}

/* As two digits of 8 bits. */
INLINE void x86_store_digits(const __m256i n[4], int16_t *q)
{
    __m256i high[4];
    __m256i low[4];
    for (int i = 0; i < 4; i++) {
        high[i] = _mm256_srai_epi32(_mm256_add_epi32(n[i], _mm256_set1_epi32(8)), 4);
        low[i] = _mm256_sub_epi32(n[i], _mm256_slli_epi32(high[i], 4));
    }
    _mm256_storeu_si256((__m256i *)q, x86_pack_bytes(high));
    _mm256_storeu_si256((__m256i *)(q + 16), x86_pack_bytes(low));
}

INLINE void x86_quantize_block(const float *x, bool coarse, int16_t *q, float *scale, int32_t *sum,
                               const bool digits)
{
    __m256i n[4];
    if (coarse)
        x86_round_block(x, true, n, scale, sum);
    else
        x86_round_block(x, false, n, scale, sum);
    if (digits)
        x86_store_digits(n, q);
    else
        x86_store_pairs(n, q);
}

INLINE void x86_quantize(const float *x, size_t n, bool coarse, int16_t *q, float *scale,
                         int32_t *sum, const bool digits)
{
    size_t b = 0;
    for (; (b + 1) * KERNEL_BLOCK <= n; b++)
        x86_quantize_block(x + b * KERNEL_BLOCK, coarse, q + b * KERNEL_BLOCK, scale + b, sum + b,
                           digits);
    if (b * KERNEL_BLOCK < n) {
        float tail[KERNEL_BLOCK] = {0};
        memcpy(tail, x + b * KERNEL_BLOCK, (n - b * KERNEL_BLOCK) * sizeof(float));
        x86_quantize_block(tail, coarse, q + b * KERNEL_BLOCK, scale + b, sum + b, digits);
    }
}

static void x86_silu_mul(const float *gate, const float *up, size_t n, float *out)
{
    const __m256 one = _mm256_set1_ps(1.0f);
    const __m256 sign = _mm256_set1_ps(-0.0f);
    size_t i = 0;
    for (; i + 8 <= n; i += 8) {
        __m256 g = _mm256_loadu_ps(gate + i);
        __m256 s = _mm256_div_ps(g, _mm256_add_ps(one, x86_exp(_mm256_xor_ps(g, sign))));
        _mm256_storeu_ps(out + i, _mm256_mul_ps(s, _mm256_loadu_ps(up + i)));
    }
    for (; i < n; i++)
        out[i] = gate[i] / (1.0f + lane_exp(-gate[i])) * up[i];
}

static void x86_rope(float *x, const float *cos, const float *sin, size_t half)
{
    size_t i = 0;
    for (; i + 8 <= half; i += 8) {
        __m256 a = _mm256_loadu_ps(x + i);
        __m256 b = _mm256_loadu_ps(x + i + half);
        __m256 c = _mm256_loadu_ps(cos + i);
        __m256 s = _mm256_loadu_ps(sin + i);
        _mm256_storeu_ps(x + i, _mm256_fmsub_ps(a, c, _mm256_mul_ps(b, s)));
        _mm256_storeu_ps(x + i + half, _mm256_fmadd_ps(a, s, _mm256_mul_ps(b, c)));
    }
    for (; i < half; i++) {
        float a = x[i];
        float b = x[i + half];
        x[i] = fmaf(a, cos[i], -(b * sin[i]));
        x[i + half] = fmaf(a, sin[i], b * cos[i]);
    }
}

static void x86_half_to_float(const uint16_t *src, size_t n, float *dst)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm256_storeu_ps(dst + i, _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)(src + i))));
    for (; i < n; i++)
        dst[i] = half_to_float(src[i]);
}

static void x86_float_to_half(const float *src, size_t n, uint16_t *dst)
{
    size_t i = 0;
    for (; i + 8 <= n; i += 8)
        _mm_storeu_si128((__m128i *)(dst + i),
                         _mm256_cvtps_ph(_mm256_loadu_ps(src + i),
                                         _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
    for (; i < n; i++)
        dst[i] = float_to_half(src[i]);
}

/* Eight elements of a page from i on. */
INLINE __m256 x86_page_load(const void *elements, size_t i, const bool is_half)
{
    return is_half
               ? _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)((const uint16_t *)elements + i)))
               : _mm256_loadu_ps((const float *)elements + i);
}

/* A decode step reads every page once, and a page is too short for the CPU to see it coming: who
 * reads n elements from i on asks for the same place of what is read after this: of the values
 * while keys pass, of the next page's keys while values do. */
INLINE void x86_page_prefetch(const void *after, size_t i, size_t n, const bool is_half)
{
    const size_t size = is_half ? sizeof(uint16_t) : sizeof(float);
    for (size_t byte = 0; byte < n * size; byte += 64)
        _mm_prefetch((const char *)after + i * size + byte, _MM_HINT_T1);
}

INLINE const void *x86_page_after(const struct attend_page *a)
{
    return a->next_keys ? a->next_keys : a->values;
}

/* Queries of one pass over a page: three times four vectors of sums leave registers for the
 * operands. */
#define ATTEND_QUERIES 3
/* And with vectors of 512 bits: eight times two. */
#define ATTEND_QUERIES_512 8

/* Scores of 32 keys for n queries at once: n * 4 independent chains hide the latency of fma. */
INLINE void x86_page_scores(const struct attend_page *a, const bool is_half, const float *q,
                            const int n, __m256 scores[][4])
{
    for (int j = 0; j < n; j++)
        for (int v = 0; v < 4; v++)
            scores[j][v] = _mm256_setzero_ps();
    for (size_t d = 0; d < a->head_dim; d++) {
        __m256 x[ATTEND_QUERIES];
        for (int j = 0; j < n; j++)
            x[j] = _mm256_set1_ps(q[(size_t)j * a->q_stride + d]);
        x86_page_prefetch(a->values, d * KERNEL_PAGE_TOKENS, KERNEL_PAGE_TOKENS, is_half);
        for (size_t v = 0; v < 4; v++) {
            __m256 keys = x86_page_load(a->keys, d * KERNEL_PAGE_TOKENS + 8 * v, is_half);
            for (int j = 0; j < n; j++)
                scores[j][v] = _mm256_fmadd_ps(x[j], keys, scores[j][v]);
        }
    }
}

/* Of one query: scores to weights p (masked ones 0), and the state's max and sum. Returns what the
 * sum of values so far is to be multiplied by. */
INLINE float x86_page_softmax(const __m256 scores[4], size_t n_keys, float *state, float *p)
{
    const __m256i index = _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7);
    __m256 masked[4];
    __m256 in_range[4];
    __m256 max8 = _mm256_set1_ps(state[0]);

    for (int v = 0; v < 4; v++) {
        __m256i limit = _mm256_set1_epi32((int)n_keys - 8 * v);
        in_range[v] = _mm256_castsi256_ps(_mm256_cmpgt_epi32(limit, index));
        masked[v] = _mm256_blendv_ps(_mm256_set1_ps(-INFINITY), scores[v], in_range[v]);
        max8 = _mm256_max_ps(masked[v], max8);
    }
    float max = x86_fold_max(max8);
    __m256 lanes = _mm256_setzero_ps();
    for (int v = 0; v < 4; v++) {
        __m256 e = x86_exp(_mm256_sub_ps(masked[v], _mm256_set1_ps(max)));
        e = _mm256_and_ps(e, in_range[v]);
        lanes = _mm256_add_ps(lanes, e);
        _mm256_storeu_ps(p + 8 * v, e);
    }
    float correction = lane_exp(state[0] - max);
    state[1] = fmaf(state[1], correction, x86_fold(lanes));
    state[0] = max;
    return correction;
}

struct x86_queries {
    float p[ATTEND_QUERIES_512][KERNEL_PAGE_TOKENS];
    float correction[ATTEND_QUERIES_512];
    float *acc[ATTEND_QUERIES_512]; /* [head_dim] */
    size_t n_keys[ATTEND_QUERIES_512];
    size_t n_common; /* the least n_keys */
};

/* n_vectors * 8 elements of the sums, from d on, kept in registers while the values pass. */
INLINE void x86_add_values(const struct attend_page *a, const bool is_half,
                           const struct x86_queries *q, const int n, size_t d, const int n_vectors)
{
    __m256 sum[ATTEND_QUERIES][4];
    for (int j = 0; j < n; j++)
        for (int v = 0; v < n_vectors; v++)
            sum[j][v] = _mm256_mul_ps(_mm256_loadu_ps(q->acc[j] + d + 8 * v),
                                      _mm256_set1_ps(q->correction[j]));
    const void *after = x86_page_after(a);
    for (size_t t = 0; t < q->n_common; t++) {
        __m256 p[ATTEND_QUERIES];
        x86_page_prefetch(after, t * a->head_dim + d, (size_t)n_vectors * 8, is_half);
        for (int j = 0; j < n; j++)
            p[j] = _mm256_set1_ps(q->p[j][t]);
        for (int v = 0; v < n_vectors; v++) {
            __m256 values = x86_page_load(a->values, t * a->head_dim + d + 8 * (size_t)v, is_half);
            for (int j = 0; j < n; j++)
                sum[j][v] = _mm256_fmadd_ps(p[j], values, sum[j][v]);
        }
    }
    for (int j = 0; j < n; j++) {
        for (size_t t = q->n_common; t < q->n_keys[j]; t++)
            for (int v = 0; v < n_vectors; v++)
                sum[j][v] = _mm256_fmadd_ps(
                    _mm256_set1_ps(q->p[j][t]),
                    x86_page_load(a->values, t * a->head_dim + d + 8 * (size_t)v, is_half),
                    sum[j][v]);
        for (int v = 0; v < n_vectors; v++)
            _mm256_storeu_ps(q->acc[j] + d + 8 * v, sum[j][v]);
    }
}

static void x86_add_values_tail(const struct attend_page *a, const struct x86_queries *q, int n,
                                size_t d)
{
    for (int j = 0; j < n; j++) {
        for (size_t i = d; i < a->head_dim; i++) {
            float sum = q->acc[j][i] * q->correction[j];
            for (size_t t = 0; t < q->n_keys[j]; t++) {
                size_t at = t * a->head_dim + i;
                float v = a->is_half ? half_to_float(((const uint16_t *)a->values)[at])
                                     : ((const float *)a->values)[at];
                sum = fmaf(q->p[j][t], v, sum);
            }
            q->acc[j][i] = sum;
        }
    }
}

/* Queries i..i+n-1, each with at least one key. */
INLINE void x86_attend_n(const struct attend_page *a, const bool is_half, size_t i, const int n)
{
    __m256 scores[ATTEND_QUERIES][4];
    struct x86_queries q;

    x86_page_scores(a, is_half, a->q + i * a->q_stride, n, scores);
    q.n_common = KERNEL_PAGE_TOKENS;
    for (int j = 0; j < n; j++) {
        float *state = a->state + (i + (size_t)j) * ATTEND_STATE(a->head_dim);
        q.n_keys[j] = a->n_keys[i + (size_t)j];
        q.n_common = q.n_keys[j] < q.n_common ? q.n_keys[j] : q.n_common;
        q.acc[j] = state + 2;
        q.correction[j] = x86_page_softmax(scores[j], q.n_keys[j], state, q.p[j]);
    }
    size_t d = 0;
    for (; d + 32 <= a->head_dim; d += 32)
        x86_add_values(a, is_half, &q, n, d, 4);
    for (; d + 8 <= a->head_dim; d += 8)
        x86_add_values(a, is_half, &q, n, d, 1);
    x86_add_values_tail(a, &q, n, d);
}

/* How many queries in a row, from i on and at most so many, see something of this page. */
INLINE size_t x86_seeing_queries(const struct attend_page *a, size_t i, size_t most)
{
    size_t n = 0;
    while (n < most && i + n < a->n_q && a->n_keys[i + n])
        n++;
    return n;
}

INLINE void x86_attend_all(const struct attend_page *a, const bool is_half)
{
    size_t i = 0;
    while (i < a->n_q) {
        size_t n = x86_seeing_queries(a, i, ATTEND_QUERIES);
        if (n == 3)
            x86_attend_n(a, is_half, i, 3);
        else if (n == 2)
            x86_attend_n(a, is_half, i, 2);
        else if (n == 1)
            x86_attend_n(a, is_half, i, 1);
        i += n ? n : 1;
    }
}

/* Tiles outside, rows inside: a tile (tens of KB at most) stays in cache while the rows pass, most
 * at a time, then what is left. rows(m, layout, t, row, n_rows) is inlined for each count of rows.
 */
#define X86_DEFINE_MATMUL(name, layout, most)                                                      \
    static void name(const struct matmul *m)                                                       \
    {                                                                                              \
        for (size_t t = m->tile_begin; t < m->tile_end; t++) {                                     \
            size_t row = m->row_begin;                                                             \
            for (; row + (most) <= m->row_end; row += (most))                                      \
                rows(m, layout, t, row, most);                                                     \
            if ((most) > 4 && row + 4 <= m->row_end) {                                             \
                rows(m, layout, t, row, 4);                                                        \
                row += 4;                                                                          \
            }                                                                                      \
            if (row + 3 == m->row_end)                                                             \
                rows(m, layout, t, row, 3);                                                        \
            else if (row + 2 == m->row_end)                                                        \
                rows(m, layout, t, row, 2);                                                        \
            else if (row + 1 == m->row_end)                                                        \
                rows(m, layout, t, row, 1);                                                        \
        }                                                                                          \
    }

/* The table of a file that has quantize and attend. */
#define X86_TABLE(label, matmul_q8, matmul_q4, matmul_q4_min, prompt_products, coarse_faster,      \
                  attend_prompts)                                                                  \
    {                                                                                              \
        .name = (label), .rmsnorm = x86_rmsnorm,                                                   \
        .products = {quantize, {matmul_q8, matmul_q4, matmul_q4_min}, 64},                         \
        .prompt = (prompt_products), .coarse_is_faster = (coarse_faster),                          \
        .silu_mul = x86_silu_mul, .rope = x86_rope, .half_to_float = x86_half_to_float,            \
        .float_to_half = x86_float_to_half, .attend = attend, .attend_prompt = (attend_prompts),   \
    }

#endif
