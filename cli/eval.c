/* overfill eval: measures one system on one task. The work is engine/eval's; this is its call, and
 * the report as text or as one JSON object. */
#include "engine/eval/eval.h"

#include "cli/cli.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct call {
    struct settings settings;
    struct eval_options eval;
    const char *task, *system;
    bool json, rows;
    struct cli_progress progress;
};

static int check(struct call *call)
{
    int task = call->task ? eval_task_from_name(call->task) : -1;
    int system = eval_system_from_name(call->system);
    if (!*call->settings.model)
        return cli_fail("eval", CLI_WRONG_CALL, "--model: a model file is required");
    if (!call->eval.data_path)
        return cli_fail("eval", CLI_WRONG_CALL, "--data: a file is required");
    if (task < 0)
        return cli_fail("eval", CLI_WRONG_CALL,
                        "--task: \"%s\", expected nll, lambada, choices, generate or answers",
                        call->task ? call->task : "");
    if (system < 0)
        return cli_fail("eval", CLI_WRONG_CALL,
                        "--system: \"%s\", expected full, pruned or overfill", call->system);
    if (call->rows && !call->json)
        return cli_fail("eval", CLI_WRONG_CALL, "--rows: needs --json");
    call->eval.task = (enum eval_task)task;
    call->eval.system = (enum eval_system)system;
    return CLI_DONE;
}

static int parse(struct call *call, int argc, char **argv)
{
    struct eval_options *eval = &call->eval;
    const struct cli_option options[] = {
        {"task", CLI_STRING, &call->task, "NAME",
         "nll: documents, their likelihood and the divergence from the full model; lambada: the "
         "last word of passages; choices: questions with choices; generate: greedy answers against "
         "`completion`; answers: greedy answers to chat prompts as the full model sees them"},
        {"system", CLI_STRING, &call->system, "NAME",
         "full; pruned: the twin alone, which reads the prompt too; overfill: both [default full]"},
        {"data", CLI_STRING, &eval->data_path, "FILE", "JSONL; for nll also plain text"},
        {"prompt-tokens", CLI_UINT, &eval->prompt_tokens, "N",
         "nll: tokens read before the first that counts [default 128]", 1, 1e6},
        {"score-tokens", CLI_UINT, &eval->score_tokens, "N",
         "nll: tokens that count [default 384]; generate, answers: tokens of an answer at most "
         "[default 128]",
         1, 1e6},
        {"limit", CLI_UINT, &eval->limit, "N",
         "so many rows at most, always the same ones; 0: all [default 0]", 0, UINT32_MAX},
        {"full-rows", CLI_STRING, &eval->full_rows_path, "FILE",
         "nll: keep the full model's log-probabilities here, for the next system on the same data; "
         "4 bytes a token of the vocabulary for each token that counts"},
        {"rows-as-given", CLI_SWITCH, &eval->rows_as_given, NULL,
         "with a file of --full-rows: another model may have written it; KL and agreement are then "
         "to that one"},
        {"decoder-first", CLI_SWITCH, &eval->decoder_first, NULL,
         "the decoder scores the first token of a continuation too, which in serving is the full "
         "model's"},
        {"raw", CLI_SWITCH, &eval->raw_prompt, NULL, "generate, answers: no chat template"},
        {"seed", CLI_SEED, &eval->seed, "S", "of the bootstrap [default 0]"},
        {"json", CLI_SWITCH, &call->json, NULL, "print one JSON object"},
        {"rows", CLI_SWITCH, &call->rows, NULL, "with --json: every row's values too"},
    };
    const struct cli_command command = {
        .name = "eval",
        .synopsis = "overfill eval --model FILE [--pruned FILE] --system NAME --task NAME --data "
                    "FILE [options]",
        .summary = "Measures the full model, its twin, or both together, through the pools and "
                   "kernels of serving.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
        .settings = &call->settings,
        .scope = SETTING_ENGINE,
    };
    int status = cli_parse(&command, argc, argv);
    return status == CLI_DONE ? check(call) : status;
}

static void put_interval(const struct eval_metric *metric, struct buf *out)
{
    if (isfinite(metric->low) && isfinite(metric->high))
        buf_printf(out, "\"%s\":[%.9g,%.9g]", metric->name, metric->low, metric->high);
    else
        buf_printf(out, "\"%s\":null", metric->name);
}

static void put_rows(const struct eval_report *r, struct buf *out)
{
    buf_append_str(out, ",\"rows\":[");
    for (size_t i = 0; i < r->n_rows; i++) {
        buf_printf(out, "%s{\"line\":%zu,\"tokens\":%.0f", i ? "," : "", r->lines[i],
                   r->weights[i]);
        for (size_t m = 0; m < r->n_metrics; m++) {
            if (r->metrics[m].exp_of >= 0)
                continue;
            buf_append_str(out, ",");
            cli_json_number(out, r->metrics[m].name, r->values[i * EVAL_MAX_METRICS + m]);
        }
        buf_append_str(out, "}");
    }
    buf_append_str(out, "]");
}

static void put_buckets(const struct eval_report *r, struct buf *out)
{
    buf_append_str(out, ",\"positions\":[");
    for (size_t i = 0; i < r->n_buckets; i++) {
        const struct eval_bucket *b = &r->buckets[i];
        buf_printf(out, "%s{\"begin\":%u,\"end\":%u,", i ? "," : "", b->begin, b->end);
        cli_json_number(out, "nll", b->nll);
        buf_append_str(out, ",");
        cli_json_number(out, "kl", b->kl);
        buf_append_str(out, ",");
        cli_json_number(out, "agree", b->agree);
        buf_append_str(out, "}");
    }
    buf_append_str(out, "]");
}

static void put_metrics(const struct eval_report *r, struct buf *out)
{
    buf_append_str(out, "\"metric\":{");
    for (size_t m = 0; m < r->n_metrics; m++) {
        buf_append_str(out, m ? "," : "");
        cli_json_number(out, r->metrics[m].name, r->metrics[m].value);
    }
    buf_append_str(out, "},\"ci95\":{");
    for (size_t m = 0; m < r->n_metrics; m++) {
        buf_append_str(out, m ? "," : "");
        put_interval(&r->metrics[m], out);
    }
    buf_append_str(out, "}");
}

static void put_json(const struct call *call, const struct eval_report *r, struct buf *out)
{
    buf_printf(out, "{\"task\":\"%s\",\"system\":\"%s\",\"n\":%zu,", call->task, call->system,
               r->n_rows);
    put_metrics(r, out);
    if (call->eval.task == EVAL_NLL) {
        buf_printf(out,
                   ",\"prompt_tokens\":%u,\"score_tokens\":%u,\"too_short\":%zu,"
                   "\"of_same_article\":%zu",
                   r->prompt_tokens, r->score_tokens, r->n_too_short, r->n_of_same_article);
        put_buckets(r, out);
    }
    buf_printf(out,
               ",\"decoder_first\":%s,\"decoder_bytes\":%zu,\"n_tokens\":%llu,\"seconds\":%.3f",
               call->eval.decoder_first ? "true" : "false", r->decoder_bytes,
               (unsigned long long)r->n_tokens, r->seconds);
    if (call->rows)
        put_rows(r, out);
    buf_append_str(out, "}\n");
}

static void put_text(const struct call *call, const struct eval_report *r, struct buf *out)
{
    buf_printf(out, "%s, %s: %zu rows, %llu tokens in %.1f s\n", call->task, call->system,
               r->n_rows, (unsigned long long)r->n_tokens, r->seconds);
    for (size_t m = 0; m < r->n_metrics; m++)
        buf_printf(out, "%-12s %9.4f  (95 %%: %.4f to %.4f)\n", r->metrics[m].name,
                   r->metrics[m].value, r->metrics[m].low, r->metrics[m].high);
    for (size_t i = 0; i < r->n_buckets; i++)
        buf_printf(out, "tokens %4u to %4u: nll %.4f, kl %.4f, agree %.4f\n", r->buckets[i].begin,
                   r->buckets[i].end - 1, r->buckets[i].nll, r->buckets[i].kl, r->buckets[i].agree);
    if (r->n_too_short || r->n_of_same_article)
        buf_printf(out, "passed over: %zu rows too short, %zu of an article that was there\n",
                   r->n_too_short, r->n_of_same_article);
}

static int run(struct call *call, struct error *err)
{
    struct eval_report report;
    _cleanup_buf_ struct buf out = {0};
    struct eval_options *eval = &call->eval;

    cli_engine_options(&call->settings, &eval->engine);
    eval->progress = eval->engine.progress = cli_progress_call;
    eval->progress_user = eval->engine.progress_user = &call->progress;
    int rc = eval_run(eval, &report, err);
    cli_progress_done(&call->progress);
    if (rc)
        return rc;
    if (call->json)
        put_json(call, &report, &out);
    else
        put_text(call, &report, &out);
    eval_report_free(&report);
    return cli_print(&out, err);
}

int cli_eval(int argc, char **argv)
{
    struct call call = {.system = "full"};
    struct error err;

    if (settings_init(&call.settings, &err) < 0) {
        settings_free(&call.settings);
        return cli_fail_with("eval", &err);
    }
    int code = parse(&call, argc, argv);
    if (code == CLI_HELP_SHOWN)
        code = CLI_DONE;
    else if (code == CLI_DONE && run(&call, &err) < 0)
        code = cli_fail_with("eval", &err);
    settings_free(&call.settings);
    return code;
}
