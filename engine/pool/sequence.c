/* A sequence between the pools: what the dial asks for, what the prefix cache gives and takes, and
 * who gives up pages when they run out.
 *
 * Pages are not set aside. The last in rank of all that hold some gives its own up, wherever it is:
 * a stage takes from its own last unless the other's comes after it, and then asks for that one's.
 * So the first in rank always goes on, and since it fits the pool alone, everyone's turn comes. */
#include "engine/pool/pool_internal.h"

#include <assert.h>

void sequence_queue_push(struct sequence_queue *queue, struct sequence *sequence)
{
    sequence->next = NULL;
    if (queue->tail)
        queue->tail->next = sequence;
    else
        queue->head = sequence;
    queue->tail = sequence;
}

struct sequence *sequence_queue_pop(struct sequence_queue *queue)
{
    struct sequence *sequence = queue->head;
    if (sequence) {
        queue->head = sequence->next;
        if (!queue->head)
            queue->tail = NULL;
        sequence->next = NULL;
    }
    return sequence;
}

const struct model *sequence_decoder(const struct engine *engine, const struct sequence *sequence)
{
    return sequence->request->decode == DECODE_FULL ? engine->full : engine->pruned;
}

static bool wants_refresh(const struct sequence *s)
{
    return s->request->decode == DECODE_REFRESH && s->position - s->n_exact >= s->request->every;
}

/* An answer of which only one token is missing needs no draft: the full model gives it anyway. */
static bool wants_verify(const struct sequence *s)
{
    const struct request *request = s->request;
    if (request->decode != DECODE_VERIFY)
        return false;
    uint32_t n_most = request->max_new - s->n_generated - 1;
    n_most = n_most < request->every ? n_most : request->every;
    return s->n_drafts >= n_most || s->draft_ends;
}

bool sequence_wants_reading(struct sequence *s)
{
    if (wants_refresh(s)) {
        s->reading = READ_REFRESH;
        s->read_end = s->logits_from = s->position;
    } else if (wants_verify(s)) {
        s->reading = READ_VERIFY;
        s->read_end = s->n_tokens + s->n_drafts;
        s->logits_from = s->n_exact;
    } else {
        return false;
    }
    s->read_exact = s->read_end;
    s->read_begin = s->n_exact;
    s->position = s->n_exact; /* what the twin wrote after it is written again */
    return true;
}

static bool uses_cache(const struct engine *engine, const struct sequence *s)
{
    return !engine->options.no_prefix_cache && !s->request->in.no_cache;
}

void sequence_find_prefix(struct engine *engine, struct sequence *s)
{
    struct kv_table *table = &s->table;
    uint32_t end = s->read_exact < s->logits_from ? s->read_exact : s->logits_from;
    if (!uses_cache(engine, s) || end <= s->position ||
        s->position != table->n_pages * KERNEL_PAGE_TOKENS || table->n_indexed != table->n_pages)
        return;
    uint32_t n_had = s->position;
    struct kv_match match = kv_prefix_find(engine->kv, s->tokens, end, table);
    s->position = s->n_exact = match.n_tokens;
    /* Of what it computed itself meanwhile the cache knows all: that says nothing. */
    if (s->reading == READ_PROMPT && (n_had == 0 || match.n_tokens > n_had))
        output_count_cached(engine, s->request, 0, match.n_same);
}

void sequence_keep_prefix(struct engine *engine, struct sequence *s)
{
    if (uses_cache(engine, s))
        kv_prefix_add(engine->kv, s->tokens, s->n_exact, &s->table);
}

void sequence_preempt(struct engine *engine, struct sequence *s)
{
    if (s->reading == READ_NONE) {
        s->reading = READ_RESUME;
        s->read_exact = s->n_exact;
        s->read_end = s->logits_from = s->position;
    }
    kv_table_clear(engine->kv, &s->table);
    s->position = s->n_exact = 0;
    output_count(engine, s->request, (struct dial_counts){.n_preemptions = 1});
}

struct rank sequence_rank(const struct sequence *s)
{
    return (struct rank){s->request->in.priority, s->request->id, s->choice};
}

bool rank_is_after(struct rank a, struct rank b)
{
    if (a.priority != b.priority)
        return a.priority > b.priority;
    return a.id != b.id ? a.id > b.id : a.choice > b.choice;
}

/* One that is on its way to the stage counts as there, so that it is never nowhere. */
void stage_push_sequence(struct stage *stage, struct sequence *sequence)
{
    pthread_mutex_lock(&stage->lock);
    sequence_queue_push(&stage->sequences, sequence);
    if (rank_is_after(sequence_rank(sequence), stage->worst))
        stage->worst = sequence_rank(sequence);
    pthread_mutex_unlock(&stage->lock);
    stage_nudge(stage);
}

void stage_publish_worst(struct stage *stage, struct rank worst)
{
    pthread_mutex_lock(&stage->lock);
    for (const struct sequence *s = stage->sequences.head; s; s = s->next)
        if (rank_is_after(sequence_rank(s), worst))
            worst = sequence_rank(s);
    stage->worst = worst;
    pthread_mutex_unlock(&stage->lock);
}

bool stage_ask_for_pages(struct stage *stage, struct rank rank)
{
    pthread_mutex_lock(&stage->lock);
    bool ok = rank_is_after(stage->worst, rank);
    if (ok)
        stage->asked_for = rank;
    pthread_mutex_unlock(&stage->lock);
    if (ok) {
        atomic_store(&stage->is_asked, true);
        stage_nudge(stage);
    }
    return ok;
}

bool stage_is_asked(struct stage *stage, struct rank *ret_rank)
{
    if (!atomic_exchange(&stage->is_asked, false))
        return false;
    pthread_mutex_lock(&stage->lock);
    *ret_rank = stage->asked_for;
    pthread_mutex_unlock(&stage->lock);
    return true;
}
