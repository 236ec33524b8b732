/* Scoring: choices whose tokens are given get what serving would have said about them. */
#include "tests/unit/pool/rig.h"

#include <math.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

#define N_ANSWER 150 /* more than a step's rows */

static int32_t prompt[45];

static struct engine *open_pair(const struct rig_files *files, enum weight_type weights,
                                enum kv_type kv_type)
{
    struct engine_options o = rig_options(files);
    o.pruned_path = files->other;
    o.weights = weights;
    o.kv_type = kv_type;
    rig_prompt(1, 45, prompt);
    return rig_open(&o);
}

static struct engine_request scoring(const struct engine_given *given, uint32_t n)
{
    struct engine_request r = rig_request(prompt, 45);
    r.n = n;
    r.given = given;
    r.n_logprobs = RIG_MAX_TOP;
    return r;
}

static struct rig_result *run_ok(struct engine *engine, struct engine_request request)
{
    struct rig_result *result = rig_run(engine, request);
    rig_expect_ok(result);
    return result;
}

static struct rig_result *generate(struct engine *engine, enum decode_mode decode)
{
    struct engine_request r = rig_request(prompt, 45);
    r.decode = decode;
    r.sampling.temperature = 0;
    r.max_tokens = N_ANSWER;
    r.ignore_eos = true;
    r.n_logprobs = RIG_MAX_TOP;
    return run_ok(engine, r);
}

static void check_generation(struct engine *engine, enum decode_mode decode)
{
    struct rig_result *made = generate(engine, decode);
    assert_int_equal(made->choices[0].n, N_ANSWER);
    const struct engine_given given = {made->choices[0].tokens, N_ANSWER};
    struct engine_request r = scoring(&given, 1);
    r.decode = decode;
    struct rig_result *scored = run_ok(engine, r);
    rig_expect_same_choice(&made->choices[0], &scored->choices[0]);
    assert_int_equal(scored->usage.completion_tokens, N_ANSWER);
    free(made);
    free(scored);
}

static void given_tokens_score_as_when_they_were_generated(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_F32, KV_F32);
    check_generation(engine, DECODE_PRUNED);
    check_generation(engine, DECODE_FULL);
    engine_close(engine);
    engine = open_pair(*state, WEIGHT_AUTO, KV_F16);
    check_generation(engine, DECODE_PRUNED);
    check_generation(engine, DECODE_FULL);
    engine_close(engine);
}

static void given_tokens_are_computed_in_few_steps(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_F32, KV_F32);
    struct engine_stats before, after;
    int32_t tokens[N_ANSWER];
    const struct engine_given given = {tokens, N_ANSWER};
    rig_prompt(9, N_ANSWER, tokens);
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &before);
    free(run_ok(engine, scoring(&given, 1)));
    engine_get_stats(engine, &after);
    assert_true(after.decode_steps - before.decode_steps < N_ANSWER / 20);
    assert_int_equal(after.generated_tokens - before.generated_tokens, N_ANSWER);
    assert_int_equal(after.weight_bytes_decode_full, before.weight_bytes_decode_full);
    engine_close(engine);
}

static void choices_score_as_if_each_were_alone(void **state)
{
    static const uint32_t LENGTHS[] = {1, 70, 2, 140, 33};
    struct engine *engine = open_pair(*state, WEIGHT_AUTO, KV_F16);
    int32_t tokens[5][N_ANSWER];
    struct engine_given given[5];
    for (uint32_t i = 0; i < 5; i++) {
        rig_prompt(i + 20, N_ANSWER, tokens[i]);
        given[i] = (struct engine_given){tokens[i], LENGTHS[i]};
    }
    struct rig_result *all = run_ok(engine, scoring(given, 5));
    for (uint32_t i = 0; i < 5; i++) {
        struct rig_result *one = run_ok(engine, scoring(&given[i], 1));
        assert_int_equal(all->choices[i].n, LENGTHS[i]);
        rig_expect_same_choice(&one->choices[0], &all->choices[i]);
        free(one);
    }
    free(all);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
}

/* Scored and sampled sequences in the same steps, in both modes. */
static void company_changes_nothing(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_AUTO, KV_F16);
    struct rig_result *alone[2], *together = calloc(12, sizeof(*together));
    struct rig_result *pointers[12];
    struct engine_request requests[2];
    int32_t tokens[N_ANSWER];
    const struct engine_given given = {tokens, N_ANSWER};
    rig_prompt(5, N_ANSWER, tokens);
    requests[0] = scoring(&given, 1);
    requests[1] = rig_request(prompt, 45);
    requests[1].max_tokens = N_ANSWER;
    requests[1].ignore_eos = true;
    requests[1].n_logprobs = 1;
    for (int i = 0; i < 2; i++)
        alone[i] = run_ok(engine, requests[i]);
    for (int i = 0; i < 12; i++) {
        struct engine_request r = requests[i % 2];
        if (i % 3 == 2)
            r.decode = DECODE_FULL; /* in between, with other results */
        pointers[i] = &together[i];
        rig_submit(engine, r, &together[i]);
    }
    rig_collect(engine, pointers, 12);
    for (int i = 0; i < 12; i++) {
        rig_expect_ok(&together[i]);
        if (i % 3 != 2)
            rig_expect_same_choice(&alone[i % 2]->choices[0], &together[i].choices[0]);
    }
    free(alone[0]);
    free(alone[1]);
    free(together);
    engine_close(engine);
}

#define N_SEEN 80

struct seen {
    atomic_uint n[2][N_SEEN];
    float logits[2][N_SEEN][TINY_TOKENS];
};
static struct seen seen;

static void see(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                uint32_t n_vocab)
{
    if (!user || choice >= 2 || i_token >= N_SEEN || n_vocab != TINY_TOKENS)
        abort();
    atomic_fetch_add(&seen.n[choice][i_token], 1);
    memcpy(seen.logits[choice][i_token], logits, n_vocab * sizeof(float));
}

static void check_seen(const struct rig_result *result, uint32_t n_choices, uint32_t n_tokens)
{
    for (uint32_t c = 0; c < n_choices; c++) {
        const struct rig_choice *choice = &result->choices[c];
        assert_int_equal(choice->n, n_tokens);
        for (uint32_t t = 0; t < n_tokens; t++) {
            const float *logits = seen.logits[c][t];
            double total = 0;
            assert_int_equal(seen.n[c][t], 1);
            for (int v = 0; v < TINY_TOKENS; v++)
                total += exp((double)logits[v]);
            double expected = (double)logits[choice->tokens[t]] - log(total);
            assert_true(fabs(expected - (double)choice->logprobs[t]) < 1e-4);
        }
    }
    memset(&seen, 0, sizeof(seen));
}

static void logits_of_every_token_are_shown_once(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_F32, KV_F32);
    int32_t tokens[2][N_SEEN];
    struct engine_given given[2] = {{tokens[0], N_SEEN}, {tokens[1], N_SEEN}};
    rig_prompt(5, N_SEEN, tokens[0]);
    rig_prompt(6, N_SEEN, tokens[1]);
    struct engine_request r = scoring(given, 2);
    r.on_logits = see;
    struct rig_result *scored = run_ok(engine, r);
    check_seen(scored, 2, N_SEEN);

    r.given = NULL; /* sampled tokens are shown too */
    r.max_tokens = 30;
    r.ignore_eos = true;
    struct rig_result *sampled = run_ok(engine, r);
    check_seen(sampled, 2, 30);
    free(scored);
    free(sampled);
    engine_close(engine);
}

static void end_token_and_limits_have_no_say(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_F32, KV_F32);
    const int32_t tokens[] = {RIG_A, RIG_END_TOKEN, RIG_A, RIG_END_TOKEN};
    const struct engine_given given = {tokens, 4};
    struct engine_request r = scoring(&given, 1);
    r.max_tokens = 1;
    struct rig_result *result = run_ok(engine, r);
    assert_int_equal(result->choices[0].n, 4);
    assert_memory_equal(result->choices[0].tokens, tokens, sizeof(tokens));
    assert_int_equal(result->choices[0].finish, FINISH_LENGTH);
    free(result);
    engine_close(engine);
}

static void expect_refused(struct engine *engine, struct engine_request r, enum error_code code,
                           const char *says)
{
    struct error err = {0};
    uint64_t id;
    assert_int_equal(engine_submit(engine, &r, &id, &err), -(int)code);
    if (!strstr(err.message, says))
        fail_msg("message \"%s\"", err.message);
}

static void expect_error(struct engine *engine, struct engine_request r, enum error_code code,
                         const char *says)
{
    struct rig_result *result = rig_run(engine, r);
    assert_int_equal(result->error, code);
    if (!strstr(result->message, says))
        fail_msg("message \"%s\"", result->message);
    free(result);
}

static void what_cannot_be_scored_is_refused(void **state)
{
    struct engine *engine = open_pair(*state, WEIGHT_F32, KV_F32);
    static int32_t many[600];
    const int32_t bad[] = {RIG_A, TINY_TOKENS};
    const struct stop_string stop = {"a", 1};
    struct engine_given given[2] = {{many, 5}, {many, 0}};
    rig_prompt(2, 600, many);
    expect_refused(engine, scoring(given, 2), ERROR_INVALID, "given[1]: expected at least one");
    given[1] = (struct engine_given){many, 600};
    expect_refused(engine, scoring(given, 2), ERROR_CONTEXT, "given[1]: 600 tokens");
    given[1] = (struct engine_given){many, 468};
    expect_error(engine, scoring(given, 2), ERROR_CONTEXT, "45 in the prompt, 468");
    given[1] = (struct engine_given){bad, 2};
    expect_error(engine, scoring(given, 2), ERROR_INVALID, "given[1][1]: token id 12");
    struct engine_request r = scoring(given, 1);
    r.stops = &stop;
    r.n_stops = 1;
    expect_refused(engine, r, ERROR_INVALID, "stop");

    given[0] = (struct engine_given){many, 467}; /* to the last place of the context */
    struct rig_result *fits = run_ok(engine, scoring(given, 1));
    assert_int_equal(fits->choices[0].n, 467);
    free(fits);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
}

static bool one_decodes(const struct engine_stats *stats)
{
    return stats->sequences_decoding == 1;
}

static void scoring_is_cancelled_between_steps(void **state)
{
    struct engine_options o = rig_options(*state);
    static struct rig_result result;
    int32_t *tokens = malloc(RIG_LONG * sizeof(int32_t));
    const struct engine_given given = {tokens, RIG_LONG};
    rig_prompt(3, RIG_LONG, tokens);
    o.context = RIG_LONG + 100;
    o.kv_bytes = (size_t)64 << 20;
    struct engine *engine = rig_open(&o);
    rig_prompt(1, 45, prompt);
    rig_submit(engine, scoring(&given, 1), &result);
    rig_wait_until(engine, one_decodes);
    engine_cancel(engine, result.id);
    rig_collect_one(engine, &result);
    assert_int_equal(result.error, ERROR_CANCELLED);
    assert_true(result.choices[0].n < RIG_LONG);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
    free(tokens);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(given_tokens_score_as_when_they_were_generated),
        cmocka_unit_test(given_tokens_are_computed_in_few_steps),
        cmocka_unit_test(choices_score_as_if_each_were_alone),
        cmocka_unit_test(company_changes_nothing),
        cmocka_unit_test(logits_of_every_token_are_shown_once),
        cmocka_unit_test(end_token_and_limits_have_no_say),
        cmocka_unit_test(what_cannot_be_scored_is_refused),
        cmocka_unit_test(scoring_is_cancelled_between_steps),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
