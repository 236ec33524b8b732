/* Passes over samples, a layer at a time. See reader.h. */
#include "engine/prune/reader.h"

#include "engine/base/mem.h"
#include "engine/base/system.h"

#include <stdlib.h>
#include <string.h>

static int open_pool(struct reader *r, const struct model_params *p, struct error *err)
{
    const struct kv_layout layout = {1, p->n_kv_heads, p->head_dim, sizeof(uint16_t)};
    size_t bytes;
    r->pages = mem_array(r->samples->n_pages, sizeof(*r->pages));
    r->slices = mem_array(READER_ROWS, sizeof(*r->slices));
    if (!r->slices || !r->pages || !mem_mul(r->samples->n_pages, kv_page_bytes(&layout), &bytes))
        return error_memory(err, "KV pages of the calibration", r->samples->n_pages);
    for (size_t i = 0; i < r->samples->n_pages; i++)
        r->pages[i] = (uint32_t)i;
    return kv_pool_open(&layout, bytes, &r->kv, err);
}

int reader_open(const struct sample_set *samples, const struct model *const *models,
                size_t n_models, struct reader *ret_reader, struct error *err)
{
    struct reader r = {.samples = samples};
    int rc = kernels_select(getenv("OVERFILL_KERNELS"), &r.kernels, err);
    if (rc == 0)
        rc = open_pool(&r, &models[0]->params, err);
    if (rc == 0)
        rc = team_open(system_cpu_count(), "prune", NULL, &r.team, err);
    if (rc == 0)
        rc = forward_open(models, n_models, r.kernels, r.team, READER_ROWS, 1, &r.forward, err);
    if (rc) {
        reader_close(&r);
        return rc;
    }
    *ret_reader = r;
    return 0;
}

void reader_close(struct reader *r)
{
    forward_close(r->forward);
    team_close(r->team);
    kv_pool_close(r->kv);
    mem_free(r->slices);
    mem_free(r->pages);
    *r = (struct reader){0};
}

struct batch reader_batch(const struct sample_set *samples, size_t first)
{
    struct batch batch = {first, 0};
    size_t rows = 0;
    while (first + batch.n < samples->n_samples &&
           rows + samples->samples[first + batch.n].n <= READER_ROWS)
        rows += samples->samples[first + batch.n++].n;
    return batch;
}

/* Where the batch's rows begin in an array of all samples' rows. */
static size_t first_row(const struct reader *r, struct batch batch, enum read_tokens tokens)
{
    const struct sample *s = &r->samples->samples[batch.first];
    return tokens == READ_ALL ? s->begin : s->answer;
}

struct forward_rows reader_begin(struct reader *r, const struct model *model, struct batch batch,
                                 enum read_tokens tokens, const float *x)
{
    size_t n = 0;
    for (size_t i = batch.first; i < batch.first + batch.n; i++) {
        const struct sample *s = &r->samples->samples[i];
        uint32_t skip = tokens == READ_ALL ? 0 : s->n_prompt;
        r->slices[n++] = (struct forward_slice){
            .tokens = r->samples->tokens.ids + s->begin + skip,
            .n_tokens = s->n - skip,
            .position = skip,
            .pages = r->pages + s->page,
        };
    }
    forward_begin(r->forward, model, r->kv, r->slices, n);
    struct forward_rows rows = forward_rows(r->forward, FORWARD_X);
    x += first_row(r, batch, tokens) * rows.width;
    for (uint32_t i = 0; i < rows.n_rows; i++)
        memcpy(rows.data + i * rows.stride, x + (size_t)i * rows.width, rows.width * sizeof(float));
    return rows;
}

void reader_store(const struct reader *r, struct batch batch, enum read_tokens tokens, float *x)
{
    struct forward_rows rows = forward_rows(r->forward, FORWARD_X);
    x += first_row(r, batch, tokens) * rows.width;
    for (uint32_t i = 0; i < rows.n_rows; i++)
        memcpy(x + (size_t)i * rows.width, rows.data + i * rows.stride, rows.width * sizeof(float));
}

void reader_embed(const struct sample_set *samples, const struct model *model,
                  enum read_tokens tokens, float *x)
{
    for (size_t i = 0; i < samples->n_samples; i++) {
        const struct sample *s = &samples->samples[i];
        for (uint32_t t = tokens == READ_ALL ? 0 : s->n_prompt; t < s->n; t++) {
            model_embed(model, samples->tokens.ids[s->begin + t], x);
            x += model->params.hidden;
        }
    }
}

int full_model_open(const struct model_file *file, const struct sample_set *samples,
                    struct full_model *ret_full, struct error *err)
{
    const struct model_params *p = model_file_params(file);
    struct full_model full = {.file = file};
    int rc = model_open_empty(p, MODEL_WEIGHTS_AUTO, SAMPLE_TOKENS, &full.model, err);
    if (rc)
        return rc;
    full.x = mem_array(samples->tokens.n, p->hidden * sizeof(float));
    if (!full.x) {
        full_model_close(&full);
        return error_memory(err, "residual stream", samples->tokens.n * p->hidden * sizeof(float));
    }
    full.model->embedding = model_file_tensor(file, "token_embd.weight");
    reader_embed(samples, full.model, READ_ALL, full.x);
    *ret_full = full;
    return 0;
}

int full_model_load(struct full_model *full, uint32_t layer, struct error *err)
{
    struct layer_tensors tensors;
    model_drop_layers(full->model);
    layer_tensors_find(full->file, layer, &tensors);
    int rc = model_pack_layer(full->model, layer, &tensors, err);
    model_forget_layer(&tensors);
    return rc;
}

void full_model_close(struct full_model *full)
{
    model_close(full->model);
    mem_free(full->x);
    *full = (struct full_model){0};
}
