/* A transformer in double precision. See reference.h. */
#include "tests/unit/forward/reference.h"

#include "engine/base/half.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

struct reference_layer {
    double *attn_norm, *q, *k, *v, *o, *q_bias, *k_bias, *v_bias, *q_norm, *k_norm;
    double *mlp_norm, *gate, *up, *down;
};

struct reference {
    struct model_params p;
    double *embedding, *output_norm, *head;
    struct reference_layer *layers;
};

static double *zeros(size_t n)
{
    double *x = calloc(n ? n : 1, sizeof(double));
    assert_non_null(x);
    return x;
}

/* Rows of n values to the nearest multiples of a half-precision scale, 32 values a scale. */
static void round_to_int8(double *x, size_t n_rows, size_t n)
{
    for (size_t r = 0; r < n_rows; r++) {
        for (size_t begin = 0; begin < n; begin += 32) {
            size_t end = begin + 32 < n ? begin + 32 : n;
            double max = 0;
            for (size_t i = begin; i < end; i++)
                max = fmax(max, fabs(x[r * n + i]));
            /* in float, so that values between two steps fall to the same side */
            float scale = half_to_float(float_to_half((float)max / 127.0f));
            float inverse = scale > 0 ? 1.0f / scale : 0;
            for (size_t i = begin; i < end; i++) {
                float steps = rintf((float)x[r * n + i] * inverse);
                x[r * n + i] = (double)scale * fmin(fmax((double)steps, -127), 127);
            }
        }
    }
}

static bool is_kept_exactly(enum tensor_type type, size_t n_in)
{
    return type == TENSOR_Q8_0 || ((type == TENSOR_Q4_0 || type == TENSOR_Q4_1) && n_in % 32 == 0);
}

static double *load(const struct model_file *file, const char *name)
{
    const struct tensor *t = model_file_tensor(file, name);
    if (!t)
        return NULL;
    size_t n = t->dims[0] * t->dims[1];
    float *values = malloc(n * sizeof(float));
    double *out = zeros(n);
    assert_non_null(values);
    tensor_dequantize(t->type, t->data, n, values);
    for (size_t i = 0; i < n; i++)
        out[i] = values[i];
    free(values);
    return out;
}

static double *load_matrix(const struct model_file *file, const char *name,
                           enum reference_weights weights)
{
    const struct tensor *t = model_file_tensor(file, name);
    double *out = load(file, name);
    if (out && weights == REFERENCE_INT8 && !is_kept_exactly(t->type, t->dims[0]))
        round_to_int8(out, t->dims[1], t->dims[0]);
    return out;
}

static void load_layer(const struct model_file *file, enum reference_weights weights, uint32_t l,
                       struct reference_layer *out)
{
    const struct {
        const char *name;
        double **ret;
        bool is_matrix;
    } tensors[] = {
        {"attn_norm.weight", &out->attn_norm, false},
        {"attn_q.weight", &out->q, true},
        {"attn_k.weight", &out->k, true},
        {"attn_v.weight", &out->v, true},
        {"attn_output.weight", &out->o, true},
        {"attn_q.bias", &out->q_bias, false},
        {"attn_k.bias", &out->k_bias, false},
        {"attn_v.bias", &out->v_bias, false},
        {"attn_q_norm.weight", &out->q_norm, false},
        {"attn_k_norm.weight", &out->k_norm, false},
        {"ffn_norm.weight", &out->mlp_norm, false},
        {"ffn_gate.weight", &out->gate, true},
        {"ffn_up.weight", &out->up, true},
        {"ffn_down.weight", &out->down, true},
    };
    for (size_t i = 0; i < sizeof(tensors) / sizeof(tensors[0]); i++) {
        char name[64];
        snprintf(name, sizeof(name), "blk.%u.%s", l, tensors[i].name);
        *tensors[i].ret =
            tensors[i].is_matrix ? load_matrix(file, name, weights) : load(file, name);
    }
}

struct reference *reference_open(const struct model_file *file, enum reference_weights weights)
{
    struct reference *ref = calloc(1, sizeof(*ref));
    assert_non_null(ref);
    ref->p = *model_file_params(file);
    ref->embedding = load(file, "token_embd.weight");
    ref->output_norm = load(file, "output_norm.weight");
    ref->head = load_matrix(file, ref->p.tied ? "token_embd.weight" : "output.weight", weights);
    ref->layers = calloc(ref->p.n_layers, sizeof(*ref->layers));
    assert_non_null(ref->layers);
    for (uint32_t l = 0; l < ref->p.n_layers; l++)
        load_layer(file, weights, l, &ref->layers[l]);
    return ref;
}

void reference_close(struct reference *ref)
{
    for (uint32_t l = 0; l < ref->p.n_layers; l++) {
        struct reference_layer *w = &ref->layers[l];
        double *all[] = {w->attn_norm, w->q,      w->k,      w->v,      w->o,
                         w->q_bias,    w->k_bias, w->v_bias, w->q_norm, w->k_norm,
                         w->mlp_norm,  w->gate,   w->up,     w->down};
        for (size_t i = 0; i < sizeof(all) / sizeof(all[0]); i++)
            free(all[i]);
    }
    free(ref->layers);
    free(ref->embedding);
    free(ref->output_norm);
    free(ref->head);
    free(ref);
}

struct reference_kv reference_kv_open(const struct reference *ref, uint32_t max_tokens, bool half)
{
    const struct model_params *p = &ref->p;
    size_t n = (size_t)p->n_layers * max_tokens * p->n_kv_heads * p->head_dim;
    return (struct reference_kv){max_tokens, half, zeros(n), zeros(n)};
}

void reference_kv_close(struct reference_kv *kv)
{
    free(kv->k);
    free(kv->v);
}

/* out[n_out] (+)= w[n_out][n_in] x[n_in] + bias */
static void multiply(const double *w, const double *bias, const double *x, size_t n_in,
                     size_t n_out, double *out)
{
    for (size_t r = 0; r < n_out; r++) {
        double sum = bias ? bias[r] : 0;
        for (size_t i = 0; i < n_in; i++)
            sum += w[r * n_in + i] * x[i];
        out[r] = sum;
    }
}

static void normalise(const double *x, const double *weight, size_t n, size_t width, double eps,
                      double *out)
{
    double squares = 0;
    for (size_t i = 0; i < n; i++)
        squares += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        out[i] = x[i] / sqrt(squares / (double)width + eps) * weight[i];
}

/* Pair j of a head turns by position * inv_freq[j]. */
static void turn(const struct model_params *p, double *x, uint32_t position)
{
    for (uint32_t j = 0; j < p->rope_dim / 2; j++) {
        bool interleaved = p->rope_pairs == ROPE_INTERLEAVED;
        double *a = &x[interleaved ? 2 * j : j];
        double *b = &x[interleaved ? 2 * j + 1 : j + p->rope_dim / 2];
        double angle = (double)position * (double)p->rope_inv_freq[j];
        double turned = *a * cos(angle) - *b * sin(angle);
        *b = *a * sin(angle) + *b * cos(angle);
        *a = turned;
    }
}

static void attend(const struct model_params *p, const struct reference_kv *kv, uint32_t layer,
                   uint32_t position, const double *q, double *out)
{
    size_t n = p->head_dim;
    double *weight = zeros(position + 1);
    for (uint32_t h = 0; h < p->n_heads; h++) {
        uint32_t kv_head = h / (p->n_heads / p->n_kv_heads);
        double total = 0;
        for (uint32_t t = 0; t <= position; t++) {
            const double *k =
                kv->k + (((size_t)layer * kv->max_tokens + t) * p->n_kv_heads + kv_head) * n;
            double dot = 0;
            for (size_t d = 0; d < n; d++)
                dot += q[h * n + d] * k[d];
            weight[t] = exp(dot / sqrt((double)n));
            total += weight[t];
        }
        for (size_t d = 0; d < n; d++) {
            out[h * n + d] = 0;
            for (uint32_t t = 0; t <= position; t++)
                out[h * n + d] +=
                    weight[t] / total *
                    kv->v[(((size_t)layer * kv->max_tokens + t) * p->n_kv_heads + kv_head) * n + d];
        }
    }
    free(weight);
}

static void attention_block(const struct reference *ref, struct reference_kv *kv, uint32_t layer,
                            uint32_t position, double *x)
{
    const struct model_params *p = &ref->p;
    const struct reference_layer *w = &ref->layers[layer];
    size_t n_q = (size_t)p->n_heads * p->head_dim, n_kv = (size_t)p->n_kv_heads * p->head_dim;
    size_t at = ((size_t)layer * kv->max_tokens + position) * n_kv;
    double *normed = zeros(p->hidden), *q = zeros(n_q), *out = zeros(n_q),
           *added = zeros(p->hidden);
    double *k = kv->k + at, *v = kv->v + at;

    normalise(x, w->attn_norm, p->hidden, p->norm_width, p->rms_eps, normed);
    multiply(w->q, w->q_bias, normed, p->hidden, n_q, q);
    multiply(w->k, w->k_bias, normed, p->hidden, n_kv, k);
    multiply(w->v, w->v_bias, normed, p->hidden, n_kv, v);
    for (uint32_t h = 0; h < p->n_heads + p->n_kv_heads; h++) {
        bool is_q = h < p->n_heads;
        double *head = is_q ? q + h * p->head_dim : k + (h - p->n_heads) * p->head_dim;
        const double *norm = is_q ? w->q_norm : w->k_norm;
        if (norm)
            normalise(head, norm, p->head_dim, p->head_dim, p->rms_eps, head);
        turn(p, head, position);
    }
    for (size_t i = 0; kv->half && i < n_kv; i++) {
        k[i] = half_to_float(float_to_half((float)k[i]));
        v[i] = half_to_float(float_to_half((float)v[i]));
    }
    attend(p, kv, layer, position, q, out);
    multiply(w->o, NULL, out, n_q, p->hidden, added);
    for (uint32_t i = 0; i < p->hidden; i++)
        x[i] += added[i];
    free(normed);
    free(q);
    free(out);
    free(added);
}

static void mlp_block(const struct reference *ref, uint32_t layer, double *x)
{
    const struct model_params *p = &ref->p;
    const struct reference_layer *w = &ref->layers[layer];
    double *normed = zeros(p->hidden), *gate = zeros(p->mlp), *up = zeros(p->mlp);
    double *added = zeros(p->hidden);

    normalise(x, w->mlp_norm, p->hidden, p->norm_width, p->rms_eps, normed);
    multiply(w->gate, NULL, normed, p->hidden, p->mlp, gate);
    multiply(w->up, NULL, normed, p->hidden, p->mlp, up);
    for (uint32_t i = 0; i < p->mlp; i++)
        gate[i] *= up[i] / (1 + exp(-gate[i]));
    multiply(w->down, NULL, gate, p->mlp, p->hidden, added);
    for (uint32_t i = 0; i < p->hidden; i++)
        x[i] += added[i];
    free(normed);
    free(gate);
    free(up);
    free(added);
}

void reference_step(const struct reference *ref, struct reference_kv *kv, uint32_t position,
                    int32_t token, double *logits)
{
    const struct model_params *p = &ref->p;
    double *x = zeros(p->hidden);

    assert_true(position < kv->max_tokens);
    memcpy(x, ref->embedding + (size_t)token * p->hidden, p->hidden * sizeof(double));
    for (uint32_t l = 0; l < p->n_layers; l++) {
        attention_block(ref, kv, l, position, x);
        mlp_block(ref, l, x);
    }
    normalise(x, ref->output_norm, p->hidden, p->norm_width, p->rms_eps, x);
    multiply(ref->head, NULL, x, p->hidden, p->vocab_size, logits);
    free(x);
}
