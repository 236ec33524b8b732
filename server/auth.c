/* API keys: `Authorization: Bearer KEY` or `X-Api-Key: KEY`, compared in constant time. */
#include "server/internal.h"

#include <string.h>
#include <strings.h>

/* The time depends on the length sent, not on where the keys differ. */
static bool keys_are_equal(const char *sent, const char *key)
{
    size_t n_sent = strlen(sent), n_key = strlen(key);
    unsigned difference = n_sent != n_key;

    for (size_t i = 0; i < n_sent; i++)
        difference |= (unsigned char)sent[i] ^ (unsigned char)key[n_key ? i % n_key : 0];
    return difference == 0;
}

static const char *sent_key(struct MHD_Connection *connection)
{
    const char *value = MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "authorization");

    if (value && strncasecmp(value, "Bearer ", 7) == 0)
        return value + 7;
    return MHD_lookup_connection_value(connection, MHD_HEADER_KIND, "x-api-key");
}

int auth_check(const struct server *server, struct MHD_Connection *connection, struct http_error *e)
{
    bool is_known = server->options.n_api_keys == 0;
    const char *sent = is_known ? NULL : sent_key(connection);

    for (size_t i = 0; sent && i < server->options.n_api_keys; i++)
        is_known |= keys_are_equal(sent, server->keys[i]);
    if (is_known)
        return 0;
    return http_error_set(e, 401, "invalid_api_key",
                          sent ? "Incorrect API key provided."
                               : "You didn't provide an API key. You need to provide your API key "
                                 "in an Authorization header using Bearer auth (i.e. "
                                 "Authorization: Bearer YOUR_KEY).");
}
