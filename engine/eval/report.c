/* From rows to means with their bootstrap intervals (Efron's percentile method: rows are drawn with
 * replacement, as often as there are rows). See eval.h. */
#include "engine/base/mem.h"
#include "engine/eval/eval_internal.h"

#include <math.h>
#include <stdlib.h>
#include <string.h>

#define N_RESAMPLES 1000

int report_open_rows(struct eval_report *report, size_t n, struct error *err)
{
    size_t n_values;
    if (!mem_mul(n, EVAL_MAX_METRICS, &n_values))
        return error_memory(err, "rows of the report", n);
    report->lines = mem_calloc(n, sizeof(*report->lines));
    report->values = mem_calloc(n_values, sizeof(*report->values));
    report->weights = mem_calloc(n, sizeof(*report->weights));
    if (!report->lines || !report->values || !report->weights)
        return error_memory(err, "rows of the report", n_values * sizeof(double));
    report->n_rows = n;
    return 0;
}

void eval_report_free(struct eval_report *report)
{
    mem_free(report->lines);
    mem_free(report->values);
    mem_free(report->weights);
    *report = (struct eval_report){0};
}

void report_add_metric(struct eval_report *report, const char *name, bool by_token)
{
    report->metrics[report->n_metrics++] =
        (struct eval_metric){.name = name, .by_token = by_token, .exp_of = -1};
}

void report_add_exponential(struct eval_report *report, const char *name, int of)
{
    report->metrics[report->n_metrics++] = (struct eval_metric){.name = name, .exp_of = of};
}

/* Means of the drawn rows (NULL: of all) to means[n_metrics]. */
static void average(const struct eval_report *report, const size_t *rows, double *means)
{
    double totals[EVAL_MAX_METRICS] = {0};
    double total_weight = 0;
    for (size_t i = 0; i < report->n_rows; i++) {
        size_t row = rows ? rows[i] : i;
        const double *values = report->values + row * EVAL_MAX_METRICS;
        double weight = report->weights[row];
        total_weight += weight;
        for (size_t m = 0; m < report->n_metrics; m++)
            totals[m] += values[m] * (report->metrics[m].by_token ? weight : 1);
    }
    for (size_t m = 0; m < report->n_metrics; m++) {
        double n = report->metrics[m].by_token ? total_weight : (double)report->n_rows;
        means[m] = n > 0 ? totals[m] / n : 0;
    }
    for (size_t m = 0; m < report->n_metrics; m++)
        if (report->metrics[m].exp_of >= 0)
            means[m] = exp(means[report->metrics[m].exp_of]);
}

static int by_value(const void *a, const void *b)
{
    double x = *(const double *)a, y = *(const double *)b;
    return x < y ? -1 : x > y;
}

/* drawn: [n_rows], means: [n_metrics][N_RESAMPLES] */
static void resample(struct eval_report *report, uint64_t seed, size_t *drawn, double *means)
{
    double one[EVAL_MAX_METRICS];
    for (size_t s = 0; s < N_RESAMPLES; s++) {
        for (size_t i = 0; i < report->n_rows; i++)
            drawn[i] = (size_t)(eval_mix(seed += UINT64_C(0x9e3779b97f4a7c15)) % report->n_rows);
        average(report, drawn, one);
        for (size_t m = 0; m < report->n_metrics; m++)
            means[m * N_RESAMPLES + s] = one[m];
    }
    for (size_t m = 0; m < report->n_metrics; m++) {
        double *sorted = means + m * N_RESAMPLES;
        qsort(sorted, N_RESAMPLES, sizeof(*sorted), by_value);
        report->metrics[m].low = sorted[N_RESAMPLES * 25 / 1000];
        report->metrics[m].high = sorted[N_RESAMPLES * 975 / 1000 - 1];
    }
}

int report_finish(struct eval_report *report, uint64_t seed, struct error *err)
{
    double means[EVAL_MAX_METRICS];
    size_t *drawn = mem_array(report->n_rows, sizeof(*drawn));
    double *resampled = mem_array(report->n_metrics * N_RESAMPLES, sizeof(*resampled));
    int rc = drawn && resampled ? 0 : error_memory(err, "bootstrap", report->n_rows);
    if (rc == 0) {
        average(report, NULL, means);
        for (size_t m = 0; m < report->n_metrics; m++)
            report->metrics[m].value = means[m];
        resample(report, seed, drawn, resampled);
    }
    mem_free(drawn);
    mem_free(resampled);
    return rc;
}
