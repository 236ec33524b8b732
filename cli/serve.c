/* overfill serve: settings to server and engine. The engine opens on a thread of its own, so that
 * the socket answers (503) while weights are packed. */
#include "cli/cli.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/engine.h"
#include "server/sandbox.h"
#include "server/server.h"

#include <errno.h>
#include <libgen.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAX_API_KEYS 256

struct loader {
    pthread_t thread;
    const struct settings *settings;
    struct server *server;
    struct engine *engine; /* written by the loader thread, read after it was joined */
    struct cli_progress progress;
    bool is_terminal;
};

static void show_progress(void *user, const char *what, double share)
{
    struct loader *loader = user;

    server_progress(loader->server, what, share);
    if (loader->is_terminal)
        cli_progress_show(&loader->progress, what, share);
}

static void append_url(struct buf *out, const struct loader *loader)
{
    const char *host = loader->settings->host;

    buf_printf(out, strchr(host, ':') ? "%s://[%s]:%u" : "%s://%s:%u",
               *loader->settings->tls_cert ? "https" : "http", host,
               (unsigned)server_port(loader->server));
}

/* One line with what was chosen: what an operator asks for first when something is slow. */
static void announce(const struct loader *loader)
{
    _cleanup_buf_ struct buf line = {0};
    struct engine_info info;
    struct engine_stats stats;

    engine_get_info(loader->engine, &info);
    engine_get_stats(loader->engine, &stats);
    double kv_bytes = (double)stats.kv_pages_total * (double)stats.kv_page_bytes;
    append_url(&line, loader);
    buf_printf(&line, ": %s (%.1f M parameters, %.0f MiB)", info.model_id,
               (double)info.n_params / 1e6, (double)info.model_bytes / 1048576);
    if (info.pruned_path)
        buf_printf(&line, ", twin %s (%.1f M parameters, %.0f MiB)", info.pruned_path,
                   (double)info.n_params_pruned / 1e6, (double)info.pruned_bytes / 1048576);
    else
        buf_append_str(&line, ", no twin");
    buf_printf(&line,
               ", decode %s, kernels %s, %u prefill and %u decode threads, context %u tokens, "
               "KV memory %.0f MiB (%.0f tokens)",
               decode_mode_name(info.decode), info.kernels, info.prefill_threads,
               info.decode_threads, info.context, kv_bytes / 1048576,
               info.kv_bytes_per_token ? kv_bytes / (double)info.kv_bytes_per_token : 0);
    if (!line.failed)
        log_info("ready on %s", line.data);
}

static bool has_sandbox(const struct settings *settings)
{
    return strcmp(settings->sandbox, "off") != 0;
}

/* A folder that cannot be written is a mistake of whoever named it; what happens to it later, a
 * full disk for one, is not worth ending for. */
static int make_folder(const char *setting, const char *dir, struct error *err)
{
    if (!*dir)
        return 0;
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return error_set(err, ERROR_IO, "%s: %s: %s", setting, dir, strerror(errno));
    if (access(dir, R_OK | W_OK | X_OK) < 0)
        return error_set(err, ERROR_IO, "%s: %s: %s", setting, dir, strerror(errno));
    return 0;
}

/* From here on the process reads the model's files, the key file, the state and packed weights, and
 * no others. */
static int drop_files(const struct settings *settings, struct error *err)
{
    const char *const readable[] = {settings->model, settings->pruned, "/proc", "/sys",
                                    NULL /* the key file's folder: editors replace the file */};
    const char *const writable[] = {settings->state_dir, settings->packed_cache};
    const char *paths[sizeof(readable) / sizeof(readable[0])];
    _cleanup_mem_ char *folder = mem_strdup(settings->api_key_file);
    struct error why;

    if (!has_sandbox(settings))
        return 0;
    if (!folder)
        return error_memory(err, "api-key-file", strlen(settings->api_key_file));
    memcpy(paths, readable, sizeof(paths));
    if (*folder)
        paths[4] = dirname(folder);
    if (sandbox_files(paths, sizeof(paths) / sizeof(paths[0]), writable, 2, &why) < 0)
        log_warn("sandbox: files stay open to the process: %s", why.message);
    return 0;
}

static void drop_calls(const struct settings *settings)
{
    struct error why;

    if (!has_sandbox(settings))
        return;
    if (sandbox_calls(&why) < 0)
        log_warn("sandbox: all system calls stay open to the process: %s", why.message);
}

static void *load(void *arg)
{
    struct loader *loader = arg;
    struct engine_options options;
    struct error err;

    cli_engine_options(loader->settings, &options);
    options.wake = server_wake;
    options.wake_user = loader->server;
    options.progress = show_progress;
    options.progress_user = loader;
    int status = engine_open(&options, &loader->engine, &err);
    cli_progress_done(&loader->progress);
    if (status < 0) {
        server_fail(loader->server, &err);
        return NULL;
    }
    announce(loader);
    drop_calls(loader->settings);
    server_set_engine(loader->server, loader->engine);
    return NULL;
}

/* Cuts `text` at its commas; blanks around a key and empty keys do not count. */
static int split_keys(char *text, const char **keys, size_t *ret_n)
{
    size_t n = 0;
    char *rest = NULL;

    for (char *key = strtok_r(text, ", \t", &rest); key; key = strtok_r(NULL, ", \t", &rest)) {
        if (n == MAX_API_KEYS)
            return -1;
        keys[n++] = key;
    }
    *ret_n = n;
    return 0;
}

static int open_server(const struct settings *settings, struct server **ret_server,
                       struct error *err)
{
    const char *keys[MAX_API_KEYS];
    struct server_options options = SERVER_DEFAULTS;
    _cleanup_mem_ char *key_text = mem_strdup(settings->api_keys);

    if (!key_text)
        return error_memory(err, "api-keys", strlen(settings->api_keys));
    if (split_keys(key_text, keys, &options.n_api_keys) < 0)
        return error_set(err, ERROR_INVALID, "api-keys: at most %d keys", MAX_API_KEYS);
    options.api_keys = keys;
    options.host = settings->host;
    options.port = (uint16_t)settings->port;
    options.max_body_bytes = settings->max_body;
    options.max_bodies_bytes = settings->max_bodies;
    options.max_connections = settings->max_connections;
    options.max_connections_per_address = settings->max_connections_per_address;
    options.idle_seconds = settings->idle_seconds;
    options.header_seconds = settings->header_seconds;
    options.body_seconds = settings->body_seconds;
    options.api_key_file = settings->api_key_file;
    options.allow_open = strcmp(settings->allow_open, "yes") == 0;
    options.requests_per_minute = settings->requests_per_minute;
    options.tokens_per_minute = settings->tokens_per_minute;
    options.tls_certificate = settings->tls_cert;
    options.tls_key = settings->tls_key;
    options.cors_origins = settings->cors_origins;
    options.ping_seconds = settings->ping_seconds;
    options.drain_seconds = settings->drain_seconds;
    options.stall_seconds = settings->stall_seconds;
    options.handle_signals = true;
    return server_open(&options, ret_server, err);
}

/* While a model is loaded its file is read where it is mapped; if somebody cuts it just then, the
 * kernel has only this signal to say so. Afterwards nothing of the file is needed; a packed cache
 * is read where it is mapped for as long as the process lives. */
static void on_bus_error(int number)
{
    static const char TEXT[] =
        "overfill serve: a model file or packed cache was cut short while it "
        "was read; the process ends\n";

    (void)number;
    ssize_t n = write(STDERR_FILENO, TEXT, sizeof(TEXT) - 1);
    (void)n;
    _exit(CLI_FAILED);
}

static int run(const struct settings *settings, struct error *err)
{
    struct loader loader = {.settings = settings, .is_terminal = isatty(STDERR_FILENO)};
    int status = make_folder("state-dir", settings->state_dir, err);

    if (status == 0)
        status = make_folder("packed-cache", settings->packed_cache, err);
    if (status == 0)
        status = open_server(settings, &loader.server, err);
    if (status < 0)
        return status;
    status = drop_files(settings, err);
    if (status < 0) {
        server_close(loader.server);
        return status;
    }
    log_info("listening on %s port %u, loading %s", settings->host,
             (unsigned)server_port(loader.server), settings->model);
    signal(SIGBUS, on_bus_error);
    signal(SIGXFSZ, SIG_IGN); /* a file that grows too large is an error of write(2) */
    int refused = pthread_create(&loader.thread, NULL, load, &loader);
    if (refused) {
        server_close(loader.server);
        return error_set(err, ERROR_IO, "loader thread: %s", strerror(refused));
    }
    status = server_run(loader.server, err);
    pthread_join(loader.thread, NULL);
    engine_close(loader.engine);
    server_close(loader.server);
    return status;
}

static int print_config(const struct settings *settings)
{
    _cleanup_buf_ struct buf out = {0};
    struct error err;

    settings_print(settings, &out);
    return cli_print(&out, &err) ? cli_fail_with("serve", &err) : CLI_DONE;
}

static int serve(struct settings *settings, int argc, char **argv)
{
    bool only_print = false;
    const struct cli_option options[] = {
        {"print-config", CLI_SWITCH, &only_print, NULL,
         "print every setting with where it came from, and end"},
    };
    const struct cli_command command = {
        .name = "serve",
        .synopsis = "overfill serve --model FILE [--pruned FILE] [options]",
        .summary = "Answers OpenAI API requests over HTTP until SIGTERM or SIGINT.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
        .settings = settings,
        .scope = SETTING_ENGINE | SETTING_SERVE,
    };
    struct error err;
    int status = cli_parse(&command, argc, argv);

    if (status != CLI_DONE)
        return status == CLI_HELP_SHOWN ? CLI_DONE : status;
    if (only_print)
        return print_config(settings);
    if (!*settings->model)
        return cli_fail("serve", CLI_WRONG_CALL, "--model: a model file is required");
    log_set_level((enum log_level)log_level_from_name(settings->log_level));
    if (run(settings, &err) < 0)
        return cli_fail("serve", CLI_FAILED, "%s", err.message);
    return CLI_DONE;
}

int cli_serve(int argc, char **argv)
{
    struct settings settings;
    struct error err;
    int code = settings_init(&settings, &err) < 0 ? cli_fail("serve", CLI_FAILED, "%s", err.message)
                                                  : serve(&settings, argc, argv);

    settings_free(&settings);
    return code;
}
