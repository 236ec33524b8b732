/* Log-probabilities against a plain computation, and the portable exponential against the C
 * library's. */
#include "engine/sampling/sampling_internal.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>

#define N_VOCAB 5000

static uint64_t random_state = 3;

static uint32_t next_random(void)
{
    random_state = random_state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)(random_state >> 32);
}

static float *random_logits(size_t n, float spread)
{
    float *logits = malloc(n * sizeof(*logits));
    assert_non_null(logits);
    for (size_t i = 0; i < n; i++) /* on a grid, so that equal ones occur */
        logits[i] = (float)(next_random() % 1000) / 1000 * spread - spread / 2;
    return logits;
}

static double plain_log_softmax(const float *logits, size_t n, size_t token)
{
    long double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += expl((long double)logits[i] - (long double)logits[token]);
    return (double)-logl(sum);
}

static void weights_are_exponentials_to_the_last_digits_of_a_float(void **state)
{
    for (double x = 0; x > -80; x -= 0.00731) {
        float logit = (float)x, weight;
        sampling_weigh(&logit, 1, 0, 1, &weight);
        assert_true(fabs(weight / exp(logit) - 1) < 1.2e-7); /* a unit of a float */
        sampling_weigh(&logit, 1, 0, 0.125, &weight);
        assert_true(fabs(weight / exp(logit / 8) - 1) < 1.2e-7);
    }
}

static void weights_at_the_edges(void **state)
{
    const float logits[] = {2, -INFINITY, NAN, -1e30f, 2, 1};
    const float with_infinity[] = {INFINITY, 2, NAN};
    float w[6];
    assert_true(fabs(sampling_weigh(logits, 6, 2, 1, w) - (2 + exp(-1))) < 1e-7);
    assert_true(w[0] == 1 && w[1] == 0 && w[2] == 0 && w[3] == 0 && w[4] == 1);
    assert_true(sampling_weigh(with_infinity, 3, INFINITY, 1, w) == 1);
    assert_true(w[0] == 1 && w[1] == 0 && w[2] == 0);
}

static void logprob_is_the_log_of_the_softmax(void **state)
{
    float *logits = random_logits(N_VOCAB, 30);
    for (int round = 0; round < 50; round++) {
        int32_t token = (int32_t)(next_random() % N_VOCAB);
        float logprob = 1;
        size_t n = sampling_logprobs(logits, N_VOCAB, token, 0, &logprob, NULL);
        assert_int_equal(n, 0);
        double expected = plain_log_softmax(logits, N_VOCAB, (size_t)token);
        assert_true(fabs(logprob - expected) < 1e-5);
    }
    free(logits);
}

static int compare(const void *a, const void *b)
{
    const struct token_logprob *x = a, *y = b;
    if (x->logprob != y->logprob)
        return x->logprob < y->logprob ? 1 : -1;
    return (x->token > y->token) - (x->token < y->token);
}

static void top_is_that_of_a_full_sort(void **state)
{
    static struct token_logprob all[N_VOCAB], top[32];
    float *logits = random_logits(N_VOCAB, 10), own;

    for (size_t i = 0; i < N_VOCAB; i++)
        all[i] = (struct token_logprob){(int32_t)i, logits[i]};
    qsort(all, N_VOCAB, sizeof(all[0]), compare);
    for (uint32_t i = 0, rank = 1; i < 32; i++) {
        rank = i > 0 && all[i].logprob == all[i - 1].logprob ? rank : i + 1;
        assert_int_equal(sampling_rank(logits, N_VOCAB, all[i].token), rank);
    }
    for (size_t k = 1; k <= 32; k++) {
        assert_int_equal(sampling_logprobs(logits, N_VOCAB, 0, k, &own, top), k);
        for (size_t i = 0; i < k; i++) {
            double expected = plain_log_softmax(logits, N_VOCAB, (size_t)all[i].token);
            assert_int_equal(top[i].token, all[i].token);
            assert_true(fabs(top[i].logprob - expected) < 1e-5);
        }
    }
    free(logits);
}

static void small_vocabularies_give_what_they_have(void **state)
{
    const float logits[] = {1, 2, 1};
    struct token_logprob top[32];
    float own;
    assert_int_equal(sampling_logprobs(logits, 3, 1, 20, &own, top), 3);
    assert_int_equal(top[0].token, 1);
    assert_int_equal(top[1].token, 0);
    assert_int_equal(top[2].token, 2);
    assert_true(own == top[0].logprob);
    assert_true(fabs(exp(top[0].logprob) + 2 * exp(top[1].logprob) - 1) < 1e-6);
}

static void infinities_and_nan_are_survived(void **state)
{
    const float with_nan[] = {NAN, 0, -INFINITY};
    const float with_infinity[] = {0, INFINITY, 5};
    const float nothing[] = {NAN, -INFINITY};
    struct token_logprob top[3];
    float own;

    sampling_logprobs(with_nan, 3, 1, 3, &own, top);
    assert_true(own == 0);
    assert_int_equal(top[0].token, 1);
    assert_true(top[1].logprob == -INFINITY && top[2].logprob == -INFINITY);
    sampling_logprobs(with_nan, 3, 0, 0, &own, NULL);
    assert_true(own == -INFINITY);
    assert_int_equal(sampling_rank(with_nan, 3, 0), 2);
    sampling_logprobs(with_infinity, 3, 1, 2, &own, top);
    assert_true(own == 0);
    assert_int_equal(top[0].token, 1);
    assert_true(top[1].logprob == -INFINITY);
    sampling_logprobs(nothing, 2, 0, 2, &own, top);
    assert_true(own == -INFINITY);
    sampling_logprobs(nothing, 2, 7, 0, &own, NULL); /* not a token */
    assert_true(own == -INFINITY);
}

static void logits_of_any_size_do_not_overflow(void **state)
{
    const float logits[] = {3e38f, 3e38f, -3e38f};
    float own;
    sampling_logprobs(logits, 3, 0, 0, &own, NULL);
    assert_true(fabs(own - log(0.5)) < 1e-6);
    sampling_logprobs(logits, 3, 2, 0, &own, NULL);
    assert_false(isnan(own));
    assert_true(own < -1e37f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(weights_are_exponentials_to_the_last_digits_of_a_float),
        cmocka_unit_test(weights_at_the_edges),
        cmocka_unit_test(logprob_is_the_log_of_the_softmax),
        cmocka_unit_test(top_is_that_of_a_full_sort),
        cmocka_unit_test(small_vocabularies_give_what_they_have),
        cmocka_unit_test(infinities_and_nan_are_survived),
        cmocka_unit_test(logits_of_any_size_do_not_overflow),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
