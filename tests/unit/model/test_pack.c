/* What the kernels read against what the file says, for every type of block. */
#include "engine/base/mem.h"
#include "engine/model/cost.h"
#include "engine/model/model.h"
#include "engine/model/pack.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_IN 512

static void packed_weights_are_those_of_the_file(void **state)
{
    static const struct {
        enum tensor_type type;
        enum matrix_type packed;
        float share; /* of a block's largest magnitude; 0: the same floats */
    } cases[] = {
        {TENSOR_Q8_0, MATRIX_Q8, 0},           {TENSOR_Q5_0, MATRIX_Q8, 0},
        {TENSOR_Q4_0, MATRIX_Q4, 0},           {TENSOR_Q4_1, MATRIX_Q4_MIN, 0},
        {TENSOR_Q4_K, MATRIX_Q4_MIN, 0x1p-9f}, {TENSOR_Q5_1, MATRIX_Q8, 0.51f / 127},
        {TENSOR_Q2_K, MATRIX_Q8, 0.51f / 127}, {TENSOR_Q3_K, MATRIX_Q8, 0.51f / 127},
        {TENSOR_Q5_K, MATRIX_Q8, 0.51f / 127}, {TENSOR_Q6_K, MATRIX_Q8, 0.51f / 127},
    };
    static float values[KERNEL_TILE * N_IN], expected[KERNEL_TILE * N_IN];
    static uint8_t bytes[KERNEL_TILE * N_IN * 2];
    for (size_t i = 0; i < KERNEL_TILE * N_IN; i++)
        values[i] = sinf((float)i * 1.3f) * (float)(1 + i / 32 % 5);
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        struct tensor t = {
            .type = cases[c].type, .n_dims = 2, .dims = {N_IN, KERNEL_TILE, 1, 1}, .data = bytes};
        struct row_source rows[KERNEL_TILE];
        float found[N_IN];
        struct weight_arena arena = {0};
        struct matrix m;
        struct error err = {0};
        assert_int_equal(tensor_quantize(t.type, values, KERNEL_TILE * N_IN, bytes, &err), 0);
        tensor_dequantize(t.type, bytes, KERNEL_TILE * N_IN, expected);
        for (size_t r = 0; r < KERNEL_TILE; r++)
            rows[r] = (struct row_source){&t, r};
        assert_int_equal(matrix_alloc(cases[c].packed, KERNEL_TILE, N_IN, &arena, &m, &err), 0);
        assert_int_equal(matrix_fill(&m, rows, 0, 1, &err), 0);
        for (size_t r = 0; r < KERNEL_TILE; r++) {
            matrix_unpack_row(&m, (uint32_t)r, found);
            for (size_t i = 0; i < N_IN; i++) {
                float most = 0;
                for (size_t k = i / 32 * 32; k < i / 32 * 32 + 32; k++)
                    most = fmaxf(most, fabsf(expected[r * N_IN + k]));
                if (fabsf(found[i] - expected[r * N_IN + i]) > cases[c].share * most)
                    fail_msg("%s, row %zu, input %zu: %g expected, found %g",
                             tensor_type_name(t.type), r, i, (double)expected[r * N_IN + i],
                             (double)found[i]);
            }
        }
        weight_arena_free(&arena);
    }
}

/* Of each type a model opens, and its matrices stay as narrow as the kernels can read them. */
static void models_of_every_type_open(void **state)
{
    static const struct {
        enum tensor_type type;
        enum matrix_type packed;
    } cases[] = {{TENSOR_Q2_K, MATRIX_Q8},     {TENSOR_Q3_K, MATRIX_Q8},
                 {TENSOR_Q4_K, MATRIX_Q4_MIN}, {TENSOR_Q5_0, MATRIX_Q8},
                 {TENSOR_Q5_1, MATRIX_Q8},     {TENSOR_Q4_0, MATRIX_Q4},
                 {TENSOR_Q4_1, MATRIX_Q4_MIN}, {TENSOR_Q6_K, MATRIX_Q8}};
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        char path[] = P_tmpdir "/overfill-test-XXXXXX";
        struct tiny tiny = tiny_default();
        struct model_file *file;
        struct model *model = NULL;
        struct error err = {0};
        int fd = mkstemp(path);
        assert_true(fd >= 0);
        close(fd);
        tiny.hidden = tiny.mlp = 256;
        tiny.type = cases[c].type;
        tiny_write_gguf(&tiny, path);
        int rc = model_file_open(path, &file, &err);
        if (rc == 0)
            rc = model_open(file, &(struct model_open_options){.n_positions = 8}, &model, &err);
        unlink(path);
        if (rc)
            fail_msg("%s: %s", tensor_type_name(cases[c].type), err.message);
        assert_int_equal(model->layers[1].gate_up.type, cases[c].packed);
        assert_int_equal(model->layers[1].down.type, cases[c].packed);
        assert_int_equal(model->head.type, cases[c].packed);
        assert_int_equal(model_cost(&model->params, cases[c].type, cases[c].type).bytes,
                         model->packed_bytes);
        model_close(model);
    }
}

/* Widths of no whole blocks, tiles or heads: what a model holds is what it was said to hold. */
static void cost_counts_what_packing_adds(void **state)
{
    char path[] = P_tmpdir "/overfill-test-XXXXXX";
    struct tiny tiny = tiny_default();
    struct model_file *file;
    struct model *model;
    struct error err = {0};
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    tiny.hidden = 40;
    tiny.mlp = 56;
    tiny.head_dim = 20;
    tiny.n_tokens = 50;
    tiny_write_gguf(&tiny, path);
    assert_int_equal(model_file_open(path, &file, &err), 0);
    assert_int_equal(model_open(file, &(struct model_open_options){.n_positions = 8}, &model, &err),
                     0);
    unlink(path);
    struct model_cost cost = model_cost(&model->params, TENSOR_F32, TENSOR_F32);
    assert_int_equal(cost.bytes, model->packed_bytes);
    /* 2 layers: q and o of 4 heads, k and v of 2, gate, up and down; 50 rows of the head */
    assert_true(cost.multiply_adds == 2 * 40 * (2 * 80 + 2 * 40 + 3 * 56) + 50 * 40);
    model_close(model);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(packed_weights_are_those_of_the_file),
        cmocka_unit_test(models_of_every_type_open),
        cmocka_unit_test(cost_counts_what_packing_adds),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
