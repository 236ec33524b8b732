/* A step of the prefill pool: which tokens of which sequences, through one model, and what follows
 * from them. See prefill.h. */
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/pool/prefill.h"

#include <string.h>

/* Every so many steps the oldest prompt goes first, so that short ones cannot starve it. */
#define AGEING_STEPS 4

/* A client is in the middle of its answer. */
static bool is_urgent(const struct sequence *s)
{
    return s->reading == READ_REFRESH || s->reading == READ_VERIFY;
}

/* What a step reads with. */
struct reader {
    const struct model *model;
    enum step_rows rows;
};

static bool is_in_prompt(const struct sequence *s)
{
    return s->position < s->request->prompt.n;
}

/* Where the part that the reader takes ends; position if that is not next. */
static uint32_t part_end(const struct prefill *p, const struct sequence *s,
                         const struct reader *reader)
{
    bool is_full = reader->model == p->engine->full;
    if (is_full != (s->position < s->read_exact))
        return s->position;
    uint32_t end = is_full ? s->read_exact : s->read_end;
    if (reader->rows == STEP_ALL)
        return end;
    if (is_in_prompt(s) != (reader->rows == STEP_PROMPTS))
        return s->position;
    uint32_t prompt_end = (uint32_t)s->request->prompt.n;
    return is_in_prompt(s) && end > prompt_end ? prompt_end : end;
}

static bool goes_before(const struct sequence *a, const struct sequence *b)
{
    if (is_urgent(a) != is_urgent(b))
        return is_urgent(a);
    if (a->request->in.priority != b->request->in.priority)
        return a->request->in.priority < b->request->in.priority;
    return a->read_end - a->position < b->read_end - b->position;
}

/* The sequence to serve next, of those not yet in the step: who waits in the middle of an answer,
 * then the lowest priority, then the one with the least left; now and then the oldest. */
static struct sequence *choose(const struct prefill *p, const struct reader *reader)
{
    bool oldest_first = p->n_steps % AGEING_STEPS == 0 && p->n_slices == 0;
    struct sequence *best = NULL;
    for (size_t i = 0; i < p->n_active; i++) {
        struct sequence *s = p->active[i];
        if (s->in_step || part_end(p, s, reader) == s->position)
            continue;
        bool is_better =
            !best || (oldest_first ? is_urgent(s) && !is_urgent(best) : goes_before(s, best));
        if (is_better)
            best = s;
    }
    return best;
}

/* Fewer would pay too much for reading and unpacking the weights. Faster products need more rows,
 * and all the more where nobody else waits for the step to end. */
static uint32_t least_rows(const struct prefill *p)
{
    const struct products *prompt = p->engine->kernels->prompt;
    if (!prompt)
        return PREFILL_MIN_ROWS;
    return (uint32_t)(p->n_active == 1 ? prompt->unit_rows : prompt->unit_rows / 2);
}

uint32_t prefill_rows(const struct prefill *p, double ms)
{
    double rows = p->tokens_per_ms * ms;
    uint32_t least = least_rows(p);
    if (rows < least)
        return least;
    return rows < PREFILL_MAX_ROWS ? (uint32_t)rows : PREFILL_MAX_ROWS;
}

/* Pages up to `end`, from whoever comes after it in rank; at least those left over. */
static void make_room(struct prefill *p, struct sequence *s, uint32_t end)
{
    struct engine *engine = p->engine;
    while (!kv_table_grow(engine->kv, &s->table, end)) {
        if (background_release(p))
            continue;
        struct sequence *worst = prefill_worst(p);
        if (!worst || !rank_is_after(sequence_rank(worst), sequence_rank(s))) {
            stage_ask_for_pages(&engine->decode, sequence_rank(s));
            return;
        }
        if (worst->in_step) {
            p->is_short = true;
            p->short_rank = sequence_rank(s);
            return;
        }
        prefill_park(p, worst);
    }
}

/* How many tokens the sequence's slice may have. Rows with logits and rows without do not mix,
 * except that the last of all may be the only one with. Ends that are not the last are on pages'
 * ends, where the prefix cache may know how it goes on. */
static uint32_t slice_end(const struct sequence *s, uint32_t end, uint32_t rows,
                          uint32_t logit_rows)
{
    bool only_last = s->reading == READ_PROMPT && s->logits_from + 1 == s->read_end && logit_rows;
    if (s->position >= s->logits_from && rows > logit_rows)
        rows = logit_rows;
    else if (s->position < s->logits_from && s->logits_from < end && !only_last)
        end = s->logits_from;
    if (end - s->position <= rows)
        return end;
    end = s->position + rows;
    uint32_t page_end = end / KERNEL_PAGE_TOKENS * KERNEL_PAGE_TOKENS;
    return s->position < s->logits_from && page_end > s->position ? page_end : end;
}

/* Adds a slice of the sequence, if there are pages for one. */
static void add_slice(struct prefill *p, struct sequence *s, const struct reader *reader,
                      uint32_t *rows, uint32_t *logit_rows)
{
    s->in_step = true;
    sequence_find_prefix(p->engine, s);
    uint32_t end = slice_end(s, part_end(p, s, reader), *rows, *logit_rows);
    make_room(p, s, end);
    uint32_t room = s->table.n_pages * KERNEL_PAGE_TOKENS;
    end = end < room ? end : room;
    if (end <= s->position)
        return;
    uint32_t n = end - s->position;
    enum logits_wanted logits = s->position >= s->logits_from ? LOGITS_ALL
                                : end > s->logits_from        ? LOGITS_LAST
                                                              : LOGITS_NONE;
    p->slice_sequences[p->n_slices] = s;
    p->is_verified[p->n_slices] = s->reading == READ_VERIFY && logits == LOGITS_ALL;
    p->slices[p->n_slices++] = (struct forward_slice){
        .tokens = s->tokens + s->position,
        .n_tokens = n,
        .position = s->position,
        .pages = s->table.pages,
        .logits = logits,
        .is_prompt = reader->rows == STEP_PROMPTS,
    };
    *rows -= n;
    *logit_rows -= logits == LOGITS_ALL ? n : logits == LOGITS_LAST;
}

static void build_step(struct prefill *p, const struct reader *reader)
{
    uint32_t rows = prefill_rows(p, p->engine->options.prefill_chunk_ms);
    uint32_t logit_rows = PREFILL_LOGIT_ROWS;
    struct sequence *s;

    p->n_slices = 0;
    for (size_t i = 0; i < p->n_active; i++)
        p->active[i]->in_step = false;
    while (rows && logit_rows && (s = choose(p, reader)))
        add_slice(p, s, reader, &rows, &logit_rows);
}

static void count_step(struct prefill *p, const struct reader *reader, uint64_t ns)
{
    const struct model *model = reader->model;
    struct engine *engine = p->engine;
    uint32_t n_prompt = 0, n_resumed = 0, n_all = 0;
    bool with_head = false;
    for (size_t i = 0; i < p->n_slices; i++) {
        enum reading reading = p->slice_sequences[i]->reading;
        uint32_t n = p->slices[i].n_tokens;
        with_head |= p->slices[i].logits != LOGITS_NONE;
        n_all += n;
        n_prompt += reading == READ_PROMPT ? n : 0;
        n_resumed += reading == READ_RESUME ? n : 0;
    }
    p->n_steps++;
    /* Few rows read the weights for too little work to tell how fast many would be. */
    if (ns && model == engine->full && reader->rows != STEP_ANSWERS &&
        (n_all >= PREFILL_MIN_ROWS || p->tokens_per_ms <= 0)) {
        double rate = n_all / ((double)ns / 1e6);
        p->tokens_per_ms = p->tokens_per_ms > 0 ? 0.8 * p->tokens_per_ms + 0.2 * rate : rate;
    }
    size_t bytes = model->packed_bytes - (with_head ? 0 : matrix_bytes(&model->head));
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.prompt_tokens += n_prompt;
    engine->stats.recomputed_tokens += n_resumed;
    engine->stats.prefill_steps++;
    engine->stats.prefill_seconds += (double)ns / 1e9;
    if (model == engine->full)
        engine->stats.weight_bytes_prefill_full += bytes;
    else
        engine->stats.weight_bytes_prefill_pruned += bytes;
    engine->prefill_tick_ns = system_now_ns();
    pthread_mutex_unlock(&engine->stats_lock);
}

/* The logits of row i of a slice predict prompt token position + i + 1. */
static void add_prompt_jobs(struct prefill *p, const struct forward_slice *slice,
                            struct request *request, const float *logits)
{
    size_t k = request->in.n_prompt_logprobs;
    for (uint32_t i = 0; i < slice->n_tokens; i++) {
        size_t at = (size_t)slice->position + i + 1;
        if (at >= request->prompt.n)
            return;
        struct engine_token *record = &request->prompt_records[at];
        record->n_top = (uint32_t)k;
        p->jobs[p->n_jobs++] = (struct score_job){
            .logits = logits + i * p->stride,
            .token = record->token,
            .with_logprob = true,
            .k = k,
            .ret_logprob = &record->logprob,
            .top = request->prompt_top + at * k,
            .ret_rank = &record->rank,
        };
    }
}

/* Draft that would be tokens[at], or NULL behind the last. */
static struct sampling_draft *draft_at(const struct sequence *s, uint32_t at)
{
    uint32_t first = s->read_end - s->n_drafts;
    return at < s->read_end ? &s->drafts[at - first] : NULL;
}

static void add_verification(struct prefill *p, const struct forward_slice *slice,
                             struct sequence *s, const float *logits)
{
    p->verifications[p->n_verifications++] = (struct verification){
        .sequence = s,
        .logits = logits,
        .n_rows = slice->n_tokens,
        .jobs = &p->jobs[p->n_jobs],
    };
    for (uint32_t i = 0; i < slice->n_tokens; i++, p->n_jobs++) {
        struct score_job *job = &p->jobs[p->n_jobs];
        *job = sequence_job(p->engine, s, s->n_generated + i, logits + i * p->stride,
                            &p->scores[p->n_jobs]);
        job->draft = draft_at(s, slice->position + i + 1);
    }
}

/* Row after row, each on the tokens before it, until one is not as drafted. */
static void verify_unit(void *context, unsigned member, size_t unit)
{
    struct prefill *p = context;
    struct verification *v = &p->verifications[unit];
    bool is_draft = true;
    while (is_draft && v->n_taken < v->n_rows) {
        struct score_job *job = &v->jobs[v->n_taken++];
        score_job_run(p->engine, &p->engine->prefill, member, job);
        is_draft = job->draft && job->token == job->draft->token;
    }
}

static size_t n_logit_rows(const struct forward_slice *slice)
{
    return slice->logits == LOGITS_ALL ? slice->n_tokens : slice->logits == LOGITS_LAST;
}

/* All rows with logits, each for its purpose; the first tokens come later. */
static void score_rows(struct prefill *p, const float *logits)
{
    p->n_jobs = p->n_verifications = 0;
    const float *at = logits;
    for (size_t i = 0; i < p->n_slices; at += n_logit_rows(&p->slices[i++]) * p->stride) {
        const struct sequence *s = p->slice_sequences[i];
        if (s->reading == READ_PROMPT && s->request->prompt_records)
            add_prompt_jobs(p, &p->slices[i], s->request, at);
    }
    size_t n_prompt_jobs = p->n_jobs;
    at = logits;
    for (size_t i = 0; i < p->n_slices; at += n_logit_rows(&p->slices[i++]) * p->stride)
        if (p->is_verified[i])
            add_verification(p, &p->slices[i], p->slice_sequences[i], at);
    score_jobs_run(p->engine, &p->engine->prefill, p->jobs, n_prompt_jobs);
    team_for(p->engine->prefill.team, p->n_verifications, verify_unit, p);
}

/* Choices share the prompt's full pages. Those for whose part-filled one there is no copy get
 * theirs later. */
static void share_pages(struct engine *engine, struct request *request)
{
    struct sequence *first = &request->sequences[0];
    for (uint32_t i = 0; i < request->in.n; i++) {
        struct sequence *s = &request->sequences[i];
        s->reading = READ_NONE;
        s->position = s->n_exact = (uint32_t)request->prompt.n;
        s->is_starved = i && !kv_table_fork(engine->kv, &first->table, s->position, &s->table);
    }
}

static void count_prompt(struct engine *engine, struct request *request)
{
    uint32_t n = (uint32_t)request->prompt.n;
    bool asked = !request->in.no_cache && !engine->options.no_prefix_cache;
    output_count_cached(engine, request, n > request->n_computed ? n - request->n_computed : 0, 0);
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.prompt_tokens_asked += asked ? n : 0;
    pthread_mutex_unlock(&engine->stats_lock);
}

/* The first token of every choice, from the full model's logits. */
static void start_choices(struct prefill *p, struct request *request, const float *logits)
{
    struct engine *engine = p->engine;
    uint32_t n = request->in.n;
    count_prompt(engine, request);
    share_pages(engine, request);
    if (request->in.prompt_logprobs)
        output_prompt(engine, request);

    size_t n_jobs = request->max_new ? n : 0;
    for (uint32_t i = 0; i < n_jobs; i++)
        p->jobs[i] = sequence_job(engine, &request->sequences[i], 0, logits, &p->scores[i]);
    score_jobs_run(engine, &engine->prefill, p->jobs, n_jobs);
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = &request->sequences[i];
        s->finishing = request->max_new
                           ? sequence_accept(engine, s, p->jobs[i].token, &p->scores[i])
                           : sequence_skip(engine, s);
    }
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.generated_tokens += n_jobs;
    pthread_mutex_unlock(&engine->stats_lock);
    /* A choice is the decode thread's once pushed, and with the last one the request. */
    for (uint32_t i = 0; i < n; i++) {
        struct sequence *s = &request->sequences[i];
        if (s->is_starved && !s->finishing) {
            sequence_preempt(engine, s);
            prefill_wait(p, s);
        } else {
            stage_push_sequence(&engine->decode, s);
        }
    }
}

/* Back to decode. */
static void hand_back(struct prefill *p, struct sequence *s)
{
    if (s->reading == READ_REFRESH)
        output_count(p->engine, s->request,
                     (struct dial_counts){.n_refreshed = s->read_end - s->read_begin});
    prefill_remove_active(p, s);
    s->reading = READ_NONE;
    stage_push_sequence(&p->engine->decode, s);
}

/* Sends what was verified; all up to the last draft that stands is the full model's now. */
static void take_verified(struct prefill *p, const struct verification *v)
{
    struct engine *engine = p->engine;
    struct sequence *s = v->sequence;
    struct dial_counts counts = {0};
    uint32_t n = 0;
    bool is_draft = true;
    while (n < v->n_taken && !s->finishing) {
        const struct score_job *job = &v->jobs[n];
        is_draft = job->draft && job->token == job->draft->token;
        counts.n_accepted += is_draft;
        s->finishing = sequence_accept(engine, s, job->token, &p->scores[job - p->jobs]);
        n++;
    }
    s->position += n;
    s->n_exact = s->logits_from = s->position;
    sequence_keep_prefix(engine, s);
    pthread_mutex_lock(&engine->stats_lock);
    engine->stats.generated_tokens += n;
    pthread_mutex_unlock(&engine->stats_lock);
    bool is_over = !is_draft || s->finishing;
    if (is_over)
        counts.n_drafted = s->n_drafts;
    output_count(engine, s->request, counts);
    if (!is_over)
        return;
    s->n_drafts = 0;
    s->draft_ends = false;
    hand_back(p, s);
}

/* After a slice without verification. logits: of its last row. */
static void take_read(struct prefill *p, struct sequence *s, uint32_t n, bool is_exact,
                      const float *logits)
{
    struct engine *engine = p->engine;
    s->position += n;
    if (is_exact) {
        s->n_exact = s->position;
        sequence_keep_prefix(engine, s);
    }
    if (s->reading == READ_PROMPT)
        s->request->n_computed += n;
    if (s->position < s->read_end)
        return;
    if (s->reading == READ_PROMPT) {
        prefill_remove_active(p, s);
        start_choices(p, s->request, logits);
    } else {
        hand_back(p, s);
    }
}

/* What the prefix cache had to the end, without a step. */
static bool hand_back_found(struct prefill *p)
{
    size_t n_before = p->n_active;
    for (size_t i = p->n_active; i-- > 0;)
        if (p->active[i]->position == p->active[i]->read_end)
            hand_back(p, p->active[i]);
    return p->n_active < n_before;
}

static void finish_slices(struct prefill *p, const struct model *model, const float *logits)
{
    const float *at = logits;
    for (size_t i = 0; i < p->n_verifications; i++)
        take_verified(p, &p->verifications[i]);
    for (size_t i = 0; i < p->n_slices; i++) {
        at += n_logit_rows(&p->slices[i]) * p->stride;
        if (!p->is_verified[i])
            take_read(p, p->slice_sequences[i], p->slices[i].n_tokens, model == p->engine->full,
                      at - p->stride);
    }
}

bool prefill_step(struct prefill *p, const struct model *model, enum step_rows rows)
{
    struct engine *engine = p->engine;
    const struct reader reader = {model, rows};
    build_step(p, &reader);
    bool any = hand_back_found(p);
    if (!p->n_slices)
        return any;
    uint64_t begin = system_now_ns();
    const float *logits =
        forward_run(engine->prefill.forward, model, engine->kv, p->slices, p->n_slices, &p->stride);
    count_step(p, &reader, system_now_ns() - begin);
    score_rows(p, logits);
    finish_slices(p, model, logits);
    return true;
}
