/* One generation request: the prompts it sent to the engine (parts), the answers it collects
 * (choices), and either one JSON reply or a stream of events. Loop thread only.
 *
 * Owners: the server's list holds a job from job_open until the engine has ended all its parts AND
 * its exchange has let go of it; whichever comes last frees it. A client that leaves detaches its
 * exchange at once, and the parts are cancelled. */
#ifndef OVERFILL_SERVER_JOB_H
#define OVERFILL_SERVER_JOB_H

#include "server/fields.h"
#include "server/internal.h"
#include "server/logprobs.h"

/* One prompt, one engine request. */
struct part {
    struct job *job;
    uint64_t id;     /* the engine's */
    uint32_t i_part; /* its choices are job->choices[i_part * n .. + n) */
    bool is_submitted, is_accepted, is_done;
    struct engine_usage usage;
    uint64_t first_token_ns;             /* 0: none yet */
    struct buf echo;                     /* the prompt's text, when asked back */
    struct logprob_text prompt_logprobs; /* for echo */
    struct buf prompt_ranks;             /* the items of vLLM's prompt_logprobs */
    size_t prompt_chars;
};

/* One answer. */
struct choice {
    struct buf text;              /* a stream's only if the shape repeats it */
    struct logprob_text logprobs; /* the same */
    size_t n_chars;               /* of the text so far, for text_offset */
    struct buf raw;               /* every token's bytes, when the stop string has to be named */
    uint32_t n_tokens;
    enum finish_reason finish;
    bool has_begun; /* stream: its first event is out */
    uint64_t last_token_ns;
};

/* How an API words its answers: chat.c, completions.c, responses.c, messages.c. */
struct answer_shape {
    enum field_route route;
    const char *id_prefix;
    const char *object, *chunk_object;
    const char *prompt_param; /* the field to blame for a prompt that is too long */
    const char *ping;         /* what a silent stream gets */
    bool repeats_text;        /* the stream's last events have the whole text again */
    bool names_stop;          /* the answer says which stop string ended it */
    void (*write_reply)(struct buf *out, const struct job *job);
    /* One choice of the whole reply, from "index" on; for answer_write_reply. */
    void (*write_choice)(struct buf *out, const struct job *job, uint32_t i_choice);
    /* A stream's first event of a choice; may write none. */
    void (*write_begin)(struct job *job, uint32_t i_choice);
    /* The choice's text and log-probabilities since the last event (l may be NULL). */
    void (*write_delta)(struct job *job, uint32_t i_choice, const char *text, size_t len,
                        const struct logprob_text *l);
    void (*write_finish)(struct job *job, uint32_t i_choice);
    void (*write_end)(struct job *job);   /* what closes a stream that went well */
    void (*write_error)(struct job *job); /* what closes one that did not */
    void (*add_logprobs)(struct logprob_text *l, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top,
                         size_t *n_chars);
};
extern const struct answer_shape CHAT_SHAPE, COMPLETIONS_SHAPE, RESPONSES_SHAPE, MESSAGES_SHAPE;

struct job {
    struct server *server;
    struct exchange *exchange; /* NULL: nobody waits for the answer */
    struct job *prev, *next;
    const struct answer_shape *shape;

    /* What of the request is still needed after submitting. */
    bool is_stream, include_usage, continuous_usage, echo, wants_prompt_logprobs;
    uint32_t n; /* choices a prompt */
    uint32_t max_tokens;
    int32_t n_logprobs, n_prompt_logprobs; /* -1: none */
    float temperature, top_p;
    uint64_t ping_ns;        /* 0: never */
    struct buf instructions; /* responses: told back */
    struct buf stops;        /* with names_stop: each with a NUL behind it */

    char id[40];
    int64_t created;
    struct part *parts;
    uint32_t n_parts, n_accepted, n_running;
    struct choice *choices;
    uint32_t n_choices, n_open; /* open: without a finish reason yet */
    uint64_t start_ns;

    struct http_error error; /* status != 0: it failed */
    bool is_cancelled;

    /* Stream. */
    struct buf prefix; /* `data: {"id":...,"choices":[{"index":`, the same for every event */
    struct buf out;    /* events to send; [0, n_sent) is gone */
    size_t n_sent;
    bool is_streaming;   /* headers are out: errors go in band */
    bool has_ended;      /* nothing will be added to `out` */
    int64_t last_choice; /* its finish event waits for the final numbers; -1: none */
    uint64_t last_write_ns;
    struct logprob_text scratch; /* of the token at hand */
    bool has_lost_logprobs;      /* scratch ran out of memory */
    uint32_t n_events;           /* responses: sequence_number of the next */
};

/* The request's parameters are read, not kept. 0, or *e. On success x->job is set and the parts
 * are with the engine. */
int job_open(struct exchange *x, const struct answer_shape *shape, const struct params *params,
             struct http_error *e);

/* The engine has something for one of the server's jobs. */
void job_on_output(struct server *server, const struct engine_output *output);

/* Up to `max` bytes of the stream. When it returns 0 the flags are valid. */
size_t job_read_stream(struct job *job, char *out, size_t max, bool *ret_has_ended,
                       bool *ret_has_failed);
/* The client is gone: cancels what runs. */
void job_abandon(struct job *job);
/* The exchange ends: the job loses it, and is abandoned if it was not finished. */
void job_detach(struct job *job);
/* The server ends: cancels what runs, the clients are told. */
void job_cancel(struct job *job);
/* Once a second: a comment line for a silent stream. */
void job_ping(struct job *job, uint64_t now_ns);
/* Whatever the engine still thinks: for the server's end only. */
void job_free(struct job *job);

/* answer.c: what OpenAI's shapes share. */
void answer_write_usage(struct buf *out, const struct job *job, bool is_final);
void answer_write_dial(struct buf *out, const struct job *job);
void answer_write_timings(struct buf *out, const struct job *job);
/* ,"prompt_logprobs":[...] where they were asked for. */
void answer_write_prompt_logprobs(struct buf *out, const struct job *job, uint32_t i_part);
void answer_write_reply(struct buf *out, const struct job *job);
const char *answer_finish_name(enum finish_reason finish);
int answer_prepare_prefix(struct job *job);
/* Around one choice in an event: index before, the event's end after. */
void answer_open_event(struct job *job, uint32_t i_choice);
void answer_close_event(struct job *job, bool is_last_choice);
void answer_write_end(struct job *job);   /* last finish event, usage event, [DONE] */
void answer_write_error(struct job *job); /* data: {"error":...} */
/* The stop string that ended the choice, NULL if none did. Needs names_stop. */
const char *answer_stop_string(const struct job *job, uint32_t i_choice);
/* Sums over the parts; the times are those of the slowest. */
struct engine_usage answer_total_usage(const struct job *job);

#endif
