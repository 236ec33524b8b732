/* The server's loop: libuv drives everything, libmicrohttpd is a guest in it. The daemon's epoll
 * descriptor is one handle of the loop; MHD_run is called when it is readable, when the daemon's
 * own timer is due, and after connections were resumed. Also here: signals, draining, the end. */
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "server/internal.h"
#include "server/job.h"
#include "server/json_read.h"
#include "server/supervisor.h"

#include <signal.h>
#include <stdlib.h>
#include <string.h>
#include <sys/random.h>
#include <unistd.h>

/* Outputs taken from the engine in one go, so that sockets get their turn. */
#define MAX_OUTPUTS_A_TURN 512
/* After the drain deadline: time for cancelled work to end and last bytes to leave. */
#define END_GRACE_NS ((uint64_t)2 * 1000 * 1000 * 1000)
/* While draining: an open connection on which nothing has come for so long is taken to be at rest.
 * Until then a request may be on its way. */
#define DRAIN_QUIET_NS ((uint64_t)500 * 1000 * 1000)
#define TICK_MS 1000
#define DRAIN_TICK_MS 50

const struct server_options SERVER_DEFAULTS = {
    .host = "127.0.0.1",
    .port = 8080,
    .max_body_bytes = (size_t)8 << 20,
    .max_bodies_bytes = (size_t)256 << 20,
    .max_connections = 1024,
    .idle_seconds = 75,
    .header_seconds = 30,
    .body_seconds = 120,
    .ping_seconds = 15,
    .drain_seconds = 30,
    .stall_seconds = 60,
    .handle_signals = true,
};

static void on_daemon_timer(uv_timer_t *timer)
{
    server_pump(timer->data);
}

void server_pump(struct server *server)
{
    MHD_UNSIGNED_LONG_LONG wait_ms;

    if (!server->daemon)
        return;
    server->needs_pump = false;
    MHD_run(server->daemon);
    /* Something in MHD_run may have asked for another run (a connection that closed). */
    if (MHD_get_timeout(server->daemon, &wait_ms) == MHD_YES || server->needs_pump)
        uv_timer_start(&server->daemon_timer, on_daemon_timer, server->needs_pump ? 0 : wait_ms, 0);
    else
        uv_timer_stop(&server->daemon_timer);
}

static void on_daemon_readable(uv_poll_t *poll, int status, int events)
{
    (void)status, (void)events;
    server_pump(poll->data);
}

static void stop_loop(struct server *server)
{
    server->state = SERVER_STOPPED;
    uv_stop(&server->loop);
}

/* Draining is over when the engine holds nothing, no request is being received or answered, and
 * the connections that are still open are at rest. */
static void end_if_drained(struct server *server)
{
    if (server->state != SERVER_DRAINING || server->jobs || server->exchanges)
        return;
    if (server->metrics.connections > 0 &&
        system_now_ns() - server->last_activity_ns < DRAIN_QUIET_NS)
        return;
    stop_loop(server);
}

static void on_wake(uv_async_t *async)
{
    struct server *server = async->data;
    unsigned n = 0;

    if (!server->engine)
        return;
    for (; n < MAX_OUTPUTS_A_TURN; n++) {
        const struct engine_output *output = engine_poll(server->engine);
        if (!output)
            break;
        job_on_output(server, output);
    }
    if (n == MAX_OUTPUTS_A_TURN)
        uv_async_send(&server->wake);
    if (server->needs_pump)
        server_pump(server);
    end_if_drained(server);
}

static void on_tick(uv_timer_t *timer);

/* Nobody who connected is turned away: what has arrived or arrives on an open connection is still
 * answered, with `connection: close`. New connections find the port closed, or, where a service
 * manager holds it, wait for the next process. */
void server_drain(struct server *server)
{
    if (server->state == SERVER_DRAINING || server->state == SERVER_STOPPED)
        return;
    bool is_loading = server->state == SERVER_LOADING;
    log_info("draining: %u requests have %u s to finish", server->n_jobs,
             server->options.drain_seconds);
    supervisor_notify("STOPPING=1");
    http_stop_listening(server);
    server->state = SERVER_DRAINING;
    server->last_activity_ns = system_now_ns();
    uv_timer_start(&server->tick, on_tick, DRAIN_TICK_MS, DRAIN_TICK_MS);
    server->drain_deadline_ns =
        system_now_ns() + (uint64_t)server->options.drain_seconds * 1000000000u;
    if (is_loading)
        stop_loop(server); /* there is nothing to finish */
    end_if_drained(server);
}

static void watch_deadline(struct server *server, uint64_t now_ns)
{
    if (server->state != SERVER_DRAINING || now_ns < server->drain_deadline_ns)
        return;
    if (server->drain_is_over) {
        log_warn("%u requests did not end in time", server->n_jobs);
        stop_loop(server);
        return;
    }
    log_warn("the time to finish is over: %u requests are cancelled", server->n_jobs);
    server->drain_is_over = true;
    if (server->engine)
        engine_drain(server->engine);
    server->drain_deadline_ns = now_ns + END_GRACE_NS;
    for (struct job *job = server->jobs; job; job = job->next)
        job_cancel(job);
}

/* A sign of life for the service manager, unless the engine hangs. */
static void give_sign(struct server *server, uint64_t now_ns)
{
    if (!server->watchdog_ns || now_ns - server->last_sign_ns < server->watchdog_ns ||
        server_is_stalled(server, NULL))
        return;
    server->last_sign_ns = now_ns;
    supervisor_notify("WATCHDOG=1");
}

static void on_tick(uv_timer_t *timer)
{
    struct server *server = timer->data;
    uint64_t now_ns = system_now_ns();

    guard_check(server, now_ns);
    give_sign(server, now_ns);

    for (struct job *job = server->jobs; job; job = job->next)
        job_ping(job, now_ns);
    if (server->needs_pump)
        server_pump(server);
    watch_deadline(server, now_ns);
    end_if_drained(server);
}

static void on_signal(uv_signal_t *handle, int number)
{
    struct server *server = handle->data;

    log_info("%s received", number == SIGTERM ? "SIGTERM" : "SIGINT");
    if (server->state == SERVER_DRAINING)
        stop_loop(server);
    else
        server_drain(server);
}

static void on_hangup(uv_signal_t *handle, int number)
{
    struct server *server = handle->data;
    struct error err;

    (void)number;
    if (!server->options.api_key_file) {
        log_info("SIGHUP received: there is no api-key-file to read again");
        return;
    }
    if (keys_reload(server, &err) < 0)
        log_error("SIGHUP received: the keys stay as they were: %s", err.message);
    else
        log_info("SIGHUP received: keys read again from %s", server->options.api_key_file);
}

static void take_engine(struct server *server)
{
    struct engine *engine = atomic_load(&server->pending_engine);

    if (!engine || server->engine)
        return;
    server->engine = engine;
    engine_get_info(engine, &server->info);
    server->ready_time = time(NULL);
    if (models_prepare(server) < 0) {
        server->failure = (struct error){.code = ERROR_MEMORY};
        error_memory(&server->failure, "the model list", 0);
        atomic_store(&server->has_failed, true);
        stop_loop(server);
        return;
    }
    if (server->state == SERVER_LOADING)
        server->state = SERVER_READY;
    supervisor_notify("READY=1");
    uv_async_send(&server->wake); /* a wake before this moment was not listened to */
}

static void on_control(uv_async_t *async)
{
    struct server *server = async->data;

    if (atomic_load(&server->has_failed)) {
        stop_loop(server);
        return;
    }
    take_engine(server);
    if (atomic_load(&server->stop_requested))
        server_drain(server);
}

bool server_is_stalled(const struct server *server, double *ret_age_s)
{
    struct engine_stats stats;

    if (!server->engine || !server->options.stall_seconds)
        return false;
    engine_get_stats(server->engine, &stats);
    double age_s = stats.prefill_tick_age_s > stats.decode_tick_age_s ? stats.prefill_tick_age_s
                                                                      : stats.decode_tick_age_s;
    if (ret_age_s)
        *ret_age_s = age_s;
    return age_s > server->options.stall_seconds;
}

int server_check_ready(const struct server *server, struct http_error *e)
{
    if (server->engine && !server->drain_is_over)
        return 0;
    server_say_unready(server, e);
    return -1;
}

void server_say_unready(const struct server *server, struct http_error *e)
{
    if (!server->engine) {
        http_error_set(e, 503, "model_loading", "Loading model");
        e->reason = REJECT_LOADING;
    } else {
        http_error_set(e, 503, "server_shutting_down",
                       "The server is shutting down. Please retry elsewhere or later.");
        e->reason = REJECT_DRAINING;
    }
}

void server_new_id(struct server *server, char id[25])
{
    uint64_t words[2];

    for (int i = 0; i < 2; i++) { /* splitmix64, Steele et al. 2014 */
        uint64_t z = server->id_state[i] += 0x9e3779b97f4a7c15u;
        z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
        z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
        words[i] = z ^ (z >> 31);
    }
    snprintf(id, 25, "%016llx%08x", (unsigned long long)words[0], (unsigned)words[1]);
}

/* --- the door ------------------------------------------------------------------------------ */

void server_wake(void *server)
{
    uv_async_send(&((struct server *)server)->wake);
}

void server_progress(void *server, const char *what, double share)
{
    (void)what;
    share = share < 0 ? 0 : share > 1 ? 1 : share;
    atomic_store_explicit(&((struct server *)server)->progress_permille, (unsigned)(share * 1000),
                          memory_order_relaxed);
}

void server_set_engine(struct server *server, struct engine *engine)
{
    atomic_store(&server->pending_engine, engine);
    uv_async_send(&server->control);
}

void server_fail(struct server *server, const struct error *err)
{
    server->failure = *err;
    atomic_store(&server->has_failed, true);
    uv_async_send(&server->control);
}

void server_stop(struct server *server)
{
    atomic_store(&server->stop_requested, true);
    uv_async_send(&server->control);
}

uint16_t server_port(const struct server *server)
{
    return server->port;
}

/* NULL and "" are none. */
static bool copy_text(const char *text, const char **ret_copy)
{
    if (!text || !text[0])
        return true;
    *ret_copy = mem_strdup(text);
    return *ret_copy;
}

static int copy_options(struct server *server, const struct server_options *options,
                        struct error *err)
{
    struct server_options *o = &server->options;

    *o = *options;
    o->host = o->api_key_file = o->tls_certificate = o->tls_key = o->cors_origins = NULL;
    if (!copy_text(options->host ? options->host : SERVER_DEFAULTS.host, &o->host) ||
        !copy_text(options->api_key_file, &o->api_key_file) ||
        !copy_text(options->tls_certificate, &o->tls_certificate) ||
        !copy_text(options->tls_key, &o->tls_key) ||
        !copy_text(options->cors_origins, &o->cors_origins))
        return error_memory(err, "server options", 0);
    if (!o->tls_certificate != !o->tls_key)
        return error_set(err, ERROR_INVALID, "tls-cert and tls-key: both or none are needed");
    return keys_open(server, options->api_keys, options->n_api_keys, err);
}

static int open_handles(struct server *server, struct error *err)
{
    int code = uv_loop_init(&server->loop);

    if (code < 0)
        return error_set(err, ERROR_IO, "event loop: %s", uv_strerror(code));
    server->loop_is_open = true;
    server->wake.data = server->control.data = server;
    server->daemon_timer.data = server->tick.data = server;
    server->sigterm.data = server->sigint.data = server->sighup.data = server;
    if ((code = uv_async_init(&server->loop, &server->wake, on_wake)) < 0 ||
        (code = uv_async_init(&server->loop, &server->control, on_control)) < 0 ||
        (code = uv_timer_init(&server->loop, &server->daemon_timer)) < 0 ||
        (code = uv_timer_init(&server->loop, &server->tick)) < 0 ||
        (code = uv_signal_init(&server->loop, &server->sigterm)) < 0 ||
        (code = uv_signal_init(&server->loop, &server->sigint)) < 0 ||
        (code = uv_signal_init(&server->loop, &server->sighup)) < 0)
        return error_set(err, ERROR_IO, "event loop: %s", uv_strerror(code));
    return 0;
}

static int open_daemon(struct server *server, struct error *err)
{
    const struct server_options *o = &server->options;
    bool only_local = !o->allow_open && !keys_are_needed(server);
    int code, fd = supervisor_take_socket();

    if (fd >= 0)
        server->port = listen_port(fd); /* who handed it over decided who may reach it */
    else if (listen_open(o->host, o->port, only_local, &fd, &server->port, err) < 0)
        return -1;
    if (http_start(server, fd, err) < 0) {
        close(fd);
        return -1;
    }
    const union MHD_DaemonInfo *info =
        MHD_get_daemon_info(server->daemon, MHD_DAEMON_INFO_EPOLL_FD);
    if (!info)
        return error_set(err, ERROR_INTERNAL, "the HTTP daemon has no epoll descriptor");
    if ((code = uv_poll_init(&server->loop, &server->daemon_poll, info->epoll_fd)) < 0)
        return error_set(err, ERROR_IO, "event loop: %s", uv_strerror(code));
    server->daemon_poll.data = server;
    return 0;
}

int server_open(const struct server_options *options, struct server **ret_server, struct error *err)
{
    struct server *server = mem_calloc(1, sizeof(*server));

    if (!server)
        return error_memory(err, "server", sizeof(*server));
    json_setup();
    metrics_init(&server->metrics);
    server->open_ns = system_now_ns();
    if (getrandom(server->id_state, sizeof(server->id_state), 0) < 0)
        server->id_state[0] = server->open_ns ^ (uint64_t)getpid() << 32;
    if (copy_options(server, options, err) < 0 || open_handles(server, err) < 0 ||
        open_daemon(server, err) < 0) {
        server_close(server);
        return err ? -(int)err->code : -ERROR_IO;
    }
    *ret_server = server;
    return 0;
}

int server_run(struct server *server, struct error *err)
{
    signal(SIGPIPE, SIG_IGN); /* a client that leaves is an error value, not a signal */
    if (server->options.handle_signals) {
        uv_signal_start(&server->sigterm, on_signal, SIGTERM);
        uv_signal_start(&server->sigint, on_signal, SIGINT);
        uv_signal_start(&server->sighup, on_hangup, SIGHUP);
    }
    uv_poll_start(&server->daemon_poll, UV_READABLE, on_daemon_readable);
    uv_timer_start(&server->tick, on_tick, TICK_MS, TICK_MS);
    server->watchdog_ns = supervisor_watchdog_ns();
    server_pump(server);
    uv_run(&server->loop, UV_RUN_DEFAULT);

    server_pump(server);       /* last bytes that are ready */
    while (server->n_offloads) /* they read the engine, which the caller closes next */
        uv_run(&server->loop, UV_RUN_ONCE);
    uv_signal_stop(&server->sigterm);
    uv_signal_stop(&server->sigint);
    uv_signal_stop(&server->sighup);
    uv_timer_stop(&server->tick);
    uv_poll_stop(&server->daemon_poll);
    uv_timer_stop(&server->daemon_timer);
    http_stop(server);
    if (atomic_load(&server->has_failed)) {
        if (err)
            *err = server->failure;
        return -(int)server->failure.code;
    }
    return 0;
}

static void close_handle(uv_handle_t *handle, void *user)
{
    (void)user;
    if (!uv_is_closing(handle))
        uv_close(handle, NULL);
}

void server_close(struct server *server)
{
    if (!server)
        return;
    http_stop(server);
    while (server->jobs)
        job_free(server->jobs);
    if (server->loop_is_open) {
        uv_walk(&server->loop, close_handle, NULL);
        uv_run(&server->loop, UV_RUN_DEFAULT);
        uv_loop_close(&server->loop);
    }
    keys_close(server);
    mem_free((void *)server->options.host);
    mem_free((void *)server->options.api_key_file);
    mem_free((void *)server->options.tls_certificate);
    mem_free((void *)server->options.tls_key);
    mem_free((void *)server->options.cors_origins);
    buf_free(&server->models_json);
    buf_free(&server->model_json);
    buf_free(&server->openapi_json);
    buf_free(&server->unknown_fields);
    mem_free(server);
}
