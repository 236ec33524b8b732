/* The intake thread: template, tokens, limits; then on to prefill. It keeps tokenising off the
 * event loop and off the compute threads. See pool_internal.h. */
#include "engine/base/mem.h"
#include "engine/pool/pool_internal.h"

#include <stdio.h>
#include <string.h>

static int tokenize_messages(struct engine *engine, struct request *request, struct error *err)
{
    struct chat_prompt prompt = {0};
    if (!engine->chat_template) {
        *err = engine->template_error;
        return -(int)err->code;
    }
    int rc = chat_template_render(engine->chat_template, request->in.messages,
                                  request->in.n_messages, true, &prompt, err);
    if (rc == 0)
        rc = chat_prompt_encode(&prompt, engine->tokenizer, &request->prompt, err);
    chat_prompt_free(&prompt);
    return rc;
}

static int check_tokens(const struct engine *engine, const char *what, const int32_t *tokens,
                        size_t n, struct error *err)
{
    for (size_t i = 0; i < n; i++)
        if (tokens[i] < 0 || (uint32_t)tokens[i] >= engine->info.vocab_size)
            return error_set(err, ERROR_INVALID,
                             "%s[%zu]: token id %d is outside the vocabulary of %u tokens", what, i,
                             tokens[i], engine->info.vocab_size);
    return 0;
}

static int copy_tokens(struct engine *engine, struct request *request, struct error *err)
{
    const struct engine_request *in = &request->in;
    int rc = check_tokens(engine, "prompt", in->tokens, in->n_tokens, err);
    return rc ? rc : token_list_append(&request->prompt, in->tokens, in->n_tokens, err);
}

static int check_given(const struct engine *engine, const struct engine_request *in,
                       struct error *err)
{
    char what[32];
    int rc = 0;
    for (uint32_t i = 0; in->given && i < in->n && rc == 0; i++) {
        snprintf(what, sizeof(what), "given[%u]", i);
        rc = check_tokens(engine, what, in->given[i].tokens, in->given[i].n_tokens, err);
    }
    return rc;
}

static int tokenize(struct engine *engine, struct request *request, struct error *err)
{
    const struct engine_request *in = &request->in;
    int rc;
    if (in->messages)
        rc = tokenize_messages(engine, request, err);
    else if (in->tokens)
        rc = copy_tokens(engine, request, err);
    else
        rc = tokenizer_encode(engine->tokenizer, in->text, in->text_len,
                              TOKENIZER_ADD_SPECIAL |
                                  (in->parse_special ? TOKENIZER_PARSE_SPECIAL : 0),
                              &request->prompt, err);
    if (rc == 0 && request->prompt.n == 0)
        rc = error_set(err, ERROR_INVALID, "prompt: it holds no tokens; expected at least one");
    return rc ? rc : check_given(engine, in, err);
}

/* The longest choice; engine_submit saw that given ones fit the context and so the type. */
static uint32_t wanted_tokens(const struct engine_request *in)
{
    size_t most = 0;
    if (!in->given)
        return in->max_tokens;
    for (uint32_t i = 0; i < in->n; i++)
        most = in->given[i].n_tokens > most ? in->given[i].n_tokens : most;
    return (uint32_t)most;
}

/* Decides max_new. Whatever fits the context fits the pool, alone at least: open_kv saw to it. */
static int check_limits(struct engine *engine, struct request *request, struct error *err)
{
    const struct engine_request *in = &request->in;
    uint32_t context = engine->info.context;
    uint32_t max_tokens = wanted_tokens(in);
    bool must_fit = in->given || (in->max_tokens_must_fit && max_tokens != UINT32_MAX);
    size_t n_prompt = request->prompt.n;

    if (n_prompt > context || (n_prompt == context && max_tokens))
        return error_set(err, ERROR_CONTEXT,
                         "This model's maximum context length is %u tokens. However, your messages "
                         "resulted in %zu tokens. Please reduce the length of the messages.",
                         context, n_prompt);
    uint32_t room = context - (uint32_t)n_prompt;
    if (must_fit && max_tokens > room)
        return error_set(err, ERROR_CONTEXT,
                         "This model's maximum context length is %u tokens. However, you requested "
                         "%llu tokens (%zu in the prompt, %u in the completion). Please reduce the "
                         "length of the prompt or of the completion.",
                         context, (unsigned long long)n_prompt + max_tokens, n_prompt, max_tokens);
    request->max_new = max_tokens < room ? max_tokens : room;

    return 0;
}

/* Counts the prompt as waiting, if the bound allows. */
static int count_waiting(struct engine *engine, struct request *request, struct error *err)
{
    uint32_t limit = engine->options.max_queue_tokens;
    pthread_mutex_lock(&engine->stats_lock);
    uint32_t n_waiting = engine->n_waiting_tokens;
    bool ok = n_waiting == 0 || request->prompt.n + n_waiting <= limit;
    if (ok)
        engine->n_waiting_tokens += (uint32_t)request->prompt.n;
    pthread_mutex_unlock(&engine->stats_lock);
    return ok ? 0
              : error_set(
                    err, ERROR_BUSY,
                    "The server is busy: %u prompt tokens are waiting (limit %u). Please retry.",
                    n_waiting, limit);
}

static void take_in(struct engine *engine, struct request *request)
{
    struct error err = {0};
    int rc = atomic_load(&request->cancelled)
                 ? error_set(&err, ERROR_CANCELLED, "cancelled before it was tokenised")
                 : tokenize(engine, request, &err);
    if (rc == 0)
        rc = check_limits(engine, request, &err);
    if (rc == 0)
        rc = request_open_sequences(engine, request, &err);
    if (rc == 0)
        rc = count_waiting(engine, request, &err);
    if (rc) {
        leave_waiting(engine, 0, false);
        output_done(engine, request, &err);
    } else {
        output_accept(engine, request);
        stage_push_request(&engine->prefill, request);
    }
    output_notify(engine);
}

void *intake_main(void *arg)
{
    struct engine *engine = arg;
    struct stage *stage = &engine->intake;
    pthread_setname_np(pthread_self(), "intake");
    for (;;) {
        pthread_mutex_lock(&stage->lock);
        while (!stage->incoming.head && !atomic_load(&engine->stopping))
            pthread_cond_wait(&stage->wake, &stage->lock);
        struct request *request = request_queue_pop(&stage->incoming);
        pthread_mutex_unlock(&stage->lock);
        if (!request)
            return NULL; /* stopping, and nothing left */
        if (atomic_load(&engine->stopping))
            atomic_store(&request->cancelled, true);
        take_in(engine, request);
    }
}
