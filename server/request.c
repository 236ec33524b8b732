/* See request.h. */
#include "server/request.h"

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "server/json_read.h"

#include <string.h>

/* Of a body that the loop works on itself: well under a millisecond. */
#define INLINE_MAX_BYTES ((size_t)16 << 10)
#define UNKNOWN_MAX_BYTES 4096 /* of names kept, so that none is logged twice */

struct request {
    uv_work_t handle;
    const struct request_plan *plan;
    struct server *server;
    struct exchange *exchange; /* loop thread only; NULL once its client left */
    const struct engine *engine;
    struct engine_info info;
    struct buf body;
    /* Written by whoever works, read by the loop after it. */
    struct params params;
    bool has_params;
    struct buf unknown;
    struct buf out;
    struct http_error error;
    int result;
};

static int read_params(struct request *r)
{
    cJSON *tree;

    if (json_parse_object(r->body.data, r->body.len, &tree, &r->error) < 0)
        return -1;
    if (params_read(&r->params, r->plan->route, tree, &r->info, &r->unknown, &r->error) < 0)
        return -1;
    r->has_params = true;
    return r->plan->work ? r->plan->work(r->engine, &r->params, &r->out, &r->error) : 0;
}

/* Fields that nobody knows are accepted, and each is named in the log once. */
static void log_unknown(struct exchange *x, struct buf *names)
{
    struct buf *known = &x->server->unknown_fields;
    char *save = NULL;

    if (names->failed || names->len == 0)
        return;
    for (char *name = strtok_r(names->data, " ", &save); name; name = strtok_r(NULL, " ", &save)) {
        char padded[80];
        snprintf(padded, sizeof(padded), " %s ", name);
        if (known->len > UNKNOWN_MAX_BYTES || (known->data && strstr(known->data, padded)))
            continue;
        buf_append_str(known, padded);
        log_info("%s unknown request field '%s' is ignored (told once)", x->id, name);
    }
}

/* Loop thread: the answer, or the next stage of it. */
static void conclude(struct request *r, struct exchange *x)
{
    log_unknown(x, &r->unknown);
    if (r->result == 0)
        r->result = server_check_ready(x->server, &r->error); /* it may have ended meanwhile */
    if (r->result == 0 && r->plan->finish)
        r->result = r->plan->finish(x, r->plan, &r->params, &r->error);
    if (r->result < 0)
        exchange_fail(x, &r->error);
    else if (!r->plan->finish)
        exchange_reply(x, 200, "application/json", &r->out);
}

static void free_content(struct request *r)
{
    if (r->has_params)
        params_free(&r->params);
    buf_free(&r->unknown);
    buf_free(&r->out);
}

static void run(uv_work_t *handle)
{
    struct request *r = handle->data;
    r->result = read_params(r);
}

static void on_done(uv_work_t *handle, int status)
{
    struct request *r = handle->data;
    struct server *server = r->server;

    (void)status;
    server->n_offloads--;
    if (r->exchange) {
        r->exchange->request = NULL;
        conclude(r, r->exchange);
    }
    free_content(r);
    server->body_bytes -= r->body.len;
    buf_free(&r->body);
    mem_free(r);
    if (server->needs_pump)
        server_pump(server);
}

static void run_on_the_pool(struct exchange *x, const struct request *start)
{
    struct request *r = mem_alloc(sizeof(*r));
    struct http_error e;

    if (r) {
        *r = *start;
        r->handle.data = r;
    }
    if (!r || uv_queue_work(&x->server->loop, &r->handle, run, on_done) < 0) {
        mem_free(r);
        http_out_of_memory(&e);
        exchange_fail(x, &e);
        return;
    }
    x->body = (struct buf){0}; /* r has it; it stays in server->body_bytes */
    x->request = r;
    x->server->n_offloads++;
}

void request_run(struct exchange *x, const struct request_plan *plan)
{
    struct server *server = x->server;
    struct request r = {.plan = plan,
                        .server = server,
                        .exchange = x,
                        .engine = server->engine,
                        .info = server->info,
                        .body = x->body};
    struct http_error e;

    if (server_check_ready(server, &e) < 0 || limits_take(x, &e) < 0) {
        exchange_fail(x, &e);
        return;
    }
    if (r.body.len > INLINE_MAX_BYTES) {
        run_on_the_pool(x, &r);
        return;
    }
    r.result = read_params(&r);
    conclude(&r, x);
    free_content(&r);
}

void request_detach(struct exchange *x)
{
    if (!x->request)
        return;
    x->request->exchange = NULL;
    uv_cancel((uv_req_t *)&x->request->handle); /* if it has not begun, it never will */
    x->request = NULL;
}
