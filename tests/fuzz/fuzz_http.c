/* The whole server with the fake engine: whatever bytes a connection brings, it is answered or
 * closed, and the next client is served. */
#include "engine/base/log.h"
#include "server/server.h"
#include "tests/unit/server/fake_engine.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);
int LLVMFuzzerInitialize(int *argc, char ***argv);

static struct server *server;

static void *run(void *user)
{
    server_run(user, NULL);
    return NULL;
}

static int dial(void)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(server_port(server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct linger no_wait = {.l_onoff = 1};    /* leaves no socket behind: there are many */
    struct timeval limit = {.tv_usec = 20000}; /* half a request is answered by nothing */
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    setsockopt(fd, SOL_SOCKET, SO_LINGER, &no_wait, sizeof(no_wait));
    if (fd < 0 || connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0)
        abort();
    return fd;
}

/* Everything until the server closes or is silent; at most `cap` bytes are kept. */
static size_t ask(const void *data, size_t n, bool must_answer, char *reply, size_t cap)
{
    struct timeval limit = {.tv_sec = 10};
    int fd = dial();
    size_t n_reply = 0;
    char block[4096];
    ssize_t got;

    if (must_answer)
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    send(fd, data, n, MSG_NOSIGNAL);
    while ((got = recv(fd, block, sizeof(block), 0)) > 0) {
        size_t fits = (size_t)got < cap - n_reply ? (size_t)got : cap - n_reply;
        memcpy(reply + n_reply, block, fits);
        n_reply += fits;
    }
    close(fd);
    return n_reply;
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    static struct fake_options fake = {.token_us = 1, .wake = server_wake};
    struct server_options options = SERVER_DEFAULTS;
    struct engine *engine;
    struct error err;
    pthread_t thread;

    (void)argc, (void)argv;
    log_set_level(LOG_LEVEL_ERROR);
    options.port = 0;
    options.handle_signals = false;
    options.max_body_bytes = 65536;
    if (server_open(&options, &server, &err) < 0)
        abort();
    fake.wake_user = server;
    if (fake_engine_open(&fake, &engine, &err) < 0)
        abort();
    server_set_engine(server, engine);
    return pthread_create(&thread, NULL, run, server);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char NEXT[] = "GET /version HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n";
    char reply[256];
    size_t n_reply = ask(data, n, false, reply, sizeof(reply));

    if (n_reply >= 12 && memcmp(reply, "HTTP/1.1 5", 10) == 0 && reply[10] == '0' &&
        reply[11] == '0')
        abort(); /* a 500 for a client's bytes */
    n_reply = ask(NEXT, sizeof(NEXT) - 1, true, reply, sizeof(reply));
    if (n_reply < 12 || memcmp(reply, "HTTP/1.1 200", 12) != 0)
        abort();
    return 0;
}
