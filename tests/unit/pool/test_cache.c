/* The prefix cache seen from outside, who gives up pages when they run out, and who goes first. */
#include "engine/kernels/kernels.h"
#include "tests/unit/pool/rig.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PAGE KERNEL_PAGE_TOKENS
#define PAGE_BYTES ((size_t)2 * 2 * 2 * 8 * PAGE * sizeof(float))
#define N_PROMPT 200

static int32_t prompt[512];

static struct engine_options pair_options(const struct rig_files *files)
{
    struct engine_options o = rig_options(files);
    o.pruned_path = files->other;
    rig_prompt(1, 512, prompt);
    return o;
}

static struct rig_result *run_ok(struct engine *engine, struct engine_request request)
{
    struct rig_result *result = rig_run(engine, request);
    rig_expect_ok(result);
    return result;
}

static void known_prompt_is_computed_from_where_it_differs(void **state)
{
    struct engine_options o = pair_options(*state);
    struct engine *engine = rig_open(&o);
    struct engine_stats before, after;
    struct rig_result *first = run_ok(engine, rig_request(prompt, N_PROMPT));
    engine_get_stats(engine, &before);
    struct rig_result *again = run_ok(engine, rig_request(prompt, N_PROMPT));
    engine_get_stats(engine, &after);
    rig_expect_same_choice(&first->choices[0], &again->choices[0]);
    assert_int_equal(first->usage.cached_tokens, 0);
    assert_int_equal(again->usage.cached_tokens, 192);
    assert_int_equal(again->usage.prompt_tokens, N_PROMPT);
    assert_int_equal(after.prompt_tokens - before.prompt_tokens, N_PROMPT - 192);
    assert_int_equal(after.cached_tokens, 192);
    assert_int_equal(after.prompt_tokens_asked, 2 * N_PROMPT);

    prompt[100] = prompt[100] == RIG_A ? RIG_A + 1 : RIG_A;
    struct rig_result *other = run_ok(engine, rig_request(prompt, N_PROMPT));
    assert_int_equal(other->usage.cached_tokens, 96);
    assert_int_equal(other->usage.matched_tokens, 100);
    free(first);
    free(again);
    free(other);
    engine_close(engine);
}

/* Another engine of the same models goes on where the first one ended; one of others does not. */
static void known_prompt_is_found_by_the_next_engine(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = pair_options(files);
    char file[80];
    o.state_dir = files->folder;
    assert_true((size_t)snprintf(file, sizeof(file), "%s/prefix-cache", files->folder) <
                sizeof(file));
    struct engine *engine = rig_open(&o);
    struct rig_result *first = run_ok(engine, rig_request(prompt, N_PROMPT));
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);

    engine = rig_open(&o);
    struct rig_result *again = run_ok(engine, rig_request(prompt, N_PROMPT));
    assert_int_equal(again->usage.cached_tokens, 192);
    rig_expect_same_choice(&first->choices[0], &again->choices[0]);
    engine_close(engine);

    o.kv_type = KV_F16;
    o.state_bytes = 1; /* and it writes nothing */
    engine = rig_open(&o);
    struct rig_result *other = run_ok(engine, rig_request(prompt, N_PROMPT));
    assert_int_equal(other->usage.cached_tokens, 0);
    engine_close(engine);
    assert_int_equal(unlink(file), 0);
    free(first);
    free(again);
    free(other);
}

static void whole_prompt_in_the_cache_still_gives_the_first_token(void **state)
{
    struct engine_options o = pair_options(*state);
    struct engine *engine = rig_open(&o);
    struct engine_request r = rig_request(prompt, 2 * PAGE);
    struct rig_result *first = run_ok(engine, r), *again = run_ok(engine, r);
    rig_expect_same_choice(&first->choices[0], &again->choices[0]);
    assert_int_equal(again->usage.cached_tokens, PAGE);
    free(first);
    free(again);
    engine_close(engine);
}

static void prompts_that_ask_for_no_cache_leave_none(void **state)
{
    struct engine_options o = pair_options(*state);
    struct engine *engine = rig_open(&o);
    struct engine_request r = rig_request(prompt, N_PROMPT);
    struct engine_stats stats;
    r.no_cache = true;
    free(run_ok(engine, r));
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.kv_pages_cached, 0);
    r.no_cache = false;
    free(run_ok(engine, r));
    r.no_cache = true;
    struct rig_result *without = run_ok(engine, r);
    assert_int_equal(without->usage.cached_tokens, 0);
    free(without);
    engine_close(engine);
}

/* Every prompt token's log-probability needs its logits: nothing may be skipped. */
static void prompt_logprobs_are_complete_for_a_known_prompt(void **state)
{
    struct engine_options o = pair_options(*state);
    struct engine *engine = rig_open(&o);
    struct engine_request r = rig_request(prompt, N_PROMPT);
    r.prompt_logprobs = true;
    struct rig_result *first = run_ok(engine, r), *again = run_ok(engine, r);
    assert_int_equal(again->n_prompt, N_PROMPT);
    assert_memory_equal(first->prompt_logprobs + 1, again->prompt_logprobs + 1,
                        (N_PROMPT - 1) * sizeof(float));
    free(first);
    free(again);
    engine_close(engine);
}

static bool answer_was_read(const struct engine_stats *s)
{
    return s->background_tokens > 0 && rig_is_idle(s);
}

/* The next turn: the prompt, the answer, and some new words. Returns how much was cached. */
static uint32_t second_turn(struct engine *engine, const struct rig_result *first,
                            struct rig_result **ret_second)
{
    const struct rig_choice *c = &first->choices[0];
    memcpy(prompt + N_PROMPT, c->tokens, c->n * sizeof(int32_t));
    struct engine_request r = rig_request(prompt, N_PROMPT + c->n + 20);
    *ret_second = run_ok(engine, r);
    return (*ret_second)->usage.cached_tokens;
}

static void next_turn_finds_the_answer_read_by_the_full_model(void **state)
{
    struct engine_options o = pair_options(*state);
    struct rig_result *second, *expected;
    struct engine_request r = rig_request(prompt, N_PROMPT);
    r.max_tokens = 120;
    r.ignore_eos = true;
    o.no_background = false;
    struct engine *engine = rig_open(&o);
    struct rig_result *first = run_ok(engine, r);
    rig_wait_until(engine, answer_was_read);
    assert_int_equal(second_turn(engine, first, &second), (N_PROMPT + 120) / PAGE * PAGE);
    engine_close(engine);

    o.no_prefix_cache = true;
    engine = rig_open(&o);
    assert_int_equal(second_turn(engine, first, &expected), 0);
    rig_expect_same_choice(&expected->choices[0], &second->choices[0]);
    engine_close(engine);
    free(first);
    free(second);
    free(expected);
}

/* Nothing is left to be read: the full model wrote the answer, or read it on the way. */
static void full_models_answers_are_kept_at_once(void **state)
{
    static const enum decode_mode modes[] = {DECODE_FULL, DECODE_VERIFY};
    struct engine_options o = pair_options(*state);
    for (int i = 0; i < 2; i++) {
        struct engine *engine = rig_open(&o);
        struct rig_result *second;
        struct engine_request r = rig_request(prompt, N_PROMPT);
        r.max_tokens = 120;
        r.ignore_eos = true;
        r.decode = modes[i];
        struct rig_result *first = run_ok(engine, r);
        assert_int_equal(second_turn(engine, first, &second), (N_PROMPT + 119) / PAGE * PAGE);
        free(first);
        free(second);
        engine_close(engine);
    }
}

#define N_CHATS 8

/* Many answers without a bound on a pool that holds one and a half of them. */
static void check_open_ended(const struct rig_files *files, enum decode_mode decode)
{
    struct engine_options o = pair_options(files);
    struct rig_result *alone = calloc(N_CHATS, sizeof(*alone));
    struct rig_result *together = calloc(N_CHATS, sizeof(*together));
    struct rig_result *pointers[N_CHATS];
    struct engine_request r = rig_request(prompt, 40);
    struct engine_stats stats;
    r.max_tokens = UINT32_MAX;
    r.ignore_eos = true;
    r.decode = decode;
    o.context = 300;
    struct engine *engine = rig_open(&o);
    for (uint64_t i = 0; i < N_CHATS; i++) {
        r.sampling.seed = i;
        rig_submit(engine, r, &alone[i]);
        rig_collect_one(engine, &alone[i]);
    }
    engine_close(engine);

    o.kv_bytes = 15 * PAGE_BYTES;
    engine = rig_open(&o);
    for (uint64_t i = 0; i < N_CHATS; i++) {
        pointers[i] = &together[i];
        r.sampling.seed = i;
        rig_submit(engine, r, &together[i]);
    }
    rig_collect(engine, pointers, N_CHATS);
    for (size_t i = 0; i < N_CHATS; i++) {
        rig_expect_ok(&together[i]);
        rig_expect_same_choice(&alone[i].choices[0], &together[i].choices[0]);
        assert_int_equal(together[i].choices[0].n, 260);
    }
    assert_int_equal(together[0].usage.n_preemptions, 0); /* the first came first */
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_true(stats.preemptions > 0);
    engine_close(engine);
    free(alone);
    free(together);
}

static void open_ended_chats_run_on_a_small_budget(void **state)
{
    check_open_ended(*state, DECODE_PRUNED);
    check_open_ended(*state, DECODE_REFRESH);
    check_open_ended(*state, DECODE_VERIFY);
    check_open_ended(*state, DECODE_FULL);
}

static bool one_waits(const struct engine_stats *s)
{
    return s->requests_waiting == 1;
}

static bool five_wait(const struct engine_stats *s)
{
    return s->requests_waiting == 5;
}

/* Holds the only place until it is cancelled. */
static void occupy(struct engine *engine, struct rig_result *result)
{
    struct engine_request r = rig_request(prompt, 10);
    r.max_tokens = UINT32_MAX;
    r.ignore_eos = true;
    rig_submit(engine, r, result);
    while (result->choices[0].n == 0)
        rig_take(engine, -1);
}

static struct engine *open_narrow(const struct rig_files *files)
{
    struct engine_options o = pair_options(files);
    o.max_sequences = 1;
    o.context = 60000;
    o.kv_bytes = 2000 * PAGE_BYTES;
    return rig_open(&o);
}

/* In which order the results ended. */
static void collect_in_order(struct engine *engine, struct rig_result *results, size_t n,
                             size_t *ret_order)
{
    bool seen[8] = {false};
    for (size_t n_done = 0; n_done < n;) {
        rig_take(engine, -1);
        for (size_t i = 0; i < n; i++) {
            if (results[i].done && !seen[i]) {
                seen[i] = true;
                ret_order[n_done++] = i;
            }
        }
    }
}

static void lower_priority_value_goes_first(void **state)
{
    static const int32_t priorities[] = {0, 3, -2, 0, 1};
    static const size_t expected[] = {2, 0, 3, 4, 1};
    struct engine *engine = open_narrow(*state);
    static struct rig_result first, results[5];
    size_t order[5];
    occupy(engine, &first);
    for (int i = 0; i < 5; i++) {
        struct engine_request r = rig_request(prompt, 10);
        r.max_tokens = 2;
        r.priority = priorities[i];
        rig_submit(engine, r, &results[i]);
    }
    rig_wait_until(engine, five_wait);
    for (int i = 0; i < 5; i++)
        while (!results[i].accepted)
            rig_take(engine, -1);
    engine_cancel(engine, first.id);
    collect_in_order(engine, results, 5, order);
    assert_memory_equal(order, expected, sizeof(expected));
    engine_close(engine);
}

/* Pages too: a request that is more urgent than what runs does not wait until that has ended. */
static void urgent_request_gets_the_pages_of_others(void **state)
{
    struct engine_options o = pair_options(*state);
    static struct rig_result first, urgent;
    static int32_t long_prompt[50 * PAGE];
    o.context = 60 * PAGE;
    o.kv_bytes = 60 * PAGE_BYTES;
    rig_prompt(4, 50 * PAGE, long_prompt);
    struct engine *engine = rig_open(&o);
    first.usage.n_preemptions = 0;
    for (int i = 0; i < 50 && first.usage.n_preemptions == 0; i++) { /* it may be too late */
        struct engine_request r = rig_request(prompt, 10);
        r.max_tokens = UINT32_MAX;
        r.ignore_eos = true;
        rig_submit(engine, r, &first); /* 60 pages in the end */
        while (first.choices[0].n < 12 * PAGE)
            rig_take(engine, -1);
        r = rig_request(long_prompt, 50 * PAGE);
        r.priority = -1;
        rig_submit(engine, r, &urgent);
        rig_collect_one(engine, &urgent);
        rig_expect_ok(&urgent);
        assert_int_equal(urgent.usage.n_preemptions, 0);
        rig_collect_one(engine, &first);
        rig_expect_ok(&first);
        assert_int_equal(first.choices[0].n, 60 * PAGE - 10);
    }
    assert_true(first.usage.n_preemptions > 0);
    engine_close(engine);
}

static void keys_take_turns(void **state)
{
    static const uint64_t keys[] = {1, 1, 1, 2, 2};
    static const size_t expected[] = {0, 3, 1, 4, 2};
    struct engine *engine = open_narrow(*state);
    static struct rig_result first, results[5];
    size_t order[5];
    occupy(engine, &first);
    for (int i = 0; i < 5; i++) {
        struct engine_request r = rig_request(prompt, 10);
        r.max_tokens = 2;
        r.fairness_key = keys[i];
        rig_submit(engine, r, &results[i]);
    }
    for (int i = 0; i < 5; i++)
        while (!results[i].accepted)
            rig_take(engine, -1);
    engine_cancel(engine, first.id);
    collect_in_order(engine, results, 5, order);
    assert_memory_equal(order, expected, sizeof(expected));
    engine_close(engine);
}

static void busy_engine_says_when_to_come_back(void **state)
{
    struct engine *engine = open_narrow(*state);
    static struct rig_result first, second;
    assert_int_equal(engine_retry_after_ms(engine), 100); /* nothing measured yet */
    occupy(engine, &first);
    rig_submit(engine, rig_request(prompt, 10), &second);
    rig_wait_until(engine, one_waits);
    uint32_t ms = engine_retry_after_ms(engine);
    while (engine_retry_after_ms(engine) <= ms + 100) /* the longer nobody is admitted */
        rig_take(engine, 10);
    engine_close(engine);
}

static void cancel_is_timed_to_the_release_of_its_pages(void **state)
{
    struct engine *engine = open_narrow(*state);
    static struct rig_result first;
    struct engine_stats stats;
    occupy(engine, &first);
    engine_get_stats(engine, &stats);
    assert_true(stats.cancel_longest_s == 0 && stats.kv_pages_used > 0);
    engine_cancel(engine, first.id);
    rig_collect_one(engine, &first);
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_true(stats.cancel_last_s > 0 && stats.cancel_longest_s >= stats.cancel_last_s);
    engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_prompt_is_computed_from_where_it_differs),
        cmocka_unit_test(known_prompt_is_found_by_the_next_engine),
        cmocka_unit_test(whole_prompt_in_the_cache_still_gives_the_first_token),
        cmocka_unit_test(prompts_that_ask_for_no_cache_leave_none),
        cmocka_unit_test(prompt_logprobs_are_complete_for_a_known_prompt),
        cmocka_unit_test(next_turn_finds_the_answer_read_by_the_full_model),
        cmocka_unit_test(full_models_answers_are_kept_at_once),
        cmocka_unit_test(open_ended_chats_run_on_a_small_budget),
        cmocka_unit_test(lower_priority_value_goes_first),
        cmocka_unit_test(urgent_request_gets_the_pages_of_others),
        cmocka_unit_test(keys_take_turns),
        cmocka_unit_test(busy_engine_says_when_to_come_back),
        cmocka_unit_test(cancel_is_timed_to_the_release_of_its_pages),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
