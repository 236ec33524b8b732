/* From scores to the channels that stay. See prune_internal.h. */
#include "engine/base/mem.h"
#include "engine/prune/prune_internal.h"

#include <math.h>
#include <stdlib.h>

struct scored {
    double score;
    uint32_t index;
};

/* Highest score first; equal scores keep the lower channel, so that the choice is reproducible. */
static int by_score(const void *a, const void *b)
{
    const struct scored *x = a;
    const struct scored *y = b;
    if (x->score != y->score)
        return x->score > y->score ? -1 : 1;
    return x->index < y->index ? -1 : 1;
}

static int by_index(const void *a, const void *b)
{
    const struct scored *x = a;
    const struct scored *y = b;
    return x->index < y->index ? -1 : 1;
}

/* The n best of `full` scores to index[n]; adds kept and total energy (score squared). */
static void choose(const double *score, uint32_t full, uint32_t n, struct scored *scratch,
                   uint32_t *index, double *kept_energy, double *total_energy)
{
    for (uint32_t i = 0; i < full; i++) {
        scratch[i] = (struct scored){score[i], i};
        *total_energy += score[i] * score[i];
    }
    qsort(scratch, full, sizeof(*scratch), by_score);
    qsort(scratch, n, sizeof(*scratch), by_index);
    for (uint32_t i = 0; i < n; i++) {
        index[i] = scratch[i].index;
        *kept_energy += scratch[i].score * scratch[i].score;
    }
}

int width_resolve(const char *name, double wanted, uint32_t full, bool exact, uint32_t *ret_width,
                  struct error *err)
{
    uint32_t least = exact ? 1 : PRUNE_WIDTH_MULTIPLE;
    if (wanted < 0 || wanted > full || !isfinite(wanted))
        return error_set(err, ERROR_INVALID,
                         "%s: %g, expected a share up to 1 or a width of %u to %u", name, wanted,
                         least, full);
    double width = wanted == 0 ? full : wanted <= 1 ? wanted * full : wanted;
    uint32_t resolved = (uint32_t)width; /* as the authors' int() */
    if (!exact)
        resolved = (uint32_t)lround(width / PRUNE_WIDTH_MULTIPLE) * PRUNE_WIDTH_MULTIPLE;
    if (width == full || resolved > full)
        resolved = full; /* nothing is cut, whatever the model's width */
    if (resolved == 0)
        return error_set(err, ERROR_INVALID, "%s: %g keeps less than %u of %u channels", name,
                         wanted, least, full);
    *ret_width = resolved;
    return 0;
}

static int alloc_kept(uint32_t n_layers, uint32_t hidden, uint32_t mlp, struct kept *kept,
                      struct error *err)
{
    *kept = (struct kept){.hidden = hidden, .mlp = mlp, .hidden_energy = 1, .mlp_energy = 1};
    kept->hidden_index = mem_array(hidden, sizeof(uint32_t));
    kept->mlp_index = mem_array((size_t)n_layers * mlp, sizeof(uint32_t));
    if (kept->hidden_index && kept->mlp_index)
        return 0;
    kept_free(kept);
    return error_memory(err, "kept channels", (unsigned long long)n_layers * mlp * 4);
}

int kept_choose(const struct importance *importance, uint32_t hidden, uint32_t mlp,
                struct kept *ret_kept, struct error *err)
{
    const struct importance *t = importance;
    struct kept kept;
    double kept_energy = 0;
    double total_energy = 0;
    uint32_t most = t->hidden > t->mlp ? t->hidden : t->mlp;
    _cleanup_mem_ struct scored *scratch = mem_array(most, sizeof(*scratch));
    if (!scratch)
        return error_memory(err, "channel scores", most * sizeof(*scratch));
    int rc = alloc_kept(t->n_layers, hidden, mlp, &kept, err);
    if (rc)
        return rc;
    choose(t->hidden_score, t->hidden, hidden, scratch, kept.hidden_index, &kept_energy,
           &total_energy);
    kept.hidden_energy = total_energy > 0 ? kept_energy / total_energy : 1;
    kept_energy = total_energy = 0;
    for (uint32_t l = 0; l < t->n_layers; l++)
        choose(t->mlp_score + (size_t)l * t->mlp, t->mlp, mlp, scratch,
               kept.mlp_index + (size_t)l * mlp, &kept_energy, &total_energy);
    kept.mlp_energy = total_energy > 0 ? kept_energy / total_energy : 1;
    *ret_kept = kept;
    return 0;
}

int kept_first(uint32_t n_layers, uint32_t hidden, uint32_t mlp, struct kept *ret_kept,
               struct error *err)
{
    struct kept kept;
    int rc = alloc_kept(n_layers, hidden, mlp, &kept, err);
    if (rc)
        return rc;
    for (uint32_t i = 0; i < hidden; i++)
        kept.hidden_index[i] = i;
    for (size_t i = 0; i < (size_t)n_layers * mlp; i++)
        kept.mlp_index[i] = (uint32_t)(i % mlp);
    *ret_kept = kept;
    return 0;
}

void kept_free(struct kept *kept)
{
    mem_free(kept->hidden_index);
    mem_free(kept->mlp_index);
    *kept = (struct kept){0};
}
