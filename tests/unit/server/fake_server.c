/* The server with the fake engine, as a program: what tests/http runs against when there is no
 * model. Options: --port, --load-ms, --drain, --ping, --token-us, --max-body, --connections N,
 * --per-address N, --header-seconds N, --body-seconds N, --key K, --key-file F, --requests N and
 * --tokens N (a minute), --host H, --allow-open 1, --tls-cert F, --tls-key F, --cors ORIGINS,
 * --stall-seconds N. */
#include "engine/base/log.h"
#include "server/server.h"
#include "tests/unit/server/fake_engine.h"

#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

struct loader {
    struct server *server;
    struct fake_options options;
    struct engine *engine;
    long load_ms;
};

static void *load(void *user)
{
    struct loader *l = user;
    struct error err;

    nanosleep(&(struct timespec){l->load_ms / 1000, l->load_ms % 1000 * 1000000}, NULL);
    if (fake_engine_open(&l->options, &l->engine, &err) < 0)
        server_fail(l->server, &err);
    else
        server_set_engine(l->server, l->engine);
    return NULL;
}

static void read_option(const char *name, const char *text, struct server_options *options,
                        struct loader *loader, const char **keys)
{
    long value = atol(text);
    const struct {
        const char *name;
        unsigned *target;
    } numbers[] = {{"--drain", &options->drain_seconds},
                   {"--ping", &options->ping_seconds},
                   {"--connections", &options->max_connections},
                   {"--per-address", &options->max_connections_per_address},
                   {"--header-seconds", &options->header_seconds},
                   {"--body-seconds", &options->body_seconds},
                   {"--stall-seconds", &options->stall_seconds},
                   {"--idle-seconds", &options->idle_seconds},
                   {"--requests", &options->requests_per_minute},
                   {"--tokens", &options->tokens_per_minute},
                   {"--token-us", &loader->options.token_us}};
    const struct {
        const char *name;
        const char **target;
    } texts[] = {{"--host", &options->host},
                 {"--key-file", &options->api_key_file},
                 {"--tls-cert", &options->tls_certificate},
                 {"--tls-key", &options->tls_key},
                 {"--cors", &options->cors_origins}};

    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        if (strcmp(name, numbers[i].name) == 0)
            *numbers[i].target = (unsigned)value;
    for (size_t i = 0; i < sizeof(texts) / sizeof(texts[0]); i++)
        if (strcmp(name, texts[i].name) == 0)
            *texts[i].target = text;
    if (strcmp(name, "--port") == 0)
        options->port = (uint16_t)value;
    else if (strcmp(name, "--load-ms") == 0)
        loader->load_ms = value;
    else if (strcmp(name, "--max-body") == 0)
        options->max_body_bytes = (size_t)value;
    else if (strcmp(name, "--allow-open") == 0)
        options->allow_open = value != 0;
    else if (strcmp(name, "--key") == 0) {
        keys[0] = text;
        options->api_keys = keys;
        options->n_api_keys = 1;
    }
}

int main(int argc, char **argv)
{
    struct server_options options = SERVER_DEFAULTS;
    struct loader loader = {.options = {.token_us = 1000, .prefill_us = 3000}};
    struct error err = {0};
    const char *keys[1];
    pthread_t thread;

    for (int i = 1; i + 1 < argc; i += 2)
        read_option(argv[i], argv[i + 1], &options, &loader, keys);
    if (server_open(&options, &loader.server, &err) < 0) {
        fprintf(stderr, "%s\n", err.message);
        return 1;
    }
    loader.options.wake = server_wake;
    loader.options.wake_user = loader.server;
    pthread_create(&thread, NULL, load, &loader);
    int result = server_run(loader.server, &err);
    pthread_join(thread, NULL);
    engine_close(loader.engine);
    server_close(loader.server);
    if (result < 0)
        fprintf(stderr, "%s\n", err.message);
    return result < 0;
}
