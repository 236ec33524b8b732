/* JSON files of a Hugging Face folder. See json_file.h. */
#include "engine/model/json_file.h"

#include "engine/base/buf.h"
#include "engine/model/mapped_file.h"

#include <math.h>
#include <string.h>
#include <unistd.h>

int json_parse(const void *text, size_t bytes, cJSON **ret_json, struct error *err)
{
    const char *end = text;
    cJSON *json = bytes ? cJSON_ParseWithLengthOpts(text, bytes, &end, 0) : NULL;

    if (!cJSON_IsObject(json) && !cJSON_IsArray(json)) {
        cJSON_Delete(json);
        return error_set(err, ERROR_FORMAT,
                         "no valid JSON: something is wrong near byte %zu of %zu",
                         (size_t)(end - (const char *)text), bytes);
    }
    *ret_json = json;
    return 0;
}

int json_file_read(const char *folder, const char *name, size_t max_bytes, cJSON **ret_json,
                   struct error *err)
{
    _cleanup_buf_ struct buf path = {0};
    struct mapped_file map;

    buf_printf(&path, "%s/%s", folder, name);
    if (path.failed)
        return error_memory(err, "path", strlen(folder));
    *ret_json = NULL;
    if (access(path.data, F_OK))
        return 0;
    int rc = mapped_file_open(path.data, &map, err);
    if (rc == 0) {
        rc = map.bytes > max_bytes
                 ? error_set(err, ERROR_FORMAT, "at most %zu bytes expected, found %zu", max_bytes,
                             map.bytes)
                 : json_parse(map.data, map.bytes, ret_json, err);
        mapped_file_close(&map);
    }
    if (rc)
        error_prefix(err, "%s", path.data);
    return rc;
}

static const cJSON *find(const cJSON *object, const char *key)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, key);
    return cJSON_IsNull(item) ? NULL : item;
}

bool json_whole(const cJSON *item, uint64_t *ret)
{
    if (!cJSON_IsNumber(item))
        return false;
    double value = item->valuedouble;
    if (!(value >= 0 && value <= 0x1p53) || value != floor(value))
        return false;
    *ret = (uint64_t)value;
    return true;
}

int json_get_u32(const cJSON *object, const char *key, uint32_t *ret, struct error *err)
{
    const cJSON *item = find(object, key);
    uint64_t value;

    if (!item)
        return 0;
    if (!json_whole(item, &value) || value > UINT32_MAX)
        return error_set(err, ERROR_FORMAT, "key %s: a whole number 0..2^32-1 expected", key);
    *ret = (uint32_t)value;
    return 0;
}

int json_need_u32(const cJSON *object, const char *key, uint32_t *ret, struct error *err)
{
    if (!find(object, key))
        return error_set(err, ERROR_FORMAT, "key %s: missing, a whole number expected", key);
    return json_get_u32(object, key, ret, err);
}

int json_get_float(const cJSON *object, const char *key, float *ret, struct error *err)
{
    const cJSON *item = find(object, key);

    if (!item)
        return 0;
    if (!cJSON_IsNumber(item) || !(fabs(item->valuedouble) <= 3e38))
        return error_set(err, ERROR_FORMAT, "key %s: a number expected", key);
    *ret = (float)item->valuedouble;
    return 0;
}

int json_get_bool(const cJSON *object, const char *key, bool *ret, struct error *err)
{
    const cJSON *item = find(object, key);

    if (!item)
        return 0;
    if (!cJSON_IsBool(item))
        return error_set(err, ERROR_FORMAT, "key %s: true or false expected", key);
    *ret = cJSON_IsTrue(item);
    return 0;
}

int json_get_string(const cJSON *object, const char *key, const char **ret, struct error *err)
{
    const cJSON *item = find(object, key);

    if (!item)
        return 0;
    if (!cJSON_IsString(item))
        return error_set(err, ERROR_FORMAT, "key %s: a string expected", key);
    *ret = item->valuestring;
    return 0;
}

const cJSON *json_object(const cJSON *object, const char *key)
{
    const cJSON *item = find(object, key);
    return cJSON_IsObject(item) ? item : NULL;
}

const cJSON *json_array(const cJSON *object, const char *key)
{
    const cJSON *item = find(object, key);
    return cJSON_IsArray(item) ? item : NULL;
}

const char *json_text(const cJSON *object, const char *key)
{
    const cJSON *item = find(object, key);
    return cJSON_IsString(item) ? item->valuestring : "";
}
