/* The validator: walks a request's members along the table (field_table.c), then checks what no
 * single field can tell. */
#include "server/fields.h"

#include "engine/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

const char *json_type_name(const cJSON *value)
{
    if (cJSON_IsBool(value))
        return "a boolean";
    if (cJSON_IsNumber(value))
        return value->valuedouble == floor(value->valuedouble) ? "an integer" : "a decimal";
    if (cJSON_IsString(value))
        return "a string";
    if (cJSON_IsArray(value))
        return "an array";
    return cJSON_IsObject(value) ? "an object" : "null";
}

int field_wrong_type(struct http_error *e, const char *param, const char *expected,
                     const cJSON *value)
{
    return http_invalid(e, param, "invalid_type",
                        "Invalid type for '%s': expected %s, but got %s instead.", param, expected,
                        json_type_name(value));
}

int field_missing(struct http_error *e, const char *param)
{
    return http_invalid(e, param, "missing_required_parameter", "Missing required parameter: '%s'.",
                        param);
}

int field_empty_array(struct http_error *e, const char *param)
{
    return http_invalid(e, param, "empty_array",
                        "Invalid '%s': empty array. Expected an array with minimum length 1, but "
                        "got an empty array instead.",
                        param);
}

int field_too_many(struct http_error *e, const char *param, size_t max, size_t n)
{
    return http_invalid(e, param, "array_above_max_length",
                        "Invalid '%s': array too long. Expected an array with maximum length %zu, "
                        "but got an array with length %zu instead.",
                        param, max, n);
}

static int check_range(const char *param, const char *type, double min, double max, double value,
                       struct http_error *e)
{
    static const char *const CODES[2][2] = {
        {"decimal_below_min_value", "decimal_above_max_value"},
        {"integer_below_min_value", "integer_above_max_value"},
    };
    if (value >= min && value <= max)
        return 0;
    bool above = value > max;
    return http_invalid(e, param, CODES[type[0] == 'i'][above],
                        "Invalid '%s': %s %s value. Expected a value %s %.10g, but got %.10g "
                        "instead.",
                        param, type, above ? "above maximum" : "below minimum",
                        above ? "<=" : ">=", above ? max : min, value);
}

int field_read_integer(const cJSON *value, const char *param, double min, double max,
                       double *ret_value, struct http_error *e)
{
    if (!cJSON_IsNumber(value) || value->valuedouble != floor(value->valuedouble))
        return field_wrong_type(e, param, "an integer", value);
    if (check_range(param, "integer", min, max, value->valuedouble, e) < 0)
        return -1;
    *ret_value = value->valuedouble;
    return 0;
}

static int read_number(const struct field *field, const cJSON *value, double *ret_value,
                       struct http_error *e)
{
    if (!cJSON_IsNumber(value))
        return field_wrong_type(e, field->name, "a decimal", value);
    if (check_range(field->name, "decimal", field->min, field->max, value->valuedouble, e) < 0)
        return -1;
    *ret_value = value->valuedouble;
    return 0;
}

bool field_neutral_is_string(const struct field *field)
{
    return strspn(field->neutral, "-0123456789") != strlen(field->neutral) &&
           strcmp(field->neutral, "true") != 0;
}

/* Whether the value of an unsupported field asks for nothing. */
static bool is_neutral(const struct field *field, const cJSON *value)
{
    char text[32] = "";

    if (cJSON_IsFalse(value) || ((cJSON_IsArray(value) || cJSON_IsObject(value)) && !value->child))
        return true;
    if (cJSON_IsString(value) && value->valuestring[0] == '\0')
        return true;
    if (!field->neutral)
        return false;
    if (cJSON_IsString(value))
        return field_neutral_is_string(field) && strcmp(value->valuestring, field->neutral) == 0;
    if (cJSON_IsTrue(value))
        return strcmp("true", field->neutral) == 0;
    if (cJSON_IsNumber(value))
        snprintf(text, sizeof(text), "%.10g", value->valuedouble);
    return strcmp(text, field->neutral) == 0;
}

int field_unsupported(struct http_error *e, const char *name)
{
    return http_invalid(e, name, "unsupported_parameter",
                        "Unsupported parameter: '%s' is not supported by this server.", name);
}

static int read_field(struct params *p, const struct field *field, const cJSON *value,
                      struct http_error *e)
{
    void *target = (char *)p + field->offset;
    double number = 0;

    switch (field->kind) {
    case FIELD_BOOL:
        if (!cJSON_IsBool(value))
            return field_wrong_type(e, field->name, "a boolean", value);
        *(bool *)target = cJSON_IsTrue(value);
        return 0;
    case FIELD_UINT:
        if (field_read_integer(value, field->name, field->min, field->max, &number, e) < 0)
            return -1;
        *(uint32_t *)target = (uint32_t)number;
        return 0;
    case FIELD_INT:
        if (field_read_integer(value, field->name, field->min, field->max, &number, e) < 0)
            return -1;
        *(int32_t *)target = (int32_t)number;
        return 0;
    case FIELD_FLOAT:
        if (read_number(field, value, &number, e) < 0)
            return -1;
        *(float *)target = (float)number;
        return 0;
    case FIELD_DOUBLE:
        return read_number(field, value, (double *)target, e);
    case FIELD_STRING:
        if (!cJSON_IsString(value))
            return field_wrong_type(e, field->name, "a string", value);
        *(const char **)target = value->valuestring;
        return 0;
    case FIELD_READ:
        return field->read(p, field->name, value, e);
    case FIELD_ACCEPTED:
        return 0;
    case FIELD_UNSUPPORTED:
        return is_neutral(field, value) ? 0 : field_unsupported(e, field->name);
    }
    return 0;
}

void *params_alloc(struct params *params, size_t n, size_t size)
{
    if (params->n_owned == params->cap_owned) {
        size_t cap = params->cap_owned ? params->cap_owned * 2 : 8;
        void **owned = mem_realloc(params->owned, cap, sizeof(*owned));
        if (!owned)
            return NULL;
        params->owned = owned;
        params->cap_owned = cap;
    }
    void *p = mem_calloc(n ? n : 1, size);
    if (p)
        params->owned[params->n_owned++] = p;
    return p;
}

void params_free(struct params *params)
{
    for (size_t i = 0; i < params->n_owned; i++)
        mem_free(params->owned[i]);
    mem_free(params->owned);
    cJSON_Delete(params->tree);
    *params = (struct params){0};
}

static int check_tokens_in_vocab(const struct params *p, const struct engine_info *info,
                                 struct http_error *e)
{
    const char *param = p->route == ON_DETOKENIZE ? "tokens" : "prompt";

    for (size_t i = 0; i < p->n_prompts; i++)
        for (size_t j = 0; j < p->prompts[i].n_tokens; j++)
            if ((uint32_t)p->prompts[i].tokens[j] >= info->vocab_size)
                return http_invalid(e, param, "invalid_value",
                                    "Invalid '%s': token id %d is not in the model's vocabulary "
                                    "of %u.",
                                    param, p->prompts[i].tokens[j], info->vocab_size);
    for (size_t i = 0; i < p->sampling.n_bias; i++)
        if ((uint32_t)p->sampling.bias[i].token >= info->vocab_size)
            return http_invalid(e, "logit_bias", "invalid_value",
                                "Invalid 'logit_bias': token id %d is not in the model's "
                                "vocabulary of %u.",
                                p->sampling.bias[i].token, info->vocab_size);
    return 0;
}

/* A required field that was given has left its mark in the params. */
static bool is_given(const struct params *p, const char *name)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(p->tree, name);
    return value && !cJSON_IsNull(value);
}

static int check_required(const struct params *p, struct http_error *e)
{
    size_t n;
    const struct field *table = field_table(&n);

    for (size_t i = 0; i < n; i++)
        if ((table[i].required & p->route) && !is_given(p, table[i].name))
            return field_missing(e, table[i].name);
    return 0;
}

static int check_logprobs(struct params *p, struct http_error *e)
{
    if (p->n_prompt_logprobs >= 0 && p->stream)
        return http_invalid(e, "prompt_logprobs", "invalid_value",
                            "Invalid 'prompt_logprobs': it is not available when 'stream' is "
                            "true.");
    if (p->route == ON_COMPLETIONS)
        return 0;
    if (p->route == ON_CHAT && p->top_logprobs >= 0 && !p->logprobs)
        return http_invalid(e, "top_logprobs", "invalid_value",
                            "Invalid 'top_logprobs': it needs 'logprobs' to be true.");
    p->n_logprobs = !p->logprobs ? -1 : p->top_logprobs > 0 ? p->top_logprobs : 0;
    return 0;
}

static int check_counts(struct params *p, struct http_error *e)
{
    if (p->best_of && p->best_of != p->n)
        return http_invalid(e, "best_of", "unsupported_parameter",
                            "Unsupported parameter: 'best_of' must equal 'n' on this server.");
    if (p->max_completion_tokens != PARAMS_NO_LIMIT)
        p->max_tokens = p->max_completion_tokens;
    if (p->min_tokens && p->max_tokens != PARAMS_NO_LIMIT && p->min_tokens > p->max_tokens)
        return http_invalid(e, "min_tokens", "invalid_value",
                            "Invalid 'min_tokens': it must not exceed 'max_tokens'.");
    if (p->n_prompts * p->n > PARAMS_MAX_CHOICES)
        return http_invalid(e, "n", "integer_above_max_value",
                            "Invalid 'n': %zu prompts times %u choices is more than the %d "
                            "choices a request may ask for.",
                            p->n_prompts, p->n, PARAMS_MAX_CHOICES);
    return 0;
}

static int check_dial(const struct params *p, const struct engine_info *info, struct http_error *e)
{
    enum decode_mode decode = p->decode == DECODE_DEFAULT ? info->decode : p->decode;

    if (p->decode != DECODE_DEFAULT && p->decode != DECODE_FULL && !info->pruned_path)
        return http_invalid(e, "overfill.decode", "unsupported_value",
                            "Invalid 'overfill.decode': this server has no pruned model.");
    if (p->decode_every && decode != DECODE_REFRESH && decode != DECODE_VERIFY)
        return http_invalid(e, "overfill.every", "invalid_value",
                            "Invalid 'overfill.every': it belongs to the decode modes 'refresh' "
                            "and 'verify'; this request decodes as '%s'.",
                            decode_mode_name(decode));
    return 0;
}

/* Anthropic's way to put the beginning of the answer into the model's mouth. */
static int check_last_message(const struct params *p, struct http_error *e)
{
    if (!(p->route & ON_ANTHROPIC) || strcmp(p->messages[p->n_messages - 1].role, "user") == 0)
        return 0;
    return http_invalid(e, "messages", "unsupported_value",
                        "Invalid 'messages': this server does not continue an assistant message; "
                        "the conversation must end with a message of the user.");
}

/* What no single field can tell: the required ones, and fields that depend on each other. */
static int check_together(struct params *p, const struct engine_info *info, struct http_error *e)
{
    if (check_required(p, e) < 0 || check_last_message(p, e) < 0 || check_logprobs(p, e) < 0 ||
        check_counts(p, e) < 0)
        return -1;
    if (p->route != ON_RESPONSES && (p->include_usage || p->continuous_usage) && !p->stream)
        return http_invalid(e, "stream_options", "invalid_value",
                            "Invalid 'stream_options': it is only allowed when 'stream' is true.");
    if (p->sampling.top_k < 0)
        p->sampling.top_k = 0;
    if (check_dial(p, info, e) < 0)
        return -1;
    if (params_place_system(p, e) < 0)
        return -1;
    return check_tokens_in_vocab(p, info, e);
}

/* "you must provide a model parameter" comes first, as OpenAI has it. */
static int check_model(const struct params *p, const struct engine_info *info, struct http_error *e)
{
    if (!p->model && (p->route & (ON_TOKENIZE | ON_DETOKENIZE)))
        return 0;
    if (!p->model || p->model[0] == '\0')
        return http_invalid(e, NULL, NULL, "you must provide a model parameter");
    if (strcmp(p->model, info->model_id) == 0)
        return 0;
    http_error_set(e, 404, "model_not_found",
                   "The model `%.200s` does not exist or you do not have access to it.", p->model);
    snprintf(e->param, sizeof(e->param), "model");
    e->reason = REJECT_MODEL;
    return -1;
}

/* `only_model`: the first of two passes, so that a missing or unknown model is what is told. */
static int read_members(struct params *p, bool only_model, struct buf *unknown,
                        struct http_error *e)
{
    for (const cJSON *value = p->tree->child; value; value = value->next) {
        if ((strcmp(value->string, "model") == 0) != only_model)
            continue;
        const struct field *field = field_find(value->string, p->route);
        if (!field) {
            buf_printf(unknown, "%s%.64s", unknown->len ? " " : "", value->string);
            continue;
        }
        if (!cJSON_IsNull(value) && read_field(p, field, value, e) < 0)
            return -1;
    }
    return 0;
}

int params_read(struct params *ret_params, enum field_route route, cJSON *tree,
                const struct engine_info *info, struct buf *unknown, struct http_error *ret_error)
{
    struct params p = {
        .route = route,
        .tree = tree,
        .n = 1,
        .max_tokens = PARAMS_NO_LIMIT,
        .max_completion_tokens = PARAMS_NO_LIMIT,
        .n_logprobs = -1,
        .n_prompt_logprobs = -1,
        .top_logprobs = -1,
        .sampling = SAMPLING_DEFAULTS,
        .ping_s = NAN,
        .cache_prompt = true,
        .add_special_tokens = true,
        .add_generation_prompt = true,
        .parse_special = route == ON_TOKENIZE,
    };
    if (read_members(&p, true, unknown, ret_error) < 0 || check_model(&p, info, ret_error) < 0 ||
        read_members(&p, false, unknown, ret_error) < 0 ||
        check_together(&p, info, ret_error) < 0) {
        params_free(&p);
        return -1;
    }
    *ret_params = p;
    return 0;
}
