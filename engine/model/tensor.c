/* Tensor element types: sizes, names, conversion to and from float. See tensor.h.
 * Blocks are read and written byte by byte or through memcpy: a mapped file guarantees no
 * alignment. Sources for the layouts: ggml's block structs of the same names. */
#include "engine/model/tensor.h"

#include "engine/base/mem.h"
#include "engine/model/block_half.h"
#include "engine/model/grid.h"
#include "engine/model/super_block.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

#define SMALL_BLOCK 32 /* elements of the blocks Q4_0 ... Q8_0 */
#define N_TYPES 40

/* Converts one block, or for the plain types one element. */
typedef void block_to_float_fn(const uint8_t *block, float *dst);
typedef void block_from_float_fn(const float *src, uint8_t *block);
/* The same for types with a grid, as the numbers they are made of. */
typedef void block_get_fn(const uint8_t *block, struct tensor_block *ret_block);
typedef void block_put_fn(const struct tensor_block *values, uint8_t *block);

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
static void q8_0_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = 0;
    memcpy(b->q, block + 2, SMALL_BLOCK);
}

/* 32 nibbles as q - low: byte j holds elements j (low half) and j + 16 (high half). */
static void get_nibbles(const uint8_t *p, int low, int8_t *q)
{
    for (int j = 0; j < SMALL_BLOCK / 2; j++) {
        q[j] = (int8_t)((p[j] & 15) + low);
        q[j + SMALL_BLOCK / 2] = (int8_t)((p[j] >> 4) + low);
    }
}

/* half d, 32 nibbles: value = d * (q - 8) */
static void q4_0_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = 0;
    get_nibbles(block + 2, -8, b->q);
}

/* half d, half m, 32 nibbles: value = d * q + m */
static void q4_1_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = load_half(block + 2);
    get_nibbles(block + 4, 0, b->q);
}

/* Numbers of 5 bits in Q5_0 and Q5_1: a nibble each, bit 4 of element i is bit i of the
 * little-endian word in front of the nibbles. */
static void get_5bit(const uint8_t *p, int low, int8_t *q)
{
    get_nibbles(p + 4, low, q);
    for (int i = 0; i < SMALL_BLOCK; i++)
        q[i] = (int8_t)(q[i] + ((p[i / 8] >> (i % 8) & 1) << 4));
}

/* half d, uint32 high bits, nibbles: value = d * (q - 16) */
static void q5_0_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = 0;
    get_5bit(block + 2, -16, b->q);
}

/* half d, half m, uint32 high bits, nibbles: value = d * q + m */
static void q5_1_get(const uint8_t *block, struct tensor_block *b)
{
    b->d = load_half(block);
    b->m = load_half(block + 2);
    get_5bit(block + 4, 0, b->q);
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

static void q8_0_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    memcpy(block + 2, b->q, SMALL_BLOCK);
}

static void put_nibbles(const int8_t *q, int low, uint8_t *out)
{
    for (int j = 0; j < SMALL_BLOCK / 2; j++)
        out[j] = (uint8_t)(((q[j] - low) & 15) | (q[j + SMALL_BLOCK / 2] - low) << 4);
}

static void q4_0_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    put_nibbles(b->q, -8, block + 2);
}

static void q4_1_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    store_half(block + 2, b->m);
    put_nibbles(b->q, 0, block + 4);
}

static void put_5bit(const int8_t *q, int low, uint8_t *out)
{
    memset(out, 0, 4);
    for (int i = 0; i < SMALL_BLOCK; i++)
        out[i / 8] |= (uint8_t)((q[i] - low) >> 4 << (i % 8));
    put_nibbles(q, low, out + 4);
}

static void q5_0_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    put_5bit(b->q, -16, block + 2);
}

static void q5_1_put(const struct tensor_block *b, uint8_t *block)
{
    store_half(block, b->d);
    store_half(block + 2, b->m);
    put_5bit(b->q, 0, block + 4);
}

static void q8_0_from_float(const float *src, uint8_t *block)
{
    struct tensor_block b;
    float most = 0;
    for (int i = 0; i < SMALL_BLOCK; i++)
        most = fmaxf(most, fabsf(src[i]));
    float d = most / 127;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        b.q[i] = (int8_t)roundf(src[i] * inverse);
    b.d = d;
    q8_0_put(&b, block);
}

static int8_t nibble(float f)
{
    int q = (int)f;
    return (int8_t)(q > 15 ? 15 : q);
}

/* The element of the largest magnitude becomes -8 exactly: the range is -8..7. */
static void q4_0_from_float(const float *src, uint8_t *block)
{
    struct tensor_block b;
    float extreme = 0;
    for (int i = 0; i < SMALL_BLOCK; i++)
        if (fabsf(src[i]) > fabsf(extreme))
            extreme = src[i];
    float d = extreme / -8;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        b.q[i] = (int8_t)(nibble(src[i] * inverse + 8.5f) - 8);
    b.d = d;
    q4_0_put(&b, block);
}

static void q4_1_from_float(const float *src, uint8_t *block)
{
    struct tensor_block b;
    float min = src[0], max = src[0];
    for (int i = 1; i < SMALL_BLOCK; i++) {
        min = fminf(min, src[i]);
        max = fmaxf(max, src[i]);
    }
    float d = (max - min) / 15;
    float inverse = reciprocal(d);
    for (int i = 0; i < SMALL_BLOCK; i++)
        b.q[i] = nibble((src[i] - min) * inverse + 0.5f);
    b.d = d;
    b.m = min;
    q4_1_put(&b, block);
}

/* name NULL: a type number that GGUF does not use (any more). elements 0: known by name only. Types
 * with a grid are read through `get`, and written as from_float says, or as grid.h fits them. */
static const struct type_row {
    const char *name;
    uint16_t elements;
    uint16_t bytes;
    block_to_float_fn *to_float;
    block_from_float_fn *from_float;
    struct tensor_grid grid;
    block_get_fn *get;
    block_put_fn *put;
} types[N_TYPES] = {
    [TENSOR_F32] = {"F32", 1, 4, f32_to_float, f32_from_float},
    [TENSOR_F16] = {"F16", 1, 2, f16_to_float, f16_from_float},
    [TENSOR_BF16] = {"BF16", 1, 2, bf16_to_float, bf16_from_float},
    [TENSOR_Q8_0] =
        {"Q8_0", 32, 34, NULL, q8_0_from_float, {-127, 127, false, 32}, q8_0_get, q8_0_put},
    [TENSOR_Q4_0] = {"Q4_0", 32, 18, NULL, q4_0_from_float, {-8, 7, false, 32}, q4_0_get, q4_0_put},
    [TENSOR_Q4_1] = {"Q4_1", 32, 20, NULL, q4_1_from_float, {0, 15, true, 32}, q4_1_get, q4_1_put},
    [TENSOR_Q5_0] = {"Q5_0", 32, 22, NULL, NULL, {-16, 15, false, 32}, q5_0_get, q5_0_put},
    [TENSOR_Q5_1] = {"Q5_1", 32, 24, NULL, NULL, {0, 31, true, 32}, q5_1_get, q5_1_put},
    [TENSOR_Q2_K] = {"Q2_K", 256, 84, NULL, NULL, {0, 3, true, 16, 0, 15}, q2_k_get, q2_k_put},
    [TENSOR_Q3_K] = {"Q3_K", 256, 110, NULL, NULL, {-4, 3, false, 16, -32, 31}, q3_k_get, q3_k_put},
    [TENSOR_Q4_K] = {"Q4_K", 256, 144, NULL, NULL, {0, 15, true, 32, 0, 63}, q4_k_get, q4_k_put},
    [TENSOR_Q5_K] = {"Q5_K", 256, 176, NULL, NULL, {0, 31, true, 32, 0, 63}, q5_k_get, q5_k_put},
    [TENSOR_Q6_K] =
        {"Q6_K", 256, 210, NULL, NULL, {-32, 31, false, 16, -128, 127}, q6_k_get, q6_k_put},
    [9] = {"Q8_1"},
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

/* Each group's d and m once, as ggml does: the same floats. */
static void grid_to_float(const struct type_row *row, const uint8_t *bytes, float *dst)
{
    const struct tensor_grid *grid = &row->grid;
    struct tensor_block b;
    row->get(bytes, &b);
    for (int g = 0; g * grid->group < row->elements; g++) {
        float d = grid->scale_high ? b.d * (float)b.scale[g] : b.d;
        float min = grid->scale_high ? -(b.m * (float)b.min[g]) : b.m;
        float m = grid->has_min ? min : -0.0f; /* which leaves every sum as it is */
        for (int i = g * grid->group; i < (g + 1) * grid->group; i++)
            dst[i] = d * (float)b.q[i] + m;
    }
}

void tensor_dequantize(enum tensor_type type, const void *src, size_t n, float *dst)
{
    const struct type_row *row = &types[type];
    const uint8_t *block = src;
    for (size_t i = 0; i < n; i += row->elements, block += row->bytes)
        if (row->to_float)
            row->to_float(block, dst + i);
        else
            grid_to_float(row, block, dst + i);
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
    return types[type].from_float || types[type].put;
}

/* Every element by itself, with scales that fit the block. */
static void grid_from_float(enum tensor_type type, const float *src, uint8_t *bytes)
{
    const struct type_row *row = &types[type];
    const struct tensor_grid *grid = &row->grid;
    float weight[TENSOR_MOST_ELEMENTS];
    struct tensor_block b = {0};
    for (int i = 0; i < TENSOR_MOST_ELEMENTS; i++)
        weight[i] = 1;
    grid_begin_block(type, src, weight, &b);
    for (size_t first = 0; first < row->elements; first += grid->group) {
        struct grid_scale s =
            grid_fit_group(type, first / grid->group, src + first, weight + first, &b);
        float inverse = grid_inverse(s.d);
        for (size_t i = first; i < first + grid->group; i++)
            b.q[i] = (int8_t)grid_code(grid, s, inverse, src[i]);
    }
    row->put(&b, bytes);
}

int tensor_quantize(enum tensor_type type, const float *src, size_t n, void *dst, struct error *err)
{
    const struct type_row *row = &types[type];
    uint8_t *block = dst;

    if (!tensor_type_is_writable(type))
        return error_set(err, ERROR_UNSUPPORTED, "cannot write tensors of type %s",
                         tensor_type_name(type));
    int rc = row->elements > 1 ? tensor_check_block_values(type, src, n, err) : 0;
    for (size_t i = 0; i < n && rc == 0; i += row->elements, block += row->bytes)
        if (row->from_float)
            row->from_float(src + i, block);
        else
            grid_from_float(type, src + i, block);
    return rc;
}

enum tensor_type tensor_type_for_rows(enum tensor_type type, uint64_t n)
{
    if (n % types[type].elements == 0)
        return type;
    switch (type) {
    case TENSOR_Q2_K:
    case TENSOR_Q3_K:
        return TENSOR_Q4_0;
    case TENSOR_Q4_K:
        return TENSOR_Q5_0;
    case TENSOR_Q5_K:
        return TENSOR_Q5_1;
    case TENSOR_Q6_K:
        return TENSOR_Q8_0;
    default:
        return type;
    }
}

const struct tensor_grid *tensor_type_grid(enum tensor_type type)
{
    return types[type].put ? &types[type].grid : NULL;
}

void tensor_put_block(enum tensor_type type, const struct tensor_block *block, void *dst)
{
    types[type].put(block, dst);
}

void tensor_get_block(enum tensor_type type, const void *src, struct tensor_block *ret_block)
{
    types[type].get(src, ret_block);
}

void tensor_q4_k_as_q4_1(const void *block, void *ret_blocks)
{
    struct tensor_block k;
    uint8_t *out = ret_blocks;
    q4_k_get(block, &k);
    for (int g = 0; g < TENSOR_MOST_ELEMENTS / SMALL_BLOCK; g++, out += types[TENSOR_Q4_1].bytes) {
        struct tensor_block b = {.d = k.d * (float)k.scale[g], .m = -(k.m * (float)k.min[g])};
        memcpy(b.q, k.q + g * SMALL_BLOCK, SMALL_BLOCK);
        q4_1_put(&b, out);
    }
}
