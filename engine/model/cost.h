/* What a step of decode reads and computes, from sizes and types alone, before there is a model of
 * them. Pure functions, thread-safe. */
#ifndef OVERFILL_ENGINE_MODEL_COST_H
#define OVERFILL_ENGINE_MODEL_COST_H

#include "engine/model/model_file.h"

struct model_cost {
    /* Weights that a step reads, as they are packed (MODEL_WEIGHTS_AUTO): model.h's packed_bytes.
     */
    size_t bytes;
    /* A token's multiply-adds in all matrices:
     *   n_layers * hidden * (2 n_heads head_dim + 2 n_kv_heads head_dim + 3 mlp) + vocab * hidden
     * Attention's own, 2 n_layers n_heads head_dim for each token attended to, is the same for all
     * twins and in neither figure. */
    double multiply_adds;
};

/* layers, head: what the matrices of the layers, and the head, are stored as, where their rows fill
 * the blocks of that type (tensor_type_for_rows). */
struct model_cost model_cost(const struct model_params *params, enum tensor_type layers,
                             enum tensor_type head);

#endif
