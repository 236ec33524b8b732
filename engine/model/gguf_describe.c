/* What a GGUF file of this model says in its metadata: the entries of the GGUF file that it came
 * from, or, of a Hugging Face folder, the same entries made from its parameters and vocabulary, as
 * llama.cpp's converter names them. See model_file.h. The writer keeps failures to itself. */
#include "engine/base/mem.h"
#include "engine/model/gguf_write.h"
#include "engine/model/model_file_internal.h"

#include <math.h>
#include <stdio.h>

#define NONE UINT32_MAX /* a special token that there is not: no id, so no default either */

struct describer {
    const struct model_file *file;
    struct gguf_writer *writer;
    char key[96];
};

static const char *arch_key(struct describer *d, const char *name)
{
    snprintf(d->key, sizeof(d->key), "%s.%s", model_arch_name(d->file->params.arch), name);
    return d->key;
}

static void put_sizes(struct describer *d)
{
    const struct model_params *p = &d->file->params;
    const struct {
        const char *name;
        uint32_t value;
    } numbers[] = {
        {"block_count", p->n_layers},          {"context_length", p->context_train},
        {"embedding_length", p->hidden},       {"feed_forward_length", p->mlp},
        {"attention.head_count", p->n_heads},  {"attention.head_count_kv", p->n_kv_heads},
        {"attention.key_length", p->head_dim}, {"attention.value_length", p->head_dim},
        {"rope.dimension_count", p->rope_dim}, {"vocab_size", p->vocab_size},
    };
    for (size_t i = 0; i < sizeof(numbers) / sizeof(numbers[0]); i++)
        gguf_writer_set_u32(d->writer, arch_key(d, numbers[i].name), numbers[i].value);
    gguf_writer_set_f32(d->writer, arch_key(d, "attention.layer_norm_rms_epsilon"), p->rms_eps);
    gguf_writer_set_f32(d->writer, arch_key(d, "rope.freq_base"), p->rope_theta);
    if (d->file->scaling.type == ROPE_SCALING_LINEAR) {
        gguf_writer_set_string(d->writer, arch_key(d, "rope.scaling.type"), "linear");
        gguf_writer_set_f32(d->writer, arch_key(d, "rope.scaling.factor"), d->file->scaling.factor);
    }
}

static void put_tokens(struct describer *d)
{
    const struct vocab *v = &d->file->vocab;
    _cleanup_mem_ int32_t *kinds = mem_array(v->n_tokens, sizeof(*kinds));

    for (uint32_t i = 0; kinds && i < v->n_tokens; i++)
        kinds[i] = v->kind[i];
    gguf_writer_set_string(d->writer, "tokenizer.ggml.model",
                           v->model == VOCAB_BPE ? "gpt2" : "llama");
    gguf_writer_set_string(d->writer, "tokenizer.ggml.pre", v->pre);
    gguf_writer_set_strings(d->writer, "tokenizer.ggml.tokens", v->text, v->n_tokens);
    if (kinds) /* what the writer runs out of memory for it reports itself; so must this */
        gguf_writer_set_items(d->writer, "tokenizer.ggml.token_type", GGUF_I32, true, kinds,
                              v->n_tokens);
    else
        gguf_writer_fail(d->writer, "tokenizer.ggml.token_type");
    if (v->model == VOCAB_BPE)
        gguf_writer_set_strings(d->writer, "tokenizer.ggml.merges", v->merges, v->n_merges);
    else
        gguf_writer_set_items(d->writer, "tokenizer.ggml.scores", GGUF_F32, true, v->score,
                              v->n_tokens);
}

static void put_specials(struct describer *d)
{
    const struct vocab *v = &d->file->vocab;
    const struct {
        const char *key;
        int32_t id;
        bool has_default; /* readers take a token of their own when the key is missing */
    } specials[] = {
        {"tokenizer.ggml.bos_token_id", v->bos, true},
        {"tokenizer.ggml.eos_token_id", v->eos, true},
        {"tokenizer.ggml.eot_token_id", v->eot, false},
        {"tokenizer.ggml.unknown_token_id", v->unk, v->model == VOCAB_SPM},
        {"tokenizer.ggml.padding_token_id", v->pad, false},
    };
    for (size_t i = 0; i < sizeof(specials) / sizeof(specials[0]); i++)
        if (specials[i].id >= 0 || specials[i].has_default)
            gguf_writer_set_u32(d->writer, specials[i].key,
                                specials[i].id < 0 ? NONE : (uint32_t)specials[i].id);
    gguf_writer_set_bool(d->writer, "tokenizer.ggml.add_bos_token", v->add_bos);
    gguf_writer_set_bool(d->writer, "tokenizer.ggml.add_eos_token", v->add_eos);
    if (v->model == VOCAB_SPM)
        gguf_writer_set_bool(d->writer, "tokenizer.ggml.add_space_prefix", v->add_space_prefix);
    if (v->chat_template)
        gguf_writer_set_string(d->writer, "tokenizer.chat_template", v->chat_template);
}

void model_file_describe(const struct model_file *file, struct gguf_writer *writer)
{
    struct describer d = {.file = file, .writer = writer};

    if (file->gguf) {
        for (size_t i = 0; i < gguf_n_kv(file->gguf); i++)
            gguf_writer_copy(writer, gguf_kv_at(file->gguf, i));
        return;
    }
    gguf_writer_set_string(writer, "general.architecture", model_arch_name(file->params.arch));
    gguf_writer_set_string(writer, "general.name", file->params.name);
    put_sizes(&d);
    put_tokens(&d);
    put_specials(&d);
    gguf_writer_set_u32(writer, "general.quantization_version", 2);
}

uint32_t model_file_gguf_row(const struct model_file *file, uint32_t row)
{
    const struct model_params *p = &file->params;
    uint32_t head = row / p->head_dim, i = row % p->head_dim;
    bool interleaves = p->arch == MODEL_LLAMA && p->rope_pairs == ROPE_HALVES;
    if (!interleaves || i >= p->rope_dim)
        return row;
    return head * p->head_dim + i / 2 + (i % 2 ? p->rope_dim / 2 : 0);
}

bool model_file_rope_divisors(const struct model_file *file, float *ret_divisors)
{
    const struct model_params *p = &file->params;
    if (file->gguf || file->scaling.type != ROPE_SCALING_LLAMA3)
        return false;
    for (uint32_t i = 0; i < p->rope_dim / 2; i++)
        ret_divisors[i] = (float)(pow((double)p->rope_theta, -2.0 * i / p->rope_dim) /
                                  (double)p->rope_inv_freq[i]);
    return true;
}
