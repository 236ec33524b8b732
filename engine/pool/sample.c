/* From logits to accepted tokens, for both pools. See pool_internal.h. */
#include "engine/base/system.h"
#include "engine/pool/pool_internal.h"

#include <math.h>

struct score_context {
    struct engine *engine;
    struct stage *stage;
    struct score_job *jobs;
};

void score_job_run(const struct engine *engine, const struct stage *stage, unsigned member,
                   struct score_job *job)
{
    uint32_t n_vocab = engine->info.vocab_size;
    struct sampling_scratch *scratch = stage->scratch[member];
    if (job->ret_draft) {
        sampler_draft(job->sampler, job->logits, job->banned, scratch, job->ret_draft);
        return;
    }
    if (job->shown) {
        const struct engine_request *in = &job->shown->request->in;
        in->on_logits(in->user, job->shown->choice, job->i_token, job->logits, n_vocab);
    }
    if (job->sampler) {
        job->token =
            job->draft ? sampler_verify(job->sampler, job->logits, job->banned, job->draft, scratch)
                       : sampler_sample(job->sampler, job->logits, job->banned, scratch);
        sampler_accept(job->sampler, job->token);
    }
    if (!job->with_logprob)
        return;
    size_t n_top =
        sampling_logprobs(job->logits, n_vocab, job->token, job->k, job->ret_logprob, job->top);
    if (job->ret_n_top)
        *job->ret_n_top = n_top;
    if (job->ret_rank)
        *job->ret_rank = sampling_rank(job->logits, n_vocab, job->token);
}

static void score_unit(void *context, unsigned member, size_t unit)
{
    struct score_context *c = context;
    score_job_run(c->engine, c->stage, member, &c->jobs[unit]);
}

void score_jobs_run(struct engine *engine, struct stage *stage, struct score_job *jobs, size_t n)
{
    struct score_context c = {engine, stage, jobs};
    team_for(stage->team, n, score_unit, &c);
}

struct score_job sequence_job(const struct engine *engine, const struct sequence *sequence,
                              uint32_t i_token, const float *logits, struct token_score *score)
{
    const struct engine_request *in = &sequence->request->in;
    bool no_end = in->ignore_eos || i_token < in->min_tokens;
    score->logprob = NAN;
    score->n_top = 0;
    return (struct score_job){
        .logits = logits,
        .sampler = sequence->sampler,
        .banned = no_end ? engine->end_tokens : NULL,
        .token = sequence->given ? sequence->given->tokens[i_token] : -1,
        .with_logprob = in->n_logprobs >= 0,
        .k = in->n_logprobs > 0 ? (size_t)in->n_logprobs : 0,
        .ret_logprob = &score->logprob,
        .top = score->top,
        .ret_n_top = &score->n_top,
        .shown = in->on_logits ? sequence : NULL,
        .i_token = i_token,
    };
}

static void count_finish(struct engine *engine, enum finish_reason finish)
{
    pthread_mutex_lock(&engine->stats_lock);
    if (finish == FINISH_STOP)
        engine->stats.finished_stop++;
    else
        engine->stats.finished_length++;
    pthread_mutex_unlock(&engine->stats_lock);
}

bool sequence_accept(struct engine *engine, struct sequence *sequence, int32_t token,
                     const struct token_score *score)
{
    struct request *request = sequence->request;
    const struct engine_given *given = sequence->given;
    enum finish_reason finish = FINISH_NONE;

    if (!request->first_token_ns)
        request->first_token_ns = system_now_ns();
    sequence->n_generated++;
    sequence->tokens[sequence->n_tokens++] = token;
    if (!given && tokenizer_is_end(engine->tokenizer, token))
        finish = FINISH_STOP;
    else if (sequence->n_generated >= (given ? given->n_tokens : request->max_new))
        finish = FINISH_LENGTH;
    finish = output_token(engine, sequence, token, score, finish);
    if (finish != FINISH_NONE)
        count_finish(engine, finish);
    return finish != FINISH_NONE;
}

bool sequence_skip(struct engine *engine, struct sequence *sequence)
{
    output_token(engine, sequence, -1, NULL, FINISH_LENGTH);
    count_finish(engine, FINISH_LENGTH);
    return true;
}

void sequence_finish(struct engine *engine, struct sequence *sequence, const struct error *error)
{
    struct request *request = sequence->request;
    struct error cut;
    if (sequence->finished)
        return;
    sequence->finished = true;
    request->choice_cut |= error != NULL;
    if (!error)
        background_offer(engine, sequence);
    kv_table_close(engine->kv, &sequence->table);
    pthread_mutex_lock(&engine->stats_lock);
    engine->n_sequences--;
    pthread_mutex_unlock(&engine->stats_lock);
    bool last = --request->n_unfinished == 0;
    stage_nudge(&engine->prefill); /* room for a waiting request */
    if (!last)
        return;
    if (!error && request->choice_cut) { /* cancelled while this choice was ending by itself */
        error_set(&cut, ERROR_CANCELLED, "cancelled during decode");
        error = &cut;
    }
    output_done(engine, request, error);
}
