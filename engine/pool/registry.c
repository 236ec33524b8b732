/* From request ids to requests, for engine_cancel. See pool_internal.h. */
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

void registry_add(struct engine *engine, struct request *request)
{
    pthread_mutex_lock(&engine->registry_lock);
    request->id = ++engine->next_id;
    struct request **bucket = &engine->buckets[request->id % REGISTRY_BUCKETS];
    request->bucket_next = *bucket;
    *bucket = request;
    pthread_mutex_unlock(&engine->registry_lock);
}

void registry_remove(struct engine *engine, struct request *request)
{
    pthread_mutex_lock(&engine->registry_lock);
    struct request **at = &engine->buckets[request->id % REGISTRY_BUCKETS];
    while (*at && *at != request)
        at = &(*at)->bucket_next;
    if (*at)
        *at = request->bucket_next;
    pthread_mutex_unlock(&engine->registry_lock);
}

bool registry_cancel(struct engine *engine, uint64_t id)
{
    pthread_mutex_lock(&engine->registry_lock);
    struct request *request = engine->buckets[id % REGISTRY_BUCKETS];
    while (request && request->id != id)
        request = request->bucket_next;
    if (request && !atomic_load(&request->cancelled)) {
        atomic_store(&request->cancelled_ns, system_now_ns());
        atomic_store(&request->cancelled, true);
    }
    pthread_mutex_unlock(&engine->registry_lock);
    return request != NULL;
}
