/* The decode pool: one step for all running sequences in one batch; sequences join and leave at
 * every step. A step is one token of a sequence, a draft of one, or a run of tokens where they are
 * given. The pruned model decodes, or the full one where a request or the server says so. What the
 * full model is to read for the dial goes to the prefill pool and comes back. See pool_internal.h.
 */
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <assert.h>

/* The decode thread's own state. */
struct decode {
    struct engine *engine;
    struct sequence *running[MOST_SEQUENCES]; /* at most max_sequences: admission sees to it */
    size_t n_running;
    bool has_stepped;
    struct sequence *batch[MOST_SEQUENCES]; /* those of one model */
    struct forward_slice slices[MOST_SEQUENCES];
    struct score_job jobs[MOST_SEQUENCES]; /* one a row of the step: at most decode_rows */
    struct token_score scores[MOST_SEQUENCES];
};
static_assert(DECODE_ROWS <= MOST_SEQUENCES, "jobs and scores have room for a step");

static void cancel_sequence(struct engine *engine, struct sequence *s)
{
    struct error err;
    error_set(&err, ERROR_CANCELLED, "cancelled during decode");
    sequence_finish(engine, s, &err);
}

/* Gaps in running[] are where a sequence left. */
static void close_gaps(struct decode *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_running; i++)
        if (d->running[i])
            d->running[n++] = d->running[i];
    d->n_running = n;
}

static void drop_ended(struct decode *d)
{
    for (size_t i = 0; i < d->n_running; i++) {
        struct sequence *s = d->running[i];
        if (atomic_load(&s->request->cancelled))
            cancel_sequence(d->engine, s);
        else if (s->finishing)
            sequence_finish(d->engine, s, NULL);
        else
            continue;
        d->running[i] = NULL;
    }
    close_gaps(d);
}

/* Hands over those that the full model is to read. */
static void hand_over(struct decode *d)
{
    for (size_t i = 0; i < d->n_running; i++) {
        if (!sequence_wants_reading(d->running[i]))
            continue;
        stage_push_sequence(&d->engine->prefill, d->running[i]);
        d->running[i] = NULL;
    }
    close_gaps(d);
}

static size_t worst_running(const struct decode *d)
{
    size_t worst = SIZE_MAX;
    for (size_t i = 0; i < d->n_running; i++)
        if (d->running[i] && (worst == SIZE_MAX || rank_is_after(sequence_rank(d->running[i]),
                                                                 sequence_rank(d->running[worst]))))
            worst = i;
    return worst;
}

static void preempt(struct decode *d, size_t i)
{
    sequence_preempt(d->engine, d->running[i]);
    stage_push_sequence(&d->engine->prefill, d->running[i]);
    d->running[i] = NULL;
}

/* A page for the next token of running[i]. If there is none: takes those of the last in rank, which
 * may be itself, or asks the prefill pool for its last's, and it waits. */
static void make_room(struct decode *d, size_t i)
{
    struct sequence *s = d->running[i];
    struct engine *engine = d->engine;
    s->is_starved = false;
    while (d->running[i] && !kv_table_grow(engine->kv, &s->table, s->position + 1)) {
        size_t worst = worst_running(d);
        s->is_starved = stage_ask_for_pages(&engine->prefill, sequence_rank(d->running[worst]));
        if (s->is_starved)
            return;
        preempt(d, worst);
    }
}

static void make_room_for_all(struct decode *d)
{
    for (size_t i = 0; i < d->n_running; i++)
        if (d->running[i])
            make_room(d, i);
    close_gaps(d);
}

/* The prefill pool asked for pages. */
static void give_up_pages(struct decode *d)
{
    struct rank rank;
    if (!stage_is_asked(&d->engine->decode, &rank))
        return;
    size_t worst = worst_running(d);
    if (worst != SIZE_MAX && rank_is_after(sequence_rank(d->running[worst]), rank))
        preempt(d, worst);
    close_gaps(d);
    stage_nudge(&d->engine->prefill); /* also when there was nothing to give: it must not wait */
}

static void count_step(struct engine *engine, const struct model *model, size_t n, uint64_t ns)
{
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.generated_tokens += n;
    engine->stats.decode_steps++;
    engine->stats.decode_seconds += (double)ns / 1e9;
    if (model == engine->pruned)
        engine->stats.weight_bytes_decode_pruned += model->packed_bytes;
    else
        engine->stats.weight_bytes_decode_full += model->packed_bytes;
    engine->decode_tick_ns = system_now_ns();
    pthread_mutex_unlock(&engine->stats_lock);
}

/* Given tokens that may be computed with the next one: to the end, to the next refresh, and to
 * where there are pages. */
static uint32_t n_more_given(const struct engine *engine, struct sequence *s, uint32_t spare)
{
    if (!s->given)
        return 0;
    uint32_t n = (uint32_t)s->given->n_tokens - s->n_generated - 1;
    n = n < spare ? n : spare;
    if (s->request->decode == DECODE_REFRESH) {
        uint32_t rest = s->request->every - (s->position - s->n_exact) - 1;
        n = n < rest ? n : rest;
    }
    if (!kv_table_grow(engine->kv, &s->table, s->position + 1 + n))
        n = s->table.n_pages * KERNEL_PAGE_TOKENS - s->position - 1;
    return n;
}

/* Rows for batch[n]: one each, and those left over for who has tokens to come. Returns how many. */
static size_t build_slices(struct decode *d, size_t n)
{
    uint32_t spare = decode_rows(&d->engine->options) - (uint32_t)n;
    size_t n_rows = 0;
    for (size_t i = 0; i < n; i++) {
        struct sequence *s = d->batch[i];
        uint32_t n_more = n_more_given(d->engine, s, spare);
        spare -= n_more;
        d->slices[i] = (struct forward_slice){
            .tokens = s->tokens + s->position,
            .n_tokens = 1 + n_more,
            .position = s->position,
            .pages = s->table.pages,
            .logits = LOGITS_ALL,
        };
        n_rows += 1 + n_more;
    }
    return n_rows;
}

static void score_rows(struct decode *d, size_t n, const float *logits, size_t stride)
{
    size_t row = 0;
    for (size_t i = 0; i < n; i++) {
        struct sequence *s = d->batch[i];
        for (uint32_t t = 0; t < d->slices[i].n_tokens; t++, row++) {
            d->jobs[row] = sequence_job(d->engine, s, s->n_generated + s->n_drafts + t,
                                        logits + row * stride, &d->scores[row]);
            if (s->drafts)
                d->jobs[row].ret_draft = &s->drafts[s->n_drafts];
        }
    }
    score_jobs_run(d->engine, &d->engine->decode, d->jobs, row);
}

static void take_draft(const struct engine *engine, struct sequence *s)
{
    int32_t token = s->drafts[s->n_drafts].token;
    s->position++;
    s->tokens[s->n_tokens + s->n_drafts++] = token;
    s->draft_ends = tokenizer_is_end(engine->tokenizer, token);
}

/* What was computed and chosen for batch[i], from the step's row `row` on. */
static void take_tokens(struct decode *d, size_t i, size_t row)
{
    struct sequence *s = d->batch[i];
    uint32_t n = d->slices[i].n_tokens;
    if (s->drafts) {
        take_draft(d->engine, s);
        return;
    }
    s->position += n;
    if (s->request->decode == DECODE_FULL) {
        s->n_exact = s->position;
        sequence_keep_prefix(d->engine, s);
    }
    for (uint32_t t = 0; t < n; t++)
        s->finishing = sequence_accept(d->engine, s, d->jobs[row + t].token, &d->scores[row + t]);
}

/* The next tokens of each of batch[n], all of one model. */
static void step_batch(struct decode *d, const struct model *model, size_t n)
{
    struct engine *engine = d->engine;
    size_t stride, n_drafts = 0, row = 0;
    uint64_t begin = system_now_ns();
    assert(model);

    size_t n_rows = build_slices(d, n);
    for (size_t i = 0; i < n; i++)
        n_drafts += d->batch[i]->drafts != NULL;
    const float *logits =
        forward_run(engine->decode.forward, model, engine->kv, d->slices, n, &stride);
    score_rows(d, n, logits, stride);
    count_step(engine, model, n_rows - n_drafts, system_now_ns() - begin);
    for (size_t i = 0; i < n; row += d->slices[i].n_tokens, i++)
        take_tokens(d, i, row);
    d->has_stepped = true;
}

static void step_model(struct decode *d, const struct model *model)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_running; i++)
        if (!d->running[i]->is_starved && sequence_decoder(d->engine, d->running[i]) == model)
            d->batch[n++] = d->running[i];
    if (n)
        step_batch(d, model, n);
}

static void take_incoming(struct decode *d)
{
    struct stage *stage = &d->engine->decode;
    struct sequence *s;
    atomic_store(&stage->pending, false); /* before looking: what comes later sets it again */
    pthread_mutex_lock(&stage->lock);
    while ((s = sequence_queue_pop(&stage->sequences))) {
        assert(d->n_running < MOST_SEQUENCES);
        d->running[d->n_running++] = s;
    }
    pthread_mutex_unlock(&stage->lock);
}

/* Waits until there is something to run, lending this thread to prefill meanwhile. False when the
 * engine stops. */
static bool wait_for_work(struct decode *d)
{
    struct stage *stage = &d->engine->decode;
    if (!d->has_stepped)
        team_wait(stage->team, &stage->pending);
    take_incoming(d);
    return !atomic_load(&d->engine->stopping);
}

/* may_step: not all of them wait for pages that others hold. */
static void set_busy(struct decode *d, bool may_step)
{
    struct engine *engine = d->engine;
    size_t worst = worst_running(d);
    pthread_mutex_lock(&engine->stats_lock);
    if (!engine->decode_busy && d->n_running && may_step)
        engine->decode_tick_ns = system_now_ns();
    engine->decode_busy = d->n_running > 0 && may_step;
    engine->stats.sequences_decoding = (uint32_t)d->n_running;
    pthread_mutex_unlock(&engine->stats_lock);
    stage_publish_worst(&engine->decode,
                        worst == SIZE_MAX ? RANK_NOBODY : sequence_rank(d->running[worst]));
}

static void cancel_all(struct decode *d)
{
    do {
        for (size_t i = 0; i < d->n_running; i++)
            cancel_sequence(d->engine, d->running[i]);
        d->n_running = 0;
        take_incoming(d);
    } while (d->n_running);
    output_notify(d->engine);
}

void *decode_main(void *arg)
{
    struct engine *engine = arg;
    struct decode d = {.engine = engine};

    pthread_setname_np(pthread_self(), "decode");
    while (wait_for_work(&d)) {
        d.has_stepped = false;
        drop_ended(&d);
        give_up_pages(&d);
        hand_over(&d);
        make_room_for_all(&d);
        set_busy(&d, true);
        if (engine->pruned)
            step_model(&d, engine->pruned);
        step_model(&d, engine->full);
        drop_ended(&d);
        hand_over(&d);
        set_busy(&d, d.has_stepped);
        output_notify(engine);
    }
    cancel_all(&d);
    return NULL;
}
