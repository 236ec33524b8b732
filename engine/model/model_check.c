/* Does a model file hold what its parameters promise? Ranges, shapes, tensors too many, and the
 * RoPE frequencies, the same for GGUF files and Hugging Face folders. See model_file_internal.h.
 * The largest numbers allowed here are far above any model of today; they keep products of two of
 * them within 64 bits and sizes of packed rows within 32. */
#include "engine/base/mem.h"
#include "engine/model/model_file_internal.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>

static int check_ranges(const struct model_params *p, struct error *err)
{
    const struct {
        const char *name;
        uint32_t value, most;
    } counts[] = {
        {"layers", p->n_layers, 1024},
        {"hidden width", p->hidden, 1 << 17},
        {"norm width", p->norm_width, p->hidden},
        {"MLP width", p->mlp, 1 << 20},
        {"heads", p->n_heads, 1024},
        {"KV heads", p->n_kv_heads, p->n_heads},
        {"head dimension", p->head_dim, MODEL_MAX_HEAD_DIM},
        {"RoPE dimension", p->rope_dim, p->head_dim},
        {"training context", p->context_train, 1 << 30},
        {"vocabulary", p->vocab_size, 1 << 24},
    };
    for (size_t i = 0; i < sizeof(counts) / sizeof(counts[0]); i++)
        if (counts[i].value < 1 || counts[i].value > counts[i].most)
            return error_set(err, ERROR_FORMAT, "%s: 1..%" PRIu32 " expected, found %" PRIu32,
                             counts[i].name, counts[i].most, counts[i].value);
    if (p->n_heads % p->n_kv_heads)
        return error_set(err, ERROR_FORMAT,
                         "heads: a multiple of the %" PRIu32 " KV heads expected, found %" PRIu32,
                         p->n_kv_heads, p->n_heads);
    if (p->rope_dim % 2)
        return error_set(err, ERROR_FORMAT,
                         "RoPE dimension: an even number expected, found %" PRIu32, p->rope_dim);
    if (!(p->rms_eps > 0 && p->rms_eps < 1))
        return error_set(err, ERROR_FORMAT, "RMSNorm epsilon: 0 < eps < 1 expected, found %g",
                         (double)p->rms_eps);
    if (!(p->rope_theta > 0 && isfinite(p->rope_theta)))
        return error_set(err, ERROR_FORMAT, "RoPE base: a positive number expected, found %g",
                         (double)p->rope_theta);
    return 0;
}

/* Widths that shapes are made of. */
enum width { ONE, HIDDEN, MLP, QUERY, KEY, HEAD, VOCAB, ROPE_PAIRS };

static uint64_t width_of(const struct model_params *p, enum width w)
{
    switch (w) {
    case HIDDEN:
        return p->hidden;
    case MLP:
        return p->mlp;
    case QUERY:
        return (uint64_t)p->n_heads * p->head_dim;
    case KEY:
        return (uint64_t)p->n_kv_heads * p->head_dim;
    case HEAD:
        return p->head_dim;
    case VOCAB:
        return p->vocab_size;
    case ROPE_PAIRS:
        return p->rope_dim / 2;
    case ONE:
        break;
    }
    return 1;
}

enum group { REQUIRED, HEAD_IF_UNTIED, BIASES, NORMS, IF_THERE };

struct expected {
    const char *name; /* after "blk.N." for a layer's */
    enum width columns, rows;
    enum group group;
};

static const struct expected layer_tensors[] = {
    {"attn_norm.weight", HIDDEN, ONE, REQUIRED},
    {"attn_q.weight", HIDDEN, QUERY, REQUIRED},
    {"attn_k.weight", HIDDEN, KEY, REQUIRED},
    {"attn_v.weight", HIDDEN, KEY, REQUIRED},
    {"attn_output.weight", QUERY, HIDDEN, REQUIRED},
    {"ffn_norm.weight", HIDDEN, ONE, REQUIRED},
    {"ffn_gate.weight", HIDDEN, MLP, REQUIRED},
    {"ffn_up.weight", HIDDEN, MLP, REQUIRED},
    {"ffn_down.weight", MLP, HIDDEN, REQUIRED},
    {"attn_q.bias", QUERY, ONE, BIASES},
    {"attn_k.bias", KEY, ONE, BIASES},
    {"attn_v.bias", KEY, ONE, BIASES},
    {"attn_q_norm.weight", HEAD, ONE, NORMS},
    {"attn_k_norm.weight", HEAD, ONE, NORMS},
};

static const struct expected global_tensors[] = {
    {"token_embd.weight", HIDDEN, VOCAB, REQUIRED},
    {"output_norm.weight", HIDDEN, ONE, REQUIRED},
    {"output.weight", HIDDEN, VOCAB, HEAD_IF_UNTIED},
    {"rope_freqs.weight", ROPE_PAIRS, ONE, IF_THERE},
};

#define COUNT(a) (sizeof(a) / sizeof((a)[0]))

static bool is_needed(const struct model_params *p, enum group group)
{
    switch (group) {
    case REQUIRED:
        return true;
    case HEAD_IF_UNTIED:
        return !p->tied;
    case BIASES:
        return p->has_qkv_bias;
    case NORMS:
        return p->has_qk_norm;
    case IF_THERE:
        break;
    }
    return false;
}

/* *n_found counts the tensors of the file that have been recognised. */
static int check_tensor(const struct model_file *file, const struct expected *e, const char *name,
                        size_t *n_found, struct error *err)
{
    const struct model_params *p = &file->params;
    const struct tensor *t = model_file_tensor(file, name);
    uint64_t columns = width_of(p, e->columns), rows = width_of(p, e->rows);

    if (!t)
        return is_needed(p, e->group) ? error_set(err, ERROR_FORMAT, "tensor %s: missing", name)
                                      : 0;
    if (!is_needed(p, e->group) && e->group != IF_THERE)
        return 0; /* left for find_stranger */
    if (t->dims[0] != columns || t->dims[1] != rows || t->dims[2] != 1 || t->dims[3] != 1)
        return error_set(err, ERROR_FORMAT,
                         "tensor %s: shape [%" PRIu64 ", %" PRIu64 "] expected, found [%" PRIu64
                         ", %" PRIu64 ", %" PRIu64 ", %" PRIu64 "]",
                         name, columns, rows, t->dims[0], t->dims[1], t->dims[2], t->dims[3]);
    *n_found += 1;
    return 0;
}

/* Which tensor is none of those expected? Called only when there is one. */
static int find_stranger(const struct model_file *file, struct error *err)
{
    for (size_t i = 0; i < file->n_tensors; i++) {
        const char *name = file->tensors[i].name, *rest = name;
        uint32_t layer = 0;
        int used = 0;
        bool in_layer = sscanf(name, "blk.%4" SCNu32 ".%n", &layer, &used) == 1 && used > 0;
        const struct expected *known = in_layer ? layer_tensors : global_tensors;
        size_t n = in_layer ? COUNT(layer_tensors) : COUNT(global_tensors), k = 0;
        rest += in_layer ? used : 0;
        while (k < n && (strcmp(known[k].name, rest) != 0 ||
                         (!is_needed(&file->params, known[k].group) && known[k].group != IF_THERE)))
            k++;
        if (k == n || layer >= file->params.n_layers)
            return error_set(err, ERROR_UNSUPPORTED,
                             "tensor %s: no part of the model that the parameters describe", name);
    }
    return error_set(err, ERROR_FORMAT, "%zu tensors: more than the parameters describe",
                     file->n_tensors);
}

static int check_tensors(struct model_file *file, struct error *err)
{
    struct model_params *p = &file->params;
    size_t n_found = 0;
    int rc = 0;

    p->tied = model_file_tensor(file, "output.weight") == NULL;
    p->has_qkv_bias =
        p->arch == MODEL_QWEN2 || model_file_tensor(file, "blk.0.attn_q.bias") != NULL;
    p->has_qk_norm = p->arch == MODEL_QWEN3;
    for (size_t k = 0; k < COUNT(global_tensors) && rc == 0; k++)
        rc = check_tensor(file, &global_tensors[k], global_tensors[k].name, &n_found, err);
    for (uint32_t l = 0; l < p->n_layers; l++) {
        for (size_t k = 0; k < COUNT(layer_tensors) && rc == 0; k++) {
            char name[64];
            snprintf(name, sizeof(name), "blk.%" PRIu32 ".%s", l, layer_tensors[k].name);
            rc = check_tensor(file, &layer_tensors[k], name, &n_found, err);
        }
    }
    if (rc == 0 && n_found < file->n_tensors)
        rc = find_stranger(file, err);
    return rc;
}

/* Long wavelengths are slowed by the factor, short ones kept, those between interpolated.
 * Source: Llama 3.1's reference code, apply_scaling. */
static double scale_llama3(const struct rope_scaling *s, double inv_freq)
{
    double turns = s->original_context * inv_freq / (2 * M_PI); /* over the original context */
    double low = (double)s->low_freq_factor, high = (double)s->high_freq_factor;
    if (turns < low)
        return inv_freq / (double)s->factor;
    if (turns > high)
        return inv_freq;
    double smooth = (turns - low) / (high - low);
    return (1 - smooth) * inv_freq / (double)s->factor + smooth * inv_freq;
}

static int check_scaling(const struct rope_scaling *s, struct error *err)
{
    if (!(s->factor > 0 && isfinite(s->factor)))
        return error_set(err, ERROR_FORMAT,
                         "RoPE scaling factor: a positive number expected, found %g",
                         (double)s->factor);
    if (s->type == ROPE_SCALING_LLAMA3 &&
        !(s->low_freq_factor > 0 && s->high_freq_factor > s->low_freq_factor &&
          isfinite(s->high_freq_factor) && s->original_context > 0))
        return error_set(
            err, ERROR_FORMAT,
            "RoPE scaling llama3: 0 < low_freq_factor < high_freq_factor and a positive "
            "original context expected, found %g, %g, %" PRIu32,
            (double)s->low_freq_factor, (double)s->high_freq_factor, s->original_context);
    return 0;
}

static int fill_rope(struct model_file *file, struct error *err)
{
    struct model_params *p = &file->params;
    const struct tensor *freqs = model_file_tensor(file, "rope_freqs.weight");
    float divisors[MODEL_MAX_HEAD_DIM / 2];
    int rc = check_scaling(&file->scaling, err);
    if (rc)
        return rc;

    if (freqs)
        tensor_dequantize(freqs->type, freqs->data, p->rope_dim / 2, divisors);
    for (uint32_t i = 0; i < p->rope_dim / 2; i++) {
        double inv_freq = pow((double)p->rope_theta, -2.0 * i / p->rope_dim);
        if (file->scaling.type == ROPE_SCALING_LINEAR)
            inv_freq /= (double)file->scaling.factor;
        else if (file->scaling.type == ROPE_SCALING_LLAMA3)
            inv_freq = scale_llama3(&file->scaling, inv_freq);
        if (freqs && !(divisors[i] > 0 && isfinite(divisors[i])))
            return error_set(err, ERROR_FORMAT,
                             "tensor rope_freqs.weight: element %" PRIu32
                             ": a positive number expected, found %g",
                             i, (double)divisors[i]);
        p->rope_inv_freq[i] = (float)(freqs ? inv_freq / (double)divisors[i] : inv_freq);
    }
    return 0;
}

int model_file_check(struct model_file *file, struct error *err)
{
    int rc = check_ranges(&file->params, err);
    if (rc == 0)
        rc = check_tensors(file, err);
    if (rc == 0)
        rc = fill_rope(file, err);
    return rc;
}
