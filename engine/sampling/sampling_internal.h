/* What the files of this folder share. */
#ifndef OVERFILL_ENGINE_SAMPLING_SAMPLING_INTERNAL_H
#define OVERFILL_ENGINE_SAMPLING_SAMPLING_INTERNAL_H

#include "engine/sampling/sampler.h"

/* e^x for x <= 0, 0 for NaN. Relative error below 1e-12 and the same bits on every machine and with
 * every C library, which is what makes a seed reproducible. */
double sampling_exp(double x);

/* A token that may be drawn. */
struct sampling_candidate {
    float logit;  /* after penalties and bias */
    float weight; /* proportional to its probability; 1 for the best */
    int32_t token;
};

/* candidates[n] to a heap with the best on top (ties: the lowest id). O(n). */
void select_heapify(struct sampling_candidate *candidates, size_t n);
/* Moves the best of the heap candidates[n] to candidates[n - 1]; candidates[n - 1) is a heap again.
 * So k calls leave the k best at the end, the best one last. O(log n). */
void select_pop(struct sampling_candidate *candidates, size_t n);

#endif
