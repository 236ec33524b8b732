/* GGUF files as models: parameters, shapes, RoPE, the vocabulary's defaults, fitting twins; and the
 * real SmolLM2 where it is at hand. */
#include "engine/base/mem.h"
#include "engine/model/model.h"
#include "engine/model/model_file.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = P_tmpdir "/overfill-test-XXXXXX";
static char path_a[64], path_b[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(path_a, sizeof(path_a), "%s/a.gguf", folder);
    snprintf(path_b, sizeof(path_b), "%s/b.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(path_a);
    unlink(path_b);
    return rmdir(folder);
}

static struct model_file *open_tiny(const struct tiny *tiny, const char *path)
{
    struct model_file *file = NULL;
    struct error err = {0};

    tiny_write_gguf(tiny, path);
    if (model_file_open(path, &file, &err))
        fail_msg("%s", err.message);
    return file;
}

static void expect_refused(const char *name, const struct tiny *tiny, enum error_code code,
                           const char *says)
{
    struct model_file *file = NULL;
    struct error err = {0};

    tiny_write_gguf(tiny, path_a);
    int rc = model_file_open(path_a, &file, &err);
    if (rc != -(int)code || !strstr(err.message, says) || strchr(err.message, '\n'))
        fail_msg("%s: code %d, message \"%s\"", name, rc, err.message);
    assert_non_null(strstr(err.message, "a.gguf: "));
    assert_null(file);
}

static void each_architecture_opens_with_its_parameters(void **state)
{
    static const struct {
        const char *arch;
        bool bias, qk_norm, untied;
        enum model_arch expected;
        enum rope_pairs pairs;
    } cases[] = {
        {"llama", false, false, false, MODEL_LLAMA, ROPE_INTERLEAVED},
        {"llama", true, false, true, MODEL_LLAMA, ROPE_INTERLEAVED},
        {"qwen2", true, false, true, MODEL_QWEN2, ROPE_HALVES},
        {"qwen3", false, true, false, MODEL_QWEN3, ROPE_HALVES},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_default();
        tiny.arch = cases[i].arch;
        tiny.bias = cases[i].bias;
        tiny.qk_norm = cases[i].qk_norm;
        tiny.untied = cases[i].untied;
        tiny.head_dim = 6; /* heads * head_dim is not hidden */
        struct model_file *file = open_tiny(&tiny, path_a);
        const struct model_params *p = model_file_params(file);
        assert_string_equal(p->name, "tiny");
        assert_int_equal(p->arch, cases[i].expected);
        assert_int_equal(p->rope_pairs, cases[i].pairs);
        assert_int_equal(p->n_layers, 2);
        assert_int_equal(p->hidden, 16);
        assert_int_equal(p->norm_width, 16);
        assert_int_equal(p->mlp, 24);
        assert_int_equal(p->n_heads, 4);
        assert_int_equal(p->n_kv_heads, 2);
        assert_int_equal(p->head_dim, 6);
        assert_int_equal(p->rope_dim, 6);
        assert_int_equal(p->vocab_size, TINY_TOKENS);
        assert_int_equal(p->context_train, 64);
        assert_true(p->tied == !cases[i].untied);
        assert_true(p->has_qkv_bias == cases[i].bias);
        assert_true(p->has_qk_norm == cases[i].qk_norm);
        assert_true(p->rms_eps == 1e-5f && p->rope_theta == 10000);
        model_file_close(file);
    }
}

static void tensors_hold_what_was_written(void **state)
{
    struct tiny tiny = tiny_default();
    struct model_file *file = open_tiny(&tiny, path_a);
    uint64_t n_params = 0;

    for (size_t i = 0; i < model_file_n_tensors(file); i++) {
        const struct tensor *t = model_file_tensor_at(file, i);
        assert_ptr_equal(model_file_tensor(file, t->name), t);
        float *values = mem_array(t->dims[0] * t->dims[1], sizeof(float));
        tensor_dequantize(t->type, t->data, t->dims[0] * t->dims[1], values);
        for (size_t k = 0; k < t->dims[0] * t->dims[1]; k++)
            assert_true(values[k] == tiny_value(t->name, k));
        n_params += t->dims[0] * t->dims[1];
        mem_free(values);
    }
    assert_int_equal(model_file_n_params(file), n_params);
    assert_null(model_file_tensor(file, "output.weight"));
    assert_null(model_file_tensor(file,
                                  "a name that is longer than any name can be in a GGUF file, "
                                  "and so on"));
    model_file_close(file);
}

/* Metadata changes, one a case. */
static void other_arch(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "general.architecture", "gemma3");
}

static void no_arch(struct gguf_writer *w)
{
    gguf_writer_remove(w, "general.architecture");
}

static void value_length(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.attention.value_length", 8);
}

static void yarn(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "llama.rope.scaling.type", "yarn");
}

static void no_layers(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.block_count", 0);
}

static void many_layers(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.block_count", 4000000000u);
}

static void layers_as_string(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "llama.block_count", "2");
}

static void three_kv_heads(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.attention.head_count_kv", 3);
}

static void no_kv_heads(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.attention.head_count_kv", 0);
}

static void odd_rope(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.rope.dimension_count", 3);
}

static void long_rope(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.rope.dimension_count", 6);
}

static void nan_eps(struct gguf_writer *w)
{
    gguf_writer_set_f32(w, "llama.attention.layer_norm_rms_epsilon", NAN);
}

static void zero_theta(struct gguf_writer *w)
{
    gguf_writer_set_f32(w, "llama.rope.freq_base", 0);
}

static void negative_factor(struct gguf_writer *w)
{
    gguf_writer_set_f32(w, "llama.rope.scaling.factor", -2);
}

static void experts(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.expert_count", 8);
}

static void wide_norm(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "overfill.norm_width", 17);
}

static void no_head_dim(struct gguf_writer *w)
{
    gguf_writer_remove(w, "llama.attention.key_length");
    gguf_writer_remove(w, "llama.attention.value_length");
    gguf_writer_set_u32(w, "llama.attention.head_count", 3);
}

static void no_tokenizer(struct gguf_writer *w)
{
    gguf_writer_remove(w, "tokenizer.ggml.model");
}

static void unigram(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.ggml.model", "t5");
}

static void few_tokens(struct gguf_writer *w)
{
    static const struct vocab_string tokens[] = {{"a", 1}, {"b", 1}};
    gguf_writer_set_strings(w, "tokenizer.ggml.tokens", tokens, 2);
    gguf_writer_remove(w, "tokenizer.ggml.token_type");
}

static void few_kinds(struct gguf_writer *w)
{
    static const int32_t kinds[] = {1, 1};
    gguf_writer_set_items(w, "tokenizer.ggml.token_type", GGUF_I32, true, kinds, 2);
}

static void wrong_kind(struct gguf_writer *w)
{
    static const int32_t kinds[TINY_TOKENS] = {1, 1, 7};
    gguf_writer_set_items(w, "tokenizer.ggml.token_type", GGUF_I32, true, kinds, TINY_TOKENS);
}

static void no_merges(struct gguf_writer *w)
{
    gguf_writer_remove(w, "tokenizer.ggml.merges");
}

static void long_pre(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.ggml.pre", "a-pre-tokeniser-of-a-very-long-name");
}

static void metadata_that_cannot_be_is_refused_by_name(void **state)
{
    static const struct {
        void (*change)(struct gguf_writer *w);
        enum error_code code;
        const char *says;
    } cases[] = {
        {other_arch, ERROR_UNSUPPORTED, "llama, qwen2 or qwen3 expected, found gemma3"},
        {no_arch, ERROR_FORMAT, "key general.architecture: missing"},
        {value_length, ERROR_UNSUPPORTED, "llama.attention.value_length: 4 expected"},
        {yarn, ERROR_UNSUPPORTED,
         "key llama.rope.scaling.type: none or linear expected, found yarn"},
        {no_layers, ERROR_FORMAT, "layers: 1..1024 expected, found 0"},
        {many_layers, ERROR_FORMAT, "layers: 1..1024 expected, found 4000000000"},
        {layers_as_string, ERROR_FORMAT, "key llama.block_count: an unsigned"},
        {three_kv_heads, ERROR_FORMAT, "multiple of the 3 KV heads expected, found 4"},
        {no_kv_heads, ERROR_FORMAT, "KV heads: 1..4 expected, found 0"},
        {odd_rope, ERROR_FORMAT, "an even number expected, found 3"},
        {long_rope, ERROR_FORMAT, "RoPE dimension: 1..4 expected, found 6"},
        {nan_eps, ERROR_FORMAT, "RMSNorm epsilon"},
        {zero_theta, ERROR_FORMAT, "RoPE base"},
        {negative_factor, ERROR_FORMAT, "RoPE scaling factor"},
        {experts, ERROR_UNSUPPORTED, "key llama.expert_count: is not supported"},
        {wide_norm, ERROR_FORMAT, "norm width: 1..16 expected, found 17"},
        {no_head_dim, ERROR_FORMAT, "embedding_length 16 is not a multiple"},
        {no_tokenizer, ERROR_FORMAT, "key tokenizer.ggml.model: missing"},
        {unigram, ERROR_UNSUPPORTED, "gpt2 or llama expected, found t5"},
        {few_tokens, ERROR_FORMAT,
         "tensor token_embd.weight: shape [16, 2] expected, found [16, 12"},
        {few_kinds, ERROR_FORMAT, "token_type: an array of 12 items expected"},
        {wrong_kind, ERROR_FORMAT, "token_type: item 2: 1..6 expected"},
        {no_merges, ERROR_FORMAT, "key tokenizer.ggml.merges: missing"},
        {long_pre, ERROR_UNSUPPORTED, "key tokenizer.ggml.pre"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_default();
        tiny.change = cases[i].change;
        expect_refused(cases[i].says, &tiny, cases[i].code, cases[i].says);
    }
}

static void every_tensor_is_needed_and_of_one_shape(void **state)
{
    static const char *const names[] = {
        "token_embd.weight",        "output_norm.weight",    "blk.0.attn_norm.weight",
        "blk.1.attn_q.weight",      "blk.1.attn_k.weight",   "blk.1.attn_v.weight",
        "blk.1.attn_output.weight", "blk.1.ffn_norm.weight", "blk.1.ffn_gate.weight",
        "blk.1.ffn_up.weight",      "blk.1.ffn_down.weight", "blk.1.attn_k.bias",
        "blk.0.attn_q_norm.weight",
    };
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tiny tiny = tiny_default();
        char says[96];
        tiny.arch = "qwen3";
        tiny.bias = tiny.qk_norm = true;
        tiny.without = names[i];
        snprintf(says, sizeof(says), "tensor %s: missing", names[i]);
        expect_refused(names[i], &tiny, ERROR_FORMAT, says);
        tiny.without = NULL;
        tiny.longer = names[i];
        snprintf(says, sizeof(says), "tensor %s: shape [", names[i]);
        expect_refused(names[i], &tiny, ERROR_FORMAT, says);
    }
}

static void a_tensor_too_many_is_refused(void **state)
{
    static const char *const names[] = {"blk.0.attn_output.bias", "blk.2.attn_norm.weight",
                                        "blk.0.ffn_gate_exps.weight", "v.patch_embd.weight"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++) {
        struct tiny tiny = tiny_default();
        char says[96];
        tiny.extra = names[i];
        snprintf(says, sizeof(says), "tensor %s: no part of the model", names[i]);
        expect_refused(names[i], &tiny, ERROR_UNSUPPORTED, says);
    }
}

static void qk_norms_outside_qwen3_are_refused(void **state)
{
    struct tiny tiny = tiny_default();
    tiny.qk_norm = true;
    expect_refused("llama", &tiny, ERROR_UNSUPPORTED, "attn_q_norm.weight: no part of the model");
}

static void linear_scaling(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "llama.rope.scaling.type", "linear");
    gguf_writer_set_f32(w, "llama.rope.scaling.factor", 4);
}

static void no_scaling(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "llama.rope.scaling.type", "none");
    gguf_writer_set_f32(w, "llama.rope.scaling.factor", 4);
}

static void rope_frequencies_follow_the_scaling(void **state)
{
    /* theta 10000, 4 dimensions: 1 and 1/100 */
    static const struct {
        void (*change)(struct gguf_writer *w);
        bool freqs;
        float expected[2];
    } cases[] = {
        {NULL, false, {1, 0.01f}},
        {no_scaling, false, {1, 0.01f}},
        {linear_scaling, false, {0.25f, 0.0025f}},
        {NULL, true, {1.0f / 2, 0.01f / 3}}, /* rope_freqs.weight is {2, 3} */
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_default();
        tiny.change = cases[i].change;
        tiny.rope_freqs = cases[i].freqs;
        struct model_file *file = open_tiny(&tiny, path_a);
        const float *got = model_file_params(file)->rope_inv_freq;
        for (int k = 0; k < 2; k++)
            assert_true(fabsf(got[k] / cases[i].expected[k] - 1) < 1e-6f);
        model_file_close(file);
    }
}

static void spm_defaults(struct gguf_writer *w)
{
    static const float scores[TINY_TOKENS] = {0, 0, 0, -1, -2, -3, -0.5f};
    gguf_writer_set_string(w, "tokenizer.ggml.model", "llama");
    gguf_writer_set_items(w, "tokenizer.ggml.scores", GGUF_F32, true, scores, TINY_TOKENS);
    gguf_writer_remove(w, "tokenizer.ggml.pre");
    gguf_writer_remove(w, "tokenizer.ggml.bos_token_id");
    gguf_writer_remove(w, "tokenizer.ggml.eos_token_id");
}

static void llama_bpe(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.ggml.pre", "llama-bpe");
    gguf_writer_set_u32(w, "tokenizer.ggml.padding_token_id", 99); /* no such token: none */
    gguf_writer_set_u32(w, "tokenizer.ggml.eot_token_id", 3);
}

static void said_otherwise(struct gguf_writer *w)
{
    llama_bpe(w);
    gguf_writer_set_bool(w, "tokenizer.ggml.add_bos_token", false);
    gguf_writer_set_bool(w, "tokenizer.ggml.add_eos_token", true);
}

static void the_vocabulary_has_llama_cpps_defaults(void **state)
{
    static const struct {
        void (*change)(struct gguf_writer *w);
        struct vocab v;
    } cases[] = {
        {NULL, {VOCAB_BPE, "gpt-2", .bos = 1, .eos = 2, .eot = -1, .unk = -1, .pad = -1}},
        {spm_defaults,
         {VOCAB_SPM, "default", .bos = 1, .eos = 2, .eot = -1, .unk = 0, .pad = -1, .add_bos = true,
          .add_space_prefix = true}},
        {llama_bpe,
         {VOCAB_BPE, "llama-bpe", .bos = 1, .eos = 2, .eot = 3, .unk = -1, .pad = -1,
          .add_bos = true}},
        {said_otherwise,
         {VOCAB_BPE, "llama-bpe", .bos = 1, .eos = 2, .eot = 3, .unk = -1, .pad = -1,
          .add_eos = true}},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_default();
        tiny.change = cases[i].change;
        struct model_file *file = open_tiny(&tiny, path_a);
        const struct vocab *got = model_file_vocab(file), *want = &cases[i].v;
        assert_int_equal(got->model, want->model);
        assert_string_equal(got->pre, want->pre);
        assert_int_equal(got->bos, want->bos);
        assert_int_equal(got->eos, want->eos);
        assert_int_equal(got->eot, want->eot);
        assert_int_equal(got->unk, want->unk);
        assert_int_equal(got->pad, want->pad);
        assert_true(got->add_bos == want->add_bos && got->add_eos == want->add_eos);
        assert_true(got->add_space_prefix == want->add_space_prefix);
        assert_int_equal(got->n_tokens, TINY_TOKENS);
        assert_memory_equal(got->text[7].data, "abc", 3);
        assert_int_equal(got->kind[9], TOKEN_USER_DEFINED);
        assert_string_equal(got->chat_template, "{{ messages }}");
        assert_true((got->score != NULL) == (want->model == VOCAB_SPM));
        assert_true(got->model == VOCAB_BPE || got->score[6] == -0.5f);
        assert_int_equal(got->n_merges, want->model == VOCAB_BPE ? 2 : 0);
        model_file_close(file);
    }
}

static void true_width_11(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "overfill.norm_width", 11);
}

static void a_narrower_twin_fits(void **state)
{
    struct tiny tiny = tiny_default();
    struct error err = {0};
    struct model_file *full = open_tiny(&tiny, path_a);
    tiny.mlp = 8;
    tiny.hidden = 12;
    tiny.change = true_width_11;
    struct model_file *twin = open_tiny(&tiny, path_b);

    struct error warning = {0};
    assert_int_equal(model_file_check_pair(full, twin, &warning, &err), 0);
    assert_int_equal(warning.code, ERROR_NONE);
    assert_int_equal(model_file_params(twin)->norm_width, 11);
    model_file_close(full);
    model_file_close(twin);
}

static void other_token(struct gguf_writer *w)
{
    static const struct vocab_string tokens[TINY_TOKENS] = {{"<unk>", 5}, {"<s>", 3}, {"</s>", 4},
                                                            {"a", 1},     {"b", 1},   {"B", 1}};
    gguf_writer_set_strings(w, "tokenizer.ggml.tokens", tokens, TINY_TOKENS);
}

static void other_pre(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.ggml.pre", "qwen2");
}

static void other_theta(struct gguf_writer *w)
{
    gguf_writer_set_f32(w, "llama.rope.freq_base", 500000);
}

static void other_rope_dim(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.rope.dimension_count", 2);
}

static void other_merge(struct gguf_writer *w)
{
    static const struct vocab_string merges[] = {{"a b", 3}, {"a bc", 4}};
    gguf_writer_set_strings(w, "tokenizer.ggml.merges", merges, 2);
}

static void one_merge(struct gguf_writer *w)
{
    static const struct vocab_string merges[] = {{"a b", 3}};
    gguf_writer_set_strings(w, "tokenizer.ggml.merges", merges, 1);
}

static void a_twin_that_differs_is_refused_with_both_values(void **state)
{
    const struct tiny tiny = tiny_default();
    struct {
        const char *says;
        struct tiny tiny;
    } cases[] = {
        {"layers: 2 expected, found 3", tiny},
        {": heads: 4 expected, found 2", tiny},
        {"KV heads: 2 expected, found 1", tiny},
        {"head dimension: 4 expected, found 6", tiny},
        {"vocabulary size: 12 expected, found 14", tiny},
        {"RoPE dimension: 4 expected, found 2", tiny},
        {"RoPE frequency 1: 0.00999999978 expected, found 0.00141", tiny},
        {"RoPE frequency 0: 1 expected, found 0.5", tiny},
        {"token 5: \"c\" expected, found \"B\"", tiny},
        {"tokenizer: bpe gpt-2 expected, found bpe qwen2", tiny},
        {"tokenizer: bpe gpt-2 expected, found spm default", tiny},
        {"tokenizer: merge 1: \"ab c\" expected, found \"a bc\"", tiny},
        {"tokenizer: 2 merges expected, found 1", tiny},
    };
    cases[0].tiny.n_layers = 3;
    cases[1].tiny.n_heads = 2;
    cases[2].tiny.n_kv_heads = 1;
    cases[3].tiny.head_dim = 6;
    cases[4].tiny.n_tokens = 14;
    cases[5].tiny.change = other_rope_dim;
    cases[6].tiny.change = other_theta;
    cases[7].tiny.rope_freqs = true;
    cases[8].tiny.change = other_token;
    cases[9].tiny.change = other_pre;
    cases[10].tiny.change = spm_defaults;
    cases[11].tiny.change = other_merge;
    cases[12].tiny.change = one_merge;
    struct model_file *full = open_tiny(&tiny, path_a);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct error err = {0};
        struct error warning;
        struct model_file *twin = open_tiny(&cases[i].tiny, path_b);
        assert_int_equal(model_file_check_pair(full, twin, &warning, &err), -ERROR_INVALID);
        if (!strstr(err.message, cases[i].says) || !strstr(err.message, "b.gguf does not fit "))
            fail_msg("\"%s\" expected, found \"%s\"", cases[i].says, err.message);
        model_file_close(twin);
    }
    model_file_close(full);
}

static void other_bos_text(struct gguf_writer *w)
{
    static const struct vocab_string tokens[TINY_TOKENS] = {
        {"<unk>", 5}, {"<bos>", 5}, {"</s>", 4},     {"a", 1}, {"b", 1},      {"c", 1},
        {"ab", 2},    {"abc", 3},   {"\xc4\xa0", 2}, {"d", 1}, {"<0x0A>", 6}, {"x", 1}};
    gguf_writer_set_strings(w, "tokenizer.ggml.tokens", tokens, TINY_TOKENS);
}

static void other_eos(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "tokenizer.ggml.eos_token_id", 1);
}

static void adds_bos(struct gguf_writer *w)
{
    gguf_writer_set_bool(w, "tokenizer.ggml.add_bos_token", true);
}

static void other_template(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.chat_template", "{{ other }}");
}

static void other_special_tokens_and_template_are_a_warning(void **state)
{
    static const struct {
        void (*change)(struct gguf_writer *w);
        const char *says;
    } cases[] = {
        {other_bos_text, "special token 1 is \"<bos>\", in the full model \"<s>\""},
        {other_eos, "token eos is 1, in the full model 2"},
        {adds_bos, "add_bos is 1, in the full model 0"},
        {other_template, "the chat template is not the full model's"},
    };
    struct tiny tiny = tiny_default();
    struct model_file *full = open_tiny(&tiny, path_a);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct error warning = {0};
        struct error err = {0};
        tiny.change = cases[i].change;
        struct model_file *twin = open_tiny(&tiny, path_b);
        if (model_file_check_pair(full, twin, &warning, &err))
            fail_msg("%s", err.message);
        assert_string_equal(warning.message, cases[i].says);
        model_file_close(twin);
    }
    model_file_close(full);
}

static void put_scores(struct gguf_writer *w, const float *scores)
{
    spm_defaults(w);
    gguf_writer_set_items(w, "tokenizer.ggml.scores", GGUF_F32, true, scores, TINY_TOKENS);
}

static void same_order(struct gguf_writer *w)
{
    put_scores(w, (const float[TINY_TOKENS]){0, 0, 0, -7, -8, -9, -5});
}

static void c_before_b(struct gguf_writer *w)
{
    put_scores(w, (const float[TINY_TOKENS]){0, 0, 0, -1, -3, -2, -0.5f});
}

static void sentencepiece_scores_are_compared_by_their_order(void **state)
{
    struct tiny tiny = tiny_default();
    struct error warning = {0};
    struct error err = {0};
    tiny.change = spm_defaults;
    struct model_file *full = open_tiny(&tiny, path_a);
    tiny.change = same_order;
    struct model_file *twin = open_tiny(&tiny, path_b);
    if (model_file_check_pair(full, twin, &warning, &err))
        fail_msg("%s", err.message);
    assert_int_equal(warning.code, ERROR_NONE);
    model_file_close(twin);

    tiny.change = c_before_b;
    twin = open_tiny(&tiny, path_b);
    assert_int_equal(model_file_check_pair(full, twin, &warning, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "token 4 expected to be merged before token 5"));
    model_file_close(twin);
    model_file_close(full);
}

static void flip_last_byte(const char *path)
{
    FILE *stream = fopen(path, "r+b");
    assert_non_null(stream);
    fseek(stream, -1, SEEK_END); /* output_norm: 64 bytes, no padding behind it */
    int c = fgetc(stream);
    fseek(stream, -1, SEEK_END);
    fputc(c ^ 1, stream);
    fclose(stream);
}

static void the_hash_tells_files_apart(void **state)
{
    struct tiny tiny = tiny_default();
    struct model_file *a = open_tiny(&tiny, path_a), *b = open_tiny(&tiny, path_b);
    struct error err = {0};
    uint64_t hash = model_file_hash(a);

    assert_true(hash == model_file_hash(b));
    model_file_close(b);
    flip_last_byte(path_b);
    assert_int_equal(model_file_open(path_b, &b, &err), 0);
    assert_true(hash != model_file_hash(b));
    model_file_close(b);
    tiny.change = other_theta;
    b = open_tiny(&tiny, path_b);
    assert_true(hash != model_file_hash(b));
    model_file_close(a);
    model_file_close(b);
}

static void damage_to_the_header_never_crashes(void **state)
{
    struct tiny tiny = tiny_default();
    static char data[1 << 16];
    struct error err;

    tiny_write_gguf(&tiny, path_a);
    FILE *stream = fopen(path_a, "rb");
    size_t len = fread(data, 1, sizeof(data), stream);
    fclose(stream);
    assert_in_range(len, 5000, sizeof(data) - 1);
    for (size_t at = 0; at < 3200; at++) { /* metadata and tensor table */
        static const uint8_t values[] = {0, 1, 0x80, 0xff};
        struct model_file *file = NULL;
        char old = data[at];
        data[at] = (char)values[at % 4];
        stream = fopen(path_b, "wb");
        assert_int_equal(fwrite(data, 1, len, stream), len);
        fclose(stream);
        data[at] = old;
        if (model_file_open(path_b, &file, &err) == 0)
            model_file_hash(file);
        model_file_close(file);
    }
}

static void a_failed_allocation_is_an_error(void **state)
{
    struct tiny tiny = tiny_default();
    struct model_file *file = NULL;
    unsigned long k = 0;
    int rc;

    tiny_write_gguf(&tiny, path_a);
    do {
        struct error err = {0};
        mem_fail_at(++k);
        rc = model_file_open(path_a, &file, &err);
        if (rc)
            assert_int_equal(err.code, ERROR_MEMORY);
    } while (rc);
    mem_fail_at(0);
    assert_in_range(k, 8, 40);
    model_file_close(file);
}

static void smollm2_opens_with_its_known_numbers(void **state)
{
    const char *models = getenv("OVERFILL_MODELS");
    struct model_file *file;
    struct error err = {0};
    char path[4096];

    snprintf(path, sizeof(path), "%s/SmolLM2-135M-Instruct.Q4_1.gguf",
             models ? models : OVERFILL_SOURCE_ROOT "/models");
    if (access(path, R_OK)) {
        print_message("skipped: %s is missing (scripts/fetch-model gets it)\n", path);
        skip();
    }
    if (model_file_open(path, &file, &err))
        fail_msg("%s", err.message);
    const struct model_params *p = model_file_params(file);
    const struct vocab *v = model_file_vocab(file);
    assert_int_equal(model_file_bytes(file), 98362432);
    assert_int_equal(model_file_n_params(file), 134515008);
    assert_int_equal(model_file_n_tensors(file), 272);
    assert_int_equal(p->n_layers, 30);
    assert_int_equal(p->hidden, 576);
    assert_int_equal(p->n_kv_heads, 3);
    assert_int_equal(p->head_dim, 64);
    assert_true(p->tied && p->rope_theta == 100000 && p->rms_eps == 1e-5f);
    assert_int_equal(v->n_tokens, 49152);
    assert_int_equal(v->n_merges, 48900);
    assert_string_equal(v->pre, "smollm");
    assert_false(v->add_bos);
    assert_int_equal(v->text[2].len, 10);
    assert_memory_equal(v->text[2].data, "<|im_end|>", 10);
    model_file_close(file);
}

/* Somebody copies another model over the file while it is in use. */
static void an_open_model_survives_its_file_being_cut(void **state)
{
    struct tiny tiny = tiny_default();
    struct model_file *file = open_tiny(&tiny, path_a);
    struct tokenizer *tokenizer;
    struct token_list before = {0}, after = {0};
    struct model *model;
    struct error err;
    float row[2][16];

    assert_int_equal(
        model_open(file,
                   &(struct model_open_options){.weights = MODEL_WEIGHTS_AUTO, .n_positions = 16},
                   &model, &err),
        0);
    assert_int_equal(tokenizer_open(model_file_vocab(file), &tokenizer, &err), 0);
    model_embed(model, 3, row[0]);
    assert_int_equal(tokenizer_encode(tokenizer, "ab ba", 5, 0, &before, &err), 0);
    assert_int_equal(truncate(path_a, 0), 0);
    model_embed(model, 3, row[1]);
    assert_memory_equal(row[0], row[1], sizeof(row[0]));
    for (int32_t token = 0; token < TINY_TOKENS; token++) {
        size_t len;
        model_embed(model, token, row[1]);
        assert_non_null(tokenizer_piece(tokenizer, token, &len));
    }
    assert_int_equal(tokenizer_encode(tokenizer, "ab ba", 5, 0, &after, &err), 0);
    assert_int_equal(after.n, before.n);
    assert_memory_equal(after.ids, before.ids, before.n * sizeof(*before.ids));
    token_list_free(&before);
    token_list_free(&after);
    tokenizer_close(tokenizer);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(each_architecture_opens_with_its_parameters),
        cmocka_unit_test(tensors_hold_what_was_written),
        cmocka_unit_test(an_open_model_survives_its_file_being_cut),
        cmocka_unit_test(metadata_that_cannot_be_is_refused_by_name),
        cmocka_unit_test(every_tensor_is_needed_and_of_one_shape),
        cmocka_unit_test(a_tensor_too_many_is_refused),
        cmocka_unit_test(qk_norms_outside_qwen3_are_refused),
        cmocka_unit_test(rope_frequencies_follow_the_scaling),
        cmocka_unit_test(the_vocabulary_has_llama_cpps_defaults),
        cmocka_unit_test(a_narrower_twin_fits),
        cmocka_unit_test(a_twin_that_differs_is_refused_with_both_values),
        cmocka_unit_test(other_special_tokens_and_template_are_a_warning),
        cmocka_unit_test(sentencepiece_scores_are_compared_by_their_order),
        cmocka_unit_test(the_hash_tells_files_apart),
        cmocka_unit_test(damage_to_the_header_never_crashes),
        cmocka_unit_test(a_failed_allocation_is_an_error),
        cmocka_unit_test(smollm2_opens_with_its_known_numbers),
    };
    return cmocka_run_group_tests_name("model_file", tests, make_folder, remove_folder);
}
