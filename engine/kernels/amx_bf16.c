/* Products of many rows with AMX (TILE, BF16): weights and activations are rounded to bf16, and a
 * tile adds up float sums over all inputs. The integer products of amx.c must leave their tile
 * after every block, which has a scale of its own; here the scales are in the weights, so a tile is
 * read once.
 *
 * A row's bits depend on nothing but the row, as everywhere, but they are not those of the other
 * tables (kernels.h, `prompt`): an output is the sum of pairs of inputs in the hardware's order.
 *
 * Weights are unpacked into tiles [16 pairs of inputs][16 outputs][2], some blocks at once, for all
 * rows of the call; two groups of rows times two tiles of outputs share what is loaded. */
#if defined(__x86_64__)
#include "engine/kernels/amx_tiles.h"

#include <string.h>

#define PAIR 2 /* groups, and tiles of outputs, that are multiplied together */
#define MOST_GROUPS (KERNEL_MOST_UNIT_ROWS / GROUP_ROWS) /* that share unpacked weights */
#define CHUNK 16 /* blocks whose weights are unpacked at once: they stay in the L1 cache */

/* Tile registers: sums of group 0 or 1 and outputs 0 or 1, then rows, then weights. */
#define SUM_00 0
#define SUM_01 1
#define SUM_10 2
#define SUM_11 3
#define ROWS_0 4
#define ROWS_1 5
#define WEIGHTS_0 6
#define WEIGHTS_1 7

/* A thread's own, on its stack. */
struct scratch {
    _Alignas(LINE) uint8_t weights[PAIR][CHUNK][TILE_BYTES];
    float sums[PAIR][MOST_GROUPS][GROUP_ROWS][KERNEL_TILE];
};

static void configure(size_t n_rows)
{
    struct tile_shapes shapes = {.palette = 1};
    for (int i = SUM_00; i <= WEIGHTS_1; i++) {
        shapes.n_rows[i] = (uint8_t)(i < WEIGHTS_0 ? n_rows : GROUP_ROWS);
        shapes.row_bytes[i] = LINE;
    }
    load_shapes(&shapes);
}

/* Sixteen pairs of floats as pairs of bf16, rounded to the nearest. */
INLINE __m512i pairs_of(__m512 even, __m512 odd)
{
    const __m512i half = _mm512_set1_epi32(0x8000);
    __m512i low = _mm512_srli_epi32(_mm512_add_epi32(_mm512_castps_si512(even), half), 16);
    __m512i high = _mm512_add_epi32(_mm512_castps_si512(odd), half);
    return _mm512_mask_blend_epi16(0xaaaaaaaau, low, high);
}

/* Values of nibbles, of which each lane of v holds one in the bits 16 to 19: 128 + nibble is a
 * float whose mantissa ends there. from_128: what is added to scale * (128 + nibble). */
INLINE __m512 nibble_values(__m512i v, __m512 scale, __m512 from_128)
{
    const __m512i bits = _mm512_set1_epi32(0x000f0000);
    const __m512i base = _mm512_set1_epi32(0x43000000);
    __m512i sum = _mm512_ternarylogic_epi32(v, bits, base, 0xea); /* v & bits | base */
    return _mm512_fmadd_ps(_mm512_castsi512_ps(sum), scale, from_128);
}

/* Four nibbles of a lane, at bits `shift` + 0, 8, 16 and 24, to two lines of a tile. */
INLINE void unpack_nibbles(__m512i packed, const unsigned shift, __m512 scale, __m512 from_128,
                           uint8_t *lines)
{
    __m512 w0 = nibble_values(_mm512_slli_epi32(packed, 16 - shift), scale, from_128);
    __m512 w1 = nibble_values(_mm512_slli_epi32(packed, 8 - shift), scale, from_128);
    __m512 w2 = nibble_values(_mm512_srli_epi32(packed, shift), scale, from_128);
    __m512 w3 = nibble_values(_mm512_srli_epi32(packed, 8 + shift), scale, from_128);
    _mm512_store_si512(lines, pairs_of(w0, w1));
    _mm512_store_si512(lines + LINE, pairs_of(w2, w3));
}

INLINE void unpack_q4(const uint8_t *w, __m512 scale, __m512 from_128, uint8_t *tile)
{
    for (size_t g = 0; g < 4; g++) {
        __m512i packed = _mm512_loadu_si512(w + g * LINE);
        unpack_nibbles(packed, 0, scale, from_128, tile + 2 * g * LINE);
        unpack_nibbles(packed, 4, scale, from_128, tile + (8 + 2 * g) * LINE);
    }
}

/* Byte `i` of each lane as a signed value, scaled. */
INLINE __m512 byte_values(__m512i packed, const unsigned i, __m512 scale)
{
    __m512i v = _mm512_srai_epi32(_mm512_slli_epi32(packed, 24 - 8 * i), 24);
    return _mm512_mul_ps(_mm512_cvtepi32_ps(v), scale);
}

INLINE void unpack_q8(const uint8_t *w, __m512 scale, uint8_t *tile)
{
    for (size_t g = 0; g < 8; g++) {
        __m512i packed = _mm512_loadu_si512(w + g * LINE);
        _mm512_store_si512(tile + 2 * g * LINE,
                           pairs_of(byte_values(packed, 0, scale), byte_values(packed, 1, scale)));
        _mm512_store_si512(tile + (2 * g + 1) * LINE,
                           pairs_of(byte_values(packed, 2, scale), byte_values(packed, 3, scale)));
    }
}

INLINE void unpack_block(const enum kernel_layout layout, const uint8_t *w, uint8_t *tile)
{
    const uint16_t *scales = (const uint16_t *)(const void *)(w + kernel_weight_bytes(layout));
    __m512 scale = halves(scales);
    if (layout == KERNEL_Q8)
        unpack_q8(w, scale, tile);
    else if (layout == KERNEL_Q4)
        unpack_q4(w, scale, _mm512_mul_ps(scale, _mm512_set1_ps(-136)), tile);
    else
        unpack_q4(w, scale,
                  _mm512_fmadd_ps(scale, _mm512_set1_ps(-128), halves(scales + KERNEL_TILE)), tile);
}

/* Part of the work: blocks [block, block + n_blocks) of the outputs of `tile` and perhaps the next.
 */
struct chunk {
    size_t block, n_blocks;
    size_t tile;
};

/* Where the sums of group i + j and output k of a chunk are kept from chunk to chunk. */
#define BEGIN_SUM(sum, j, k)                                                                       \
    do {                                                                                           \
        if (c->block)                                                                              \
            _tile_loadd(sum, s->sums[k][i + (j)], LINE);                                           \
        else                                                                                       \
            _tile_zero(sum);                                                                       \
    } while (0)

/* sums += a chunk of two groups of rows, the i-th and the next, or of one. */
INLINE void multiply(const struct matmul *m, const struct groups *g, const struct chunk *c,
                     size_t i, const bool two_groups, const bool two_tiles, struct scratch *s)
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
    _tile_stored(SUM_00, s->sums[0][i], LINE);
    if (two_tiles)
        _tile_stored(SUM_01, s->sums[1][i], LINE);
    if (two_groups)
        _tile_stored(SUM_10, s->sums[0][i + 1], LINE);
    if (two_groups && two_tiles)
        _tile_stored(SUM_11, s->sums[1][i + 1], LINE);
}

INLINE void run_chunk(const struct matmul *m, const enum kernel_layout layout,
                      const struct groups *g, const struct chunk *c, const size_t n_tiles,
                      struct scratch *s)
{
    for (size_t t = 0; t < n_tiles; t++) {
        const uint8_t *w =
            m->tiles + (c->tile + t) * m->tile_bytes + c->block * kernel_block_bytes(layout);
        for (size_t b = 0; b < c->n_blocks; b++)
            unpack_block(layout, w + b * kernel_block_bytes(layout), s->weights[t][b]);
    }
    /* the compiler does not know what a tile's load reads */
    __asm__ volatile("" : : "r"(s) : "memory");
    for (size_t i = 0; i < g->n; i += PAIR) {
        if (i + 1 < g->n)
            multiply(m, g, c, i, true, n_tiles == PAIR, s);
        else
            multiply(m, g, c, i, false, n_tiles == PAIR, s);
    }
    __asm__ volatile("" : : "r"(s) : "memory");
}

/* All rows of a group of tiles. */
INLINE void run_outputs(const struct matmul *m, const enum kernel_layout layout,
                        const struct groups *g, size_t tile, const size_t n_tiles,
                        struct scratch *s)
{
    for (size_t b = 0; b < m->n_blocks; b += CHUNK)
        run_chunk(
            m, layout, g,
            &(struct chunk){.block = b, .n_blocks = least(CHUNK, m->n_blocks - b), .tile = tile},
            n_tiles, s);
    for (size_t t = 0; t < n_tiles; t++)
        store_rows(m, g, tile + t, s->sums[t]);
}

INLINE void run_tiles(const struct matmul *m, const enum kernel_layout layout)
{
    struct scratch s;
    for (size_t row = m->row_begin; row < m->row_end; row += GROUP_ROWS * MOST_GROUPS) {
        const struct groups g = groups_of(row, least(row + GROUP_ROWS * MOST_GROUPS, m->row_end));
        size_t t = m->tile_begin;
        configure(g.n_rows);
        for (; t + 1 < m->tile_end; t += PAIR)
            run_outputs(m, layout, &g, t, 2, &s);
        if (t < m->tile_end)
            run_outputs(m, layout, &g, t, 1, &s);
    }
    _tile_release(); /* the tiles are no longer part of what a change of threads saves */
}

static void matmul_q8(const struct matmul *m)
{
    run_tiles(m, KERNEL_Q8);
}

static void matmul_q4(const struct matmul *m)
{
    run_tiles(m, KERNEL_Q4);
}

static void matmul_q4_min(const struct matmul *m)
{
    run_tiles(m, KERNEL_Q4_MIN);
}

/* Rows of bf16 where integers would lie; they need no scales. */
static void to_bf16(const float *restrict x, size_t n, int16_t *restrict q, float *scale,
                    int32_t *sum)
{
    (void)scale;
    (void)sum;
    for (size_t i = 0; i < n; i++) {
        uint32_t bits;
        memcpy(&bits, &x[i], sizeof(bits));
        q[i] = (int16_t)((bits + 0x8000) >> 16);
    }
    for (size_t i = n; i % KERNEL_BLOCK; i++)
        q[i] = 0;
}

const struct products PRODUCTS_AMX_BF16 = {
    to_bf16, {matmul_q8, matmul_q4, matmul_q4_min}, KERNEL_MOST_UNIT_ROWS};
#endif
