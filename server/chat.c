/* The shape of /v1/chat/completions. */
#include "server/job.h"
#include "server/json_write.h"

static void write_logprobs(struct buf *out, const struct logprob_text *l)
{
    buf_append_str(out, ",\"logprobs\":");
    if (l)
        logprobs_write_chat(out, l);
    else
        buf_append_str(out, "null");
}

static void write_choice(struct buf *out, const struct job *job, uint32_t i_choice)
{
    const struct choice *choice = &job->choices[i_choice];

    buf_append_str(out, ",\"message\":{\"role\":\"assistant\",\"content\":");
    json_write_string(out, choice->text.data, choice->text.len);
    buf_append_str(out, ",\"refusal\":null,\"annotations\":[]}");
    write_logprobs(out, job->n_logprobs >= 0 ? &choice->logprobs : NULL);
    buf_printf(out, ",\"finish_reason\":\"%s\"", answer_finish_name(choice->finish));
}

static void write_begin(struct job *job, uint32_t i_choice)
{
    answer_open_event(job, i_choice);
    buf_append_str(&job->out, ",\"delta\":{\"role\":\"assistant\",\"content\":\"\","
                              "\"refusal\":null},\"logprobs\":null,\"finish_reason\":null");
    answer_close_event(job, false);
}

static void write_delta(struct job *job, uint32_t i_choice, const char *text, size_t len,
                        const struct logprob_text *l)
{
    answer_open_event(job, i_choice);
    buf_append_str(&job->out, ",\"delta\":{\"content\":");
    json_write_string(&job->out, text, len);
    buf_append_str(&job->out, "}");
    write_logprobs(&job->out, l);
    buf_append_str(&job->out, ",\"finish_reason\":null");
    answer_close_event(job, false);
}

static void write_finish(struct job *job, uint32_t i_choice)
{
    answer_open_event(job, i_choice);
    buf_printf(&job->out, ",\"delta\":{},\"logprobs\":null,\"finish_reason\":\"%s\"",
               answer_finish_name(job->choices[i_choice].finish));
    answer_close_event(job, job->last_choice == i_choice);
}

static void add_logprobs(struct logprob_text *l, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top,
                         size_t *n_chars)
{
    (void)n_chars; /* chat has no text offsets */
    logprobs_add_chat(l, tokenizer, record, top);
}

const struct answer_shape CHAT_SHAPE = {
    .route = ON_CHAT,
    .id_prefix = "chatcmpl-",
    .object = "chat.completion",
    .chunk_object = "chat.completion.chunk",
    .prompt_param = "messages",
    .ping = ": ping\n\n",
    .write_reply = answer_write_reply,
    .write_choice = write_choice,
    .write_begin = write_begin,
    .write_delta = write_delta,
    .write_finish = write_finish,
    .write_end = answer_write_end,
    .write_error = answer_write_error,
    .add_logprobs = add_logprobs,
};
