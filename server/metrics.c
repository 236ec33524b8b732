/* The Prometheus page. Names are vLLM's wherever the meaning is the same, so that its dashboards
 * and the gateway routers read ours too; what only this engine has is named overfill_*. */
#include "server/metrics.h"

#include "engine/base/system.h"

#include <string.h>

static const double TTFT_BOUNDS[] = {.001, .005, .01, .02, .04, .06, .08, .1, .25, .5,  .75,
                                     1,    2.5,  5,   7.5, 10,  20,  40,  80, 160, 640, 2560};
static const double ITL_BOUNDS[] = {.01, .025, .05, .075, .1,  .15, .2, .3, .4, .5,
                                    .75, 1,    2.5, 5,    7.5, 10,  20, 40, 80};
static const double REQUEST_BOUNDS[] = {.3, .5, .8, 1,  1.5, 2,   2.5, 5,   10,   15,  20,
                                        30, 40, 50, 60, 120, 240, 480, 960, 1920, 7680};
static const double TOKEN_BOUNDS[] = {1,   2,    5,    10,   20,    50,    100,   200,
                                      500, 1000, 2000, 5000, 10000, 20000, 50000, 100000};
static const double N_BOUNDS[] = {1, 2, 5, 10, 20};

#define INIT(h, b) ((h).bounds = (b), (h).n_bounds = sizeof(b) / sizeof((b)[0]))

void metrics_init(struct metrics *m)
{
    *m = (struct metrics){0};
    INIT(m->time_to_first_token, TTFT_BOUNDS);
    INIT(m->inter_token, ITL_BOUNDS);
    INIT(m->e2e, REQUEST_BOUNDS);
    INIT(m->queue, REQUEST_BOUNDS);
    INIT(m->prefill, REQUEST_BOUNDS);
    INIT(m->decode, REQUEST_BOUNDS);
    INIT(m->inference, REQUEST_BOUNDS);
    INIT(m->prompt_tokens, TOKEN_BOUNDS);
    INIT(m->generation_tokens, TOKEN_BOUNDS);
    INIT(m->params_max_tokens, TOKEN_BOUNDS);
    INIT(m->params_n, N_BOUNDS);
}

const char *stage_name(enum stage stage)
{
    static const char *const NAMES[N_STAGES] = {"queue", "prefill", "decode"};
    return NAMES[stage];
}

void histogram_observe(struct histogram *h, double value, uint64_t times)
{
    unsigned i = 0;
    while (i < h->n_bounds && value > h->bounds[i])
        i++;
    h->counts[i] += times;
    h->sum += value * (double)times;
}

static void write_head(struct buf *out, const char *name, const char *type, const char *help)
{
    buf_printf(out, "# HELP %s %s\n# TYPE %s %s\n", name, help, name, type);
}

void histogram_write(struct buf *out, const char *name, const char *help, const char *label,
                     const struct histogram *h)
{
    uint64_t total = 0;

    write_head(out, name, "histogram", help);
    for (unsigned i = 0; i < h->n_bounds; i++) {
        total += h->counts[i];
        buf_printf(out, "%s_bucket{%s,le=\"%g\"} %llu\n", name, label, h->bounds[i],
                   (unsigned long long)total);
    }
    total += h->counts[h->n_bounds];
    buf_printf(out, "%s_bucket{%s,le=\"+Inf\"} %llu\n", name, label, (unsigned long long)total);
    buf_printf(out, "%s_sum{%s} %.9g\n%s_count{%s} %llu\n", name, label, h->sum, name, label,
               (unsigned long long)total);
}

static void write_value(struct buf *out, const char *name, const char *type, const char *help,
                        const char *label, double value)
{
    write_head(out, name, type, help);
    buf_printf(out, "%s{%s} %.17g\n", name, label, value);
}

static void write_gauge(struct buf *out, const char *name, const char *help, const char *label,
                        double value)
{
    write_value(out, name, "gauge", help, label, value);
}

static void write_counter(struct buf *out, const char *name, const char *help, const char *label,
                          uint64_t value)
{
    write_head(out, name, "counter", help);
    buf_printf(out, "%s{%s} %llu\n", name, label, (unsigned long long)value);
}

/* A label value: backslash, quote and line feed are escaped, nothing else may be. */
static void write_label_value(struct buf *out, const char *value)
{
    for (; *value; value++) {
        if (*value == '\n')
            buf_append_str(out, "\\n");
        else if (*value == '"' || *value == '\\')
            buf_append(out, (char[]){'\\', *value}, 2);
        else
            buf_append(out, value, 1);
    }
}

static void write_latencies(struct buf *out, const struct metrics *m, const char *label)
{
    histogram_write(out, "vllm:time_to_first_token_seconds",
                    "Arrival of a request to its first token.", label, &m->time_to_first_token);
    histogram_write(out, "vllm:inter_token_latency_seconds",
                    "Time between two tokens of one choice.", label, &m->inter_token);
    histogram_write(out, "vllm:e2e_request_latency_seconds", "Arrival of a request to its end.",
                    label, &m->e2e);
    histogram_write(out, "vllm:request_queue_time_seconds", "Time before the first prefill step.",
                    label, &m->queue);
    histogram_write(out, "vllm:request_inference_time_seconds", "Prefill and decode together.",
                    label, &m->inference);
    histogram_write(out, "vllm:request_prefill_time_seconds",
                    "First prefill step to the first token.", label, &m->prefill);
    histogram_write(out, "vllm:request_decode_time_seconds", "First token to the end.", label,
                    &m->decode);
    histogram_write(out, "vllm:request_prompt_tokens", "Prompt tokens of a request.", label,
                    &m->prompt_tokens);
    histogram_write(out, "vllm:request_generation_tokens", "Generated tokens of a request.", label,
                    &m->generation_tokens);
    histogram_write(out, "vllm:request_params_n", "Choices asked for.", label, &m->params_n);
    histogram_write(out, "vllm:request_params_max_tokens", "max_tokens asked for.", label,
                    &m->params_max_tokens);
}

static void write_finished(struct buf *out, const struct metrics *m, const char *label)
{
    static const struct {
        const char *name;
        enum finish_reason reason;
    } REASONS[] = {{"stop", FINISH_STOP},
                   {"length", FINISH_LENGTH},
                   {"abort", FINISH_CANCELLED},
                   {"error", FINISH_ERROR}};

    write_head(out, "vllm:request_success_total", "counter", "Finished choices by reason.");
    for (size_t i = 0; i < sizeof(REASONS) / sizeof(REASONS[0]); i++)
        buf_printf(out, "vllm:request_success_total{%s,finished_reason=\"%s\"} %llu\n", label,
                   REASONS[i].name, (unsigned long long)m->finished[REASONS[i].reason]);
}

/* vLLM's view of the engine. */
static void write_engine(struct buf *out, const struct engine_info *info,
                         const struct engine_stats *s, const char *label)
{
    double used = s->kv_pages_total ? (double)s->kv_pages_used / s->kv_pages_total : 0;

    write_gauge(out, "vllm:num_requests_running", "Requests in prefill and sequences in decode.",
                label, (double)s->requests_prefilling + s->sequences_decoding);
    write_gauge(out, "vllm:num_requests_waiting", "Requests waiting for prefill.", label,
                s->requests_waiting);
    write_gauge(out, "overfill_requests_preempted", "Sequences that wait for pages to go on.",
                label, s->requests_preempted);
    write_counter(out, "vllm:num_preemptions_total", "Times that pages were taken away.", label,
                  s->preemptions);
    write_gauge(out, "vllm:kv_cache_usage_perc", "Share of the KV pages in use, 0 to 1.", label,
                used);
    write_counter(out, "vllm:prompt_tokens_total", "Prompt tokens, cached ones too.", label,
                  s->prompt_tokens + s->cached_tokens);
    write_counter(out, "vllm:generation_tokens_total", "Tokens generated.", label,
                  s->generated_tokens);
    write_counter(out, "vllm:prefix_cache_queries_total", "Prompt tokens looked up in the cache.",
                  label, s->prompt_tokens_asked);
    write_counter(out, "vllm:prefix_cache_hits_total", "Prompt tokens found in the cache.", label,
                  s->cached_tokens);
    write_head(out, "vllm:cache_config_info", "gauge", "The KV cache's settings.");
    buf_printf(out,
               "vllm:cache_config_info{%s,page_bytes=\"%zu\",num_pages=\"%u\","
               "bytes_per_token=\"%zu\"} 1\n",
               label, s->kv_page_bytes, s->kv_pages_total, info->kv_bytes_per_token);
}

static void write_two(struct buf *out, const char *name, const char *type, const char *help,
                      const char *label, const char *key, const char *a, double a_value,
                      const char *b, double b_value)
{
    write_head(out, name, type, help);
    buf_printf(out, "%s{%s,%s=\"%s\"} %.17g\n", name, label, key, a, a_value);
    buf_printf(out, "%s{%s,%s=\"%s\"} %.17g\n", name, label, key, b, b_value);
}

/* The quality dial, the work done while idle, and what pages had to be given up. */
static void write_dial(struct buf *out, const struct engine_stats *s, const char *label)
{
    write_two(out, "overfill_draft_tokens_total", "counter",
              "Tokens that the twin drafted for verify, and those the full model accepted.", label,
              "outcome", "drafted", (double)s->drafted_tokens, "accepted",
              (double)s->accepted_tokens);
    write_counter(out, "overfill_refreshed_tokens_total",
                  "Answer tokens read again by the full model.", label, s->refreshed_tokens);
    write_counter(out, "overfill_background_tokens_total",
                  "Tokens of finished answers read by the full model while idle.", label,
                  s->background_tokens);
    write_counter(out, "overfill_recomputed_tokens_total",
                  "Answer tokens computed again after their pages were taken away.", label,
                  s->recomputed_tokens);
    write_counter(out, "overfill_pages_evicted_total", "Pages given up by the prefix cache.", label,
                  s->pages_evicted);
    write_gauge(out, "overfill_kv_cached_bytes", "KV pages kept for prompts to come, in bytes.",
                label, (double)s->kv_pages_cached * (double)s->kv_page_bytes);
    write_counter(out, "overfill_shadow_answers_total", "Answers scored by both models.", label,
                  s->shadow_answers);
    write_counter(out, "overfill_shadow_tokens_total", "Their tokens.", label, s->shadow_tokens);
    write_counter(out, "overfill_shadow_agreed_tokens_total",
                  "Of these, where both models' best token is the same.", label, s->shadow_agreed);
    write_head(out, "overfill_shadow_kl_nats_total", "counter",
               "Sum over these of KL(full || twin).");
    buf_printf(out, "overfill_shadow_kl_nats_total{%s} %.9g\n", label, s->shadow_kl);
    write_gauge(out, "overfill_cancel_last_seconds",
                "From cancelling the last cancelled request to the release of all it held.", label,
                s->cancel_last_s);
    write_gauge(out, "overfill_cancel_longest_seconds", "The same, the longest so far.", label,
                s->cancel_longest_s);
}

/* What only a two-model engine has to say. */
static void write_overfill(struct buf *out, const struct engine_info *info,
                           const struct engine_stats *s, const char *label)
{
    write_two(out, "overfill_stage_seconds_total", "counter", "Busy time of each stage.", label,
              "stage", "prefill", s->prefill_seconds, "decode", s->decode_seconds);
    write_two(out, "overfill_stage_steps_total", "counter", "Steps of each stage.", label, "stage",
              "prefill", (double)s->prefill_steps, "decode", (double)s->decode_steps);
    write_two(out, "overfill_stage_threads", "gauge", "Threads of each stage.", label, "stage",
              "prefill", info->prefill_threads, "decode", info->decode_threads);
    write_two(out, "overfill_stage_tick_age_seconds", "gauge",
              "Time since a stage with work last finished a step.", label, "stage", "prefill",
              s->prefill_tick_age_s, "decode", s->decode_tick_age_s);
    write_two(out, "overfill_model_bytes", "gauge", "Weights in memory.", label, "model", "full",
              (double)info->model_bytes, "pruned", (double)info->pruned_bytes);
    write_gauge(out, "overfill_kv_bytes", "KV pages in use, in bytes.", label,
                (double)s->kv_pages_used * (double)s->kv_page_bytes);
    write_gauge(out, "overfill_sequences_decoding", "Sequences in the decode batch.", label,
                s->sequences_decoding);

    write_dial(out, s, label);

    const char *name = "overfill_weight_bytes_read_total";
    write_head(out, name, "counter", "Weights read, by stage and model.");
    const struct {
        const char *stage, *model;
        uint64_t bytes;
    } rows[] = {{"prefill", "full", s->weight_bytes_prefill_full},
                {"prefill", "pruned", s->weight_bytes_prefill_pruned},
                {"decode", "full", s->weight_bytes_decode_full},
                {"decode", "pruned", s->weight_bytes_decode_pruned}};
    for (size_t i = 0; i < sizeof(rows) / sizeof(rows[0]); i++)
        buf_printf(out, "%s{%s,stage=\"%s\",model=\"%s\"} %llu\n", name, label, rows[i].stage,
                   rows[i].model, (unsigned long long)rows[i].bytes);
}

/* Counters of the server's own, there from the first second on. */
static void write_server(struct buf *out, const struct metrics_view *view, const char *label)
{
    const struct metrics *m = view->metrics;

    write_gauge(out, "overfill_decode_stall_seconds",
                "Largest gap between two tokens of a stream so far.", label, m->max_decode_gap_s);
    write_gauge(out, "overfill_jobs", "Generation requests the engine still holds.", label,
                view->jobs);
    write_gauge(out, "overfill_connections", "Open client connections.", label,
                (double)m->connections);
    write_counter(out, "overfill_connections_total", "Client connections accepted.", label,
                  m->connections_total);
    write_counter(out, "overfill_stream_bytes_total", "Bytes of event streams sent.", label,
                  m->bytes_streamed);
    write_head(out, "overfill_cancelled_total", "counter",
               "Requests whose client left, by the stage they were in.");
    for (int i = 0; i < N_STAGES; i++)
        buf_printf(out, "overfill_cancelled_total{%s,stage=\"%s\"} %llu\n", label,
                   stage_name((enum stage)i), (unsigned long long)m->cancelled[i]);
    write_head(out, "overfill_requests_rejected_total", "counter", "Requests turned away.");
    for (int i = REJECT_NONE + 1; i < N_REJECT_REASONS; i++)
        buf_printf(out, "overfill_requests_rejected_total{%s,reason=\"%s\"} %llu\n", label,
                   reject_reason_name((enum reject_reason)i), (unsigned long long)m->rejected[i]);
    write_head(out, "http_requests_total", "counter", "Replies by route and status class.");
    for (unsigned i = 0; i < view->n_routes; i++)
        for (unsigned c = 1; c < 6; c++)
            if (m->replies[i][c])
                buf_printf(out, "http_requests_total{%s,status=\"%uxx\"} %llu\n",
                           view->route_labels[i], c, (unsigned long long)m->replies[i][c]);
    write_head(out, "process_uptime_seconds", "gauge", "Time since the server was opened.");
    buf_printf(out, "process_uptime_seconds %.3f\n", view->uptime_s);
    write_head(out, "process_peak_resident_memory_bytes", "gauge", "Peak resident memory.");
    buf_printf(out, "process_peak_resident_memory_bytes %zu\n", system_peak_rss_bytes());
}

void metrics_write(struct buf *out, const struct metrics_view *view)
{
    _cleanup_buf_ struct buf label = {0};

    buf_append_str(&label, "model_name=\"");
    write_label_value(&label, view->info ? view->info->model_id : "");
    buf_append_str(&label, "\"");
    if (label.failed) {
        out->failed = true;
        return;
    }
    if (view->info && view->stats) {
        write_engine(out, view->info, view->stats, label.data);
        write_overfill(out, view->info, view->stats, label.data);
    }
    write_finished(out, view->metrics, label.data);
    write_latencies(out, view->metrics, label.data);
    write_server(out, view, label.data);
}
