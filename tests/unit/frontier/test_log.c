/* What a run finds of those before it. */
#include "engine/base/mem.h"
#include "engine/frontier/frontier.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static char path[64];

static const struct frontier_key KEY = {.pruner = 3,
                                        .source = 0x0123456789abcdef,
                                        .calibration = 0xfedcba9876543210,
                                        .n_tokens = 16384,
                                        .evaluation = 77};
static const struct frontier_point A = {320, 832, TENSOR_Q4_0, TENSOR_Q8_0};
static const struct frontier_point B = {576, 1536, TENSOR_Q4_1, TENSOR_Q4_1};
static const struct frontier_quality HELD = {.kl = 2.125,
                                             .kl_low = NAN,
                                             .kl_high = NAN,
                                             .agree = 0.375,
                                             .nll = 5.5,
                                             .full_nll = 3.25,
                                             .n_tokens = 448};
static const struct frontier_quality EVAL = {.kl = 2.25,
                                             .kl_low = 2,
                                             .kl_high = 2.5,
                                             .agree = 0.25,
                                             .nll = 5.75,
                                             .full_nll = 3.5,
                                             .n_tokens = 9216};
static const struct frontier_speed SPEED = {.step_bytes = 34000000,
                                            .tok_s_1 = 385.5,
                                            .tok_s_16 = 1088.25,
                                            .kernels = "avx2",
                                            .n_threads = 2};

static int set_up(void **state)
{
    snprintf(path, sizeof(path), P_tmpdir "/overfill-test-XXXXXX");
    int fd = mkstemp(path);
    return fd < 0 ? -1 : close(fd);
}

static int tear_down(void **state)
{
    return unlink(path);
}

static struct frontier_log *open_ok(const struct frontier_key *key)
{
    struct frontier_log *log;
    struct error err = {0};
    if (frontier_log_open(path, key, &log, &err))
        fail_msg("%s", err.message);
    return log;
}

static void fill(void)
{
    struct error err;
    struct frontier_log *log = open_ok(&KEY);
    assert_int_equal(frontier_log_put_held(log, &A, &HELD, &err), 0);
    assert_int_equal(frontier_log_put_eval(log, &A, &EVAL, &err), 0);
    assert_int_equal(frontier_log_put_held(log, &B, &HELD, &err), 0);
    assert_int_equal(frontier_log_put_speed(log, NULL, &SPEED, &err), 0);
    assert_int_equal(frontier_log_put_speed(log, &A, &SPEED, &err), 0);
    frontier_log_close(log);
}

static void append(const char *text)
{
    FILE *f = fopen(path, "a");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static void measures_are_found_again(void **state)
{
    size_t n;
    fill();
    struct frontier_log *log = open_ok(&KEY);
    const struct frontier_row *rows = frontier_log_rows(log, &n);
    assert_int_equal(n, 2);
    assert_true(frontier_point_equal(&rows[0].point, &A));
    assert_true(rows[0].has_held && rows[0].has_eval && rows[0].has_speed);
    assert_true(rows[0].held.kl == HELD.kl && rows[0].held.n_tokens == HELD.n_tokens);
    assert_true(isnan(rows[0].held.kl_low));
    assert_true(rows[0].eval.kl_low == EVAL.kl_low && rows[0].eval.full_nll == EVAL.full_nll);
    assert_true(rows[0].speed.tok_s_16 == SPEED.tok_s_16);
    assert_int_equal(rows[0].speed.step_bytes, SPEED.step_bytes);
    assert_string_equal(rows[0].speed.kernels, SPEED.kernels);
    assert_ptr_equal(frontier_log_find(log, &B), &rows[1]);
    assert_true(rows[1].has_held && !rows[1].has_eval && !rows[1].has_speed);
    assert_true(frontier_log_full(log)->tok_s_1 == SPEED.tok_s_1);
    frontier_log_close(log);
}

static void later_measures_take_the_place_of_earlier_ones(void **state)
{
    struct error err;
    struct frontier_speed again = SPEED;
    size_t n;
    fill();
    again.tok_s_1 = 400;
    struct frontier_log *log = open_ok(&KEY);
    assert_int_equal(frontier_log_put_speed(log, &A, &again, &err), 0);
    frontier_log_close(log);
    log = open_ok(&KEY);
    assert_true(frontier_log_find(log, &A)->speed.tok_s_1 == 400);
    frontier_log_rows(log, &n);
    assert_int_equal(n, 2);
    frontier_log_close(log);
}

/* Another pruner, model, calibration or number of tokens knows nothing; other documents only what
 * does not depend on them. What the others wrote stays. */
static void other_keys_are_not_mixed(void **state)
{
    size_t n;
    fill();
    for (int i = 0; i < 4; i++) {
        struct frontier_key other = KEY;
        other.source += i == 0;
        other.calibration += i == 1;
        other.n_tokens += i == 2;
        other.pruner += i == 3;
        struct frontier_log *log = open_ok(&other);
        frontier_log_rows(log, &n);
        assert_int_equal(n, 0);
        assert_null(frontier_log_full(log));
        frontier_log_close(log);
    }
    struct frontier_key documents = KEY;
    documents.evaluation++;
    struct frontier_log *log = open_ok(&documents);
    assert_true(frontier_log_find(log, &A)->has_held && frontier_log_find(log, &A)->has_speed);
    assert_false(frontier_log_find(log, &A)->has_eval);
    frontier_log_close(log);
    log = open_ok(&KEY);
    assert_true(frontier_log_find(log, &A)->has_eval);
    frontier_log_close(log);
}

/* A run that was killed while it wrote: the line's beginning goes, the next line is whole. */
static void line_that_was_cut_off_goes(void **state)
{
    struct error err;
    size_t n_before, n_after;
    fill();
    free(tiny_read_file(path, &n_before));
    append("{\"pruner\":3,\"source\":\"0123456789abcdef\",\"calibration\":\"fedc");
    struct frontier_log *log = open_ok(&KEY);
    free(tiny_read_file(path, &n_after));
    assert_int_equal(n_after, n_before);
    assert_int_equal(frontier_log_put_eval(log, &B, &EVAL, &err), 0);
    frontier_log_close(log);
    log = open_ok(&KEY);
    assert_true(frontier_log_find(log, &B)->has_eval);
    frontier_log_close(log);
}

static void line_that_is_none_of_ours_is_named(void **state)
{
    static const char *const LINES[] = {
        "not json\n", "{}\n",
        ("{\"pruner\":3,\"source\":\"0123456789abcdef\",\"calibration\":\"fedcba9876543210\","
         "\"calibration_tokens\":16384,\"point\":\"12:q4_0\"}\n")};
    for (size_t i = 0; i < 3; i++) {
        struct frontier_log *log;
        struct error err = {0};
        assert_int_equal(truncate(path, 0), 0);
        fill();
        append(LINES[i]);
        assert_int_equal(frontier_log_open(path, &KEY, &log, &err), -ERROR_FORMAT);
        assert_non_null(strstr(err.message, ": line 6: "));
    }
}

static void second_run_on_the_same_file_is_refused(void **state)
{
    struct frontier_log *second;
    struct error err = {0};
    struct frontier_log *log = open_ok(&KEY);
    assert_int_equal(frontier_log_open(path, &KEY, &second, &err), -ERROR_BUSY);
    assert_non_null(strstr(err.message, "another run"));
    frontier_log_close(log);
    frontier_log_close(open_ok(&KEY));
}

static void failed_allocations_are_errors(void **state)
{
    struct error err;
    fill();
    for (unsigned long k = 1;; k++) {
        struct frontier_log *log;
        mem_fail_at(k);
        int rc = frontier_log_open(path, &KEY, &log, &err);
        unsigned long n = mem_count_allocations();
        mem_fail_at(0);
        if (rc == 0)
            frontier_log_close(log);
        if (n < k)
            break;
        assert_int_equal(rc, -ERROR_MEMORY);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(measures_are_found_again, set_up, tear_down),
        cmocka_unit_test_setup_teardown(later_measures_take_the_place_of_earlier_ones, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(other_keys_are_not_mixed, set_up, tear_down),
        cmocka_unit_test_setup_teardown(line_that_was_cut_off_goes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(line_that_is_none_of_ours_is_named, set_up, tear_down),
        cmocka_unit_test_setup_teardown(second_run_on_the_same_file_is_refused, set_up, tear_down),
        cmocka_unit_test_setup_teardown(failed_allocations_are_errors, set_up, tear_down),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
