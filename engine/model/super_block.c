/* Blocks of 256 elements. See super_block.h. In all of them element i is number i % 32 of a run of
 * 32, and a half of a block (128 elements) has four runs. */
#include "engine/model/super_block.h"

#include "engine/model/block_half.h"

#define ELEMENTS TENSOR_MOST_ELEMENTS
#define RUN 32

/* Two bits of each element: run k of a half in bits 2k, 2k + 1 of the half's 32 bytes. */
static int pair_of(const uint8_t *p, int i)
{
    return p[i / 128 * RUN + i % RUN] >> (i / RUN % 4 * 2) & 3;
}

static void put_pair(uint8_t *p, int i, int pair)
{
    p[i / 128 * RUN + i % RUN] |= (uint8_t)(pair << (i / RUN % 4 * 2));
}

/* Q2_K: 16 bytes of scale (low nibble) and min, 64 of pairs, half d, half dmin: value = d * scale *
 * q - dmin * min. */
void q2_k_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block + 80);
    b->m = load_half(block + 82);
    for (int g = 0; g < ELEMENTS / 16; g++) {
        b->scale[g] = (int8_t)(block[g] & 15);
        b->min[g] = block[g] >> 4;
    }
    for (int i = 0; i < ELEMENTS; i++)
        b->q[i] = (int8_t)pair_of(block + 16, i);
}

void q2_k_put(const struct tensor_block *b, uint8_t *block)
{
    memset(block, 0, 80);
    store_half(block + 80, b->d);
    store_half(block + 82, b->m);
    for (int g = 0; g < ELEMENTS / 16; g++)
        block[g] = (uint8_t)(b->scale[g] | b->min[g] << 4);
    for (int i = 0; i < ELEMENTS; i++)
        put_pair(block + 16, i, b->q[i]);
}

/* Q3_K: 32 bytes of third bits (bit k of byte j: element j of run k; it is set for q >= 0), 64 of
 * pairs, 12 of scales, half d: value = d * scale * q. A scale + 32 has its low four bits in a
 * nibble of bytes 0..7 (8..15: the high one) and two more in bytes 8..11. */
void q3_k_get(const uint8_t *block, struct tensor_block *b)
{
    const uint8_t *scales = block + 96;
    b->d = load_half(block + 108);
    b->m = 0;
    for (int g = 0; g < 16; g++) {
        int low = g < 8 ? scales[g] & 15 : scales[g - 8] >> 4;
        int high = scales[8 + g % 4] >> (g / 4 * 2) & 3;
        b->scale[g] = (int8_t)((low | high << 4) - 32);
    }
    for (int i = 0; i < ELEMENTS; i++) {
        int third = block[i % RUN] >> (i / RUN) & 1;
        b->q[i] = (int8_t)(pair_of(block + 32, i) + 4 * third - 4);
    }
}

void q3_k_put(const struct tensor_block *b, uint8_t *block)
{
    uint8_t *scales = block + 96;
    memset(block, 0, 108);
    store_half(block + 108, b->d);
    for (int g = 0; g < 16; g++) {
        int s = b->scale[g] + 32;
        scales[g % 8] |= (uint8_t)((s & 15) << (g / 8 * 4));
        scales[8 + g % 4] |= (uint8_t)(s >> 4 << (g / 4 * 2));
    }
    for (int i = 0; i < ELEMENTS; i++) {
        int q = b->q[i] + 4;
        block[i % RUN] |= (uint8_t)(q >> 2 << (i / RUN));
        put_pair(block + 32, i, q & 3);
    }
}

/* Eight pairs of 6-bit scale and min in 12 bytes: pairs 0..3 in the low six bits of bytes 0..3 and
 * 4..7; pairs 4..7 with four bits in bytes 8..11 and two in the tops of bytes 0..7. */
static void get_scales(const uint8_t *p, struct tensor_block *b)
{
    for (int g = 0; g < 4; g++) {
        b->scale[g] = (int8_t)(p[g] & 63);
        b->min[g] = p[g + 4] & 63;
        b->scale[g + 4] = (int8_t)((p[g + 8] & 15) | p[g] >> 6 << 4);
        b->min[g + 4] = (uint8_t)(p[g + 8] >> 4 | p[g + 4] >> 6 << 4);
    }
}

static void put_scales(const struct tensor_block *b, uint8_t *p)
{
    for (int g = 0; g < 4; g++) {
        int s = b->scale[g + 4];
        int m = b->min[g + 4];
        p[g] = (uint8_t)(b->scale[g] | s >> 4 << 6);
        p[g + 4] = (uint8_t)(b->min[g] | m >> 4 << 6);
        p[g + 8] = (uint8_t)((s & 15) | (m & 15) << 4);
    }
}

/* Nibbles of Q4_K and Q5_K: runs 2k and 2k + 1 share 32 bytes. */
static int nibble_of(const uint8_t *p, int i)
{
    return p[i / (2 * RUN) * RUN + i % RUN] >> (i / RUN % 2 * 4) & 15;
}

static void put_nibble(uint8_t *p, int i, int nibble)
{
    p[i / (2 * RUN) * RUN + i % RUN] |= (uint8_t)(nibble << (i / RUN % 2 * 4));
}

/* Q4_K: half d, half dmin, 12 bytes of scales, 128 of nibbles: value = d * scale * q - dmin * min.
 */
void q4_k_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = load_half(block + 2);
    get_scales(block + 4, b);
    for (int i = 0; i < ELEMENTS; i++)
        b->q[i] = (int8_t)nibble_of(block + 16, i);
}

void q4_k_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    store_half(block + 2, b->m);
    put_scales(b, block + 4);
    memset(block + 16, 0, 128);
    for (int i = 0; i < ELEMENTS; i++)
        put_nibble(block + 16, i, b->q[i]);
}

/* Q5_K: as Q4_K with 32 bytes before the nibbles: bit k of byte j is bit 4 of element j of run k.
 */
void q5_k_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = load_half(block + 2);
    get_scales(block + 4, b);
    for (int i = 0; i < ELEMENTS; i++)
        b->q[i] = (int8_t)(nibble_of(block + 48, i) | (block[16 + i % RUN] >> (i / RUN) & 1) << 4);
}

void q5_k_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    store_half(block + 2, b->m);
    put_scales(b, block + 4);
    memset(block + 16, 0, 160);
    for (int i = 0; i < ELEMENTS; i++) {
        put_nibble(block + 48, i, b->q[i] & 15);
        block[16 + i % RUN] |= (uint8_t)(b->q[i] >> 4 << (i / RUN));
    }
}

/* Q6_K: 128 bytes of low nibbles, 64 of pairs on top of them, 16 int8 scales, half d: value = d *
 * scale * (q - 32). Run k of a half has nibble k / 2 of 32 (k % 2)... of the half's 64 bytes. */
static int low_at(int i)
{
    return i / 128 * 64 + i / RUN % 2 * RUN + i % RUN;
}

void q6_k_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block + 208);
    b->m = 0;
    memcpy(b->scale, block + 192, 16);
    for (int i = 0; i < ELEMENTS; i++) {
        int low = block[low_at(i)] >> (i / RUN % 4 / 2 * 4) & 15;
        b->q[i] = (int8_t)((low | pair_of(block + 128, i) << 4) - 32);
    }
}

void q6_k_put(const struct tensor_block *b, uint8_t *block)
{
    memset(block, 0, 192);
    store_half(block + 208, b->d);
    memcpy(block + 192, b->scale, 16);
    for (int i = 0; i < ELEMENTS; i++) {
        int q = b->q[i] + 32;
        block[low_at(i)] |= (uint8_t)((q & 15) << (i / RUN % 4 / 2 * 4));
        put_pair(block + 128, i, q >> 4);
    }
}
