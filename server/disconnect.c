/* Notices a client that leaves while the engine works for it. libmicrohttpd forgets a suspended
 * connection, so for as long as a request is in work its socket is also in the loop's own poll set,
 * asking only for the peer's end of stream. A client that closes just its sending side counts as
 * gone too: that is how a closed socket looks, and what the peers do. */
#include "engine/base/mem.h"
#include "server/internal.h"

struct watch {
    uv_poll_t poll;
    struct exchange *exchange; /* NULL once stopped; the memory goes when the loop lets go */
};

static void on_closed(uv_handle_t *handle)
{
    mem_free(handle->data);
}

static void on_disconnect(uv_poll_t *poll, int status, int events)
{
    struct watch *watch = poll->data;
    struct exchange *x = watch->exchange;

    if (!x || (status == 0 && !(events & UV_DISCONNECT)))
        return;
    struct server *server = x->server;
    watch_stop(x);
    exchange_abort(x);
    server_pump(server);
}

int watch_start(struct exchange *x)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CONNECTION_FD);
    struct watch *watch = info ? mem_calloc(1, sizeof(*watch)) : NULL;

    if (!watch)
        return -1;
    if (uv_poll_init(&x->server->loop, &watch->poll, info->connect_fd) < 0) {
        mem_free(watch);
        return -1;
    }
    watch->exchange = x;
    watch->poll.data = watch;
    x->watch = watch;
    if (uv_poll_start(&watch->poll, UV_DISCONNECT, on_disconnect) < 0) {
        watch_stop(x);
        return -1;
    }
    return 0;
}

void watch_stop(struct exchange *x)
{
    if (!x->watch)
        return;
    x->watch->exchange = NULL;
    uv_poll_stop(&x->watch->poll);
    uv_close((uv_handle_t *)&x->watch->poll, on_closed);
    x->watch = NULL;
}
