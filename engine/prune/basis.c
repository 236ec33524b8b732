/* The basis of the twin's residual stream: principal components of the full model's, normalised as
 * RMSNorm does without its weights, over layers and tokens. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"

#include <string.h>

/* The first tokens' residual streams hold outliers that no other token has. */
#define SKIP_TOKENS 16
/* A covariance of hidden channels, summed over layers, needs no more. */
#define BASIS_TOKENS 4096

static void add_normalised(struct reconstruct *r, struct batch batch, const float *ones,
                           struct least_squares *covariance)
{
    const struct model_params *p = r->full_params;
    struct forward_rows rows = forward_rows(r->reader.forward, FORWARD_X);
    size_t n = 0;
    for (size_t i = batch.first; i < batch.first + batch.n; i++) {
        const struct sample *s = &r->samples->samples[i];
        for (uint32_t t = SKIP_TOKENS; t < s->n; t++)
            r->reader.kernels->rmsnorm(rows.data + t * rows.stride, ones, p->hidden, p->norm_width,
                                       p->rms_eps, r->target + n++ * p->hidden);
        rows.data += s->n * rows.stride;
    }
    least_squares_add(covariance, false, r->target, p->hidden, NULL, 0, n);
}

static void read_batch(struct reconstruct *r, uint32_t l, struct batch batch, const float *ones,
                       struct least_squares *covariance)
{
    reader_begin(&r->reader, r->full.model, batch, READ_ALL, r->full.x);
    for (unsigned part = 0; part < FORWARD_PARTS; part++) {
        forward_part(r->reader.forward, l, (enum forward_part)part);
        if (part == FORWARD_ATTN_OUT || part == FORWARD_MLP_OUT)
            add_normalised(r, batch, ones, covariance);
    }
    reader_store(&r->reader, batch, READ_ALL, r->full.x);
}

static int measure(struct reconstruct *r, struct least_squares *covariance, struct error *err)
{
    const struct model_params *p = r->full_params;
    _cleanup_mem_ float *ones = mem_array(p->hidden, sizeof(float));
    if (!ones)
        return error_memory(err, "basis", p->hidden * sizeof(float));
    for (uint32_t i = 0; i < p->hidden; i++)
        ones[i] = 1;
    for (uint32_t l = 0; l < p->n_layers; l++) {
        int rc = full_model_load(&r->full, l, err);
        if (rc)
            return rc;
        struct batch batch = reader_batch(r->samples, 0);
        for (; batch.n && r->samples->samples[batch.first].begin < BASIS_TOKENS;
             batch = reader_batch(r->samples, batch.first + batch.n))
            read_batch(r, l, batch, ones, covariance);
        if (r->options->progress)
            r->options->progress(r->options->user, "basis", (l + 1.0) / p->n_layers);
    }
    return 0;
}

static int compute_basis(struct reconstruct *r, struct error *err)
{
    size_t full = r->full_params->hidden;
    struct least_squares covariance;
    int rc = least_squares_open(r->reader.team, full, 0, &covariance, err);
    if (rc)
        return rc;
    rc = measure(r, &covariance, err);
    if (rc == 0)
        rc =
            top_eigenvectors(covariance.fitted.xx, full, r->hidden, r->basis, &r->basis_share, err);
    least_squares_close(&covariance);
    reader_embed(r->samples, r->full.model, READ_ALL, r->full.x); /* back to the beginning */
    if (rc == 0)
        rc = put_turned(r, "token_embd.weight", r->full.model->embedding, r->basis, NULL, err);
    if (rc == 0)
        rc = twin_store_put(r->store, ".basis", TENSOR_F32, r->basis, full, r->hidden, NULL, err);
    return rc;
}

int find_basis(struct reconstruct *r, struct error *err)
{
    struct tensor t;
    if (!twin_store_has(r->store, ".basis"))
        return compute_basis(r, err);
    int rc = twin_store_get(r->store, ".basis", &t, err);
    if (rc)
        return rc;
    memcpy(r->basis, t.data, t.bytes);
    tensor_release(&t);
    return 0;
}
