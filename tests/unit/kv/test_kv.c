/* The page pool and its tables: growth, sharing, layout, and what is given back. */
#include "engine/base/mem.h"
#include "engine/kv/kv.h"
#include "tests/unit/check.h"

#include <math.h>
#include <pthread.h>
#include <string.h>

static const struct kv_layout half_layout = {3, 2, 8, 2};

static struct kv_pool *open_pool(const struct kv_layout *layout, uint32_t n_pages)
{
    struct kv_pool *pool = NULL;
    struct error err = {0};
    if (kv_pool_open(layout, n_pages * kv_page_bytes(layout), &pool, &err))
        fail_msg("%s", err.message);
    assert_int_equal(kv_pool_n_pages(pool), n_pages);
    return pool;
}

static struct kv_table open_table(uint32_t max_tokens)
{
    struct kv_table table;
    struct error err = {0};
    if (kv_table_open(&table, max_tokens, &err))
        fail_msg("%s", err.message);
    assert_int_equal(table.n_pages, 0);
    return table;
}

static void fill_page(const struct kv_pool *pool, uint32_t page, int byte)
{
    memset(kv_page_keys(pool, page, 0, 0), byte, kv_page_bytes(kv_pool_layout(pool)));
}

static bool page_is(const struct kv_pool *pool, uint32_t page, uint8_t byte)
{
    const uint8_t *data = kv_page_keys(pool, page, 0, 0);
    for (size_t i = 0; i < kv_page_bytes(kv_pool_layout(pool)); i++)
        if (data[i] != byte)
            return false;
    return true;
}

static void pages_hold_32_tokens_each(void **state)
{
    assert_int_equal(kv_pages_for(0), 0);
    assert_int_equal(kv_pages_for(1), 1);
    assert_int_equal(kv_pages_for(32), 1);
    assert_int_equal(kv_pages_for(33), 2);
    assert_int_equal(kv_pages_for(UINT32_MAX), 1u << 27);
    assert_int_equal(kv_page_bytes(&half_layout), 2 * 3 * 2 * 8 * 32 * 2);
}

static void budget_below_one_page_is_refused_with_both_numbers(void **state)
{
    struct kv_pool *pool = NULL;
    struct error err = {0};
    size_t page_bytes = kv_page_bytes(&half_layout);

    assert_int_equal(kv_pool_open(&half_layout, page_bytes - 1, &pool, &err), -ERROR_MEMORY);
    assert_null(pool);
    assert_non_null(strstr(err.message, "kv-memory: 6143 bytes"));
    assert_non_null(strstr(err.message, "6144"));
    assert_int_equal(kv_pool_open(&half_layout, 0, &pool, &err), -ERROR_MEMORY);

    assert_int_equal(kv_pool_open(&half_layout, 2 * page_bytes - 1, &pool, &err), 0);
    assert_int_equal(kv_pool_n_pages(pool), 1);
    kv_pool_close(pool);
}

static void budget_that_no_machine_has_is_an_error(void **state)
{
    struct kv_pool *pool = NULL;
    struct error err = {0};
    const struct kv_layout wide = {1024, 1024, 512, 4};
    /* more address space than a process has */
    assert_int_equal(kv_pool_open(&wide, (size_t)1 << 50, &pool, &err), -ERROR_MEMORY);
    assert_null(pool);
    assert_true(err.message[0] != '\0');
}

static void table_takes_pages_as_it_grows(void **state)
{
    struct kv_pool *pool = open_pool(&half_layout, 8);
    struct kv_table table = open_table(100);

    assert_int_equal(table.cap, 4);
    kv_table_grow(pool, &table, 1);
    assert_int_equal(table.n_pages, 1);
    kv_table_grow(pool, &table, 32);
    assert_int_equal(table.n_pages, 1);
    uint32_t first = table.pages[0];
    kv_table_grow(pool, &table, 100);
    assert_int_equal(table.n_pages, 4);
    assert_int_equal(table.pages[0], first);
    for (uint32_t i = 0; i < 4; i++)
        for (uint32_t j = 0; j < i; j++)
            assert_int_not_equal(table.pages[i], table.pages[j]);
    kv_table_grow(pool, &table, 10); /* never shrinks */
    assert_int_equal(kv_pool_n_used(pool), 4);
    kv_table_close(pool, &table);
    assert_int_equal(kv_pool_n_used(pool), 0);
    kv_pool_close(pool);
}

static void fork_shares_full_pages_and_copies_the_part_filled_one(void **state)
{
    struct kv_pool *pool = open_pool(&half_layout, 8);
    struct kv_table a = open_table(96);
    struct kv_table b = open_table(128);

    kv_table_grow(pool, &a, 70);
    for (uint32_t i = 0; i < 3; i++)
        fill_page(pool, a.pages[i], (int)i + 1);
    kv_table_fork(pool, &a, 70, &b);
    assert_int_equal(b.n_pages, 3);
    assert_int_equal(b.pages[0], a.pages[0]);
    assert_int_equal(b.pages[1], a.pages[1]);
    assert_int_not_equal(b.pages[2], a.pages[2]);
    assert_true(page_is(pool, b.pages[2], 3));
    assert_int_equal(kv_pool_n_used(pool), 4);

    fill_page(pool, b.pages[2], 77); /* what one answer writes, the other does not see */
    assert_true(page_is(pool, a.pages[2], 3));
    fill_page(pool, a.pages[2], 78);
    assert_true(page_is(pool, b.pages[2], 77));

    kv_table_grow(pool, &b, 128);
    assert_int_equal(kv_pool_n_used(pool), 5);
    kv_table_close(pool, &a);
    assert_int_equal(kv_pool_n_used(pool), 4); /* the shared ones live on */
    assert_true(page_is(pool, b.pages[0], 1));
    assert_true(page_is(pool, b.pages[1], 2));
    kv_table_close(pool, &b);
    assert_int_equal(kv_pool_n_used(pool), 0);
    kv_pool_close(pool);
}

static void fork_at_a_page_boundary_copies_nothing(void **state)
{
    struct kv_pool *pool = open_pool(&half_layout, 4);
    struct kv_table a = open_table(64);
    struct kv_table b = open_table(64);
    struct kv_table empty = open_table(64);

    kv_table_grow(pool, &a, 64);
    kv_table_fork(pool, &a, 64, &b);
    kv_table_fork(pool, &a, 0, &empty);
    assert_int_equal(b.n_pages, 2);
    assert_int_equal(empty.n_pages, 0);
    assert_int_equal(kv_pool_n_used(pool), 2);
    kv_table_close(pool, &b);
    assert_int_equal(kv_pool_n_used(pool), 2);
    kv_table_close(pool, &a);
    kv_table_close(pool, &empty);
    assert_int_equal(kv_pool_n_used(pool), 0);
    kv_pool_close(pool);
}

/* Every head's K and V of every layer and page is its own: each is filled with its number, then
 * all are read back. */
static void check_no_overlap(const struct kv_layout *layout)
{
    struct kv_pool *pool = open_pool(layout, 3);
    size_t bytes = kv_page_bytes(layout) / layout->n_layers / layout->n_kv_heads / 2;

    for (int pass = 0; pass < 2; pass++) {
        uint8_t number = 0;
        for (uint32_t page = 0; page < 3; page++) {
            for (uint32_t l = 0; l < layout->n_layers; l++) {
                for (uint32_t h = 0; h < layout->n_kv_heads; h++) {
                    uint8_t *kv[2] = {kv_page_keys(pool, page, l, h),
                                      kv_page_values(pool, page, l, h)};
                    for (int i = 0; i < 2; i++) {
                        number++;
                        if (pass == 0)
                            memset(kv[i], number, bytes);
                        for (size_t b = 0; b < bytes; b++)
                            assert_int_equal(kv[i][b], number);
                    }
                }
            }
        }
    }
    kv_pool_close(pool);
}

static void layers_and_heads_do_not_overlap(void **state)
{
    check_no_overlap(&half_layout);
    check_no_overlap(&(struct kv_layout){2, 3, 10, 4});
    check_no_overlap(&(struct kv_layout){1, 1, 1, 2});
    check_no_overlap(&(struct kv_layout){2, 2, 40, 1, KV_BLOCKS});
}

#define HEAD_DIM 40 /* more than a block of 32, and not two */

static float value_of(uint32_t t, uint32_t d, bool is_key)
{
    return sinf((float)(t * 131 + d * 7 + is_key)) * (float)(1 + t % 5);
}

/* Writes a page token by token, in odd order, and reads it back: `relative` to the largest value of
 * a token's block of 32, or to the value itself. */
static void check_format(const struct kv_layout *layout, float relative, bool to_block)
{
    const struct kernels *kernels;
    struct error err;
    float k[HEAD_DIM], v[HEAD_DIM], keys[HEAD_DIM * 32], values[32 * HEAD_DIM];
    const float *read_keys, *read_values;
    assert_int_equal(kernels_select(NULL, &kernels, &err), 0);
    struct kv_pool *pool = open_pool(layout, 2);
    void *page_keys = kv_page_keys(pool, 1, 0, 1), *page_values = kv_page_values(pool, 1, 0, 1);
    for (uint32_t i = 0; i < 32; i++) {
        uint32_t t = i * 11 % 32;
        for (uint32_t d = 0; d < HEAD_DIM; d++) {
            k[d] = value_of(t, d, true);
            v[d] = value_of(t, d, false);
        }
        kv_store_key(pool, kernels, page_keys, t, k);
        kv_store_value(pool, kernels, page_values, t, v);
    }
    kv_load(pool, kernels, page_keys, page_values, keys, values, &read_keys, &read_values);
    for (uint32_t t = 0; t < 32; t++) {
        for (uint32_t d = 0; d < HEAD_DIM; d++) {
            float most = to_block ? (float)(1 + t % 5) : 0;
            float a = value_of(t, d, true), b = value_of(t, d, false);
            assert_true(fabsf(read_keys[d * 32 + t] - a) <= relative * fmaxf(most, fabsf(a)));
            assert_true(fabsf(read_values[t * HEAD_DIM + d] - b) <=
                        relative * fmaxf(most, fabsf(b)));
        }
    }
    kv_pool_close(pool);
}

static void formats_keep_what_their_bits_can(void **state)
{
    check_format(&(struct kv_layout){1, 2, HEAD_DIM, 4}, 0, false);
    check_format(&(struct kv_layout){1, 2, HEAD_DIM, 2}, 1.0f / 2048, false);
    check_format(&(struct kv_layout){1, 2, HEAD_DIM, 2, KV_BRAIN}, 1.0f / 256, false);
    check_format(&(struct kv_layout){1, 2, HEAD_DIM, 1, KV_BLOCKS}, 0.51f / 127, true);
}

static void failed_allocation_opens_nothing(void **state)
{
    struct error err = {0};
    unsigned long k = 0;
    struct kv_pool *pool = NULL;
    struct kv_table table = {0};
    int rc;
    do {
        mem_fail_at(++k);
        rc = kv_pool_open(&half_layout, 1 << 20, &pool, &err);
        assert_true(rc == 0 || rc == -ERROR_MEMORY);
    } while (rc);
    assert_true(k > 2); /* it did fail before */
    mem_fail_at(1);
    assert_int_equal(kv_table_open(&table, 100, &err), -ERROR_MEMORY);
    mem_fail_at(0);
    assert_null(table.pages);
    kv_pool_close(pool);
}

/* Forks and closes from many threads: pages are counted under one lock. */
struct sharer {
    struct kv_pool *pool;
    const struct kv_table *shared;
};

static void *fork_and_close(void *arg)
{
    struct sharer *s = arg;
    struct error err;
    for (int i = 0; i < 500; i++) {
        struct kv_table mine;
        if (kv_table_open(&mine, 128, &err))
            return "no table";
        kv_table_fork(s->pool, s->shared, 70, &mine);
        kv_table_grow(s->pool, &mine, 128);
        fill_page(s->pool, mine.pages[2], i);
        bool ok = page_is(s->pool, mine.pages[2], (uint8_t)i);
        kv_table_close(s->pool, &mine);
        if (!ok)
            return "another thread wrote to my page";
    }
    return NULL;
}

static void threads_share_the_pool(void **state)
{
    struct kv_pool *pool = open_pool(&half_layout, 3 + 4 * 2);
    struct kv_table shared = open_table(96);
    struct sharer s = {pool, &shared};
    pthread_t threads[4];

    kv_table_grow(pool, &shared, 70);
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, fork_and_close, &s), 0);
    for (int i = 0; i < 4; i++) {
        void *complaint = NULL;
        pthread_join(threads[i], &complaint);
        if (complaint)
            fail_msg("%s", (const char *)complaint);
    }
    assert_int_equal(kv_pool_n_used(pool), 3);
    kv_table_close(pool, &shared);
    assert_int_equal(kv_pool_n_used(pool), 0);
    kv_pool_close(pool);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(pages_hold_32_tokens_each),
        cmocka_unit_test(budget_below_one_page_is_refused_with_both_numbers),
        cmocka_unit_test(budget_that_no_machine_has_is_an_error),
        cmocka_unit_test(table_takes_pages_as_it_grows),
        cmocka_unit_test(fork_shares_full_pages_and_copies_the_part_filled_one),
        cmocka_unit_test(fork_at_a_page_boundary_copies_nothing),
        cmocka_unit_test(layers_and_heads_do_not_overlap),
        cmocka_unit_test(formats_keep_what_their_bits_can),
        cmocka_unit_test(failed_allocation_opens_nothing),
        cmocka_unit_test(threads_share_the_pool),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
