/* The best candidates without sorting all: a heap that gives them up one by one. See
 * sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

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
