/* The GGUF writer. See gguf_write.h. Integers go out in this machine's order: the program runs on
 * little-endian machines only, as the format's default is. */
#include "engine/model/gguf_write.h"

#include "engine/base/buf.h"
#include "engine/base/mem.h"

#include <assert.h>
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

struct entry {
    char *key;        /* NULL: removed */
    struct buf value; /* type, array header, items: as in the file */
};

struct gguf_writer {
    char *path, *temporary;
    FILE *stream;
    struct entry *entries;
    size_t n_entries;
    struct tensor *tensors;
    size_t n_tensors;
    bool header_is_written;
    size_t i_tensor;      /* the one being filled */
    size_t written_bytes; /* of it */
    struct error failure; /* the first of set_* and add_tensor */
};

void gguf_writer_fail(struct gguf_writer *w, const char *what)
{
    if (!w->failure.code)
        error_set(&w->failure, ERROR_MEMORY, "out of memory: %s", what);
}

int gguf_writer_open(const char *path, struct gguf_writer **ret_writer, struct error *err)
{
    _cleanup_buf_ struct buf temporary = {0};
    struct gguf_writer *w = mem_calloc(1, sizeof(*w));
    if (!w)
        return error_memory(err, "GGUF writer", sizeof(*w));
    /* the process number keeps two programs that write the same file apart */
    buf_printf(&temporary, "%s.%ld.tmp", path, (long)getpid());
    w->path = mem_strdup(path);
    w->temporary = buf_take(&temporary, NULL);
    int rc = 0;
    if (!w->path || !w->temporary)
        rc = error_memory(err, "path", strlen(path));
    if (rc == 0 && !(w->stream = fopen(w->temporary, "wbe")))
        rc = error_set(err, ERROR_IO, "%s: cannot write: %s", w->temporary, strerror(errno));
    if (rc) {
        gguf_writer_abort(w);
        return rc;
    }
    *ret_writer = w;
    return 0;
}

/* The entry of that key, emptied, or a new one. NULL: out of memory. */
static struct buf *set(struct gguf_writer *w, const char *key, size_t key_len)
{
    for (size_t i = 0; i < w->n_entries; i++) {
        struct entry *e = &w->entries[i];
        if (e->key && strlen(e->key) == key_len && memcmp(e->key, key, key_len) == 0) {
            buf_clear(&e->value);
            return &e->value;
        }
    }
    struct entry *more = mem_realloc(w->entries, w->n_entries + 1, sizeof(*more));
    char *copy = mem_strndup(key, key_len);
    if (more)
        w->entries = more;
    if (!more || !copy) {
        mem_free(copy);
        gguf_writer_fail(w, key);
        return NULL;
    }
    w->entries[w->n_entries] = (struct entry){.key = copy};
    return &w->entries[w->n_entries++].value;
}

static void append_u32(struct buf *b, uint32_t value)
{
    buf_append(b, &value, sizeof(value));
}

static void append_u64(struct buf *b, uint64_t value)
{
    buf_append(b, &value, sizeof(value));
}

static void append_string(struct buf *b, const char *data, size_t len)
{
    append_u64(b, len);
    buf_append(b, data, len);
}

static void append_type(struct buf *b, enum gguf_type type, bool is_array, uint64_t n)
{
    if (is_array)
        append_u32(b, GGUF_ARRAY);
    append_u32(b, type);
    if (is_array)
        append_u64(b, n);
}

void gguf_writer_set_items(struct gguf_writer *writer, const char *key, enum gguf_type type,
                           bool is_array, const void *items, size_t n)
{
    struct buf *b = set(writer, key, strlen(key));
    size_t bytes;
    assert(gguf_type_bytes(type) && (is_array || n == 1));
    if (!b)
        return;
    append_type(b, type, is_array, n);
    if (mem_mul(n, gguf_type_bytes(type), &bytes))
        buf_append(b, items, bytes);
    else
        b->failed = true;
}

void gguf_writer_set_u32(struct gguf_writer *writer, const char *key, uint32_t value)
{
    gguf_writer_set_items(writer, key, GGUF_U32, false, &value, 1);
}

void gguf_writer_set_u64(struct gguf_writer *writer, const char *key, uint64_t value)
{
    gguf_writer_set_items(writer, key, GGUF_U64, false, &value, 1);
}

void gguf_writer_set_i32(struct gguf_writer *writer, const char *key, int32_t value)
{
    gguf_writer_set_items(writer, key, GGUF_I32, false, &value, 1);
}

void gguf_writer_set_f32(struct gguf_writer *writer, const char *key, float value)
{
    gguf_writer_set_items(writer, key, GGUF_F32, false, &value, 1);
}

void gguf_writer_set_bool(struct gguf_writer *writer, const char *key, bool value)
{
    uint8_t byte = value;
    gguf_writer_set_items(writer, key, GGUF_BOOL, false, &byte, 1);
}

void gguf_writer_set_string(struct gguf_writer *writer, const char *key, const char *value)
{
    struct buf *b = set(writer, key, strlen(key));
    if (!b)
        return;
    append_type(b, GGUF_STRING, false, 1);
    append_string(b, value, strlen(value));
}

void gguf_writer_set_strings(struct gguf_writer *writer, const char *key,
                             const struct vocab_string *strings, size_t n)
{
    struct buf *b = set(writer, key, strlen(key));
    if (!b)
        return;
    append_type(b, GGUF_STRING, true, n);
    for (size_t i = 0; i < n; i++)
        append_string(b, strings[i].data, strings[i].len);
}

void gguf_writer_copy(struct gguf_writer *writer, const struct gguf_kv *kv)
{
    struct buf *b = set(writer, kv->key.data, kv->key.len);
    if (!b)
        return;
    append_type(b, kv->type, kv->is_array, kv->n);
    buf_append(b, kv->data, kv->bytes);
}

void gguf_writer_remove(struct gguf_writer *writer, const char *key)
{
    for (size_t i = 0; i < writer->n_entries; i++) {
        struct entry *e = &writer->entries[i];
        if (e->key && strcmp(e->key, key) == 0) {
            mem_free(e->key);
            e->key = NULL;
            buf_free(&e->value);
        }
    }
}

/* false: a name or shape that no reader would take. */
static bool fill_tensor(struct tensor *t, const char *name, enum tensor_type type, uint32_t n_dims,
                        const uint64_t *dims)
{
    uint64_t n = 1;
    if (!*name || strlen(name) >= sizeof(t->name) || n_dims < 1 || n_dims > TENSOR_MAX_DIMS ||
        !tensor_type_is_known(type))
        return false;
    *t = (struct tensor){.type = type, .n_dims = n_dims, .dims = {1, 1, 1, 1}};
    snprintf(t->name, sizeof(t->name), "%s", name);
    for (uint32_t d = 0; d < n_dims; d++) {
        t->dims[d] = dims[d];
        if (dims[d] == 0 || __builtin_mul_overflow(n, dims[d], &n))
            return false;
    }
    return dims[0] % tensor_block_elements(type) == 0 && tensor_type_bytes(type, n, &t->bytes);
}

void gguf_writer_add_tensor(struct gguf_writer *writer, const char *name, enum tensor_type type,
                            uint32_t n_dims, const uint64_t *dims)
{
    struct gguf_writer *w = writer;
    struct tensor t;

    if (w->header_is_written || !fill_tensor(&t, name, type, n_dims, dims)) {
        if (!w->failure.code)
            error_set(&w->failure, ERROR_INVALID,
                      "tensor %s: its name, type or shape cannot be "
                      "written, or tensor data has begun",
                      name);
        return;
    }
    for (size_t i = 0; i < w->n_tensors; i++)
        if (strcmp(w->tensors[i].name, name) == 0 && !w->failure.code)
            error_set(&w->failure, ERROR_INVALID, "tensor %s: added twice", w->tensors[i].name);
    struct tensor *more = mem_realloc(w->tensors, w->n_tensors + 1, sizeof(*more));
    if (!more) {
        gguf_writer_fail(w, name);
        return;
    }
    w->tensors = more;
    w->tensors[w->n_tensors++] = t;
}

static int io_failed(const struct gguf_writer *w, struct error *err)
{
    return error_set(err, ERROR_IO, "%s: cannot write: %s", w->temporary, strerror(errno));
}

static size_t padding_of(size_t bytes)
{
    return -bytes & (GGUF_DEFAULT_ALIGNMENT - 1);
}

static void append_header(const struct gguf_writer *w, struct buf *out)
{
    uint64_t n_kv = 0, offset = 0;

    for (size_t i = 0; i < w->n_entries; i++)
        n_kv += w->entries[i].key != NULL;
    buf_append(out, "GGUF", 4);
    append_u32(out, 3);
    append_u64(out, w->n_tensors);
    append_u64(out, n_kv);
    for (size_t i = 0; i < w->n_entries; i++) {
        const struct entry *e = &w->entries[i];
        if (!e->key)
            continue;
        append_string(out, e->key, strlen(e->key));
        buf_append(out, e->value.data, e->value.len);
        out->failed |= e->value.failed;
    }
    for (size_t i = 0; i < w->n_tensors; i++) {
        const struct tensor *t = &w->tensors[i];
        append_string(out, t->name, strlen(t->name));
        append_u32(out, t->n_dims);
        buf_append(out, t->dims, t->n_dims * sizeof(t->dims[0]));
        append_u32(out, t->type);
        append_u64(out, offset);
        offset += t->bytes + padding_of(t->bytes);
    }
}

static int write_padding(struct gguf_writer *w, size_t bytes, struct error *err)
{
    static const char zeros[GGUF_DEFAULT_ALIGNMENT];
    size_t padding = padding_of(bytes);
    return fwrite(zeros, 1, padding, w->stream) == padding ? 0 : io_failed(w, err);
}

static int write_header(struct gguf_writer *w, struct error *err)
{
    _cleanup_buf_ struct buf header = {0};

    if (w->failure.code) {
        error_set(err, w->failure.code, "%s: %s", w->path, w->failure.message);
        return -(int)w->failure.code;
    }
    /* a file of another alignment was copied from: this one has its own */
    gguf_writer_remove(w, "general.alignment");
    append_header(w, &header);
    if (header.failed)
        return error_memory(err, "GGUF header", header.len);
    w->header_is_written = true;
    if (fwrite(header.data, 1, header.len, w->stream) != header.len)
        return io_failed(w, err);
    return write_padding(w, header.len, err);
}

int gguf_writer_write(struct gguf_writer *writer, const void *data, size_t bytes, struct error *err)
{
    struct gguf_writer *w = writer;
    const uint8_t *p = data;
    int rc = w->header_is_written ? 0 : write_header(w, err);

    while (rc == 0 && bytes) {
        if (w->i_tensor == w->n_tensors)
            return error_set(err, ERROR_INVALID, "%s: %zu bytes more than its tensors hold",
                             w->path, bytes);
        const struct tensor *t = &w->tensors[w->i_tensor];
        size_t part = t->bytes - w->written_bytes;
        part = part < bytes ? part : bytes;
        if (fwrite(p, 1, part, w->stream) != part)
            return io_failed(w, err);
        p += part;
        bytes -= part;
        w->written_bytes += part;
        if (w->written_bytes == t->bytes) {
            rc = write_padding(w, t->bytes, err);
            w->i_tensor++;
            w->written_bytes = 0;
        }
    }
    return rc;
}

/* The rename must not come to disk before the data. */
static int publish(struct gguf_writer *w, struct error *err)
{
    if (fflush(w->stream) || fsync(fileno(w->stream)))
        return io_failed(w, err);
    int closed = fclose(w->stream);
    w->stream = NULL;
    if (closed)
        return io_failed(w, err);
    if (rename(w->temporary, w->path))
        return error_set(err, ERROR_IO, "%s: cannot rename %s to it: %s", w->path, w->temporary,
                         strerror(errno));
    mem_free(w->temporary); /* there is nothing left to unlink */
    w->temporary = NULL;
    return 0;
}

int gguf_writer_finish(struct gguf_writer *writer, struct error *err)
{
    struct gguf_writer *w = writer;
    int rc = w->header_is_written ? 0 : write_header(w, err);

    if (rc == 0 && w->i_tensor < w->n_tensors)
        rc = error_set(err, ERROR_INVALID, "%s: tensor %s: %zu bytes expected, %zu written",
                       w->path, w->tensors[w->i_tensor].name, w->tensors[w->i_tensor].bytes,
                       w->written_bytes);
    if (rc == 0)
        rc = publish(w, err);
    gguf_writer_abort(w);
    return rc;
}

void gguf_writer_abort(struct gguf_writer *writer)
{
    if (!writer)
        return;
    if (writer->stream) {
        fclose(writer->stream);
        unlink(writer->temporary);
    } else if (writer->temporary) {
        unlink(writer->temporary);
    }
    for (size_t i = 0; i < writer->n_entries; i++) {
        mem_free(writer->entries[i].key);
        buf_free(&writer->entries[i].value);
    }
    mem_free(writer->entries);
    mem_free(writer->tensors);
    mem_free(writer->temporary);
    mem_free(writer->path);
    mem_free(writer);
}
