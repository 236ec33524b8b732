/* From logits to the next token: penalties, bias, temperature, top-k, top-p, min-p, a seeded random
 * number generator, and log-probabilities. They apply in vLLM's order: penalties, bias, banned
 * tokens, temperature, min-p, top-k, top-p, draw. NaN logits are never chosen. One sampler per
 * choice, used by one thread at a time. The same seed and logits give the same token on every
 * machine. */
#ifndef OVERFILL_ENGINE_SAMPLING_SAMPLER_H
#define OVERFILL_ENGINE_SAMPLING_SAMPLER_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct logit_bias {
    int32_t token;
    float bias; /* added to the logit */
};

struct sampling_params {
    float temperature;       /* 0 = greedy (ties: the lowest id) */
    int32_t top_k;           /* 0 = all */
    float top_p;             /* 1 = all */
    float min_p;             /* 0 = off */
    float repeat_penalty;    /* 1 = off; over prompt and output (llama.cpp's formula, CTRL paper) */
    float frequency_penalty; /* 0 = off; over the output only (OpenAI's formula) */
    float presence_penalty;
    uint64_t seed;
    const struct logit_bias *bias; /* [n_bias], outlives the sampler */
    size_t n_bias;
};

extern const struct sampling_params SAMPLING_DEFAULTS; /* temperature 1, all filters off */

struct token_logprob {
    int32_t token;
    float logprob; /* natural log of the probability under the model's own logits: before
                      penalties, bias, temperature and filters */
};

/* Owned buffers for a vocabulary's size: one per thread that samples, shared by its samplers. */
struct sampling_scratch;
int sampling_scratch_open(uint32_t n_vocab, struct sampling_scratch **ret, struct error *err);
void sampling_scratch_close(struct sampling_scratch *scratch);

struct sampler;
/* choice_index is mixed into the seed, so that the n choices of a request differ.
 * prompt ids are counted for repeat_penalty. Copies params but not bias. */
int sampler_open(const struct sampling_params *params, uint32_t choice_index, uint32_t n_vocab,
                 const int32_t *prompt, size_t n_prompt, struct sampler **ret_sampler,
                 struct error *err);
void sampler_close(struct sampler *sampler);

/* logits[n_vocab] are not changed. `banned` (may be NULL, -1-terminated) tokens cannot be chosen.
 * Does not count the token: sampler_accept does. Allocates nothing. */
int32_t sampler_sample(struct sampler *sampler, const float *logits, const int32_t *banned,
                       struct sampling_scratch *scratch);
void sampler_accept(struct sampler *sampler, int32_t token);

/* Speculative sampling (Leviathan, Kalman, Matias 2023; Chen et al. 2023): a draft from one model's
 * logits is accepted or replaced by another's so that what comes out is distributed as if drawn
 * from the latter alone; with temperature 0 it is the latter's token. A draft is drawn from the
 * best SAMPLING_MOST_DRAFT tokens only, which is as good as any other draft and keeps it small. */
#define SAMPLING_MOST_DRAFT 128
struct sampling_draft {
    int32_t token;
    uint32_t n;                         /* 0: temperature 0 */
    int32_t ids[SAMPLING_MOST_DRAFT];   /* what it was drawn from, */
    float weights[SAMPLING_MOST_DRAFT]; /*   with their probabilities */
};
/* As sampler_sample, from random numbers of its own. */
void sampler_draft(struct sampler *sampler, const float *logits, const int32_t *banned,
                   struct sampling_scratch *scratch, struct sampling_draft *ret_draft);
/* Returns the draft's token, or another one: then what was drafted after it is void. */
int32_t sampler_verify(struct sampler *sampler, const float *logits, const int32_t *banned,
                       const struct sampling_draft *draft, struct sampling_scratch *scratch);

/* Log-softmax of `token`, and the k best tokens (k <= 32, best first, ties: the lowest id) to
 * top[k]. Returns how many were written. */
size_t sampling_logprobs(const float *logits, uint32_t n_vocab, int32_t token, size_t k,
                         float *ret_logprob, struct token_logprob *top);
/* 1 and how many tokens are likelier than `token`, which is one of them. */
uint32_t sampling_rank(const float *logits, uint32_t n_vocab, int32_t token);

#endif
