/* What the files of this folder share. */
#ifndef OVERFILL_ENGINE_SAMPLING_SAMPLING_INTERNAL_H
#define OVERFILL_ENGINE_SAMPLING_SAMPLING_INTERNAL_H

#include "engine/sampling/sampler.h"

/* A vocabulary is passed over in blocks: the size of the one that begins at i, of n. */
#define SAMPLING_BLOCK 256
static inline size_t sampling_block(size_t i, size_t n)
{
    return n - i < SAMPLING_BLOCK ? n - i : SAMPLING_BLOCK;
}

/* weights[i] = e^((logits[i] - max) * scale), exactly 1 where logits[i] == max, 0 for NaN; returns
 * their sum. max is the highest logit. The same bits on every machine and with every C library,
 * which is what makes a seed reproducible. */
double sampling_weigh(const float *logits, size_t n, float max, double scale, float *weights);
/* The sum of n weights, in a fixed order, block by block; of those that are at least so large. */
double sampling_sum(const float *weights, size_t n);
double sampling_sum_above(const float *weights, size_t n, float least);

/* A token that may be drawn. */
struct sampling_candidate {
    float logit;  /* after penalties and bias */
    float weight; /* proportional to its probability; 1 for the best */
    int32_t token;
};

/* The highest of x[n], -infinity if there is none; NaN is passed over. */
float select_max(const float *x, size_t n);
/* The first that is the highest, n if none is above -infinity. */
size_t select_argmax(const float *x, size_t n);
/* The ids and logits of all x[i] >= least to candidates, in their order; returns how many there
 * are. x may be the logits. Weights are left open. */
size_t select_above(const float *x, const float *logits, size_t n, float least,
                    struct sampling_candidate *candidates);

/* The k best of logits[n] above -infinity to candidates[k], in no order; returns how many there
 * are. Weights are left open. O(n + k log k log n) for logits in random order. */
size_t select_top(const float *logits, size_t n, size_t k, struct sampling_candidate *candidates);

/* candidates[n] to a heap with the best on top (ties: the lowest id). O(n). */
void select_heapify(struct sampling_candidate *candidates, size_t n);
/* Moves the best of the heap candidates[n] to candidates[n - 1]; candidates[n - 1) is a heap again.
 * So k calls leave the k best at the end, the best one last. O(log n). */
void select_pop(struct sampling_candidate *candidates, size_t n);

#endif
