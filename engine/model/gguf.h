/* A GGUF file (version 2 or 3, little-endian) mapped read-only: metadata and the tensor table.
 * Everything that the file says is checked against its size at open, so every pointer handed out
 * here is safe to read to its end. Keys, strings and tensor data point into the mapping.
 * Immutable after open: any thread may read. `err` must not be NULL.
 * Not here: what keys and tensors mean (model_file.h), writing (gguf_write.h).
 * Format: docs/gguf.md of ggml. */
#ifndef OVERFILL_ENGINE_MODEL_GGUF_H
#define OVERFILL_ENGINE_MODEL_GGUF_H

#include "engine/base/error.h"
#include "engine/model/tensor.h"
#include "engine/tokenizer/vocab.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#define GGUF_DEFAULT_ALIGNMENT 32

enum gguf_type {
    GGUF_U8 = 0,
    GGUF_I8 = 1,
    GGUF_U16 = 2,
    GGUF_I16 = 3,
    GGUF_U32 = 4,
    GGUF_I32 = 5,
    GGUF_F32 = 6,
    GGUF_BOOL = 7,
    GGUF_STRING = 8,
    GGUF_ARRAY = 9,
    GGUF_U64 = 10,
    GGUF_I64 = 11,
    GGUF_F64 = 12,
    GGUF_N_TYPES
};

const char *gguf_type_name(enum gguf_type type); /* "u32", "string", "array" */
size_t gguf_type_bytes(enum gguf_type type);     /* 0 for strings and arrays */

struct gguf_kv {
    struct vocab_string key;
    enum gguf_type type; /* of the value, or of an array's items; never GGUF_ARRAY */
    bool is_array;
    uint64_t n;          /* items; 1 for a scalar */
    const uint8_t *data; /* the items as they stand in the file; alignment 1 */
    size_t bytes;
};

struct gguf_file;

/* Messages start with the path. ERROR_FORMAT: the file breaks the format; ERROR_UNSUPPORTED: a
 * version or tensor type that this program does not read. */
int gguf_open(const char *path, struct gguf_file **ret_file, struct error *err);
/* The same over bytes that stay the caller's and must outlive the file. */
int gguf_open_memory(const void *data, size_t bytes, struct gguf_file **ret_file,
                     struct error *err);
void gguf_close(struct gguf_file *file); /* NULL is fine */

size_t gguf_bytes(const struct gguf_file *file);        /* of the whole file */
int64_t gguf_modified_ns(const struct gguf_file *file); /* mapped_file.h; 0 if in memory */
uint32_t gguf_version(const struct gguf_file *file);
uint32_t gguf_alignment(const struct gguf_file *file);

size_t gguf_n_kv(const struct gguf_file *file);
const struct gguf_kv *gguf_kv_at(const struct gguf_file *file, size_t i);       /* in file order */
const struct gguf_kv *gguf_find(const struct gguf_file *file, const char *key); /* or NULL */

size_t gguf_n_tensors(const struct gguf_file *file);
const struct tensor *gguf_tensor_at(const struct gguf_file *file, size_t i); /* in file order */
const struct tensor *gguf_tensor(const struct gguf_file *file, const char *name); /* or NULL */

/* Typed look-ups. A missing key is an error if required, else *ret keeps its value and the call
 * gives 0. A value of another type or out of range is always an error that names the key.
 * Integers may be stored in any width; floats as f32 or f64. */
enum gguf_need { GGUF_OPTIONAL, GGUF_REQUIRED };
int gguf_get_u32(const struct gguf_file *file, const char *key, enum gguf_need need, uint32_t *ret,
                 struct error *err);
int gguf_get_f32(const struct gguf_file *file, const char *key, enum gguf_need need, float *ret,
                 struct error *err);
int gguf_get_bool(const struct gguf_file *file, const char *key, enum gguf_need need, bool *ret,
                  struct error *err);
int gguf_get_string(const struct gguf_file *file, const char *key, enum gguf_need need,
                    struct vocab_string *ret, struct error *err);

/* One value of any integer type or bool; false when the item is of another type or i >= n. */
bool gguf_kv_integer(const struct gguf_kv *kv, uint64_t i, int64_t *ret);
bool gguf_kv_float(const struct gguf_kv *kv, uint64_t i, double *ret);
/* The n strings of a string or an array of strings to *ret (mem_free by the caller). */
int gguf_kv_strings(const struct gguf_kv *kv, struct vocab_string **ret, struct error *err);

/* The tokenizer that the file carries (tokenizer.* keys), with llama.cpp's defaults for what it
 * leaves out. Needs no supported architecture. Strings point into the mapping; vocab_free frees
 * the arrays. ERROR_UNSUPPORTED for tokenizer models other than "gpt2" and "llama". */
int gguf_read_vocab(const struct gguf_file *file, struct vocab *ret_vocab, struct error *err);

#endif
