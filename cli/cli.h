/* What the subcommands share: their entry points, the option parser and the exit codes.
 * Each subcommand lives in a file of its own name; main.c only dispatches. Commands reach the
 * engine through its public headers, print results on stdout and everything else on stderr. */
#ifndef OVERFILL_CLI_CLI_H
#define OVERFILL_CLI_CLI_H

#include "config/settings.h"
#include "engine/base/buf.h"
#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum cli_exit {
    CLI_DONE = 0,
    CLI_FAILED = 1,      /* the work failed; one message on stderr */
    CLI_WRONG_CALL = 2,  /* the call was wrong; the message names the option */
    CLI_HELP_SHOWN = -1, /* cli_parse only: the help was printed, leave with CLI_DONE */
};

struct engine_options;

/* argv[0] is the subcommand's name. Each returns the process's exit code. */
int cli_serve(int argc, char **argv);
int cli_generate(int argc, char **argv);
int cli_prune(int argc, char **argv);
int cli_eval(int argc, char **argv);
int cli_frontier(int argc, char **argv);
int cli_bench(int argc, char **argv);
int cli_inspect(int argc, char **argv);
int cli_tokenize(int argc, char **argv);

/* One option of a subcommand that is not a setting. Accepted as `--name VALUE` and `--name=VALUE`.
 */
enum cli_option_type {
    CLI_SWITCH,  /* bool *: becomes true, takes no value */
    CLI_STRING,  /* const char **: points into argv */
    CLI_STRINGS, /* struct cli_strings *: may be given several times */
    CLI_UINT,    /* uint32_t *: within min..max */
    CLI_SEED,    /* uint64_t * */
    CLI_NUMBER,  /* double *: within min..max */
    CLI_NUMBERS, /* struct cli_numbers *: the same; takes all arguments up to the next option */
};

#define CLI_STRINGS_MAX 16
struct cli_strings {
    const char *items[CLI_STRINGS_MAX];
    size_t n;
};

struct cli_numbers {
    double items[CLI_STRINGS_MAX];
    size_t n;
};

struct cli_option {
    const char *name; /* without the dashes */
    enum cli_option_type type;
    void *target;
    const char *value; /* placeholder in the help, e.g. "FILE"; NULL for a switch */
    const char *help;
    double min, max; /* CLI_UINT, CLI_NUMBER, CLI_NUMBERS */
};

struct cli_command {
    const char *name;
    const char *synopsis; /* "overfill generate --model F [options] \"prompt\"" */
    const char *summary;  /* one or two sentences under the synopsis */
    const struct cli_option *options;
    size_t n_options;
    struct settings *settings; /* opened; NULL: the command takes no settings */
    unsigned scope;            /* which settings it takes: enum setting_scope bits */
    const char *positional;    /* name of the one positional argument, or NULL: none allowed */
    const char **ret_positional;
};

/* Parses the options of a command, then fills the settings from file and environment.
 * Returns CLI_DONE, CLI_HELP_SHOWN (--help: text on stdout) or CLI_WRONG_CALL (message printed). */
int cli_parse(const struct cli_command *command, int argc, char **argv);

/* "overfill NAME: MESSAGE" on stderr; returns the code, so that a command can return it. */
__attribute__((format(printf, 3, 4))) int cli_fail(const char *command, int code, const char *fmt,
                                                   ...);
/* The same with an error's message: CLI_WRONG_CALL for ERROR_INVALID, else CLI_FAILED. */
int cli_fail_with(const char *command, const struct error *err);

/* What the settings ask of the engine; the result points into them. */
void cli_engine_options(const struct settings *settings, struct engine_options *ret_options);

/* JSON text of a string, quotes included. Bytes that are no UTF-8 become U+FFFD. */
void cli_json_string(struct buf *out, const char *text, size_t len);
/* "NAME":VALUE, the value alone where name is NULL. One that is not finite, for which JSON has no
 * word, is null. */
void cli_json_number(struct buf *out, const char *name, double value);

/* Writes what `out` holds to stdout, all the way, and empties it. ERROR_MEMORY: not all of it came
 * into `out`. ERROR_IO: stdout did not take it. */
int cli_print(struct buf *out, struct error *err);

/* For commands that prune, before anything else: begins the program again with OpenBLAS's kernels
 * for this CPU where the library does not know it, and goes on with those it has where that cannot
 * be. argv, a command's, ends with NULL as main's does. */
void cli_restart_for_blas(int argc, char **argv);

/* Progress of long work on stderr: a bar with an estimate on a terminal, else a line every few
 * seconds. Zero-initialise; share is 0..1; done (or another `what`) ends the line. */
struct cli_progress {
    const char *what;
    double start_share; /* when it began, at start_ns */
    uint64_t start_ns, shown_ns;
    bool line_open;
};
void cli_progress_show(struct cli_progress *progress, const char *what, double share);
/* The same for those who take a callback. */
void cli_progress_call(void *progress, const char *what, double share);
void cli_progress_done(struct cli_progress *progress);
/* A line on stderr in between. */
__attribute__((format(printf, 2, 3))) void cli_progress_say(struct cli_progress *progress,
                                                            const char *fmt, ...);

#endif
