/* The pruner's steps in order. See prune.h. */
#include "engine/prune/prune.h"

#include "engine/base/mem.h"
#include "engine/base/system.h"
#include "engine/prune/prune_internal.h"

#include <stdio.h>
#include <sys/stat.h>
#include <unistd.h>

const char *prune_method_name(enum prune_method method)
{
    return method == PRUNE_MINITRON ? "minitron" : "reconstruct";
}

struct prune_calibration {
    struct sample_set samples;
};

static int read_samples(const struct prune_options *options, const struct model_file *file,
                        struct sample_set *ret_samples, struct error *err)
{
    struct tokenizer *tokenizer = NULL;
    struct corpus_text how = {0};
    size_t n_tokens = options->n_tokens ? options->n_tokens : PRUNE_TOKENS;
    if (!options->n_calibration)
        return error_set(err, ERROR_INVALID,
                         "calibration: expected a text or JSONL file, since channels are cut");
    int rc = corpus_find_template(options->chat_template, model_file_vocab(file),
                                  &how.chat_template, err);
    if (rc == 0)
        rc = tokenizer_open(model_file_vocab(file), &tokenizer, err);
    how.tokenizer = tokenizer;
    if (rc == 0)
        rc = samples_read(options->calibration, options->n_calibration, &how, n_tokens,
                          options->method == PRUNE_RECONSTRUCT, ret_samples, err);
    tokenizer_close(tokenizer);
    return rc;
}

int prune_calibration_read(const struct prune_options *options,
                           struct prune_calibration **ret_calibration, struct error *err)
{
    struct model_file *file;
    struct prune_calibration *calibration = mem_calloc(1, sizeof(*calibration));
    if (!calibration)
        return error_memory(err, "calibration", sizeof(*calibration));
    int rc = model_file_open(options->model_path, &file, err);
    if (rc == 0) {
        rc = read_samples(options, file, &calibration->samples, err);
        model_file_close(file);
    }
    if (rc) {
        mem_free(calibration);
        return rc;
    }
    *ret_calibration = calibration;
    return 0;
}

void prune_calibration_free(struct prune_calibration *calibration)
{
    if (!calibration)
        return;
    samples_free(&calibration->samples);
    mem_free(calibration);
}

size_t prune_calibration_tokens(const struct prune_calibration *calibration)
{
    return calibration->samples.tokens.n;
}

uint64_t prune_calibration_hash(const struct prune_calibration *calibration)
{
    return calibration->samples.hash;
}

/* The samples that were read before, or those of the files, which go to *own: the caller frees it.
 */
static int find_samples(const struct prune_options *options, const struct model_file *file,
                        struct sample_set *own, const struct sample_set **ret_samples,
                        struct error *err)
{
    int rc = options->samples ? 0 : read_samples(options, file, own, err);
    if (rc == 0)
        *ret_samples = options->samples ? &options->samples->samples : own;
    return rc;
}

static int choose_channels(const struct prune_options *options, const struct model_file *file,
                           struct prune_report *report, struct kept *ret_kept, uint64_t *ret_hash,
                           struct error *err)
{
    struct sample_set own = {0};
    const struct sample_set *samples = &own;
    struct importance importance = {0};

    if (options->keep_path)
        return kept_read(options->keep_path, model_file_params(file), ret_kept, err);
    if (report->hidden == report->hidden_full && report->mlp == report->mlp_full)
        return kept_first(report->n_layers, report->hidden, report->mlp, ret_kept, err);
    int rc = find_samples(options, file, &own, &samples, err);
    if (rc == 0)
        rc = room_check_memory(file, samples, err);
    if (rc == 0)
        rc = importance_measure(options, file, samples, &importance, err);
    if (rc == 0)
        rc = kept_choose(&importance, report->hidden, report->mlp, ret_kept, err);
    report->n_calibration_tokens = samples->tokens.n;
    *ret_hash = samples->hash;
    importance_free(&importance);
    samples_free(&own);
    return rc;
}

static int run_minitron(const struct prune_options *options, const struct model_file *file,
                        struct prune_report *report, struct error *err)
{
    struct kept kept = {0};
    uint64_t hash = 0;
    int rc = choose_channels(options, file, report, &kept, &hash, err);
    if (rc == 0)
        rc = room_check_disk(options, file, kept.hidden, kept.mlp, err);
    if (rc == 0)
        rc = slice_write(options, file, &kept, hash, err);
    report->hidden = kept.hidden;
    report->mlp = kept.mlp;
    report->hidden_energy = kept.hidden_energy;
    report->mlp_energy = kept.mlp_energy;
    kept_free(&kept);
    return rc;
}

static int run_reconstruct(const struct prune_options *options, const struct model_file *file,
                           struct prune_report *report, struct error *err)
{
    struct prune_options typed = *options;
    struct sample_set own = {0};
    const struct sample_set *samples = &own;
    int rc = find_samples(options, file, &own, &samples, err);
    if (typed.type == PRUNE_TYPE_KEEP)
        typed.type = TENSOR_Q8_0;
    if (typed.head_type == PRUNE_TYPE_KEEP)
        typed.head_type = typed.type;
    report->n_calibration_tokens = samples->tokens.n;
    if (rc == 0)
        rc = reconstruct_run(&typed, file, samples, report, err);
    samples_free(&own);
    return rc;
}

/* All of a folder's model, as a GGUF file. */
static int copy_folder(const struct model_file *folder, const char *path, struct error *err)
{
    const struct prune_options copy = {
        .method = PRUNE_MINITRON,
        .out_path = path,
        .type = PRUNE_TYPE_KEEP,
        .head_type = PRUNE_TYPE_KEEP,
    };
    const struct model_params *p = model_file_params(folder);
    struct kept all = {0};
    int rc = room_check_disk(&copy, folder, p->hidden, p->mlp, err);
    if (rc == 0)
        rc = kept_first(p->n_layers, p->hidden, p->mlp, &all, err);
    if (rc == 0)
        rc = slice_write(&copy, folder, &all, 0, err);
    kept_free(&all);
    return rc;
}

/* The twin's names, types and orders of rows are GGUF's, so a folder becomes such a file first,
 * which is gone when the twin is made. */
static int run_reconstruct_of_folder(const struct prune_options *options,
                                     const struct model_file *folder, struct prune_report *report,
                                     struct error *err)
{
    struct model_file *file;
    char path[4096];
    int n = snprintf(path, sizeof(path), "%s.model", options->out_path);
    if (n < 0 || (size_t)n >= sizeof(path))
        return error_set(err, ERROR_INVALID, "out: a path of at most %zu bytes is expected",
                         sizeof(path) - 8);
    int rc = copy_folder(folder, path, err);
    if (rc)
        return rc;
    rc = model_file_open(path, &file, err);
    if (rc == 0) {
        rc = run_reconstruct(options, file, report, err);
        model_file_close(file);
    }
    unlink(path);
    return rc;
}

static int check_options(const struct prune_options *options, struct error *err)
{
    bool has_widths = options->hidden != 0 || options->mlp != 0;
    bool has_text = options->n_calibration || options->samples;
    if (options->keep_path && (has_widths || has_text))
        return error_set(err, ERROR_INVALID,
                         "keep: the file says what stays; no hidden, mlp or calibration expected");
    if (options->method != PRUNE_MINITRON && (options->keep_path || options->exact_widths))
        return error_set(err, ERROR_INVALID, "%s: method minitron expected",
                         options->keep_path ? "keep" : "exact-widths");
    return 0;
}

static int prune_file(const struct prune_options *options, const struct model_file *file,
                      struct prune_report *report, struct error *err)
{
    const struct model_params *p = model_file_params(file);
    report->hidden_full = p->hidden;
    report->mlp_full = p->mlp;
    report->n_layers = p->n_layers;
    int rc = check_options(options, err);
    if (rc == 0)
        rc = width_resolve("hidden", options->hidden, p->hidden, options->exact_widths,
                           &report->hidden, err);
    if (rc == 0)
        rc = width_resolve("mlp", options->mlp, p->mlp, options->exact_widths, &report->mlp, err);
    if (rc == 0 && !options->keep_path) /* its widths are not known yet */
        rc = room_check_disk(options, file, report->hidden, report->mlp, err);
    if (rc)
        return rc;
    /* nothing removed and nothing to learn from: a copy, whatever the method */
    bool is_copy = report->hidden == p->hidden && report->mlp == p->mlp &&
                   !options->n_calibration && !options->samples;
    if (options->method == PRUNE_MINITRON || is_copy)
        return run_minitron(options, file, report, err);
    if (!model_file_gguf(file))
        return run_reconstruct_of_folder(options, file, report, err);
    return run_reconstruct(options, file, report, err);
}

static void count_type(struct prune_report *report, const struct tensor *t)
{
    struct prune_type_count *count = report->types;
    while (count < report->types + PRUNE_MOST_TYPES - 1 && count->n_matrices &&
           count->type != (int)t->type)
        count++;
    count->type = (int)t->type;
    count->n_matrices++;
    count->bytes += t->bytes;
}

/* Looks at the file that was written, which thereby is known to be one. */
static int look_at_twin(const struct prune_options *options, struct prune_report *report,
                        struct error *err)
{
    struct stat out;
    struct model_file *file;
    int rc = model_file_open(options->out_path, &file, err);
    if (rc)
        return rc;
    for (size_t i = 0; i < model_file_n_tensors(file); i++)
        if (model_file_tensor_at(file, i)->n_dims > 1)
            count_type(report, model_file_tensor_at(file, i));
    model_file_close(file);
    if (stat(options->out_path, &out) == 0)
        report->out_bytes = (size_t)out.st_size;
    return 0;
}

void prune_report_free(struct prune_report *report)
{
    mem_free(report->layers);
    report->layers = NULL;
}

int prune_run(const struct prune_options *options, struct prune_report *ret_report,
              struct error *err)
{
    struct prune_report report = {.method = options->method};
    struct model_file *file;
    uint64_t begin = system_now_ns();

    int rc = model_file_open(options->model_path, &file, err);
    if (rc)
        return rc;
    rc = prune_file(options, file, &report, err);
    model_file_close(file);
    if (rc == 0)
        rc = look_at_twin(options, &report, err);
    report.seconds = (double)(system_now_ns() - begin) / 1e9;
    if (rc == 0 && options->report_path)
        rc = report_write(options->report_path, &report, err);
    if (rc)
        prune_report_free(&report);
    else
        *ret_report = report;
    return rc;
}
