/* Method reconstruct: a narrower twin whose matrices are solved for, not cut out.
 *
 * The twin's residual stream is the full model's in a basis Q [full hidden][hidden] of principal
 * components. Layer by layer both models read the calibration side by side, the twin on its own
 * inputs and on the full model's KV for the prompt, as in serving. What a matrix reads is replaced
 * by the linear map M that best predicts the full model's normed input n from the twin's, x:
 *     q, k, v = W M,  M = argmin E |n - M x|^2        (gate, up, head alike)
 * and what a matrix writes is solved for in two parts, from its inputs a: the full model's own
 * step, and the drift of the twin's residual stream r from the full model's R until then, o =
 * argmin E |Q^T (R_after - R_before) - o' a|^2 + argmin E |(Q^T R_before - r) - o'' a|^2 (down
 * alike), each row divided by the norm that will divide it next. MLP channels stay by
 * choose_inputs. RMSNorm's weights go into M; the twin's are 1. Each matrix is quantised before the
 * next is solved, so that later ones mend that error too. One sample in HOLD_EVERY is held back to
 * choose ridges and the head's temperature by.
 *
 * A twin of the full width is not turned: Q is the identity, norms keep their weights, M is fitted
 * as its distance from the identity and each written matrix as its distance from the full model's
 * own. A tied head stays tied: the full model's embedding, whose temperature the last norm takes.
 * Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_RECONSTRUCT_H
#define OVERFILL_ENGINE_PRUNE_RECONSTRUCT_H

#include "engine/prune/least_squares.h"
#include "engine/prune/prune_internal.h"
#include "engine/prune/reader.h"
#include "engine/prune/twin_store.h"

struct reconstruct {
    const struct prune_options *options;
    const struct model_file *file;
    const struct model_params *full_params;
    uint32_t hidden, mlp; /* the twin's */
    bool is_tied;         /* the twin's head is its embedding */
    const struct sample_set *samples;
    struct reader reader;
    struct full_model full;
    struct model *twin; /* the layer at hand */
    struct twin_store *store;

    float *basis;  /* [full hidden][hidden]; NULL: the identity, the twin has the full width */
    float *middle; /* [n_answer][full hidden] the full model's residual stream between the halves */
    float *x;      /* [n_answer][hidden] the twin's residual stream */
    float *inner;  /* [n_answer][inner_width]: the twin's attention, then its MLP's hidden */
    size_t inner_width;
    float *drift;  /* [n_answer][hidden] Q^T R - x, before what is about to be written */
    float *target; /* [READER_ROWS][max of full hidden and 2 * hidden] */
    float *scaled; /* [READER_ROWS][max of heads and the full MLP] rows times `scale` */
    float *scale;  /* [READER_ROWS] */
    struct least_squares channels; /* the full model's MLP hidden, for choose_inputs */

    struct layer_report *layers; /* [n_layers] */
    double basis_share;          /* of the residual stream's energy */
    double head_residual;
    double temperature; /* what the head's map was scaled by before its other steps */
    struct held_report held;
};

/* The first tokens of the calibration, which the basis is found on: a covariance of hidden
 * channels, summed over layers, needs no more. */
#define BASIS_TOKENS 4096
#define LOGIT_ROWS 256 /* tokens whose logits are held at once, in three kinds */
/* Tokens that the head is fitted to, at most. */
#define HEAD_TOKENS 32768
/* To the caller's progress. work_done: in tokens that find_basis reads through a layer. */
void show_work(const struct reconstruct *r, double work_done);
/* basis.c: finds the basis and puts it, and the embedding in it, into the store. */
int find_basis(struct reconstruct *r, struct error *err);
/* The type of the twin's embedding and head. */
enum tensor_type head_type(const struct reconstruct *r);
/* rebuild.c: solves the layer's matrices; both residual streams move on by the layer. */
int rebuild_layer(struct reconstruct *r, uint32_t layer, struct error *err);
/* head.c: solves the head and measures the twin on the held samples. */
int rebuild_head(struct reconstruct *r, struct error *err);

const struct tensor *full_head(const struct reconstruct *r);
/* fit_head.c: sets the temperature, and moves the map of the twin's last states to the full model's
 * towards the least KL. ls, ridge: of the fit that the map comes of. map NULL: the head is tied,
 * and there is only a temperature. */
int fit_head(struct reconstruct *r, const struct least_squares *ls, double ridge, float *map,
             struct error *err);

/* What they share, in rows.c. Adds rows x of the batch's answers to ls with y beside them. */
void add_rows(const struct reconstruct *r, struct batch batch, struct least_squares *ls,
              const float *x, size_t x_stride, const float *y, size_t y_stride);
/* Dequantised rows of a tensor. */
float *load_matrix(const struct tensor *t, struct error *err);
/* out [n][n_out] (+)= x [n][n_in] w [n_out][n_in]^T */
void multiply(const struct reconstruct *r, const float *x, size_t n, size_t n_in, const float *w,
              size_t n_out, float add, float *out);
/* out [n][n_out] = rows [n][n_in] map [n_in][n_out] */
void turn(const struct reconstruct *r, const float *rows, size_t n, size_t n_in, const float *map,
          size_t n_out, float *out);
/* map = the linear map of [hidden] inputs to the full model's [full hidden] that ls tells; start: a
 * ridge to look around. */
int solve_input_map(const struct reconstruct *r, const struct least_squares *ls, double start,
                    float *map, struct least_squares_result *ret_result, struct error *err);
/* The rows of t, as wide as the full model, times map [full hidden][hidden] (NULL: as they are), to
 * the store, as the head's type. gram: of the result's inputs, for round_matrix. */
int put_turned(struct reconstruct *r, const char *name, const struct tensor *t, const float *map,
               const double *gram, struct error *err);
/* The full model's rows behind the prompts among all rows [..][width] of the batch, together. */
void gather_answers(const struct sample_set *samples, struct batch batch, const float *rows,
                    size_t stride, size_t width, float *out);
size_t answer_rows(const struct sample_set *samples, struct batch batch);

#endif
