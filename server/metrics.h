/* What the server counts itself: latencies of requests and tokens, HTTP replies, rejections. The
 * engine's own counters are read when /metrics is asked for. Loop thread only; no locks. */
#ifndef OVERFILL_SERVER_METRICS_H
#define OVERFILL_SERVER_METRICS_H

#include "engine/engine.h"
#include "server/errors.h"

#include <stdint.h>

#define HISTOGRAM_MAX_BOUNDS 24

struct histogram {
    const double *bounds; /* ascending, the +Inf bucket is not among them */
    unsigned n_bounds;
    uint64_t counts[HISTOGRAM_MAX_BOUNDS + 1];
    double sum;
};

/* Where a request stood when its client left. */
enum stage { STAGE_QUEUE, STAGE_PREFILL, STAGE_DECODE, N_STAGES };
const char *stage_name(enum stage stage);

#define METRICS_MAX_ROUTES 24

struct metrics {
    struct histogram time_to_first_token, inter_token, e2e, queue, prefill, decode, inference;
    struct histogram prompt_tokens, generation_tokens, params_n, params_max_tokens;
    uint64_t finished[FINISH_ERROR + 1]; /* choices, by finish reason */
    uint64_t cancelled[N_STAGES];
    uint64_t rejected[N_REJECT_REASONS];
    uint64_t replies[METRICS_MAX_ROUTES][6]; /* [route][status / 100] */
    double max_decode_gap_s;
    uint64_t connections_total;
    int64_t connections; /* open now */
    uint64_t bytes_streamed;
};

void metrics_init(struct metrics *m);
void histogram_observe(struct histogram *h, double value, uint64_t times);
/* One histogram in the exposition format; `label` is `model_name="..."`, escaped already. */
void histogram_write(struct buf *out, const char *name, const char *help, const char *label,
                     const struct histogram *h);

/* The rest of the page: info and stats may be NULL while the model loads. */
struct metrics_view {
    const struct metrics *metrics;
    const struct engine_info *info;
    const struct engine_stats *stats;
    const char *const *route_labels; /* [n_routes] `handler="/v1/models",method="GET"` */
    unsigned n_routes;
    uint32_t jobs; /* generation requests that the engine still holds */
    double uptime_s;
};
void metrics_write(struct buf *out, const struct metrics_view *view);

#endif
