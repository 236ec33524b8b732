/* Every inner loop of the forward pass behind one table of function pointers. A kernel takes plain
 * pointers and sizes, knows no model, allocates nothing and starts no thread. scalar.c is the
 * specification: the SIMD versions give the same bits (but for `prompt`), because integer sums are
 * exact and every float sum keeps the one order that scalar.c writes down. So a row's result
 * depends on nothing but the row: not on its neighbours in the batch, nor on who computes it.
 *
 * Quantised weights lie in tiles of KERNEL_TILE output rows, along the input in blocks of
 * KERNEL_BLOCK (the blocks of Q8_0, Q4_0 and Q4_1), one block of all 16 rows after the other, so
 * that a tile is read from its first byte to its last. A block of a tile is
 *   Q8:     int8 w[8][16][4], then half scale[16]
 *           w[g][r][j] is the weight of row r, input 4g + j of the block; value = scale * w
 *   Q4:     uint8 w[4][16][4], then half scale[16]; low nibble: input 4g + j, high nibble: input
 *           16 + 4g + j; value = scale * (nibble - 8)
 *   Q4_MIN: the same, then half min[16]; value = scale * nibble + min
 * Four inputs of one row side by side are one 32-bit lane.
 * Tiles start on 64-byte boundaries; `kernel_tile_bytes` is the stride from tile to tile. */
#ifndef OVERFILL_ENGINE_KERNELS_KERNELS_H
#define OVERFILL_ENGINE_KERNELS_KERNELS_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define KERNEL_TILE 16        /* output rows of a weight tile */
#define KERNEL_BLOCK 32       /* inputs that share a scale */
#define KERNEL_PAGE_TOKENS 32 /* keys of one attention step: a KV page */
#define KERNEL_F32_ROWS 16    /* float products work on this many rows at once, always */

enum kernel_layout { KERNEL_Q8, KERNEL_Q4, KERNEL_Q4_MIN };
#define KERNEL_LAYOUTS 3

/* Bytes of a tile's block: its weights, which the scales follow, and the whole of it. */
static inline size_t kernel_weight_bytes(enum kernel_layout layout)
{
    return (size_t)KERNEL_TILE * (layout == KERNEL_Q8 ? KERNEL_BLOCK : KERNEL_BLOCK / 2);
}

static inline size_t kernel_block_bytes(enum kernel_layout layout)
{
    return kernel_weight_bytes(layout) + (size_t)KERNEL_TILE * (layout == KERNEL_Q4_MIN ? 4 : 2);
}

size_t kernel_tile_bytes(enum kernel_layout layout, size_t n_blocks);

/* Activations quantised by `quantize`: rows of blocks of 12-bit integers v. Eight bits are not
 * enough for a model that is to be itself: with the weights kept exactly, they alone break the
 * bounds of the golden test (tests/golden). For a twin, which is another model anyway, they are:
 * coarse v are 16 times an 8-bit integer.
 * Twelve are what two digits of a byte can hold when a weight of 4 bits and 16 times that weight
 * are bytes too: v = 16 high + low, |high| <= 127, -8 <= low <= 7, and weight * v = (16 weight) *
 * high + weight * low, so that products of bytes add it up in one sum. The low digits of coarse v
 * are 0 and need no products. How the 64 bytes of a block hold v is the table's own matter; what
 * quantised must multiply:
 *   scalar, avx2, avxvnni: int16 v[32], inputs 4g, 4g + 1, 4g + 2, 4g + 3 in the order 0, 2, 1, 3.
 *     The even and the odd bytes of a packed weight are what two instructions leave in 16-bit
 *     lanes, and vpmaddwd eats a pair of them with a pair of activations
 *   avx512, amx: int8 high[32], low[32] */
struct quantized_rows {
    int16_t *q;    /* [n_rows][stride][32] */
    float *scale;  /* [n_rows][stride]; value = scale * v */
    int32_t *sum;  /* [n_rows][stride]; of the block's v */
    size_t stride; /* blocks from row to row, at least as many as a row has */
    bool coarse;
};
#define KERNEL_Q_MAX 2039 /* 16 * 127 + 7 */
#define KERNEL_Q_COARSE_MAX 127
#define KERNEL_Q_COARSE_STEP 16

/* out[row - row_begin][16 * (tile - tile_begin) + i] = (accumulate ? that : 0) + sum over inputs of
 * weight * activation. Order of the float sum: blocks ascending, for each block fma(isum, wscale *
 * xscale, acc) and, for Q4_MIN, then fma(min, xscale * sum, acc); the old value of out is added
 * last. isum is of the stored weights; for Q4 it begins at -8 * sum, which is exact. */
struct matmul {
    const uint8_t *tiles; /* tile 0 of the weights */
    size_t tile_bytes;
    size_t n_blocks; /* of a row's inputs */
    const struct quantized_rows *x;
    size_t row_begin, row_end; /* rows of x and of out */
    size_t tile_begin, tile_end;
    float *out;        /* of row_begin and the first output of tile_begin */
    size_t out_stride; /* floats from row to row */
    bool accumulate;
};

/* One page of keys and values of one KV head, for n_q queries that attend to it (the heads of a
 * group, the rows of a prompt chunk). Online softmax (Milakov, Gimelshein 2018; FlashAttention):
 * state[i] = {max, sum, acc[head_dim]} goes from page to page, starting as {-inf, 0, 0...}.
 * Element t of a softmax sum is added in lanes t % 8, then the lanes as a tree. */
struct attend_page {
    const float *q; /* query i at q + i * q_stride; already times 1/sqrt(head_dim) */
    size_t q_stride;
    size_t n_q;
    size_t head_dim;
    const void *keys;      /* [head_dim][32] : transposed, so that no sum crosses lanes */
    const void *values;    /* [32][head_dim] */
    const void *next_keys; /* of the page after this one, fetched ahead; NULL: there is none */
    bool is_half;          /* both are halves, else floats */
    const uint8_t *n_keys; /* [n_q]: the first so many keys count; 0: none of this page */
    float *state;          /* [n_q][ATTEND_STATE(head_dim)] */
};
#define ATTEND_STATE(head_dim) ((head_dim) + 2)

/* Products of quantised weights, and what they want activations to be. */
struct products {
    /* x[n] to blocks; the last block is filled up with zeros. scale = max|x| / KERNEL_Q_MAX, round
     * to even; coarse: max|x| / (KERNEL_Q_COARSE_STEP * KERNEL_Q_COARSE_MAX), to multiples of the
     * step. */
    void (*quantize)(const float *x, size_t n, bool coarse, int16_t *q, float *scale, int32_t *sum);
    void (*matmul[KERNEL_LAYOUTS])(const struct matmul *m);
    size_t unit_rows; /* rows of a call that make up for what it costs; at most
                         KERNEL_MOST_UNIT_ROWS */
};
#define KERNEL_MOST_UNIT_ROWS 256

struct kernels {
    const char *name;
    /* out[i] = x[i] * rsqrt(sum(x^2) / width + eps) * weight[i]; sums in 16 lanes i % 16, then
     * folded in halves. width differs from n where a file pads its rows. */
    void (*rmsnorm)(const float *x, const float *weight, size_t n, size_t width, float eps,
                    float *out);
    struct products products;
    /* Faster ones for prompts, if there are any, else NULL. A row's bits are again its own, but not
     * those of `products`: weights, with their scales, and activations are rounded to bf16, and an
     * output is one float sum over pairs of inputs, ascending, in the hardware's way. VDPBF16PS:
     * sum = fma(x[2i + 1], w[2i + 1], sum), then fma(x[2i], w[2i], sum), where what is below the
     * normal numbers counts as 0. TDPBF16PS says less, and may add otherwise: the bits are the
     * table's. `quantize` writes bf16 x[n] to q and leaves scale and sum alone. */
    const struct products *prompt;
    bool coarse_is_faster; /* than `prompt`: coarse activations stay integers in prompts as well */
    /* out[i] = gate[i] / (1 + exp(-gate[i])) * up[i]; out may be gate. */
    void (*silu_mul)(const float *gate, const float *up, size_t n, float *out);
    /* Rotates the pairs (x[i], x[i + half]) by (cos[i], sin[i]), i < half. */
    void (*rope)(float *x, const float *cos, const float *sin, size_t half);
    void (*half_to_float)(const uint16_t *src, size_t n, float *dst);
    void (*float_to_half)(const float *src, size_t n, uint16_t *dst);
    void (*attend)(const struct attend_page *a);
    /* The same for prompts in bf16, as `prompt` multiplies: queries, keys, values and a softmax's
     * weights (not their sum) are rounded, and both products add up pairs. NULL: `attend` does. */
    void (*attend_prompt)(const struct attend_page *a);
};

/* What multiplies in prompts, instead of `products`; NULL: they do. */
static inline const struct products *kernels_prompt(const struct kernels *kernels, bool coarse)
{
    return coarse && kernels->coarse_is_faster ? NULL : kernels->prompt;
}

/* The best table this CPU runs, or the one that OVERFILL_KERNELS (scalar, avx2, avxvnni, avx512,
 * avx512-bf16, amx, amx-bf16) names: ERROR_INVALID if it is unknown or this CPU lacks it. */
int kernels_select(const char *name, const struct kernels **ret_kernels, struct error *err);
#define KERNELS_MOST 7
/* All tables this CPU can run, scalar first, the best last; returns how many (for tests and
 * benchmarks). Asks the kernel, for the whole process, to let its threads use AMX. */
size_t kernels_available(const struct kernels *ret_tables[KERNELS_MOST]);

extern const struct kernels KERNELS_SCALAR;
#if defined(__x86_64__)
extern const struct kernels KERNELS_AVX2;
extern const struct kernels KERNELS_AVXVNNI;
extern const struct kernels KERNELS_AVX512;
extern const struct kernels KERNELS_AVX512_BF16; /* the same, and its products for prompts */
extern const struct kernels KERNELS_AMX;
extern const struct kernels KERNELS_AMX_BF16; /* the same, and its products for prompts */
#endif

/* out[16 rows][n_out] = (accumulate ? out : 0) + x[16 rows][n_in] * w[n_out][n_in]^T in float.
 * OpenBLAS sgemm, single-threaded on the calling thread. Called with the same n_out and n_in for
 * the same weights each time and always with 16 rows (the unused ones hold anything finite), so
 * that a row's bits do not depend on the batch. */
void kernel_matmul_f32(const float *x, size_t x_stride, const float *w, size_t n_in, size_t n_out,
                       float *out, size_t out_stride, bool accumulate);

#endif
