/* How much each channel matters: sizes of activations on the calibration text. See OverFill
 * (COLM 2025) and Minitron (2024), section 2.2: for each sample the mean over tokens
 * of |x|; for hidden channels summed over all layers and both norms; L2 norm over the samples of a
 * batch; batches added up. */
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/base/team.h"
#include "engine/forward/forward.h"
#include "engine/prune/prune_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define SAMPLE_TOKENS 512
#define BATCH_SAMPLES 8

/* Sums of one sample, and squares over the samples of the batch. */
struct collector {
    struct importance *total;
    double *hidden_sample, *mlp_sample; /* shapes as in struct importance */
    double *hidden_squares, *mlp_squares;
    uint32_t n_in_batch;
};

static void add_mean(const float *rows, uint32_t n_rows, uint32_t width, size_t stride, double *sum)
{
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t i = 0; i < width; i++)
            sum[i] += fabsf(rows[r * stride + i]) / (double)n_rows;
}

static void collect(void *user, enum forward_tap tap, uint32_t layer, const float *rows,
                    uint32_t n_rows, uint32_t width, size_t stride)
{
    struct collector *c = user;
    if (tap == TAP_MLP_HIDDEN)
        add_mean(rows, n_rows, width, stride, c->mlp_sample + (size_t)layer * c->total->mlp);
    else
        add_mean(rows, n_rows, width, stride, c->hidden_sample);
}

static void square_and_clear(double *sample, double *squares, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        squares[i] += sample[i] * sample[i];
        sample[i] = 0;
    }
}

static void root_and_clear(double *squares, double *score, size_t n)
{
    for (size_t i = 0; i < n; i++) {
        score[i] += sqrt(squares[i]);
        squares[i] = 0;
    }
}

static void end_batch(struct collector *c)
{
    struct importance *t = c->total;
    root_and_clear(c->hidden_squares, t->hidden_score, t->hidden);
    root_and_clear(c->mlp_squares, t->mlp_score, (size_t)t->n_layers * t->mlp);
    c->n_in_batch = 0;
}

static void end_sample(struct collector *c)
{
    struct importance *t = c->total;
    square_and_clear(c->hidden_sample, c->hidden_squares, t->hidden);
    square_and_clear(c->mlp_sample, c->mlp_squares, (size_t)t->n_layers * t->mlp);
    if (++c->n_in_batch == BATCH_SAMPLES)
        end_batch(c);
}

/* Everything that a run of the full model needs. */
struct run {
    struct model *model;
    struct kv_pool *pool;
    struct kv_table table;
    struct team *team;
    struct forward *forward;
};

static void run_close(struct run *run)
{
    forward_close(run->forward);
    team_close(run->team);
    if (run->pool)
        kv_table_close(run->pool, &run->table);
    kv_pool_close(run->pool);
    model_close(run->model);
}

static int run_open(const char *path, struct run *run, struct error *err)
{
    struct model_file *file;
    const struct kernels *kernels;
    int rc = model_file_open(path, &file, err);
    if (rc)
        return rc;
    rc = model_open(file, MODEL_WEIGHTS_AUTO, SAMPLE_TOKENS, NULL, NULL, &run->model, err);
    if (rc)
        return rc;
    const struct model_params *p = &run->model->params;
    const struct kv_layout layout = {p->n_layers, p->n_kv_heads, p->head_dim, sizeof(float)};
    rc = kv_pool_open(&layout, kv_page_bytes(&layout) * kv_pages_for(SAMPLE_TOKENS), &run->pool,
                      err);
    if (rc == 0)
        rc = kv_table_open(&run->table, SAMPLE_TOKENS, err);
    if (rc == 0)
        rc = team_open(system_cpu_count(), "prune", NULL, &run->team, err);
    if (rc == 0)
        rc = kernels_select(getenv("OVERFILL_KERNELS"), &kernels, err);
    if (rc == 0)
        rc = forward_open((const struct model *const *)&run->model, 1, kernels, run->team,
                          SAMPLE_TOKENS, 1, &run->forward, err);
    if (rc == 0)
        kv_table_grow(run->pool, &run->table, SAMPLE_TOKENS);
    return rc;
}

static void run_samples(const struct prune_options *options, const struct token_list *tokens,
                        struct run *run, struct collector *c)
{
    size_t stride;
    forward_set_tap(run->forward, collect, c);
    for (size_t at = 0; at < tokens->n; at += SAMPLE_TOKENS) {
        size_t n = tokens->n - at < SAMPLE_TOKENS ? tokens->n - at : SAMPLE_TOKENS;
        const struct forward_slice slice = {
            .tokens = tokens->ids + at, .n_tokens = (uint32_t)n, .pages = run->table.pages};
        forward_run(run->forward, run->model, run->pool, &slice, 1, &stride);
        end_sample(c);
        if (options->progress)
            options->progress(options->user, "calibrating", (double)(at + n) / (double)tokens->n);
    }
    if (c->n_in_batch)
        end_batch(c);
}

int importance_measure(const struct prune_options *options, const struct token_list *tokens,
                       struct importance *ret_importance, struct error *err)
{
    struct importance t = {0};
    struct run run = {0};
    int rc = run_open(options->model_path, &run, err);
    if (rc) {
        run_close(&run);
        return rc;
    }
    t.n_layers = run.model->params.n_layers;
    t.hidden = run.model->params.hidden;
    t.mlp = run.model->params.mlp;
    size_t n_mlp = (size_t)t.n_layers * t.mlp;
    t.hidden_score = mem_calloc(t.hidden, sizeof(double));
    t.mlp_score = mem_calloc(n_mlp, sizeof(double));
    _cleanup_mem_ double *hidden = mem_calloc(2 * (size_t)t.hidden, sizeof(double));
    _cleanup_mem_ double *mlp = mem_calloc(2 * n_mlp, sizeof(double));
    if (t.hidden_score && t.mlp_score && hidden && mlp) {
        struct collector c = {&t, hidden, mlp, hidden + t.hidden, mlp + n_mlp, 0};
        run_samples(options, tokens, &run, &c);
        *ret_importance = t;
    } else {
        importance_free(&t);
        rc = error_memory(err, "channel scores", 3 * n_mlp * sizeof(double));
    }
    run_close(&run);
    return rc;
}

void importance_free(struct importance *importance)
{
    mem_free(importance->hidden_score);
    mem_free(importance->mlp_score);
    *importance = (struct importance){0};
}
