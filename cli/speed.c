/* Requests, and the median of what they took. See speed.h. */
#include "cli/speed.h"

#include <stdlib.h>

uint32_t speed_answer_tokens(uint32_t batch)
{
    return batch <= 4 ? 64 : batch <= 16 ? 32 : 16;
}

/* One request: a random prompt, n answers of n_tokens each. */
static int run_request(struct speed *speed, struct engine *engine, uint32_t n_prompt, uint32_t n,
                       uint32_t n_tokens, enum decode_mode decode, struct engine_usage *ret_usage,
                       struct error *err)
{
    struct engine_info info;
    int32_t prompt[SPEED_MOST_PROMPT];
    uint64_t id;

    engine_get_info(engine, &info);
    for (uint32_t i = 0; i < n_prompt; i++) {
        speed->random = speed->random * 1664525u + 1013904223u;
        prompt[i] = (int32_t)((speed->random >> 8) % info.vocab_size);
    }
    const struct engine_request request = {
        .tokens = prompt,
        .n_tokens = n_prompt,
        .n = n,
        .max_tokens = n_tokens,
        .ignore_eos = true,
        .sampling = SAMPLING_DEFAULTS,
        .n_logprobs = -1,
        .decode = decode,
    };
    struct engine_request greedy = request;
    greedy.sampling.temperature = 0;
    int rc = engine_submit(engine, &greedy, &id, err);
    while (rc == 0) {
        const struct engine_output *output = engine_wait(engine, -1);
        if (!output || !output->done)
            continue;
        if (output->error) {
            *err = *output->error;
            return -(int)err->code;
        }
        *ret_usage = output->usage;
        break;
    }
    return rc;
}

static int compare_doubles(const void *a, const void *b)
{
    double x = *(const double *)a;
    double y = *(const double *)b;
    return (x > y) - (x < y);
}

static double median(double *values, size_t n)
{
    qsort(values, n, sizeof(*values), compare_doubles);
    return n % 2 ? values[n / 2] : (values[n / 2 - 1] + values[n / 2]) / 2;
}

/* The first run warms up and does not count. */
int speed_prefill(struct speed *speed, struct engine *engine, uint32_t n_prompt, double *ret_tok_s,
                  struct error *err)
{
    double rates[SPEED_MOST_RUNS];
    for (uint32_t run = 0; run <= speed->n_runs; run++) {
        struct engine_usage usage = {0};
        int rc = run_request(speed, engine, n_prompt, 1, 1, DECODE_FULL, &usage, err);
        if (rc)
            return rc;
        uint32_t n = usage.prompt_tokens - usage.cached_tokens;
        if (run)
            rates[run - 1] = usage.prefill_ms > 0 ? n * 1000.0 / usage.prefill_ms : 0;
    }
    *ret_tok_s = median(rates, speed->n_runs);
    return 0;
}

int speed_decode(struct speed *speed, struct engine *engine, uint32_t batch, enum decode_mode mode,
                 double *ret_tok_s, struct error *err)
{
    double rates[SPEED_MOST_RUNS];
    for (uint32_t run = 0; run <= speed->n_runs; run++) {
        struct engine_usage usage = {0};
        int rc = run_request(speed, engine, SPEED_DECODE_PROMPT, batch, speed_answer_tokens(batch),
                             mode, &usage, err);
        if (rc)
            return rc;
        uint32_t n = usage.completion_tokens - batch;
        if (run)
            rates[run - 1] = usage.decode_ms > 0 ? n * 1000.0 / usage.decode_ms : 0;
    }
    *ret_tok_s = median(rates, speed->n_runs);
    return 0;
}
