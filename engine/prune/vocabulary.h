/* A head's rows in float, some thousand at a time: those of a whole vocabulary would be the largest
 * thing that pruning holds. Internal to engine/prune. */
#ifndef OVERFILL_ENGINE_PRUNE_VOCABULARY_H
#define OVERFILL_ENGINE_PRUNE_VOCABULARY_H

#include "engine/base/error.h"
#include "engine/base/team.h"
#include "engine/model/tensor.h"

#include <stdbool.h>
#include <stddef.h>

#define VOCABULARY_PART 4096 /* rows */

struct vocabulary {
    struct team *team;
    const struct tensor *head;
    size_t width, n_tokens; /* of the head */
    size_t first, n_part;   /* the rows that part holds */
    float *part;            /* [VOCABULARY_PART][width] */
};

/* team and head [n_tokens][width] are the caller's, and stay. */
int vocabulary_open(struct team *team, const struct tensor *head, struct vocabulary *ret_vocabulary,
                    struct error *err);
void vocabulary_close(struct vocabulary *v); /* zeroed is fine */
/* The next rows, from the first on; false after the last, and then it begins anew. */
bool vocabulary_next(struct vocabulary *v);

/* out [n][n_tokens] = x [n][width] head^T */
void vocabulary_logits(struct vocabulary *v, const float *x, size_t n, float *out);
/* out [n][width] = z [n][n_tokens] head */
void vocabulary_back(struct vocabulary *v, const float *z, size_t n, float *out);

#endif
