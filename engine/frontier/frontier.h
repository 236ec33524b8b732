/* What a twin reads a token against how far it is from its full model: which twins are worth making
 * for some budgets, which of those that were measured no other one beats, the file that remembers
 * them, and the picture. Making them is engine/prune's, measuring engine/eval's. One thread at a
 * time; everything but the log is pure. */
#ifndef OVERFILL_ENGINE_FRONTIER_FRONTIER_H
#define OVERFILL_ENGINE_FRONTIER_FRONTIER_H

#include "engine/base/buf.h"
#include "engine/model/cost.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* A twin: its widths, and what its layers and its embedding and head are stored as. */
struct frontier_point {
    uint32_t hidden, mlp;
    enum tensor_type type, head_type;
};

/* point.c. In text a point is HIDDENxMLP:TYPE or HIDDENxMLP:TYPE/HEADTYPE, as "320x832:q4_0/q8_0".
 */
#define FRONTIER_NAME_BYTES 64
void frontier_point_name(const struct frontier_point *point, char ret_name[FRONTIER_NAME_BYTES]);
/* The same for a file's name: with "-" between the parts. */
void frontier_point_file(const struct frontier_point *point, char ret_name[FRONTIER_NAME_BYTES]);
bool frontier_point_parse(const char *text, struct frontier_point *ret_point);
bool frontier_point_equal(const struct frontier_point *a, const struct frontier_point *b);
/* Can the pruner make it? ERROR_INVALID says what keeps it from that. */
int frontier_point_check(const struct frontier_point *point, const struct model_params *full,
                         struct error *err);
struct model_cost frontier_point_cost(const struct frontier_point *point,
                                      const struct model_params *full);

/* grid.c: for each budget (bytes that a step may read) the largest twin within it of each family:
 *   both widths, 8 bits: the widest in the full model's proportion, and MLP channels for what is
 *     left;
 *   the same, 4 bits;
 *   fewer MLP channels, a quarter of them at least, 4 bits;
 *   nothing removed, the types of most bits out of Q4_0, Q4_1, Q8_0 for layers and head.
 * 8 bits are Q8_0, 4 are Q4_0: the types that decode reads as they are. Widths are multiples of 32,
 * blocks of these types. Each point once, those that read least first. ERROR_INVALID: a budget that
 * no twin lies within. */
#define FRONTIER_MOST_BUDGETS 16
#define FRONTIER_FAMILIES 4
#define FRONTIER_MOST_POINTS (FRONTIER_MOST_BUDGETS * FRONTIER_FAMILIES)
struct frontier_grid {
    struct frontier_point points[FRONTIER_MOST_POINTS];
    size_t n;
};
int frontier_grid_choose(const struct model_params *full, const double *budgets, size_t n_budgets,
                         struct frontier_grid *ret_grid, struct error *err);

/* front.c. On the frontier: none that reads as few bytes is nearer to the full model, and none as
 * near reads fewer; of equals the first. */
struct frontier_score {
    double bytes, kl; /* a KL that is not finite is beaten by every other */
};
void frontier_mark_front(const struct frontier_score *scores, size_t n, bool *ret_on_front);
/* The nearest one within the budget; n if there is none. */
size_t frontier_best(const struct frontier_score *scores, size_t n, double budget);

/* log.c: a JSONL file, a line for each thing measured of a point, so that a run that was killed
 * goes on where it was. Lines of other keys stay as they are; a line that was cut off goes. */
struct frontier_key {
    unsigned pruner;              /* its version */
    uint64_t source, calibration; /* model_file_hash, prune_calibration_hash */
    size_t n_tokens;              /* of calibration */
    uint64_t evaluation;          /* of the documents and how they are read */
};
struct frontier_quality {
    double kl, kl_low, kl_high; /* nats a token, 95 % interval; NAN where there is none */
    double agree;               /* share of tokens */
    double nll, full_nll;       /* nats a token: the twin's, the full model's */
    size_t n_tokens;            /* scored */
};
struct frontier_speed {
    size_t step_bytes;        /* weights that a step reads, as the engine says */
    double tok_s_1, tok_s_16; /* decode, batches of 1 and 16, all sequences together */
    char kernels[16];
    uint32_t n_threads;
};
struct frontier_row {
    struct frontier_point point;
    bool has_held, has_eval, has_speed;
    struct frontier_quality held; /* on the calibration held back: the pruner's own figures */
    struct frontier_quality eval; /* on documents, by the key's evaluation */
    struct frontier_speed speed;
};
struct frontier_log;

/* ERROR_BUSY: another process has it open. ERROR_FORMAT: a whole line that is none of ours. */
int frontier_log_open(const char *path, const struct frontier_key *key,
                      struct frontier_log **ret_log, struct error *err);
void frontier_log_close(struct frontier_log *log); /* NULL is fine */
/* Rows of this key in the order in which they first came; valid until the next put. */
const struct frontier_row *frontier_log_rows(const struct frontier_log *log, size_t *ret_n);
const struct frontier_row *frontier_log_find(const struct frontier_log *log,
                                             const struct frontier_point *point); /* or NULL */
/* The full model's own speed; NULL: not measured. */
const struct frontier_speed *frontier_log_full(const struct frontier_log *log);
/* On disk when it returns. */
int frontier_log_put_held(struct frontier_log *log, const struct frontier_point *point,
                          const struct frontier_quality *quality, struct error *err);
int frontier_log_put_eval(struct frontier_log *log, const struct frontier_point *point,
                          const struct frontier_quality *quality, struct error *err);
/* point NULL: of the full model. */
int frontier_log_put_speed(struct frontier_log *log, const struct frontier_point *point,
                           const struct frontier_speed *speed, struct error *err);

/* draw.c: an SVG picture, KL (a logarithmic axis) against megabytes a token. */
struct frontier_dot {
    struct frontier_point point;
    struct frontier_score score;
    bool on_front;
};
struct frontier_plot {
    const struct model_params *full;
    double full_bytes;
    const struct frontier_dot *dots; /* those that read least first */
    size_t n;
    const double *budgets; /* bytes */
    size_t n_budgets;
};
void frontier_draw(const struct frontier_plot *plot, struct buf *out);

#endif
