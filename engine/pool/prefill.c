/* The prefill pool: what the full model reads. Waiting prompts, many at once, in chunks; answers
 * that the dial wants read; and, by whoever wrote it, what was lost when pages ran out. Here:
 * who is admitted, who gives up pages, who is cancelled; reading.c has the steps. See
 * pool_internal.h. */
#include "engine/pool/prefill.h"

#include "engine/base/system.h"

#include <assert.h>
#include <string.h>

#define PREFILL_NICE 5

/* Ends a request that has no sequences in decode. */
static void end_request(struct engine *engine, struct request *request, const char *why)
{
    struct error err;
    uint32_t n = request->in.n; /* with the last choice the request may be gone */
    error_set(&err, ERROR_CANCELLED, "%s", why);
    for (uint32_t i = 0; i < n; i++)
        sequence_finish(engine, &request->sequences[i], &err);
}

/* A cancelled sequence's end is decode's, where its siblings may be, unless there is none yet. */
static void drop(struct prefill *p, struct sequence *s)
{
    if (s->reading == READ_PROMPT) {
        end_request(p->engine, s->request, "cancelled during prefill");
        return;
    }
    kv_table_clear(p->engine->kv, &s->table);
    s->reading = READ_NONE;
    stage_push_sequence(&p->engine->decode, s);
}

static size_t drop_cancelled_of(struct prefill *p, struct sequence **sequences, size_t n)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i++) {
        if (atomic_load(&sequences[i]->request->cancelled))
            drop(p, sequences[i]);
        else
            sequences[kept++] = sequences[i];
    }
    return kept;
}

static void drop_cancelled(struct prefill *p)
{
    struct request *next;
    for (struct request *request = p->waiting.queue.head; request; request = next) {
        struct error err;
        next = request->next;
        if (!atomic_load(&request->cancelled))
            continue;
        waiting_remove(&p->waiting, request, false);
        leave_waiting(p->engine, (uint32_t)request->prompt.n, false);
        error_set(&err, ERROR_CANCELLED, "cancelled while waiting");
        output_done(p->engine, request, &err);
    }
    p->n_active = drop_cancelled_of(p, p->active, p->n_active);
    p->n_parked = drop_cancelled_of(p, p->parked, p->n_parked);
}

void prefill_remove_active(struct prefill *p, struct sequence *sequence)
{
    size_t i = 0;
    while (p->active[i] != sequence)
        i++;
    p->n_active--;
    memmove(&p->active[i], &p->active[i + 1], (p->n_active - i) * sizeof(struct sequence *));
}

void prefill_wait(struct prefill *p, struct sequence *sequence)
{
    assert(p->n_parked < MOST_SEQUENCES);
    size_t i = p->n_parked++;
    struct rank rank = sequence_rank(sequence);
    for (; i && rank_is_after(sequence_rank(p->parked[i - 1]), rank); i--)
        p->parked[i] = p->parked[i - 1];
    p->parked[i] = sequence;
}

void prefill_park(struct prefill *p, struct sequence *sequence)
{
    prefill_remove_active(p, sequence);
    sequence_preempt(p->engine, sequence);
    prefill_wait(p, sequence);
}

/* Those that hold no pages yet are about to. */
struct sequence *prefill_worst(const struct prefill *p)
{
    struct sequence *worst = NULL;
    for (size_t i = 0; i < p->n_active; i++)
        if (!worst || rank_is_after(sequence_rank(p->active[i]), sequence_rank(worst)))
            worst = p->active[i];
    return worst;
}

/* Asked by the decode pool, or by the last step. */
static void give_up_pages(struct prefill *p)
{
    struct rank rank;
    bool is_asked = stage_is_asked(&p->engine->prefill, &rank);
    struct sequence *worst = prefill_worst(p);
    if (p->is_short && (!is_asked || rank_is_after(rank, p->short_rank)))
        rank = p->short_rank;
    if ((is_asked || p->is_short) && !background_release(p) && worst &&
        rank_is_after(sequence_rank(worst), rank))
        prefill_park(p, worst);
    p->is_short = false;
    if (is_asked)
        stage_nudge(&p->engine->decode); /* also when there was nothing to give: it must not wait */
}

/* Pages that will be needed by who is admitted already, as far as that can be told. */
static uint32_t n_promised(const struct prefill *p)
{
    uint32_t n = 0;
    for (size_t i = 0; i < p->n_active; i++) {
        const struct sequence *s = p->active[i];
        uint32_t end = kv_pages_for(s->read_end);
        n += end > s->table.n_pages ? end - s->table.n_pages : 0;
    }
    return n;
}

/* Whether what it reads fits beside the others, with a page to grow for each. Who is alone may
 * always try. If it fits, the pages that the prefix cache has are its own. */
static bool fits(struct prefill *p, struct sequence *s)
{
    struct engine *engine = p->engine;
    struct kv_counts counts;
    sequence_find_prefix(engine, s);
    uint32_t need = kv_pages_for(s->read_end) - s->table.n_pages;
    if (s->reading == READ_PROMPT)
        need += s->request->in.n;
    pthread_mutex_lock(&engine->stats_lock);
    uint32_t n_growing = engine->n_sequences - (uint32_t)p->n_parked;
    pthread_mutex_unlock(&engine->stats_lock);
    kv_pool_get_counts(engine->kv, &counts);
    bool is_alone = p->n_active == 0 && counts.n_used <= s->table.n_pages;
    if (is_alone || counts.n_free + counts.n_kept >= need + n_promised(p) + n_growing)
        return true;
    kv_table_clear(engine->kv, &s->table);
    s->position = s->n_exact = 0;
    return false;
}

static size_t n_prompts(const struct prefill *p)
{
    size_t n = 0;
    for (size_t i = 0; i < p->n_active; i++)
        n += p->active[i]->reading == READ_PROMPT || p->active[i]->reading == READ_RESUME;
    return n;
}

static bool has_room_for_choices(struct engine *engine, uint32_t n)
{
    pthread_mutex_lock(&engine->stats_lock);
    bool ok = engine->n_sequences + n <= engine->options.max_sequences;
    pthread_mutex_unlock(&engine->stats_lock);
    return ok;
}

static void begin_prompt(struct prefill *p, struct request *request)
{
    struct engine *engine = p->engine;
    waiting_remove(&p->waiting, request, true);
    leave_waiting(engine, (uint32_t)request->prompt.n, true);
    pthread_mutex_lock(&engine->stats_lock);
    engine->n_sequences += request->in.n;
    pthread_mutex_unlock(&engine->stats_lock);
    request->n_unfinished = request->in.n;
    request->prefill_ns = system_now_ns();
    p->active[p->n_active++] = &request->sequences[0];
}

static void admit_parked(struct prefill *p)
{
    while (p->n_parked && n_prompts(p) < MAX_READING && fits(p, p->parked[0])) {
        p->active[p->n_active++] = p->parked[0];
        p->n_parked--;
        memmove(&p->parked[0], &p->parked[1], p->n_parked * sizeof(struct sequence *));
    }
}

/* Takes the pages of the last in rank if it is less urgent. False if prefill has no such one; the
 * decode pool may yet give some. */
static bool take_from_less_urgent(struct prefill *p, int32_t priority)
{
    const struct rank last_of_priority = {priority, UINT64_MAX, UINT32_MAX};
    struct sequence *worst = prefill_worst(p);
    if (worst && rank_is_after(sequence_rank(worst), last_of_priority)) {
        prefill_park(p, worst);
        return true;
    }
    stage_ask_for_pages(&p->engine->decode, last_of_priority);
    return false;
}

/* New requests wait for those who were here before, unless these are less urgent. */
static void admit(struct prefill *p)
{
    struct request *next;
    admit_parked(p);
    while ((next = waiting_next(&p->waiting)) && n_prompts(p) < MAX_READING) {
        if (p->n_parked && p->parked[0]->request->in.priority <= next->in.priority)
            return;
        if (!has_room_for_choices(p->engine, next->in.n))
            return;
        if (fits(p, &next->sequences[0]))
            begin_prompt(p, next);
        else if (!take_from_less_urgent(p, next->in.priority))
            return;
    }
}

/* What came from intake and from decode. */
static void take_incoming(struct prefill *p)
{
    struct stage *stage = &p->engine->prefill;
    struct request *request;
    struct sequence *s;
    atomic_store(&stage->pending, false); /* before looking: what comes later sets it again */
    pthread_mutex_lock(&stage->lock);
    while ((request = request_queue_pop(&stage->incoming)))
        request_queue_push(&p->waiting.queue, request);
    while ((s = sequence_queue_pop(&stage->sequences))) {
        assert(p->n_active < MOST_SEQUENCES);
        if (s->reading == READ_RESUME)
            prefill_wait(p, s);
        else
            p->active[p->n_active++] = s;
    }
    pthread_mutex_unlock(&stage->lock);
}

/* Waits until there is something to do, lending this thread to decode meanwhile. False when the
 * engine stops. */
static bool wait_for_work(struct prefill *p)
{
    struct stage *stage = &p->engine->prefill;
    if (!p->has_stepped)
        team_wait(stage->team, &stage->pending);
    take_incoming(p);
    return !atomic_load(&p->engine->stopping);
}

static void cancel_all(struct prefill *p)
{
    for (struct request *r = p->waiting.queue.head; r; r = r->next)
        atomic_store(&r->cancelled, true);
    for (size_t i = 0; i < p->n_active; i++)
        atomic_store(&p->active[i]->request->cancelled, true);
    for (size_t i = 0; i < p->n_parked; i++)
        atomic_store(&p->parked[i]->request->cancelled, true);
    drop_cancelled(p);
    background_drop(p);
    output_notify(p->engine);
}

/* may_step: not all of them wait for pages that others hold. */
static void set_busy(struct prefill *p, bool may_step)
{
    struct engine *engine = p->engine;
    const struct sequence *worst = prefill_worst(p);
    pthread_mutex_lock(&engine->stats_lock);
    if (!engine->prefill_busy && p->n_active && may_step)
        engine->prefill_tick_ns = system_now_ns();
    engine->prefill_busy = p->n_active > 0 && may_step;
    engine->stats.requests_prefilling = (uint32_t)p->n_active;
    engine->stats.requests_preempted = (uint32_t)p->n_parked;
    pthread_mutex_unlock(&engine->stats_lock);
    stage_publish_worst(&engine->prefill, p->background ? RANK_SPARE
                                          : worst       ? sequence_rank(worst)
                                                        : RANK_NOBODY);
}

static bool is_idle(const struct prefill *p)
{
    return !p->n_active && !p->n_parked && !p->waiting.queue.head;
}

/* What decode may compare or continue must have the bits that decode would give it. */
static bool read_with_full(struct prefill *p)
{
    const struct engine *engine = p->engine;
    if (!engine->kernels->prompt)
        return prefill_step(p, engine->full, STEP_ALL);
    bool has_stepped = prefill_step(p, engine->full, STEP_ANSWERS);
    return prefill_step(p, engine->full, STEP_PROMPTS) || has_stepped;
}

void *prefill_main(void *arg)
{
    struct engine *engine = arg;
    struct prefill p = {.engine = engine};

    pthread_setname_np(pthread_self(), "prefill");
    /* Sockets, and clients on the same machine, take their time from prompts, not from streams. */
    team_give_way(engine->prefill.team, PREFILL_NICE);
    while (wait_for_work(&p)) {
        drop_cancelled(&p);
        give_up_pages(&p);
        if (!is_idle(&p))
            background_release(&p); /* the first of all to make room */
        admit(&p);
        set_busy(&p, true);
        p.has_stepped = read_with_full(&p);
        if (engine->pruned)
            p.has_stepped |= prefill_step(&p, engine->pruned, STEP_ALL);
        if (is_idle(&p))
            p.has_stepped |= background_step(&p);
        set_busy(&p, p.has_stepped); /* it may sleep now, and is not stuck then */
        output_notify(engine);
    }
    cancel_all(&p);
    return NULL;
}
