/* One layer of the twin: four fits. See reconstruct.h. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"

#include <cblas.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

/* Samples whose MLP is looked at to choose channels: one of so many. */
#define CHANNELS_EVERY 4

static size_t first_answer(const struct reconstruct *r, struct batch batch)
{
    return r->samples->samples[batch.first].answer;
}

static void name_of(uint32_t layer, const char *what, char name[64])
{
    snprintf(name, 64, "blk.%u.%s", layer, what);
}

/* A vector in the store: which of the full model's MLP channels the layer has. */
static void name_of_kept(uint32_t layer, char name[64])
{
    snprintf(name, 64, ".kept.%u", layer);
}

static bool is_solved(const struct reconstruct *r, uint32_t layer, const char *what)
{
    char name[64];
    name_of(layer, what, name);
    return twin_store_has(r->store, name);
}

/* ls: the fit that w comes of, for its inputs. */
static int put(struct reconstruct *r, uint32_t layer, const char *what, const float *w, size_t rows,
               const struct least_squares *ls, struct error *err)
{
    char name[64];
    name_of(layer, what, name);
    return twin_store_put(r->store, name, (enum tensor_type)r->options->type, w, rows, ls->n_in,
                          ls->fitted.xx, err);
}

static int get(const struct reconstruct *r, uint32_t layer, const char *what,
               struct tensor *ret_tensor, struct error *err)
{
    char name[64];
    name_of(layer, what, name);
    return twin_store_get(r->store, name, ret_tensor, err);
}

/* W M for the rows of W that index names (NULL: all), to the store. */
static int put_mapped(struct reconstruct *r, uint32_t layer, const char *what,
                      const struct tensor *t, const unsigned *index, size_t n_rows,
                      const float *map, const struct least_squares *ls, struct error *err)
{
    size_t full = r->full_params->hidden;
    _cleanup_mem_ float *w = load_matrix(t, err);
    _cleanup_mem_ float *mapped = mem_array(n_rows, r->hidden * sizeof(float));
    if (!w)
        return -(int)err->code;
    if (!mapped)
        return error_memory(err, what, n_rows * r->hidden * sizeof(float));
    for (size_t i = 0; index && i < n_rows; i++) /* ascending: never over a row yet to be read */
        memmove(w + i * full, w + index[i] * full, full * sizeof(float));
    turn(r, w, n_rows, full, map, r->hidden, mapped);
    return put(r, layer, what, mapped, n_rows, ls, err);
}

/* scaled = rows [n][width], each times scale[row]. */
static void scale_rows(const float *rows, size_t stride, size_t n, size_t width, const float *scale,
                       float *scaled)
{
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < width; c++)
            scaled[i * width + c] = rows[i * stride + c] * scale[i];
}

/* What the next norm divides each row by, inverted: an error counts as much as it will be seen. The
 * larger of the two models' norms, so that a row in which the twin has gone astray does not
 * outweigh all others. x NULL: the full model's alone. */
static void find_scales(struct reconstruct *r, const float *full_rows, const float *x, size_t n)
{
    size_t full = r->full_params->hidden;
    for (size_t i = 0; i < n; i++) {
        const float *row = full_rows + i * full;
        float sum = cblas_sdot((blasint)full, row, 1, row, 1);
        if (x) {
            const float *twin = x + i * r->hidden;
            sum = fmaxf(sum, cblas_sdot((blasint)r->hidden, twin, 1, twin, 1));
        }
        r->scale[i] = 1.0f / sqrtf(sum / (float)full + r->full_params->rms_eps);
    }
}

/* The full model's MLP hidden of the batch's answers, as its channels are chosen by. */
static void add_channels(struct reconstruct *r, struct batch batch)
{
    struct forward_rows rows = forward_rows(r->reader.forward, FORWARD_HIDDEN);
    size_t full = r->full_params->hidden;
    size_t n = answer_rows(r->samples, batch);
    find_scales(r, r->middle + first_answer(r, batch) * full, NULL, n);
    gather_answers(r->samples, batch, rows.data, rows.stride, rows.width, r->scaled);
    scale_rows(r->scaled, rows.width, n, rows.width, r->scale, r->scaled);
    least_squares_add(&r->channels, false, r->scaled, rows.width, NULL, 0, n);
}

/* How far the twin is from the full model, Q^T R - r, for the batch's answers. */
static void find_drift(const struct reconstruct *r, struct batch batch, const float *full_rows,
                       float *drift)
{
    size_t full = r->full_params->hidden;
    size_t n = answer_rows(r->samples, batch);
    if (r->basis)
        turn(r, full_rows, n, full, r->basis, r->hidden, drift);
    else
        memcpy(drift, full_rows, n * full * sizeof(float));
    cblas_saxpy((blasint)(n * r->hidden), -1.0f, r->x + first_answer(r, batch) * r->hidden, 1,
                drift, 1);
}

/* The full model reads the layer: KV of its prompts, middle, and x. Beside it the twin's input of
 * q, k, v against the full model's. */
static void read_full_batch(struct reconstruct *r, uint32_t l, struct batch batch,
                            struct least_squares *qkv)
{
    struct forward *f = r->reader.forward;
    const struct sample_set *samples = r->samples;
    size_t full = r->full_params->hidden;
    struct forward_rows rows;

    rows = reader_begin(&r->reader, r->full.model, batch, READ_ALL, r->full.x);
    gather_answers(samples, batch, rows.data, rows.stride, full, r->target);
    find_drift(r, batch, r->target, r->drift + first_answer(r, batch) * r->hidden);
    forward_part(f, l, FORWARD_ATTN_NORM);
    rows = forward_rows(f, FORWARD_NORMED);
    gather_answers(samples, batch, rows.data, rows.stride, full, r->target);
    forward_part(f, l, FORWARD_ATTN);
    forward_part(f, l, FORWARD_ATTN_OUT);
    rows = forward_rows(f, FORWARD_X);
    gather_answers(samples, batch, rows.data, rows.stride, full,
                   r->middle + first_answer(r, batch) * full);
    forward_part(f, l, FORWARD_MLP_NORM);
    forward_part(f, l, FORWARD_MLP);
    if (r->channels.n_in && batch.first / batch.n % CHANNELS_EVERY == 0)
        add_channels(r, batch);
    forward_part(f, l, FORWARD_MLP_OUT);
    reader_store(&r->reader, batch, READ_ALL, r->full.x);
    if (!qkv)
        return;
    reader_begin(&r->reader, r->twin, batch, READ_ANSWER, r->x);
    forward_part(f, l, FORWARD_ATTN_NORM);
    rows = forward_rows(f, FORWARD_NORMED);
    add_rows(r, batch, qkv, rows.data, rows.stride, r->target, full);
}

static int read_full(struct reconstruct *r, uint32_t l, struct least_squares *qkv,
                     struct error *err)
{
    struct batch batch = reader_batch(r->samples, 0);
    int rc = full_model_load(&r->full, l, err);
    for (; rc == 0 && batch.n; batch = reader_batch(r->samples, batch.first + batch.n))
        read_full_batch(r, l, batch, qkv);
    return rc;
}

/* Whose ridges this layer's are near. One that was not solved in this run, or is not there, has
 * none (0 or NAN). */
static const struct layer_report *layer_before(const struct reconstruct *r, uint32_t l)
{
    static const struct layer_report none;
    return l ? &r->layers[l - 1] : &none;
}

static int solve_qkv(struct reconstruct *r, uint32_t l, struct least_squares *ls,
                     const struct layer_tensors *t, struct error *err)
{
    size_t n = (size_t)r->full_params->hidden * r->hidden;
    _cleanup_mem_ float *map = mem_array(n, sizeof(float));
    if (!map)
        return error_memory(err, "input map", n * sizeof(float));
    struct least_squares_result result;
    int rc = solve_input_map(r, ls, layer_before(r, l)->qkv_ridge, map, &result, err);
    r->layers[l].qkv = result.residual;
    r->layers[l].qkv_ridge = result.ridge;
    if (rc == 0)
        rc = put_mapped(r, l, "attn_q.weight", t->q, NULL, t->q->dims[1], map, ls, err);
    if (rc == 0)
        rc = put_mapped(r, l, "attn_k.weight", t->k, NULL, t->k->dims[1], map, ls, err);
    if (rc == 0)
        rc = put_mapped(r, l, "attn_v.weight", t->v, NULL, t->v->dims[1], map, ls, err);
    return rc;
}

/* q, k, v of the twin, in its packed layer. v is the last to arrive in the store. */
static int rebuild_qkv(struct reconstruct *r, uint32_t l, const struct layer_tensors *t,
                       struct error *err)
{
    struct least_squares ls = {0};
    struct tensor q = {0};
    struct tensor k = {0};
    struct tensor v = {0};
    bool solved = is_solved(r, l, "attn_v.weight");
    int rc = solved
                 ? 0
                 : least_squares_open(r->reader.team, r->hidden, r->full_params->hidden, &ls, err);
    if (rc == 0)
        rc = read_full(r, l, solved ? NULL : &ls, err);
    if (rc == 0 && !solved)
        rc = solve_qkv(r, l, &ls, t, err);
    least_squares_close(&ls);
    if (rc == 0)
        rc = get(r, l, "attn_q.weight", &q, err);
    if (rc == 0)
        rc = get(r, l, "attn_k.weight", &k, err);
    if (rc == 0)
        rc = get(r, l, "attn_v.weight", &v, err);
    if (rc == 0)
        rc = model_pack_layer(r->twin, l, &(struct layer_tensors){.q = &q, .k = &k, .v = &v}, err);
    tensor_release(&q);
    tensor_release(&k);
    tensor_release(&v);
    return rc;
}

/* Adds inner against what the twin is to write, in two parts side by side: the full model's own
 * step, Q^T (R_after - R_before), and the drift from before. The first can be known from inner, the
 * second hardly: they take ridges of their own. */
static void add_write(struct reconstruct *r, struct batch batch, const float *full_rows,
                      struct least_squares *ls)
{
    size_t h = r->hidden;
    size_t n = answer_rows(r->samples, batch);
    size_t first = first_answer(r, batch);
    const float *inner = r->inner + first * r->inner_width;
    float *drift = r->drift + first * h;
    find_scales(r, full_rows, r->x + first * h, n);
    scale_rows(drift, h, n, h, r->scale, drift);
    find_drift(r, batch, full_rows, r->scaled);
    for (size_t i = 0; i < n; i++)
        for (size_t c = 0; c < h; c++) {
            float old = drift[i * h + c];
            r->target[i * 2 * h + c] = r->scaled[i * h + c] * r->scale[i] - old;
            r->target[i * 2 * h + h + c] = old;
        }
    scale_rows(inner, r->inner_width, n, r->inner_width, r->scale, r->scaled);
    add_rows(r, batch, ls, r->scaled, r->inner_width, r->target, 2 * h);
}

/* The twin's rows of `buffer` to inner, for the batch. */
static void keep_inner(struct reconstruct *r, struct batch batch, enum forward_buffer buffer)
{
    struct forward_rows rows = forward_rows(r->reader.forward, buffer);
    r->inner_width = rows.width;
    float *inner = r->inner + first_answer(r, batch) * rows.width;
    for (uint32_t i = 0; i < rows.n_rows; i++)
        memcpy(inner + (size_t)i * rows.width, rows.data + i * rows.stride,
               rows.width * sizeof(float));
}

/* What the full model writes with, of the inputs that the twin kept: what a twin of the full width
 * starts from. NULL: of another width, or no memory. */
static float *load_write(const struct reconstruct *r, uint32_t l, const char *what, size_t n_in,
                         struct error *err)
{
    char name[64];
    struct tensor kept;
    name_of(l, what, name);
    const struct tensor *t = model_file_tensor(r->file, name);
    float *w = load_matrix(t, err);
    if (!w || t->dims[0] == n_in)
        return w;
    name_of_kept(l, name);
    if (twin_store_get(r->store, name, &kept, err)) {
        mem_free(w);
        return NULL;
    }
    const float *index = kept.data;
    for (size_t o = 0; o < r->hidden; o++) /* ascending: never over an element yet to be read */
        for (size_t i = 0; i < n_in; i++)
            w[o * n_in + i] = w[o * t->dims[0] + (size_t)index[i]];
    tensor_release(&kept);
    return w;
}

/* W = argmin |step - W' inner| + argmin |drift - W'' inner|, to the store. */
static int solve_write(struct reconstruct *r, uint32_t l, const char *what,
                       const struct least_squares *ls, const struct write_report *before,
                       struct write_report *report, struct error *err)
{
    size_t h = r->hidden;
    _cleanup_mem_ float *w = mem_calloc(h * ls->n_in, sizeof(float));
    struct least_squares_result step;
    struct least_squares_result drift;
    if (!w)
        return error_memory(err, what, h * ls->n_in * sizeof(float));
    _cleanup_mem_ float *own = r->basis ? NULL : load_write(r, l, what, ls->n_in, err);
    if (!r->basis && !own)
        return -(int)err->code;
    int rc = least_squares_solve(ls, 0, h, own, before->step_ridge, w, &step, err);
    if (rc == 0)
        rc = least_squares_solve(ls, h, 2 * h, NULL, before->drift_ridge, w, &drift, err);
    if (rc)
        return rc;
    *report = (struct write_report){step.residual, drift.residual, step.ridge, drift.ridge};
    return put(r, l, what, w, h, ls, err);
}

/* The twin writes: x += W inner. */
static int finish_write(struct reconstruct *r, uint32_t l, const char *what,
                        const struct least_squares *ls, const struct write_report *before,
                        struct write_report *report, struct error *err)
{
    struct tensor t;
    int rc = ls ? solve_write(r, l, what, ls, before, report, err) : 0;
    if (rc == 0)
        rc = get(r, l, what, &t, err);
    if (rc)
        return rc;
    _cleanup_mem_ float *w = load_matrix(&t, err);
    tensor_release(&t);
    if (!w)
        return -(int)err->code;
    multiply(r, r->inner, r->samples->n_answer, r->inner_width, w, r->hidden, 1.0f, r->x);
    return 0;
}

static int rebuild_o(struct reconstruct *r, uint32_t l, struct error *err)
{
    struct forward *f = r->reader.forward;
    struct least_squares ls = {0};
    bool solved = is_solved(r, l, "attn_output.weight");
    size_t width = (size_t)r->full_params->n_heads * r->full_params->head_dim;
    int rc =
        solved ? 0 : least_squares_open(r->reader.team, width, 2 * (size_t)r->hidden, &ls, err);
    struct batch batch = reader_batch(r->samples, 0);
    for (; rc == 0 && batch.n; batch = reader_batch(r->samples, batch.first + batch.n)) {
        reader_begin(&r->reader, r->twin, batch, READ_ANSWER, r->x);
        forward_part(f, l, FORWARD_ATTN_NORM);
        forward_part(f, l, FORWARD_ATTN);
        keep_inner(r, batch, FORWARD_ATTENTION);
        if (!solved)
            add_write(r, batch, r->middle + first_answer(r, batch) * r->full_params->hidden, &ls);
    }
    if (rc == 0)
        rc = finish_write(r, l, "attn_output.weight", solved ? NULL : &ls, &layer_before(r, l)->o,
                          &r->layers[l].o, err);
    least_squares_close(&ls);
    return rc;
}

/* The full model's normed input of gate and up, for the batch's answers, to target. */
static void norm_middle(struct reconstruct *r, uint32_t l, struct batch batch)
{
    const struct model_params *p = r->full_params;
    const float *rows = r->middle + first_answer(r, batch) * p->hidden;
    const float *weight = r->full.model->layers[l].mlp_norm;
    for (size_t i = 0; i < answer_rows(r->samples, batch); i++)
        r->reader.kernels->rmsnorm(rows + i * p->hidden, weight, p->hidden, p->norm_width,
                                   p->rms_eps, r->target + i * p->hidden);
}

/* Both triangles of `channels`, whose lower one is not filled. */
static void mirror(double *a, size_t n)
{
    for (size_t i = 0; i < n; i++)
        for (size_t j = 0; j < i; j++)
            a[i * n + j] = a[j * n + i];
}

/* Channels by what they give to the twin's residual stream: Q^T down. */
static int choose_channels(struct reconstruct *r, uint32_t l, const struct layer_tensors *t,
                           unsigned *ret_index, struct error *err)
{
    size_t n = r->full_params->mlp;
    if (r->mlp == n) {
        for (unsigned i = 0; i < n; i++)
            ret_index[i] = i;
        r->layers[l].mlp_energy = 1;
        return 0;
    }
    _cleanup_mem_ float *down = load_matrix(t->down, err);
    _cleanup_mem_ float *w = r->basis ? mem_array(r->hidden * n, sizeof(float)) : NULL;
    if (!down)
        return -(int)err->code;
    if (r->basis && !w)
        return error_memory(err, "down", r->hidden * n * sizeof(float));
    if (r->basis)
        cblas_sgemm(CblasRowMajor, CblasTrans, CblasNoTrans, (blasint)r->hidden, (blasint)n,
                    (blasint)r->full_params->hidden, 1.0f, r->basis, (blasint)r->hidden, down,
                    (blasint)n, 0.0f, w, (blasint)n);
    mirror(r->channels.fitted.xx, n);
    return choose_inputs(r->channels.fitted.xx, r->basis ? w : down, n, r->hidden, r->mlp,
                         ret_index, &r->layers[l].mlp_energy, err);
}

/* For the down matrix, which may be solved in another run. */
static int put_channels(struct reconstruct *r, uint32_t l, const unsigned *index, struct error *err)
{
    char name[64];
    _cleanup_mem_ float *kept = mem_array(r->mlp, sizeof(float));
    if (!kept)
        return error_memory(err, "kept channels", r->mlp * sizeof(float));
    for (size_t i = 0; i < r->mlp; i++)
        kept[i] = (float)index[i];
    name_of_kept(l, name);
    return twin_store_put(r->store, name, TENSOR_F32, kept, 0, r->mlp, NULL, err);
}

static int solve_gate_up(struct reconstruct *r, uint32_t l, struct least_squares *ls,
                         const struct layer_tensors *t, struct error *err)
{
    size_t n = (size_t)r->full_params->hidden * r->hidden;
    _cleanup_mem_ float *map = mem_array(n, sizeof(float));
    _cleanup_mem_ unsigned *index = mem_array(r->full_params->mlp, sizeof(*index));
    if (!map || !index)
        return error_memory(err, "input map", n * sizeof(float));
    struct least_squares_result result;
    int rc = solve_input_map(r, ls, layer_before(r, l)->gate_up_ridge, map, &result, err);
    r->layers[l].gate_up = result.residual;
    r->layers[l].gate_up_ridge = result.ridge;
    if (rc == 0)
        rc = choose_channels(r, l, t, index, err);
    if (rc == 0)
        rc = put_channels(r, l, index, err);
    if (rc == 0)
        rc = put_mapped(r, l, "ffn_gate.weight", t->gate, index, r->mlp, map, ls, err);
    if (rc == 0)
        rc = put_mapped(r, l, "ffn_up.weight", t->up, index, r->mlp, map, ls, err);
    return rc;
}

static int rebuild_gate_up(struct reconstruct *r, uint32_t l, const struct layer_tensors *t,
                           struct error *err)
{
    struct forward *f = r->reader.forward;
    struct least_squares ls = {0};
    struct tensor gate = {0};
    struct tensor up = {0};
    bool solved = is_solved(r, l, "ffn_up.weight");
    int rc = solved
                 ? 0
                 : least_squares_open(r->reader.team, r->hidden, r->full_params->hidden, &ls, err);
    struct batch batch = reader_batch(r->samples, 0);
    for (; rc == 0 && !solved && batch.n; batch = reader_batch(r->samples, batch.first + batch.n)) {
        reader_begin(&r->reader, r->twin, batch, READ_ANSWER, r->x);
        forward_part(f, l, FORWARD_MLP_NORM);
        norm_middle(r, l, batch);
        struct forward_rows rows = forward_rows(f, FORWARD_NORMED);
        add_rows(r, batch, &ls, rows.data, rows.stride, r->target, r->full_params->hidden);
    }
    if (rc == 0 && !solved)
        rc = solve_gate_up(r, l, &ls, t, err);
    least_squares_close(&ls);
    if (rc == 0)
        rc = get(r, l, "ffn_gate.weight", &gate, err);
    if (rc == 0)
        rc = get(r, l, "ffn_up.weight", &up, err);
    if (rc == 0)
        rc = model_pack_layer(r->twin, l, &(struct layer_tensors){.gate = &gate, .up = &up}, err);
    tensor_release(&gate);
    tensor_release(&up);
    return rc;
}

static int rebuild_down(struct reconstruct *r, uint32_t l, struct error *err)
{
    struct forward *f = r->reader.forward;
    size_t full = r->full_params->hidden;
    struct least_squares ls = {0};
    bool solved = is_solved(r, l, "ffn_down.weight");
    int rc =
        solved ? 0 : least_squares_open(r->reader.team, r->mlp, 2 * (size_t)r->hidden, &ls, err);
    struct batch batch = reader_batch(r->samples, 0);
    for (; rc == 0 && batch.n; batch = reader_batch(r->samples, batch.first + batch.n)) {
        reader_begin(&r->reader, r->twin, batch, READ_ANSWER, r->x);
        forward_part(f, l, FORWARD_MLP_NORM);
        forward_part(f, l, FORWARD_MLP);
        keep_inner(r, batch, FORWARD_HIDDEN);
        if (solved)
            continue;
        float *full_rows = r->middle + first_answer(r, batch) * full;
        find_drift(r, batch, full_rows, r->drift + first_answer(r, batch) * r->hidden);
        gather_answers(r->samples, batch, r->full.x + r->samples->samples[batch.first].begin * full,
                       full, full, full_rows);
        add_write(r, batch, full_rows, &ls);
    }
    if (rc == 0)
        rc = finish_write(r, l, "ffn_down.weight", solved ? NULL : &ls, &layer_before(r, l)->down,
                          &r->layers[l].down, err);
    least_squares_close(&ls);
    return rc;
}

/* What is not solved for: norms of ones, or the full model's where the width is, and biases and
 * norms of heads as they are. */
static int put_vectors(struct reconstruct *r, uint32_t l, const struct layer_tensors *t,
                       struct error *err)
{
    const struct {
        const char *what;
        const struct tensor *tensor; /* NULL: ones */
        size_t n;
    } vectors[] = {
        {"attn_norm.weight", r->basis ? NULL : t->attn_norm, r->hidden},
        {"ffn_norm.weight", r->basis ? NULL : t->mlp_norm, r->hidden},
        {"attn_q.bias", t->q_bias, 0},
        {"attn_k.bias", t->k_bias, 0},
        {"attn_v.bias", t->v_bias, 0},
        {"attn_q_norm.weight", t->q_norm, 0},
        {"attn_k_norm.weight", t->k_norm, 0},
    };
    for (size_t i = 0; i < sizeof(vectors) / sizeof(vectors[0]); i++) {
        const struct tensor *tensor = vectors[i].tensor;
        size_t n = tensor ? tensor->dims[0] : vectors[i].n;
        if (!n || is_solved(r, l, vectors[i].what))
            continue;
        _cleanup_mem_ float *v = mem_array(n, sizeof(float));
        char name[64];
        if (!v)
            return error_memory(err, vectors[i].what, n * sizeof(float));
        for (size_t c = 0; c < n; c++)
            v[c] = 1;
        if (tensor)
            tensor_dequantize(tensor->type, tensor->data, n, v);
        name_of(l, vectors[i].what, name);
        int rc = twin_store_put(r->store, name, TENSOR_F32, v, 0, n, NULL, err);
        if (rc)
            return rc;
    }
    return 0;
}

int rebuild_layer(struct reconstruct *r, uint32_t l, struct error *err)
{
    struct layer_tensors t;
    layer_tensors_find(r->file, l, &t);
    const struct layer_tensors vectors = {.attn_norm = r->basis ? NULL : t.attn_norm,
                                          .mlp_norm = r->basis ? NULL : t.mlp_norm,
                                          .q_bias = t.q_bias,
                                          .k_bias = t.k_bias,
                                          .v_bias = t.v_bias,
                                          .q_norm = t.q_norm,
                                          .k_norm = t.k_norm};
    bool choose = r->mlp < r->full_params->mlp && !is_solved(r, l, "ffn_up.weight");
    r->layers[l] = (struct layer_report){.qkv = NAN,
                                         .o = {NAN, NAN, NAN, NAN},
                                         .gate_up = NAN,
                                         .down = {NAN, NAN, NAN, NAN},
                                         .mlp_energy = NAN};
    model_drop_layers(r->twin);
    int rc = put_vectors(r, l, &t, err);
    if (rc == 0 && choose)
        rc = least_squares_open(r->reader.team, r->full_params->mlp, 0, &r->channels, err);
    if (rc == 0)
        rc = model_pack_layer(r->twin, l, &vectors, err);
    if (rc == 0)
        rc = rebuild_qkv(r, l, &t, err);
    if (rc == 0)
        rc = rebuild_o(r, l, err);
    if (rc == 0)
        rc = rebuild_gate_up(r, l, &t, err);
    least_squares_close(&r->channels);
    if (rc == 0)
        rc = rebuild_down(r, l, err);
    return rc;
}
