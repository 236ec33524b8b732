/* Products of many rows with AMX (TILE, BF16): bf16_products.h, with the sums in tiles. Two groups
 * of rows times two tiles of outputs share what is loaded. */
#if defined(__x86_64__)
#include "engine/kernels/amx_tiles.h"
#define CHUNK 24
#include "engine/kernels/bf16_products.h"

/* Tile registers: sums of group 0 or 1 and outputs 0 or 1, then rows, then weights. */
#define SUM_00 0
#define SUM_01 1
#define SUM_10 2
#define SUM_11 3
#define ROWS_0 4
#define ROWS_1 5
#define WEIGHTS_0 6
#define WEIGHTS_1 7

INLINE void begin_rows(size_t n_rows)
{
    const struct groups g = groups_of(0, n_rows);
    struct tile_shapes shapes = {.palette = 1};
    for (int i = SUM_00; i <= WEIGHTS_1; i++) {
        shapes.n_rows[i] = (uint8_t)(i < WEIGHTS_0 ? g.n_rows : GROUP_ROWS);
        shapes.row_bytes[i] = LINE;
    }
    load_shapes(&shapes);
}

INLINE void end_rows(void)
{
    _tile_release(); /* the tiles are no longer part of what a change of threads saves */
}

/* Where the sums of group i + j and output k of a chunk are kept from chunk to chunk. */
#define SUMS(j, k) s->sums[k][(i + (j)) * GROUP_ROWS]
#define BEGIN_SUM(sum, j, k)                                                                       \
    do {                                                                                           \
        if (c->block)                                                                              \
            _tile_loadd(sum, SUMS(j, k), LINE);                                                    \
        else                                                                                       \
            _tile_zero(sum);                                                                       \
    } while (0)

/* sums += a chunk of two groups of rows, the i-th and the next, or of one. */
INLINE void multiply_groups(const struct matmul *m, const struct groups *g, const struct chunk *c,
                            size_t i, const bool two_groups, const bool two_tiles,
                            struct scratch *s)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK * sizeof(int16_t);
    const int16_t *x0 = m->x->q + (group_begin(g, i) * m->x->stride + c->block) * KERNEL_BLOCK;
    const int16_t *x1 =
        two_groups ? m->x->q + (group_begin(g, i + 1) * m->x->stride + c->block) * KERNEL_BLOCK
                   : x0;

    BEGIN_SUM(SUM_00, 0, 0);
    if (two_tiles)
        BEGIN_SUM(SUM_01, 0, 1);
    if (two_groups)
        BEGIN_SUM(SUM_10, 1, 0);
    if (two_groups && two_tiles)
        BEGIN_SUM(SUM_11, 1, 1);
    X86_KEEP_LOOP
    for (size_t b = 0; b < c->n_blocks; b++) {
        _tile_loadd(WEIGHTS_0, s->weights[0][b], LINE);
        _tile_loadd(ROWS_0, x0 + b * KERNEL_BLOCK, stride);
        _tile_dpbf16ps(SUM_00, ROWS_0, WEIGHTS_0);
        if (two_groups) {
            _tile_loadd(ROWS_1, x1 + b * KERNEL_BLOCK, stride);
            _tile_dpbf16ps(SUM_10, ROWS_1, WEIGHTS_0);
        }
        if (two_tiles) {
            _tile_loadd(WEIGHTS_1, s->weights[1][b], LINE);
            _tile_dpbf16ps(SUM_01, ROWS_0, WEIGHTS_1);
        }
        if (two_groups && two_tiles)
            _tile_dpbf16ps(SUM_11, ROWS_1, WEIGHTS_1);
    }
    _tile_stored(SUM_00, SUMS(0, 0), LINE);
    if (two_tiles)
        _tile_stored(SUM_01, SUMS(0, 1), LINE);
    if (two_groups)
        _tile_stored(SUM_10, SUMS(1, 0), LINE);
    if (two_groups && two_tiles)
        _tile_stored(SUM_11, SUMS(1, 1), LINE);
}

INLINE void multiply(const struct matmul *m, const struct chunk *c, struct scratch *s)
{
    const struct groups g = groups_of(c->row_begin, c->row_end);
    /* the compiler does not know what a tile's load reads */
    __asm__ volatile("" : : "r"(s) : "memory");
    for (size_t i = 0; i < g.n; i += 2) {
        if (i + 1 < g.n)
            multiply_groups(m, &g, c, i, true, c->n_tiles == PAIR, s);
        else
            multiply_groups(m, &g, c, i, false, c->n_tiles == PAIR, s);
    }
    __asm__ volatile("" : : "r"(s) : "memory");
}

INLINE void store(const struct matmul *m, const struct chunk *c, const struct scratch *s)
{
    const struct groups g = groups_of(c->row_begin, c->row_end);
    for (size_t t = 0; t < c->n_tiles; t++)
        store_rows(m, &g, c->tile + t, s->sums[t]);
}

const struct products PRODUCTS_AMX_BF16 = {
    to_bf16, {matmul_q8, matmul_q4, matmul_q4_min}, KERNEL_MOST_UNIT_ROWS};
#endif
