/* What requests produce, from their owner to the consumer. See pool_internal.h.
 * Two buffers a request: the owner fills `back`, engine_poll swaps it for `front`; in the steady
 * state nothing is allocated. */
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <errno.h>
#include <math.h>
#include <string.h>
#include <time.h>

/* With out_lock held: puts the request on the ready list unless it is there. */
static void make_ready(struct engine *engine, struct request *request)
{
    if (request->queued)
        return;
    request->queued = true;
    pthread_mutex_lock(&engine->ready_lock);
    request->ready_next = NULL;
    if (engine->ready_tail)
        engine->ready_tail->ready_next = request;
    else
        engine->ready_head = request;
    engine->ready_tail = request;
    pthread_mutex_unlock(&engine->ready_lock);
}

void output_accept(struct engine *engine, struct request *request)
{
    pthread_mutex_lock(&request->out_lock);
    request->accepted = true;
    request->usage.prompt_tokens = (uint32_t)request->prompt.n;
    make_ready(engine, request);
    pthread_mutex_unlock(&request->out_lock);
}

void output_prompt(struct engine *engine, struct request *request)
{
    pthread_mutex_lock(&request->out_lock);
    request->prompt_ready = true;
    make_ready(engine, request);
    pthread_mutex_unlock(&request->out_lock);
}

static bool grow(void **array, size_t *cap, size_t need, size_t size)
{
    if (need <= *cap)
        return true;
    size_t n = *cap ? *cap * 2 : 16;
    n = n > need ? n : need;
    void *p = mem_realloc(*array, n, size);
    if (!p)
        return false;
    *array = p;
    *cap = n;
    return true;
}

/* A completed stop string turns *finish to FINISH_STOP. */
static bool append_token(struct sequence *s, int32_t token, const struct token_score *score,
                         enum finish_reason *finish)
{
    struct request *request = s->request;
    struct output_buffer *out = &request->back;
    size_t n_top = score ? score->n_top : 0;

    if (!grow((void **)&out->tokens, &out->cap_tokens, out->n_tokens + 1, sizeof(*out->tokens)) ||
        !grow((void **)&out->top, &out->cap_top, out->n_top + n_top, sizeof(*out->top)))
        return false;
    size_t text_start = out->text.len;
    if (token >= 0 && text_stream_push(&s->stream, token, &out->text))
        *finish = FINISH_STOP;
    if (*finish != FINISH_NONE && !s->stream.stopped)
        text_stream_flush(&s->stream, &out->text);
    if (out->text.failed || s->stream.held.failed)
        return false;
    if (n_top)
        memcpy(out->top + out->n_top, score->top, n_top * sizeof(*score->top));
    out->tokens[out->n_tokens++] = (struct engine_token){
        .choice = s->choice,
        .token = token,
        .finish = *finish,
        .text_start = text_start,
        .text_len = out->text.len - text_start,
        .logprob = score ? score->logprob : NAN,
        .n_top = (uint32_t)n_top,
        .top_start = out->n_top,
    };
    out->n_top += n_top;
    return true;
}

enum finish_reason output_token(struct engine *engine, struct sequence *sequence, int32_t token,
                                const struct token_score *score, enum finish_reason finish)
{
    struct request *request = sequence->request;
    pthread_mutex_lock(&request->out_lock);
    if (!request->output_failed && !append_token(sequence, token, score, &finish)) {
        request->output_failed = true;
        atomic_store(&request->cancelled, true);
    }
    if (token >= 0)
        request->usage.completion_tokens++;
    make_ready(engine, request);
    pthread_mutex_unlock(&request->out_lock);
    return finish;
}

void output_count(struct engine *engine, struct request *request, struct dial_counts counts)
{
    pthread_mutex_lock(&request->out_lock);
    request->usage.refreshed_tokens += counts.n_refreshed;
    request->usage.drafted_tokens += counts.n_drafted;
    request->usage.accepted_tokens += counts.n_accepted;
    request->usage.n_preemptions += counts.n_preemptions;
    pthread_mutex_unlock(&request->out_lock);
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.refreshed_tokens += counts.n_refreshed;
    engine->stats.drafted_tokens += counts.n_drafted;
    engine->stats.accepted_tokens += counts.n_accepted;
    engine->stats.preemptions += counts.n_preemptions;
    pthread_mutex_unlock(&engine->stats_lock);
}

void output_count_cached(struct engine *engine, struct request *request, uint32_t n_cached,
                         uint32_t n_matched)
{
    pthread_mutex_lock(&request->out_lock);
    request->usage.cached_tokens += n_cached;
    if (n_matched > request->usage.matched_tokens)
        request->usage.matched_tokens = n_matched;
    pthread_mutex_unlock(&request->out_lock);
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.cached_tokens += n_cached;
    pthread_mutex_unlock(&engine->stats_lock);
}

static double ms_between(uint64_t begin, uint64_t end)
{
    return begin && end > begin ? (double)(end - begin) / 1e6 : 0;
}

static void count_done(struct engine *engine, const struct request *request, uint64_t now)
{
    uint64_t cancelled_ns = atomic_load(&request->cancelled_ns);
    pthread_mutex_lock(&engine->stats_lock);
    if (cancelled_ns) {
        double s = ms_between(cancelled_ns, now) / 1e3;
        engine->stats.cancel_last_s = s;
        if (s > engine->stats.cancel_longest_s)
            engine->stats.cancel_longest_s = s;
    }
    if (request->has_error && request->error.code == ERROR_CANCELLED)
        engine->stats.cancelled++;
    else if (request->has_error)
        engine->stats.failed++;
    pthread_mutex_unlock(&engine->stats_lock);
}

void output_done(struct engine *engine, struct request *request, const struct error *error)
{
    uint64_t now = system_now_ns();
    pthread_mutex_lock(&request->out_lock);
    if (error) {
        request->has_error = true;
        request->error = *error;
    }
    if (request->output_failed) {
        request->has_error = true;
        error_memory(&request->error, "output", request->back.text.len);
    }
    request->usage.prompt_tokens = (uint32_t)request->prompt.n;
    request->usage.queue_ms =
        ms_between(request->submitted_ns, request->prefill_ns ? request->prefill_ns : now);
    request->usage.prefill_ms =
        ms_between(request->prefill_ns, request->first_token_ns ? request->first_token_ns : now);
    request->usage.decode_ms = ms_between(request->first_token_ns, now);
    count_done(engine, request, now);
    request->done = true;
    make_ready(engine, request);
    /* From here on the consumer may free the request as soon as it gets the lock. */
    pthread_mutex_unlock(&request->out_lock);
}

void output_notify(struct engine *engine)
{
    pthread_mutex_lock(&engine->ready_lock);
    bool any = engine->ready_head != NULL;
    if (any)
        pthread_cond_signal(&engine->ready_wake);
    pthread_mutex_unlock(&engine->ready_lock);
    if (any && engine->options.wake)
        engine->options.wake(engine->options.wake_user);
}

static void release_polled(struct engine *engine)
{
    struct request *request = engine->polled;
    engine->polled = NULL;
    if (request && engine->output.done) {
        registry_remove(engine, request);
        request_free(request);
    }
}

/* Takes what the request has; the lists are the consumer's until its next poll. */
static const struct engine_output *take(struct engine *engine, struct request *request)
{
    struct engine_output *out = &engine->output;
    pthread_mutex_lock(&request->out_lock);
    struct output_buffer full = request->back;
    request->back = request->front;
    request->back.n_tokens = request->back.n_top = 0;
    buf_clear(&request->back.text);
    request->front = full;
    request->queued = false;
    *out = (struct engine_output){
        .id = request->id,
        .user = request->in.user,
        .accepted = request->accepted,
        .tokens = full.tokens,
        .n_tokens = full.n_tokens,
        .text = full.text.data,
        .top = full.top,
        .done = request->done,
        .error = request->has_error ? &request->error : NULL,
        .n_prompt_tokens = (uint32_t)request->prompt.n,
        .usage = request->usage,
    };
    if (request->accepted && !request->ids_delivered) {
        request->ids_delivered = true;
        out->prompt_ids = request->prompt.ids;
    }
    if (request->prompt_ready && !request->prompt_delivered) {
        request->prompt_delivered = true;
        out->prompt = request->prompt_records;
        out->n_prompt = request->prompt.n;
        out->prompt_top = request->prompt_top;
    }
    pthread_mutex_unlock(&request->out_lock);
    engine->polled = request;
    return out;
}

static struct request *pop_ready(struct engine *engine)
{
    struct request *request = engine->ready_head;
    if (request) {
        engine->ready_head = request->ready_next;
        if (!engine->ready_head)
            engine->ready_tail = NULL;
    }
    return request;
}

const struct engine_output *engine_poll(struct engine *engine)
{
    return engine_wait(engine, 0);
}

const struct engine_output *engine_wait(struct engine *engine, int timeout_ms)
{
    struct timespec until;
    release_polled(engine);
    clock_gettime(CLOCK_REALTIME, &until);
    if (timeout_ms > 0) {
        until.tv_sec += timeout_ms / 1000;
        until.tv_nsec += (long)(timeout_ms % 1000) * 1000000;
        if (until.tv_nsec >= 1000000000) {
            until.tv_sec++;
            until.tv_nsec -= 1000000000;
        }
    }
    pthread_mutex_lock(&engine->ready_lock);
    struct request *request = pop_ready(engine);
    int rc = 0;
    while (!request && timeout_ms != 0 && rc != ETIMEDOUT) {
        if (timeout_ms < 0)
            rc = pthread_cond_wait(&engine->ready_wake, &engine->ready_lock);
        else
            rc = pthread_cond_timedwait(&engine->ready_wake, &engine->ready_lock, &until);
        request = pop_ready(engine);
    }
    pthread_mutex_unlock(&engine->ready_lock);
    return request ? take(engine, request) : NULL;
}
