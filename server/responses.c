/* The shape of /v1/responses, without state: nothing is stored, `previous_response_id` is refused
 * by the field table. A stream is the sequence of events around one message with one text part;
 * its last events have the whole text again, so the text is kept while it streams. */
#include "server/job.h"
#include "server/json_write.h"

#include <string.h>

enum response_status {
    RESPONSE_IN_PROGRESS,
    RESPONSE_COMPLETED,
    RESPONSE_INCOMPLETE,
    RESPONSE_FAILED
};

static const char *status_name(enum response_status status)
{
    static const char *const NAMES[] = {"in_progress", "completed", "incomplete", "failed"};
    return NAMES[status];
}

static enum response_status final_status(const struct job *job)
{
    return job->choices[0].finish == FINISH_LENGTH ? RESPONSE_INCOMPLETE : RESPONSE_COMPLETED;
}

/* The message's id is the response's with another prefix. */
static const char *random_part(const struct job *job)
{
    return job->id + strlen(job->shape->id_prefix);
}

static void write_items(struct buf *out, const struct buf *items)
{
    buf_append(out, "[", 1);
    if (items->len)
        buf_append(out, items->data, items->len);
    buf_append(out, "]", 1);
}

static void write_part(struct buf *out, const struct job *job, bool with_text)
{
    const struct choice *choice = &job->choices[0];
    static const struct buf NONE = {0};

    buf_append_str(out, "{\"type\":\"output_text\",\"annotations\":[],\"logprobs\":");
    write_items(out, with_text ? &choice->logprobs.tokens : &NONE);
    buf_append_str(out, ",\"text\":");
    json_write_string(out, choice->text.data, with_text ? choice->text.len : 0);
    buf_append(out, "}", 1);
}

/* with_part false: the message before it has any content. */
static void write_item(struct buf *out, const struct job *job, enum response_status status,
                       bool with_part)
{
    buf_printf(out,
               "{\"id\":\"msg_%s\",\"type\":\"message\",\"status\":\"%s\","
               "\"role\":\"assistant\",\"content\":[",
               random_part(job), status_name(status));
    if (with_part)
        write_part(out, job, true);
    buf_append_str(out, "]}");
}

static void write_usage(struct buf *out, const struct job *job)
{
    struct engine_usage u = answer_total_usage(job);

    buf_printf(out,
               "{\"input_tokens\":%u,\"input_tokens_details\":{\"cached_tokens\":%u},"
               "\"output_tokens\":%u,\"output_tokens_details\":{\"reasoning_tokens\":0},"
               "\"total_tokens\":%llu,\"overfill\":",
               u.prompt_tokens, u.cached_tokens, u.completion_tokens,
               (unsigned long long)u.prompt_tokens + u.completion_tokens);
    answer_write_dial(out, job);
    buf_append(out, "}", 1);
}

static void write_failure(struct buf *out, const struct job *job, enum response_status status)
{
    if (status != RESPONSE_FAILED) {
        buf_append_str(out, "null");
        return;
    }
    buf_append_str(out, "{\"code\":\"server_error\",\"message\":");
    json_write_string(out, job->error.message, strlen(job->error.message));
    buf_append(out, "}", 1);
}

/* What was asked for, told back. */
static void write_request(struct buf *out, const struct job *job)
{
    const struct engine_info *info = &job->server->info;

    buf_append_str(out, ",\"instructions\":");
    if (job->instructions.len)
        json_write_string(out, job->instructions.data, job->instructions.len);
    else
        buf_append_str(out, "null");
    buf_append_str(out, ",\"max_output_tokens\":");
    if (job->max_tokens != PARAMS_NO_LIMIT)
        json_write_uint(out, job->max_tokens);
    else
        buf_append_str(out, "null");
    buf_append_str(out, ",\"model\":");
    json_write_string(out, info->model_id, strlen(info->model_id));
    buf_append_str(out, ",\"temperature\":");
    json_write_float(out, job->temperature);
    buf_append_str(out, ",\"top_p\":");
    json_write_float(out, job->top_p);
    buf_printf(out, ",\"top_logprobs\":%d", job->n_logprobs > 0 ? job->n_logprobs : 0);
    buf_append_str(out, ",\"metadata\":{},\"parallel_tool_calls\":true,\"tool_choice\":\"auto\","
                        "\"tools\":[],\"background\":false,\"previous_response_id\":null,"
                        "\"reasoning\":{\"effort\":null,\"summary\":null},\"store\":false,"
                        "\"text\":{\"format\":{\"type\":\"text\"}},\"truncation\":\"disabled\","
                        "\"service_tier\":\"default\",\"user\":null");
}

static void write_response(struct buf *out, const struct job *job, enum response_status status)
{
    bool is_over = status != RESPONSE_IN_PROGRESS;

    buf_printf(out, "{\"id\":\"%s\",\"object\":\"response\",\"created_at\":%lld,\"status\":\"%s\"",
               job->id, (long long)job->created, status_name(status));
    buf_append_str(out, ",\"error\":");
    write_failure(out, job, status);
    buf_append_str(out, ",\"incomplete_details\":");
    buf_append_str(out,
                   status == RESPONSE_INCOMPLETE ? "{\"reason\":\"max_output_tokens\"}" : "null");
    write_request(out, job);
    buf_append_str(out, ",\"output\":[");
    if (is_over)
        write_item(out, job, status == RESPONSE_COMPLETED ? status : RESPONSE_INCOMPLETE, true);
    buf_append_str(out, "],\"usage\":");
    if (is_over && status != RESPONSE_FAILED)
        write_usage(out, job);
    else
        buf_append_str(out, "null");
    if (is_over && status != RESPONSE_FAILED) {
        buf_append_str(out, ",\"timings\":");
        answer_write_timings(out, job);
    }
    buf_append(out, "}", 1);
}

static void write_reply(struct buf *out, const struct job *job)
{
    write_response(out, job, final_status(job));
}

/* --- the stream ---------------------------------------------------------------------------- */

static void open_event(struct job *job, const char *name)
{
    buf_printf(&job->out, "event: %s\ndata: {\"type\":\"%s\",\"sequence_number\":%u", name, name,
               job->n_events++);
}

static void close_event(struct job *job)
{
    buf_append_str(&job->out, "}\n\n");
}

static void write_response_event(struct job *job, const char *name, enum response_status status)
{
    open_event(job, name);
    buf_append_str(&job->out, ",\"response\":");
    write_response(&job->out, job, status);
    close_event(job);
}

static void write_item_event(struct job *job, const char *name, enum response_status status,
                             bool with_part)
{
    open_event(job, name);
    buf_append_str(&job->out, ",\"output_index\":0,\"item\":");
    write_item(&job->out, job, status, with_part);
    close_event(job);
}

/* Where in the response a part's event belongs. */
static void open_part_event(struct job *job, const char *name)
{
    open_event(job, name);
    buf_printf(&job->out, ",\"item_id\":\"msg_%s\",\"output_index\":0,\"content_index\":0",
               random_part(job));
}

static void write_begin(struct job *job, uint32_t i_choice)
{
    (void)i_choice; /* there is one */
    write_response_event(job, "response.created", RESPONSE_IN_PROGRESS);
    write_response_event(job, "response.in_progress", RESPONSE_IN_PROGRESS);
    write_item_event(job, "response.output_item.added", RESPONSE_IN_PROGRESS, false);
    open_part_event(job, "response.content_part.added");
    buf_append_str(&job->out, ",\"part\":");
    write_part(&job->out, job, false);
    close_event(job);
}

static void write_delta(struct job *job, uint32_t i_choice, const char *text, size_t len,
                        const struct logprob_text *l)
{
    static const struct buf NONE = {0};

    (void)i_choice;
    open_part_event(job, "response.output_text.delta");
    buf_append_str(&job->out, ",\"delta\":");
    json_write_string(&job->out, text, len);
    buf_append_str(&job->out, ",\"logprobs\":");
    write_items(&job->out, l ? &l->tokens : &NONE);
    close_event(job);
}

static void write_finish(struct job *job, uint32_t i_choice)
{
    (void)job, (void)i_choice; /* all of it comes with the end */
}

static void write_end(struct job *job)
{
    const struct choice *choice = &job->choices[0];
    enum response_status status = final_status(job);

    open_part_event(job, "response.output_text.done");
    buf_append_str(&job->out, ",\"text\":");
    json_write_string(&job->out, choice->text.data, choice->text.len);
    buf_append_str(&job->out, ",\"logprobs\":");
    write_items(&job->out, &choice->logprobs.tokens);
    close_event(job);
    open_part_event(job, "response.content_part.done");
    buf_append_str(&job->out, ",\"part\":");
    write_part(&job->out, job, true);
    close_event(job);
    write_item_event(job, "response.output_item.done", status, true);
    write_response_event(
        job, status == RESPONSE_INCOMPLETE ? "response.incomplete" : "response.completed", status);
}

/* The `error` member beside the spec's own is what makes the official clients raise. */
static void write_error(struct job *job)
{
    write_response_event(job, "response.failed", RESPONSE_FAILED);
    open_event(job, "error");
    buf_append_str(&job->out, ",\"code\":");
    json_write_string_or_null(&job->out, job->error.code);
    buf_append_str(&job->out, ",\"message\":");
    json_write_string(&job->out, job->error.message, strlen(job->error.message));
    buf_append_str(&job->out, ",\"param\":");
    json_write_string_or_null(&job->out, job->error.param[0] ? job->error.param : NULL);
    buf_append_str(&job->out, ",\"error\":");
    http_error_write_object(&job->out, &job->error);
    close_event(job);
}

static void add_logprobs(struct logprob_text *l, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top,
                         size_t *n_chars)
{
    (void)n_chars; /* no text offsets here */
    logprobs_add_chat(l, tokenizer, record, top);
}

const struct answer_shape RESPONSES_SHAPE = {
    .route = ON_RESPONSES,
    .id_prefix = "resp_",
    .object = "response",
    .chunk_object = "response",
    .prompt_param = "input",
    .ping = ": ping\n\n",
    .repeats_text = true,
    .write_reply = write_reply,
    .write_begin = write_begin,
    .write_delta = write_delta,
    .write_finish = write_finish,
    .write_end = write_end,
    .write_error = write_error,
    .add_logprobs = add_logprobs,
};
