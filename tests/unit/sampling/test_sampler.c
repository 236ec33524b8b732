/* Choosing tokens: greedy, frequencies, what each filter leaves, penalties, seeds, and logits that
 * are no numbers. All seeds are fixed: nothing here depends on luck. */
#include "engine/base/mem.h"
#include "engine/sampling/sampler.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N 8
#define DRAWS 40000

static const float logits[N] = {1.0f, 3.0f, 0.5f, 2.0f, -1.0f, 2.5f, 0.0f, 1.5f};

static struct sampler *open_sampler(const struct sampling_params *params, uint32_t choice,
                                    uint32_t n_vocab, const int32_t *prompt, size_t n_prompt)
{
    struct sampler *s = NULL;
    struct error err = {0};
    if (sampler_open(params, choice, n_vocab, prompt, n_prompt, &s, &err))
        fail_msg("%s", err.message);
    return s;
}

static struct sampling_scratch *open_scratch(uint32_t n_vocab)
{
    struct sampling_scratch *s = NULL;
    struct error err = {0};
    if (sampling_scratch_open(n_vocab, &s, &err))
        fail_msg("%s", err.message);
    return s;
}

/* How often each token comes, of DRAWS. */
static void sample_many(const struct sampling_params *params, const float *x, const int32_t *banned,
                        int counts[N])
{
    struct sampler *s = open_sampler(params, 0, N, NULL, 0);
    struct sampling_scratch *scratch = open_scratch(N);
    memset(counts, 0, N * sizeof(int));
    for (int i = 0; i < DRAWS; i++) {
        int32_t token = sampler_sample(s, x, banned, scratch);
        assert_in_range(token, 0, N - 1);
        counts[token]++;
    }
    sampling_scratch_close(scratch);
    sampler_close(s);
}

/* Pearson's statistic against the softmax of x / temperature over the allowed tokens; tokens that
 * are not allowed must not come. 7 degrees of freedom at most: 29.9 is exceeded once in 10^4. */
static void check_frequencies(const struct sampling_params *params, const float *x,
                              const int32_t *banned, const bool allowed[N])
{
    double p[N], sum = 0, statistic = 0;
    int counts[N];

    sample_many(params, x, banned, counts);
    for (int i = 0; i < N; i++)
        sum += p[i] = allowed[i] ? exp(x[i] / params->temperature) : 0;
    for (int i = 0; i < N; i++) {
        double expected = DRAWS * p[i] / sum;
        if (!allowed[i])
            assert_int_equal(counts[i], 0);
        else
            statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    if (statistic > 29.9)
        fail_msg("chi-square is %.1f", statistic);
}

#define ALL                                                                                        \
    (const bool[N])                                                                                \
    {                                                                                              \
        1, 1, 1, 1, 1, 1, 1, 1                                                                     \
    }

static void frequencies_are_the_softmax(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    for (p.seed = 0; p.seed < 5; p.seed++)
        check_frequencies(&p, logits, NULL, ALL);
}

static void frequencies_are_the_softmax_in_large_vocabularies(void **state)
{
    enum { GROUP = 301 }; /* tokens of the same logit */
    static float x[N * GROUP];
    struct sampling_params p = SAMPLING_DEFAULTS;
    double sum = 0, statistic = 0;
    int counts[N] = {0};

    for (int i = 0; i < N * GROUP; i++)
        x[i] = logits[i / GROUP];
    struct sampler *s = open_sampler(&p, 0, N * GROUP, NULL, 0);
    struct sampling_scratch *scratch = open_scratch(N * GROUP);
    for (int i = 0; i < DRAWS; i++)
        counts[sampler_sample(s, x, NULL, scratch) / GROUP]++;
    for (int i = 0; i < N; i++)
        sum += exp(logits[i]);
    for (int i = 0; i < N; i++) {
        double expected = DRAWS * exp(logits[i]) / sum;
        statistic += (counts[i] - expected) * (counts[i] - expected) / expected;
    }
    assert_true(statistic < 29.9);
    sampling_scratch_close(scratch);
    sampler_close(s);
}

static void temperature_sharpens_and_flattens(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.temperature = 0.5f;
    check_frequencies(&p, logits, NULL, ALL);
    p.temperature = 3;
    check_frequencies(&p, logits, NULL, ALL);
}

static int32_t sample_once(const struct sampling_params *params, const float *x, uint32_t n_vocab,
                           const int32_t *banned)
{
    struct sampler *s = open_sampler(params, 0, n_vocab, NULL, 0);
    struct sampling_scratch *scratch = open_scratch(n_vocab);
    int32_t token = sampler_sample(s, x, banned, scratch);
    sampling_scratch_close(scratch);
    sampler_close(s);
    return token;
}

static void temperature_zero_takes_the_best_and_of_equals_the_lowest(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    const float ties[] = {1, 5, 5, 2};
    p.temperature = 0;
    assert_int_equal(sample_once(&p, logits, N, NULL), 1);
    assert_int_equal(sample_once(&p, ties, 4, NULL), 1);
    assert_int_equal(sample_once(&p, ties, 4, (const int32_t[]){1, -1}), 2);
}

static void tiny_temperature_is_nearly_greedy(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.temperature = 1e-40f;
    assert_int_equal(sample_once(&p, logits, N, NULL), 1);
}

static void top_k_keeps_the_k_best(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.top_k = 3; /* 1, 5, 3 */
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 1, 0, 1, 0, 0});
    p.top_k = 100;
    check_frequencies(&p, logits, NULL, ALL);
    p.top_k = -1;
    check_frequencies(&p, logits, NULL, ALL);
}

static void top_k_takes_the_lowest_of_equals(void **state)
{
    const float ties[N] = {1, 1, 2, 1, 1, 1, 1, 1};
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.top_k = 3;
    check_frequencies(&p, ties, NULL, (const bool[N]){1, 1, 1, 0, 0, 0, 0, 0});
}

/* Probabilities: 1: 0.400, 5: 0.243, 3: 0.147, 7: 0.089, 0: 0.054, 2: 0.033, 6: 0.020, 4: 0.007. */
static void top_p_keeps_the_smallest_set_that_reaches_it(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.top_p = 0.63f; /* 0.400 + 0.243 */
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 0, 0, 1, 0, 0});
    p.top_p = 0.66f;
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 1, 0, 1, 0, 0});
    p.top_p = 0.99f;
    check_frequencies(&p, logits, NULL, (const bool[N]){1, 1, 1, 1, 0, 1, 1, 1});
    p.top_p = 0;
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 0, 0, 0, 0, 0});
}

static void min_p_is_a_share_of_the_best(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.min_p = 0.3f; /* differences below log(0.3) = -1.2: 1, 5, 3 */
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 1, 0, 1, 0, 0});
    p.min_p = 2; /* more than all: the best stays */
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 0, 0, 0, 0, 0});
}

/* Filters see the probabilities after temperature, top-p those that top-k left. */
static void filters_come_after_temperature_and_in_order(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.temperature = 2;
    p.min_p = 0.3f; /* differences below 2.4 */
    check_frequencies(&p, logits, NULL, (const bool[N]){1, 1, 0, 1, 0, 1, 0, 1});
    p = SAMPLING_DEFAULTS;
    p.top_k = 2; /* 0.622 and 0.378 of the two */
    p.top_p = 0.6f;
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 0, 0, 0, 0, 0});
    p.top_p = 0.63f;
    check_frequencies(&p, logits, NULL, (const bool[N]){0, 1, 0, 0, 0, 1, 0, 0});
}

static void banned_tokens_do_not_come(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    check_frequencies(&p, logits, (const int32_t[]){1, 6, 99, -1},
                      (const bool[N]){1, 0, 1, 1, 1, 1, 0, 1});
}

static void bias_is_added_to_the_logit(void **state)
{
    const struct logit_bias bias[] = {{4, 4.5f}, {99, 1}, {-1, 1}};
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.bias = bias;
    p.n_bias = 3;
    p.temperature = 0;
    assert_int_equal(sample_once(&p, logits, N, NULL), 4);
    p.n_bias = 0;
    assert_int_equal(sample_once(&p, logits, N, NULL), 1);
}

/* The bias that just makes token `rival` greedy's choice over `token` is the difference of their
 * penalised logits: so the formulas show without a look inside. */
static void check_difference(struct sampling_params params, const int32_t *prompt, size_t n_prompt,
                             const int32_t *output, size_t n_output, int32_t token, int32_t rival,
                             float expected)
{
    for (int sign = -1; sign <= 1; sign += 2) {
        struct logit_bias bias[N];
        for (int32_t i = 0; i < N; i++)
            bias[i] = (struct logit_bias){i, i == token || i == rival ? 0 : -1000};
        bias[rival].bias = expected + (float)sign * 0.001f;
        params.temperature = 0;
        params.bias = bias;
        params.n_bias = N;
        struct sampler *s = open_sampler(&params, 0, N, prompt, n_prompt);
        struct sampling_scratch *scratch = open_scratch(N);
        for (size_t i = 0; i < n_output; i++)
            sampler_accept(s, output[i]);
        assert_int_equal(sampler_sample(s, logits, NULL, scratch), sign > 0 ? rival : token);
        sampling_scratch_close(scratch);
        sampler_close(s);
    }
}

static void repeat_penalty_divides_or_multiplies_once(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.repeat_penalty = 1.25f;
    /* 3 / 1.25 - 2, in the prompt twice */
    check_difference(p, (const int32_t[]){1, 1}, 2, NULL, 0, 1, 3, 0.4f);
    check_difference(p, NULL, 0, (const int32_t[]){1, 1, 1}, 3, 1, 3, 0.4f); /* in the output */
    /* -1 * 1.25 - 0 */
    check_difference(p, (const int32_t[]){4}, 1, NULL, 0, 4, 6, -1.25f);
    check_difference(p, (const int32_t[]){99, -5}, 2, NULL, 0, 1, 3, 1); /* not tokens */
}

static void frequency_penalty_counts_the_output(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.frequency_penalty = 0.25f;
    check_difference(p, NULL, 0, (const int32_t[]){1, 1, 1}, 3, 1, 3, 3 - 0.75f - 2);
    check_difference(p, (const int32_t[]){1, 1, 1}, 3, NULL, 0, 1, 3, 1); /* not the prompt */
}

static void presence_penalty_is_the_same_for_any_count(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.presence_penalty = 0.5f;
    check_difference(p, NULL, 0, (const int32_t[]){1}, 1, 1, 3, 0.5f);
    check_difference(p, NULL, 0, (const int32_t[]){1, 1, 1}, 3, 1, 3, 0.5f);
    p.frequency_penalty = 0.1f;
    p.repeat_penalty = 1.25f;
    check_difference(p, (const int32_t[]){1}, 1, (const int32_t[]){1, 1}, 2, 1, 3,
                     3 / 1.25f - 0.2f - 0.5f - 2);
}

/* A walk of tokens, each accepted. */
static void walk(uint64_t seed, uint32_t choice, int32_t *out, size_t n)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.seed = seed;
    p.top_p = 0.95f;
    p.presence_penalty = 0.1f;
    struct sampler *s = open_sampler(&p, choice, N, NULL, 0);
    struct sampling_scratch *scratch = open_scratch(N);
    for (size_t i = 0; i < n; i++) {
        out[i] = sampler_sample(s, logits, NULL, scratch);
        sampler_accept(s, out[i]);
    }
    sampling_scratch_close(scratch);
    sampler_close(s);
}

static void same_seed_gives_the_same_tokens(void **state)
{
    int32_t a[64], b[64];
    walk(42, 3, a, 64);
    walk(42, 3, b, 64);
    assert_memory_equal(a, b, sizeof(a));
    walk(43, 3, b, 64);
    assert_memory_not_equal(a, b, sizeof(a));
}

static void choices_of_a_request_differ(void **state)
{
    int32_t walks[8][64];
    for (uint32_t i = 0; i < 8; i++)
        walk(42, i, walks[i], 64);
    for (int i = 0; i < 8; i++)
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(walks[i], walks[j], sizeof(walks[0]));
}

/* Written down once: a change of these is a change of what seeds mean to users. */
static void tokens_of_a_seed_stay_what_they_are(void **state)
{
    static const int32_t expected[12] = {1, 3, 1, 3, 5, 1, 5, 3, 1, 3, 5, 1};
    int32_t tokens[12];
    walk(1234, 0, tokens, 12);
    for (int i = 0; i < 12; i++)
        assert_int_equal(tokens[i], expected[i]);
}

static void nan_is_never_chosen_and_infinity_always(void **state)
{
    float x[N];
    struct sampling_params p = SAMPLING_DEFAULTS;
    int counts[N];

    memcpy(x, logits, sizeof(x));
    x[1] = NAN;
    x[0] = -INFINITY;
    sample_many(&p, x, NULL, counts);
    assert_int_equal(counts[0] + counts[1], 0);
    p.top_p = 0.9f;
    p.top_k = 5;
    sample_many(&p, x, NULL, counts);
    assert_int_equal(counts[0] + counts[1], 0);
    x[6] = INFINITY;
    sample_many(&p, x, NULL, counts);
    assert_int_equal(counts[6], DRAWS);
}

static void no_possible_token_gives_one_that_is_not_banned(void **state)
{
    const float nothing[] = {NAN, NAN, -INFINITY};
    struct sampling_params p = SAMPLING_DEFAULTS;
    assert_int_equal(sample_once(&p, nothing, 3, NULL), 0);
    assert_int_equal(sample_once(&p, nothing, 3, (const int32_t[]){0, -1}), 1);
    assert_int_equal(sample_once(&p, nothing, 3, (const int32_t[]){0, 1, 2, -1}), 0);
    p.temperature = 0;
    assert_int_equal(sample_once(&p, nothing, 3, (const int32_t[]){0, -1}), 1);
}

static void odd_parameters_do_no_harm(void **state)
{
    static const float odd[] = {NAN, -1, 0, INFINITY, -INFINITY, 1e-45f, 3e38f};
    const size_t n = sizeof(odd) / sizeof(odd[0]);
    struct sampling_scratch *scratch = open_scratch(N);
    for (size_t i = 0; i < n * n * n * n; i++) {
        struct sampling_params p = SAMPLING_DEFAULTS;
        p.temperature = odd[i % n];
        p.top_p = odd[i / n % n];
        p.min_p = odd[i / n / n % n];
        p.repeat_penalty = p.frequency_penalty = p.presence_penalty = odd[i / n / n / n];
        p.top_k = (int32_t)(i % 5) - 1;
        struct sampler *s = open_sampler(&p, 0, N, (const int32_t[]){0, 3}, 2);
        sampler_accept(s, 5);
        assert_in_range(sampler_sample(s, logits, NULL, scratch), 0, N - 1);
        sampler_close(s);
    }
    sampling_scratch_close(scratch);
}

/* The filters against a full sort, on a vocabulary of real size. */
struct ranked {
    double weight;
    int32_t token;
};

static int compare(const void *a, const void *b)
{
    const struct ranked *x = a, *y = b;
    if (x->weight != y->weight)
        return x->weight < y->weight ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

static void large_vocabularies_are_filtered_as_by_a_full_sort(void **state)
{
    enum { LARGE = 49152, K = 40 };
    static float x[LARGE];
    static struct ranked all[LARGE];
    static bool allowed[LARGE], drawn[LARGE];
    uint64_t random = 9;
    double total = 0, sum = 0;
    struct sampling_params p = SAMPLING_DEFAULTS;
    size_t n_allowed = 0, n_distinct = 0;

    for (int32_t i = 0; i < LARGE; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        x[i] = (float)(random >> 40) / (1 << 24) * 12;
        all[i] = (struct ranked){exp(x[i]), i};
        total += all[i].weight;
    }
    qsort(all, LARGE, sizeof(all[0]), compare);
    p.top_p = 0.7f;
    for (; sum < p.top_p * total; n_allowed++) {
        allowed[all[n_allowed].token] = true;
        sum += all[n_allowed].weight;
    }
    struct sampling_scratch *scratch = open_scratch(LARGE);
    struct sampler *s = open_sampler(&p, 0, LARGE, NULL, 0);
    assert_true(n_allowed > 4000);
    for (int i = 0; i < 300; i++) {
        int32_t token = sampler_sample(s, x, NULL, scratch);
        assert_true(allowed[token]);
        n_distinct += !drawn[token];
        drawn[token] = true;
    }
    assert_true(n_distinct > 250); /* the whole set is drawn from */
    sampler_close(s);

    p.top_p = 1;
    p.top_k = K;
    s = open_sampler(&p, 0, LARGE, NULL, 0);
    bool seen[K] = {0};
    for (int i = 0; i < 2000; i++) {
        int32_t token = sampler_sample(s, x, NULL, scratch);
        size_t rank = 0;
        while (rank < K && all[rank].token != token)
            rank++;
        assert_true(rank < K);
        seen[rank] = true;
    }
    for (size_t i = 0; i < K; i++)
        assert_true(seen[i]);
    sampler_close(s);
    sampling_scratch_close(scratch);
}

static void of_a_large_vocabulary_greedy_and_min_p_see_all(void **state)
{
    enum { LARGE = 49153, FIRST = 300, SECOND = 49152 };
    static float x[LARGE];
    static bool drawn[LARGE];
    uint64_t random = 4;
    size_t n_allowed = 0, n_distinct = 0;
    struct sampling_params p = SAMPLING_DEFAULTS;
    struct sampling_scratch *scratch = open_scratch(LARGE);

    for (int32_t i = 0; i < LARGE; i++) {
        random = random * 6364136223846793005u + 1442695040888963407u;
        x[i] = i % 97 ? (float)(random >> 40) / (1 << 24) * 12 : NAN;
    }
    x[FIRST] = x[SECOND] = 13;
    p.temperature = 0;
    assert_int_equal(sample_once(&p, x, LARGE, NULL), FIRST);
    x[FIRST] = -INFINITY;
    assert_int_equal(sample_once(&p, x, LARGE, NULL), SECOND);

    p.temperature = 0.5f;
    p.min_p = 0.1f; /* differences below -0.5 log(0.1) = 1.151 */
    for (int32_t i = 0; i < LARGE; i++)
        n_allowed += x[i] >= 13 - 1.1512925f;
    struct sampler *s = open_sampler(&p, 0, LARGE, NULL, 0);
    for (int i = 0; i < 4000; i++) {
        int32_t token = sampler_sample(s, x, NULL, scratch);
        assert_true(x[token] >= 13 - 1.151293f);
        n_distinct += !drawn[token];
        drawn[token] = true;
    }
    assert_true(n_allowed > 400 && n_distinct > n_allowed * 9 / 10);
    sampler_close(s);
    sampling_scratch_close(scratch);
}

static void logits_are_not_changed(void **state)
{
    float x[N];
    struct sampling_params p = SAMPLING_DEFAULTS;
    int counts[N];
    const struct logit_bias bias = {2, 1};
    memcpy(x, logits, sizeof(x));
    p.bias = &bias;
    p.n_bias = 1;
    p.repeat_penalty = 1.5f;
    sample_many(&p, x, (const int32_t[]){1, -1}, counts);
    assert_memory_equal(x, logits, sizeof(x));
}

static void every_failed_allocation_is_an_error(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.presence_penalty = 1;
    for (unsigned long k = 1;; k++) {
        struct sampler *s = NULL;
        struct sampling_scratch *scratch = NULL;
        struct error err = {0};
        mem_fail_at(k);
        int rc = sampler_open(&p, 0, N, NULL, 0, &s, &err);
        if (rc == 0)
            rc = sampling_scratch_open(N, &scratch, &err);
        bool failed = mem_count_allocations() >= k;
        mem_fail_at(0);
        assert_int_equal(rc, failed ? -ERROR_MEMORY : 0);
        sampler_close(s);
        sampling_scratch_close(scratch);
        if (!failed) {
            assert_int_equal(k, 8);
            return;
        }
    }
}

static void sampling_allocates_nothing(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    p.repeat_penalty = 1.1f;
    p.top_k = 3;
    p.top_p = 0.9f;
    struct sampler *s = open_sampler(&p, 0, N, NULL, 0);
    struct sampling_scratch *scratch = open_scratch(N);
    mem_fail_at(0);
    for (int i = 0; i < 100; i++)
        sampler_accept(s, sampler_sample(s, logits, NULL, scratch));
    assert_int_equal(mem_count_allocations(), 0);
    sampling_scratch_close(scratch);
    sampler_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(frequencies_are_the_softmax),
        cmocka_unit_test(frequencies_are_the_softmax_in_large_vocabularies),
        cmocka_unit_test(temperature_sharpens_and_flattens),
        cmocka_unit_test(temperature_zero_takes_the_best_and_of_equals_the_lowest),
        cmocka_unit_test(tiny_temperature_is_nearly_greedy),
        cmocka_unit_test(top_k_keeps_the_k_best),
        cmocka_unit_test(top_k_takes_the_lowest_of_equals),
        cmocka_unit_test(top_p_keeps_the_smallest_set_that_reaches_it),
        cmocka_unit_test(min_p_is_a_share_of_the_best),
        cmocka_unit_test(filters_come_after_temperature_and_in_order),
        cmocka_unit_test(banned_tokens_do_not_come),
        cmocka_unit_test(bias_is_added_to_the_logit),
        cmocka_unit_test(repeat_penalty_divides_or_multiplies_once),
        cmocka_unit_test(frequency_penalty_counts_the_output),
        cmocka_unit_test(presence_penalty_is_the_same_for_any_count),
        cmocka_unit_test(same_seed_gives_the_same_tokens),
        cmocka_unit_test(choices_of_a_request_differ),
        cmocka_unit_test(tokens_of_a_seed_stay_what_they_are),
        cmocka_unit_test(nan_is_never_chosen_and_infinity_always),
        cmocka_unit_test(no_possible_token_gives_one_that_is_not_banned),
        cmocka_unit_test(odd_parameters_do_no_harm),
        cmocka_unit_test(large_vocabularies_are_filtered_as_by_a_full_sort),
        cmocka_unit_test(of_a_large_vocabulary_greedy_and_min_p_see_all),
        cmocka_unit_test(logits_are_not_changed),
        cmocka_unit_test(every_failed_allocation_is_an_error),
        cmocka_unit_test(sampling_allocates_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
