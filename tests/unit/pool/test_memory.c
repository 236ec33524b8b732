/* Every allocation fails once: opening an engine, and every stage of a request's life. The request
 * fails or comes through, the engine lives, and the next request gets its answer. */
#include "engine/base/mem.h"
#include "tests/unit/pool/rig.h"

#include <stdlib.h>
#include <string.h>

static int32_t prompt[40];

static struct engine_options options(const struct rig_files *files)
{
    struct engine_options o = rig_options(files);
    o.model_path = files->templated;
    o.pruned_path = files->other;
    rig_prompt(1, 40, prompt);
    return o;
}

static void engine_opens_or_says_that_memory_is_short(void **state)
{
    struct engine_options o = options(*state);
    unsigned long k = 0;
    for (bool opened = false; !opened;) {
        struct engine *engine = NULL;
        struct error err = {0};
        mem_fail_at(++k);
        int rc = engine_open(&o, &engine, &err);
        mem_fail_at(0);
        if (rc && (rc != -ERROR_MEMORY || !strstr(err.message, "out of memory")))
            fail_msg("allocation %lu: code %d, message \"%s\"", k, rc, err.message);
        assert_true((rc == 0) == (engine != NULL));
        opened = rc == 0;
        engine_close(engine);
    }
    assert_true(k > 100);
}

struct attempt {
    bool failed;     /* the request did */
    bool was_needed; /* allocation k was reached */
};

static struct attempt try(struct engine *engine, const struct engine_request *request,
                          unsigned long k)
{
    static struct rig_result result;
    struct error err = {0};
    struct engine_request r = *request;
    struct attempt attempt = {0};
    memset(&result, 0, sizeof(result));
    r.user = &result;
    mem_fail_at(k);
    int rc = engine_submit(engine, &r, &result.id, &err);
    if (rc == 0) {
        rig_collect_one(engine, &result);
        attempt.failed = result.error != ERROR_NONE;
        if (attempt.failed && result.error != ERROR_MEMORY)
            fail_msg("allocation %lu: code %d, message \"%s\"", k, result.error, result.message);
    } else {
        assert_int_equal(rc, -ERROR_MEMORY);
        attempt.failed = true;
    }
    attempt.was_needed = mem_count_allocations() >= k;
    mem_fail_at(0);
    return attempt;
}

/* How many allocations a request makes depends a little on how its outputs are polled, so the end
 * is where several numbers in a row were not reached. */
static unsigned check_sites(struct engine *engine, struct engine_request request)
{
    unsigned n_failed = 0;
    struct rig_result *expected = rig_run(engine, request);
    rig_expect_ok(expected);
    for (unsigned long k = 1, n_beyond = 0; n_beyond < 5; k++) {
        struct attempt attempt = try(engine, &request, k);
        n_failed += attempt.failed;
        n_beyond = attempt.was_needed ? 0 : n_beyond + 1;
        rig_wait_until(engine, rig_is_idle);

        struct rig_result *next = rig_run(engine, request);
        rig_expect_ok(next);
        for (uint32_t c = 0; c < request.n; c++)
            rig_expect_same_choice(&expected->choices[c], &next->choices[c]);
        free(next);
    }
    free(expected);
    rig_wait_until(engine, rig_is_idle);
    return n_failed;
}

static void tokens_with_everything(void **state)
{
    struct engine_options o = options(*state);
    struct engine *engine = rig_open(&o);
    const struct stop_string stop = {"no such text", 12};
    const struct logit_bias bias = {RIG_A, 0.5f};
    struct engine_request r = rig_request(prompt, 40);
    r.n = 3;
    r.max_tokens = 70;
    r.ignore_eos = true;
    r.n_logprobs = 2;
    r.prompt_logprobs = true;
    r.n_prompt_logprobs = 2;
    r.stops = &stop;
    r.n_stops = 1;
    r.sampling.bias = &bias;
    r.sampling.n_bias = 1;
    r.sampling.repeat_penalty = 1.1f;
    r.sampling.frequency_penalty = 0.1f;
    assert_true(check_sites(engine, r) > 15);
    engine_close(engine);
}

/* Drafts, and what is read once the answer is finished: that may fail without anybody noticing. */
static void the_dial_and_the_background(void **state)
{
    static const enum decode_mode modes[] = {DECODE_VERIFY, DECODE_REFRESH, DECODE_PRUNED};
    struct engine_options o = options(*state);
    o.no_background = false;
    o.shadow_rate = 1;
    struct engine *engine = rig_open(&o);
    for (size_t i = 0; i < sizeof(modes) / sizeof(modes[0]); i++) {
        struct engine_request r = rig_request(prompt, 20);
        r.decode = modes[i];
        r.max_tokens = 70;
        r.ignore_eos = true;
        assert_true(check_sites(engine, r) > 5);
    }
    engine_close(engine);
}

static void messages(void **state)
{
    struct engine_options o = options(*state);
    struct engine *engine = rig_open(&o);
    const struct chat_message message[2] = {
        {.role = "system", .content = "abcabc", .content_len = 6},
        {.role = "user", .content = "a b c", .content_len = 5}};
    struct engine_request r = rig_request(NULL, 0);
    r.messages = message;
    r.n_messages = 2;
    r.max_tokens = 3;
    assert_true(check_sites(engine, r) > 10);
    engine_close(engine);
}

static void text_with_the_prompt_only(void **state)
{
    struct engine_options o = options(*state);
    struct engine *engine = rig_open(&o);
    struct engine_request r = rig_request(NULL, 0);
    r.text = "abcab abcab";
    r.text_len = 11;
    r.max_tokens = 0;
    r.prompt_logprobs = true;
    assert_true(check_sites(engine, r) > 5);
    engine_close(engine);
}

static void given_tokens(void **state)
{
    struct engine_options o = options(*state);
    struct engine *engine = rig_open(&o);
    int32_t tokens[2][90];
    const struct engine_given given[2] = {{tokens[0], 90}, {tokens[1], 7}};
    rig_prompt(2, 90, tokens[0]);
    rig_prompt(3, 7, tokens[1]);
    struct engine_request r = rig_request(prompt, 40);
    r.n = 2;
    r.given = given;
    r.n_logprobs = 1;
    assert_true(check_sites(engine, r) > 8);
    engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(engine_opens_or_says_that_memory_is_short),
        cmocka_unit_test(tokens_with_everything),
        cmocka_unit_test(the_dial_and_the_background),
        cmocka_unit_test(messages),
        cmocka_unit_test(text_with_the_prompt_only),
        cmocka_unit_test(given_tokens),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
