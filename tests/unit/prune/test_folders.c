/* Hugging Face folders as transformers reads them: ids and logits of every architecture, from the
 * folder and from the GGUF file that `prune` makes of it; pairs of which the twin has odd widths.
 */
#include "engine/prune/prune_internal.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/unit/check.h"
#include "tests/unit/forward/rig.h"
#include "tests/unit/prune/expected.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define TOLERANCE 1e-3
#define TINY OVERFILL_SOURCE_ROOT "/tests/data/tiny/"

static const char *const names[] = {"llama3-tied", "llama3-untied",    "llama2",
                                    "mistral",     "llama2-linear",    "qwen2",
                                    "qwen3",       "llama3-tied-twin", "llama2-twin"};
#define N_NAMES (sizeof(names) / sizeof(names[0]))

static char gguf_path[] = P_tmpdir "/overfill-test-XXXXXX";
static char keep_path[] = P_tmpdir "/overfill-test-XXXXXX";

static int make_files(void **state)
{
    int a = mkstemp(gguf_path), b = mkstemp(keep_path);
    return a < 0 || b < 0 || close(a) || close(b);
}

static int remove_files(void **state)
{
    return unlink(gguf_path) || unlink(keep_path);
}

static void folder_of(const char *name, char ret[256])
{
    snprintf(ret, 256, TINY "%s", name);
}

static void prune_to_gguf(const struct prune_options *options)
{
    struct prune_options o = *options;
    struct prune_report report;
    struct error err = {0};
    o.out_path = gguf_path;
    if (prune_run(&o, &report, &err))
        fail_msg("%s", err.message);
    prune_report_free(&report);
}

static double largest_difference(const float *a, const float *b, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs((double)a[i] - (double)b[i]);
        most = d > most || isnan(d) ? d : most;
    }
    return most;
}

/* The root mean square of a - b, as a share of b's. */
static double relative_difference(const float *a, const float *b, size_t n)
{
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        difference += ((double)a[i] - (double)b[i]) * ((double)a[i] - (double)b[i]);
        size += (double)b[i] * (double)b[i];
    }
    return sqrt(difference / size);
}

/* All tokens in one pass, and as a prefill with one token a pass after it. */
static void check_logits(const char *path, const struct expected *e)
{
    struct rig rig;
    rig_open(&rig, &(struct rig_options){
                       .path = path, .weights = MODEL_WEIGHTS_F32, .kv_bytes = 4, .n_threads = 1});
    size_t n = (size_t)e->n_tokens * e->n_vocab;
    assert_int_equal(rig.model->params.vocab_size, e->n_vocab);

    float *whole = rig_logits(&rig, e->text_tokens, e->n_tokens, e->n_tokens);
    double prefill = largest_difference(whole, e->logits, n);
    struct rig_sequence s;
    rig_sequence_open(&s, e->text_tokens, e->n_tokens, e->n_vocab);
    for (uint32_t take = e->n_prefill; s.n_done < e->n_tokens; take = 1)
        rig_pass(&rig, rig.model, &s, 1, &take);
    double decode = largest_difference(s.logits, e->logits, n);
    rig_sequence_close(&rig, &s);
    rig_close(&rig);
    free(whole);
    print_message("  off by %.1e, in decode %.1e: %s\n", prefill, decode, path);
    if (!(prefill < TOLERANCE && decode < TOLERANCE))
        fail_msg("%s: logits off by %g, in decode by %g", path, prefill, decode);
}

static void check_ids(const char *path, const struct expected *e)
{
    struct model_file *file;
    struct tokenizer *tokenizer;
    struct token_list list = {0};
    struct error err = {0};
    if (model_file_open(path, &file, &err) ||
        tokenizer_open(model_file_vocab(file), &tokenizer, &err) ||
        tokenizer_encode(tokenizer, e->text, strlen(e->text), TOKENIZER_ADD_SPECIAL, &list, &err))
        fail_msg("%s", err.message);
    assert_int_equal(list.n, e->n_text_tokens);
    for (size_t i = 0; i < list.n; i++)
        if (list.ids[i] != e->text_tokens[i])
            fail_msg("%s: id %zu: %d expected, found %d", path, i, e->text_tokens[i], list.ids[i]);
    token_list_free(&list);
    tokenizer_close(tokenizer);
    model_file_close(file);
}

static void folders_give_the_logits_of_transformers(void **state)
{
    for (size_t i = 0; i < N_NAMES; i++) {
        char folder[256];
        struct expected e;
        folder_of(names[i], folder);
        expected_read(folder, &e);
        check_ids(folder, &e);
        check_logits(folder, &e);
        expected_free(&e);
    }
}

static void their_gguf_files_give_the_same(void **state)
{
    for (size_t i = 0; i < N_NAMES; i++) {
        char folder[256];
        struct expected e;
        folder_of(names[i], folder);
        expected_read(folder, &e);
        prune_to_gguf(&(struct prune_options){
            .model_path = folder, .type = PRUNE_TYPE_KEEP, .head_type = PRUNE_TYPE_KEEP});
        check_ids(gguf_path, &e);
        check_logits(gguf_path, &e);
        prune_to_gguf(&(struct prune_options){
            .model_path = folder, .type = TENSOR_F32, .head_type = PRUNE_TYPE_KEEP});
        check_logits(gguf_path, &e);
        expected_free(&e);
    }
}

/* A folder and the GGUF file made of it are a pair: nothing was lost on the way. */
static void a_gguf_file_fits_its_folder(void **state)
{
    for (size_t i = 0; i < N_NAMES; i++) {
        struct model_file *full, *twin;
        struct error warning, err;
        char folder[256];
        folder_of(names[i], folder);
        prune_to_gguf(&(struct prune_options){
            .model_path = folder, .type = TENSOR_F16, .head_type = PRUNE_TYPE_KEEP});
        assert_int_equal(model_file_open(folder, &full, &err), 0);
        assert_int_equal(model_file_open(gguf_path, &twin, &err), 0);
        if (model_file_check_pair(full, twin, &warning, &err))
            fail_msg("%s", err.message);
        if (warning.code)
            fail_msg("%s: %s", folder, warning.message);
        assert_string_equal(model_file_params(full)->name, model_file_params(twin)->name);
        model_file_close(full);
        model_file_close(twin);
    }
}

/* Types of blocks take whole blocks: the file's rows are longer than the model's width, and the
 * norms' means know the true one. */
static void odd_widths_are_padded_in_block_types_only(void **state)
{
    static const struct {
        enum tensor_type type;
        uint32_t hidden, mlp;
    } cases[] = {{TENSOR_F32, 49, 35}, {TENSOR_BF16, 49, 35}, {TENSOR_Q8_0, 64, 64}};
    struct expected e;
    expected_read(TINY "llama3-tied-twin", &e);
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct rig rig;
        prune_to_gguf(&(struct prune_options){.model_path = TINY "llama3-tied-twin",
                                              .type = (int)cases[i].type,
                                              .head_type = PRUNE_TYPE_KEEP});
        rig_open(&rig, &(struct rig_options){.path = gguf_path,
                                             .weights = MODEL_WEIGHTS_F32,
                                             .kv_bytes = 4,
                                             .n_threads = 1});
        assert_int_equal(rig.model->params.hidden, cases[i].hidden);
        assert_int_equal(rig.model->params.mlp, cases[i].mlp);
        assert_int_equal(rig.model->params.norm_width, 49);
        float *logits = rig_logits(&rig, e.text_tokens, e.n_tokens, e.n_tokens);
        double d = relative_difference(logits, e.logits, (size_t)e.n_tokens * e.n_vocab);
        print_message("  %s: off by %.1e of the logits\n", tensor_type_name(cases[i].type), d);
        /* eight bits cost less than a mean over 64 instead of 49 would, which is 14 % */
        assert_true(d < (cases[i].type == TENSOR_Q8_0 ? 0.05 : 1e-4));
        free(logits);
        rig_close(&rig);
    }
    expected_free(&e);
}

/* The twin decodes on the full model's KV: with other weights, but the same bits as its GGUF. */
static float *pair_logits(const char *full, const char *twin, const struct expected *e,
                          enum model_weights weights)
{
    struct rig rig;
    struct rig_sequence s;
    uint32_t take = e->n_prefill, one = 1;
    rig_open(
        &rig,
        &(struct rig_options){
            .path = full, .twin_path = twin, .weights = weights, .kv_bytes = 4, .n_threads = 1});
    rig_sequence_open(&s, e->text_tokens, e->n_tokens, e->n_vocab);
    rig_pass(&rig, rig.model, &s, 1, &take);
    while (s.n_done < e->n_tokens)
        rig_pass(&rig, rig.twin, &s, 1, &one);
    float *logits = s.logits;
    s.logits = NULL;
    rig_sequence_close(&rig, &s);
    rig_close(&rig);
    return logits;
}

static void a_twin_of_odd_widths_decodes_on_the_full_models_kv(void **state)
{
    static const char *const pairs[][2] = {{TINY "llama3-tied", TINY "llama3-tied-twin"},
                                           {TINY "llama2", TINY "llama2-twin"}};
    for (size_t i = 0; i < 2; i++) {
        struct expected e;
        expected_read(pairs[i][0], &e);
        size_t n = (size_t)e.n_tokens * e.n_vocab, n_full = (size_t)e.n_prefill * e.n_vocab;
        float *f32 = pair_logits(pairs[i][0], pairs[i][1], &e, MODEL_WEIGHTS_F32);
        float *packed = pair_logits(pairs[i][0], pairs[i][1], &e, MODEL_WEIGHTS_AUTO);
        prune_to_gguf(&(struct prune_options){
            .model_path = pairs[i][1], .type = TENSOR_F32, .head_type = PRUNE_TYPE_KEEP});
        float *gguf = pair_logits(pairs[i][0], gguf_path, &e, MODEL_WEIGHTS_F32);

        assert_true(largest_difference(f32, e.logits, n_full) < TOLERANCE);
        assert_true(largest_difference(f32 + n_full, e.logits + n_full, n - n_full) > 0.1);
        assert_true(largest_difference(f32, gguf, n) < TOLERANCE);
        double rounding = relative_difference(packed, f32, n);
        print_message("  int8 weights move logits by %.1e of them\n", rounding);
        assert_true(rounding > 0 && rounding < 0.05);
        free(f32);
        free(packed);
        free(gguf);
        expected_free(&e);
    }
}

static void expect_widths(uint32_t hidden, uint32_t mlp)
{
    struct model_file *file;
    struct error err;
    if (model_file_open(gguf_path, &file, &err))
        fail_msg("%s", err.message);
    assert_int_equal(model_file_params(file)->norm_width, hidden);
    assert_int_equal(model_file_params(file)->mlp, mlp);
    model_file_close(file);
}

static void put_keep(const char *text)
{
    FILE *stream = fopen(keep_path, "w");
    assert_non_null(stream);
    fputs(text, stream);
    assert_int_equal(fclose(stream), 0);
}

static float value_at(const char *path, const char *name, size_t row, size_t column)
{
    struct model_file *file;
    struct error err;
    float values[512];
    assert_int_equal(model_file_open(path, &file, &err), 0);
    const struct tensor *t = model_file_tensor(file, name);
    assert_non_null(t);
    tensor_dequantize(t->type, (const uint8_t *)t->data + row * (t->bytes / t->dims[1]), t->dims[0],
                      values);
    model_file_close(file);
    return values[column];
}

static void a_list_of_channels_is_cut_out_in_ascending_order(void **state)
{
    static const char source[] = TINY "llama3-tied";
    put_keep("{\"hidden\": [7, 60, 3], \"mlp\": [[0, 2], [79, 5]]}");
    prune_to_gguf(&(struct prune_options){.method = PRUNE_MINITRON,
                                          .model_path = source,
                                          .type = PRUNE_TYPE_KEEP,
                                          .head_type = PRUNE_TYPE_KEEP,
                                          .keep_path = keep_path});
    expect_widths(3, 2);
    assert_true(value_at(gguf_path, "token_embd.weight", 9, 0) ==
                value_at(source, "token_embd.weight", 9, 3));
    assert_true(value_at(gguf_path, "blk.1.ffn_up.weight", 1, 2) ==
                value_at(source, "blk.1.ffn_up.weight", 79, 60));
    assert_true(value_at(gguf_path, "blk.1.ffn_down.weight", 0, 0) ==
                value_at(source, "blk.1.ffn_down.weight", 3, 5));
    assert_true(value_at(gguf_path, "blk.0.attn_norm.weight", 0, 2) ==
                value_at(source, "blk.0.attn_norm.weight", 0, 60));
    /* the second row of a head in GGUF is the first of its upper half in the folder */
    assert_true(value_at(gguf_path, "blk.0.attn_k.weight", 17, 1) ==
                value_at(source, "blk.0.attn_k.weight", 24, 7));
    put_keep("{\"hidden\": [5, 4, 3, 2, 1, 0]}");
    prune_to_gguf(&(struct prune_options){.method = PRUNE_MINITRON,
                                          .model_path = source,
                                          .type = TENSOR_Q8_0,
                                          .head_type = PRUNE_TYPE_KEEP,
                                          .keep_path = keep_path});
    expect_widths(6, 96);
}

static void a_bad_list_is_refused_by_name(void **state)
{
    static const struct {
        const char *text, *says;
    } cases[] = {
        {"", "no valid JSON"},
        {"[1, 2]", "key hidden or mlp expected"},
        {"{}", "key hidden or mlp expected"},
        {"{\"hidden\": 3}", "key hidden: a list of 1 to 64 channels expected"},
        {"{\"hidden\": []}", "key hidden: a list of 1 to 64 channels expected"},
        {"{\"hidden\": [1, 64]}", "key hidden: item 1: a channel 0..63 expected"},
        {"{\"hidden\": [1, -1]}", "key hidden: item 1: a channel 0..63 expected"},
        {"{\"hidden\": [1, 2, 1]}", "key hidden: item 2: channel 1 stands there twice"},
        {"{\"mlp\": [[1]]}", "key mlp: 2 lists expected, one a layer"},
        {"{\"mlp\": [[1], 5]}", "key mlp: layer 1: a list of 1 to 80 channels expected"},
        {"{\"mlp\": [[1], [1, 2]]}",
         "key mlp: layer 1: 1 channels expected as in layer 0, found 2"},
        {"{\"mlp\": [[1], [80]]}", "key mlp: layer 1: item 0: a channel 0..79 expected"},
    };
    for (size_t i = 0; i < sizeof(cases) / sizeof(cases[0]); i++) {
        struct prune_options options = {.method = PRUNE_MINITRON,
                                        .model_path = TINY "llama3-tied",
                                        .out_path = gguf_path,
                                        .type = PRUNE_TYPE_KEEP,
                                        .head_type = PRUNE_TYPE_KEEP,
                                        .keep_path = keep_path};
        struct prune_report report;
        struct error err = {0};
        put_keep(cases[i].text);
        assert_true(prune_run(&options, &report, &err) < 0);
        if (!strstr(err.message, cases[i].says) || !strstr(err.message, keep_path))
            fail_msg("\"%s\" expected, found \"%s\"", cases[i].says, err.message);
    }
}

static void exact_widths_are_not_rounded(void **state)
{
    put_keep("Wind and rain came over the sea before the lamp was lit, and nobody knew why; so the "
             "keeper went up once more, counted the stairs, and wrote down what he saw there.\n");
    const char *text = keep_path;
    struct prune_options options = {.method = PRUNE_MINITRON,
                                    .model_path = TINY "llama3-tied",
                                    .hidden = 1 - 0.23, /* 49.28 */
                                    .mlp = 1 - 0.45,    /* 44 */
                                    .exact_widths = true,
                                    .type = PRUNE_TYPE_KEEP,
                                    .head_type = PRUNE_TYPE_KEEP,
                                    .calibration = &text,
                                    .n_calibration = 1};
    prune_to_gguf(&options);
    expect_widths(49, 44);
    options.type = TENSOR_Q8_0;
    prune_to_gguf(&options);
    expect_widths(49, 64);
    options.exact_widths = false;
    prune_to_gguf(&options);
    expect_widths(64, 32);
}

/* The twin solved for from a folder and from its GGUF file are the same bytes; nothing else is left
 * behind, also where it cannot be made. */
static void a_twin_is_solved_for_from_a_folder(void **state)
{
    char text[8192] = "", copy[64], rest[64];
    const char *calibration = keep_path;
    uint32_t seed = 5;
    for (size_t i = 0; i < sizeof(text) - 1; i++) {
        seed = seed * 1664525 + 1013904223;
        text[i] = "etaoins h\nrdlu"[(seed >> 16) % 14];
    }
    put_keep(text);
    snprintf(copy, sizeof(copy), "%s.copy", gguf_path);
    snprintf(rest, sizeof(rest), "%s.model", gguf_path);
    for (size_t i = 0; i < 2; i++) {
        struct prune_report report;
        struct error err;
        size_t n, n_other;
        const char *folder = i ? TINY "qwen2" : TINY "llama3-tied";
        struct prune_options o = {.model_path = folder,
                                  .out_path = copy,
                                  .type = PRUNE_TYPE_KEEP,
                                  .head_type = PRUNE_TYPE_KEEP};
        if (prune_run(&o, &report, &err))
            fail_msg("%s", err.message);
        prune_report_free(&report);
        o.hidden = o.mlp = 32;
        o.calibration = &calibration;
        o.n_calibration = 1;
        prune_to_gguf(&o);
        expect_widths(32, 32);
        char *twin = tiny_read_file(gguf_path, &n);
        assert_int_equal(access(rest, F_OK), -1);
        o.model_path = copy;
        prune_to_gguf(&o);
        char *other = tiny_read_file(gguf_path, &n_other);
        assert_int_equal(n, n_other);
        assert_memory_equal(twin, other, n);
        free(twin);
        free(other);
        o.model_path = folder;
        o.out_path = gguf_path;
        o.n_tokens = 40;
        assert_int_equal(prune_run(&o, &report, &err), -ERROR_INVALID);
        assert_int_equal(access(rest, F_OK), -1);
    }
    assert_int_equal(unlink(copy), 0);
}

/* /proc is a file system that has no room. */
static void a_twin_that_does_not_fit_the_disk_is_refused_with_its_bytes(void **state)
{
    struct prune_options o = {
        .method = PRUNE_MINITRON, .model_path = TINY "llama2", .out_path = "/proc/twin.gguf"};
    struct prune_report report;
    struct error err = {0};
    size_t needed = 0, free_bytes = 1;
    o.type = PRUNE_TYPE_KEEP;
    o.head_type = PRUNE_TYPE_KEEP;
    assert_int_equal(prune_run(&o, &report, &err), -ERROR_IO);
    const char *bytes = strrchr(err.message, '(');
    if (!bytes || sscanf(bytes, "(%zu bytes, %zu)", &needed, &free_bytes) != 2)
        fail_msg("%s", err.message);
    assert_true(needed > 10000 && free_bytes == 0);
}

static void a_calibration_that_does_not_fit_memory_is_refused_with_what_would(void **state)
{
    const size_t fixed = 1000, per_token = 1 << 20, too_many = (size_t)1 << 40;
    struct error err = {0};
    size_t fits = 0, needed = 0;
    assert_int_equal(room_check_bytes(fixed, 0, per_token, too_many, &err), -ERROR_MEMORY);
    const char *tokens = strstr(err.message, "--tokens "), *bytes = strrchr(err.message, '(');
    assert_true(tokens && sscanf(tokens, "--tokens %zu would fit", &fits) == 1);
    assert_true(bytes && sscanf(bytes, "(%zu bytes", &needed) == 1);
    assert_true(needed == fixed + per_token * too_many);
    assert_int_equal(room_check_bytes(fixed, 0, per_token, fits - 1, &err), 0);
    assert_int_equal(room_check_bytes(fixed, 0, per_token, fits + 1, &err), -ERROR_MEMORY);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(folders_give_the_logits_of_transformers),
        cmocka_unit_test(their_gguf_files_give_the_same),
        cmocka_unit_test(a_gguf_file_fits_its_folder),
        cmocka_unit_test(odd_widths_are_padded_in_block_types_only),
        cmocka_unit_test(a_twin_of_odd_widths_decodes_on_the_full_models_kv),
        cmocka_unit_test(a_list_of_channels_is_cut_out_in_ascending_order),
        cmocka_unit_test(a_bad_list_is_refused_by_name),
        cmocka_unit_test(exact_widths_are_not_rounded),
        cmocka_unit_test(a_twin_is_solved_for_from_a_folder),
        cmocka_unit_test(a_twin_that_does_not_fit_the_disk_is_refused_with_its_bytes),
        cmocka_unit_test(a_calibration_that_does_not_fit_memory_is_refused_with_what_would),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
