/* Readers of the small fields that are neither plain scalars nor prompts: seed, options that come
 * as objects, and the ones that know more answers than we have. */
#include "server/fields.h"

#include <stdio.h>
#include <string.h>

/* Negative seeds wrap. */
static bool seed_of_digits(const char *digits, uint64_t *ret_seed)
{
    bool is_negative = *digits == '-';
    const char *s = digits + is_negative;
    size_t n = strspn(s, "0123456789");
    uint64_t seed = 0;

    if (n == 0 || n > 19 || s[n] != '\0')
        return false;
    for (size_t i = 0; i < n; i++)
        seed = seed * 10 + (uint64_t)(s[i] - '0');
    *ret_seed = is_negative ? 0 - seed : seed;
    return true;
}

/* A number, or a string of digits for clients whose own numbers are doubles. */
int field_read_seed(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    double number = 0;

    if (cJSON_IsString(value)) {
        if (!seed_of_digits(value->valuestring, &p->sampling.seed))
            return field_wrong_type(e, name, "an integer", value);
    } else if (field_read_integer(value, name, -9223372036854775808.0, 9223372036854775808.0,
                                  &number, e) < 0) {
        return -1;
    } else if (!value->valuestring || !seed_of_digits(value->valuestring, &p->sampling.seed)) {
        p->sampling.seed =
            number < 9223372036854775808.0 ? (uint64_t)(int64_t)number : (uint64_t)1 << 63;
    }
    p->seed_given = true;
    return 0;
}

int field_read_member_bool(const cJSON *object, const char *name, const char *param,
                           bool *ret_value, struct http_error *e)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);

    if (!value || cJSON_IsNull(value))
        return 0;
    if (!cJSON_IsBool(value))
        return field_wrong_type(e, param, "a boolean", value);
    *ret_value = cJSON_IsTrue(value);
    return 0;
}

int field_read_stream_options(struct params *p, const char *name, const cJSON *value,
                              struct http_error *e)
{
    bool obfuscation = false; /* pads events against eavesdroppers; we have none to pad */

    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    if (field_read_member_bool(value, "include_usage", "stream_options.include_usage",
                               &p->include_usage, e) < 0 ||
        field_read_member_bool(value, "include_obfuscation", "stream_options.include_obfuscation",
                               &obfuscation, e) < 0)
        return -1;
    return field_read_member_bool(value, "continuous_usage_stats",
                                  "stream_options.continuous_usage_stats", &p->continuous_usage, e);
}

/* {"decode": "pruned"|"refresh"|"verify"|"full", "every": 1..256} */
int field_read_overfill(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e)
{
    char param[96];
    double every = 0;

    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    for (const cJSON *member = value->child; member; member = member->next) {
        snprintf(param, sizeof(param), "overfill.%.64s", member->string);
        if (cJSON_IsNull(member))
            continue;
        if (strcmp(member->string, "every") == 0) {
            if (field_read_integer(member, param, 1, ENGINE_MAX_EVERY, &every, e) < 0)
                return -1;
            p->decode_every = (uint32_t)every;
            continue;
        }
        if (strcmp(member->string, "decode") != 0)
            return field_unsupported(e, param);
        if (!cJSON_IsString(member))
            return field_wrong_type(e, param, "a string", member);
        int mode = decode_mode_from_name(member->valuestring);
        if (mode < 0)
            return http_invalid(e, param, "invalid_value",
                                "Invalid value: '%.100s'. Supported values are: 'pruned', "
                                "'refresh', 'verify' and 'full'.",
                                member->valuestring);
        p->decode = (enum decode_mode)mode;
    }
    return 0;
}

static bool is_type_text(const cJSON *object)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(object, "type");
    return cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0;
}

int field_read_response_format(struct params *p, const char *name, const cJSON *value,
                               struct http_error *e)
{
    (void)p;
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    if (is_type_text(value))
        return 0;
    return http_invalid(e, name, "unsupported_parameter",
                        "Unsupported parameter: '%s' must be {\"type\": \"text\"} on this server.",
                        name);
}

/* {"format": {"type": "text"}, "verbosity": "medium"} */
int field_read_text_format(struct params *p, const char *name, const cJSON *value,
                           struct http_error *e)
{
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    const cJSON *format = cJSON_GetObjectItemCaseSensitive(value, "format");
    if (format && !cJSON_IsNull(format) &&
        field_read_response_format(p, "text.format", format, e) < 0)
        return -1;
    const cJSON *verbosity = cJSON_GetObjectItemCaseSensitive(value, "verbosity");
    if (!verbosity || cJSON_IsNull(verbosity))
        return 0;
    if (!cJSON_IsString(verbosity))
        return field_wrong_type(e, "text.verbosity", "a string", verbosity);
    return strcmp(verbosity->valuestring, "medium") == 0 ? 0
                                                         : field_unsupported(e, "text.verbosity");
}

int field_read_modalities(struct params *p, const char *name, const cJSON *value,
                          struct http_error *e)
{
    (void)p;
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "an array", value);
    for (const cJSON *item = value->child; item; item = item->next)
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "text") != 0)
            return field_unsupported(e, name);
    return 0;
}

int field_read_include(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "an array", value);
    for (const cJSON *item = value->child; item; item = item->next) {
        if (!cJSON_IsString(item))
            return field_wrong_type(e, name, "an array of strings", value);
        /* Reasoning that could be encrypted and handed back: there is none, so nothing is lost. */
        if (strcmp(item->valuestring, "reasoning.encrypted_content") == 0)
            continue;
        if (strcmp(item->valuestring, "message.output_text.logprobs") != 0)
            return field_unsupported(e, name);
        p->logprobs = true;
    }
    return 0;
}

/* {"type": "disabled"} */
int field_read_thinking(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e)
{
    (void)p;
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    return cJSON_IsString(type) && strcmp(type->valuestring, "disabled") == 0
               ? 0
               : field_unsupported(e, name);
}
