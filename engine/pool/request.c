/* Requests: the deep copy of what the client asked, and their end. See pool_internal.h. */
#include "engine/base/mem.h"
#include "engine/pool/pool_internal.h"

#include <math.h>
#include <stdalign.h>
#include <string.h>

void request_queue_push(struct request_queue *queue, struct request *request)
{
    request->next = NULL;
    if (queue->tail)
        queue->tail->next = request;
    else
        queue->head = request;
    queue->tail = request;
}

struct request *request_queue_pop(struct request_queue *queue)
{
    struct request *request = queue->head;
    if (request) {
        queue->head = request->next;
        if (!queue->head)
            queue->tail = NULL;
        request->next = NULL;
    }
    return request;
}

/* A bump allocator over one block, so that a request is one allocation to copy and to free. With
 * base NULL it only measures. */
struct arena {
    char *base;
    size_t used;
};

static void *arena_copy(struct arena *a, const void *data, size_t bytes)
{
    a->used = (a->used + alignof(max_align_t) - 1) / alignof(max_align_t) * alignof(max_align_t);
    void *p = a->base ? a->base + a->used : NULL;
    if (p && bytes)
        memcpy(p, data, bytes);
    a->used += bytes;
    return p;
}

static void copy_messages(struct arena *a, const struct engine_request *in,
                          struct engine_request *out)
{
    struct chat_message *messages = arena_copy(a, in->messages, in->n_messages * sizeof(*messages));
    for (size_t i = 0; i < in->n_messages; i++) {
        const struct chat_message *m = &in->messages[i];
        char *role = arena_copy(a, m->role, strlen(m->role) + 1);
        char *content = arena_copy(a, m->content, m->content_len);
        if (messages) {
            messages[i].role = role;
            messages[i].content = content;
        }
    }
    out->messages = messages;
}

static void copy_given(struct arena *a, const struct engine_request *in, struct engine_request *out)
{
    struct engine_given *given = arena_copy(a, in->given, in->n * sizeof(*given));
    for (uint32_t i = 0; i < in->n; i++) {
        int32_t *tokens =
            arena_copy(a, in->given[i].tokens, in->given[i].n_tokens * sizeof(*tokens));
        if (given)
            given[i].tokens = tokens;
    }
    out->given = given;
}

static void copy_all(struct arena *a, const struct engine_request *in, struct engine_request *out)
{
    if (in->messages)
        copy_messages(a, in, out);
    if (in->text)
        out->text = arena_copy(a, in->text, in->text_len);
    if (in->tokens)
        out->tokens = arena_copy(a, in->tokens, in->n_tokens * sizeof(*in->tokens));
    if (in->given)
        copy_given(a, in, out);
    struct stop_string *stops = arena_copy(a, in->stops, in->n_stops * sizeof(*stops));
    for (size_t i = 0; i < in->n_stops; i++) {
        char *data = arena_copy(a, in->stops[i].data, in->stops[i].len);
        if (stops)
            stops[i].data = data;
    }
    out->stops = stops;
    out->sampling.bias =
        arena_copy(a, in->sampling.bias, in->sampling.n_bias * sizeof(*in->sampling.bias));
}

/* Tokens that are given need no draft to be verified: the full model scores them all. */
static void set_dial(const struct engine *engine, struct request *request)
{
    const struct engine_request *in = &request->in;
    request->decode = in->decode == DECODE_DEFAULT ? engine->info.decode : in->decode;
    if (request->decode == DECODE_REFRESH || request->decode == DECODE_VERIFY)
        request->every = in->decode_every                   ? in->decode_every
                         : engine->options.decode_every     ? engine->options.decode_every
                         : request->decode == DECODE_VERIFY ? DEFAULT_EVERY_VERIFY
                                                            : DEFAULT_EVERY_REFRESH;
    request->usage.decode = request->decode;
    request->usage.decode_every = request->every;
    if (in->given && request->decode == DECODE_VERIFY)
        request->decode = DECODE_FULL;
}

int request_create(struct engine *engine, const struct engine_request *in, uint64_t now_ns,
                   struct request **ret_request, struct error *err)
{
    struct arena arena = {0};
    struct engine_request ignored;
    struct request *request = mem_calloc(1, sizeof(*request));
    if (!request)
        return error_memory(err, "request", sizeof(*request));

    request->in = *in;
    copy_all(&arena, in, &ignored);
    request->storage = mem_alloc(arena.used);
    if (!request->storage) {
        mem_free(request);
        return error_memory(err, "request", arena.used);
    }
    arena = (struct arena){.base = request->storage};
    copy_all(&arena, in, &request->in);

    set_dial(engine, request);
    request->submitted_ns = now_ns;
    atomic_init(&request->cancelled, false);
    pthread_mutex_init(&request->out_lock, NULL);
    *ret_request = request;
    return 0;
}

static int open_tokens(struct request *request, struct sequence *s, struct error *err)
{
    size_t n = request->prompt.n + request->max_new;
    s->tokens = mem_array(n, sizeof(*s->tokens));
    if (!s->tokens)
        return error_memory(err, "tokens", n * sizeof(*s->tokens));
    memcpy(s->tokens, request->prompt.ids, request->prompt.n * sizeof(*s->tokens));
    if (s->given)
        memcpy(s->tokens + request->prompt.n, s->given->tokens,
               s->given->n_tokens * sizeof(*s->tokens));
    s->n_tokens = (uint32_t)request->prompt.n;
    if (request->decode != DECODE_VERIFY)
        return 0;
    s->drafts = mem_array(request->every, sizeof(*s->drafts));
    return s->drafts ? 0 : error_memory(err, "drafts", request->every * sizeof(*s->drafts));
}

static int open_sequence(struct engine *engine, struct request *request, uint32_t i,
                         struct error *err)
{
    struct sequence *s = &request->sequences[i];
    s->request = request;
    s->choice = i;
    text_stream_init(&s->stream, engine->tokenizer, request->in.stops, request->in.n_stops);
    int rc = 0;
    if (request->in.given)
        s->given = &request->in.given[i];
    else
        rc = sampler_open(&request->in.sampling, i, engine->info.vocab_size, request->prompt.ids,
                          request->prompt.n, &s->sampler, err);
    if (rc == 0)
        rc = kv_table_open(&s->table, (uint32_t)request->prompt.n + request->max_new, err);
    return rc ? rc : open_tokens(request, s, err);
}

int request_open_sequences(struct engine *engine, struct request *request, struct error *err)
{
    int rc = 0;
    request->sequences = mem_calloc(request->in.n, sizeof(*request->sequences));
    if (!request->sequences)
        rc = error_memory(err, "choices", request->in.n * sizeof(*request->sequences));
    for (uint32_t i = 0; i < request->in.n && rc == 0; i++)
        rc = open_sequence(engine, request, i, err);
    if (rc == 0) {
        struct sequence *first = &request->sequences[0];
        first->reading = READ_PROMPT;
        first->read_exact = first->read_end = (uint32_t)request->prompt.n;
        first->logits_from = request->in.prompt_logprobs ? 0 : first->read_end - 1;
    }
    if (rc == 0 && request->in.prompt_logprobs) {
        size_t k = request->in.n_prompt_logprobs;
        request->prompt_records = mem_calloc(request->prompt.n, sizeof(*request->prompt_records));
        request->prompt_top = mem_calloc(request->prompt.n * k, sizeof(*request->prompt_top));
        if (!request->prompt_records || !request->prompt_top)
            return error_memory(err, "prompt logprobs",
                                request->prompt.n * sizeof(*request->prompt_records));
        for (size_t i = 0; i < request->prompt.n; i++)
            request->prompt_records[i] = (struct engine_token){
                .token = request->prompt.ids[i], .logprob = NAN, .top_start = i * k};
    }
    return rc;
}

static void free_output(struct output_buffer *out)
{
    mem_free(out->tokens);
    mem_free(out->top);
    buf_free(&out->text);
}

/* Its pages were given back when its sequences finished. */
void request_free(struct request *request)
{
    for (uint32_t i = 0; request->sequences && i < request->in.n; i++) {
        sampler_close(request->sequences[i].sampler);
        text_stream_free(&request->sequences[i].stream);
        mem_free(request->sequences[i].table.pages);
        mem_free(request->sequences[i].tokens);
        mem_free(request->sequences[i].drafts);
    }
    mem_free(request->sequences);
    mem_free(request->prompt_records);
    mem_free(request->prompt_top);
    token_list_free(&request->prompt);
    free_output(&request->back);
    free_output(&request->front);
    pthread_mutex_destroy(&request->out_lock);
    mem_free(request->storage);
    mem_free(request);
}
