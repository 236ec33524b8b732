/* Prompts with AVX-512 (BF16): products, which are bf16_products.h with the sums in vectors, and
 * attention. 12 rows times two vectors share what is loaded. All else is that of AVX-512. */
#if defined(__x86_64__)
#include "engine/kernels/avx512_common.h"
#define CHUNK 16
#include "engine/kernels/bf16_products.h"

#define MOST_ROWS 12 /* of one pass: times two, sums fill most of the 32 registers */

INLINE void begin_rows(size_t n_rows)
{
    (void)n_rows;
}

INLINE void end_rows(void)
{
}

/* Two inputs of a row, in every lane. */
INLINE __m512bh broadcast_pair(const int16_t *x)
{
    int32_t pair;
    memcpy(&pair, x, sizeof(pair));
    return (__m512bh)_mm512_set1_epi32(pair);
}

INLINE __m512bh load_weights(const uint8_t *line)
{
    return (__m512bh)_mm512_load_si512(line);
}

/* sums += a chunk of n_rows rows from `row` on. */
INLINE void multiply_rows(const struct matmul *m, const struct chunk *c, size_t row,
                          struct scratch *s, const size_t n_rows, const size_t n_tiles)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK;
    const int16_t *x = m->x->q + row * stride + c->block * KERNEL_BLOCK;
    const size_t at = row - c->row_begin;
    __m512 sum[MOST_ROWS][PAIR];

    for (size_t r = 0; r < n_rows; r++)
        for (size_t t = 0; t < n_tiles; t++)
            sum[r][t] = c->block ? _mm512_load_ps(s->sums[t][at + r]) : _mm512_setzero_ps();
    for (size_t b = 0; b < c->n_blocks; b++, x += KERNEL_BLOCK) {
        X86_UNROLL_16 /* a pair is then a constant away from its block */
            for (size_t k = 0; k < KERNEL_BLOCK / 2; k++)
        {
            __m512bh w[PAIR];
            for (size_t t = 0; t < n_tiles; t++)
                w[t] = load_weights(s->weights[t][b] + k * LINE);
            for (size_t r = 0; r < n_rows; r++) {
                __m512bh pair = broadcast_pair(x + r * stride + 2 * k);
                for (size_t t = 0; t < n_tiles; t++)
                    sum[r][t] = _mm512_dpbf16_ps(sum[r][t], pair, w[t]);
            }
        }
    }
    for (size_t r = 0; r < n_rows; r++)
        for (size_t t = 0; t < n_tiles; t++)
            _mm512_store_ps(s->sums[t][at + r], sum[r][t]);
}

INLINE void multiply_tiles(const struct matmul *m, const struct chunk *c, struct scratch *s,
                           const size_t n_tiles)
{
    size_t row = c->row_begin;
    for (; row + MOST_ROWS <= c->row_end; row += MOST_ROWS)
        multiply_rows(m, c, row, s, MOST_ROWS, n_tiles);
    for (; row + 4 <= c->row_end; row += 4)
        multiply_rows(m, c, row, s, 4, n_tiles);
    for (; row < c->row_end; row++)
        multiply_rows(m, c, row, s, 1, n_tiles);
}

INLINE void multiply(const struct matmul *m, const struct chunk *c, struct scratch *s)
{
    if (c->n_tiles == PAIR)
        multiply_tiles(m, c, s, PAIR);
    else
        multiply_tiles(m, c, s, 1);
}

INLINE void store(const struct matmul *m, const struct chunk *c, const struct scratch *s)
{
    for (size_t row = c->row_begin; row < c->row_end; row++)
        for (size_t t = 0; t < c->n_tiles; t++)
            finish(m, row, c->tile + t, _mm512_load_ps(s->sums[t][row - c->row_begin]));
}

#define MOST_HEAD_DIM 256 /* else attention is that of AVX-512 */

/* A page's keys and values in pairs, for all queries; and some of these, with their weights. */
struct pairs {
    _Alignas(LINE) uint8_t keys[MOST_HEAD_DIM / 2][2][LINE]; /* inputs 2i, 2i + 1 of 16 keys */
    uint8_t values[KERNEL_PAGE_TOKENS / 2][MOST_HEAD_DIM / KERNEL_TILE][LINE]; /* of two tokens */
    int16_t q[MOST_ROWS][MOST_HEAD_DIM];
    int16_t p[MOST_ROWS][KERNEL_PAGE_TOKENS];
};

INLINE void pair_keys(const struct attend_page *a, const bool is_half, struct pairs *s)
{
    for (size_t d = 0; d < a->head_dim; d += 2)
        for (size_t i = 0; i < 2; i++)
            _mm512_store_si512(
                s->keys[d / 2][i],
                pairs_of(page_load(a->keys, d * KERNEL_PAGE_TOKENS + 16 * i, is_half),
                         page_load(a->keys, (d + 1) * KERNEL_PAGE_TOKENS + 16 * i, is_half)));
}

/* Of n_tokens; one more if they are odd is 0: what it holds may be no number. */
INLINE void pair_values(const struct attend_page *a, const bool is_half, size_t n_tokens,
                        struct pairs *s)
{
    for (size_t t = 0; t < n_tokens; t += 2) {
        for (size_t d = 0; d < a->head_dim; d += KERNEL_TILE) {
            __m512 even = page_load(a->values, t * a->head_dim + d, is_half);
            __m512 odd = t + 1 < n_tokens ? page_load(a->values, (t + 1) * a->head_dim + d, is_half)
                                          : _mm512_setzero_ps();
            _mm512_store_si512(s->values[t / 2][d / KERNEL_TILE], pairs_of(even, odd));
        }
    }
}

/* 32 floats, rounded to the nearest bf16. */
INLINE void to_pairs(const float *x, int16_t *pairs)
{
    _mm512_storeu_si512(pairs,
                        (__m512i)_mm512_cvtne2ps_pbh(_mm512_loadu_ps(x + 16), _mm512_loadu_ps(x)));
}

/* Scores of 32 keys for n queries at once. */
INLINE void pair_scores(const struct attend_page *a, const struct pairs *s, __m512 scores[][2],
                        const size_t n)
{
    for (size_t j = 0; j < n; j++)
        scores[j][0] = scores[j][1] = _mm512_setzero_ps();
    for (size_t d = 0; d < a->head_dim / 2; d++) {
        __m512bh low = load_weights(s->keys[d][0]);
        __m512bh high = load_weights(s->keys[d][1]);
        for (size_t j = 0; j < n; j++) {
            __m512bh x = broadcast_pair(&s->q[j][2 * d]);
            scores[j][0] = _mm512_dpbf16_ps(scores[j][0], x, low);
            scores[j][1] = _mm512_dpbf16_ps(scores[j][1], x, high);
        }
    }
}

/* 32 elements of the sums of values, from d on. A query's weight of a key that it does not see is
 * 0. */
INLINE void add_pairs(const struct pairs *s, float *const *acc, const float *correction,
                      size_t n_tokens, size_t d, const size_t n)
{
    __m512 sum[MOST_ROWS][2];
    for (size_t j = 0; j < n; j++)
        for (size_t v = 0; v < 2; v++)
            sum[j][v] =
                _mm512_mul_ps(_mm512_loadu_ps(acc[j] + d + 16 * v), _mm512_set1_ps(correction[j]));
    for (size_t t = 0; t < n_tokens; t += 2) {
        __m512bh low = load_weights(s->values[t / 2][d / KERNEL_TILE]);
        __m512bh high = load_weights(s->values[t / 2][d / KERNEL_TILE + 1]);
        for (size_t j = 0; j < n; j++) {
            __m512bh x = broadcast_pair(&s->p[j][t]);
            sum[j][0] = _mm512_dpbf16_ps(sum[j][0], x, low);
            sum[j][1] = _mm512_dpbf16_ps(sum[j][1], x, high);
        }
    }
    for (size_t j = 0; j < n; j++)
        for (size_t v = 0; v < 2; v++)
            _mm512_storeu_ps(acc[j] + d + 16 * v, sum[j][v]);
}

/* Queries i..i+n-1, each with at least one key. */
INLINE void attend_pairs(const struct attend_page *a, struct pairs *s, size_t i, size_t n_tokens,
                         const size_t n)
{
    __m512 scores[MOST_ROWS][2];
    float *acc[MOST_ROWS];
    float correction[MOST_ROWS];
    for (size_t j = 0; j < n; j++)
        for (size_t d = 0; d < a->head_dim; d += 32)
            to_pairs(a->q + (i + j) * a->q_stride + d, s->q[j] + d);
    pair_scores(a, s, scores, n);
    for (size_t j = 0; j < n; j++) {
        float p[KERNEL_PAGE_TOKENS];
        float *state = a->state + (i + j) * ATTEND_STATE(a->head_dim);
        acc[j] = state + 2;
        correction[j] = page_softmax(scores[j], a->n_keys[i + j], state, p);
        to_pairs(p, s->p[j]);
    }
    for (size_t d = 0; d < a->head_dim; d += 32)
        add_pairs(s, acc, correction, n_tokens, d, n);
}

INLINE void attend_prompt_all(const struct attend_page *a, const bool is_half)
{
    struct pairs s;
    size_t n_tokens = 0;
    for (size_t i = 0; i < a->n_q; i++)
        n_tokens = a->n_keys[i] > n_tokens ? a->n_keys[i] : n_tokens;
    if (!n_tokens)
        return;
    pair_keys(a, is_half, &s);
    pair_values(a, is_half, n_tokens, &s);
    for (size_t i = 0; i < a->n_q;) {
        size_t n = x86_seeing_queries(a, i, MOST_ROWS);
        n = n == MOST_ROWS ? MOST_ROWS : n >= 3 ? 3 : n ? 1 : 0;
        if (n == MOST_ROWS)
            attend_pairs(a, &s, i, n_tokens, MOST_ROWS);
        else if (n == 3)
            attend_pairs(a, &s, i, n_tokens, 3);
        else if (n == 1)
            attend_pairs(a, &s, i, n_tokens, 1);
        i += n ? n : 1;
    }
}

static void attend_prompt(const struct attend_page *a)
{
    if (a->head_dim % 32 || a->head_dim > MOST_HEAD_DIM)
        attend(a);
    else if (a->is_half)
        attend_prompt_all(a, true);
    else
        attend_prompt_all(a, false);
}

static const struct products PROMPT = {
    to_bf16, {matmul_q8, matmul_q4, matmul_q4_min}, KERNEL_MOST_UNIT_ROWS};
const struct kernels KERNELS_AVX512_BF16 =
    X86_TABLE("avx512-bf16", vector_matmul_q8, vector_matmul_q4, vector_matmul_q4_min, &PROMPT,
              true, attend_prompt);
#endif
