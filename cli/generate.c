/* overfill generate: one prompt through the whole engine, the answer on stdout as it comes or as
 * one JSON object; or every question of a file (chats.h). No server, no queue: the same door that
 * the server uses. */
#include "cli/chats.h"
#include "cli/cli.h"
#include "engine/base/mem.h"
#include "engine/engine.h"

#include <errno.h>
#include <stdio.h>
#include <string.h>

struct call {
    struct settings settings;
    const char *prompt;    /* chat: one user message */
    const char *raw;       /* plain text */
    const char *questions; /* a file of prompts */
    uint32_t max_tokens;
    double temperature, top_p, min_p;
    uint32_t top_k;
    uint64_t seed;
    uint32_t n_logprobs; /* 0: none */
    struct cli_strings stops;
    bool ignore_eos;
    bool json;
    struct buf input; /* what "-" read from stdin */
    struct cli_progress progress;
};

/* The pieces of the JSON object, grown as outputs arrive. */
struct answer {
    struct buf prompt_ids, ids, top, text;
    enum finish_reason finish;
    struct engine_usage usage;
};

static void answer_free(struct answer *answer)
{
    buf_free(&answer->prompt_ids);
    buf_free(&answer->ids);
    buf_free(&answer->top);
    buf_free(&answer->text);
}

static void call_free(struct call *call)
{
    settings_free(&call->settings);
    buf_free(&call->input);
}

static int parse(struct call *call, int argc, char **argv)
{
    const struct cli_option options[] = {
        {"raw", CLI_STRING, &call->raw, "TEXT",
         "instead of a prompt: continue this text, no chat template; text of control tokens counts "
         "as these tokens"},
        {"questions", CLI_STRING, &call->questions, "FILE",
         "instead of a prompt: answer every line of FILE, many at once, and print JSONL rows of "
         "`messages`; a line's seed is S plus its number"},
        {"max-tokens", CLI_UINT, &call->max_tokens, "N", "end after so many tokens [default 256]",
         0, UINT32_MAX - 1},
        {"temperature", CLI_NUMBER, &call->temperature, "T",
         "0: always the likeliest token [default 0]", 0, 100},
        {"top-k", CLI_UINT, &call->top_k, "K", "sample from the K likeliest; 0: all [default 0]", 0,
         INT32_MAX},
        {"top-p", CLI_NUMBER, &call->top_p, "P",
         "sample from the likeliest that reach this probability together [default 1]", 0, 1},
        {"min-p", CLI_NUMBER, &call->min_p, "P",
         "sample from those with this share of the likeliest's probability [default 0]", 0, 1},
        {"seed", CLI_SEED, &call->seed, "S", "of the random numbers [default 0]"},
        {"stop", CLI_STRINGS, &call->stops, "TEXT", "end before this text; up to 16 times"},
        {"ignore-eos", CLI_SWITCH, &call->ignore_eos, NULL, "go on after the end token"},
        {"logprobs", CLI_UINT, &call->n_logprobs, "K",
         "with --json: the K likeliest tokens of every step", 1, ENGINE_MAX_LOGPROBS},
        {"json", CLI_SWITCH, &call->json, NULL, "print one JSON object when done"},
    };
    const struct cli_command command = {
        .name = "generate",
        .synopsis =
            "overfill generate --model FILE [options] \"PROMPT\" | --raw TEXT | --questions FILE",
        .summary =
            "Answers one prompt. \"-\" as prompt or text reads it from standard input, as it "
            "is.\nThe answer goes to standard output, everything else to standard error.",
        .options = options,
        .n_options = sizeof(options) / sizeof(options[0]),
        .settings = &call->settings,
        .scope = SETTING_ENGINE,
        .positional = "PROMPT",
        .ret_positional = &call->prompt,
    };
    int status = cli_parse(&command, argc, argv);
    if (status != CLI_DONE)
        return status;
    if (!*call->settings.model)
        return cli_fail("generate", CLI_WRONG_CALL, "--model: a model file is required");
    int n_sources = !!call->prompt + !!call->raw + !!call->questions;
    if (n_sources != 1)
        return cli_fail("generate", CLI_WRONG_CALL,
                        n_sources ? "--raw: a prompt, --raw or --questions, one of them"
                                  : "PROMPT: a prompt, --raw TEXT or --questions FILE is required");
    if (call->questions && call->json)
        return cli_fail("generate", CLI_WRONG_CALL, "--json: not with --questions");
    if (call->n_logprobs && !call->json)
        return cli_fail("generate", CLI_WRONG_CALL, "--logprobs: needs --json");
    return CLI_DONE;
}

/* Replaces "-" by what standard input holds. */
static int read_input(struct call *call, struct error *err)
{
    const char **text = call->raw ? &call->raw : &call->prompt;
    char part[4096];
    size_t n;

    buf_append(&call->input, *text, strlen(*text));
    if (strcmp(*text, "-") == 0) {
        buf_clear(&call->input);
        while ((n = fread(part, 1, sizeof(part), stdin)) > 0)
            buf_append(&call->input, part, n);
        if (ferror(stdin))
            return error_set(err, ERROR_IO, "standard input: %s", strerror(errno));
    }
    return call->input.failed ? error_memory(err, "prompt", call->input.len) : 0;
}

static int open_engine(struct call *call, struct engine **ret_engine, struct error *err)
{
    struct engine_options options;

    cli_engine_options(&call->settings, &options);
    options.progress = cli_progress_call;
    options.progress_user = &call->progress;
    options.max_sequences = call->questions ? CHATS_AT_ONCE : 1;
    int status = engine_open(&options, ret_engine, err);
    cli_progress_done(&call->progress);
    return status;
}

/* All of the request but what is asked. stops [CLI_STRINGS_MAX] as long as the request. */
static struct engine_request request_of(const struct call *call, struct stop_string *stops)
{
    struct engine_request request = {
        .n = 1,
        .max_tokens = call->max_tokens,
        .ignore_eos = call->ignore_eos,
        .stops = stops,
        .n_stops = call->stops.n,
        .sampling = SAMPLING_DEFAULTS,
        .n_logprobs = call->n_logprobs ? (int32_t)call->n_logprobs : -1,
    };
    for (size_t i = 0; i < call->stops.n; i++)
        stops[i] = (struct stop_string){call->stops.items[i], strlen(call->stops.items[i])};
    request.sampling.temperature = (float)call->temperature;
    request.sampling.top_k = (int32_t)call->top_k;
    request.sampling.top_p = (float)call->top_p;
    request.sampling.min_p = (float)call->min_p;
    request.sampling.seed = call->seed;
    return request;
}

static int submit(const struct call *call, struct engine *engine, struct error *err)
{
    struct chat_message message = {"user", call->input.data, call->input.len};
    struct stop_string stops[CLI_STRINGS_MAX];
    struct engine_request request = request_of(call, stops);
    uint64_t id;

    if (call->raw) {
        request.text = call->input.data;
        request.text_len = call->input.len;
        request.parse_special = true;
    } else {
        request.messages = &message;
        request.n_messages = 1;
    }
    return engine_submit(engine, &request, &id, err);
}

static void append_id(struct buf *list, int32_t id)
{
    buf_printf(list, "%s%d", list->len ? "," : "", id);
}

static void append_top(struct buf *list, const struct token_logprob *top, uint32_t n)
{
    buf_append_str(list, list->len ? ",[" : "[");
    for (uint32_t i = 0; i < n; i++) {
        buf_printf(list, "%s[%d,", i ? "," : "", top[i].token);
        cli_json_number(list, NULL, (double)top[i].logprob);
        buf_append_str(list, "]");
    }
    buf_append_str(list, "]");
}

/* Keeps the text for print_json, or prints it. */
static int take_output(const struct call *call, const struct engine_output *output,
                       struct answer *answer, struct error *err)
{
    for (uint32_t i = 0; output->prompt_ids && i < output->usage.prompt_tokens; i++)
        append_id(&answer->prompt_ids, output->prompt_ids[i]);
    for (size_t i = 0; i < output->n_tokens; i++) {
        const struct engine_token *token = &output->tokens[i];
        const char *text = token->text_len ? output->text + token->text_start : "";
        if (token->token >= 0) {
            append_id(&answer->ids, token->token);
            if (call->n_logprobs)
                append_top(&answer->top, output->top + token->top_start, token->n_top);
        }
        if (token->finish != FINISH_NONE)
            answer->finish = token->finish;
        buf_append(&answer->text, text, token->text_len);
    }
    answer->usage = output->usage;
    return call->json ? 0 : cli_print(&answer->text, err);
}

/* Until the request is done; its failure becomes ours. */
static int collect(const struct call *call, struct engine *engine, struct answer *answer,
                   struct error *err)
{
    for (;;) {
        const struct engine_output *output = engine_wait(engine, -1);
        if (!output)
            continue;
        int status = take_output(call, output, answer, err);
        if (status < 0)
            return status;
        if (output->done && output->error) {
            *err = *output->error;
            return -(int)err->code;
        }
        if (output->done)
            return 0;
    }
}

static double per_second(uint32_t n_tokens, double ms)
{
    return ms > 0 ? n_tokens * 1000.0 / ms : 0;
}

/* The first token comes out of prefill, so decode_ms covers one token less. */
static double decode_rate(const struct engine_usage *usage)
{
    return per_second(usage->completion_tokens ? usage->completion_tokens - 1 : 0,
                      usage->decode_ms);
}

static double prefill_rate(const struct engine_usage *usage)
{
    return per_second(usage->prompt_tokens - usage->cached_tokens, usage->prefill_ms);
}

static int print_json(const struct call *call, const struct answer *answer, struct error *err)
{
    _cleanup_buf_ struct buf out = {0};
    const struct buf *parts[] = {&answer->prompt_ids, &answer->ids, &answer->top, &answer->text};

    buf_printf(&out, "{\"prompt_tokens\":[%s],\"tokens\":[%s],\"text\":",
               answer->prompt_ids.len ? answer->prompt_ids.data : "",
               answer->ids.len ? answer->ids.data : "");
    cli_json_string(&out, answer->text.data, answer->text.len);
    buf_printf(&out,
               ",\"finish_reason\":\"%s\",\"timings\":{\"prefill_ms\":%.3f,\"decode_ms\":%.3f,"
               "\"prefill_tok_s\":%.2f,\"decode_tok_s\":%.2f}",
               answer->finish == FINISH_LENGTH ? "length" : "stop", answer->usage.prefill_ms,
               answer->usage.decode_ms, prefill_rate(&answer->usage), decode_rate(&answer->usage));
    if (call->n_logprobs)
        buf_printf(&out, ",\"top_logprobs\":[%s]", answer->top.len ? answer->top.data : "");
    buf_append_str(&out, "}\n");
    for (size_t i = 0; i < sizeof(parts) / sizeof(parts[0]); i++)
        if (parts[i]->failed)
            return error_memory(err, "answer", parts[i]->len);
    return cli_print(&out, err);
}

static void print_summary(const struct answer *answer)
{
    const struct engine_usage *usage = &answer->usage;

    fprintf(stderr,
            "prompt: %u tokens in %.0f ms (%.0f a second); answer: %u tokens, %.0f ms after the "
            "first (%.1f a second), finish: %s\n",
            usage->prompt_tokens, usage->prefill_ms, prefill_rate(usage), usage->completion_tokens,
            usage->decode_ms, decode_rate(usage),
            answer->finish == FINISH_LENGTH ? "length" : "stop");
}

static int end_line(struct answer *answer, struct error *err)
{
    buf_append_str(&answer->text, "\n");
    return cli_print(&answer->text, err);
}

static int answer_one(struct call *call, struct engine *engine, struct error *err)
{
    struct answer answer = {.finish = FINISH_STOP};
    int status = submit(call, engine, err);
    if (status == 0)
        status = collect(call, engine, &answer, err);
    if (status == 0 && call->json)
        status = print_json(call, &answer, err);
    else if (status == 0)
        status = end_line(&answer, err);
    if (status == 0)
        print_summary(&answer);
    answer_free(&answer);
    return status;
}

static int answer_questions(struct call *call, struct engine *engine, struct error *err)
{
    struct stop_string stops[CLI_STRINGS_MAX];
    const struct chats chats = {
        .path = call->questions,
        .request = request_of(call, stops),
        .progress = cli_progress_call,
        .user = &call->progress,
    };
    int status = chats_run(&chats, engine, err);
    cli_progress_done(&call->progress);
    return status;
}

static int run(struct call *call, struct error *err)
{
    struct engine *engine = NULL;
    int status;

    if (!call->questions && (status = read_input(call, err)) < 0)
        return status;
    if ((status = open_engine(call, &engine, err)) < 0)
        return status;
    status = call->questions ? answer_questions(call, engine, err) : answer_one(call, engine, err);
    engine_close(engine);
    return status;
}

int cli_generate(int argc, char **argv)
{
    struct call call = {.max_tokens = 256, .top_p = 1};
    struct error err;

    if (settings_init(&call.settings, &err) < 0) {
        call_free(&call);
        return cli_fail_with("generate", &err);
    }
    int code = parse(&call, argc, argv);
    if (code == CLI_HELP_SHOWN)
        code = CLI_DONE;
    else if (code == CLI_DONE && run(&call, &err) < 0)
        code = cli_fail_with("generate", &err);
    call_free(&call);
    return code;
}
