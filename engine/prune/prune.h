/* Making a pruned twin of a model: a narrower GGUF with the same heads, layers and vocabulary,
 * hence the same KV shape, from calibration text that the full model reads.
 *
 * Method reconstruct (engine/prune/reconstruct.h): every matrix of the twin is solved for by least
 * squares, in a basis of principal components.
 * Method minitron (Muralidharan et al. 2024, as OverFill, COLM 2025, uses it): one set of hidden
 * channels for the whole model, one set of MLP channels a layer, chosen by the size of activations
 * and cut out of the weights, nothing else. */
#ifndef OVERFILL_ENGINE_PRUNE_PRUNE_H
#define OVERFILL_ENGINE_PRUNE_PRUNE_H

#include "engine/base/error.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* What twins and what was measured of them are told apart by; a twin's file says it. It goes up
 * with every change after which the same model, calibration and options can give other weights. */
#define PRUNER_VERSION 1u

#define PRUNE_WIDTH_MULTIPLE 32 /* kept widths are rounded to it, so that block types fit */
#define PRUNE_TYPE_KEEP (-1)
#define PRUNE_TOKENS 65536

enum prune_method { PRUNE_RECONSTRUCT, PRUNE_MINITRON };
const char *prune_method_name(enum prune_method method);

/* Calibration text that was read and cut into samples, for several runs over one model. Immutable.
 */
struct prune_calibration;

struct prune_options {
    enum prune_method method;
    const char *model_path; /* a GGUF file or a Hugging Face folder, of which reconstruct makes the
                               file out_path.model while it works */
    const char *out_path;
    /* Text files, or JSONL with `messages`, `prompt` or `text`; may be .gz. They share the tokens.
     */
    const char *const *calibration;
    size_t n_calibration;
    const struct prune_calibration *samples; /* instead of the files; NULL: they are read */
    const char *chat_template; /* a family's name, or NULL: recognised from the file */
    size_t n_tokens;           /* of calibration at most; 0: PRUNE_TOKENS */
    double hidden, mlp;        /* kept width: above 1 a size, up to 1 a share; 0: all */
    bool exact_widths;         /* minitron: int(share * width), as the authors' artefacts; stored
                                  with zeros behind where a type has only whole blocks */
    const char *keep_path;     /* minitron: JSON with the channels to keep, instead of widths and
                                  calibration; NULL: none */
    /* enum tensor_type of the matrices. PRUNE_TYPE_KEEP: reconstruct writes Q8_0; of a sliced model
     * each keeps its own (Q8_0 if that type cannot be written), and rows that lose no columns keep
     * their bytes */
    int type;
    int head_type;           /* of embedding and head; PRUNE_TYPE_KEEP: as `type` says */
    const char *report_path; /* JSON; NULL: none */
    void (*progress)(void *user, const char *what, double share);
    void *user;
};

/* What a layer's fits left unexplained of the samples held back, as a share of the sum of squares;
 * NAN where a former, interrupted run solved it. */
struct write_report {
    double step, drift;             /* of the full model's own step; of the drift until then */
    double step_ridge, drift_ridge; /* chosen for them */
};
struct layer_report {
    double qkv;
    struct write_report o;
    double gate_up;
    double qkv_ridge, gate_up_ridge; /* chosen for them; 0 where a former run solved it */
    struct write_report down;
    double mlp_energy; /* the share of the MLP's output that the kept channels can give */
};

/* The twin on samples that nothing was fitted to but ridges and temperature: nats a token. */
struct held_report {
    size_t n_tokens, n_next;
    double kl, agree, nll, nll_full;
};

/* How many of the twin's matrices are stored as a type: not all as the one asked for where rows do
 * not fill its blocks. */
struct prune_type_count {
    int type; /* enum tensor_type */
    uint32_t n_matrices;
    size_t bytes;
};
#define PRUNE_MOST_TYPES 16

struct prune_report {
    enum prune_method method;
    uint32_t hidden, mlp; /* kept */
    uint32_t hidden_full, mlp_full;
    size_t n_calibration_tokens;
    double hidden_energy, mlp_energy; /* share that was kept of the channels' importance, or of */
                                      /*   what the basis and the kept MLP channels can give */
    double seconds;
    size_t out_bytes;
    struct prune_type_count types[PRUNE_MOST_TYPES]; /* those that are there, then zeros */
    /* reconstruct only */
    double head_residual;
    double temperature; /* of the head, chosen on the held samples */
    struct held_report held;
    struct layer_report *layers; /* [n_layers]; prune_report_free frees them */
    uint32_t n_layers;
};
void prune_report_free(struct prune_report *report);

/* Reads what the options name (model, method, calibration, chat template, tokens). */
int prune_calibration_read(const struct prune_options *options,
                           struct prune_calibration **ret_calibration, struct error *err);
void prune_calibration_free(struct prune_calibration *calibration); /* NULL is fine */
size_t prune_calibration_tokens(const struct prune_calibration *calibration);
/* FNV-1a 64 of the tokens and where they are cut: what a twin says it was made with. */
uint64_t prune_calibration_hash(const struct prune_calibration *calibration);

/* Does the file say that this version of the pruner made it of that model (model_file_hash) with
 * that calibration? false too where there is none. */
bool prune_is_twin_of(const char *path, uint64_t source_hash, uint64_t calibration_hash);

/* What OPENBLAS_CORETYPE should be, which OpenBLAS reads only as it is loaded; NULL: it knows this
 * CPU. One that is newer than the library gets kernels without AVX, a tenth as fast. */
const char *prune_blas_core(void);

/* Blocks for the whole work; uses all CPUs of the process. */
int prune_run(const struct prune_options *options, struct prune_report *ret_report,
              struct error *err);

#endif
