/* The safetensors reader. See safetensors.h. */
#include "engine/model/safetensors.h"

#include "engine/base/mem.h"
#include "engine/model/json_file.h"
#include "engine/model/mapped_file.h"

#include <inttypes.h>
#include <string.h>

/* Headers of today's largest models take a few hundred KB a file. JSON in memory is some 30 times
 * its text, so this also bounds what a hostile file can make us allocate. */
#define MAX_HEADER_BYTES ((uint64_t)16 << 20)

struct safetensors {
    struct mapped_file map;
    cJSON *header; /* owns the names */
    const uint8_t *data;
    size_t data_bytes;
    struct safetensor *tensors;
    size_t n;
};

static int type_of(const char *dtype)
{
    static const enum tensor_type types[] = {TENSOR_F32, TENSOR_F16, TENSOR_BF16};
    for (size_t i = 0; i < sizeof(types) / sizeof(types[0]); i++)
        if (strcmp(dtype, tensor_type_name(types[i])) == 0)
            return (int)types[i];
    return -1;
}

static int read_shape(const cJSON *entry, struct safetensor *t, uint64_t *ret_elements,
                      struct error *err)
{
    const cJSON *shape = json_array(entry, "shape");
    int n = cJSON_GetArraySize(shape);
    uint64_t elements = 1;

    if (!shape || n > TENSOR_MAX_DIMS)
        return error_set(err, ERROR_FORMAT, "shape: an array of up to %d numbers expected",
                         TENSOR_MAX_DIMS);
    t->n_dims = (uint32_t)n;
    for (int d = 0; d < TENSOR_MAX_DIMS; d++)
        t->dims[d] = 1;
    for (const cJSON *item = shape->child; item; item = item->next) {
        uint64_t dim;
        if (!json_whole(item, &dim) || dim == 0 || __builtin_mul_overflow(elements, dim, &elements))
            return error_set(err, ERROR_FORMAT,
                             "shape: positive numbers with a product below 2^64 expected");
        t->dims[--n] = dim;
    }
    *ret_elements = elements;
    return 0;
}

static int read_tensor(const struct safetensors *file, const cJSON *entry, struct safetensor *t,
                       struct error *err)
{
    const cJSON *offsets = json_array(entry, "data_offsets");
    uint64_t elements = 0, begin, end;

    t->name = entry->string;
    t->dtype = json_text(entry, "dtype");
    t->type = type_of(t->dtype);
    if (!offsets || cJSON_GetArraySize(offsets) != 2 || !json_whole(offsets->child, &begin) ||
        !json_whole(offsets->child->next, &end) || begin > end || end > file->data_bytes)
        return error_set(err, ERROR_FORMAT,
                         "data_offsets: [begin, end] within the %zu bytes of data expected",
                         file->data_bytes);
    if (t->type < 0)
        return 0;
    int rc = read_shape(entry, t, &elements, err);
    if (rc)
        return rc;
    if (!tensor_type_bytes((enum tensor_type)t->type, elements, &t->bytes) ||
        t->bytes != end - begin)
        return error_set(err, ERROR_FORMAT,
                         "%" PRIu64 " elements of type %s expected, found %" PRIu64 " bytes",
                         elements, t->dtype, end - begin);
    t->data = file->data + begin;
    return 0;
}

static int read_header(struct safetensors *file, struct error *err)
{
    uint64_t header_bytes;
    const struct mapped_file *map = &file->map;

    if (map->bytes < sizeof(header_bytes))
        return error_set(err, ERROR_FORMAT, "no safetensors file: 8 bytes expected at least");
    memcpy(&header_bytes, map->data, sizeof(header_bytes));
    size_t left = map->bytes - sizeof(header_bytes);
    if (header_bytes > left || header_bytes > MAX_HEADER_BYTES)
        return error_set(err, ERROR_FORMAT,
                         "a header of %" PRIu64 " bytes claimed, up to %" PRIu64 " expected",
                         header_bytes, left < MAX_HEADER_BYTES ? left : MAX_HEADER_BYTES);
    file->data = map->data + sizeof(header_bytes) + header_bytes;
    file->data_bytes = left - (size_t)header_bytes;
    int rc = json_parse(map->data + sizeof(header_bytes), (size_t)header_bytes, &file->header, err);
    return rc ? error_prefix(err, "header") : 0;
}

static int read_file(struct safetensors *file, struct error *err)
{
    int rc = read_header(file, err);
    if (rc)
        return rc;
    if (!cJSON_IsObject(file->header))
        return error_set(err, ERROR_FORMAT, "header: a JSON object expected");
    int n = cJSON_GetArraySize(file->header);
    file->tensors = mem_calloc((size_t)n + 1, sizeof(*file->tensors));
    if (!file->tensors)
        return error_memory(err, "tensor table", (size_t)n * sizeof(*file->tensors));
    for (const cJSON *entry = file->header->child; entry; entry = entry->next) {
        if (strcmp(entry->string, "__metadata__") == 0)
            continue;
        if (read_tensor(file, entry, &file->tensors[file->n], err))
            return error_prefix(err, "tensor %.80s", entry->string);
        file->n++;
    }
    return 0;
}

int safetensors_open(const char *path, struct safetensors **ret_file, struct error *err)
{
    struct safetensors *file = mem_calloc(1, sizeof(*file));
    if (!file)
        return error_memory(err, "safetensors file", sizeof(*file));
    int rc = mapped_file_open(path, &file->map, err);
    if (rc == 0)
        rc = read_file(file, err);
    if (rc) {
        error_prefix(err, "%s", path);
        safetensors_close(file);
        return rc;
    }
    *ret_file = file;
    return 0;
}

void safetensors_close(struct safetensors *file)
{
    if (!file)
        return;
    cJSON_Delete(file->header);
    mem_free(file->tensors);
    mapped_file_close(&file->map);
    mem_free(file);
}

int64_t safetensors_modified_ns(const struct safetensors *file)
{
    return file->map.modified_ns;
}

size_t safetensors_bytes(const struct safetensors *file)
{
    return file->map.bytes;
}

size_t safetensors_n(const struct safetensors *file)
{
    return file->n;
}

const struct safetensor *safetensors_at(const struct safetensors *file, size_t i)
{
    return &file->tensors[i];
}
