/* overfill prune: a pruned twin of a model. The work is engine/prune's; this is its call. */
#include "engine/prune/prune.h"

#include "cli/cli.h"
#include "engine/model/tensor.h"

#include <stdio.h>
#include <string.h>

/* "q8_0", "bf16", ... or NULL to keep. Says what is wrong. */
static int parse_type(const char *option, const char *name, int *ret_type)
{
    *ret_type = name ? tensor_type_from_name(name) : PRUNE_TYPE_KEEP;
    if (!name || (*ret_type >= 0 && tensor_type_is_writable((enum tensor_type) * ret_type)))
        return CLI_DONE;
    return cli_fail("prune", CLI_WRONG_CALL, "--%s: \"%s\", expected one of %s", option, name,
                    TENSOR_WRITABLE_TYPES);
}

static bool parse_method(const char *name, enum prune_method *ret_method)
{
    for (int i = 0; i <= PRUNE_MINITRON; i++) {
        *ret_method = (enum prune_method)i;
        if (strcmp(name, prune_method_name(*ret_method)) == 0)
            return true;
    }
    return false;
}

/* Matrices of other types than the one asked for, of the layers or of the head. */
static void say_types(const struct prune_options *prune, const struct prune_report *report)
{
    for (size_t i = 0; i < PRUNE_MOST_TYPES && report->types[i].n_matrices; i++) {
        const struct prune_type_count *count = &report->types[i];
        if (prune->type != PRUNE_TYPE_KEEP && count->type != prune->type &&
            count->type != prune->head_type)
            fprintf(stderr, "%u matrices are %s: their rows do not fill the blocks of the type\n",
                    count->n_matrices, tensor_type_name((enum tensor_type)count->type));
    }
}

static int print_version(void)
{
    _cleanup_buf_ struct buf out = {0};
    struct error err;
    buf_printf(&out, "%u\n", PRUNER_VERSION);
    return cli_print(&out, &err) ? cli_fail_with("prune", &err) : CLI_DONE;
}

int cli_prune(int argc, char **argv)
{
    cli_restart_for_blas(argc, argv);
    struct cli_progress progress = {0};
    struct prune_options prune = {.progress = cli_progress_call, .user = &progress};
    struct prune_report report;
    struct error err = {0};
    const char *method = "reconstruct";
    const char *type = NULL;
    const char *head_type = NULL;
    struct cli_strings calibration = {0};
    uint32_t n_tokens = 0;
    bool wants_version = false;
    const struct cli_option options[] = {
        {"model", CLI_STRING, &prune.model_path, "FILE",
         "the full model: a GGUF file or a Hugging Face folder; without widths a folder becomes a "
         "GGUF file"},
        {"out", CLI_STRING, &prune.out_path, "FILE", "where the twin goes"},
        {"method", CLI_STRING, &method, "NAME",
         "reconstruct: solve for the twin's matrices; minitron: cut out the channels with the "
         "largest activations [default reconstruct]"},
        {"hidden", CLI_NUMBER, &prune.hidden, "N|SHARE",
         "width to keep of the residual stream: above 1 a size, up to 1 a share, rounded to a "
         "multiple of 32 [default all]",
         0, 1e6},
        {"mlp", CLI_NUMBER, &prune.mlp, "N|SHARE", "the same for the MLP [default all]", 0, 1e6},
        {"exact-widths", CLI_SWITCH, &prune.exact_widths, NULL,
         "minitron: keep int(SHARE * width) channels, not a multiple of 32; types of blocks are "
         "filled up with zeros and the true width is recorded"},
        {"keep", CLI_STRING, &prune.keep_path, "FILE",
         "minitron: the channels to keep, {\"hidden\": [...], \"mlp\": [[...], ...]}, one list a "
         "layer, instead of --hidden, --mlp and --calibration"},
        {"calibration", CLI_STRINGS, &calibration, "FILE",
         "text, or JSONL rows with `messages`, `prompt` (and `completion`) or `text`; may be "
         "gzipped; given several times, the files share the tokens"},
        {"chat-template", CLI_STRING, &prune.chat_template, "NAME",
         "family that rows of `messages` are written in [default: as the model file says]"},
        {"tokens", CLI_UINT, &n_tokens, "N", "calibration tokens at most [default 65536]", 1, 1e9},
        {"type", CLI_STRING, &type, "TYPE",
         "of all matrices: " TENSOR_WRITABLE_TYPES " [default: q8_0; of minitron: as they are]"},
        {"head-type", CLI_STRING, &head_type, "TYPE",
         "of the embedding and the head, which a twin of the full width shares as its model does "
         "[default: --type]"},
        {"report", CLI_STRING, &prune.report_path, "FILE", "write a JSON report"},
        {"version", CLI_SWITCH, &wants_version, NULL,
         "only print the pruner's version: twins of the same version, model, calibration and "
         "options are the same"},
    };
    const struct cli_command command = {
        .name = "prune",
        .synopsis = "overfill prune --model F --out P.gguf --hidden N --mlp N --calibration TEXT",
        .summary =
            "Makes a narrower twin with the same heads, layers and vocabulary, which decodes "
            "on the full model's KV.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
    };

    int status = cli_parse(&command, argc, argv);
    if (status != CLI_DONE)
        return status == CLI_HELP_SHOWN ? CLI_DONE : status;
    if (wants_version)
        return print_version();
    if (!prune.model_path)
        return cli_fail("prune", CLI_WRONG_CALL, "--model: missing");
    if (!prune.out_path)
        return cli_fail("prune", CLI_WRONG_CALL, "--out: missing");
    if (!parse_method(method, &prune.method))
        return cli_fail("prune", CLI_WRONG_CALL,
                        "--method: \"%s\", expected reconstruct or minitron", method);
    status = parse_type("type", type, &prune.type);
    if (status == CLI_DONE)
        status = parse_type("head-type", head_type, &prune.head_type);
    if (status != CLI_DONE)
        return status;
    prune.n_tokens = n_tokens;
    prune.calibration = calibration.items;
    prune.n_calibration = calibration.n;

    int rc = prune_run(&prune, &report, &err);
    cli_progress_done(&progress);
    if (rc)
        return cli_fail_with("prune", &err);
    fprintf(stderr,
            "%s: hidden %u of %u (%.1f %% of its energy), MLP %u of %u (%.1f %%), %zu calibration "
            "tokens, %.1f MB, %.1f s\n",
            prune.out_path, report.hidden, report.hidden_full, 100 * report.hidden_energy,
            report.mlp, report.mlp_full, 100 * report.mlp_energy, report.n_calibration_tokens,
            (double)report.out_bytes / 1e6, report.seconds);
    say_types(&prune, &report);
    if (report.held.n_tokens)
        fprintf(stderr,
                "on %zu tokens held back: KL to the full model %.3f nats a token, same best token "
                "%.1f %%, NLL %.3f (full model %.3f)\n",
                report.held.n_tokens, report.held.kl, 100 * report.held.agree, report.held.nll,
                report.held.nll_full);
    prune_report_free(&report);
    return CLI_DONE;
}
