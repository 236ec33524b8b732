/* libmicrohttpd's callbacks and the life of one HTTP request (struct exchange).
 *
 * The daemon runs inside the loop (loop.c) with no thread of its own. A request's body is
 * collected, its handler runs once, and until the handler's answer is there the connection is
 * suspended: the daemon forgets it, disconnect.c watches its socket instead. Whoever has the answer
 * calls exchange_reply / exchange_begin_stream, and the daemon asks again at its next run. */
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "server/internal.h"
#include "server/job.h"
#include "server/request.h"

#include <errno.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

/* A body that is too long is read and dropped up to this many times the limit, so that the client
 * is done sending and reads the 413; beyond it the connection is closed at once. */
#define BODY_DISCARD_FACTOR 4
#define STREAM_BLOCK_BYTES 8192
#define PEM_MAX_BYTES (1 << 20)
#define MAX_LATE_RUNS 1000                  /* at the end, to take in who has connected already */
#define CONNECTION_MEMORY_BYTES (16 * 1024) /* limits request line and headers together */

static const char OUT_OF_MEMORY[] =
    "{\"error\":{\"message\":\"The server has no memory left for this request. Please retry "
    "later.\",\"type\":\"unavailable_error\",\"param\":null,\"code\":\"out_of_memory\"}}";

void exchange_add_header(struct exchange *x, const char *name, const char *value)
{
    if (x->n_headers == EXCHANGE_MAX_HEADERS)
        return;
    x->headers[x->n_headers].name = name;
    snprintf(x->headers[x->n_headers].value, sizeof(x->headers[0].value), "%s", value);
    x->n_headers++;
}

void exchange_resume(struct exchange *x)
{
    if (!x->is_suspended)
        return;
    x->is_suspended = false;
    x->server->needs_pump = true;
    MHD_resume_connection(x->connection);
}

static void exchange_suspend(struct exchange *x)
{
    MHD_suspend_connection(x->connection);
    x->is_suspended = true;
}

static void set_reply(struct exchange *x, unsigned status, const char *content_type)
{
    x->status = status;
    x->content_type = content_type;
    x->phase = EXCHANGE_REPLY_READY;
    exchange_resume(x);
}

void exchange_reply_static(struct exchange *x, unsigned status, const char *content_type,
                           const char *data, size_t len)
{
    x->static_reply = data;
    x->static_reply_len = len;
    set_reply(x, status, content_type);
}

void exchange_reply(struct exchange *x, unsigned status, const char *content_type, struct buf *body)
{
    if (body->failed) {
        buf_free(body);
        x->server->metrics.rejected[REJECT_MEMORY]++;
        exchange_reply_static(x, 503, "application/json", OUT_OF_MEMORY, strlen(OUT_OF_MEMORY));
        return;
    }
    x->reply = *body;
    *body = (struct buf){0};
    set_reply(x, status, content_type);
}

void exchange_fail(struct exchange *x, const struct http_error *e)
{
    struct buf body = {0};
    char seconds[16];

    x->server->metrics.rejected[e->reason]++;
    if (e->retry_after_ms) {
        snprintf(seconds, sizeof(seconds), "%u", e->retry_after_ms);
        exchange_add_header(x, "retry-after-ms", seconds);
    }
    if (e->retry_after_s) {
        snprintf(seconds, sizeof(seconds), "%u", e->retry_after_s);
        exchange_add_header(x, "retry-after", seconds);
    }
    http_error_write(&body, e, x->dialect);
    exchange_reply(x, e->status, "application/json", &body);
}

void exchange_begin_stream(struct exchange *x)
{
    x->status = 200;
    x->phase = EXCHANGE_STREAM_READY;
    exchange_resume(x);
}

void exchange_abort(struct exchange *x)
{
    if (x->is_gone)
        return;
    x->is_gone = true;
    if (x->job)
        job_abandon(x->job);
    exchange_resume(x);
}

/* Bytes for the daemon to send, from the job's buffer; nothing yet: suspend until there is. */
static ssize_t read_stream(void *cls, uint64_t position, char *out, size_t max)
{
    struct exchange *x = cls;
    bool has_ended = true, has_failed = true;

    (void)position;
    if (x->is_gone || !x->job)
        return MHD_CONTENT_READER_END_WITH_ERROR;
    size_t n = job_read_stream(x->job, out, max, &has_ended, &has_failed);
    if (n > 0) {
        x->server->metrics.bytes_streamed += n;
        return (ssize_t)n;
    }
    if (has_ended)
        return has_failed ? MHD_CONTENT_READER_END_WITH_ERROR : MHD_CONTENT_READER_END_OF_STREAM;
    exchange_suspend(x);
    return 0;
}

static bool add_headers(struct exchange *x, struct MHD_Response *response)
{
    bool ok = MHD_add_response_header(response, "x-request-id", x->id) == MHD_YES;

    ok &= limits_add_headers(x, response) && cors_add_headers(x, response);
    if (x->dialect == DIALECT_ANTHROPIC) /* its clients know the id by another name */
        ok &= MHD_add_response_header(response, "request-id", x->id) == MHD_YES;
    for (unsigned i = 0; i < x->n_headers; i++)
        ok &= MHD_add_response_header(response, x->headers[i].name, x->headers[i].value) == MHD_YES;
    if (x->content_type)
        ok &= MHD_add_response_header(response, "content-type", x->content_type) == MHD_YES;
    /* A draining server lets go of its connections, so that it can end. */
    if (x->closes || x->server->state == SERVER_DRAINING)
        ok &= MHD_add_response_header(response, "connection", "close") == MHD_YES;
    return ok;
}

static struct MHD_Response *make_reply(struct exchange *x)
{
    if (x->reply.data) {
        size_t len;
        char *data = buf_take(&x->reply, &len);
        struct MHD_Response *response =
            MHD_create_response_from_buffer_with_free_callback(len, data, mem_free);
        if (!response)
            mem_free(data);
        return response;
    }
    return MHD_create_response_from_buffer(x->static_reply_len, (void *)x->static_reply,
                                           MHD_RESPMEM_PERSISTENT);
}

static struct MHD_Response *make_stream(struct exchange *x)
{
    struct MHD_Response *response = MHD_create_response_from_callback(
        MHD_SIZE_UNKNOWN, STREAM_BLOCK_BYTES, read_stream, x, NULL);
    if (!response)
        return NULL;
    x->content_type = "text/event-stream; charset=utf-8";
    /* The second header keeps nginx from buffering the stream. */
    if (MHD_add_response_header(response, "cache-control", "no-cache") != MHD_YES ||
        MHD_add_response_header(response, "x-accel-buffering", "no") != MHD_YES) {
        MHD_destroy_response(response);
        return NULL;
    }
    return response;
}

/* MHD_NO (no memory): the daemon closes the connection. */
static enum MHD_Result queue_answer(struct exchange *x)
{
    bool is_stream = x->phase == EXCHANGE_STREAM_READY;
    struct MHD_Response *response = is_stream ? make_stream(x) : make_reply(x);
    enum MHD_Result result = MHD_NO;

    if (response && add_headers(x, response))
        result = MHD_queue_response(x->connection, x->status, response);
    if (response)
        MHD_destroy_response(response); /* drops our reference; the queue holds its own */
    x->phase = EXCHANGE_QUEUED;
    guard_answer(x->client);
    x->server->metrics.replies[route_index(x->route)][x->status / 100]++;
    return result;
}

/* Echoes a client's x-request-id if it is short and plain, else draws one. */
static void choose_id(struct exchange *x)
{
    static const char PLAIN[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789"
                                "-_.:+/=";
    const char *sent = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "x-request-id");

    if (sent && sent[0] && strlen(sent) <= 64 && sent[strspn(sent, PLAIN)] == '\0') {
        snprintf(x->id, sizeof(x->id), "%s", sent);
        return;
    }
    char id[25];
    server_new_id(x->server, id);
    snprintf(x->id, sizeof(x->id), "req_%s", id);
}

static struct exchange *exchange_open(struct server *server, struct MHD_Connection *connection,
                                      const char *url, const char *method)
{
    struct exchange *x = mem_calloc(1, sizeof(*x));

    if (!x)
        return NULL;
    x->server = server;
    x->connection = connection;
    x->start_ns = system_now_ns();
    snprintf(x->method, sizeof(x->method), "%s", method);
    snprintf(x->path, sizeof(x->path), "%s", url);
    choose_id(x);
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_SOCKET_CONTEXT);
    x->client = info ? info->socket_context : NULL;
    guard_begin(x->client, x);
    x->next = server->exchanges;
    if (x->next)
        x->next->prev = x;
    server->exchanges = x;
    route_find(x, url);
    return x;
}

static void set_too_large(struct exchange *x)
{
    http_error_set(&x->early, 413, "request_too_large",
                   "The body of a request must not exceed %zu bytes.",
                   x->server->options.max_body_bytes);
    x->closes = true;
}

/* With the headers alone: whether to take the body. false: answer now and close. */
static bool begin_receiving(struct exchange *x)
{
    const char *text =
        MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "content-length");
    size_t max = x->server->options.max_body_bytes;
    char *end;

    if (!x->early.status && x->route && x->route->needs_key)
        keys_check(x, &x->early);
    if (!text)
        return true;
    errno = 0;
    unsigned long long length = strtoull(text, &end, 10);
    if (errno == 0 && length <= max)
        return true;
    if (!x->early.status)
        set_too_large(x);
    return errno == 0 && length / BODY_DISCARD_FACTOR <= max;
}

/* One piece of the body. MHD_NO closes the connection. */
static enum MHD_Result receive(struct exchange *x, const char *data, size_t n)
{
    struct server *server = x->server;

    x->body_received += n;
    if (x->body_received / BODY_DISCARD_FACTOR > server->options.max_body_bytes)
        return MHD_NO;
    if (x->early.status)
        return MHD_YES; /* already refused: read on, keep nothing */
    if (x->body_received > server->options.max_body_bytes) {
        set_too_large(x);
    } else if (server->body_bytes + n > server->options.max_bodies_bytes) {
        http_out_of_memory(&x->early);
    } else {
        buf_append(&x->body, data, n);
        server->body_bytes += n;
        if (!x->body.failed)
            return MHD_YES;
        server->body_bytes -= n;
        http_out_of_memory(&x->early);
    }
    server->body_bytes -= x->body.len;
    buf_free(&x->body);
    return MHD_YES;
}

static void run_handler(struct exchange *x)
{
    x->phase = EXCHANGE_WORKING;
    if (x->early.status)
        exchange_fail(x, &x->early);
    else
        x->route->handle(x);
    x->server->body_bytes -= x->body.len;
    buf_free(&x->body);
}

/* Called with the headers, then with every piece of the body, then with its end, and again
 * whenever the connection is resumed without an answer queued. */
static enum MHD_Result on_access(void *cls, struct MHD_Connection *connection, const char *url,
                                 const char *method, const char *version, const char *upload,
                                 size_t *upload_size, void **request_cls)
{
    struct server *server = cls;
    struct exchange *x = *request_cls;

    (void)version;
    if (!x) {
        x = exchange_open(server, connection, url, method);
        if (!x)
            return MHD_NO;
        *request_cls = x;
        if (begin_receiving(x))
            return MHD_YES;
        run_handler(x);
        return queue_answer(x);
    }
    if (x->is_gone)
        return MHD_NO;
    if (*upload_size) {
        size_t n = *upload_size;
        *upload_size = 0;
        return receive(x, upload, n);
    }
    if (x->phase == EXCHANGE_RECEIVING)
        run_handler(x);
    if (x->phase == EXCHANGE_REPLY_READY || x->phase == EXCHANGE_STREAM_READY)
        return queue_answer(x);
    if (x->phase == EXCHANGE_WORKING) {
        if (!x->watch && watch_start(x) < 0)
            return MHD_NO;
        exchange_suspend(x);
    }
    return MHD_YES;
}

static void log_exchange(const struct exchange *x, bool was_sent)
{
    const struct exchange_facts *f = &x->facts;
    double total_ms = (double)(system_now_ns() - x->start_ns) / 1e6;
    bool is_quiet = x->route && x->route->is_quiet && x->status < 500;
    unsigned status = x->status ? x->status : 499; /* nginx's number for a client that left */

    if (f->finish)
        log_info("%s %s %s %u prompt=%u cached=%u matched=%u completion=%u queue_ms=%.1f "
                 "prefill_ms=%.1f "
                 "decode_ms=%.1f total_ms=%.1f finish=%s%s",
                 x->id, x->method, x->path, status, f->prompt_tokens, f->cached_tokens,
                 f->matched_tokens, f->completion_tokens, f->queue_ms, f->prefill_ms, f->decode_ms,
                 total_ms, f->finish, was_sent ? "" : " (client gone)");
    else
        log_write(is_quiet ? LOG_LEVEL_DEBUG : LOG_LEVEL_INFO, "%s %s %s %u total_ms=%.1f%s", x->id,
                  x->method, x->path, status, total_ms, was_sent ? "" : " (client gone)");
}

static void exchange_close(struct exchange *x, bool was_sent)
{
    struct server *server = x->server;

    watch_stop(x);
    request_detach(x);
    if (x->job)
        job_detach(x->job); /* a stream that was cut ends its work here */
    log_exchange(x, was_sent);
    guard_end(x->client);
    server->last_activity_ns = system_now_ns();
    if (x->prev)
        x->prev->next = x->next;
    else
        server->exchanges = x->next;
    if (x->next)
        x->next->prev = x->prev;
    server->body_bytes -= x->body.len;
    buf_free(&x->body);
    buf_free(&x->reply);
    mem_free(x);
}

static void on_completed(void *cls, struct MHD_Connection *connection, void **request_cls,
                         enum MHD_RequestTerminationCode code)
{
    (void)cls, (void)connection;
    if (*request_cls)
        exchange_close(*request_cls, code == MHD_REQUEST_TERMINATED_COMPLETED_OK);
    *request_cls = NULL;
}

static void on_connection(void *cls, struct MHD_Connection *connection, void **socket_cls,
                          enum MHD_ConnectionNotificationCode code)
{
    struct server *server = cls;

    if (code != MHD_CONNECTION_NOTIFY_STARTED) {
        guard_close(*socket_cls);
        server->metrics.connections--;
        /* At a limit of connections or descriptors the daemon takes its listening socket out of the
         * poll set, and puts it back only at its next run. */
        server->needs_pump = true;
        return;
    }
    server->metrics.connections++;
    server->metrics.connections_total++;
    server->last_activity_ns = system_now_ns();
    /* A token is a small write; it must not wait for the acknowledgement of the one before. */
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    int on = 1;
    *socket_cls = info ? guard_open(server, info->connect_fd) : NULL;
    if (info)
        setsockopt(info->connect_fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof(on));
}

__attribute__((format(printf, 2, 0))) static void on_daemon_log(void *cls, const char *format,
                                                                va_list args)
{
    char text[400];

    (void)cls;
    vsnprintf(text, sizeof(text), format, args);
    text[strcspn(text, "\n")] = '\0';
    log_debug("http: %s", text);
}

/* A whole file, NUL-terminated, for the daemon, which takes text. */
static int read_file(const char *path, struct buf *out, struct error *err)
{
    FILE *file = fopen(path, "re");
    char block[4096];
    size_t n;

    if (!file)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    while ((n = fread(block, 1, sizeof(block), file)) > 0 && out->len < PEM_MAX_BYTES)
        buf_append(out, block, n);
    fclose(file);
    if (out->failed)
        return error_memory(err, path, out->len);
    if (out->len == 0 || out->len >= PEM_MAX_BYTES)
        return error_set(err, ERROR_INVALID, "%s: a PEM file of at most %d bytes expected", path,
                         PEM_MAX_BYTES);
    return 0;
}

/* As the daemon does it by itself, but a text with an escaped NUL stays as it was sent: the daemon
 * hands paths over as C strings, and what is behind the NUL would not be seen. Such a path is then
 * one that nobody serves. */
static size_t unescape(void *cls, struct MHD_Connection *connection, char *text)
{
    (void)cls, (void)connection;
    return strstr(text, "%00") ? strlen(text) : MHD_http_unescape(text);
}

/* `tls` is [3]: two entries and the end, or the end at once. The daemon reads the texts while it
 * starts and does not keep them. */
static int start_daemon(struct server *server, int listen_fd, unsigned flags,
                        struct MHD_OptionItem *tls, struct error *err)
{
    const struct server_options *o = &server->options;

    server->daemon = MHD_start_daemon(
        MHD_USE_EPOLL | MHD_ALLOW_SUSPEND_RESUME | MHD_USE_ERROR_LOG | flags, 0, NULL, NULL,
        on_access, server, MHD_OPTION_EXTERNAL_LOGGER, on_daemon_log, NULL,
        MHD_OPTION_LISTEN_SOCKET, listen_fd, MHD_OPTION_CONNECTION_LIMIT, o->max_connections,
        MHD_OPTION_PER_IP_CONNECTION_LIMIT, o->max_connections_per_address,
        MHD_OPTION_CONNECTION_TIMEOUT, o->idle_seconds, MHD_OPTION_CONNECTION_MEMORY_LIMIT,
        (size_t)CONNECTION_MEMORY_BYTES, MHD_OPTION_NOTIFY_COMPLETED, on_completed, server,
        MHD_OPTION_NOTIFY_CONNECTION, on_connection, server, MHD_OPTION_UNESCAPE_CALLBACK, unescape,
        NULL, MHD_OPTION_ARRAY, tls, MHD_OPTION_END);
    if (server->daemon)
        return 0;
    return error_set(err, ERROR_IO, "the HTTP daemon could not be started%s",
                     flags ? ": are tls-cert and tls-key a matching pair of PEM files?" : "");
}

int http_start(struct server *server, int listen_fd, struct error *err)
{
    _cleanup_buf_ struct buf certificate = {0};
    _cleanup_buf_ struct buf key = {0};
    struct MHD_OptionItem tls[4] = {{MHD_OPTION_END, 0, NULL}};

    if (!server->options.tls_certificate)
        return start_daemon(server, listen_fd, 0, tls, err);
    if (MHD_is_feature_supported(MHD_FEATURE_SSL) != MHD_YES)
        return error_set(err, ERROR_UNSUPPORTED, "tls-cert: this libmicrohttpd has no TLS");
    if (read_file(server->options.tls_certificate, &certificate, err) < 0 ||
        read_file(server->options.tls_key, &key, err) < 0)
        return -(int)err->code;
    tls[0] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_CERT, 0, certificate.data};
    tls[1] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_MEM_KEY, 0, key.data};
    tls[2] = (struct MHD_OptionItem){MHD_OPTION_HTTPS_PRIORITIES, 0,
                                     "SECURE128:+SECURE192:-VERS-ALL:+VERS-TLS1.3:+VERS-TLS1.2"};
    tls[3] = (struct MHD_OptionItem){MHD_OPTION_END, 0, NULL};
    return start_daemon(server, listen_fd, MHD_USE_TLS, tls, err);
}

void http_stop_listening(struct server *server)
{
    const union MHD_DaemonInfo *info =
        server->daemon ? MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_LISTEN_FD) : NULL;
    struct pollfd waiting = {.fd = info ? info->listen_fd : -1, .events = POLLIN};

    if (waiting.fd < 0)
        return;
    for (int i = 0; i < MAX_LATE_RUNS && poll(&waiting, 1, 0) == 1; i++)
        MHD_run(server->daemon);
    int fd = MHD_quiesce_daemon(server->daemon);
    if (fd >= 0)
        close(fd);
    server->needs_pump = true;
}

void http_stop(struct server *server)
{
    if (!server->daemon)
        return;
    /* A daemon must not be stopped while connections are suspended. */
    for (struct exchange *x = server->exchanges; x; x = x->next)
        exchange_abort(x);
    MHD_run(server->daemon);
    MHD_stop_daemon(server->daemon);
    server->daemon = NULL;
}
