/* An engine without a model, for the tests of the server: it has the functions of engine/engine.h
 * and of the tokenizer, and answers with the prompt's own words. Deterministic: temperature 0 gives
 * the prompt back token for token, any other gives letters drawn from seed and choice.
 *
 * Some prompts have an effect, so that a test can meet the rarer ends:
 *   "!error"   after 3 tokens the request ends with ERROR_INTERNAL
 *   "!refuse"  ERROR_INTERNAL before anything was accepted
 *   "!memory"  ERROR_MEMORY before anything was accepted
 *   "!slow"    20 ms a token and 300 ms of prefill */
#ifndef OVERFILL_TESTS_FAKE_ENGINE_H
#define OVERFILL_TESTS_FAKE_ENGINE_H

#include "engine/engine.h"

#define FAKE_CONTEXT 2048
#define FAKE_QUEUE 64

struct fake_options {
    unsigned token_us;   /* pause after each token */
    unsigned prefill_us; /* pause before the first */
    void (*wake)(void *user);
    void *wake_user;
};
int fake_engine_open(const struct fake_options *options, struct engine **ret_engine,
                     struct error *err);

#endif
