/* What the files of engine/pool share: requests, sequences, and the engine itself.
 *
 * A request passes from owner to owner: intake thread -> prefill thread -> decode thread. From its
 * first token on each choice, a sequence, goes its own way between the latter two: decode hands it
 * to prefill when the full model is to read some of it (the dial), or its pages were taken away.
 * Only the owner touches the fields of a request or sequence, except those marked otherwise. Queues
 * hand it over; their mutex makes the former owner's writes visible to the next. */
#ifndef OVERFILL_ENGINE_POOL_POOL_INTERNAL_H
#define OVERFILL_ENGINE_POOL_POOL_INTERNAL_H

#include "engine/base/buf.h"
#include "engine/base/team.h"
#include "engine/engine.h"
#include "engine/forward/forward.h"
#include "engine/kv/kv.h"
#include "engine/model/model.h"

#include <pthread.h>
#include <stdatomic.h>

#define PREFILL_MAX_ROWS 512  /* tokens of one prefill step */
#define PREFILL_MIN_ROWS 32   /* that tell how fast many are */
#define PREFILL_LOGIT_ROWS 64 /* rows of logits of one prefill step */
#define MOST_SEQUENCES 512u   /* that max_sequences may be */
#define DECODE_ROWS 64u       /* of a decode step at least: room for runs of given tokens */
#define REGISTRY_BUCKETS 1024
#define DEFAULT_EVERY_REFRESH 16u
#define DEFAULT_EVERY_VERIFY 4u

/* Tokens, text and logprobs on their way out: filled by the owner, taken whole by engine_poll. */
struct output_buffer {
    struct engine_token *tokens;
    size_t n_tokens, cap_tokens;
    struct token_logprob *top;
    size_t n_top, cap_top;
    struct buf text;
};

/* Why the prefill pool has a sequence. */
enum reading {
    READ_NONE,    /* it has not: decode's */
    READ_PROMPT,  /* to the first token; of a request's first sequence, for all of them */
    READ_RESUME,  /* its pages were taken away: all of it again, by whoever wrote it */
    READ_REFRESH, /* the twin's last tokens, for the full model's K and V of them */
    READ_VERIFY,  /* the same with the drafts, to accept or replace them */
};

/* One choice of a request. Its table holds K and V of tokens[0, position): of the first n_exact by
 * the full model, of the rest by the twin. */
struct sequence {
    struct request *request;
    uint32_t choice;
    struct kv_table table;
    int32_t *tokens;   /* [prompt.n + max_new]: prompt, answer, then drafts or what is given */
    uint32_t n_tokens; /* prompt and answer */
    uint32_t n_drafts; /* after them; while they are verified the first may be among them */
    bool draft_ends;   /* the last one is an end token */
    uint32_t position; /* n_tokens + n_drafts - 1 in decode: the last token is not computed yet */
    uint32_t n_exact;
    uint32_t n_generated;
    struct sampling_draft *drafts; /* [every] if the answer is verified */

    enum reading reading;
    uint32_t read_begin;  /* position that it was to be read from, unless pages were lost, */
    uint32_t read_end;    /*   that it reads to, */
    uint32_t read_exact;  /*   that the full model reads to, the twin from there on, */
    uint32_t logits_from; /*   whose logits are needed and those after it */
    bool in_step;         /* of the prefill step being built */
    bool is_starved;      /* decode found no page for it this step */

    const struct engine_given *given; /* NULL: tokens are sampled */
    struct sampler *sampler;          /* NULL if they are given */
    struct text_stream stream;
    bool finishing; /* its last token is out; sequence_finish comes next */
    bool finished;
    struct sequence *next; /* in the queue that holds it */
};

/* What is said about a token besides its id. */
struct token_score {
    float logprob; /* NAN if not asked */
    size_t n_top;
    struct token_logprob top[ENGINE_MAX_LOGPROBS];
};

struct request {
    uint64_t id;
    struct engine_request in; /* deep copy; its pointers go into `storage` */
    void *storage;
    enum decode_mode decode;
    uint32_t every; /* of refresh and verify */
    uint64_t submitted_ns, prefill_ns, first_token_ns;
    atomic_bool cancelled; /* set by any thread, acted on by the owner between steps */
    atomic_ullong cancelled_ns;

    struct token_list prompt;
    uint32_t max_new;                    /* tokens a choice may generate */
    uint32_t n_computed;                 /* prompt tokens that were not found in the prefix cache */
    struct engine_token *prompt_records; /* [prompt.n] with prompt_logprobs */
    struct token_logprob *prompt_top;    /* [prompt.n][n_prompt_logprobs] */
    struct sequence *sequences;          /* [in.n] */
    uint32_t n_unfinished;
    bool choice_cut;      /* a choice ended without its last record: the request is not complete */
    struct request *next; /* in the queue that holds it */

    struct request *bucket_next; /* guarded by engine.registry_lock */

    pthread_mutex_t out_lock; /* guards the following; the owner writes, engine_poll takes */
    struct output_buffer back;
    bool queued; /* in the ready list */
    bool accepted, prompt_ready, done;
    bool has_error;
    bool output_failed; /* an allocation for output failed */
    struct error error;
    struct engine_usage usage;
    struct request *ready_next; /* guarded by engine.ready_lock */

    /* the consumer's */
    struct output_buffer front;
    bool ids_delivered, prompt_delivered;
};

struct request_queue {
    struct request *head, *tail;
};
void request_queue_push(struct request_queue *queue, struct request *request);
struct request *request_queue_pop(struct request_queue *queue);

struct sequence_queue {
    struct sequence *head, *tail;
};
void sequence_queue_push(struct sequence_queue *queue, struct sequence *sequence);
struct sequence *sequence_queue_pop(struct sequence_queue *queue);

/* Who comes first when pages run out: lower priority, then earlier request, then choice. */
struct rank {
    int32_t priority;
    uint64_t id;
    uint32_t choice;
};
/* Before all, for a stage that holds no pages, and after all, for pages of work that can wait. */
#define RANK_NOBODY ((struct rank){INT32_MIN, 0, 0})
#define RANK_SPARE ((struct rank){INT32_MAX, UINT64_MAX, UINT32_MAX})

struct background_job;

/* One pool: its threads and what they compute with. */
struct stage {
    pthread_t thread;
    bool started;
    struct team *team; /* NULL for intake, which computes nothing */
    struct forward *forward;
    struct sampling_scratch **scratch; /* [crew size] */
    atomic_bool pending;               /* something came in or changed: look again */
    pthread_mutex_t lock;              /* guards the following */
    pthread_cond_t wake;               /* intake's; the others wait with team_wait */
    struct request_queue incoming;     /* intake, prefill */
    struct sequence_queue sequences;   /* prefill, decode */
    struct background_job *background; /* prefill: offered, the newest first */
    struct rank worst;                 /* the last in rank that holds pages, or may soon */
    struct rank asked_for; /* the other stage asks for the pages of somebody after this one */
    atomic_bool is_asked;  /* it does; not guarded */
};

struct engine {
    struct engine_options options; /* strings are copies in `strings` */
    char *model_id, *model_path, *pruned_path, *state_dir;
    const struct kernels *kernels;
    struct model *full, *pruned; /* pruned NULL without a twin */
    struct tokenizer *tokenizer;
    const struct chat_template *chat_template; /* NULL if the model has none */
    struct error template_error;               /* why there is none */
    int32_t *end_tokens;                       /* -1-terminated */
    struct kv_pool *kv;
    struct engine_info info;

    struct crew *crew; /* of the prefill and decode teams, which lend each other their threads */
    struct stage intake, prefill, decode;
    atomic_bool stopping, draining;

    pthread_mutex_t registry_lock; /* guards buckets and next_id */
    struct request *buckets[REGISTRY_BUCKETS];
    uint64_t next_id;

    pthread_mutex_t ready_lock; /* guards the ready list */
    pthread_cond_t ready_wake;
    struct request *ready_head, *ready_tail;
    struct request *polled; /* the consumer's: whose output it is reading */
    struct engine_output output;

    pthread_mutex_t stats_lock; /* guards stats, tick times and the counts used for admission */
    struct engine_stats stats;
    uint32_t n_waiting;        /* submitted, prefill not begun */
    uint32_t n_waiting_tokens; /* their prompt tokens, as far as tokenised */
    uint32_t n_sequences;      /* admitted and not finished */
    uint64_t admitted_ns;      /* when a request last left the queue for prefill, */
    double admit_interval_ns;  /*   and how far these moments are apart, smoothed */
    double shadow_due;         /* answers to be checked, as a sum of shares */
    uint64_t prefill_tick_ns, decode_tick_ns;
    bool prefill_busy, decode_busy;
    uint64_t work_since_ns; /* when a request came to an engine without any */
};

/* engine.c: a request waits no more; n_tokens of it were counted as waiting. */
void leave_waiting(struct engine *engine, uint32_t n_tokens, bool is_admitted);

/* request.c */
int request_create(struct engine *engine, const struct engine_request *in, uint64_t now_ns,
                   struct request **ret_request, struct error *err);
int request_open_sequences(struct engine *engine, struct request *request, struct error *err);
void request_free(struct request *request);

/* open.c: tokens of one decode step at most, one for every sequence at least */
uint32_t decode_rows(const struct engine_options *options);

/* state.c: before the threads run, and after they ended */
void state_load(struct engine *engine);
void state_save(struct engine *engine);

/* registry.c: from ids to requests that are not yet freed */
void registry_add(struct engine *engine, struct request *request);
void registry_remove(struct engine *engine, struct request *request);
bool registry_cancel(struct engine *engine, uint64_t id);

/* output.c: all but output_notify may be called by the request's owner only */
void output_accept(struct engine *engine, struct request *request);
void output_prompt(struct engine *engine, struct request *request);
/* The next token of `sequence` and its text, or -1 (score NULL) only to end it. Returns `finish`,
 * or FINISH_STOP when the token completed a stop string. */
enum finish_reason output_token(struct engine *engine, struct sequence *sequence, int32_t token,
                                const struct token_score *score, enum finish_reason finish);
/* The last output. Frees nothing: the consumer's next poll does. Counts it in the statistics. */
void output_done(struct engine *engine, struct request *request, const struct error *error);
/* The dial's counts; any thread that owns one of its sequences. */
struct dial_counts {
    uint32_t n_refreshed, n_drafted, n_accepted, n_preemptions;
};
void output_count(struct engine *engine, struct request *request, struct dial_counts counts);
/* Prompt tokens found in the prefix cache, and where the prompt differed. */
void output_count_cached(struct engine *engine, struct request *request, uint32_t n_cached,
                         uint32_t n_matched);
/* Wakes the consumer if there is anything to poll; once a step, not once a token. */
void output_notify(struct engine *engine);

/* sample.c */
struct score_job {
    const float *logits;
    struct sampler *sampler;            /* NULL: only score `token` */
    struct sampling_draft *ret_draft;   /* not NULL: only a draft, which is not counted */
    const struct sampling_draft *draft; /* not NULL: to verify */
    const int32_t *banned;
    int32_t token; /* in without a sampler, out with one */
    bool with_logprob;
    size_t k;
    float *ret_logprob;
    struct token_logprob *top; /* [k] */
    size_t *ret_n_top;
    uint32_t *ret_rank;           /* not NULL: also how many tokens are likelier */
    const struct sequence *shown; /* whose request's on_logits sees the row, or NULL */
    uint32_t i_token;
};
/* Runs the jobs on the stage's team. */
void score_jobs_run(struct engine *engine, struct stage *stage, struct score_job *jobs, size_t n);
/* Runs one, on a member of the stage's team. */
void score_job_run(const struct engine *engine, const struct stage *stage, unsigned member,
                   struct score_job *job);
/* For output token i_token, which is the next one unless tokens are given. */
struct score_job sequence_job(const struct engine *engine, const struct sequence *sequence,
                              uint32_t i_token, const float *logits, struct token_score *score);
/* Takes the next token, whose job was run: sends it, decides whether the choice ends. True if it
 * does. */
bool sequence_accept(struct engine *engine, struct sequence *sequence, int32_t token,
                     const struct token_score *score);
/* Ends a choice that was to have no tokens. Returns true, as the former. */
bool sequence_skip(struct engine *engine, struct sequence *sequence);
/* Gives back pages; when it was the request's last choice, ends the request. */
void sequence_finish(struct engine *engine, struct sequence *sequence, const struct error *error);

/* sequence.c */
const struct model *sequence_decoder(const struct engine *engine, const struct sequence *sequence);
/* The full model is to read some of it before decode goes on: sets up the reading. */
bool sequence_wants_reading(struct sequence *sequence);
/* Takes from the prefix cache what it has of the next pages. */
void sequence_find_prefix(struct engine *engine, struct sequence *sequence);
/* Full pages of the full model go to the prefix cache. */
void sequence_keep_prefix(struct engine *engine, struct sequence *sequence);
/* Takes its pages away; a READ_RESUME, or what it was reading from the beginning, will bring them
 * back. */
void sequence_preempt(struct engine *engine, struct sequence *sequence);
struct rank sequence_rank(const struct sequence *sequence);
bool rank_is_after(struct rank a, struct rank b);
/* The stage itself says who is its last in rank; who is on its way to it is seen to here. */
void stage_publish_worst(struct stage *stage, struct rank worst);
/* If the stage's last in rank comes after `rank`, asks it for that one's pages. */
bool stage_ask_for_pages(struct stage *stage, struct rank rank);
/* The stage itself: whether it was asked, for the pages of somebody after *ret_rank. By now the one
 * that was meant may be elsewhere. */
bool stage_is_asked(struct stage *stage, struct rank *ret_rank);

/* background.c: what the full model reads while it has nothing else to do */
/* Takes the tokens of an answer that just ended; called before its table is closed. */
void background_offer(struct engine *engine, struct sequence *sequence);
void background_free(struct background_job *jobs); /* the list; NULL is fine */

/* The threads. Each names itself: naming another goes through /proc, which a sandbox may forbid. */
void *intake_main(void *engine);
void *prefill_main(void *engine);
void *decode_main(void *engine);
void stage_push_request(struct stage *stage, struct request *request);
void stage_push_sequence(struct stage *stage, struct sequence *sequence);
/* Makes the stage's thread look again: pages came free, a request was cancelled, the end. */
void stage_nudge(struct stage *stage);

#endif
