/* Values: text to value with its check, who wins, and back to text. The keys are in keys.c, the
 * file's reader in yaml.c. */
#include "config/settings.h"

#include "engine/base/mem.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

static size_t key_index(const struct setting_key *key)
{
    size_t n;
    return (size_t)(key - settings_keys(&n));
}

static char **string_at(struct settings *settings, const struct setting_key *key)
{
    return (char **)((char *)settings + key->offset);
}

static uint32_t *uint_at(struct settings *settings, const struct setting_key *key)
{
    return (uint32_t *)((char *)settings + key->offset);
}

static size_t *size_at(struct settings *settings, const struct setting_key *key)
{
    return (size_t *)((char *)settings + key->offset);
}

static double *share_at(struct settings *settings, const struct setting_key *key)
{
    return (double *)((char *)settings + key->offset);
}

static bool parse_share(const char *text, double *ret_share)
{
    char *end;

    if (*text == '\0' || strspn(text, "0123456789.") != strlen(text))
        return false;
    *ret_share = strtod(text, &end);
    return *end == '\0' && *ret_share <= 1;
}

/* Digits only: no sign, no blanks, no hexadecimal. *ret_end is where they stop. */
static bool parse_digits(const char *text, unsigned long long *ret_value, const char **ret_end)
{
    char *end;

    if (*text < '0' || *text > '9')
        return false;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0)
        return false;
    *ret_value = value;
    *ret_end = end;
    return true;
}

static bool parse_size(const char *text, size_t *ret_bytes)
{
    static const struct {
        const char *name;
        size_t bytes;
    } UNITS[] = {
        {"", 1},
        {"B", 1},
        {"kB", 1000},
        {"MB", 1000000},
        {"GB", 1000000000},
        {"TB", 1000000000000},
        {"KiB", (size_t)1 << 10},
        {"MiB", (size_t)1 << 20},
        {"GiB", (size_t)1 << 30},
        {"TiB", (size_t)1 << 40},
    };
    unsigned long long value;
    const char *unit;

    if (!parse_digits(text, &value, &unit) || value > SIZE_MAX)
        return false;
    if (*unit == ' ')
        unit++;
    for (size_t i = 0; i < sizeof(UNITS) / sizeof(UNITS[0]); i++)
        if (strcasecmp(unit, UNITS[i].name) == 0)
            return mem_mul((size_t)value, UNITS[i].bytes, ret_bytes);
    return false;
}

static bool is_choice(const char *choices, const char *text)
{
    size_t len = strlen(text);

    for (const char *at = choices; len && *at;) {
        size_t n = strcspn(at, "|");
        if (n == len && memcmp(at, text, n) == 0)
            return true;
        at += n + (at[n] == '|');
    }
    return false;
}

/* A value of any type, parsed but not yet stored. */
struct parsed {
    uint32_t uint;
    size_t size;
    double share;
};

static int parse_value(const struct setting_key *key, const char *text, const char *where,
                       struct parsed *ret, struct error *err)
{
    unsigned long long value;
    const char *end;

    switch (key->type) {
    case SETTING_STRING:
        return 0;
    case SETTING_CHOICE:
        if (is_choice(key->choices, text))
            return 0;
        return error_set(err, ERROR_INVALID, "%s: one of %s expected, \"%s\" found", where,
                         key->choices, text);
    case SETTING_UINT:
        if (parse_digits(text, &value, &end) && *end == '\0' && value >= key->min &&
            value <= key->max) {
            ret->uint = (uint32_t)value;
            return 0;
        }
        return error_set(err, ERROR_INVALID,
                         "%s: a whole number from %u to %u expected, \"%s\" found", where, key->min,
                         key->max, text);
    case SETTING_SHARE:
        if (parse_share(text, &ret->share))
            return 0;
        return error_set(err, ERROR_INVALID, "%s: a number from 0 to 1 expected, \"%s\" found",
                         where, text);
    case SETTING_SIZE:
        if (parse_size(text, &ret->size))
            return 0;
        return error_set(err, ERROR_INVALID,
                         "%s: a size in bytes expected, such as 500000, 64MiB or 2GiB, "
                         "\"%s\" found",
                         where, text);
    }
    return error_set(err, ERROR_INTERNAL, "%s: key of unknown type", where);
}

int settings_set(struct settings *settings, const struct setting_key *key, const char *text,
                 enum setting_source source, unsigned line, const char *where, struct error *err)
{
    struct parsed parsed = {0};
    size_t i_key = key_index(key);
    int status = parse_value(key, text, where, &parsed, err);

    if (status < 0 || source < settings->origin[i_key].source)
        return status;
    if (key->type == SETTING_UINT) {
        *uint_at(settings, key) = parsed.uint;
    } else if (key->type == SETTING_SIZE) {
        *size_at(settings, key) = parsed.size;
    } else if (key->type == SETTING_SHARE) {
        *share_at(settings, key) = parsed.share;
    } else {
        char *copy = mem_strdup(text);
        if (!copy)
            return error_memory(err, where, strlen(text));
        mem_free(*string_at(settings, key));
        *string_at(settings, key) = copy;
    }
    settings->origin[i_key].source = source;
    settings->origin[i_key].line = line;
    return 0;
}

int settings_init(struct settings *settings, struct error *err)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);

    *settings = (struct settings){0};
    for (size_t i = 0; i < n_keys; i++) {
        int status =
            settings_set(settings, &keys[i], keys[i].preset, SOURCE_DEFAULT, 0, keys[i].name, err);
        if (status < 0)
            return status;
    }
    return 0;
}

void settings_free(struct settings *settings)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);

    for (size_t i = 0; i < n_keys; i++)
        if (keys[i].type == SETTING_STRING || keys[i].type == SETTING_CHOICE)
            mem_free(*string_at(settings, &keys[i]));
    mem_free(settings->file);
    *settings = (struct settings){0};
}

int settings_set_file(struct settings *settings, const char *path, struct error *err)
{
    char *copy = mem_strdup(path);
    if (!copy)
        return error_memory(err, "path of the settings file", strlen(path));
    mem_free(settings->file);
    settings->file = copy;
    return 0;
}

static int load_environment(struct settings *settings, struct error *err)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    char name[64];

    for (size_t i = 0; i < n_keys; i++) {
        if (!settings_environment_name(&keys[i], name, sizeof(name)))
            return error_set(err, ERROR_INTERNAL, "%s: environment name too long", keys[i].name);
        const char *text = getenv(name);
        if (!text)
            continue;
        int status = settings_set(settings, &keys[i], text, SOURCE_ENVIRONMENT, 0, name, err);
        if (status < 0)
            return status;
    }
    return 0;
}

int settings_load(struct settings *settings, struct error *err)
{
    const char *path = getenv("OVERFILL_CONFIG");
    int status;

    if (!settings->file && path && *path && (status = settings_set_file(settings, path, err)) < 0)
        return status;
    if (settings->file && (status = settings_load_file(settings, settings->file, err)) < 0)
        return status;
    return load_environment(settings, err);
}

void settings_value_text(const struct settings *settings, const struct setting_key *key,
                         struct buf *out)
{
    static const char *const UNITS[] = {"", "KiB", "MiB", "GiB", "TiB"};
    /* Only read through: the accessors serve writers too. */
    struct settings *at = (struct settings *)settings;
    size_t bytes;
    size_t i_unit = 0;

    switch (key->type) {
    case SETTING_STRING:
    case SETTING_CHOICE:
        buf_append_str(out, *string_at(at, key));
        break;
    case SETTING_UINT:
        buf_printf(out, "%u", *uint_at(at, key));
        break;
    case SETTING_SHARE:
        buf_printf(out, "%g", *share_at(at, key));
        break;
    case SETTING_SIZE:
        bytes = *size_at(at, key);
        while (bytes && bytes % 1024 == 0 && i_unit + 1 < sizeof(UNITS) / sizeof(UNITS[0])) {
            bytes /= 1024;
            i_unit++;
        }
        buf_printf(out, "%zu%s", bytes, UNITS[i_unit]);
        break;
    }
}

/* YAML's double-quoted style, for text that a plain scalar could not hold. */
static void append_yaml_string(struct buf *out, const char *text)
{
    bool is_plain = *text != '\0';
    for (const char *c = text; *c; c++)
        if (!strchr("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789/._+-", *c))
            is_plain = false;
    if (is_plain && *text != '-' && strcmp(text, "null") != 0) {
        buf_append_str(out, text);
        return;
    }
    buf_append_str(out, "\"");
    for (const char *c = text; *c; c++) {
        if (*c == '"' || *c == '\\')
            buf_printf(out, "\\%c", *c);
        else if ((unsigned char)*c < 0x20)
            buf_printf(out, "\\x%02x", (unsigned)*c);
        else
            buf_append(out, c, 1);
    }
    buf_append_str(out, "\"");
}

static void append_origin(const struct settings *settings, const struct setting_key *key,
                          struct buf *out)
{
    char name[64];
    size_t i_key = key_index(key);

    switch (settings->origin[i_key].source) {
    case SOURCE_DEFAULT:
        buf_append_str(out, "default");
        break;
    case SOURCE_FILE:
        buf_printf(out, "%s:%u", settings->file ? settings->file : "file",
                   settings->origin[i_key].line);
        break;
    case SOURCE_ENVIRONMENT:
        if (settings_environment_name(key, name, sizeof(name)))
            buf_printf(out, "environment %s", name);
        break;
    case SOURCE_FLAG:
        buf_printf(out, "flag --%s", key->name);
        break;
    }
}

void settings_print(const struct settings *settings, struct buf *out)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    const char *group = "";

    for (size_t i = 0; i < n_keys; i++) {
        _cleanup_buf_ struct buf text = {0};
        _cleanup_buf_ struct buf line = {0};
        if (strcmp(group, keys[i].group) != 0)
            buf_printf(out, "%s:\n", group = keys[i].group);
        settings_value_text(settings, &keys[i], &text);
        if (keys[i].is_secret && text.len) {
            buf_clear(&text);
            buf_append_str(&text, "(hidden)");
        }
        buf_printf(&line, "  %s: ", keys[i].name);
        append_yaml_string(&line, text.data ? text.data : "");
        buf_printf(out, "%-40s # ", line.data ? line.data : "");
        append_origin(settings, &keys[i], out);
        buf_append_str(out, "\n");
        out->failed |= text.failed || line.failed;
    }
}

#define HELP_COLUMN 32
#define HELP_WIDTH 66

void settings_help_line(const char *flag, const char *text, struct buf *out)
{
    const char *space;

    buf_printf(out, "  %-*s", HELP_COLUMN - 2, flag);
    if (strlen(flag) >= HELP_COLUMN - 2)
        buf_printf(out, "\n%*s", HELP_COLUMN, "");
    while (strlen(text) > HELP_WIDTH && (space = memrchr(text, ' ', HELP_WIDTH + 1))) {
        buf_printf(out, "%.*s\n%*s", (int)(space - text), text, HELP_COLUMN, "");
        text = space + 1;
    }
    buf_printf(out, "%s\n", text);
}

void settings_help(unsigned scope, struct buf *out)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    char name[64];

    for (size_t i = 0; i < n_keys; i++) {
        _cleanup_buf_ struct buf flag = {0};
        _cleanup_buf_ struct buf text = {0};
        if (!(keys[i].scope & scope) || !settings_environment_name(&keys[i], name, sizeof(name)))
            continue;
        buf_printf(&flag, "--%s %s", keys[i].name,
                   keys[i].type == SETTING_CHOICE ? keys[i].choices : keys[i].unit);
        buf_append_str(&text, keys[i].help);
        if (*keys[i].preset)
            buf_printf(&text, " [default %s]", keys[i].preset);
        buf_printf(&text, " [%s]", name);
        if (flag.failed || text.failed)
            out->failed = true;
        else
            settings_help_line(flag.data, text.data, out);
    }
}
