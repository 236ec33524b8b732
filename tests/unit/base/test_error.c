/* Error values: code, message, prefix, and that a message too long is cut, not overrun. */
#include "engine/base/error.h"
#include "tests/unit/check.h"

#include <string.h>

static void set_returns_the_negative_code(void **state)
{
    struct error err = {0};

    assert_int_equal(error_set(&err, ERROR_FORMAT, "%s: %d rows", "a.gguf", 3), -ERROR_FORMAT);
    assert_int_equal(err.code, ERROR_FORMAT);
    assert_string_equal(err.message, "a.gguf: 3 rows");
    assert_int_equal(error_set(NULL, ERROR_BUSY, "nobody reads this"), -ERROR_BUSY);
}

static void prefix_stands_before_the_message_and_keeps_the_code(void **state)
{
    struct error err = {0};

    error_set(&err, ERROR_IO, "no such file");
    assert_int_equal(error_prefix(&err, "%s", "a.gguf"), -ERROR_IO);
    assert_string_equal(err.message, "a.gguf: no such file");
}

static void message_too_long_is_cut(void **state)
{
    struct {
        struct error err;
        char guard[8];
    } x = {.guard = "guarded"};
    char text[1000];

    memset(text, 'x', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    error_set(&x.err, ERROR_INVALID, "%s", text);
    assert_int_equal(strlen(x.err.message), sizeof(x.err.message) - 1);
    error_prefix(&x.err, "%s", "first");
    assert_memory_equal(x.err.message, "first: xx", 9);
    error_prefix(&x.err, "%s", text);
    assert_int_equal(strlen(x.err.message), sizeof(x.err.message) - 1);
    assert_string_equal(x.guard, "guarded");
}

static void memory_error_says_what_and_how_much(void **state)
{
    struct error err = {0};

    assert_int_equal(error_memory(&err, "KV pages", 1234), -ERROR_MEMORY);
    assert_string_equal(err.message, "out of memory: KV pages (1234 bytes)");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(set_returns_the_negative_code),
        cmocka_unit_test(prefix_stands_before_the_message_and_keeps_the_code),
        cmocka_unit_test(message_too_long_is_cut),
        cmocka_unit_test(memory_error_says_what_and_how_much),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
