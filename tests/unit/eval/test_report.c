/* Means and their bootstrap intervals. */
#include "engine/eval/eval_internal.h"
#include "tests/unit/check.h"

#include <math.h>

static struct eval_report report;

static void open_report(size_t n)
{
    struct error err;
    report = (struct eval_report){0};
    report_add_metric(&report, "hit", false);
    report_add_metric(&report, "nll", true);
    report_add_exponential(&report, "perplexity", 1);
    assert_int_equal(report_open_rows(&report, n, &err), 0);
    for (size_t i = 0; i < n; i++) {
        report.values[i * EVAL_MAX_METRICS] = i % 4 == 0;
        report.values[i * EVAL_MAX_METRICS + 1] = i % 2 ? 1 : 4;
        report.weights[i] = i % 2 ? 3 : 1;
    }
}

static void finish(uint64_t seed)
{
    struct error err;
    assert_int_equal(report_finish(&report, seed, &err), 0);
}

static void means_are_over_rows_or_over_tokens(void **state)
{
    open_report(400);
    finish(1);
    assert_true(fabs(report.metrics[0].value - 0.25) < 1e-12);
    assert_true(fabs(report.metrics[1].value - 1.75) < 1e-12); /* (3 * 1 + 1 * 4) / 4 */
    assert_true(fabs(report.metrics[2].value - exp(1.75)) < 1e-12);
    eval_report_free(&report);
}

/* The interval of a share p of n is about p +- 1.96 sqrt(p (1 - p) / n). */
static void interval_is_as_wide_as_the_normal_one(void **state)
{
    open_report(400);
    finish(1);
    double half = 1.96 * sqrt(0.25 * 0.75 / 400);
    assert_true(fabs(report.metrics[0].low - (0.25 - half)) < 0.15 * half);
    assert_true(fabs(report.metrics[0].high - (0.25 + half)) < 0.15 * half);
    assert_true(report.metrics[1].low < 1.75 && report.metrics[1].high > 1.75);
    assert_true(fabs(report.metrics[2].low - exp(report.metrics[1].low)) < 1e-9);
    eval_report_free(&report);
}

static void seed_decides_the_interval(void **state)
{
    double low[3], high[3];
    const uint64_t seeds[] = {5, 5, 6};
    for (int i = 0; i < 3; i++) {
        open_report(30);
        finish(seeds[i]);
        low[i] = report.metrics[1].low;
        high[i] = report.metrics[1].high;
        eval_report_free(&report);
    }
    assert_true(low[0] == low[1] && high[0] == high[1]);
    assert_true(low[0] != low[2] || high[0] != high[2]);
}

static void equal_rows_leave_no_doubt(void **state)
{
    open_report(50);
    for (size_t i = 0; i < 50; i++)
        report.values[i * EVAL_MAX_METRICS] = 0.5;
    finish(1);
    assert_true(report.metrics[0].low == 0.5 && report.metrics[0].high == 0.5);
    eval_report_free(&report);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(means_are_over_rows_or_over_tokens),
        cmocka_unit_test(interval_is_as_wide_as_the_normal_one),
        cmocka_unit_test(seed_decides_the_interval),
        cmocka_unit_test(equal_rows_leave_no_doubt),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
