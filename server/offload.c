/* See offload.h. */
#include "server/offload.h"

#include "engine/base/mem.h"

struct offload {
    uv_work_t request;
    struct server *server;
    struct exchange *exchange; /* loop thread only; NULL once its client left */
    const struct engine *engine;
    offload_work work;
    cJSON *object;
    /* Written by the pool's thread, read by the loop after it. */
    struct buf out;
    struct http_error error;
    int result;
};

static void run(uv_work_t *request)
{
    struct offload *o = request->data;
    o->result = o->work(o->engine, o->object, &o->out, &o->error);
}

static void on_done(uv_work_t *request, int status)
{
    struct offload *o = request->data;
    struct server *server = o->server;
    struct exchange *x = o->exchange;

    (void)status;
    server->n_offloads--;
    if (x) {
        x->offload = NULL;
        if (o->result < 0)
            exchange_fail(x, &o->error);
        else
            exchange_reply(x, 200, "application/json", &o->out);
    }
    buf_free(&o->out);
    cJSON_Delete(o->object);
    mem_free(o);
    if (server->needs_pump)
        server_pump(server);
}

int offload_start(struct exchange *x, offload_work work, cJSON *object)
{
    struct offload *o = mem_calloc(1, sizeof(*o));

    if (!o)
        return -1;
    o->request.data = o;
    o->server = x->server;
    o->exchange = x;
    o->engine = x->server->engine;
    o->work = work;
    o->object = object;
    if (uv_queue_work(&x->server->loop, &o->request, run, on_done) < 0) {
        mem_free(o);
        return -1;
    }
    x->offload = o;
    x->server->n_offloads++;
    return 0;
}

void offload_detach(struct exchange *x)
{
    if (!x->offload)
        return;
    x->offload->exchange = NULL;
    uv_cancel((uv_req_t *)&x->offload->request); /* if it has not begun, it never will */
    x->offload = NULL;
}
