/* Which inputs of a matrix to keep when the others can make up for those that go. See
 * least_squares.h. */
#include "engine/base/mem.h"
#include "engine/prune/least_squares.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

/* Inputs that leave together, one of so many: not those that could stand in for each other. */
#define BLOCK_SHARE 48
#define RIDGE 1e-3 /* of the mean diagonal */

/* The inputs that are left, in the order of the rows of w and of inverse. */
struct chooser {
    size_t n, n_out;
    size_t block;    /* most that leave together */
    unsigned *index; /* [n] */
    double *inverse; /* [n][n], of the gram matrix of those left */
    double *w;       /* [n][n_out]: with what each enters, once the others make up for the lost */
    double *panel;   /* [block][n] */
    double *lost;    /* [block][n_out] */
    double *cost;    /* [n] */
};

static void chooser_close(struct chooser *c)
{
    mem_free(c->index);
    mem_free(c->inverse);
    mem_free(c->w);
    mem_free(c->panel);
    mem_free(c->lost);
    mem_free(c->cost);
}

static int chooser_open(const double *gram, const float *w, size_t n, size_t n_out,
                        struct chooser *c, struct error *err)
{
    double trace = 0;
    *c = (struct chooser){.n = n, .n_out = n_out, .block = 1 + n / BLOCK_SHARE};
    c->index = mem_array(n, sizeof(*c->index));
    c->inverse = mem_array(n * n, sizeof(double));
    c->w = mem_array(n * n_out, sizeof(double));
    c->panel = mem_array(c->block * n, sizeof(double));
    c->lost = mem_array(c->block * n_out, sizeof(double));
    c->cost = mem_array(n, sizeof(double));
    if (!c->index || !c->inverse || !c->w || !c->panel || !c->lost || !c->cost)
        return error_memory(err, "channel choice", n * n * sizeof(double));
    memcpy(c->inverse, gram, n * n * sizeof(double));
    for (size_t i = 0; i < n; i++)
        trace += gram[i * n + i];
    for (size_t i = 0; i < n; i++) {
        c->index[i] = (unsigned)i;
        c->inverse[i * n + i] += (RIDGE * trace + 1e-12) / (double)n;
        for (size_t o = 0; o < n_out; o++)
            c->w[i * n_out + o] = w[o * n + i];
    }
    return invert_symmetric(c->inverse, n, err);
}

/* What its loss costs: |w_i|^2 / inverse_ii. */
static void find_costs(struct chooser *c)
{
    for (size_t i = 0; i < c->n; i++)
        c->cost[i] = cblas_ddot((blasint)c->n_out, c->w + i * c->n_out, 1, c->w + i * c->n_out, 1) /
                     c->inverse[i * c->n + i];
}

/* Swaps the cheapest m inputs behind the others. */
static void move_cheapest_back(struct chooser *c, size_t m)
{
    for (size_t k = 0; k < m; k++) {
        size_t end = c->n - 1 - k;
        size_t best = 0;
        for (size_t i = 1; i <= end; i++)
            best = c->cost[i] < c->cost[best] ? i : best;
        unsigned index = c->index[best];
        c->index[best] = c->index[end];
        c->index[end] = index;
        double cost = c->cost[best];
        c->cost[best] = c->cost[end];
        c->cost[end] = cost;
        cblas_dswap((blasint)c->n, c->inverse + best * c->n, 1, c->inverse + end * c->n, 1);
        cblas_dswap((blasint)c->n, c->inverse + best, (blasint)c->n, c->inverse + end,
                    (blasint)c->n);
        cblas_dswap((blasint)c->n_out, c->w + best * c->n_out, 1, c->w + end * c->n_out, 1);
    }
}

/* Takes the last m inputs out: with B for them and R for the rest,
 *   w_R -= inv_RB inv_BB^-1 w_B        inv_RR -= inv_RB inv_BB^-1 inv_BR */
static int drop_last(struct chooser *c, size_t m, struct error *err)
{
    size_t n = c->n;
    size_t rest = n - m;
    lapack_int size = (lapack_int)m;
    lapack_int leading = (lapack_int)n;
    lapack_int info;
    char lower = 'L';
    double *block = c->inverse + rest * n + rest;
    /* inv_BB = L L^T; then with P = L^-1 inv_BR and Q = L^-1 w_B the updates are P^T Q, P^T P */
    LAPACK_dpotrf(&lower, &size, block, &leading, &info);
    if (info)
        return error_set(err, ERROR_INTERNAL, "MLP channels cannot be told apart");
    memcpy(c->lost, c->w + rest * c->n_out, m * c->n_out * sizeof(double));
    for (size_t i = 0; i < m; i++)
        memcpy(c->panel + i * rest, c->inverse + (rest + i) * n, rest * sizeof(double));
    /* what dpotrf left in column-major's lower triangle is L^T in row-major's upper one */
    cblas_dtrsm(CblasRowMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, (blasint)m,
                (blasint)rest, 1.0, block, (blasint)n, c->panel, (blasint)rest);
    cblas_dtrsm(CblasRowMajor, CblasLeft, CblasUpper, CblasTrans, CblasNonUnit, (blasint)m,
                (blasint)c->n_out, 1.0, block, (blasint)n, c->lost, (blasint)c->n_out);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rest, (blasint)c->n_out,
                (blasint)m, -1.0, c->panel, (blasint)rest, c->lost, (blasint)c->n_out, 1.0, c->w,
                (blasint)c->n_out);
    cblas_dgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)rest, (blasint)rest, (blasint)m,
                -1.0, c->panel, (blasint)rest, c->panel, (blasint)rest, 1.0, c->inverse,
                (blasint)n);
    for (size_t i = 1; i < rest; i++) /* close the gaps */
        memmove(c->inverse + i * rest, c->inverse + i * n, rest * sizeof(double));
    c->n = rest;
    return 0;
}

static int compare_index(const void *a, const void *b)
{
    unsigned x = *(const unsigned *)a;
    unsigned y = *(const unsigned *)b;
    return (x > y) - (x < y);
}

/* sum |W x|^2 */
static double output_energy(const double *gram, const double *w, size_t n, size_t n_out,
                            double *scratch)
{
    cblas_dgemm(CblasRowMajor, CblasNoTrans, CblasNoTrans, (blasint)n, (blasint)n_out, (blasint)n,
                1.0, gram, (blasint)n, w, (blasint)n_out, 0.0, scratch, (blasint)n_out);
    return cblas_ddot((blasint)(n * n_out), w, 1, scratch, 1);
}

int choose_inputs(const double *gram, const float *w, size_t n, size_t n_out, size_t keep,
                  unsigned *ret_index, double *ret_share, struct error *err)
{
    struct chooser c;
    double lost = 0;
    double energy = 0;
    blas_begin();
    int rc = chooser_open(gram, w, n, n_out, &c, err);
    _cleanup_mem_ double *scratch = mem_array(n * n_out, sizeof(double));
    if (rc == 0 && !scratch)
        rc = error_memory(err, "channel choice", n * n_out * sizeof(double));
    if (rc == 0)
        energy = output_energy(gram, c.w, n, n_out, scratch);
    while (rc == 0 && c.n > keep) {
        size_t m = c.n - keep < c.block ? c.n - keep : c.block;
        find_costs(&c);
        move_cheapest_back(&c, m);
        rc = drop_last(&c, m, err);
        lost += cblas_ddot((blasint)(m * n_out), c.lost, 1, c.lost, 1);
    }
    if (rc == 0) {
        memcpy(ret_index, c.index, keep * sizeof(*ret_index));
        qsort(ret_index, keep, sizeof(*ret_index), compare_index);
        *ret_share = energy > 0 ? fmax(0, 1 - lost / energy) : 1;
    }
    blas_end();
    chooser_close(&c);
    return rc;
}
