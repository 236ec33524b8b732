/* The story of method reconstruct: memory, basis, layers, head, file. See reconstruct.h. */
#include "engine/prune/reconstruct.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/prune/vocabulary.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

static size_t max_size(size_t a, size_t b)
{
    return a > b ? a : b;
}

/* Bytes that grow with the calibration, for each of its tokens. Prompts count as answers do. */
static size_t bytes_per_token(const struct reconstruct *r)
{
    const struct model_params *p = r->full_params;
    size_t inner = max_size(max_size((size_t)p->n_heads * p->head_dim, r->mlp), r->hidden);
    return (2 * (size_t)p->hidden + 2 * (size_t)r->hidden + inner) * sizeof(float) +
           2 * (size_t)p->n_kv_heads * p->head_dim * sizeof(uint16_t);
}

/* Refuses what would not fit, before hours are spent on it. */
static int check_memory(const struct reconstruct *r, struct error *err)
{
    const struct model_params *p = r->full_params;
    size_t widest = max_size(p->mlp, r->hidden), row_bytes = 0;
    tensor_type_bytes(head_type(r), r->hidden, &row_bytes);
    /* one after another: a layer's sums, their inverse and what the channels are chosen by; the
     * twin's head as it is stored, with logits of three kinds and rows of both heads in float */
    size_t sums = widest * widest * (2 * sizeof(double) + sizeof(float)) +
                  2 * (size_t)p->hidden * p->mlp * sizeof(double);
    size_t head = p->vocab_size * (row_bytes + 3 * LOGIT_ROWS * sizeof(float)) +
                  4 * VOCABULARY_PART * (size_t)p->hidden * sizeof(float);
    /* and beside them a layer of weights twice */
    size_t fixed = 2 * (size_t)p->hidden * p->mlp * 3 + max_size(sums, head);
    return room_check_bytes(fixed, 0, bytes_per_token(r), r->samples->tokens.n, err);
}

/* A matrix cannot be solved for more inputs than there are rows to tell them apart. */
static int check_tokens(const struct reconstruct *r, struct error *err)
{
    const struct model_params *p = r->full_params;
    size_t needed = max_size(max_size((size_t)p->n_heads * p->head_dim, r->mlp), p->hidden);
    size_t n = 0;
    for (size_t i = 0; i < r->samples->n_samples; i++) {
        const struct sample *s = &r->samples->samples[i];
        n += s->held ? 0 : s->n - s->n_prompt;
    }
    if (n >= needed)
        return 0;
    return error_set(err, ERROR_INVALID,
                     "calibration: %zu tokens to learn from, at least %zu are needed to solve for "
                     "matrices of so many inputs, and far more for a good twin",
                     n, needed);
}

static int alloc_rows(struct reconstruct *r, struct error *err)
{
    const struct model_params *p = r->full_params;
    size_t n = r->samples->n_answer;
    size_t inner = max_size(max_size((size_t)p->n_heads * p->head_dim, r->mlp), r->hidden);
    bool is_turned = r->hidden < p->hidden;
    r->basis = is_turned ? mem_array((size_t)p->hidden * r->hidden, sizeof(float)) : NULL;
    r->middle = mem_array(n, p->hidden * sizeof(float));
    r->x = mem_array(n, r->hidden * sizeof(float));
    r->inner = mem_array(n, inner * sizeof(float));
    r->drift = mem_array(n, r->hidden * sizeof(float));
    r->target = mem_array(READER_ROWS, max_size(p->hidden, 2 * r->hidden) * sizeof(float));
    r->scaled = mem_array(READER_ROWS, max_size(inner, p->mlp) * sizeof(float));
    r->scale = mem_array(READER_ROWS, sizeof(float));
    r->layers = mem_calloc(p->n_layers, sizeof(*r->layers));
    if ((is_turned && !r->basis) || !r->middle || !r->x || !r->inner || !r->drift || !r->target ||
        !r->scaled || !r->scale || !r->layers)
        return error_memory(err, "calibration", n * bytes_per_token(r));
    return 0;
}

/* Everything that the twin's matrices depend on. */
static uint64_t hash_recipe(const struct reconstruct *r)
{
    const uint64_t parts[] = {
        PRUNER_VERSION, model_file_hash(r->file),   r->samples->hash,      r->hidden,
        r->mlp,         (uint64_t)r->options->type, (uint64_t)head_type(r)};
    return hash_bytes(HASH_START, parts, sizeof(parts));
}

static int open_models(struct reconstruct *r, struct error *err)
{
    struct model_params p = *r->full_params;
    p.norm_width = r->hidden < p.hidden ? r->hidden : p.norm_width;
    p.hidden = r->hidden;
    p.mlp = r->mlp;
    int rc = full_model_open(r->file, r->samples, &r->full, err);
    if (rc == 0)
        rc = model_open_empty(&p, MODEL_WEIGHTS_AUTO, SAMPLE_TOKENS, &r->twin, err);
    const struct model *models[] = {r->full.model, r->twin};
    if (rc == 0)
        rc = reader_open(r->samples, models, 2, &r->reader, err);
    return rc;
}

static int open_all(struct reconstruct *r, struct error *err)
{
    char path[4096];
    int n = snprintf(path, sizeof(path), "%s.layers", r->options->out_path);
    if (n < 0 || (size_t)n >= sizeof(path))
        return error_set(err, ERROR_INVALID, "out: a path of at most %zu bytes is expected",
                         sizeof(path) - 8);
    int rc = check_tokens(r, err);
    if (rc == 0)
        rc = check_memory(r, err);
    if (rc == 0)
        rc = open_models(r, err);
    if (rc == 0)
        rc = alloc_rows(r, err);
    if (rc == 0)
        rc = twin_store_open(path, hash_recipe(r), &r->store, err);
    return rc;
}

static void close_all(struct reconstruct *r)
{
    reader_close(&r->reader);
    full_model_close(&r->full);
    model_close(r->twin);
    twin_store_close(r->store);
    mem_free(r->basis);
    mem_free(r->middle);
    mem_free(r->x);
    mem_free(r->inner);
    mem_free(r->drift);
    mem_free(r->target);
    mem_free(r->scaled);
    mem_free(r->scale);
    mem_free(r->layers);
}

enum tensor_type head_type(const struct reconstruct *r)
{
    return (enum tensor_type)r->options->head_type;
}

/* The twin begins with its own embedding, as it is stored. */
static int embed(struct reconstruct *r, struct error *err)
{
    struct tensor t;
    int rc = twin_store_get(r->store, "token_embd.weight", &t, err);
    if (rc)
        return rc;
    r->twin->embedding = &t;
    reader_embed(r->samples, r->twin, READ_ANSWER, r->x);
    r->twin->embedding = NULL;
    tensor_release(&t);
    return 0;
}

/* What a layer takes for each token, and the head for each that it is fitted to, in units of the
 * basis: measured, so that one estimate holds for the whole run from its beginning. */
#define LAYER_WORK 2.4
#define HEAD_WORK 26.0

static double layer_work(const struct reconstruct *r)
{
    return LAYER_WORK * (double)r->samples->tokens.n;
}

static double basis_work(const struct reconstruct *r)
{
    return (double)r->full_params->n_layers * BASIS_TOKENS;
}

void show_work(const struct reconstruct *r, double work_done)
{
    size_t n_tokens = r->samples->tokens.n;
    size_t n_head = r->is_tied ? 0 : n_tokens < HEAD_TOKENS ? n_tokens : HEAD_TOKENS;
    double work =
        basis_work(r) + r->full_params->n_layers * layer_work(r) + HEAD_WORK * (double)n_head;
    if (r->options->progress)
        r->options->progress(r->options->user, "reconstructing", work_done / work);
}

static int rebuild(struct reconstruct *r, struct error *err)
{
    uint32_t n_layers = r->full_params->n_layers;
    show_work(r, 0);
    int rc = find_basis(r, err);
    if (rc == 0)
        rc = embed(r, err);
    for (uint32_t l = 0; l < n_layers && rc == 0; l++) {
        rc = rebuild_layer(r, l, err);
        if (rc == 0)
            show_work(r, basis_work(r) + (l + 1.0) * layer_work(r));
    }
    if (rc == 0)
        rc = rebuild_head(r, err);
    return rc;
}

static int write_file(const struct reconstruct *r, struct error *err)
{
    struct gguf_writer *writer;
    int rc = gguf_writer_open(r->options->out_path, &writer, err);
    if (rc)
        return rc;
    twin_metadata(r->file, "reconstruct", r->hidden, r->mlp, r->samples->hash, writer);
    twin_store_declare(r->store, writer);
    rc = twin_store_write(r->store, writer, err);
    if (rc) {
        gguf_writer_abort(writer);
        return rc;
    }
    return gguf_writer_finish(writer, err);
}

static void fill_report(struct reconstruct *r, struct prune_report *report)
{
    double energy = 0;
    for (uint32_t l = 0; l < r->full_params->n_layers; l++)
        energy += r->layers[l].mlp_energy / r->full_params->n_layers;
    report->hidden_energy = r->basis_share;
    report->mlp_energy = energy;
    report->head_residual = r->head_residual;
    report->temperature = r->temperature;
    report->held = r->held;
    report->layers = r->layers;
    r->layers = NULL;
}

int reconstruct_run(const struct prune_options *options, const struct model_file *file,
                    const struct sample_set *samples, struct prune_report *report,
                    struct error *err)
{
    struct reconstruct r = {
        .options = options,
        .file = file,
        .full_params = model_file_params(file),
        .hidden = report->hidden,
        .mlp = report->mlp,
        .samples = samples,
    };
    r.is_tied = r.full_params->tied && r.hidden == r.full_params->hidden;
    blas_end();
    int rc = open_all(&r, err);
    if (rc == 0)
        rc = rebuild(&r, err);
    if (rc == 0)
        rc = write_file(&r, err);
    if (rc == 0) {
        fill_report(&r, report);
        twin_store_remove(r.store);
        r.store = NULL;
    }
    close_all(&r);
    return rc;
}
