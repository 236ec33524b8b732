/* The option parser of all subcommands: a command's own options and the settings it takes. */
#include "cli/cli.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

int cli_fail(const char *command, int code, const char *fmt, ...)
{
    char message[1024];
    va_list args;

    va_start(args, fmt);
    vsnprintf(message, sizeof(message), fmt, args);
    va_end(args);
    fprintf(stderr, "overfill %s: %s\n", command, message);
    return code;
}

int cli_fail_with(const char *command, const struct error *err)
{
    return cli_fail(command, err->code == ERROR_INVALID ? CLI_WRONG_CALL : CLI_FAILED, "%s",
                    err->message);
}

static void print_help(const struct cli_command *command)
{
    _cleanup_buf_ struct buf out = {0};

    buf_printf(&out, "usage: %s\n\n%s\n", command->synopsis, command->summary);
    if (command->n_options)
        buf_append_str(&out, "\nOptions:\n");
    for (size_t i = 0; i < command->n_options; i++) {
        const struct cli_option *option = &command->options[i];
        _cleanup_buf_ struct buf flag = {0};
        buf_printf(&flag, "--%s%s%s", option->name, option->value ? " " : "",
                   option->value ? option->value : "");
        settings_help_line(flag.data ? flag.data : "", option->help, &out);
    }
    if (command->settings) {
        buf_append_str(&out, "\nSettings, also from a file and the environment "
                             "(config/overfill.yaml explains them):\n");
        settings_help_line("--config FILE",
                           "settings file; environment and flags win over it [OVERFILL_CONFIG]",
                           &out);
        settings_help(command->scope, &out);
    }
    if (out.data)
        fputs(out.data, stdout);
}

static int too_many(const struct cli_command *command, const struct cli_option *option)
{
    return cli_fail(command->name, CLI_WRONG_CALL, "--%s: at most %d times", option->name,
                    CLI_STRINGS_MAX);
}

static int add_number(const struct cli_command *command, const struct cli_option *option,
                      double value)
{
    struct cli_numbers *list = option->target;
    if (list->n == CLI_STRINGS_MAX)
        return too_many(command, option);
    list->items[list->n++] = value;
    return CLI_DONE;
}

static int set_number(const struct cli_command *command, const struct cli_option *option,
                      const char *text)
{
    char *end;
    errno = 0;
    double value = strtod(text, &end);
    bool is_number = *text && *end == '\0' && errno == 0 && isfinite(value);

    if (!is_number || value < option->min || value > option->max ||
        (option->type == CLI_UINT && value != floor(value)))
        return cli_fail(command->name, CLI_WRONG_CALL,
                        "--%s: a %snumber from %.10g to %.10g expected, \"%s\" found", option->name,
                        option->type == CLI_UINT ? "whole " : "", option->min, option->max, text);
    if (option->type == CLI_UINT)
        *(uint32_t *)option->target = (uint32_t)value;
    else if (option->type == CLI_NUMBER)
        *(double *)option->target = value;
    else
        return add_number(command, option, value);
    return CLI_DONE;
}

static int set_seed(const struct cli_command *command, const struct cli_option *option,
                    const char *text)
{
    char *end;
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);

    if (*text < '0' || *text > '9' || *end || errno)
        return cli_fail(
            command->name, CLI_WRONG_CALL,
            "--%s: a whole number from 0 to 18446744073709551615 expected, \"%s\" found",
            option->name, text);
    *(uint64_t *)option->target = value;
    return CLI_DONE;
}

static int set_option(const struct cli_command *command, const struct cli_option *option,
                      const char *text)
{
    struct cli_strings *list;

    switch (option->type) {
    case CLI_SWITCH:
        *(bool *)option->target = true;
        return CLI_DONE;
    case CLI_STRING:
        *(const char **)option->target = text;
        return CLI_DONE;
    case CLI_STRINGS:
        list = option->target;
        if (list->n == CLI_STRINGS_MAX)
            return too_many(command, option);
        list->items[list->n++] = text;
        return CLI_DONE;
    case CLI_SEED:
        return set_seed(command, option, text);
    case CLI_UINT:
    case CLI_NUMBER:
    case CLI_NUMBERS:
        return set_number(command, option, text);
    }
    return CLI_WRONG_CALL;
}

static const struct cli_option *find_option(const struct cli_command *command, const char *name)
{
    for (size_t i = 0; i < command->n_options; i++)
        if (strcmp(command->options[i].name, name) == 0)
            return &command->options[i];
    return NULL;
}

static int set_setting(const struct cli_command *command, const struct setting_key *key,
                       const char *text)
{
    struct error err;
    char where[80];
    int status;

    snprintf(where, sizeof(where), "--%s", key ? key->name : "config");
    if (key)
        status = settings_set(command->settings, key, text, SOURCE_FLAG, 0, where, &err);
    else
        status = settings_set_file(command->settings, text, &err);
    return status < 0 ? cli_fail(command->name, CLI_WRONG_CALL, "%s", err.message) : CLI_DONE;
}

/* One `--name`, `--name VALUE` or `--name=VALUE` at argv[*i]; *i moves to the last argument used.
 */
static int take_flag(const struct cli_command *command, int argc, char **argv, int *i)
{
    char name[64];
    const char *text = argv[*i] + 2;
    const char *equals = strchr(text, '=');
    size_t len = equals ? (size_t)(equals - text) : strlen(text);

    snprintf(name, sizeof(name), "%.*s", (int)(len < sizeof(name) ? len : sizeof(name) - 1), text);
    const struct cli_option *option = find_option(command, name);
    const struct setting_key *key = command->settings && !option ? settings_find(name) : NULL;
    bool is_config = command->settings && !option && strcmp(name, "config") == 0;
    if (key && !(key->scope & command->scope))
        key = NULL;
    if (!option && !key && !is_config)
        return cli_fail(command->name, CLI_WRONG_CALL,
                        "--%s: unknown option; `overfill %s --help` lists them", name,
                        command->name);
    if (option && option->type == CLI_SWITCH) {
        if (equals)
            return cli_fail(command->name, CLI_WRONG_CALL, "--%s: takes no value", name);
        return set_option(command, option, NULL);
    }
    if (!equals && *i + 1 >= argc)
        return cli_fail(command->name, CLI_WRONG_CALL, "--%s: needs a value", name);
    const char *value = equals ? equals + 1 : argv[++*i];
    int status = option ? set_option(command, option, value) : set_setting(command, key, value);
    bool is_list = option && option->type == CLI_NUMBERS && !equals;
    while (status == CLI_DONE && is_list && *i + 1 < argc && strncmp(argv[*i + 1], "--", 2) != 0)
        status = set_option(command, option, argv[++*i]);
    return status;
}

int cli_parse(const struct cli_command *command, int argc, char **argv)
{
    bool only_positional = false;
    struct error err;

    for (int i = 1; i < argc; i++) {
        const char *arg = argv[i];
        if (!only_positional && (strcmp(arg, "--help") == 0 || strcmp(arg, "-h") == 0)) {
            print_help(command);
            return CLI_HELP_SHOWN;
        }
        if (!only_positional && strcmp(arg, "--") == 0) {
            only_positional = true;
        } else if (!only_positional && strncmp(arg, "--", 2) == 0) {
            int status = take_flag(command, argc, argv, &i);
            if (status != CLI_DONE)
                return status;
        } else if (!only_positional && arg[0] == '-' && arg[1] != '\0') {
            return cli_fail(command->name, CLI_WRONG_CALL, "%s: options begin with two dashes",
                            arg);
        } else if (!command->positional || *command->ret_positional) {
            return cli_fail(command->name, CLI_WRONG_CALL, "%s: unexpected argument", arg);
        } else {
            *command->ret_positional = arg;
        }
    }
    if (command->settings && settings_load(command->settings, &err) < 0)
        return cli_fail(command->name, CLI_WRONG_CALL, "%s", err.message);
    return CLI_DONE;
}
