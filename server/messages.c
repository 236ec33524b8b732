/* The shape of Anthropic's /v1/messages: one text block, its own names for why an answer ended, and
 * a stream of named events that ends with message_stop instead of [DONE]. */
#include "server/job.h"
#include "server/json_write.h"

#include <string.h>

static void write_stop(struct buf *out, const struct job *job)
{
    const char *stop = answer_stop_string(job, 0);
    const char *reason = job->choices[0].finish == FINISH_LENGTH ? "max_tokens"
                         : stop                                  ? "stop_sequence"
                                                                 : "end_turn";

    buf_printf(out, "\"stop_reason\":\"%s\",\"stop_sequence\":", reason);
    json_write_string_or_null(out, stop);
}

/* Anthropic counts cached tokens apart from the others. */
static void write_usage(struct buf *out, const struct job *job, bool is_final)
{
    struct engine_usage u = answer_total_usage(job);

    buf_printf(out,
               "{\"input_tokens\":%u,\"cache_creation_input_tokens\":0,"
               "\"cache_read_input_tokens\":%u,\"output_tokens\":%u",
               u.prompt_tokens - u.cached_tokens, u.cached_tokens,
               is_final ? u.completion_tokens : 0);
    if (is_final) {
        buf_append_str(out, ",\"overfill\":");
        answer_write_dial(out, job);
    }
    buf_append(out, "}", 1);
}

static void open_message(struct buf *out, const struct job *job)
{
    const char *model = job->server->info.model_id;

    buf_printf(out,
               "{\"id\":\"%s\",\"type\":\"message\",\"role\":\"assistant\",\"model\":", job->id);
    json_write_string(out, model, strlen(model));
}

static void write_reply(struct buf *out, const struct job *job)
{
    const struct choice *choice = &job->choices[0];

    open_message(out, job);
    buf_append_str(out, ",\"content\":[{\"type\":\"text\",\"text\":");
    json_write_string(out, choice->text.data, choice->text.len);
    buf_append_str(out, "}],");
    write_stop(out, job);
    buf_append_str(out, ",\"usage\":");
    write_usage(out, job, true);
    buf_append(out, "}", 1);
}

static void write_begin(struct job *job, uint32_t i_choice)
{
    struct buf *out = &job->out;

    (void)i_choice; /* there is one */
    buf_append_str(out, "event: message_start\ndata: {\"type\":\"message_start\",\"message\":");
    open_message(out, job);
    buf_append_str(out, ",\"content\":[],\"stop_reason\":null,\"stop_sequence\":null,\"usage\":");
    write_usage(out, job, false);
    buf_append_str(out, "}}\n\nevent: content_block_start\ndata: {\"type\":\"content_block_start\","
                        "\"index\":0,\"content_block\":{\"type\":\"text\",\"text\":\"\"}}\n\n");
}

static void write_delta(struct job *job, uint32_t i_choice, const char *text, size_t len,
                        const struct logprob_text *l)
{
    (void)i_choice, (void)l;
    buf_append_str(&job->out, "event: content_block_delta\ndata: {\"type\":\"content_block_delta\","
                              "\"index\":0,\"delta\":{\"type\":\"text_delta\",\"text\":");
    json_write_string(&job->out, text, len);
    buf_append_str(&job->out, "}}\n\n");
}

static void write_finish(struct job *job, uint32_t i_choice)
{
    (void)job, (void)i_choice; /* all of it comes with the end */
}

static void write_end(struct job *job)
{
    struct buf *out = &job->out;

    buf_append_str(out, "event: content_block_stop\ndata: {\"type\":\"content_block_stop\","
                        "\"index\":0}\n\nevent: message_delta\ndata: {\"type\":\"message_delta\","
                        "\"delta\":{");
    write_stop(out, job);
    buf_append_str(out, "},\"usage\":");
    write_usage(out, job, true);
    buf_append_str(out, "}\n\nevent: message_stop\ndata: {\"type\":\"message_stop\"}\n\n");
}

static void write_error(struct job *job)
{
    buf_append_str(&job->out, "event: error\ndata: ");
    http_error_write(&job->out, &job->error, DIALECT_ANTHROPIC);
    buf_append_str(&job->out, "\n\n");
}

const struct answer_shape MESSAGES_SHAPE = {
    .route = ON_MESSAGES,
    .id_prefix = "msg_",
    .object = "message",
    .chunk_object = "message",
    .prompt_param = "messages",
    .ping = "event: ping\ndata: {\"type\":\"ping\"}\n\n",
    .names_stop = true,
    .write_reply = write_reply,
    .write_begin = write_begin,
    .write_delta = write_delta,
    .write_finish = write_finish,
    .write_end = write_end,
    .write_error = write_error,
};
