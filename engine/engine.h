/* The engine's one public door: open a model (and its pruned twin), submit requests, poll what they
 * produced, cancel, ask for statistics, close. Plain C structs; no JSON, no HTTP.
 *
 *   submit -> [intake thread: template, tokens, limits] -> prefill pool (full model, first token)
 *          -> decode pool (the decode model) -> outputs -> poll
 *
 * Threads: engine_submit, engine_cancel, engine_stats, engine_info and the tokenize functions may
 * be called from any thread and never block on compute. engine_poll / engine_wait belong to ONE
 * consumer thread. */
#ifndef OVERFILL_ENGINE_ENGINE_H
#define OVERFILL_ENGINE_ENGINE_H

#include "engine/base/error.h"
#include "engine/sampling/sampler.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/text_stream.h"
#include "engine/tokenizer/tokenizer.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

struct engine;

/* Who writes the answer after the first token: the quality dial. */
enum decode_mode {
    DECODE_DEFAULT,
    DECODE_PRUNED,  /* the twin */
    DECODE_REFRESH, /* the twin; after every `every` tokens the full model reads them again and its
                       keys and values take the place of the twin's */
    DECODE_VERIFY,  /* the twin drafts `every` tokens, the full model accepts or replaces them: its
                       own tokens if greedy, its own distribution if sampled */
    DECODE_FULL,    /* the full model */
};
const char *decode_mode_name(enum decode_mode mode); /* "pruned", "refresh", "verify", "full" */
int decode_mode_from_name(const char *name);         /* -1 if unknown */

enum kv_type { KV_F16, KV_F32, KV_BF16, KV_Q8_0 };
/* How weights lie in memory. AUTO keeps 4-bit blocks of 32 as they are and makes everything else
 * int8 in blocks of 32; F32 is the reference. */
enum weight_type { WEIGHT_AUTO, WEIGHT_Q8, WEIGHT_F32 };

/* Bits of the activations that products take. AUTO: 12 for the full model; 8 for the twin, but as
 * the full model for a twin of the same shape and types. */
enum activation_bits { ACTIVATIONS_AUTO, ACTIVATIONS_8, ACTIVATIONS_12 };

struct engine_options {
    const char *model_path;    /* full model: GGUF file or Hugging Face folder */
    const char *pruned_path;   /* its twin, or NULL: then the full model decodes */
    const char *model_id;      /* name on the wire, or NULL: derived from the file's name */
    const char *chat_template; /* a family's name, or NULL: recognised from the file */
    enum decode_mode decode;   /* DECODE_DEFAULT: pruned if there is a twin */
    uint32_t decode_every;     /* of refresh and verify; 0: 16 and 4 */
    enum weight_type weights;
    enum activation_bits activations, pruned_activations; /* the full model's, the twin's */
    enum kv_type kv_type;
    uint32_t context; /* tokens a request may use, prompt + answer; 0: min(trained, 8192) */
    size_t kv_bytes;  /* budget of all KV pages; 0: a quarter of the memory, at most 4 GiB */
    uint32_t prefill_threads;  /* lent to decode while idle; 0: half of the process's CPUs */
    uint32_t decode_threads;   /* lent to prefill while idle; 0: the other half */
    uint32_t max_sequences;    /* sequences decoding at once; 0: 64 */
    uint32_t max_queue;        /* requests waiting; 0: 512. Past it engine_submit is ERROR_BUSY */
    uint32_t max_queue_tokens; /* prompt tokens waiting; 0: 1,000,000 */
    uint32_t prefill_chunk_ms; /* time a prefill chunk aims at; 0: 25 */
    /* Folder where the prefix cache outlives the engine, or NULL. engine_close writes what is kept
     * to STATE_DIR/prefix-cache, the latest first, up to state_bytes (0: 1 GiB); engine_open finds
     * it again if models, number types and kernels are the same (the fingerprint of engine_info). A
     * file of others or a broken one, a full disk: a line in the log and nothing else. It holds
     * what clients sent, for its owner's eyes only (0600). */
    const char *state_dir;
    size_t state_bytes;
    /* Folder where packed weights are kept in files, for the next start to map instead of packing,
     * and for processes of one machine to share; or NULL. Read by engine_open alone. What is wrong
     * with a file, or a full disk, is a line in the log. */
    const char *packed_cache;
    bool no_prefix_cache; /* pages are forgotten with the request that computed them */
    bool no_background;   /* finished answers are not read by the full model while idle */
    double shadow_rate;   /* 0..1: share of the twin's answers scored by both models while idle */
    /* Called on an engine thread when there is something to poll and the consumer may be asleep.
     * Must not block (uv_async_send). NULL: the consumer uses engine_wait. */
    void (*wake)(void *user);
    void *wake_user;
    /* Called on the opening thread while weights are packed, with a share 0..1; may be NULL. */
    void (*progress)(void *user, const char *what, double share);
    void *progress_user;
};

/* Blocks until the models are packed and the threads run. */
int engine_open(const struct engine_options *options, struct engine **ret_engine,
                struct error *err);
/* Cancels what runs, joins all threads, writes the prefix cache if there is a state_dir (which may
 * take seconds), frees everything. NULL is fine. */
void engine_close(struct engine *engine);
/* Stops taking new work (engine_submit: ERROR_SHUTDOWN); running requests go on. */
void engine_drain(struct engine *engine);

#define ENGINE_MAX_CHOICES 128
#define ENGINE_MAX_LOGPROBS 20
#define ENGINE_MAX_STOPS 16
#define ENGINE_MAX_EVERY 256

/* Tokens that a choice is to have, whatever the model thinks of them. */
struct engine_given {
    const int32_t *tokens;
    size_t n_tokens; /* 1 and more; prompt and they fit the context, else ERROR_CONTEXT */
};

/* Sees the logits [n_vocab] that output token i_token of a choice was drawn from or, if given, is
 * scored by. Called on compute threads, several at once and in no fixed order, always before the
 * token is output; must not block. The logits are valid during the call. */
typedef void engine_logits_fn(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                              uint32_t n_vocab);

/* One prompt, n answers. engine_submit copies everything it points to. */
struct engine_request {
    /* The prompt: exactly one of the three. */
    const struct chat_message *messages; /* rendered with the model's chat template */
    size_t n_messages;
    const char *text; /* plain text, bos as the vocabulary asks */
    size_t text_len;
    const int32_t *tokens; /* ids, taken as they are */
    size_t n_tokens;
    bool parse_special; /* text: control tokens' text becomes these tokens */

    uint32_t n;               /* choices, 1..ENGINE_MAX_CHOICES */
    uint32_t max_tokens;      /* UINT32_MAX: until the context is full. 0: prompt only */
    bool max_tokens_must_fit; /* prompt + max_tokens > context: ERROR_CONTEXT, else length */
    uint32_t min_tokens;      /* end tokens are not chosen before that many */
    bool ignore_eos;
    const struct stop_string *stops;
    size_t n_stops;
    struct sampling_params sampling;
    int32_t n_logprobs;         /* -1: none; 0: the token's own; k: and the k best */
    bool prompt_logprobs;       /* also for every prompt token (echo), */
    uint32_t n_prompt_logprobs; /*   and the k best at its place */
    enum decode_mode decode;
    uint32_t decode_every; /* of refresh and verify, 1..ENGINE_MAX_EVERY; 0: the server's */
    int32_t priority;      /* lower goes first; the higher give up their pages first */
    uint64_t fairness_key; /* requests of equal priority are admitted from each key in turn */
    bool no_cache;         /* its prompt is neither looked for in the prefix cache nor kept there */
    /* Scoring: [n], the choices' tokens, or NULL. They take the place of drawn ones, all else is as
     * in serving: the full model scores the first, the decode model of `decode` the others on the
     * KV that serving would have. Such a step takes many tokens at once and gives the same bits.
     * max_tokens, min_tokens, ignore_eos and sampling have no say, stops are refused; every choice
     * ends with FINISH_LENGTH. */
    const struct engine_given *given;
    engine_logits_fn *on_logits; /* or NULL; gets `user` */
    void *user;                  /* handed back in every output */
};

enum finish_reason { FINISH_NONE, FINISH_STOP, FINISH_LENGTH, FINISH_CANCELLED, FINISH_ERROR };

/* One generated token of one choice, in the order of sampling; or a choice's end (token == -1). */
struct engine_token {
    uint32_t choice;
    int32_t token;             /* -1: this record only ends the choice */
    enum finish_reason finish; /* not FINISH_NONE: the choice ends with this record */
    size_t text_start;         /* engine_output.text[text_start, +text_len): what became safe */
    size_t text_len; /*   to send with this record; whole UTF-8 characters, may be empty */
    float logprob;   /* NAN if not asked */
    uint32_t n_top;
    size_t top_start; /* engine_output.top[top_start, +n_top), best first */
    uint32_t rank;    /* of prompt tokens: 1 for the likeliest, 0 where logprob is NAN */
};

struct engine_usage {
    uint32_t prompt_tokens;
    uint32_t cached_tokens;     /* of the prompt, found in the prefix cache */
    uint32_t matched_tokens;    /* >= cached_tokens: where it differs from the nearest one kept */
    uint32_t completion_tokens; /* all choices together */
    enum decode_mode decode;    /* the dial as it was, and of all choices together: */
    uint32_t decode_every;      /*   0 unless refresh or verify */
    uint32_t refreshed_tokens;  /*   answer tokens read again by the full model */
    uint32_t drafted_tokens;    /*   by the twin, for verify */
    uint32_t accepted_tokens;   /*   of these, by the full model */
    uint32_t n_preemptions;     /* times its pages were taken away and computed again */
    double queue_ms;            /* submit to the first prefill chunk */
    double prefill_ms;          /* first chunk to the first token */
    double decode_ms;           /* first token to the end */
};

/* What a request produced since its last output. Owned by the engine, valid until the next
 * engine_poll / engine_wait. */
struct engine_output {
    uint64_t id;
    void *user;
    bool accepted; /* set from the first output on: tokenised, within limits, queued */
    const int32_t
        *prompt_ids; /* set with the first output only, else NULL; [usage.prompt_tokens] */
    const struct engine_token *prompt;      /* prompt logprobs when they are complete, else NULL; */
    size_t n_prompt;                        /*   [0].logprob is NAN; text fields unused; */
    const struct token_logprob *prompt_top; /* what prompt[i].top_start counts in */
    const struct engine_token *tokens;
    size_t n_tokens;
    const char *text;
    const struct token_logprob *top;
    bool done;                 /* the last output of this request; its id is gone after this */
    const struct error *error; /* done with a failure, else NULL */
    uint32_t n_prompt_tokens;  /* for ERROR_CONTEXT messages, known once tokenised */
    struct engine_usage usage; /* final when done, prompt_tokens from `accepted` on */
};

/* Returns 0 and the request's id. ERROR_BUSY: queue full; engine_retry_after_ms says how long.
 * ERROR_INVALID: names the field. Anything found later (context too long, ...) arrives as an output
 * with `error`. */
int engine_submit(struct engine *engine, const struct engine_request *request, uint64_t *ret_id,
                  struct error *err);
/* When a place in the queue can be expected, from the rates measured so far: 100..60,000. Any
 * thread. */
uint32_t engine_retry_after_ms(struct engine *engine);
/* Ends a request at whatever stage it is; its last output has done and ERROR_CANCELLED. An id that
 * is already gone is fine. */
void engine_cancel(struct engine *engine, uint64_t id);

/* The next request with output, or NULL when there is none now. */
const struct engine_output *engine_poll(struct engine *engine);
/* The same, waiting up to timeout_ms (-1: for ever). */
const struct engine_output *engine_wait(struct engine *engine, int timeout_ms);

struct engine_info {
    const char *model_id;
    const char *model_path, *pruned_path; /* pruned_path NULL without a twin */
    const char *chat_template;            /* family name, or NULL if the model has none */
    char fingerprint[24];                 /* "fp_" + hash of models, weight types and kernel path */
    const char *kernels;                  /* "scalar", "avx2", "avxvnni", "avx512", "amx", ... */
    bool prompts_in_bf16;                 /* products of prompts, where the kernels have such */
    bool prompts_attend_in_bf16;          /* and their attention */
    bool is_coarse, pruned_is_coarse;     /* the full model's activations, the twin's: 8 bits */
    uint32_t context;                     /* tokens a request may use */
    uint32_t context_train;
    uint32_t vocab_size;
    uint64_t n_params, n_params_pruned;
    size_t model_bytes, pruned_bytes;           /* weights in memory, embedding included */
    size_t model_step_bytes, pruned_step_bytes; /* weights one decode step reads */
    size_t kv_bytes_per_token;
    uint32_t prefill_threads, decode_threads;
    enum decode_mode decode; /* the default, resolved */
};
void engine_get_info(const struct engine *engine, struct engine_info *ret_info);

struct engine_stats {
    uint32_t requests_waiting; /* submitted, prefill not begun */
    uint32_t requests_prefilling;
    uint32_t sequences_decoding;
    uint32_t requests_preempted;            /* sequences that wait for pages to go on */
    uint32_t kv_pages_used, kv_pages_total; /* used: by requests */
    uint32_t kv_pages_cached;               /* kept for prompts to come, given up when needed */
    size_t kv_page_bytes;
    uint64_t prompt_tokens;       /* counters since open */
    uint64_t prompt_tokens_asked; /* looked for in the prefix cache */
    uint64_t cached_tokens;       /*   and found there: not part of prompt_tokens */
    uint64_t generated_tokens;
    uint64_t refreshed_tokens, drafted_tokens, accepted_tokens; /* the dial, as in engine_usage */
    uint64_t background_tokens; /* of finished answers, read by the full model while idle */
    uint64_t preemptions;
    uint64_t recomputed_tokens; /* after them, not counting prompts */
    uint64_t pages_evicted;     /* from the prefix cache */
    /* Shadow checks: the twin's answers scored by both models. */
    uint64_t shadow_answers, shadow_tokens;
    uint64_t shadow_agreed;  /* tokens where both models' best is the same */
    double shadow_kl;        /* sum over tokens of KL(full || twin), nats */
    double cancel_last_s;    /* engine_cancel to the release of all it held: the last one, */
    double cancel_longest_s; /*   the longest */
    uint64_t prefill_steps, decode_steps;
    double prefill_seconds, decode_seconds; /* busy time of each stage */
    uint64_t finished_stop, finished_length, cancelled, failed;
    uint64_t weight_bytes_prefill_full,
        weight_bytes_prefill_pruned;                               /* weights read, by stage and */
    uint64_t weight_bytes_decode_full, weight_bytes_decode_pruned; /*   model: the OverFill claim */
    double prefill_tick_age_s, decode_tick_age_s; /* since a stage with work last finished a step */
};
void engine_get_stats(struct engine *engine, struct engine_stats *ret_stats);

/* Text and ids without generating. Any thread; work is O(len) on the calling thread. */
const struct tokenizer *engine_tokenizer(const struct engine *engine);
/* ERROR_UNSUPPORTED when the model has no chat template. */
int engine_render(const struct engine *engine, const struct chat_message *messages,
                  size_t n_messages, struct chat_prompt *ret_prompt, struct error *err);

#endif
