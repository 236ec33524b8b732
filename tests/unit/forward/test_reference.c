/* The forward pass against the transformer written in double precision. */
#include "tests/unit/check.h"
#include "tests/unit/forward/reference.h"
#include "tests/unit/forward/rig.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

static enum reference_weights kept(enum model_weights weights)
{
    return weights == MODEL_WEIGHTS_F32 ? REFERENCE_EXACT : REFERENCE_INT8;
}

/* Rounding of activations to 12 bits, each stage's on top of the one before, moves logits more than
 * float sums do, and K and V as halves a little: a value that lies between two halves may fall to
 * the other side. */
static double tolerance(enum model_weights weights, uint32_t kv_bytes)
{
    if (weights != MODEL_WEIGHTS_F32)
        return 16e-3;
    return kv_bytes == 2 ? 4e-3 : 1e-4;
}

static double difference(const float *logits, const double *expected, size_t n)
{
    double most = 0;
    for (size_t i = 0; i < n; i++) {
        double d = fabs(logits[i] - expected[i]);
        most = d > most || isnan(d) ? d : most;
    }
    return most;
}

static void check_case(const struct rig_case *c)
{
    struct rig rig;
    int32_t tokens[90];
    rig_open(&rig, &(struct rig_options){&c->tiny, NULL, c->weights, c->kv_bytes, 2, NULL});
    uint32_t n_vocab = rig.model->params.vocab_size;
    rig_tokens(7, n_vocab, 90, tokens);
    float *logits = rig_logits(&rig, tokens, 90, 90);

    struct reference *ref = reference_open(rig.model->file, kept(c->weights));
    struct reference_kv kv = reference_kv_open(ref, 90, c->kv_bytes == 2);
    double *expected = malloc(n_vocab * sizeof(double));
    double largest = 0, most = 0;
    for (uint32_t t = 0; t < 90; t++) {
        reference_step(ref, &kv, t, tokens[t], expected);
        double d = difference(logits + (size_t)t * n_vocab, expected, n_vocab);
        most = d > most || isnan(d) ? d : most;
        for (uint32_t i = 0; i < n_vocab; i++)
            largest = fmax(largest, fabs(expected[i]));
    }
    print_message("%-48s off by %.1e, logits up to %.2f\n", c->name, most, largest);
    assert_true(largest > 0.3); /* else being close to it means nothing */
    if (!(most < tolerance(c->weights, c->kv_bytes)))
        fail_msg("%s: off by %g", c->name, most);
    free(expected);
    free(logits);
    reference_kv_close(&kv);
    reference_close(ref);
    rig_close(&rig);
}

static void logits_are_those_of_the_reference(void **state)
{
    const struct rig_case *cases;
    size_t n = rig_cases(&cases);
    for (size_t i = 0; i < n; i++)
        check_case(&cases[i]);
}

/* A narrower model with other weights goes on where the full one stopped, on its K and V. */
static void check_twin(enum model_weights weights, uint32_t kv_bytes)
{
    struct rig rig;
    struct tiny full = tiny_default();
    int32_t tokens[70];
    full.hidden = 64;
    full.mlp = 96;
    full.head_dim = 16;
    struct tiny twin = full;
    twin.hidden = 40;
    twin.mlp = 24;
    twin.seed = 9;
    rig_open(&rig, &(struct rig_options){&full, &twin, weights, kv_bytes, 2, NULL});
    uint32_t n_vocab = rig.model->params.vocab_size;
    rig_tokens(3, n_vocab, 70, tokens);

    struct rig_sequence s;
    uint32_t n_prompt = 41, one = 1;
    rig_sequence_open(&s, tokens, 70, n_vocab);
    rig_pass(&rig, rig.model, &s, 1, &n_prompt);
    while (s.n_done < 70)
        rig_pass(&rig, rig.twin, &s, 1, &one);

    struct reference *refs[2] = {reference_open(rig.model->file, kept(weights)),
                                 reference_open(rig.twin->file, kept(weights))};
    struct reference_kv kv = reference_kv_open(refs[0], 70, kv_bytes == 2);
    double expected[TINY_TOKENS];
    for (uint32_t t = 0; t < 70; t++) {
        reference_step(refs[t >= n_prompt], &kv, t, tokens[t], expected);
        double d = difference(s.logits + (size_t)t * n_vocab, expected, n_vocab);
        if (!(d < tolerance(weights, kv_bytes)))
            fail_msg("token %u: off by %g", t, d);
    }
    reference_kv_close(&kv);
    reference_close(refs[0]);
    reference_close(refs[1]);
    rig_sequence_close(&rig, &s);
    rig_close(&rig);
}

static void narrower_twin_goes_on_from_the_full_models_kv(void **state)
{
    check_twin(MODEL_WEIGHTS_F32, 4);
    check_twin(MODEL_WEIGHTS_F32, 2);
    check_twin(MODEL_WEIGHTS_AUTO, 4);
}

/* A pass by parts ends with the rows of forward_run, also over a pool that holds one layer at a
 * time, and shows the rows between the parts. */
static void parts_make_up_the_pass(void **state)
{
    const struct rig_case *cases;
    struct rig rig;
    struct kv_pool *pool;
    struct error err;
    int32_t tokens[50];
    const uint32_t pages[] = {0, 1};
    rig_cases(&cases);
    const struct tiny *tiny = &cases[0].tiny;
    rig_open(&rig, &(struct rig_options){tiny, NULL, MODEL_WEIGHTS_F32, 4, 2, NULL});
    rig_tokens(5, rig.model->params.vocab_size, 50, tokens);
    free(rig_logits(&rig, tokens, 50, 50));
    struct forward_rows x = forward_rows(rig.forward, FORWARD_X);
    assert_int_equal(x.n_rows, 50);
    size_t bytes = 50 * x.stride * sizeof(float);
    float *whole = malloc(bytes);
    memcpy(whole, x.data, bytes);

    struct kv_layout layout = *kv_pool_layout(rig.pool);
    layout.n_layers = 1;
    assert_int_equal(kv_pool_open(&layout, 2 * kv_page_bytes(&layout), &pool, &err), 0);
    const struct forward_slice slice = {.tokens = tokens, .n_tokens = 50, .pages = pages};
    forward_begin(rig.forward, rig.model, pool, &slice, 1);
    for (uint32_t r = 0; r < 50; r++)
        model_embed(rig.model, tokens[r], x.data + r * x.stride);
    for (uint32_t l = 0; l < tiny->n_layers; l++)
        for (unsigned part = 0; part < FORWARD_PARTS; part++)
            forward_part(rig.forward, l, (enum forward_part)part);
    assert_memory_equal(whole, x.data, bytes);
    struct forward_rows hidden = forward_rows(rig.forward, FORWARD_HIDDEN);
    double sum = 0;
    for (uint32_t r = 0; r < hidden.n_rows; r++)
        for (uint32_t i = 0; i < hidden.width; i++)
            sum += fabsf(hidden.data[r * hidden.stride + i]);
    assert_int_equal(hidden.width, tiny->mlp);
    assert_true(sum > 0);

    kv_pool_close(pool);
    free(whole);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_the_reference),
        cmocka_unit_test(narrower_twin_goes_on_from_the_full_models_kv),
        cmocka_unit_test(parts_make_up_the_pass),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
