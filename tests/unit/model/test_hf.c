/* Hugging Face folders: the same tiny model as a GGUF file and as a folder must come out the same;
 * shards, RoPE settings, tokenizers of each kind; and everything that such a folder can get wrong.
 */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/model/model_file.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char folder[] = P_tmpdir "/overfill-test-XXXXXX";

static const char *const file_names[] = {"config.json",
                                         "tokenizer.json",
                                         "tokenizer_config.json",
                                         "chat_template.jinja",
                                         "generation_config.json",
                                         "model.safetensors",
                                         "model-1.safetensors",
                                         "model-2.safetensors",
                                         "model.safetensors.index.json",
                                         "a.gguf"};

static const char *path_of(const char *name)
{
    static char path[128];
    snprintf(path, sizeof(path), "%s/%s", folder, name);
    return path;
}

static void clear_folder(void)
{
    for (size_t i = 0; i < sizeof(file_names) / sizeof(file_names[0]); i++)
        unlink(path_of(file_names[i]));
}

static int make_folder(void **state)
{
    return mkdtemp(folder) ? 0 : -1;
}

static int remove_folder(void **state)
{
    clear_folder();
    return rmdir(folder);
}

static void put_file(const char *name, const void *data, size_t len)
{
    FILE *stream = fopen(path_of(name), "wb");
    assert_non_null(stream);
    assert_int_equal(fwrite(data, 1, len, stream), len);
    fclose(stream);
}

static void put_text(const char *name, const char *text)
{
    put_file(name, text, strlen(text));
}

/* Safetensors from tiny's tensors under their Hugging Face names. */
struct shard {
    struct buf header, data;
    const char *dtype;      /* F32, F16, BF16 */
    int i_tensor, from, to; /* the tensors that go to this shard */
};

static void hf_name(const char *gguf, char out[128])
{
    static const char *const names[][2] = {
        {"attn_norm.weight", "input_layernorm.weight"},
        {"ffn_norm.weight", "post_attention_layernorm.weight"},
        {"attn_q.weight", "self_attn.q_proj.weight"},
        {"attn_k.weight", "self_attn.k_proj.weight"},
        {"attn_v.weight", "self_attn.v_proj.weight"},
        {"attn_output.weight", "self_attn.o_proj.weight"},
        {"attn_q.bias", "self_attn.q_proj.bias"},
        {"attn_k.bias", "self_attn.k_proj.bias"},
        {"attn_v.bias", "self_attn.v_proj.bias"},
        {"attn_q_norm.weight", "self_attn.q_norm.weight"},
        {"attn_k_norm.weight", "self_attn.k_norm.weight"},
        {"ffn_gate.weight", "mlp.gate_proj.weight"},
        {"ffn_up.weight", "mlp.up_proj.weight"},
        {"ffn_down.weight", "mlp.down_proj.weight"},
    };
    unsigned layer;
    int used = 0;

    if (strcmp(gguf, "token_embd.weight") == 0)
        strcpy(out, "model.embed_tokens.weight");
    else if (strcmp(gguf, "output_norm.weight") == 0)
        strcpy(out, "model.norm.weight");
    else if (strcmp(gguf, "output.weight") == 0)
        strcpy(out, "lm_head.weight");
    else if (sscanf(gguf, "blk.%u.%n", &layer, &used) == 1)
        for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
            if (strcmp(gguf + used, names[i][0]) == 0)
                snprintf(out, 128, "model.layers.%u.%s", layer, names[i][1]);
}

static void add_to_shard(void *user, const char *name, uint32_t n_dims, const uint64_t *dims)
{
    struct shard *s = user;
    uint64_t n = dims[0] * (n_dims > 1 ? dims[1] : 1);
    int type = tensor_type_from_name(s->dtype);
    char hf[128] = "an.unknown.name";
    size_t begin = s->data.len, bytes;

    if (s->i_tensor < s->from || s->i_tensor >= s->to) {
        s->i_tensor++;
        return;
    }
    s->i_tensor++;
    hf_name(name, hf);
    assert_true(tensor_type_bytes(type, n, &bytes));
    for (uint64_t i = 0; i < n; i++) {
        float value = tiny_value(name, i);
        uint8_t raw[4];
        assert_int_equal(tensor_quantize(type, &value, 1, raw, NULL), 0);
        buf_append(&s->data, raw, bytes / n);
    }
    buf_printf(&s->header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[", s->header.len > 1 ? "," : "",
               hf, s->dtype);
    if (n_dims > 1)
        buf_printf(&s->header, "%" PRIu64 ",", dims[1]);
    buf_printf(&s->header, "%" PRIu64 "],\"data_offsets\":[%zu,%zu]}", dims[0], begin, s->data.len);
}

/* Tensors from..to of the model to a file. */
static void put_shard(const char *name, const struct tiny *tiny, const char *dtype, int from,
                      int to)
{
    struct shard s = {.dtype = dtype, .from = from, .to = to};
    struct buf file = {0};

    buf_append_str(&s.header, "{");
    tiny_each_tensor(tiny, add_to_shard, &s);
    buf_append_str(&s.header, ",\"__metadata__\":{\"format\":\"pt\"}}");
    uint64_t header_bytes = s.header.len;
    buf_append(&file, &header_bytes, sizeof(header_bytes));
    buf_append(&file, s.header.data, s.header.len);
    buf_append(&file, s.data.data, s.data.len);
    put_file(name, file.data, file.len);
    buf_free(&s.header);
    buf_free(&s.data);
    buf_free(&file);
}

#define CONFIG_START                                                                               \
    "{\"hidden_size\":16,\"intermediate_size\":24,\"num_hidden_layers\":2,"                        \
    "\"num_attention_heads\":4,\"num_key_value_heads\":2,\"max_position_embeddings\":64,"          \
    "\"rms_norm_eps\":1e-5,\"vocab_size\":12,\"hidden_act\":\"silu\",\"eos_token_id\":[2,9],"      \
    "\"bos_token_id\":1"
#define CONFIG                                                                                     \
    CONFIG_START ",\"architectures\":[\"LlamaForCausalLM\"],\"tie_word_embeddings\":true,"         \
                 "\"rope_scaling\":null}"

/* The tokens of tiny.c without its unused last one. */
#define TOKENS                                                                                     \
    "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"a\":3,\"b\":4,\"c\":5,\"ab\":6,\"abc\":7,"      \
    "\"\\u0120\":8,\"<0x0A>\":10}"
#define ADDED                                                                                      \
    "\"added_tokens\":[{\"id\":1,\"content\":\"<s>\",\"special\":true},"                           \
    "{\"id\":2,\"content\":\"</s>\",\"special\":true},"                                            \
    "{\"id\":0,\"content\":\"<unk>\",\"special\":true},"                                           \
    "{\"id\":9,\"content\":\"d\",\"special\":false},"                                              \
    "{\"id\":12,\"content\":\"no row\",\"special\":false}]"
#define BYTE_LEVEL "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":true}"
#define TOKENIZER(pre, merges)                                                                     \
    "{" ADDED ",\"normalizer\":null,\"pre_tokenizer\":" pre ",\"model\":{\"type\":\"BPE\"," TOKENS \
    ",\"merges\":" merges "}}"
#define GPT2 TOKENIZER(BYTE_LEVEL, "[\"a b\",\"ab c\"]")

/* A folder that is right; the tests overwrite what they are about. */
static void put_folder(const struct tiny *tiny, const char *dtype)
{
    clear_folder();
    put_text("config.json", CONFIG);
    put_text("tokenizer.json", GPT2);
    put_shard("model.safetensors", tiny, dtype, 0, 1000);
}

static struct model_file *open_folder(void)
{
    struct model_file *file = NULL;
    struct error err = {0};
    if (model_file_open(folder, &file, &err))
        fail_msg("%s", err.message);
    return file;
}

static void expect_refused(enum error_code code, const char *says)
{
    struct model_file *file = NULL;
    struct error err = {0};
    int rc = model_file_open(folder, &file, &err);
    if (rc != -(int)code || !strstr(err.message, says) || strchr(err.message, '\n'))
        fail_msg("\"%s\" expected, found code %d, \"%s\"", says, rc, err.message);
    assert_non_null(strstr(err.message, folder));
    assert_null(file);
}

static void expect_same_tensors(const struct model_file *a, const struct model_file *b, float share)
{
    assert_int_equal(model_file_n_tensors(a), model_file_n_tensors(b));
    for (size_t i = 0; i < model_file_n_tensors(a); i++) {
        const struct tensor *x = model_file_tensor_at(a, i);
        const struct tensor *y = model_file_tensor(b, x->name);
        assert_non_null(y);
        assert_memory_equal(x->dims, y->dims, sizeof(x->dims));
        for (size_t k = 0; k < x->dims[0] * x->dims[1]; k++) {
            float u, v;
            tensor_dequantize(x->type, (const uint8_t *)x->data + k * 4, 1, &u);
            tensor_dequantize(y->type, (const uint8_t *)y->data + k * tensor_block_bytes(y->type),
                              1, &v);
            assert_true(fabsf(u - v) <= share * fabsf(u));
        }
    }
}

static void expect_same_vocab(const struct vocab *a, const struct vocab *b)
{
    assert_int_equal(a->model, b->model);
    assert_string_equal(a->pre, b->pre);
    assert_int_equal(a->n_tokens, b->n_tokens);
    for (uint32_t i = 0; i + 1 < a->n_tokens; i++) { /* the last one is a filler in the folder */
        assert_int_equal(a->text[i].len, b->text[i].len);
        assert_memory_equal(a->text[i].data, b->text[i].data, a->text[i].len);
    }
    assert_int_equal(a->n_merges, b->n_merges);
    for (uint32_t i = 0; i < a->n_merges; i++) {
        assert_int_equal(a->merges[i].len, b->merges[i].len);
        assert_memory_equal(a->merges[i].data, b->merges[i].data, a->merges[i].len);
    }
    assert_int_equal(a->bos, b->bos);
    assert_int_equal(a->eos, b->eos);
}

static void a_folder_is_the_same_model_as_its_gguf(void **state)
{
    static const struct {
        const char *dtype;
        float share;
    } cases[] = {{"F32", 0}, {"F16", 0x1p-10f}, {"BF16", 0x1p-8f}};
    struct tiny tiny = tiny_default();
    struct error err = {0};

    for (size_t i = 0; i < 3; i++) {
        struct model_file *gguf;
        put_folder(&tiny, cases[i].dtype);
        tiny_write_gguf(&tiny, path_of("a.gguf"));
        assert_int_equal(model_file_open(path_of("a.gguf"), &gguf, &err), 0);
        struct model_file *hf = open_folder();
        const struct model_params *a = model_file_params(gguf), *b = model_file_params(hf);
        expect_same_tensors(gguf, hf, cases[i].share);
        expect_same_vocab(model_file_vocab(gguf), model_file_vocab(hf));
        assert_int_equal(b->rope_pairs, ROPE_HALVES);
        assert_true(a->rms_eps == b->rms_eps && a->tied == b->tied && a->head_dim == b->head_dim);
        assert_memory_equal(a->rope_inv_freq, b->rope_inv_freq, 2 * sizeof(float));
        assert_string_equal(b->name, strrchr(folder, '/') + 1);
        assert_null(model_file_gguf(hf));
        model_file_close(gguf);
        model_file_close(hf);
    }
}

static void tokens_have_their_kinds(void **state)
{
    static const uint8_t kinds[TINY_TOKENS] = {TOKEN_CONTROL,      TOKEN_CONTROL, TOKEN_CONTROL,
                                               TOKEN_NORMAL,       TOKEN_NORMAL,  TOKEN_NORMAL,
                                               TOKEN_NORMAL,       TOKEN_NORMAL,  TOKEN_NORMAL,
                                               TOKEN_USER_DEFINED, TOKEN_NORMAL,  TOKEN_UNUSED};
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    struct model_file *file = open_folder();
    const struct vocab *v = model_file_vocab(file);

    assert_memory_equal(v->kind, kinds, sizeof(kinds));
    assert_int_equal(v->text[11].len, 7);
    assert_memory_equal(v->text[11].data, "[PAD11]", 7);
    assert_false(v->add_bos || v->add_eos);
    model_file_close(file);
}

static void shards_are_found_by_their_index(void **state)
{
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    struct model_file *whole = open_folder();
    put_shard("model-1.safetensors", &tiny, "F32", 0, 7);
    put_shard("model-2.safetensors", &tiny, "BF16", 7, 1000);
    put_text("model.safetensors.index.json",
             "{\"weight_map\":{\"a\":\"model-1.safetensors\",\"b\":\"model-2.safetensors\","
             "\"c\":\"model-1.safetensors\"}}");
    struct model_file *split = open_folder();

    expect_same_tensors(whole, split, 0x1p-8f);
    model_file_close(whole);
    model_file_close(split);
    put_shard("model-2.safetensors", &tiny, "F32", 6, 1000);
    expect_refused(ERROR_FORMAT, "stands in the files twice");
    put_shard("model-2.safetensors", &tiny, "F32", 8, 1000);
    expect_refused(ERROR_FORMAT, ": missing");
    unlink(path_of("model-2.safetensors"));
    expect_refused(ERROR_IO, "model-2.safetensors: No such file");
}

static void an_index_cannot_lead_out_of_the_folder(void **state)
{
    static const char *const bad[] = {"../model.safetensors",
                                      "/etc/model.safetensors",
                                      "sub/model.safetensors",
                                      ".hidden.safetensors",
                                      "model.bin",
                                      ".safetensors",
                                      ""};
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(bad) / sizeof(bad[0]); i++) {
        char index[200];
        snprintf(index, sizeof(index), "{\"weight_map\":{\"a\":\"%s\"}}", bad[i]);
        put_text("model.safetensors.index.json", index);
        expect_refused(ERROR_FORMAT, "names of .safetensors files in this folder expected");
    }
    put_text("model.safetensors.index.json", "{\"weight_map\":{\"a\":7}}");
    expect_refused(ERROR_FORMAT, "names of .safetensors files");
    put_text("model.safetensors.index.json", "{}");
    expect_refused(ERROR_FORMAT, "weight_map: an object expected");
}

static void each_architecture_opens(void **state)
{
    static const struct {
        const char *architecture;
        bool bias, qk_norm, tied;
        enum model_arch arch;
    } cases[] = {
        {"LlamaForCausalLM", false, false, true, MODEL_LLAMA},
        {"MistralForCausalLM", false, false, false, MODEL_LLAMA},
        {"Qwen2ForCausalLM", true, false, false, MODEL_QWEN2},
        {"Qwen3ForCausalLM", false, true, true, MODEL_QWEN3},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_default();
        char config[1000];
        tiny.bias = cases[i].bias;
        tiny.qk_norm = cases[i].qk_norm;
        tiny.untied = !cases[i].tied;
        tiny.head_dim = 6;
        put_folder(&tiny, "BF16");
        snprintf(config, sizeof(config),
                 CONFIG_START ",\"head_dim\":6,\"architectures\":[\"%s\"],\"sliding_window\":4096,"
                              "\"tie_word_embeddings\":%s}",
                 cases[i].architecture, cases[i].tied ? "true" : "false");
        put_text("config.json", config);
        struct model_file *file = open_folder();
        const struct model_params *p = model_file_params(file);
        assert_int_equal(p->arch, cases[i].arch);
        assert_int_equal(p->head_dim, 6);
        assert_int_equal(p->rope_dim, 6);
        assert_true(p->tied == cases[i].tied && p->has_qkv_bias == cases[i].bias);
        assert_true(p->has_qk_norm == cases[i].qk_norm);
        model_file_close(file);
    }
}

static void a_tied_head_that_was_saved_is_left_out(void **state)
{
    struct tiny tiny = tiny_default();
    tiny.untied = true;
    put_folder(&tiny, "F32");
    struct model_file *file = open_folder();
    assert_true(model_file_params(file)->tied);
    assert_null(model_file_tensor(file, "output.weight"));
    model_file_close(file);

    tiny.untied = false;
    put_folder(&tiny, "F32");
    put_text("config.json", CONFIG_START ",\"architectures\":[\"LlamaForCausalLM\"]}");
    expect_refused(ERROR_FORMAT, "tensor lm_head.weight: missing");
}

/* Wants head_dim 4: frequencies of 1 and theta^-1/2. */
static void rope_settings_are_read_in_both_styles(void **state)
{
    static const struct {
        const char *settings;
        float expected[2];
    } cases[] = {
        {"\"rope_theta\":250000.0", {1, 0.002f}},
        {"\"rope_parameters\":{\"rope_theta\":250000,\"rope_type\":\"default\"}", {1, 0.002f}},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":2.0}", {0.5f, 0.005f}},
        {"\"rope_scaling\":{\"rope_type\":\"default\"}", {1, 0.01f}},
        /* Llama 3.1's: over 8192 positions 1 turns 1303 times (kept); 1/40000 0.0326 times (slowed
           by the factor) */
        {"\"rope_theta\":1600000000,\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8.0,"
         "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
         "\"original_max_position_embeddings\":8192}",
         {1, 1.0f / 40000 / 8}},
        /* 1/500 turns 8192/500/2pi = 2.607594 times, between 1 and 4: a share of 0.535865 is kept,
           the rest is slowed by 8 */
        {"\"rope_parameters\":{\"rope_theta\":250000,\"rope_type\":\"llama3\",\"factor\":8.0,"
         "\"low_freq_factor\":1.0,\"high_freq_factor\":4.0,"
         "\"original_max_position_embeddings\":8192}",
         {1, 0.002f * (0.535865f + 0.464135f / 8)}},
    };
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char config[1000];
        snprintf(config, sizeof(config),
                 CONFIG_START ",\"architectures\":[\"LlamaForCausalLM\"],"
                              "\"tie_word_embeddings\":true,%s}",
                 cases[i].settings);
        put_text("config.json", config);
        struct model_file *file = open_folder();
        const float *got = model_file_params(file)->rope_inv_freq;
        for (int k = 0; k < 2; k++)
            if (fabsf(got[k] / cases[i].expected[k] - 1) > 2e-6f)
                fail_msg("%s: frequency %d: %g expected, found %g", cases[i].settings, k,
                         (double)cases[i].expected[k], (double)got[k]);
        model_file_close(file);
    }
}

static void settings_that_we_do_not_do_are_refused_by_name(void **state)
{
    static const struct {
        const char *settings;
        enum error_code code;
        const char *says;
    } cases[] = {
        {"\"architectures\":[\"GemmaForCausalLM\"]", ERROR_UNSUPPORTED, "found GemmaForCausalLM"},
        {"\"architectures\":[]", ERROR_UNSUPPORTED, "found none"},
        {"\"sliding_window\":32", ERROR_UNSUPPORTED, "key sliding_window"},
        {"\"layer_types\":[\"full_attention\",\"sliding_attention\"]", ERROR_UNSUPPORTED,
         "found sliding_attention"},
        {"\"rope_scaling\":{\"rope_type\":\"yarn\",\"factor\":4}", ERROR_UNSUPPORTED, "found yarn"},
        {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":0}", ERROR_FORMAT,
         "RoPE scaling factor"},
        {"\"rope_scaling\":{\"type\":\"llama3\",\"factor\":8}", ERROR_FORMAT, "low_freq_factor"},
        {"\"rope_parameters\":{\"full_attention\":{\"rope_theta\":1}}", ERROR_UNSUPPORTED,
         "found full_attention"},
        {"\"quantization_config\":{\"bits\":4}", ERROR_UNSUPPORTED, "key quantization_config"},
        {"\"partial_rotary_factor\":1.5", ERROR_FORMAT, "partial_rotary_factor"},
        {"\"head_dim\":4.5", ERROR_FORMAT, "key head_dim: a whole number"},
        {"\"head_dim\":\"4\"", ERROR_FORMAT, "key head_dim: a whole number"},
        {"\"head_dim\":8", ERROR_FORMAT, "tensor blk.0.attn_q.weight: shape [16, 32] expected"},
        {"\"tie_word_embeddings\":1", ERROR_FORMAT, "key tie_word_embeddings: true or false"},
    };
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        char config[1000];
        /* the first of two equal keys counts */
        snprintf(config, sizeof(config), "{%s,%s", cases[i].settings, &CONFIG[1]);
        put_text("config.json", config);
        expect_refused(cases[i].code, cases[i].says);
    }
    put_text("config.json", "{\"hidden_size\":16,\"architectures\":[\"LlamaForCausalLM\"]}");
    expect_refused(ERROR_FORMAT, "key num_hidden_layers: missing");
    put_text("config.json", "{\"hidden_size\":");
    expect_refused(ERROR_FORMAT, "config.json: no valid JSON");
    put_text("config.json", "");
    expect_refused(ERROR_FORMAT, "config.json: no valid JSON");
    unlink(path_of("config.json"));
    expect_refused(ERROR_INVALID, "a folder with config.json expected");
}

/* A safetensors file of this header and 64 bytes of data. */
static void put_header(const char *header, uint64_t claimed)
{
    struct buf file = {0};
    static const char data[64];
    buf_append(&file, &claimed, sizeof(claimed));
    buf_append_str(&file, header);
    buf_append(&file, data, sizeof(data));
    put_file("model.safetensors", file.data, file.len);
    buf_free(&file);
}

static void a_bad_safetensors_file_is_refused(void **state)
{
#define ENTRY(dtype, shape, offsets)                                                               \
    "{\"model.norm.weight\":{\"dtype\":\"" dtype "\",\"shape\":" shape                             \
    ",\"data_offsets\":" offsets "}}"
    static const struct {
        const char *header;
        enum error_code code;
        const char *says;
    } cases[] = {
        {ENTRY("F32", "[16]", "[0,65]"), ERROR_FORMAT, "within the 64 bytes"},
        {ENTRY("F32", "[16]", "[32,0]"), ERROR_FORMAT, "data_offsets"},
        {ENTRY("F32", "[16]", "[-1,63]"), ERROR_FORMAT, "data_offsets"},
        {ENTRY("F32", "[16]", "[0]"), ERROR_FORMAT, "data_offsets"},
        {ENTRY("F32", "[16]", "[0,1e300]"), ERROR_FORMAT, "data_offsets"},
        {ENTRY("F32", "[16]", "[0,60]"), ERROR_FORMAT, "16 elements of type F32 expected"},
        {ENTRY("F32", "[4503599627370496,4503599627370496]", "[0,64]"), ERROR_FORMAT, "shape"},
        {ENTRY("F32", "[4503599627370496,2048]", "[0,64]"), ERROR_FORMAT, "of type F32 expected"},
        {ENTRY("F32", "[0]", "[0,0]"), ERROR_FORMAT, "shape"},
        {ENTRY("F32", "[1,1,1,1,16]", "[0,64]"), ERROR_FORMAT, "shape"},
        {ENTRY("F32", "[1.5]", "[0,64]"), ERROR_FORMAT, "shape"},
        {ENTRY("F32", "{}", "[0,64]"), ERROR_FORMAT, "shape"},
        {ENTRY("I64", "[8]", "[0,64]"), ERROR_UNSUPPORTED, "F32, F16 or BF16 expected, found I64"},
        {"{\"some.other\":{\"dtype\":\"F32\",\"shape\":[16],\"data_offsets\":[0,64]}}",
         ERROR_UNSUPPORTED, "tensor some.other: no part of the model"},
        {"{\"model.norm.weight\":7}", ERROR_FORMAT, "tensor model.norm.weight: data_offsets"},
        {"[1]", ERROR_FORMAT, "header: a JSON object expected"},
        {"{\"model", ERROR_FORMAT, "header: no valid JSON"},
    };
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put_header(cases[i].header, strlen(cases[i].header));
        expect_refused(cases[i].code, cases[i].says);
    }
    put_header("{}", UINT64_MAX);
    expect_refused(ERROR_FORMAT, "a header of 18446744073709551615 bytes claimed");
    put_header("{}", 67);
    expect_refused(ERROR_FORMAT, "a header of 67 bytes claimed, up to 66");
    put_file("model.safetensors", "1234567", 7);
    expect_refused(ERROR_FORMAT, "8 bytes expected");
    put_file("model.safetensors", "", 0);
    expect_refused(ERROR_FORMAT, "8 bytes expected");
    unlink(path_of("model.safetensors"));
    expect_refused(ERROR_IO, "model.safetensors: No such file");
}

#define SPLIT(regex)                                                                               \
    "{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Split\",\"pattern\":{\"Regex\":"        \
    "\"" regex "\"},\"behavior\":\"Isolated\",\"invert\":false},"                                  \
    "{\"type\":\"ByteLevel\",\"add_prefix_space\":false,\"use_regex\":false}]}"
#define WORDS(digits)                                                                              \
    "(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\\\r\\\\n\\\\p{L}\\\\p{N}]?\\\\p{L}+|\\\\p{N}" digits         \
    "| ?[^\\\\s\\\\p{L}\\\\p{N}]+[\\\\r\\\\n]*|\\\\s*[\\\\r\\\\n]+|\\\\s+(?!\\\\S)|\\\\s+"

static void pre_tokenisers_are_recognised(void **state)
{
    static const struct {
        const char *tokenizer, *pre;
    } cases[] = {
        {GPT2, "gpt-2"},
        {TOKENIZER("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Digits\","
                   "\"individual_digits\":true}," BYTE_LEVEL "]}",
                   "[[\"a\",\"b\"],[\"ab\",\"c\"]]"),
         "smollm"},
        {TOKENIZER(SPLIT(WORDS("{1,3}")), "[\"a b\",\"ab c\"]"), "llama-bpe"},
        {TOKENIZER(SPLIT(WORDS("")), "[\"a b\",\"ab c\"]"), "qwen2"},
        {TOKENIZER("{\"type\":\"Sequence\",\"pretokenizers\":[{\"type\":\"Punctuation\","
                   "\"behavior\":\"Contiguous\"}," BYTE_LEVEL
                   ",{\"type\":\"Digits\",\"individual_digits\":false},{\"type\":\"Split\","
                   "\"pattern\":{\"Regex\":\"[0-9][0-9][0-9]\"},\"behavior\":\"Isolated\","
                   "\"invert\":false}]}",
                   "[\"a b\",\"ab c\"]"),
         "falcon"},
    };
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put_text("tokenizer.json", cases[i].tokenizer);
        struct model_file *file = open_folder();
        const struct vocab *v = model_file_vocab(file);
        assert_int_equal(v->model, VOCAB_BPE);
        assert_string_equal(v->pre, cases[i].pre);
        assert_int_equal(v->n_merges, 2);
        assert_int_equal(v->merges[1].len, 4);
        assert_memory_equal(v->merges[1].data, "ab c", 4);
        model_file_close(file);
    }
}

static void sentencepiece_merges_become_scores(void **state)
{
    static const char tokenizer[] =
        "{\"added_tokens\":[{\"id\":0,\"content\":\"<unk>\",\"special\":true},"
        "{\"id\":1,\"content\":\"<s>\",\"special\":true}],"
        "\"normalizer\":{\"type\":\"Sequence\",\"normalizers\":[{\"type\":\"Prepend\","
        "\"prepend\":\"\\u2581\"},{\"type\":\"Replace\",\"pattern\":{\"String\":\" \"},"
        "\"content\":\"\\u2581\"}]},\"pre_tokenizer\":null,"
        "\"post_processor\":{\"type\":\"TemplateProcessing\",\"single\":[{\"SpecialToken\":{\"id\":"
        "\"<s>\",\"type_id\":0}},{\"Sequence\":{\"id\":\"A\",\"type_id\":0}}]},"
        "\"model\":{\"type\":\"BPE\",\"unk_token\":\"<unk>\",\"byte_fallback\":true,"
        "\"vocab\":{\"<unk>\":0,\"<s>\":1,\"</s>\":2,\"<0x0A>\":3,\"a\":4,\"b\":5,\"c\":6,\"bc\":7,"
        "\"ab\":8,\"abc\":9,\"\\u2581\":10,\"<0x0a>\":11},"
        "\"merges\":[\"b c\",\"a bc\",\"a b\",\"ab c\"]}}";
    static const uint8_t kinds[TINY_TOKENS] = {2, 3, 1, 6, 1, 1, 1, 1, 1, 1, 1, 1};
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    put_text("tokenizer.json", tokenizer);
    struct model_file *file = open_folder();
    const struct vocab *v = model_file_vocab(file);

    assert_int_equal(v->model, VOCAB_SPM);
    assert_int_equal(v->n_merges, 0);
    assert_memory_equal(v->kind, kinds, sizeof(kinds));
    /* best first: bc, then abc (by its first merge), then ab; what no merge makes is last */
    assert_true(v->score[7] > v->score[9] && v->score[9] > v->score[8]);
    assert_true(v->score[8] > v->score[4] && v->score[4] == v->score[10]);
    assert_true(v->add_bos && !v->add_eos && v->add_space_prefix);
    assert_int_equal(v->unk, 0);
    model_file_close(file);

    /* without the prefix, and with Metaspace */
    put_text("tokenizer.json",
             "{\"pre_tokenizer\":{\"type\":\"Metaspace\",\"replacement\":\"\\u2581\","
             "\"prepend_scheme\":\"never\"},\"model\":{\"type\":\"BPE\",\"byte_fallback\":true,"
             "\"vocab\":{\"a\":0},\"merges\":[]}}");
    file = open_folder();
    assert_int_equal(model_file_vocab(file)->model, VOCAB_SPM);
    assert_false(model_file_vocab(file)->add_space_prefix);
    model_file_close(file);
}

static void special_tokens_and_template_come_from_the_settings(void **state)
{
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    put_text("tokenizer_config.json",
             "{\"bos_token\":{\"content\":\"</s>\",\"special\":true},\"eos_token\":\"d\","
             "\"pad_token\":null,\"unk_token\":\"no such token\",\"add_bos_token\":true,"
             "\"chat_template\":[{\"name\":\"tools\",\"template\":\"no\"},"
             "{\"name\":\"default\",\"template\":\"yes\"}]}");
    put_text("generation_config.json", "{\"eos_token_id\":[9,2,99]}");
    struct model_file *file = open_folder();
    const struct vocab *v = model_file_vocab(file);
    assert_int_equal(v->bos, 2);
    assert_int_equal(v->eos, 9);
    assert_int_equal(v->eot, 2);
    assert_int_equal(v->pad, -1);
    assert_int_equal(v->unk, -1);
    assert_true(v->add_bos);
    assert_string_equal(v->chat_template, "yes");
    model_file_close(file);

    put_text("chat_template.jinja", "from the file");
    file = open_folder();
    assert_string_equal(model_file_vocab(file)->chat_template, "from the file");
    model_file_close(file);
}

static void a_bad_tokenizer_is_refused(void **state)
{
    static const struct {
        const char *tokenizer;
        enum error_code code;
        const char *says;
    } cases[] = {
        {"{}", ERROR_UNSUPPORTED, "key model.type: BPE expected, found none"},
        {"{\"model\":{\"type\":\"Unigram\"}}", ERROR_UNSUPPORTED, "found Unigram"},
        {TOKENIZER("null", "[]"), ERROR_UNSUPPORTED, "found none"},
        {TOKENIZER("{\"type\":\"Whitespace\"}", "[]"), ERROR_UNSUPPORTED, "found Whitespace"},
        {TOKENIZER(SPLIT("\\\\w+"), "[]"), ERROR_UNSUPPORTED,
         "found Split Isolated \\w+ | ByteLevel"},
        {TOKENIZER("{\"type\":\"ByteLevel\",\"add_prefix_space\":true}", "[]"), ERROR_UNSUPPORTED,
         "found ByteLevel prefix regex"},
        {TOKENIZER(BYTE_LEVEL, "[\"ab\"]"), ERROR_FORMAT, "merges: item 0: two tokens"},
        {TOKENIZER(BYTE_LEVEL, "[\"a b\",\"a b c\"]"), ERROR_FORMAT, "merges: item 1"},
        {TOKENIZER(BYTE_LEVEL, "[[\"a\",\"b\",\"c\"]]"), ERROR_FORMAT, "merges: item 0"},
        {TOKENIZER(BYTE_LEVEL, "[[\"a\",7]]"), ERROR_FORMAT, "merges: item 0"},
        {TOKENIZER(BYTE_LEVEL, "[[\"\",\"a\"]]"), ERROR_FORMAT, "merges: item 0"},
        {TOKENIZER(BYTE_LEVEL, "{}"), ERROR_FORMAT, "key model.merges: an array"},
        {"{\"pre_tokenizer\":" BYTE_LEVEL
         ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":0,\"b\":0},"
         "\"merges\":[]}}",
         ERROR_FORMAT, "token \"b\": id 0 is taken twice"},
        {"{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",\"vocab\":{\"a\":-1},"
         "\"merges\":[]}}",
         ERROR_FORMAT, "token \"a\": an id"},
        {"{\"pre_tokenizer\":" BYTE_LEVEL ",\"model\":{\"type\":\"BPE\",\"merges\":[]}}",
         ERROR_FORMAT, "key model.vocab"},
        {"{\"pre_tokenizer\":{\"type\":\"Metaspace\"},\"model\":{\"type\":\"BPE\"}}",
         ERROR_UNSUPPORTED, "byte_fallback"},
        {"[[[[", ERROR_FORMAT, "tokenizer.json: no valid JSON"},
    };
    struct tiny tiny = tiny_default();
    put_folder(&tiny, "F32");
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        put_text("tokenizer.json", cases[i].tokenizer);
        expect_refused(cases[i].code, cases[i].says);
    }
    char deep[20001];
    memset(deep, '[', 20000);
    deep[20000] = '\0';
    put_text("tokenizer.json", deep);
    expect_refused(ERROR_FORMAT, "tokenizer.json: no valid JSON");
    unlink(path_of("tokenizer.json"));
    expect_refused(ERROR_INVALID, "tokenizer.json: missing");
}

static void damage_never_crashes(void **state)
{
    static const char *const names[] = {"config.json", "tokenizer.json", "model.safetensors"};
    static char data[1 << 16];
    struct tiny tiny = tiny_default();
    struct error err;

    put_folder(&tiny, "F32");
    for (size_t n = 0; n < 3; n++) {
        FILE *stream = fopen(path_of(names[n]), "rb");
        size_t len = fread(data, 1, sizeof(data), stream);
        fclose(stream);
        for (size_t at = 0; at < len && at < 2500; at++) {
            static const char values[] = {'"', '9', '\0', ']', '-', '\xff'};
            struct model_file *file = NULL;
            char old = data[at];
            data[at] = values[at % sizeof(values)];
            put_file(names[n], data, at % 7 ? len : at);
            data[at] = old;
            if (model_file_open(folder, &file, &err) == 0)
                model_file_hash(file);
            model_file_close(file);
        }
        put_file(names[n], data, len);
    }
}

static void a_failed_allocation_is_an_error(void **state)
{
    struct tiny tiny = tiny_default();
    struct model_file *file = NULL;
    unsigned long k = 0;
    int rc;

    put_folder(&tiny, "F32");
    put_text("tokenizer_config.json", "{\"chat_template\":\"yes\"}");
    do {
        struct error err = {0};
        mem_fail_at(++k);
        rc = model_file_open(folder, &file, &err);
        if (rc)
            assert_int_equal(err.code, ERROR_MEMORY);
    } while (rc);
    mem_fail_at(0);
    assert_in_range(k, 10, 60);
    model_file_close(file);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_folder_is_the_same_model_as_its_gguf),
        cmocka_unit_test(tokens_have_their_kinds),
        cmocka_unit_test(shards_are_found_by_their_index),
        cmocka_unit_test(an_index_cannot_lead_out_of_the_folder),
        cmocka_unit_test(each_architecture_opens),
        cmocka_unit_test(a_tied_head_that_was_saved_is_left_out),
        cmocka_unit_test(rope_settings_are_read_in_both_styles),
        cmocka_unit_test(settings_that_we_do_not_do_are_refused_by_name),
        cmocka_unit_test(a_bad_safetensors_file_is_refused),
        cmocka_unit_test(pre_tokenisers_are_recognised),
        cmocka_unit_test(sentencepiece_merges_become_scores),
        cmocka_unit_test(special_tokens_and_template_come_from_the_settings),
        cmocka_unit_test(a_bad_tokenizer_is_refused),
        cmocka_unit_test(damage_never_crashes),
        cmocka_unit_test(a_failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests_name("hf", tests, make_folder, remove_folder);
}
