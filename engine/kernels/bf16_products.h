/* Products of many rows in bf16, but for what multiplies: weights and activations are rounded to
 * bf16, and float sums run over all inputs. The integer products must scale every block's sum,
 * since every block has a scale of its own; here the scales are in the weights. Compiled into
 * amx_bf16.c and avx512_bf16.c, which define what is declared below, and CHUNK: how many blocks'
 * weights are unpacked at once, so that they stay near. Internal.
 *
 * A row's bits depend on nothing but the row, as everywhere, but they are not those of the other
 * tables (kernels.h, `prompt`).
 *
 * Weights are unpacked some blocks at once, for all rows of the call: a block of 16 outputs becomes
 * 16 lines, one of each pair of inputs, which is what both TDPBF16PS and VDPBF16PS take. */
#ifndef OVERFILL_ENGINE_KERNELS_BF16_PRODUCTS_H
#define OVERFILL_ENGINE_KERNELS_BF16_PRODUCTS_H

#include "engine/kernels/avx512_output.h"

#include <string.h>

#define PAIR 2 /* tiles of outputs that are multiplied together */

/* A thread's own, on its stack. */
struct scratch {
    _Alignas(LINE) uint8_t weights[PAIR][CHUNK][TILE_BYTES];
    float sums[PAIR][KERNEL_MOST_UNIT_ROWS][KERNEL_TILE]; /* from chunk to chunk */
};

/* Part of the work: rows [row_begin, row_end), blocks [block, block + n_blocks) of n_tiles tiles of
 * outputs. */
struct chunk {
    size_t row_begin, row_end;
    size_t block, n_blocks;
    size_t tile, n_tiles;
};

/* The including file's: what stands around all chunks of n_rows rows; s->sums = (c->block ? that :
 * 0) + the chunk's products, kept as it likes; and from there to the product's rows. */
INLINE void begin_rows(size_t n_rows);
INLINE void end_rows(void);
INLINE void multiply(const struct matmul *m, const struct chunk *c, struct scratch *s);
INLINE void store(const struct matmul *m, const struct chunk *c, const struct scratch *s);

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

INLINE void run_chunk(const struct matmul *m, const enum kernel_layout layout,
                      const struct chunk *c, struct scratch *s)
{
    for (size_t t = 0; t < c->n_tiles; t++) {
        const uint8_t *w =
            m->tiles + (c->tile + t) * m->tile_bytes + c->block * kernel_block_bytes(layout);
        for (size_t b = 0; b < c->n_blocks; b++)
            unpack_block(layout, w + b * kernel_block_bytes(layout), s->weights[t][b]);
    }
    multiply(m, c, s);
}

INLINE void run_tiles(const struct matmul *m, const enum kernel_layout layout)
{
    struct scratch s;
    struct chunk c;
    const size_t n_chunks = (m->n_blocks + CHUNK - 1) / CHUNK;
    const size_t chunk = (m->n_blocks + n_chunks - 1) / n_chunks; /* none of a few blocks */
    for (c.row_begin = m->row_begin; c.row_begin < m->row_end; c.row_begin = c.row_end) {
        c.row_end = least(c.row_begin + KERNEL_MOST_UNIT_ROWS, m->row_end);
        begin_rows(c.row_end - c.row_begin);
        for (c.tile = m->tile_begin; c.tile < m->tile_end; c.tile += PAIR) {
            c.n_tiles = least(PAIR, m->tile_end - c.tile);
            for (c.block = 0; c.block < m->n_blocks; c.block += chunk) {
                c.n_blocks = least(chunk, m->n_blocks - c.block);
                run_chunk(m, layout, &c, &s);
            }
            store(m, &c, &s);
        }
    }
    end_rows();
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

/* Eight floats, rounded to the nearest bf16, in the lower halves of lanes. */
INLINE __m256i round_to_bf16(const float *x)
{
    __m256i bits = _mm256_loadu_si256((const __m256i *)(const void *)x);
    return _mm256_srli_epi32(_mm256_add_epi32(bits, _mm256_set1_epi32(0x8000)), 16);
}

/* Read as it was just written: 64 bytes that two stores of 32 wrote would have to wait until both
 * are in the cache. */
INLINE void block_to_bf16(const float *x, int16_t *q)
{
    for (size_t i = 0; i < KERNEL_BLOCK; i += 16) { /* the pack works within 128-bit halves */
        __m256i packed = _mm256_packus_epi32(round_to_bf16(x + i), round_to_bf16(x + i + 8));
        _mm256_storeu_si256((__m256i *)(void *)(q + i), _mm256_permute4x64_epi64(packed, 0xd8));
    }
}

/* Rows of bf16 where integers would lie; they need no scales. */
static void to_bf16(const float *x, size_t n, bool coarse, int16_t *q, float *scale, int32_t *sum)
{
    size_t i = 0;
    (void)scale;
    (void)sum;
    for (; i + KERNEL_BLOCK <= n; i += KERNEL_BLOCK)
        block_to_bf16(x + i, q + i);
    if (i < n) {
        float tail[KERNEL_BLOCK] = {0};
        memcpy(tail, x + i, (n - i) * sizeof(float));
        block_to_bf16(tail, q + i);
    }
}

#endif
