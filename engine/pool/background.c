/* What the full model reads while the engine has nothing else to do: finished answers of the twin,
 * so that the next turn of a chat, which holds them, finds the whole conversation in the prefix
 * cache; and a share of them once more to tell how far the twin was from it (shadow.c). Real work
 * comes first: it finds the stage free after a chunk of some milliseconds, and the job's pages at
 * once; what was read for the cache stays there as long as there is room. See prefill.h. */
#include "engine/pool/background.h"

#include "engine/base/mem.h"

#include <string.h>

#define MOST_JOBS 64 /* answers that wait; the latest are the likeliest to go on */
#define CHUNK_MS 8

static void free_job(struct background_job *job)
{
    mem_free(job->table.pages);
    mem_free(job->shadow.table.pages);
    mem_free(job->shadow.logits);
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

/* The twin alone wrote it, after the first token, and this one's turn has come. */
static bool is_to_be_checked(struct engine *engine, const struct sequence *s)
{
    if (s->request->decode != DECODE_PRUNED || s->given || s->n_generated < 2)
        return false;
    pthread_mutex_lock(&engine->stats_lock);
    engine->shadow_due += engine->options.shadow_rate;
    bool is_due = engine->shadow_due >= 1;
    if (is_due)
        engine->shadow_due -= 1;
    pthread_mutex_unlock(&engine->stats_lock);
    return is_due;
}

/* A convenience: where memory is short, nobody misses it. */
static void offer(struct engine *engine, const struct sequence *s, bool is_shadow)
{
    struct stage *stage = &engine->prefill;
    struct background_job *job = mem_calloc(1, sizeof(*job));
    int32_t *tokens = mem_array(s->n_tokens, sizeof(*tokens));
    if (!job || !tokens) {
        mem_free(job);
        mem_free(tokens);
        return;
    }
    memcpy(tokens, s->tokens, s->n_tokens * sizeof(*tokens));
    job->tokens = tokens;
    job->n_tokens = s->n_tokens;
    job->n_prompt = s->n_tokens - s->n_generated;
    job->is_shadow = is_shadow;
    job->no_cache = s->request->in.no_cache;
    pthread_mutex_lock(&stage->lock);
    job->next = stage->background;
    stage->background = job;
    struct background_job *rest = cut(job);
    pthread_mutex_unlock(&stage->lock);
    background_free(rest);
}

void background_offer(struct engine *engine, struct sequence *s)
{
    if (is_to_be_checked(engine, s))
        offer(engine, s, true);
    if (is_worth_reading(engine, s))
        offer(engine, s, false);
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
    if (!job || !(job->table.n_pages || job->shadow.table.n_pages))
        return false;
    kv_table_clear(p->engine->kv, &job->table);
    kv_table_clear(p->engine->kv, &job->shadow.table);
    job->position = 0;
    job->shadow.sums = (struct shadow_sums){0};
    return true;
}

void background_drop(struct prefill *p)
{
    background_release(p);
    background_free(p->background);
    p->background = NULL;
}

void background_count(struct engine *engine, const struct model *model, uint32_t n, bool with_head)
{
    size_t bytes = model->packed_bytes - (with_head ? 0 : matrix_bytes(&model->head));
    pthread_mutex_lock(&engine->stats_lock);
    if (model == engine->full) {
        engine->stats.background_tokens += n;
        engine->stats.weight_bytes_prefill_full += bytes;
    } else {
        engine->stats.weight_bytes_prefill_pruned += bytes;
    }
    pthread_mutex_unlock(&engine->stats_lock);
}

bool background_read(struct prefill *p, struct background_job *job, uint32_t end)
{
    struct engine *engine = p->engine;
    bool use_cache = !engine->options.no_prefix_cache && !job->no_cache;
    size_t stride;
    if (use_cache && job->table.n_indexed == job->table.n_pages &&
        job->position == job->table.n_pages * KERNEL_PAGE_TOKENS)
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
        .is_prompt = true, /* the next turn's */
    };
    forward_run(engine->prefill.forward, engine->full, engine->kv, &slice, 1, &stride);
    job->position += n;
    if (use_cache)
        kv_prefix_add(engine->kv, job->tokens, job->position, &job->table);
    background_count(engine, engine->full, n, false);
    return true;
}

/* The answer's whole pages to the cache. */
static enum background_progress read_answer(struct prefill *p, struct background_job *job)
{
    uint32_t end = job->n_tokens / KERNEL_PAGE_TOKENS * KERNEL_PAGE_TOKENS;
    if (!background_read(p, job, end))
        return BACKGROUND_OVER;
    return job->position < end ? BACKGROUND_GOES_ON : BACKGROUND_OVER;
}

/* Decode may use the threads of an idle prefill pool, so it must be idle too. The last sequence to
 * end wakes this thread. */
static bool is_decode_idle(struct engine *engine)
{
    pthread_mutex_lock(&engine->stats_lock);
    bool is_idle = engine->n_sequences == 0;
    pthread_mutex_unlock(&engine->stats_lock);
    return is_idle;
}

bool background_step(struct prefill *p)
{
    struct background_job *job = p->background;
    struct error err;
    if (!is_decode_idle(p->engine))
        return false;
    if (!job)
        job = p->background = take_job(&p->engine->prefill);
    if (!job)
        return false;
    bool ok = job->table.pages || kv_table_open(&job->table, job->n_tokens, &err) == 0;
    if (!ok || (job->is_shadow ? shadow_step(p, job) : read_answer(p, job)) == BACKGROUND_OVER)
        background_drop(p);
    return true;
}
