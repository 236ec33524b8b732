/* What `overfill frontier` says and draws of the points it knows. Not how they are made
 * (frontier.c). */
#ifndef OVERFILL_CLI_FRONTIER_H
#define OVERFILL_CLI_FRONTIER_H

#include "engine/frontier/frontier.h"

/* Borrowed, all of it. */
struct frontier_result {
    const struct model_params *full;
    const char *model_path, *folder;
    const char *eval_path; /* the documents measured on; NULL: the calibration held back */
    uint32_t prompt_tokens, score_tokens;
    size_t n_calibration_tokens;
    const struct frontier_log *log;
    const struct frontier_grid *wanted; /* points to make: some may not be measured yet */
    const double *budgets;              /* bytes */
    size_t n_budgets;
};

/* The table and the best point of each budget, or one JSON object, on stdout; and the picture in
 * the folder's frontier.svg. */
int frontier_report(const struct frontier_result *result, bool json, struct error *err);

#endif
