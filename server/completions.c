/* The shape of /v1/completions. */
#include "server/job.h"
#include "server/json_write.h"

static void write_text(struct buf *out, const struct job *job, const char *text, size_t len,
                       const struct logprob_text *l)
{
    buf_append_str(out, ",\"text\":");
    json_write_string(out, text, len);
    buf_append_str(out, ",\"logprobs\":");
    if (l)
        logprobs_write_legacy(out, l, job->n_logprobs > 0);
    else
        buf_append_str(out, "null");
}

static void write_choice(struct buf *out, const struct job *job, uint32_t i_choice)
{
    const struct choice *choice = &job->choices[i_choice];

    write_text(out, job, choice->text.data, choice->text.len,
               job->n_logprobs >= 0 ? &choice->logprobs : NULL);
    answer_write_prompt_logprobs(out, job, i_choice / job->n);
    buf_printf(out, ",\"finish_reason\":\"%s\"", answer_finish_name(choice->finish));
}

/* The echoed prompt is the first event of each of its choices. */
static void write_begin(struct job *job, uint32_t i_choice)
{
    const struct part *part = &job->parts[i_choice / job->n];

    if (!job->echo)
        return;
    answer_open_event(job, i_choice);
    write_text(&job->out, job, part->echo.data, part->echo.len,
               job->wants_prompt_logprobs ? &part->prompt_logprobs : NULL);
    buf_append_str(&job->out, ",\"finish_reason\":null");
    answer_close_event(job, false);
}

static void write_delta(struct job *job, uint32_t i_choice, const char *text, size_t len,
                        const struct logprob_text *l)
{
    answer_open_event(job, i_choice);
    write_text(&job->out, job, text, len, l);
    buf_append_str(&job->out, ",\"finish_reason\":null");
    answer_close_event(job, false);
}

static void write_finish(struct job *job, uint32_t i_choice)
{
    answer_open_event(job, i_choice);
    buf_printf(&job->out, ",\"text\":\"\",\"logprobs\":null,\"finish_reason\":\"%s\"",
               answer_finish_name(job->choices[i_choice].finish));
    answer_close_event(job, job->last_choice == i_choice);
}

const struct answer_shape COMPLETIONS_SHAPE = {
    .route = ON_COMPLETIONS,
    .id_prefix = "cmpl-",
    .object = "text_completion",
    .chunk_object = "text_completion",
    .prompt_param = "prompt",
    .ping = ": ping\n\n",
    .write_reply = answer_write_reply,
    .write_choice = write_choice,
    .write_begin = write_begin,
    .write_delta = write_delta,
    .write_finish = write_finish,
    .write_end = answer_write_end,
    .write_error = answer_write_error,
    .add_logprobs = logprobs_add_legacy,
};
