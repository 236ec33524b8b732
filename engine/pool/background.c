/* What the full model reads while it has nothing else to do: finished answers of the twin, so that
 * the next turn of a chat, which holds them, finds the whole conversation in the prefix cache. Real
 * work comes first: it finds the stage free after a chunk of some milliseconds, and the job's pages
 * at once; what was read stays in the cache as long as there is room. See prefill.h. */
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/prefill.h"

#define MOST_JOBS 64 /* answers that wait; the latest are the likeliest to go on */
#define CHUNK_MS 8

struct background_job {
    struct background_job *next;
    int32_t *tokens; /* prompt and answer */
    uint32_t n_tokens;
    struct kv_table table;
    uint32_t position; /* K and V of tokens[0, position) are in the table */
};

static void free_job(struct background_job *job)
{
    mem_free(job->table.pages);
    mem_free(job->tokens);
    mem_free(job);
}

void background_free(struct background_job *jobs)
{
    while (jobs) {
        struct background_job *next = jobs->next;
        free_job(jobs);
        jobs = next;
    }
}

/* Whether there is a page that the full model has not written. */
static bool is_worth_reading(const struct engine *engine, const struct sequence *s)
{
    const struct engine_options *o = &engine->options;
    return !o->no_background && !o->no_prefix_cache && !s->request->in.no_cache && !s->given &&
           s->n_tokens / KERNEL_PAGE_TOKENS > s->n_exact / KERNEL_PAGE_TOKENS;
}

/* Cuts the list behind MOST_JOBS and returns the rest. */
static struct background_job *cut(struct background_job *jobs)
{
    for (size_t i = 1; jobs && i < MOST_JOBS; i++)
        jobs = jobs->next;
    if (!jobs)
        return NULL;
    struct background_job *rest = jobs->next;
    jobs->next = NULL;
    return rest;
}

void background_offer(struct engine *engine, struct sequence *s)
{
    struct stage *stage = &engine->prefill;
    if (!is_worth_reading(engine, s))
        return;
    struct background_job *job = mem_calloc(1, sizeof(*job));
    if (!job)
        return; /* a convenience: nobody misses it */
    job->n_tokens = s->n_tokens;
    job->tokens = s->tokens;
    s->tokens = NULL;
    pthread_mutex_lock(&stage->lock);
    job->next = stage->background;
    stage->background = job;
    struct background_job *rest = cut(job);
    pthread_mutex_unlock(&stage->lock);
    background_free(rest);
}

static struct background_job *take_job(struct stage *stage)
{
    pthread_mutex_lock(&stage->lock);
    struct background_job *job = stage->background;
    if (job) {
        stage->background = job->next;
        job->next = NULL;
    }
    pthread_mutex_unlock(&stage->lock);
    return job;
}

bool background_release(struct prefill *p)
{
    struct background_job *job = p->background;
    if (!job || !job->table.n_pages)
        return false;
    kv_table_clear(p->engine->kv, &job->table);
    job->position = 0;
    return true;
}

void background_drop(struct prefill *p)
{
    background_release(p);
    background_free(p->background);
    p->background = NULL;
}

/* The next chunk; ends on a page, since only whole pages are kept. False if there is no page. */
static bool read_chunk(struct prefill *p, struct background_job *job, uint32_t end)
{
    struct engine *engine = p->engine;
    size_t stride;
    if (job->table.n_indexed == job->table.n_pages)
        job->position = kv_prefix_find(engine->kv, job->tokens, end, &job->table).n_tokens;
    uint32_t n = prefill_rows(p, CHUNK_MS) / KERNEL_PAGE_TOKENS * KERNEL_PAGE_TOKENS;
    n = n < end - job->position ? n : end - job->position;
    if (n == 0)
        return true;
    if (!kv_table_grow(engine->kv, &job->table, job->position + n))
        return false;
    const struct forward_slice slice = {
        .tokens = job->tokens + job->position,
        .n_tokens = n,
        .position = job->position,
        .pages = job->table.pages,
        .logits = LOGITS_NONE,
    };
    forward_run(engine->prefill.forward, engine->full, engine->kv, &slice, 1, &stride);
    job->position += n;
    kv_prefix_add(engine->kv, job->tokens, job->position, &job->table);
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.background_tokens += n;
    engine->stats.weight_bytes_prefill_full +=
        engine->full->packed_bytes - matrix_bytes(&engine->full->head);
    pthread_mutex_unlock(&engine->stats_lock);
    return true;
}

bool background_step(struct prefill *p)
{
    struct background_job *job = p->background;
    struct error err;
    if (!job)
        job = p->background = take_job(&p->engine->prefill);
    if (!job)
        return false;
    uint32_t end = job->n_tokens / KERNEL_PAGE_TOKENS * KERNEL_PAGE_TOKENS;
    bool ok = job->table.pages || kv_table_open(&job->table, end, &err) == 0;
    if (!ok || !read_chunk(p, job, end) || job->position == end)
        background_drop(p);
    return true;
}
