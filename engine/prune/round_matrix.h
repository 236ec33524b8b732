/* From floats to a block type, with the error that counts: what a matrix gives for the inputs it
 * will see. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_ROUND_MATRIX_H
#define OVERFILL_ENGINE_PRUNE_ROUND_MATRIX_H

#include "engine/model/tensor.h"

struct rounder;

/* For matrices of n_in inputs. gram [n_in][n_in] (upper triangle): the sum of x x^T of the inputs;
 * columns are rounded one after another, and each one's error is made up for by those that follow
 * (GPTQ, Frantar et al. 2022, whose natural order keeps blocks together). gram NULL, or a type
 * without a grid: every element by itself. */
int rounder_open(enum tensor_type type, size_t n_in, const double *gram,
                 struct rounder **ret_rounder, struct error *err);
void rounder_close(struct rounder *r); /* NULL is fine */
/* w [n_rows][n_in] to ret_blocks (tensor_type_bytes of all). Rows do not depend on each other:
 * those of a large matrix may come in parts. */
int round_rows(struct rounder *r, const float *w, size_t n_rows, uint8_t *ret_blocks,
               struct error *err);

#endif
