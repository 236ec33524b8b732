/* Ridge regression over streamed rows, and the other dense algebra of reconstruction, on OpenBLAS
 * and its LAPACK. Sums run in float over a batch and in double over batches. One thread at a time;
 * BLAS uses as many as blas_threads said. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_LEAST_SQUARES_H
#define OVERFILL_ENGINE_PRUNE_LEAST_SQUARES_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>

void blas_threads(unsigned n);

/* Minimises sum |y - A x|^2 + ridge * mean(x^2) * |A|^2 over A [n_out][n_in]. */
struct least_squares {
    size_t n_in, n_out;
    size_t n_rows; /* added so far */
    double *xx;    /* [n_in][n_in], upper triangle */
    double *yx;    /* [n_out][n_in] */
    double yy;     /* sum of y^2 */
    float *batch;  /* [max(n_in, n_out)][n_in] sums of the rows at hand */
};

/* n_out 0: only xx. */
int least_squares_open(size_t n_in, size_t n_out, struct least_squares *ret_ls, struct error *err);
void least_squares_close(struct least_squares *ls); /* a zeroed one is fine */
/* rows of x [n][n_in] and y [n][n_out], x_stride and y_stride floats apart; y NULL if n_out is 0. */
void least_squares_add(struct least_squares *ls, const float *x, size_t x_stride, const float *y,
                       size_t y_stride, size_t n);
/* A to ret_map [n_out][n_in] and the share of sum(y^2) that it leaves to ret_residual. xx is used
 * up. ERROR_INTERNAL when the rows span too little to be solved for. */
int least_squares_solve(struct least_squares *ls, double ridge, float *ret_map,
                        double *ret_residual, struct error *err);

/* Eigenvectors of the symmetric a [n][n] (upper triangle, destroyed) with the k largest
 * eigenvalues: ret_vectors [n][k], largest first. ret_share: their part of the trace. */
int top_eigenvectors(double *a, size_t n, size_t k, float *ret_vectors, double *ret_share,
                     struct error *err);

/* Which `keep` of n inputs best stand in for all: x [n] enters as W x with W [n_out][n], and
 * gram [n][n] (both triangles) is the sum of x x^T. Inputs leave in blocks, those first whose loss
 * costs least once the others make up for it (optimal brain surgeon, Hassibi and Stork 1993).
 * ret_index [keep], ascending; ret_share: the part of sum |W x|^2 that is left. */
int choose_inputs(const double *gram, const float *w, size_t n, size_t n_out, size_t keep,
                  unsigned *ret_index, double *ret_share, struct error *err);

#endif
