/* The whole server in this process, with the fake engine and raw sockets: the shape of a stream, a
 * client that leaves, draining, and a failed allocation at every site of a request. */
#include "engine/base/buf.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "server/server.h"
#include "tests/unit/check.h"
#include "tests/unit/server/fake_engine.h"

#include <arpa/inet.h>
#include <pthread.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <time.h>
#include <unistd.h>

struct fixture {
    struct server *server;
    struct engine *engine;
    pthread_t thread;
    int result;
};

static void *run(void *user)
{
    struct fixture *f = user;
    f->result = server_run(f->server, NULL);
    return NULL;
}

static void start(struct fixture *f)
{
    struct server_options options = SERVER_DEFAULTS;
    struct fake_options fake = {.token_us = 100, .wake = server_wake};
    struct error err;

    options.port = 0;
    options.handle_signals = false;
    options.drain_seconds = 5;
    assert_int_equal(server_open(&options, &f->server, &err), 0);
    assert_int_not_equal(server_port(f->server), 0);
    assert_int_equal(pthread_create(&f->thread, NULL, run, f), 0);
    fake.wake_user = f->server;
    assert_int_equal(fake_engine_open(&fake, &f->engine, &err), 0);
    server_set_engine(f->server, f->engine);
}

static void stop(struct fixture *f)
{
    server_stop(f->server);
    pthread_join(f->thread, NULL);
    assert_int_equal(f->result, 0);
    engine_close(f->engine);
    server_close(f->server);
}

static int dial(struct fixture *f)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons(server_port(f->server)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    struct timeval limit = {.tv_sec = 20};
    int fd = socket(AF_INET, SOCK_STREAM, 0);

    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof(limit));
    assert_int_equal(connect(fd, (struct sockaddr *)&address, sizeof(address)), 0);
    return fd;
}

static void send_request(int fd, const char *method, const char *path, const char *body)
{
    char text[2000];
    int n =
        snprintf(text, sizeof(text),
                 "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n\r\n%s",
                 method, path, strlen(body), body);
    assert_int_equal(send(fd, text, (size_t)n, MSG_NOSIGNAL), n);
}

/* Everything until the server closes; "" if it closed without a word. The caller frees it. */
static char *exchange(struct fixture *f, const char *method, const char *path, const char *body)
{
    size_t n = 0, cap = 1 << 20;
    char *text = calloc(1, cap);
    int fd = dial(f);
    ssize_t got;

    send_request(fd, method, path, body);
    while ((got = recv(fd, text + n, cap - n - 1, 0)) > 0)
        n += (size_t)got;
    close(fd);
    return text;
}

static void wait_until_contains(struct fixture *f, const char *path, const char *needle)
{
    for (int i = 0; i < 1000; i++) {
        char *text = exchange(f, "GET", path, "");
        bool is_there = strstr(text, needle) != NULL;
        free(text);
        if (is_there)
            return;
        nanosleep(&(struct timespec){.tv_nsec = 10000000}, NULL);
    }
    fail_msg("%s never contained %s", path, needle);
}

static void a_stream_begins_with_the_role_and_ends_with_done(void **state)
{
    struct fixture f;
    start(&f);
    wait_until_contains(&f, "/health", "200 OK");
    char *text =
        exchange(&f, "POST", "/v1/chat/completions",
                 "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"ab\"}],"
                 "\"temperature\":0,\"stream\":true}");
    const char *role = strstr(text, "\"delta\":{\"role\":\"assistant\",\"content\":\"\"");
    const char *delta = strstr(text, "\"delta\":{\"content\":\"ab\"}");
    const char *finish = strstr(text, "\"delta\":{},\"logprobs\":null,\"finish_reason\":\"stop\"");
    const char *done = strstr(text, "data: [DONE]\n\n");
    assert_non_null(role);
    assert_true(role < delta && delta < finish && finish < done);
    assert_non_null(strstr(done, "\r\n0\r\n\r\n")); /* the body is complete */
    free(text);
    stop(&f);
}

static void a_client_that_leaves_frees_its_work(void **state)
{
    struct fixture f;
    start(&f);
    wait_until_contains(&f, "/health", "200 OK");
    int fd = dial(&f);
    send_request(
        fd, "POST", "/v1/completions",
        "{\"model\":\"fake\",\"prompt\":\"!slow\",\"max_tokens\":2000,\"ignore_eos\":true}");
    wait_until_contains(&f, "/metrics", "\noverfill_jobs{model_name=\"fake\"} 1\n");
    close(fd);
    wait_until_contains(&f, "/metrics", "\noverfill_jobs{model_name=\"fake\"} 0\n");
    stop(&f);
}

static void the_loaders_failure_ends_the_run(void **state)
{
    struct server_options options = SERVER_DEFAULTS;
    struct error failure = {.code = ERROR_FORMAT, .message = "model.gguf: no"}, err = {0};
    struct server *server;

    options.port = 0;
    options.handle_signals = false;
    assert_int_equal(server_open(&options, &server, &err), 0);
    server_fail(server, &failure);
    assert_int_equal(server_run(server, &err), -ERROR_FORMAT);
    assert_string_equal(err.message, "model.gguf: no");
    server_close(server);
}

static void a_taken_port_is_an_error_with_its_name(void **state)
{
    struct server_options options = SERVER_DEFAULTS;
    struct server *server, *second = NULL;
    struct error err = {0};
    char expected[80];

    options.port = 0;
    assert_int_equal(server_open(&options, &server, &err), 0);
    options.port = server_port(server);
    assert_int_equal(server_open(&options, &second, &err), -ERROR_IO);
    assert_null(second);
    snprintf(expected, sizeof(expected), "cannot listen on 127.0.0.1 port %u: ", options.port);
    assert_memory_equal(err.message, expected, strlen(expected));
    server_close(server);
}

static bool is_complete(const char *text)
{
    size_t n = strlen(text);
    return (n > 5 && strcmp(text + n - 5, "0\r\n\r\n") == 0 && strstr(text, "[DONE]")) ||
           (strstr(text, "Content-Length") && n > 1 && text[n - 1] == '}');
}

/* What must not depend on luck: the choices of a whole reply, the number of events of a stream. */
static bool is_same_answer(const char *text, const char *healthy)
{
    const char *begin = strstr(text, "\"choices\":"), *end = strstr(text, "\"usage\":");
    const char *expected = strstr(healthy, "\"choices\":");

    if (!strstr(healthy, "[DONE]"))
        return begin && end && strncmp(begin, expected, (size_t)(end - begin)) == 0;
    int difference = 0;
    for (const char *at = text; (at = strstr(at, "data: ")); at++)
        difference++;
    for (const char *at = healthy; (at = strstr(at, "data: ")); at++)
        difference--;
    return difference == 0;
}

/* The k-th allocation from the request on fails, for every k there is. A reply is whole and says
 * 200 or 503, or the connection just ends, or a stream ends in band; the next request is served. */
static void any_failed_allocation_costs_one_request(void **state)
{
    static const char *const BODIES[] = {
        "{\"model\":\"fake\",\"prompt\":[\"ab\",[300]],\"n\":2,\"echo\":true,\"logprobs\":2,"
        "\"temperature\":0,\"logit_bias\":{\"5\":1}}",
        "{\"model\":\"fake\",\"prompt\":\"abcdef\",\"echo\":true,\"logprobs\":2,\"stream\":true,"
        "\"temperature\":0}",
    };
    struct fixture f;

    start(&f);
    wait_until_contains(&f, "/health", "200 OK");
    for (size_t b = 0; b < 2; b++) {
        mem_fail_at(0); /* counts a request that goes well */
        char *healthy = exchange(&f, "POST", "/v1/completions", BODIES[b]), *text;
        unsigned long n = mem_count_allocations();
        assert_true(n > 10);
        for (unsigned long k = 1; k <= n; k++) {
            mem_fail_at(k);
            text = exchange(&f, "POST", "/v1/completions", BODIES[b]);
            mem_fail_at(0);
            bool is_ok = strncmp(text, "HTTP/1.1 200", 12) == 0;
            bool is_503 = strncmp(text, "HTTP/1.1 503", 12) == 0;
            if (!(text[0] == '\0' || (is_503 && is_complete(text)) ||
                  (is_ok && is_complete(text) && is_same_answer(text, healthy)) ||
                  (is_ok && b == 1 && !strstr(text, "[DONE]"))))
                fail_msg("body %zu, allocation %lu: %s", b, k, text);
            free(text);
        }
        text = exchange(&f, "POST", "/v1/completions", BODIES[b]);
        assert_true(strncmp(text, "HTTP/1.1 200", 12) == 0 && is_complete(text));
        free(text);
        free(healthy);
    }
    wait_until_contains(&f, "/metrics", "\noverfill_jobs{model_name=\"fake\"} 0\n");
    stop(&f);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_stream_begins_with_the_role_and_ends_with_done),
        cmocka_unit_test(a_client_that_leaves_frees_its_work),
        cmocka_unit_test(the_loaders_failure_ends_the_run),
        cmocka_unit_test(a_taken_port_is_an_error_with_its_name),
        cmocka_unit_test(any_failed_allocation_costs_one_request),
    };
    log_set_level(LOG_LEVEL_WARN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
