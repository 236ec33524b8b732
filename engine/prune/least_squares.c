/* Sums, Cholesky, eigenvectors. See least_squares.h. */
#include "engine/prune/least_squares.h"

#include "engine/base/mem.h"

#include <cblas.h>
#include <lapacke.h>
#include <string.h>

void blas_threads(unsigned n)
{
    openblas_set_num_threads((int)n);
}

int least_squares_open(size_t n_in, size_t n_out, struct least_squares *ret_ls, struct error *err)
{
    size_t n_most = n_in > n_out ? n_in : n_out;
    struct least_squares ls = {.n_in = n_in, .n_out = n_out};
    ls.xx = mem_calloc(n_in * n_in, sizeof(double));
    ls.yx = mem_calloc(n_out ? n_out * n_in : 1, sizeof(double));
    ls.batch = mem_array(n_most * n_in, sizeof(float));
    if (!ls.xx || !ls.yx || !ls.batch) {
        least_squares_close(&ls);
        return error_memory(err, "least squares", 2 * n_most * n_in * sizeof(double));
    }
    *ret_ls = ls;
    return 0;
}

void least_squares_close(struct least_squares *ls)
{
    mem_free(ls->xx);
    mem_free(ls->yx);
    mem_free(ls->batch);
    *ls = (struct least_squares){0};
}

void least_squares_add(struct least_squares *ls, const float *x, size_t x_stride, const float *y,
                       size_t y_stride, size_t n)
{
    size_t n_in = ls->n_in;
    if (!n)
        return;
    ls->n_rows += n;
    cblas_ssyrk(CblasRowMajor, CblasUpper, CblasTrans, (blasint)n_in, (blasint)n, 1.0f, x,
                (blasint)x_stride, 0.0f, ls->batch, (blasint)n_in);
    for (size_t i = 0; i < n_in; i++)
        for (size_t j = i; j < n_in; j++)
            ls->xx[i * n_in + j] += ls->batch[i * n_in + j];
    if (!ls->n_out)
        return;
    cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)ls->n_out, (blasint)n_in,
                (blasint)n, 1.0f, y, (blasint)y_stride, x, (blasint)x_stride, 0.0f, ls->batch,
                (blasint)n_in);
    for (size_t i = 0; i < ls->n_out * n_in; i++)
        ls->yx[i] += ls->batch[i];
    for (size_t r = 0; r < n; r++)
        ls->yy += cblas_sdot((blasint)ls->n_out, y + r * y_stride, 1, y + r * y_stride, 1);
}

/* Adds ridge * mean of the diagonal to it. */
static void add_ridge(double *a, size_t n, double ridge)
{
    double trace = 0;
    for (size_t i = 0; i < n; i++)
        trace += a[i * n + i];
    for (size_t i = 0; i < n; i++)
        a[i * n + i] += ridge * trace / (double)n;
}

/* In row-major terms the upper triangle is column-major's lower one. */
static int factorise(double *a, size_t n, struct error *err)
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

int least_squares_solve(struct least_squares *ls, double ridge, float *ret_map,
                        double *ret_residual, struct error *err)
{
    size_t n = ls->n_out * ls->n_in;
    lapack_int n_in = (lapack_int)ls->n_in;
    lapack_int n_out = (lapack_int)ls->n_out;
    lapack_int info;
    char lower = 'L';
    _cleanup_mem_ double *map = mem_array(n, sizeof(double));
    if (!map)
        return error_memory(err, "least squares", n * sizeof(double));
    add_ridge(ls->xx, ls->n_in, ridge);
    int rc = factorise(ls->xx, ls->n_in, err);
    if (rc)
        return rc;
    memcpy(map, ls->yx, n * sizeof(double));
    LAPACK_dpotrs(&lower, &n_in, &n_out, ls->xx, &n_in, map, &n_in, &info);
    /* |y - Ax|^2 = yy - 2 tr(A yx^T) + tr(A xx A^T), and A (xx + ridge) = yx */
    double explained = cblas_ddot((blasint)n, map, 1, ls->yx, 1);
    *ret_residual = ls->yy > 0 ? 1 - explained / ls->yy : 0;
    for (size_t i = 0; i < n; i++)
        ret_map[i] = (float)map[i];
    return 0;
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
    LAPACK_dsyevd(&vectors, &lower, &size, a, &size, values, work, &work_size, iwork, &iwork_size,
                  &info);
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
