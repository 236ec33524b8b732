/* The sizes of packed matrices, added up. See cost.h. */
#include "engine/model/cost.h"

#include "engine/model/pack.h"

static size_t packed_rows(size_t n)
{
    return (n + KERNEL_TILE - 1) / KERNEL_TILE * KERNEL_TILE;
}

/* n_rows are those of a packed matrix. */
static size_t packed_bytes(size_t n_rows, uint32_t n_in, enum tensor_type type)
{
    struct matrix m = {.type = matrix_type_for(tensor_type_for_rows(type, n_in), n_in)};
    size_t n_blocks = (n_in + KERNEL_BLOCK - 1) / KERNEL_BLOCK;
    return n_rows / KERNEL_TILE * kernel_tile_bytes(matrix_layout(&m), n_blocks);
}

struct model_cost model_cost(const struct model_params *p, enum tensor_type layers,
                             enum tensor_type head)
{
    size_t n_heads = (size_t)p->n_heads + 2 * (size_t)p->n_kv_heads;
    uint32_t inner = p->n_heads * p->head_dim;
    size_t hidden_rows = packed_rows(p->hidden);
    size_t layer = packed_bytes(n_heads * packed_rows(p->head_dim), p->hidden, layers) +
                   packed_bytes(hidden_rows, inner, layers) +
                   packed_bytes(2 * packed_rows(p->mlp), p->hidden, layers) +
                   packed_bytes(hidden_rows, p->mlp, layers);
    double matrices =
        (double)p->hidden * ((double)n_heads * p->head_dim + (double)inner + 3 * (double)p->mlp);
    return (struct model_cost){
        .bytes = p->n_layers * layer + packed_bytes(packed_rows(p->vocab_size), p->hidden, head),
        .multiply_adds = p->n_layers * matrices + (double)p->vocab_size * p->hidden,
    };
}
