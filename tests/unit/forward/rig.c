/* See rig.h. */
#include "tests/unit/forward/rig.h"

#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static struct model *open_path(const char *path, enum model_weights weights)
{
    struct model_file *file = NULL;
    struct model *model = NULL;
    struct error err = {0};
    int rc = model_file_open(path, &file, &err);
    if (rc == 0)
        rc = model_open(
            file, &(struct model_open_options){.weights = weights, .n_positions = RIG_MAX_TOKENS},
            &model, &err);
    if (rc)
        fail_msg("%s", err.message);
    return model;
}

static struct model *open_tiny(const struct tiny *tiny, enum model_weights weights)
{
    char path[] = P_tmpdir "/overfill-test-XXXXXX";
    int fd = mkstemp(path);

    assert_true(fd >= 0);
    close(fd);
    tiny_write_gguf(tiny, path);
    struct model *model = open_path(path, weights);
    unlink(path); /* it stays mapped */
    return model;
}

void rig_open(struct rig *rig, const struct rig_options *o)
{
    struct error err = {0};
    const struct kernels *kernels = o->kernels;
    *rig = (struct rig){
        .model = o->path ? open_path(o->path, o->weights) : open_tiny(o->tiny, o->weights),
        .twin = o->twin_path ? open_path(o->twin_path, o->weights)
                : o->twin    ? open_tiny(o->twin, o->weights)
                             : NULL,
    };
    const struct model_params *p = &rig->model->params;
    const struct kv_layout layout = {p->n_layers, p->n_kv_heads, p->head_dim, o->kv_bytes};
    const struct model *models[] = {rig->model, rig->twin};

    int rc = kernels ? 0 : kernels_select(NULL, &kernels, &err);
    if (rc == 0)
        rc = kv_pool_open(&layout, 160 * kv_page_bytes(&layout), &rig->pool, &err);
    if (rc == 0)
        rc = team_open(o->n_threads, "test", NULL, &rig->team, &err);
    if (rc == 0)
        rc = forward_open(models, rig->twin ? 2 : 1, kernels, rig->team, RIG_MAX_ROWS, RIG_MAX_ROWS,
                          &rig->forward, &err);
    if (rc)
        fail_msg("%s", err.message);
}

void rig_close(struct rig *rig)
{
    assert_int_equal(kv_pool_n_used(rig->pool), 0);
    forward_close(rig->forward);
    team_close(rig->team);
    kv_pool_close(rig->pool);
    model_close(rig->model);
    model_close(rig->twin);
}

static void rotate_half(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "llama.rope.dimension_count", 32);
    gguf_writer_set_f32(w, "llama.rope.freq_base", 500.0f);
}

static void pad_hidden(struct gguf_writer *w)
{
    gguf_writer_set_u32(w, "overfill.norm_width", 60);
}

#define SHAPE(arch_, hidden_, mlp_, heads_, kv_, dim_)                                             \
    .tiny.arch = arch_, .tiny.n_layers = 2, .tiny.hidden = hidden_, .tiny.mlp = mlp_,              \
    .tiny.n_heads = heads_, .tiny.n_kv_heads = kv_, .tiny.head_dim = dim_
#define KEPT(weights_, kv_bytes_) .weights = MODEL_WEIGHTS_##weights_, .kv_bytes = kv_bytes_

/* clang-format off */
static const struct rig_case cases[] = {
    {"llama f32", SHAPE("llama", 48, 40, 4, 2, 8), KEPT(F32, 4)},
    {"llama f32, half KV", SHAPE("llama", 48, 40, 4, 2, 8), KEPT(F32, 2)},
    {"llama int8, untied, scaled RoPE, 300 tokens", SHAPE("llama", 64, 96, 4, 1, 16),
     .tiny.untied = true, .tiny.rope_freqs = true, .tiny.n_tokens = 300, KEPT(AUTO, 4)},
    {"llama Q8_0, RoPE on half a head", SHAPE("llama", 64, 64, 2, 1, 64),
     .tiny.type = TENSOR_Q8_0, .tiny.change = rotate_half, KEPT(AUTO, 2)},
    {"llama Q4_1", SHAPE("llama", 96, 160, 6, 2, 16),
     .tiny.type = TENSOR_Q4_1, .tiny.n_tokens = 100, KEPT(AUTO, 4)},
    {"llama Q4_0, MLP of 100, one head a KV head", SHAPE("llama", 64, 100, 3, 3, 64),
     .tiny.type = TENSOR_Q4_0, KEPT(AUTO, 2)},
    {"llama bf16 as int8, padded rows", SHAPE("llama", 64, 72, 4, 2, 16),
     .tiny.type = TENSOR_BF16, .tiny.change = pad_hidden, KEPT(Q8, 4)},
    {"qwen2 f32", SHAPE("qwen2", 40, 56, 3, 1, 16), .tiny.bias = true, KEPT(F32, 4)},
    {"qwen2 Q4_0", SHAPE("qwen2", 64, 64, 8, 2, 8),
     .tiny.bias = true, .tiny.type = TENSOR_Q4_0, KEPT(AUTO, 2)},
    {"qwen3 f32, odd widths", SHAPE("qwen3", 36, 20, 4, 2, 20), .tiny.qk_norm = true, KEPT(F32, 2)},
    {"qwen3 Q8_0, head_dim 64", SHAPE("qwen3", 32, 96, 4, 2, 64),
     .tiny.qk_norm = true, .tiny.untied = true, .tiny.type = TENSOR_Q8_0, KEPT(AUTO, 4)},
};
/* clang-format on */

size_t rig_cases(const struct rig_case **ret_cases)
{
    *ret_cases = cases;
    return sizeof(cases) / sizeof(cases[0]);
}

uint32_t rig_random(uint64_t *state, uint32_t n)
{
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    return (uint32_t)((*state >> 33) % n);
}

void rig_tokens(uint64_t seed, uint32_t n_vocab, uint32_t n, int32_t *ret_tokens)
{
    for (uint32_t i = 0; i < n; i++)
        ret_tokens[i] = (int32_t)rig_random(&seed, n_vocab);
}

void rig_sequence_open(struct rig_sequence *s, const int32_t *tokens, uint32_t n_tokens,
                       uint32_t n_vocab)
{
    struct error err;
    *s = (struct rig_sequence){.tokens = tokens, .n_tokens = n_tokens};
    s->logits = calloc((size_t)n_tokens * n_vocab, sizeof(float));
    assert_non_null(s->logits);
    assert_int_equal(kv_table_open(&s->table, n_tokens, &err), 0);
}

void rig_sequence_close(struct rig *rig, struct rig_sequence *s)
{
    kv_table_close(rig->pool, &s->table);
    free(s->logits);
}

void rig_pass(struct rig *rig, const struct model *model, struct rig_sequence *sequences,
              size_t n_sequences, const uint32_t *n)
{
    struct forward_slice slices[32] = {0};
    uint32_t n_vocab = model->params.vocab_size;
    size_t n_slices = 0, stride;

    for (size_t i = 0; i < n_sequences; i++) {
        struct rig_sequence *s = &sequences[i];
        if (!n[i])
            continue;
        kv_table_grow(rig->pool, &s->table, s->n_done + n[i]);
        slices[n_slices++] = (struct forward_slice){
            s->tokens + s->n_done, n[i], s->n_done, s->table.pages, LOGITS_ALL, rig->is_prompt};
    }
    const float *logits = forward_run(rig->forward, model, rig->pool, slices, n_slices, &stride);
    for (size_t i = 0; i < n_sequences; i++) {
        for (uint32_t t = 0; t < n[i]; t++, logits += stride)
            memcpy(sequences[i].logits + (size_t)(sequences[i].n_done + t) * n_vocab, logits,
                   n_vocab * sizeof(float));
        sequences[i].n_done += n[i];
    }
}

float *rig_logits(struct rig *rig, const int32_t *tokens, uint32_t n_tokens, uint32_t cut)
{
    struct rig_sequence s;
    rig_sequence_open(&s, tokens, n_tokens, rig->model->params.vocab_size);
    while (s.n_done < n_tokens) {
        uint32_t n = n_tokens - s.n_done < cut ? n_tokens - s.n_done : cut;
        rig_pass(rig, rig->model, &s, 1, &n);
    }
    float *logits = s.logits;
    s.logits = NULL;
    rig_sequence_close(rig, &s);
    return logits;
}
