/* Readers of conversations, in the three wordings that the routes know: chat's and Anthropic's
 * `messages`, Responses' `input`, and the system text that the latter two keep in a field of its
 * own. Text stays where cJSON put it; what has to be built is owned by the params. */
#include "engine/base/mem.h"
#include "server/fields.h"

#include <stdio.h>
#include <string.h>

/* What a part of a message may be called, where only text is spoken. */
static bool is_text_type(const struct params *p, const char *type)
{
    if (strcmp(type, "text") == 0)
        return true;
    return p->route == ON_RESPONSES &&
           (strcmp(type, "input_text") == 0 || strcmp(type, "output_text") == 0);
}

/* {"type":"text","text":"..."}: the text, or NULL with *e set. */
static const char *read_text_part(const struct params *p, const cJSON *part, const char *param,
                                  struct http_error *e)
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
    if (!is_text_type(p, type->valuestring)) {
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
        const char *text = read_text_part(p, part, part_param, e);
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

/* A string or a list of text parts. */
static int read_text(struct params *p, const cJSON *content, const char *param,
                     struct chat_message *message, struct http_error *e)
{
    if (cJSON_IsString(content)) {
        message->content = content->valuestring;
        message->content_len = strlen(content->valuestring);
        return 0;
    }
    if (!cJSON_IsArray(content))
        return field_wrong_type(e, param, "a string or an array of text parts", content);
    if (!content->child)
        return field_empty_array(e, param);
    return join_parts(p, content, param, message, e);
}

static int read_content(struct params *p, const cJSON *object, const char *param,
                        struct chat_message *message, struct http_error *e)
{
    char name[96];
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(object, "content");

    snprintf(name, sizeof(name), "%s.content", param);
    if ((!content || cJSON_IsNull(content)) && strcmp(message->role, "assistant") == 0) {
        message->content = "";
        return 0;
    }
    return content ? read_text(p, content, name, message, e) : field_missing(e, name);
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
        return field_unsupported(e, name);
    }
    return 0;
}

/* *ret_role is ours: "system", "user" or "assistant". */
static int read_role(const struct params *p, const cJSON *object, const char *param,
                     const char **ret_role, struct http_error *e)
{
    static const struct {
        const char *sent, *role;
    } ROLES[] = {{"user", "user"},
                 {"assistant", "assistant"},
                 {"system", "system"},
                 {"developer", "system"}}; /* OpenAI's newer name for it */
    size_t n = p->route & ON_ANTHROPIC ? 2 : sizeof(ROLES) / sizeof(ROLES[0]);
    const cJSON *role = cJSON_GetObjectItemCaseSensitive(object, "role");
    char name[96];

    snprintf(name, sizeof(name), "%s.role", param);
    if (!role)
        return field_missing(e, name);
    if (!cJSON_IsString(role))
        return field_wrong_type(e, name, "a string", role);
    for (size_t i = 0; i < n; i++)
        if (strcmp(role->valuestring, ROLES[i].sent) == 0) {
            *ret_role = ROLES[i].role;
            return 0;
        }
    return http_invalid(e, name, "invalid_value",
                        "Invalid value: '%.64s'. Supported values are: %s.", role->valuestring,
                        n == 2 ? "'user' and 'assistant'"
                               : "'system', 'developer', 'user' and 'assistant'");
}

static int read_message(struct params *p, const char *field, const cJSON *object, size_t i_message,
                        struct chat_message *message, struct http_error *e)
{
    const cJSON *type = cJSON_GetObjectItemCaseSensitive(object, "type");
    char param[48];

    snprintf(param, sizeof(param), "%s[%zu]", field, i_message);
    if (!cJSON_IsObject(object))
        return field_wrong_type(e, param, "an object", object);
    if (p->route == ON_RESPONSES && cJSON_IsString(type) &&
        strcmp(type->valuestring, "message") != 0)
        return http_invalid(e, param, "unsupported_parameter",
                            "Unsupported parameter: '%s' has type '%.64s', but this server takes "
                            "'message' only.",
                            param, type->valuestring);
    if (read_role(p, object, param, &message->role, e) < 0 ||
        refuse_tool_members(object, param, e) < 0)
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
        return field_empty_array(e, name);
    if (n > PARAMS_MAX_MESSAGES)
        return field_too_many(e, name, PARAMS_MAX_MESSAGES, n);
    struct chat_message *messages = params_alloc(p, n, sizeof(*messages));
    if (!messages)
        return http_out_of_memory(e);
    size_t i = 0;
    for (const cJSON *item = value->child; item; item = item->next, i++)
        if (read_message(p, name, item, i, &messages[i], e) < 0)
            return -1;
    p->messages = messages;
    p->n_messages = n;
    return 0;
}

/* A text is one message of the user's. */
int field_read_input(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    if (!cJSON_IsString(value))
        return cJSON_IsArray(value) ? field_read_messages(p, name, value, e)
                                    : field_wrong_type(e, name, "a string or an array", value);
    struct chat_message *message = params_alloc(p, 1, sizeof(*message));
    if (!message)
        return http_out_of_memory(e);
    *message = (struct chat_message){"user", value->valuestring, strlen(value->valuestring)};
    p->messages = message;
    p->n_messages = 1;
    return 0;
}

int field_read_system(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    if (p->route == ON_RESPONSES && !cJSON_IsString(value))
        return field_wrong_type(e, name, "a string", value);
    if (cJSON_IsArray(value) && !value->child)
        return 0;
    p->system.role = "system";
    return read_text(p, value, name, &p->system, e);
}

int params_place_system(struct params *p, struct http_error *e)
{
    if (!p->system.role || !p->messages)
        return 0;
    struct chat_message *all = params_alloc(p, p->n_messages + 1, sizeof(*all));
    if (!all)
        return http_out_of_memory(e);
    all[0] = p->system;
    memcpy(all + 1, p->messages, p->n_messages * sizeof(*all));
    p->messages = all;
    p->n_messages++;
    return 0;
}
