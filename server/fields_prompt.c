/* Readers of the completions' prompt and of the fields whose list has a shape of its own: stop,
 * logit_bias. Text stays where cJSON put it; what has to be built is owned by the params. */
#include "server/fields.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

static int read_token_array(struct params *p, const char *param, const cJSON *array,
                            struct prompt *prompt, struct http_error *e)
{
    size_t n = (size_t)cJSON_GetArraySize(array);
    if (n == 0)
        return field_empty_array(e, param);
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

    if (!is_string && p->route == ON_TOKENIZE)
        return field_wrong_type(e, name, "a string", value);
    if (!is_string && !cJSON_IsArray(value))
        return field_wrong_type(e, name, "a string or an array", value);
    if (!is_string && !value->child)
        return field_empty_array(e, name);
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

/* The ids to turn back into text; none is fine. */
int field_read_tokens(struct params *p, const char *name, const cJSON *value, struct http_error *e)
{
    if (!cJSON_IsArray(value))
        return field_wrong_type(e, name, "an array of token ids", value);
    struct prompt *prompt = params_alloc(p, 1, sizeof(*prompt));
    if (!prompt)
        return http_out_of_memory(e);
    if (value->child && read_token_array(p, name, value, prompt, e) < 0)
        return -1;
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
    if (cJSON_IsString(value) && p->route != ON_MESSAGES)
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
