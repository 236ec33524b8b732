/* An open model: what it holds in memory, and that packing loses nothing it need not lose. */
#include "engine/base/hash.h"
#include "engine/base/log.h"
#include "engine/base/mem.h"
#include "engine/model/model.h"
#include "engine/model/pack.h"
#include "engine/model/packed_cache.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <dirent.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

static char folder[] = P_tmpdir "/overfill-test-XXXXXX";
static char path[64], cache[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    log_set_level(LOG_LEVEL_ERROR);
    snprintf(path, sizeof(path), "%s/model.gguf", folder);
    snprintf(cache, sizeof(cache), "%s/cache", folder);
    return 0;
}

/* The one file of the cache; false if there is none. */
static bool find_cached(char *ret_path, size_t bytes)
{
    DIR *dir = opendir(cache);
    int n = 0;
    for (const struct dirent *e; dir && (e = readdir(dir));)
        if (e->d_name[0] != '.') {
            snprintf(ret_path, bytes, "%s/%s", cache, e->d_name);
            n++;
        }
    if (dir)
        closedir(dir);
    assert_true(n < 2);
    return n == 1;
}

static void empty_cache(void)
{
    char file[512];
    if (find_cached(file, sizeof(file)))
        unlink(file);
}

static int remove_folder(void **state)
{
    empty_cache();
    rmdir(cache);
    unlink(path);
    return rmdir(folder);
}

static struct model *open_again(enum model_weights weights, const char *packed_cache)
{
    const struct model_open_options options = {
        .weights = weights, .n_positions = 16, .packed_cache = packed_cache};
    struct model_file *file;
    struct model *model = NULL;
    struct error err;
    if (model_file_open(path, &file, &err) || model_open(file, &options, &model, &err))
        fail_msg("%s", err.message);
    return model;
}

static struct model *open_model(const struct tiny *tiny, enum model_weights weights)
{
    tiny_write_gguf(tiny, path);
    return open_again(weights, NULL);
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
        tensor_dequantize(t->type, (const uint8_t *)t->data + (size_t)token * row_bytes, 64,
                          expected);
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
        const uint16_t scales[2] = {float_to_half(0.003f + (float)at * 1e-7f),
                                    float_to_half(-0.02f)};
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
    struct model_params p = {.n_layers = 1,
                             .hidden = 256,
                             .norm_width = 256,
                             .mlp = 512,
                             .n_heads = 4,
                             .n_kv_heads = 4,
                             .head_dim = 64,
                             .rope_dim = 64,
                             .vocab_size = 16};
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

/* --- the packed cache ---------------------------------------------------------------------- */

static void expect_same_matrix(const struct matrix *a, const struct matrix *b)
{
    assert_int_equal(a->type, b->type);
    assert_int_equal(matrix_bytes(a), matrix_bytes(b));
    assert_memory_equal(a->data, b->data, matrix_bytes(a));
}

static void expect_same_model(const struct model *a, const struct model *b)
{
    assert_int_equal(a->held_bytes, b->held_bytes);
    expect_same_matrix(&a->head, &b->head);
    for (uint32_t l = 0; l < a->params.n_layers; l++) {
        const struct layer *x = &a->layers[l], *y = &b->layers[l];
        expect_same_matrix(&x->qkv, &y->qkv);
        expect_same_matrix(&x->o, &y->o);
        expect_same_matrix(&x->gate_up, &y->gate_up);
        expect_same_matrix(&x->down, &y->down);
        assert_memory_equal(x->attn_norm, y->attn_norm, a->params.hidden * sizeof(float));
    }
    for (int32_t token = 0; token < 100; token++) {
        float row[2][64];
        model_embed(a, token, row[0]);
        model_embed(b, token, row[1]);
        assert_memory_equal(row[0], row[1], sizeof(row[0]));
    }
}

/* Opens the model with the cache, from which it takes its weights or not, and expects the model
 * that is opened without. */
static void expect_opened(enum model_weights weights, bool from_the_cache)
{
    struct model *plain = open_again(weights, NULL), *model = open_again(weights, cache);
    assert_int_equal(model->arena.given != NULL, from_the_cache);
    expect_same_model(plain, model);
    model_close(plain);
    model_close(model);
}

static void packed_weights_are_found_again(void **state)
{
    static const struct held_case cases[] = {
        {TENSOR_Q8_0, MODEL_WEIGHTS_AUTO, false, false},
        {TENSOR_Q4_0, MODEL_WEIGHTS_AUTO, true, true},
        {TENSOR_Q4_1, MODEL_WEIGHTS_AUTO, false, false},
        {TENSOR_F16, MODEL_WEIGHTS_F32, false, false},
        {TENSOR_F16, MODEL_WEIGHTS_Q8, false, true},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_of(cases[i].type, cases[i].untied);
        tiny_write_gguf(&tiny, path);
        expect_opened(cases[i].weights, false);
        expect_opened(cases[i].weights, true);
        empty_cache();
    }
}

static void flip(size_t at)
{
    char file[512];
    assert_true(find_cached(file, sizeof(file)));
    FILE *f = fopen(file, "r+b");
    assert_non_null(f);
    fseek(f, (long)at, SEEK_SET);
    int c = fgetc(f);
    fseek(f, (long)at, SEEK_SET);
    fputc(c ^ 1, f);
    fclose(f);
}

/* A file that is no good is not used, and replaced. */
static void a_cache_that_is_no_good_is_made_anew(void **state)
{
    struct tiny tiny = tiny_of(TENSOR_Q8_0, false);
    char file[512];
    struct stat st;
    tiny_write_gguf(&tiny, path);
    expect_opened(MODEL_WEIGHTS_AUTO, false);
    assert_true(find_cached(file, sizeof(file)) && stat(file, &st) == 0);
    for (size_t at = 0; at < 80; at += 4) { /* the header */
        flip(at);
        expect_opened(MODEL_WEIGHTS_AUTO, false);
    }
    flip((size_t)st.st_size - 1000);
    expect_opened(MODEL_WEIGHTS_AUTO, false);
    const off_t cuts[] = {0, 50, 4096, st.st_size / 2, st.st_size - 1, st.st_size + 64};
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        assert_int_equal(truncate(file, cuts[i]), 0);
        expect_opened(MODEL_WEIGHTS_AUTO, false);
        expect_opened(MODEL_WEIGHTS_AUTO, true);
    }
    empty_cache();
}

static void another_models_cache_is_not_used(void **state)
{
    struct tiny tiny = tiny_of(TENSOR_Q8_0, false);
    char first[512], second[512];
    tiny_write_gguf(&tiny, path);
    expect_opened(MODEL_WEIGHTS_AUTO, false);
    assert_true(find_cached(first, sizeof(first)));
    char aside[600];
    snprintf(aside, sizeof(aside), "%s/aside", folder);
    assert_int_equal(rename(first, aside), 0);
    tiny.seed = 5;
    tiny_write_gguf(&tiny, path);
    expect_opened(MODEL_WEIGHTS_AUTO, false);
    assert_true(find_cached(second, sizeof(second)));
    assert_string_not_equal(first, second);
    assert_int_equal(rename(aside, second), 0);
    expect_opened(MODEL_WEIGHTS_AUTO, false);

    /* written again, the same bytes: the time alone tells */
    const struct timespec times[2] = {{.tv_nsec = UTIME_OMIT}, {.tv_sec = 1000000000}};
    assert_int_equal(utimensat(AT_FDCWD, path, times, 0), 0);
    expect_opened(MODEL_WEIGHTS_AUTO, false);
    empty_cache();
}

static void a_cache_that_cannot_be_kept_does_no_harm(void **state)
{
    struct tiny tiny = tiny_of(TENSOR_Q8_0, false);
    struct rlimit before, small = {.rlim_cur = 20000};
    char file[512];
    tiny_write_gguf(&tiny, path);

    assert_int_equal(getrlimit(RLIMIT_FSIZE, &before), 0);
    small.rlim_max = before.rlim_max;
    signal(SIGXFSZ, SIG_IGN);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &small), 0);
    struct model *model = open_again(MODEL_WEIGHTS_AUTO, cache);
    assert_int_equal(setrlimit(RLIMIT_FSIZE, &before), 0);
    assert_null(model->arena.given);
    assert_false(find_cached(file, sizeof(file)));
    model_close(model);

    model = open_again(MODEL_WEIGHTS_AUTO, "/proc/no/such");
    assert_null(model->arena.given);
    model_close(model);
}

/* Packed bytes outlive the program that wrote them: whoever changes the layouts raises
 * PACKED_CACHE_VERSION and writes the new sums here. */
static void layouts_are_those_of_the_caches_version(void **state)
{
    static const struct {
        enum tensor_type type;
        uint64_t hash;
    } cases[] = {{TENSOR_Q8_0, 0x871f1258e45e36b2},
                 {TENSOR_Q4_0, 0xb4376e5666a2c72d},
                 {TENSOR_Q4_1, 0xadf2146dc3a82a21},
                 {TENSOR_F16, 0xde749a8bde7b4dcd}};
    assert_int_equal(PACKED_CACHE_VERSION, 2);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct tiny tiny = tiny_of(cases[i].type, false);
        struct model *model = open_model(&tiny, MODEL_WEIGHTS_AUTO);
        const struct layer *layer = &model->layers[0];
        const struct matrix *const all[] = {&layer->qkv, &layer->o, &layer->gate_up, &layer->down};
        uint64_t hash = HASH_START;
        for (size_t k = 0; k < 4; k++)
            hash = hash_bytes(hash, all[k]->data, matrix_bytes(all[k]));
        if (hash != cases[i].hash)
            fail_msg("%s: packed bytes have the hash %#" PRIx64, tensor_type_name(cases[i].type),
                     hash);
        model_close(model);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_tied_head_is_held_once),
        cmocka_unit_test(pages_of_the_file_leave_memory_as_they_are_packed),
        cmocka_unit_test(q4_k_stays_four_bits),
        cmocka_unit_test(packed_weights_are_found_again),
        cmocka_unit_test(a_cache_that_is_no_good_is_made_anew),
        cmocka_unit_test(another_models_cache_is_not_used),
        cmocka_unit_test(a_cache_that_cannot_be_kept_does_no_harm),
        cmocka_unit_test(layouts_are_those_of_the_caches_version),
    };
    return cmocka_run_group_tests_name("model", tests, make_folder, remove_folder);
}
