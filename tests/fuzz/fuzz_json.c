/* A request body of any content: the checker and cJSON agree that it is JSON, and every route's
 * fields are read, or refused with an error object that is JSON itself. */
#include "engine/base/buf.h"
#include "server/fields.h"
#include "server/json_read.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

static const struct engine_info INFO = {.model_id = "m",
                                        .vocab_size = 100,
                                        .pruned_path = "p.gguf",
                                        .context = 1000,
                                        .decode = DECODE_PRUNED};

static void check_error(const struct http_error *e)
{
    struct buf text = {0};
    struct http_error unused;

    if (e->status != 400 && e->status != 404)
        abort(); /* a client's mistake, whatever it is */
    http_error_write(&text, e, DIALECT_OPENAI);
    if (text.failed || json_check(text.data, text.len, &unused) < 0)
        abort();
    buf_free(&text);
}

static void read_as(enum field_route route, const char *text, size_t n)
{
    struct http_error e = {0};
    struct buf unknown = {0};
    struct params params;
    cJSON *tree;

    if (json_parse_object(text, n, &tree, &e) < 0) {
        check_error(&e);
        return;
    }
    if (params_read(&params, route, tree, &INFO, &unknown, &e) < 0)
        check_error(&e);
    else
        params_free(&params);
    buf_free(&unknown);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static const char HEAD[] = "{\"model\":\"m\",";
    struct buf text = {0};

    json_setup();
    /* The input as it is, and as what follows a right model, to get past the first check. */
    read_as(ON_CHAT, (const char *)data, n);
    buf_append_str(&text, HEAD);
    buf_append(&text, data, n);
    for (unsigned route = ON_CHAT; route <= ON_DETOKENIZE; route *= 2)
        read_as((enum field_route)route, text.data, text.len);
    buf_free(&text);
    return 0;
}
