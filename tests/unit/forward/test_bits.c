/* Same bits, whatever the batch, the cut, the threads and the kernels; and what a failed allocation
 * leaves behind. */
#include "engine/base/mem.h"
#include "tests/unit/check.h"
#include "tests/unit/forward/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_TOKENS 150

static void expect_same(const char *name, const char *what, const float *a, const float *b,
                        uint32_t n_tokens, uint32_t n_vocab)
{
    for (uint32_t t = 0; t < n_tokens; t++) {
        size_t at = (size_t)t * n_vocab;
        if (memcmp(a + at, b + at, n_vocab * sizeof(float)) == 0)
            continue;
        for (uint32_t i = 0; i < n_vocab; i++)
            if (memcmp(&a[at + i], &b[at + i], sizeof(float)) != 0)
                fail_msg("%s, %s: logit %u of token %u is %.9g and %.9g", name, what, i, t,
                         (double)a[at + i], (double)b[at + i]);
    }
}

static bool has_prompt_products(void)
{
    const struct kernels *kernels;
    struct error err;
    assert_int_equal(kernels_select(NULL, &kernels, &err), 0);
    return kernels->prompt;
}

static void open_case(struct rig *rig, const struct rig_case *c, unsigned n_threads,
                      const struct kernels *kernels)
{
    rig_open(rig,
             &(struct rig_options){&c->tiny, NULL, c->weights, c->kv_bytes, n_threads, kernels});
}

static void check_cuts(const struct rig_case *c, bool is_prompt)
{
    static const uint32_t cuts[] = {1, 15, 17, 31, 33, 64};
    struct rig rig;
    int32_t tokens[N_TOKENS];
    open_case(&rig, c, 2, NULL);
    rig.is_prompt = is_prompt;
    uint32_t n_vocab = rig.model->params.vocab_size;
    rig_tokens(1, n_vocab, N_TOKENS, tokens);
    float *whole = rig_logits(&rig, tokens, N_TOKENS, N_TOKENS);
    for (size_t i = 0; i < sizeof(cuts) / sizeof(cuts[0]); i++) {
        float *logits = rig_logits(&rig, tokens, N_TOKENS, cuts[i]);
        char what[32];
        snprintf(what, sizeof(what), "cut every %u", cuts[i]);
        expect_same(c->name, what, whole, logits, N_TOKENS, n_vocab);
        free(logits);
    }
    free(whole);
    rig_close(&rig);
}

static void prompt_at_once_or_in_chunks_is_the_same(void **state)
{
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++) {
        check_cuts(&cases[i], false);
        if (has_prompt_products())
            check_cuts(&cases[i], true);
    }
}

#define BATCH 16

/* Every sequence by itself, then all of them in passes that take a random number of tokens from a
 * random choice of them. */
static void check_batch(const struct rig_case *c, bool is_prompt)
{
    struct rig rig;
    static int32_t tokens[BATCH][RIG_MAX_TOKENS];
    struct rig_sequence s[BATCH];
    float *alone[BATCH];
    uint64_t random = 11;
    uint32_t n_left = 0;
    open_case(&rig, c, 2, NULL);
    rig.is_prompt = is_prompt;
    uint32_t n_vocab = rig.model->params.vocab_size;

    for (uint32_t i = 0; i < BATCH; i++) {
        uint32_t n = 1 + rig_random(&random, i % 2 ? 30 : RIG_MAX_TOKENS);
        rig_tokens(100 + i, n_vocab, n, tokens[i]);
        alone[i] = rig_logits(&rig, tokens[i], n, n);
        rig_sequence_open(&s[i], tokens[i], n, n_vocab);
        n_left += n;
    }
    while (n_left) {
        uint32_t n[BATCH];
        uint32_t room = RIG_MAX_ROWS, n_rows = 0;
        for (uint32_t i = 0; i < BATCH; i++) {
            uint32_t most = s[i].n_tokens - s[i].n_done;
            uint32_t wanted = rig_random(&random, 3) ? 1 : rig_random(&random, 50);
            n[i] = wanted < most ? wanted : most;
            n[i] = n[i] < room ? n[i] : room;
            room -= n[i];
            n_rows += n[i];
        }
        if (n_rows)
            rig_pass(&rig, rig.model, s, BATCH, n);
        n_left -= n_rows;
    }
    for (uint32_t i = 0; i < BATCH; i++) {
        expect_same(c->name, "alone and in a batch", alone[i], s[i].logits, s[i].n_tokens, n_vocab);
        free(alone[i]);
        rig_sequence_close(&rig, &s[i]);
    }
    rig_close(&rig);
}

static void alone_or_in_a_batch_is_the_same(void **state)
{
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++) {
        check_batch(&cases[i], false);
        if (has_prompt_products())
            check_batch(&cases[i], true);
    }
}

static float *logits_with(const struct rig_case *c, unsigned n_threads,
                          const struct kernels *kernels, uint32_t cut, uint32_t *ret_n_vocab)
{
    struct rig rig;
    int32_t tokens[N_TOKENS];
    open_case(&rig, c, n_threads, kernels);
    *ret_n_vocab = rig.model->params.vocab_size;
    rig_tokens(2, *ret_n_vocab, N_TOKENS, tokens);
    float *logits = rig_logits(&rig, tokens, N_TOKENS, cut);
    rig_close(&rig);
    return logits;
}

static void any_number_of_threads_is_the_same(void **state)
{
    static const unsigned counts[] = {2, 3, 4};
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++) {
        uint32_t n_vocab;
        float *one = logits_with(&cases[i], 1, NULL, N_TOKENS, &n_vocab);
        for (size_t j = 0; j < 3; j++) {
            float *more = logits_with(&cases[i], counts[j], NULL, 40, &n_vocab);
            expect_same(cases[i].name, "threads", one, more, N_TOKENS, n_vocab);
            free(more);
        }
        free(one);
    }
}

static void all_kernels_are_the_same(void **state)
{
    const struct kernels *tables[KERNELS_MOST];
    size_t n_tables = kernels_available(tables);
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    if (n_tables < 2) {
        print_message("skipped: this CPU runs the scalar kernels only\n");
        skip();
    }
    for (size_t i = 0; i < n; i++) {
        uint32_t n_vocab;
        float *scalar = logits_with(&cases[i], 2, tables[0], N_TOKENS, &n_vocab);
        for (size_t k = 1; k < n_tables; k++) {
            float *simd = logits_with(&cases[i], 2, tables[k], N_TOKENS, &n_vocab);
            expect_same(cases[i].name, tables[k]->name, scalar, simd, N_TOKENS, n_vocab);
            free(simd);
        }
        free(scalar);
    }
}

/* Rounding to bf16 is seen, and is no more than that: what these tests would miss is a pass that
 * takes the other products, or wrong ones. */
static void a_prompts_products_are_near_the_others(void **state)
{
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    if (!has_prompt_products()) {
        print_message("skipped: this CPU has no products of its own for prompts\n");
        skip();
    }
    for (size_t i = 0; i < n; i++) {
        struct rig rig;
        int32_t tokens[N_TOKENS];
        double error = 0, size = 0;
        open_case(&rig, &cases[i], 2, NULL);
        size_t n_logits = (size_t)N_TOKENS * rig.model->params.vocab_size;
        rig_tokens(3, rig.model->params.vocab_size, N_TOKENS, tokens);
        float *exact = rig_logits(&rig, tokens, N_TOKENS, N_TOKENS);
        rig.is_prompt = true;
        float *rounded = rig_logits(&rig, tokens, N_TOKENS, N_TOKENS);
        for (size_t j = 0; j < n_logits; j++) {
            error += fabs((double)rounded[j] - exact[j]);
            size += fabs((double)exact[j]);
        }
        assert_true(error < 0.02 * size);
        assert_true((error > 0) == (cases[i].weights != MODEL_WEIGHTS_F32));
        free(exact);
        free(rounded);
        rig_close(&rig);
    }
}

/* Wanted rows only, slice by slice: nothing, the last, all. */
static void check_wanted(const struct rig_case *c)
{
    struct rig rig;
    int32_t tokens[40];
    struct kv_table tables[4];
    struct error err;
    size_t stride;
    open_case(&rig, c, 2, NULL);
    uint32_t n_vocab = rig.model->params.vocab_size;
    rig_tokens(4, n_vocab, 40, tokens);
    float *all = rig_logits(&rig, tokens, 40, 40);

    for (uint32_t n = 1; n <= 40; n++) {
        const enum logits_wanted wanted[4] = {LOGITS_NONE, LOGITS_LAST, LOGITS_ALL, LOGITS_LAST};
        const uint32_t n_tokens[4] = {5, n, n, 1};
        struct forward_slice slices[4];
        for (int i = 0; i < 4; i++) {
            assert_int_equal(kv_table_open(&tables[i], 40, &err), 0);
            kv_table_grow(rig.pool, &tables[i], n_tokens[i]);
            slices[i] = (struct forward_slice){tokens, n_tokens[i], 0, tables[i].pages, wanted[i]};
        }
        const float *logits = forward_run(rig.forward, rig.model, rig.pool, slices, 4, &stride);
        const uint32_t rows = n + 2;
        for (uint32_t r = 0; r < rows; r++) {
            uint32_t t = r == 0 ? n - 1 : r == rows - 1 ? 0 : r - 1;
            expect_same(c->name, "wanted rows", all + (size_t)t * n_vocab, logits + r * stride, 1,
                        n_vocab);
        }
        for (int i = 0; i < 4; i++)
            kv_table_close(rig.pool, &tables[i]);
    }
    free(all);
    rig_close(&rig);
}

static void last_row_is_the_row_of_all(void **state)
{
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++)
        check_wanted(&cases[i]);
}

/* Logits of a prefix are the same when a fork computes its end: copied pages hold what the others
 * hold. */
static void fork_goes_on_like_the_original(void **state)
{
    const struct rig_case *cases;
    struct rig rig;
    int32_t tokens[100];
    struct error err;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++) {
        open_case(&rig, &cases[i], 2, NULL);
        uint32_t n_vocab = rig.model->params.vocab_size;
        rig_tokens(6, n_vocab, 100, tokens);
        struct rig_sequence a, b;
        uint32_t begin = 45, rest = 55;
        rig_sequence_open(&a, tokens, 100, n_vocab);
        rig_pass(&rig, rig.model, &a, 1, &begin);
        b = a;
        b.logits = calloc((size_t)100 * n_vocab, sizeof(float));
        assert_int_equal(kv_table_open(&b.table, 100, &err), 0);
        kv_table_fork(rig.pool, &a.table, begin, &b.table);
        rig_pass(&rig, rig.model, &a, 1, &rest);
        rig_pass(&rig, rig.model, &b, 1, &rest);
        expect_same(cases[i].name, "fork", a.logits + (size_t)begin * n_vocab,
                    b.logits + (size_t)begin * n_vocab, rest, n_vocab);
        rig_sequence_close(&rig, &a);
        rig_sequence_close(&rig, &b);
        rig_close(&rig);
    }
}

/* Opens all of it with allocation k failing; returns whether it got through. */
static bool open_with_failure(const char *path, unsigned long k)
{
    struct model_file *file = NULL;
    struct model *model = NULL;
    struct team *team = NULL;
    struct forward *forward = NULL;
    struct error err = {0};
    const struct kernels *kernels;
    int rc = model_file_open(path, &file, &err);
    assert_int_equal(rc, 0);
    assert_int_equal(kernels_select(NULL, &kernels, &err), 0);

    mem_fail_at(k);
    rc = model_open(file,
                    &(struct model_open_options){.weights = MODEL_WEIGHTS_AUTO, .n_positions = 32},
                    &model, &err);
    if (rc == 0)
        rc = team_open(2, "test", NULL, &team, &err);
    if (rc == 0)
        rc = forward_open(&(const struct model *){model}, 1, kernels, team, 8, 8, &forward, &err);
    mem_fail_at(0);
    if (rc) {
        assert_int_equal(rc, -ERROR_MEMORY);
        assert_non_null(strstr(err.message, "out of memory"));
    }
    forward_close(forward);
    team_close(team);
    model_close(model);
    return rc == 0;
}

static void failed_allocation_is_an_error(void **state)
{
    static const char *const archs[] = {"qwen2", "qwen3"};
    char path[] = P_tmpdir "/overfill-test-XXXXXX";
    int fd = mkstemp(path);
    assert_true(fd >= 0);
    close(fd);
    for (int i = 0; i < 2; i++) {
        struct tiny tiny = tiny_default();
        tiny.arch = archs[i];
        tiny.bias = i == 0;
        tiny.qk_norm = i == 1;
        tiny_write_gguf(&tiny, path);
        unsigned long k = 1;
        while (!open_with_failure(path, k))
            k++;
        assert_true(k > 60);
    }
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(prompt_at_once_or_in_chunks_is_the_same),
        cmocka_unit_test(alone_or_in_a_batch_is_the_same),
        cmocka_unit_test(any_number_of_threads_is_the_same),
        cmocka_unit_test(all_kernels_are_the_same),
        cmocka_unit_test(a_prompts_products_are_near_the_others),
        cmocka_unit_test(last_row_is_the_row_of_all),
        cmocka_unit_test(fork_goes_on_like_the_original),
        cmocka_unit_test(failed_allocation_is_an_error),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
