/* Handlers that only tell: models, health, metrics, version and the page at /. None of them waits
 * for compute. */
#include "engine/base/system.h"
#include "server/internal.h"
#include "server/json_write.h"

#include <string.h>

static void write_model(struct buf *out, const struct server *server)
{
    const struct engine_info *info = &server->info;

    buf_append_str(out, "{\"id\":");
    json_write_string(out, info->model_id, strlen(info->model_id));
    buf_printf(out, ",\"object\":\"model\",\"created\":%lld,\"owned_by\":\"overfill\",\"root\":",
               (long long)server->ready_time);
    json_write_string(out, info->model_id, strlen(info->model_id));
    buf_printf(out,
               ",\"parent\":null,\"max_model_len\":%u,\"meta\":{\"n_ctx\":%u,\"n_ctx_train\":%u,"
               "\"n_vocab\":%u,\"n_params\":%llu,\"n_params_pruned\":%llu,\"size\":%zu,"
               "\"size_pruned\":%zu,\"decode\":\"%s\",\"kernels\":\"%s\",\"chat_template\":",
               info->context, info->context, info->context_train, info->vocab_size,
               (unsigned long long)info->n_params, (unsigned long long)info->n_params_pruned,
               info->model_bytes, info->pruned_bytes, decode_mode_name(info->decode),
               info->kernels);
    json_write_string_or_null(out, info->chat_template);
    buf_append_str(out, "}}");
}

int models_prepare(struct server *server)
{
    write_model(&server->model_json, server);
    buf_append_str(&server->models_json, "{\"object\":\"list\",\"data\":[");
    write_model(&server->models_json, server);
    buf_append_str(&server->models_json, "]}");
    return server->model_json.failed || server->models_json.failed ? -1 : 0;
}

/* Both answer while draining too; before the model is there nothing can be said of it. */
static bool fail_while_loading(struct exchange *x)
{
    struct http_error e;

    if (x->server->models_json.data)
        return false;
    server_check_ready(x->server, &e);
    exchange_fail(x, &e);
    return true;
}

void handle_models(struct exchange *x)
{
    const struct buf *body = &x->server->models_json;

    if (!fail_while_loading(x))
        exchange_reply_static(x, 200, "application/json", body->data, body->len);
}

void handle_model(struct exchange *x)
{
    const struct buf *body = &x->server->model_json;
    const char *id = x->path + strlen("/v1/models/");
    struct http_error e;

    if (fail_while_loading(x))
        return;
    if (strcmp(id, x->server->info.model_id) == 0) {
        exchange_reply_static(x, 200, "application/json", body->data, body->len);
        return;
    }
    http_error_set(&e, 404, "model_not_found",
                   "The model `%.120s` does not exist or you do not have access to it.", id);
    snprintf(e.param, sizeof(e.param), "model");
    e.reason = REJECT_MODEL;
    exchange_fail(x, &e);
}

/* 503 with an error object and the state: loading, draining, or stalled (a stage that has work made
 * no step for too long, so a process that looks alive is not). */
static void reply_unhealthy(struct exchange *x, const char *state, const struct http_error *e)
{
    struct buf body = {0};

    buf_printf(&body, "{\"status\":\"%s\",\"progress\":%.3f,", state,
               atomic_load_explicit(&x->server->progress_permille, memory_order_relaxed) / 1000.0);
    struct buf error = {0};
    http_error_write(&error, e, DIALECT_OPENAI);
    if (error.failed)
        body.failed = true;
    else
        buf_append(&body, error.data + 1, error.len - 1); /* joins the two objects */
    buf_free(&error);
    exchange_add_header(x, "retry-after", "1");
    exchange_reply(x, 503, "application/json", &body);
}

void handle_health(struct exchange *x)
{
    struct server *server = x->server;
    struct engine_stats stats;
    struct http_error e;
    struct buf body = {0};

    if (server->state != SERVER_READY) {
        server_say_unready(server, &e);
        reply_unhealthy(x, server->state == SERVER_LOADING ? "loading" : "draining", &e);
        return;
    }
    double age_s;
    engine_get_stats(server->engine, &stats);
    if (server_is_stalled(server, &age_s)) {
        http_error_set(&e, 503, "engine_stalled",
                       "The engine has work but has not finished a step for %.0f seconds.", age_s);
        reply_unhealthy(x, "stalled", &e);
        return;
    }
    buf_append_str(&body, "{\"status\":\"ok\",\"model\":");
    json_write_string(&body, server->info.model_id, strlen(server->info.model_id));
    buf_printf(&body, ",\"waiting\":%u,\"prefilling\":%u,\"decoding\":%u}", stats.requests_waiting,
               stats.requests_prefilling, stats.sequences_decoding);
    exchange_reply(x, 200, "application/json", &body);
}

void handle_metrics(struct exchange *x)
{
    struct server *server = x->server;
    const char *labels[METRICS_MAX_ROUTES];
    struct engine_stats stats;
    struct buf body = {0};

    for (unsigned i = 0; i < N_ROUTES; i++)
        labels[i] = ROUTES[i].label;
    labels[N_ROUTES] = "handler=\"other\",method=\"\"";
    if (server->engine)
        engine_get_stats(server->engine, &stats);
    metrics_write(&body, &(struct metrics_view){
                             .metrics = &server->metrics,
                             .info = server->engine ? &server->info : NULL,
                             .stats = server->engine ? &stats : NULL,
                             .route_labels = labels,
                             .n_routes = N_ROUTES + 1,
                             .jobs = server->n_jobs,
                             .uptime_s = (double)(system_now_ns() - server->open_ns) / 1e9,
                         });
    exchange_reply(x, 200, "text/plain; version=0.0.4; charset=utf-8", &body);
}

void handle_version(struct exchange *x)
{
    static const char BODY[] = "{\"version\":\"" OVERFILL_VERSION "\"}";
    exchange_reply_static(x, 200, "application/json", BODY, sizeof(BODY) - 1);
}

void handle_index(struct exchange *x)
{
    struct buf body = {0};

    buf_append_str(&body,
                   "overfill " OVERFILL_VERSION ": an OpenAI-compatible inference server\n\n");
    for (unsigned i = 0; i < N_ROUTES; i++)
        buf_printf(&body, "%-5s %s\n", ROUTES[i].method, ROUTES[i].path);
    exchange_reply(x, 200, "text/plain; charset=utf-8", &body);
}
