/* Handlers of the two generation routes: body -> parameters -> job. From here on the engine works
 * and job.c collects. */
#include "engine/base/log.h"
#include "server/internal.h"
#include "server/job.h"
#include "server/json_read.h"

#include <string.h>
#include <sys/random.h>

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
        if (known->len > 4096 || (known->data && strstr(known->data, padded)))
            continue;
        buf_append_str(known, padded);
        log_info("%s unknown request field '%s' is ignored (told once)", x->id, name);
    }
}

/* Without a seed of the client's every request draws its own. */
static void choose_seed(struct params *p)
{
    if (p->seed_given)
        return;
    if (getrandom(&p->sampling.seed, sizeof(p->sampling.seed), 0) !=
        (ssize_t)sizeof(p->sampling.seed))
        p->sampling.seed = 0;
}

static int generate(struct exchange *x, const struct answer_shape *shape, struct http_error *e)
{
    struct server *server = x->server;
    _cleanup_buf_ struct buf unknown = {0};
    struct params params;
    cJSON *tree;

    if (server_check_ready(server, e) < 0)
        return -1;
    if (json_parse_object(x->body.data, x->body.len, &tree, e) < 0)
        return -1;
    int result = params_read(&params, shape->route, tree, &server->info, &unknown, e);
    log_unknown(x, &unknown);
    if (result < 0)
        return -1;
    choose_seed(&params);
    result = job_open(x, shape, &params, e);
    params_free(&params);
    return result;
}

static void handle(struct exchange *x, const struct answer_shape *shape)
{
    struct http_error e;

    if (generate(x, shape, &e) < 0)
        exchange_fail(x, &e);
}

void handle_chat_completions(struct exchange *x)
{
    handle(x, &CHAT_SHAPE);
}

void handle_completions(struct exchange *x)
{
    handle(x, &COMPLETIONS_SHAPE);
}
