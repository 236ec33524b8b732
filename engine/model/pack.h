/* Rows of file tensors into the kernels' packed layout. Internal to engine/model. */
#ifndef OVERFILL_ENGINE_MODEL_PACK_H
#define OVERFILL_ENGINE_MODEL_PACK_H

#include "engine/model/model.h"

/* Where a packed row comes from: row `index` of `tensor`; tensor NULL is a row of zeros. */
struct row_source {
    const struct tensor *tensor;
    uint64_t index;
};

/* A matrix of n_rows (a multiple of KERNEL_TILE) and n_in columns without its weights: memory of
 * the arena. ERROR_FORMAT when the arena is `given` memory (model.h) and that has ended. */
int matrix_alloc(enum matrix_type type, uint32_t n_rows, uint32_t n_in, struct weight_arena *arena,
                 struct matrix *ret_matrix, struct error *err);
/* Packs rows[tile * KERNEL_TILE] and on for tiles tile_begin to tile_end. Q4 needs every tensor to
 * be Q4_0, Q4_MIN one of Q4_0, Q4_1 and Q4_K. */
int matrix_fill(const struct matrix *matrix, const struct row_source *rows, size_t tile_begin,
                size_t tile_end, struct error *err);
/* The narrowest matrix that holds rows of n_in elements of that type, not MATRIX_F32. */
enum matrix_type matrix_type_for(enum tensor_type source, uint32_t n_in);
/* Do rows of that type, packed and unpacked, come back as tensor_dequantize gives them? */
bool matrix_keeps_exactly(enum matrix_type type, enum tensor_type source);
/* One row as floats to out[n_in]. */
void matrix_unpack_row(const struct matrix *matrix, uint32_t row, float *out);

void weight_arena_free(struct weight_arena *arena);
/* The next `bytes` of the arena, MEM_ALIGN apart from what was taken before; NULL: no memory. */
uint8_t *weight_arena_take(struct weight_arena *arena, size_t bytes);

#endif
