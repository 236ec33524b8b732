/* The pruner's steps in order. See prune.h. */
#include "engine/prune/prune.h"

#include "engine/base/buf.h"
#include "engine/base/system.h"
#include "engine/prune/prune_internal.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>

#define DEFAULT_TOKENS 65536

static int read_calibration(const struct prune_options *options, const struct model_file *file,
                            bool hold, struct sample_set *ret_samples, struct error *err)
{
    struct tokenizer *tokenizer = NULL;
    size_t n_tokens = options->n_tokens ? options->n_tokens : DEFAULT_TOKENS;
    if (!options->calibration)
        return error_set(err, ERROR_INVALID,
                         "calibration: expected a text or JSONL file, since channels are cut");
    int rc = tokenizer_open(model_file_vocab(file), &tokenizer, err);
    if (rc == 0)
        rc = samples_read(options->calibration, tokenizer, n_tokens, hold, ret_samples, err);
    tokenizer_close(tokenizer);
    return rc;
}

static int choose_channels(const struct prune_options *options, const struct model_file *file,
                           struct prune_report *report, struct kept *ret_kept, uint64_t *ret_hash,
                           struct error *err)
{
    struct sample_set samples = {0};
    struct importance importance = {0};

    if (report->hidden == report->hidden_full && report->mlp == report->mlp_full)
        return kept_all(model_file_params(file), ret_kept, err);
    int rc = read_calibration(options, file, false, &samples, err);
    if (rc == 0)
        rc = importance_measure(options, file, &samples, &importance, err);
    if (rc == 0)
        rc = kept_choose(&importance, report->hidden, report->mlp, ret_kept, err);
    report->n_calibration_tokens = samples.tokens.n;
    *ret_hash = samples.hash;
    importance_free(&importance);
    samples_free(&samples);
    return rc;
}

static int write_report(const char *path, const struct prune_report *r, struct error *err)
{
    _cleanup_buf_ struct buf json = {0};
    buf_printf(&json,
               "{\"method\":\"minitron\",\"hidden\":%u,\"hidden_full\":%u,\"mlp\":%u,"
               "\"mlp_full\":%u,\"calibration_tokens\":%zu,\"hidden_energy\":%.6f,"
               "\"mlp_energy\":%.6f,\"seconds\":%.2f,\"out_bytes\":%zu,\"peak_rss_bytes\":%zu}\n",
               r->hidden, r->hidden_full, r->mlp, r->mlp_full, r->n_calibration_tokens,
               r->hidden_energy, r->mlp_energy, r->seconds, r->out_bytes, system_peak_rss_bytes());
    if (json.failed)
        return error_memory(err, "report", json.len);
    FILE *f = fopen(path, "we");
    if (!f)
        return error_set(err, ERROR_IO, "report %s: %s", path, strerror(errno));
    bool ok = fwrite(json.data, 1, json.len, f) == json.len;
    ok = fclose(f) == 0 && ok;
    return ok ? 0 : error_set(err, ERROR_IO, "report %s: cannot be written", path);
}

static int prune_file(const struct prune_options *options, const struct model_file *file,
                      struct prune_report *report, struct error *err)
{
    const struct model_params *p = model_file_params(file);
    struct kept kept = {0};
    uint64_t hash = 0;

    report->hidden_full = p->hidden;
    report->mlp_full = p->mlp;
    int rc = width_resolve("hidden", options->hidden, p->hidden, &report->hidden, err);
    if (rc == 0)
        rc = width_resolve("mlp", options->mlp, p->mlp, &report->mlp, err);
    if (rc == 0)
        rc = choose_channels(options, file, report, &kept, &hash, err);
    if (rc == 0)
        rc = slice_write(options, file, &kept, hash, err);
    report->hidden_energy = kept.hidden_energy;
    report->mlp_energy = kept.mlp_energy;
    kept_free(&kept);
    return rc;
}

int prune_run(const struct prune_options *options, struct prune_report *ret_report,
              struct error *err)
{
    struct prune_report report = {0};
    struct model_file *file;
    struct stat out;
    uint64_t begin = system_now_ns();

    int rc = model_file_open(options->model_path, &file, err);
    if (rc)
        return rc;
    rc = prune_file(options, file, &report, err);
    model_file_close(file);
    if (rc)
        return rc;
    if (stat(options->out_path, &out) == 0)
        report.out_bytes = (size_t)out.st_size;
    report.seconds = (double)(system_now_ns() - begin) / 1e9;
    if (options->report_path)
        rc = write_report(options->report_path, &report, err);
    *ret_report = report;
    return rc;
}
