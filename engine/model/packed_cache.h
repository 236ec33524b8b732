/* Packed weights in a file, DIR/HASH-WEIGHTS.packed, so that the next process need not pack: it
 * maps the file, checks it, and shares its pages with every other process that does. A file is
 * found by the model's hash and the kind of weights; its header names the model file's size and
 * time of change and the kernels' layouts; a checksum covers the rest. It is for this machine and
 * this version of the program, read-only once it is there: who cuts it while it is mapped ends the
 * reader (SIGBUS). Internal to engine/model. */
#ifndef OVERFILL_ENGINE_MODEL_PACKED_CACHE_H
#define OVERFILL_ENGINE_MODEL_PACKED_CACHE_H

#include "engine/model/model.h"

/* Raise it with every change of the layouts in kernels.h or of the order in which model.c packs;
 * the test of packed bytes notices the former. */
#define PACKED_CACHE_VERSION 2

struct packed_cache_key {
    uint64_t file_hash; /* model_file_hash */
    uint64_t file_bytes;
    int64_t modified_ns; /* when the model's files were last changed */
    uint32_t weights;    /* enum model_weights */
};

/* Maps the file of that key in `dir` and reads all of it once for the checksum; *ret_arena then
 * hands its weights out, in the order in which they were written. No file is no error and gives an
 * arena that is empty; one that is of no use is ERROR_FORMAT and says why. */
int packed_cache_open(const char *dir, const struct packed_cache_key *key,
                      model_progress_fn *progress, void *user, struct weight_arena *ret_arena,
                      struct error *err);

struct packed_part {
    const void *data;
    size_t bytes;
};
/* Writes the parts, each from a multiple of MEM_ALIGN on, in place of a former file; the folder is
 * made if it is missing. *ret_bytes: of the file. ERROR_IO, and no file, when the disk has no room;
 * ERROR_BUSY when another process is writing the same one. */
int packed_cache_write(const char *dir, const struct packed_cache_key *key,
                       const struct packed_part *parts, size_t n_parts, size_t *ret_bytes,
                       struct error *err);

#endif
