/* Tensor element types: sizes, names, conversion to and from float. See tensor.h.
 * Blocks are read and written byte by byte or through memcpy: a mapped file guarantees no
 * alignment. Sources for the layouts: ggml's block structs of the same names. */
#include "engine/model/tensor.h"

#include "engine/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SMALL_BLOCK 32  /* elements of the blocks Q4_0 ... Q8_0 */
#define SUPER_BLOCK 256 /* elements of the K types */
#define N_TYPES 40

/* Converts one block, or for the plain types one element. */
typedef void block_to_float_fn(const uint8_t *block, float *dst);
typedef void block_from_float_fn(const float *src, uint8_t *block);
typedef void block_put_fn(float d, float m, const int8_t *q, uint8_t *block);

static float load_half(const uint8_t *p)
{
    uint16_t h;
    memcpy(&h, p, sizeof(h));
    return half_to_float(h);
}

static void store_half(uint8_t *p, float f)
{
    uint16_t h = float_to_half(f);
    memcpy(p, &h, sizeof(h));
}

static void f32_to_float(const uint8_t *block, float *dst)
{
    memcpy(dst, block, sizeof(*dst));
}

static void f16_to_float(const uint8_t *block, float *dst)
{
    *dst = load_half(block);
}

static void bf16_to_float(const uint8_t *block, float *dst)
{
    uint16_t b;
    memcpy(&b, block, sizeof(b));
    *dst = bfloat_to_float(b);
}

/* half d, int8 q[32]: value = d * q */
static void q8_0_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block);
    for (int i = 0; i < SMALL_BLOCK; i++)
        dst[i] = d * (float)(int8_t)block[2 + i];
}

/* half d, 32 nibbles: value = d * (q - 8). Byte j holds elements j (low) and j + 16 (high). */
static void q4_0_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block);
    const uint8_t *q = block + 2;
    for (int j = 0; j < 16; j++) {
        dst[j] = d * (float)((q[j] & 15) - 8);
        dst[j + 16] = d * (float)((q[j] >> 4) - 8);
    }
}

/* half d, half m, 32 nibbles: value = d * q + m */
static void q4_1_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block);
    float m = load_half(block + 2);
    const uint8_t *q = block + 4;
    for (int j = 0; j < 16; j++) {
        dst[j] = d * (float)(q[j] & 15) + m;
        dst[j + 16] = d * (float)(q[j] >> 4) + m;
    }
}

/* The 32 unsigned 5-bit numbers of Q5_0 and Q5_1: a nibble each, bit 4 of element i is bit i of
 * the little-endian word in front of the nibbles. */
static void unpack_5bit(const uint8_t *p, int q[SMALL_BLOCK])
{
    for (int j = 0; j < 16; j++) {
        int high_low = p[j / 8] >> (j % 8) & 1;
        int high_high = p[2 + j / 8] >> (j % 8) & 1;
        q[j] = (p[4 + j] & 15) | high_low << 4;
        q[j + 16] = p[4 + j] >> 4 | high_high << 4;
    }
}

/* half d, uint32 high bits, nibbles: value = d * (q - 16) */
static void q5_0_to_float(const uint8_t *block, float *dst)
{
    int q[SMALL_BLOCK];
    float d = load_half(block);
    unpack_5bit(block + 2, q);
    for (int i = 0; i < SMALL_BLOCK; i++)
        dst[i] = d * (float)(q[i] - 16);
}

/* half d, half m, uint32 high bits, nibbles: value = d * q + m */
static void q5_1_to_float(const uint8_t *block, float *dst)
{
    int q[SMALL_BLOCK];
    float d = load_half(block);
    float m = load_half(block + 2);
    unpack_5bit(block + 4, q);
    for (int i = 0; i < SMALL_BLOCK; i++)
        dst[i] = d * (float)q[i] + m;
}

/* Eight pairs of 6-bit scale and min in 12 bytes: pairs 0..3 in the low six bits of bytes 0..3 and
 * 4..7; pairs 4..7 with four bits in bytes 8..11 and two in the tops of bytes 0..7. */
static void unpack_scale_min(const uint8_t p[12], int i, float *ret_scale, float *ret_min)
{
    if (i < 4) {
        *ret_scale = (float)(p[i] & 63);
        *ret_min = (float)(p[i + 4] & 63);
    } else {
        *ret_scale = (float)((p[i + 4] & 15) | p[i - 4] >> 6 << 4);
        *ret_min = (float)(p[i + 4] >> 4 | p[i] >> 6 << 4);
    }
}

/* half d, half dmin, 12 bytes of scales, 128 bytes of nibbles: eight groups of 32 with
 * value = d * scale * q - dmin * min. Groups 2g and 2g + 1 share bytes 32g..32g+31. */
static void q4_k_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block);
    float dmin = load_half(block + 2);
    for (int group = 0; group < 8; group++) {
        const uint8_t *q = block + 16 + group / 2 * 32;
        int shift = group % 2 * 4;
        float scale, min;
        unpack_scale_min(block + 4, group, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++)
            dst[group * 32 + i] = scale * (float)(q[i] >> shift & 15) - min;
    }
}

void tensor_q4_k_as_q4_1(const void *block, void *ret_blocks)
{
    const uint8_t *src = block;
    uint8_t *out = ret_blocks;
    float d = load_half(src);
    float dmin = load_half(src + 2);
    for (int group = 0; group < 8; group++, out += 20) {
        const uint8_t *q = src + 16 + group / 2 * 32;
        int shift = group % 2 * 4;
        float scale, min;
        unpack_scale_min(src + 4, group, &scale, &min);
        store_half(out, d * scale);
        store_half(out + 2, -dmin * min);
        for (int j = 0; j < 16; j++)
            out[4 + j] = (uint8_t)((q[j] >> shift & 15) | (q[j + 16] >> shift & 15) << 4);
    }
}

/* As Q4_K with 32 bytes of high bits before the nibbles: bit `group` of byte i is bit 4 of element
 * i of that group. */
static void q5_k_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block);
    float dmin = load_half(block + 2);
    const uint8_t *high = block + 16;
    for (int group = 0; group < 8; group++) {
        const uint8_t *q = block + 48 + group / 2 * 32;
        int shift = group % 2 * 4;
        float scale, min;
        unpack_scale_min(block + 4, group, &scale, &min);
        scale *= d;
        min *= dmin;
        for (int i = 0; i < 32; i++) {
            int value = (q[i] >> shift & 15) | (high[i] >> group & 1) << 4;
            dst[group * 32 + i] = scale * (float)value - min;
        }
    }
}

/* 128 bytes of low nibbles, 64 bytes of 2-bit tops, 16 int8 scales, half d: sixteen groups of 16
 * with value = d * scale * (q - 32). Each half of the block (128 elements) takes 64 bytes of
 * nibbles and 32 of tops; its quarter k (32 elements) has nibble k / 2 of the nibble bytes
 * 32 (k % 2)..., and bits 2k, 2k + 1 of every top. */
static void q6_k_to_float(const uint8_t *block, float *dst)
{
    float d = load_half(block + 208);
    for (int i = 0; i < SUPER_BLOCK; i++) {
        int half = i / 128, quarter = i / 32 % 4, l = i % 32;
        int low = block[half * 64 + quarter % 2 * 32 + l] >> (quarter / 2 * 4) & 15;
        int top = block[128 + half * 32 + l] >> (quarter * 2) & 3;
        float scale = (float)(int8_t)block[192 + i / 16];
        dst[i] = d * scale * (float)((low | top << 4) - 32);
    }
}

static void f32_from_float(const float *src, uint8_t *block)
{
    memcpy(block, src, sizeof(*src));
}

static void f16_from_float(const float *src, uint8_t *block)
{
    store_half(block, *src);
}

static void bf16_from_float(const float *src, uint8_t *block)
{
    uint16_t b = float_to_bfloat(*src);
    memcpy(block, &b, sizeof(b));
}

/* 1/d; 0 where that is no number: a block of zeros, or so small that its half scale is 0. */
static float reciprocal(float d)
{
    float inverse = 1 / d;
    return isfinite(inverse) ? inverse : 0;
}

static void q8_0_put(float d, float m, const int8_t *q, uint8_t *block)
{
    store_half(block, d);
    memcpy(block + 2, q, SMALL_BLOCK);
}

static void put_nibbles(const int8_t *q, int low, uint8_t *out)
{
    for (int j = 0; j < SMALL_BLOCK / 2; j++)
        out[j] = (uint8_t)((q[j] - low) | (q[j + SMALL_BLOCK / 2] - low) << 4);
}

static void q4_0_put(float d, float m, const int8_t *q, uint8_t *block)
{
    store_half(block, d);
    put_nibbles(q, -8, block + 2);
}

static void q4_1_put(float d, float m, const int8_t *q, uint8_t *block)
{
    store_half(block, d);
    store_half(block + 2, m);
    put_nibbles(q, 0, block + 4);
}

static void q8_0_from_float(const float *src, uint8_t *block)
{
    int8_t q[SMALL_BLOCK];
    float most = 0;
    for (int i = 0; i < SMALL_BLOCK; i++)
        most = fmaxf(most, fabsf(src[i]));
    float d = most / 127;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        q[i] = (int8_t)roundf(src[i] * inverse);
    q8_0_put(d, 0, q, block);
}

static int8_t nibble(float f)
{
    int q = (int)f;
    return (int8_t)(q > 15 ? 15 : q);
}

/* The element of the largest magnitude becomes -8 exactly: the range is -8..7. */
static void q4_0_from_float(const float *src, uint8_t *block)
{
    int8_t q[SMALL_BLOCK];
    float extreme = 0;
    for (int i = 0; i < SMALL_BLOCK; i++)
        if (fabsf(src[i]) > fabsf(extreme))
            extreme = src[i];
    float d = extreme / -8;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        q[i] = (int8_t)(nibble(src[i] * inverse + 8.5f) - 8);
    q4_0_put(d, 0, q, block);
}

static void q4_1_from_float(const float *src, uint8_t *block)
{
    int8_t q[SMALL_BLOCK];
    float min = src[0], max = src[0];
    for (int i = 1; i < SMALL_BLOCK; i++) {
        min = fminf(min, src[i]);
        max = fmaxf(max, src[i]);
    }
    float d = (max - min) / 15;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        q[i] = nibble((src[i] - min) * inverse + 0.5f);
    q4_1_put(d, min, q, block);
}

/* name NULL: a type number that GGUF does not use (any more). elements 0: known by name only. */
static const struct type_row {
    const char *name;
    uint16_t elements;
    uint16_t bytes;
    block_to_float_fn *to_float;
    block_from_float_fn *from_float;
    struct tensor_grid grid;
    block_put_fn *put;
} types[N_TYPES] = {
    [TENSOR_F32] = {"F32", 1, 4, f32_to_float, f32_from_float},
    [TENSOR_F16] = {"F16", 1, 2, f16_to_float, f16_from_float},
    [TENSOR_BF16] = {"BF16", 1, 2, bf16_to_float, bf16_from_float},
    [TENSOR_Q8_0] =
        {"Q8_0", SMALL_BLOCK, 34, q8_0_to_float, q8_0_from_float, {-127, 127, false}, q8_0_put},
    [TENSOR_Q4_0] =
        {"Q4_0", SMALL_BLOCK, 18, q4_0_to_float, q4_0_from_float, {-8, 7, false}, q4_0_put},
    [TENSOR_Q4_1] =
        {"Q4_1", SMALL_BLOCK, 20, q4_1_to_float, q4_1_from_float, {0, 15, true}, q4_1_put},
    [TENSOR_Q5_0] = {"Q5_0", SMALL_BLOCK, 22, q5_0_to_float, NULL},
    [TENSOR_Q5_1] = {"Q5_1", SMALL_BLOCK, 24, q5_1_to_float, NULL},
    [TENSOR_Q4_K] = {"Q4_K", SUPER_BLOCK, 144, q4_k_to_float, NULL},
    [TENSOR_Q5_K] = {"Q5_K", SUPER_BLOCK, 176, q5_k_to_float, NULL},
    [TENSOR_Q6_K] = {"Q6_K", SUPER_BLOCK, 210, q6_k_to_float, NULL},
    [9] = {"Q8_1"},
    [10] = {"Q2_K"},
    [11] = {"Q3_K"},
    [15] = {"Q8_K"},
    [16] = {"IQ2_XXS"},
    [17] = {"IQ2_XS"},
    [18] = {"IQ3_XXS"},
    [19] = {"IQ1_S"},
    [20] = {"IQ4_NL"},
    [21] = {"IQ3_S"},
    [22] = {"IQ2_S"},
    [23] = {"IQ4_XS"},
    [24] = {"I8"},
    [25] = {"I16"},
    [26] = {"I32"},
    [27] = {"I64"},
    [28] = {"F64"},
    [29] = {"IQ1_M"},
    [34] = {"TQ1_0"},
    [35] = {"TQ2_0"},
    [39] = {"MXFP4"},
};

int tensor_compare_names(const void *a, const void *b)
{
    return strcmp((*(const struct tensor *const *)a)->name,
                  (*(const struct tensor *const *)b)->name);
}

const struct tensor *tensor_find(const struct tensor *const *sorted, size_t n, const char *name)
{
    struct tensor wanted;
    const struct tensor *p = &wanted;
    size_t len = strlen(name);
    if (len >= sizeof(wanted.name))
        return NULL;
    memcpy(wanted.name, name, len + 1);
    const struct tensor *const *found =
        bsearch(&p, sorted, n, sizeof(*sorted), tensor_compare_names);
    return found ? *found : NULL;
}

bool tensor_type_is_known(uint32_t type)
{
    return type < N_TYPES && types[type].elements;
}

const char *tensor_type_name(uint32_t type)
{
    return type < N_TYPES && types[type].name ? types[type].name : "unknown";
}

int tensor_type_from_name(const char *name)
{
    for (int type = 0; type < N_TYPES; type++)
        if (types[type].elements && strcasecmp(types[type].name, name) == 0)
            return type;
    return -1;
}

uint32_t tensor_block_elements(enum tensor_type type)
{
    return types[type].elements;
}

uint32_t tensor_block_bytes(enum tensor_type type)
{
    return types[type].bytes;
}

bool tensor_type_bytes(enum tensor_type type, uint64_t n, size_t *ret_bytes)
{
    uint64_t blocks = n / types[type].elements;
    if (n % types[type].elements || blocks > SIZE_MAX)
        return false;
    return mem_mul((size_t)blocks, types[type].bytes, ret_bytes);
}

void tensor_dequantize(enum tensor_type type, const void *src, size_t n, float *dst)
{
    const struct type_row *row = &types[type];
    const uint8_t *block = src;
    for (size_t i = 0; i < n; i += row->elements, block += row->bytes)
        row->to_float(block, dst + i);
}

/* Blocks hold a half scale: what does not fit would come back as NaN. The largest scale is
 * a 127th (Q8_0) to a 7.5th (Q4_1: of the range) of the largest magnitude. */
int tensor_check_block_values(enum tensor_type type, const float *src, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++)
        if (!(fabsf(src[i]) <= 65504.0f))
            return error_set(err, ERROR_INVALID, "element %zu: %g cannot be stored as %s", i,
                             (double)src[i], types[type].name);
    return 0;
}

bool tensor_type_is_writable(enum tensor_type type)
{
    return types[type].from_float != NULL;
}

int tensor_quantize(enum tensor_type type, const float *src, size_t n, void *dst, struct error *err)
{
    const struct type_row *row = &types[type];
    uint8_t *block = dst;

    if (!row->from_float)
        return error_set(err, ERROR_UNSUPPORTED, "cannot write tensors of type %s",
                         tensor_type_name(type));
    int rc = row->elements > 1 ? tensor_check_block_values(type, src, n, err) : 0;
    for (size_t i = 0; i < n && rc == 0; i += row->elements, block += row->bytes)
        row->from_float(src + i, block);
    return rc;
}

const struct tensor_grid *tensor_type_grid(enum tensor_type type)
{
    return types[type].put ? &types[type].grid : NULL;
}

void tensor_put_block(enum tensor_type type, float d, float m, const int8_t *q, void *dst)
{
    types[type].put(d, m, q, dst);
}
