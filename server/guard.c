/* See guard.h. The daemon does not tell that it has read half of a request's headers, but the
 * kernel tells how many bytes a connection has received: more than when it last came to rest means
 * that a request has begun. */
#include "server/guard.h"

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "server/internal.h"

#include <string.h>
#include <sys/socket.h>

struct client *guard_open(struct server *server, int fd)
{
    struct client *client = mem_calloc(1, sizeof(*client));

    if (!client)
        return NULL;
    client->server = server;
    client->fd = fd;
    client->headers_since_ns = system_now_ns(); /* who connects has something to ask */
    client->next = server->clients;
    if (client->next)
        client->next->prev = client;
    server->clients = client;
    return client;
}

void guard_close(struct client *client)
{
    if (!client)
        return;
    if (client->prev)
        client->prev->next = client->next;
    else
        client->server->clients = client->next;
    if (client->next)
        client->next->prev = client->prev;
    mem_free(client);
}

void guard_begin(struct client *client, struct exchange *x)
{
    if (client)
        client->exchange = x;
}

void guard_end(struct client *client)
{
    if (!client)
        return;
    client->exchange = NULL;
    client->headers_since_ns = 0;
}

/* Not only at the end: who has the reply may send the next request before we get there. */
void guard_answer(struct client *client)
{
    if (client)
        client->n_bytes_at_rest = guard_bytes_received(client->fd, NULL);
}

/* Past the daemon, which has nothing to say on this connection yet: the answer, then the end. */
static void end(struct client *client, const char *what, unsigned seconds)
{
    static const char BODY[] =
        "{\"error\":{\"message\":\"The request did not arrive in time. Please send it at once.\","
        "\"type\":\"invalid_request_error\",\"param\":null,\"code\":\"timeout\"}}";
    char reply[400];
    struct server *server = client->server;

    client->is_told = true;
    server->metrics.rejected[REJECT_TIMEOUT]++;
    log_debug("http: %s not complete after %u s", what, seconds);
    if (client->exchange)
        client->exchange->status = 408;
    int n = snprintf(reply, sizeof(reply),
                     "HTTP/1.1 408 Request Timeout\r\nConnection: close\r\n"
                     "Content-Type: application/json\r\nContent-Length: %zu\r\n\r\n%s",
                     sizeof(BODY) - 1, BODY);
    if (!server->options.tls_certificate)
        send(client->fd, reply, (size_t)n, MSG_DONTWAIT | MSG_NOSIGNAL);
    shutdown(client->fd, SHUT_RDWR);
    server->needs_pump = true;
}

static bool is_over(uint64_t since_ns, uint64_t now_ns, unsigned seconds)
{
    return seconds && now_ns > since_ns && now_ns - since_ns > (uint64_t)seconds * 1000000000u;
}

static void check(struct client *client, uint64_t now_ns)
{
    const struct server_options *o = &client->server->options;
    const struct exchange *x = client->exchange;

    if (client->is_told || (x && x->phase != EXCHANGE_RECEIVING))
        return;
    bool has_left;
    uint64_t n_bytes = guard_bytes_received(client->fd, &has_left);
    if (has_left) { /* with half a request or none: the daemon does not always see that */
        client->is_told = true;
        shutdown(client->fd, SHUT_RDWR);
        return;
    }
    if (x) {
        if (is_over(x->start_ns, now_ns, o->body_seconds))
            end(client, "body", o->body_seconds);
        return;
    }
    if (!client->headers_since_ns && n_bytes != client->n_bytes_at_rest)
        client->headers_since_ns = now_ns;
    if (client->headers_since_ns && is_over(client->headers_since_ns, now_ns, o->header_seconds))
        end(client, "headers", o->header_seconds);
}

void guard_check(struct server *server, uint64_t now_ns)
{
    for (struct client *client = server->clients; client; client = client->next)
        check(client, now_ns);
}
