/* Requests that wait to be admitted to prefill. The lowest priority value goes first; among these
 * the keys take turns; a key's own in order of arrival. The prefill thread's. */
#ifndef OVERFILL_ENGINE_POOL_WAITING_H
#define OVERFILL_ENGINE_POOL_WAITING_H

#include "engine/pool/pool_internal.h"

#define WAITING_KEYS 256 /* keys told apart; more share turns */

struct waiting {
    struct request_queue queue; /* in order of arrival */
    uint64_t n_turns;
    uint64_t turns[WAITING_KEYS]; /* when each key was served last */
};

/* Who is next, or NULL. O(requests waiting). */
struct request *waiting_next(const struct waiting *waiting);
/* Takes it out; its key has had its turn if it was admitted. */
void waiting_remove(struct waiting *waiting, struct request *request, bool is_admitted);

#endif
