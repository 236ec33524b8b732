/* Deadlines of connections. libmicrohttpd only knows idleness, which a client that sends a byte now
 * and then never shows; here headers and bodies must be complete within a time. Loop thread only.
 */
#ifndef OVERFILL_SERVER_GUARD_H
#define OVERFILL_SERVER_GUARD_H

#include <stdbool.h>
#include <stdint.h>

struct exchange;
struct server;

struct client {
    struct server *server;
    struct client *prev, *next;
    int fd;
    struct exchange *exchange; /* the request at hand, NULL between two */
    uint64_t headers_since_ns; /* a request's first bytes were seen; 0: none yet */
    uint64_t n_bytes_at_rest;  /* received when the last reply was begun */
    bool is_told;              /* 408 is sent, the daemon is about to notice the end */
};

struct client *guard_open(struct server *server, int fd); /* NULL: no memory; goes unguarded */
void guard_close(struct client *client);
void guard_begin(struct client *client, struct exchange *x); /* the headers are complete */
void guard_answer(struct client *client);                    /* the reply is about to be sent */
void guard_end(struct client *client);                       /* the reply is out */
/* Once a second: ends what took too long. */
void guard_check(struct server *server, uint64_t now_ns);

/* Bytes that a connection has received so far, and whether the peer has closed its side; 0 and
 * false where the kernel does not say (not TCP). ret_has_left may be NULL. */
uint64_t guard_bytes_received(int fd, bool *ret_has_left);

#endif
