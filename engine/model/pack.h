/* Rows of file tensors into the kernels' packed layout. Internal to engine/model. */
#ifndef OVERFILL_ENGINE_MODEL_PACK_H
#define OVERFILL_ENGINE_MODEL_PACK_H

#include "engine/model/model.h"

/* Where a packed row comes from: row `index` of `tensor`; tensor NULL is a row of zeros. */
struct row_source {
    const struct tensor *tensor;
    uint64_t index;
};

/* Packs rows[n_rows] (n_rows a multiple of KERNEL_TILE, all with n_in columns). Q4 needs every
 * tensor to be Q4_0, Q4_MIN Q4_0 or Q4_1; their blocks are kept exactly. Q8_0 blocks are kept
 * exactly in Q8. */
int matrix_pack(enum matrix_type type, const struct row_source *rows, uint32_t n_rows,
                uint32_t n_in, struct weight_arena *arena, struct matrix *ret_matrix,
                struct error *err);
void weight_arena_free(struct weight_arena *arena);

#endif
