/* Work that can wait, for background.c and shadow.c. The prefill thread's once taken up. */
#ifndef OVERFILL_ENGINE_POOL_BACKGROUND_H
#define OVERFILL_ENGINE_POOL_BACKGROUND_H

#include "engine/pool/prefill.h"

struct shadow_sums {
    uint64_t n_tokens, n_agreed;
    double kl;
};

struct background_job {
    struct background_job *next;
    int32_t *tokens; /* prompt and answer */
    uint32_t n_prompt, n_tokens;
    bool is_shadow, no_cache;
    struct kv_table table;
    uint32_t position; /* the full model's K and V of tokens[0, position) are in the table */
    struct {
        struct kv_table table; /* with the twin's of the answer instead */
        float *logits;         /* [SHADOW_ROWS][vocabulary], the twin's */
        struct shadow_sums sums;
    } shadow;
};

enum background_progress { BACKGROUND_GOES_ON, BACKGROUND_OVER };

/* The full model reads a chunk of the tokens before `end`. False if there are no pages. */
bool background_read(struct prefill *p, struct background_job *job, uint32_t end);
void background_count(struct engine *engine, const struct model *model, uint32_t n, bool with_head);

/* shadow.c: some tokens of an answer through both models */
enum background_progress shadow_step(struct prefill *p, struct background_job *job);

#endif
