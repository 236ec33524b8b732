/* The twin's head, and how well the whole twin does on the held samples. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"
#include "engine/prune/vocabulary.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

/* Both models' normed last rows of the batch's answers: the full model's to target, the twin's to
 * inner. */
static void norm_last(struct reconstruct *r, struct batch batch, const float *weight,
                      const float *twin_weight)
{
    const struct model_params *p = r->full_params;
    const struct sample *s = &r->samples->samples[batch.first];
    size_t n = answer_rows(r->samples, batch);
    float *x = r->inner + s->answer * r->hidden;
    uint32_t width = r->twin->params.norm_width;
    gather_answers(r->samples, batch, r->full.x + s->begin * p->hidden, p->hidden, p->hidden,
                   r->target);
    for (size_t i = 0; i < n; i++) {
        float *row = r->target + i * p->hidden;
        r->reader.kernels->rmsnorm(row, weight, p->hidden, p->norm_width, p->rms_eps, row);
        r->reader.kernels->rmsnorm(r->x + (s->answer + i) * r->hidden, twin_weight, r->hidden,
                                   width, p->rms_eps, x + i * r->hidden);
    }
    memcpy(r->middle + s->answer * p->hidden, r->target, n * p->hidden * sizeof(float));
}

/* From here on middle holds the full model's normed last rows and inner the twin's. ls NULL: there
 * is nothing to fit. ret_weight [hidden]: of the twin's last norm. */
static int norm_all(struct reconstruct *r, struct least_squares *ls, float *ret_weight,
                    struct error *err)
{
    const struct tensor *norm = model_file_tensor(r->file, "output_norm.weight");
    size_t full = r->full_params->hidden;
    _cleanup_mem_ float *weight = mem_array(full, sizeof(float));
    if (!weight)
        return error_memory(err, "output norm", full * sizeof(float));
    tensor_dequantize(norm->type, norm->data, full, weight);
    for (uint32_t i = 0; i < r->hidden; i++)
        ret_weight[i] = r->basis ? 1 : weight[i];
    struct batch batch = reader_batch(r->samples, 0);
    for (; batch.n; batch = reader_batch(r->samples, batch.first + batch.n)) {
        norm_last(r, batch, weight, ret_weight);
        if (ls)
            add_rows(r, batch, ls, r->inner + r->samples->samples[batch.first].answer * r->hidden,
                     r->hidden, r->target, full);
    }
    return 0;
}

const struct tensor *full_head(const struct reconstruct *r)
{
    const struct tensor *head = model_file_tensor(r->file, "output.weight");
    return head ? head : model_file_tensor(r->file, "token_embd.weight");
}

static double log_sum_exp(const float *z, size_t n, size_t *ret_best)
{
    size_t best = 0;
    for (size_t i = 1; i < n; i++)
        best = z[i] > z[best] ? i : best;
    double sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += expf(z[i] - z[best]);
    *ret_best = best;
    return z[best] + log(sum);
}

/* One row: KL(full || twin), agreement, and the NLL of the token that comes. */
static void score_row(const float *full, const float *twin, size_t n, int32_t next,
                      struct held_report *h)
{
    size_t full_best;
    size_t twin_best;
    double full_sum = log_sum_exp(full, n, &full_best);
    double twin_sum = log_sum_exp(twin, n, &twin_best);
    double kl = 0;
    for (size_t i = 0; i < n; i++)
        kl += expf((float)(full[i] - full_sum)) * ((full[i] - full_sum) - (twin[i] - twin_sum));
    h->n_tokens++;
    h->kl += kl;
    h->agree += full_best == twin_best;
    if (next < 0)
        return;
    h->n_next++;
    h->nll += twin_sum - twin[next];
    h->nll_full += full_sum - full[next];
}

/* What is measured on the held samples, and with what. */
struct scorer {
    struct tensor stored;         /* the twin's head */
    struct vocabulary twin, full; /* both heads */
    float *z;                     /* [2][LOGIT_ROWS][vocab] logits: the full model's, the twin's */
};

static int scorer_open(const struct reconstruct *r, struct scorer *s, struct error *err)
{
    size_t bytes = 2 * LOGIT_ROWS * (size_t)r->full_params->vocab_size * sizeof(float);
    const char *name = r->is_tied ? "token_embd.weight" : "output.weight";
    int rc = twin_store_get(r->store, name, &s->stored, err);
    if (rc == 0)
        rc = vocabulary_open(r->reader.team, &s->stored, &s->twin, err);
    if (rc == 0)
        rc = vocabulary_open(r->reader.team, full_head(r), &s->full, err);
    if (rc == 0 && !(s->z = mem_alloc(bytes)))
        rc = error_memory(err, "logits", bytes);
    return rc;
}

static void scorer_close(struct scorer *s)
{
    vocabulary_close(&s->twin);
    vocabulary_close(&s->full);
    tensor_release(&s->stored);
    mem_free(s->z);
}

/* The answer of one held sample, with the heads as they serve but for the activations' rounding. */
static void score_sample(struct reconstruct *r, struct scorer *scorer, const struct sample *s)
{
    size_t vocab = r->full_params->vocab_size;
    float *twin = scorer->z + LOGIT_ROWS * vocab;
    for (uint32_t t = s->n_prompt; t < s->n; t += LOGIT_ROWS) {
        size_t n = s->n - t < LOGIT_ROWS ? s->n - t : LOGIT_ROWS;
        size_t row = s->answer + t - s->n_prompt;
        vocabulary_logits(&scorer->full, r->middle + row * r->full_params->hidden, n, scorer->z);
        vocabulary_logits(&scorer->twin, r->inner + row * r->hidden, n, twin);
        for (size_t k = 0; k < n; k++)
            score_row(scorer->z + k * vocab, twin + k * vocab, vocab,
                      t + k + 1 < s->n ? r->samples->tokens.ids[s->begin + t + k + 1] : -1,
                      &r->held);
    }
}

static int score_held(struct reconstruct *r, struct error *err)
{
    struct scorer scorer = {0};
    int rc = scorer_open(r, &scorer, err);
    for (size_t i = 0; rc == 0 && i < r->samples->n_samples; i++)
        if (r->samples->samples[i].held)
            score_sample(r, &scorer, &r->samples->samples[i]);
    scorer_close(&scorer);
    if (r->held.n_tokens) {
        r->held.kl /= (double)r->held.n_tokens;
        r->held.agree /= (double)r->held.n_tokens;
        r->held.nll /= (double)r->held.n_next;
        r->held.nll_full /= (double)r->held.n_next;
    }
    return rc;
}

/* A head of the twin's own: the full model's behind a map of the states. */
static int solve_head(struct reconstruct *r, struct least_squares *ls, struct error *err)
{
    size_t full = r->full_params->hidden;
    _cleanup_mem_ float *map = mem_array(full * r->hidden, sizeof(float));
    if (!map)
        return error_memory(err, "head map", full * r->hidden * sizeof(float));
    struct least_squares_result result;
    int rc = solve_input_map(r, ls, r->layers[r->full_params->n_layers - 1].qkv_ridge, map, &result,
                             err);
    if (rc == 0)
        r->head_residual = result.residual;
    if (rc == 0)
        rc = fit_head(r, ls, result.ridge, map, err);
    if (rc)
        return rc;
    return put_turned(r, "output.weight", full_head(r), map, ls->fitted.xx, err);
}

/* The last norm scales what a tied head gives. */
static int scale_norm(struct reconstruct *r, float *weight, struct error *err)
{
    r->head_residual = NAN;
    int rc = fit_head(r, NULL, 0, NULL, err);
    if (rc)
        return rc;
    cblas_sscal((blasint)r->hidden, (float)r->temperature, weight, 1);
    cblas_sscal((blasint)(r->samples->n_answer * r->hidden), (float)r->temperature, r->inner, 1);
    return 0;
}

int rebuild_head(struct reconstruct *r, struct error *err)
{
    struct least_squares ls = {0};
    _cleanup_mem_ float *weight = mem_array(r->hidden, sizeof(float));
    if (!weight)
        return error_memory(err, "output norm", r->hidden * sizeof(float));
    int rc = r->is_tied
                 ? 0
                 : least_squares_open(r->reader.team, r->hidden, r->full_params->hidden, &ls, err);
    if (rc == 0)
        rc = norm_all(r, r->is_tied ? NULL : &ls, weight, err);
    if (rc == 0)
        rc = r->is_tied ? scale_norm(r, weight, err) : solve_head(r, &ls, err);
    if (rc == 0)
        rc = twin_store_put(r->store, "output_norm.weight", TENSOR_F32, weight, 0, r->hidden, NULL,
                            err);
    least_squares_close(&ls);
    return rc ? rc : score_held(r, err);
}
