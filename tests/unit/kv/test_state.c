/* The prefix cache in a file: what comes back, in which order it is given up, and that no broken
 * file, full disk or failed allocation does anything but leave it out. */
#include "engine/base/mem.h"
#include "engine/kv/kv.h"
#include "tests/unit/check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

#define PAGE KERNEL_PAGE_TOKENS
#define MOST_TOKENS (8 * PAGE)
#define NO_LIMIT ((size_t)1 << 30)

static const struct kv_layout layout = {1, 1, 2, 2};
static const char print[] = "fp_0123456789abcdef";
static char folder[] = P_tmpdir "/overfill-state-XXXXXX";
static char path[64], path_new[72];

static struct kv_pool *open_pool(uint32_t n_pages)
{
    struct kv_pool *pool = NULL;
    struct error err = {0};
    if (kv_pool_open(&layout, n_pages * kv_page_bytes(&layout), &pool, &err))
        fail_msg("%s", err.message);
    return pool;
}

/* Tokens that name their place and the prompt they belong to. */
static void make_tokens(int32_t name, int32_t *tokens)
{
    for (int32_t i = 0; i < MOST_TOKENS; i++)
        tokens[i] = name * 1000 + i;
}

/* As a request of the full model would; every page is full of its prompt's name. */
static void keep_prompt(struct kv_pool *pool, int32_t name, uint32_t n_pages)
{
    struct kv_table table;
    int32_t tokens[MOST_TOKENS];
    make_tokens(name, tokens);
    assert_int_equal(kv_table_open(&table, MOST_TOKENS, NULL), 0);
    uint32_t n_found = kv_prefix_find(pool, tokens, n_pages * PAGE, &table).n_tokens / PAGE;
    assert_true(kv_table_grow(pool, &table, n_pages * PAGE));
    for (uint32_t i = n_found; i < n_pages; i++)
        memset(kv_page_keys(pool, table.pages[i], 0, 0), name + (int)i, kv_page_bytes(&layout));
    kv_prefix_add(pool, tokens, n_pages * PAGE, &table);
    kv_table_close(pool, &table);
}

/* Pages of the prompt that the pool has, whose bytes must be those that were written. */
static uint32_t n_kept(struct kv_pool *pool, int32_t name)
{
    struct kv_table table;
    int32_t tokens[MOST_TOKENS];
    make_tokens(name, tokens);
    assert_int_equal(kv_table_open(&table, MOST_TOKENS, NULL), 0);
    uint32_t n = kv_prefix_find(pool, tokens, MOST_TOKENS, &table).n_tokens / PAGE;
    for (uint32_t i = 0; i < n; i++) {
        const uint8_t *bytes = kv_page_keys(pool, table.pages[i], 0, 0);
        for (size_t k = 0; k < kv_page_bytes(&layout); k++)
            assert_int_equal(bytes[k], (uint8_t)(name + (int)i));
    }
    kv_table_close(pool, &table);
    return n;
}

static uint32_t n_free(struct kv_pool *pool)
{
    struct kv_counts c;
    kv_pool_get_counts(pool, &c);
    return c.n_free;
}

static uint32_t save(struct kv_pool *pool, size_t max_bytes)
{
    struct error err = {0};
    uint32_t n = UINT32_MAX;
    if (kv_state_save(pool, path, print, max_bytes, &n, &err))
        fail_msg("%s", err.message);
    return n;
}

static uint32_t load(struct kv_pool *pool)
{
    struct error err = {0};
    uint32_t n = UINT32_MAX;
    if (kv_state_load(pool, path, print, &n, &err))
        fail_msg("%s", err.message);
    return n;
}

static void expect_refused(const char *fingerprint, const char *why)
{
    struct kv_pool *pool = open_pool(8);
    struct error err = {0};
    uint32_t n = 77;
    int rc = kv_state_load(pool, path, fingerprint, &n, &err);
    assert_int_equal(rc, -ERROR_FORMAT);
    assert_non_null(strstr(err.message, path));
    if (why && !strstr(err.message, why))
        fail_msg("%s; expected: %s", err.message, why);
    assert_int_equal(n, 77);
    assert_int_equal(n_free(pool), 8);
    assert_int_equal(n_kept(pool, 1), 0);
    keep_prompt(pool, 1, 3); /* and it is a pool as any other */
    assert_int_equal(n_kept(pool, 1), 3);
    kv_pool_close(pool);
}

/* Two prompts: 1 with three pages, 2 with two. */
static void write_two_prompts(void)
{
    struct kv_pool *pool = open_pool(8);
    keep_prompt(pool, 1, 3);
    keep_prompt(pool, 2, 2);
    assert_int_equal(save(pool, NO_LIMIT), 5);
    kv_pool_close(pool);
}

static void what_was_kept_is_found_by_the_next_pool(void **state)
{
    struct kv_pool *pool = open_pool(8);
    struct stat st;
    write_two_prompts();
    assert_int_equal(load(pool), 5);
    assert_int_equal(n_kept(pool, 1), 3);
    assert_int_equal(n_kept(pool, 2), 2);
    assert_int_equal(n_kept(pool, 3), 0);
    assert_int_equal(n_free(pool), 3);
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    assert_int_equal(access(path_new, F_OK), -1);
    kv_pool_close(pool);
}

static void no_file_and_nothing_to_keep_are_no_errors(void **state)
{
    struct kv_pool *pool = open_pool(8);
    unlink(path);
    assert_int_equal(load(pool), 0);
    assert_int_equal(save(pool, NO_LIMIT), 0);
    assert_int_equal(access(path, F_OK), -1);
    kv_pool_close(pool);
}

/* After two lives the pages longest unused are still the first to go. */
static void order_of_use_outlives_the_process(void **state)
{
    struct kv_pool *a = open_pool(5), *b = open_pool(5);
    write_two_prompts();
    assert_int_equal(load(a), 5);
    assert_int_equal(save(a, NO_LIMIT), 5);
    assert_int_equal(load(b), 5);
    keep_prompt(b, 3, 2);
    assert_int_equal(n_kept(b, 1), 1);
    assert_int_equal(n_kept(b, 2), 2);
    kv_pool_close(a);
    kv_pool_close(b);
}

static void size_is_bounded_and_the_latest_stay(void **state)
{
    struct kv_pool *pool = open_pool(8), *small = open_pool(2), *next = open_pool(8);
    struct stat st;
    write_two_prompts();
    assert_int_equal(stat(path, &st), 0);
    assert_int_equal(load(pool), 5);
    assert_int_equal(load(small), 2);
    assert_int_equal(n_kept(small, 2), 2);
    assert_int_equal(save(pool, (size_t)st.st_size - 1), 4);
    assert_int_equal(load(next), 4);
    assert_int_equal(n_kept(next, 2), 2);
    assert_int_equal(n_kept(next, 1), 2);
    assert_int_equal(save(next, 10), 0);
    kv_pool_close(pool);
    kv_pool_close(small);
    kv_pool_close(next);
}

/* Pages that a table still holds are not written, nor what could only be found behind them. */
static void pages_behind_a_held_one_are_left_out(void **state)
{
    struct kv_pool *pool = open_pool(8), *next = open_pool(8);
    struct kv_table table;
    int32_t tokens[MOST_TOKENS];
    make_tokens(1, tokens);
    keep_prompt(pool, 1, 3);
    keep_prompt(pool, 2, 2);
    assert_int_equal(kv_table_open(&table, MOST_TOKENS, NULL), 0);
    assert_int_equal(kv_prefix_find(pool, tokens, PAGE, &table).n_tokens, PAGE);
    assert_int_equal(save(pool, NO_LIMIT), 2);
    assert_int_equal(load(next), 2);
    assert_int_equal(n_kept(next, 2), 2);
    kv_table_close(pool, &table);
    kv_pool_close(pool);
    kv_pool_close(next);
}

static void file_of_others_is_refused(void **state)
{
    const struct kv_layout wider = {1, 1, 4, 2};
    struct kv_pool *pool = NULL;
    struct error err = {0};
    uint32_t n;
    write_two_prompts();
    expect_refused("fp_of_another_model", "other models");
    assert_int_equal(kv_pool_open(&wider, NO_LIMIT >> 10, &pool, &err), 0);
    assert_int_equal(kv_state_load(pool, path, print, &n, &err), -ERROR_FORMAT);
    kv_pool_close(pool);
}

static size_t read_file(uint8_t **ret_data)
{
    struct stat st;
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    assert_int_equal(fstat(fileno(f), &st), 0);
    *ret_data = malloc((size_t)st.st_size);
    assert_non_null(*ret_data);
    assert_int_equal(fread(*ret_data, 1, (size_t)st.st_size, f), st.st_size);
    fclose(f);
    return (size_t)st.st_size;
}

static void write_file(const uint8_t *data, size_t n)
{
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(data, 1, n, f), n);
    fclose(f);
}

static void any_changed_byte_is_found(void **state)
{
    uint8_t *data;
    write_two_prompts();
    size_t n = read_file(&data);
    for (size_t i = 0; i < n; i += i < 600 ? 1 : 7) {
        data[i] ^= 0x10;
        write_file(data, n);
        expect_refused(print, NULL);
        data[i] ^= 0x10;
    }
    free(data);
}

static void file_cut_anywhere_or_longer_is_refused(void **state)
{
    uint8_t *data;
    write_two_prompts();
    size_t n = read_file(&data);
    data = realloc(data, n + 1);
    assert_non_null(data);
    data[n] = 0;
    for (size_t len = 0; len < n; len += len < 600 ? 1 : 7) {
        write_file(data, len);
        expect_refused(print, NULL);
    }
    write_file(data, n + 1);
    expect_refused(print, "size");
    write_file(
        (const uint8_t *)"not ours, but it is long enough to hold a header, which takes more "
                         "than a hundred bytes; so it goes on for a while, and on and on",
        128);
    expect_refused(print, "not a prefix cache");
    free(data);
}

/* The disk is full after any number of bytes: an error, and the former file is still there. */
static void full_disk_leaves_what_was_there(void **state)
{
    struct kv_pool *pool = open_pool(8), *next = open_pool(8);
    struct rlimit before, limit;
    struct error err;
    struct stat st;
    write_two_prompts();
    assert_int_equal(stat(path, &st), 0);
    keep_prompt(pool, 3, 5);
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    for (rlim_t most = 0; most < (rlim_t)st.st_size; most += 100) {
        uint32_t n = 77;
        limit = (struct rlimit){most, before.rlim_max};
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &limit), 0);
        int rc = kv_state_save(pool, path, print, NO_LIMIT, &n, &err);
        assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
        assert_int_equal(rc, -ERROR_IO);
        assert_non_null(strstr(err.message, path));
        assert_int_equal(n, 77);
        assert_int_equal(access(path_new, F_OK), -1);
    }
    assert_int_equal(load(next), 5);
    assert_int_equal(n_kept(next, 1), 3);
    kv_pool_close(pool);
    kv_pool_close(next);
}

static void folder_that_is_gone_is_an_error(void **state)
{
    struct kv_pool *pool = open_pool(8);
    struct error err = {0};
    uint32_t n;
    keep_prompt(pool, 1, 1);
    assert_int_equal(kv_state_save(pool, "/no/such/folder/file", print, NO_LIMIT, &n, &err),
                     -ERROR_IO);
    assert_non_null(strstr(err.message, "/no/such/folder/file"));
    kv_pool_close(pool);
}

static void failed_allocations_leave_it_out(void **state)
{
    write_two_prompts();
    for (unsigned long k = 1; k < 6; k++) {
        struct kv_pool *pool = open_pool(8), *next = open_pool(8);
        struct error err;
        uint32_t n;
        keep_prompt(pool, 1, 3);
        mem_fail_at(k);
        int rc = kv_state_save(pool, path, print, NO_LIMIT, &n, &err);
        bool did_fail = mem_count_allocations() >= k;
        mem_fail_at(k);
        int rc_load = kv_state_load(next, path, print, &n, &err);
        bool did_fail_load = mem_count_allocations() >= k;
        mem_fail_at(0);
        assert_int_equal(rc, did_fail ? -ERROR_MEMORY : 0);
        assert_int_equal(rc_load, did_fail_load ? -ERROR_MEMORY : 0);
        kv_pool_close(pool);
        kv_pool_close(next);
    }
}

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(path, sizeof(path), "%s/prefix-cache", folder);
    snprintf(path_new, sizeof(path_new), "%s.new", path);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(path);
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_was_kept_is_found_by_the_next_pool),
        cmocka_unit_test(no_file_and_nothing_to_keep_are_no_errors),
        cmocka_unit_test(order_of_use_outlives_the_process),
        cmocka_unit_test(size_is_bounded_and_the_latest_stay),
        cmocka_unit_test(pages_behind_a_held_one_are_left_out),
        cmocka_unit_test(file_of_others_is_refused),
        cmocka_unit_test(any_changed_byte_is_found),
        cmocka_unit_test(file_cut_anywhere_or_longer_is_refused),
        cmocka_unit_test(full_disk_leaves_what_was_there),
        cmocka_unit_test(folder_that_is_gone_is_an_error),
        cmocka_unit_test(failed_allocations_leave_it_out),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
