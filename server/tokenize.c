/* POST /tokenize and /detokenize in the two shapes that clients know: vLLM's (`prompt`, or
 * `messages` of a chat; reply with count and max_model_len) and llama-server's (`content`; pieces
 * on request). The reply has the members of both. */
#include "engine/base/mem.h"
#include "server/fields.h"
#include "server/internal.h"
#include "server/json_read.h"
#include "server/json_write.h"

#include <string.h>

/* The tokenizer runs on the loop, so the text is held to what a context can take anyway. */
#define TOKENIZE_MAX_BYTES ((size_t)1 << 20)

struct tokenize_request {
    const char *text; /* NULL: messages */
    bool add_special, parse_special, with_pieces;
};

static bool read_flag(const cJSON *object, const char *name, bool otherwise)
{
    const cJSON *value = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsBool(value) ? cJSON_IsTrue(value) : otherwise;
}

static int read_text(const cJSON *object, struct tokenize_request *r, struct http_error *e)
{
    const cJSON *prompt = cJSON_GetObjectItemCaseSensitive(object, "prompt");
    const cJSON *content = cJSON_GetObjectItemCaseSensitive(object, "content");
    const cJSON *value = prompt ? prompt : content;
    const char *name = prompt ? "prompt" : "content";

    if (!value)
        return http_invalid(e, "prompt", "missing_required_parameter",
                            "Missing required parameter: 'prompt' (or 'content', or 'messages').");
    if (!cJSON_IsString(value))
        return field_wrong_type(e, name, "a string", value);
    if (strlen(value->valuestring) > TOKENIZE_MAX_BYTES)
        return http_invalid(e, name, "string_above_max_length",
                            "Invalid '%s': string too long. Expected at most %zu bytes, but got "
                            "%zu instead.",
                            name, TOKENIZE_MAX_BYTES, strlen(value->valuestring));
    r->text = value->valuestring;
    /* vLLM adds the special tokens unless told not to, llama-server only when told. */
    r->add_special = prompt ? read_flag(object, "add_special_tokens", true)
                            : read_flag(object, "add_special", false);
    r->parse_special = read_flag(object, "parse_special", true);
    r->with_pieces =
        read_flag(object, "with_pieces", false) || read_flag(object, "return_token_strs", false);
    return 0;
}

static int from_engine(struct http_error *e, const struct error *err, const char *param)
{
    http_error_from_engine(e, err, param, 0, 0, UINT32_MAX);
    return -1;
}

static int encode_messages(const struct server *server, const cJSON *messages,
                           bool add_generation_prompt, struct token_list *list,
                           struct http_error *e)
{
    struct params params = {0};
    struct chat_prompt prompt = {0};
    struct error err = {0};
    int result = -1;

    if (!add_generation_prompt)
        return http_invalid(e, "add_generation_prompt", "unsupported_parameter",
                            "Unsupported parameter: 'add_generation_prompt' must be true.");
    if (field_read_messages(&params, "messages", messages, e) < 0) {
        params_free(&params);
        return -1;
    }
    if (engine_render(server->engine, params.messages, params.n_messages, &prompt, &err) < 0 ||
        chat_prompt_encode(&prompt, engine_tokenizer(server->engine), list, &err) < 0)
        from_engine(e, &err, "messages");
    else
        result = 0;
    chat_prompt_free(&prompt);
    params_free(&params);
    return result;
}

static void write_pieces(struct buf *out, const struct tokenizer *tokenizer,
                         const struct token_list *list)
{
    for (size_t i = 0; i < list->n; i++) {
        size_t len = 0;
        const char *piece = tokenizer_piece(tokenizer, list->ids[i], &len);
        if (i > 0)
            buf_append(out, ",", 1);
        json_write_string(out, piece, len);
    }
}

static void reply_tokens(struct exchange *x, const struct token_list *list, bool with_pieces)
{
    struct server *server = x->server;
    struct buf body = {0};

    buf_printf(&body, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", list->n,
               server->info.context);
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            buf_append(&body, ",", 1);
        json_write_uint(&body, (uint64_t)list->ids[i]);
    }
    buf_append_str(&body, "],\"token_strs\":");
    if (with_pieces) {
        buf_append(&body, "[", 1);
        write_pieces(&body, engine_tokenizer(server->engine), list);
        buf_append(&body, "]", 1);
    } else {
        buf_append_str(&body, "null");
    }
    buf_append(&body, "}", 1);
    exchange_reply(x, 200, "application/json", &body);
}

static int tokenize(struct exchange *x, const cJSON *object, struct http_error *e)
{
    const struct server *server = x->server;
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(object, "messages");
    struct tokenize_request r = {.with_pieces = read_flag(object, "return_token_strs", false)};
    struct token_list list = {0};
    struct error err = {0};
    int result = 0;

    if (messages) {
        result = encode_messages(server, messages, read_flag(object, "add_generation_prompt", true),
                                 &list, e);
    } else if (read_text(object, &r, e) < 0) {
        result = -1;
    } else {
        unsigned flags = (r.add_special ? TOKENIZER_ADD_SPECIAL : 0) |
                         (r.parse_special ? TOKENIZER_PARSE_SPECIAL : 0);
        if (tokenizer_encode(engine_tokenizer(server->engine), r.text, strlen(r.text), flags, &list,
                             &err) < 0)
            result = from_engine(e, &err, "prompt");
    }
    if (result == 0)
        reply_tokens(x, &list, r.with_pieces);
    token_list_free(&list);
    return result;
}

static int detokenize(struct exchange *x, const cJSON *object, struct http_error *e)
{
    const struct tokenizer *tokenizer = engine_tokenizer(x->server->engine);
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(object, "tokens");
    _cleanup_buf_ struct buf text = {0};
    struct buf body = {0};

    if (!tokens)
        return http_invalid(e, "tokens", "missing_required_parameter",
                            "Missing required parameter: 'tokens'.");
    if (!cJSON_IsArray(tokens))
        return field_wrong_type(e, "tokens", "an array of token ids", tokens);
    for (const cJSON *item = tokens->child; item; item = item->next) {
        size_t len;
        double id;
        if (field_read_integer(item, "tokens", 0, x->server->info.vocab_size - 1.0, &id, e) < 0)
            return -1;
        const char *piece = tokenizer_piece(tokenizer, (int32_t)id, &len);
        if (piece)
            buf_append(&text, piece, len);
    }
    if (text.failed)
        return http_out_of_memory(e);
    buf_append_str(&body, "{\"prompt\":");
    json_write_string(&body, text.data, text.len);
    buf_append_str(&body, ",\"content\":");
    json_write_string(&body, text.data, text.len);
    buf_append(&body, "}", 1);
    exchange_reply(x, 200, "application/json", &body);
    return 0;
}

static void handle(struct exchange *x,
                   int (*work)(struct exchange *, const cJSON *, struct http_error *))
{
    struct http_error e;
    cJSON *object = NULL;

    if (server_check_ready(x->server, &e) < 0 ||
        json_parse_object(x->body.data, x->body.len, &object, &e) < 0 || work(x, object, &e) < 0)
        exchange_fail(x, &e);
    cJSON_Delete(object);
}

void handle_tokenize(struct exchange *x)
{
    handle(x, tokenize);
}

void handle_detokenize(struct exchange *x)
{
    handle(x, detokenize);
}
