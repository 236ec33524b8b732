/* Calibration: which documents (corpus.h), cut into samples of at most SAMPLE_TOKENS tokens. A text
 * is cut up as it comes; a row gives one sample. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_SAMPLES_H
#define OVERFILL_ENGINE_PRUNE_SAMPLES_H

#include "engine/prune/corpus.h"

#include <stdbool.h>
#include <stdint.h>

#define SAMPLE_TOKENS CORPUS_LONG_TOKENS

/* Tokens [begin, begin + n) of the set. The first n_prompt (whole KV pages) are read by the full
 * model only, as a prompt is; the rest is what a twin reads on the full model's KV. */
struct sample {
    size_t begin;
    uint32_t n, n_prompt;
    size_t answer; /* tokens behind prompts in all samples before */
    size_t page;   /* KV pages of all samples before */
    bool held;     /* measured with, never fitted to */
};

struct sample_set {
    struct token_list tokens; /* of all samples, one after another */
    struct sample *samples;
    size_t n_samples, cap;
    size_t n_answer; /* tokens behind prompts, all samples */
    size_t n_pages;
    uint64_t hash; /* FNV-1a 64 of the tokens and where they are cut */
};

/* The files one after another, n_tokens at most, and of each its share of what is left. Of every so
 * many samples one is held back if `hold`. */
int samples_read(const char *const *paths, size_t n_paths, const struct corpus_text *how,
                 size_t n_tokens, bool hold, struct sample_set *ret_set, struct error *err);
void samples_free(struct sample_set *set);

#endif
