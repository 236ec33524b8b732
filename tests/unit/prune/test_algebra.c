/* The dense algebra of reconstruction against what is known of random data. */
#include "engine/base/mem.h"
#include "engine/prune/least_squares.h"
#include "engine/prune/round_matrix.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

/* About normal, by the sum of uniforms. */
static float noise(uint64_t *state)
{
    float sum = 0;
    for (int i = 0; i < 6; i++) {
        *state = *state * 6364136223846793005u + 1442695040888963407u;
        sum += (float)(*state >> 40) / (float)(1 << 24) - 0.5f;
    }
    return sum;
}

#define N_ROWS 900
#define N_IN 20
#define N_OUT 7

static void make_rows(float *x, float *y, float *map, float spread)
{
    uint64_t state = 1;
    for (size_t i = 0; i < (size_t)N_OUT * N_IN; i++)
        map[i] = noise(&state);
    for (size_t r = 0; r < N_ROWS; r++) {
        for (size_t i = 0; i < N_IN; i++)
            x[r * N_IN + i] = noise(&state);
        for (size_t o = 0; o < N_OUT; o++) {
            float sum = spread * noise(&state);
            for (size_t i = 0; i < N_IN; i++)
                sum += map[o * N_IN + i] * x[r * N_IN + i];
            y[r * N_OUT + o] = sum;
        }
    }
}

/* Rows added in batches of any size give the map that made them, and the share of y that no map can
 * give. */
static void least_squares_finds_the_map(void **state)
{
    static float x[N_ROWS * N_IN], y[N_ROWS * N_OUT];
    float map[N_OUT * N_IN];
    const float spreads[] = {0.0f, 1.0f};
    for (int s = 0; s < 2; s++) {
        struct least_squares ls;
        struct error err;
        struct least_squares_result result;
        float found[N_OUT * N_IN] = {0};
        make_rows(x, y, map, spreads[s]);
        assert_int_equal(least_squares_open(NULL, N_IN, N_OUT, &ls, &err), 0);
        for (size_t at = 0, n = 1; at < N_ROWS; at += n, n = n * 3 % 101 + 1) {
            n = n < N_ROWS - at ? n : N_ROWS - at;
            least_squares_add(&ls, at > N_ROWS - 100, x + at * N_IN, N_IN, y + at * N_OUT, N_OUT,
                              n);
        }
        assert_int_equal(ls.fitted.n_rows + ls.held.n_rows, N_ROWS);
        assert_int_equal(least_squares_solve(&ls, 0, N_OUT, NULL, 0, found, &result, &err), 0);
        for (size_t i = 0; i < (size_t)N_OUT * N_IN; i++)
            assert_true(fabsf(found[i] - map[i]) < (s ? 0.15f : 3e-3f));
        /* the noise has variance 0.5, y's signal N_IN * 0.5 * 0.5 */
        if (s)
            assert_true(result.residual > 0.05 && result.residual < 0.15);
        else
            assert_true(result.residual < 1e-5);
        least_squares_close(&ls);
    }
}

/* Many inputs, few rows, and hardly anything but noise to explain: the ridge goes up until the map
 * does no harm to rows it does not know. With much to explain it stays low. */
static void ridge_is_what_helps_unknown_rows(void **state)
{
    enum { N = 60, ROWS = 240 };
    static float x[ROWS * N], y[ROWS * 2];
    float map[N] = {0}, clear[N] = {0};
    uint64_t seed = 4;
    struct least_squares ls;
    struct least_squares_result noisy;
    struct least_squares_result plain;
    struct error err;
    assert_int_equal(least_squares_open(NULL, N, 2, &ls, &err), 0);
    for (int r = 0; r < ROWS; r++) {
        for (int i = 0; i < N; i++)
            x[r * N + i] = noise(&seed);
        y[r * 2] = noise(&seed);
        y[r * 2 + 1] = x[r * N + 5];
        least_squares_add(&ls, r % 3 == 0, x + r * N, N, y + r * 2, 2, 1);
    }
    assert_int_equal(least_squares_solve(&ls, 0, 1, NULL, 3, map, &noisy, &err), 0);
    assert_int_equal(least_squares_solve(&ls, 1, 2, NULL, 1, clear, &plain, &err), 0);
    assert_true(noisy.ridge >= 1);
    assert_true(noisy.residual > 0.9 && noisy.residual < 1.2);
    assert_true(plain.ridge < 0.01);
    assert_true(plain.residual < 0.01);
    assert_true(fabsf(clear[5] - 1) < 0.02f);
    least_squares_close(&ls);
}

/* Three rows tell little of twenty inputs: what they do not tell is as it was held to be before,
 * and a prior that explains them already stays as it is. */
static void little_known_map_stays_near_its_prior(void **state)
{
    enum { N = 20, ROWS = 3 };
    float x[ROWS * N], y[ROWS], map[N] = {0}, prior[N];
    uint64_t seed = 5;
    struct least_squares ls;
    struct least_squares_result result;
    struct error err;
    for (int i = 0; i < N; i++)
        prior[i] = noise(&seed);
    assert_int_equal(least_squares_open(NULL, N, 1, &ls, &err), 0);
    for (int r = 0; r < ROWS; r++) {
        y[r] = 0;
        for (int i = 0; i < N; i++) {
            x[r * N + i] = noise(&seed);
            y[r] += prior[i] * x[r * N + i];
        }
    }
    least_squares_add(&ls, false, x, N, y, 1, ROWS);
    assert_int_equal(least_squares_solve(&ls, 0, 1, prior, 0, map, &result, &err), 0);
    for (int i = 0; i < N; i++)
        assert_true(fabsf(map[i] - prior[i]) < 1e-2f);
    assert_true(result.residual < 1e-4);
    memset(map, 0, sizeof(map));
    assert_int_equal(least_squares_solve(&ls, 0, 1, NULL, 0, map, &result, &err), 0);
    float off = 0;
    for (int i = 0; i < N; i++)
        off = fmaxf(off, fabsf(map[i] - prior[i]));
    assert_true(off > 0.1f);
    least_squares_close(&ls);
}

/* A covariance of two strong directions and a weak rest. */
static void eigenvectors_are_the_strong_directions(void **state)
{
    enum { N = 12 };
    double a[N * N];
    float q[N * 2];
    double share;
    struct error err;
    for (int i = 0; i < N; i++)
        for (int j = 0; j < N; j++) {
            double even = i % 2 == 0 && j % 2 == 0;
            double odd = i % 2 == 1 && j % 2 == 1;
            a[i * N + j] = 4 * even + odd + (i == j ? 0.01 : 0);
        }
    assert_int_equal(top_eigenvectors(a, N, 2, q, &share, &err), 0);
    assert_true(share > 0.99);
    for (int i = 0; i < N; i++) {
        float expected = 1 / sqrtf(N / 2.0f);
        assert_true(fabsf(fabsf(q[i * 2 + i % 2]) - expected) < 1e-3f);
        assert_true(fabsf(q[i * 2 + (i + 1) % 2]) < 1e-3f);
    }
}

/* Inputs that are copies of others cost nothing; those that nobody else can give stay. */
static void copies_leave_first(void **state)
{
    enum { N = 100, OWN = 40, OUT = 9 }; /* inputs OWN.. are sums of two of the first */
    static double gram[N * N];
    static float w[OUT * N];
    unsigned index[N];
    uint64_t seed = 3;
    double share;
    struct error err;
    for (int r = 0; r < 2000; r++) {
        float x[N];
        for (int i = 0; i < N; i++)
            x[i] = i < OWN ? noise(&seed) : x[i % OWN] + x[(i * 7 + 1) % OWN];
        for (int i = 0; i < N; i++)
            for (int j = 0; j < N; j++)
                gram[i * N + j] += (double)x[i] * x[j];
    }
    for (int i = 0; i < OUT * N; i++)
        w[i] = noise(&seed);
    assert_int_equal(choose_inputs(gram, w, N, OUT, OWN + 5, index, &share, &err), 0);
    assert_true(share > 0.99);
    for (int i = 1; i < OWN + 5; i++)
        assert_true(index[i] > index[i - 1]);
    assert_int_equal(choose_inputs(gram, w, N, OUT, 10, index, &share, &err), 0);
    assert_true(share > 0.1 && share < 0.9);

    /* an input that alone carries a large weight is never lost */
    for (int o = 0; o < OUT; o++)
        w[o * N + 17] += 50;
    assert_int_equal(choose_inputs(gram, w, N, OUT, 60, index, &share, &err), 0);
    assert_true(share > 0.99);
}

#define N_WIDE 512
#define N_SEEN 600

/* sum |(W - rounded W) x|^2 over the rows of x, which lie near a few directions. */
static double output_error(const float *w, const uint8_t *blocks, enum tensor_type type,
                           const float *x, size_t n_out)
{
    float *rounded = malloc(n_out * N_WIDE * sizeof(float));
    double sum = 0;
    tensor_dequantize(type, blocks, n_out * N_WIDE, rounded);
    for (size_t r = 0; r < N_SEEN; r++)
        for (size_t o = 0; o < n_out; o++) {
            double e = 0;
            for (size_t i = 0; i < N_WIDE; i++)
                e += (w[o * N_WIDE + i] - rounded[o * N_WIDE + i]) * x[r * N_WIDE + i];
            sum += e * e;
        }
    free(rounded);
    return sum;
}

/* Rounding that knows the inputs loses far less of what they give than rounding to the nearest. */
/* In two parts, as a vocabulary comes. */
static int round_all(enum tensor_type type, const float *rows, size_t n_rows, size_t n_in,
                     const double *sums, uint8_t *blocks, struct error *err)
{
    struct rounder *rounder = NULL;
    size_t first = n_rows / 3;
    size_t row_bytes;
    assert_true(tensor_type_bytes(type, n_in, &row_bytes));
    int rc = rounder_open(type, n_in, sums, &rounder, err);
    if (rc == 0)
        rc = round_rows(rounder, rows, first, blocks, err);
    if (rc == 0)
        rc = round_rows(rounder, rows + first * n_in, n_rows - first, blocks + first * row_bytes,
                        err);
    rounder_close(rounder);
    return rc;
}

static void rounding_knows_the_inputs(void **state)
{
    enum { N_OUT_ROWS = 12, N_DIRECTIONS = 16 };
    static float x[N_SEEN * N_WIDE], w[N_OUT_ROWS * N_WIDE];
    static double gram[N_WIDE * N_WIDE];
    static uint8_t nearest[4 * N_OUT_ROWS * N_WIDE], fed[4 * N_OUT_ROWS * N_WIDE];
    const enum tensor_type types[] = {TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q8_0, TENSOR_Q5_0,
                                      TENSOR_Q5_1, TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K,
                                      TENSOR_Q5_K, TENSOR_Q6_K};
    uint64_t seed = 3;
    struct error err = {0};
    float directions[N_DIRECTIONS * N_WIDE];
    for (size_t i = 0; i < N_DIRECTIONS * N_WIDE; i++)
        directions[i] = noise(&seed);
    for (size_t i = 0; i < N_OUT_ROWS * N_WIDE; i++)
        w[i] = noise(&seed);
    for (size_t r = 0; r < N_SEEN; r++) {
        for (size_t i = 0; i < N_WIDE; i++)
            x[r * N_WIDE + i] = 0.1f * noise(&seed);
        for (size_t d = 0; d < N_DIRECTIONS; d++) {
            float share = noise(&seed);
            for (size_t i = 0; i < N_WIDE; i++)
                x[r * N_WIDE + i] += share * directions[d * N_WIDE + i];
        }
        for (size_t i = 0; i < N_WIDE; i++)
            for (size_t j = i; j < N_WIDE; j++)
                gram[i * N_WIDE + j] += x[r * N_WIDE + i] * x[r * N_WIDE + j];
    }
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        assert_int_equal(round_all(types[t], w, N_OUT_ROWS, N_WIDE, NULL, nearest, &err), 0);
        assert_int_equal(round_all(types[t], w, N_OUT_ROWS, N_WIDE, gram, fed, &err), 0);
        double before = output_error(w, nearest, types[t], x, N_OUT_ROWS);
        double after = output_error(w, fed, types[t], x, N_OUT_ROWS);
        print_message("%s: %.3g to the nearest, %.3g fed\n", tensor_type_name(types[t]), before,
                      after);
        assert_true(after < 0.5 * before);
    }
    w[5] = INFINITY;
    assert_int_equal(round_all(TENSOR_Q4_0, w, N_OUT_ROWS, N_WIDE, gram, fed, &err),
                     -ERROR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(least_squares_finds_the_map),
        cmocka_unit_test(ridge_is_what_helps_unknown_rows),
        cmocka_unit_test(little_known_map_stays_near_its_prior),
        cmocka_unit_test(eigenvectors_are_the_strong_directions),
        cmocka_unit_test(copies_leave_first),
        cmocka_unit_test(rounding_knows_the_inputs),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
