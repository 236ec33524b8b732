/* Integer products with AMX (TILE, INT8) where there are rows enough; all else is that of AVX-512.
 * Same bits as scalar.c: a tile holds one block's integer sums of 16 rows and 16 outputs, which are
 * exact, and vectors scale them block after block.
 *
 * One TDP multiplies 64 bytes of a row by 64 bytes of an output, which is a block in two digits:
 * high[32] low[32] of the activations times 16 w[32] w[32] of a nibble w. Of int8 weights, 16 w is
 * no byte: high and low digits are two products, added up by vectors. */
#if defined(__x86_64__)
#include "engine/kernels/amx_tiles.h"
#include "engine/kernels/avx512_common.h"

/* Fewer rows than this leave half of a tile empty, and pay for unpacking: vectors are as fast. */
#define LEAST_ROWS 9

/* Of coarse rows vectors need one digit, while scaling a tile's sums costs as much as ever. */
INLINE bool is_for_vectors(const struct matmul *m)
{
    return m->x->coarse || m->row_end - m->row_begin < LEAST_ROWS;
}

#define MOST_GROUPS 4 /* that share unpacked weights */
#define CHUNK 16      /* blocks whose weights are unpacked at once: they stay in the L1 cache */

/* Stored tiles wait some blocks until vectors read them: a load cannot take from a tile's store
 * what has not arrived in the cache. */
#define LAG 3
#define RING 4 /* a power of two above LAG */

/* Tile registers. */
#define PRODUCT 0
#define PRODUCT_LOW 1
#define ROWS 2
#define ROWS_LOW 3
#define WEIGHTS 4

/* A thread's own, on its stack. */
struct scratch {
    _Alignas(LINE) uint8_t weights[CHUNK][TILE_BYTES];
    int32_t products[RING][2][GROUP_ROWS][KERNEL_TILE];
    float acc[MOST_GROUPS * GROUP_ROWS][KERNEL_TILE];
    /* of one group's rows; constant strides, so that one register addresses them all */
    float scale[GROUP_ROWS][CHUNK];
    float scaled_sum[GROUP_ROWS][CHUNK]; /* scale * sum */
};

/* Part of the work: blocks [block, block + n_blocks) of a tile, w at the first. */
struct chunk {
    const uint8_t *w;
    size_t block, n_blocks;
};

static void configure(const enum kernel_layout layout, size_t n_rows)
{
    const bool q8 = layout == KERNEL_Q8;
    struct tile_shapes shapes = {.palette = 1};
    for (int i = PRODUCT; i <= PRODUCT_LOW; i++) {
        shapes.n_rows[i] = (uint8_t)n_rows;
        shapes.row_bytes[i] = LINE;
    }
    for (int i = ROWS; i <= ROWS_LOW; i++) {
        shapes.n_rows[i] = (uint8_t)n_rows;
        shapes.row_bytes[i] = q8 ? LINE / 2 : LINE;
    }
    shapes.n_rows[WEIGHTS] = q8 ? 8 : 16;
    shapes.row_bytes[WEIGHTS] = LINE;
    load_shapes(&shapes);
}

/* A block of nibbles as a tile: lines of 16 w of the inputs 4g..4g+3, then lines of w. Q4 has its 8
 * taken off. */
INLINE void unpack_block(const enum kernel_layout layout, const uint8_t *w, uint8_t *tile)
{
    const bool is_signed = layout == KERNEL_Q4;
    const __m512i low_mask = _mm512_set1_epi8(0x0f);
    const __m512i high_mask = _mm512_set1_epi8((char)0xf0);
    const __m512i eight = _mm512_set1_epi8(8);
    const __m512i eight_times_16 = _mm512_set1_epi8(-128);
    for (size_t g = 0; g < 4; g++) {
        __m512i packed = _mm512_loadu_si512(w + g * LINE);
        __m512i times_16[2] = {_mm512_and_si512(_mm512_slli_epi16(packed, 4), high_mask),
                               _mm512_and_si512(packed, high_mask)};
        __m512i plain[2] = {_mm512_and_si512(packed, low_mask),
                            _mm512_and_si512(_mm512_srli_epi16(packed, 4), low_mask)};
        for (size_t i = 0; i < 2; i++) {
            if (is_signed) {
                times_16[i] = _mm512_xor_si512(times_16[i], eight_times_16);
                plain[i] = _mm512_sub_epi8(plain[i], eight);
            }
            _mm512_store_si512(tile + (4 * i + g) * LINE, times_16[i]);
            _mm512_store_si512(tile + (8 + 4 * i + g) * LINE, plain[i]);
        }
    }
}

/* Scales, and what minima are multiplied by. The rows that fill n_rows up are the last one again:
 * their products are of no use, but finite. */
INLINE void load_scales(const struct matmul *m, const enum kernel_layout layout,
                        const struct chunk *c, size_t row, size_t n_used, const size_t n_rows,
                        struct scratch *s)
{
    const __mmask16 in_chunk = (__mmask16)((1u << c->n_blocks) - 1);
    for (size_t r = 0; r < n_rows; r++) {
        size_t xb = (row + least(r, n_used - 1)) * m->x->stride + c->block;
        __m512 scale = _mm512_maskz_loadu_ps(in_chunk, m->x->scale + xb);
        _mm512_store_ps(s->scale[r], scale);
        if (layout == KERNEL_Q4_MIN) {
            __m512i sum = _mm512_maskz_loadu_epi32(in_chunk, m->x->sum + xb);
            _mm512_store_ps(s->scaled_sum[r], _mm512_mul_ps(scale, _mm512_cvtepi32_ps(sum)));
        }
    }
}

/* The integer sums of block b of the chunk, to tile registers. */
INLINE void multiply_block(const struct matmul *m, const enum kernel_layout layout,
                           const struct chunk *c, size_t b, size_t row, const struct scratch *s)
{
    const size_t stride = m->x->stride * KERNEL_BLOCK * sizeof(int16_t);
    const int16_t *x = m->x->q + (row * m->x->stride + c->block + b) * KERNEL_BLOCK;

    _tile_zero(PRODUCT);
    _tile_loadd(ROWS, x, stride);
    if (layout == KERNEL_Q8) {
        _tile_loadd(WEIGHTS, c->w + b * kernel_block_bytes(layout), LINE);
        _tile_loadd(ROWS_LOW, (const int8_t *)x + KERNEL_BLOCK, stride);
        _tile_zero(PRODUCT_LOW);
        _tile_dpbssd(PRODUCT, ROWS, WEIGHTS);
        _tile_dpbssd(PRODUCT_LOW, ROWS_LOW, WEIGHTS);
        return;
    }
    _tile_loadd(WEIGHTS, s->weights[b], LINE);
    if (layout == KERNEL_Q4)
        _tile_dpbssd(PRODUCT, ROWS, WEIGHTS);
    else
        _tile_dpbsud(PRODUCT, ROWS, WEIGHTS);
}

INLINE void store_products(const enum kernel_layout layout, size_t b, struct scratch *s)
{
    _tile_stored(PRODUCT, s->products[b % RING][0], LINE);
    if (layout == KERNEL_Q8)
        _tile_stored(PRODUCT_LOW, s->products[b % RING][1], LINE);
}

/* acc += the integer sums of block b times their scales, and for Q4_MIN the block's minima. */
INLINE void scale_products(const enum kernel_layout layout, const struct chunk *c, size_t b,
                           const struct scratch *s, __m512 *acc, const size_t n_rows)
{
    const uint8_t *w = c->w + b * kernel_block_bytes(layout);
    const uint16_t *wscale = (const uint16_t *)(const void *)(w + kernel_weight_bytes(layout));
    __m512 ws = halves(wscale);
    __m512 wm = layout == KERNEL_Q4_MIN ? halves(wscale + KERNEL_TILE) : ws;

    for (size_t r = 0; r < n_rows; r++) {
        __m512i sum = _mm512_load_si512(s->products[b % RING][0][r]);
        if (layout == KERNEL_Q8)
            sum = _mm512_add_epi32(_mm512_slli_epi32(sum, 4),
                                   _mm512_load_si512(s->products[b % RING][1][r]));
        acc[r] = _mm512_fmadd_ps(_mm512_cvtepi32_ps(sum),
                                 _mm512_mul_ps(ws, _mm512_set1_ps(s->scale[r][b])), acc[r]);
        if (layout == KERNEL_Q4_MIN)
            acc[r] = _mm512_fmadd_ps(wm, _mm512_set1_ps(s->scaled_sum[r][b]), acc[r]);
    }
}

/* A chunk of one group of rows. n_rows: n_used, rounded up to a count that there is code for. */
INLINE void run_group(const struct matmul *m, const enum kernel_layout layout,
                      const struct chunk *c, size_t row, size_t n_used, struct scratch *s,
                      float (*sums)[KERNEL_TILE], const size_t n_rows)
{
    __m512 acc[GROUP_ROWS];
    load_scales(m, layout, c, row, n_used, n_rows, s);
    for (size_t r = 0; r < n_rows; r++)
        acc[r] = c->block ? _mm512_load_ps(sums[r]) : _mm512_setzero_ps();
    /* the compiler does not know what a tile's load reads */
    __asm__ volatile("" : : "r"(s) : "memory");
    for (size_t b = 0; b < c->n_blocks + LAG; b++) {
        if (b && b <= c->n_blocks)
            store_products(layout, b - 1, s);
        if (b < c->n_blocks)
            multiply_block(m, layout, c, b, row, s);
        if (b >= LAG)
            scale_products(layout, c, b - LAG, s, acc, n_rows);
    }
    for (size_t r = 0; r < n_rows; r++)
        _mm512_store_ps(sums[r], acc[r]);
}

INLINE void run_chunk(const struct matmul *m, const enum kernel_layout layout,
                      const struct groups *g, const struct chunk *c, struct scratch *s)
{
    for (size_t b = 0; layout != KERNEL_Q8 && b < c->n_blocks; b++)
        unpack_block(layout, c->w + b * kernel_block_bytes(layout), s->weights[b]);
    for (size_t i = 0; i < g->n; i++) {
        size_t row = group_begin(g, i);
        if (g->n_rows > 12)
            run_group(m, layout, c, row, g->n_rows, s, s->acc + i * GROUP_ROWS, 16);
        else
            run_group(m, layout, c, row, g->n_rows, s, s->acc + i * GROUP_ROWS, 12);
    }
}

INLINE void run_tiles(const struct matmul *m, const enum kernel_layout layout)
{
    struct scratch s;
    memset(s.products, 0, sizeof(s.products)); /* what fills groups up must be numbers */
    for (size_t row = m->row_begin; row < m->row_end; row += GROUP_ROWS * MOST_GROUPS) {
        const struct groups g = groups_of(row, least(row + GROUP_ROWS * MOST_GROUPS, m->row_end));
        configure(layout, g.n_rows);
        for (size_t t = m->tile_begin; t < m->tile_end; t++) {
            for (size_t b = 0; b < m->n_blocks; b += CHUNK)
                run_chunk(m, layout, &g,
                          &(struct chunk){
                              .w = m->tiles + t * m->tile_bytes + b * kernel_block_bytes(layout),
                              .block = b,
                              .n_blocks = least(CHUNK, m->n_blocks - b),
                          },
                          &s);
            store_rows(m, &g, t, s.acc);
        }
    }
    _tile_release(); /* the tiles are no longer part of what a change of threads saves */
}

static void matmul_q8(const struct matmul *m)
{
    if (is_for_vectors(m))
        vector_matmul_q8(m);
    else
        run_tiles(m, KERNEL_Q8);
}

static void matmul_q4(const struct matmul *m)
{
    if (is_for_vectors(m))
        vector_matmul_q4(m);
    else
        run_tiles(m, KERNEL_Q4);
}

static void matmul_q4_min(const struct matmul *m)
{
    if (is_for_vectors(m))
        vector_matmul_q4_min(m);
    else
        run_tiles(m, KERNEL_Q4_MIN);
}

const struct kernels KERNELS_AMX =
    X86_TABLE("amx", matmul_q8, matmul_q4, matmul_q4_min, NULL, false, NULL);
const struct kernels KERNELS_AMX_BF16 =
    X86_TABLE("amx-bf16", matmul_q8, matmul_q4, matmul_q4_min, &PRODUCTS_AMX_BF16, false, NULL);
#endif
