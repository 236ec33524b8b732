/* Who is beaten, and who is best within a budget. See frontier.h. */
#include "engine/frontier/frontier.h"

#include <math.h>

static bool beats(const struct frontier_score *scores, size_t i, size_t k)
{
    const struct frontier_score *a = &scores[i], *b = &scores[k];
    if (!isfinite(a->kl))
        return false;
    if (!isfinite(b->kl))
        return true;
    bool is_better = a->bytes < b->bytes || a->kl < b->kl;
    return a->bytes <= b->bytes && a->kl <= b->kl && (is_better || i < k);
}

void frontier_mark_front(const struct frontier_score *scores, size_t n, bool *ret_on_front)
{
    for (size_t k = 0; k < n; k++) {
        ret_on_front[k] = isfinite(scores[k].kl);
        for (size_t i = 0; i < n; i++)
            if (i != k && beats(scores, i, k))
                ret_on_front[k] = false;
    }
}

size_t frontier_best(const struct frontier_score *scores, size_t n, double budget)
{
    size_t best = n;
    for (size_t i = 0; i < n; i++) {
        if (!isfinite(scores[i].kl) || scores[i].bytes > budget)
            continue;
        if (best == n || scores[i].kl < scores[best].kl ||
            (scores[i].kl == scores[best].kl && scores[i].bytes < scores[best].bytes))
            best = i;
    }
    return best;
}
