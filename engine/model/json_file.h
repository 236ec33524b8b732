/* JSON files of a Hugging Face folder: reading one with a bound on its size, and typed look-ups
 * that name the key. cJSON bounds the nesting. `err` must not be NULL; messages do not name the
 * file. */
#ifndef OVERFILL_ENGINE_MODEL_JSON_FILE_H
#define OVERFILL_ENGINE_MODEL_JSON_FILE_H

#include "engine/base/error.h"

#include <cjson/cJSON.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

static inline void json_cleanup(cJSON **json)
{
    cJSON_Delete(*json);
}
#define _cleanup_json_ __attribute__((cleanup(json_cleanup)))

/* An object or array from `bytes` of text. */
int json_parse(const void *text, size_t bytes, cJSON **ret_json, struct error *err);
/* folder/name. A file that is not there: *ret_json NULL and 0. Messages start with the path. */
int json_file_read(const char *folder, const char *name, size_t max_bytes, cJSON **ret_json,
                   struct error *err);

/* Look-ups in an object. A key that is missing or null leaves *ret as it is and gives 0
 * (json_need_u32: an error). A value of another type, out of range, or not whole is an error.
 * object may be NULL. */
int json_need_u32(const cJSON *object, const char *key, uint32_t *ret, struct error *err);
int json_get_u32(const cJSON *object, const char *key, uint32_t *ret, struct error *err);
int json_get_float(const cJSON *object, const char *key, float *ret, struct error *err);
int json_get_bool(const cJSON *object, const char *key, bool *ret, struct error *err);
int json_get_string(const cJSON *object, const char *key, const char **ret, struct error *err);

/* NULL when missing, null, or not an object. */
const cJSON *json_object(const cJSON *object, const char *key);
const cJSON *json_array(const cJSON *object, const char *key);
/* The string value, or "" when missing or of another type. */
const char *json_text(const cJSON *object, const char *key);
/* A whole number 0..2^53; false otherwise. */
bool json_whole(const cJSON *item, uint64_t *ret);

#endif
