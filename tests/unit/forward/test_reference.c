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

/* Rounding of activations to 16 bits and of K and V to half moves logits a little more than float
 * sums do: a value that lies between two halves may fall to the other side. */
static double tolerance(enum model_weights weights, uint32_t kv_bytes)
{
    if (kv_bytes == 2)
        return 4e-3;
    return weights == MODEL_WEIGHTS_F32 ? 1e-4 : 1e-3;
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

/* What calibration sees: every row of every tap, and a pass that is not changed by it. */
struct taps {
    uint32_t n[3];
    uint32_t n_rows, widths[3];
    double mlp_sum;
};

static void on_tap(void *user, enum forward_tap tap, uint32_t layer, const float *rows,
                   uint32_t n_rows, uint32_t width, size_t stride)
{
    struct taps *taps = user;
    assert_int_equal(layer, taps->n[tap]);
    assert_true(stride >= width);
    taps->n[tap]++;
    taps->n_rows = n_rows;
    taps->widths[tap] = width;
    for (uint32_t r = 0; r < n_rows; r++)
        for (uint32_t i = 0; i < width; i++)
            taps->mlp_sum += tap == TAP_MLP_HIDDEN ? fabsf(rows[r * stride + i]) : 0;
}

static void taps_see_all_rows_and_change_nothing(void **state)
{
    const struct rig_case *cases;
    struct rig rig;
    struct taps taps = {0};
    int32_t tokens[50];
    rig_cases(&cases);
    const struct tiny *tiny = &cases[0].tiny;
    rig_open(&rig, &(struct rig_options){tiny, NULL, MODEL_WEIGHTS_F32, 4, 2, NULL});
    uint32_t n_vocab = rig.model->params.vocab_size;
    rig_tokens(5, n_vocab, 50, tokens);
    float *plain = rig_logits(&rig, tokens, 50, 50);
    forward_set_tap(rig.forward, on_tap, &taps);
    float *tapped = rig_logits(&rig, tokens, 50, 50);

    assert_memory_equal(plain, tapped, (size_t)50 * n_vocab * sizeof(float));
    for (int i = 0; i < 3; i++)
        assert_int_equal(taps.n[i], tiny->n_layers);
    assert_int_equal(taps.n_rows, 50);
    assert_int_equal(taps.widths[TAP_ATTN_NORM], tiny->hidden);
    assert_int_equal(taps.widths[TAP_MLP_NORM], tiny->hidden);
    assert_int_equal(taps.widths[TAP_MLP_HIDDEN], tiny->mlp);
    assert_true(taps.mlp_sum > 0);
    forward_set_tap(rig.forward, NULL, NULL);
    free(plain);
    free(tapped);
    rig_close(&rig);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(logits_are_those_of_the_reference),
        cmocka_unit_test(narrower_twin_goes_on_from_the_full_models_kv),
        cmocka_unit_test(taps_see_all_rows_and_change_nothing),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
