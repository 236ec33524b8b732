/* State of a pass, shared by forward.c (the story), linear.c (products) and attention.c. */
#ifndef OVERFILL_ENGINE_FORWARD_FORWARD_INTERNAL_H
#define OVERFILL_ENGINE_FORWARD_FORWARD_INTERNAL_H

#include "engine/forward/forward.h"

/* Rows of one unit of work, at least, if there are as many. A multiple of KERNEL_F32_ROWS. */
#define ROW_UNIT 64
/* Activations of a unit stay in the L2 cache. */
#define UNIT_BYTES (1u << 20)
/* Query rows of one attention unit: enough to reuse a converted page, few enough to share out. */
#define ATTEND_ROWS 16
/* Output tiles of a unit of o and down: 32 outputs. gate_up: 4 tiles, 32 MLP channels. */
#define TILES_PLAIN 2
#define TILES_GATE_UP 4
#define TILES_HEAD 16

/* One row of the batch. */
struct row {
    uint32_t slice;
    uint32_t position;
    int32_t token;
};

/* Query rows [row, row + n_rows) of one slice. */
struct attend_unit {
    uint32_t slice;
    uint32_t row;
    uint32_t n_rows;
};

/* Buffers of one member, so that no phase allocates. */
struct member_scratch {
    float *tile;   /* [KERNEL_MOST_UNIT_ROWS][max(head_pad, 64)] outputs of one unit */
    float *keys;   /* [head_dim][32] */
    float *values; /* [32][head_dim] */
    float *state;  /* [ATTEND_ROWS * group][ATTEND_STATE(head_dim)] */
    uint8_t *n_keys;
};

/* Part of a product: rows of the batch, tiles of the weights. */
struct unit_range {
    size_t row_begin, row_end;
    size_t tile_begin, tile_end;
};

/* A part of a product, from float or quantised activations as the model has it. */
struct linear {
    const struct matrix *w;
    const float *x; /* float activations, row 0 */
    size_t x_stride;
    const struct quantized_rows *quantized;
    struct unit_range range;
    float *out; /* of range.row_begin and the first output of range.tile_begin */
    size_t out_stride;
    bool accumulate;
};

struct forward {
    const struct kernels *kernels;
    struct team *team;
    uint32_t max_rows; /* a multiple of KERNEL_F32_ROWS, like every row count below */
    uint32_t max_logit_rows;

    /* the pass at hand; written by forward_run before the team starts */
    const struct model *model;
    const struct products *products;
    void (*attend)(const struct attend_page *a);
    const struct kv_pool *pool;
    const struct forward_slice *slices;
    bool keeps_hidden; /* mlp in float: what multiplies it is float, or somebody will look at it */
    uint32_t n_rows;
    uint32_t n_logit_rows;
    uint32_t n_attend_units;
    /* the phase at hand; written by the leader before its units are given out */
    uint32_t layer;
    uint32_t kv_layer; /* where its K and V are in the pool */
    const float *norm_weight;
    struct linear residual; /* add_product's, all but range and out */

    struct row *rows;                 /* [max_rows] */
    struct attend_unit *attend_units; /* [max_rows] at most */
    uint32_t *logit_rows;             /* [max_logit_rows] row numbers */

    size_t hidden_stride, heads_stride, mlp_stride, vocab_stride;
    float *x;      /* [max_rows][hidden_stride] residual stream */
    float *normed; /* [max_rows][hidden_stride] */
    float *q;      /* [n_kv_heads][max_rows][group][head_dim], already times 1/sqrt(head_dim) */
    float *attn;   /* [max_rows][heads_stride] */
    float *mlp;    /* [max_rows][mlp_stride] */
    float *logits; /* [max_logit_rows][vocab_stride] */
    struct quantized_rows quantized_normed, quantized_attn, quantized_mlp;
    struct member_scratch *scratch; /* [team size] */
};

/* linear.c */
void linear_run(const struct forward *f, const struct linear *linear);
/* Quantises x[n], which is row `row` from block `block` on, if the model wants that. */
void linear_prepare(const struct forward *f, const float *x, size_t n, size_t row, size_t block,
                    const struct quantized_rows *quantized);
/* Cuts the product of n_rows and w into units of some rows and `tiles` tiles. Neighbours, which one
 * member is likely to get, are a share of the rows with all the weights; in it rows are fastest, so
 * that weights stay in cache from unit to unit. */
size_t unit_count(const struct forward *f, const struct matrix *w, size_t n_rows, size_t tiles);
struct unit_range unit_at(const struct forward *f, const struct matrix *w, size_t unit,
                          size_t n_rows, size_t tiles);

/* attention.c */
void attention_store_head(struct forward *f, uint32_t head, size_t row_begin, size_t row_end,
                          float *tile);
team_unit_fn attention_unit; /* unit: attend unit x KV head */

#endif
