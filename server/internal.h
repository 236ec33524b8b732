/* The server room's shared structs; only files in server/ include this. Everything here belongs to
 * the loop thread unless a comment says otherwise.
 *
 *   struct server    the loop, the daemon, lists of what is going on
 *   struct exchange  one HTTP request on one connection, from its headers to its last byte
 *   struct job       one generation request and what the engine produced for it (job.h)
 */
#ifndef OVERFILL_SERVER_INTERNAL_H
#define OVERFILL_SERVER_INTERNAL_H

#include "engine/base/buf.h"
#include "engine/engine.h"
#include "server/errors.h"
#include "server/guard.h"
#include "server/keys.h"
#include "server/metrics.h"
#include "server/server.h"

#include <microhttpd.h>
#include <stdatomic.h>
#include <uv.h>

struct exchange;
struct job;

enum server_state { SERVER_LOADING, SERVER_READY, SERVER_DRAINING, SERVER_STOPPED };

struct server {
    struct server_options options;
    struct api_key *keys;
    struct api_key everybody; /* whose allowance counts when no key is needed */
    bool needs_key;

    uv_loop_t loop;
    uv_async_t wake;       /* the engine has output: server_wake, any thread */
    uv_async_t control;    /* one of the atomics below was set, any thread */
    uv_poll_t daemon_poll; /* libmicrohttpd's epoll descriptor */
    uv_timer_t daemon_timer;
    uv_timer_t tick; /* once a second: pings, drain deadline, descriptors */
    uv_signal_t sigterm, sigint, sighup;
    bool loop_is_open;
    struct MHD_Daemon *daemon;
    uint16_t port;
    bool needs_pump; /* a connection was resumed since the daemon last ran */

    /* Written by other threads before uv_async_send(&control), read by the loop after it. */
    _Atomic(struct engine *) pending_engine;
    atomic_bool stop_requested;
    atomic_bool has_failed; /* release/acquire: orders `failure` */
    struct error failure;
    atomic_uint progress_permille;

    enum server_state state;
    struct engine *engine; /* NULL while loading */
    struct engine_info info;
    time_t ready_time; /* `created` of the model list */
    uint64_t open_ns;
    uint64_t drain_deadline_ns;
    uint64_t last_activity_ns;          /* a connection came or a request ended */
    uint64_t watchdog_ns, last_sign_ns; /* the service manager's, 0: none expected */
    bool drain_is_over;                 /* the deadline passed: what still ran was cancelled */

    struct exchange *exchanges; /* doubly linked */
    struct client *clients;     /* doubly linked; open connections */
    struct job *jobs;           /* doubly linked; those the engine still holds, and finished ones
                                   whose stream is being sent */
    uint32_t n_jobs;
    uint32_t n_offloads; /* on libuv's thread pool now (request.h) */
    size_t body_bytes;   /* held by all exchanges together */
    struct metrics metrics;
    uint64_t id_state[2];   /* random; ids are drawn from it */
    struct buf models_json; /* the body of /v1/models */
    struct buf model_json;  /* of /v1/models/{id} */
    struct buf openapi_json;
    struct buf unknown_fields; /* names already logged, space-separated */
};

enum exchange_phase {
    EXCHANGE_RECEIVING,    /* the body is coming in */
    EXCHANGE_WORKING,      /* the handler has run, its answer is not ready */
    EXCHANGE_REPLY_READY,  /* `reply` waits to be queued */
    EXCHANGE_STREAM_READY, /* the stream's headers wait to be queued */
    EXCHANGE_QUEUED,       /* libmicrohttpd sends it */
};

/* What the log line says about a generation request. */
struct exchange_facts {
    uint32_t prompt_tokens, cached_tokens, matched_tokens, completion_tokens;
    double queue_ms, prefill_ms, decode_ms;
    const char *finish; /* a literal, NULL when there is nothing to say */
};

#define EXCHANGE_MAX_HEADERS 4

struct watch;
struct route;
struct request;

struct exchange {
    struct server *server;
    struct MHD_Connection *connection;
    struct client *client; /* NULL: unguarded */
    struct api_key *key;   /* what it came with; NULL where none is asked for */
    struct exchange *prev, *next;
    const struct route *route; /* NULL: no such path or method */
    char method[8];
    char path[160]; /* cut if longer; for routes with a tail and for the log */
    char id[72];    /* x-request-id */
    uint64_t start_ns;
    enum exchange_phase phase;
    bool is_suspended;
    bool is_gone;            /* the client left, or is too slow: end the connection */
    bool closes;             /* connection: close */
    enum dialect dialect;    /* of error replies */
    struct http_error early; /* .status != 0: found with the headers, told after the body */
    struct buf body;
    size_t body_received; /* also counts what was thrown away */

    unsigned status;
    const char *content_type;
    struct buf reply;
    const char *static_reply; /* instead of `reply`: lives as long as the server */
    size_t static_reply_len;
    struct {
        const char *name;
        char value[64];
    } headers[EXCHANGE_MAX_HEADERS];
    unsigned n_headers;

    struct job *job;
    struct watch *watch;
    struct request *request; /* on libuv's thread pool (request.h) */
    struct exchange_facts facts;
};

struct route {
    const char *method;
    const char *path; /* a trailing '*' matches any tail */
    void (*handle)(struct exchange *x);
    bool needs_key;
    bool is_limited;   /* counts for a key's rate */
    bool is_quiet;     /* logged at debug level only */
    const char *label; /* for http_requests_total */
};

/* routes.c */
extern const struct route ROUTES[];
extern const unsigned N_ROUTES;
/* Sets x->route, or x->early (401, 404, 405). */
void route_find(struct exchange *x, const char *url);
unsigned route_index(const struct route *route);              /* N_ROUTES for NULL */
void route_allowed_methods(const char *url, struct buf *out); /* "GET, HEAD, OPTIONS" */

/* http.c: the daemon's callbacks and the exchange's life. */
int http_start(struct server *server, int listen_fd, struct error *err);
void http_stop(struct server *server);
/* Takes in who has connected already, then nobody any more. */
void http_stop_listening(struct server *server);
/* Takes *body over. Extra headers are added before. */
void exchange_reply(struct exchange *x, unsigned status, const char *content_type,
                    struct buf *body);
void exchange_reply_static(struct exchange *x, unsigned status, const char *content_type,
                           const char *data, size_t len);
void exchange_fail(struct exchange *x, const struct http_error *e);
void exchange_begin_stream(struct exchange *x); /* 200 and the headers of an event stream */
void exchange_add_header(struct exchange *x, const char *name, const char *value);
void exchange_resume(struct exchange *x); /* there is something to send, or the end */
void exchange_abort(struct exchange *x);  /* the client is gone; frees the engine's work */

/* disconnect.c: libmicrohttpd does not see a suspended connection close. */
int watch_start(struct exchange *x);
void watch_stop(struct exchange *x);

/* loop.c */
void server_pump(struct server *server);
void server_drain(struct server *server);
/* Whether a stage that has work made no step for options.stall_seconds; and for how long. */
bool server_is_stalled(const struct server *server, double *ret_age_s);
/* 24 random characters of [0-9a-f] and a NUL. */
void server_new_id(struct server *server, char id[25]);
/* 0, or *e says that the server is loading or draining. */
int server_check_ready(const struct server *server, struct http_error *e);
void server_say_unready(const struct server *server, struct http_error *e);

/* listen.c. With only_local an address that other machines reach is ERROR_INVALID. */
int listen_open(const char *host, uint16_t port, bool only_local, int *ret_fd, uint16_t *ret_port,
                struct error *err);
uint16_t listen_port(int fd);

/* cors.c */
bool cors_add_headers(struct exchange *x, struct MHD_Response *response);

/* Handlers. */
void handle_chat_completions(struct exchange *x); /* generate.c */
void handle_completions(struct exchange *x);
void handle_responses(struct exchange *x);
void handle_messages(struct exchange *x);
void handle_models(struct exchange *x); /* info.c */
void handle_model(struct exchange *x);
void handle_health(struct exchange *x);
void handle_metrics(struct exchange *x);
void handle_version(struct exchange *x);
void handle_index(struct exchange *x);
int models_prepare(struct server *server); /* builds the bodies of /v1/models */
void handle_tokenize(struct exchange *x);  /* tokenize.c */
void handle_detokenize(struct exchange *x);
void handle_count_tokens(struct exchange *x);
void handle_tokenizer_info(struct exchange *x);
void handle_openapi(struct exchange *x); /* openapi.c */

#endif
