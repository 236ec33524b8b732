/* Tiny model files for tests. See tiny.h. */
#include "tests/unit/model/tiny.h"

#include "engine/base/mem.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef void tensor_fn(void *user, const char *name, uint32_t n_dims, const uint64_t *dims);

struct tiny tiny_default(void)
{
    return (struct tiny){.arch = "llama",
                         .n_layers = 2,
                         .hidden = 16,
                         .mlp = 24,
                         .n_heads = 4,
                         .n_kv_heads = 2,
                         .head_dim = 4};
}

static float seeded_value(uint32_t seed, const char *name, size_t i)
{
    uint32_t hash = (uint32_t)i * 2654435761u + seed;
    for (const char *c = name; *c; c++)
        hash = (hash ^ (uint8_t)*c) * 16777619u;
    return ((float)(hash >> 8 & 0xffff) - 32768) / 65536;
}

float tiny_value(const char *name, size_t i)
{
    return seeded_value(0, name, i);
}

static uint32_t n_tokens(const struct tiny *tiny)
{
    return tiny->n_tokens ? tiny->n_tokens : TINY_TOKENS;
}

struct each {
    const struct tiny *tiny;
    tensor_fn *fn;
    void *user;
};

static void one(const struct each *each, const char *name, uint64_t columns, uint64_t rows)
{
    const struct tiny *t = each->tiny;
    uint64_t dims[2] = {columns, rows};

    if (t->without && strcmp(t->without, name) == 0)
        return;
    if (t->longer && strcmp(t->longer, name) == 0)
        dims[rows ? 1 : 0]++;
    each->fn(each->user, name, rows ? 2 : 1, dims);
}

static void one_of_layer(const struct each *each, uint32_t l, const char *what, uint64_t columns,
                         uint64_t rows)
{
    char name[64];
    snprintf(name, sizeof(name), "blk.%u.%s", l, what);
    one(each, name, columns, rows);
}

static void layer(const struct each *each, uint32_t l)
{
    const struct tiny *t = each->tiny;
    uint32_t q = t->n_heads * t->head_dim, kv = t->n_kv_heads * t->head_dim;

    one_of_layer(each, l, "attn_norm.weight", t->hidden, 0);
    one_of_layer(each, l, "attn_q.weight", t->hidden, q);
    one_of_layer(each, l, "attn_k.weight", t->hidden, kv);
    one_of_layer(each, l, "attn_v.weight", t->hidden, kv);
    one_of_layer(each, l, "attn_output.weight", q, t->hidden);
    if (t->bias) {
        one_of_layer(each, l, "attn_q.bias", q, 0);
        one_of_layer(each, l, "attn_k.bias", kv, 0);
        one_of_layer(each, l, "attn_v.bias", kv, 0);
    }
    if (t->qk_norm) {
        one_of_layer(each, l, "attn_q_norm.weight", t->head_dim, 0);
        one_of_layer(each, l, "attn_k_norm.weight", t->head_dim, 0);
    }
    one_of_layer(each, l, "ffn_norm.weight", t->hidden, 0);
    one_of_layer(each, l, "ffn_gate.weight", t->hidden, t->mlp);
    one_of_layer(each, l, "ffn_up.weight", t->hidden, t->mlp);
    one_of_layer(each, l, "ffn_down.weight", t->mlp, t->hidden);
}

void tiny_each_tensor(const struct tiny *tiny, tensor_fn *fn, void *user)
{
    const struct each each = {tiny, fn, user};

    one(&each, "token_embd.weight", tiny->hidden, n_tokens(tiny));
    if (tiny->rope_freqs)
        one(&each, "rope_freqs.weight", tiny->head_dim / 2, 0);
    for (uint32_t l = 0; l < tiny->n_layers; l++)
        layer(&each, l);
    one(&each, "output_norm.weight", tiny->hidden, 0);
    if (tiny->untied)
        one(&each, "output.weight", tiny->hidden, n_tokens(tiny));
    if (tiny->extra)
        one(&each, tiny->extra, 32, 0);
}

static void set_tokenizer(struct gguf_writer *w, size_t n)
{
    static const char *const texts[TINY_TOKENS] = {"<unk>", "<s>", "</s>",     "a", "b",      "c",
                                                   "ab",    "abc", "\xc4\xa0", "d", "<0x0A>", "x"};
    static const int32_t kinds[TINY_TOKENS] = {2, 3, 3, 1, 1, 1, 1, 1, 1, 4, 6, 5};
    static const struct vocab_string merges[] = {{"a b", 3}, {"ab c", 4}};
    struct vocab_string *tokens = mem_array(n, sizeof(*tokens));
    int32_t *all_kinds = mem_array(n, sizeof(*all_kinds));
    char(*more)[16] = mem_array(n, sizeof(*more));

    assert_true(tokens && all_kinds && more);
    for (size_t i = 0; i < n; i++) {
        snprintf(more[i], sizeof(more[i]), "<t%zu>", i);
        const char *text = i < TINY_TOKENS ? texts[i] : more[i];
        tokens[i] = (struct vocab_string){text, (uint32_t)strlen(text)};
        all_kinds[i] = i < TINY_TOKENS ? kinds[i] : 1;
    }
    gguf_writer_set_string(w, "tokenizer.ggml.model", "gpt2");
    gguf_writer_set_string(w, "tokenizer.ggml.pre", "gpt-2");
    gguf_writer_set_strings(w, "tokenizer.ggml.tokens", tokens, n);
    gguf_writer_set_items(w, "tokenizer.ggml.token_type", GGUF_I32, true, all_kinds, n);
    gguf_writer_set_strings(w, "tokenizer.ggml.merges", merges, 2);
    gguf_writer_set_u32(w, "tokenizer.ggml.bos_token_id", 1);
    gguf_writer_set_u32(w, "tokenizer.ggml.eos_token_id", 2);
    gguf_writer_set_string(w, "tokenizer.chat_template", "{{ messages }}");
    mem_free(tokens);
    mem_free(all_kinds);
    mem_free(more);
}

static void set_arch_u32(struct gguf_writer *w, const char *arch, const char *what, uint32_t value)
{
    char key[96];
    snprintf(key, sizeof(key), "%s.%s", arch, what);
    gguf_writer_set_u32(w, key, value);
}

static void set_metadata(struct gguf_writer *w, const struct tiny *t)
{
    char key[96];

    gguf_writer_set_string(w, "general.architecture", t->arch);
    gguf_writer_set_string(w, "general.name", "tiny");
    set_arch_u32(w, t->arch, "block_count", t->n_layers);
    set_arch_u32(w, t->arch, "embedding_length", t->hidden);
    set_arch_u32(w, t->arch, "feed_forward_length", t->mlp);
    set_arch_u32(w, t->arch, "attention.head_count", t->n_heads);
    set_arch_u32(w, t->arch, "attention.head_count_kv", t->n_kv_heads);
    set_arch_u32(w, t->arch, "attention.key_length", t->head_dim);
    set_arch_u32(w, t->arch, "attention.value_length", t->head_dim);
    set_arch_u32(w, t->arch, "context_length", 64);
    snprintf(key, sizeof(key), "%s.attention.layer_norm_rms_epsilon", t->arch);
    gguf_writer_set_f32(w, key, 1e-5f);
    set_tokenizer(w, n_tokens(t));
    if (t->change)
        t->change(w);
}

/* A file being written, for the callbacks. */
struct target {
    const struct tiny *tiny;
    struct gguf_writer *writer;
};

static enum tensor_type type_of(const struct tiny *tiny, uint32_t n_dims, const uint64_t *dims)
{
    return n_dims == 2 && dims[0] % tensor_block_elements(tiny->type) == 0 ? tiny->type
                                                                           : TENSOR_F32;
}

static void add_tensor(void *user, const char *name, uint32_t n_dims, const uint64_t *dims)
{
    const struct target *t = user;
    gguf_writer_add_tensor(t->writer, name, type_of(t->tiny, n_dims, dims), n_dims, dims);
}

static void write_tensor(void *user, const char *name, uint32_t n_dims, const uint64_t *dims)
{
    const struct target *t = user;
    uint64_t n = dims[0] * (n_dims > 1 ? dims[1] : 1);
    enum tensor_type type = type_of(t->tiny, n_dims, dims);
    float *values = mem_array(n, sizeof(float));
    void *data = mem_array(n, sizeof(float));
    size_t bytes;
    struct error err = {0};

    for (uint64_t i = 0; i < n; i++)
        values[i] = strcmp(name, "rope_freqs.weight") == 0 ? (float)(i + 2)
                                                           : seeded_value(t->tiny->seed, name, i);
    assert_true(tensor_type_bytes(type, n, &bytes));
    assert_int_equal(tensor_quantize(type, values, n, data, &err), 0);
    assert_int_equal(gguf_writer_write(t->writer, data, bytes, &err), 0);
    mem_free(values);
    mem_free(data);
}

void tiny_write_gguf(const struct tiny *tiny, const char *path)
{
    struct target target = {.tiny = tiny};
    struct error err = {0};

    assert_int_equal(gguf_writer_open(path, &target.writer, &err), 0);
    set_metadata(target.writer, tiny);
    tiny_each_tensor(tiny, add_tensor, &target);
    tiny_each_tensor(tiny, write_tensor, &target);
    if (gguf_writer_finish(target.writer, &err))
        fail_msg("%s", err.message);
}

char *tiny_read_file(const char *path, size_t *ret_n)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    *ret_n = (size_t)ftell(f);
    rewind(f);
    char *data = malloc(*ret_n);
    assert_int_equal(fread(data, 1, *ret_n, f), *ret_n);
    fclose(f);
    return data;
}
