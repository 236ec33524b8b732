/* The HTTP server's door: open a listening socket, give it an engine when one is ready, run the
 * event loop until it is told to stop. It speaks the OpenAI API (routes.c lists what it serves) and
 * knows the engine only through engine/engine.h.
 *
 * Life: server_open (the port is taken, nothing answers yet) -> a loader thread calls engine_open
 * with wake = server_wake, wake_user = the server -> server_run answers /health with 503 meanwhile
 * -> server_set_engine -> work -> server_stop or SIGTERM: draining -> server_run returns
 * -> engine_close -> server_close. The engine goes before the server, because it may call
 * server_wake until it is closed.
 *
 * Threads: server_run owns the loop, every socket and the engine's polling side. server_wake,
 * server_progress, server_set_engine, server_fail and server_stop may be called from any thread. */
#ifndef OVERFILL_SERVER_SERVER_H
#define OVERFILL_SERVER_SERVER_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;
struct server;

struct server_options {
    const char *host;         /* address or name to listen on */
    uint16_t port;            /* 0: any free one, see server_port */
    size_t max_body_bytes;    /* of one request; more is answered with 413 */
    size_t max_bodies_bytes;  /* of all requests being received together; more is a 503 */
    unsigned max_connections; /* more wait in the kernel's queue */
    unsigned max_connections_per_address; /* more are closed; 0: no limit */
    unsigned header_seconds;     /* a request's headers must be complete within, 0: no limit; 408 */
    unsigned body_seconds;       /* a request must be complete within, 0: no limit; 408 */
    unsigned idle_seconds;       /* a connection on which nothing moves is closed after that */
    unsigned ping_seconds;       /* an SSE stream silent for that long gets a comment line */
    unsigned drain_seconds;      /* time that running answers get after SIGTERM */
    unsigned stall_seconds;      /* a stage with work that made no step for so long: /health 503 */
    const char *const *api_keys; /* [n_api_keys]; none: every client is let in */
    size_t n_api_keys;
    const char *api_key_file; /* more keys, a line each; SIGHUP reads it again; or NULL */
    unsigned requests_per_minute, tokens_per_minute; /* of each key, 0: no limit */
    bool allow_open;                       /* listen beyond this machine though no key is needed */
    const char *tls_certificate, *tls_key; /* PEM files; both or none */
    const char *cors_origins; /* separated by commas, "*": all; NULL or "": no CORS headers */
    bool handle_signals; /* SIGHUP reads the keys again; SIGTERM and SIGINT drain; a second one ends
                            at once */
};

/* 127.0.0.1:8080, 8 MiB bodies, 1024 connections, 75 s idle, 30 s for headers, 120 s for a request,
 * 15 s ping, 30 s drain, no keys. */
extern const struct server_options SERVER_DEFAULTS;

/* Copies the options. ERROR_IO names the address that cannot be bound or the file that cannot be
 * read; ERROR_INVALID an address that anybody could reach without a key. A socket that a service
 * manager hands over (supervisor.h) is used instead of host and port. */
int server_open(const struct server_options *options, struct server **ret_server,
                struct error *err);
uint16_t server_port(const struct server *server);

/* engine_options.wake and .progress; `server` is the struct server. */
void server_wake(void *server);
void server_progress(void *server, const char *what, double share);

/* From now on requests go to this engine. It stays the caller's; call once. */
void server_set_engine(struct server *server, struct engine *engine);
/* There will be no engine: server_run returns with this error. */
void server_fail(struct server *server, const struct error *err);
/* The same as a SIGTERM: drain, then return from server_run. */
void server_stop(struct server *server);

/* Blocks until stopped. 0 after an orderly end, or the error given to server_fail. */
int server_run(struct server *server, struct error *err);
/* Frees everything. NULL is fine. */
void server_close(struct server *server);

#endif
