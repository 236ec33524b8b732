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
    char *text; /* not of mem_*: its failures are for the server */
    int n = asprintf(&text,
                     "%s %s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nContent-Length: %zu\r\n"
                     "\r\n%s",
                     method, path, strlen(body), body);

    assert_int_equal(send(fd, text, (size_t)n, MSG_NOSIGNAL), n);
    free(text);
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

/* One request of each kind, for the failures of memory. */
struct request_kind {
    const char *method, *path, *body;
    const char *end;  /* a stream's last words; NULL: one JSON (or plain) reply */
    bool is_changing; /* the reply depends on the moment */
    size_t pad;       /* spaces in front of the body, so that it is worked on off the loop */
};
static const struct request_kind KINDS[] = {
    {"POST", "/v1/completions",
     "{\"model\":\"fake\",\"prompt\":[\"ab\",[300]],\"n\":2,\"echo\":true,\"logprobs\":2,"
     "\"temperature\":0,\"logit_bias\":{\"5\":1},\"overfill\":{\"decode\":\"full\"}}"},
    {"POST", "/v1/completions",
     "{\"model\":\"fake\",\"prompt\":\"abcdef\",\"echo\":true,\"logprobs\":2,\"stream\":true,"
     "\"temperature\":0}",
     .end = "data: [DONE]"},
    {"POST", "/v1/chat/completions",
     "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":[{\"type\":\"text\","
     "\"text\":\"abcd\"},{\"type\":\"text\",\"text\":\"ef\"}]}],\"logprobs\":true,"
     "\"top_logprobs\":2,\"temperature\":0,\"stop\":[\"zz\"]}"},
    {"POST", "/v1/chat/completions",
     "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"abcd\"}],"
     "\"temperature\":0,\"unknown_field\":1}",
     .pad = 20000},
    {"POST", "/v1/responses",
     "{\"model\":\"fake\",\"input\":\"abcdef\",\"instructions\":\"xy\",\"temperature\":0,"
     "\"include\":[\"message.output_text.logprobs\"]}"},
    {"POST", "/v1/responses",
     "{\"model\":\"fake\",\"input\":\"abcdef\",\"temperature\":0,\"stream\":true}",
     .end = "event: response.completed"},
    {"POST", "/v1/messages",
     "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"abcdef\"}],"
     "\"max_tokens\":9,\"temperature\":0,\"stop_sequences\":[\"ef\"]}"},
    {"POST", "/v1/messages",
     "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"abcdef\"}],"
     "\"max_tokens\":9,\"temperature\":0,\"system\":\"xy\",\"stream\":true}",
     .end = "event: message_stop"},
    {"POST", "/v1/messages/count_tokens",
     "{\"model\":\"fake\",\"messages\":[{\"role\":\"user\",\"content\":\"abcdef\"}]}"},
    {"POST", "/tokenize", "{\"content\":\"abcdef\",\"with_pieces\":true}"},
    {"POST", "/tokenize", "{\"prompt\":\"abcdef\"}", .pad = 20000},
    {"POST", "/detokenize", "{\"tokens\":[300,301]}"},
    {"GET", "/openapi.json", ""},
    {"GET", "/tokenizer_info", ""},
    {"GET", "/v1/models", ""},
    {"GET", "/metrics", "", .is_changing = true},
    {"GET", "/health", ""},
    {"GET", "/nothing", ""},
};

/* The reply without what differs from run to run: numbers, ids, and where a stream was cut. */
static char *stripped(const char *text)
{
    char *copy = calloc(1, strlen(text) + 1), *out = copy;

    for (; *text; text++)
        if (!strchr("0123456789abcdefABCDEF.+-\r\n", *text))
            *out++ = *text;
    return copy;
}

static bool is_same_reply(const char *text, const char *healthy)
{
    char *a = stripped(text), *b = stripped(healthy);
    bool is_same = strcmp(a, b) == 0;

    free(a);
    free(b);
    return is_same;
}

/* A reply whose length was told: whether it is all there. */
static bool is_whole(const char *text)
{
    const char *length = strstr(text, "Content-Length: "), *body = strstr(text, "\r\n\r\n");
    return length && body && strlen(body + 4) == strtoul(length + 16, NULL, 10);
}

static bool is_honest(const struct request_kind *kind, const char *text, const char *healthy)
{
    if (text[0] == '\0') /* the connection just ended: no memory even for a reply */
        return true;
    if (strncmp(text, "HTTP/1.1 503", 12) == 0)
        return is_whole(text) && strstr(text, "out_of_memory");
    if (kind->end && strncmp(text, "HTTP/1.1 200", 12) == 0 && !strstr(text, "\r\n0\r\n\r\n"))
        return !strstr(text, kind->end); /* cut, and visibly so */
    return kind->is_changing ? is_whole(text) : is_same_reply(text, healthy);
}

static void fail_each_allocation(struct fixture *f, const struct request_kind *kind)
{
    char *body = calloc(1, kind->pad + strlen(kind->body) + 1), *healthy, *text;

    memset(body, ' ', kind->pad);
    strcat(body, kind->body);
    /* The first one may build what later ones share. */
    free(exchange(f, kind->method, kind->path, body));
    mem_fail_at(0);
    healthy = exchange(f, kind->method, kind->path, body);
    unsigned long n = mem_count_allocations();
    assert_true(n > 0);
    for (unsigned long k = 1; k <= n; k++) {
        mem_fail_at(k);
        text = exchange(f, kind->method, kind->path, body);
        mem_fail_at(0);
        if (!is_honest(kind, text, healthy))
            fail_msg("%s, allocation %lu of %lu: %s", kind->path, k, n,
                     text + (strlen(text) > 700 ? strlen(text) - 700 : 0));
        free(text);
    }
    text = exchange(f, kind->method, kind->path, body);
    if (!kind->is_changing && !is_same_reply(text, healthy))
        fail_msg("%s, afterwards: %s", kind->path, text);
    free(text);
    free(healthy);
    free(body);
}

/* The k-th allocation from the request on fails, for every k there is. A reply is the right one or
 * says 503, or the connection just ends, or a stream ends in band; the next request is served. */
static void any_failed_allocation_costs_one_request(void **state)
{
    struct fixture f;

    start(&f);
    wait_until_contains(&f, "/health", "200 OK");
    for (size_t i = 0; i < sizeof(KINDS) / sizeof(KINDS[0]); i++)
        fail_each_allocation(&f, &KINDS[i]);
    wait_until_contains(&f, "/metrics", "\noverfill_jobs{model_name=\"fake\"} 0\n");
    stop(&f);
}

/* The description of the API is built when it is first asked for. */
static void the_description_survives_a_failed_allocation(void **state)
{
    struct fixture f;

    start(&f);
    wait_until_contains(&f, "/health", "200 OK");
    for (unsigned long k = 1; k < 8; k++) {
        mem_fail_at(k);
        free(exchange(&f, "GET", "/openapi.json", ""));
    }
    mem_fail_at(0);
    char *text = exchange(&f, "GET", "/openapi.json", "");
    assert_true(strncmp(text, "HTTP/1.1 200", 12) == 0 && is_whole(text));
    free(text);
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
        cmocka_unit_test(the_description_survives_a_failed_allocation),
    };
    log_set_level(LOG_LEVEL_WARN);
    return cmocka_run_group_tests(tests, NULL, NULL);
}
