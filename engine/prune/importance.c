/* How much each channel matters: sizes of activations on the calibration text. See OverFill
 * (COLM 2025) and Minitron (2024), section 2.2: for each sample the mean over tokens
 * of |x|; for hidden channels summed over all layers and both norms; L2 norm over the samples of a
 * batch; batches added up. */
#include "engine/base/mem.h"
#include "engine/prune/prune_internal.h"
#include "engine/prune/reader.h"

#include <math.h>
#include <string.h>

#define BATCH_SAMPLES 8

/* Means of |x| of every sample. */
struct means {
    double *hidden; /* [n_samples][hidden], summed over layers and norms */
    double *mlp;    /* [n_samples][mlp] of the layer at hand */
};

/* Adds the mean over each sample's rows to its row of `means`. */
static void add_means(const struct sample_set *samples, struct batch batch,
                      struct forward_rows rows, double *means)
{
    const float *row = rows.data;
    for (size_t i = batch.first; i < batch.first + batch.n; i++) {
        double *sum = means + i * rows.width;
        double n = samples->samples[i].n;
        for (uint32_t t = 0; t < samples->samples[i].n; t++, row += rows.stride)
            for (uint32_t c = 0; c < rows.width; c++)
                sum[c] += fabsf(row[c]) / n;
    }
}

/* score[c] += L2 norm over a batch of samples, for every batch. */
static void add_norms(const double *means, size_t n_samples, size_t width, double *score)
{
    for (size_t first = 0; first < n_samples; first += BATCH_SAMPLES) {
        size_t end = first + BATCH_SAMPLES < n_samples ? first + BATCH_SAMPLES : n_samples;
        for (size_t c = 0; c < width; c++) {
            double squares = 0;
            for (size_t i = first; i < end; i++)
                squares += means[i * width + c] * means[i * width + c];
            score[c] += sqrt(squares);
        }
    }
}

static void read_batch(struct reader *reader, struct full_model *full, uint32_t layer,
                       struct batch batch, struct means *means)
{
    reader_begin(reader, full->model, batch, READ_ALL, full->x);
    for (unsigned part = 0; part < FORWARD_PARTS; part++) {
        forward_part(reader->forward, layer, (enum forward_part)part);
        if (part == FORWARD_ATTN_NORM || part == FORWARD_MLP_NORM)
            add_means(reader->samples, batch, forward_rows(reader->forward, FORWARD_NORMED),
                      means->hidden);
        if (part == FORWARD_MLP)
            add_means(reader->samples, batch, forward_rows(reader->forward, FORWARD_HIDDEN),
                      means->mlp);
    }
    reader_store(reader, batch, READ_ALL, full->x);
}

static int read_layers(const struct prune_options *options, struct reader *reader,
                       struct full_model *full, struct means *means, struct importance *t,
                       struct error *err)
{
    const struct sample_set *samples = reader->samples;
    for (uint32_t l = 0; l < t->n_layers; l++) {
        struct batch batch = reader_batch(samples, 0);
        int rc = full_model_load(full, l, err);
        if (rc)
            return rc;
        memset(means->mlp, 0, samples->n_samples * t->mlp * sizeof(double));
        for (; batch.n; batch = reader_batch(samples, batch.first + batch.n))
            read_batch(reader, full, l, batch, means);
        add_norms(means->mlp, samples->n_samples, t->mlp, t->mlp_score + (size_t)l * t->mlp);
        if (options->progress)
            options->progress(options->user, "calibrating", (l + 1.0) / t->n_layers);
    }
    add_norms(means->hidden, samples->n_samples, t->hidden, t->hidden_score);
    return 0;
}

static int measure(const struct prune_options *options, struct reader *reader,
                   struct full_model *full, struct importance *t, struct error *err)
{
    size_t n = reader->samples->n_samples;
    _cleanup_mem_ double *hidden = mem_calloc(n, t->hidden * sizeof(double));
    _cleanup_mem_ double *mlp = mem_calloc(n, t->mlp * sizeof(double));
    t->hidden_score = mem_calloc(t->hidden, sizeof(double));
    t->mlp_score = mem_calloc((size_t)t->n_layers * t->mlp, sizeof(double));
    if (!hidden || !mlp || !t->hidden_score || !t->mlp_score)
        return error_memory(err, "channel scores", n * (t->hidden + t->mlp) * sizeof(double));
    return read_layers(options, reader, full, &(struct means){hidden, mlp}, t, err);
}

int importance_measure(const struct prune_options *options, const struct model_file *file,
                       const struct sample_set *samples, struct importance *ret_importance,
                       struct error *err)
{
    const struct model_params *p = model_file_params(file);
    struct importance t = {.n_layers = p->n_layers, .hidden = p->hidden, .mlp = p->mlp};
    struct full_model full = {0};
    struct reader reader = {0};
    int rc = full_model_open(file, samples, &full, err);
    if (rc == 0)
        rc = reader_open(samples, (const struct model *const *)&full.model, 1, &reader, err);
    if (rc == 0)
        rc = measure(options, &reader, &full, &t, err);
    reader_close(&reader);
    full_model_close(&full);
    if (rc) {
        importance_free(&t);
        return rc;
    }
    *ret_importance = t;
    return 0;
}

void importance_free(struct importance *importance)
{
    mem_free(importance->hidden_score);
    mem_free(importance->mlp_score);
    *importance = (struct importance){0};
}
