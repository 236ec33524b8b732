/* The twin's head by what it is for: the full model's distribution of the next token. Least squares
 * on states weighs every direction of the state alike, the logits do not. KL(full || twin) is
 * convex in the map M of states (softmax regression with soft targets), so natural-gradient steps
 * go towards its least, each as far along as the held samples gain by it:
 *     M -= t B^-1 (E [E_head^T (p_twin - p_full) x^T]) A^-1
 * with the Fisher matrix as a Kronecker product (Martens and Grosse 2015): A of the twin's normed
 * states x, and of the logits' gradients B = E_head^T diag(mean p) E_head - E [(E_head^T p)
 * (E_head^T p)^T]. The first step goes along M itself: its temperature. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"
#include "engine/prune/vocabulary.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define SEARCH_STRIDE 8 /* of the held tokens, looked at to choose how far a step goes */
#define SEARCH_STEPS 3  /* of Newton's method */
#define FIT_STEPS 2     /* natural gradients */
#define FIT_ROWS (HEAD_TOKENS / FIT_STEPS) /* tokens for one of them, at most */
#define CURVATURE_ROWS 2048                /* tokens for B, at most */
#define CURVATURE_RIDGE 0.01               /* of B's mean diagonal */

struct head_fit {
    struct reconstruct *r;
    size_t vocab, full, hidden;
    struct vocabulary head; /* the full model's */
    struct vocabulary tied; /* the twin's, if it is no map of the full model's */
    struct tensor stored;   /* what tied reads */
    float *x;               /* [LOGIT_ROWS][hidden] the twin's normed states */
    float *states;          /* [3][LOGIT_ROWS][full]: the twin's, their step, the full model's */
    float *z;               /* [3][LOGIT_ROWS][vocab] logits of these; room for B too */
    double *slopes;         /* [LOGIT_ROWS][2] of KL along the step, and its curvature */
    double t;               /* how far along the step */
    float *mean_p;          /* [vocab] */
    float *back;            /* [LOGIT_ROWS][full] E_head^T of probabilities */
    float *gradient;        /* [full][hidden] */
    double *a, *b;          /* Cholesky factors: [hidden][hidden], [full][full] */
    size_t n_curvature;
};

static void fit_close(struct head_fit *f)
{
    vocabulary_close(&f->head);
    vocabulary_close(&f->tied);
    tensor_release(&f->stored);
    mem_free(f->x);
    mem_free(f->states);
    mem_free(f->z);
    mem_free(f->slopes);
    mem_free(f->mean_p);
    mem_free(f->back);
    mem_free(f->gradient);
    mem_free(f->a);
    mem_free(f->b);
}

static int open_heads(struct head_fit *f, struct error *err)
{
    const struct reconstruct *r = f->r;
    int rc = vocabulary_open(r->reader.team, full_head(r), &f->head, err);
    if (rc == 0 && r->is_tied)
        rc = twin_store_get(r->store, "token_embd.weight", &f->stored, err);
    if (rc == 0 && r->is_tied)
        rc = vocabulary_open(r->reader.team, &f->stored, &f->tied, err);
    return rc;
}

static int fit_open(struct reconstruct *r, struct head_fit *f, struct error *err)
{
    size_t vocab = r->full_params->vocab_size;
    size_t full = r->full_params->hidden;
    size_t n_logits = 3 * LOGIT_ROWS * vocab;
    *f = (struct head_fit){.r = r, .vocab = vocab, .full = full, .hidden = r->hidden};
    int rc = open_heads(f, err);
    if (rc)
        return rc;
    f->x = mem_array(LOGIT_ROWS * f->hidden, sizeof(float));
    f->states = mem_array(3 * LOGIT_ROWS * full, sizeof(float));
    f->z = mem_array(n_logits > full * full ? n_logits : full * full, sizeof(float));
    f->slopes = mem_array(2 * LOGIT_ROWS, sizeof(double));
    f->mean_p = mem_calloc(vocab, sizeof(float));
    f->back = mem_array(LOGIT_ROWS * full, sizeof(float));
    f->gradient = mem_array(full * f->hidden, sizeof(float));
    f->a = mem_array(f->hidden * f->hidden, sizeof(double));
    f->b = mem_calloc(full * full, sizeof(double));
    if (!f->x || !f->states || !f->z || !f->slopes || !f->mean_p || !f->back || !f->gradient ||
        !f->a || !f->b)
        return error_memory(err, "logits", 3 * LOGIT_ROWS * vocab * sizeof(float));
    return 0;
}

/* The next LOGIT_ROWS answers at most that are held or not, in strides; *at counts those passed. x
 * and the full model's states are theirs. Returns how many. */
static size_t gather(struct head_fit *f, bool held, size_t stride, size_t *at)
{
    const struct reconstruct *r = f->r;
    size_t number = 0;
    size_t found = 0;
    for (size_t i = 0; i < r->samples->n_samples && found < LOGIT_ROWS; i++) {
        const struct sample *s = &r->samples->samples[i];
        for (uint32_t k = s->n_prompt; s->held == held && k < s->n && found < LOGIT_ROWS; k++) {
            if (number++ < *at || (number - 1) % stride)
                continue;
            size_t row = s->answer + k - s->n_prompt;
            memcpy(f->x + found * f->hidden, r->inner + row * f->hidden, f->hidden * sizeof(float));
            memcpy(f->states + (2 * LOGIT_ROWS + found) * f->full, r->middle + row * f->full,
                   f->full * sizeof(float));
            found++;
        }
    }
    *at = number;
    return found;
}

/* Logits of n rows: number 0 the twin's at `map` (NULL: a tied head), 1 those of the step, 2 the
 * full model's. */
static void find_logits(struct head_fit *f, int number, const float *map, size_t n)
{
    float *states = f->states + number * LOGIT_ROWS * f->full;
    const float *from = number < 2 && !map ? f->x : states;
    if (map)
        multiply(f->r, f->x, n, f->hidden, map, f->full, 0, states);
    vocabulary_logits(number < 2 && f->tied.head ? &f->tied : &f->head, from, n,
                      f->z + number * LOGIT_ROWS * f->vocab);
}

/* dKL/dt and d2KL/dt2 of KL(full || softmax(twin + t step)) for one row of logits. */
static void search_row(void *context, unsigned member, size_t unit)
{
    struct head_fit *f = context;
    const float *twin = f->z + unit * f->vocab;
    const float *step = twin + LOGIT_ROWS * f->vocab;
    const float *full = step + LOGIT_ROWS * f->vocab;
    float t = (float)f->t;
    float full_most = full[0];
    float twin_most = twin[0] + t * step[0];
    double full_sum = 0, full_mean = 0;
    double twin_sum = 0, twin_mean = 0, twin_square = 0;
    for (size_t i = 1; i < f->vocab; i++) {
        full_most = fmaxf(full_most, full[i]);
        twin_most = fmaxf(twin_most, twin[i] + t * step[i]);
    }
    for (size_t i = 0; i < f->vocab; i++) {
        double p = expf(full[i] - full_most);
        double q = expf(twin[i] + t * step[i] - twin_most);
        full_sum += p;
        full_mean += p * step[i];
        twin_sum += q;
        twin_mean += q * step[i];
        twin_square += q * step[i] * step[i];
    }
    twin_mean /= twin_sum;
    f->slopes[2 * unit] = twin_mean - full_mean / full_sum;
    f->slopes[2 * unit + 1] = twin_square / twin_sum - twin_mean * twin_mean;
}

/* How far along `step` from `map` the held samples' KL is least, within [least, most]. step NULL:
 * along the map itself. */
static double search(struct head_fit *f, const float *map, const float *step, double least,
                     double most)
{
    f->t = 0;
    for (int i = 0; i < SEARCH_STEPS; i++) {
        double slope = 0;
        double curvature = 0;
        size_t at = 0;
        size_t n;
        while ((n = gather(f, true, SEARCH_STRIDE, &at))) {
            find_logits(f, 0, map, n);
            find_logits(f, 1, step ? step : map, n);
            find_logits(f, 2, NULL, n);
            team_for(f->r->reader.team, n, search_row, f);
            for (size_t k = 0; k < n; k++) {
                slope += f->slopes[2 * k];
                curvature += f->slopes[2 * k + 1];
            }
        }
        if (curvature > 0)
            f->t = fmin(fmax(f->t - slope / curvature, least), most);
    }
    return f->t;
}

/* Unit: a row of logits of one of the two models becomes its probabilities. */
static void softmax_row(void *context, unsigned member, size_t unit)
{
    const struct head_fit *f = context;
    float *z = f->z + (unit / 2 + unit % 2 * 2 * LOGIT_ROWS) * f->vocab;
    float most = z[0];
    float sum = 0;
    for (size_t i = 1; i < f->vocab; i++)
        most = fmaxf(most, z[i]);
    for (size_t i = 0; i < f->vocab; i++)
        sum += z[i] = expf(z[i] - most);
    for (size_t i = 0; i < f->vocab; i++)
        z[i] /= sum;
}

/* mean_p and B's second part, of n rows: sums for now. */
static void add_curvature(struct head_fit *f, size_t n)
{
    vocabulary_back(&f->head, f->z, n, f->back);
    for (size_t k = 0; k < n; k++) {
        const float *back = f->back + k * f->full;
        cblas_saxpy((blasint)f->vocab, 1, f->z + k * f->vocab, 1, f->mean_p, 1);
        for (size_t i = 0; i < f->full; i++)
            for (size_t j = i; j < f->full; j++)
                f->b[i * f->full + j] -= (double)back[i] * back[j];
    }
    f->n_curvature += n;
}

/* The gradient's sum over n rows. */
static void add_gradient(struct head_fit *f, const float *map, size_t n)
{
    float *full_p = f->z + 2 * LOGIT_ROWS * f->vocab;
    find_logits(f, 0, map, n);
    find_logits(f, 2, NULL, n);
    team_for(f->r->reader.team, 2 * n, softmax_row, f);
    if (f->n_curvature < CURVATURE_ROWS)
        add_curvature(f, n);
    cblas_saxpy((blasint)(n * f->vocab), -1, full_p, 1, f->z, 1);
    vocabulary_back(&f->head, f->z, n, f->back);
    const struct product p = {
        .a_turned = true,
        .m = f->full,
        .n = f->hidden,
        .k = n,
        .alpha = 1,
        .beta = 1,
        .a = f->back,
        .b = f->x,
        .a_stride = f->full,
        .b_stride = f->hidden,
        .c = f->gradient,
        .c_stride = f->hidden,
    };
    dense_product(f->r->reader.team, &p);
}

/* z (+)= E_head^T diag(mean_p) E_head over the head's rows at hand. */
static void add_squares(struct head_fit *f, float add)
{
    const struct vocabulary *head = &f->head;
    for (size_t v = 0; v < head->n_part; v += LOGIT_ROWS) {
        size_t n = head->n_part - v < LOGIT_ROWS ? head->n_part - v : LOGIT_ROWS;
        const float *rows = head->part + v * f->full;
        for (size_t k = 0; k < n; k++)
            for (size_t c = 0; c < f->full; c++)
                f->states[k * f->full + c] = rows[k * f->full + c] * f->mean_p[head->first + v + k];
        const struct product p = {
            .a_turned = true,
            .m = f->full,
            .n = f->full,
            .k = n,
            .alpha = 1,
            .beta = v ? 1 : add,
            .a = rows,
            .b = f->states,
            .a_stride = f->full,
            .b_stride = f->full,
            .c = f->z,
            .c_stride = f->full,
        };
        dense_product(f->r->reader.team, &p);
    }
}

/* B, factorised, from the sums. */
static int finish_curvature(struct head_fit *f, struct error *err)
{
    size_t full = f->full;
    double trace = 0;
    while (vocabulary_next(&f->head))
        add_squares(f, f->head.first ? 1 : 0);
    for (size_t i = 0; i < full * full; i++)
        f->b[i] = (f->b[i] + f->z[i]) / (double)f->n_curvature;
    for (size_t i = 0; i < full; i++)
        trace += f->b[i * full + i];
    for (size_t i = 0; i < full; i++)
        f->b[i * full + i] += CURVATURE_RIDGE * trace / (double)full;
    return factorise_symmetric(f->b, full, err);
}

/* step = -B^-1 gradient A^-1, the gradient of n rows' mean. */
static int find_step(struct head_fit *f, size_t n, float *step, struct error *err)
{
    size_t size = f->full * f->hidden;
    _cleanup_mem_ double *solved = mem_array(size, sizeof(double));
    if (!solved)
        return error_memory(err, "head's step", size * sizeof(double));
    for (size_t i = 0; i < size; i++)
        solved[i] = -f->gradient[i] / (double)n;
    const struct {
        CBLAS_SIDE side;
        CBLAS_TRANSPOSE transpose;
        const double *factor; /* u, of u^T u */
        size_t size;
    } solves[] = {{CblasLeft, CblasTrans, f->b, f->full},
                  {CblasLeft, CblasNoTrans, f->b, f->full},
                  {CblasRight, CblasNoTrans, f->a, f->hidden},
                  {CblasRight, CblasTrans, f->a, f->hidden}};
    blas_begin();
    for (size_t i = 0; i < sizeof(solves) / sizeof(solves[0]); i++)
        cblas_dtrsm(CblasRowMajor, solves[i].side, CblasUpper, solves[i].transpose, CblasNonUnit,
                    (blasint)f->full, (blasint)f->hidden, 1.0, solves[i].factor,
                    (blasint)solves[i].size, solved, (blasint)f->hidden);
    blas_end();
    for (size_t i = 0; i < size; i++)
        step[i] = (float)solved[i];
    return 0;
}

/* One natural gradient, of rows that no other step looked at. */
static int take_step(struct head_fit *f, size_t number, size_t n_fitted, float *map,
                     struct error *err)
{
    size_t size = f->full * f->hidden;
    size_t stride = 1 + (n_fitted - 1) / (FIT_ROWS * FIT_STEPS);
    size_t end = n_fitted * (number + 1) / FIT_STEPS;
    size_t at = n_fitted * number / FIT_STEPS;
    size_t n_rows = 0;
    size_t n;
    int rc = 0;
    _cleanup_mem_ float *step = mem_array(size, sizeof(float));
    if (!step)
        return error_memory(err, "head's step", size * sizeof(float));
    memset(f->gradient, 0, size * sizeof(float));
    while (at < end && (n = gather(f, false, stride, &at))) {
        add_gradient(f, map, n);
        n_rows += n;
    }
    if (number == 0)
        rc = finish_curvature(f, err);
    if (rc == 0)
        rc = find_step(f, n_rows, step, err);
    if (rc == 0)
        cblas_saxpy((blasint)size, (float)search(f, map, step, 0, 2), step, 1, map, 1);
    return rc;
}

int fit_head(struct reconstruct *r, const struct least_squares *ls, double ridge, float *map,
             struct error *err)
{
    struct head_fit f;
    size_t n_fitted = ls ? ls->fitted.n_rows : 0;
    int rc = fit_open(r, &f, err);
    if (rc == 0)
        r->temperature = 1 + search(&f, map, NULL, -0.5, 0.5);
    if (rc == 0 && ls) {
        cblas_sscal((blasint)(f.full * f.hidden), (float)r->temperature, map, 1);
        for (size_t i = 0; i < f.hidden * f.hidden; i++)
            f.a[i] = ls->fitted.xx[i] / (double)n_fitted;
        add_ridge(f.a, f.hidden, ridge);
        rc = factorise_symmetric(f.a, f.hidden, err);
        for (size_t i = 0; rc == 0 && i < FIT_STEPS; i++)
            rc = take_step(&f, i, n_fitted, map, err);
        /* a text that says one thing has no curvature to go by: least squares' head stays */
        rc = rc == -ERROR_INTERNAL ? 0 : rc;
    }
    fit_close(&f);
    return rc;
}
