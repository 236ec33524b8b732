/* Ridge regression over streamed rows, and the other dense algebra of reconstruction, on OpenBLAS
 * and its LAPACK. Sums run in float over a batch and in double over batches. One thread at a time;
 * rows are added by a team, the rest is OpenBLAS's, with threads of its own.
 * Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_LEAST_SQUARES_H
#define OVERFILL_ENGINE_PRUNE_LEAST_SQUARES_H

#include "engine/base/error.h"
#include "engine/prune/dense.h"

#include <stdbool.h>
#include <stddef.h>

/* Minimises sum |y - A x|^2 + ridge * sum_i (sum x_i^2) |A_i - P_i|^2 over A [n_out][n_in], where P
 * is what A is if the rows say nothing. The ridge is the one with the least error on rows held
 * back: a twin is sixty fits, one on the results of the other, and each bends a little to the rows
 * it knows, so the errors of these say little of other text. */
struct least_squares {
    struct team *team; /* the caller's, or NULL */
    size_t n_in, n_out;
    struct row_sums {
        size_t n_rows;
        double *xx; /* [n_in][n_in], upper triangle */
        double *yx; /* [n_out][n_in] */
        double *yy; /* [n_out] sums of y^2 */
    } fitted, held;
    float *batch; /* [max(n_in, n_out)][n_in] sums of the rows at hand */
};

/* n_out 0: only fitted.xx. */
int least_squares_open(struct team *team, size_t n_in, size_t n_out, struct least_squares *ret_ls,
                       struct error *err);
void least_squares_close(struct least_squares *ls); /* a zeroed one is fine */
/* rows of x [n][n_in] and y [n][n_out], x_stride and y_stride floats apart; y NULL if n_out is 0.
 */
void least_squares_add(struct least_squares *ls, bool held, const float *x, size_t x_stride,
                       const float *y, size_t y_stride, size_t n);

struct least_squares_result {
    double ridge;
    double
        residual; /* share of sum(y^2) that is left of the held rows (of the fitted without any) */
};
/* Adds the map of outputs [begin, end) to map [end - begin][n_in]. prior: P of these outputs, or
 * NULL for zeros. start: a ridge to look around, as of a fit much like this one; 0 or NAN: none is
 * known. ERROR_INTERNAL when the rows span too little to be solved for. */
int least_squares_solve(const struct least_squares *ls, size_t begin, size_t end,
                        const float *prior, double start, float *map,
                        struct least_squares_result *ret_result, struct error *err);

/* Adds to a [n][n], a sum of x x^T, what the ridge above does. */
void add_ridge(double *a, size_t n, double ridge);
/* The upper triangle u of a = u^T u, over a's (its lower triangle is left as it is). ERROR_INTERNAL
 * if a, a sum of x x^T, spans too little. */
int factorise_symmetric(double *a, size_t n, struct error *err);
/* a [n][n] (upper triangle) to its inverse, both triangles. */
int invert_symmetric(double *a, size_t n, struct error *err);

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
