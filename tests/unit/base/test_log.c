/* Log lines: the level's filter, the shape of a line, and that a long one is cut with its end. */
#include "engine/base/log.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Runs `speak` with stderr in a pipe; returns what it wrote. */
static size_t capture(void (*speak)(void), char *text, size_t size)
{
    int ends[2];
    int old = dup(STDERR_FILENO);

    assert_int_equal(pipe(ends), 0);
    dup2(ends[1], STDERR_FILENO);
    close(ends[1]);
    speak();
    dup2(old, STDERR_FILENO);
    close(old);
    ssize_t n = read(ends[0], text, size - 1);
    close(ends[0]);
    text[n > 0 ? n : 0] = '\0';
    return n > 0 ? (size_t)n : 0;
}

static void speak_two_levels(void)
{
    log_set_level(LOG_LEVEL_WARN);
    log_info("not shown");
    log_warn("shown %d", 7);
}

static void speak_long(void)
{
    char text[5000];
    memset(text, 'y', sizeof(text) - 1);
    text[sizeof(text) - 1] = '\0';
    log_error("%s", text);
}

static void lines_below_the_level_are_left_out(void **state)
{
    char text[4096];
    int year;
    int millis;
    char rest[64];

    capture(speak_two_levels, text, sizeof(text));
    assert_null(strstr(text, "not shown"));
    assert_int_equal(sscanf(text, "%d-%*d-%*dT%*d:%*d:%*d.%dZ %63[^\n]", &year, &millis, rest), 3);
    assert_true(year >= 2024);
    assert_string_equal(rest, "warn shown 7");
}

static void long_line_is_cut_and_ended(void **state)
{
    char text[8192];
    size_t n = capture(speak_long, text, sizeof(text));

    assert_true(n > 1000 && n <= 2048);
    assert_int_equal(text[n - 1], '\n');
    assert_int_equal(text[n - 2], 'y');
}

static void level_names_are_known(void **state)
{
    assert_int_equal(log_level_from_name("error"), LOG_LEVEL_ERROR);
    assert_int_equal(log_level_from_name("debug"), LOG_LEVEL_DEBUG);
    assert_int_equal(log_level_from_name("loud"), -1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(lines_below_the_level_are_left_out),
        cmocka_unit_test(long_line_is_cut_and_ended),
        cmocka_unit_test(level_names_are_known),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
