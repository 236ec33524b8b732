/* See waiting.h. */
#include "engine/pool/waiting.h"

#include "engine/base/hash.h"

static size_t key_of(const struct request *request)
{
    uint64_t key = request->in.fairness_key;
    return hash_bytes(HASH_START, &key, sizeof(key)) % WAITING_KEYS;
}

static bool goes_before(const struct waiting *w, const struct request *a, const struct request *b)
{
    if (a->in.priority != b->in.priority)
        return a->in.priority < b->in.priority;
    return w->turns[key_of(a)] < w->turns[key_of(b)];
}

struct request *waiting_next(const struct waiting *waiting)
{
    struct request *best = waiting->queue.head;
    for (struct request *r = best; r; r = r->next)
        if (goes_before(waiting, r, best))
            best = r;
    return best;
}

void waiting_remove(struct waiting *waiting, struct request *request, bool is_admitted)
{
    struct request_queue *queue = &waiting->queue;
    struct request *before = NULL;
    for (struct request *r = queue->head; r != request; r = r->next)
        before = r;
    if (before)
        before->next = request->next;
    else
        queue->head = request->next;
    if (queue->tail == request)
        queue->tail = before;
    request->next = NULL;
    if (is_admitted)
        waiting->turns[key_of(request)] = ++waiting->n_turns;
}
