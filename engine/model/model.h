/* A model ready to compute: weights packed for the kernels, norms and biases in float, RoPE tables.
 * Immutable after model_open, shared by all threads. The mapped file stays open; embedding rows
 * come from the packed head where the two are one tensor and packing keeps it exactly, else from a
 * copy of the file's.
 *
 * Row order of the packed products (each a multiple of KERNEL_TILE rows, zero rows fill up):
 *
 * - qkv: per head, head_pad rows each: q heads, then k heads, then v heads; within a head RoPE's
 *   pairs are always (i, i + rope_dim/2), whatever the file's order
 * - o: hidden rows; its input is per head head_dim columns
 * - gate_up: alternately 16 gate rows and 16 up rows
 * - down: hidden rows
 * - head: vocabulary rows */
#ifndef OVERFILL_ENGINE_MODEL_MODEL_H
#define OVERFILL_ENGINE_MODEL_MODEL_H

#include "engine/base/error.h"
#include "engine/kernels/kernels.h"
#include "engine/model/mapped_file.h"
#include "engine/model/model_file.h"

enum matrix_type {
    MATRIX_F32, /* [n_rows][n_in] float */
    /* the layouts of kernels.h: */
    MATRIX_Q8,
    MATRIX_Q4,
    MATRIX_Q4_MIN,
};

struct matrix {
    enum matrix_type type;
    uint32_t n_rows; /* a multiple of KERNEL_TILE */
    uint32_t n_in;
    uint32_t n_blocks; /* ceil(n_in / KERNEL_BLOCK) */
    size_t tile_bytes; /* of KERNEL_TILE rows */
    uint8_t *data;     /* 64-byte aligned; in the model's weight arena */
};

static inline enum kernel_layout matrix_layout(const struct matrix *matrix) /* none of MATRIX_F32 */
{
    return (enum kernel_layout)(matrix->type - MATRIX_Q8 + KERNEL_Q8);
}

/* Memory of all matrices in a few large blocks, so that the kernel can give huge pages: most
 * matrices of a small model are smaller than one. Freed as a whole. With `given`, it hands out that
 * memory instead, `size` bytes of weights that are packed already, in the order of packing: those
 * of a mapped file (packed_cache.h). */
struct weight_arena {
    struct mapped_file map;
    const uint8_t *given;
    uint8_t **blocks; /* [n_blocks] */
    size_t n_blocks;
    size_t used, size; /* of the last block, or of what is given */
};

struct layer {
    float *attn_norm; /* [hidden] */
    float *mlp_norm;  /* [hidden] */
    float *q_norm;    /* [head_dim] or NULL, in the packed order */
    float *k_norm;    /* [head_dim] or NULL */
    float *qkv_bias;  /* [qkv.n_rows] or NULL */
    struct matrix qkv, o, gate_up, down;
};

/* How the matrices are kept. */
enum model_weights {
    MODEL_WEIGHTS_AUTO, /* Q4_0 as Q4, Q4_1 and Q4_K as Q4_MIN, everything else as Q8 */
    MODEL_WEIGHTS_Q8,
    MODEL_WEIGHTS_F32,
};

struct model {
    struct model_file *file; /* owned */
    struct model_params params;
    enum model_weights weights;
    bool quantized;    /* the products take quantised activations (weights is not F32) */
    bool coarse;       /* of 8 bits (kernels.h) */
    uint32_t head_pad; /* head_dim rounded up to KERNEL_TILE */
    struct weight_arena arena;
    struct layer *layers;
    float *output_norm;
    struct matrix head;
    const struct tensor *embedding; /* NULL: its rows are those of the head */
    struct tensor cached_embedding; /* what that points to when the rows lie in a packed cache */
    uint32_t n_positions;           /* rows of the RoPE tables */
    float *rope_cos;                /* [n_positions][rope_dim / 2] */
    float *rope_sin;
    size_t packed_bytes; /* all matrices: what a pass with logits reads */
    size_t held_bytes;   /* matrices and embedding, each once: what the weights take of memory */
    uint64_t file_hash;  /* model_file_hash */
};

size_t matrix_bytes(const struct matrix *matrix);

typedef void model_progress_fn(void *user, double share);

struct model_open_options {
    enum model_weights weights;
    bool coarse;
    uint32_t n_positions; /* the longest context in tokens */
    /* Folder where packed weights are kept and found again, or NULL. What is wrong with it is a
     * line in the log; the weights are then packed as without it. */
    const char *packed_cache;
    model_progress_fn *progress; /* may be NULL */
    void *progress_user;
};

/* Takes the file over, also on failure. */
int model_open(struct model_file *file, const struct model_open_options *options,
               struct model **ret_model, struct error *err);
void model_close(struct model *model); /* NULL is fine */

/* A model without a file whose layers come one at a time, for work that goes layer by layer
 * (engine/prune): RoPE tables of n_positions, no matrices, no embedding. */
int model_open_empty(const struct model_params *params, enum model_weights weights,
                     uint32_t n_positions, struct model **ret_model, struct error *err);
/* A layer's tensors under their GGUF names; NULL: not there. */
struct layer_tensors {
    const struct tensor *attn_norm, *mlp_norm, *q_norm, *k_norm;
    const struct tensor *q, *k, *v, *q_bias, *k_bias, *v_bias;
    const struct tensor *o, *gate, *up, *down;
};
void layer_tensors_find(const struct model_file *file, uint32_t layer,
                        struct layer_tensors *ret_tensors);
/* Packs what is there of q, k, v (together), o, gate and up (together), down, norms and biases.
 * Norms come first and once: without one, its weights are 1. */
int model_pack_layer(struct model *model, uint32_t layer, const struct layer_tensors *tensors,
                     struct error *err);
/* The pages of the layer's matrices may leave memory: a file's tensors, packed or done with. */
void model_forget_layer(const struct layer_tensors *tensors);
/* Frees everything that was packed so far. */
void model_drop_layers(struct model *model);

/* Row `token` of the embedding in float to out[hidden]. token < vocab_size. */
void model_embed(const struct model *model, int32_t token, float *out);

#endif
