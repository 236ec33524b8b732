/* The head's map by what it is for: the full model's distribution of the next token. Least squares
 * on states weighs every direction of the state alike; the logits do not. KL(full || twin) is convex
 * in the map M (softmax regression with soft targets), so a few natural-gradient steps from the
 * least-squares map find its minimum. The Fisher matrix is taken as a Kronecker product (Martens and
 * Grosse 2015): A of the twin's normed states x, B of the states' gradients,
 *     M -= rate * B^-1 (E [E_head^T (p_twin - p_full) x^T]) A^-1
 *     B = E_head^T diag(mean p) E_head - E [(E_head^T p) (E_head^T p)^T]
 * See reconstruct.h. */
#include "engine/prune/reconstruct.h"

#include "engine/base/mem.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define N_STEPS 8
#define STEP_ROWS 2048 /* tokens looked at for a step */
#define CHUNK_ROWS 256
#define RIDGE 1e-3 /* of A's and B's mean diagonals */

struct fit {
    struct reconstruct *r;
    size_t vocab, full, hidden;
    float *head;     /* [vocab][full] E_head */
    float *x, *n;    /* [CHUNK_ROWS][hidden], [CHUNK_ROWS][full]: both models' normed states */
    float *state;    /* [CHUNK_ROWS][full]: M x */
    float *p_twin;   /* [CHUNK_ROWS][vocab] logits, then probabilities, then p_twin - p_full */
    float *p_full;   /* [CHUNK_ROWS][vocab] */
    float *mean_p;   /* [vocab] */
    float *back;     /* [CHUNK_ROWS][full] E_head^T of probabilities */
    float *gradient; /* [full][hidden] */
    double *a, *b;   /* factors: [hidden][hidden], [full][full] */
    double *step;    /* [full][hidden] */
};

static void fit_close(struct fit *f)
{
    mem_free(f->head);
    mem_free(f->x);
    mem_free(f->n);
    mem_free(f->state);
    mem_free(f->p_twin);
    mem_free(f->p_full);
    mem_free(f->mean_p);
    mem_free(f->back);
    mem_free(f->gradient);
    mem_free(f->a);
    mem_free(f->b);
    mem_free(f->step);
}

static int fit_open(struct reconstruct *r, struct fit *f, struct error *err)
{
    *f = (struct fit){.r = r, .vocab = r->full_params->vocab_size, .full = r->full_params->hidden,
                      .hidden = r->hidden};
    f->head = load_matrix(full_head(r), err);
    if (!f->head)
        return -(int)err->code;
    f->x = mem_array(CHUNK_ROWS * f->hidden, sizeof(float));
    f->n = mem_array(CHUNK_ROWS * f->full, sizeof(float));
    f->state = mem_array(CHUNK_ROWS * f->full, sizeof(float));
    f->p_twin = mem_array(CHUNK_ROWS * f->vocab, sizeof(float));
    f->p_full = mem_array(CHUNK_ROWS * f->vocab, sizeof(float));
    f->mean_p = mem_array(f->vocab, sizeof(float));
    f->back = mem_array(CHUNK_ROWS * f->full, sizeof(float));
    f->gradient = mem_array(f->full * f->hidden, sizeof(float));
    f->a = mem_array(f->hidden * f->hidden, sizeof(double));
    f->b = mem_array(f->full * f->full, sizeof(double));
    f->step = mem_array(f->full * f->hidden, sizeof(double));
    if (!f->x || !f->n || !f->state || !f->p_twin || !f->p_full || !f->mean_p || !f->back ||
        !f->gradient || !f->a || !f->b || !f->step)
        return error_memory(err, "head fit", 2 * CHUNK_ROWS * f->vocab * sizeof(float));
    return 0;
}

static bool is_held(const struct reconstruct *r, size_t row)
{
    size_t i = 0;
    while (i + 1 < r->samples->n_samples && r->samples->samples[i + 1].answer <= row)
        i++;
    return r->samples->samples[i].held;
}

/* The next CHUNK_ROWS rows of a walk through all answers in strides; *at moves on. */
static void gather(struct fit *f, size_t *at)
{
    size_t n_answer = f->r->samples->n_answer;
    size_t stride = n_answer / STEP_ROWS | 1;
    for (size_t k = 0; k < CHUNK_ROWS;) {
        size_t row = *at % n_answer;
        *at += stride;
        if (is_held(f->r, row))
            continue;
        memcpy(f->x + k * f->hidden, f->r->inner + row * f->hidden, f->hidden * sizeof(float));
        memcpy(f->n + k * f->full, f->r->middle + row * f->full, f->full * sizeof(float));
        k++;
    }
}

static void softmax_row(float *z, size_t n)
{
    float max = z[0];
    float sum = 0;
    for (size_t i = 1; i < n; i++)
        max = fmaxf(max, z[i]);
    for (size_t i = 0; i < n; i++)
        sum += z[i] = expf(z[i] - max);
    cblas_sscal((blasint)n, 1 / sum, z, 1);
}

/* Unit: a row of one of the two models. */
static void softmax_unit(void *context, unsigned member, size_t unit)
{
    struct fit *f = context;
    softmax_row((unit % 2 ? f->p_twin : f->p_full) + unit / 2 * f->vocab, f->vocab);
}

/* back = p E_head */
static void propagate(struct fit *f, const float *p)
{
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, CHUNK_ROWS, (blasint)f->full,
                (blasint)f->vocab, 1.0f, p, (blasint)f->vocab, f->head, (blasint)f->full, 0.0f,
                f->back, (blasint)f->full);
}

/* B's second part and mean_p, for the rows at hand. */
static void add_curvature(struct fit *f)
{
    propagate(f, f->p_twin);
    for (size_t k = 0; k < CHUNK_ROWS; k++)
        cblas_saxpy((blasint)f->vocab, 1.0f / STEP_ROWS, f->p_twin + k * f->vocab, 1, f->mean_p, 1);
    for (size_t i = 0; i < f->full; i++)
        for (size_t k = 0; k < CHUNK_ROWS; k++) {
            double weight = -f->back[k * f->full + i] / STEP_ROWS;
            for (size_t j = 0; j < f->full; j++)
                f->b[i * f->full + j] += weight * f->back[k * f->full + j];
        }
}

/* Adds the rows' gradient; returns nothing: the gradient is the sum. */
static void add_gradient(struct fit *f, const float *map, bool with_curvature)
{
    multiply(f->x, CHUNK_ROWS, f->hidden, map, f->full, 0, f->state);
    multiply(f->state, CHUNK_ROWS, f->full, f->head, f->vocab, 0, f->p_twin);
    multiply(f->n, CHUNK_ROWS, f->full, f->head, f->vocab, 0, f->p_full);
    team_for(f->r->reader.team, 2 * CHUNK_ROWS, softmax_unit, f);
    if (with_curvature)
        add_curvature(f);
    cblas_saxpy((blasint)(CHUNK_ROWS * f->vocab), -1.0f, f->p_full, 1, f->p_twin, 1);
    propagate(f, f->p_twin);
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)f->full, (blasint)f->hidden,
                CHUNK_ROWS, 1.0f / STEP_ROWS, f->back, (blasint)f->full, f->x, (blasint)f->hidden,
                1.0f, f->gradient, (blasint)f->hidden);
}

/* B's first part, E_head^T diag(mean_p) E_head. */
static void finish_curvature(struct fit *f)
{
    _cleanup_mem_ float *scaled = mem_array(CHUNK_ROWS * f->full, sizeof(float));
    _cleanup_mem_ float *sum = mem_array(f->full * f->full, sizeof(float));
    for (size_t i = 0; scaled && sum && i < f->vocab; i += CHUNK_ROWS) {
        size_t n = f->vocab - i < CHUNK_ROWS ? f->vocab - i : CHUNK_ROWS;
        const float *rows = f->head + i * f->full;
        for (size_t k = 0; k < n; k++)
            for (size_t c = 0; c < f->full; c++)
                scaled[k * f->full + c] = rows[k * f->full + c] * f->mean_p[i + k];
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)f->full, (blasint)f->full,
                    (blasint)n, 1.0f, rows, (blasint)f->full, scaled, (blasint)f->full, 0.0f, sum,
                    (blasint)f->full);
        for (size_t c = 0; c < f->full * f->full; c++)
            f->b[c] += sum[c];
    }
}

static int factorise(double *a, size_t n, double ridge, struct error *err)
{
    lapack_int size = (lapack_int)n;
    lapack_int info;
    char lower = 'L';
    double trace = 0;
    for (size_t i = 0; i < n; i++)
        trace += a[i * n + i];
    for (size_t i = 0; i < n; i++)
        a[i * n + i] += ridge * trace / (double)n;
    LAPACK_dpotrf(&lower, &size, a, &size, &info);
    return info ? error_set(err, ERROR_INTERNAL, "the head's curvature is not positive") : 0;
}

/* map -= rate B^-1 gradient A^-1 */
static void take_step(struct fit *f, float rate, float *map)
{
    size_t n = f->full * f->hidden;
    for (size_t i = 0; i < n; i++)
        f->step[i] = f->gradient[i];
    /* dpotrf's lower triangle is row-major's upper one: a = U^T U */
    const struct {
        CBLAS_SIDE side;
        CBLAS_TRANSPOSE transpose;
        const double *factor;
        size_t size;
    } solves[] = {{CblasLeft, CblasTrans, f->b, f->full},
                  {CblasLeft, CblasNoTrans, f->b, f->full},
                  {CblasRight, CblasNoTrans, f->a, f->hidden},
                  {CblasRight, CblasTrans, f->a, f->hidden}};
    for (size_t i = 0; i < sizeof(solves) / sizeof(solves[0]); i++)
        cblas_dtrsm(CblasRowMajor, solves[i].side, CblasUpper, solves[i].transpose, CblasNonUnit,
                    (blasint)f->full, (blasint)f->hidden, 1.0, solves[i].factor,
                    (blasint)solves[i].size, f->step, (blasint)f->hidden);
    for (size_t i = 0; i < n; i++)
        map[i] -= rate * (float)f->step[i];
}

static int run(struct fit *f, float *map, struct error *err)
{
    size_t at = 0;
    int rc = factorise(f->a, f->hidden, RIDGE, err);
    for (int step = 0; step < N_STEPS && rc == 0; step++) {
        memset(f->gradient, 0, f->full * f->hidden * sizeof(float));
        if (step == 0) {
            memset(f->b, 0, f->full * f->full * sizeof(double));
            memset(f->mean_p, 0, f->vocab * sizeof(float));
        }
        for (size_t rows = 0; rows < STEP_ROWS; rows += CHUNK_ROWS) {
            gather(f, &at);
            add_gradient(f, map, step == 0);
        }
        if (step == 0) {
            finish_curvature(f);
            rc = factorise(f->b, f->full, RIDGE, err);
        }
        if (rc == 0)
            take_step(f, 1.0f / (1.0f + 0.25f * (float)step), map);
    }
    return rc;
}

int fit_head(struct reconstruct *r, const double *states, size_t n_states, float *map,
             struct error *err)
{
    struct fit f;
    int rc = fit_open(r, &f, err);
    for (size_t i = 0; rc == 0 && i < f.hidden * f.hidden; i++)
        f.a[i] = states[i] / (double)n_states;
    if (rc == 0)
        rc = run(&f, map, err);
    fit_close(&f);
    return rc;
}
