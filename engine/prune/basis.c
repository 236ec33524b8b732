/* The basis of the twin's residual stream: principal components of the full model's, normalised as
 * RMSNorm does without its weights, over layers and tokens. A twin of the full width needs none,
 * only its embedding. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"

#include <string.h>

/* The first tokens' residual streams hold outliers that no other token has. */
#define SKIP_TOKENS 16

/* What is summed up: rows x of the residual stream as x / |x| * weight, after every half layer or
 * only after the last, where the head looks. */
struct view {
    bool last_only;
    float *weight; /* [full hidden] */
    struct least_squares sums;
};

static void add_normalised(struct reconstruct *r, struct batch batch, struct view *view)
{
    const struct model_params *p = r->full_params;
    struct forward_rows rows = forward_rows(r->reader.forward, FORWARD_X);
    size_t n = 0;
    for (size_t i = batch.first; i < batch.first + batch.n; i++) {
        const struct sample *s = &r->samples->samples[i];
        for (uint32_t t = SKIP_TOKENS; t < s->n; t++)
            r->reader.kernels->rmsnorm(rows.data + t * rows.stride, view->weight, p->hidden,
                                       p->norm_width, p->rms_eps, r->target + n++ * p->hidden);
        rows.data += s->n * rows.stride;
    }
    least_squares_add(&view->sums, false, r->target, p->hidden, NULL, 0, n);
}

static void read_batch(struct reconstruct *r, uint32_t l, struct batch batch, struct view *view)
{
    bool is_last = l + 1 == r->full_params->n_layers;
    reader_begin(&r->reader, r->full.model, batch, READ_ALL, r->full.x);
    for (unsigned part = 0; part < FORWARD_PARTS; part++) {
        forward_part(r->reader.forward, l, (enum forward_part)part);
        bool is_half = part == FORWARD_ATTN_OUT || part == FORWARD_MLP_OUT;
        if (view->last_only ? is_last && part == FORWARD_MLP_OUT : is_half)
            add_normalised(r, batch, view);
    }
    reader_store(&r->reader, batch, READ_ALL, r->full.x);
}

/* The full model reads the beginning of the calibration. */
static int read_through(struct reconstruct *r, struct view *view, struct error *err)
{
    const struct model_params *p = r->full_params;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        int rc = full_model_load(&r->full, l, err);
        if (rc)
            return rc;
        struct batch batch = reader_batch(r->samples, 0);
        for (; batch.n && r->samples->samples[batch.first].begin < BASIS_TOKENS;
             batch = reader_batch(r->samples, batch.first + batch.n))
            read_batch(r, l, batch, view);
        show_work(r, (l + 1.0) * BASIS_TOKENS);
    }
    reader_embed(r->samples, r->full.model, READ_ALL, r->full.x); /* back to the beginning */
    return 0;
}

/* norm: whose weights the rows are multiplied with; NULL: none. */
static int measure(struct reconstruct *r, const struct tensor *norm, struct view *view,
                   struct error *err)
{
    size_t n = r->full_params->hidden;
    *view = (struct view){.last_only = norm != NULL, .weight = mem_array(n, sizeof(float))};
    if (!view->weight)
        return error_memory(err, "basis", n * sizeof(float));
    for (size_t i = 0; i < n; i++)
        view->weight[i] = 1;
    if (norm)
        tensor_dequantize(norm->type, norm->data, n, view->weight);
    int rc = least_squares_open(r->reader.team, n, 0, &view->sums, err);
    return rc ? rc : read_through(r, view, err);
}

static void close_view(struct view *view)
{
    mem_free(view->weight);
    least_squares_close(&view->sums);
}

static int compute_basis(struct reconstruct *r, struct error *err)
{
    size_t full = r->full_params->hidden;
    struct view view;
    int rc = measure(r, NULL, &view, err);
    if (rc == 0)
        rc = top_eigenvectors(view.sums.fitted.xx, full, r->hidden, r->basis, &r->basis_share, err);
    close_view(&view);
    if (rc == 0)
        rc = put_turned(r, "token_embd.weight", r->full.model->embedding, r->basis, NULL, err);
    if (rc == 0)
        rc = twin_store_put(r->store, ".basis", TENSOR_F32, r->basis, full, r->hidden, NULL, err);
    return rc;
}

/* The full model's embedding, rounded for what it gives as the head where it is that too. */
static int put_embedding(struct reconstruct *r, struct error *err)
{
    const char *name = "token_embd.weight";
    const struct tensor *t = r->full.model->embedding;
    const struct tensor *norm = model_file_tensor(r->file, "output_norm.weight");
    if (t->type == head_type(r))
        return twin_store_copy(r->store, t, err);
    if (!r->is_tied || !tensor_type_grid(head_type(r)))
        return put_turned(r, name, t, NULL, NULL, err);
    struct view view;
    int rc = measure(r, norm, &view, err);
    if (rc == 0)
        rc = put_turned(r, name, t, NULL, view.sums.fitted.xx, err);
    close_view(&view);
    return rc;
}

int find_basis(struct reconstruct *r, struct error *err)
{
    struct tensor t;
    if (!r->basis) {
        r->basis_share = 1;
        return twin_store_has(r->store, "token_embd.weight") ? 0 : put_embedding(r, err);
    }
    if (!twin_store_has(r->store, ".basis"))
        return compute_basis(r, err);
    int rc = twin_store_get(r->store, ".basis", &t, err);
    if (rc)
        return rc;
    memcpy(r->basis, t.data, t.bytes);
    tensor_release(&t);
    return 0;
}
