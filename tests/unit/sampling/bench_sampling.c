/* What choosing a token costs, by its parameters: one thread, its own CPU time; nine tokens of ten
 * take longer. `meson test --benchmark sampling`; bench_sampling [n_vocab]. */
#include "engine/base/mem.h"
#include "engine/sampling/sampler.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <time.h>

#define N_TOKENS 201
#define N_ROWS 8 /* of logits, in turn */

static const struct {
    const char *name;
    struct sampling_params params;
} CASES[] = {
    {"greedy", {.temperature = 0, .top_p = 1, .repeat_penalty = 1}},
    {"greedy, repeat penalty 1.1", {.temperature = 0, .top_p = 1, .repeat_penalty = 1.1f}},
    {"temperature 1", {.temperature = 1, .top_p = 1, .repeat_penalty = 1}},
    {"temperature 0.7, top-p 0.9", {.temperature = 0.7f, .top_p = 0.9f, .repeat_penalty = 1}},
    {"temperature 0.7, min-p 0.05",
     {.temperature = 0.7f, .top_p = 1, .min_p = 0.05f, .repeat_penalty = 1}},
    {"temperature 0.7, top-k 40",
     {.temperature = 0.7f, .top_k = 40, .top_p = 1, .repeat_penalty = 1}},
    {"temperature 0.8, top-k 40, top-p 0.95, min-p 0.05",
     {.temperature = 0.8f, .top_k = 40, .top_p = 0.95f, .min_p = 0.05f, .repeat_penalty = 1}},
};

static double cpu_us(void)
{
    struct timespec t;
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &t);
    return (double)t.tv_sec * 1e6 + (double)t.tv_nsec / 1e3;
}

static double normal(void)
{
    double u = (rand() + 1.0) / (RAND_MAX + 2.0), v = (rand() + 1.0) / (RAND_MAX + 2.0);
    return sqrt(-2 * log(u)) * cos(6.283185307179586 * v);
}

static int by_size(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return (x > y) - (x < y);
}

static void report(const char *name, double *us)
{
    qsort(us, N_TOKENS, sizeof(*us), by_size);
    printf("%-50s %8.1f us a token\n", name, us[N_TOKENS / 10]);
}

int main(int argc, char **argv)
{
    uint32_t n_vocab = argc > 1 ? (uint32_t)atoi(argv[1]) : 49152;
    struct sampling_scratch *scratch;
    struct sampler *sampler;
    struct token_logprob top[5];
    float *logits = mem_array((size_t)n_vocab * N_ROWS, sizeof(*logits)), logprob;
    double us[N_TOKENS];

    if (!logits || sampling_scratch_open(n_vocab, &scratch, NULL))
        return 1;
    for (size_t i = 0; i < (size_t)n_vocab * N_ROWS; i++)
        logits[i] = (float)(3 * normal());
    for (size_t c = 0; c < sizeof(CASES) / sizeof(CASES[0]); c++) {
        if (sampler_open(&CASES[c].params, 0, n_vocab, (int32_t[]){1, 2, 3}, 3, &sampler, NULL))
            return 1;
        for (size_t i = 0; i < N_TOKENS; i++) {
            double begin = cpu_us();
            sampler_accept(sampler,
                           sampler_sample(sampler, logits + i % N_ROWS * n_vocab, NULL, scratch));
            us[i] = cpu_us() - begin;
        }
        report(CASES[c].name, us);
        sampler_close(sampler);
    }
    for (size_t i = 0; i < N_TOKENS; i++) {
        double begin = cpu_us();
        sampling_logprobs(logits + i % N_ROWS * n_vocab, n_vocab, 7, 5, &logprob, top);
        us[i] = cpu_us() - begin;
    }
    report("log-probabilities of 5", us);
    sampling_scratch_close(scratch);
    mem_free(logits);
    return 0;
}
