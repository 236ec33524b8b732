/* Rounding with the error fed forward. See round_matrix.h. */
#include "engine/prune/round_matrix.h"

#include "engine/base/mem.h"
#include "engine/prune/least_squares.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define BLOCK 32
#define DAMPING 0.01 /* of the mean diagonal: what the inputs at hand say of others */
/* How far a block's range may be narrowed, in steps: the ends then clip, the rest is finer. */
#define N_SHRINKS 8
#define SHRINK_STEP 0.04f

/* Rounds to the nearest, |x| < 2^22, in vector instructions of every x86 CPU. */
static float nearest(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: the fraction falls off */
    return (x + magic) - magic;
}

static float as_half(float x)
{
    return half_to_float(float_to_half(x));
}

/* One block's scale and minimum. */
struct scale {
    float d, m;
};

static float code_of(const struct tensor_grid *grid, float inverse, float m, float x)
{
    float q = nearest((x - m) * inverse);
    q = q < grid->low ? grid->low : q;
    return q > grid->high ? grid->high : q;
}

static float inverse_of(float d)
{
    float inverse = 1 / d;
    return isfinite(inverse) ? inverse : 0;
}

/* sum weight (x - rounded x)^2 */
static float rounding_error(const struct tensor_grid *grid, struct scale s, const float *x,
                            const float *weight)
{
    float inverse = inverse_of(s.d);
    float sum = 0;
    for (int i = 0; i < BLOCK; i++) {
        float e = x[i] - (code_of(grid, inverse, s.m, x[i]) * s.d + s.m);
        sum += weight[i] * e * e;
    }
    return sum;
}

/* The scale under which [min, max], narrowed by `shrink`, is the grid's range. */
static struct scale fit_range(const struct tensor_grid *grid, float min, float max, float shrink)
{
    struct scale s = {0};
    if (grid->has_min) {
        s.d = as_half(shrink * (max - min) / (float)(grid->high - grid->low));
        s.m = as_half((min + max) / 2 - s.d * (float)(grid->high + grid->low) / 2);
    } else {
        float extreme = -min > max ? min : max;
        /* the longer side of the grid for the larger magnitude; either sign of d serves */
        s.d = as_half(shrink * extreme / (float)grid->low);
    }
    return s;
}

static struct scale choose_scale(const struct tensor_grid *grid, const float *x,
                                 const float *weight)
{
    float min = x[0];
    float max = x[0];
    for (int i = 1; i < BLOCK; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
    }
    struct scale best = fit_range(grid, min, max, 1);
    float least = rounding_error(grid, best, x, weight);
    for (int k = 1; k < N_SHRINKS; k++) {
        struct scale s = fit_range(grid, min, max, 1 - SHRINK_STEP * (float)k);
        float error = rounding_error(grid, s, x, weight);
        if (error < least) {
            least = error;
            best = s;
        }
    }
    return best;
}

struct rounder {
    enum tensor_type type;
    const struct tensor_grid *grid;
    size_t n_rows, n_in;
    float *w;      /* [n_rows][n_in], what is left to be rounded */
    float *u;      /* [n_in][n_in], upper: (gram + damping)^-1 = u^T u */
    float *weight; /* [n_in] 1 / u_ii^2: what an error of the column costs */
    float *lost;   /* [n_rows][BLOCK] errors of the block's columns, over u_ii */
};

static void rounder_close(struct rounder *r)
{
    mem_free(r->w);
    mem_free(r->u);
    mem_free(r->weight);
    mem_free(r->lost);
}

static int find_feedback(struct rounder *r, const double *gram, struct error *err)
{
    size_t n = r->n_in;
    double trace = 0;
    _cleanup_mem_ double *a = mem_array(n * n, sizeof(double));
    if (!a)
        return error_memory(err, "rounding", n * n * sizeof(double));
    memcpy(a, gram, n * n * sizeof(double));
    for (size_t i = 0; i < n; i++)
        trace += a[i * n + i];
    for (size_t i = 0; i < n; i++)
        a[i * n + i] += (DAMPING * trace + 1e-12) / (double)n;
    int rc = invert_symmetric(a, n, err);
    if (rc == 0)
        rc = factorise_symmetric(a, n, err);
    for (size_t i = 0; rc == 0 && i < n; i++) {
        for (size_t j = i; j < n; j++)
            r->u[i * n + j] = (float)a[i * n + j];
        r->weight[i] = 1 / (r->u[i * n + i] * r->u[i * n + i]);
    }
    return rc;
}

/* Columns [first, first + BLOCK) of one row. */
static void round_block(struct rounder *r, size_t row, size_t first, uint8_t *block)
{
    const size_t n = r->n_in;
    float *x = r->w + row * n + first;
    float *lost = r->lost + row * BLOCK;
    int8_t q[BLOCK];
    struct scale s = choose_scale(r->grid, x, r->weight + first);
    float inverse = inverse_of(s.d);
    for (size_t i = 0; i < BLOCK; i++) {
        const float *u = r->u + (first + i) * n + first;
        float code = code_of(r->grid, inverse, s.m, x[i]);
        q[i] = (int8_t)code;
        lost[i] = (x[i] - (code * s.d + s.m)) / u[i];
        for (size_t k = i + 1; k < BLOCK; k++)
            x[k] -= lost[i] * u[k];
    }
    tensor_put_block(r->type, s.d, s.m, q, block);
}

/* What the block's columns lost, from the columns behind it. */
static void feed_forward(struct rounder *r, size_t first)
{
    size_t next = first + BLOCK;
    if (next == r->n_in)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)r->n_rows,
                (blasint)(r->n_in - next), BLOCK, -1.0f, r->lost, BLOCK,
                r->u + first * r->n_in + next, (blasint)r->n_in, 1.0f, r->w + next,
                (blasint)r->n_in);
}

static int round_with_feedback(struct rounder *r, const float *w, const double *gram,
                               uint8_t *blocks, struct error *err)
{
    size_t block_bytes = tensor_block_bytes(r->type);
    size_t n_blocks = r->n_in / BLOCK;
    r->w = mem_array(r->n_rows, r->n_in * sizeof(float));
    r->u = mem_array(r->n_in, r->n_in * sizeof(float));
    r->weight = mem_array(r->n_in, sizeof(float));
    r->lost = mem_array(r->n_rows, BLOCK * sizeof(float));
    if (!r->w || !r->u || !r->weight || !r->lost)
        return error_memory(err, "rounding", r->n_rows * r->n_in * sizeof(float));
    int rc = tensor_check_block_values(r->type, w, r->n_rows * r->n_in, err);
    if (rc == 0)
        rc = find_feedback(r, gram, err);
    if (rc)
        return rc;
    memcpy(r->w, w, r->n_rows * r->n_in * sizeof(float));
    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t row = 0; row < r->n_rows; row++)
            round_block(r, row, b * BLOCK, blocks + (row * n_blocks + b) * block_bytes);
        feed_forward(r, b * BLOCK);
    }
    return 0;
}

int round_matrix(enum tensor_type type, const float *w, size_t n_rows, size_t n_in,
                 const double *gram, uint8_t *ret_blocks, struct error *err)
{
    struct rounder r = {type, tensor_type_grid(type), n_rows, n_in, NULL, NULL, NULL, NULL};
    if (!gram || !r.grid)
        return tensor_quantize(type, w, n_rows * n_in, ret_blocks, err);
    blas_begin();
    int rc = round_with_feedback(&r, w, gram, ret_blocks, err);
    blas_end();
    rounder_close(&r);
    return rc;
}
