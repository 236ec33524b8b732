/* Whatever runs beside a request, wherever its prompt is cut, whatever the prefix cache holds,
 * however often its pages are taken away and how many threads there are: every token is the one
 * that the request gets alone. And after thousands of requests no page is missing. */
#include "engine/kernels/kernels.h"
#include "tests/unit/pool/menu.h"

#include <stdlib.h>
#include <string.h>

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
#define N_MIXES 40
#define N_CHURN 1000
#else
#define N_MIXES 200
#define N_CHURN 10000
#endif
#define MOST_AT_ONCE 16
#define PAGE_BYTES ((size_t)2 * 2 * 2 * 8 * KERNEL_PAGE_TOKENS * sizeof(float))

static struct engine_options pair_options(const struct rig_files *files)
{
    struct engine_options o = rig_options(files);
    o.pruned_path = files->other;
    o.no_background = false;
    return o;
}

/* 14 pages hold the largest choice and hardly more. */
static struct engine_options random_options(const struct rig_files *files, uint32_t *seed)
{
    struct engine_options o = pair_options(files);
    o.prefill_threads = 1 + menu_random(seed, 2);
    o.decode_threads = 1 + menu_random(seed, 3);
    o.context = 14 * KERNEL_PAGE_TOKENS;
    o.kv_bytes = PAGE_BYTES * (menu_random(seed, 4) ? 14 + menu_random(seed, 12) : 1000);
    o.prefill_chunk_ms = menu_random(seed, 2) ? 1 : 25;
    o.no_prefix_cache = menu_random(seed, 4) == 0;
    o.no_background = menu_random(seed, 4) == 0;
    o.max_sequences = 5 + menu_random(seed, 30);
    o.shadow_rate = menu_random(seed, 2) ? 0.5 : 0;
    return o;
}

static bool no_page_is_used(const struct engine_stats *s)
{
    return rig_is_idle(s) && s->requests_preempted == 0;
}

/* Requests one after another, never more than `most` at once; some are cancelled on the way. */
static void run_mix(struct engine *engine, const struct menu *menu, uint32_t *seed, size_t n,
                    size_t most, struct rig_result *results)
{
    size_t dishes[MOST_AT_ONCE];
    size_t n_open = 0;
    while (n || n_open) {
        for (size_t i = 0; i < n_open; i++) {
            if (!results[i].done)
                continue;
            menu_expect(menu, dishes[i], &results[i]);
            results[i].id = 0;
        }
        for (size_t i = 0; i < most; i++) {
            bool is_free = i >= n_open || results[i].id == 0;
            if (!is_free || !n)
                continue;
            dishes[i] = menu_random(seed, MENU_DISHES);
            rig_submit(engine, menu->requests[dishes[i]], &results[i]);
            n_open = i >= n_open ? i + 1 : n_open;
            n--;
            if (menu_random(seed, 6) == 0)
                engine_cancel(engine, results[menu_random(seed, (uint32_t)i + 1)].id);
            if (menu_random(seed, 2))
                break;
        }
        while (n_open && results[n_open - 1].id == 0)
            n_open--;
        if (n_open)
            rig_take(engine, n ? 2 : 1000);
    }
}

static void every_token_is_as_alone(void **state)
{
    const struct rig_files *files = *state;
    struct menu *menu = menu_open(pair_options(files));
    struct rig_result *results = calloc(MOST_AT_ONCE, sizeof(*results));
    uint32_t seed = 11;
    uint64_t n_preemptions = 0, n_cached = 0, n_accepted = 0, n_background = 0;
    assert_non_null(results);
    for (int mix = 0; mix < N_MIXES; mix++) {
        struct engine_options o = random_options(files, &seed);
        struct engine *engine = rig_open(&o);
        struct engine_stats stats;
        run_mix(engine, menu, &seed, 6 + menu_random(&seed, 14), 2 + menu_random(&seed, 14),
                results);
        rig_wait_until(engine, no_page_is_used);
        engine_get_stats(engine, &stats);
        n_preemptions += stats.preemptions;
        n_cached += stats.cached_tokens;
        n_accepted += stats.accepted_tokens;
        n_background += stats.background_tokens;
        engine_close(engine);
    }
    /* the mixes were what they were meant to be */
    assert_true(n_preemptions > N_MIXES / 10 && n_cached > 1000 && n_accepted > 500 &&
                n_background > 100);
    free(results);
    menu_close(menu);
}

/* The same with every number type of weights and KV that is not exact: less, since it is the same
 * code that decides what is computed. */
static void every_token_is_as_alone_in_all_types(void **state)
{
    static const enum kv_type types[] = {KV_F16, KV_BF16, KV_Q8_0};
    const struct rig_files *files = *state;
    struct rig_result *results = calloc(MOST_AT_ONCE, sizeof(*results));
    uint32_t seed = 31;
    assert_non_null(results);
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        struct engine_options o = pair_options(files);
        o.weights = WEIGHT_AUTO;
        o.kv_type = types[t];
        struct menu *menu = menu_open(o);
        for (int mix = 0; mix < N_MIXES / 20; mix++) {
            struct engine_options other = random_options(files, &seed);
            other.weights = WEIGHT_AUTO;
            other.kv_type = types[t];
            struct engine *engine = rig_open(&other);
            run_mix(engine, menu, &seed, 12, 8, results);
            rig_wait_until(engine, no_page_is_used);
            engine_close(engine);
        }
        menu_close(menu);
    }
    free(results);
}

static void thousands_of_requests_leave_no_page_behind(void **state)
{
    const struct rig_files *files = *state;
    struct menu *menu = menu_open(pair_options(files));
    struct rig_result *results = calloc(MOST_AT_ONCE, sizeof(*results));
    struct engine_options o = pair_options(files);
    struct engine_stats stats;
    uint32_t seed = 5;
    assert_non_null(results);
    o.context = 14 * KERNEL_PAGE_TOKENS;
    o.kv_bytes = 24 * PAGE_BYTES;
    struct engine *engine = rig_open(&o);
    run_mix(engine, menu, &seed, N_CHURN, MOST_AT_ONCE, results);
    rig_wait_until(engine, no_page_is_used);
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.kv_pages_total, 24);
    assert_true(stats.kv_pages_cached <= 24);
    assert_true(stats.preemptions > N_CHURN / 200 && stats.cancelled > N_CHURN / 100);
    assert_int_equal(stats.failed, 0);
    engine_close(engine);
    free(results);
    menu_close(menu);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_token_is_as_alone),
        cmocka_unit_test(every_token_is_as_alone_in_all_types),
        cmocka_unit_test(thousands_of_requests_leave_no_page_behind),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
