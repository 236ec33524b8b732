/* overfill tokenize: texts and chats as token ids, exactly as `overfill prune` and serving cut
 * them, so that training needs no tokenizer and no template of its own. */
#include "cli/cli.h"
#include "engine/model/model_file.h"
#include "engine/prune/corpus.h"

#include <inttypes.h>
#include <stdio.h>
#include <string.h>

struct output {
    struct buf line;
    size_t n_tokens, most;
};

/* {"prompt": N, "tokens": [...]}, a line each. */
static int print_document(void *user, const struct token_list *ids, size_t n_prompt,
                          bool *ret_enough, struct error *err)
{
    struct output *out = user;
    *ret_enough = out->n_tokens >= out->most;
    if (*ret_enough || !ids->n)
        return 0;
    buf_printf(&out->line, "{\"prompt\": %zu, \"tokens\": [", n_prompt);
    for (size_t i = 0; i < ids->n; i++)
        buf_printf(&out->line, i ? ", %" PRId32 : "%" PRId32, ids->ids[i]);
    buf_append_str(&out->line, "]}\n");
    out->n_tokens += ids->n;
    *ret_enough = out->n_tokens >= out->most;
    return cli_print(&out->line, err);
}

static int print_files(const struct cli_strings *files, const struct corpus_text *how,
                       size_t n_tokens, struct error *err)
{
    struct output out = {.most = n_tokens};
    int rc = 0;
    for (size_t i = 0; i < files->n && rc == 0 && out.n_tokens < out.most; i++) {
        struct corpus corpus = {.path = files->items[i],
                                .how = *how,
                                .n_tokens = n_tokens - out.n_tokens,
                                .each = print_document,
                                .user = &out};
        rc = corpus_read(&corpus, err);
    }
    buf_free(&out.line);
    return rc;
}

static int run(const char *model, const char *template_name, const struct cli_strings *files,
               size_t n_tokens, struct error *err)
{
    struct model_file *file = NULL;
    struct tokenizer *tokenizer = NULL;
    struct corpus_text how = {0};
    int rc = model_file_open(model, &file, err);
    if (rc == 0)
        rc = corpus_find_template(template_name, model_file_vocab(file), &how.chat_template, err);
    if (rc == 0)
        rc = tokenizer_open(model_file_vocab(file), &tokenizer, err);
    how.tokenizer = tokenizer;
    if (rc == 0)
        rc = print_files(files, &how, n_tokens, err);
    tokenizer_close(tokenizer);
    model_file_close(file);
    return rc;
}

int cli_tokenize(int argc, char **argv)
{
    struct error err = {0};
    const char *model = NULL;
    const char *template_name = NULL;
    struct cli_strings data = {0};
    uint32_t n_tokens = 0;
    const struct cli_option options[] = {
        {"model", CLI_STRING, &model, "FILE", "whose vocabulary and chat template"},
        {"data", CLI_STRINGS, &data, "FILE",
         "text, or JSONL rows with `messages`, `prompt` (and `completion`) or `text`; may be "
         "gzipped; may be given several times"},
        {"chat-template", CLI_STRING, &template_name, "NAME",
         "family that rows of `messages` are written in [default: as the model file says]"},
        {"tokens", CLI_UINT, &n_tokens, "N", "stop after so many; 0: all [default 0]", 0, 4e9},
    };
    const struct cli_command command = {
        .name = "tokenize",
        .synopsis = "overfill tokenize --model F --data FILE",
        .summary = "Prints a JSON line a document: its token ids, and how many of them come before "
                   "the answer (0 where the row does not tell). Of JSONL rows that share their "
                   "longest line one is taken.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
    };

    int status = cli_parse(&command, argc, argv);
    if (status != CLI_DONE)
        return status == CLI_HELP_SHOWN ? CLI_DONE : status;
    if (!model)
        return cli_fail("tokenize", CLI_WRONG_CALL, "--model: missing");
    if (!data.n)
        return cli_fail("tokenize", CLI_WRONG_CALL, "--data: missing");
    int rc = run(model, template_name, &data, n_tokens ? n_tokens : SIZE_MAX, &err);
    return rc ? cli_fail_with("tokenize", &err) : CLI_DONE;
}
