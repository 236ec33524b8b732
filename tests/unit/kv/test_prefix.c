/* The prefix index: what is found, what is shared, what is given up first, and a long random run
 * beside a plain model of it. */
#include "engine/kv/kv.h"
#include "tests/unit/check.h"

#include <pthread.h>
#include <stdlib.h>
#include <string.h>

#define PAGE KERNEL_PAGE_TOKENS
#define MOST_TOKENS (8 * PAGE)

static const struct kv_layout layout = {1, 1, 2, 2};

static struct kv_pool *open_pool(uint32_t n_pages)
{
    struct kv_pool *pool = NULL;
    struct error err = {0};
    if (kv_pool_open(&layout, n_pages * kv_page_bytes(&layout), &pool, &err))
        fail_msg("%s", err.message);
    return pool;
}

static struct kv_table open_table(void)
{
    struct kv_table table;
    assert_int_equal(kv_table_open(&table, MOST_TOKENS, NULL), 0);
    return table;
}

static struct kv_counts counts(struct kv_pool *pool)
{
    struct kv_counts c;
    kv_pool_get_counts(pool, &c);
    return c;
}

/* tokens[MOST_TOKENS] that name their place and the prompt they belong to */
static void make_tokens(int32_t name, int32_t *tokens)
{
    for (int32_t i = 0; i < MOST_TOKENS; i++)
        tokens[i] = name * 1000 + i;
}

/* As a request would: finds, grows, adds. Returns what it found. */
static struct kv_match read_prompt(struct kv_pool *pool, const int32_t *tokens, uint32_t n,
                                   struct kv_table *table)
{
    struct kv_match match = kv_prefix_find(pool, tokens, n, table);
    assert_true(kv_table_grow(pool, table, n));
    kv_prefix_add(pool, tokens, n, table);
    return match;
}

static void keep_prompt(struct kv_pool *pool, const int32_t *tokens, uint32_t n)
{
    struct kv_table table = open_table();
    read_prompt(pool, tokens, n, &table);
    kv_table_close(pool, &table);
}

static uint32_t n_found(struct kv_pool *pool, const int32_t *tokens, uint32_t n)
{
    return kv_prefix_find(pool, tokens, n, NULL).n_tokens;
}

static void prompt_is_found_again_in_whole_pages(void **state)
{
    struct kv_pool *pool = open_pool(8);
    struct kv_table a = open_table(), b = open_table();
    int32_t tokens[MOST_TOKENS];
    make_tokens(1, tokens);

    assert_int_equal(read_prompt(pool, tokens, 3 * PAGE + 5, &a).n_tokens, 0);
    assert_int_equal(n_found(pool, tokens, 3 * PAGE + 5), 3 * PAGE);
    assert_int_equal(n_found(pool, tokens, 3 * PAGE - 1), 2 * PAGE);
    assert_int_equal(n_found(pool, tokens, PAGE - 1), 0);
    assert_int_equal(kv_prefix_find(pool, tokens, 4 * PAGE, &b).n_tokens, 3 * PAGE);
    assert_memory_equal(a.pages, b.pages, 3 * sizeof(uint32_t));
    assert_int_equal(counts(pool).n_used, 4); /* three shared, one part-filled */
    kv_table_close(pool, &a);
    assert_int_equal(counts(pool).n_used, 3);
    kv_table_close(pool, &b);
    assert_int_equal(counts(pool).n_used, 0);
    assert_int_equal(counts(pool).n_kept, 3);
    assert_int_equal(n_found(pool, tokens, 3 * PAGE), 3 * PAGE);
    kv_pool_close(pool);
}

static void page_is_found_only_behind_what_was_before_it(void **state)
{
    struct kv_pool *pool = open_pool(8);
    int32_t a[MOST_TOKENS], b[MOST_TOKENS];
    make_tokens(1, a);
    make_tokens(1, b);
    b[3] = 99; /* the second page is equal, the first is not */
    keep_prompt(pool, a, 2 * PAGE);
    assert_int_equal(n_found(pool, b, 2 * PAGE), 0);
    assert_int_equal(n_found(pool, a + PAGE, PAGE), 0); /* nor as a beginning */
    keep_prompt(pool, b, 2 * PAGE);
    assert_int_equal(counts(pool).n_kept, 4);
    kv_pool_close(pool);
}

static void match_says_where_a_prompt_differs(void **state)
{
    struct kv_pool *pool = open_pool(8);
    int32_t tokens[MOST_TOKENS];
    make_tokens(1, tokens);
    keep_prompt(pool, tokens, 3 * PAGE);
    tokens[PAGE + 9] = 5;
    struct kv_match match = kv_prefix_find(pool, tokens, 3 * PAGE, NULL);
    assert_int_equal(match.n_tokens, PAGE);
    assert_int_equal(match.n_same, PAGE + 9);
    tokens[0] = 5;
    assert_int_equal(kv_prefix_find(pool, tokens, 3 * PAGE, NULL).n_same, 0);
    kv_pool_close(pool);
}

/* Two requests that computed the same prompt at the same time end up with one copy. */
static void equal_pages_become_one(void **state)
{
    struct kv_pool *pool = open_pool(8);
    struct kv_table a = open_table(), b = open_table();
    int32_t tokens[MOST_TOKENS];
    make_tokens(1, tokens);
    assert_true(kv_table_grow(pool, &a, 2 * PAGE));
    assert_true(kv_table_grow(pool, &b, 2 * PAGE));
    kv_prefix_add(pool, tokens, 2 * PAGE, &a);
    assert_int_equal(counts(pool).n_used, 4);
    kv_prefix_add(pool, tokens, 2 * PAGE, &b);
    assert_memory_equal(a.pages, b.pages, 2 * sizeof(uint32_t));
    assert_int_equal(counts(pool).n_used, 2);
    kv_table_close(pool, &a);
    kv_table_close(pool, &b);
    assert_int_equal(counts(pool).n_kept, 2);
    kv_pool_close(pool);
}

static void pages_longest_unused_are_given_up_first(void **state)
{
    struct kv_pool *pool = open_pool(6);
    struct kv_table table = open_table();
    int32_t a[MOST_TOKENS], b[MOST_TOKENS], c[MOST_TOKENS];
    make_tokens(1, a);
    make_tokens(2, b);
    make_tokens(3, c);
    keep_prompt(pool, a, 3 * PAGE);
    keep_prompt(pool, b, 3 * PAGE);
    keep_prompt(pool, a, 2 * PAGE); /* looked at again, but for its end */

    assert_true(kv_table_grow(pool, &table, 3 * PAGE));
    assert_int_equal(counts(pool).n_evicted, 3);
    assert_int_equal(n_found(pool, a, 3 * PAGE), 2 * PAGE);
    assert_int_equal(n_found(pool, b, 3 * PAGE), PAGE); /* its end went before its beginning */
    kv_prefix_add(pool, c, 3 * PAGE, &table);
    assert_int_equal(n_found(pool, c, 3 * PAGE), 3 * PAGE);
    kv_table_close(pool, &table);
    kv_pool_close(pool);
}

static void pages_in_use_are_never_given_up(void **state)
{
    struct kv_pool *pool = open_pool(4);
    struct kv_table a = open_table(), b = open_table();
    int32_t tokens[MOST_TOKENS];
    make_tokens(1, tokens);
    read_prompt(pool, tokens, 3 * PAGE, &a);
    assert_false(kv_table_grow(pool, &b, 2 * PAGE));
    assert_int_equal(b.n_pages, 1); /* it keeps what it got */
    assert_int_equal(n_found(pool, tokens, 3 * PAGE), 3 * PAGE);
    kv_table_clear(pool, &b);
    assert_int_equal(counts(pool).n_free, 1);
    kv_table_close(pool, &a);
    assert_true(kv_table_grow(pool, &b, 4 * PAGE));
    assert_int_equal(n_found(pool, tokens, 3 * PAGE), 0);
    kv_table_close(pool, &b);
    kv_pool_close(pool);
}

static void fork_without_a_page_for_its_copy_is_empty(void **state)
{
    struct kv_pool *pool = open_pool(2);
    struct kv_table a = open_table(), b = open_table();
    assert_true(kv_table_grow(pool, &a, PAGE + 3));
    assert_false(kv_table_fork(pool, &a, PAGE + 3, &b));
    assert_int_equal(b.n_pages, 0);
    assert_true(kv_table_fork(pool, &a, PAGE, &b));
    kv_table_close(pool, &a);
    assert_int_equal(counts(pool).n_used, 1);
    kv_table_close(pool, &b);
    assert_int_equal(counts(pool).n_free, 2);
    kv_pool_close(pool);
}

static uint32_t next(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % n;
}

/* A page's bytes say which tokens it was written for, all those before it included. */
static uint32_t stamp_of(const int32_t *tokens, uint32_t i_page)
{
    uint32_t stamp = 17;
    for (uint32_t i = 0; i < (i_page + 1) * PAGE; i++)
        stamp = stamp * 31 + (uint32_t)tokens[i];
    return stamp;
}

#define N_TABLES 12
#define N_POOL 30

struct user {
    struct kv_table table;
    int32_t tokens[MOST_TOKENS];
    uint32_t n;
};

/* Prompts of few first pages, so that many share them and many differ. */
static void start_user(struct kv_pool *pool, struct user *u, uint32_t *seed)
{
    for (uint32_t p = 0; p < MOST_TOKENS / PAGE; p++) {
        int32_t kind = (int32_t)next(seed, 2);
        for (uint32_t i = 0; i < PAGE; i++)
            u->tokens[p * PAGE + i] = kind;
    }
    u->n = 1 + next(seed, MOST_TOKENS - 1);
    struct kv_match match = kv_prefix_find(pool, u->tokens, u->n, &u->table);
    for (uint32_t i = 0; i < match.n_tokens / PAGE; i++)
        assert_int_equal(*(uint32_t *)kv_page_keys(pool, u->table.pages[i], 0, 0),
                         stamp_of(u->tokens, i));
    if (!kv_table_grow(pool, &u->table, u->n)) {
        kv_table_clear(pool, &u->table);
        return;
    }
    for (uint32_t i = match.n_tokens / PAGE; i < u->table.n_pages; i++) {
        uint32_t *stamp = kv_page_keys(pool, u->table.pages[i], 0, 0);
        *stamp = (i + 1) * PAGE <= u->n ? stamp_of(u->tokens, i) : 0;
    }
    kv_prefix_add(pool, u->tokens, next(seed, 4) ? u->n : u->n / 2, &u->table);
}

static void random_prompts_find_what_was_written_for_them(void **state)
{
    struct kv_pool *pool = open_pool(N_POOL);
    static struct user users[N_TABLES];
    uint32_t seed = 3;
    uint64_t n_hits = 0;
    for (int i = 0; i < N_TABLES; i++)
        users[i].table = open_table();
    for (int round = 0; round < 20000; round++) {
        struct user *u = &users[next(&seed, N_TABLES)];
        if (u->table.n_pages) {
            kv_table_clear(pool, &u->table);
        } else {
            start_user(pool, u, &seed);
            n_hits += u->table.n_indexed;
        }
        struct kv_counts c = counts(pool);
        assert_int_equal(c.n_used + c.n_kept + c.n_free, N_POOL);
    }
    for (int i = 0; i < N_TABLES; i++)
        kv_table_close(pool, &users[i].table);
    assert_int_equal(counts(pool).n_used, 0);
    assert_true(counts(pool).n_evicted > 1000 && n_hits > 1000);
    kv_pool_close(pool);
}

static void *read_many(void *arg)
{
    struct kv_pool *pool = arg;
    struct kv_table table;
    uint32_t seed = (uint32_t)(uintptr_t)&table;
    if (kv_table_open(&table, MOST_TOKENS, NULL))
        return "no table";
    for (int i = 0; i < 2000; i++) {
        int32_t tokens[MOST_TOKENS];
        uint32_t n = 1 + next(&seed, MOST_TOKENS);
        make_tokens((int32_t)next(&seed, 5), tokens);
        kv_prefix_find(pool, tokens, n, &table);
        if (kv_table_grow(pool, &table, n))
            kv_prefix_add(pool, tokens, n, &table);
        kv_table_clear(pool, &table);
    }
    kv_table_close(pool, &table);
    return NULL;
}

static void threads_share_the_index(void **state)
{
    struct kv_pool *pool = open_pool(20);
    pthread_t threads[4];
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, read_many, pool), 0);
    for (int i = 0; i < 4; i++) {
        void *complaint = NULL;
        pthread_join(threads[i], &complaint);
        if (complaint)
            fail_msg("%s", (const char *)complaint);
    }
    assert_int_equal(counts(pool).n_used, 0);
    kv_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_is_found_again_in_whole_pages),
        cmocka_unit_test(page_is_found_only_behind_what_was_before_it),
        cmocka_unit_test(match_says_where_a_prompt_differs),
        cmocka_unit_test(equal_pages_become_one),
        cmocka_unit_test(pages_longest_unused_are_given_up_first),
        cmocka_unit_test(pages_in_use_are_never_given_up),
        cmocka_unit_test(fork_without_a_page_for_its_copy_is_empty),
        cmocka_unit_test(random_prompts_find_what_was_written_for_them),
        cmocka_unit_test(threads_share_the_index),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
