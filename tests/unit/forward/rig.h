/* A tiny model with everything that a forward pass needs, and sequences fed to it in any cut. */
#ifndef OVERFILL_TESTS_UNIT_FORWARD_RIG_H
#define OVERFILL_TESTS_UNIT_FORWARD_RIG_H

#include "engine/forward/forward.h"
#include "tests/unit/model/tiny.h"

#define RIG_MAX_TOKENS 160 /* of a sequence: several pages, several attention units */
#define RIG_MAX_ROWS 192   /* of a pass, and of its logits */

struct rig {
    struct model *model;
    struct model *twin; /* NULL without one */
    struct team *team;
    struct kv_pool *pool;
    struct forward *forward;
    bool is_prompt; /* of all slices; false unless a test sets it */
};

struct rig_options {
    const struct tiny *tiny, *twin; /* twin may be NULL */
    enum model_weights weights;
    uint32_t kv_bytes; /* of an element: 2 or 4 */
    unsigned n_threads;
    const struct kernels *kernels; /* NULL: the best here */
    const char *path, *twin_path;  /* model files or folders, instead of tiny and twin */
};

void rig_open(struct rig *rig, const struct rig_options *options);
void rig_close(struct rig *rig); /* checks that every page came back */

/* The models that the tests run over: each differs from the others in something that a pass has
 * to get right. */
struct rig_case {
    const char *name;
    struct tiny tiny;
    enum model_weights weights;
    uint32_t kv_bytes;
};
size_t rig_cases(const struct rig_case **ret_cases);

/* Deterministic pseudo-random numbers: 0..n-1. */
uint32_t rig_random(uint64_t *state, uint32_t n);
/* n tokens < n_vocab that depend on `seed`. */
void rig_tokens(uint64_t seed, uint32_t n_vocab, uint32_t n, int32_t *ret_tokens);

struct rig_sequence {
    const int32_t *tokens;
    uint32_t n_tokens;
    uint32_t n_done;
    struct kv_table table;
    float *logits; /* [n_tokens][vocab_size], filled as it goes */
};
void rig_sequence_open(struct rig_sequence *s, const int32_t *tokens, uint32_t n_tokens,
                       uint32_t n_vocab);
void rig_sequence_close(struct rig *rig, struct rig_sequence *s);

/* One pass: n[i] tokens of sequence i (0: not in this pass), all logits. */
void rig_pass(struct rig *rig, const struct model *model, struct rig_sequence *sequences,
              size_t n_sequences, const uint32_t *n);
/* All logits of a sequence by itself, in passes of `cut` tokens. The caller frees (free). */
float *rig_logits(struct rig *rig, const int32_t *tokens, uint32_t n_tokens, uint32_t cut);

#endif
