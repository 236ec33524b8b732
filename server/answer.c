/* What chat and completions have in common on the wire: the envelope, usage, timings, and the
 * events of a stream around a choice. Text is written straight into the job's buffer; nothing is
 * built per token but bytes. */
#include "server/job.h"
#include "server/json_write.h"

#include <string.h>

const char *answer_finish_name(enum finish_reason finish)
{
    return finish == FINISH_LENGTH ? "length" : "stop";
}

struct engine_usage answer_total_usage(const struct job *job)
{
    struct engine_usage total = {0};

    for (uint32_t i = 0; i < job->n_parts; i++) {
        const struct engine_usage *u = &job->parts[i].usage;
        total.prompt_tokens += u->prompt_tokens;
        total.cached_tokens += u->cached_tokens;
        total.matched_tokens += u->matched_tokens;
        total.completion_tokens += u->completion_tokens;
        total.decode = u->decode;
        total.decode_every = u->decode_every;
        total.refreshed_tokens += u->refreshed_tokens;
        total.drafted_tokens += u->drafted_tokens;
        total.accepted_tokens += u->accepted_tokens;
        total.n_preemptions += u->n_preemptions;
        total.queue_ms = u->queue_ms > total.queue_ms ? u->queue_ms : total.queue_ms;
        total.prefill_ms = u->prefill_ms > total.prefill_ms ? u->prefill_ms : total.prefill_ms;
        total.decode_ms = u->decode_ms > total.decode_ms ? u->decode_ms : total.decode_ms;
    }
    return total;
}

static uint32_t count_tokens(const struct job *job)
{
    uint32_t n = 0;
    for (uint32_t i = 0; i < job->n_choices; i++)
        n += job->choices[i].n_tokens;
    return n;
}

/* The dial's part of the usage: which models worked on it, and what of their work was used. */
void answer_write_dial(struct buf *out, const struct job *job)
{
    const struct engine_info *info = &job->server->info;
    struct engine_usage u = answer_total_usage(job);
    const char *twin = info->pruned_path ? info->pruned_path : info->model_id;
    const char *slash = strrchr(twin, '/');

    if (u.decode == DECODE_FULL)
        twin = info->model_id;
    else if (slash && slash[1])
        twin = slash + 1;
    buf_append_str(out, "{\"prefill_model\":");
    json_write_string(out, info->model_id, strlen(info->model_id));
    buf_append_str(out, ",\"decode_model\":");
    json_write_string(out, twin, strlen(twin));
    buf_printf(out,
               ",\"decode\":\"%s\",\"every\":%u,\"refreshed_tokens\":%u,\"drafted_tokens\":%u,"
               "\"accepted_tokens\":%u,\"preemptions\":%u,\"matched_tokens\":%u}",
               decode_mode_name(u.decode), u.decode_every, u.refreshed_tokens, u.drafted_tokens,
               u.accepted_tokens, u.n_preemptions, u.matched_tokens);
}

void answer_write_usage(struct buf *out, const struct job *job, bool is_final)
{
    struct engine_usage u = answer_total_usage(job);

    if (!is_final)
        u.completion_tokens = count_tokens(job);
    buf_append_str(out, "{\"prompt_tokens\":");
    json_write_uint(out, u.prompt_tokens);
    buf_append_str(out, ",\"completion_tokens\":");
    json_write_uint(out, u.completion_tokens);
    buf_append_str(out, ",\"total_tokens\":");
    json_write_uint(out, (uint64_t)u.prompt_tokens + u.completion_tokens);
    buf_append_str(out, ",\"prompt_tokens_details\":{\"cached_tokens\":");
    json_write_uint(out, u.cached_tokens);
    buf_append_str(out, "},\"completion_tokens_details\":{\"reasoning_tokens\":0}");
    if (is_final) {
        buf_append_str(out, ",\"overfill\":");
        answer_write_dial(out, job);
    }
    buf_append(out, "}", 1);
}

static void write_rate(struct buf *out, const char *stage, uint32_t n, double ms)
{
    buf_printf(out, ",\"%s_n\":%u,\"%s_ms\":", stage, n, stage);
    json_write_ms(out, ms);
    buf_printf(out, ",\"%s_per_token_ms\":", stage);
    json_write_ms(out, n ? ms / n : 0);
    buf_printf(out, ",\"%s_per_second\":", stage);
    json_write_ms(out, ms > 0 ? n / ms * 1e3 : 0);
}

/* llama-server's extra member: tokens and times of the two stages. prompt_n leaves cached tokens
 * out. */
void answer_write_timings(struct buf *out, const struct job *job)
{
    struct engine_usage u = answer_total_usage(job);

    buf_printf(out, "{\"cache_n\":%u", u.cached_tokens);
    write_rate(out, "prompt", u.prompt_tokens - u.cached_tokens, u.prefill_ms);
    write_rate(out, "predicted", u.completion_tokens, u.decode_ms);
    buf_append_str(out, ",\"queue_ms\":");
    json_write_ms(out, u.queue_ms);
    buf_append(out, "}", 1);
}

void answer_write_prompt_logprobs(struct buf *out, const struct job *job, uint32_t i_part)
{
    const struct buf *items = &job->parts[i_part].prompt_ranks;

    if (job->n_prompt_logprobs < 0)
        return;
    buf_append_str(out, ",\"prompt_logprobs\":[");
    buf_append(out, items->data, items->len);
    buf_append(out, "]", 1);
}

static void write_envelope(struct buf *out, const struct job *job, const char *object)
{
    const struct engine_info *info = &job->server->info;

    buf_printf(out, "{\"id\":\"%s\",\"object\":\"%s\",\"created\":%lld,\"model\":", job->id, object,
               (long long)job->created);
    json_write_string(out, info->model_id, strlen(info->model_id));
    buf_append_str(out, ",\"system_fingerprint\":");
    json_write_string(out, info->fingerprint, strlen(info->fingerprint));
    buf_append_str(out, ",\"choices\":[");
}

void answer_write_reply(struct buf *out, const struct job *job)
{
    write_envelope(out, job, job->shape->object);
    for (uint32_t i = 0; i < job->n_choices; i++) {
        buf_append_str(out, i ? ",{\"index\":" : "{\"index\":");
        json_write_uint(out, i);
        job->shape->write_choice(out, job, i);
        buf_append(out, "}", 1);
    }
    buf_append(out, "]", 1);
    if (job->shape->route == ON_CHAT)
        answer_write_prompt_logprobs(out, job, 0);
    buf_append_str(out, ",\"usage\":");
    answer_write_usage(out, job, true);
    buf_append_str(out, ",\"timings\":");
    answer_write_timings(out, job);
    buf_append(out, "}", 1);
}

int answer_prepare_prefix(struct job *job)
{
    buf_append_str(&job->prefix, "data: ");
    write_envelope(&job->prefix, job, job->shape->chunk_object);
    return job->prefix.failed ? -1 : 0;
}

void answer_open_event(struct job *job, uint32_t i_choice)
{
    buf_append(&job->out, job->prefix.data, job->prefix.len);
    buf_append_str(&job->out, "{\"index\":");
    json_write_uint(&job->out, i_choice);
}

void answer_close_event(struct job *job, bool is_last_choice)
{
    struct buf *out = &job->out;

    buf_append_str(out, "}]");
    if (job->continuous_usage) {
        buf_append_str(out, ",\"usage\":");
        answer_write_usage(out, job, false);
    } else if (job->include_usage) {
        buf_append_str(out, ",\"usage\":null");
    }
    if (is_last_choice) {
        buf_append_str(out, ",\"timings\":");
        answer_write_timings(out, job);
    }
    buf_append_str(out, "}\n\n");
}

void answer_write_end(struct job *job)
{
    struct buf *out = &job->out;

    if (job->last_choice >= 0)
        job->shape->write_finish(job, (uint32_t)job->last_choice);
    if (job->include_usage) {
        buf_append(out, job->prefix.data, job->prefix.len);
        buf_append_str(out, "],\"usage\":");
        answer_write_usage(out, job, true);
        buf_append_str(out, ",\"timings\":");
        answer_write_timings(out, job);
        buf_append_str(out, "}\n\n");
    }
    buf_append_str(out, "data: [DONE]\n\n");
}

void answer_write_error(struct job *job)
{
    buf_append_str(&job->out, "data: ");
    http_error_write(&job->out, &job->error, DIALECT_OPENAI);
    buf_append_str(&job->out, "\n\n");
}

/* Of the stop strings in the text, the one that was complete first, of those the longest: what the
 * engine's text stream ends with. */
const char *answer_stop_string(const struct job *job, uint32_t i_choice)
{
    const struct choice *choice = &job->choices[i_choice];
    const char *found = NULL, *found_end = NULL;

    if (choice->finish != FINISH_STOP || choice->raw.len == 0)
        return NULL;
    for (const char *stop = job->stops.data; stop < job->stops.data + job->stops.len;
         stop += strlen(stop) + 1) {
        const char *at = memmem(choice->raw.data, choice->raw.len, stop, strlen(stop));
        const char *end = at ? at + strlen(stop) : NULL;
        if (!at ||
            (found && (end > found_end || (end == found_end && strlen(stop) < strlen(found)))))
            continue;
        found = stop;
        found_end = end;
    }
    return found;
}
