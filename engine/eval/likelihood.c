/* Likelihoods of given continuations, many prompts at once; the choices of a prompt share its KV.
 * See eval_internal.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <string.h>

struct likelihood {
    struct eval *eval;
    struct scored *items;
    enum decode_mode decode;
    bool decoder_first;
    uint32_t context;
    struct engine_given given[ENGINE_MAX_CHOICES]; /* of the request at hand */
    struct token_list moved; /* its continuations behind the prompt's last token */
};

void scored_free(struct scored *items, size_t n)
{
    for (size_t i = 0; items && i < n; i++) {
        for (uint32_t c = 0; items[i].list && c < items[i].n; c++)
            token_list_free(&items[i].list[c].tokens);
        mem_free(items[i].list);
        token_list_free(&items[i].prompt);
    }
    mem_free(items);
}

static size_t longest(const struct scored *item)
{
    size_t most = 0;
    for (uint32_t c = 0; c < item->n; c++)
        most = item->list[c].tokens.n > most ? item->list[c].tokens.n : most;
    return most;
}

/* The continuations with the prompt's last token in front. */
static int move_last_token(struct likelihood *l, const struct scored *item, struct error *err)
{
    int rc = 0;
    l->moved.n = 0;
    for (uint32_t c = 0; c < item->n && rc == 0; c++) {
        const struct token_list *tokens = &item->list[c].tokens;
        rc = token_list_append(&l->moved, &item->prompt.ids[item->prompt.n - 1], 1, err);
        if (rc == 0)
            rc = token_list_append(&l->moved, tokens->ids, tokens->n, err);
    }
    size_t at = 0;
    for (uint32_t c = 0; c < item->n && rc == 0; c++) { /* the list has its place now */
        size_t n = item->list[c].tokens.n + 1;
        l->given[c] = (struct engine_given){l->moved.ids + at, n};
        at += n;
    }
    return rc;
}

static int make(void *user, size_t i, struct engine_request *request, struct error *err)
{
    struct likelihood *l = user;
    const struct scored *item = &l->items[i];
    size_t skip = l->decoder_first && item->prompt.n > 1 ? 1 : 0;
    size_t room = l->context > longest(item) ? l->context - longest(item) : 0;
    size_t n_cut = item->prompt.n > room ? item->prompt.n - room : 0; /* too long: its end counts */
    int rc = 0;

    if (skip)
        rc = move_last_token(l, item, err);
    for (uint32_t c = 0; !skip && c < item->n; c++)
        l->given[c] = (struct engine_given){item->list[c].tokens.ids, item->list[c].tokens.n};
    if (rc == 0 && n_cut >= item->prompt.n - skip)
        rc = error_set(err, ERROR_CONTEXT, "line %zu: %zu tokens do not fit the context of %u",
                       item->row->line, item->prompt.n + longest(item), l->context);
    request->tokens = item->prompt.ids + n_cut;
    request->n_tokens = item->prompt.n - n_cut - skip;
    request->n = item->n;
    request->given = l->given;
    request->n_logprobs = 1;
    request->decode = l->decode;
    return rc;
}

static int take(void *user, size_t i, const struct engine_output *output, struct error *err)
{
    struct likelihood *l = user;
    struct scored *item = &l->items[i];
    bool moved = l->decoder_first && item->prompt.n > 1;
    for (size_t t = 0; t < output->n_tokens; t++) {
        const struct engine_token *token = &output->tokens[t];
        struct continuation *c = &item->list[token->choice];
        if (moved && !c->has_begun) {
            c->has_begun = true;
            continue;
        }
        c->logprob += (double)token->logprob;
        c->n_likeliest += output->top[token->top_start].token == token->token;
        l->eval->report->n_tokens++;
    }
    return 0;
}

int likelihood_run(struct eval *eval, struct engine *engine, enum decode_mode decode,
                   struct scored *items, size_t n, bool decoder_first, double share_begin,
                   double share_width, struct error *err)
{
    struct engine_info info;
    engine_get_info(engine, &info);
    struct likelihood l = {
        .eval = eval,
        .items = items,
        .decode = decode,
        .decoder_first = decoder_first,
        .context = info.context,
    };
    struct flight flight = {
        .engine = engine,
        .n_items = n,
        .user = &l,
        .make = make,
        .take = take,
        .eval = eval,
        .share_begin = share_begin,
        .share_width = share_width,
    };
    int rc = flight_run(&flight, err);
    token_list_free(&l.moved);
    return rc;
}
