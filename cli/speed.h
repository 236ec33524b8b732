/* Tokens a second of an open engine, from requests through its own door as a server would send
 * them: random prompts, greedy answers, the median of several runs after one that warms up. What
 * `overfill bench` and `overfill frontier` share. */
#ifndef OVERFILL_CLI_SPEED_H
#define OVERFILL_CLI_SPEED_H

#include "engine/engine.h"

#define SPEED_MOST_PROMPT 512
#define SPEED_DECODE_PROMPT 31 /* tokens, less than a KV page: the answers share none */
#define SPEED_MOST_RUNS 99

struct speed {
    uint32_t n_runs; /* 1..SPEED_MOST_RUNS */
    uint32_t random; /* the state that prompts come from */
};

/* Tokens of each answer when so many are decoded at once: about a second of work. */
uint32_t speed_answer_tokens(uint32_t batch);

/* The full model reads n_prompt tokens, SPEED_MOST_PROMPT at most. */
int speed_prefill(struct speed *speed, struct engine *engine, uint32_t n_prompt, double *ret_tok_s,
                  struct error *err);
/* `batch` answers at once behind their first tokens, all together. */
int speed_decode(struct speed *speed, struct engine *engine, uint32_t batch, enum decode_mode mode,
                 double *ret_tok_s, struct error *err);

#endif
