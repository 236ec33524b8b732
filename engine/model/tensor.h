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

#define TENSOR_WRITABLE_TYPES "q8_0, q4_1, q4_0, f16, bf16, f32"
bool tensor_type_is_writable(enum tensor_type type);

/* That check alone, of n elements for a block type. */
int tensor_check_block_values(enum tensor_type type, const float *src, size_t n, struct error *err);

/* What the elements of a block of 32 can be: d * q + m, low <= q <= high; m is 0 without has_min. d
 * and m are kept as halves. */
struct tensor_grid {
    int8_t low, high;
    bool has_min;
};
/* Of Q8_0, Q4_0, Q4_1; NULL for types whose blocks are not such a grid or cannot be written. */
const struct tensor_grid *tensor_type_grid(enum tensor_type type);
/* A block of Q4_K as eight of Q4_1: the nibbles as they are; a group's scale and min, products of a
 * half and a 6-bit number, rounded to a half each. */
void tensor_q4_k_as_q4_1(const void *block, void *ret_blocks);
/* One block of a type that has a grid, q[32] to dst. */
void tensor_put_block(enum tensor_type type, float d, float m, const int8_t *q, void *dst);

#endif
