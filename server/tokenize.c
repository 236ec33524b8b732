/* Text and ids without generating: /tokenize and /detokenize in the two shapes that clients know,
 * vLLM's (`prompt`, or `messages` of a chat; reply with count and max_model_len) and llama-server's
 * (`content`; pieces on request); Anthropic's count_tokens; and /tokenizer_info, from which lm-eval
 * learns the special tokens. A reply has the members of all shapes. */
#include "server/internal.h"
#include "server/json_write.h"
#include "server/request.h"

#include <string.h>

#define TOKENIZE_MAX_BYTES ((size_t)4 << 20) /* of text in one request */

static int from_engine(struct http_error *e, const struct error *err, const char *param)
{
    http_error_from_engine(e, err, param, 0, 0, UINT32_MAX);
    return -1;
}

/* The text to tokenise, and how; -1 and *e if there is none. */
static int choose_text(const struct params *p, struct prompt *ret_text, unsigned *ret_flags,
                       struct http_error *e)
{
    const char *name = p->prompts ? "prompt" : "content";

    if (!p->prompts && !p->content)
        return http_invalid(e, "prompt", "missing_required_parameter",
                            "Missing required parameter: 'prompt' (or 'content', or 'messages').");
    struct prompt text =
        p->prompts ? p->prompts[0] : (struct prompt){p->content, strlen(p->content), NULL, 0};
    if (text.text_len > TOKENIZE_MAX_BYTES)
        return http_invalid(e, name, "string_above_max_length",
                            "Invalid '%s': string too long. Expected a string with maximum length "
                            "%zu, but got a string with length %zu instead.",
                            name, TOKENIZE_MAX_BYTES, text.text_len);
    /* vLLM adds the special tokens unless told not to, llama-server only when told. */
    *ret_flags = (p->prompts ? p->add_special_tokens : p->add_special) ? TOKENIZER_ADD_SPECIAL : 0;
    if (p->parse_special)
        *ret_flags |= TOKENIZER_PARSE_SPECIAL;
    *ret_text = text;
    return 0;
}

static int encode_messages(const struct engine *engine, const struct params *p,
                           struct token_list *list, struct http_error *e)
{
    struct chat_prompt prompt = {0};
    struct error err = {0};
    int result = 0;

    if (!p->add_generation_prompt)
        return http_invalid(e, "add_generation_prompt", "unsupported_parameter",
                            "Unsupported parameter: 'add_generation_prompt' must be true.");
    if (engine_render(engine, p->messages, p->n_messages, &prompt, &err) < 0 ||
        chat_prompt_encode(&prompt, engine_tokenizer(engine), list, &err) < 0)
        result = from_engine(e, &err, "messages");
    chat_prompt_free(&prompt);
    return result;
}

static int encode_text(const struct engine *engine, const struct params *p, struct token_list *list,
                       struct http_error *e)
{
    struct error err = {0};
    struct prompt text = {0};
    unsigned flags = 0;

    if (choose_text(p, &text, &flags, e) < 0)
        return -1;
    if (tokenizer_encode(engine_tokenizer(engine), text.text, text.text_len, flags, list, &err) < 0)
        return from_engine(e, &err, p->prompts ? "prompt" : "content");
    return 0;
}

/* vLLM's: what is not UTF-8 by itself shows as U+FFFD. */
static void write_strings(struct buf *out, const struct tokenizer *tokenizer,
                          const struct token_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        size_t len = 0;
        const char *piece = tokenizer_piece(tokenizer, list->ids[i], &len);
        buf_append_str(out, i ? "," : "[");
        json_write_string(out, piece, len);
    }
    buf_append_str(out, list->n ? "]" : "[]");
}

static bool is_utf8(const char *text, size_t len)
{
    size_t n;

    for (; len && (n = utf8_char_len(text, len)); text += n)
        len -= n;
    return len == 0;
}

/* llama-server's {"id", "piece"}: the text, or its bytes where they are not UTF-8 by themselves. */
static void write_piece(struct buf *out, const struct tokenizer *tokenizer, int32_t id)
{
    size_t len = 0;
    const char *piece = tokenizer_piece(tokenizer, id, &len);

    buf_printf(out, "{\"id\":%d,\"piece\":", id);
    if (is_utf8(piece, len)) {
        json_write_string(out, piece, len);
    } else {
        for (size_t i = 0; i < len; i++)
            buf_printf(out, "%c%u", i ? ',' : '[', (unsigned)(unsigned char)piece[i]);
        buf_append(out, "]", 1);
    }
    buf_append(out, "}", 1);
}

static void write_tokens(struct buf *out, const struct engine *engine,
                         const struct token_list *list, const struct params *p)
{
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    struct engine_info info;

    engine_get_info(engine, &info);
    buf_reserve(out, list->n * (p->with_pieces || p->return_token_strs ? 16 : 8) + 128);
    buf_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", list->n, info.context);
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        if (p->with_pieces)
            write_piece(out, tokenizer, list->ids[i]);
        else
            json_write_uint(out, (uint64_t)list->ids[i]);
    }
    buf_append_str(out, "],\"token_strs\":");
    if (p->return_token_strs)
        write_strings(out, tokenizer, list);
    else
        buf_append_str(out, "null");
    buf_append(out, "}", 1);
}

static int tokenize(const struct engine *engine, struct params *p, struct buf *out,
                    struct http_error *e)
{
    struct token_list list = {0};
    int result =
        p->messages ? encode_messages(engine, p, &list, e) : encode_text(engine, p, &list, e);

    if (result == 0)
        write_tokens(out, engine, &list, p);
    token_list_free(&list);
    return result;
}

static int detokenize(const struct engine *engine, struct params *p, struct buf *out,
                      struct http_error *e)
{
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    const struct prompt *ids = &p->prompts[0];
    _cleanup_buf_ struct buf text = {0};

    for (size_t i = 0; i < ids->n_tokens; i++) {
        size_t len;
        const char *piece = tokenizer_piece(tokenizer, ids->tokens[i], &len);
        if (piece)
            buf_append(&text, piece, len);
    }
    if (text.failed)
        return http_out_of_memory(e);
    buf_append_str(out, "{\"prompt\":");
    json_write_string(out, text.data, text.len);
    buf_append_str(out, ",\"content\":");
    json_write_string(out, text.data, text.len);
    buf_append(out, "}", 1);
    return 0;
}

static int count_tokens(const struct engine *engine, struct params *p, struct buf *out,
                        struct http_error *e)
{
    struct token_list list = {0};
    int result = encode_messages(engine, p, &list, e);

    if (result == 0)
        buf_printf(out, "{\"input_tokens\":%zu}", list.n);
    token_list_free(&list);
    return result;
}

static const struct request_plan TOKENIZE = {ON_TOKENIZE, tokenize, NULL, NULL};
static const struct request_plan DETOKENIZE = {ON_DETOKENIZE, detokenize, NULL, NULL};
static const struct request_plan COUNT = {ON_COUNT, count_tokens, NULL, NULL};

void handle_tokenize(struct exchange *x)
{
    request_run(x, &TOKENIZE);
}

void handle_detokenize(struct exchange *x)
{
    request_run(x, &DETOKENIZE);
}

void handle_count_tokens(struct exchange *x)
{
    request_run(x, &COUNT);
}

static void write_special(struct buf *out, const struct tokenizer *tokenizer, const char *name,
                          int32_t id)
{
    size_t len = 0;
    const char *piece = id >= 0 ? tokenizer_piece(tokenizer, id, &len) : NULL;

    buf_printf(out, ",\"%s\":", name);
    if (piece)
        json_write_string(out, piece, len);
    else
        buf_append_str(out, "null");
    buf_printf(out, ",\"%s_id\":", name);
    if (piece)
        json_write_uint(out, (uint64_t)id);
    else
        buf_append_str(out, "null");
}

void handle_tokenizer_info(struct exchange *x)
{
    struct server *server = x->server;
    struct buf out = {0};
    struct http_error e;

    if (server_check_ready(server, &e) < 0) {
        exchange_fail(x, &e);
        return;
    }
    const struct tokenizer *tokenizer = engine_tokenizer(server->engine);
    const struct vocab *vocab = tokenizer_vocab(tokenizer);
    buf_printf(&out,
               "{\"tokenizer_class\":\"overfill\",\"model_max_length\":%u,\"vocab_size\":%u,"
               "\"add_bos_token\":%s,\"add_eos_token\":%s,\"chat_template\":",
               server->info.context, server->info.vocab_size, vocab->add_bos ? "true" : "false",
               vocab->add_eos ? "true" : "false");
    json_write_string_or_null(&out, vocab->chat_template);
    write_special(&out, tokenizer, "bos_token", vocab->bos);
    write_special(&out, tokenizer, "eos_token", vocab->eos);
    write_special(&out, tokenizer, "unk_token", vocab->unk);
    write_special(&out, tokenizer, "pad_token", vocab->pad);
    buf_append(&out, "}", 1);
    exchange_reply(x, 200, "application/json", &out);
}
