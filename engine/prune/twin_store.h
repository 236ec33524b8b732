/* The twin's matrices as they are solved, one after another in a file beside the twin, so that a
 * killed run goes on where it was: what is in the file is not solved again. The last step streams
 * them into the GGUF. A file of another run (model, calibration, widths, types) is begun anew.
 * Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_TWIN_STORE_H
#define OVERFILL_ENGINE_PRUNE_TWIN_STORE_H

#include "engine/base/error.h"
#include "engine/model/gguf_write.h"
#include "engine/model/tensor.h"

#include <stdbool.h>

struct twin_store;

/* recipe: everything the matrices depend on; compared with that of an existing file. */
int twin_store_open(const char *path, uint64_t recipe, struct twin_store **ret_store,
                    struct error *err);
/* Keeps the file, for another run; NULL is fine. */
void twin_store_close(struct twin_store *store);
/* Closes and removes the file. */
void twin_store_remove(struct twin_store *store);

bool twin_store_has(const struct twin_store *store, const char *name);
/* Quantises values [n_rows][n_columns] as round_rows does with gram, and appends them, as the
 * type that rows of n_columns take when `type` is wanted. n_rows 0: a vector. What is there already
 * stays: a run ended between two matrices of one fit solves both again. */
int twin_store_put(struct twin_store *store, const char *name, enum tensor_type type,
                   const float *values, size_t n_rows, size_t n_columns, const double *gram,
                   struct error *err);
/* The same of a matrix whose rows come in parts: begin, rows until all have come, end, which drops
 * what came if `rc` is an error, and returns it. One matrix at a time. */
int twin_store_begin(struct twin_store *store, const char *name, enum tensor_type type,
                     size_t n_rows, size_t n_columns, const double *gram, struct error *err);
int twin_store_add(struct twin_store *store, const float *rows, size_t n_rows, struct error *err);
int twin_store_end(struct twin_store *store, int rc, struct error *err);
/* Appends the tensor as it is. */
int twin_store_copy(struct twin_store *store, const struct tensor *tensor, struct error *err);
/* The tensor with its bytes in memory: tensor_release frees them. ERROR_INTERNAL if it is not
 * there.
 */
int twin_store_get(const struct twin_store *store, const char *name, struct tensor *ret_tensor,
                   struct error *err);
void tensor_release(struct tensor *tensor);

/* All tensors whose names do not begin with a dot, in order of arrival. */
void twin_store_declare(const struct twin_store *store, struct gguf_writer *writer);
int twin_store_write(const struct twin_store *store, struct gguf_writer *writer, struct error *err);

#endif
