/* The prefill thread's own state, for prefill.c (who is read), reading.c (a step of it) and
 * background.c (what is read when there is nothing else to do). */
#ifndef OVERFILL_ENGINE_POOL_PREFILL_H
#define OVERFILL_ENGINE_POOL_PREFILL_H

#include "engine/pool/waiting.h"

#define MAX_READING 64 /* prompts, and sequences to be resumed, in progress at once */
/* Scored at once: the logits of a step, or the choices of a request. */
#define MAX_JOBS (PREFILL_LOGIT_ROWS > ENGINE_MAX_CHOICES ? PREFILL_LOGIT_ROWS : ENGINE_MAX_CHOICES)

/* Rows of one sequence that verify its drafts. */
struct verification {
    struct sequence *sequence;
    const float *logits; /* of n_rows rows, the first that of tokens[position] */
    uint32_t n_rows;
    struct score_job *jobs; /* [n_rows] */
    uint32_t n_taken; /* rows whose tokens stand: the last one's is not a draft, or the last */
};

struct prefill {
    struct engine *engine;
    struct waiting waiting;                  /* requests not yet admitted */
    struct sequence *active[MOST_SEQUENCES]; /* being read, in order of admission */
    size_t n_active;
    struct sequence *parked[MOST_SEQUENCES]; /* without pages now, the first in rank first */
    size_t n_parked;
    bool is_short;          /* the last in rank was in the step when its pages were needed */
    struct rank short_rank; /*   by this one */
    bool has_stepped;
    struct background_job *background; /* taken up, not finished */

    /* reading.c */
    uint64_t n_steps;
    double tokens_per_ms; /* measured, smoothed; 0 before the first step */
    struct forward_slice slices[MOST_SEQUENCES];
    struct sequence *slice_sequences[MOST_SEQUENCES];
    bool is_verified[MOST_SEQUENCES]; /* the slice's rows verify drafts */
    size_t n_slices;
    struct score_job jobs[MAX_JOBS];
    struct token_score scores[MAX_JOBS];
    size_t n_jobs;
    struct verification verifications[PREFILL_LOGIT_ROWS];
    size_t n_verifications;
    size_t stride; /* of the step's logits */
};

/* prefill.c */
void prefill_remove_active(struct prefill *p, struct sequence *sequence);
/* Takes an active sequence's pages; it goes on when there are some again. */
void prefill_park(struct prefill *p, struct sequence *sequence);
/* The same for one that has no pages and is not active. */
void prefill_wait(struct prefill *p, struct sequence *sequence);
struct sequence *prefill_worst(const struct prefill *p);

/* reading.c: a step of one model for those whose next tokens are its, or only for those whose
 * tokens are (or are not) a prompt's, as full models with faster products for prompts want it.
 * False if there are none. */
enum step_rows { STEP_ALL, STEP_PROMPTS, STEP_ANSWERS };
bool prefill_step(struct prefill *p, const struct model *model, enum step_rows rows);
/* Rows of a step that is to take `ms`. */
uint32_t prefill_rows(const struct prefill *p, double ms);

/* background.c */
bool background_step(struct prefill *p);
/* Gives back the pages of the work taken up, which begins again later. False if it had none. */
bool background_release(struct prefill *p);
void background_drop(struct prefill *p);

#endif
