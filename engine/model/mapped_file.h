/* A whole file mapped read-only. Not here: what its bytes mean (gguf.h, safetensors.h).
 * Immutable after open, any thread may read; a file that someone cuts short while it is mapped
 * raises SIGBUS in the reader, as with every mmap, except in what mapped_file_keep has copied. */
#ifndef OVERFILL_ENGINE_MODEL_MAPPED_FILE_H
#define OVERFILL_ENGINE_MODEL_MAPPED_FILE_H

#include "engine/base/error.h"

#include <stddef.h>
#include <stdint.h>

struct mapped_file {
    const uint8_t *data; /* NULL for an empty file */
    size_t bytes;
    int64_t modified_ns; /* when it was last changed, as the file system says */
};

/* The message does not repeat the path: the caller puts it in front. */
int mapped_file_open(const char *path, struct mapped_file *ret_map, struct error *err);
void mapped_file_close(struct mapped_file *map); /* also of a zeroed struct */
/* data[bytes] lies in a mapping: copies its pages into the process's own memory, where they are,
 * so that they stay readable when the file is cut or overwritten. Once, before others read. */
int mapped_file_keep(const void *data, size_t bytes, struct error *err);
/* data[bytes] lies in a mapping and will not be read soon: its pages may leave this process's
 * memory. Reading them again works, from the page cache or the disk. Not for what was kept. */
void mapped_file_forget(const void *data, size_t bytes);

#endif
