/* An open model: what it holds in memory, and that packing loses nothing it need not lose. */
#include "engine/model/model.h"

#include "engine/base/mem.h"
#include "engine/model/pack.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[] = P_tmpdir "/overfill-test-XXXXXX";

static int make_file(void **state)
{
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int remove_file(void **state)
{
    return unlink(path);
}

static struct model *open_model(const struct tiny *tiny, enum model_weights weights)
{
    struct model_file *file;
    struct model *model;
    struct error err;
    tiny_write_gguf(tiny, path);
    if (model_file_open(path, &file, &err) || model_open(file, weights, 16, NULL, NULL, &model, &err))
        fail_msg("%s", err.message);
    return model;
}

/* Whole blocks in every row. */
static struct tiny tiny_of(enum tensor_type type, bool untied)
{
    struct tiny tiny = tiny_default();
    tiny.hidden = 64;
    tiny.mlp = 96;
    tiny.head_dim = 16;
    tiny.n_tokens = 100;
    tiny.type = type;
    tiny.untied = untied;
    return tiny;
}

static size_t sum_of_matrices(const struct model *model)
{
    size_t sum = matrix_bytes(&model->head);
    for (uint32_t l = 0; l < model->params.n_layers; l++) {
        const struct layer *layer = &model->layers[l];
        sum += matrix_bytes(&layer->qkv) + matrix_bytes(&layer->o);
        sum += matrix_bytes(&layer->gate_up) + matrix_bytes(&layer->down);
    }
    return sum;
}

static void expect_rows_of_the_file(const struct model *model)
{
    const struct tensor *t = model_file_tensor(model->file, "token_embd.weight");
    size_t row_bytes = t->bytes / t->dims[1];
    float expected[64], row[64];
    for (int32_t token = 0; token < 100; token++) {
        tensor_dequantize(t->type, (const uint8_t *)t->data + (size_t)token * row_bytes, 64, expected);
        model_embed(model, token, row);
        assert_memory_equal(row, expected, sizeof(row));
    }
}

struct held_case {
    enum tensor_type type;
    enum model_weights weights;
    bool untied;
    bool twice; /* the embedding is held beside the head */
};

static void a_tied_head_is_held_once(void **state)
{
    static const struct held_case cases[] = {
        {TENSOR_Q8_0, MODEL_WEIGHTS_AUTO, false, false},
        {TENSOR_Q4_0, MODEL_WEIGHTS_AUTO, false, false},
        {TENSOR_Q4_1, MODEL_WEIGHTS_AUTO, false, false},
        {TENSOR_F16, MODEL_WEIGHTS_F32, false, false},
        {TENSOR_Q4_1, MODEL_WEIGHTS_F32, false, false},
        /* packing rounds these, so the file's rows stay */
        {TENSOR_F16, MODEL_WEIGHTS_AUTO, false, true},
        {TENSOR_Q4_0, MODEL_WEIGHTS_Q8, false, true},
        {TENSOR_Q8_0, MODEL_WEIGHTS_AUTO, true, true},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_of(cases[i].type, cases[i].untied);
        struct model *model = open_model(&tiny, cases[i].weights);
        const struct tensor *t = model_file_tensor(model->file, "token_embd.weight");
        assert_int_equal(model->packed_bytes, sum_of_matrices(model));
        assert_int_equal(model->held_bytes,
                         sum_of_matrices(model) + (cases[i].twice ? t->bytes : 0));
        expect_rows_of_the_file(model);
        model_close(model);
    }
}

/* The pages of the file that this process has in memory. */
static size_t resident_bytes_of(const char *file)
{
    char line[512];
    size_t sum = 0;
    bool counts = false;
    FILE *maps = fopen("/proc/self/smaps", "r");
    assert_non_null(maps);
    while (fgets(line, sizeof(line), maps)) {
        size_t kb;
        if (strchr(line, '-') && strchr(line, '-') < strchr(line, ' '))
            counts = strstr(line, file) != NULL;
        else if (counts && sscanf(line, "Rss: %zu kB", &kb) == 1)
            sum += kb * 1024;
    }
    fclose(maps);
    return sum;
}

static void pages_of_the_file_leave_memory_as_they_are_packed(void **state)
{
    for (int untied = 0; untied < 2; untied++) {
        struct tiny tiny = tiny_of(TENSOR_Q8_0, untied);
        tiny.hidden = 512;
        tiny.mlp = 2048;
        tiny.head_dim = 64;
        tiny.n_tokens = 4096;
        struct model *model = open_model(&tiny, MODEL_WEIGHTS_AUTO);
        size_t bytes = model_file_bytes(model->file);
        assert_true(bytes > 8 << 20);
        if (resident_bytes_of(path) > bytes / 8)
            fail_msg("%zu of the file's %zu bytes are in memory", resident_bytes_of(path), bytes);
        model_close(model);
    }
}

/* Random blocks of Q4_K whose scales are numbers. */
static struct tensor q4_k_tensor(uint64_t columns, uint64_t rows, uint32_t *seed)
{
    struct tensor t = {.type = TENSOR_Q4_K, .n_dims = 2, .dims = {columns, rows, 1, 1}};
    assert_true(tensor_type_bytes(t.type, columns * rows, &t.bytes));
    uint8_t *data = malloc(t.bytes);
    assert_non_null(data);
    for (size_t i = 0; i < t.bytes; i++)
        data[i] = (uint8_t)((*seed = *seed * 1664525 + 1013904223) >> 24);
    for (size_t at = 0; at < t.bytes; at += 144) {
        const uint16_t scales[2] = {float_to_half(0.003f + (float)at * 1e-7f), float_to_half(-0.02f)};
        memcpy(data + at, scales, sizeof(scales));
    }
    t.data = data;
    return t;
}

static void expect_near(const struct tensor *t, const struct matrix *m)
{
    float expected[512], row[512];
    size_t row_bytes = t->bytes / t->dims[1];
    for (uint32_t r = 0; r < t->dims[1]; r++) {
        tensor_dequantize(t->type, (const uint8_t *)t->data + r * row_bytes, t->dims[0], expected);
        matrix_unpack_row(m, r, row);
        for (size_t i = 0; i < t->dims[0]; i++) /* scale * 15 and min are below 4 */
            assert_true(fabsf(row[i] - expected[i]) <= 2 * 4 * 0x1p-11f);
    }
}

static void q4_k_stays_four_bits(void **state)
{
    struct model_params p = {.n_layers = 1, .hidden = 256, .norm_width = 256, .mlp = 512, .n_heads = 4,
                             .n_kv_heads = 4, .head_dim = 64, .rope_dim = 64, .vocab_size = 16};
    uint32_t seed = 7;
    struct tensor down = q4_k_tensor(512, 256, &seed), o = q4_k_tensor(256, 256, &seed);
    struct model *model;
    struct error err;

    assert_int_equal(model_open_empty(&p, MODEL_WEIGHTS_AUTO, 16, &model, &err), 0);
    assert_int_equal(
        model_pack_layer(model, 0, &(struct layer_tensors){.down = &down, .o = &o}, &err), 0);
    assert_int_equal(model->layers[0].down.type, MATRIX_Q4_MIN);
    assert_int_equal(model->packed_bytes, (down.bytes + o.bytes) / 144 * 160);
    expect_near(&down, &model->layers[0].down);
    expect_near(&o, &model->layers[0].o);
    model_close(model);
    free((void *)(uintptr_t)down.data);
    free((void *)(uintptr_t)o.data);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tied_head_is_held_once),
        cmocka_unit_test(pages_of_the_file_leave_memory_as_they_are_packed),
        cmocka_unit_test(q4_k_stays_four_bits),
    };
    return cmocka_run_group_tests_name("model", tests, make_file, remove_file);
}
