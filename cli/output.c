/* What subcommands write: results on stdout, progress on stderr. */
#include "cli/cli.h"
#include "engine/base/system.h"

#include <errno.h>
#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

/* Length of the UTF-8 character at text[0, len), 0 if it is none (RFC 3629, table 3-7 of Unicode).
 */
static size_t utf8_length(const unsigned char *text, size_t len)
{
    unsigned char first = text[0];
    size_t n = first < 0x80                    ? 1
               : first >= 0xc2 && first < 0xe0 ? 2
               : first >= 0xe0 && first < 0xf0 ? 3
               : first >= 0xf0 && first < 0xf5 ? 4
                                               : 0;
    if (n == 0 || n > len)
        return 0;
    for (size_t i = 1; i < n; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0;
    bool is_overlong = (first == 0xe0 && text[1] < 0xa0) || (first == 0xf0 && text[1] < 0x90);
    bool is_surrogate = first == 0xed && text[1] > 0x9f;
    bool is_too_large = first == 0xf4 && text[1] > 0x8f;
    return is_overlong || is_surrogate || is_too_large ? 0 : n;
}

void cli_json_string(struct buf *out, const char *text, size_t len)
{
    const unsigned char *at = (const unsigned char *)text;

    buf_append_str(out, "\"");
    for (size_t i = 0; i < len;) {
        size_t n = utf8_length(at + i, len - i);
        if (n == 0)
            buf_append_str(out, "\xef\xbf\xbd");
        else if (at[i] == '"' || at[i] == '\\')
            buf_printf(out, "\\%c", at[i]);
        else if (at[i] < 0x20 || at[i] == 0x7f)
            buf_printf(out, "\\u%04x", (unsigned)at[i]);
        else
            buf_append(out, text + i, n);
        i += n ? n : 1;
    }
    buf_append_str(out, "\"");
}

void cli_json_number(struct buf *out, const char *name, double value)
{
    if (name)
        buf_printf(out, "\"%s\":", name);
    if (isfinite(value))
        buf_printf(out, "%.9g", value);
    else
        buf_append_str(out, "null");
}

int cli_print(struct buf *out, struct error *err)
{
    if (out->failed)
        return error_memory(err, "output", out->len);
    if ((out->len && fwrite(out->data, 1, out->len, stdout) != out->len) || fflush(stdout) != 0)
        return error_set(err, ERROR_IO, "standard output: %s", strerror(errno));
    buf_clear(out);
    return 0;
}

#define TERMINAL_INTERVAL_NS 100000000u /* 0.1 s */
#define LOG_INTERVAL_NS 5000000000u     /* 5 s */
#define BAR_WIDTH 24

static void show_bar(const struct cli_progress *progress, double share, double left_s)
{
    char bar[BAR_WIDTH + 1];
    int n_full = (int)(share * BAR_WIDTH);

    for (int i = 0; i < BAR_WIDTH; i++)
        bar[i] = i < n_full ? '#' : '.';
    bar[BAR_WIDTH] = '\0';
    fprintf(stderr, "\r%s [%s] %3.0f %%, %.0f s left \x1b[K", progress->what, bar, share * 100,
            left_s);
}

void cli_progress_done(struct cli_progress *progress)
{
    if (progress->line_open)
        fputs("\r\x1b[K", stderr);
    *progress = (struct cli_progress){0};
}

void cli_progress_say(struct cli_progress *progress, const char *fmt, ...)
{
    va_list args;

    if (progress->line_open)
        fputs("\r\x1b[K", stderr);
    progress->line_open = false;
    va_start(args, fmt);
    vfprintf(stderr, fmt, args);
    va_end(args);
    fputc('\n', stderr);
}

void cli_progress_show(struct cli_progress *progress, const char *what, double share)
{
    uint64_t now_ns = system_now_ns();
    bool is_terminal = isatty(STDERR_FILENO);
    uint64_t interval_ns = is_terminal ? TERMINAL_INTERVAL_NS : LOG_INTERVAL_NS;

    share = share > 0 ? share < 1 ? share : 1 : 0;
    if (!progress->what || strcmp(progress->what, what) != 0) {
        cli_progress_done(progress);
        *progress = (struct cli_progress){
            .what = what, .start_share = share, .start_ns = now_ns, .shown_ns = now_ns};
    }
    if (now_ns - progress->shown_ns < interval_ns)
        return;
    progress->shown_ns = now_ns;
    double passed_s = (double)(now_ns - progress->start_ns) / 1e9;
    double done = share - progress->start_share; /* since the clock runs */
    double left_s = done > 0 ? passed_s * (1 - share) / done : 0;
    if (is_terminal) {
        show_bar(progress, share, left_s);
        progress->line_open = true;
    } else {
        fprintf(stderr, "%s: %.0f %%, %.0f s left\n", what, share * 100, left_s);
    }
}

void cli_progress_call(void *progress, const char *what, double share)
{
    cli_progress_show(progress, what, share);
}
