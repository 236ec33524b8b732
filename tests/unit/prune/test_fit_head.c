/* The head fitted to distributions: better than the least-squares map at its best temperature, on
 * rows that it was not fitted to. */
#include "engine/base/mem.h"
#include "engine/prune/reconstruct.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define N_TOKENS 96 /* the vocabulary */
#define FULL 16
#define HIDDEN 8
#define N_SAMPLES 64
#define SAMPLE 64 /* tokens */
#define N_ROWS ((size_t)N_SAMPLES * SAMPLE)

static float noise(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) / (float)(1 << 24) - 0.5f;
    }
    return sum;
}

/* States of which the twin sees one half, and of that the loud rows too quiet. */
static void make_states(float *middle, float *inner)
{
    uint64_t state = 3;
    for (size_t i = 0; i < N_ROWS; i++) {
        float loud = i % 3 ? 4 : 40;
        for (size_t c = 0; c < FULL; c++)
            middle[i * FULL + c] = loud * noise(&state);
        for (size_t c = 0; c < HIDDEN; c++)
            inner[i * HIDDEN + c] = middle[i * FULL + c] / sqrtf(loud) + noise(&state);
    }
}

/* The mean KL(full || twin) of the held samples. */
static double held_kl(const struct reconstruct *r, const float *map)
{
    struct error err;
    float *head = load_matrix(full_head(r), &err);
    double kl = 0;
    size_t n = 0;
    assert_non_null(head);
    for (size_t row = 0; row < N_ROWS; row++) {
        double full[N_TOKENS], twin[N_TOKENS], full_sum = 0, twin_sum = 0;
        if (!r->samples->samples[row / SAMPLE].held)
            continue;
        for (size_t v = 0; v < N_TOKENS; v++) {
            full[v] = twin[v] = 0;
            for (size_t c = 0; c < FULL; c++) {
                double state = 0;
                for (size_t i = 0; i < HIDDEN; i++)
                    state += map[c * HIDDEN + i] * r->inner[row * HIDDEN + i];
                full[v] += head[v * FULL + c] * r->middle[row * FULL + c];
                twin[v] += head[v * FULL + c] * state;
            }
            full_sum += exp(full[v]);
            twin_sum += exp(twin[v]);
        }
        for (size_t v = 0; v < N_TOKENS; v++)
            kl += exp(full[v]) / full_sum * (full[v] - log(full_sum) - twin[v] + log(twin_sum));
        n++;
    }
    mem_free(head);
    return kl / (double)n;
}

static void fit_of_distributions_beats_that_of_states(void **state)
{
    static float middle[N_ROWS * FULL], inner[N_ROWS * HIDDEN], map[FULL * HIDDEN],
        plain[FULL * HIDDEN];
    static struct sample samples[N_SAMPLES];
    const char *path = P_tmpdir "/overfill-test-fit-head.gguf";
    const struct sample_set set = {.samples = samples, .n_samples = N_SAMPLES, .n_answer = N_ROWS};
    struct tiny tiny = tiny_default();
    struct model_file *file;
    struct least_squares ls;
    struct least_squares_result result;
    struct error err = {0};
    tiny.n_tokens = N_TOKENS;
    tiny_write_gguf(&tiny, path);
    assert_int_equal(model_file_open(path, &file, &err), 0);
    struct reconstruct r = {.file = file,
                            .full_params = model_file_params(file),
                            .hidden = HIDDEN,
                            .samples = &set,
                            .middle = middle,
                            .inner = inner,
                            .basis = middle};
    assert_int_equal(r.full_params->hidden, FULL);
    assert_int_equal(team_open(2, "test", NULL, &r.reader.team, &err), 0);
    assert_int_equal(least_squares_open(NULL, HIDDEN, FULL, &ls, &err), 0);
    make_states(middle, inner);
    for (size_t i = 0; i < N_SAMPLES; i++) {
        samples[i] = (struct sample){
            .begin = i * SAMPLE, .n = SAMPLE, .answer = i * SAMPLE, .held = i % 4 == 1};
        least_squares_add(&ls, samples[i].held, inner + i * SAMPLE * HIDDEN, HIDDEN,
                          middle + i * SAMPLE * FULL, FULL, SAMPLE);
    }
    assert_int_equal(solve_input_map(&r, &ls, 0, map, &result, &err), 0);
    memcpy(plain, map, sizeof(map));
    double before = held_kl(&r, plain);
    if (fit_head(&r, &ls, result.ridge, map, &err))
        fail_msg("%s", err.message);
    for (size_t i = 0; i < FULL * HIDDEN; i++)
        plain[i] *= (float)r.temperature;
    double tempered = held_kl(&r, plain);
    double fitted = held_kl(&r, map);
    print_message("KL %.3f of states, %.3f tempered by %.3f, %.3f fitted\n", before, tempered,
                  r.temperature, fitted);
    assert_true(tempered < before);
    assert_true(fitted < 0.98 * tempered);
    least_squares_close(&ls);
    team_close(r.reader.team);
    model_file_close(file);
    unlink(path);
}

int main(void)
{
    const struct CMUnitTest tests[] = {cmocka_unit_test(fit_of_distributions_beats_that_of_states)};
    return cmocka_run_group_tests(tests, NULL, NULL);
}
