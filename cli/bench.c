/* overfill bench: what this machine can do at most, and how much of it the engine gets. The peaks
 * come from engine/bench; the speeds from requests through the engine's own door, as a server would
 * send them: random prompts, greedy answers, warm, the median of several runs. */
#include "cli/cli.h"
#include "cli/speed.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/bench/peaks.h"
#include "engine/engine.h"
#include "engine/model/model_file.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define PREFILL_TOKENS SPEED_MOST_PROMPT

/* Activations have 12 bits: a product with them is two of int8, or one of int16. A twin's may have
 * 8. */
#define DIGITS 2

/* Answers of one request, decoded at once. */
static const uint32_t BATCHES[] = {1, 4, 16, 64};
enum { N_BATCHES = sizeof(BATCHES) / sizeof(BATCHES[0]) };

struct call {
    struct settings settings;
    struct speed speed;
    bool json;
    struct cli_progress progress;
    struct peaks peaks;
};

/* What a token costs a model. */
struct work {
    double layers4, layers8;  /* weights of the layers in 4 bits, in 8 */
    double head4, head8;      /* weights of the head */
    double attention_flops;   /* for each token attended to */
    double kv_bytes;          /* for each token attended to */
    double bytes, head_bytes; /* read by a pass, of which the head */
};

struct limit {
    double tok_s;
    const char *binds; /* "int8", "bf16", "fp32", "ram" or "l3" */
};

struct result {
    const char *model; /* "full", "pruned" */
    uint32_t batch;
    double tok_s;
    struct limit limit;
};

static int parse(struct call *call, int argc, char **argv)
{
    const struct cli_option options[] = {
        {"runs", CLI_UINT, &call->speed.n_runs, "N",
         "measure so often, tell the median [default 5]", 1, SPEED_MOST_RUNS},
        {"json", CLI_SWITCH, &call->json, NULL, "print one JSON object when done"},
    };
    const struct cli_command command = {
        .name = "bench",
        .synopsis = "overfill bench --model FILE [--pruned FILE] [options]",
        .summary =
            "Measures this machine's peaks, then prefill of 512 tokens and decode of 1, 4, 16 "
            "and 64\nsequences, as tokens a second and as a share of the limit that binds.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
        .settings = &call->settings,
        .scope = SETTING_ENGINE,
    };
    int status = cli_parse(&command, argc, argv);
    if (status != CLI_DONE)
        return status;
    if (!*call->settings.model)
        return cli_fail("bench", CLI_WRONG_CALL, "--model: a model file is required");
    return CLI_DONE;
}

static bool is_4_bit(const struct tensor *t)
{
    return t->type == TENSOR_Q4_0 || t->type == TENSOR_Q4_1 || t->type == TENSOR_Q4_K;
}

/* Matrices of the layers and the head. */
static void add_weights(const struct model_file *file, bool keep_4_bit, struct work *work)
{
    const char *head = model_file_params(file)->tied ? "token_embd.weight" : "output.weight";
    for (size_t i = 0; i < model_file_n_tensors(file); i++) {
        const struct tensor *t = model_file_tensor_at(file, i);
        double n = (double)t->dims[0] * (double)t->dims[1];
        if (t->n_dims != 2)
            continue;
        if (strncmp(t->name, "blk.", 4) == 0)
            *(keep_4_bit && is_4_bit(t) ? &work->layers4 : &work->layers8) += n;
        else if (strcmp(t->name, head) == 0)
            *(keep_4_bit && is_4_bit(t) ? &work->head4 : &work->head8) += n;
    }
}

static int read_work(const struct call *call, const char *path, size_t step_bytes, size_t kv_bytes,
                     struct work *ret_work, struct error *err)
{
    struct model_file *file;
    struct work work = {.kv_bytes = (double)kv_bytes, .bytes = (double)step_bytes};
    int rc = model_file_open(path, &file, err);
    if (rc)
        return rc;
    const struct model_params *p = model_file_params(file);
    work.attention_flops = 4.0 * p->n_layers * p->n_heads * p->head_dim;
    add_weights(file, strcmp(call->settings.weights, "auto") == 0, &work);
    double head = work.head4 + work.head8;
    double all = head + work.layers4 + work.layers8;
    work.head_bytes = all > 0 ? work.bytes * head / all : 0;
    model_file_close(file);
    *ret_work = work;
    return 0;
}

static double larger(double a, double b)
{
    return a > b ? a : b;
}

/* What products are computed in; the names are those of the peaks. */
static const char IN_F32[] = "fp32", IN_BF16[] = "bf16", IN_INTEGERS[] = "int8";

/* A pass. */
struct pass {
    const char *in;             /* its products */
    unsigned digits;            /* of an activation: products of bytes that make one */
    const struct peak *attends; /* what its attention is computed with */
    double n_tokens, n_logits;  /* of which n_logits need the head */
    double n_attended;          /* tokens that the n_tokens attend to, in all */
    double kv_tokens_read;
};

/* Seconds of the products with weights4 and weights8 for one token. */
static double product_seconds(const struct peaks *p, const struct pass *pass, double weights4,
                              double weights8)
{
    const char *in = pass->in;
    if (in != IN_INTEGERS)
        return 2 * (weights4 + weights8) / ((in == IN_F32 ? p->fp32.gops : p->bf16.gops) * 1e9);
    double gops4 = larger(p->int4.gops / pass->digits, p->int16.gops);
    double gops8 = larger(p->int8.gops / pass->digits, p->int16.gops);
    return 2 * weights4 / (gops4 * 1e9) + 2 * weights8 / (gops8 * 1e9);
}

static const char *products_in(const struct call *call, bool in_bf16)
{
    if (strcmp(call->settings.weights, "f32") == 0)
        return IN_F32;
    return in_bf16 ? IN_BF16 : IN_INTEGERS;
}

static struct limit limit_of(const struct call *call, const struct work *w, const struct pass *pass)
{
    const struct peaks *p = &call->peaks;
    double products = pass->n_tokens * product_seconds(p, pass, w->layers4, w->layers8) +
                      pass->n_logits * product_seconds(p, pass, w->head4, w->head8);
    double compute = products + pass->n_attended * w->attention_flops / (pass->attends->gops * 1e9);
    double bytes =
        w->bytes - (pass->n_logits > 0 ? 0 : w->head_bytes) + pass->kv_tokens_read * w->kv_bytes;
    bool in_l3 = p->l3_gbs > 0 && bytes <= (double)p->l3_bytes;
    double reading = bytes / ((in_l3 ? p->l3_gbs : p->ram_gbs) * 1e9);
    return (struct limit){
        .tok_s = pass->n_tokens / larger(compute, reading),
        .binds = compute > reading ? pass->in
                 : in_l3           ? "l3"
                                   : "ram",
    };
}

static int open_engine(struct call *call, struct engine **ret_engine, struct error *err)
{
    struct engine_options options;
    cli_engine_options(&call->settings, &options);
    options.progress = cli_progress_call;
    options.progress_user = &call->progress;
    return engine_open(&options, ret_engine, err);
}

static int measure_prefill(struct call *call, struct engine *engine, const struct work *work,
                           const struct engine_info *info, struct result *ret_result,
                           struct error *err)
{
    double n = PREFILL_TOKENS;
    const struct pass pass = {
        .in = products_in(call, info->prompts_in_bf16),
        .digits = info->is_coarse ? 1 : DIGITS,
        .attends = info->prompts_attend_in_bf16 ? &call->peaks.bf16 : &call->peaks.fp32,
        .n_tokens = n,
        .n_logits = 1,
        .n_attended = n * (n + 1) / 2,
        .kv_tokens_read = n,
    };
    *ret_result = (struct result){.model = "full", .limit = limit_of(call, work, &pass)};
    return speed_prefill(&call->speed, engine, PREFILL_TOKENS, &ret_result->tok_s, err);
}

static int measure_decode(struct call *call, struct engine *engine, const struct work *work,
                          const struct engine_info *info, enum decode_mode mode,
                          struct result *ret_results, struct error *err)
{
    for (size_t i = 0; i < N_BATCHES; i++) {
        double batch = BATCHES[i];
        double context = SPEED_DECODE_PROMPT + speed_answer_tokens(BATCHES[i]) / 2.0;
        const struct pass pass = {
            .in = products_in(call, false),
            .digits = (mode == DECODE_FULL ? info->is_coarse : info->pruned_is_coarse) ? 1 : DIGITS,
            .attends = &call->peaks.fp32,
            .n_tokens = batch,
            .n_logits = batch,
            .n_attended = batch * context,
            .kv_tokens_read = batch * context,
        };
        cli_progress_show(&call->progress,
                          mode == DECODE_FULL ? "decode, full model" : "decode, pruned model",
                          (double)i / N_BATCHES);
        ret_results[i] = (struct result){
            .model = decode_mode_name(mode),
            .batch = BATCHES[i],
            .limit = limit_of(call, work, &pass),
        };
        int rc = speed_decode(&call->speed, engine, BATCHES[i], mode, &ret_results[i].tok_s, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* What is printed. */
struct report {
    struct result prefill;
    struct result decode[2 * N_BATCHES];
    size_t n_decode;
    struct engine_info info;
};

static int measure_all(struct call *call, struct engine *engine, struct report *report,
                       struct error *err)
{
    struct work full;
    struct work pruned;
    struct engine_info *info = &report->info;
    engine_get_info(engine, info);
    int rc = read_work(call, info->model_path, info->model_step_bytes, info->kv_bytes_per_token,
                       &full, err);
    if (rc == 0 && info->pruned_path)
        rc = read_work(call, info->pruned_path, info->pruned_step_bytes, info->kv_bytes_per_token,
                       &pruned, err);
    if (rc)
        return rc;
    cli_progress_show(&call->progress, "prefill", 0);
    rc = measure_prefill(call, engine, &full, info, &report->prefill, err);
    if (rc == 0)
        rc = measure_decode(call, engine, &full, &report->info, DECODE_FULL, report->decode, err);
    report->n_decode = N_BATCHES;
    if (rc == 0 && info->pruned_path) {
        rc = measure_decode(call, engine, &pruned, &report->info, DECODE_PRUNED,
                            report->decode + N_BATCHES, err);
        report->n_decode += N_BATCHES;
    }
    return rc;
}

static double share(const struct result *r)
{
    return r->limit.tok_s > 0 ? r->tok_s / r->limit.tok_s : 0;
}

static void put_peak(struct buf *out, const char *name, const char *unit, const struct peak *peak)
{
    buf_printf(out, "\"%s_%s\":%.1f,\"%s_with\":", name, unit, peak->gops, name);
    cli_json_string(out, peak->with ? peak->with : "", peak->with ? strlen(peak->with) : 0);
    buf_append_str(out, ",");
}

static void put_machine_json(struct buf *out, const struct call *call, const char *kernels)
{
    const struct peaks *p = &call->peaks;
    buf_printf(out, "{\"machine\":{\"threads\":%u,\"kernels\":\"%s\",", p->n_threads, kernels);
    put_peak(out, "int8", "gops", &p->int8);
    put_peak(out, "int4", "gops", &p->int4);
    put_peak(out, "int16", "gops", &p->int16);
    put_peak(out, "fp32", "gflops", &p->fp32);
    put_peak(out, "bf16", "gflops", &p->bf16);
    buf_printf(out, "\"ram_gbs\":%.2f,\"l3_gbs\":%.2f,\"l3_bytes\":%zu}", p->ram_gbs, p->l3_gbs,
               p->l3_bytes);
}

static void put_result_json(struct buf *out, const struct result *r)
{
    buf_printf(out, "\"tok_s\":%.2f,\"share\":%.4f,\"limit_tok_s\":%.1f,\"binds\":\"%s\"", r->tok_s,
               share(r), r->limit.tok_s, r->limit.binds);
}

static void put_json(struct buf *out, const struct call *call, const struct report *report)
{
    put_machine_json(out, call, report->info.kernels);
    buf_printf(out, ",\"prefill\":{\"tokens\":%d,", PREFILL_TOKENS);
    put_result_json(out, &report->prefill);
    buf_append_str(out, "},\"decode\":[");
    for (size_t i = 0; i < report->n_decode; i++) {
        const struct result *r = &report->decode[i];
        buf_printf(out, "%s{\"model\":\"%s\",\"batch\":%u,", i ? "," : "", r->model, r->batch);
        put_result_json(out, r);
        buf_append_str(out, "}");
    }
    buf_append_str(out, "]}\n");
}

static void put_peak_text(struct buf *out, const char *name, const char *unit,
                          const struct peak *peak)
{
    if (peak->gops > 0)
        buf_printf(out, "  %-6s %8.0f %s  %s\n", name, peak->gops, unit, peak->with);
}

static void put_result_text(struct buf *out, const char *stage, const struct result *r)
{
    buf_printf(out, "  %-28s %9.1f tokens/s  %5.1f %% of %.0f, which %s allows\n", stage, r->tok_s,
               100 * share(r), r->limit.tok_s, r->limit.binds);
}

static void put_text(struct buf *out, const struct call *call, const struct report *report)
{
    const struct peaks *p = &call->peaks;
    buf_printf(out, "machine: %u threads, kernels %s\n", p->n_threads, report->info.kernels);
    put_peak_text(out, "int8", "GOP/s  ", &p->int8);
    put_peak_text(out, "int4", "GOP/s  ", &p->int4);
    put_peak_text(out, "int16", "GOP/s  ", &p->int16);
    put_peak_text(out, "fp32", "GFLOP/s", &p->fp32);
    put_peak_text(out, "bf16", "GFLOP/s", &p->bf16);
    if (p->l3_gbs > 0)
        buf_printf(out, "  %-6s %8.1f GB/s     %.0f MiB\n", "L3", p->l3_gbs,
                   (double)p->l3_bytes / (1 << 20));
    buf_printf(out, "  %-6s %8.1f GB/s\n", "RAM", p->ram_gbs);
    buf_printf(out, "engine: activations of %s%s%s\n",
               report->info.is_coarse ? "8 bits"
                                      : "12 bits, a product with them counts as two of int8",
               report->info.pruned_is_coarse && !report->info.is_coarse ? "; the twin's of 8" : "",
               report->info.prompts_in_bf16 ? "; prompts in bf16" : "");
    put_result_text(out, "prefill 512, full", &report->prefill);
    for (size_t i = 0; i < report->n_decode; i++) {
        char stage[48];
        snprintf(stage, sizeof(stage), "decode %u, %s", report->decode[i].batch,
                 report->decode[i].model);
        put_result_text(out, stage, &report->decode[i]);
    }
}

static int run(struct call *call, struct error *err)
{
    struct engine *engine = NULL;
    struct report report = {0};
    _cleanup_buf_ struct buf out = {0};
    cli_progress_show(&call->progress, "peaks", 0);
    int rc = peaks_measure(system_cpu_count(), &call->peaks, err);
    if (rc == 0)
        rc = open_engine(call, &engine, err);
    if (rc == 0)
        rc = measure_all(call, engine, &report, err);
    cli_progress_done(&call->progress);
    if (rc == 0 && call->json)
        put_json(&out, call, &report);
    else if (rc == 0)
        put_text(&out, call, &report);
    if (rc == 0)
        rc = cli_print(&out, err);
    engine_close(engine);
    return rc;
}

int cli_bench(int argc, char **argv)
{
    struct call call = {.speed = {.n_runs = 5, .random = 1}};
    struct error err;

    if (settings_init(&call.settings, &err) < 0) {
        settings_free(&call.settings);
        return cli_fail_with("bench", &err);
    }
    int code = parse(&call, argc, argv);
    if (code == CLI_HELP_SHOWN)
        code = CLI_DONE;
    else if (code == CLI_DONE && run(&call, &err) < 0)
        code = cli_fail_with("bench", &err);
    settings_free(&call.settings);
    return code;
}
