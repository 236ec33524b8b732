/* Requests, and the median of what they took. See speed.h. */
#include "cli/speed.h"

#include <stdlib.h>

uint32_t speed_answer_tokens(uint32_t batch)
{
    return batch <= 4 ? 64 : batch <= 16 ? 32 : 16;
}

/* One request, a random prompt and n answers of n_tokens each, and which part of it counts. */
struct stage {
    uint32_t n_prompt, n, n_tokens;
    enum decode_mode decode;
    bool is_prefill; /* else what comes behind the first tokens */
};

static int run_request(struct speed *speed, struct engine *engine, const struct stage *stage,
                       struct engine_usage *ret_usage, struct error *err)
{
    struct engine_info info;
    int32_t prompt[SPEED_MOST_PROMPT];
    uint64_t id;

    engine_get_info(engine, &info);
    for (uint32_t i = 0; i < stage->n_prompt; i++) {
        speed->random = speed->random * 1664525u + 1013904223u;
        prompt[i] = (int32_t)((speed->random >> 8) % info.vocab_size);
    }
    const struct engine_request request = {
        .tokens = prompt,
        .n_tokens = stage->n_prompt,
        .n = stage->n,
        .max_tokens = stage->n_tokens,
        .ignore_eos = true,
        .sampling = SAMPLING_DEFAULTS,
        .n_logprobs = -1,
        .decode = stage->decode,
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

static double per_second(uint32_t n_tokens, double ms)
{
    return ms > 0 ? n_tokens * 1000.0 / ms : 0;
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
static int measure(struct speed *speed, struct engine *engine, const struct stage *stage,
                   double *ret_tok_s, struct error *err)
{
    double rates[SPEED_MOST_RUNS];
    for (uint32_t run = 0; run <= speed->n_runs; run++) {
        struct engine_usage usage = {0};
        int rc = run_request(speed, engine, stage, &usage, err);
        if (rc)
            return rc;
        if (run)
            rates[run - 1] =
                stage->is_prefill
                    ? per_second(usage.prompt_tokens - usage.cached_tokens, usage.prefill_ms)
                    : per_second(usage.completion_tokens - stage->n, usage.decode_ms);
    }
    *ret_tok_s = median(rates, speed->n_runs);
    return 0;
}

int speed_prefill(struct speed *speed, struct engine *engine, uint32_t n_prompt, double *ret_tok_s,
                  struct error *err)
{
    const struct stage stage = {
        .n_prompt = n_prompt, .n = 1, .n_tokens = 1, .decode = DECODE_FULL, .is_prefill = true};
    return measure(speed, engine, &stage, ret_tok_s, err);
}

int speed_decode(struct speed *speed, struct engine *engine, uint32_t batch, enum decode_mode mode,
                 double *ret_tok_s, struct error *err)
{
    const struct stage stage = {
        .n_prompt = SPEED_DECODE_PROMPT,
        .n = batch,
        .n_tokens = speed_answer_tokens(batch),
        .decode = mode,
    };
    return measure(speed, engine, &stage, ret_tok_s, err);
}
