/* The best candidates without sorting all: a heap that gives them up one by one, and one that keeps
 * the k best of a stream. A vocabulary is passed over block by block: the highest of a block says
 * whether anything in it is wanted. See sampling_internal.h. */
#include "engine/sampling/sampling_internal.h"

#include <math.h>
#include <string.h>

/* Four numbers that are compared at once, and four times four that wait for nothing of each other.
 * The compiler by itself would go one by one: it may not know that the order does not matter. */
typedef float quad __attribute__((vector_size(16)));
typedef int32_t quad_bits __attribute__((vector_size(16)));
#define QUADS 4
#define LANES (4 * QUADS)

static inline quad higher(quad a, quad b)
{
    quad_bits above = a > b; /* not where a is no number */
    return (quad)(((quad_bits)a & above) | ((quad_bits)b & ~above));
}

float select_max(const float *x, size_t n)
{
    const quad none = {-INFINITY, -INFINITY, -INFINITY, -INFINITY};
    quad highest[QUADS] = {none, none, none, none}, next[QUADS];
    float max = -INFINITY;
    size_t i = 0;
    for (; i + LANES <= n; i += LANES) {
        memcpy(next, x + i, sizeof(next));
        for (int k = 0; k < QUADS; k++)
            highest[k] = higher(next[k], highest[k]);
    }
    for (; i < n; i++)
        max = x[i] > max ? x[i] : max;
    for (int lane = 0; lane < LANES; lane++)
        max = highest[lane / 4][lane % 4] > max ? highest[lane / 4][lane % 4] : max;
    return max;
}

size_t select_argmax(const float *x, size_t n)
{
    float max = -INFINITY;
    size_t block = n;
    for (size_t i = 0; i < n; i += SAMPLING_BLOCK) {
        float highest = select_max(x + i, sampling_block(i, n));
        if (highest > max) {
            max = highest;
            block = i;
        }
    }
    while (block < n && x[block] != max)
        block++;
    return block;
}

size_t select_above(const float *x, const float *logits, size_t n, float least,
                    struct sampling_candidate *candidates)
{
    size_t kept = 0;
    for (size_t i = 0; i < n; i += SAMPLING_BLOCK) {
        size_t end = i + sampling_block(i, n);
        if (!(select_max(x + i, end - i) >= least))
            continue;
        for (size_t j = i; j < end; j++) {
            candidates[kept].token = (int32_t)j;
            candidates[kept].logit = logits[j];
            kept += x[j] >= least;
        }
    }
    return kept;
}

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

/* Of equals the lower id is there already. */
static void replace_worst(const float *logits, size_t begin, size_t end, size_t k,
                          struct sampling_candidate *heap)
{
    for (size_t i = begin; i < end; i++)
        if (logits[i] > heap[0].logit)
            sift_down_worst(heap, k, 0,
                            (struct sampling_candidate){.logit = logits[i], .token = (int32_t)i});
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
    for (size_t end; i < n; i = end) {
        end = i + sampling_block(i, n);
        if (select_max(logits + i, end - i) > candidates[0].logit)
            replace_worst(logits, i, end, k, candidates);
    }
    return kept;
}
