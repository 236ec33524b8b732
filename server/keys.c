/* See keys.h. */
#include "server/keys.h"

#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "server/internal.h"

#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <string.h>
#include <strings.h>

#define KEY_MAX_BYTES 512
#define KEYS_MAX 10000

static struct api_key *find(struct api_key *list, const char *text)
{
    for (struct api_key *key = list; key; key = key->next)
        if (key->text && strcmp(key->text, text) == 0)
            return key;
    return NULL;
}

static int add(struct api_key **list, const char *text, struct error *err)
{
    struct api_key *key = mem_calloc(1, sizeof(*key));

    if (!key || !(key->text = mem_strdup(text))) {
        mem_free(key);
        return error_memory(err, "API keys", strlen(text));
    }
    key->is_valid = true;
    key->next = *list;
    *list = key;
    return 0;
}

static void free_list(struct api_key *list)
{
    while (list) {
        struct api_key *next = list->next;
        mem_free(list->text);
        mem_free(list);
        list = next;
    }
}

/* One key a line; blank lines and lines that begin with # do not count. */
static int read_lines(FILE *file, const char *path, struct api_key **list, struct error *err)
{
    char line[KEY_MAX_BYTES + 2];
    unsigned number = 0, n_keys = 0;

    while (fgets(line, sizeof(line), file)) {
        size_t n = strcspn(line, "\r\n");
        number++;
        if (n > KEY_MAX_BYTES)
            return error_set(err, ERROR_INVALID, "%s:%u: a key has at most %d characters", path,
                             number, KEY_MAX_BYTES);
        line[n] = '\0';
        char *text = line + strspn(line, " \t");
        text[strcspn(text, " \t")] = '\0';
        if (text[0] == '\0' || text[0] == '#' || find(*list, text))
            continue;
        if (++n_keys > KEYS_MAX)
            return error_set(err, ERROR_INVALID, "%s: more than %d keys", path, KEYS_MAX);
        if (add(list, text, err) < 0)
            return -(int)err->code;
    }
    if (ferror(file))
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    if (n_keys == 0)
        return error_set(err, ERROR_INVALID, "%s: it has no key; a line each is expected", path);
    return 0;
}

static int read_file(const char *path, struct api_key **list, struct error *err)
{
    FILE *file = fopen(path, "re");

    if (!file)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    int result = read_lines(file, path, list, err);
    fclose(file);
    return result;
}

/* `fresh` become the valid keys; one that was there before keeps its allowance. Dropped ones stay
 * in memory, because requests point to them. */
static void replace(struct server *server, struct api_key *fresh)
{
    for (struct api_key *key = server->keys; key; key = key->next)
        key->is_valid = key->is_from_settings;
    while (fresh) {
        struct api_key *next = fresh->next;
        struct api_key *known = find(server->keys, fresh->text);
        fresh->next = NULL;
        if (known) {
            known->is_valid = true;
            free_list(fresh);
        } else {
            fresh->next = server->keys;
            server->keys = fresh;
        }
        fresh = next;
    }
}

int keys_reload(struct server *server, struct error *err)
{
    struct api_key *fresh = NULL;

    if (!server->options.api_key_file)
        return 0;
    int result = read_file(server->options.api_key_file, &fresh, err);
    if (result < 0)
        free_list(fresh);
    else
        replace(server, fresh);
    return result;
}

int keys_open(struct server *server, const char *const *texts, size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++) {
        if (find(server->keys, texts[i]))
            continue;
        if (add(&server->keys, texts[i], err) < 0)
            return -(int)err->code;
        server->keys->is_from_settings = true;
    }
    server->needs_key = n > 0 || server->options.api_key_file;
    return keys_reload(server, err);
}

void keys_close(struct server *server)
{
    free_list(server->keys);
    server->keys = NULL;
}

bool keys_are_needed(const struct server *server)
{
    return server->needs_key;
}

/* The time depends on the length sent and on the number of keys, not on where they differ. */
static bool is_equal(const char *sent, size_t n_sent, const char *key)
{
    size_t n_key = strlen(key);
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

int keys_check(struct exchange *x, struct http_error *e)
{
    struct server *server = x->server;
    const char *sent = NULL;
    struct api_key *found = NULL;

    if (!server->needs_key) {
        x->key = &server->everybody;
        return 0;
    }
    sent = sent_key(x->connection);
    size_t n_sent = sent ? strlen(sent) : 0;
    for (struct api_key *key = server->keys; sent && key; key = key->next)
        if (is_equal(sent, n_sent, key->text) && key->is_valid)
            found = key;
    if (found) {
        x->key = found;
        return 0;
    }
    return http_error_set(e, 401, "invalid_api_key",
                          sent ? "Incorrect API key provided."
                               : "You didn't provide an API key. You need to provide your API key "
                                 "in an Authorization header using Bearer auth (i.e. "
                                 "Authorization: Bearer YOUR_KEY).");
}

uint64_t keys_fairness(const struct exchange *x)
{
    const union MHD_ConnectionInfo *info =
        MHD_get_connection_info(x->connection, MHD_CONNECTION_INFO_CLIENT_ADDRESS);
    const struct sockaddr *address = info ? info->client_addr : NULL;

    if (x->key && x->key->text)
        return hash_bytes(HASH_START, x->key->text, strlen(x->key->text));
    if (address && address->sa_family == AF_INET)
        return hash_bytes(HASH_START, &((const struct sockaddr_in *)address)->sin_addr, 4);
    if (address && address->sa_family == AF_INET6) /* a client has a /64 */
        return hash_bytes(HASH_START, &((const struct sockaddr_in6 *)address)->sin6_addr, 8);
    return 0;
}
