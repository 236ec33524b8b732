/* Typed look-ups in the metadata of a GGUF file. See gguf.h. */
#include "engine/base/mem.h"
#include "engine/model/gguf.h"

#include <inttypes.h>
#include <string.h>

bool gguf_kv_integer(const struct gguf_kv *kv, uint64_t i, int64_t *ret)
{
    size_t size = gguf_type_bytes(kv->type);
    uint64_t raw = 0;

    if (i >= kv->n || size == 0 || kv->type == GGUF_F32 || kv->type == GGUF_F64)
        return false;
    memcpy(&raw, kv->data + i * size, size); /* little-endian: the low bytes */
    if (kv->type == GGUF_U64 && raw > INT64_MAX)
        return false;
    if (kv->type == GGUF_I8)
        raw = (uint64_t)(int8_t)raw;
    else if (kv->type == GGUF_I16)
        raw = (uint64_t)(int16_t)raw;
    else if (kv->type == GGUF_I32)
        raw = (uint64_t)(int32_t)raw;
    *ret = (int64_t)raw;
    return true;
}

bool gguf_kv_float(const struct gguf_kv *kv, uint64_t i, double *ret)
{
    float f;

    if (i >= kv->n)
        return false;
    if (kv->type == GGUF_F64) {
        memcpy(ret, kv->data + i * sizeof(*ret), sizeof(*ret));
        return true;
    }
    if (kv->type != GGUF_F32)
        return false;
    memcpy(&f, kv->data + i * sizeof(f), sizeof(f));
    *ret = (double)f;
    return true;
}

int gguf_kv_strings(const struct gguf_kv *kv, struct vocab_string **ret, struct error *err)
{
    const uint8_t *p = kv->data;

    if (kv->type != GGUF_STRING)
        return error_set(err, ERROR_FORMAT, "key %.*s: strings expected, found %s",
                         (int)(kv->key.len < 80 ? kv->key.len : 80), kv->key.data,
                         gguf_type_name(kv->type));
    struct vocab_string *strings = mem_calloc((size_t)kv->n + 1, sizeof(*strings));
    if (!strings)
        return error_memory(err, "strings", kv->n * sizeof(*strings));
    for (uint64_t i = 0; i < kv->n; i++) {
        uint64_t len; /* fits 32 bits and the file: the reader has seen it */
        memcpy(&len, p, sizeof(len));
        strings[i] = (struct vocab_string){(const char *)p + sizeof(len), (uint32_t)len};
        p += sizeof(len) + len;
    }
    *ret = strings;
    return 0;
}

static int wrong_type(const struct gguf_kv *kv, const char *key, const char *expected,
                      struct error *err)
{
    return error_set(err, ERROR_FORMAT, "key %s: %s expected, found %s%s", key, expected,
                     kv->is_array ? "an array of " : "", gguf_type_name(kv->type));
}

/* *ret_kv NULL with 0: the key is missing and need not be there. */
static int find_scalar(const struct gguf_file *file, const char *key, enum gguf_need need,
                       const char *expected, const struct gguf_kv **ret_kv, struct error *err)
{
    *ret_kv = gguf_find(file, key);
    if (!*ret_kv && need == GGUF_REQUIRED)
        return error_set(err, ERROR_FORMAT, "key %s: missing, %s expected", key, expected);
    if (*ret_kv && (*ret_kv)->is_array)
        return wrong_type(*ret_kv, key, expected, err);
    return 0;
}

int gguf_get_u32(const struct gguf_file *file, const char *key, enum gguf_need need, uint32_t *ret,
                 struct error *err)
{
    static const char expected[] = "an unsigned 32-bit integer";
    const struct gguf_kv *kv;
    int64_t value;

    int rc = find_scalar(file, key, need, expected, &kv, err);
    if (rc || !kv)
        return rc;
    if (kv->type == GGUF_BOOL || !gguf_kv_integer(kv, 0, &value))
        return wrong_type(kv, key, expected, err);
    if (value < 0 || value > UINT32_MAX)
        return error_set(err, ERROR_FORMAT, "key %s: %s expected, found %" PRId64, key, expected,
                         value);
    *ret = (uint32_t)value;
    return 0;
}

int gguf_get_f32(const struct gguf_file *file, const char *key, enum gguf_need need, float *ret,
                 struct error *err)
{
    const struct gguf_kv *kv;
    double value;

    int rc = find_scalar(file, key, need, "a float", &kv, err);
    if (rc || !kv)
        return rc;
    if (!gguf_kv_float(kv, 0, &value))
        return wrong_type(kv, key, "a float", err);
    *ret = (float)value;
    return 0;
}

int gguf_get_bool(const struct gguf_file *file, const char *key, enum gguf_need need, bool *ret,
                  struct error *err)
{
    const struct gguf_kv *kv;

    int rc = find_scalar(file, key, need, "a bool", &kv, err);
    if (rc || !kv)
        return rc;
    if (kv->type != GGUF_BOOL)
        return wrong_type(kv, key, "a bool", err);
    *ret = kv->data[0] != 0;
    return 0;
}

int gguf_get_string(const struct gguf_file *file, const char *key, enum gguf_need need,
                    struct vocab_string *ret, struct error *err)
{
    const struct gguf_kv *kv;
    uint64_t len;

    int rc = find_scalar(file, key, need, "a string", &kv, err);
    if (rc || !kv)
        return rc;
    if (kv->type != GGUF_STRING)
        return wrong_type(kv, key, "a string", err);
    memcpy(&len, kv->data, sizeof(len));
    *ret = (struct vocab_string){(const char *)kv->data + sizeof(len), (uint32_t)len};
    return 0;
}
