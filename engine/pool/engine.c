/* The engine's door: opening, submitting, cancelling, statistics, closing. See engine.h. */
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <inttypes.h>
#include <stdlib.h>
#include <string.h>

#define RETRY_LEAST_MS 100
#define RETRY_MOST_MS 60000

static const char *const mode_names[] = {
    [DECODE_DEFAULT] = "default", [DECODE_PRUNED] = "pruned", [DECODE_REFRESH] = "refresh",
    [DECODE_VERIFY] = "verify",   [DECODE_FULL] = "full",
};

const char *decode_mode_name(enum decode_mode mode)
{
    return mode_names[mode];
}

int decode_mode_from_name(const char *name)
{
    for (int mode = DECODE_PRUNED; mode <= DECODE_FULL; mode++)
        if (strcmp(name, mode_names[mode]) == 0)
            return mode;
    return -1;
}

static int check_prompt(const struct engine_request *r, struct error *err)
{
    int n_prompts = (r->messages != NULL) + (r->text != NULL) + (r->tokens != NULL);
    if (n_prompts != 1)
        return error_set(err, ERROR_INVALID,
                         "prompt: expected exactly one of messages, text and tokens");
    if (r->messages && !r->n_messages)
        return error_set(err, ERROR_INVALID, "messages: expected at least one");
    return 0;
}

static int check_given(const struct engine *engine, const struct engine_request *r,
                       struct error *err)
{
    for (uint32_t i = 0; i < r->n; i++) {
        if (!r->given[i].n_tokens)
            return error_set(err, ERROR_INVALID, "given[%u]: expected at least one token", i);
        if (r->given[i].n_tokens > engine->info.context)
            return error_set(err, ERROR_CONTEXT,
                             "given[%u]: %zu tokens, the context has room for %u", i,
                             r->given[i].n_tokens, engine->info.context);
    }
    if (r->n_stops)
        return error_set(err, ERROR_INVALID, "stop: expected none where the tokens are given");
    return 0;
}

static int check_request(const struct engine *engine, const struct engine_request *r,
                         struct error *err)
{
    int rc = check_prompt(r, err);
    if (rc)
        return rc;
    if (r->n < 1 || r->n > ENGINE_MAX_CHOICES)
        return error_set(err, ERROR_INVALID, "n: %u, expected 1 to %d", r->n, ENGINE_MAX_CHOICES);
    if (r->n > engine->options.max_sequences)
        return error_set(err, ERROR_INVALID, "n: %u, this server decodes at most %u at once", r->n,
                         engine->options.max_sequences);
    if (r->n_logprobs > ENGINE_MAX_LOGPROBS)
        return error_set(err, ERROR_INVALID, "logprobs: %d, expected at most %d", r->n_logprobs,
                         ENGINE_MAX_LOGPROBS);
    if (r->n_prompt_logprobs > ENGINE_MAX_LOGPROBS)
        return error_set(err, ERROR_INVALID, "prompt_logprobs: %u, expected at most %d",
                         r->n_prompt_logprobs, ENGINE_MAX_LOGPROBS);
    if (r->n_stops > ENGINE_MAX_STOPS)
        return error_set(err, ERROR_INVALID, "stop: %zu strings, expected at most %d", r->n_stops,
                         ENGINE_MAX_STOPS);
    for (size_t i = 0; i < r->sampling.n_bias; i++)
        if (r->sampling.bias[i].token < 0 ||
            (uint32_t)r->sampling.bias[i].token >= engine->info.vocab_size)
            return error_set(err, ERROR_INVALID,
                             "logit_bias: token id %d is outside the vocabulary of %u tokens",
                             r->sampling.bias[i].token, engine->info.vocab_size);
    if (r->decode != DECODE_DEFAULT && r->decode != DECODE_FULL && !engine->pruned)
        return error_set(err, ERROR_INVALID,
                         "overfill.decode: \"%s\", but no pruned model is loaded",
                         decode_mode_name(r->decode));
    if (r->decode_every > ENGINE_MAX_EVERY)
        return error_set(err, ERROR_INVALID, "overfill.every: %u, expected 1 to %d",
                         r->decode_every, ENGINE_MAX_EVERY);
    return r->given ? check_given(engine, r, err) : 0;
}

void leave_waiting(struct engine *engine, uint32_t n_tokens, bool is_admitted)
{
    uint64_t now = system_now_ns();
    pthread_mutex_lock(&engine->stats_lock);
    if (is_admitted) {
        double interval = (double)(now - engine->admitted_ns);
        if (engine->admitted_ns)
            engine->admit_interval_ns = engine->admit_interval_ns > 0
                                            ? 0.8 * engine->admit_interval_ns + 0.2 * interval
                                            : interval;
        engine->admitted_ns = now;
    }
    engine->n_waiting--;
    engine->n_waiting_tokens -= n_tokens;
    pthread_mutex_unlock(&engine->stats_lock);
}

int engine_submit(struct engine *engine, const struct engine_request *in, uint64_t *ret_id,
                  struct error *err)
{
    struct request *request;
    if (atomic_load(&engine->draining) || atomic_load(&engine->stopping))
        return error_set(err, ERROR_SHUTDOWN, "The server is shutting down.");
    int rc = check_request(engine, in, err);
    if (rc)
        return rc;

    pthread_mutex_lock(&engine->stats_lock);
    bool full = engine->n_waiting >= engine->options.max_queue;
    if (!full && engine->n_waiting++ == 0 && engine->n_sequences == 0)
        engine->work_since_ns = system_now_ns();
    pthread_mutex_unlock(&engine->stats_lock);
    if (full)
        return error_set(err, ERROR_BUSY,
                         "The server is busy: %u requests are waiting. Please retry.",
                         engine->options.max_queue);
    rc = request_create(engine, in, system_now_ns(), &request, err);
    if (rc) {
        leave_waiting(engine, 0, false);
        return rc;
    }
    registry_add(engine, request);
    *ret_id = request->id;
    stage_push_request(&engine->intake, request);
    return 0;
}

void engine_cancel(struct engine *engine, uint64_t id)
{
    if (registry_cancel(engine, id)) {
        stage_nudge(&engine->prefill);
        stage_nudge(&engine->decode);
    }
}

void engine_drain(struct engine *engine)
{
    atomic_store(&engine->draining, true);
}

void stage_push_request(struct stage *stage, struct request *request)
{
    pthread_mutex_lock(&stage->lock);
    request_queue_push(&stage->incoming, request);
    pthread_mutex_unlock(&stage->lock);
    stage_nudge(stage);
}

void stage_nudge(struct stage *stage)
{
    atomic_store(&stage->pending, true);
    if (stage->team) {
        team_notify(stage->team);
        return;
    }
    pthread_mutex_lock(&stage->lock);
    pthread_cond_signal(&stage->wake);
    pthread_mutex_unlock(&stage->lock);
}

void engine_get_info(const struct engine *engine, struct engine_info *ret_info)
{
    *ret_info = engine->info;
}

static double seconds_since(uint64_t ns)
{
    uint64_t now = system_now_ns();
    return now > ns ? (double)(now - ns) / 1e9 : 0;
}

static uint64_t later(uint64_t a, uint64_t b)
{
    return a > b ? a : b;
}

/* A stage that waits for pages which the other holds is not late as long as the other is not; if
 * neither does anything for a second while there are requests, both are. With stats_lock held. */
static void fill_tick_ages(const struct engine *engine, struct engine_stats *stats)
{
    stats->prefill_tick_age_s = engine->prefill_busy ? seconds_since(engine->prefill_tick_ns) : 0;
    stats->decode_tick_age_s = engine->decode_busy ? seconds_since(engine->decode_tick_ns) : 0;
    if (engine->prefill_busy || engine->decode_busy || engine->n_waiting + engine->n_sequences == 0)
        return;
    double age = seconds_since(
        later(engine->work_since_ns, later(engine->prefill_tick_ns, engine->decode_tick_ns)));
    if (age > 1)
        stats->prefill_tick_age_s = stats->decode_tick_age_s = age;
}

void engine_get_stats(struct engine *engine, struct engine_stats *ret_stats)
{
    struct kv_counts counts;
    pthread_mutex_lock(&engine->stats_lock);
    *ret_stats = engine->stats;
    ret_stats->requests_waiting = engine->n_waiting;
    fill_tick_ages(engine, ret_stats);
    pthread_mutex_unlock(&engine->stats_lock);
    kv_pool_get_counts(engine->kv, &counts);
    ret_stats->kv_pages_used = counts.n_used;
    ret_stats->kv_pages_cached = counts.n_kept;
    ret_stats->kv_pages_total = kv_pool_n_pages(engine->kv);
    ret_stats->pages_evicted = counts.n_evicted;
    ret_stats->kv_page_bytes = kv_page_bytes(kv_pool_layout(engine->kv));
}

/* One place is free as soon as the next request is admitted: after the usual interval, or what has
 * passed already if that is longer, and not before its prompt can have been computed. */
uint32_t engine_retry_after_ms(struct engine *engine)
{
    double now = (double)system_now_ns(), ms;
    pthread_mutex_lock(&engine->stats_lock);
    const struct engine_stats *stats = &engine->stats;
    double since = engine->admitted_ns ? now - (double)engine->admitted_ns : 0;
    ms = (since > engine->admit_interval_ns ? since : engine->admit_interval_ns) / 1e6;
    if (stats->prompt_tokens && engine->n_waiting) {
        double ms_per_token = stats->prefill_seconds * 1e3 / (double)stats->prompt_tokens;
        double prompt_ms = ms_per_token * engine->n_waiting_tokens / engine->n_waiting;
        ms = prompt_ms > ms ? prompt_ms : ms;
    }
    pthread_mutex_unlock(&engine->stats_lock);
    return ms < RETRY_LEAST_MS ? RETRY_LEAST_MS : ms > RETRY_MOST_MS ? RETRY_MOST_MS : (uint32_t)ms;
}

const struct tokenizer *engine_tokenizer(const struct engine *engine)
{
    return engine->tokenizer;
}

int engine_render(const struct engine *engine, const struct chat_message *messages,
                  size_t n_messages, struct chat_prompt *ret_prompt, struct error *err)
{
    if (!engine->chat_template) {
        *err = engine->template_error;
        return -(int)err->code;
    }
    return chat_template_render(engine->chat_template, messages, n_messages, true, ret_prompt, err);
}
