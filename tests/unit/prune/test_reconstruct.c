/* Reconstruction on tiny models: a twin that loses nothing, one that does, and a run that is
 * killed.
 */
#include "engine/base/mem.h"
#include "engine/model/model_file.h"
#include "engine/prune/prune.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

struct files {
    char folder[64], full[96], twin[96], layers[128], text[96];
    const char *calibration; /* text */
};

static void write_text(const char *path)
{
    FILE *f = fopen(path, "w");
    uint64_t seed = 9;
    assert_non_null(f);
    for (int i = 0; i < 40000; i++) { /* the tiny vocabulary has bytes for these */
        seed = seed * 6364136223846793005u + 1442695040888963407u;
        fputc("abcdef \n"[(seed >> 40) % 8], f);
    }
    fclose(f);
}

static int make_files(void **state)
{
    struct files *f = calloc(1, sizeof(*f));
    if (!f)
        return -1;
    *state = f;
    snprintf(f->folder, sizeof(f->folder), P_tmpdir "/overfill-test-XXXXXX");
    if (!mkdtemp(f->folder))
        return -1;
    snprintf(f->full, sizeof(f->full), "%s/full.gguf", f->folder);
    snprintf(f->twin, sizeof(f->twin), "%s/twin.gguf", f->folder);
    snprintf(f->layers, sizeof(f->layers), "%s.layers", f->twin);
    snprintf(f->text, sizeof(f->text), "%s/text.txt", f->folder);
    f->calibration = f->text;
    write_text(f->text);
    return 0;
}

static int remove_files(void **state)
{
    struct files *f = *state;
    unlink(f->full);
    unlink(f->twin);
    unlink(f->layers);
    unlink(f->text);
    int rc = rmdir(f->folder);
    free(f);
    return rc;
}

static struct tiny full_model(const char *arch)
{
    struct tiny tiny = tiny_default();
    tiny.arch = arch;
    tiny.hidden = 64;
    tiny.mlp = 96;
    tiny.head_dim = 16;
    tiny.n_tokens = 40;
    tiny.bias = strcmp(arch, "qwen2") == 0;
    tiny.qk_norm = strcmp(arch, "qwen3") == 0;
    return tiny;
}

static struct prune_options options_of(const struct files *f, double hidden, double mlp)
{
    return (struct prune_options){
        .method = PRUNE_RECONSTRUCT,
        .model_path = f->full,
        .out_path = f->twin,
        .calibration = &f->calibration,
        .n_calibration = 1,
        .hidden = hidden,
        .mlp = mlp,
        .type = TENSOR_F32,
        .head_type = PRUNE_TYPE_KEEP,
    };
}

/* Nothing removed: the twin is the full model. Biases and norms of heads too. */
static void full_width_loses_nothing(void **state)
{
    const struct files *f = *state;
    const char *const archs[] = {"llama", "qwen2", "qwen3"};
    for (size_t i = 0; i < 3; i++) {
        struct tiny tiny = full_model(archs[i]);
        struct prune_report report;
        struct error err = {0};
        tiny_write_gguf(&tiny, f->full);
        const struct prune_options options = options_of(f, 0, 0);
        if (prune_run(&options, &report, &err))
            fail_msg("%s: %s", archs[i], err.message);
        print_message("%s: KL %.2e, agree %.3f\n", archs[i], report.held.kl, report.held.agree);
        assert_true(report.held.n_tokens > 0);
        assert_true(report.held.kl < 1e-5);
        assert_true(report.held.agree > 0.99);
        prune_report_free(&report);
    }
}

/* What is in the file under that name. */
static struct tensor find_tensor(const struct model_file *file, const char *name)
{
    const struct tensor *t = model_file_tensor(file, name);
    assert_non_null(t);
    return *t;
}

/* Full width, fewer MLP channels, coarser types: the residual stream is the full model's own, so
 * norms and a tied embedding of its type are its bytes, and no head is added. */
static void full_width_keeps_embedding_and_norms(void **state)
{
    const struct files *f = *state;
    const char *const same[] = {"token_embd.weight", "blk.0.attn_norm.weight",
                                "blk.1.ffn_norm.weight"};
    struct tiny tiny = full_model("llama");
    struct error err = {0};
    for (int untied = 0; untied < 2; untied++) {
        struct prune_options options = options_of(f, 1.0, 64);
        struct prune_report report;
        struct model_file *full, *twin;
        tiny.untied = untied;
        options.type = TENSOR_Q8_0;
        options.head_type = TENSOR_F32;
        tiny_write_gguf(&tiny, f->full);
        if (prune_run(&options, &report, &err))
            fail_msg("%s", err.message);
        assert_int_equal(report.hidden, 64);
        prune_report_free(&report);
        assert_int_equal(model_file_open(f->full, &full, &err), 0);
        if (model_file_open(f->twin, &twin, &err))
            fail_msg("%s", err.message);
        for (size_t i = 0; i < sizeof(same) / sizeof(same[0]); i++) {
            struct tensor a = find_tensor(full, same[i]);
            struct tensor b = find_tensor(twin, same[i]);
            assert_int_equal(b.bytes, a.bytes);
            assert_memory_equal(b.data, a.data, a.bytes);
        }
        assert_int_equal(model_file_tensor(twin, "output.weight") != NULL, untied);
        assert_int_equal(find_tensor(twin, "blk.0.attn_q.weight").type, TENSOR_Q8_0);
        model_file_close(full);
        model_file_close(twin);
    }
}

/* A tied head of another type than the layers: one matrix, of that type. */
static void head_has_a_type_of_its_own(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    struct error err = {0};
    double kl[2];
    tiny_write_gguf(&tiny, f->full);
    for (int i = 0; i < 2; i++) {
        struct prune_options options = options_of(f, 1.0, 1.0);
        struct prune_report report;
        struct model_file *twin;
        options.type = TENSOR_Q8_0;
        options.head_type = i ? TENSOR_Q8_0 : TENSOR_Q4_0;
        if (prune_run(&options, &report, &err))
            fail_msg("%s", err.message);
        kl[i] = report.held.kl;
        prune_report_free(&report);
        if (model_file_open(f->twin, &twin, &err))
            fail_msg("%s", err.message);
        assert_int_equal(find_tensor(twin, "token_embd.weight").type, options.head_type);
        assert_int_equal(find_tensor(twin, "blk.1.ffn_down.weight").type, TENSOR_Q8_0);
        assert_null(model_file_tensor(twin, "output.weight"));
        model_file_close(twin);
    }
    print_message("KL %.2e with a Q4_0 head, %.2e with Q8_0\n", kl[0], kl[1]);
    assert_true(kl[1] < kl[0]);
}

/* K types where rows have 256 elements, what llama.cpp falls back to where not; both are counted,
 * and the twin of more bits is nearer to the full model. */
static void k_types_are_written_where_rows_fill_their_blocks(void **state)
{
    const struct files *f = *state;
    const int types[] = {TENSOR_Q2_K, TENSOR_Q6_K};
    const int others[] = {TENSOR_Q4_0, TENSOR_Q8_0};
    struct tiny tiny = full_model("llama");
    struct error err = {0};
    double kl[2];
    tiny.mlp = 256;
    tiny_write_gguf(&tiny, f->full);
    for (int i = 0; i < 2; i++) {
        struct prune_options options = options_of(f, 1.0, 1.0);
        struct prune_report report;
        options.type = types[i];
        options.head_type = TENSOR_F32;
        if (prune_run(&options, &report, &err))
            fail_msg("%s", err.message);
        kl[i] = report.held.kl;
        uint32_t n_down = 0, n_others = 0;
        for (size_t t = 0; t < PRUNE_MOST_TYPES && report.types[t].n_matrices; t++) {
            n_down += report.types[t].type == types[i] ? report.types[t].n_matrices : 0;
            n_others += report.types[t].type == others[i] ? report.types[t].n_matrices : 0;
        }
        assert_int_equal(n_down, 2);
        assert_int_equal(n_others, 12);
        prune_report_free(&report);
    }
    print_message("KL %.2e with Q2_K, %.2e with Q6_K\n", kl[0], kl[1]);
    assert_true(kl[1] < 0.5 * kl[0]);
}

static void too_few_tokens_are_told_with_how_many_are_needed(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    struct prune_options options = options_of(f, 32, 64);
    struct prune_report report;
    struct error err = {0};
    options.n_tokens = 80;
    tiny_write_gguf(&tiny, f->full);
    unlink(f->twin);
    assert_int_equal(prune_run(&options, &report, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "calibration: "));
    assert_non_null(strstr(err.message, "at least 64 are needed"));
    assert_int_equal(access(f->twin, F_OK), -1);
}

/* A narrower twin: a file that pairs with the full model, of the widths asked for, that says how it
 * was made; better than slicing; and the better the wider. */
static void narrower_twin_pairs(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    double kl[2];
    struct error err = {0};
    tiny_write_gguf(&tiny, f->full);
    for (int i = 0; i < 2; i++) {
        struct prune_report report;
        struct prune_options options = options_of(f, 32, i ? 64 : 32);
        struct model_file *full;
        struct model_file *twin;
        if (prune_run(&options, &report, &err))
            fail_msg("%s", err.message);
        kl[i] = report.held.kl;
        assert_int_equal(report.hidden, 32);
        assert_int_equal(report.mlp, i ? 64 : 32);
        assert_int_equal(report.n_layers, 2);
        assert_true(report.layers[1].down.step > 0 && report.layers[1].down.step < 1);
        prune_report_free(&report);
        assert_int_equal(model_file_open(f->full, &full, &err), 0);
        if (model_file_open(f->twin, &twin, &err))
            fail_msg("%s", err.message);
        struct error warning;
        assert_int_equal(model_file_check_pair(full, twin, &warning, &err), 0);
        assert_int_equal(model_file_params(twin)->hidden, 32);
        model_file_close(full);
        model_file_close(twin);
    }
    print_message("KL %.3f with MLP 32, %.3f with 64\n", kl[0], kl[1]);
    assert_true(kl[1] < kl[0]);
}

/* Ended at any allocation, the run says why; the next one goes on and writes the same bytes. */
static void interrupted_run_goes_on(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    struct prune_report report;
    struct error err = {0};
    size_t n, n_again;
    int n_kept = 0;
    tiny_write_gguf(&tiny, f->full);
    for (int full_width = 0; full_width < 2; full_width++) {
        struct prune_options options = options_of(f, full_width ? 64 : 32, 64);
        options.n_tokens = 6000;
        assert_int_equal(prune_run(&options, &report, &err), 0);
        prune_report_free(&report);
        char *bytes = tiny_read_file(f->twin, &n);
        mem_fail_at(0);
        assert_int_equal(prune_run(&options, &report, &err), 0);
        prune_report_free(&report);
        unsigned long n_allocations = mem_count_allocations();
        for (int part = 1; part < 8; part += 2) {
            unlink(f->twin);
            /* most of the allocations open the files */
            mem_fail_at(n_allocations * (unsigned long)(56 + part) / 64);
            assert_int_equal(prune_run(&options, &report, &err), -ERROR_MEMORY);
            assert_true(access(f->twin, F_OK) != 0);
            n_kept += access(f->layers, F_OK) == 0;
            mem_fail_at(0);
            if (prune_run(&options, &report, &err))
                fail_msg("%s", err.message);
            prune_report_free(&report);
            assert_true(access(f->layers, F_OK) != 0);
            char *again = tiny_read_file(f->twin, &n_again);
            assert_int_equal(n_again, n);
            assert_memory_equal(again, bytes, n);
            free(again);
        }
        free(bytes);
    }
    assert_true(n_kept >= 4);
}

/* The twin's file as a pruner of another version would have left it: behind the key come the
 * value's type and the value. */
static void write_of_version(const char *path, char *bytes, size_t n, uint32_t version)
{
    static const char KEY[] = "overfill.prune.version";
    char *key = memmem(bytes, n, KEY, sizeof(KEY) - 1);
    assert_non_null(key);
    memcpy(key + sizeof(KEY) - 1 + sizeof(uint32_t), &version, sizeof(version));
    FILE *f = fopen(path, "wb");
    assert_non_null(f);
    assert_int_equal(fwrite(bytes, 1, n, f), n);
    assert_int_equal(fclose(f), 0);
}

/* Read once for several twins: the same bytes as from the files, which say what they came from. */
static void calibration_can_be_read_before(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    struct prune_options options = options_of(f, 32, 64);
    struct prune_calibration *calibration;
    struct prune_report report;
    struct model_file *full;
    struct error err = {0};
    size_t n, n_again;
    options.n_tokens = 3000;
    tiny_write_gguf(&tiny, f->full);
    assert_int_equal(prune_run(&options, &report, &err), 0);
    prune_report_free(&report);
    char *bytes = tiny_read_file(f->twin, &n);
    if (prune_calibration_read(&options, &calibration, &err))
        fail_msg("%s", err.message);
    assert_int_equal(prune_calibration_tokens(calibration), 3000);
    options.calibration = NULL;
    options.n_calibration = 0;
    options.samples = calibration;
    if (prune_run(&options, &report, &err))
        fail_msg("%s", err.message);
    assert_int_equal(report.n_calibration_tokens, 3000);
    prune_report_free(&report);
    char *again = tiny_read_file(f->twin, &n_again);
    assert_int_equal(n_again, n);
    assert_memory_equal(again, bytes, n);

    assert_int_equal(model_file_open(f->full, &full, &err), 0);
    uint64_t source = model_file_hash(full), hash = prune_calibration_hash(calibration);
    assert_true(prune_is_twin_of(f->twin, source, hash));
    assert_false(prune_is_twin_of(f->twin, source + 1, hash));
    assert_false(prune_is_twin_of(f->twin, source, hash + 1));
    assert_false(prune_is_twin_of(f->full, source, hash));
    assert_false(prune_is_twin_of(f->text, source, hash));
    write_of_version(f->twin, again, n, PRUNER_VERSION + 1);
    assert_false(prune_is_twin_of(f->twin, source, hash));
    model_file_close(full);
    prune_calibration_free(calibration);
    free(bytes);
    free(again);
}

static void calls_that_cannot_work_are_refused(void **state)
{
    const struct files *f = *state;
    struct tiny tiny = full_model("llama");
    struct prune_report report;
    struct error err = {0};
    tiny_write_gguf(&tiny, f->full);
    struct prune_options options = options_of(f, 32, 64);
    options.n_calibration = 0;
    assert_int_equal(prune_run(&options, &report, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "calibration"));
    options = options_of(f, 65, 64);
    assert_int_equal(prune_run(&options, &report, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "hidden"));
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(full_width_loses_nothing),
        cmocka_unit_test(full_width_keeps_embedding_and_norms),
        cmocka_unit_test(head_has_a_type_of_its_own),
        cmocka_unit_test(k_types_are_written_where_rows_fill_their_blocks),
        cmocka_unit_test(too_few_tokens_are_told_with_how_many_are_needed),
        cmocka_unit_test(narrower_twin_pairs),
        cmocka_unit_test(interrupted_run_goes_on),
        cmocka_unit_test(calibration_can_be_read_before),
        cmocka_unit_test(calls_that_cannot_work_are_refused),
    };
    return cmocka_run_group_tests(tests, make_files, remove_files);
}
