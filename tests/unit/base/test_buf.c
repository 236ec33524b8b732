/* The growable buffer: content, termination, the sticky failure, and who owns the memory. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "tests/unit/check.h"

#include <string.h>

static void appended_parts_stand_in_order_and_are_terminated(void **state)
{
    struct buf b = {0};

    for (int i = 0; i < 1000; i++) {
        buf_printf(&b, "%d,", i);
        buf_append(&b, "\0x", 2);
        assert_int_equal(b.data[b.len], '\0');
    }
    buf_append_str(&b, "end");
    assert_false(b.failed);
    assert_memory_equal(b.data, "0,\0x1,\0x2,\0x", 12);
    assert_string_equal(b.data + b.len - 3, "end");
    buf_free(&b);
}

static void empty_append_gives_an_empty_string(void **state)
{
    struct buf b = {0};

    buf_append(&b, NULL, 0);
    assert_string_equal(b.data, "");
    assert_int_equal(b.len, 0);
    buf_free(&b);
}

static void failed_append_keeps_content_and_refuses_more(void **state)
{
    struct buf b = {0};
    char big[4096] = {0};

    buf_append_str(&b, "kept");
    mem_fail_at(1);
    buf_append(&b, big, sizeof(big));
    mem_fail_at(0);
    assert_true(b.failed);
    buf_append_str(&b, "more");
    assert_string_equal(b.data, "kept");
    assert_null(buf_take(&b, NULL));
    assert_null(b.data);
}

static void size_that_overflows_fails(void **state)
{
    struct buf b = {0};

    buf_append_str(&b, "x");
    assert_false(buf_reserve(&b, SIZE_MAX));
    assert_false(buf_reserve(&b, SIZE_MAX - 1));
    assert_true(b.failed);
    buf_free(&b);
}

static void clear_keeps_the_memory_and_forgets_the_failure(void **state)
{
    struct buf b = {0};

    buf_append_str(&b, "old");
    b.failed = true;
    buf_clear(&b);
    mem_fail_at(1);
    buf_append_str(&b, "new");
    mem_fail_at(0);
    assert_false(b.failed);
    assert_string_equal(b.data, "new");
    buf_free(&b);
}

static void take_hands_the_memory_over(void **state)
{
    struct buf b = {0};
    size_t len;

    buf_append_str(&b, "mine");
    char *text = buf_take(&b, &len);
    assert_string_equal(text, "mine");
    assert_int_equal(len, 4);
    assert_null(b.data);
    mem_free(text);

    text = buf_take(&b, &len); /* also of a buffer that never held anything */
    assert_string_equal(text, "");
    assert_int_equal(len, 0);
    mem_free(text);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(appended_parts_stand_in_order_and_are_terminated),
        cmocka_unit_test(empty_append_gives_an_empty_string),
        cmocka_unit_test(failed_append_keeps_content_and_refuses_more),
        cmocka_unit_test(size_that_overflows_fails),
        cmocka_unit_test(clear_keeps_the_memory_and_forgets_the_failure),
        cmocka_unit_test(take_hands_the_memory_over),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
