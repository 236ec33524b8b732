/* See fake_engine.h. One thread plays all requests in turn, a token each; engine_poll copies what
 * the request has produced since its last output. Its own memory is not the program's mem_*: a test
 * that makes allocations fail means the server's. */
#include "tests/unit/server/fake_engine.h"

#include "engine/base/system.h"
#include "tests/unit/server/fake_tokenizer.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

enum { MAX_TOKENS_AN_OUTPUT = 256, MAX_TEXT_AN_OUTPUT = 4096 };

struct fake_choice {
    uint32_t n_tokens;
    bool has_ended;
    char held[64]; /* bytes not safe yet: parts of a character, the start of a stop string */
    size_t n_held;
};

struct fake_request {
    struct fake_request *next;
    uint64_t id;
    void *user;
    struct token_list prompt;
    char stops[ENGINE_MAX_STOPS][24];
    size_t n_stops;
    uint32_t n, max_tokens, min_tokens, n_ended;
    bool ignore_eos, prompt_logprobs, must_fit;
    int32_t n_logprobs;
    uint32_t n_prompt_logprobs;
    struct sampling_params sampling;
    enum decode_mode decode;
    uint32_t decode_every;
    struct fake_choice choices[ENGINE_MAX_CHOICES];
    uint32_t fail_after; /* tokens; 0: never */
    enum error_code refuse;
    uint64_t ready_ns; /* next step not before */
    unsigned token_us;
    bool is_accepted, is_cancelled, is_done, told_accept, told_prompt;
    bool is_prefilled;
    uint64_t submit_ns, first_ns;
    struct error error;
    /* Since the last output. */
    struct engine_token tokens[MAX_TOKENS_AN_OUTPUT];
    struct token_logprob top[MAX_TOKENS_AN_OUTPUT * 4];
    size_t n_tokens, n_top;
    char text[MAX_TEXT_AN_OUTPUT];
    size_t n_text;
    uint32_t completion_tokens;
};

struct engine {
    struct fake_options options;
    struct tokenizer *tokenizer;
    pthread_t thread;
    pthread_mutex_t lock; /* guards everything below */
    struct fake_request *requests;
    struct fake_request *out; /* belongs to the poller */
    struct engine_output output;
    struct engine_token *prompt_records;
    struct token_logprob *prompt_top;
    uint64_t next_id;
    bool is_stopping, is_draining;
    struct engine_stats stats;
};

/* --- the answer ---------------------------------------------------------------------------- */

static uint32_t mix(uint64_t x)
{
    x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9u;
    x = (x ^ (x >> 27)) * 0x94d049bb133111ebu;
    return (uint32_t)(x >> 33);
}

static int32_t choose_token(const struct fake_request *r, uint32_t i_choice, uint32_t i_token)
{
    bool is_over = i_token >= r->prompt.n && !r->ignore_eos && i_token >= r->min_tokens;

    if (is_over)
        return FAKE_END;
    if (r->sampling.temperature == 0)
        return r->prompt.ids[i_token % r->prompt.n];
    return 256 +
           ('a' - 0x20 + (int32_t)(mix(r->sampling.seed * 31 + i_choice * 7919 + i_token) % 26)) *
               FAKE_PAIRS;
}

static float fake_logprob(int32_t token)
{
    return -0.125f * (float)(token % 61) - 0.001f;
}

/* Bytes of data[0..n) that may be sent: whole characters that no stop string could begin in. */
static size_t safe_bytes(const struct fake_request *r, const char *data, size_t n)
{
    size_t i = 0;

    while (i < n) {
        unsigned char c = (unsigned char)data[i];
        size_t len = c < 0x80 ? 1 : c >= 0xf0 ? 4 : c >= 0xe0 ? 3 : 2;
        if (len > n - i)
            break;
        for (size_t s = 0; s < r->n_stops; s++) {
            size_t m = strlen(r->stops[s]);
            size_t k = n - i < m ? n - i : m;
            if (memcmp(data + i, r->stops[s], k) == 0)
                return i;
        }
        i += len;
    }
    return i;
}

static bool find_stop(const struct fake_request *r, const char *data, size_t n, size_t *ret_at)
{
    for (size_t i = 0; i < n; i++)
        for (size_t s = 0; s < r->n_stops; s++) {
            size_t m = strlen(r->stops[s]);
            if (m <= n - i && memcmp(data + i, r->stops[s], m) == 0) {
                *ret_at = i;
                return true;
            }
        }
    return false;
}

static void put_text(struct fake_request *r, struct engine_token *record, const char *data,
                     size_t n)
{
    record->text_start = r->n_text;
    record->text_len = n;
    if (n)
        memcpy(r->text + r->n_text, data, n);
    r->n_text += n;
}

static void put_logprobs(struct fake_request *r, struct engine_token *record)
{
    record->logprob = NAN;
    record->top_start = r->n_top;
    if (r->n_logprobs < 0)
        return;
    record->logprob = fake_logprob(record->token);
    record->n_top = (uint32_t)(r->n_logprobs < 3 ? r->n_logprobs : 3);
    for (uint32_t i = 0; i < record->n_top; i++)
        r->top[r->n_top++] = (struct token_logprob){i ? record->token + (int32_t)i : record->token,
                                                    record->logprob - (float)i};
}

/* Returns whether the choice has ended. */
static bool step_choice(struct engine *e, struct fake_request *r, uint32_t i_choice)
{
    struct fake_choice *c = &r->choices[i_choice];
    struct engine_token *record = &r->tokens[r->n_tokens++];
    int32_t token = choose_token(r, i_choice, c->n_tokens);
    size_t len = 0, at = 0;
    const char *piece = tokenizer_piece(e->tokenizer, token, &len);

    *record = (struct engine_token){.choice = i_choice, .token = token};
    put_logprobs(r, record);
    c->n_tokens++;
    r->completion_tokens++;
    e->stats.generated_tokens++;
    if (token != FAKE_END) {
        memcpy(c->held + c->n_held, piece, len);
        c->n_held += len;
    } else {
        record->finish = FINISH_STOP;
    }
    size_t n = safe_bytes(r, c->held, c->n_held);
    if (find_stop(r, c->held, c->n_held, &at)) {
        record->finish = FINISH_STOP;
        n = at;
    } else if (token == FAKE_END || c->n_tokens >= r->max_tokens) {
        record->finish = token == FAKE_END ? FINISH_STOP : FINISH_LENGTH;
        n = c->n_held; /* a cut character stays out: the test text ends on whole ones */
    }
    put_text(r, record, c->held, n);
    memmove(c->held, c->held + n, c->n_held - n);
    c->n_held -= n;
    return record->finish != FINISH_NONE;
}

/* --- the thread ---------------------------------------------------------------------------- */

static void finish_request(struct engine *e, struct fake_request *r, enum error_code code,
                           const char *message)
{
    if (code != ERROR_NONE) {
        r->error.code = code;
        snprintf(r->error.message, sizeof(r->error.message), "%s", message);
    }
    r->is_done = true;
    if (code == ERROR_CANCELLED)
        e->stats.cancelled++;
}

static bool accept_request(struct engine *e, struct fake_request *r)
{
    char message[100];
    size_t n = r->prompt.n;

    if (r->refuse != ERROR_NONE) {
        finish_request(e, r, r->refuse, "the prompt asked for it");
        return false;
    }
    if (n > FAKE_CONTEXT || (r->must_fit && n + r->max_tokens > FAKE_CONTEXT)) {
        snprintf(message, sizeof(message), "%zu tokens", n);
        finish_request(e, r, ERROR_CONTEXT, message);
        return false;
    }
    if (r->max_tokens > FAKE_CONTEXT - n)
        r->max_tokens = FAKE_CONTEXT - (uint32_t)n;
    r->is_accepted = true;
    e->stats.prompt_tokens += n;
    return true;
}

static void prefill_request(struct engine *e, struct fake_request *r)
{
    r->is_prefilled = true;
    r->first_ns = system_now_ns();
    if (r->max_tokens > 0)
        return;
    for (uint32_t i = 0; i < r->n; i++)
        r->tokens[r->n_tokens++] = (struct engine_token){
            .choice = i, .token = -1, .finish = FINISH_LENGTH, .logprob = NAN};
    finish_request(e, r, ERROR_NONE, "");
}

static bool step_request(struct engine *e, struct fake_request *r, uint64_t now_ns)
{
    if (r->is_done || now_ns < r->ready_ns)
        return false;
    if (r->is_cancelled) {
        finish_request(e, r, ERROR_CANCELLED, "cancelled");
        return true;
    }
    if (!r->is_accepted) {
        if (accept_request(e, r))
            r->ready_ns =
                now_ns + (uint64_t)(r->token_us > 10000 ? 300000 : e->options.prefill_us) * 1000;
        return true;
    }
    if (!r->is_prefilled) {
        prefill_request(e, r);
        return true;
    }
    if (r->n_tokens + r->n > MAX_TOKENS_AN_OUTPUT || r->n_text + r->n * 64 > MAX_TEXT_AN_OUTPUT)
        return false; /* until the server has polled */
    for (uint32_t i = 0; i < r->n; i++)
        if (!r->choices[i].has_ended && step_choice(e, r, i)) {
            r->choices[i].has_ended = true;
            r->n_ended++;
        }
    if (r->fail_after && r->choices[0].n_tokens >= r->fail_after)
        finish_request(e, r, ERROR_INTERNAL, "the prompt asked for it");
    else if (r->n_ended == r->n)
        finish_request(e, r, ERROR_NONE, "");
    r->ready_ns = now_ns + (uint64_t)r->token_us * 1000;
    return true;
}

static void *run(void *user)
{
    struct engine *e = user;
    bool is_stopping = false;

    while (!is_stopping) {
        bool has_news = false;
        pthread_mutex_lock(&e->lock);
        uint64_t now_ns = system_now_ns();
        for (struct fake_request *r = e->requests; r; r = r->next)
            has_news |= step_request(e, r, now_ns);
        is_stopping = e->is_stopping;
        pthread_mutex_unlock(&e->lock);
        if (has_news && e->options.wake)
            e->options.wake(e->options.wake_user);
        nanosleep(&(struct timespec){.tv_nsec = has_news ? 20000 : 200000}, NULL);
    }
    return NULL;
}

/* --- engine.h ------------------------------------------------------------------------------ */

const char *decode_mode_name(enum decode_mode mode)
{
    static const char *const NAMES[] = {"default", "pruned", "refresh", "verify", "full"};
    return NAMES[mode];
}

int decode_mode_from_name(const char *name)
{
    for (int mode = DECODE_PRUNED; mode <= DECODE_FULL; mode++)
        if (strcmp(name, decode_mode_name((enum decode_mode)mode)) == 0)
            return mode;
    return -1;
}

const struct sampling_params SAMPLING_DEFAULTS = {
    .temperature = 1, .top_p = 1, .repeat_penalty = 1};

int fake_engine_open(const struct fake_options *options, struct engine **ret_engine,
                     struct error *err)
{
    struct engine *e = calloc(1, sizeof(*e));
    if (!e)
        return error_memory(err, "fake engine", sizeof(*e));
    e->options = *options;
    e->tokenizer = fake_tokenizer_open();
    e->next_id = 1;
    pthread_mutex_init(&e->lock, NULL);
    pthread_create(&e->thread, NULL, run, e);
    *ret_engine = e;
    return 0;
}

static void free_request(struct fake_request *r)
{
    token_list_free(&r->prompt);
    free(r);
}

void engine_close(struct engine *e)
{
    if (!e)
        return;
    pthread_mutex_lock(&e->lock);
    e->is_stopping = true;
    pthread_mutex_unlock(&e->lock);
    pthread_join(e->thread, NULL);
    while (e->requests) {
        struct fake_request *next = e->requests->next;
        free_request(e->requests);
        e->requests = next;
    }
    if (e->out)
        free_request(e->out);
    free(e->prompt_records);
    free(e->prompt_top);
    tokenizer_close(e->tokenizer);
    pthread_mutex_destroy(&e->lock);
    free(e);
}

void engine_drain(struct engine *e)
{
    pthread_mutex_lock(&e->lock);
    e->is_draining = true;
    pthread_mutex_unlock(&e->lock);
}

static bool has_word(const struct engine_request *q, const char *word)
{
    const char *text = q->n_messages ? q->messages[q->n_messages - 1].content : q->text;
    size_t len = q->n_messages ? q->messages[q->n_messages - 1].content_len : q->text_len;
    return text && memmem(text, len, word, strlen(word));
}

static int encode_prompt(struct engine *e, const struct engine_request *q, struct token_list *list,
                         struct error *err)
{
    if (q->tokens)
        return token_list_append(list, q->tokens, q->n_tokens, err);
    if (q->text)
        return tokenizer_encode(e->tokenizer, q->text, q->text_len,
                                q->parse_special ? TOKENIZER_PARSE_SPECIAL : 0, list, err);
    for (size_t i = 0; i < q->n_messages; i++)
        if (tokenizer_encode(e->tokenizer, q->messages[i].content, q->messages[i].content_len, 0,
                             list, err) < 0)
            return -(int)err->code;
    return 0;
}

static void copy_request(struct engine *e, const struct engine_request *q, struct fake_request *r)
{
    r->user = q->user;
    r->n = q->n;
    r->max_tokens = q->max_tokens;
    r->must_fit = q->max_tokens_must_fit;
    r->min_tokens = q->min_tokens;
    r->ignore_eos = q->ignore_eos;
    r->n_logprobs = q->n_logprobs;
    r->prompt_logprobs = q->prompt_logprobs;
    r->n_prompt_logprobs = q->n_prompt_logprobs;
    r->sampling = q->sampling;
    r->decode = q->decode;
    r->decode_every = q->decode_every;
    for (size_t i = 0; i < q->n_stops && q->stops[i].len < sizeof(r->stops[0]); i++)
        memcpy(r->stops[r->n_stops++], q->stops[i].data, q->stops[i].len);
    r->token_us = has_word(q, "!slow") ? 20000 : e->options.token_us;
    r->fail_after = has_word(q, "!error") ? 3 : 0;
    r->refuse = has_word(q, "!refuse")   ? ERROR_INTERNAL
                : has_word(q, "!memory") ? ERROR_MEMORY
                                         : ERROR_NONE;
    r->submit_ns = system_now_ns();
}

static uint32_t count_requests(const struct engine *e)
{
    uint32_t n = 0;
    for (const struct fake_request *r = e->requests; r; r = r->next)
        n++;
    return n;
}

int engine_submit(struct engine *e, const struct engine_request *q, uint64_t *ret_id,
                  struct error *err)
{
    struct fake_request *r = calloc(1, sizeof(*r));
    int result = 0;

    if (!r)
        return error_memory(err, "request", sizeof(*r));
    copy_request(e, q, r);
    if (encode_prompt(e, q, &r->prompt, err) < 0)
        result = -(int)err->code;
    else if (r->prompt.n == 0)
        result = error_set(err, ERROR_INVALID, "prompt: it holds no tokens");
    pthread_mutex_lock(&e->lock);
    if (result == 0 && e->is_draining)
        result = error_set(err, ERROR_SHUTDOWN, "draining");
    if (result == 0 && count_requests(e) >= FAKE_QUEUE)
        result = error_set(err, ERROR_BUSY, "%d requests are waiting", FAKE_QUEUE);
    if (result == 0) {
        *ret_id = r->id = e->next_id++;
        r->next = e->requests;
        e->requests = r;
    }
    pthread_mutex_unlock(&e->lock);
    if (result < 0)
        free_request(r);
    return result;
}

uint32_t engine_retry_after_ms(struct engine *e)
{
    return 1500;
}

void engine_cancel(struct engine *e, uint64_t id)
{
    pthread_mutex_lock(&e->lock);
    for (struct fake_request *r = e->requests; r; r = r->next)
        if (r->id == id) {
            r->is_cancelled = true;
            r->ready_ns = 0;
        }
    pthread_mutex_unlock(&e->lock);
}

static void tell_prompt(struct engine *e, struct fake_request *r)
{
    size_t n = r->prompt.n, k = r->n_prompt_logprobs < 3 ? r->n_prompt_logprobs : 3;

    free(e->prompt_records);
    free(e->prompt_top);
    e->prompt_records = calloc(n, sizeof(*e->prompt_records));
    e->prompt_top = calloc(n * k + 1, sizeof(*e->prompt_top));
    for (size_t i = 0; i < n; i++) {
        struct engine_token *t = &e->prompt_records[i];
        *t = (struct engine_token){.token = r->prompt.ids[i], .logprob = NAN, .top_start = i * k};
        if (i == 0)
            continue;
        t->logprob = fake_logprob(t->token);
        t->rank = 1;
        t->n_top = (uint32_t)k;
        for (size_t j = 0; j < k; j++)
            e->prompt_top[i * k + j] =
                (struct token_logprob){t->token + (int32_t)j, t->logprob - (float)j};
    }
    r->told_prompt = true;
    e->output.prompt = e->prompt_records;
    e->output.n_prompt = n;
    e->output.prompt_top = e->prompt_top;
}

static void fill_output(struct engine *e, struct fake_request *r, struct fake_request *copy)
{
    *copy = *r;
    e->output = (struct engine_output){
        .id = r->id,
        .user = r->user,
        .accepted = r->is_accepted,
        .prompt_ids = r->is_accepted && !r->told_accept ? copy->prompt.ids : NULL,
        .tokens = copy->tokens,
        .n_tokens = copy->n_tokens,
        .text = copy->text,
        .top = copy->top,
        .done = r->is_done,
        .error = r->error.code ? &copy->error : NULL,
        .n_prompt_tokens = (uint32_t)r->prompt.n,
    };
    e->output.usage = (struct engine_usage){
        .prompt_tokens = (uint32_t)r->prompt.n,
        .completion_tokens = r->completion_tokens,
        .decode = r->decode == DECODE_DEFAULT ? DECODE_PRUNED : r->decode,
        .decode_every = r->decode_every,
        .queue_ms = 0.5,
        .prefill_ms = r->first_ns ? (double)(r->first_ns - r->submit_ns) / 1e6 : 0,
        .decode_ms = r->first_ns ? (double)(system_now_ns() - r->first_ns) / 1e6 : 0,
    };
    if (r->prompt_logprobs && r->is_prefilled && !r->told_prompt)
        tell_prompt(e, r);
    r->told_accept = r->is_accepted;
    r->n_tokens = r->n_top = r->n_text = 0;
}

/* The copy shares the prompt's ids with the request: only a request that is done owns them. */
const struct engine_output *engine_poll(struct engine *e)
{
    struct fake_request **at, *found = NULL;

    if (!e->out)
        e->out = calloc(1, sizeof(*e->out));
    if (e->out->is_done)
        token_list_free(&e->out->prompt);
    e->out->prompt = (struct token_list){0};
    e->out->is_done = false;
    pthread_mutex_lock(&e->lock);
    for (at = &e->requests; *at; at = &(*at)->next)
        if ((*at)->is_done || (*at)->n_tokens || (*at)->is_accepted != (*at)->told_accept ||
            ((*at)->prompt_logprobs && (*at)->is_prefilled && !(*at)->told_prompt)) {
            found = *at;
            break;
        }
    if (found) {
        fill_output(e, found, e->out);
        if (found->is_done) {
            *at = found->next;
            free(found);
        } else {
            e->out->prompt.n = 0; /* still the request's */
        }
    }
    pthread_mutex_unlock(&e->lock);
    return found ? &e->output : NULL;
}

void engine_get_info(const struct engine *e, struct engine_info *ret_info)
{
    *ret_info = (struct engine_info){
        .model_id = "fake",
        .model_path = "fake.gguf",
        .pruned_path = "fake-pruned.gguf",
        .chat_template = "chatml",
        .fingerprint = "fp_fake",
        .kernels = "scalar",
        .context = FAKE_CONTEXT,
        .context_train = FAKE_CONTEXT,
        .vocab_size = FAKE_VOCAB,
        .n_params = 1000,
        .n_params_pruned = 500,
        .prefill_threads = 1,
        .decode_threads = 1,
        .decode = DECODE_PRUNED,
    };
}

void engine_get_stats(struct engine *e, struct engine_stats *ret_stats)
{
    pthread_mutex_lock(&e->lock);
    *ret_stats = e->stats;
    for (const struct fake_request *r = e->requests; r; r = r->next) {
        if (r->is_done)
            continue;
        ret_stats->requests_waiting += !r->is_accepted;
        ret_stats->requests_prefilling += r->is_accepted && !r->is_prefilled;
        ret_stats->sequences_decoding += r->is_prefilled ? r->n - r->n_ended : 0;
    }
    pthread_mutex_unlock(&e->lock);
}

const struct tokenizer *engine_tokenizer(const struct engine *e)
{
    return e->tokenizer;
}

int engine_render(const struct engine *e, const struct chat_message *messages, size_t n_messages,
                  struct chat_prompt *ret_prompt, struct error *err)
{
    for (size_t i = 0; i < n_messages; i++)
        buf_append(&ret_prompt->text, messages[i].content, messages[i].content_len);
    return ret_prompt->text.failed ? error_memory(err, "prompt", 0) : 0;
}
