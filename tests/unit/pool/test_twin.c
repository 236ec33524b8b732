/* The full model's first token and the twin's others; answers that do not depend on company. */
#include "tests/unit/forward/reference.h"
#include "tests/unit/pool/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define N_MIXED 16

struct mixed {
    int32_t prompts[N_MIXED][130];
    struct engine_request requests[N_MIXED];
};

/* Requests that differ in length, temperature, filters, choices and what they ask back. */
static void make_mixed(struct mixed *m)
{
    for (uint32_t i = 0; i < N_MIXED; i++) {
        size_t n = 1 + i * i * 5 % 130;
        rig_prompt(i + 1, n, m->prompts[i]);
        struct engine_request r = rig_request(m->prompts[i], n);
        r.max_tokens = 5 + i * 11 % 60;
        r.sampling.temperature = i % 3 ? 0.4f + 0.1f * (float)i : 0;
        r.sampling.seed = i / 2;
        r.sampling.top_p = i % 4 == 1 ? 0.8f : 1;
        r.sampling.top_k = i % 5 == 1 ? 4 : 0;
        r.sampling.repeat_penalty = i % 7 == 2 ? 1.2f : 1;
        r.sampling.frequency_penalty = i % 7 == 3 ? 0.5f : 0;
        r.n_logprobs = i % 2 ? RIG_MAX_TOP : -1;
        r.prompt_logprobs = i % 6 == 5;
        r.n_prompt_logprobs = RIG_MAX_TOP;
        r.ignore_eos = i % 4 != 3;
        r.n = i % 8 == 7 ? 3 : 1;
        m->requests[i] = r;
    }
}

static struct rig_result *new_results(size_t n)
{
    struct rig_result *results = calloc(n, sizeof(*results));
    assert_non_null(results);
    return results;
}

static void expect_same(const struct rig_result *a, const struct rig_result *b, uint32_t n_choices)
{
    rig_expect_ok(a);
    rig_expect_ok(b);
    assert_int_equal(a->n_prompt, b->n_prompt);
    for (size_t i = 1; i < a->n_prompt; i++)
        assert_true(a->prompt_logprobs[i] == b->prompt_logprobs[i]);
    for (uint32_t c = 0; c < n_choices; c++)
        rig_expect_same_choice(&a->choices[c], &b->choices[c]);
}

/* All at once, in the given mode; then compared to results made one by one. */
static void check_together(struct engine *engine, const struct mixed *m, enum decode_mode decode,
                           const struct rig_result *alone)
{
    struct rig_result *together = new_results(N_MIXED);
    struct rig_result *pointers[N_MIXED];
    for (size_t i = 0; i < N_MIXED; i++) {
        struct engine_request r = m->requests[i];
        r.decode = decode;
        pointers[i] = &together[i];
        rig_submit(engine, r, &together[i]);
    }
    rig_collect(engine, pointers, N_MIXED);
    for (size_t i = 0; i < N_MIXED; i++)
        expect_same(&alone[i], &together[i], m->requests[i].n);
    free(together);
}

static void run_alone(struct engine *engine, const struct mixed *m, enum decode_mode decode,
                      struct rig_result *results)
{
    for (size_t i = 0; i < N_MIXED; i++) {
        struct engine_request r = m->requests[i];
        r.decode = decode;
        rig_submit(engine, r, &results[i]);
        rig_collect_one(engine, &results[i]);
    }
}

/* weights, KV: the defaults and the reference */
static void check_identity(const struct rig_files *files, enum weight_type weights,
                           enum kv_type kv_type)
{
    struct engine_options o = rig_options(files);
    static struct mixed mixed;
    make_mixed(&mixed);
    o.pruned_path = files->full;
    o.weights = weights;
    o.kv_type = kv_type;
    struct engine *engine = rig_open(&o);
    struct rig_result *full = new_results(N_MIXED), *twin = new_results(N_MIXED);

    run_alone(engine, &mixed, DECODE_FULL, full);
    run_alone(engine, &mixed, DECODE_PRUNED, twin);
    for (size_t i = 0; i < N_MIXED; i++)
        expect_same(&full[i], &twin[i], mixed.requests[i].n);
    check_together(engine, &mixed, DECODE_FULL, full);
    check_together(engine, &mixed, DECODE_PRUNED, full);
    rig_wait_until(engine, rig_is_idle);
    engine_close(engine);
    free(full);
    free(twin);
}

static void identity_twin_gives_the_full_models_answers(void **state)
{
    check_identity(*state, WEIGHT_F32, KV_F32);
    check_identity(*state, WEIGHT_AUTO, KV_F16);
}

static void answers_do_not_depend_on_the_threads(void **state)
{
    struct engine_options o = rig_options(*state);
    static struct mixed mixed;
    make_mixed(&mixed);
    o.pruned_path = ((struct rig_files *)*state)->other;
    o.weights = WEIGHT_AUTO;
    struct engine *engine = rig_open(&o);
    struct rig_result *two = new_results(N_MIXED);
    run_alone(engine, &mixed, DECODE_PRUNED, two);
    engine_close(engine);

    o.prefill_threads = 1;
    o.decode_threads = 3;
    engine = rig_open(&o);
    check_together(engine, &mixed, DECODE_PRUNED, two);
    engine_close(engine);
    free(two);
}

static void twin_of_other_weights_gets_the_full_models_first_token(void **state)
{
    struct engine_options o = rig_options(*state);
    static struct mixed mixed;
    make_mixed(&mixed);
    o.pruned_path = ((struct rig_files *)*state)->other;
    struct engine *engine = rig_open(&o);
    struct rig_result *full = new_results(N_MIXED), *twin = new_results(N_MIXED);
    run_alone(engine, &mixed, DECODE_FULL, full);
    run_alone(engine, &mixed, DECODE_PRUNED, twin);

    size_t n_different = 0;
    for (size_t i = 0; i < N_MIXED; i++) {
        const struct rig_choice *a = &full[i].choices[0], *b = &twin[i].choices[0];
        assert_int_equal(a->tokens[0], b->tokens[0]);
        assert_memory_equal(&a->logprobs[0], &b->logprobs[0], sizeof(float));
        assert_memory_equal(a->top[0], b->top[0], sizeof(a->top[0]));
        n_different += a->n != b->n || memcmp(a->tokens, b->tokens, a->n * sizeof(int32_t)) != 0;
    }
    assert_true(n_different > N_MIXED / 2); /* it is another model that goes on */
    check_together(engine, &mixed, DECODE_PRUNED, twin);
    engine_close(engine);
    free(full);
    free(twin);
}

static double log_softmax(const double *logits, size_t n, int32_t token)
{
    double total = 0;
    for (size_t i = 0; i < n; i++)
        total += exp(logits[i]);
    return logits[token] - log(total);
}

/* Token for token: log-probabilities of the answer are those of the full model at the end of the
 * prompt, then those of the twin on the full model's K and V. */
static void answer_is_scored_by_the_full_model_once_then_by_the_twin(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    int32_t prompt[45];
    o.pruned_path = files->other;
    struct engine *engine = rig_open(&o);
    rig_prompt(77, 45, prompt);
    struct engine_request r = rig_request(prompt, 45);
    r.n_logprobs = 0;
    r.ignore_eos = true;
    struct rig_result *result = rig_run(engine, r);
    rig_expect_ok(result);
    const struct rig_choice *c = &result->choices[0];
    assert_int_equal(c->n, 40);

    struct model_file *file[2];
    struct reference *ref[2];
    struct error err;
    double logits[TINY_TOKENS];
    for (int i = 0; i < 2; i++) {
        assert_int_equal(model_file_open(i ? files->other : files->full, &file[i], &err), 0);
        ref[i] = reference_open(file[i], REFERENCE_EXACT);
    }
    struct reference_kv kv = reference_kv_open(ref[0], 85, false);
    for (uint32_t t = 0; t < 45; t++)
        reference_step(ref[0], &kv, t, prompt[t], logits);
    for (uint32_t t = 0; t < 40; t++) {
        double expected = log_softmax(logits, TINY_TOKENS, c->tokens[t]);
        if (!(fabs(c->logprobs[t] - expected) < 1e-3))
            fail_msg("token %u: %g, expected %g", t, (double)c->logprobs[t], expected);
        reference_step(ref[1], &kv, 45 + t, c->tokens[t], logits);
    }
    reference_kv_close(&kv);
    for (int i = 0; i < 2; i++) {
        reference_close(ref[i]);
        model_file_close(file[i]);
    }
    engine_close(engine);
    free(result);
}

static void each_stage_reads_its_own_models_weights(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    struct engine_stats stats;
    struct engine_info info;
    int32_t prompt[20];
    rig_prompt(3, 20, prompt);
    struct engine_request r = rig_request(prompt, 20);
    r.ignore_eos = true;
    r.max_tokens = 10;

    o.pruned_path = files->other;
    struct engine *engine = rig_open(&o);
    engine_get_info(engine, &info);
    assert_int_equal(info.decode, DECODE_PRUNED);
    assert_true(info.pruned_step_bytes > 0 && info.pruned_step_bytes < info.model_step_bytes);
    free(rig_run(engine, r));
    rig_wait_until(engine, rig_is_idle);
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.prefill_steps, 1);
    assert_int_equal(stats.decode_steps, 9); /* the first of ten came from prefill */
    assert_int_equal(stats.weight_bytes_prefill_full, info.model_step_bytes);
    assert_int_equal(stats.weight_bytes_prefill_pruned, 0);
    assert_int_equal(stats.weight_bytes_decode_full, 0);
    assert_int_equal(stats.weight_bytes_decode_pruned, 9 * info.pruned_step_bytes);
    assert_int_equal(stats.prompt_tokens, 20);
    assert_int_equal(stats.generated_tokens, 10);

    r.decode = DECODE_FULL;
    free(rig_run(engine, r));
    engine_get_stats(engine, &stats);
    assert_int_equal(stats.weight_bytes_decode_full, 9 * info.model_step_bytes);
    assert_int_equal(stats.weight_bytes_decode_pruned, 9 * info.pruned_step_bytes);
    engine_close(engine);

    o.pruned_path = NULL;
    engine = rig_open(&o);
    engine_get_info(engine, &info);
    assert_int_equal(info.decode, DECODE_FULL);
    r.decode = DECODE_PRUNED;
    struct error err;
    uint64_t id;
    assert_int_equal(engine_submit(engine, &r, &id, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "pruned"));
    engine_close(engine);
}

static void twin_of_another_shape_is_refused(void **state)
{
    const struct rig_files *files = *state;
    struct engine_options o = rig_options(files);
    struct engine *engine = NULL;
    struct error err = {0};
    char path[80];
    struct tiny tiny = rig_other_model();
    tiny.n_layers++;
    snprintf(path, sizeof(path), "%s/deeper.gguf", files->folder);
    tiny_write_gguf(&tiny, path);
    o.pruned_path = path;
    assert_int_equal(engine_open(&o, &engine, &err), -ERROR_INVALID);
    assert_null(engine);
    assert_non_null(strstr(err.message, "layers"));
    remove(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_twin_gives_the_full_models_answers),
        cmocka_unit_test(answers_do_not_depend_on_the_threads),
        cmocka_unit_test(twin_of_other_weights_gets_the_full_models_first_token),
        cmocka_unit_test(answer_is_scored_by_the_full_model_once_then_by_the_twin),
        cmocka_unit_test(each_stage_reads_its_own_models_weights),
        cmocka_unit_test(twin_of_another_shape_is_refused),
    };
    return cmocka_run_group_tests(tests, rig_write_files, rig_remove_files);
}
