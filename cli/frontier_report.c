/* The frontier as a table, as JSON and as a picture. See frontier.h. */
#include "cli/cli.h"
#include "cli/frontier.h"
#include "engine/base/mem.h"

#include <errno.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct entry {
    const struct frontier_row *row;
    const struct frontier_quality *quality;
    struct model_cost cost;
};

/* What is known, those that read least first. */
struct table {
    struct entry *entries; /* [n], so the others */
    struct frontier_score *scores;
    bool *on_front;
    size_t n;
};

static void table_free(struct table *t)
{
    mem_free(t->entries);
    mem_free(t->scores);
    mem_free(t->on_front);
}

static int by_bytes(const void *a, const void *b)
{
    const struct entry *x = a;
    const struct entry *y = b;
    if (x->cost.bytes != y->cost.bytes)
        return x->cost.bytes < y->cost.bytes ? -1 : 1;
    return x->quality->kl < y->quality->kl ? -1 : x->quality->kl > y->quality->kl;
}

static int table_fill(const struct frontier_result *r, struct table *t, struct error *err)
{
    size_t n;
    const struct frontier_row *rows = frontier_log_rows(r->log, &n);
    t->entries = mem_array(n + 1, sizeof(*t->entries));
    t->scores = mem_array(n + 1, sizeof(*t->scores));
    t->on_front = mem_array(n + 1, sizeof(*t->on_front));
    if (!t->entries || !t->scores || !t->on_front)
        return error_memory(err, "table", n);
    for (size_t i = 0; i < n; i++) {
        if (!(r->eval_path ? rows[i].has_eval : rows[i].has_held))
            continue;
        t->entries[t->n++] = (struct entry){
            .row = &rows[i],
            .quality = r->eval_path ? &rows[i].eval : &rows[i].held,
            .cost = frontier_point_cost(&rows[i].point, r->full),
        };
    }
    qsort(t->entries, t->n, sizeof(*t->entries), by_bytes);
    for (size_t i = 0; i < t->n; i++)
        t->scores[i] =
            (struct frontier_score){(double)t->entries[i].cost.bytes, t->entries[i].quality->kl};
    frontier_mark_front(t->scores, t->n, t->on_front);
    return 0;
}

/* What was to be made and is not measured yet: each name with `before` in front of it. */
static void put_missing(const struct frontier_result *r, const struct table *t, const char *first,
                        const char *before, const char *behind, struct buf *out)
{
    size_t n = 0;
    for (size_t i = 0; i < r->wanted->n; i++) {
        char name[FRONTIER_NAME_BYTES];
        size_t k = 0;
        while (k < t->n && !frontier_point_equal(&t->entries[k].row->point, &r->wanted->points[i]))
            k++;
        if (k < t->n)
            continue;
        frontier_point_name(&r->wanted->points[i], name);
        buf_printf(out, "%s%s%s", n++ ? before : first, name, behind);
    }
}

static void put_row(const struct table *t, size_t i, struct buf *out)
{
    const struct entry *e = &t->entries[i];
    const struct frontier_quality *q = e->quality;
    char name[FRONTIER_NAME_BYTES];
    char interval[32] = "";
    frontier_point_name(&e->row->point, name);
    if (isfinite(q->kl_low) && isfinite(q->kl_high))
        snprintf(interval, sizeof(interval), "%.3f-%.3f", q->kl_low, q->kl_high);
    buf_printf(out, "%s %-24s %8.2f %9.2f %7.3f %-13s %6.1f %% %6.3f", t->on_front[i] ? "*" : " ",
               name, (double)e->cost.bytes / 1e6, e->cost.multiply_adds / 1e6, q->kl, interval,
               100 * q->agree, q->nll);
    if (e->row->has_speed)
        buf_printf(out, " %8.1f %8.1f", e->row->speed.tok_s_1, e->row->speed.tok_s_16);
    buf_append_str(out, "\n");
}

static void put_best(const struct frontier_result *r, const struct table *t, double budget,
                     struct buf *out)
{
    size_t best = frontier_best(t->scores, t->n, budget);
    char name[FRONTIER_NAME_BYTES];
    char file[FRONTIER_NAME_BYTES];
    if (best == t->n) {
        buf_printf(out, "best within %g MB: none was measured\n", budget / 1e6);
        return;
    }
    const struct entry *e = &t->entries[best];
    frontier_point_name(&e->row->point, name);
    frontier_point_file(&e->row->point, file);
    buf_printf(out, "best within %g MB: %s, KL %.3f, %.1f %% agree, %s/%s.gguf\n", budget / 1e6,
               name, e->quality->kl, 100 * e->quality->agree, r->folder, file);
}

static void put_full(const struct frontier_result *r, const struct table *t, struct buf *out)
{
    const struct frontier_speed *s = frontier_log_full(r->log);
    if (!s)
        return;
    buf_printf(out, "  %-24s %8.2f %9.2f %7.3f %-13s %6.1f %% %6.3f %8.1f %8.1f\n", "full model",
               (double)s->step_bytes / 1e6,
               model_cost(r->full, TENSOR_Q8_0, TENSOR_Q8_0).multiply_adds / 1e6, 0.0, "", 100.0,
               t->n ? t->entries[0].quality->full_nll : NAN, s->tok_s_1, s->tok_s_16);
}

static void put_text(const struct frontier_result *r, const struct table *t, struct buf *out)
{
    const struct frontier_speed *full = frontier_log_full(r->log);
    buf_printf(out, "%s, %zu calibration tokens, measured on %zu tokens of %s\n", r->model_path,
               r->n_calibration_tokens, t->n ? t->entries[0].quality->n_tokens : 0,
               r->eval_path ? r->eval_path : "the calibration held back");
    if (full)
        buf_printf(out, "speeds: kernels %s, %u threads\n", full->kernels, full->n_threads);
    buf_printf(out, "  %-24s %8s %9s %7s %-13s %8s %6s %8s %8s\n", "*: on the frontier", "MB/token",
               "M mul-add", "KL", "95 %", "agree", "NLL", "tok/s 1", "tok/s 16");
    for (size_t i = 0; i < t->n; i++)
        put_row(t, i, out);
    put_full(r, t, out);
    put_missing(r, t, "  not measured yet: ", "  not measured yet: ", "\n", out);
    for (size_t i = 0; i < r->n_budgets; i++)
        put_best(r, t, r->budgets[i], out);
    buf_printf(out, "%s/frontier.svg is the picture\n", r->folder);
}

static void put_number(const char *name, double value, struct buf *out)
{
    cli_json_number(out, name, value);
    buf_append_str(out, ",");
}

static void put_speed(const struct frontier_speed *s, struct buf *out)
{
    buf_printf(out, "\"tok_s\":{\"1\":%.2f,\"16\":%.2f},\"kernels\":\"%s\",\"threads\":%u",
               s->tok_s_1, s->tok_s_16, s->kernels, s->n_threads);
}

static void put_row_json(const struct table *t, size_t i, struct buf *out)
{
    const struct entry *e = &t->entries[i];
    const struct frontier_point *p = &e->row->point;
    char name[FRONTIER_NAME_BYTES];
    char file[FRONTIER_NAME_BYTES];
    frontier_point_name(p, name);
    frontier_point_file(p, file);
    buf_printf(out,
               "%s{\"point\":\"%s\",\"hidden\":%u,\"mlp\":%u,\"type\":\"%s\",\"head_type\":\"%s\","
               "\"file\":\"%s.gguf\",\"bytes\":%zu,\"multiply_adds\":%.0f,\"tokens\":%zu,",
               i ? "," : "", name, p->hidden, p->mlp, tensor_type_name(p->type),
               tensor_type_name(p->head_type), file, e->cost.bytes, e->cost.multiply_adds,
               e->quality->n_tokens);
    put_number("kl", e->quality->kl, out);
    put_number("kl_low", e->quality->kl_low, out);
    put_number("kl_high", e->quality->kl_high, out);
    put_number("agree", e->quality->agree, out);
    put_number("nll", e->quality->nll, out);
    put_number("full_nll", e->quality->full_nll, out);
    if (e->row->has_speed) {
        put_speed(&e->row->speed, out);
        buf_append_str(out, ",");
    }
    buf_printf(out, "\"on_frontier\":%s}", t->on_front[i] ? "true" : "false");
}

static void put_budgets_json(const struct frontier_result *r, const struct table *t,
                             struct buf *out)
{
    buf_append_str(out, "],\"budgets\":[");
    for (size_t i = 0; i < r->n_budgets; i++) {
        size_t best = frontier_best(t->scores, t->n, r->budgets[i]);
        char name[FRONTIER_NAME_BYTES];
        buf_printf(out, "%s{\"mb\":%.9g,\"best\":", i ? "," : "", r->budgets[i] / 1e6);
        if (best < t->n)
            frontier_point_name(&t->entries[best].row->point, name);
        buf_printf(out, best < t->n ? "\"%s\"}" : "null}", name);
    }
}

static void put_json(const struct frontier_result *r, const struct table *t, struct buf *out)
{
    const struct frontier_speed *full = frontier_log_full(r->log);
    buf_append_str(out, "{\"model\":");
    cli_json_string(out, r->model_path, strlen(r->model_path));
    buf_printf(out, ",\"hidden\":%u,\"mlp\":%u,\"calibration_tokens\":%zu,\"evaluation\":",
               r->full->hidden, r->full->mlp, r->n_calibration_tokens);
    if (r->eval_path)
        cli_json_string(out, r->eval_path, strlen(r->eval_path));
    else
        buf_append_str(out, "null");
    buf_printf(out, ",\"prompt_tokens\":%u,\"score_tokens\":%u,\"points\":[", r->prompt_tokens,
               r->score_tokens);
    for (size_t i = 0; i < t->n; i++)
        put_row_json(t, i, out);
    buf_append_str(out, "],\"missing\":[");
    put_missing(r, t, "\"", ",\"", "\"", out);
    put_budgets_json(r, t, out);
    buf_append_str(out, "],\"full\":");
    if (full) {
        buf_printf(out, "{\"bytes\":%zu,\"multiply_adds\":%.0f,", full->step_bytes,
                   model_cost(r->full, TENSOR_Q8_0, TENSOR_Q8_0).multiply_adds);
        put_speed(full, out);
        buf_append_str(out, "}}\n");
    } else {
        buf_append_str(out, "null}\n");
    }
}

static int write_picture(const struct frontier_result *r, const struct buf *svg, struct error *err)
{
    char path[4096];
    snprintf(path, sizeof(path), "%s/frontier.svg", r->folder);
    FILE *f = fopen(path, "we");
    if (!f)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    bool ok = fwrite(svg->data, 1, svg->len, f) == svg->len;
    ok = fclose(f) == 0 && ok;
    return ok ? 0 : error_set(err, ERROR_IO, "%s: cannot be written", path);
}

static int draw(const struct frontier_result *r, const struct table *t, struct error *err)
{
    _cleanup_buf_ struct buf svg = {0};
    _cleanup_mem_ struct frontier_dot *dots = mem_array(t->n + 1, sizeof(*dots));
    const struct frontier_speed *full = frontier_log_full(r->log);
    if (!dots)
        return error_memory(err, "picture", t->n * sizeof(*dots));
    for (size_t i = 0; i < t->n; i++)
        dots[i] = (struct frontier_dot){t->entries[i].row->point, t->scores[i], t->on_front[i]};
    const struct frontier_plot plot = {
        .full = r->full,
        .full_bytes = full ? (double)full->step_bytes : 0,
        .dots = dots,
        .n = t->n,
        .budgets = r->budgets,
        .n_budgets = r->n_budgets,
    };
    frontier_draw(&plot, &svg);
    return svg.failed ? error_memory(err, "picture", svg.len) : write_picture(r, &svg, err);
}

int frontier_report(const struct frontier_result *result, bool json, struct error *err)
{
    _cleanup_buf_ struct buf out = {0};
    struct table table = {0};
    int rc = table_fill(result, &table, err);
    if (rc == 0)
        rc = draw(result, &table, err);
    if (rc == 0 && json)
        put_json(result, &table, &out);
    else if (rc == 0)
        put_text(result, &table, &out);
    table_free(&table);
    return rc ? rc : cli_print(&out, err);
}
