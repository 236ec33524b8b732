/* POST /tokenize and /detokenize in the two shapes that clients know: vLLM's (`prompt`, or
 * `messages` of a chat; reply with count and max_model_len) and llama-server's (`content`; pieces
 * on request). The reply has the members of both. Short texts are worked on at once, long ones on a
 * thread of the loop's pool, so that the loop goes on. */
#include "server/fields.h"
#include "server/internal.h"
#include "server/json_read.h"
#include "server/json_write.h"
#include "server/offload.h"

#include <string.h>

#define TOKENIZE_MAX_BYTES ((size_t)4 << 20) /* of text in one request */
#define INLINE_MAX_BYTES ((size_t)16 << 10)  /* of a body that the loop works on itself */

struct tokenize_request {
    const char *text;
    size_t text_len;
    unsigned flags;
    bool with_pieces;
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
    r->text = value->valuestring;
    r->text_len = strlen(value->valuestring);
    if (r->text_len > TOKENIZE_MAX_BYTES)
        return http_invalid(e, name, "string_above_max_length",
                            "Invalid '%s': string too long. Expected a string with maximum length "
                            "%zu, but got a string with length %zu instead.",
                            name, TOKENIZE_MAX_BYTES, r->text_len);
    /* vLLM adds the special tokens unless told not to, llama-server only when told. */
    if (prompt ? read_flag(object, "add_special_tokens", true)
               : read_flag(object, "add_special", false))
        r->flags |= TOKENIZER_ADD_SPECIAL;
    if (read_flag(object, "parse_special", true))
        r->flags |= TOKENIZER_PARSE_SPECIAL;
    return 0;
}

static int from_engine(struct http_error *e, const struct error *err, const char *param)
{
    http_error_from_engine(e, err, param, 0, 0, UINT32_MAX);
    return -1;
}

static int encode_messages(const struct engine *engine, const cJSON *object, const cJSON *messages,
                           struct token_list *list, struct http_error *e)
{
    struct params params = {0};
    struct chat_prompt prompt = {0};
    struct error err = {0};
    int result = -1;

    if (!read_flag(object, "add_generation_prompt", true))
        return http_invalid(e, "add_generation_prompt", "unsupported_parameter",
                            "Unsupported parameter: 'add_generation_prompt' must be true.");
    if (field_read_messages(&params, "messages", messages, e) == 0) {
        if (engine_render(engine, params.messages, params.n_messages, &prompt, &err) < 0 ||
            chat_prompt_encode(&prompt, engine_tokenizer(engine), list, &err) < 0)
            from_engine(e, &err, "messages");
        else
            result = 0;
    }
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

static void write_tokens(struct buf *out, const struct engine *engine,
                         const struct token_list *list, bool with_pieces)
{
    struct engine_info info;

    engine_get_info(engine, &info);
    buf_reserve(out, list->n * (with_pieces ? 16 : 8) + 128);
    buf_printf(out, "{\"count\":%zu,\"max_model_len\":%u,\"tokens\":[", list->n, info.context);
    for (size_t i = 0; i < list->n; i++) {
        if (i > 0)
            buf_append(out, ",", 1);
        json_write_uint(out, (uint64_t)list->ids[i]);
    }
    buf_append_str(out, "],\"token_strs\":");
    if (with_pieces) {
        buf_append(out, "[", 1);
        write_pieces(out, engine_tokenizer(engine), list);
        buf_append(out, "]", 1);
    } else {
        buf_append_str(out, "null");
    }
    buf_append(out, "}", 1);
}

static int tokenize(const struct engine *engine, const cJSON *object, struct buf *out,
                    struct http_error *e)
{
    const cJSON *messages = cJSON_GetObjectItemCaseSensitive(object, "messages");
    struct tokenize_request r = {.with_pieces = read_flag(object, "with_pieces", false) ||
                                                read_flag(object, "return_token_strs", false)};
    struct token_list list = {0};
    struct error err = {0};
    int result;

    if (messages) {
        result = encode_messages(engine, object, messages, &list, e);
    } else {
        result = read_text(object, &r, e);
        if (result == 0 && tokenizer_encode(engine_tokenizer(engine), r.text, r.text_len, r.flags,
                                            &list, &err) < 0)
            result = from_engine(e, &err, "prompt");
    }
    if (result == 0)
        write_tokens(out, engine, &list, r.with_pieces);
    token_list_free(&list);
    return result;
}

static int detokenize(const struct engine *engine, const cJSON *object, struct buf *out,
                      struct http_error *e)
{
    const struct tokenizer *tokenizer = engine_tokenizer(engine);
    const cJSON *tokens = cJSON_GetObjectItemCaseSensitive(object, "tokens");
    _cleanup_buf_ struct buf text = {0};
    struct engine_info info;

    engine_get_info(engine, &info);
    if (!tokens)
        return http_invalid(e, "tokens", "missing_required_parameter",
                            "Missing required parameter: 'tokens'.");
    if (!cJSON_IsArray(tokens))
        return field_wrong_type(e, "tokens", "an array of token ids", tokens);
    buf_reserve(&text, (size_t)cJSON_GetArraySize(tokens) * 6);
    for (const cJSON *item = tokens->child; item; item = item->next) {
        size_t len;
        double id;
        if (field_read_integer(item, "tokens", 0, info.vocab_size - 1.0, &id, e) < 0)
            return -1;
        const char *piece = tokenizer_piece(tokenizer, (int32_t)id, &len);
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

static void handle(struct exchange *x, offload_work work)
{
    struct server *server = x->server;
    struct http_error e;
    struct buf out = {0};
    cJSON *object;

    if (server_check_ready(server, &e) < 0 ||
        json_parse_object(x->body.data, x->body.len, &object, &e) < 0) {
        exchange_fail(x, &e);
        return;
    }
    if (x->body.len > INLINE_MAX_BYTES && offload_start(x, work, object) == 0)
        return;
    if (work(server->engine, object, &out, &e) < 0)
        exchange_fail(x, &e);
    else
        exchange_reply(x, 200, "application/json", &out);
    buf_free(&out);
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
