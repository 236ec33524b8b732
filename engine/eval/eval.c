/* One run: engines, the task, the report. See eval.h. */
#include "engine/base/system.h"
#include "engine/eval/eval_internal.h"

#include <string.h>

#define DEFAULT_PROMPT_TOKENS 128
#define DEFAULT_SCORE_TOKENS 384
#define DEFAULT_ANSWER_TOKENS 128
/* Nobody waits for an answer here, so a chunk is as large as the buffers allow. */
#define CHUNK_MS 2000

static const char *const TASKS[] = {"nll", "lambada", "choices", "generate", "answers"};
static const char *const SYSTEMS[] = {"full", "pruned", "overfill"};

static int find(const char *const *names, int n, const char *name)
{
    for (int i = 0; i < n; i++)
        if (strcmp(names[i], name) == 0)
            return i;
    return -1;
}

const char *eval_task_name(enum eval_task task)
{
    return TASKS[task];
}

int eval_task_from_name(const char *name)
{
    return find(TASKS, sizeof(TASKS) / sizeof(TASKS[0]), name);
}

const char *eval_system_name(enum eval_system system)
{
    return SYSTEMS[system];
}

int eval_system_from_name(const char *name)
{
    return find(SYSTEMS, sizeof(SYSTEMS) / sizeof(SYSTEMS[0]), name);
}

static int check_options(const struct eval_options *o, struct error *err)
{
    bool is_pair = o->system != EVAL_FULL;
    if (is_pair && (!o->engine.pruned_path || !*o->engine.pruned_path))
        return error_set(err, ERROR_INVALID, "pruned: system %s needs a pruned model",
                         eval_system_name(o->system));
    if (is_pair && o->system == EVAL_OVERFILL && o->engine.decode == DECODE_FULL)
        return error_set(err, ERROR_INVALID,
                         "decode: full is the system full; system overfill needs another");
    if (o->decoder_first && (o->task == EVAL_GENERATE || o->task == EVAL_ANSWERS))
        return error_set(err, ERROR_INVALID, "decoder-first: not for task %s",
                         eval_task_name(o->task));
    return 0;
}

static bool needs_full(const struct eval_options *o)
{
    return o->system != EVAL_PRUNED || o->task == EVAL_NLL || o->task == EVAL_ANSWERS;
}

static int open_engines(struct eval *eval, struct error *err)
{
    const struct eval_options *o = eval->options;
    struct engine_options full = o->engine;
    int rc = 0;
    full.prefill_chunk_ms = CHUNK_MS;
    struct engine_options twin = full;
    if (o->system != EVAL_OVERFILL) {
        full.pruned_path = NULL;
        full.decode = DECODE_FULL;
    }
    twin.model_path = twin.pruned_path;
    twin.pruned_path = NULL;
    twin.decode = DECODE_FULL;

    if (needs_full(o))
        rc = engine_open(&full, &eval->full, err);
    if (rc == 0 && o->system == EVAL_PRUNED)
        rc = engine_open(&twin, &eval->system, err);
    if (o->system != EVAL_PRUNED)
        eval->system = eval->full;
    eval->decode = DECODE_DEFAULT; /* which is full where there is no pair */
    return rc;
}

static void note_decoder(struct eval *eval)
{
    struct engine_info info;
    engine_get_info(eval->system, &info);
    eval->report->decoder_bytes =
        eval->options->system == EVAL_OVERFILL ? info.pruned_step_bytes : info.model_step_bytes;
}

static int run_task(struct eval *eval, struct error *err)
{
    switch (eval->options->task) {
    case EVAL_NLL:
        return eval_nll(eval, err);
    case EVAL_LAMBADA:
        return eval_lambada(eval, err);
    case EVAL_CHOICES:
        return eval_choices(eval, err);
    case EVAL_GENERATE:
        return eval_generate(eval, err);
    case EVAL_ANSWERS:
        return eval_answers(eval, err);
    }
    return error_set(err, ERROR_INTERNAL, "task %d", (int)eval->options->task);
}

static int need_jsonl(const struct eval *eval, struct error *err)
{
    if (eval->rows.is_jsonl || eval->options->task == EVAL_NLL)
        return 0;
    return error_set(err, ERROR_INVALID, "data %s: task %s expects a .jsonl file", eval->rows.path,
                     eval_task_name(eval->options->task));
}

int eval_run(const struct eval_options *options, struct eval_report *ret_report, struct error *err)
{
    struct eval_report report = {0};
    struct eval eval = {.options = options, .report = &report, .what = "scoring"};
    uint32_t usual = options->task == EVAL_NLL ? DEFAULT_SCORE_TOKENS : DEFAULT_ANSWER_TOKENS;
    uint64_t begin_ns = system_now_ns();

    report.prompt_tokens = options->prompt_tokens ? options->prompt_tokens : DEFAULT_PROMPT_TOKENS;
    report.score_tokens = options->score_tokens ? options->score_tokens : usual;
    int rc = check_options(options, err);
    if (rc == 0)
        rc = eval_rows_read(options->data_path, &eval.rows, err);
    if (rc == 0)
        rc = need_jsonl(&eval, err);
    if (rc == 0)
        rc = open_engines(&eval, err);
    if (rc == 0) {
        note_decoder(&eval);
        rc = run_task(&eval, err);
    }
    if (rc == 0)
        rc = report_finish(&report, options->seed, err);
    if (eval.system != eval.full)
        engine_close(eval.system);
    engine_close(eval.full);
    eval_rows_free(&eval.rows);
    if (rc) {
        eval_report_free(&report);
        return rc;
    }
    report.seconds = (double)(system_now_ns() - begin_ns) / 1e9;
    *ret_report = report;
    return 0;
}
