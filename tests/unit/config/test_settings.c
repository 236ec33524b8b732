/* Settings: the four sources and who wins, what a wrong value's message names, and that the
 * explained file and the key table say the same. */
#include "config/settings.h"
#include "engine/base/mem.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct fixture {
    struct settings settings;
    struct error err;
    char path[64];
};

static int setup(void **state)
{
    struct fixture *f = calloc(1, sizeof(*f));
    assert_non_null(f);
    snprintf(f->path, sizeof(f->path), "/tmp/overfill-settings-XXXXXX");
    int fd = mkstemp(f->path);
    assert_true(fd >= 0);
    close(fd);
    assert_int_equal(settings_init(&f->settings, &f->err), 0);
    *state = f;
    return 0;
}

static int teardown(void **state)
{
    struct fixture *f = *state;
    unlink(f->path);
    settings_free(&f->settings);
    free(f);
    unsetenv("OVERFILL_PORT");
    unsetenv("OVERFILL_KV_MEMORY");
    unsetenv("OVERFILL_CONFIG");
    return 0;
}

static int load(struct fixture *f, const char *yaml)
{
    FILE *file = fopen(f->path, "w");
    assert_non_null(file);
    fputs(yaml, file);
    fclose(file);
    return settings_load_file(&f->settings, f->path, &f->err);
}

static enum setting_source source_of(const struct fixture *f, const char *name)
{
    size_t n;
    return f->settings.origin[settings_find(name) - settings_keys(&n)].source;
}

/* The file is refused, and the message begins with "PATH:LINE: " and holds `part`. */
static void assert_refused(struct fixture *f, const char *yaml, unsigned line, const char *part)
{
    char start[96];
    f->err.message[0] = '\0';
    assert_true(load(f, yaml) < 0);
    snprintf(start, sizeof(start), "%s:%u: ", f->path, line);
    if (strncmp(f->err.message, start, strlen(start)) != 0 || !strstr(f->err.message, part))
        fail_msg("\"%s\" expected to start with \"%s\" and to hold \"%s\"", f->err.message, start,
                 part);
}

static void explained_file_holds_every_key_with_its_default(void **state)
{
    struct fixture *f = *state;
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    struct settings presets;

    assert_int_equal(settings_init(&presets, &f->err), 0);
    if (settings_load_file(&f->settings, OVERFILL_SOURCE_ROOT "/config/overfill.yaml", &f->err) < 0)
        fail_msg("%s", f->err.message);
    for (size_t i = 0; i < n_keys; i++) {
        struct buf in_file = {0};
        struct buf preset = {0};
        settings_value_text(&f->settings, &keys[i], &in_file);
        settings_value_text(&presets, &keys[i], &preset);
        if (source_of(f, keys[i].name) != SOURCE_FILE)
            fail_msg("overfill.yaml does not explain %s", keys[i].name);
        assert_string_equal(in_file.data, preset.data);
        buf_free(&in_file);
        buf_free(&preset);
    }
    settings_free(&presets);
}

static void later_sources_win_in_whatever_order_they_are_read(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(f->settings.port, 8080);
    assert_int_equal(
        settings_set(&f->settings, settings_find("host"), "flag", SOURCE_FLAG, 0, "--host", NULL),
        0);
    setenv("OVERFILL_PORT", "7001", 1);
    setenv("OVERFILL_CONFIG", f->path, 1);
    FILE *file = fopen(f->path, "w");
    fputs("server:\n  host: file\n  port: 7000\n  max-body: 1MiB\n", file);
    fclose(file);
    assert_int_equal(settings_load(&f->settings, &f->err), 0);

    assert_string_equal(f->settings.host, "flag");
    assert_int_equal(f->settings.port, 7001);
    assert_int_equal(f->settings.max_body, 1048576);
    assert_int_equal(source_of(f, "port"), SOURCE_ENVIRONMENT);
    assert_int_equal(source_of(f, "max-body"), SOURCE_FILE);
    assert_int_equal(source_of(f, "drain-seconds"), SOURCE_DEFAULT);
}

static void wrong_file_is_refused_with_its_line(void **state)
{
    struct fixture *f = *state;

    assert_refused(f, "server:\n  port: 1\n  host: a\n  prt: 5\n", 4,
                   "unknown key \"server: prt\"");
    assert_refused(f, "server:\n  port: 1\n\nfoo: 1\n", 4, "unknown key \"foo\"");
    assert_refused(f, "engine:\n  context: 0\n  port: 1\n", 3, "belongs under \"server:\"");
    assert_refused(f, "server:\n  host: x\n  port: abc\n", 3, "whole number from 0 to 65535");
    assert_refused(f, "server:\n  port: 70000\n", 2, "\"70000\" found");
    assert_refused(f, "server:\n  port: 12abc\n", 2, "\"12abc\" found");
    assert_refused(f, "server:\n  port: 1.5\n", 2, "\"1.5\" found");
    assert_refused(f, "server:\n  port: -1\n", 2, "\"-1\" found");
    assert_refused(f, "server:\n  host: x\n  port: [1, 2]\n", 3, "SEQUENCE");
    assert_refused(f, "server:\n  host: {a: b}\n", 2, "MAPPING");
    assert_refused(f, "server: 5\n", 1, "MAPPING");
    assert_refused(f, "engine:\n  weights: q7\n", 2, "auto|q8|f32");
    assert_refused(f, "engine:\n  kv-memory: 2XB\n", 2, "size in bytes");
    assert_refused(f, "engine:\n  kv-memory: 99999999999GiB\n", 2, "size in bytes");
    assert_refused(f, "server:\n  port: 1\n  port: 2\n", 3, "\"port\" stands here for the second");
    assert_refused(f, "server:\n  port: 1\nserver:\n  host: a\n", 3, "\"server\" stands here");
    assert_refused(f, "server:\n\tport: 1\n", 2, "");
    assert_refused(f, "- a\n- b\n", 1, "MAPPING");
}

static void file_without_keys_changes_nothing(void **state)
{
    struct fixture *f = *state;

    assert_int_equal(load(f, ""), 0);
    assert_int_equal(load(f, "# only a comment\n"), 0);
    assert_int_equal(f->settings.port, 8080);
    assert_int_equal(source_of(f, "port"), SOURCE_DEFAULT);
}

static void missing_file_is_named(void **state)
{
    struct fixture *f = *state;

    assert_true(settings_load_file(&f->settings, "/nowhere/overfill.yaml", &f->err) < 0);
    assert_non_null(strstr(f->err.message, "/nowhere/overfill.yaml: No such file"));
}

static void flow_style_and_quotes_keep_their_lines(void **state)
{
    struct fixture *f = *state;
    size_t n;

    assert_int_equal(load(f, "engine: {model: 'a b.gguf',\n  kv-memory: \"2 GiB\"}\n"), 0);
    assert_string_equal(f->settings.model, "a b.gguf");
    assert_true(f->settings.kv_memory == (size_t)2 << 30);
    assert_int_equal(f->settings.origin[settings_find("kv-memory") - settings_keys(&n)].line, 2);
}

static void sizes_know_both_families_of_units(void **state)
{
    struct fixture *f = *state;
    const struct setting_key *key = settings_find("kv-memory");
    const struct {
        const char *text;
        size_t bytes;
    } cases[] = {{"12345", 12345},        {"3kB", 3000},
                 {"3KiB", 3072},          {"2GB", 2000000000},
                 {"2gib", 2147483648},    {"1TiB", (size_t)1 << 40},
                 {"5 MiB", 5 * 1048576u}, {"18446744073709551615", SIZE_MAX}};

    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        assert_int_equal(
            settings_set(&f->settings, key, cases[i].text, SOURCE_FLAG, 0, "x", &f->err), 0);
        assert_true(f->settings.kv_memory == cases[i].bytes);
    }
    const char *wrong[] = {"",
                           "GiB",
                           "-1",
                           "+1",
                           " 1",
                           "1  GiB",
                           "1.5GiB",
                           "18446744073709551616",
                           "18446744073709551615kB",
                           "1GiBx"};
    for (size_t i = 0; i < sizeof(wrong) / sizeof(wrong[0]); i++)
        if (settings_set(&f->settings, key, wrong[i], SOURCE_FLAG, 0, "x", &f->err) == 0)
            fail_msg("\"%s\" was taken as a size", wrong[i]);
}

static void wrong_environment_value_names_the_variable(void **state)
{
    struct fixture *f = *state;

    setenv("OVERFILL_KV_MEMORY", "lots", 1);
    assert_true(settings_load(&f->settings, &f->err) < 0);
    assert_non_null(strstr(f->err.message, "OVERFILL_KV_MEMORY: "));
}

static void printed_settings_can_be_read_again(void **state)
{
    struct fixture *f = *state;
    struct buf out = {0};
    const char *model = "odd \"name\" \\ #1: x.gguf";

    settings_set(&f->settings, settings_find("model"), model, SOURCE_FLAG, 0, "x", NULL);
    settings_set(&f->settings, settings_find("kv-memory"), "1536MiB", SOURCE_FLAG, 0, "x", NULL);
    settings_print(&f->settings, &out);
    assert_false(out.failed);
    assert_non_null(strstr(out.data, "# flag --kv-memory\n"));
    assert_non_null(strstr(out.data, "# default\n"));

    settings_free(&f->settings);
    assert_int_equal(settings_init(&f->settings, &f->err), 0);
    if (load(f, out.data) < 0)
        fail_msg("%s", f->err.message);
    assert_string_equal(f->settings.model, model);
    assert_true(f->settings.kv_memory == (size_t)1536 << 20);
    assert_string_equal(f->settings.host, "127.0.0.1");
    buf_free(&out);
}

static void printed_settings_hide_secrets(void **state)
{
    struct fixture *f = *state;
    struct buf out = {0};

    settings_set(&f->settings, settings_find("api-keys"), "hush-1,hush-2", SOURCE_FLAG, 0, "x",
                 NULL);
    settings_print(&f->settings, &out);
    assert_null(strstr(out.data, "hush"));
    assert_non_null(strstr(out.data, "api-keys: \"(hidden)\""));
    buf_free(&out);
}

static void help_names_every_key_of_its_scope(void **state)
{
    struct buf out = {0};
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);

    settings_help(SETTING_ENGINE, &out);
    for (size_t i = 0; i < n_keys; i++) {
        char flag[64];
        snprintf(flag, sizeof(flag), "  --%s ", keys[i].name);
        assert_int_equal(strstr(out.data, flag) != NULL, (keys[i].scope & SETTING_ENGINE) != 0);
    }
    assert_non_null(strstr(out.data, "[OVERFILL_KV_MEMORY]"));
    buf_free(&out);
}

static void every_failed_allocation_is_an_error(void **state)
{
    struct fixture *f = *state;
    unsigned long k = 0;
    int status;

    do {
        struct settings settings;
        mem_fail_at(++k);
        status = settings_init(&settings, &f->err);
        if (status == 0)
            status = settings_load_file(&settings, OVERFILL_SOURCE_ROOT "/config/overfill.yaml",
                                        &f->err);
        if (status < 0)
            assert_int_equal(f->err.code, ERROR_MEMORY);
        settings_free(&settings);
    } while (status < 0 && k < 10000);
    mem_fail_at(0);
    assert_true(k > 10 && k < 10000);
}

#define TEST(name) cmocka_unit_test_setup_teardown(name, setup, teardown)

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(explained_file_holds_every_key_with_its_default),
        TEST(later_sources_win_in_whatever_order_they_are_read),
        TEST(wrong_file_is_refused_with_its_line),
        TEST(file_without_keys_changes_nothing),
        TEST(missing_file_is_named),
        TEST(flow_style_and_quotes_keep_their_lines),
        TEST(sizes_know_both_families_of_units),
        TEST(wrong_environment_value_names_the_variable),
        TEST(printed_settings_can_be_read_again),
        TEST(printed_settings_hide_secrets),
        TEST(help_names_every_key_of_its_scope),
        TEST(every_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
