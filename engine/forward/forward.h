/* The transformer: one forward pass for a batch of slices, each a run of consecutive tokens of one
 * sequence. Both models and both pools use it: a prompt's chunk is a slice of many tokens, a decode
 * step a slice of one for every running sequence. K and V of the slice's tokens are written to the
 * sequence's pages; the sequence attends to everything before them, whichever model wrote that.
 *
 * A row's result depends only on its own sequence, and on whether it is read as a prompt's: not on
 * the batch, the cut into slices, or the number of threads (kernels.h says why). */
#ifndef OVERFILL_ENGINE_FORWARD_FORWARD_H
#define OVERFILL_ENGINE_FORWARD_FORWARD_H

#include "engine/base/error.h"
#include "engine/base/team.h"
#include "engine/kernels/kernels.h"
#include "engine/kv/kv.h"
#include "engine/model/model.h"

enum logits_wanted { LOGITS_NONE, LOGITS_LAST, LOGITS_ALL };

struct forward_slice {
    const int32_t *tokens; /* [n_tokens], each < vocab_size */
    uint32_t n_tokens;     /* >= 1 */
    uint32_t position;     /* of tokens[0] in its sequence */
    const uint32_t *pages; /* page table, with room for position + n_tokens tokens */
    enum logits_wanted logits;
    bool is_prompt; /* of all slices or none: faster products may serve (kernels.h, `prompt`) */
};

/* Buffers for one team; one pass at a time. */
struct forward;

/* All teams of the team's crew are open. For batches of up to max_rows tokens and max_logit_rows
 * rows of logits, with any of the models.
 */
int forward_open(const struct model *const *models, size_t n_models, const struct kernels *kernels,
                 struct team *team, uint32_t max_rows, uint32_t max_logit_rows,
                 struct forward **ret_forward, struct error *err);
void forward_close(struct forward *forward);

/* Runs the batch on the team and returns logits [n][stride], the wanted rows of slice 0 first;
 * valid until the next pass. Sum of n_tokens <= max_rows; wanted rows <= max_logit_rows. */
const float *forward_run(struct forward *forward, const struct model *model,
                         const struct kv_pool *pool, const struct forward_slice *slices,
                         size_t n_slices, size_t *ret_stride);

/* The same pass step by step, for work that goes layer by layer and looks at the rows between steps
 * (engine/prune): forward_begin, then for a layer its parts in this order. The rows of the batch
 * are numbered through all slices. A pool of one layer holds whichever layer is at hand. */
enum forward_part {
    FORWARD_ATTN_NORM, /* x -> normed: input of q, k, v */
    FORWARD_ATTN,      /* normed -> K and V in their pages, attn */
    FORWARD_ATTN_OUT,  /* x += o attn */
    FORWARD_MLP_NORM,  /* x -> normed: input of gate and up */
    FORWARD_MLP,       /* normed -> mlp: input of down */
    FORWARD_MLP_OUT,   /* x += down mlp */
    FORWARD_PARTS
};
/* Sets up the batch; x holds its rows' residual stream, for the caller to fill in. */
void forward_begin(struct forward *forward, const struct model *model, const struct kv_pool *pool,
                   const struct forward_slice *slices, size_t n_slices);
void forward_part(struct forward *forward, uint32_t layer, enum forward_part part);

/* Row r at data + r * stride. FORWARD_HIDDEN is kept by forward_part alone. */
struct forward_rows {
    float *data;
    uint32_t n_rows, width;
    size_t stride;
};
enum forward_buffer { FORWARD_X, FORWARD_NORMED, FORWARD_ATTENTION, FORWARD_HIDDEN };
struct forward_rows forward_rows(const struct forward *forward, enum forward_buffer buffer);

#endif
