/* A .safetensors file mapped read-only: its tensor table, every shape and offset checked against
 * the file. Immutable after open. Not here: what the names mean (hf_folder.c). Format: docs of the
 * safetensors package: u64 header length, JSON header, data. */
#ifndef OVERFILL_ENGINE_MODEL_SAFETENSORS_H
#define OVERFILL_ENGINE_MODEL_SAFETENSORS_H

#include "engine/base/error.h"
#include "engine/model/tensor.h"

#include <stddef.h>
#include <stdint.h>

struct safetensor {
    const char *name;  /* Hugging Face's */
    const char *dtype; /* "BF16" */
    int type; /* enum tensor_type, or -1 for a dtype that this program does not read: then the
                 fields below are not filled */
    uint32_t n_dims;
    uint64_t
        dims[TENSOR_MAX_DIMS]; /* dims[0] is the fastest: the shape reversed; unused ones are 1 */
    const uint8_t *data;       /* alignment 1 */
    size_t bytes;
};

struct safetensors;

/* `err` must not be NULL; messages start with the path. */
int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err);
void safetensors_close(struct safetensors *file);                /* NULL is fine */
size_t safetensors_bytes(const struct safetensors *file);        /* of the whole file */
int64_t safetensors_modified_ns(const struct safetensors *file); /* mapped_file.h */
size_t safetensors_n(const struct safetensors *file);
const struct safetensor *safetensors_at(const struct safetensors *file, size_t i);

#endif
