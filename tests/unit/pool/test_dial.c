/* The quality dial: refresh writes the full model's keys and values over the twin's, verify gives
 * the full model's own answer. */
#include "tests/unit/forward/reference.h"
#include "tests/unit/pool/rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_PROMPT 45
#define N_ANSWER 60

static int32_t prompt[N_PROMPT];

static struct engine *open_pair(const struct rig_files *files, const char *twin)
{
    struct engine_options o = rig_options(files);
    o.pruned_path = twin;
    rig_prompt(3, N_PROMPT, prompt);
    return rig_open(&o);
}

static struct engine_request answer_of(enum decode_mode decode, uint32_t every)
{
    struct engine_request r = rig_request(prompt, N_PROMPT);
    r.decode = decode;
    r.decode_every = every;
    r.max_tokens = N_ANSWER;
    r.ignore_eos = true;
    r.n_logprobs = 2;
    r.sampling.temperature = 0;
    return r;
}

static struct rig_result *run_ok(struct engine *engine, struct engine_request request)
{
    struct rig_result *result = rig_run(engine, request);
    rig_expect_ok(result);
    return result;
}

static void verified_greedy_answer_is_the_full_models(void **state)
{
    static const uint32_t every[] = {1, 2, 3, 4, 7, 16, 100};
    const struct rig_files *files = *state;
    struct engine *engine = open_pair(files, files->other);
    struct rig_result *full = run_ok(engine, answer_of(DECODE_FULL, 0));
    assert_int_equal(full->usage.drafted_tokens, 0);
    for (size_t i = 0; i < sizeof(every) / sizeof(every[0]); i++) {
        struct rig_result *r = run_ok(engine, answer_of(DECODE_VERIFY, every[i]));
        rig_expect_same_choice(&full->choices[0], &r->choices[0]);
        assert_int_equal(r->usage.decode, DECODE_VERIFY);
        assert_int_equal(r->usage.decode_every, every[i]);
        assert_true(r->usage.accepted_tokens <= r->usage.drafted_tokens);
        assert_true(r->usage.drafted_tokens > 0);
        free(r);
    }
    free(full);
    engine_close(engine);
}

/* Penalties look back at what was accepted, stops and ends cut a run of drafts short. */
static void verified_answer_obeys_what_was_asked(void **state)
{
    const struct rig_files *files = *state;
    struct engine *engine = open_pair(files, files->other);
    for (uint32_t kind = 0; kind < 5; kind++) {
        struct engine_request r = answer_of(DECODE_FULL, 5);
        const struct stop_string stop = {"a", 1};
        r.sampling.repeat_penalty = kind == 0 ? 1.3f : 1;
        r.sampling.frequency_penalty = kind == 1 ? 0.6f : 0;
        r.stops = &stop;
        r.n_stops = kind == 2;
        r.ignore_eos = kind != 3;
        r.max_tokens = kind == 4 ? 1 : N_ANSWER;
        struct rig_result *full = run_ok(engine, r);
        r.decode = DECODE_VERIFY;
        struct rig_result *verified = run_ok(engine, r);
        rig_expect_same_choice(&full->choices[0], &verified->choices[0]);
        free(full);
        free(verified);
    }
    engine_close(engine);
}

static void identity_twins_drafts_are_all_accepted(void **state)
{
    const struct rig_files *files = *state;
    struct engine *engine = open_pair(files, files->full);
    struct rig_result *r = run_ok(engine, answer_of(DECODE_VERIFY, 4));
    assert_int_equal(r->usage.accepted_tokens, r->usage.drafted_tokens);
    assert_int_equal(r->usage.drafted_tokens, (N_ANSWER - 1) / 5 * 4 + (N_ANSWER - 1) % 5 - 1);
    free(r);
    struct engine_request sampled = answer_of(DECODE_VERIFY, 4);
    sampled.sampling.temperature = 1;
    r = run_ok(engine, sampled);
    assert_int_equal(r->usage.accepted_tokens, r->usage.drafted_tokens);
    free(r);
    engine_close(engine);
}

#define N_SEEDS 500 /* times RIG_MAX_CHOICES answers */

/* counts[first][second][third] of many sampled answers of three tokens */
static void sample_answers(struct engine *engine, enum decode_mode decode, int counts[8][8][8])
{
    for (uint64_t seed = 0; seed < N_SEEDS; seed++) {
        struct engine_request r = answer_of(decode, 2);
        r.n = RIG_MAX_CHOICES;
        r.n_tokens = 3;
        r.max_tokens = 3;
        r.n_logprobs = -1;
        r.sampling.temperature = 1;
        r.sampling.seed = seed;
        struct rig_result *result = run_ok(engine, r);
        for (size_t c = 0; c < RIG_MAX_CHOICES; c++) {
            const int32_t *t = result->choices[c].tokens;
            counts[t[0] % 8][t[1] % 8][t[2] % 8]++;
        }
        free(result);
    }
}

/* Two samples of the same size, by Pearson's statistic over the cells that are not rare. */
static void verified_sampled_answers_are_distributed_as_the_full_models(void **state)
{
    static int full[8][8][8], verified[8][8][8];
    const struct rig_files *files = *state;
    struct engine *engine = open_pair(files, files->other);
    double statistic = 0;
    size_t n_cells = 0;
    sample_answers(engine, DECODE_FULL, full);
    sample_answers(engine, DECODE_VERIFY, verified);
    for (size_t i = 0; i < 512; i++) {
        double a = (&full[0][0][0])[i], b = (&verified[0][0][0])[i];
        if (a + b < 20)
            continue;
        statistic += (a - b) * (a - b) / (a + b);
        n_cells++;
    }
    /* exceeded about once in 10^4: mean n, standard deviation sqrt(2 n) */
    double most = (double)n_cells + 4 * sqrt(2 * (double)n_cells) + 5;
    assert_true(n_cells > 20);
    if (statistic > most)
        fail_msg("chi-square is %.1f of %zu cells", statistic, n_cells);
    engine_close(engine);
}

static double log_softmax(const double *logits, int32_t token)
{
    double total = 0;
    for (size_t i = 0; i < TINY_TOKENS; i++)
        total += exp(logits[i]);
    return logits[token] - log(total);
}

struct pair {
    struct model_file *file[2];
    struct reference *ref[2]; /* the full model, its twin */
};

static struct pair open_references(const struct rig_files *files)
{
    struct pair pair;
    struct error err;
    for (int i = 0; i < 2; i++) {
        assert_int_equal(model_file_open(i ? files->other : files->full, &pair.file[i], &err), 0);
        pair.ref[i] = reference_open(pair.file[i], REFERENCE_EXACT);
    }
    return pair;
}

/* Log-probabilities of a refreshed answer, token for token, from the reference: the twin goes on
 * after every `every` tokens on the full model's K and V of all but them. */
static void check_refreshed(const struct pair *pair, const struct rig_choice *c, uint32_t every)
{
    double logits[TINY_TOKENS], ignored[TINY_TOKENS];
    struct reference_kv kv = reference_kv_open(pair->ref[0], N_PROMPT + N_ANSWER, false);
    uint32_t n_exact = N_PROMPT;
    for (uint32_t t = 0; t < N_PROMPT; t++)
        reference_step(pair->ref[0], &kv, t, prompt[t], logits);
    for (uint32_t t = 0; t < N_ANSWER; t++) {
        double expected = log_softmax(logits, c->tokens[t]);
        if (!(fabs(c->logprobs[t] - expected) < 1e-3))
            fail_msg("every %u, token %u: %g, expected %g", every, t, (double)c->logprobs[t],
                     expected);
        reference_step(pair->ref[1], &kv, N_PROMPT + t, c->tokens[t], logits);
        if (N_PROMPT + t + 1 - n_exact == every)
            for (; n_exact <= N_PROMPT + t; n_exact++)
                reference_step(pair->ref[0], &kv, n_exact, c->tokens[n_exact - N_PROMPT], ignored);
    }
    reference_kv_close(&kv);
}

static void refreshed_answer_goes_on_from_the_full_models_keys_and_values(void **state)
{
    static const uint32_t every[] = {1, 5, 16, 200};
    const struct rig_files *files = *state;
    struct engine *engine = open_pair(files, files->other);
    struct pair pair = open_references(files);
    for (size_t i = 0; i < sizeof(every) / sizeof(every[0]); i++) {
        struct rig_result *r = run_ok(engine, answer_of(DECODE_REFRESH, every[i]));
        check_refreshed(&pair, &r->choices[0], every[i]);
        assert_int_equal(r->usage.refreshed_tokens, (N_ANSWER - 2) / every[i] * every[i]);

        const struct engine_given given = {r->choices[0].tokens, N_ANSWER}; /* scored, the same */
        struct engine_request scoring = answer_of(DECODE_REFRESH, every[i]);
        scoring.given = &given;
        struct rig_result *scored = run_ok(engine, scoring);
        rig_expect_same_choice(&r->choices[0], &scored->choices[0]);
        free(r);
        free(scored);
    }
    for (int i = 0; i < 2; i++) {
        reference_close(pair.ref[i]);
        model_file_close(pair.file[i]);
    }
    engine_close(engine);
}

static bool is_checked(const struct engine_stats *s)
{
    return s->shadow_answers == 2 && rig_is_idle(s);
}

/* Four answers of which every second is checked. */
static struct engine_stats check_answers(const struct rig_files *files, const char *twin,
                                         struct rig_result **ret_last)
{
    struct engine_options o = rig_options(files);
    struct engine_stats stats;
    o.pruned_path = twin;
    o.shadow_rate = 0.5;
    rig_prompt(3, N_PROMPT, prompt);
    struct engine *engine = rig_open(&o);
    free(run_ok(engine, answer_of(DECODE_FULL, 0))); /* nothing of the twin to check */
    for (int i = 0; i < 4; i++) {
        struct rig_result *r = run_ok(engine, answer_of(DECODE_PRUNED, 0));
        if (i < 3)
            free(r);
        else
            *ret_last = r;
    }
    rig_wait_until(engine, is_checked);
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.shadow_tokens, 2 * (N_ANSWER - 1));
    engine_close(engine);
    return stats;
}

static void shadow_check_finds_no_difference_to_an_identity_twin(void **state)
{
    const struct rig_files *files = *state;
    struct rig_result *last;
    struct engine_stats stats = check_answers(files, files->full, &last);
    assert_int_equal(stats.shadow_agreed, stats.shadow_tokens);
    assert_true(stats.shadow_kl == 0);
    free(last);
}

static size_t best_of(const double *logits)
{
    size_t best = 0;
    for (size_t i = 1; i < TINY_TOKENS; i++)
        if (logits[i] > logits[best])
            best = i;
    return best;
}

static void shadow_check_tells_the_distance_of_another_twin(void **state)
{
    const struct rig_files *files = *state;
    struct pair pair = open_references(files);
    struct rig_result *last;
    struct engine_stats stats = check_answers(files, files->other, &last);
    double full[TINY_TOKENS], twin[TINY_TOKENS], kl = 0;
    struct reference_kv kv[2];
    uint64_t n_agreed = 0;
    for (int i = 0; i < 2; i++) {
        kv[i] = reference_kv_open(pair.ref[0], N_PROMPT + N_ANSWER, false);
        for (uint32_t t = 0; t < N_PROMPT; t++)
            reference_step(pair.ref[0], &kv[i], t, prompt[t], full);
    }
    for (uint32_t t = 0; t + 1 < N_ANSWER; t++) {
        reference_step(pair.ref[0], &kv[0], N_PROMPT + t, last->choices[0].tokens[t], full);
        reference_step(pair.ref[1], &kv[1], N_PROMPT + t, last->choices[0].tokens[t], twin);
        n_agreed += best_of(full) == best_of(twin);
        for (int32_t i = 0; i < TINY_TOKENS; i++)
            kl += exp(log_softmax(full, i)) * (log_softmax(full, i) - log_softmax(twin, i));
    }
    assert_int_equal(stats.shadow_agreed, 2 * n_agreed);
    assert_true(kl > 0.1 && fabs(stats.shadow_kl - 2 * kl) < 1e-3 * kl);
    for (int i = 0; i < 2; i++) {
        reference_kv_close(&kv[i]);
        reference_close(pair.ref[i]);
        model_file_close(pair.file[i]);
    }
    free(last);
}

static void dial_that_was_not_asked_for_is_the_servers(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    o.pruned_path = files->other;
    o.decode = DECODE_VERIFY;
    o.decode_every = 3;
    struct engine *engine = rig_open(&o);
    rig_prompt(3, N_PROMPT, prompt);
    struct rig_result *r = run_ok(engine, answer_of(DECODE_DEFAULT, 0));
    assert_int_equal(r->usage.decode, DECODE_VERIFY);
    assert_int_equal(r->usage.decode_every, 3);
    free(r);
    r = run_ok(engine, answer_of(DECODE_REFRESH, 9));
    assert_int_equal(r->usage.decode_every, 9);
    free(r);
    r = run_ok(engine, answer_of(DECODE_PRUNED, 9));
    assert_int_equal(r->usage.decode_every, 0);
    free(r);
    engine_close(engine);
}

static void dial_needs_a_twin_and_a_sane_step(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    struct engine *engine = rig_open(&o);
    struct error err;
    uint64_t id;
    struct engine_request r = answer_of(DECODE_VERIFY, 4);
    assert_int_equal(engine_submit(engine, &r, &id, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "verify"));
    r = answer_of(DECODE_FULL, ENGINE_MAX_EVERY + 1);
    assert_int_equal(engine_submit(engine, &r, &id, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "every"));
    engine_close(engine);
    o.decode = DECODE_REFRESH;
    assert_int_equal(engine_open(&o, &engine, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "refresh"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(verified_greedy_answer_is_the_full_models),
        cmocka_unit_test(verified_answer_obeys_what_was_asked),
        cmocka_unit_test(identity_twins_drafts_are_all_accepted),
        cmocka_unit_test(verified_sampled_answers_are_distributed_as_the_full_models),
        cmocka_unit_test(refreshed_answer_goes_on_from_the_full_models_keys_and_values),
        cmocka_unit_test(shadow_check_finds_no_difference_to_an_identity_twin),
        cmocka_unit_test(shadow_check_tells_the_distance_of_another_twin),
        cmocka_unit_test(dial_that_was_not_asked_for_is_the_servers),
        cmocka_unit_test(dial_needs_a_twin_and_a_sane_step),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
