/* Error replies: which status, type and code belong to which failure, and the JSON text of it.
 * The texts follow OpenAI's own where there is one, because clients match on them. */
#include "server/errors.h"

#include "server/json_write.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <string.h>

static const char *const REASON_NAMES[N_REJECT_REASONS] = {
    [REJECT_NONE] = "none",       [REJECT_INVALID] = "invalid",   [REJECT_CONTEXT] = "context",
    [REJECT_MODEL] = "model",     [REJECT_ROUTE] = "route",       [REJECT_TOO_LARGE] = "too_large",
    [REJECT_KEY] = "key",         [REJECT_BUSY] = "queue_full",   [REJECT_MEMORY] = "memory",
    [REJECT_LOADING] = "loading", [REJECT_DRAINING] = "draining", [REJECT_RATE] = "rate_limit",
    [REJECT_TIMEOUT] = "timeout",
};

const char *reject_reason_name(enum reject_reason reason)
{
    return REASON_NAMES[reason];
}

/* The SDKs retry 408, 409, 429 and everything from 500 on, so these statuses are kept for what a
 * retry can cure. */
static const struct {
    unsigned status;
    const char *type;
    enum reject_reason reason;
    unsigned retry_after_s;
} STATUSES[] = {
    {400, "invalid_request_error", REJECT_INVALID, 0},
    {401, "invalid_request_error", REJECT_KEY, 0},
    {404, "invalid_request_error", REJECT_ROUTE, 0},
    {405, "invalid_request_error", REJECT_ROUTE, 0},
    {408, "invalid_request_error", REJECT_TIMEOUT, 0},
    {413, "invalid_request_error", REJECT_TOO_LARGE, 0},
    {429, "requests", REJECT_BUSY, 1},
    {500, "server_error", REJECT_NONE, 0},
    {503, "unavailable_error", REJECT_NONE, 1},
};

static void set_status(struct http_error *e, unsigned status, const char *code)
{
    size_t i = 0;
    while (i + 1 < sizeof(STATUSES) / sizeof(STATUSES[0]) && STATUSES[i].status != status)
        i++;
    *e = (struct http_error){.status = status,
                             .type = STATUSES[i].type,
                             .code = code,
                             .reason = STATUSES[i].reason,
                             .retry_after_s = STATUSES[i].retry_after_s};
}

int http_invalid(struct http_error *e, const char *param, const char *code, const char *fmt, ...)
{
    va_list args;

    set_status(e, 400, code);
    if (param)
        snprintf(e->param, sizeof(e->param), "%s", param);
    va_start(args, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    return -1;
}

int http_error_set(struct http_error *e, unsigned status, const char *code, const char *fmt, ...)
{
    va_list args;

    set_status(e, status, code);
    va_start(args, fmt);
    vsnprintf(e->message, sizeof(e->message), fmt, args);
    va_end(args);
    return -1;
}

int http_out_of_memory(struct http_error *e)
{
    http_error_set(e, 503, "out_of_memory",
                   "The server has no memory left for this request. Please retry later.");
    e->reason = REJECT_MEMORY;
    return -1;
}

static void set_context_error(struct http_error *e, const char *param, uint32_t n_prompt,
                              uint32_t n_ctx, uint32_t max_tokens)
{
    if (n_prompt < n_ctx && max_tokens != UINT32_MAX)
        http_invalid(e, param, "context_length_exceeded",
                     "This model's maximum context length is %u tokens. However, you requested "
                     "%llu tokens (%u in the %s, %u in the completion). Please reduce the length "
                     "of the %s or completion.",
                     n_ctx, (unsigned long long)n_prompt + max_tokens, n_prompt, param, max_tokens,
                     param);
    else
        http_invalid(e, param, "context_length_exceeded",
                     "This model's maximum context length is %u tokens. However, your %s resulted "
                     "in %u tokens. Please reduce the length of the %s.",
                     n_ctx, param, n_prompt, param);
    e->reason = REJECT_CONTEXT;
    e->n_prompt_tokens = n_prompt;
    e->n_ctx = n_ctx;
}

/* The engine's messages begin with the field at fault ("n: ...", "prompt[3]: ..."). */
static void set_invalid(struct http_error *e, const struct error *err, const char *param)
{
    size_t n = strspn(err->message, "abcdefghijklmnopqrstuvwxyz_0123456789.[]");
    char field[sizeof(e->param)];
    bool names_field = n > 0 && n < sizeof(field) && strncmp(err->message + n, ": ", 2) == 0;

    if (names_field)
        snprintf(field, sizeof(field), "%.*s", (int)n, err->message);
    http_invalid(e, names_field ? field : param, "invalid_value", "%s", err->message);
}

void http_error_from_engine(struct http_error *e, const struct error *err, const char *param,
                            uint32_t n_prompt_tokens, uint32_t n_ctx, uint32_t max_tokens)
{
    switch (err->code) {
    case ERROR_CONTEXT:
        set_context_error(e, param, n_prompt_tokens, n_ctx, max_tokens);
        return;
    case ERROR_INVALID:
        set_invalid(e, err, param);
        return;
    case ERROR_UNSUPPORTED:
        http_invalid(e, param, "unsupported_value", "%s", err->message);
        return;
    case ERROR_BUSY:
        http_error_set(e, 429, "rate_limit_exceeded",
                       "The server's queue is full: %s. Please retry after a moment.",
                       err->message);
        return;
    case ERROR_MEMORY:
        http_out_of_memory(e);
        return;
    case ERROR_SHUTDOWN:
    case ERROR_CANCELLED:
        http_error_set(e, 503, "server_shutting_down",
                       "The server is shutting down. Please retry elsewhere or later.");
        e->reason = REJECT_DRAINING;
        return;
    default:
        http_error_set(e, 500, "internal_error", "%s", err->message);
        return;
    }
}

void http_error_write_object(struct buf *out, const struct http_error *e)
{
    buf_append_str(out, "{\"message\":");
    json_write_string(out, e->message, strlen(e->message));
    buf_append_str(out, ",\"type\":");
    json_write_string(out, e->type, strlen(e->type));
    buf_append_str(out, ",\"param\":");
    json_write_string_or_null(out, e->param[0] ? e->param : NULL);
    buf_append_str(out, ",\"code\":");
    json_write_string_or_null(out, e->code);
    if (e->n_ctx)
        buf_printf(out, ",\"n_prompt_tokens\":%u,\"n_ctx\":%u", e->n_prompt_tokens, e->n_ctx);
    buf_append(out, "}", 1);
}

static const char *anthropic_type(unsigned status)
{
    switch (status) {
    case 401:
        return "authentication_error";
    case 404:
        return "not_found_error";
    case 413:
        return "request_too_large";
    case 429:
        return "rate_limit_error";
    case 503:
        return "overloaded_error";
    default:
        return status >= 500 ? "api_error" : "invalid_request_error";
    }
}

void http_error_write(struct buf *out, const struct http_error *e, enum dialect dialect)
{
    struct http_error copy;

    if (dialect == DIALECT_ANTHROPIC) {
        copy = *e;
        copy.type = anthropic_type(e->status);
        e = &copy;
    }
    buf_append_str(out,
                   dialect == DIALECT_ANTHROPIC ? "{\"type\":\"error\",\"error\":" : "{\"error\":");
    http_error_write_object(out, e);
    buf_append(out, "}", 1);
}
