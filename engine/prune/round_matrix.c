/* Rounding with the error fed forward. See round_matrix.h. */
#include "engine/prune/round_matrix.h"

#include "engine/base/mem.h"
#include "engine/model/grid.h"
#include "engine/prune/least_squares.h"

#include <cblas.h>
#include <math.h>
#include <string.h>

#define PART_ROWS 4096 /* are rounded at once: of a vocabulary's, a second copy would be large */
#define DAMPING 0.01   /* of the mean diagonal: what the inputs at hand say of others */

struct rounder {
    enum tensor_type type;
    const struct tensor_grid *grid;
    size_t block;        /* elements: columns that are rounded together */
    size_t n_in, n_rows; /* n_rows: in w, at most PART_ROWS */
    float *w;            /* [PART_ROWS][n_in], what is left to be rounded */
    float *u;            /* [n_in][n_in], upper: (gram + damping)^-1 = u^T u; NULL: no feedback */
    float *weight;       /* [n_in] 1 / u_ii^2: what an error of the column costs */
    float *lost;         /* [PART_ROWS][block] errors of the block's columns, over u_ii */
};

void rounder_close(struct rounder *r)
{
    if (!r)
        return;
    mem_free(r->w);
    mem_free(r->u);
    mem_free(r->weight);
    mem_free(r->lost);
    mem_free(r);
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

/* Column i of the row, in the block that begins with column `first`. Returns its code. */
static float round_column(struct rounder *r, float *x, float *lost, size_t first, size_t i,
                          struct grid_scale s, float inverse)
{
    const float *u = r->u + (first + i) * r->n_in + first;
    float code = grid_code(r->grid, s, inverse, x[i]);
    lost[i] = (x[i] - (code * s.d + s.m)) / u[i];
    for (size_t k = i + 1; k < r->block; k++)
        x[k] -= lost[i] * u[k];
    return code;
}

/* Columns [first, first + block) of one row. A group takes its scale when those before it have
 * passed their errors on. */
static void round_block(struct rounder *r, size_t row, size_t first, uint8_t *bytes)
{
    float *x = r->w + row * r->n_in + first;
    const float *weight = r->weight + first;
    float *lost = r->lost + row * r->block;
    struct tensor_block b = {0};
    grid_begin_block(r->type, x, weight, &b);
    for (size_t at = 0; at < r->block; at += r->grid->group) {
        struct grid_scale s = grid_fit_group(r->type, at / r->grid->group, x + at, weight + at, &b);
        float inverse = grid_inverse(s.d);
        for (size_t i = at; i < at + r->grid->group; i++)
            b.q[i] = (int8_t)round_column(r, x, lost, first, i, s, inverse);
    }
    tensor_put_block(r->type, &b, bytes);
}

/* What the block's columns lost, from the columns behind it. */
static void feed_forward(struct rounder *r, size_t first)
{
    size_t next = first + r->block;
    if (next == r->n_in)
        return;
    cblas_sgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)r->n_rows,
                (blasint)(r->n_in - next), (blasint)r->block, -1.0f, r->lost, (blasint)r->block,
                r->u + first * r->n_in + next, (blasint)r->n_in, 1.0f, r->w + next,
                (blasint)r->n_in);
}

/* r->n_rows rows at w. */
static void round_part(struct rounder *r, const float *w, uint8_t *blocks)
{
    size_t block_bytes = tensor_block_bytes(r->type);
    size_t n_blocks = r->n_in / r->block;
    memcpy(r->w, w, r->n_rows * r->n_in * sizeof(float));
    for (size_t b = 0; b < n_blocks; b++) {
        for (size_t row = 0; row < r->n_rows; row++)
            round_block(r, row, b * r->block, blocks + (row * n_blocks + b) * block_bytes);
        feed_forward(r, b * r->block);
    }
}

int round_rows(struct rounder *r, const float *w, size_t n_rows, uint8_t *ret_blocks,
               struct error *err)
{
    size_t row_bytes;
    if (!r->u)
        return tensor_quantize(r->type, w, n_rows * r->n_in, ret_blocks, err);
    int rc = tensor_check_block_values(r->type, w, n_rows * r->n_in, err);
    if (rc)
        return rc;
    tensor_type_bytes(r->type, r->n_in, &row_bytes);
    blas_begin();
    for (size_t i = 0; i < n_rows; i += PART_ROWS) {
        r->n_rows = n_rows - i < PART_ROWS ? n_rows - i : PART_ROWS;
        round_part(r, w + i * r->n_in, ret_blocks + i * row_bytes);
    }
    blas_end();
    return 0;
}

static int alloc_feedback(struct rounder *r, struct error *err)
{
    r->w = mem_array(PART_ROWS, r->n_in * sizeof(float));
    r->u = mem_array(r->n_in, r->n_in * sizeof(float));
    r->weight = mem_array(r->n_in, sizeof(float));
    r->lost = mem_array(PART_ROWS, r->block * sizeof(float));
    if (!r->w || !r->u || !r->weight || !r->lost)
        return error_memory(err, "rounding", (PART_ROWS + r->n_in) * r->n_in * sizeof(float));
    return 0;
}

int rounder_open(enum tensor_type type, size_t n_in, const double *gram,
                 struct rounder **ret_rounder, struct error *err)
{
    struct rounder *r = mem_calloc(1, sizeof(*r));
    if (!r)
        return error_memory(err, "rounding", sizeof(*r));
    r->type = type;
    r->grid = tensor_type_grid(type);
    r->block = tensor_block_elements(type);
    r->n_in = n_in;
    int rc = 0;
    if (gram && r->grid) {
        blas_begin();
        rc = alloc_feedback(r, err);
        if (rc == 0)
            rc = find_feedback(r, gram, err);
        blas_end();
    }
    if (rc) {
        rounder_close(r);
        return rc;
    }
    *ret_rounder = r;
    return 0;
}
