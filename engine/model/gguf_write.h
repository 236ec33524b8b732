/* Writing a GGUF file (version 3): metadata, then the tensor table, then tensor data as a stream,
 * so that no more than the caller's own buffer is ever in memory. The file is written beside its
 * target and takes its name only when everything is on disk; a failed or aborted write leaves an
 * existing file as it was. Call order: open, any number of set_* and add_tensor, then write for the
 * tensors' bytes in the order in which they were added, then finish. Failures of set_* and
 * add_tensor (memory, a name too long or given twice) are kept and returned by the first write or
 * by finish. One thread at a time. */
#ifndef OVERFILL_ENGINE_MODEL_GGUF_WRITE_H
#define OVERFILL_ENGINE_MODEL_GGUF_WRITE_H

#include "engine/model/gguf.h"

struct gguf_writer;

int gguf_writer_open(const char *path, struct gguf_writer **ret_writer, struct error *err);

/* Setting a key again replaces its value and keeps its place. */
void gguf_writer_set_u32(struct gguf_writer *writer, const char *key, uint32_t value);
void gguf_writer_set_u64(struct gguf_writer *writer, const char *key, uint64_t value);
void gguf_writer_set_i32(struct gguf_writer *writer, const char *key, int32_t value);
void gguf_writer_set_f32(struct gguf_writer *writer, const char *key, float value);
void gguf_writer_set_bool(struct gguf_writer *writer, const char *key, bool value);
void gguf_writer_set_string(struct gguf_writer *writer, const char *key, const char *value);
/* Any type but strings and arrays: n items as they lie in memory; n = 1 and !is_array is a scalar.
 */
void gguf_writer_set_items(struct gguf_writer *writer, const char *key, enum gguf_type type,
                           bool is_array, const void *items, size_t n);
void gguf_writer_set_strings(struct gguf_writer *writer, const char *key,
                             const struct vocab_string *strings, size_t n);
/* An entry of another file under its own key. */
void gguf_writer_copy(struct gguf_writer *writer, const struct gguf_kv *kv);
/* What the caller had no memory to make: the write fails, as if the writer had had none. */
void gguf_writer_fail(struct gguf_writer *writer, const char *what);
void gguf_writer_remove(struct gguf_writer *writer, const char *key); /* no such key is fine */

/* dims[0] is a row's length and a multiple of the type's block. */
void gguf_writer_add_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                            uint32_t n_dims, const uint64_t *dims);

/* The next bytes of tensor data, cut anyhow: a call may hold part of a tensor or several. Padding
 * between tensors is the writer's business. */
int gguf_writer_write(struct gguf_writer *writer, const void *data, size_t bytes,
                      struct error *err);
/* All tensors must be complete. Frees the writer, also on failure. */
int gguf_writer_finish(struct gguf_writer *writer, struct error *err);
/* Drops what was written. NULL is fine. */
void gguf_writer_abort(struct gguf_writer *writer);

#endif
