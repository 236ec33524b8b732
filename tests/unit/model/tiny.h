/* Tiny model files for tests, whole or with one thing wrong. Weights are F32 unless another type is
 * named, with values that depend on the seed, the tensor's name and the element, so that two files
 * of one shape and seed hold the same model. */
#ifndef OVERFILL_TESTS_UNIT_MODEL_TINY_H
#define OVERFILL_TESTS_UNIT_MODEL_TINY_H

#include "engine/model/gguf_write.h"

#include <stdbool.h>

struct tiny {
    const char *arch; /* "llama" */
    uint32_t n_layers, hidden, mlp, n_heads, n_kv_heads, head_dim;
    bool bias, qk_norm, untied, rope_freqs;
    uint32_t n_tokens;                          /* 0: TINY_TOKENS; more are called <t12>, ... */
    uint32_t seed;                              /* another one: other weights */
    enum tensor_type type;                      /* of matrices whose rows are whole blocks */
    const char *without;                        /* a tensor to leave out */
    const char *longer;                         /* a tensor to give one row (or element) too many */
    const char *extra;                          /* a tensor of 32 elements that nobody asked for */
    void (*change)(struct gguf_writer *writer); /* the last word on metadata */
};

#define TINY_TOKENS 12

/* llama, 2 layers, hidden 16, MLP 24, 4 heads, 2 KV heads, head_dim 4, tied. */
struct tiny tiny_default(void);
void tiny_write_gguf(const struct tiny *tiny, const char *path);
/* The value of element i of a tensor of that GGUF name, with seed 0. */
float tiny_value(const char *name, size_t i);
/* Calls fn for each tensor of the model, in the order of the file. */
void tiny_each_tensor(const struct tiny *tiny,
                      void (*fn)(void *user, const char *name, uint32_t n_dims,
                                 const uint64_t *dims),
                      void *user);

/* All bytes of a file that was made; the caller frees them. */
char *tiny_read_file(const char *path, size_t *ret_n);

#endif
