/* Work for an answer that is too long for the loop: done on libuv's thread pool, replied on the
 * loop. The work sees only what is given to it, never the exchange, whose client may leave
 * meanwhile. */
#ifndef OVERFILL_SERVER_OFFLOAD_H
#define OVERFILL_SERVER_OFFLOAD_H

#include "server/internal.h"

#include <cjson/cJSON.h>

/* Any thread. 0 and the reply's JSON in *out, or -1 and *e. */
typedef int (*offload_work)(const struct engine *engine, const cJSON *object, struct buf *out,
                            struct http_error *e);

/* 0: `object` is taken over, and x gets its reply later. -1: it could not be started. */
int offload_start(struct exchange *x, offload_work work, cJSON *object);
/* The exchange ends before its work does. */
void offload_detach(struct exchange *x);

#endif
