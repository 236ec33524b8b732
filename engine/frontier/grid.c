/* Which twins are worth making for some budgets. See frontier.h for the families. */
#include "engine/frontier/frontier.h"

#include <math.h>
#include <stdlib.h>

#define BLOCK 32
#define LEAST_MLP_SHARE 0.25 /* below it, narrowing both widths is the better use of bytes */

/* The largest width that fills blocks. */
static uint32_t widest(uint32_t full)
{
    return full / BLOCK * BLOCK;
}

static bool lies_within(const struct frontier_point *point, const struct model_params *full,
                        double budget)
{
    return (double)frontier_point_cost(point, full).bytes <= budget;
}

/* The MLP's width beside that hidden width, in the full model's proportion. */
static uint32_t proportional_mlp(const struct model_params *full, uint32_t hidden)
{
    double blocks = round((double)full->mlp * hidden / full->hidden / BLOCK);
    uint32_t mlp = (uint32_t)fmax(blocks, 1) * BLOCK;
    return mlp < full->mlp ? mlp : widest(full->mlp);
}

/* Steps of the hidden width are coarse, so the MLP takes what is left of the budget. */
static bool narrow_both(const struct model_params *full, enum tensor_type type, double budget,
                        struct frontier_point *ret_point)
{
    struct frontier_point p = {widest(full->hidden), 0, type, type};
    for (; p.hidden; p.hidden -= BLOCK) {
        p.mlp = proportional_mlp(full, p.hidden);
        if (lies_within(&p, full, budget))
            break;
    }
    if (!p.hidden)
        return false;
    do {
        *ret_point = p;
        p.mlp += BLOCK;
    } while (p.mlp <= full->mlp && lies_within(&p, full, budget));
    return true;
}

static bool narrow_mlp(const struct model_params *full, enum tensor_type type, double budget,
                       struct frontier_point *ret_point)
{
    for (uint32_t mlp = widest(full->mlp); mlp && mlp >= LEAST_MLP_SHARE * full->mlp;
         mlp -= BLOCK) {
        *ret_point = (struct frontier_point){widest(full->hidden), mlp, type, type};
        if (lies_within(ret_point, full, budget))
            return true;
    }
    return false;
}

static bool only_round(const struct model_params *full, double budget,
                       struct frontier_point *ret_point)
{
    static const enum tensor_type TYPES[] = {TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q8_0};
    size_t best = 0;
    for (int i = 0; i < 9; i++) {
        const struct frontier_point p = {widest(full->hidden), widest(full->mlp), TYPES[i % 3],
                                         TYPES[i / 3]};
        size_t bytes = frontier_point_cost(&p, full).bytes;
        if ((double)bytes <= budget && bytes > best) {
            *ret_point = p;
            best = bytes;
        }
    }
    return best > 0;
}

static void add(struct frontier_grid *grid, const struct frontier_point *point)
{
    for (size_t i = 0; i < grid->n; i++)
        if (frontier_point_equal(&grid->points[i], point))
            return;
    grid->points[grid->n++] = *point;
}

/* Adds what lies within the budget; how many families have something. */
static int add_budget(const struct model_params *full, double budget, struct frontier_grid *grid)
{
    struct frontier_point found[FRONTIER_FAMILIES];
    int n = 0;
    n += narrow_both(full, TENSOR_Q8_0, budget, &found[n]);
    n += narrow_both(full, TENSOR_Q4_0, budget, &found[n]);
    n += narrow_mlp(full, TENSOR_Q4_0, budget, &found[n]);
    n += only_round(full, budget, &found[n]);
    for (int i = 0; i < n; i++)
        add(grid, &found[i]);
    return n;
}

static int by_bytes(const void *a, const void *b, void *full)
{
    size_t x = frontier_point_cost(a, full).bytes;
    size_t y = frontier_point_cost(b, full).bytes;
    return (x > y) - (x < y);
}

int frontier_grid_choose(const struct model_params *full, const double *budgets, size_t n_budgets,
                         struct frontier_grid *ret_grid, struct error *err)
{
    struct frontier_grid grid = {.n = 0};
    struct model_params params = *full;
    const struct frontier_point least = {BLOCK, proportional_mlp(full, BLOCK), TENSOR_Q4_0,
                                         TENSOR_Q4_0};
    if (full->hidden < BLOCK || full->mlp < BLOCK)
        return error_set(err, ERROR_INVALID, "widths %u and %u: at least %d expected", full->hidden,
                         full->mlp, BLOCK);
    for (size_t i = 0; i < n_budgets; i++)
        if (!add_budget(full, budgets[i], &grid))
            return error_set(
                err, ERROR_INVALID, "budget of %.6g MB: the narrowest twin reads %.6g MB a token",
                budgets[i] / 1e6, (double)frontier_point_cost(&least, full).bytes / 1e6);
    qsort_r(grid.points, grid.n, sizeof(*grid.points), by_bytes, &params);
    *ret_grid = grid;
    return 0;
}
