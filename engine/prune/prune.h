/* Making a pruned twin of a model: calibration text through the full model, importance of its
 * channels, and a narrower GGUF with the same heads, layers and vocabulary, hence the same KV
 * shape.
 *
 * Method minitron (Muralidharan et al. 2024, as OverFill, COLM 2025, uses it): one set of hidden
 * channels for the whole model, one set of MLP channels a layer, chosen by the size of activations
 * and cut out of the weights, nothing else. */
#ifndef OVERFILL_ENGINE_PRUNE_PRUNE_H
#define OVERFILL_ENGINE_PRUNE_PRUNE_H

#include "engine/base/error.h"

#include <stddef.h>
#include <stdint.h>

#define PRUNE_WIDTH_MULTIPLE 32 /* kept widths are rounded to it, so that block types fit */
#define PRUNE_TYPE_KEEP (-1)

struct prune_options {
    const char *model_path; /* a GGUF file */
    const char *out_path;
    const char *calibration; /* a text file, or JSONL with `prompt` or `text` fields */
    size_t n_tokens;         /* of calibration at most; 0: 65,536 */
    double hidden, mlp;      /* kept width: above 1 a size, up to 1 a share; 0: all */
    /* enum tensor_type of the matrices. PRUNE_TYPE_KEEP: each keeps its own (Q8_0 if that type
     * cannot be written); rows that lose no columns keep their bytes */
    int type;
    const char *report_path; /* JSON; NULL: none */
    void (*progress)(void *user, const char *what, double share);
    void *user;
};

struct prune_report {
    uint32_t hidden, mlp; /* kept */
    uint32_t hidden_full, mlp_full;
    size_t n_calibration_tokens;
    double hidden_energy, mlp_energy; /* share of the importance that was kept */
    double seconds;
    size_t out_bytes;
};

/* Blocks for the whole work; uses all CPUs of the process. */
int prune_run(const struct prune_options *options, struct prune_report *ret_report,
              struct error *err);

#endif
