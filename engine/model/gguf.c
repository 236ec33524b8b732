/* The GGUF reader: one pass over the header with a cursor that cannot leave the file, then sorted
 * indexes for look-ups and for finding duplicates. See gguf.h. */
#include "engine/model/gguf.h"

#include "engine/base/mem.h"
#include "engine/model/mapped_file.h"

#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

/* The smallest entries there can be: how many the header may claim for the bytes that are there. */
#define MIN_KV_BYTES 13     /* key length, empty key, type, one byte */
#define MIN_TENSOR_BYTES 32 /* name length, empty name, n_dims, one dim, type, offset */

#define MAX_ALIGNMENT (1u << 20)

struct gguf_file {
    struct mapped_file map; /* data NULL for gguf_open_memory */
    const uint8_t *data;
    size_t bytes;
    uint32_t version;
    uint32_t alignment;
    size_t n_kv, n_tensors;
    struct gguf_kv *kv;
    struct tensor *tensors;
    const struct gguf_kv **kv_by_key;        /* sorted */
    const struct tensor **tensors_by_name;   /* sorted */
    const struct tensor **tensors_by_offset; /* sorted; only while opening */
};

struct cursor {
    const uint8_t *data;
    size_t bytes;
    size_t at;
};

static const struct {
    const char *name;
    size_t bytes;
} value_types[GGUF_N_TYPES] = {
    [GGUF_U8] = {"u8", 1},       [GGUF_I8] = {"i8", 1},     [GGUF_U16] = {"u16", 2},
    [GGUF_I16] = {"i16", 2},     [GGUF_U32] = {"u32", 4},   [GGUF_I32] = {"i32", 4},
    [GGUF_F32] = {"f32", 4},     [GGUF_BOOL] = {"bool", 1}, [GGUF_STRING] = {"string", 0},
    [GGUF_ARRAY] = {"array", 0}, [GGUF_U64] = {"u64", 8},   [GGUF_I64] = {"i64", 8},
    [GGUF_F64] = {"f64", 8},
};

const char *gguf_type_name(enum gguf_type type)
{
    return (unsigned)type < GGUF_N_TYPES ? value_types[type].name : "unknown";
}

size_t gguf_type_bytes(enum gguf_type type)
{
    return (unsigned)type < GGUF_N_TYPES ? value_types[type].bytes : 0;
}

/* A key or name from the file as it may stand in a message: printable ASCII, cut if long. */
struct shown {
    char text[80];
};

static struct shown show(struct vocab_string s)
{
    struct shown shown;
    size_t n = s.len < sizeof(shown.text) - 4 ? s.len : sizeof(shown.text) - 4;
    for (size_t i = 0; i < n; i++)
        shown.text[i] = s.data[i] >= ' ' && s.data[i] <= '~' ? s.data[i] : '?';
    snprintf(shown.text + n, sizeof(shown.text) - n, "%s", n < s.len ? "..." : "");
    return shown;
}

/* NULL when fewer than `bytes` are left. */
static const uint8_t *take(struct cursor *c, size_t bytes)
{
    if (bytes > c->bytes - c->at)
        return NULL;
    const uint8_t *p = c->data + c->at;
    c->at += bytes;
    return p;
}

static bool take_u32(struct cursor *c, uint32_t *ret)
{
    const uint8_t *p = take(c, sizeof(*ret));
    if (p)
        memcpy(ret, p, sizeof(*ret));
    return p != NULL;
}

static bool take_u64(struct cursor *c, uint64_t *ret)
{
    const uint8_t *p = take(c, sizeof(*ret));
    if (p)
        memcpy(ret, p, sizeof(*ret));
    return p != NULL;
}

static bool take_string(struct cursor *c, struct vocab_string *ret)
{
    uint64_t len;
    if (!take_u64(c, &len) || len > UINT32_MAX || len > SIZE_MAX)
        return false;
    const uint8_t *p = take(c, (size_t)len);
    if (p)
        *ret = (struct vocab_string){(const char *)p, (uint32_t)len};
    return p != NULL;
}

static int cut_off(const struct cursor *c, struct error *err, const char *what)
{
    return error_set(err, ERROR_FORMAT, "%s at byte %zu runs past the end of the file (%zu bytes)",
                     what, c->at, c->bytes);
}

/* The n items of a value; the cursor stands behind them afterwards. */
static int read_items(struct cursor *c, struct gguf_kv *kv, struct error *err)
{
    size_t size = value_types[kv->type].bytes, bytes, start = c->at;

    kv->data = c->data + c->at;
    if (kv->type == GGUF_STRING) {
        struct vocab_string s;
        /* each takes 8 bytes of the file at least, so this loop ends with the file */
        for (uint64_t i = 0; i < kv->n; i++)
            if (!take_string(c, &s))
                return cut_off(c, err, "a string");
    } else if (kv->n > SIZE_MAX || !mem_mul((size_t)kv->n, size, &bytes) || !take(c, bytes)) {
        return error_set(err, ERROR_FORMAT,
                         "%" PRIu64 " items of type %s at byte %zu run past the end of the file "
                         "(%zu bytes)",
                         kv->n, value_types[kv->type].name, c->at, c->bytes);
    }
    kv->bytes = c->at - start;
    for (size_t i = 0; kv->type == GGUF_BOOL && i < kv->bytes; i++)
        if (kv->data[i] > 1)
            return error_set(err, ERROR_FORMAT, "a bool must be 0 or 1, found %u", kv->data[i]);
    return 0;
}

static int read_value(struct cursor *c, struct gguf_kv *kv, struct error *err)
{
    uint32_t type;
    uint64_t n = 1;

    if (!take_u32(c, &type))
        return cut_off(c, err, "its type");
    kv->is_array = type == GGUF_ARRAY;
    if (kv->is_array && (!take_u32(c, &type) || !take_u64(c, &n)))
        return cut_off(c, err, "its array header");
    if (type >= GGUF_N_TYPES)
        return error_set(err, ERROR_FORMAT, "value type 0..%d expected, found %" PRIu32,
                         GGUF_N_TYPES - 1, type);
    if (type == GGUF_ARRAY)
        return error_set(err, ERROR_UNSUPPORTED, "arrays of arrays are not supported");
    kv->type = type;
    kv->n = n;
    return read_items(c, kv, err);
}

static int compare_strings(struct vocab_string a, struct vocab_string b)
{
    size_t least = a.len < b.len ? a.len : b.len;
    int order = least ? memcmp(a.data, b.data, least) : 0;
    return order ? order : (a.len > b.len) - (a.len < b.len);
}

static int compare_kv(const void *a, const void *b)
{
    return compare_strings((*(const struct gguf_kv *const *)a)->key,
                           (*(const struct gguf_kv *const *)b)->key);
}

static int compare_offsets(const void *a, const void *b)
{
    const uint8_t *x = (*(const struct tensor *const *)a)->data;
    const uint8_t *y = (*(const struct tensor *const *)b)->data;
    return (x > y) - (x < y);
}

static int read_metadata(struct gguf_file *file, struct cursor *c, struct error *err)
{
    file->kv = mem_calloc(file->n_kv + 1, sizeof(*file->kv));
    file->kv_by_key = mem_calloc(file->n_kv + 1, sizeof(void *));
    if (!file->kv || !file->kv_by_key)
        return error_memory(err, "metadata table", file->n_kv * sizeof(*file->kv));

    for (size_t i = 0; i < file->n_kv; i++) {
        struct gguf_kv *kv = &file->kv[i];
        if (!take_string(c, &kv->key)) {
            cut_off(c, err, "the key");
            return error_prefix(err, "metadata entry %zu of %zu", i + 1, file->n_kv);
        }
        int rc = read_value(c, kv, err);
        if (rc) {
            error_prefix(err, "key %s", show(kv->key).text);
            return rc;
        }
        file->kv_by_key[i] = kv;
    }
    qsort(file->kv_by_key, file->n_kv, sizeof(void *), compare_kv);
    for (size_t i = 1; i < file->n_kv; i++)
        if (compare_kv(&file->kv_by_key[i - 1], &file->kv_by_key[i]) == 0)
            return error_set(err, ERROR_FORMAT, "key %s: stands in the file twice",
                             show(file->kv_by_key[i]->key).text);
    return 0;
}

static int read_alignment(struct gguf_file *file, struct error *err)
{
    int rc = gguf_get_u32(file, "general.alignment", GGUF_OPTIONAL, &file->alignment, err);
    if (rc)
        return rc;
    uint32_t a = file->alignment;
    if (a == 0 || a > MAX_ALIGNMENT || (a & (a - 1)))
        return error_set(err, ERROR_FORMAT,
                         "key general.alignment: a power of two up to %u expected, found %" PRIu32,
                         MAX_ALIGNMENT, a);
    return 0;
}

static int read_name(struct cursor *c, struct tensor *t, struct error *err)
{
    struct vocab_string name;
    if (!take_string(c, &name))
        return cut_off(c, err, "the name");
    if (name.len == 0 || name.len >= sizeof(t->name) || memchr(name.data, 0, name.len))
        return error_set(err, ERROR_FORMAT,
                         "name %s: 1 to %zu bytes without a NUL expected, found %" PRIu32 " bytes",
                         show(name).text, sizeof(t->name) - 1, name.len);
    memcpy(t->name, name.data, name.len);
    t->name[name.len] = '\0';
    return 0;
}

/* Name, dimensions and type are known: how many bytes is that? */
static int measure_tensor(struct tensor *t, struct error *err)
{
    uint64_t n = 1;
    for (uint32_t d = 0; d < t->n_dims; d++) {
        if (t->dims[d] == 0)
            return error_set(err, ERROR_FORMAT, "dimension %" PRIu32 " is 0", d);
        if (__builtin_mul_overflow(n, t->dims[d], &n))
            return error_set(err, ERROR_FORMAT, "its dimensions overflow 64 bits");
    }
    uint32_t block = tensor_block_elements(t->type);
    if (t->dims[0] % block)
        return error_set(err, ERROR_FORMAT,
                         "type %s needs rows of a multiple of %" PRIu32 ", found %" PRIu64,
                         tensor_type_name(t->type), block, t->dims[0]);
    if (!tensor_type_bytes(t->type, n, &t->bytes))
        return error_set(err, ERROR_FORMAT, "its size overflows");
    return 0;
}

/* One entry of the tensor table. Its data's place is known once the whole table has been read. */
static int read_tensor_info(struct cursor *c, struct tensor *t, uint64_t *ret_offset,
                            struct error *err)
{
    uint32_t type;

    if (!take_u32(c, &t->n_dims))
        return cut_off(c, err, "its dimension count");
    if (t->n_dims < 1 || t->n_dims > TENSOR_MAX_DIMS)
        return error_set(err, ERROR_FORMAT, "1 to %d dimensions expected, found %" PRIu32,
                         TENSOR_MAX_DIMS, t->n_dims);
    for (uint32_t d = 0; d < TENSOR_MAX_DIMS; d++) {
        t->dims[d] = 1;
        if (d < t->n_dims && !take_u64(c, &t->dims[d]))
            return cut_off(c, err, "its dimensions");
    }
    if (!take_u32(c, &type) || !take_u64(c, ret_offset))
        return cut_off(c, err, "its type and offset");
    if (!tensor_type_is_known(type))
        return error_set(err, ERROR_UNSUPPORTED, "element type %s (%" PRIu32 ") is not supported",
                         tensor_type_name(type), type);
    t->type = type;
    return measure_tensor(t, err);
}

static int place_tensor(struct gguf_file *file, struct tensor *t, size_t data_start,
                        uint64_t offset, struct error *err)
{
    size_t room = file->bytes - data_start;
    if (offset % file->alignment)
        return error_set(err, ERROR_FORMAT,
                         "offset %" PRIu64 " is not a multiple of the alignment %" PRIu32, offset,
                         file->alignment);
    if (offset > room || t->bytes > room - (size_t)offset)
        return error_set(err, ERROR_FORMAT,
                         "%zu bytes at offset %" PRIu64
                         " expected, but the file holds %zu bytes of tensor data",
                         t->bytes, offset, room);
    t->data = file->data + data_start + (size_t)offset;
    return 0;
}

static int check_overlap(const struct gguf_file *file, struct error *err)
{
    qsort(file->tensors_by_offset, file->n_tensors, sizeof(void *), compare_offsets);
    for (size_t i = 1; i < file->n_tensors; i++) {
        const struct tensor *a = file->tensors_by_offset[i - 1], *b = file->tensors_by_offset[i];
        if ((const uint8_t *)a->data + a->bytes > (const uint8_t *)b->data)
            return error_set(err, ERROR_FORMAT, "tensor %s: its data overlaps that of tensor %s",
                             b->name, a->name);
    }
    return 0;
}

static int index_tensors(struct gguf_file *file, struct error *err)
{
    for (size_t i = 0; i < file->n_tensors; i++)
        file->tensors_by_name[i] = file->tensors_by_offset[i] = &file->tensors[i];
    qsort(file->tensors_by_name, file->n_tensors, sizeof(void *), tensor_compare_names);
    for (size_t i = 1; i < file->n_tensors; i++)
        if (strcmp(file->tensors_by_name[i - 1]->name, file->tensors_by_name[i]->name) == 0)
            return error_set(err, ERROR_FORMAT, "tensor %s: stands in the file twice",
                             file->tensors_by_name[i]->name);
    return check_overlap(file, err);
}

static int read_tensors(struct gguf_file *file, struct cursor *c, struct error *err)
{
    _cleanup_mem_ uint64_t *offsets = mem_calloc(file->n_tensors + 1, sizeof(*offsets));
    file->tensors = mem_calloc(file->n_tensors + 1, sizeof(*file->tensors));
    file->tensors_by_name = mem_calloc(file->n_tensors + 1, sizeof(void *));
    file->tensors_by_offset = mem_calloc(file->n_tensors + 1, sizeof(void *));
    if (!offsets || !file->tensors || !file->tensors_by_name || !file->tensors_by_offset)
        return error_memory(err, "tensor table", file->n_tensors * sizeof(*file->tensors));

    for (size_t i = 0; i < file->n_tensors; i++) {
        struct tensor *t = &file->tensors[i];
        if (read_name(c, t, err))
            return error_prefix(err, "tensor %zu of %zu", i + 1, file->n_tensors);
        if (read_tensor_info(c, t, &offsets[i], err))
            return error_prefix(
                err, "tensor %s",
                show((struct vocab_string){t->name, (uint32_t)strlen(t->name)}).text);
    }
    /* A file without tensors may end with its header, unpadded. */
    size_t padding = -c->at & (file->alignment - 1);
    if (file->n_tensors && !take(c, padding))
        return cut_off(c, err, "the tensor data");
    for (size_t i = 0; i < file->n_tensors; i++)
        if (place_tensor(file, &file->tensors[i], c->at, offsets[i], err))
            return error_prefix(err, "tensor %s", file->tensors[i].name);
    return index_tensors(file, err);
}

static int read_header(struct gguf_file *file, struct cursor *c, struct error *err)
{
    uint64_t n_tensors, n_kv;
    const uint8_t *magic = take(c, 4);

    if (!magic || memcmp(magic, "GGUF", 4) != 0)
        return error_set(err, ERROR_FORMAT, "not a GGUF file (its first bytes are not \"GGUF\")");
    if (!take_u32(c, &file->version))
        return cut_off(c, err, "the version");
    if (file->version != 2 && file->version != 3)
        return error_set(err, ERROR_UNSUPPORTED,
                         "GGUF version 2 or 3 expected, found %" PRIu32 "%s", file->version,
                         file->version && file->version % 0x10000 == 0 ? " (big-endian)" : "");
    if (!take_u64(c, &n_tensors) || !take_u64(c, &n_kv))
        return cut_off(c, err, "the header");
    size_t left = c->bytes - c->at;
    if (n_kv > left / MIN_KV_BYTES)
        return error_set(err, ERROR_FORMAT,
                         "%" PRIu64 " metadata entries claimed, %zu bytes cannot hold them", n_kv,
                         left);
    if (n_tensors > left / MIN_TENSOR_BYTES)
        return error_set(err, ERROR_FORMAT,
                         "%" PRIu64 " tensors claimed, %zu bytes cannot hold them", n_tensors,
                         left);
    file->n_kv = (size_t)n_kv;
    file->n_tensors = (size_t)n_tensors;
    return 0;
}

static int read_file(struct gguf_file *file, struct error *err)
{
    struct cursor c = {file->data, file->bytes, 0};
    int rc = read_header(file, &c, err);
    if (rc == 0)
        rc = read_metadata(file, &c, err);
    if (rc == 0)
        rc = read_alignment(file, err);
    if (rc == 0)
        rc = read_tensors(file, &c, err);
    mem_free(file->tensors_by_offset);
    file->tensors_by_offset = NULL;
    return rc;
}

int gguf_open_memory(const void *data, size_t bytes, struct gguf_file **ret_file, struct error *err)
{
    struct gguf_file *file = mem_calloc(1, sizeof(*file));
    if (!file)
        return error_memory(err, "GGUF file", sizeof(*file));
    file->data = data;
    file->bytes = bytes;
    file->alignment = GGUF_DEFAULT_ALIGNMENT;
    int rc = read_file(file, err);
    if (rc) {
        gguf_close(file);
        return rc;
    }
    *ret_file = file;
    return 0;
}

int gguf_open(const char *path, struct gguf_file **ret_file, struct error *err)
{
    struct mapped_file map;
    int rc = mapped_file_open(path, &map, err);
    if (rc == 0) {
        rc = gguf_open_memory(map.data, map.bytes, ret_file, err);
        if (rc)
            mapped_file_close(&map);
        else
            (*ret_file)->map = map;
    }
    if (rc)
        error_prefix(err, "%s", path);
    return rc;
}

void gguf_close(struct gguf_file *file)
{
    if (!file)
        return;
    mem_free(file->kv);
    mem_free(file->tensors);
    mem_free(file->kv_by_key);
    mem_free(file->tensors_by_name);
    mem_free(file->tensors_by_offset);
    mapped_file_close(&file->map);
    mem_free(file);
}

int64_t gguf_modified_ns(const struct gguf_file *file)
{
    return file->map.modified_ns;
}

size_t gguf_bytes(const struct gguf_file *file)
{
    return file->bytes;
}

uint32_t gguf_version(const struct gguf_file *file)
{
    return file->version;
}

uint32_t gguf_alignment(const struct gguf_file *file)
{
    return file->alignment;
}

size_t gguf_n_kv(const struct gguf_file *file)
{
    return file->n_kv;
}

const struct gguf_kv *gguf_kv_at(const struct gguf_file *file, size_t i)
{
    return &file->kv[i];
}

const struct gguf_kv *gguf_find(const struct gguf_file *file, const char *key)
{
    struct gguf_kv wanted = {.key = {key, (uint32_t)strlen(key)}};
    const struct gguf_kv *p = &wanted, **found;
    found = bsearch(&p, file->kv_by_key, file->n_kv, sizeof(void *), compare_kv);
    return found ? *found : NULL;
}

size_t gguf_n_tensors(const struct gguf_file *file)
{
    return file->n_tensors;
}

const struct tensor *gguf_tensor_at(const struct gguf_file *file, size_t i)
{
    return &file->tensors[i];
}

const struct tensor *gguf_tensor(const struct gguf_file *file, const char *name)
{
    return tensor_find(file->tensors_by_name, file->n_tensors, name);
}
