/* config.json of a Hugging Face folder. See hf.h. Field names: configuration_llama.py and its
 * siblings in transformers; version 5 moved rope_theta and rope_scaling into rope_parameters. */
#include "engine/model/hf.h"

#include <string.h>

static int read_arch(const cJSON *config, struct model_params *p, struct error *err)
{
    static const struct {
        const char *name;
        enum model_arch arch;
    } archs[] = {
        {"LlamaForCausalLM", MODEL_LLAMA},
        {"MistralForCausalLM", MODEL_LLAMA},
        {"Qwen2ForCausalLM", MODEL_QWEN2},
        {"Qwen3ForCausalLM", MODEL_QWEN3},
    };
    const cJSON *list = json_array(config, "architectures");
    const char *name = list && cJSON_IsString(list->child) ? list->child->valuestring : "";

    for (size_t i = 0; i < sizeof(archs) / sizeof(archs[0]); i++) {
        if (strcmp(name, archs[i].name) == 0) {
            p->arch = archs[i].arch;
            p->rope_pairs = ROPE_HALVES;
            return 0;
        }
    }
    return error_set(err, ERROR_UNSUPPORTED,
                     "key architectures: LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM or "
                     "Qwen3ForCausalLM expected, found %.60s",
                     *name ? name : "none");
}

static int read_sizes(const cJSON *config, struct model_params *p, struct error *err)
{
    const struct {
        const char *key;
        uint32_t *ret;
    } needed[] = {
        {"num_hidden_layers", &p->n_layers},
        {"hidden_size", &p->hidden},
        {"intermediate_size", &p->mlp},
        {"num_attention_heads", &p->n_heads},
        {"max_position_embeddings", &p->context_train},
        {"vocab_size", &p->vocab_size},
    };
    for (size_t i = 0; i < sizeof(needed) / sizeof(needed[0]); i++) {
        int rc = json_need_u32(config, needed[i].key, needed[i].ret, err);
        if (rc)
            return rc;
    }
    p->norm_width = p->hidden;
    p->n_kv_heads = p->n_heads;
    p->rms_eps = 1e-6f;
    int rc = json_get_u32(config, "num_key_value_heads", &p->n_kv_heads, err);
    if (rc == 0)
        rc = json_get_u32(config, "head_dim", &p->head_dim, err);
    if (rc == 0)
        rc = json_get_float(config, "rms_norm_eps", &p->rms_eps, err);
    if (rc || p->head_dim)
        return rc;
    if (p->n_heads == 0 || p->hidden % p->n_heads)
        return error_set(err, ERROR_FORMAT,
                         "key head_dim: missing, and hidden_size %u is not a multiple of "
                         "num_attention_heads %u",
                         p->hidden, p->n_heads);
    p->head_dim = p->hidden / p->n_heads;
    return 0;
}

static int read_scaling(const cJSON *rope, struct rope_scaling *scaling, struct error *err)
{
    const char *type = json_text(rope, "rope_type");
    type = *type ? type : json_text(rope, "type");

    if (!*type || strcmp(type, "default") == 0)
        return 0;
    if (strcmp(type, "linear") == 0)
        scaling->type = ROPE_SCALING_LINEAR;
    else if (strcmp(type, "llama3") == 0)
        scaling->type = ROPE_SCALING_LLAMA3;
    else
        return error_set(err, ERROR_UNSUPPORTED,
                         "RoPE scaling: default, linear or llama3 expected, found %.40s", type);
    int rc = json_get_float(rope, "factor", &scaling->factor, err);
    if (rc == 0)
        rc = json_get_float(rope, "low_freq_factor", &scaling->low_freq_factor, err);
    if (rc == 0)
        rc = json_get_float(rope, "high_freq_factor", &scaling->high_freq_factor, err);
    if (rc == 0)
        rc =
            json_get_u32(rope, "original_max_position_embeddings", &scaling->original_context, err);
    return rc;
}

static int read_rope(const cJSON *config, struct model_params *p, struct rope_scaling *scaling,
                     struct error *err)
{
    const cJSON *parameters = json_object(config, "rope_parameters");
    float share = 1;

    p->rope_theta = 10000;
    *scaling = (struct rope_scaling){.type = ROPE_SCALING_NONE, .factor = 1};
    for (const cJSON *item = parameters ? parameters->child : NULL; item; item = item->next)
        if (cJSON_IsObject(item))
            return error_set(err, ERROR_UNSUPPORTED,
                             "key rope_parameters: one set for all layers expected, found %.40s",
                             item->string);
    int rc = json_get_float(config, "rope_theta", &p->rope_theta, err);
    if (rc == 0)
        rc = json_get_float(parameters, "rope_theta", &p->rope_theta, err);
    if (rc == 0)
        rc = json_get_float(config, "partial_rotary_factor", &share, err);
    if (rc == 0)
        rc = json_get_float(parameters, "partial_rotary_factor", &share, err);
    if (rc == 0)
        rc = read_scaling(parameters ? parameters : json_object(config, "rope_scaling"), scaling,
                          err);
    if (rc == 0 && !(share > 0 && share <= 1))
        rc = error_set(err, ERROR_FORMAT, "key partial_rotary_factor: 0 < factor <= 1 expected");
    if (rc == 0)
        p->rope_dim = (uint32_t)((float)p->head_dim * share);
    return rc;
}

/* A window that is at least as long as the context changes nothing. */
static int refuse_window(const cJSON *config, const struct model_params *p, struct error *err)
{
    const cJSON *layers = json_array(config, "layer_types");
    uint32_t window = UINT32_MAX;
    bool is_used = p->arch == MODEL_LLAMA; /* Qwen's default is off */

    for (const cJSON *item = layers ? layers->child : NULL; item; item = item->next)
        if (!cJSON_IsString(item) || strcmp(item->valuestring, "full_attention") != 0)
            return error_set(err, ERROR_UNSUPPORTED,
                             "key layer_types: only full_attention is supported, found %.40s",
                             cJSON_IsString(item) ? item->valuestring : "another type");
    int rc = json_get_u32(config, "sliding_window", &window, err);
    if (rc == 0)
        rc = json_get_bool(config, "use_sliding_window", &is_used, err);
    if (rc == 0 && is_used && window < p->context_train)
        rc = error_set(err, ERROR_UNSUPPORTED,
                       "key sliding_window: windows shorter than the context (%u) are not "
                       "supported, found %u",
                       p->context_train, window);
    return rc;
}

static int refuse_others(const cJSON *config, struct error *err)
{
    const char *activation = "silu";
    int rc = json_get_string(config, "hidden_act", &activation, err);
    if (rc)
        return rc;
    if (strcmp(activation, "silu") != 0)
        return error_set(err, ERROR_UNSUPPORTED, "key hidden_act: silu expected, found %.40s",
                         activation);
    if (json_object(config, "quantization_config"))
        return error_set(err, ERROR_UNSUPPORTED,
                         "key quantization_config: only F32, F16 and BF16 weights are read from a "
                         "folder");
    return 0;
}

int hf_read_config(const cJSON *config, struct model_params *params, struct rope_scaling *scaling,
                   bool *ret_tied, struct error *err)
{
    bool tied = false;
    int rc = read_arch(config, params, err);
    if (rc == 0)
        rc = refuse_others(config, err);
    if (rc == 0)
        rc = read_sizes(config, params, err);
    if (rc == 0)
        rc = refuse_window(config, params, err);
    if (rc == 0)
        rc = read_rope(config, params, scaling, err);
    if (rc == 0)
        rc = json_get_bool(config, "tie_word_embeddings", &tied, err);
    if (rc == 0)
        *ret_tied = tied;
    return rc;
}
