/* Opens the listening socket. It is ours rather than the daemon's, so that the port is known and a
 * wrong address is told with its name before anything else is started. */
#include "server/internal.h"

#include <errno.h>
#include <netdb.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

static int open_one(const struct addrinfo *address)
{
    int on = 1;
    int fd = socket(address->ai_family, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0);

    if (fd < 0)
        return -1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof(on));
    if (bind(fd, address->ai_addr, address->ai_addrlen) == 0 && listen(fd, SOMAXCONN) == 0)
        return fd;
    int saved = errno;
    close(fd);
    errno = saved;
    return -1;
}

uint16_t listen_port(int fd)
{
    union {
        struct sockaddr any;
        struct sockaddr_in v4;
        struct sockaddr_in6 v6;
    } address = {.v6 = {0}};
    socklen_t len = sizeof(address);

    if (getsockname(fd, &address.any, &len) < 0)
        return 0;
    in_port_t port = address.any.sa_family == AF_INET6 ? address.v6.sin6_port : address.v4.sin_port;
    return ntohs(port);
}

static bool is_local(const struct addrinfo *address)
{
    if (address->ai_family == AF_INET6)
        return IN6_IS_ADDR_LOOPBACK(&((struct sockaddr_in6 *)address->ai_addr)->sin6_addr);
    uint32_t v4 = ntohl(((struct sockaddr_in *)address->ai_addr)->sin_addr.s_addr);
    return v4 >> 24 == IN_LOOPBACKNET;
}

int listen_open(const char *host, uint16_t port, bool only_local, int *ret_fd, uint16_t *ret_port,
                struct error *err)
{
    struct addrinfo hints = {.ai_socktype = SOCK_STREAM, .ai_flags = AI_PASSIVE | AI_NUMERICSERV};
    struct addrinfo *list = NULL;
    char service[8];
    int fd = -1;

    snprintf(service, sizeof(service), "%u", port);
    int code = getaddrinfo(host, service, &hints, &list);
    if (code != 0)
        return error_set(err, ERROR_IO, "host %s: %s", host, gai_strerror(code));
    for (const struct addrinfo *a = list; a; a = a->ai_next)
        if (only_local && !is_local(a)) {
            freeaddrinfo(list);
            return error_set(err, ERROR_INVALID,
                             "host %s: other machines would reach the server without an API key; "
                             "set api-key-file or api-keys, or allow-open: yes",
                             host);
        }
    for (const struct addrinfo *a = list; a && fd < 0; a = a->ai_next)
        fd = open_one(a);
    int saved = errno;
    freeaddrinfo(list);
    if (fd < 0)
        return error_set(err, ERROR_IO, "cannot listen on %s port %u: %s", host, port,
                         strerror(saved));
    *ret_fd = fd;
    *ret_port = listen_port(fd);
    return 0;
}
