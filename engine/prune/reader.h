/* Reading samples layer by layer: the same transformer pass that serves, cut at its parts, over all
 * samples before the next layer begins. So only one layer's weights and one layer's KV are ever in
 * memory, whatever the size of the model. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_READER_H
#define OVERFILL_ENGINE_PRUNE_READER_H

#include "engine/base/team.h"
#include "engine/forward/forward.h"
#include "engine/prune/samples.h"

#define READER_ROWS 2048 /* of a batch at most; a sample is never longer */

struct reader {
    const struct sample_set *samples;
    struct team *team;
    const struct kernels *kernels;
    struct kv_pool *kv; /* one layer, every sample's tokens */
    struct forward *forward;
    struct forward_slice *slices; /* [READER_ROWS] of the batch at hand */
    uint32_t *pages; /* [all pages] 0, 1, 2, ...: sample i begins at pages[samples[i].page] */
};

/* Samples [first, first + n) as one batch. */
struct batch {
    size_t first, n;
};

/* Which tokens of each sample are read: all, or those behind its prompt. */
enum read_tokens { READ_ALL, READ_ANSWER };

/* models: every one that will be read with, for the sizes of buffers. */
int reader_open(const struct sample_set *samples, const struct model *const *models,
                size_t n_models, struct reader *ret_reader, struct error *err);
void reader_close(struct reader *reader); /* a zeroed one is fine */

/* The batch that begins with sample `first`; n == 0 behind the last. */
struct batch reader_batch(const struct sample_set *samples, size_t first);
/* Begins a pass over the batch, with x (rows of all samples, model's hidden wide) as its residual
 * stream. Returns the batch's rows of x. */
struct forward_rows reader_begin(struct reader *reader, const struct model *model,
                                 struct batch batch, enum read_tokens tokens, const float *x);
/* The batch's residual stream back to x. */
void reader_store(const struct reader *reader, struct batch batch, enum read_tokens tokens,
                  float *x);

/* x = embeddings of the tokens, for samples in a row as reader_begin takes them. */
void reader_embed(const struct sample_set *samples, const struct model *model,
                  enum read_tokens tokens, float *x);

/* The full model, one layer at a time, and its residual stream at all tokens. */
struct full_model {
    const struct model_file *file; /* the caller's */
    struct model *model;           /* the layer at hand, packed as it serves */
    float *x;                      /* [n_tokens][hidden] */
};
int full_model_open(const struct model_file *file, const struct sample_set *samples,
                    struct full_model *ret_full, struct error *err);
/* The layer's weights in place of the former's. */
int full_model_load(struct full_model *full, uint32_t layer, struct error *err);
void full_model_close(struct full_model *full); /* a zeroed one is fine */

#endif
