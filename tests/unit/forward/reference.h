/* The transformer written down once more, for reading: double precision, one token after another,
 * whole matrices from the model file. Shares with the engine only the file reader. What the tests
 * of forward passes compare to. */
#ifndef OVERFILL_TESTS_UNIT_FORWARD_REFERENCE_H
#define OVERFILL_TESTS_UNIT_FORWARD_REFERENCE_H

#include "engine/model/model_file.h"

#include <stdbool.h>

/* How the engine keeps a matrix of the file: exactly, or rounded to int8 in blocks of 32. */
enum reference_weights { REFERENCE_EXACT, REFERENCE_INT8 };

struct reference;

/* Keys (after RoPE) and values of a sequence, for the models of a pair to share. */
struct reference_kv {
    uint32_t max_tokens;
    bool half;     /* rounded to half */
    double *k, *v; /* [n_layers][max_tokens][n_kv_heads][head_dim] */
};

struct reference *reference_open(const struct model_file *file, enum reference_weights weights);
void reference_close(struct reference *ref);

struct reference_kv reference_kv_open(const struct reference *ref, uint32_t max_tokens, bool half);
void reference_kv_close(struct reference_kv *kv);

/* Computes `token` at `position`; all positions before it are in kv. logits[vocab_size]. */
void reference_step(const struct reference *ref, struct reference_kv *kv, uint32_t position,
                    int32_t token, double *logits);

#endif
