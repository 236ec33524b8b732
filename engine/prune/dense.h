/* Products of dense matrices while samples stream by: between passes of the models, which run on a
 * team. OpenBLAS's own threads would go on looking for work while the team works, so each member
 * calls a single-threaded OpenBLAS for its panels. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_DENSE_H
#define OVERFILL_ENGINE_PRUNE_DENSE_H

#include "engine/base/team.h"

#include <stdbool.h>
#include <stddef.h>

/* c [m][n] = beta * c + alpha * a b with a [m][k] and b [k][n], row-major, strides in floats.
 * a_turned: a lies there as [k][m]; b_turned: b as [n][k]. */
struct product {
    bool a_turned, b_turned;
    bool upper; /* only what is on and above the diagonal counts; the rest is undefined */
    size_t m, n, k;
    float alpha, beta;
    const float *a, *b;
    size_t a_stride, b_stride;
    float *c;
    size_t c_stride;
};
/* team NULL: the caller alone. */
void dense_product(struct team *team, const struct product *product);

/* Between the two, which the functions that factorise call, OpenBLAS works with threads of its own:
 * one for each CPU. Else it has none. */
void blas_begin(void);
void blas_end(void);

#endif
