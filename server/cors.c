/* Cross-origin requests of browsers: off unless origins are listed. The listed origins, or all with
 * "*", are told that they may read the replies; nothing else changes. */
#include "server/internal.h"

#include <string.h>

/* Whether `origin` stands in the comma-separated list. */
static bool is_listed(const char *list, const char *origin)
{
    size_t len = strlen(origin);

    for (const char *at = list; *at;) {
        at += strspn(at, ", \t");
        size_t n = strcspn(at, ", \t");
        if ((n == 1 && *at == '*') || (n == len && memcmp(at, origin, n) == 0))
            return n > 0;
        at += n;
    }
    return false;
}

static bool add(struct MHD_Response *response, const char *name, const char *value)
{
    return MHD_add_response_header(response, name, value) == MHD_YES;
}

/* A preflight asks for headers by name; plain ones are granted. */
static bool add_preflight(struct exchange *x, struct MHD_Response *response)
{
    static const char PLAIN[] =
        "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_, ";
    const char *asked = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND,
                                                    "access-control-request-headers");
    bool ok = add(response, "access-control-allow-methods", "GET, POST, HEAD, OPTIONS") &&
              add(response, "access-control-max-age", "86400");

    if (asked && asked[0] && asked[strspn(asked, PLAIN)] == '\0')
        ok = ok && add(response, "access-control-allow-headers", asked);
    return ok;
}

bool cors_add_headers(struct exchange *x, struct MHD_Response *response)
{
    const char *list = x->server->options.cors_origins;

    if (!list || !list[0])
        return true;
    bool ok = add(response, "vary", "origin");
    const char *origin = MHD_lookup_connection_value(x->connection, MHD_HEADER_KIND, "origin");
    if (!origin || !is_listed(list, origin))
        return ok;
    ok = ok && add(response, "access-control-allow-origin", origin) &&
         add(response, "access-control-expose-headers",
             "x-request-id, request-id, retry-after, retry-after-ms, x-ratelimit-limit-requests, "
             "x-ratelimit-remaining-requests, x-ratelimit-reset-requests, "
             "x-ratelimit-limit-tokens, x-ratelimit-remaining-tokens, x-ratelimit-reset-tokens");
    return strcmp(x->method, "OPTIONS") == 0 ? ok && add_preflight(x, response) : ok;
}
