/* The prefill pool: waiting prompts, many at once, in chunks through the full model. The first
 * token of every choice comes from its logits; then the sequence and its pages move to the decode
 * pool. See pool_internal.h. */
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <string.h>

#define MAX_PREFILLING 64 /* prompts in progress at once */
/* Scored at once: the logits of a step, or the choices of a request. */
#define MAX_JOBS (PREFILL_LOGIT_ROWS > ENGINE_MAX_CHOICES ? PREFILL_LOGIT_ROWS : ENGINE_MAX_CHOICES)
/* Every so many steps the oldest prompt goes first, so that short ones cannot starve it. */
#define AGEING_STEPS 4

/* The prefill thread's own state. */
struct prefill {
    struct engine *engine;
    struct request_queue waiting;           /* tokenised, no pages yet; first come, first served */
    struct request *active[MAX_PREFILLING]; /* in order of admission */
    size_t n_active;
    uint64_t n_steps;
    double tokens_per_ms; /* measured, smoothed; 0 before the first step */
    struct forward_slice slices[MAX_PREFILLING];
    struct request *slice_requests[MAX_PREFILLING];
    size_t n_slices;
    struct score_job jobs[MAX_JOBS];
    size_t n_jobs;
    struct token_score scores[ENGINE_MAX_CHOICES];
};

/* Ends a request that has no sequences in decode. */
static void end_request(struct engine *engine, struct request *request, enum error_code code,
                        const char *why)
{
    struct error err;
    uint32_t n = request->in.n; /* with the last choice the request may be gone */
    error_set(&err, code, "%s", why);
    kv_table_close(engine->kv, &request->table);
    for (uint32_t i = 0; i < n; i++)
        sequence_finish(engine, &request->sequences[i], &err);
}

static void drop_cancelled(struct prefill *p)
{
    struct request_queue kept = {0};
    struct request *request;
    while ((request = request_queue_pop(&p->waiting))) {
        if (!atomic_load(&request->cancelled)) {
            request_queue_push(&kept, request);
            continue;
        }
        struct error err;
        leave_waiting(p->engine, (uint32_t)request->prompt.n);
        error_set(&err, ERROR_CANCELLED, "cancelled while waiting");
        output_done(p->engine, request, &err);
    }
    p->waiting = kept;

    size_t n = 0;
    for (size_t i = 0; i < p->n_active; i++) {
        if (atomic_load(&p->active[i]->cancelled))
            end_request(p->engine, p->active[i], ERROR_CANCELLED, "cancelled during prefill");
        else
            p->active[n++] = p->active[i];
    }
    p->n_active = n;
}

/* Pages for its worst case, and room among the sequences. */
static bool reserve(struct engine *engine, struct request *request)
{
    pthread_mutex_lock(&engine->stats_lock);
    bool ok = engine->n_sequences == 0 ||
              engine->n_sequences + request->in.n <= engine->options.max_sequences;
    if (ok)
        engine->n_sequences += request->in.n;
    pthread_mutex_unlock(&engine->stats_lock);
    if (!ok)
        return false;
    if (kv_pool_reserve(engine->kv, request->n_pages_reserved))
        return true;
    pthread_mutex_lock(&engine->stats_lock);
    engine->n_sequences -= request->in.n;
    pthread_mutex_unlock(&engine->stats_lock);
    return false;
}

static void admit(struct prefill *p)
{
    while (p->waiting.head && p->n_active < MAX_PREFILLING && reserve(p->engine, p->waiting.head)) {
        struct request *request = request_queue_pop(&p->waiting);
        leave_waiting(p->engine, (uint32_t)request->prompt.n);
        request->n_unfinished = request->in.n;
        request->prefill_ns = system_now_ns();
        p->active[p->n_active++] = request;
    }
}

static uint32_t n_remaining(const struct request *request)
{
    return (uint32_t)request->prompt.n - request->n_prefilled;
}

/* The active prompt to serve next, of those not yet in the step: the one with the least left, or
 * now and then the oldest. */
static struct request *choose(const struct prefill *p)
{
    bool oldest_first = p->n_steps % AGEING_STEPS == 0 && p->n_slices == 0;
    struct request *best = NULL;
    for (size_t i = 0; i < p->n_active; i++) {
        struct request *request = p->active[i];
        bool taken = false;
        for (size_t s = 0; s < p->n_slices; s++)
            taken |= p->slice_requests[s] == request;
        if (taken)
            continue;
        if (!best || n_remaining(request) < n_remaining(best))
            best = request;
        if (oldest_first)
            break;
    }
    return best;
}

static uint32_t step_rows(const struct prefill *p)
{
    double rows = p->tokens_per_ms * p->engine->options.prefill_chunk_ms;
    if (rows < PREFILL_MIN_ROWS)
        return PREFILL_MIN_ROWS;
    return rows < PREFILL_MAX_ROWS ? (uint32_t)rows : PREFILL_MAX_ROWS;
}

static void build_step(struct prefill *p)
{
    uint32_t rows = step_rows(p);
    uint32_t logit_rows = PREFILL_LOGIT_ROWS;
    struct request *request;

    p->n_slices = 0;
    while (rows && logit_rows && (request = choose(p))) {
        uint32_t n = n_remaining(request) < rows ? n_remaining(request) : rows;
        bool all = request->in.prompt_logprobs;
        if (all && n > logit_rows)
            n = logit_rows;
        bool last = n == n_remaining(request);
        kv_table_grow(p->engine->kv, &request->table, request->n_prefilled + n);
        p->slice_requests[p->n_slices] = request;
        p->slices[p->n_slices++] = (struct forward_slice){
            .tokens = request->prompt.ids + request->n_prefilled,
            .n_tokens = n,
            .position = request->n_prefilled,
            .pages = request->table.pages,
            .logits = all    ? LOGITS_ALL
                      : last ? LOGITS_LAST
                             : LOGITS_NONE,
        };
        rows -= n;
        logit_rows -= all ? n : last ? 1 : 0;
    }
}

static void count_step(struct prefill *p, uint32_t n_tokens, uint64_t ns, bool with_head)
{
    struct engine *engine = p->engine;
    double rate = ns ? n_tokens / ((double)ns / 1e6) : 0;
    p->tokens_per_ms = p->tokens_per_ms > 0 ? 0.8 * p->tokens_per_ms + 0.2 * rate : rate;
    p->n_steps++;

    size_t bytes = engine->full->packed_bytes - (with_head ? 0 : matrix_bytes(&engine->full->head));
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.prompt_tokens += n_tokens;
    engine->stats.prefill_steps++;
    engine->stats.prefill_seconds += (double)ns / 1e9;
    engine->stats.weight_bytes_prefill_full += bytes;
    engine->prefill_tick_ns = system_now_ns();
    pthread_mutex_unlock(&engine->stats_lock);
}

/* The logits of row i of a slice predict prompt token position + i + 1. */
static void add_prompt_jobs(struct prefill *p, const struct forward_slice *slice,
                            struct request *request, const float *logits, size_t stride)
{
    size_t k = request->in.n_logprobs > 0 ? (size_t)request->in.n_logprobs : 0;
    for (uint32_t i = 0; i < slice->n_tokens; i++) {
        size_t at = (size_t)slice->position + i + 1;
        if (at >= request->prompt.n)
            return;
        struct engine_token *record = &request->prompt_records[at];
        record->n_top = (uint32_t)k;
        p->jobs[p->n_jobs++] = (struct score_job){
            .logits = logits + i * stride,
            .token = record->token,
            .with_logprob = true,
            .k = k,
            .ret_logprob = &record->logprob,
            .top = request->prompt_top + at * k,
        };
    }
}

/* Choices share the prompt's full pages; the last one takes the table itself. */
static void share_pages(struct engine *engine, struct request *request)
{
    uint32_t n_prompt = (uint32_t)request->prompt.n;
    for (uint32_t i = 0; i + 1 < request->in.n; i++)
        kv_table_fork(engine->kv, &request->table, n_prompt, &request->sequences[i].table);
    struct sequence *last = &request->sequences[request->in.n - 1];
    mem_free(last->table.pages);
    last->table = request->table;
    request->table = (struct kv_table){0};
    for (uint32_t i = 0; i < request->in.n; i++)
        request->sequences[i].position = n_prompt;
}

/* The first token of every choice, from the full model's logits. */
static void start_choices(struct prefill *p, struct request *request, const float *logits)
{
    struct engine *engine = p->engine;
    uint32_t n = request->in.n;
    share_pages(engine, request);
    if (request->in.prompt_logprobs)
        output_prompt(engine, request);

    p->n_jobs = 0;
    for (uint32_t i = 0; i < n && request->max_new; i++)
        p->jobs[p->n_jobs++] =
            sequence_job(engine, &request->sequences[i], 0, logits, &p->scores[i]);
    score_jobs_run(engine, &engine->prefill, p->jobs, p->n_jobs);
    /* A choice that goes on is the decode thread's once pushed, so all are accepted first. */
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = &request->sequences[i];
        s->finishing = request->max_new
                           ? sequence_accept(engine, s, p->jobs[i].token, &p->scores[i])
                           : sequence_skip(engine, s);
    }
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.generated_tokens += p->n_jobs;
    pthread_mutex_unlock(&engine->stats_lock);
    decode_take_over(engine, request);
}

static void remove_active(struct prefill *p, const struct request *request)
{
    size_t i = 0;
    while (p->active[i] != request)
        i++;
    memmove(&p->active[i], &p->active[i + 1], (p->n_active - i - 1) * sizeof(struct request *));
    p->n_active--;
}

static void finish_slices(struct prefill *p, const float *logits, size_t stride)
{
    const float *at = logits;
    p->n_jobs = 0;
    for (size_t s = 0; s < p->n_slices; s++) {
        const struct forward_slice *slice = &p->slices[s];
        if (slice->logits == LOGITS_ALL) {
            add_prompt_jobs(p, slice, p->slice_requests[s], at, stride);
            at += slice->n_tokens * stride;
        } else if (slice->logits == LOGITS_LAST) {
            at += stride;
        }
    }
    score_jobs_run(p->engine, &p->engine->prefill, p->jobs, p->n_jobs);

    at = logits;
    for (size_t s = 0; s < p->n_slices; s++) {
        const struct forward_slice *slice = &p->slices[s];
        struct request *request = p->slice_requests[s];
        size_t n = slice->logits == LOGITS_ALL ? slice->n_tokens : slice->logits == LOGITS_LAST;
        at += n * stride;
        request->n_prefilled += slice->n_tokens;
        if (request->n_prefilled < request->prompt.n)
            continue;
        remove_active(p, request);
        start_choices(p, request, at - stride);
    }
}

static void step(struct prefill *p)
{
    struct engine *engine = p->engine;
    size_t stride;
    uint32_t n_tokens = 0;
    bool with_head = false;

    build_step(p);
    for (size_t s = 0; s < p->n_slices; s++) {
        n_tokens += p->slices[s].n_tokens;
        with_head |= p->slices[s].logits != LOGITS_NONE;
    }
    uint64_t begin = system_now_ns();
    const float *logits = forward_run(engine->prefill.forward, engine->full, engine->kv, p->slices,
                                      p->n_slices, &stride);
    count_step(p, n_tokens, system_now_ns() - begin, with_head);
    finish_slices(p, logits, stride);
}

/* Waits until there is something to do, lending this thread to decode meanwhile. False when the
 * engine stops. */
static bool wait_for_work(struct prefill *p)
{
    struct stage *stage = &p->engine->prefill;
    struct request *request;
    if (!p->n_active)
        team_wait(stage->team, &stage->pending);
    atomic_store(&stage->pending, false); /* before looking: what comes later sets it again */
    pthread_mutex_lock(&stage->lock);
    while ((request = request_queue_pop(&stage->incoming)))
        request_queue_push(&p->waiting, request);
    pthread_mutex_unlock(&stage->lock);
    return !atomic_load(&p->engine->stopping);
}

static void cancel_all(struct prefill *p)
{
    for (struct request *r = p->waiting.head; r; r = r->next)
        atomic_store(&r->cancelled, true);
    for (size_t i = 0; i < p->n_active; i++)
        atomic_store(&p->active[i]->cancelled, true);
    drop_cancelled(p);
    output_notify(p->engine);
}

static void set_busy(struct engine *engine, size_t n_active)
{
    pthread_mutex_lock(&engine->stats_lock);
    if (!engine->prefill_busy && n_active)
        engine->prefill_tick_ns = system_now_ns();
    engine->prefill_busy = n_active > 0;
    engine->stats.requests_prefilling = (uint32_t)n_active;
    pthread_mutex_unlock(&engine->stats_lock);
}

void *prefill_main(void *arg)
{
    struct engine *engine = arg;
    struct prefill p = {.engine = engine};

    while (wait_for_work(&p)) {
        drop_cancelled(&p);
        admit(&p);
        set_busy(engine, p.n_active);
        if (p.n_active)
            step(&p);
        set_busy(engine, p.n_active); /* it may sleep now, and is not stuck then */
        output_notify(engine);
    }
    cancel_all(&p);
    return NULL;
}
