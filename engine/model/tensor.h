/* Tensor element types as GGUF numbers them, their block sizes, and conversion to and from float.
 * Pure functions, thread-safe. Block layouts: ggml's gguf specification (docs/gguf.md there). */
#ifndef OVERFILL_ENGINE_MODEL_TENSOR_H
#define OVERFILL_ENGINE_MODEL_TENSOR_H

#include "engine/base/error.h"
#include "engine/base/half.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum tensor_type {
    TENSOR_F32 = 0,
    TENSOR_F16 = 1,
    TENSOR_Q4_0 = 2,
    TENSOR_Q4_1 = 3,
    TENSOR_Q5_0 = 6,
    TENSOR_Q5_1 = 7,
    TENSOR_Q8_0 = 8,
    TENSOR_Q2_K = 10,
    TENSOR_Q3_K = 11,
    TENSOR_Q4_K = 12,
    TENSOR_Q5_K = 13,
    TENSOR_Q6_K = 14,
    TENSOR_BF16 = 30,
};

#define TENSOR_MAX_DIMS 4

/* A tensor where it lies in its mapped file. dims[0] is the fastest (a row's length), as in GGUF:
 * a matrix of n_out rows and n_in columns has dims = {n_in, n_out}. */
struct tensor {
    char name[64];
    enum tensor_type type;
    uint32_t n_dims;
    uint64_t dims[TENSOR_MAX_DIMS]; /* unused ones are 1 */
    const void *data;               /* valid while its model_file is open; only 1-byte aligned */
    size_t bytes;
};

/* For qsort of an array of pointers to tensors, and the tensor of that name in one sorted so, or
 * NULL. */
int tensor_compare_names(const void *a, const void *b);
const struct tensor *tensor_find(const struct tensor *const *sorted, size_t n, const char *name);

bool tensor_type_is_known(uint32_t type);              /* readable by this program */
const char *tensor_type_name(uint32_t type);           /* "Q8_0"; "unknown" */
int tensor_type_from_name(const char *name);           /* any case; -1 if unknown */
uint32_t tensor_block_elements(enum tensor_type type); /* 1, 32 or 256 */
uint32_t tensor_block_bytes(enum tensor_type type);
/* Bytes of `n` elements; n must be a multiple of the block. false on overflow or a broken block. */
bool tensor_type_bytes(enum tensor_type type, uint64_t n, size_t *ret_bytes);

/* n elements (a multiple of the block) from src to dst[n]. */
void tensor_dequantize(enum tensor_type type, const void *src, size_t n, float *dst);
/* The same back, for the types that can be written. ERROR_UNSUPPORTED for the others. A value that
 * a block type cannot hold (not finite, over 65504) is ERROR_INVALID. */
int tensor_quantize(enum tensor_type type, const float *src, size_t n, void *dst,
                    struct error *err);

#define TENSOR_WRITABLE_TYPES                                                                      \
    "q8_0, q6_k, q5_k, q5_1, q5_0, q4_k, q4_1, q4_0, q3_k, q2_k, f16, bf16, f32"
bool tensor_type_is_writable(enum tensor_type type);

/* That check alone, of n elements for a block type. */
int tensor_check_block_values(enum tensor_type type, const float *src, size_t n, struct error *err);

/* What rows of n elements are stored as when `type` is wanted: the type, or the nearest one of
 * blocks of 32 where n is no multiple of 256. llama.cpp falls back the same way (but from Q2_K and
 * Q3_K to IQ4_NL, which has the size of Q4_0). */
enum tensor_type tensor_type_for_rows(enum tensor_type type, uint64_t n);

#define TENSOR_MOST_ELEMENTS 256
#define TENSOR_MOST_GROUPS 16

/* What the elements of a block can be: d * q + m, low <= q <= high; m is 0 without has_min. Each
 * group of elements has its d and m. Those of a block that is one group are kept as halves. The
 * groups of a larger block share two halves D and M, and have small integers: d is D times scale, m
 * is -M times min, scale_low <= scale <= scale_high and 0 <= min <= scale_high. */
struct tensor_grid {
    int8_t low, high;
    bool has_min;
    uint16_t group;                /* elements */
    int16_t scale_low, scale_high; /* 0, 0: the block is one group */
};
struct tensor_block {
    float d, m; /* D, M */
    int8_t scale[TENSOR_MOST_GROUPS];
    uint8_t min[TENSOR_MOST_GROUPS];
    int8_t q[TENSOR_MOST_ELEMENTS];
};
/* NULL for types whose blocks are not such a grid. */
const struct tensor_grid *tensor_type_grid(enum tensor_type type);
/* One block of a type that has a grid: to dst, and from src. */
void tensor_put_block(enum tensor_type type, const struct tensor_block *block, void *dst);
void tensor_get_block(enum tensor_type type, const void *src, struct tensor_block *ret_block);
/* A block of Q4_K as eight of Q4_1: the nibbles as they are; a group's scale and min, products of a
 * half and a 6-bit number, rounded to a half each. */
void tensor_q4_k_as_q4_1(const void *block, void *ret_blocks);

#endif
