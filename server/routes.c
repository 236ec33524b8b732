/* What the server serves: one table of method and path. HEAD goes where GET goes (the daemon leaves
 * the body out), OPTIONS answers from the table. */
#include "server/internal.h"

#include <string.h>

static void handle_options(struct exchange *x)
{
    exchange_reply_static(x, 204, NULL, "", 0); /* route_find has added the allow header */
}

#define LABEL(method, path) "handler=\"" path "\",method=\"" method "\""

const struct route ROUTES[] = {
    {"POST", "/v1/chat/completions", handle_chat_completions, .needs_key = true, .is_limited = true,
     .label = LABEL("POST", "/v1/chat/completions")},
    {"POST", "/v1/completions", handle_completions, .needs_key = true, .is_limited = true,
     .label = LABEL("POST", "/v1/completions")},
    {"POST", "/v1/responses", handle_responses, .needs_key = true, .is_limited = true,
     .label = LABEL("POST", "/v1/responses")},
    {"POST", "/v1/messages", handle_messages, .needs_key = true, .is_limited = true,
     .label = LABEL("POST", "/v1/messages")},
    {"POST", "/v1/messages/count_tokens", handle_count_tokens, .needs_key = true,
     .label = LABEL("POST", "/v1/messages/count_tokens")},
    {"GET", "/v1/models", handle_models, .needs_key = true, .is_quiet = true,
     .label = LABEL("GET", "/v1/models")},
    {"GET", "/v1/models/*", handle_model, .needs_key = true, .is_quiet = true,
     .label = LABEL("GET", "/v1/models/{id}")},
    {"POST", "/tokenize", handle_tokenize, .needs_key = true, .label = LABEL("POST", "/tokenize")},
    {"POST", "/detokenize", handle_detokenize, .needs_key = true,
     .label = LABEL("POST", "/detokenize")},
    {"GET", "/tokenizer_info", handle_tokenizer_info, .needs_key = true, .is_quiet = true,
     .label = LABEL("GET", "/tokenizer_info")},
    {"GET", "/openapi.json", handle_openapi, .is_quiet = true,
     .label = LABEL("GET", "/openapi.json")},
    {"GET", "/health", handle_health, .is_quiet = true, .label = LABEL("GET", "/health")},
    {"GET", "/metrics", handle_metrics, .is_quiet = true, .label = LABEL("GET", "/metrics")},
    {"GET", "/version", handle_version, .is_quiet = true, .label = LABEL("GET", "/version")},
    {"GET", "/", handle_index, .is_quiet = true, .label = LABEL("GET", "/")},
};
const unsigned N_ROUTES = sizeof(ROUTES) / sizeof(ROUTES[0]);
_Static_assert(sizeof(ROUTES) / sizeof(ROUTES[0]) < METRICS_MAX_ROUTES, "a slot for `other` too");

static const struct route OPTIONS_ROUTE = {"OPTIONS", "*", handle_options, .is_quiet = true};

unsigned route_index(const struct route *route)
{
    return route >= ROUTES && route < ROUTES + N_ROUTES ? (unsigned)(route - ROUTES) : N_ROUTES;
}

/* llama-server takes these without /v1, and clients of its have such a base URL. */
static const struct {
    const char *url, *path;
} ALIASES[] = {
    {"/chat/completions", "/v1/chat/completions"},
    {"/responses", "/v1/responses"},
    {"/models", "/v1/models"},
    {"/v1/health", "/health"},
};

static const char *path_of(const char *url)
{
    for (size_t i = 0; i < sizeof(ALIASES) / sizeof(ALIASES[0]); i++)
        if (strcmp(ALIASES[i].url, url) == 0)
            return ALIASES[i].path;
    return url;
}

static bool path_matches(const char *pattern, const char *url)
{
    size_t n = strlen(pattern);

    if (pattern[n - 1] != '*')
        return strcmp(pattern, url) == 0;
    return strncmp(pattern, url, n - 1) == 0 && url[n - 1] != '\0';
}

void route_allowed_methods(const char *url, struct buf *out)
{
    for (unsigned i = 0; i < N_ROUTES; i++) {
        if (!path_matches(ROUTES[i].path, url))
            continue;
        buf_append_str(out, ROUTES[i].method);
        buf_append_str(out, strcmp(ROUTES[i].method, "GET") == 0 ? ", HEAD, " : ", ");
    }
    if (out->len)
        buf_append_str(out, "OPTIONS");
}

void route_find(struct exchange *x, const char *url)
{
    const char *method = strcmp(x->method, "HEAD") == 0 ? "GET" : x->method;
    static const char MESSAGES[] = "/v1/messages";
    const char *path = path_of(url);
    _cleanup_buf_ struct buf allowed = {0};

    if (strncmp(url, MESSAGES, sizeof(MESSAGES) - 1) == 0)
        x->dialect = DIALECT_ANTHROPIC;
    for (unsigned i = 0; i < N_ROUTES; i++)
        if (strcmp(ROUTES[i].method, method) == 0 && path_matches(ROUTES[i].path, path)) {
            x->route = &ROUTES[i];
            return;
        }
    route_allowed_methods(path, &allowed);
    if (!allowed.data) {
        http_error_set(&x->early, 404, "unknown_url", "Invalid URL (%s %.200s)", x->method, url);
        return;
    }
    exchange_add_header(x, "allow", allowed.data);
    if (strcmp(method, "OPTIONS") == 0)
        x->route = &OPTIONS_ROUTE;
    else
        http_error_set(&x->early, 405, "method_not_supported",
                       "Not allowed to %s on %.200s. (HINT: Perhaps you meant to use a different "
                       "HTTP method?)",
                       x->method, url);
}
