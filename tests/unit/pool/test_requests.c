/* What one request may ask for, and what it is told when that cannot be. */
#include "tests/unit/pool/rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static struct engine *engine;
static int32_t prompt[40];

static int open_engine(void **state)
{
    int rc = rig_write_files(state);
    if (rc)
        return rc;
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    o.model_path = files->templated;
    o.pruned_path = files->other;
    engine = rig_open(&o);
    rig_prompt(1, 40, prompt);
    return 0;
}

static int close_engine(void **state)
{
    engine_close(engine);
    return rig_remove_files(state);
}

static struct rig_result *run_ok(struct engine_request request)
{
    struct rig_result *result = rig_run(engine, request);
    rig_expect_ok(result);
    return result;
}

static void choices_differ_and_the_first_is_that_of_one(void **state)
{
    struct engine_request r = rig_request(prompt, 37); /* choices share a page and copy one */
    r.n_logprobs = 1;
    r.ignore_eos = true;
    struct rig_result *one = run_ok(r);
    r.n = 6;
    struct rig_result *six = run_ok(r);

    rig_expect_same_choice(&one->choices[0], &six->choices[0]);
    for (int i = 0; i < 6; i++) {
        assert_int_equal(six->choices[i].n, 40);
        for (int j = 0; j < i; j++)
            assert_memory_not_equal(six->choices[i].tokens, six->choices[j].tokens,
                                    40 * sizeof(int32_t));
    }
    assert_int_equal(six->usage.prompt_tokens, 37);
    assert_int_equal(six->usage.completion_tokens, 240);
    free(one);
    free(six);
}

static void greedy_choices_are_equal(void **state)
{
    struct engine_request r = rig_request(prompt, 33);
    r.sampling.temperature = 0;
    r.ignore_eos = true;
    r.n = 4;
    struct rig_result *result = run_ok(r);
    for (int i = 1; i < 4; i++)
        rig_expect_same_choice(&result->choices[0], &result->choices[i]);
    free(result);
}

static void seed_decides_the_answer(void **state)
{
    struct engine_request r = rig_request(prompt, 10);
    r.ignore_eos = true;
    struct rig_result *a = run_ok(r), *again = run_ok(r);
    r.sampling.seed = 2;
    struct rig_result *b = run_ok(r);
    rig_expect_same_choice(&a->choices[0], &again->choices[0]);
    assert_memory_not_equal(a->choices[0].tokens, b->choices[0].tokens, 40 * sizeof(int32_t));
    free(a);
    free(again);
    free(b);
}

static void prompt_only_with_its_logprobs(void **state)
{
    struct engine_request r = rig_request(prompt, 40);
    r.max_tokens = 0;
    r.prompt_logprobs = true;
    r.n_prompt_logprobs = 2;
    struct rig_result *result = run_ok(r);
    assert_int_equal(result->n_prompt, 40);
    assert_true(isnan(result->prompt_logprobs[0]));
    for (int i = 1; i < 40; i++) {
        assert_true(result->prompt_logprobs[i] < 0);
        assert_true(result->prompt_top[i][0].logprob >= result->prompt_top[i][1].logprob);
        assert_true(result->prompt_top[i][0].logprob >= result->prompt_logprobs[i]);
        uint32_t rank = result->prompt_ranks[i];
        assert_true(rank >= 1);
        assert_int_equal(rank == 1, result->prompt_top[i][0].token == prompt[i]);
        assert_int_equal(rank == 2, result->prompt_top[i][1].token == prompt[i]);
    }
    assert_int_equal(result->choices[0].n, 0);
    assert_int_equal(result->choices[0].n_records, 1);
    assert_int_equal(result->choices[0].finish, FINISH_LENGTH);
    assert_int_equal(result->usage.completion_tokens, 0);
    free(result);
}

static void prompt_only_ends_every_choice_and_is_counted(void **state)
{
    struct engine_stats before, after;
    struct engine_request r = rig_request(prompt, 33);
    r.max_tokens = 0;
    r.n = 3;
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &before);
    struct rig_result *result = run_ok(r);
    for (int i = 0; i < 3; i++)
        assert_int_equal(result->choices[i].finish, FINISH_LENGTH);
    engine_get_stats(engine, &after);
    assert_int_equal(after.finished_length, before.finished_length + 3);
    assert_int_equal(after.generated_tokens, before.generated_tokens);
    free(result);
}

/* The engine's own answer as a prompt: its tokens get the log-probabilities they were sampled with,
 * to the bit, though computed in a prompt's chunks and not one by one. Also past one step's rows of
 * logits (64). */
static void prompt_logprobs_are_those_of_generation(void **state)
{
    struct engine_request r = rig_request(prompt, 40);
    r.decode = DECODE_FULL;
    r.max_tokens = 150;
    r.ignore_eos = true;
    r.n_logprobs = RIG_MAX_TOP;
    struct rig_result *made = run_ok(r);
    int32_t all[190];
    memcpy(all, prompt, 40 * sizeof(int32_t));
    memcpy(all + 40, made->choices[0].tokens, 150 * sizeof(int32_t));

    r = rig_request(all, 190);
    r.max_tokens = 0;
    r.prompt_logprobs = true;
    r.n_prompt_logprobs = RIG_MAX_TOP;
    struct rig_result *scored = run_ok(r);
    assert_int_equal(scored->n_prompt, 190);
    for (int i = 0; i < 150; i++) {
        if (scored->prompt_logprobs[40 + i] != made->choices[0].logprobs[i])
            fail_msg("token %d: %.9g and %.9g", i, (double)scored->prompt_logprobs[40 + i],
                     (double)made->choices[0].logprobs[i]);
        assert_memory_equal(scored->prompt_top[40 + i], made->choices[0].top[i],
                            sizeof(made->choices[0].top[i]));
    }
    free(made);
    free(scored);
}

static void logprobs_are_asked_for_one_by_one(void **state)
{
    struct engine_request r = rig_request(prompt, 10);
    r.ignore_eos = true;
    struct rig_result *none = run_ok(r);
    r.n_logprobs = 0;
    struct rig_result *own = run_ok(r);
    r.n_logprobs = 3;
    struct rig_result *best = run_ok(r);
    for (int i = 0; i < 40; i++) {
        assert_true(isnan(none->choices[0].logprobs[i]));
        assert_int_equal(own->choices[0].n_top[i], 0);
        assert_int_equal(best->choices[0].n_top[i], 3);
        assert_true(own->choices[0].logprobs[i] == best->choices[0].logprobs[i]);
    }
    assert_int_equal(none->n_prompt, 0);
    free(none);
    free(own);
    free(best);
}

static void stop_string_ends_the_answer_before_it(void **state)
{
    struct engine_request r = rig_request(prompt, 10);
    r.ignore_eos = true;
    struct rig_result *whole = run_ok(r);
    const struct rig_choice *w = &whole->choices[0];
    assert_true(w->text_len > 20);
    struct stop_string stops[2] = {{"never seen", 10}, {w->text + 9, 5}};
    r.stops = stops;
    r.n_stops = 2;
    struct rig_result *stopped = run_ok(r);
    const struct rig_choice *s = &stopped->choices[0];
    const char *at = memmem(w->text, w->text_len, w->text + 9, 5);
    assert_int_equal(s->finish, FINISH_STOP);
    assert_int_equal(s->text_len, at - w->text);
    assert_memory_equal(s->text, w->text, s->text_len);
    assert_true(s->n < w->n);
    assert_memory_equal(s->tokens, w->tokens, s->n * sizeof(int32_t));
    free(whole);
    free(stopped);
}

/* The end token made certain by a bias. */
static void end_token_ends_unless_told_otherwise(void **state)
{
    const struct logit_bias bias = {RIG_END_TOKEN, 100};
    struct engine_request r = rig_request(prompt, 10);
    r.sampling.bias = &bias;
    r.sampling.n_bias = 1;
    struct rig_result *plain = run_ok(r);
    assert_int_equal(plain->choices[0].n, 1);
    assert_int_equal(plain->choices[0].tokens[0], RIG_END_TOKEN);
    assert_int_equal(plain->choices[0].finish, FINISH_STOP);
    assert_int_equal(plain->choices[0].text_len, 0);

    r.min_tokens = 7;
    struct rig_result *later = run_ok(r);
    assert_int_equal(later->choices[0].n, 8);
    for (int i = 0; i < 7; i++)
        assert_int_not_equal(later->choices[0].tokens[i], RIG_END_TOKEN);
    assert_int_equal(later->choices[0].finish, FINISH_STOP);

    r.min_tokens = 0;
    r.ignore_eos = true;
    struct rig_result *never = run_ok(r);
    assert_int_equal(never->choices[0].n, 40);
    for (int i = 0; i < 40; i++)
        assert_int_not_equal(never->choices[0].tokens[i], RIG_END_TOKEN);
    assert_int_equal(never->choices[0].finish, FINISH_LENGTH);
    free(plain);
    free(later);
    free(never);
}

static void request_is_copied_by_submit(void **state)
{
    int32_t *tokens = malloc(10 * sizeof(int32_t));
    char *stop = malloc(3);
    struct logit_bias *bias = malloc(sizeof(*bias));
    struct stop_string stops = {stop, 3};
    struct rig_result result;
    memcpy(tokens, prompt, 10 * sizeof(int32_t));
    memcpy(stop, "zzz", 3);
    *bias = (struct logit_bias){RIG_A, 1};
    struct engine_request r = rig_request(tokens, 10);
    r.stops = &stops;
    r.n_stops = 1;
    r.sampling.bias = bias;
    r.sampling.n_bias = 1;
    rig_submit(engine, r, &result);
    free(tokens);
    free(stop);
    free(bias);
    rig_collect_one(engine, &result);
    rig_expect_ok(&result);
}

static void messages_and_text_are_tokenised(void **state)
{
    const struct chat_message message = {.role = "user", .content = "abc", .content_len = 3};
    struct engine_request r = rig_request(NULL, 0);
    r.messages = &message;
    r.n_messages = 1;
    struct rig_result *chat = run_ok(r);
    assert_true(chat->n_prompt_ids >= 1);

    r = rig_request(NULL, 0);
    r.text = "abcab";
    r.text_len = 5;
    struct rig_result *text = run_ok(r);
    r = rig_request(text->prompt_ids, text->n_prompt_ids);
    struct rig_result *tokens = run_ok(r);
    assert_int_equal(text->n_prompt_ids, text->usage.prompt_tokens);
    rig_expect_same_choice(&text->choices[0], &tokens->choices[0]);
    free(chat);
    free(text);
    free(tokens);
}

static void expect_error(struct engine_request request, enum error_code code, const char *says)
{
    struct rig_result *result = rig_run(engine, request);
    if (result->error != code || !strstr(result->message, says))
        fail_msg("code %d, message \"%s\"", result->error, result->message);
    assert_false(result->accepted);
    assert_int_equal(result->choices[0].n_records, 0);
    free(result);
}

static void context_that_overflows_is_an_error_with_the_count(void **state)
{
    int32_t tokens[600];
    rig_prompt(2, 600, tokens);
    struct engine_request r = rig_request(tokens, 513);
    struct rig_result *result = rig_run(engine, r);
    assert_int_equal(result->error, ERROR_CONTEXT);
    assert_int_equal(result->n_prompt_tokens, 513);
    assert_non_null(strstr(result->message, "513"));
    assert_non_null(strstr(result->message, "512"));
    free(result);

    r.n_tokens = 512; /* full, and nothing left for an answer */
    expect_error(r, ERROR_CONTEXT, "512");
    r.max_tokens = 0; /* none asked */
    free(run_ok(r));
}

static void answer_ends_where_the_context_does(void **state)
{
    int32_t tokens[500];
    rig_prompt(2, 500, tokens);
    struct engine_request r = rig_request(tokens, 500);
    r.ignore_eos = true;
    r.max_tokens = 100;
    struct rig_result *cut = run_ok(r);
    assert_int_equal(cut->choices[0].n, 12);
    assert_int_equal(cut->choices[0].finish, FINISH_LENGTH);
    r.max_tokens = UINT32_MAX;
    struct rig_result *open = run_ok(r);
    rig_expect_same_choice(&cut->choices[0], &open->choices[0]);
    free(cut);
    free(open);

    r.max_tokens_must_fit = true;
    free(run_ok(r));
    r.max_tokens = 12;
    free(run_ok(r));
    r.max_tokens = 13;
    expect_error(r, ERROR_CONTEXT, "500 in the prompt, 13 in the completion");
    r.max_tokens = UINT32_MAX - 1;
    expect_error(r, ERROR_CONTEXT, "500 in the prompt");
}

static void bad_prompt_is_an_error(void **state)
{
    const int32_t high[] = {3, 12}, low[] = {3, 4, -1};
    const struct chat_message message = {.role = "wizard", .content = "", .content_len = 0};
    expect_error(rig_request(high, 2), ERROR_INVALID, "prompt[1]: token id 12");
    expect_error(rig_request(low, 3), ERROR_INVALID, "prompt[2]: token id -1");
    expect_error(rig_request(prompt, 0), ERROR_INVALID, "no tokens");
    struct engine_request r = rig_request(NULL, 0);
    r.messages = &message;
    r.n_messages = 1;
    expect_error(r, ERROR_INVALID, "wizard");
}

static void refused_at_once(struct engine_request request, const char *says)
{
    struct error err = {0};
    uint64_t id = 77;
    assert_int_equal(engine_submit(engine, &request, &id, &err), -ERROR_INVALID);
    assert_int_equal(id, 77);
    if (!strstr(err.message, says))
        fail_msg("message \"%s\"", err.message);
}

static void field_out_of_range_is_refused_by_submit(void **state)
{
    static const struct stop_string stops[ENGINE_MAX_STOPS + 1] = {{"x", 1}};
    const struct logit_bias bias = {12, 1};
    const struct engine_request good = rig_request(prompt, 10);
    struct engine_request r = good;
    r.n = 0;
    refused_at_once(r, "n: 0");
    r.n = 17; /* more than max_sequences */
    refused_at_once(r, "n: 17");
    r.n = ENGINE_MAX_CHOICES + 1;
    refused_at_once(r, "n: 129");
    r = good;
    r.n_logprobs = ENGINE_MAX_LOGPROBS + 1;
    refused_at_once(r, "logprobs");
    r = good;
    r.n_prompt_logprobs = ENGINE_MAX_LOGPROBS + 1;
    refused_at_once(r, "prompt_logprobs: 21");
    r = good;
    r.stops = stops;
    r.n_stops = ENGINE_MAX_STOPS + 1;
    refused_at_once(r, "stop");
    r = good;
    r.sampling.bias = &bias;
    r.sampling.n_bias = 1;
    refused_at_once(r, "logit_bias");
    r = good;
    r.text = "both";
    r.text_len = 4;
    refused_at_once(r, "exactly one");
    refused_at_once(rig_request(NULL, 0), "exactly one");
}

static void choices_that_do_not_fit_at_once_take_turns(void **state)
{
    struct engine_options o = rig_options(*state);
    struct engine *roomy = engine;
    struct engine_request r = rig_request(prompt, 20);
    r.n = 6;
    r.max_tokens = 44;
    r.ignore_eos = true;
    o.context = 64;
    engine = rig_open(&o);
    struct rig_result *at_once = run_ok(r);
    engine_close(engine);
    o.kv_bytes = 5 * 2 * 2 * 2 * 8 * 32 * sizeof(float); /* 5 pages, and each choice takes 2 */
    engine = rig_open(&o);
    struct rig_result *in_turns = run_ok(r);
    for (int i = 0; i < 6; i++)
        rig_expect_same_choice(&at_once->choices[i], &in_turns->choices[i]);
    assert_true(in_turns->usage.n_preemptions > 0);
    free(at_once);
    free(in_turns);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
    engine = roomy;
}

static void model_without_a_template_serves_text_only(void **state)
{
    const struct chat_message message = {.role = "user", .content = "a", .content_len = 1};
    struct engine_options o = rig_options(*state);
    struct engine *with_template = engine;
    struct chat_prompt rendered;
    struct error err = {0};
    engine = rig_open(&o);
    struct engine_request r = rig_request(NULL, 0);
    r.messages = &message;
    r.n_messages = 1;
    expect_error(r, ERROR_UNSUPPORTED, "--chat-template");
    assert_int_equal(engine_render(engine, &message, 1, &rendered, &err), -ERROR_UNSUPPORTED);
    free(run_ok(rig_request(prompt, 5)));
    engine_close(engine);
    engine = with_template;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(choices_differ_and_the_first_is_that_of_one),
        cmocka_unit_test(greedy_choices_are_equal),
        cmocka_unit_test(seed_decides_the_answer),
        cmocka_unit_test(prompt_only_with_its_logprobs),
        cmocka_unit_test(prompt_only_ends_every_choice_and_is_counted),
        cmocka_unit_test(prompt_logprobs_are_those_of_generation),
        cmocka_unit_test(logprobs_are_asked_for_one_by_one),
        cmocka_unit_test(stop_string_ends_the_answer_before_it),
        cmocka_unit_test(end_token_ends_unless_told_otherwise),
        cmocka_unit_test(request_is_copied_by_submit),
        cmocka_unit_test(messages_and_text_are_tokenised),
        cmocka_unit_test(context_that_overflows_is_an_error_with_the_count),
        cmocka_unit_test(answer_ends_where_the_context_does),
        cmocka_unit_test(bad_prompt_is_an_error),
        cmocka_unit_test(field_out_of_range_is_refused_by_submit),
        cmocka_unit_test(choices_that_do_not_fit_at_once_take_turns),
        cmocka_unit_test(model_without_a_template_serves_text_only),
    };
    return cmocka_run_group_tests(tests, open_engine, close_engine);
}
