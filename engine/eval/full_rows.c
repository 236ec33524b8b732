/* The full model's log-probabilities of scored tokens over the whole vocabulary: in memory for one
 * wave of documents, or of all documents in a file, so that many systems are measured against them
 * without the full model running again. The file is of this machine's byte order, and only whole
 * once its mark is written. See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define HEADER_BYTES 4096 /* a page: what comes after stays aligned */

/* At the beginning of the file. */
struct header {
    char magic[16];
    uint64_t key; /* of the documents' tokens and the rows' shape */
    uint64_t is_whole;
};
static const char MAGIC[16] = "overfill-rows-1";

static uint64_t key_of(const struct eval_documents *documents, size_t n_score, size_t n_vocab)
{
    uint64_t key = hash_bytes(HASH_START, &n_score, sizeof(n_score));
    key = hash_bytes(key, &n_vocab, sizeof(n_vocab));
    for (size_t i = 0; i < documents->n; i++)
        key = hash_bytes(key, documents->list[i].tokens, documents->n_tokens * sizeof(int32_t));
    return key;
}

static int map_file(const char *path, int fd, size_t bytes, struct full_rows *rows,
                    struct error *err)
{
    struct stat st;
    if (fstat(fd, &st) != 0)
        return error_set(err, ERROR_IO, "full-rows %s: %s", path, strerror(errno));
    if (st.st_size != 0 && (size_t)st.st_size != bytes)
        return error_set(err, ERROR_INVALID,
                         "full-rows %s: made for other data or another number of rows or tokens; "
                         "remove it",
                         path);
    if (st.st_size == 0 && ftruncate(fd, (off_t)bytes) != 0)
        return error_set(err, ERROR_IO, "full-rows %s: %s", path, strerror(errno));
    rows->map = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
    if (rows->map == MAP_FAILED) {
        rows->map = NULL;
        return error_set(err, ERROR_IO, "full-rows %s: mapping %zu bytes: %s", path, bytes,
                         strerror(errno));
    }
    rows->map_bytes = bytes;
    return 0;
}

static int check_header(const char *path, uint64_t key, struct full_rows *rows, struct error *err)
{
    struct header *header = rows->map;
    if (!header->magic[0]) {
        memcpy(header->magic, MAGIC, sizeof(MAGIC));
        header->key = key;
    }
    if (memcmp(header->magic, MAGIC, sizeof(MAGIC)) != 0 || header->key != key)
        return error_set(err, ERROR_INVALID,
                         "full-rows %s: made for other data, another vocabulary, or no such file; "
                         "remove it",
                         path);
    rows->is_whole = header->is_whole;
    rows->values = (float *)((char *)rows->map + HEADER_BYTES);
    return 0;
}

static int open_file(const char *path, const struct eval_documents *documents, size_t n_score,
                     size_t n_vocab, struct full_rows *rows, struct error *err)
{
    size_t bytes;
    if (!mem_mul(rows->document_bytes, documents->n, &bytes) ||
        !mem_add(bytes, HEADER_BYTES, &bytes))
        return error_memory(err, "full-rows", documents->n);
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    if (fd < 0)
        return error_set(err, ERROR_IO, "full-rows %s: %s", path, strerror(errno));
    int rc = map_file(path, fd, bytes, rows, err);
    close(fd);
    if (rc == 0)
        rc = check_header(path, key_of(documents, n_score, n_vocab), rows, err);
    rows->n_documents = documents->n;
    return rc;
}

int full_rows_open(const char *path, const struct eval_documents *documents, size_t n_score,
                   size_t n_vocab, size_t memory_bytes, struct full_rows *ret_rows,
                   struct error *err)
{
    struct full_rows rows = {.row_floats = n_vocab};
    if (!mem_mul(n_score, n_vocab, &rows.document_floats) ||
        !mem_mul(rows.document_floats, sizeof(float), &rows.document_bytes))
        return error_memory(err, "rows of log-probabilities", n_score);
    size_t room = memory_bytes / rows.document_bytes ? memory_bytes / rows.document_bytes : 1;
    rows.n_documents = documents->n < room ? documents->n : room;
    int rc = 0;
    if (path) {
        rc = open_file(path, documents, n_score, n_vocab, &rows, err);
    } else {
        rows.values = mem_array(rows.n_documents, rows.document_bytes);
        if (!rows.values)
            rc = error_memory(err, "rows of log-probabilities", rows.document_bytes);
    }
    if (rc) {
        full_rows_close(&rows);
        return rc;
    }
    *ret_rows = rows;
    return 0;
}

void full_rows_mark_whole(struct full_rows *rows)
{
    struct header *header = rows->map;
    if (header)
        header->is_whole = 1;
}

void full_rows_close(struct full_rows *rows)
{
    if (rows->map)
        munmap(rows->map, rows->map_bytes);
    else
        mem_free(rows->values);
    *rows = (struct full_rows){0};
}
