/* Attention of prompts in bf16, but for what multiplies: a page's keys and values are rounded and
 * paired once for all queries that see it. Compiled into avx512_bf16.c, which defines what is
 * declared below. Internal. */
#ifndef OVERFILL_ENGINE_KERNELS_BF16_ATTEND_H
#define OVERFILL_ENGINE_KERNELS_BF16_ATTEND_H

#include "engine/kernels/avx512_common.h"
#include "engine/kernels/bf16_products.h"

#define MOST_HEAD_DIM 256 /* else attention is that of AVX-512 */

/* A page's keys and values in pairs. */
struct pairs {
    /* inputs 2i, 2i + 1 of 16 keys; 16 inputs of two tokens */
    _Alignas(LINE) uint8_t keys[2][MOST_HEAD_DIM / 2][LINE];
    uint8_t values[MOST_HEAD_DIM / KERNEL_TILE][KERNEL_PAGE_TOKENS / 2][LINE];
};

/* The including file's: what stands around all queries of a page; query i, which sees one of the
 * first n_tokens keys, and those behind it that it likes to take along. Returns how many. */
INLINE void begin_page(void);
INLINE void end_page(void);
INLINE size_t attend_queries(const struct attend_page *a, const struct pairs *s, size_t i,
                             size_t n_tokens);

INLINE void pair_keys(const struct attend_page *a, const bool is_half, struct pairs *s)
{
    for (size_t d = 0; d < a->head_dim; d += 2)
        for (size_t i = 0; i < 2; i++)
            _mm512_store_si512(
                s->keys[i][d / 2],
                pairs_of(page_load(a->keys, d * KERNEL_PAGE_TOKENS + 16 * i, is_half),
                         page_load(a->keys, (d + 1) * KERNEL_PAGE_TOKENS + 16 * i, is_half)));
}

/* 16 inputs of token t; 0 if nobody sees it: what it holds may be no number. */
INLINE __m512 seen_values(const struct attend_page *a, const bool is_half, size_t n_tokens,
                          size_t t, size_t d)
{
    return t < n_tokens ? page_load(a->values, t * a->head_dim + d, is_half) : _mm512_setzero_ps();
}

INLINE void pair_values(const struct attend_page *a, const bool is_half, size_t n_tokens,
                        struct pairs *s)
{
    for (size_t t = 0; t < KERNEL_PAGE_TOKENS; t += 2)
        for (size_t d = 0; d < a->head_dim; d += KERNEL_TILE)
            _mm512_store_si512(s->values[d / KERNEL_TILE][t / 2],
                               pairs_of(seen_values(a, is_half, n_tokens, t, d),
                                        seen_values(a, is_half, n_tokens, t + 1, d)));
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
    begin_page();
    for (size_t i = 0; i < a->n_q;)
        i += a->n_keys[i] ? attend_queries(a, &s, i, n_tokens) : 1;
    end_page();
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

#endif
