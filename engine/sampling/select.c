/* The best candidates without sorting all: a heap that gives them up one by one, and one that keeps
 * the k best of a stream. See
 * sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

#include <math.h>

static bool is_better(struct sampling_candidate a, struct sampling_candidate b)
{
    return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

/* Puts c where it belongs at or below slot i of a heap of n. */
static void sift_down(struct sampling_candidate *heap, size_t n, size_t i,
                      struct sampling_candidate c)
{
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && is_better(heap[child + 1], heap[child]))
            child++;
        if (!is_better(heap[child], c))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = c;
}

void select_heapify(struct sampling_candidate *candidates, size_t n)
{
    for (size_t i = n / 2; i > 0; i--)
        sift_down(candidates, n, i - 1, candidates[i - 1]);
}

void select_pop(struct sampling_candidate *candidates, size_t n)
{
    struct sampling_candidate best = candidates[0];
    if (n > 1)
        sift_down(candidates, n - 1, 0, candidates[n - 1]);
    candidates[n - 1] = best;
}

/* The same with the worst on top. */
static void sift_down_worst(struct sampling_candidate *heap, size_t n, size_t i,
                            struct sampling_candidate c)
{
    for (size_t child = 2 * i + 1; child < n; child = 2 * i + 1) {
        if (child + 1 < n && is_better(heap[child], heap[child + 1]))
            child++;
        if (!is_better(c, heap[child]))
            break;
        heap[i] = heap[child];
        i = child;
    }
    heap[i] = c;
}

size_t select_top(const float *logits, size_t n, size_t k, struct sampling_candidate *candidates)
{
    size_t kept = 0, i = 0;

    for (; i < n && kept < k; i++)
        if (logits[i] > -INFINITY)
            candidates[kept++] =
                (struct sampling_candidate){.logit = logits[i], .token = (int32_t)i};
    if (kept < k)
        return kept;
    for (size_t slot = k / 2; slot > 0; slot--)
        sift_down_worst(candidates, k, slot - 1, candidates[slot - 1]);
    for (; i < n; i++) /* of equals the lower id is there already */
        if (logits[i] > candidates[0].logit)
            sift_down_worst(candidates, k, 0,
                            (struct sampling_candidate){.logit = logits[i], .token = (int32_t)i});
    return kept;
}
