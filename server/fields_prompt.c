/* Readers of the request fields that have a shape of their own: messages, prompt, stop, logit_bias.
 * Text stays where cJSON put it; what has to be built is owned by the params. */
#include "engine/base/mem.h"
#include "server/fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int empty_array(struct http_error *e, const char *param)
{
    return http_invalid(e, param, "empty_array",
                        "Invalid '%s': empty array. Expected an array with minimum length 1, but "
                        "got an empty array instead.",
                        param);
}

/* {"type":"text","text":"..."}: the text, or NULL with *e set. */
static const char *read_text_part(const cJSON *part, const char *param, struct http_error *e)
{
    if (!cJSON_IsObject(part)) {
        field_wrong_type(e, param, "an object", part);
        return NULL;
    }
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(part, "type");
    if (!cJSON_IsString(type)) {
        http_invalid(e, param, "missing_required_parameter",
                     "Missing required parameter: '%s.type'.", param);
        return NULL;
    }
    if (strcmp(type->valuestring, "text") != 0) {
        http_invalid(e, param, "unsupported_parameter",
                     "Unsupported parameter: '%s' has type '%.64s', but this server takes 'text' "
                     "only.",
                     param, type->valuestring);
        return NULL;
    }
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(part, "text");
    if (!cJSON_IsString(text)) {
        http_invalid(e, param, "missing_required_parameter",
                     "Missing required parameter: '%s.text'.", param);
        return NULL;
    }
    return text->valuestring;
}

/* Text parts become one text, a line feed between them. */
static int join_parts(struct params *p, const cJSON *parts, const char *param,
                      struct chat_message *message, struct http_error *e)
{
    struct buf joined = {0};
    char part_param[160];
    size_t i = 0;

    for (const cJSON *part = parts->child; part; part = part->next, i++) {
        snprintf(part_param, sizeof(part_param), "%s[%zu]", param, i);
        const char *text = read_text_part(part, part_param, e);
        if (!text) {
            buf_free(&joined);
            return -1;
        }
        if (i > 0)
            buf_append(&joined, "\n", 1);
        buf_append_str(&joined, text);
    }
    char *copy = joined.failed ? NULL : params_alloc(p, joined.len + 1, 1);
    if (copy && joined.len)
        memcpy(copy, joined.data, joined.len);
    message->content = copy;
    message->content_len = joined.len;
    buf_free(&joined);
    return copy ? 0 : http_out_of_memory(e);
}

static int read_content(struct params *p, const cJSON *object, const char *param,
                        struct chat_message *message, struct http_error *e)
{
    char name[96];
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(object, "content");

    snprintf(name, sizeof(name), "%s.content", param);
    if (cJSON_IsString(content)) {
        message->content = content->valuestring;
        message->content_len = strlen(content->valuestring);
        return 0;
    }
    if (cJSON_IsArray(content)) {
        if (!content->child)
            return empty_array(e, name);
        return join_parts(p, content, name, message, e);
    }
    if ((!content || cJSON_IsNull(content)) && strcmp(message->role, "assistant") == 0) {
        message->content = "";
        return 0;
    }
    if (!content)
        return http_invalid(e, name, "missing_required_parameter",
                            "Missing required parameter: '%s'.", name);
    return field_wrong_type(e, name, "a string or an array of text parts", content);
}

static int refuse_tool_members(const cJSON *object, const char *param, struct http_error *e)
{
    static const char *const NAMES[] = {"tool_calls", "function_call", "audio"};
    char name[96];

    for (size_t i = 0; i < sizeof(NAMES) / sizeof(NAMES[0]); i++) {
        const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, NAMES[i]);
        if (!value || cJSON_IsNull(value) || (cJSON_IsArray(value) && !value->child))
            continue;
        snprintf(name, sizeof(name), "%s.%s", param, NAMES[i]);
        return http_invalid(e, name, "unsupported_parameter",
                            "Unsupported parameter: '%s' is not supported by this server.", name);
    }
    return 0;
}

static int read_message(struct params *p, const cJSON *object, size_t i_message,
                        struct chat_message *message, struct http_error *e)
{
    static const char *const ROLES[] = {"system", "user", "assistant"};
    char param[48], name[96];

    snprintf(param, sizeof(param), "messages[%zu]", i_message);
    if (!cJSON_IsObject(object))
        return field_wrong_type(e, param, "an object", object);
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(object, "role");
    snprintf(name, sizeof(name), "%s.role", param);
    if (!role)
        return http_invalid(e, name, "missing_required_parameter",
                            "Missing required parameter: '%s'.", name);
    if (!cJSON_IsString(role))
        return field_wrong_type(e, name, "a string", role);
    if (strcmp(role->valuestring, "developer") == 0)
        message->role = "system"; /* OpenAI's newer name for it */
    for (size_t i = 0; i < sizeof(ROLES) / sizeof(ROLES[0]); i++)
        if (strcmp(role->valuestring, ROLES[i]) == 0)
            message->role = ROLES[i];
    if (!message->role)
        return http_invalid(e, name, "invalid_value",
                            "Invalid value: '%.64s'. Supported values are: 'system', 'developer', "
                            "'user' and 'assistant'.",
                            role->valuestring);
    if (refuse_tool_members(object, param, e) < 0)
        return -1;
    return read_content(p, object, param, message, e);
}

int field_read_messages(struct params *p, const char *name, const cJSON *value,
                        struct http_error *e)
{
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "an array of objects", value);
    size_t n = (size_t)cJSON_GetArraySize(value);
    if (n == 0)
        return empty_array(e, name);
    if (n > PARAMS_MAX_MESSAGES)
        return field_too_many(e, name, PARAMS_MAX_MESSAGES, n);
    struct chat_message *messages = params_alloc(p, n, sizeof(*messages));
    if (!messages)
        return http_out_of_memory(e);
    size_t i = 0;
    for (const cJSON *item = value->child; item; item = item->next, i++)
        if (read_message(p, item, i, &messages[i], e) < 0)
            return -1;
    p->messages = messages;
    p->n_messages = n;
    return 0;
}

static int read_token_array(struct params *p, const char *param, const cJSON *array,
                            struct prompt *prompt, struct http_error *e)
{
    size_t n = (size_t)cJSON_GetArraySize(array);
    if (n == 0)
        return empty_array(e, param);
    int32_t *tokens = params_alloc(p, n, sizeof(*tokens));
    if (!tokens)
        return http_out_of_memory(e);
    size_t i = 0;
    for (const cJSON *item = array->child; item; item = item->next, i++) {
        double id;
        if (field_read_integer(item, param, 0, INT32_MAX, &id, e) < 0)
            return -1;
        tokens[i] = (int32_t)id;
    }
    prompt->tokens = tokens;
    prompt->n_tokens = n;
    return 0;
}

static int read_prompt_list(struct params *p, const char *name, const cJSON *array,
                            struct http_error *e)
{
    size_t n = (size_t)cJSON_GetArraySize(array);
    if (n > PARAMS_MAX_PROMPTS)
        return field_too_many(e, name, PARAMS_MAX_PROMPTS, n);
    struct prompt *prompts = params_alloc(p, n, sizeof(*prompts));
    if (!prompts)
        return http_out_of_memory(e);
    size_t i = 0;
    for (const cJSON *item = array->child; item; item = item->next, i++) {
        char param[48];
        snprintf(param, sizeof(param), "prompt[%zu]", i);
        if (cJSON_IsString(item)) {
            prompts[i].text = item->valuestring;
            prompts[i].text_len = strlen(item->valuestring);
        } else if (!cJSON_IsArray(item)) {
            return field_wrong_type(e, param, "a string or an array of token ids", item);
        } else if (read_token_array(p, param, item, &prompts[i], e) < 0) {
            return -1;
        }
    }
    p->prompts = prompts;
    p->n_prompts = n;
    return 0;
}

/* A text, token ids, or a list of texts and lists of ids. */
int field_read_prompt(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    bool is_string = cJSON_IsString(value);

    if (!is_string && !cJSON_IsArray(value))
        return field_wrong_type(e, name, "a string or an array", value);
    if (!is_string && !value->child)
        return empty_array(e, name);
    if (!is_string && !cJSON_IsNumber(value->child))
        return read_prompt_list(p, name, value, e);
    struct prompt *prompt = params_alloc(p, 1, sizeof(*prompt));
    if (!prompt)
        return http_out_of_memory(e);
    if (is_string) {
        prompt->text = value->valuestring;
        prompt->text_len = strlen(value->valuestring);
    } else if (read_token_array(p, name, value, prompt, e) < 0) {
        return -1;
    }
    p->prompts = prompt;
    p->n_prompts = 1;
    return 0;
}

static int add_stop(struct params *p, const char *param, const cJSON *value, struct http_error *e)
{
    if (!cJSON_IsString(value))
        return field_wrong_type(e, param, "a string", value);
    if (value->valuestring[0] == '\0')
        return http_invalid(e, param, "invalid_value",
                            "Invalid '%s': a stop string must not be empty.", param);
    p->stops[p->n_stops++] = (struct stop_string){value->valuestring, strlen(value->valuestring)};
    return 0;
}

int field_read_stop(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    p->n_stops = 0;
    if (cJSON_IsString(value))
        return add_stop(p, name, value, e);
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "a string or an array of strings", value);
    size_t n = (size_t)cJSON_GetArraySize(value);
    if (n > PARAMS_MAX_STOPS)
        return field_too_many(e, name, PARAMS_MAX_STOPS, n);
    for (const cJSON *item = value->child; item; item = item->next)
        if (add_stop(p, name, item, e) < 0)
            return -1;
    return 0;
}

int field_read_logit_bias(struct params *p, const char *name, const cJSON *value,
                          struct http_error *e)
{
    if (!cJSON_IsObject(value))
        return field_wrong_type(e, name, "an object", value);
    size_t n = (size_t)cJSON_GetArraySize(value);
    if (n > 1024)
        return field_too_many(e, name, 1024, n);
    struct logit_bias *bias = params_alloc(p, n, sizeof(*bias));
    if (!bias)
        return http_out_of_memory(e);
    size_t i = 0;
    for (const cJSON *item = value->child; item; item = item->next, i++) {
        size_t digits = strspn(item->string, "0123456789");
        if (digits == 0 || digits > 9 || item->string[digits] != '\0')
            return http_invalid(e, name, "invalid_value",
                                "Invalid 'logit_bias': '%.64s' is not a token id.", item->string);
        if (!cJSON_IsNumber(item))
            return field_wrong_type(e, name, "a map of token ids to decimals", item);
        if (!(fabs(item->valuedouble) <= 100))
            return http_invalid(e, name, "invalid_value",
                                "Invalid 'logit_bias': the bias of token %s must be between -100 "
                                "and 100.",
                                item->string);
        for (size_t c = 0; c < digits; c++)
            bias[i].token = bias[i].token * 10 + (item->string[c] - '0');
        bias[i].bias = (float)item->valuedouble;
    }
    p->sampling.bias = bias;
    p->sampling.n_bias = n;
    return 0;
}
