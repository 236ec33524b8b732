/* Sums, Cholesky, eigenvectors. See least_squares.h. */
#include "engine/prune/least_squares.h"

#include "engine/base/mem.h"

#include <cblas.h>
#include <lapacke.h>
#include <math.h>
#include <string.h>

#define SIZE_SHARE 0.01

static bool open_sums(size_t n_in, size_t n_out, struct row_sums *sums)
{
    sums->xx = mem_calloc(n_in * n_in, sizeof(double));
    sums->yx = mem_calloc(n_out ? n_out * n_in : 1, sizeof(double));
    sums->yy = mem_calloc(n_out ? n_out : 1, sizeof(double));
    return sums->xx && sums->yx && sums->yy;
}

static void close_sums(struct row_sums *sums)
{
    mem_free(sums->xx);
    mem_free(sums->yx);
    mem_free(sums->yy);
}

int least_squares_open(struct team *team, size_t n_in, size_t n_out, struct least_squares *ret_ls,
                       struct error *err)
{
    size_t n_most = n_in > n_out ? n_in : n_out;
    struct least_squares ls = {.team = team, .n_in = n_in, .n_out = n_out};
    ls.batch = mem_array(n_most * n_in, sizeof(float));
    if (!open_sums(n_in, n_out, &ls.fitted) || (n_out && !open_sums(n_in, n_out, &ls.held)) ||
        !ls.batch) {
        least_squares_close(&ls);
        return error_memory(err, "least squares", 4 * n_most * n_in * sizeof(double));
    }
    *ret_ls = ls;
    return 0;
}

void least_squares_close(struct least_squares *ls)
{
    close_sums(&ls->fitted);
    close_sums(&ls->held);
    mem_free(ls->batch);
    *ls = (struct least_squares){0};
}

void least_squares_add(struct least_squares *ls, bool held, const float *x, size_t x_stride,
                       const float *y, size_t y_stride, size_t n)
{
    struct row_sums *sums = held ? &ls->held : &ls->fitted;
    size_t n_in = ls->n_in;
    if (!n)
        return;
    sums->n_rows += n;
    struct product p = {
        .a_turned = true,
        .upper = true,
        .m = n_in,
        .n = n_in,
        .k = n,
        .alpha = 1,
        .a = x,
        .b = x,
        .a_stride = x_stride,
        .b_stride = x_stride,
        .c = ls->batch,
        .c_stride = n_in,
    };
    dense_product(ls->team, &p);
    for (size_t i = 0; i < n_in; i++)
        for (size_t j = i; j < n_in; j++)
            sums->xx[i * n_in + j] += ls->batch[i * n_in + j];
    if (!ls->n_out)
        return;
    p.upper = false;
    p.m = ls->n_out;
    p.a = y;
    p.a_stride = y_stride;
    dense_product(ls->team, &p);
    for (size_t i = 0; i < ls->n_out * n_in; i++)
        sums->yx[i] += ls->batch[i];
    for (size_t r = 0; r < n; r++)
        for (size_t o = 0; o < ls->n_out; o++)
            sums->yy[o] += (double)y[r * y_stride + o] * y[r * y_stride + o];
}

/* In proportion to each input's own size, so that inputs of any scale shrink alike; and to a part
 * of the mean size, so that one that is hardly ever more than zero gets no huge weight. */
void add_ridge(double *a, size_t n, double ridge)
{
    double trace = 0;
    for (size_t i = 0; i < n; i++)
        trace += a[i * n + i];
    for (size_t i = 0; i < n; i++)
        a[i * n + i] += ridge * (a[i * n + i] + SIZE_SHARE * trace / (double)n);
}

/* In row-major terms the upper triangle is column-major's lower one, and a = L L^T there u^T u. */
int factorise_symmetric(double *a, size_t n, struct error *err)
{
    lapack_int size = (lapack_int)n;
    lapack_int info;
    char lower = 'L';
    LAPACK_dpotrf(&lower, &size, a, &size, &info);
    return info ? error_set(err, ERROR_INTERNAL,
                            "the calibration spans too little to solve for %zu inputs: it is too "
                            "short, or its text says the same again and again",
                            n)
                : 0;
}

int invert_symmetric(double *a, size_t n, struct error *err)
{
    lapack_int size = (lapack_int)n;
    lapack_int info;
    char lower = 'L';
    int rc = factorise_symmetric(a, n, err);
    if (rc)
        return rc;
    LAPACK_dpotri(&lower, &size, a, &size, &info);
    if (info)
        return error_set(err, ERROR_INTERNAL, "%zu inputs cannot be told apart", n);
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            a[i * n + j] = a[j * n + i];
    return 0;
}

/* Outputs [begin, end) at one ridge. */
struct solver {
    const struct least_squares *ls;
    size_t begin, n_out;
    const float *prior; /* [n_out][n_in], or NULL */
    double *rest;       /* [n_out][n_in] what the prior leaves of yx */
    double *xx;         /* [n_in][n_in] */
    double *map;        /* [n_out][n_in] */
    double *best;       /* [n_out][n_in] */
};

static int solve(struct solver *s, double ridge, struct error *err)
{
    const struct least_squares *ls = s->ls;
    lapack_int n_in = (lapack_int)ls->n_in;
    lapack_int n_out = (lapack_int)s->n_out;
    lapack_int info;
    char lower = 'L';
    memcpy(s->xx, ls->fitted.xx, ls->n_in * ls->n_in * sizeof(double));
    add_ridge(s->xx, ls->n_in, ridge);
    int rc = factorise_symmetric(s->xx, ls->n_in, err);
    if (rc)
        return rc;
    memcpy(s->map, s->rest, s->n_out * ls->n_in * sizeof(double));
    LAPACK_dpotrs(&lower, &n_in, &n_out, s->xx, &n_in, s->map, &n_in, &info);
    for (size_t i = 0; s->prior && i < s->n_out * ls->n_in; i++)
        s->map[i] += s->prior[i];
    return 0;
}

/* sum |y - A x|^2 = sum y^2 - 2 tr(A yx^T) + tr(A xx A^T), as a share of the first; s->xx is
 * scratch. */
static double share_left(struct solver *s, const struct row_sums *sums)
{
    size_t n_in = s->ls->n_in;
    const double *yx = sums->yx + s->begin * n_in;
    double yy = 0;
    double left = 0;
    for (size_t o = 0; o < s->n_out; o++)
        yy += sums->yy[s->begin + o];
    for (size_t at = 0; at < s->n_out; at += n_in) { /* as many outputs as the scratch holds */
        size_t n = s->n_out - at < n_in ? s->n_out - at : n_in;
        const double *map = s->map + at * n_in;
        cblas_dsymm(CblasRowMajor, CblasRight, CblasUpper, (blasint)n, (blasint)n_in, 1.0, sums->xx,
                    (blasint)n_in, map, (blasint)n_in, 0.0, s->xx, (blasint)n_in);
        left += cblas_ddot((blasint)(n * n_in), map, 1, s->xx, 1) -
                2 * cblas_ddot((blasint)(n * n_in), map, 1, yx + at * n_in, 1);
    }
    return yy > 0 ? 1 + left / yy : 0;
}

static const double RIDGES[] = {1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1, 1, 3, 10};
#define N_RIDGES (sizeof(RIDGES) / sizeof(RIDGES[0]))

static int try_ridge(struct solver *s, size_t i, struct least_squares_result *best,
                     bool *ret_better, struct error *err)
{
    const struct row_sums *judge = s->ls->held.n_rows ? &s->ls->held : &s->ls->fitted;
    int rc = solve(s, RIDGES[i], err);
    if (rc)
        return rc;
    double share = share_left(s, judge);
    *ret_better = share < best->residual;
    if (!*ret_better)
        return 0;
    *best = (struct least_squares_result){RIDGES[i], share};
    double *swap = s->best;
    s->best = s->map;
    s->map = swap;
    return 0;
}

/* Goes up from `start` as long as that helps the held rows, or down where up does not help at all:
 * the error has one least as a function of the ridge. */
static int choose_ridge(struct solver *s, double start, struct least_squares_result *result,
                        struct error *err)
{
    size_t first = 0;
    bool better;
    result->residual = INFINITY;
    while (first + 1 < N_RIDGES && RIDGES[first] < start)
        first++;
    int rc = try_ridge(s, first, result, &better, err);
    for (size_t i = first + 1; rc == 0 && better && i < N_RIDGES; i++)
        rc = try_ridge(s, i, result, &better, err);
    if (result->ridge > RIDGES[first])
        return rc;
    better = true;
    for (size_t i = first; rc == 0 && better && i-- > 0;)
        rc = try_ridge(s, i, result, &better, err);
    return rc;
}

/* rest = yx - prior xx; s->map is scratch. */
static void take_prior(struct solver *s)
{
    const struct row_sums *sums = &s->ls->fitted;
    size_t n = s->n_out * s->ls->n_in;
    blasint n_in = (blasint)s->ls->n_in;
    memcpy(s->rest, sums->yx + s->begin * s->ls->n_in, n * sizeof(double));
    if (!s->prior)
        return;
    for (size_t i = 0; i < n; i++)
        s->map[i] = s->prior[i];
    cblas_dsymm(CblasRowMajor, CblasRight, CblasUpper, (blasint)s->n_out, n_in, -1.0, sums->xx,
                n_in, s->map, n_in, 1.0, s->rest, n_in);
}

int least_squares_solve(const struct least_squares *ls, size_t begin, size_t end,
                        const float *prior, double start, float *map,
                        struct least_squares_result *ret_result, struct error *err)
{
    size_t n = (end - begin) * ls->n_in;
    _cleanup_mem_ double *xx = mem_array(ls->n_in * ls->n_in, sizeof(double));
    _cleanup_mem_ double *maps = mem_array(3 * n, sizeof(double));
    struct solver s = {ls, begin, end - begin, prior, maps, xx, maps + n, maps + 2 * n};
    if (!xx || !maps)
        return error_memory(err, "least squares", ls->n_in * ls->n_in * sizeof(double));
    blas_begin();
    take_prior(&s);
    int rc = choose_ridge(&s, start, ret_result, err);
    blas_end();
    for (size_t i = 0; rc == 0 && i < n; i++)
        map[i] += (float)s.best[i];
    return rc;
}

int top_eigenvectors(double *a, size_t n, size_t k, float *ret_vectors, double *ret_share,
                     struct error *err)
{
    lapack_int size = (lapack_int)n;
    lapack_int work_size = -1;
    lapack_int iwork_size = -1;
    lapack_int info;
    lapack_int iwork_wanted;
    double work_wanted;
    char vectors = 'V';
    char lower = 'L';
    _cleanup_mem_ double *values = mem_array(n, sizeof(double));
    LAPACK_dsyevd(&vectors, &lower, &size, a, &size, values, &work_wanted, &work_size,
                  &iwork_wanted, &iwork_size, &info);
    work_size = (lapack_int)work_wanted;
    iwork_size = iwork_wanted;
    _cleanup_mem_ double *work = mem_array((size_t)work_size, sizeof(double));
    _cleanup_mem_ lapack_int *iwork = mem_array((size_t)iwork_size, sizeof(lapack_int));
    if (!values || !work || !iwork)
        return error_memory(err, "eigenvectors", (size_t)work_size * sizeof(double));
    blas_begin();
    LAPACK_dsyevd(&vectors, &lower, &size, a, &size, values, work, &work_size, iwork, &iwork_size,
                  &info);
    blas_end();
    if (info)
        return error_set(err, ERROR_INTERNAL, "eigenvectors of %zu channels do not converge", n);
    double kept = 0;
    double all = 0;
    for (size_t i = 0; i < n; i++) {
        all += values[i];
        kept += i >= n - k ? values[i] : 0;
    }
    *ret_share = all > 0 ? kept / all : 1;
    for (size_t j = 0; j < k; j++) /* ascending values; a vector is a column, contiguous */
        for (size_t i = 0; i < n; i++)
            ret_vectors[i * k + j] = (float)a[(n - 1 - j) * n + i];
    return 0;
}
