/* Model parameters from GGUF metadata. See model_file_internal.h. Ranges are checked later,
 * together with those of Hugging Face folders (model_check.c). */
#include "engine/model/model_file_internal.h"

#include <stdio.h>
#include <string.h>

struct reader {
    const struct gguf_file *gguf;
    char arch[16];
    char key[96];
};

static const struct {
    const char *name;
    enum model_arch arch;
    enum rope_pairs rope_pairs;
} archs[] = {
    [MODEL_LLAMA] = {"llama", MODEL_LLAMA, ROPE_INTERLEAVED},
    [MODEL_QWEN2] = {"qwen2", MODEL_QWEN2, ROPE_HALVES},
    [MODEL_QWEN3] = {"qwen3", MODEL_QWEN3, ROPE_HALVES},
};

const char *model_arch_name(enum model_arch arch)
{
    return archs[arch].name;
}

/* "llama.block_count"; valid until the next call. */
static const char *arch_key(struct reader *r, const char *name)
{
    snprintf(r->key, sizeof(r->key), "%s.%s", r->arch, name);
    return r->key;
}

static int get_u32(struct reader *r, const char *name, enum gguf_need need, uint32_t *ret,
                   struct error *err)
{
    return gguf_get_u32(r->gguf, arch_key(r, name), need, ret, err);
}

static int get_f32(struct reader *r, const char *name, enum gguf_need need, float *ret,
                   struct error *err)
{
    return gguf_get_f32(r->gguf, arch_key(r, name), need, ret, err);
}

static int read_arch(struct reader *r, struct model_params *p, struct error *err)
{
    struct vocab_string name;
    int rc = gguf_get_string(r->gguf, "general.architecture", GGUF_REQUIRED, &name, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < sizeof(archs) / sizeof(archs[0]); i++) {
        if (name.len == strlen(archs[i].name) && memcmp(name.data, archs[i].name, name.len) == 0) {
            p->arch = archs[i].arch;
            p->rope_pairs = archs[i].rope_pairs;
            memcpy(r->arch, archs[i].name, name.len + 1);
            return 0;
        }
    }
    return error_set(err, ERROR_UNSUPPORTED,
                     "key general.architecture: llama, qwen2 or qwen3 expected, found %.*s",
                     (int)(name.len < 40 ? name.len : 40), name.data);
}

static int read_sizes(struct reader *r, struct model_params *p, struct error *err)
{
    const struct {
        const char *name;
        uint32_t *ret;
    } keys[] = {
        {"block_count", &p->n_layers},         {"embedding_length", &p->hidden},
        {"feed_forward_length", &p->mlp},      {"attention.head_count", &p->n_heads},
        {"context_length", &p->context_train},
    };
    for (size_t i = 0; i < sizeof(keys) / sizeof(keys[0]); i++) {
        int rc = get_u32(r, keys[i].name, GGUF_REQUIRED, keys[i].ret, err);
        if (rc)
            return rc;
    }
    p->n_kv_heads = p->n_heads;
    p->norm_width = p->hidden;
    int rc = get_u32(r, "attention.head_count_kv", GGUF_OPTIONAL, &p->n_kv_heads, err);
    if (rc == 0)
        rc = gguf_get_u32(r->gguf, "overfill.norm_width", GGUF_OPTIONAL, &p->norm_width, err);
    if (rc == 0)
        rc = get_f32(r, "attention.layer_norm_rms_epsilon", GGUF_REQUIRED, &p->rms_eps, err);
    return rc;
}

static int read_head_dim(struct reader *r, struct model_params *p, struct error *err)
{
    uint32_t key_length = 0, value_length = 0;
    int rc = get_u32(r, "attention.key_length", GGUF_OPTIONAL, &key_length, err);
    if (rc == 0)
        rc = get_u32(r, "attention.value_length", GGUF_OPTIONAL, &value_length, err);
    if (rc)
        return rc;
    if (key_length == 0 || value_length == 0) {
        if (p->n_heads == 0 || p->hidden % p->n_heads)
            return error_set(
                err, ERROR_FORMAT,
                "key %s: missing, and embedding_length %u is not a multiple of "
                "attention.head_count %u",
                arch_key(r, key_length ? "attention.value_length" : "attention.key_length"),
                p->hidden, p->n_heads);
        key_length = key_length ? key_length : p->hidden / p->n_heads;
        value_length = value_length ? value_length : p->hidden / p->n_heads;
    }
    if (key_length != value_length)
        return error_set(err, ERROR_UNSUPPORTED,
                         "key %s: %u expected (attention.key_length), found %u",
                         arch_key(r, "attention.value_length"), key_length, value_length);
    p->head_dim = key_length;
    p->rope_dim = key_length;
    return get_u32(r, "rope.dimension_count", GGUF_OPTIONAL, &p->rope_dim, err);
}

static int read_rope(struct reader *r, struct model_params *p, struct rope_scaling *scaling,
                     struct error *err)
{
    struct vocab_string type = {"linear", 6}; /* what a factor without a type means */
    float factor = 0;

    p->rope_theta = 10000;
    int rc = get_f32(r, "rope.freq_base", GGUF_OPTIONAL, &p->rope_theta, err);
    if (rc == 0)
        rc = get_f32(r, "rope.scale_linear", GGUF_OPTIONAL, &factor, err);
    if (rc == 0)
        rc = get_f32(r, "rope.scaling.factor", GGUF_OPTIONAL, &factor, err);
    if (rc == 0)
        rc = gguf_get_string(r->gguf, arch_key(r, "rope.scaling.type"), GGUF_OPTIONAL, &type, err);
    if (rc)
        return rc;
    *scaling = (struct rope_scaling){.type = ROPE_SCALING_NONE, .factor = 1};
    if (type.len == 4 && memcmp(type.data, "none", 4) == 0)
        return 0;
    if (type.len != 6 || memcmp(type.data, "linear", 6) != 0)
        return error_set(err, ERROR_UNSUPPORTED, "key %s: none or linear expected, found %.*s",
                         arch_key(r, "rope.scaling.type"), (int)(type.len < 40 ? type.len : 40),
                         type.data);
    if (factor != 0)
        *scaling = (struct rope_scaling){.type = ROPE_SCALING_LINEAR, .factor = factor};
    return 0;
}

/* Keys that would change the computation in a way that this program does not do. */
static int refuse_others(struct reader *r, struct error *err)
{
    static const char *const names[] = {
        "expert_count",    "attention.sliding_window", "attention.scale",    "logit_scale",
        "embedding_scale", "residual_scale",           "attention.clamp_kqv"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        const struct gguf_kv *kv = gguf_find(r->gguf, arch_key(r, names[i]));
        int64_t integer = 1;
        double real = 1;
        if (kv && !(gguf_kv_integer(kv, 0, &integer) && integer == 0) &&
            !(gguf_kv_float(kv, 0, &real) && real == 0))
            return error_set(err, ERROR_UNSUPPORTED, "key %s: is not supported", r->key);
    }
    return 0;
}

int gguf_read_params(const struct gguf_file *gguf, struct model_params *params,
                     struct rope_scaling *scaling, struct error *err)
{
    struct reader r = {.gguf = gguf};
    struct vocab_string name = {NULL, 0};

    int rc = read_arch(&r, params, err);
    if (rc == 0)
        rc = refuse_others(&r, err);
    if (rc == 0)
        rc = read_sizes(&r, params, err);
    if (rc == 0)
        rc = read_head_dim(&r, params, err);
    if (rc == 0)
        rc = read_rope(&r, params, scaling, err);
    if (rc == 0)
        rc = gguf_get_string(gguf, "general.name", GGUF_OPTIONAL, &name, err);
    if (rc == 0 && name.len)
        snprintf(params->name, sizeof(params->name), "%.*s",
                 (int)(name.len < sizeof(params->name) ? name.len : sizeof(params->name) - 1),
                 name.data);
    return rc;
}
