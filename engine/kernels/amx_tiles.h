/* What both products with AMX share: shapes of tiles, and rows in groups that fill one. Internal.
 */
#ifndef OVERFILL_ENGINE_KERNELS_AMX_TILES_H
#define OVERFILL_ENGINE_KERNELS_AMX_TILES_H

#include "engine/kernels/avx512_output.h"

#define GROUP_ROWS 16 /* of a tile */

extern const struct products PRODUCTS_AMX_BF16; /* amx_bf16.c: prompts of its table, in amx.c */

/* Memory operand of ldtilecfg. */
struct tile_shapes {
    uint8_t palette;
    uint8_t start_row;
    uint8_t reserved[14];
    uint16_t row_bytes[16];
    uint8_t n_rows[16];
};

INLINE void load_shapes(const struct tile_shapes *shapes)
{
    /* gcc believes that only the first bytes are read */
    __asm__ volatile("" : : "r"(shapes) : "memory");
    _tile_loadconfig(shapes);
}

/* Rows of a pass in groups of equal size; the last one begins so much earlier that it is full. */
struct groups {
    size_t row_begin, row_end;
    size_t n, n_rows; /* groups, rows of each */
};

INLINE struct groups groups_of(size_t row_begin, size_t row_end)
{
    size_t n_rows = row_end - row_begin;
    size_t n = (n_rows + GROUP_ROWS - 1) / GROUP_ROWS;
    return (struct groups){row_begin, row_end, n, (n_rows + n - 1) / n};
}

INLINE size_t group_begin(const struct groups *g, size_t i)
{
    return least(g->row_begin + i * g->n_rows, g->row_end - g->n_rows);
}

/* sums[group * GROUP_ROWS + row] of tile t to the product's rows, each once, though the last group
 * holds some of the one before it. */
INLINE void store_rows(const struct matmul *m, const struct groups *g, size_t t,
                       const float (*sums)[KERNEL_TILE])
{
    size_t done = g->row_begin;
    for (size_t i = 0; i < g->n; i++) {
        size_t begin = group_begin(g, i);
        for (; done < begin + g->n_rows; done++)
            finish(m, done, t, _mm512_load_ps(sums[i * GROUP_ROWS + done - begin]));
    }
}

#endif
