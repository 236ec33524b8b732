/* From a request's body to what its handler needs: parse, check along the field table, and what
 * else can be computed without the loop. Small bodies are worked on at once; large ones on a thread
 * of the loop's pool, so that nobody else's events wait for megabytes of JSON. The thread sees only
 * what was given to it, never the exchange, whose client may leave meanwhile. */
#ifndef OVERFILL_SERVER_REQUEST_H
#define OVERFILL_SERVER_REQUEST_H

#include "server/fields.h"
#include "server/internal.h"

struct answer_shape;

/* What a route does with a body. */
struct request_plan {
    enum field_route route;
    /* Any thread, after the fields were read; may be NULL. 0, or -1 and *e. */
    int (*work)(const struct engine *engine, struct params *params, struct buf *out,
                struct http_error *e);
    /* Loop thread, last. 0, or -1 and *e. NULL: *out is the reply. */
    int (*finish)(struct exchange *x, const struct request_plan *plan, struct params *params,
                  struct http_error *e);
    const struct answer_shape *shape; /* for finish */
};

/* Answers x, now or later. */
void request_run(struct exchange *x, const struct request_plan *plan);
/* The exchange ends before its work does. */
void request_detach(struct exchange *x);

#endif
