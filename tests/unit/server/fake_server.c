/* The server with the fake engine, as a program: what tests/http runs against when there is no
 * model. Options: --port, --load-ms, --drain, --ping, --token-us, --max-body, --connections N,
 * --key K. */
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

int main(int argc, char **argv)
{
    struct server_options options = SERVER_DEFAULTS;
    struct loader loader = {.options = {.token_us = 1000, .prefill_us = 3000}};
    struct error err = {0};
    const char *keys[1];
    pthread_t thread;

    for (int i = 1; i + 1 < argc; i += 2) {
        long value = atol(argv[i + 1]);
        if (strcmp(argv[i], "--port") == 0)
            options.port = (uint16_t)value;
        else if (strcmp(argv[i], "--load-ms") == 0)
            loader.load_ms = value;
        else if (strcmp(argv[i], "--drain") == 0)
            options.drain_seconds = (unsigned)value;
        else if (strcmp(argv[i], "--ping") == 0)
            options.ping_seconds = (unsigned)value;
        else if (strcmp(argv[i], "--token-us") == 0)
            loader.options.token_us = (unsigned)value;
        else if (strcmp(argv[i], "--connections") == 0)
            options.max_connections = (unsigned)value;
        else if (strcmp(argv[i], "--max-body") == 0)
            options.max_body_bytes = (size_t)value;
        else if (strcmp(argv[i], "--key") == 0) {
            keys[0] = argv[i + 1];
            options.api_keys = keys;
            options.n_api_keys = 1;
        }
    }
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
