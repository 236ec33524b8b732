/* The table of request fields and the validator that walks it. A field that is not in the table is
 * accepted and named in the log; a field that asks for something we do not do is refused with
 * `unsupported_parameter`, never ignored. Fields with a shape of their own: fields_prompt.c. */
#include "server/fields.h"

#include "engine/base/mem.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

enum field_kind {
    FIELD_BOOL,        /* bool at offset */
    FIELD_UINT,        /* uint32_t at offset */
    FIELD_INT,         /* int32_t at offset */
    FIELD_FLOAT,       /* float at offset */
    FIELD_DOUBLE,      /* double at offset */
    FIELD_STRING,      /* const char * at offset */
    FIELD_READ,        /* read() */
    FIELD_ACCEPTED,    /* has no effect on an answer of ours: taken and left */
    FIELD_UNSUPPORTED, /* refused unless its value asks for nothing (null, false, empty, neutral) */
};

typedef int (*field_reader)(struct params *p, const char *name, const cJSON *value,
                            struct http_error *e);

struct field {
    const char *name;
    enum field_route route;
    enum field_kind kind;
    double min, max;
    size_t offset;
    field_reader read;
    const char *neutral; /* FIELD_UNSUPPORTED: a JSON scalar that asks for nothing */
};

static int read_seed(struct params *p, const char *name, const cJSON *value, struct http_error *e);
static int read_stream_options(struct params *p, const char *name, const cJSON *value,
                               struct http_error *e);
static int read_overfill(struct params *p, const char *name, const cJSON *value,
                         struct http_error *e);
static int read_response_format(struct params *p, const char *name, const cJSON *value,
                                struct http_error *e);
static int read_modalities(struct params *p, const char *name, const cJSON *value,
                           struct http_error *e);

#define AT(member) offsetof(struct params, member)
#define UINT_MAX_TOKENS 4294967294.0

static const struct field FIELDS[] = {
    {"model", ON_BOTH, FIELD_STRING, 0, 0, AT(model)},
    {"messages", ON_CHAT, FIELD_READ, .read = field_read_messages},
    {"prompt", ON_COMPLETIONS, FIELD_READ, .read = field_read_prompt},
    {"stream", ON_BOTH, FIELD_BOOL, 0, 0, AT(stream)},
    {"stream_options", ON_BOTH, FIELD_READ, .read = read_stream_options},
    {"n", ON_BOTH, FIELD_UINT, 1, ENGINE_MAX_CHOICES, AT(n)},
    {"best_of", ON_COMPLETIONS, FIELD_UINT, 1, 20, AT(best_of)},
    {"max_tokens", ON_CHAT, FIELD_UINT, 1, UINT_MAX_TOKENS, AT(max_tokens)},
    {"max_tokens", ON_COMPLETIONS, FIELD_UINT, 0, UINT_MAX_TOKENS, AT(max_tokens)},
    {"max_completion_tokens", ON_BOTH, FIELD_UINT, 1, UINT_MAX_TOKENS, AT(max_completion_tokens)},
    {"min_tokens", ON_BOTH, FIELD_UINT, 0, UINT_MAX_TOKENS, AT(min_tokens)},
    {"ignore_eos", ON_BOTH, FIELD_BOOL, 0, 0, AT(ignore_eos)},
    {"echo", ON_COMPLETIONS, FIELD_BOOL, 0, 0, AT(echo)},
    {"parse_special", ON_COMPLETIONS, FIELD_BOOL, 0, 0, AT(parse_special)},
    {"logprobs", ON_CHAT, FIELD_BOOL, 0, 0, AT(logprobs)},
    {"top_logprobs", ON_CHAT, FIELD_INT, 0, ENGINE_MAX_LOGPROBS, AT(top_logprobs)},
    {"logprobs", ON_COMPLETIONS, FIELD_INT, 0, 5, AT(n_logprobs)},
    {"stop", ON_BOTH, FIELD_READ, .read = field_read_stop},
    {"seed", ON_BOTH, FIELD_READ, .read = read_seed},
    {"temperature", ON_BOTH, FIELD_FLOAT, 0, 2, AT(sampling.temperature)},
    {"top_p", ON_BOTH, FIELD_FLOAT, 0, 1, AT(sampling.top_p)},
    {"top_k", ON_BOTH, FIELD_INT, -1, INT32_MAX, AT(sampling.top_k)},
    {"min_p", ON_BOTH, FIELD_FLOAT, 0, 1, AT(sampling.min_p)},
    {"repeat_penalty", ON_BOTH, FIELD_FLOAT, 0.01, 100, AT(sampling.repeat_penalty)},
    {"repetition_penalty", ON_BOTH, FIELD_FLOAT, 0.01, 100, AT(sampling.repeat_penalty)},
    {"frequency_penalty", ON_BOTH, FIELD_FLOAT, -2, 2, AT(sampling.frequency_penalty)},
    {"presence_penalty", ON_BOTH, FIELD_FLOAT, -2, 2, AT(sampling.presence_penalty)},
    {"logit_bias", ON_BOTH, FIELD_READ, .read = field_read_logit_bias},
    {"overfill", ON_BOTH, FIELD_READ, .read = read_overfill},
    {"sse_ping_interval", ON_BOTH, FIELD_DOUBLE, -1, 3600, AT(ping_s)},
    {"response_format", ON_BOTH, FIELD_READ, .read = read_response_format},
    {"modalities", ON_CHAT, FIELD_READ, .read = read_modalities},

    {"user", ON_BOTH, FIELD_ACCEPTED},
    {"metadata", ON_BOTH, FIELD_ACCEPTED},
    {"store", ON_BOTH, FIELD_ACCEPTED},
    {"service_tier", ON_BOTH, FIELD_ACCEPTED},
    {"safety_identifier", ON_BOTH, FIELD_ACCEPTED},
    {"prompt_cache_key", ON_BOTH, FIELD_ACCEPTED},
    {"prompt_cache_retention", ON_BOTH, FIELD_ACCEPTED},
    {"cache_prompt", ON_BOTH, FIELD_ACCEPTED},
    {"parallel_tool_calls", ON_CHAT, FIELD_ACCEPTED}, /* says nothing without tools */

    {"tools", ON_CHAT, FIELD_UNSUPPORTED},
    {"tool_choice", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "none"},
    {"functions", ON_CHAT, FIELD_UNSUPPORTED},
    {"function_call", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "none"},
    {"audio", ON_CHAT, FIELD_UNSUPPORTED},
    {"prediction", ON_CHAT, FIELD_UNSUPPORTED},
    {"web_search_options", ON_CHAT, FIELD_UNSUPPORTED},
    {"reasoning_effort", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "none"},
    {"verbosity", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "medium"},
    {"suffix", ON_COMPLETIONS, FIELD_UNSUPPORTED},
    {"add_generation_prompt", ON_CHAT, FIELD_UNSUPPORTED, .neutral = "true"},
    {"continue_final_message", ON_CHAT, FIELD_UNSUPPORTED},
    {"chat_template", ON_CHAT, FIELD_UNSUPPORTED},
    {"chat_template_kwargs", ON_CHAT, FIELD_UNSUPPORTED},
    {"documents", ON_CHAT, FIELD_UNSUPPORTED},
    {"grammar", ON_BOTH, FIELD_UNSUPPORTED},
    {"json_schema", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_json", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_regex", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_choice", ON_BOTH, FIELD_UNSUPPORTED},
    {"guided_grammar", ON_BOTH, FIELD_UNSUPPORTED},
    {"structured_outputs", ON_BOTH, FIELD_UNSUPPORTED},
    {"prompt_logprobs", ON_BOTH, FIELD_UNSUPPORTED},
    {"return_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"return_progress", ON_BOTH, FIELD_UNSUPPORTED},
    {"include_stop_str_in_output", ON_BOTH, FIELD_UNSUPPORTED},
    {"stop_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"allowed_token_ids", ON_BOTH, FIELD_UNSUPPORTED},
    {"bad_words", ON_BOTH, FIELD_UNSUPPORTED},
    {"truncate_prompt_tokens", ON_BOTH, FIELD_UNSUPPORTED},
    {"skip_special_tokens", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "true"},
    {"spaces_between_special_tokens", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "true"},
    {"use_beam_search", ON_BOTH, FIELD_UNSUPPORTED},
    {"length_penalty", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "1"},
    {"priority", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"n_probs", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"n_predict", ON_BOTH, FIELD_UNSUPPORTED},
    {"n_keep", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"typical_p", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "1"},
    {"mirostat", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"dry_multiplier", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"xtc_probability", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"dynatemp_range", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "0"},
    {"top_n_sigma", ON_BOTH, FIELD_UNSUPPORTED, .neutral = "-1"},
    {"lora", ON_BOTH, FIELD_UNSUPPORTED},
    {"kv_transfer_params", ON_BOTH, FIELD_UNSUPPORTED},
};

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
        return strcmp(value->valuestring, field->neutral) == 0;
    if (cJSON_IsTrue(value))
        return strcmp("true", field->neutral) == 0;
    if (cJSON_IsNumber(value))
        snprintf(text, sizeof(text), "%.10g", value->valuedouble);
    return strcmp(text, field->neutral) == 0;
}

static int unsupported(struct http_error *e, const char *name)
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
        return is_neutral(field, value) ? 0 : unsupported(e, field->name);
    }
    return 0;
}

/* A number, or a string of digits for what a double cannot hold exactly. Negative seeds wrap. */
static int read_seed(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    if (cJSON_IsString(value)) {
        const char *s = value->valuestring;
        uint64_t seed = 0;
        size_t n = strspn(s, "0123456789");
        if (n == 0 || n > 19 || s[n] != '\0')
            return field_wrong_type(e, name, "an integer", value);
        for (size_t i = 0; i < n; i++)
            seed = seed * 10 + (uint64_t)(s[i] - '0');
        p->sampling.seed = seed;
    } else {
        double number = 0;
        if (field_read_integer(value, name, -9223372036854775808.0, 9223372036854774784.0, &number,
                               e) < 0)
            return -1;
        p->sampling.seed = (uint64_t)(int64_t)number;
    }
    p->seed_given = true;
    return 0;
}

static int read_member_bool(const cJSON *object, const char *name, const char *param,
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

static int read_stream_options(struct params *p, const char *name, const cJSON *value,
                               struct http_error *e)
{
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    if (read_member_bool(value, "include_usage", "stream_options.include_usage", &p->include_usage,
                         e) < 0)
        return -1;
    return read_member_bool(value, "continuous_usage_stats",
                            "stream_options.continuous_usage_stats", &p->continuous_usage, e);
}

/* {"decode": "pruned"|"full"}. The other modes of the quality dial are known but not built. */
static int read_overfill(struct params *p, const char *name, const cJSON *value,
                         struct http_error *e)
{
    char param[96];

    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    for (const cJSON *member = value->child; member; member = member->next) {
        snprintf(param, sizeof(param), "overfill.%.64s", member->string);
        if (cJSON_IsNull(member))
            continue;
        if (strcmp(member->string, "decode") != 0)
            return unsupported(e, param);
        if (!cJSON_IsString(member))
            return field_wrong_type(e, param, "a string", member);
        int mode = decode_mode_from_name(member->valuestring);
        if (mode == DECODE_PRUNED || mode == DECODE_FULL)
            p->decode = (enum decode_mode)mode;
        else if (strcmp(member->valuestring, "refresh") == 0 ||
                 strcmp(member->valuestring, "verify") == 0)
            return unsupported(e, param);
        else
            return http_invalid(e, param, "invalid_value",
                                "Invalid value: '%.100s'. Supported values are: 'pruned' and "
                                "'full'.",
                                member->valuestring);
    }
    return 0;
}

static int read_response_format(struct params *p, const char *name, const cJSON *value,
                                struct http_error *e)
{
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(value, "type");
    if (cJSON_IsString(type) && strcmp(type->valuestring, "text") == 0)
        return 0;
    return http_invalid(e, name, "unsupported_parameter",
                        "Unsupported parameter: '%s' must be {\"type\": \"text\"} on this server.",
                        name);
}

static int read_modalities(struct params *p, const char *name, const cJSON *value,
                           struct http_error *e)
{
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "an array", value);
    for (const cJSON *item = value->child; item; item = item->next)
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "text") != 0)
            return unsupported(e, name);
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

static int missing(struct http_error *e, const char *name)
{
    return http_invalid(e, name, "missing_required_parameter", "Missing required parameter: '%s'.",
                        name);
}

static int check_tokens_in_vocab(const struct params *p, const struct engine_info *info,
                                 struct http_error *e)
{
    char param[96] = "prompt";

    for (size_t i = 0; i < p->n_prompts; i++)
        for (size_t j = 0; j < p->prompts[i].n_tokens; j++)
            if ((uint32_t)p->prompts[i].tokens[j] >= info->vocab_size) {
                return http_invalid(e, param, "invalid_value",
                                    "Invalid 'prompt': token id %d is not in the model's "
                                    "vocabulary of %u.",
                                    p->prompts[i].tokens[j], info->vocab_size);
            }
    for (size_t i = 0; i < p->sampling.n_bias; i++)
        if ((uint32_t)p->sampling.bias[i].token >= info->vocab_size)
            return http_invalid(e, "logit_bias", "invalid_value",
                                "Invalid 'logit_bias': token id %d is not in the model's "
                                "vocabulary of %u.",
                                p->sampling.bias[i].token, info->vocab_size);
    return 0;
}

/* What no single field can tell: the required ones, and fields that depend on each other. */
static int check_together(struct params *p, const struct engine_info *info, struct http_error *e)
{
    if (p->route == ON_CHAT && !p->messages)
        return missing(e, "messages");
    if (p->route == ON_COMPLETIONS && !p->prompts)
        return missing(e, "prompt");
    if (p->top_logprobs >= 0 && !p->logprobs)
        return http_invalid(e, "top_logprobs", "invalid_value",
                            "Invalid 'top_logprobs': it needs 'logprobs' to be true.");
    if (p->route == ON_CHAT)
        p->n_logprobs = !p->logprobs ? -1 : p->top_logprobs > 0 ? p->top_logprobs : 0;
    if (p->best_of && p->best_of != p->n)
        return http_invalid(e, "best_of", "unsupported_parameter",
                            "Unsupported parameter: 'best_of' must equal 'n' on this server.");
    if ((p->include_usage || p->continuous_usage) && !p->stream)
        return http_invalid(e, "stream_options", "invalid_value",
                            "Invalid 'stream_options': it is only allowed when 'stream' is true.");
    if (p->max_completion_tokens != PARAMS_NO_LIMIT)
        p->max_tokens = p->max_completion_tokens;
    if (p->min_tokens && p->max_tokens != PARAMS_NO_LIMIT && p->min_tokens > p->max_tokens)
        return http_invalid(e, "min_tokens", "invalid_value",
                            "Invalid 'min_tokens': it must not exceed 'max_tokens'.");
    if (p->sampling.top_k < 0)
        p->sampling.top_k = 0;
    if (p->n_prompts * p->n > PARAMS_MAX_CHOICES)
        return http_invalid(e, "n", "integer_above_max_value",
                            "Invalid 'n': %zu prompts times %u choices is more than the %d "
                            "choices a request may ask for.",
                            p->n_prompts, p->n, PARAMS_MAX_CHOICES);
    if (p->decode == DECODE_PRUNED && !info->pruned_path)
        return http_invalid(e, "overfill.decode", "unsupported_value",
                            "Invalid 'overfill.decode': this server has no pruned model.");
    return check_tokens_in_vocab(p, info, e);
}

/* "you must provide a model parameter" comes first, as OpenAI has it. */
static int check_model(const struct params *p, const struct engine_info *info, struct http_error *e)
{
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

static const struct field *find_field(const char *name, enum field_route route)
{
    for (size_t i = 0; i < sizeof(FIELDS) / sizeof(FIELDS[0]); i++)
        if ((FIELDS[i].route & route) && strcmp(FIELDS[i].name, name) == 0)
            return &FIELDS[i];
    return NULL;
}

/* `only_model`: the first of two passes, so that a missing or unknown model is what is told. */
static int read_members(struct params *p, bool only_model, struct buf *unknown,
                        struct http_error *e)
{
    for (const cJSON *value = p->tree->child; value; value = value->next) {
        if ((strcmp(value->string, "model") == 0) != only_model)
            continue;
        const struct field *field = find_field(value->string, p->route);
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
        .top_logprobs = -1,
        .sampling = SAMPLING_DEFAULTS,
        .ping_s = NAN,
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
