/* The life of one generation request, from submitting its prompts to the last byte of the answer.
 * See job.h for who owns what; the words of the answer are in chat.c and completions.c. */
#include "server/job.h"

#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "server/json_write.h"

#include <math.h>
#include <string.h>
#include <time.h>

/* Events that a client has not read yet. More than this, and it is given up as too slow: a full
 * answer of our largest contexts fits, an endless one does not. */
#define STREAM_MAX_BACKLOG_BYTES ((size_t)8 << 20)

static void link_job(struct job *job)
{
    struct server *server = job->server;

    job->next = server->jobs;
    if (job->next)
        job->next->prev = job;
    server->jobs = job;
    server->n_jobs++;
}

void job_free(struct job *job)
{
    struct server *server = job->server;

    if (job->prev)
        job->prev->next = job->next;
    else
        server->jobs = job->next;
    if (job->next)
        job->next->prev = job->prev;
    server->n_jobs--;
    for (uint32_t i = 0; i < job->n_parts; i++) {
        buf_free(&job->parts[i].echo);
        logprob_text_free(&job->parts[i].prompt_logprobs);
        buf_free(&job->parts[i].prompt_ranks);
    }
    for (uint32_t i = 0; i < job->n_choices; i++) {
        buf_free(&job->choices[i].text);
        logprob_text_free(&job->choices[i].logprobs);
        buf_free(&job->choices[i].raw);
    }
    logprob_text_free(&job->scratch);
    buf_free(&job->prefix);
    buf_free(&job->instructions);
    buf_free(&job->stops);
    buf_free(&job->out);
    mem_free(job->parts);
    mem_free(job->choices);
    mem_free(job);
}

static void free_if_over(struct job *job)
{
    if (!job->exchange && job->n_running == 0)
        job_free(job);
}

static void cancel_parts(struct job *job)
{
    for (uint32_t i = 0; i < job->n_parts; i++)
        if (job->parts[i].is_submitted && !job->parts[i].is_done)
            engine_cancel(job->server->engine, job->parts[i].id);
}

/* --- opening ------------------------------------------------------------------------------- */

static void copy_texts(struct job *job, const struct params *p)
{
    buf_append(&job->instructions, p->system.content, p->system.content_len);
    for (size_t i = 0; i < p->n_stops && job->shape->names_stop; i++)
        buf_append(&job->stops, p->stops[i].data, p->stops[i].len + 1);
}

static struct job *job_create(struct exchange *x, const struct answer_shape *shape,
                              const struct params *p)
{
    struct job *job = mem_calloc(1, sizeof(*job));
    uint32_t n_parts = shape->route == ON_COMPLETIONS ? (uint32_t)p->n_prompts : 1;
    double ping_s = isnan(p->ping_s) ? x->server->options.ping_seconds : p->ping_s;
    char id[25];

    if (!job)
        return NULL;
    server_new_id(x->server, id);
    snprintf(job->id, sizeof(job->id), "%s%s", shape->id_prefix, id);
    job->server = x->server;
    job->shape = shape;
    job->created = time(NULL);
    job->start_ns = job->last_write_ns = x->start_ns;
    job->is_stream = p->stream;
    job->include_usage = p->include_usage;
    job->continuous_usage = p->continuous_usage;
    job->echo = p->echo;
    job->wants_prompt_logprobs = p->echo && p->n_logprobs >= 0;
    job->n = p->n;
    job->max_tokens = p->max_tokens;
    job->n_logprobs = p->n_logprobs;
    job->n_prompt_logprobs = p->n_prompt_logprobs;
    job->temperature = p->sampling.temperature;
    job->top_p = p->sampling.top_p;
    job->ping_ns = ping_s > 0 ? (uint64_t)(ping_s * 1e9) : 0;
    job->last_choice = -1;
    link_job(job);
    job->parts = mem_calloc(n_parts, sizeof(*job->parts));
    job->choices = mem_calloc((size_t)n_parts * p->n, sizeof(*job->choices));
    copy_texts(job, p);
    if (!job->parts || !job->choices || job->stops.failed || job->instructions.failed ||
        answer_prepare_prefix(job) < 0) {
        job_free(job);
        return NULL;
    }
    job->n_parts = n_parts;
    job->n_choices = job->n_open = n_parts * p->n;
    for (uint32_t i = 0; i < n_parts; i++) {
        job->parts[i].job = job;
        job->parts[i].i_part = i;
    }
    return job;
}

/* The longer of the two lists that may be asked for; each is cut to its own length. */
static uint32_t most_logprobs_of_prompt(const struct job *job)
{
    int32_t n = job->wants_prompt_logprobs ? job->n_logprobs : 0;

    return (uint32_t)(n > job->n_prompt_logprobs ? n : job->n_prompt_logprobs);
}

static void fill_request(struct engine_request *request, const struct params *p, struct part *part,
                         uint64_t fairness_key)
{
    *request = (struct engine_request){
        .n = p->n,
        .max_tokens = p->max_tokens,
        .max_tokens_must_fit = p->max_tokens != PARAMS_NO_LIMIT && (p->route & ON_BOTH),
        .min_tokens = p->min_tokens,
        .ignore_eos = p->ignore_eos,
        .stops = p->stops,
        .n_stops = p->n_stops,
        .sampling = p->sampling,
        .n_logprobs = p->n_logprobs,
        .prompt_logprobs = part->job->wants_prompt_logprobs || p->n_prompt_logprobs >= 0,
        .n_prompt_logprobs = most_logprobs_of_prompt(part->job),
        .decode = p->decode,
        .decode_every = p->decode_every,
        .priority = p->priority,
        .fairness_key = fairness_key,
        .no_cache = !p->cache_prompt,
        .user = part,
    };
    if (p->route != ON_COMPLETIONS) {
        request->messages = p->messages;
        request->n_messages = p->n_messages;
        return;
    }
    const struct prompt *prompt = &p->prompts[part->i_part];
    request->text = prompt->text;
    request->text_len = prompt->text_len;
    request->tokens = prompt->tokens;
    request->n_tokens = prompt->n_tokens;
    request->parse_special = p->parse_special;
    if (p->max_tokens == PARAMS_NO_LIMIT)
        request->max_tokens = 16; /* the legacy default; shorter if the context is */
}

static void keep_echo(struct part *part, const struct prompt *prompt)
{
    const struct tokenizer *tokenizer = engine_tokenizer(part->job->server->engine);

    if (prompt->text) {
        buf_append(&part->echo, prompt->text, prompt->text_len);
        return;
    }
    for (size_t i = 0; i < prompt->n_tokens; i++) {
        size_t len;
        const char *piece = tokenizer_piece(tokenizer, prompt->tokens[i], &len);
        if (piece)
            buf_append(&part->echo, piece, len);
    }
}

static int submit_part(struct part *part, const struct params *p, uint64_t fairness_key,
                       struct http_error *e)
{
    struct job *job = part->job;
    struct engine_request request;
    struct error err = {0};

    fill_request(&request, p, part, fairness_key);
    if (job->echo)
        keep_echo(part, &p->prompts[part->i_part]);
    if (part->echo.failed)
        return http_out_of_memory(e);
    if (engine_submit(job->server->engine, &request, &part->id, &err) < 0) {
        http_error_from_engine(e, &err, job->shape->prompt_param, 0, job->server->info.context,
                               p->max_tokens);
        if (err.code == ERROR_BUSY) {
            e->retry_after_ms = engine_retry_after_ms(job->server->engine);
            e->retry_after_s = (e->retry_after_ms + 999) / 1000;
        }
        return -1;
    }
    part->is_submitted = true;
    job->n_running++;
    return 0;
}

int job_open(struct exchange *x, const struct answer_shape *shape, const struct params *params,
             struct http_error *e)
{
    struct metrics *m = &x->server->metrics;
    struct job *job = job_create(x, shape, params);

    if (!job)
        return http_out_of_memory(e);
    for (uint32_t i = 0; i < job->n_parts; i++)
        if (submit_part(&job->parts[i], params, keys_fairness(x), e) < 0) {
            job->is_cancelled = true;
            cancel_parts(job);
            free_if_over(job);
            return -1;
        }
    histogram_observe(&m->params_n, params->n, 1);
    if (params->max_tokens != PARAMS_NO_LIMIT)
        histogram_observe(&m->params_max_tokens, params->max_tokens, 1);
    job->exchange = x;
    x->job = job;
    return 0;
}

/* --- ending -------------------------------------------------------------------------------- */

static void write_facts(const struct job *job, struct exchange_facts *facts)
{
    struct engine_usage u = answer_total_usage(job);

    facts->prompt_tokens = u.prompt_tokens;
    facts->cached_tokens = u.cached_tokens;
    facts->matched_tokens = u.matched_tokens;
    facts->completion_tokens = u.completion_tokens;
    facts->queue_ms = u.queue_ms;
    facts->prefill_ms = u.prefill_ms;
    facts->decode_ms = u.decode_ms;
    if (job->is_cancelled)
        facts->finish = "cancelled";
    else if (job->error.status)
        facts->finish = "error";
    else
        facts->finish = answer_finish_name(job->choices[0].finish);
    if (!job->is_cancelled && u.completion_tokens)
        return;
    facts->completion_tokens = 0;
    for (uint32_t i = 0; i < job->n_choices; i++)
        facts->completion_tokens += job->choices[i].n_tokens; /* cut short: what was sent */
}

/* The exchange has its reply; it goes on without the job. */
static void release_exchange(struct job *job)
{
    struct exchange_facts *facts = &job->exchange->facts;

    write_facts(job, facts);
    limits_charge(job->exchange, facts->prompt_tokens + facts->completion_tokens);
    job->exchange->job = NULL;
    job->exchange = NULL;
}

static void fail(struct job *job)
{
    struct exchange *x = job->exchange;

    job->has_ended = true;
    cancel_parts(job);
    if (!x)
        return;
    if (!job->is_stream || x->phase != EXCHANGE_QUEUED) {
        exchange_fail(x, &job->error);
        release_exchange(job);
        return;
    }
    /* Too late for a status: told in band, and the body is left without its end. */
    job->server->metrics.rejected[job->error.reason]++;
    job->shape->write_error(job);
    exchange_resume(x);
}

static void fail_from_engine(struct job *job, const struct part *part,
                             const struct engine_output *output)
{
    if (job->error.status || job->is_cancelled)
        return;
    http_error_from_engine(&job->error, output->error, job->shape->prompt_param,
                           output->n_prompt_tokens ? output->n_prompt_tokens
                                                   : part->usage.prompt_tokens,
                           job->server->info.context, job->max_tokens);
    if (output->error->code == ERROR_INTERNAL)
        log_error("%s: %s", job->id, output->error->message);
    fail(job);
}

static bool has_failed_buffers(const struct job *job)
{
    bool failed = job->out.failed || job->has_lost_logprobs;

    for (uint32_t i = 0; i < job->n_parts; i++)
        failed |= logprob_text_failed(&job->parts[i].prompt_logprobs) ||
                  job->parts[i].prompt_ranks.failed;
    for (uint32_t i = 0; i < job->n_choices; i++)
        failed |= job->choices[i].text.failed || job->choices[i].raw.failed ||
                  logprob_text_failed(&job->choices[i].logprobs);
    return failed;
}

static void finish(struct job *job)
{
    struct buf body = {0};

    if (job->is_stream) {
        job->shape->write_end(job);
        if (has_failed_buffers(job))
            return; /* flush tells */
        job->has_ended = true;
        exchange_resume(job->exchange);
        return;
    }
    job->shape->write_reply(&body, job);
    exchange_reply(job->exchange, 200, "application/json", &body);
    release_exchange(job);
}

static enum stage stage_of(const struct job *job)
{
    enum stage stage = STAGE_QUEUE;

    for (uint32_t i = 0; i < job->n_parts; i++) {
        if (job->parts[i].first_token_ns)
            return STAGE_DECODE;
        if (job->parts[i].is_accepted)
            stage = STAGE_PREFILL;
    }
    return stage;
}

void job_abandon(struct job *job)
{
    if (job->is_cancelled || job->has_ended || job->n_running == 0)
        return;
    job->is_cancelled = true;
    job->has_ended = true;
    job->server->metrics.cancelled[stage_of(job)]++;
    job->server->metrics.finished[FINISH_CANCELLED] += job->n_open;
    cancel_parts(job);
}

void job_detach(struct job *job)
{
    job_abandon(job);
    release_exchange(job);
    free_if_over(job);
}

void job_cancel(struct job *job)
{
    cancel_parts(job);
}

/* --- outputs ------------------------------------------------------------------------------- */

static void begin_choices(struct part *part)
{
    struct job *job = part->job;
    uint32_t first = part->i_part * job->n;

    for (uint32_t i = first; i < first + job->n; i++) {
        struct choice *choice = &job->choices[i];
        if (choice->has_begun)
            continue;
        choice->has_begun = true;
        if (job->is_stream) {
            job->shape->write_begin(job, i);
        } else if (job->echo) {
            buf_append(&choice->text, part->echo.data, part->echo.len);
            logprob_text_append(&choice->logprobs, &part->prompt_logprobs);
        }
        choice->n_chars = part->prompt_chars;
    }
}

static struct engine_token with_top(const struct engine_token *record, int32_t n)
{
    struct engine_token cut = *record;

    if (n >= 0 && cut.n_top > (uint32_t)n)
        cut.n_top = (uint32_t)n;
    return cut;
}

static void take_prompt(struct part *part, const struct engine_output *output)
{
    struct job *job = part->job;
    const struct tokenizer *tokenizer = engine_tokenizer(job->server->engine);

    for (size_t i = 0; i < output->n_prompt; i++) {
        const struct token_logprob *top = output->prompt_top + output->prompt[i].top_start;
        struct engine_token record = with_top(&output->prompt[i], job->n_prompt_logprobs);
        if (job->n_prompt_logprobs >= 0)
            logprobs_add_prompt(&part->prompt_ranks, tokenizer, &record, top);
        record = with_top(&output->prompt[i], job->n_logprobs);
        if (job->wants_prompt_logprobs)
            logprobs_add_legacy(&part->prompt_logprobs, tokenizer, &record, top,
                                &part->prompt_chars);
    }
    if (job->wants_prompt_logprobs)
        begin_choices(part);
}

static void observe_token(struct part *part, struct choice *choice, uint64_t now_ns)
{
    struct metrics *m = &part->job->server->metrics;

    if (!part->first_token_ns) {
        part->first_token_ns = now_ns;
        histogram_observe(&m->time_to_first_token, (double)(now_ns - part->job->start_ns) / 1e9, 1);
    }
    if (choice->last_token_ns) {
        double gap_s = (double)(now_ns - choice->last_token_ns) / 1e9;
        histogram_observe(&m->inter_token, gap_s, 1);
        if (gap_s > m->max_decode_gap_s)
            m->max_decode_gap_s = gap_s;
    }
    choice->last_token_ns = now_ns;
    choice->n_tokens++;
}

static void end_choice(struct job *job, uint32_t i_choice, enum finish_reason reason)
{
    struct choice *choice = &job->choices[i_choice];

    if (choice->finish != FINISH_NONE)
        return;
    choice->finish = reason;
    job->n_open--;
    job->server->metrics.finished[reason]++;
    if (!job->is_stream || (reason != FINISH_STOP && reason != FINISH_LENGTH))
        return;
    if (job->n_open == 0)
        job->last_choice = i_choice;
    else
        job->shape->write_finish(job, i_choice);
}

static void keep_raw(struct choice *choice, const struct tokenizer *tokenizer, int32_t token)
{
    size_t len;
    const char *piece = tokenizer_piece(tokenizer, token, &len);

    if (piece)
        buf_append(&choice->raw, piece, len);
}

/* The token's text and log-probabilities: to the stream, to what is kept, or both. */
static void write_token(struct job *job, uint32_t i_choice, const struct engine_output *output,
                        const struct engine_token *record, bool has_logprobs)
{
    struct choice *choice = &job->choices[i_choice];
    const struct tokenizer *tokenizer = engine_tokenizer(job->server->engine);
    const char *text = record->text_len ? output->text + record->text_start : "";
    struct logprob_text *l = &job->scratch;

    if (has_logprobs) {
        logprob_text_clear(l);
        job->shape->add_logprobs(l, tokenizer, record, output->top + record->top_start,
                                 &choice->n_chars);
        job->has_lost_logprobs |= logprob_text_failed(l); /* the next token clears it */
    }
    if (!job->is_stream || job->shape->repeats_text) {
        buf_append(&choice->text, text, record->text_len);
        if (has_logprobs)
            logprob_text_append(&choice->logprobs, l);
    }
    if (job->is_stream && (record->text_len || has_logprobs))
        job->shape->write_delta(job, i_choice, text, record->text_len, has_logprobs ? l : NULL);
}

static void take_token(struct part *part, const struct engine_output *output,
                       const struct engine_token *record, uint64_t now_ns)
{
    struct job *job = part->job;
    uint32_t i_choice = part->i_part * job->n + record->choice;
    struct choice *choice = &job->choices[i_choice];
    const struct tokenizer *tokenizer = engine_tokenizer(job->server->engine);
    bool has_logprobs = false;

    if (record->token >= 0) {
        observe_token(part, choice, now_ns);
        /* The token that ends an answer is not a part of it. */
        bool is_end = record->finish == FINISH_STOP && tokenizer_is_end(tokenizer, record->token);
        has_logprobs = job->n_logprobs >= 0 && !is_end;
        if (job->stops.len && !is_end)
            keep_raw(choice, tokenizer, record->token);
        else if (is_end)
            buf_clear(&choice->raw); /* it ended by itself */
    }
    begin_choices(part);
    write_token(job, i_choice, output, record, has_logprobs);
    if (record->finish != FINISH_NONE)
        end_choice(job, i_choice, record->finish);
}

static void accept_part(struct part *part)
{
    struct job *job = part->job;

    part->is_accepted = true;
    job->n_accepted++;
    if (!job->wants_prompt_logprobs)
        begin_choices(part);
    if (job->is_stream && job->n_accepted == job->n_parts) {
        job->is_streaming = true;
        exchange_begin_stream(job->exchange);
    }
}

static void observe_part(const struct part *part, uint64_t now_ns)
{
    struct metrics *m = &part->job->server->metrics;
    const struct engine_usage *u = &part->usage;

    histogram_observe(&m->e2e, (double)(now_ns - part->job->start_ns) / 1e9, 1);
    histogram_observe(&m->queue, u->queue_ms / 1e3, 1);
    histogram_observe(&m->prefill, u->prefill_ms / 1e3, 1);
    histogram_observe(&m->decode, u->decode_ms / 1e3, 1);
    histogram_observe(&m->inference, (u->prefill_ms + u->decode_ms) / 1e3, 1);
    histogram_observe(&m->prompt_tokens, u->prompt_tokens, 1);
    histogram_observe(&m->generation_tokens, u->completion_tokens, 1);
}

/* Memory ran out while an event was written: what stands before it may still be sent. */
static void drop_half_event(struct job *job)
{
    struct buf *out = &job->out;

    if (!out->failed)
        return;
    while (out->len > job->n_sent &&
           (out->len < 2 || memcmp(out->data + out->len - 2, "\n\n", 2) != 0))
        out->len--;
    out->failed = false;
}

/* Sends what was written, unless memory ran out or the client does not read. */
static void flush(struct job *job, uint64_t now_ns)
{
    if (has_failed_buffers(job) && !job->has_ended) {
        drop_half_event(job);
        http_out_of_memory(&job->error);
        fail(job);
    } else if (job->is_streaming && job->out.len > job->n_sent) {
        job->last_write_ns = now_ns;
        if (job->out.len - job->n_sent > STREAM_MAX_BACKLOG_BYTES)
            exchange_abort(job->exchange);
        else
            exchange_resume(job->exchange);
    }
}

void job_on_output(struct server *server, const struct engine_output *output)
{
    struct part *part = output->user;
    struct job *job = part->job;
    uint64_t now_ns = system_now_ns();
    bool is_wanted = job->exchange && !job->has_ended && !job->is_cancelled;

    (void)server;
    part->usage = output->usage;
    if (output->done) {
        part->is_done = true;
        job->n_running--;
    }
    if (output->error) {
        if (is_wanted)
            fail_from_engine(job, part, output);
    } else if (is_wanted) {
        if (output->accepted && !part->is_accepted)
            accept_part(part);
        if (output->prompt)
            take_prompt(part, output);
        for (size_t i = 0; i < output->n_tokens; i++)
            take_token(part, output, &output->tokens[i], now_ns);
        if (output->done)
            observe_part(part, now_ns);
        if (output->done && job->n_running == 0 && !has_failed_buffers(job))
            finish(job);
    }
    if (job->exchange)
        flush(job, now_ns);
    free_if_over(job);
}

size_t job_read_stream(struct job *job, char *out, size_t max, bool *ret_has_ended,
                       bool *ret_has_failed)
{
    size_t n = job->out.len - job->n_sent;

    if (n > max)
        n = max;
    if (n > 0)
        memcpy(out, job->out.data + job->n_sent, n);
    job->n_sent += n;
    if (job->n_sent == job->out.len) {
        job->out.len = job->n_sent = 0;
    }
    *ret_has_ended = job->has_ended;
    *ret_has_failed = job->error.status != 0 || job->is_cancelled || job->out.failed;
    return n;
}

void job_ping(struct job *job, uint64_t now_ns)
{
    if (!job->is_streaming || job->has_ended || !job->exchange || job->ping_ns == 0 ||
        job->out.len > job->n_sent || now_ns - job->last_write_ns < job->ping_ns)
        return;
    buf_append_str(&job->out, job->shape->ping);
    job->last_write_ns = now_ns;
    exchange_resume(job->exchange);
}
