/* overfill frontier: twins of many sizes and types for some budgets of bytes a token, and which of
 * them is best. In three stages: twins and their quality, decode speeds, the report; what is done
 * is in the folder's frontier.jsonl and not done again. The calibration is tokenised once, and the
 * full model reads the documents once, for all twins. It reads the calibration anew for each twin:
 * beside solving for the twin's matrices that is a small part, and sharing it would mean as many
 * twins in memory at once. */
#include "cli/frontier.h"

#include "cli/cli.h"
#include "cli/speed.h"
#include "engine/base/hash.h"
#include "engine/base/system.h"
#include "engine/eval/eval.h"
#include "engine/model/mapped_file.h"
#include "engine/prune/prune.h"

#include <errno.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#define DEFAULT_LIMIT 24
#define DEFAULT_PROMPT_TOKENS 128
#define DEFAULT_SCORE_TOKENS 384
#define MOST_OUT_BYTES 3800 /* of the folder's path: its files' names come behind */

enum stage { STAGE_ALL, STAGE_TWINS, STAGE_SPEED, STAGE_REPORT };
static const char *const STAGES[] = {"all", "twins", "speed", "report"};
enum { N_STAGES = sizeof(STAGES) / sizeof(STAGES[0]) };

struct call {
    struct settings settings;
    struct cli_strings calibration, point_names;
    struct cli_numbers megabytes;
    const char *eval_path, *out, *stage_name;
    uint32_t n_tokens, limit, prompt_tokens, score_tokens;
    struct speed speed;
    bool json;
    enum stage stage;
    double budgets[FRONTIER_MOST_BUDGETS]; /* bytes */

    struct model_file *model;
    struct prune_calibration *samples;
    struct frontier_grid grid;
    struct frontier_key key;
    struct frontier_log *log;

    struct cli_progress progress;
    double share_begin, share_width; /* of the stage, what is at hand */
};

_Static_assert(FRONTIER_MOST_BUDGETS == CLI_STRINGS_MAX, "as many budgets as an option takes");

static int wrong(const char *message)
{
    return cli_fail("frontier", CLI_WRONG_CALL, "%s", message);
}

static int check_stage(struct call *call)
{
    for (int i = 0; i < N_STAGES; i++) {
        if (strcmp(call->stage_name, STAGES[i]) == 0) {
            call->stage = (enum stage)i;
            return CLI_DONE;
        }
    }
    return cli_fail("frontier", CLI_WRONG_CALL,
                    "--stage: \"%s\", expected all, twins, speed or report", call->stage_name);
}

static int check(struct call *call)
{
    const struct settings *s = &call->settings;
    if (!*s->model)
        return wrong("--model: a model file is required");
    if (!call->calibration.n)
        return wrong("--calibration: a file is required");
    if (!call->megabytes.n)
        return wrong("--budget: the megabytes a token may read are required");
    if (*s->pruned)
        return wrong("--pruned: not here, the twins are made");
    if (strcmp(s->decode, "auto") != 0 && strcmp(s->decode, "pruned") != 0)
        return wrong("--decode: not here, the twins decode");
    if (strcmp(s->weights, "auto") != 0)
        return wrong("--weights: not here, other kinds than auto make all types alike");
    if (!call->eval_path && (call->limit || call->prompt_tokens || call->score_tokens))
        return wrong("--limit, --prompt-tokens, --score-tokens: need --eval");
    if (strlen(call->out) > MOST_OUT_BYTES)
        return cli_fail("frontier", CLI_WRONG_CALL, "--out: a path of at most %d bytes expected",
                        MOST_OUT_BYTES);
    if (call->eval_path) {
        call->limit = call->limit ? call->limit : DEFAULT_LIMIT;
        call->prompt_tokens = call->prompt_tokens ? call->prompt_tokens : DEFAULT_PROMPT_TOKENS;
        call->score_tokens = call->score_tokens ? call->score_tokens : DEFAULT_SCORE_TOKENS;
    }
    for (size_t i = 0; i < call->megabytes.n; i++)
        call->budgets[i] = call->megabytes.items[i] * 1e6;
    return check_stage(call);
}

static int parse(struct call *call, int argc, char **argv)
{
    const struct cli_option options[] = {
        {"calibration", CLI_STRINGS, &call->calibration, "FILE",
         "text, or JSONL rows with `messages`, `prompt` (and `completion`) or `text`; may be "
         "gzipped; given several times, the files share the tokens"},
        {"budget", CLI_NUMBERS, &call->megabytes, "MB...",
         "megabytes of weights that a decoded token may read: one or several", 0.001, 1e6},
        {"tokens", CLI_UINT, &call->n_tokens, "N", "calibration tokens at most [default 65536]", 1,
         1e9},
        {"point", CLI_STRINGS, &call->point_names, "POINT",
         "make this twin, HIDDENxMLP:TYPE or HIDDENxMLP:TYPE/HEADTYPE as 320x832:q4_0/q8_0; may be "
         "given several times [default: for each budget the largest twin within it that is "
         "narrower at 8 bits, narrower at 4 bits, with fewer MLP channels at 4 bits, or only "
         "rounded]"},
        {"eval", CLI_STRING, &call->eval_path, "FILE",
         "measure quality on these documents, JSONL or text, as `overfill eval --task nll` does "
         "[default: on the calibration that the pruner holds back]"},
        {"limit", CLI_UINT, &call->limit, "N", "of --eval: documents at most [default 24]", 1,
         UINT32_MAX},
        {"prompt-tokens", CLI_UINT, &call->prompt_tokens, "N",
         "of --eval: tokens the full model reads before the first that counts [default 128]", 1,
         1e6},
        {"score-tokens", CLI_UINT, &call->score_tokens, "N",
         "of --eval: tokens that count [default 384]", 1, 1e6},
        {"out", CLI_STRING, &call->out, "DIR",
         "where the twins, frontier.jsonl and frontier.svg go; twins stay there until you remove "
         "them [default frontier]"},
        {"stage", CLI_STRING, &call->stage_name, "NAME",
         "twins: make them and measure their quality; speed: measure decode speeds, all anew, best "
         "on a machine that does nothing else; report: only say what is known; all: what is "
         "missing of each [default all]"},
        {"runs", CLI_UINT, &call->speed.n_runs, "N",
         "measure speeds so often, tell the median [default 3]", 1, SPEED_MOST_RUNS},
        {"json", CLI_SWITCH, &call->json, NULL, "print one JSON object when done"},
    };
    const struct cli_command command = {
        .name = "frontier",
        .synopsis = "overfill frontier --model F --calibration C --budget MB... [options]",
        .summary =
            "Makes twins of several widths and types and says which is nearest to the full model "
            "for the\nbytes that a token reads. A run that was ended goes on where it was. The "
            "calibration is tokenised\nonce and the full model reads the documents of --eval once; "
            "its pass over the calibration is made\nfor each twin, a tenth to a quarter of the "
            "time that "
            "one takes.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
        .settings = &call->settings,
        .scope = SETTING_ENGINE,
    };
    int status = cli_parse(&command, argc, argv);
    return status == CLI_DONE ? check(call) : status;
}

/* The stage's progress: `share` of what is at hand. */
static void show_share(struct call *call, const char *stage, double share)
{
    cli_progress_show(&call->progress, stage, call->share_begin + share * call->share_width);
}

static void show_pruning(void *user, const char *what, double share)
{
    const struct call *call = user;
    show_share(user, "twins", call->eval_path ? 0.7 * share : share);
}

static void show_scoring(void *user, const char *what, double share)
{
    if (strcmp(what, "scoring") == 0)
        show_share(user, "twins", 0.7 + 0.3 * share);
}

static void path_of(const struct call *call, const char *name, const char *ending,
                    char ret_path[4096])
{
    snprintf(ret_path, 4096, "%.*s/%s%s", MOST_OUT_BYTES, call->out, name, ending);
}

static void twin_path(const struct call *call, const struct frontier_point *point,
                      char ret_path[4096])
{
    char name[FRONTIER_NAME_BYTES];
    frontier_point_file(point, name);
    path_of(call, name, ".gguf", ret_path);
}

/* The full model's log-probabilities of the documents, until all twins are measured. */
static void rows_path(const struct call *call, char ret_path[4096])
{
    char name[64];
    snprintf(name, sizeof(name), "full-%016" PRIx64 "-%016" PRIx64, call->key.source,
             call->key.evaluation);
    path_of(call, name, ".rows", ret_path);
}

static int hash_file(const char *path, uint64_t *hash, struct error *err)
{
    struct mapped_file file;
    int rc = mapped_file_open(path, &file, err);
    if (rc)
        return error_prefix(err, "eval %s", path);
    *hash = hash_bytes(*hash, file.data, file.bytes);
    mapped_file_close(&file);
    return 0;
}

static int find_key(struct call *call, struct error *err)
{
    char how[64];
    int n = snprintf(how, sizeof(how), "%u %u %u", call->limit, call->prompt_tokens,
                     call->score_tokens);
    call->key = (struct frontier_key){
        .pruner = PRUNER_VERSION,
        .source = model_file_hash(call->model),
        .calibration = prune_calibration_hash(call->samples),
        .n_tokens = prune_calibration_tokens(call->samples),
        .evaluation = hash_bytes(HASH_START, how, (size_t)n),
    };
    return call->eval_path ? hash_file(call->eval_path, &call->key.evaluation, err) : 0;
}

/* What to make: the points that were named, else the grid. */
static int choose_points(struct call *call, struct error *err)
{
    const struct model_params *full = model_file_params(call->model);
    struct frontier_grid *grid = &call->grid;
    if (!call->point_names.n)
        return frontier_grid_choose(full, call->budgets, call->megabytes.n, grid, err);
    for (size_t i = 0; i < call->point_names.n; i++) {
        const char *name = call->point_names.items[i];
        if (!frontier_point_parse(name, &grid->points[i]))
            return error_set(err, ERROR_INVALID,
                             "point: \"%s\", expected HIDDENxMLP:TYPE or HIDDENxMLP:TYPE/HEADTYPE "
                             "with types out of %s",
                             name, TENSOR_WRITABLE_TYPES);
        int rc = frontier_point_check(&grid->points[i], full, err);
        if (rc)
            return error_prefix(err, "point");
    }
    grid->n = call->point_names.n;
    return 0;
}

static int open_all(struct call *call, struct error *err)
{
    char path[4096];
    const struct prune_options prune = {
        .method = PRUNE_RECONSTRUCT,
        .model_path = call->settings.model,
        .calibration = call->calibration.items,
        .n_calibration = call->calibration.n,
        .chat_template = *call->settings.chat_template ? call->settings.chat_template : NULL,
        .n_tokens = call->n_tokens,
    };
    int rc = model_file_open(call->settings.model, &call->model, err);
    if (rc == 0 && !model_file_gguf(call->model))
        rc = error_set(err, ERROR_INVALID,
                       "model %s: a GGUF file expected; `overfill prune --model FOLDER --out FILE` "
                       "makes one of a folder",
                       call->settings.model);
    if (rc == 0)
        rc = choose_points(call, err);
    if (rc == 0)
        rc = prune_calibration_read(&prune, &call->samples, err);
    if (rc == 0)
        rc = find_key(call, err);
    if (rc == 0 && mkdir(call->out, 0777) != 0 && errno != EEXIST)
        rc = error_set(err, ERROR_IO, "out %s: %s", call->out, strerror(errno));
    path_of(call, "frontier", ".jsonl", path);
    return rc ? rc : frontier_log_open(path, &call->key, &call->log, err);
}

/* Makes the twin unless it is there, and notes what the pruner says of it. */
static int make_twin(struct call *call, const struct frontier_point *point, const char *path,
                     struct error *err)
{
    const struct frontier_row *row = frontier_log_find(call->log, point);
    struct prune_report report;
    const struct prune_options prune = {
        .method = PRUNE_RECONSTRUCT,
        .model_path = call->settings.model,
        .out_path = path,
        .samples = call->samples,
        .hidden = point->hidden,
        .mlp = point->mlp,
        .type = (int)point->type,
        .head_type = (int)point->head_type,
        .progress = show_pruning,
        .user = call,
    };
    if (row && row->has_held && prune_is_twin_of(path, call->key.source, call->key.calibration))
        return 0;
    int rc = prune_run(&prune, &report, err);
    if (rc)
        return rc;
    const struct frontier_quality held = {
        .kl = report.held.n_tokens ? report.held.kl : NAN,
        .kl_low = NAN,
        .kl_high = NAN,
        .agree = report.held.agree,
        .nll = report.held.nll,
        .full_nll = report.held.nll_full,
        .n_tokens = report.held.n_tokens,
    };
    prune_report_free(&report);
    return frontier_log_put_held(call->log, point, &held, err);
}

/* Room for the full model's rows, which a mapped file that cannot grow would not say. */
static int check_rows_room(const struct call *call, const char *path, struct error *err)
{
    size_t free_bytes;
    struct stat st;
    double needed =
        4.0 * call->limit * call->score_tokens * model_file_params(call->model)->vocab_size;
    if (stat(path, &st) == 0 || !system_disk_free(path, &free_bytes) ||
        needed <= (double)free_bytes)
        return 0;
    return error_set(err, ERROR_IO,
                     "%s: the full model's log-probabilities of the documents need up to %.0f MB "
                     "of disk, %.0f MB are free; a smaller --limit or --score-tokens needs less",
                     path, needed / 1e6, (double)free_bytes / 1e6);
}

static const struct eval_metric *metric_of(const struct eval_report *report, const char *name)
{
    size_t i = 0;
    while (i + 1 < report->n_metrics && strcmp(report->metrics[i].name, name) != 0)
        i++;
    return &report->metrics[i];
}

static int measure_quality(struct call *call, const struct frontier_point *point, const char *path,
                           struct error *err)
{
    char rows[4096];
    struct eval_report report;
    const struct frontier_row *row = frontier_log_find(call->log, point);
    if (!call->eval_path || (row && row->has_eval))
        return 0;
    rows_path(call, rows);
    struct eval_options eval = {
        .system = EVAL_OVERFILL,
        .task = EVAL_NLL,
        .data_path = call->eval_path,
        .prompt_tokens = call->prompt_tokens,
        .score_tokens = call->score_tokens,
        .limit = call->limit,
        .full_rows_path = rows,
        .progress = show_scoring,
        .progress_user = call,
    };
    cli_engine_options(&call->settings, &eval.engine);
    eval.engine.pruned_path = path;
    int rc = check_rows_room(call, rows, err);
    if (rc == 0)
        rc = eval_run(&eval, &report, err);
    if (rc)
        return rc;
    const struct eval_metric *kl = metric_of(&report, "kl");
    const struct frontier_quality quality = {
        .kl = kl->value,
        .kl_low = kl->low,
        .kl_high = kl->high,
        .agree = metric_of(&report, "agree")->value,
        .nll = metric_of(&report, "nll")->value,
        .full_nll = report.full_nll,
        .n_tokens = report.n_rows * report.score_tokens,
    };
    eval_report_free(&report);
    return frontier_log_put_eval(call->log, point, &quality, err);
}

static bool is_measured(const struct call *call, const struct frontier_point *point)
{
    const struct frontier_row *row = frontier_log_find(call->log, point);
    return row && row->has_held && (!call->eval_path || row->has_eval);
}

static void say_point(struct call *call, const struct frontier_point *point)
{
    char name[FRONTIER_NAME_BYTES];
    const struct frontier_row *row = frontier_log_find(call->log, point);
    const struct frontier_quality *q = call->eval_path ? &row->eval : &row->held;
    struct model_cost cost = frontier_point_cost(point, model_file_params(call->model));
    frontier_point_name(point, name);
    cli_progress_say(&call->progress, "%s: %.2f MB a token, KL %.3f, %.1f %% agree", name,
                     (double)cost.bytes / 1e6, q->kl, 100 * q->agree);
}

static int make_point(struct call *call, const struct frontier_point *point, struct error *err)
{
    char path[4096];
    char name[FRONTIER_NAME_BYTES];
    twin_path(call, point, path);
    int rc = make_twin(call, point, path, err);
    if (rc == 0)
        rc = measure_quality(call, point, path, err);
    if (rc == 0)
        say_point(call, point);
    frontier_point_name(point, name);
    return rc ? error_prefix(err, "%s", name) : 0;
}

static int make_twins(struct call *call, struct error *err)
{
    char rows[4096];
    size_t n_todo = 0;
    int rc = 0;
    for (size_t i = 0; i < call->grid.n; i++)
        n_todo += !is_measured(call, &call->grid.points[i]);
    call->share_begin = 0;
    call->share_width = n_todo ? 1.0 / (double)n_todo : 1;
    for (size_t i = 0; i < call->grid.n && rc == 0; i++) {
        if (is_measured(call, &call->grid.points[i]))
            continue;
        rc = make_point(call, &call->grid.points[i], err);
        call->share_begin += call->share_width;
    }
    rows_path(call, rows);
    if (rc == 0)
        unlink(rows);
    return rc;
}

static int measure_decode(struct call *call, struct engine *engine, enum decode_mode mode,
                          struct frontier_speed *ret_speed, struct error *err)
{
    struct engine_info info;
    engine_get_info(engine, &info);
    struct frontier_speed speed = {
        .step_bytes = mode == DECODE_FULL ? info.model_step_bytes : info.pruned_step_bytes,
        .n_threads = info.prefill_threads + info.decode_threads,
    };
    snprintf(speed.kernels, sizeof(speed.kernels), "%s", info.kernels);
    int rc = speed_decode(&call->speed, engine, 1, mode, &speed.tok_s_1, err);
    if (rc == 0)
        rc = speed_decode(&call->speed, engine, 16, mode, &speed.tok_s_16, err);
    if (rc == 0)
        *ret_speed = speed;
    return rc;
}

/* The twin's decode speed, and the full model's where `with_full`. */
static int measure_point_speed(struct call *call, const struct frontier_point *point,
                               const char *path, bool with_full, struct error *err)
{
    struct engine *engine;
    struct engine_options options;
    struct frontier_speed speed;
    cli_engine_options(&call->settings, &options);
    options.pruned_path = path;
    options.no_background = true;
    int rc = engine_open(&options, &engine, err);
    if (rc)
        return rc;
    if (with_full) {
        rc = measure_decode(call, engine, DECODE_FULL, &speed, err);
        if (rc == 0)
            rc = frontier_log_put_speed(call->log, NULL, &speed, err);
    }
    if (rc == 0)
        rc = measure_decode(call, engine, DECODE_PRUNED, &speed, err);
    if (rc == 0)
        rc = frontier_log_put_speed(call->log, point, &speed, err);
    engine_close(engine);
    return rc;
}

/* Every point of the log whose twin is there. */
static int measure_speeds(struct call *call, struct error *err)
{
    char path[4096];
    size_t n;
    int rc = 0;
    bool is_anew = call->stage == STAGE_SPEED;
    bool with_full = is_anew || !frontier_log_full(call->log);
    frontier_log_rows(call->log, &n);
    for (size_t i = 0; i < n && rc == 0; i++) {
        const struct frontier_row row = frontier_log_rows(call->log, &n)[i];
        cli_progress_show(&call->progress, "speeds", (double)i / (double)n);
        twin_path(call, &row.point, path);
        if ((row.has_speed && !is_anew && !with_full) ||
            !prune_is_twin_of(path, call->key.source, call->key.calibration))
            continue;
        rc = measure_point_speed(call, &row.point, path, with_full, err);
        with_full = false;
    }
    return rc;
}

static int report(struct call *call, struct error *err)
{
    const struct frontier_result result = {
        .full = model_file_params(call->model),
        .model_path = call->settings.model,
        .folder = call->out,
        .eval_path = call->eval_path,
        .prompt_tokens = call->prompt_tokens,
        .score_tokens = call->score_tokens,
        .n_calibration_tokens = call->key.n_tokens,
        .log = call->log,
        .wanted = &call->grid,
        .budgets = call->budgets,
        .n_budgets = call->megabytes.n,
    };
    return frontier_report(&result, call->json, err);
}

static int run(struct call *call, struct error *err)
{
    int rc = open_all(call, err);
    if (rc == 0 && (call->stage == STAGE_ALL || call->stage == STAGE_TWINS))
        rc = make_twins(call, err);
    if (rc == 0 && (call->stage == STAGE_ALL || call->stage == STAGE_SPEED))
        rc = measure_speeds(call, err);
    cli_progress_done(&call->progress);
    if (rc == 0)
        rc = report(call, err);
    frontier_log_close(call->log);
    prune_calibration_free(call->samples);
    model_file_close(call->model);
    return rc;
}

int cli_frontier(int argc, char **argv)
{
    struct call call = {
        .out = "frontier", .stage_name = "all", .speed = {.n_runs = 3, .random = 1}};
    struct error err = {0};

    cli_restart_for_blas(argc, argv);
    if (settings_init(&call.settings, &err) < 0) {
        settings_free(&call.settings);
        return cli_fail_with("frontier", &err);
    }
    int code = parse(&call, argc, argv);
    if (code == CLI_HELP_SHOWN)
        code = CLI_DONE;
    else if (code == CLI_DONE && run(&call, &err) < 0)
        code = cli_fail_with("frontier", &err);
    settings_free(&call.settings);
    return code;
}
