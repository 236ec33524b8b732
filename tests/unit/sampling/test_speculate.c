/* Drafts from one model's logits, verified by another's: what comes out is distributed as the
 * latter's. Seeds are fixed: nothing here depends on luck. */
#include "engine/sampling/sampler.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N 8
#define DRAWS 20000

static const float full[N] = {1.0f, 3.0f, 0.5f, 2.0f, -1.0f, 2.5f, 0.0f, 1.5f};
static const float twin[N] = {2.0f, 1.0f, 0.7f, 2.6f, -1.5f, 2.0f, 1.0f, -0.5f};

struct rig {
    struct sampler *sampler;
    struct sampling_scratch *scratch;
};

static struct rig open_rig(const struct sampling_params *params, uint32_t n_vocab)
{
    struct rig rig;
    assert_int_equal(sampler_open(params, 0, n_vocab, NULL, 0, &rig.sampler, NULL), 0);
    assert_int_equal(sampling_scratch_open(n_vocab, &rig.scratch, NULL), 0);
    return rig;
}

static void close_rig(struct rig *rig)
{
    sampler_close(rig->sampler);
    sampling_scratch_close(rig->scratch);
}

/* How often each token comes; returns how many drafts were accepted. */
static int verify_many(const struct sampling_params *params, const int32_t *banned, int counts[N])
{
    struct rig rig = open_rig(params, N);
    struct sampling_draft draft;
    int n_accepted = 0;
    memset(counts, 0, N * sizeof(int));
    for (int i = 0; i < DRAWS; i++) {
        sampler_draft(rig.sampler, twin, banned, rig.scratch, &draft);
        int32_t token = sampler_verify(rig.sampler, full, banned, &draft, rig.scratch);
        assert_in_range(token, 0, N - 1);
        counts[token]++;
        n_accepted += token == draft.token;
    }
    close_rig(&rig);
    return n_accepted;
}

/* Pearson's statistic of two samples of the same size: verified tokens and drawn ones. 7 degrees of
 * freedom at most: 29.9 is exceeded once in 10^4. */
static void check_as_drawn(const struct sampling_params *params, const int32_t *banned)
{
    int verified[N], drawn[N] = {0};
    double statistic = 0;
    verify_many(params, banned, verified);
    struct rig rig = open_rig(params, N);
    for (int i = 0; i < DRAWS; i++)
        drawn[sampler_sample(rig.sampler, full, banned, rig.scratch)]++;
    close_rig(&rig);
    for (int i = 0; i < N; i++) {
        double d = verified[i] - drawn[i];
        assert_true(drawn[i] || !verified[i]);
        if (drawn[i])
            statistic += d * d / (verified[i] + drawn[i]);
    }
    if (statistic > 29.9)
        fail_msg("chi-square is %.1f", statistic);
}

static void verified_tokens_are_distributed_as_the_full_models(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    double expected[N], sum = 0, statistic = 0;
    int counts[N];
    verify_many(&p, NULL, counts);
    for (int i = 0; i < N; i++)
        sum += expected[i] = exp(full[i]);
    for (int i = 0; i < N; i++) {
        double e = DRAWS * expected[i] / sum;
        statistic += (counts[i] - e) * (counts[i] - e) / e;
    }
    if (statistic > 29.9)
        fail_msg("chi-square is %.1f", statistic);
}

static void filters_and_temperature_hold_for_verified_tokens(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    const int32_t banned[] = {1, -1};
    p.temperature = 0.7f;
    check_as_drawn(&p, NULL);
    check_as_drawn(&p, banned);
    p.top_k = 4;
    check_as_drawn(&p, NULL);
    p.top_k = 0;
    p.top_p = 0.8f;
    check_as_drawn(&p, NULL);
    p.min_p = 0.2f;
    check_as_drawn(&p, banned);
}

/* The best any draft can do is the overlap of the two distributions. */
static void as_many_drafts_are_accepted_as_can_be(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    int counts[N];
    double sum_full = 0, sum_twin = 0, overlap = 0;
    for (int i = 0; i < N; i++) {
        sum_full += exp(full[i]);
        sum_twin += exp(twin[i]);
    }
    for (int i = 0; i < N; i++)
        overlap += fmin(exp(full[i]) / sum_full, exp(twin[i]) / sum_twin);
    double share = (double)verify_many(&p, NULL, counts) / DRAWS;
    assert_true(fabs(share - overlap) < 0.02);
}

static void greedy_verification_is_the_full_models_choice(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    struct sampling_draft draft;
    p.temperature = 0;
    struct rig rig = open_rig(&p, N);
    sampler_draft(rig.sampler, twin, NULL, rig.scratch, &draft);
    assert_int_equal(draft.token, 3);
    assert_int_equal(sampler_verify(rig.sampler, full, NULL, &draft, rig.scratch), 1);
    sampler_draft(rig.sampler, full, NULL, rig.scratch, &draft);
    assert_int_equal(draft.token, 1);
    assert_int_equal(sampler_verify(rig.sampler, full, NULL, &draft, rig.scratch), 1);
    close_rig(&rig);
}

static void drafts_take_no_random_numbers_from_the_answer(void **state)
{
    struct sampling_params p = SAMPLING_DEFAULTS;
    struct sampling_draft draft;
    struct rig a = open_rig(&p, N), b = open_rig(&p, N);
    for (int i = 0; i < 100; i++) {
        sampler_draft(a.sampler, twin, NULL, a.scratch, &draft);
        assert_int_equal(sampler_sample(a.sampler, full, NULL, a.scratch),
                         sampler_sample(b.sampler, full, NULL, b.scratch));
    }
    close_rig(&a);
    close_rig(&b);
}

/* More tokens than a draft considers: those that it never drafts still come. */
static void tokens_outside_the_draft_still_come(void **state)
{
    enum { N_FLAT = 1000 };
    struct sampling_params p = SAMPLING_DEFAULTS;
    struct sampling_draft draft;
    float flat[N_FLAT] = {0};
    int n_late = 0;
    struct rig rig = open_rig(&p, N_FLAT);
    for (int i = 0; i < DRAWS; i++) {
        sampler_draft(rig.sampler, flat, NULL, rig.scratch, &draft);
        assert_int_equal(draft.n, SAMPLING_MOST_DRAFT);
        n_late += sampler_verify(rig.sampler, flat, NULL, &draft, rig.scratch) >= N_FLAT / 2;
    }
    assert_true(abs(n_late - DRAWS / 2) < 300); /* 4 standard deviations */
    close_rig(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verified_tokens_are_distributed_as_the_full_models),
        cmocka_unit_test(filters_and_temperature_hold_for_verified_tokens),
        cmocka_unit_test(as_many_drafts_are_accepted_as_can_be),
        cmocka_unit_test(greedy_verification_is_the_full_models_choice),
        cmocka_unit_test(drafts_take_no_random_numbers_from_the_answer),
        cmocka_unit_test(tokens_outside_the_draft_still_come),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
