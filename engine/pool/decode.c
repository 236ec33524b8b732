/* The decode pool: one step for all running sequences in one batch; sequences join and leave at
 * every step. A step is one token of a sequence, or a run of them where they are given. The pruned
 * model decodes, or the full one where a request or the server says so. See pool_internal.h. */
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <assert.h>

/* The decode thread's own state. */
struct decode {
    struct engine *engine;
    struct sequence *running[MOST_SEQUENCES]; /* at most max_sequences: admission sees to it */
    size_t n_running;
    struct sequence *batch[MOST_SEQUENCES]; /* those of one model */
    struct forward_slice slices[MOST_SEQUENCES];
    struct score_job jobs[MOST_SEQUENCES]; /* one a row of the step: at most decode_rows */
    struct token_score scores[MOST_SEQUENCES];
};
static_assert(DECODE_ROWS <= MOST_SEQUENCES, "jobs and scores have room for a step");

static const struct model *model_of(const struct engine *engine, const struct sequence *s)
{
    return s->request->decode == DECODE_PRUNED ? engine->pruned : engine->full;
}

static void cancel_sequence(struct engine *engine, struct sequence *s)
{
    struct error err;
    error_set(&err, ERROR_CANCELLED, "cancelled during decode");
    sequence_finish(engine, s, &err);
}

static void drop_cancelled(struct decode *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_running; i++) {
        if (atomic_load(&d->running[i]->request->cancelled))
            cancel_sequence(d->engine, d->running[i]);
        else
            d->running[n++] = d->running[i];
    }
    d->n_running = n;
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

/* Rows for batch[n]: one each, and those left over for who has tokens to come. Returns how many. */
static size_t build_slices(struct decode *d, size_t n)
{
    uint32_t spare = decode_rows(&d->engine->options) - (uint32_t)n;
    size_t n_rows = 0;
    for (size_t i = 0; i < n; i++) {
        struct sequence *s = d->batch[i];
        uint32_t n_more = s->given ? (uint32_t)s->given->n_tokens - s->n_generated - 1 : 0;
        n_more = n_more < spare ? n_more : spare;
        spare -= n_more;
        kv_table_grow(d->engine->kv, &s->table, s->position + 1 + n_more);
        d->slices[i] = (struct forward_slice){
            .tokens = s->given ? s->given->tokens + s->n_generated - 1 : &s->next_token,
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
    for (size_t i = 0; i < n; i++)
        for (uint32_t t = 0; t < d->slices[i].n_tokens; t++, row++)
            d->jobs[row] = sequence_job(d->engine, d->batch[i], d->batch[i]->n_generated + t,
                                        logits + row * stride, &d->scores[row]);
    score_jobs_run(d->engine, &d->engine->decode, d->jobs, row);
}

/* The next tokens of each of batch[n], all of one model. */
static void step_batch(struct decode *d, const struct model *model, size_t n)
{
    struct engine *engine = d->engine;
    size_t stride;
    uint64_t begin = system_now_ns();
    assert(model);

    size_t n_rows = build_slices(d, n);
    const float *logits =
        forward_run(engine->decode.forward, model, engine->kv, d->slices, n, &stride);
    score_rows(d, n, logits, stride);
    count_step(engine, model, n_rows, system_now_ns() - begin);
    size_t row = 0;
    for (size_t i = 0; i < n; i++) {
        struct sequence *s = d->batch[i];
        s->position += d->slices[i].n_tokens;
        for (uint32_t t = 0; t < d->slices[i].n_tokens; t++, row++)
            s->finishing = sequence_accept(engine, s, d->jobs[row].token, &d->scores[row]);
    }
}

static void step_model(struct decode *d, const struct model *model)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_running; i++) {
        if (model_of(d->engine, d->running[i]) == model)
            d->batch[n++] = d->running[i];
    }
    if (n)
        step_batch(d, model, n);
}

static void remove_finished(struct decode *d)
{
    size_t n = 0;
    for (size_t i = 0; i < d->n_running; i++) {
        if (d->running[i]->finishing)
            sequence_finish(d->engine, d->running[i], NULL);
        else
            d->running[n++] = d->running[i];
    }
    d->n_running = n;
}

static void take_incoming(struct decode *d)
{
    struct stage *stage = &d->engine->decode;
    atomic_store(&stage->pending, false); /* before looking: what comes later sets it again */
    pthread_mutex_lock(&stage->lock);
    while (stage->incoming_head) {
        assert(d->n_running < MOST_SEQUENCES);
        struct sequence *s = stage->incoming_head;
        stage->incoming_head = s->next;
        if (!stage->incoming_head)
            stage->incoming_tail = NULL;
        d->running[d->n_running++] = s;
    }
    pthread_mutex_unlock(&stage->lock);
}

/* Waits until there is something to run, lending this thread to prefill meanwhile. False when the
 * engine stops. */
static bool wait_for_work(struct decode *d)
{
    struct stage *stage = &d->engine->decode;
    if (!d->n_running)
        team_wait(stage->team, &stage->pending);
    take_incoming(d);
    return !atomic_load(&d->engine->stopping);
}

static void set_busy(struct engine *engine, size_t n_running)
{
    pthread_mutex_lock(&engine->stats_lock);
    if (!engine->decode_busy && n_running)
        engine->decode_tick_ns = system_now_ns();
    engine->decode_busy = n_running > 0;
    engine->stats.sequences_decoding = (uint32_t)n_running;
    pthread_mutex_unlock(&engine->stats_lock);
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

/* Called by the prefill thread, which owns the request until the last push. Choices that ended with
 * their first token go too: the decode thread finishes them, so that one thread ends a request. */
void decode_take_over(struct engine *engine, struct request *request)
{
    struct stage *stage = &engine->decode;
    pthread_mutex_lock(&stage->lock);
    for (uint32_t i = 0; i < request->in.n; i++) {
        struct sequence *s = &request->sequences[i];
        s->next = NULL;
        if (stage->incoming_tail)
            stage->incoming_tail->next = s;
        else
            stage->incoming_head = s;
        stage->incoming_tail = s;
    }
    pthread_mutex_unlock(&stage->lock);
    stage_nudge(stage);
}

void *decode_main(void *arg)
{
    struct engine *engine = arg;
    struct decode d = {.engine = engine};

    while (wait_for_work(&d)) {
        drop_cancelled(&d);
        remove_finished(&d);
        set_busy(engine, d.n_running);
        if (engine->pruned)
            step_model(&d, engine->pruned);
        step_model(&d, engine->full);
        remove_finished(&d);
        set_busy(engine, d.n_running);
        output_notify(engine);
    }
    cancel_all(&d);
    return NULL;
}
