/* API keys: from the settings and from a file that SIGHUP reads again, compared in constant time.
 * Each key has its own allowance of requests and tokens (limits.c). Loop thread only. */
#ifndef OVERFILL_SERVER_KEYS_H
#define OVERFILL_SERVER_KEYS_H

#include "engine/base/error.h"
#include "server/errors.h"

#include <microhttpd.h>
#include <stdbool.h>

struct exchange;
struct server;

/* A bucket that fills at limit / 60 s; may be in debt. */
struct allowance {
    double left;
    uint64_t at_ns; /* 0: untouched, full */
};

struct api_key {
    struct api_key *next;
    char *text;            /* NULL: the key of everybody, where none is needed */
    bool is_from_settings; /* a reload leaves it alone */
    bool is_valid; /* false: a reload dropped it; requests that came with it may still point here */
    struct allowance requests, tokens;
};

/* Keys of the options, then those of the file. ERROR_INVALID names file and line. */
int keys_open(struct server *server, const char *const *texts, size_t n, struct error *err);
void keys_close(struct server *server);
/* Reads the file again. On failure the keys stay as they were. */
int keys_reload(struct server *server, struct error *err);
bool keys_are_needed(const struct server *server);

/* Sets x->key, or *e: 401. */
int keys_check(struct exchange *x, struct http_error *e);
/* A number for whoever sent it: the key, or the client's address where no key is needed. */
uint64_t keys_fairness(const struct exchange *x);

/* limits.c. Before the work: 0, or -1 and *e (429) when the key's allowance is used up. */
int limits_take(struct exchange *x, struct http_error *e);
/* After it: what the work was. */
void limits_charge(struct exchange *x, uint32_t n_tokens);
/* The x-ratelimit headers, where there are limits. */
bool limits_add_headers(const struct exchange *x, struct MHD_Response *response);

#endif
