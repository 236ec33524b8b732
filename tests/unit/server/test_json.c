/* Reading and writing JSON: what is refused before cJSON sees it, and that what we write is JSON.
 */
#include "engine/base/buf.h"
#include "server/json_read.h"
#include "server/json_write.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

static void assert_written(const char *data, size_t len, const char *expected)
{
    struct buf out = {0};
    json_write_string(&out, data, len);
    assert_false(out.failed);
    assert_string_equal(out.data, expected);
    buf_free(&out);
}

static void strings_are_escaped(void **state)
{
    assert_written("", 0, "\"\"");
    assert_written(NULL, 0, "\"\"");
    assert_written("a\"b\\c/", 6, "\"a\\\"b\\\\c/\"");
    assert_written("\b\f\n\r\t\x01\x1f\x7f", 8, "\"\\b\\f\\n\\r\\t\\u0001\\u001f\x7f\"");
    assert_written("x\0y", 3, "\"x\\u0000y\"");
    assert_written("é€🙂", 9, "\"é€🙂\"");
}

static void bytes_that_are_no_character_are_replaced(void **state)
{
    assert_written("a\xff", 2, "\"a\xef\xbf\xbd\"");
    assert_written("\xe2\x82", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* cut */
    assert_written("\xc0\x80", 2, "\"\xef\xbf\xbd\xef\xbf\xbd\"");                 /* overlong */
    assert_written("\xed\xa0\x80", 3, "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\""); /* surrogate */
    assert_written("\xf4\x90\x80\x80z", 5,
                   "\"\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbd\xef\xbf\xbdz\""); /* past U+10FFFF */
}

/* Every string of two bytes, and every byte between two others: always valid, always read back. */
static void any_bytes_become_valid_json(void **state)
{
    struct buf out = {0};
    struct http_error e;

    for (int a = 0; a < 256; a++)
        for (int b = 0; b < 256; b++) {
            char data[4] = {'"', (char)a, (char)b, 'x'};
            buf_clear(&out);
            json_write_string(&out, data, 4);
            bool has_nul = a == 0 || b == 0; /* the reader refuses it, JSON does not */
            assert_true(has_nul || json_check(out.data, out.len, &e) == 0);
            assert_true(utf8_is_valid(out.data, out.len));
        }
    buf_free(&out);
}

static void numbers_are_json(void **state)
{
    struct buf out = {0};

    json_write_float(&out, -0.25f);
    buf_append(&out, " ", 1);
    json_write_float(&out, NAN);
    buf_append(&out, " ", 1);
    json_write_float(&out, -INFINITY);
    buf_append(&out, " ", 1);
    json_write_uint(&out, UINT64_MAX);
    buf_append(&out, " ", 1);
    json_write_uint(&out, 0);
    buf_append(&out, " ", 1);
    json_write_ms(&out, 1.0 / 3);
    assert_string_equal(out.data, "-0.25 null null 18446744073709551615 0 0.333");
    buf_free(&out);
}

static void floats_come_back_as_they_were(void **state)
{
    struct buf out = {0};
    float value = -1.0e-7f;

    for (int i = 0; i < 2000; i++, value *= 1.013f) {
        buf_clear(&out);
        json_write_float(&out, value);
        assert_true(strtof(out.data, NULL) == value);
    }
    buf_free(&out);
}

static void valid_json_is_taken(void **state)
{
    static const char *const TEXTS[] = {
        "{}",
        "[]",
        "null",
        " \t\r\n{ \"a\" : [ 1 , -0.5e+3, true,false,null ] } ",
        "\"\\u00e9\\ud83d\\ude42\"",
        "-0",
        "0.1",
        "1E9",
        "[[],{},[{}]]",
        "{\"\":\"\"}",
        "\"\\\"\\\\\\/\\b\\f\\n\\r\\t\"",
        "\"é€🙂\"",
    };
    struct http_error e;

    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++)
        if (json_check(TEXTS[i], strlen(TEXTS[i]), &e) < 0)
            fail_msg("%s: %s", TEXTS[i], e.message);
}

static void what_is_not_json_is_refused(void **state)
{
    static const char *const TEXTS[] = {
        "",
        " ",
        "{",
        "}",
        "[",
        "]",
        "[1,]",
        "[,1]",
        "[1 2]",
        "{\"a\"}",
        "{\"a\":}",
        "{\"a\":1,}",
        "{a:1}",
        "{'a':1}",
        "{\"a\":1}}",
        "[]]",
        "[}",
        "{]",
        "01",
        "-",
        "+1",
        ".5",
        "1.",
        "1e",
        "1e+",
        "0x10",
        "NaN",
        "Infinity",
        "tru",
        "nulll",
        "\"",
        "\"a",
        "\"\\\"",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\\u12g4\"",
        "\"\\u0000\"",
        "\"\\ud800\"",
        "\"\\ud800x\"",
        "\"\\ud800\\u0041\"",
        "\"\\udc00\"",
        "\"\n\"",
        "\"\x01\"",
        "\"\xff\"",
        "\"\xc3\"",
        "1 1",
        "// x\n1",
        "\xef\xbb\xbf{}",
    };
    struct http_error e;

    for (size_t i = 0; i < sizeof(TEXTS) / sizeof(TEXTS[0]); i++) {
        e.status = 0;
        if (json_check(TEXTS[i], strlen(TEXTS[i]), &e) == 0)
            fail_msg("taken: %s", TEXTS[i]);
        assert_int_equal(e.status, 400);
    }
}

static void depth_is_bounded(void **state)
{
    char text[4 * JSON_MAX_DEPTH];
    struct http_error e;

    memset(text, '[', JSON_MAX_DEPTH);
    memset(text + JSON_MAX_DEPTH, ']', JSON_MAX_DEPTH);
    assert_int_equal(json_check(text, 2 * JSON_MAX_DEPTH, &e), 0);
    memset(text, '[', JSON_MAX_DEPTH + 1);
    memset(text + JSON_MAX_DEPTH + 1, ']', JSON_MAX_DEPTH + 1);
    text[JSON_MAX_DEPTH] = '1'; /* the same depth, not empty */
    assert_int_equal(json_check(text, 2 * JSON_MAX_DEPTH + 1, &e), 0);
    memset(text, '[', JSON_MAX_DEPTH + 1);
    text[JSON_MAX_DEPTH + 1] = '1';
    memset(text + JSON_MAX_DEPTH + 2, ']', JSON_MAX_DEPTH + 1);
    assert_int_equal(json_check(text, 2 * JSON_MAX_DEPTH + 3, &e), -1);
    assert_non_null(strstr(e.message, "too deeply"));
}

/* Objects and arrays in every mix of 8 levels: closed in the right order, or refused. */
static void brackets_must_match(void **state)
{
    struct http_error e;

    for (unsigned mix = 0; mix < 256; mix++) {
        struct buf text = {0};
        for (int level = 0; level < 8; level++)
            buf_append_str(&text, mix >> level & 1 ? "{\"k\":" : "[");
        buf_append_str(&text, "1");
        for (int level = 7; level >= 0; level--)
            buf_append_str(&text, mix >> level & 1 ? "}" : "]");
        assert_int_equal(json_check(text.data, text.len, &e), 0);
        text.data[text.len - 1] ^= '}' ^ ']';
        assert_int_equal(json_check(text.data, text.len, &e), -1);
        buf_free(&text);
    }
}

static void cut_text_is_refused_everywhere(void **state)
{
    static const char TEXT[] =
        "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":\"\\u00e9é\"}],"
        "\"n\":1.5e3,\"stream\":true,\"x\":null}";
    struct http_error e;

    assert_int_equal(json_check(TEXT, sizeof(TEXT) - 1, &e), 0);
    for (size_t len = 0; len + 1 < sizeof(TEXT); len++)
        assert_int_equal(json_check(TEXT, len, &e), -1);
}

static void only_objects_are_requests(void **state)
{
    struct http_error e;
    cJSON *object = NULL;

    json_setup();
    assert_int_equal(json_parse_object("[1]", 3, &object, &e), -1);
    assert_int_equal(json_parse_object(NULL, 0, &object, &e), -1);
    assert_null(object);
    assert_int_equal(json_parse_object("{\"a\":1}", 7, &object, &e), 0);
    cJSON_Delete(object);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(strings_are_escaped),
        cmocka_unit_test(bytes_that_are_no_character_are_replaced),
        cmocka_unit_test(any_bytes_become_valid_json),
        cmocka_unit_test(numbers_are_json),
        cmocka_unit_test(floats_come_back_as_they_were),
        cmocka_unit_test(valid_json_is_taken),
        cmocka_unit_test(what_is_not_json_is_refused),
        cmocka_unit_test(depth_is_bounded),
        cmocka_unit_test(brackets_must_match),
        cmocka_unit_test(cut_text_is_refused_everywhere),
        cmocka_unit_test(only_objects_are_requests),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
