/* Scales by trying: the whole range of the values, then narrower ones, whose ends clip while the
 * rest is finer. Where scales are small integers, the nearest of them are tried. See grid.h. */
#include "engine/model/grid.h"

#include <math.h>

#define N_SHRINKS 8
#define SHRINK_STEP 0.04f

/* Rounds to the nearest, |x| < 2^22, in vector instructions of every x86 CPU. */
static float nearest(float x)
{
    const float magic = 12582912.0f; /* 1.5 * 2^23: the fraction falls off */
    return (x + magic) - magic;
}

static float as_half(float x)
{
    return half_to_float(float_to_half(x));
}

float grid_inverse(float d)
{
    float inverse = 1 / d;
    return isfinite(inverse) ? inverse : 0;
}

float grid_code(const struct tensor_grid *grid, struct grid_scale s, float inverse, float x)
{
    float q = nearest((x - s.m) * inverse);
    q = q < grid->low ? grid->low : q;
    return q > grid->high ? grid->high : q;
}

/* sum weight (x - rounded x)^2 */
static float rounding_error(const struct tensor_grid *grid, struct grid_scale s, const float *x,
                            const float *weight)
{
    float inverse = grid_inverse(s.d);
    float sum = 0;
    for (int i = 0; i < grid->group; i++) {
        float e = x[i] - (grid_code(grid, s, inverse, x[i]) * s.d + s.m);
        sum += weight[i] * e * e;
    }
    return sum;
}

/* The scale under which [min, max], narrowed by `shrink`, is the grid's range. */
static struct grid_scale fit_range(const struct tensor_grid *grid, float min, float max,
                                   float shrink)
{
    struct grid_scale s = {0};
    if (grid->has_min) {
        s.d = shrink * (max - min) / (float)(grid->high - grid->low);
        s.d = grid->scale_high ? s.d : as_half(s.d);
        s.m = (min + max) / 2 - s.d * (float)(grid->high + grid->low) / 2;
        s.m = grid->scale_high ? s.m : as_half(s.m);
    } else {
        float extreme = -min > max ? min : max;
        /* the longer side of the grid for the larger magnitude; either sign of d serves */
        s.d = shrink * extreme / (float)grid->low;
        s.d = grid->scale_high ? s.d : as_half(s.d);
    }
    return s;
}

/* The best scale; of a type whose scales are integers the one that it is to come near to. */
static struct grid_scale fit_freely(const struct tensor_grid *grid, const float *x,
                                    const float *weight)
{
    float min = x[0];
    float max = x[0];
    for (int i = 1; i < grid->group; i++) {
        min = fminf(min, x[i]);
        max = fmaxf(max, x[i]);
    }
    if (grid->scale_high)
        min = fminf(min, 0); /* a minimum is subtracted, never added */
    struct grid_scale best = fit_range(grid, min, max, 1);
    float least = rounding_error(grid, best, x, weight);
    for (int k = 1; k < N_SHRINKS; k++) {
        struct grid_scale s = fit_range(grid, min, max, 1 - SHRINK_STEP * (float)k);
        float error = rounding_error(grid, s, x, weight);
        if (error < least) {
            least = error;
            best = s;
        }
    }
    return best;
}

void grid_begin_block(enum tensor_type type, const float *x, const float *weight,
                      struct tensor_block *ret_block)
{
    const struct tensor_grid *grid = tensor_type_grid(type);
    size_t n_groups = tensor_block_elements(type) / grid->group;
    float extreme = 0;
    float deepest = 0;
    ret_block->d = ret_block->m = 0;
    for (size_t g = 0; grid->scale_high && g < n_groups; g++) {
        struct grid_scale s = fit_freely(grid, x + g * grid->group, weight + g * grid->group);
        extreme = fabsf(s.d) > fabsf(extreme) ? s.d : extreme;
        deepest = fminf(deepest, s.m);
    }
    if (!grid->scale_high)
        return;
    /* signed scales reach further on their negative side */
    ret_block->d = as_half(extreme / (float)(grid->scale_low ? grid->scale_low : grid->scale_high));
    ret_block->m = as_half(-deepest / (float)grid->scale_high);
}

static int clamp(float x, int low, int high)
{
    int i = (int)nearest(x);
    i = i < low ? low : i;
    return i > high ? high : i;
}

/* The integers around the free scale that lose least. */
static struct grid_scale fit_integers(const struct tensor_grid *grid, size_t g, const float *x,
                                      const float *weight, struct tensor_block *b)
{
    struct grid_scale free = fit_freely(grid, x, weight);
    float scale = free.d * grid_inverse(b->d);
    float min = -free.m * grid_inverse(b->m);
    struct grid_scale best = {0};
    float least = INFINITY;
    for (int i = -1; i <= 1; i++)
        for (int j = -1; j <= (grid->has_min ? 1 : -1); j++) {
            int d = clamp(scale + (float)i, grid->scale_low, grid->scale_high);
            int m = grid->has_min ? clamp(min + (float)j, 0, grid->scale_high) : 0;
            struct grid_scale s = {b->d * (float)d, -(b->m * (float)m)};
            float error = rounding_error(grid, s, x, weight);
            if (error < least) {
                least = error;
                best = s;
                b->scale[g] = (int8_t)d;
                b->min[g] = (uint8_t)m;
            }
        }
    return best;
}

struct grid_scale grid_fit_group(enum tensor_type type, size_t g, const float *x,
                                 const float *weight, struct tensor_block *block)
{
    const struct tensor_grid *grid = tensor_type_grid(type);
    if (grid->scale_high)
        return fit_integers(grid, g, x, weight, block);
    struct grid_scale s = fit_freely(grid, x, weight);
    block->d = s.d;
    block->m = s.m;
    return s;
}
