/* Engines over tiny models, seen through engine.h only, and requests collected to their end. */
#ifndef OVERFILL_TESTS_UNIT_POOL_RIG_H
#define OVERFILL_TESTS_UNIT_POOL_RIG_H

#include "engine/engine.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#define RIG_MAX_CHOICES 8
#define RIG_MAX_TOKENS 400
#define RIG_MAX_TOP 3
#define RIG_END_TOKEN 2 /* of the tiny vocabulary */
#define RIG_A 3         /* the token "a" */
#define RIG_LONG 30000  /* tokens of an answer that does not end by itself */

/* Where the models of this test lie; written once, removed at the end. */
struct rig_files {
    char folder[40];
    char full[64];
    char other[64];     /* same shape, other weights, narrower */
    char templated[64]; /* the full model with a chat template that is recognised */
};
int rig_write_files(void **state); /* cmocka group setup: *state is a struct rig_files */
int rig_remove_files(void **state);
struct tiny rig_full_model(void);
struct tiny rig_other_model(void);

/* Small pools, 2 + 2 threads, float weights and KV, a context of 512 tokens, nothing read in the
 * background. */
struct engine_options rig_options(const struct rig_files *files);
struct engine *rig_open(const struct engine_options *options);

/* A request for `n_tokens` prompt tokens: temperature 1, seed 1, one choice. */
struct engine_request rig_request(const int32_t *tokens, size_t n_tokens);
/* 1..n_tokens tokens that depend on the seed, no control tokens. */
void rig_prompt(uint32_t seed, size_t n_tokens, int32_t *ret_tokens);

struct rig_choice {
    int32_t tokens[RIG_MAX_TOKENS];
    float logprobs[RIG_MAX_TOKENS];
    struct token_logprob top[RIG_MAX_TOKENS][RIG_MAX_TOP];
    uint32_t n_top[RIG_MAX_TOKENS];
    size_t n;         /* all, also those past RIG_MAX_TOKENS */
    size_t n_records; /* with those that only end the choice */
    char text[4096];
    size_t text_len;
    enum finish_reason finish;
};

/* Everything a request produced. */
struct rig_result {
    uint64_t id;
    bool done, accepted;
    enum error_code error;
    char message[500];
    struct rig_choice choices[RIG_MAX_CHOICES];
    int32_t prompt_ids[RIG_MAX_TOKENS];
    size_t n_prompt_ids;
    uint32_t n_prompt_tokens;
    float prompt_logprobs[RIG_MAX_TOKENS];
    uint32_t prompt_ranks[RIG_MAX_TOKENS];
    struct token_logprob prompt_top[RIG_MAX_TOKENS][RIG_MAX_TOP];
    size_t n_prompt; /* prompt records, 0 when none came */
    struct engine_usage usage;
};

/* Submits with `user` as the result to fill. */
void rig_submit(struct engine *engine, struct engine_request request, struct rig_result *result);
/* Takes outputs until all are done; fails the test when nothing comes for a minute. */
void rig_collect(struct engine *engine, struct rig_result *const *results, size_t n);
void rig_collect_one(struct engine *engine, struct rig_result *result);
/* One output, whichever comes; false when none came within the time. */
bool rig_take(struct engine *engine, int timeout_ms);
/* Submit and collect. The result is malloced, the caller frees it. */
struct rig_result *rig_run(struct engine *engine, struct engine_request request);

void rig_expect_ok(const struct rig_result *result);
/* Same tokens, text, log-probabilities to the bit, and ends. */
void rig_expect_same_choice(const struct rig_choice *a, const struct rig_choice *b);

/* Takes outputs until `holds` does; fails the test after a minute. */
typedef bool rig_condition(const struct engine_stats *stats);
void rig_wait_until(struct engine *engine, rig_condition *holds);
bool rig_is_idle(const struct engine_stats *stats); /* nothing anywhere, no page used */

#endif
