/* Requests that end early, queues that are full, and engines that close under load: whatever
 * happens, every page comes back. */
#include "tests/unit/pool/rig.h"

#include <pthread.h>
#include <stdatomic.h>
#include <stdlib.h>
#include <string.h>

static int32_t prompt[40];

/* Room for answers and prompts that take long: seconds, were they not cancelled. */
static struct engine_options long_options(const struct rig_files *files)
{
    struct engine_options o = rig_options(files);
    o.pruned_path = files->other;
    o.context = 2 * RIG_LONG;
    o.kv_type = KV_F16;
    o.kv_bytes = (size_t)64 << 20;
    rig_prompt(1, 40, prompt);
    return o;
}

static struct engine_request endless(void)
{
    struct engine_request r = rig_request(prompt, 40);
    r.max_tokens = RIG_LONG;
    r.ignore_eos = true;
    return r;
}

static bool one_decodes(const struct engine_stats *s)
{
    return s->requests_waiting == 0 && s->requests_prefilling == 0 && s->sequences_decoding == 1;
}

static bool one_waits(const struct engine_stats *s)
{
    return s->requests_waiting == 1;
}

static bool one_prefills(const struct engine_stats *s)
{
    return s->requests_prefilling == 1 && s->prefill_steps > 1;
}

static void expect_cancelled(const struct rig_result *result)
{
    assert_true(result->done);
    if (result->error != ERROR_CANCELLED)
        fail_msg("code %d, message \"%s\"", result->error, result->message);
}

static void cancel_and_collect(struct engine *engine, struct rig_result *result)
{
    engine_cancel(engine, result->id);
    rig_collect_one(engine, result);
    expect_cancelled(result);
}

static void cancelled_in_decode(void **state)
{
    struct engine_options o = long_options(*state);
    struct engine *engine = rig_open(&o);
    struct rig_result result;
    struct engine_stats stats;
    rig_submit(engine, endless(), &result);
    rig_wait_until(engine, one_decodes);
    while (result.choices[0].n < 10)
        rig_take(engine, -1);
    engine_get_stats(engine, &stats);
    assert_true(stats.kv_pages_used >= 2);
    cancel_and_collect(engine, &result);
    assert_true(result.usage.completion_tokens >= 10);
    assert_true(result.usage.completion_tokens < RIG_LONG);
    assert_int_equal(result.choices[0].finish, FINISH_NONE);
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.cancelled, 1);
    assert_int_equal(stats.finished_length, 0);
    engine_close(engine);
}

static void cancelled_in_prefill(void **state)
{
    struct engine_options o = long_options(*state);
    struct engine *engine = rig_open(&o);
    struct rig_result result;
    int32_t *tokens = malloc(RIG_LONG * sizeof(int32_t));
    rig_prompt(3, RIG_LONG, tokens);
    struct engine_request r = rig_request(tokens, RIG_LONG);
    r.n = 3;
    rig_submit(engine, r, &result);
    rig_wait_until(engine, one_prefills);
    cancel_and_collect(engine, &result);
    assert_int_equal(result.choices[0].n_records, 0);
    assert_int_equal(result.usage.completion_tokens, 0);
    struct engine_stats stats;
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_true(stats.prompt_tokens < RIG_LONG);
    engine_close(engine);
    free(tokens);
}

static void cancelled_in_the_queue(void **state)
{
    struct engine_options o = long_options(*state);
    o.max_sequences = 1;
    struct engine *engine = rig_open(&o);
    struct rig_result first, second;
    rig_submit(engine, endless(), &first);
    rig_wait_until(engine, one_decodes);
    rig_submit(engine, endless(), &second);
    while (!second.accepted)
        rig_take(engine, -1);
    rig_wait_until(engine, one_waits);
    cancel_and_collect(engine, &second);
    assert_int_equal(second.choices[0].n_records, 0);
    assert_false(first.done);
    cancel_and_collect(engine, &first);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
}

static void cancelled_at_once(void **state)
{
    struct engine_options o = long_options(*state);
    struct engine *engine = rig_open(&o);
    struct rig_result result;
    for (int i = 0; i < 50; i++) {
        rig_submit(engine, endless(), &result);
        cancel_and_collect(engine, &result);
    }
    engine_cancel(engine, result.id); /* gone already */
    engine_cancel(engine, 123456789); /* never was */
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
}

static void waiting_request_runs_when_there_is_room(void **state)
{
    struct engine_options o = long_options(*state);
    o.max_sequences = 1;
    struct engine *engine = rig_open(&o);
    struct rig_result first, second;
    rig_submit(engine, endless(), &first);
    rig_wait_until(engine, one_decodes);
    rig_submit(engine, rig_request(prompt, 10), &second);
    rig_wait_until(engine, one_waits);
    cancel_and_collect(engine, &first);
    rig_collect_one(engine, &second);
    rig_expect_ok(&second);
    engine_close(engine);
}

/* A choice that ends gives its place away at once, while the others of its request go on. */
static void ended_choice_makes_room(void **state)
{
    struct engine_options o = long_options(*state);
    o.max_sequences = 2;
    struct engine *engine = rig_open(&o);
    static struct rig_result first, second;
    struct engine_request r = endless();
    r.max_tokens = 100;
    struct rig_result *short_one = rig_run(engine, r);
    assert_true(short_one->choices[0].text_len > 40);
    struct stop_string stop = {short_one->choices[0].text + 20, 16};
    r = endless();
    r.n = 2;
    r.stops = &stop; /* the first choice will say so, the second hardly */
    r.n_stops = 1;
    rig_submit(engine, r, &first);
    rig_submit(engine, rig_request(prompt, 10), &second);
    rig_collect_one(engine, &second);
    rig_expect_ok(&second);
    assert_int_equal(first.choices[0].finish, FINISH_STOP);
    assert_false(first.done);
    assert_int_equal(first.choices[1].finish, FINISH_NONE);
    cancel_and_collect(engine, &first);
    engine_close(engine);
    free(short_one);
}

static void full_queue_is_busy(void **state)
{
    struct engine_options o = long_options(*state);
    o.max_sequences = 1;
    o.max_queue = 2;
    struct engine *engine = rig_open(&o);
    struct rig_result results[3], last;
    struct error err = {0};
    uint64_t id;
    struct engine_request r = endless();
    rig_submit(engine, r, &results[0]);
    rig_wait_until(engine, one_decodes);
    rig_submit(engine, r, &results[1]);
    rig_submit(engine, r, &results[2]);
    assert_int_equal(engine_submit(engine, &r, &id, &err), -ERROR_BUSY);
    assert_non_null(strstr(err.message, "2 requests"));
    cancel_and_collect(engine, &results[1]); /* makes room */
    rig_submit(engine, r, &last);
    cancel_and_collect(engine, &last);
    cancel_and_collect(engine, &results[0]);
    cancel_and_collect(engine, &results[2]);
    engine_close(engine);
}

static void full_token_queue_is_busy(void **state)
{
    struct engine_options o = long_options(*state);
    o.max_sequences = 1;
    o.max_queue_tokens = 100;
    struct engine *engine = rig_open(&o);
    struct rig_result first, second, third, fourth;
    rig_submit(engine, endless(), &first);
    rig_wait_until(engine, one_decodes);
    rig_submit(engine, endless(), &second);
    rig_submit(engine, endless(), &third);
    rig_submit(engine, endless(), &fourth);
    rig_collect_one(engine, &fourth);
    assert_int_equal(fourth.error, ERROR_BUSY);
    assert_non_null(strstr(fourth.message, "80 prompt tokens are waiting (limit 100)"));
    cancel_and_collect(engine, &second);
    cancel_and_collect(engine, &third);
    cancel_and_collect(engine, &first);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
}

static void drain_ends_what_runs_and_takes_nothing_new(void **state)
{
    struct engine_options o = long_options(*state);
    struct engine *engine = rig_open(&o);
    struct rig_result results[8];
    struct rig_result *pointers[8];
    struct error err = {0};
    uint64_t id;
    struct engine_request r = rig_request(prompt, 40);
    for (int i = 0; i < 8; i++) {
        pointers[i] = &results[i];
        rig_submit(engine, r, &results[i]);
    }
    engine_drain(engine);
    assert_int_equal(engine_submit(engine, &r, &id, &err), -ERROR_SHUTDOWN);
    rig_collect(engine, pointers, 8);
    for (int i = 0; i < 8; i++)
        rig_expect_ok(&results[i]);
    engine_close(engine);
}

/* Closing at every stage at once; the sanitizers see what is left behind. */
static void close_with_everything_in_flight(void **state)
{
    struct engine_options o = long_options(*state);
    int32_t *tokens = malloc(RIG_LONG * sizeof(int32_t));
    static struct rig_result results[40];
    rig_prompt(3, RIG_LONG, tokens);
    o.max_sequences = 4;
    for (int round = 0; round < 5; round++) {
        struct engine *engine = rig_open(&o);
        size_t n = 0;
        rig_submit(engine, endless(), &results[n++]);
        if (round > 0)
            rig_wait_until(engine, one_decodes);
        rig_submit(engine, rig_request(tokens, RIG_LONG), &results[n++]);
        if (round > 1)
            rig_wait_until(engine, one_prefills);
        for (int i = 0; i < 20; i++) {
            struct engine_request r = endless();
            r.n = 1 + (uint32_t)i % 3;
            rig_submit(engine, r, &results[n++]);
        }
        if (round > 2)
            engine_cancel(engine, results[1].id);
        engine_close(engine);
    }
    free(tokens);
}

static void stages_are_not_late_when_they_have_no_work(void **state)
{
    struct engine_options o = long_options(*state);
    struct engine *engine = rig_open(&o);
    struct rig_result result;
    struct engine_stats stats;
    rig_submit(engine, endless(), &result);
    rig_wait_until(engine, one_decodes);
    engine_get_stats(engine, &stats);
    assert_true(stats.prefill_tick_age_s == 0);
    cancel_and_collect(engine, &result);
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_true(stats.decode_tick_age_s == 0);
    engine_close(engine);
}

/* From other threads, as the server's are: statistics, the tokenizer, cancels of ids that may be
 * gone. */
struct bystander {
    struct engine *engine;
    atomic_uint_fast64_t last_id;
    atomic_bool stop;
    atomic_uint n_rounds;
};

static void *stand_by(void *arg)
{
    struct bystander *b = arg;
    uint64_t seed = 99;
    while (!atomic_load(&b->stop)) {
        struct engine_stats stats;
        struct engine_info info;
        struct token_list list = {0};
        engine_get_stats(b->engine, &stats);
        engine_get_info(b->engine, &info);
        tokenizer_encode(engine_tokenizer(b->engine), "abcab", 5, 0, &list, NULL);
        token_list_free(&list);
        seed = seed * 6364136223846793005u + 1;
        uint64_t last = atomic_load(&b->last_id);
        if (last && seed >> 62 == 0)
            engine_cancel(b->engine, 1 + (seed >> 33) % last);
        atomic_fetch_add(&b->n_rounds, 1);
        engine_cancel(b->engine, 0);
    }
    return NULL;
}

static uint32_t next(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % n;
}

#define N_RANDOM 300

/* tokens: room for 440; given: of as many choices as a request may have here */
static struct engine_request random_request(uint32_t *seed, int32_t *tokens,
                                            struct engine_given *given)
{
    size_t n = 1 + next(seed, next(seed, 8) ? 40 : 400);
    rig_prompt(*seed, n, tokens);
    struct engine_request r = rig_request(tokens, n);
    r.n = next(seed, 4) ? 1 : 1 + next(seed, 5);
    r.max_tokens = next(seed, 8) ? next(seed, 50) : 0;
    r.prompt_logprobs = next(seed, 5) == 0;
    r.n_prompt_logprobs = 2;
    r.n_logprobs = (int32_t)next(seed, 4) - 1;
    r.decode = next(seed, 4) ? DECODE_DEFAULT : DECODE_FULL;
    r.sampling.seed = *seed;
    r.sampling.temperature = (float)next(seed, 3) / 2;
    for (uint32_t i = 0; i < r.n; i++)
        given[i] = (struct engine_given){tokens, 1 + next(seed, (uint32_t)n) % 100};
    if (next(seed, 3) == 0)
        r.given = given;
    return r;
}

static void random_requests_and_cancels_leave_nothing(void **state)
{
    struct engine_options o = rig_options(*state);
    static struct rig_result results[N_RANDOM];
    struct rig_result *pointers[N_RANDOM];
    struct bystander b = {0};
    pthread_t thread;
    uint32_t seed = 4;
    o.pruned_path = ((struct rig_files *)*state)->other;
    o.kv_bytes = (size_t)60 * 2 * 2 * 2 * 8 * 32 * 4; /* 60 pages: they wait for each other */
    o.max_sequences = 9;
    b.engine = rig_open(&o);
    assert_int_equal(pthread_create(&thread, NULL, stand_by, &b), 0);

    for (int i = 0; i < N_RANDOM; i++) {
        int32_t tokens[440];
        struct engine_given given[RIG_MAX_CHOICES];
        pointers[i] = &results[i];
        rig_submit(b.engine, random_request(&seed, tokens, given), &results[i]);
        atomic_store(&b.last_id, results[i].id);
        if (next(&seed, 3) == 0)
            engine_cancel(b.engine, results[next(&seed, (uint32_t)i + 1)].id);
        for (uint32_t k = next(&seed, 6); k; k--)
            rig_take(b.engine, 1);
    }
    rig_collect(b.engine, pointers, N_RANDOM);
    atomic_store(&b.stop, true);
    pthread_join(thread, NULL);
    rig_wait_until(b.engine, rig_is_idle);

    uint64_t n_cancelled = 0;
    for (int i = 0; i < N_RANDOM; i++) {
        if (results[i].error)
            expect_cancelled(&results[i]);
        n_cancelled += results[i].error != 0;
    }
    struct engine_stats stats;
    engine_get_stats(b.engine, &stats);
    assert_int_equal(stats.cancelled, n_cancelled);
    assert_int_equal(stats.failed, 0);
    assert_true(n_cancelled > 0 && n_cancelled < N_RANDOM);
    assert_true(atomic_load(&b.n_rounds) > 0);
    engine_close(b.engine);
}

/* An answer that came through is complete: every choice has its end, also beside cancels. */
static void uncancelled_requests_are_complete(void **state)
{
    struct engine_options o = rig_options(*state);
    struct engine *engine = rig_open(&o);
    static struct rig_result results[100];
    struct rig_result *pointers[100];
    uint32_t seed = 8;
    rig_prompt(1, 40, prompt);
    for (int i = 0; i < 100; i++) {
        struct engine_request r = rig_request(prompt, 5);
        r.n = 4;
        r.max_tokens = 3;
        r.sampling.seed = (uint64_t)i;
        pointers[i] = &results[i];
        rig_submit(engine, r, &results[i]);
        if (next(&seed, 2))
            engine_cancel(engine, results[next(&seed, (uint32_t)i + 1)].id);
        rig_take(engine, 0);
    }
    rig_collect(engine, pointers, 100);
    for (int i = 0; i < 100; i++)
        for (int c = 0; c < 4 && !results[i].error; c++)
            assert_int_not_equal(results[i].choices[c].finish, FINISH_NONE);
    engine_close(engine);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cancelled_in_decode),
        cmocka_unit_test(cancelled_in_prefill),
        cmocka_unit_test(cancelled_in_the_queue),
        cmocka_unit_test(cancelled_at_once),
        cmocka_unit_test(waiting_request_runs_when_there_is_room),
        cmocka_unit_test(ended_choice_makes_room),
        cmocka_unit_test(full_queue_is_busy),
        cmocka_unit_test(full_token_queue_is_busy),
        cmocka_unit_test(drain_ends_what_runs_and_takes_nothing_new),
        cmocka_unit_test(close_with_everything_in_flight),
        cmocka_unit_test(stages_are_not_late_when_they_have_no_work),
        cmocka_unit_test(random_requests_and_cancels_leave_nothing),
        cmocka_unit_test(uncancelled_requests_are_complete),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
