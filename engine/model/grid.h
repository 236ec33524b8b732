/* Which scales a block of given values takes: those under which the points of its type's grid lie
 * best. Pure functions, thread-safe. */
#ifndef OVERFILL_ENGINE_MODEL_GRID_H
#define OVERFILL_ENGINE_MODEL_GRID_H

#include "engine/model/tensor.h"

/* value = d * q + m */
struct grid_scale {
    float d, m;
};

/* What all groups of the block share, from its values x [block elements]; weight: what a squared
 * error of each costs. Types whose blocks are one group have nothing to share. */
void grid_begin_block(enum tensor_type type, const float *x, const float *weight,
                      struct tensor_block *ret_block);
/* The scale of group g, whose values are x [group elements], into the block. */
struct grid_scale grid_fit_group(enum tensor_type type, size_t g, const float *x,
                                 const float *weight, struct tensor_block *block);
/* 1/d; 0 where that is no number: nothing but q = 0 is meant then. */
float grid_inverse(float d);
/* The code nearest to x; inverse: of s's d. */
float grid_code(const struct tensor_grid *grid, struct grid_scale s, float inverse, float x);

#endif
