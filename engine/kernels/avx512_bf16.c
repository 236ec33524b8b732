/* Products of many rows with AVX-512 (BF16): bf16_products.h, with the sums in vectors: 12 rows
 * times two tiles of outputs, so that for 24 products two vectors of weights and 12 pairs of inputs
 * are loaded. */
#if defined(__x86_64__)
#include "engine/kernels/bf16_products.h"

#define MOST_ROWS 12 /* of one pass: with their weights, sums fill most of the 32 registers */

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
        for (size_t k = 0; k < KERNEL_BLOCK / 2; k++) {
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

const struct products PRODUCTS_AVX512_BF16 = {
    to_bf16, {matmul_q8, matmul_q4, matmul_q4_min}, KERNEL_MOST_UNIT_ROWS};
#endif
