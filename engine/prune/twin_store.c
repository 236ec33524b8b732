/* The file: a header, then records of a struct entry and the tensor's bytes. A record whose bytes
 * are cut off or do not match their hash ends the file. See twin_store.h. */
#include "engine/prune/twin_store.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/prune/round_matrix.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

struct header {
    char magic[16];
    uint64_t recipe;
};
#define MAGIC "overfill twin 1"

struct entry {
    struct tensor tensor; /* data is NULL */
    uint64_t hash;        /* of the bytes */
};

struct twin_store {
    char *path;
    int fd;
    struct entry *entries;
    off_t *at; /* where the bytes of each begin */
    size_t n, cap;
    off_t end;
    struct {
        struct entry entry;
        struct rounder *rounder;
        uint8_t *data;
        size_t done; /* bytes */
    } coming;        /* between twin_store_begin and twin_store_end */
};

static int io_error(const struct twin_store *s, const char *what, struct error *err)
{
    return error_set(err, ERROR_IO, "%s: %s: %s", s->path, what, strerror(errno));
}

static bool read_all(int fd, void *data, size_t n, off_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t got = pread(fd, (char *)data + done, n - done, at + (off_t)done);
        if (got < 0 && errno == EINTR)
            continue;
        if (got <= 0)
            return false;
        done += (size_t)got;
    }
    return true;
}

static bool write_all(int fd, const void *data, size_t n, off_t at)
{
    for (size_t done = 0; done < n;) {
        ssize_t put = pwrite(fd, (const char *)data + done, n - done, at + (off_t)done);
        if (put < 0 && errno == EINTR)
            continue;
        if (put <= 0)
            return false;
        done += (size_t)put;
    }
    return true;
}

static int add_entry(struct twin_store *s, const struct entry *entry, struct error *err)
{
    if (s->n == s->cap) {
        size_t cap = s->cap ? 2 * s->cap : 64;
        struct entry *entries = mem_realloc(s->entries, cap, sizeof(*entries));
        if (entries)
            s->entries = entries;
        off_t *at = entries ? mem_realloc(s->at, cap, sizeof(*at)) : NULL;
        if (!at)
            return error_memory(err, "twin's table", cap * sizeof(*entries));
        s->at = at;
        s->cap = cap;
    }
    s->entries[s->n] = *entry;
    s->at[s->n++] = s->end + (off_t)sizeof(*entry);
    s->end += (off_t)(sizeof(*entry) + entry->tensor.bytes);
    return 0;
}

/* True if the record at s->end is whole. */
static bool check_record(const struct twin_store *s, off_t size, struct entry *ret_entry)
{
    if (!read_all(s->fd, ret_entry, sizeof(*ret_entry), s->end))
        return false;
    size_t bytes = ret_entry->tensor.bytes;
    if ((uint64_t)bytes > (uint64_t)(size - s->end) - sizeof(*ret_entry))
        return false;
    _cleanup_mem_ void *data = mem_alloc(bytes);
    return data && read_all(s->fd, data, bytes, s->end + (off_t)sizeof(*ret_entry)) &&
           hash_bytes(HASH_START, data, bytes) == ret_entry->hash;
}

static int load(struct twin_store *s, uint64_t recipe, struct error *err)
{
    struct header header = {.magic = MAGIC, .recipe = recipe};
    struct header found;
    struct entry entry;
    struct stat st;
    if (fstat(s->fd, &st))
        return io_error(s, "stat", err);
    s->end = sizeof(header);
    if (!read_all(s->fd, &found, sizeof(found), 0) ||
        memcmp(&found, &header, sizeof(header)) != 0) {
        if (ftruncate(s->fd, 0) || !write_all(s->fd, &header, sizeof(header), 0))
            return io_error(s, "write", err);
        return 0;
    }
    while (s->end < st.st_size && check_record(s, st.st_size, &entry)) {
        int rc = add_entry(s, &entry, err);
        if (rc)
            return rc;
    }
    return ftruncate(s->fd, s->end) ? io_error(s, "truncate", err) : 0;
}

int twin_store_open(const char *path, uint64_t recipe, struct twin_store **ret_store,
                    struct error *err)
{
    struct twin_store *s = mem_calloc(1, sizeof(*s));
    if (!s || !(s->path = mem_strdup(path))) {
        mem_free(s);
        return error_memory(err, "twin's table", sizeof(*s));
    }
    s->fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0666);
    int rc = s->fd < 0 ? io_error(s, "open", err) : load(s, recipe, err);
    if (rc) {
        twin_store_close(s);
        return rc;
    }
    *ret_store = s;
    return 0;
}

void twin_store_close(struct twin_store *s)
{
    if (!s)
        return;
    if (s->fd >= 0)
        close(s->fd);
    mem_free(s->entries);
    mem_free(s->at);
    mem_free(s->path);
    mem_free(s);
}

void twin_store_remove(struct twin_store *s)
{
    if (s)
        unlink(s->path);
    twin_store_close(s);
}

static size_t find(const struct twin_store *s, const char *name)
{
    size_t i = 0;
    while (i < s->n && strcmp(s->entries[i].tensor.name, name) != 0)
        i++;
    return i;
}

bool twin_store_has(const struct twin_store *s, const char *name)
{
    return find(s, name) < s->n;
}

static int append(struct twin_store *s, struct entry *entry, const void *data, struct error *err)
{
    size_t bytes = entry->tensor.bytes;
    entry->hash = hash_bytes(HASH_START, data, bytes);
    if (!write_all(s->fd, entry, sizeof(*entry), s->end) ||
        !write_all(s->fd, data, bytes, s->end + (off_t)sizeof(*entry)))
        return io_error(s, "write", err);
    return add_entry(s, entry, err);
}

int twin_store_copy(struct twin_store *s, const struct tensor *tensor, struct error *err)
{
    struct entry entry = {.tensor = *tensor};
    entry.tensor.data = NULL;
    return twin_store_has(s, tensor->name) ? 0 : append(s, &entry, tensor->data, err);
}

int twin_store_begin(struct twin_store *s, const char *name, enum tensor_type type, size_t n_rows,
                     size_t n_columns, const double *gram, struct error *err)
{
    struct tensor *t = &s->coming.entry.tensor;
    size_t n = n_rows ? n_rows : 1;
    size_t row_bytes;
    type = tensor_type_for_rows(type, n_columns);
    *t = (struct tensor){.type = type, .n_dims = n_rows ? 2 : 1, .dims = {n_columns, n, 1, 1}};
    snprintf(t->name, sizeof(t->name), "%s", name);
    if (!tensor_type_bytes(type, n_columns, &row_bytes) || !mem_mul(row_bytes, n, &t->bytes))
        return error_set(err, ERROR_INVALID, "type %s: rows of %zu do not fit its blocks of %u",
                         tensor_type_name(type), n_columns, tensor_block_elements(type));
    s->coming.done = 0;
    s->coming.data = mem_alloc(t->bytes);
    if (!s->coming.data)
        return error_memory(err, name, t->bytes);
    int rc = rounder_open(type, n_columns, gram, &s->coming.rounder, err);
    return rc ? twin_store_end(s, rc, err) : 0;
}

int twin_store_add(struct twin_store *s, const float *rows, size_t n_rows, struct error *err)
{
    const struct tensor *t = &s->coming.entry.tensor;
    int rc = round_rows(s->coming.rounder, rows, n_rows, s->coming.data + s->coming.done, err);
    if (rc)
        return error_prefix(err, "%s", t->name);
    s->coming.done += t->bytes / t->dims[1] * n_rows;
    return 0;
}

int twin_store_end(struct twin_store *s, int rc, struct error *err)
{
    if (rc == 0)
        rc = append(s, &s->coming.entry, s->coming.data, err);
    mem_free(s->coming.data);
    rounder_close(s->coming.rounder);
    s->coming.data = NULL;
    s->coming.rounder = NULL;
    return rc;
}

int twin_store_put(struct twin_store *s, const char *name, enum tensor_type type,
                   const float *values, size_t n_rows, size_t n_columns, const double *gram,
                   struct error *err)
{
    if (twin_store_has(s, name))
        return 0;
    int rc = twin_store_begin(s, name, type, n_rows, n_columns, gram, err);
    if (rc)
        return rc;
    rc = twin_store_add(s, values, n_rows ? n_rows : 1, err);
    return twin_store_end(s, rc, err);
}

int twin_store_get(const struct twin_store *s, const char *name, struct tensor *ret_tensor,
                   struct error *err)
{
    size_t i = find(s, name);
    if (i == s->n)
        return error_set(err, ERROR_INTERNAL, "%s: the twin has no %s yet", s->path, name);
    struct tensor t = s->entries[i].tensor;
    void *data = mem_alloc(t.bytes);
    if (!data)
        return error_memory(err, name, t.bytes);
    if (!read_all(s->fd, data, t.bytes, s->at[i])) {
        mem_free(data);
        return io_error(s, "read", err);
    }
    t.data = data;
    *ret_tensor = t;
    return 0;
}

void tensor_release(struct tensor *tensor)
{
    mem_free((void *)(uintptr_t)tensor->data);
    tensor->data = NULL;
}

static bool is_internal(const struct entry *entry)
{
    return entry->tensor.name[0] == '.';
}

void twin_store_declare(const struct twin_store *s, struct gguf_writer *writer)
{
    for (size_t i = 0; i < s->n; i++) {
        const struct tensor *t = &s->entries[i].tensor;
        if (!is_internal(&s->entries[i]))
            gguf_writer_add_tensor(writer, t->name, t->type, t->n_dims, t->dims);
    }
}

int twin_store_write(const struct twin_store *s, struct gguf_writer *writer, struct error *err)
{
    for (size_t i = 0; i < s->n; i++) {
        struct tensor t;
        if (is_internal(&s->entries[i]))
            continue;
        int rc = twin_store_get(s, s->entries[i].tensor.name, &t, err);
        if (rc == 0)
            rc = gguf_writer_write(writer, t.data, t.bytes, err);
        tensor_release(&t);
        if (rc)
            return rc;
    }
    return 0;
}
