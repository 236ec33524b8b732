/* Writes docs/API.md or docs/openapi.yaml on stdout, from the tables the server itself works with;
 * scripts/docs calls it, and a test keeps the files equal to its output. Not part of the server. */
#include "server/openapi.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <string.h>

/* --- YAML ---------------------------------------------------------------------------------- */

static void print_indent(int depth)
{
    for (int i = 0; i < depth; i++)
        fputs("  ", stdout);
}

/* Words that stand without quotes and cannot be taken for something else. */
static bool is_plain(const char *text)
{
    static const char LETTERS[] = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ_";
    static const char *const WORDS[] = {"true", "false", "null", "yes", "no",
                                        "on",   "off",   "n",    "y"};
    size_t n = strspn(text, LETTERS);

    for (size_t i = 0; i < sizeof(WORDS) / sizeof(WORDS[0]); i++)
        if (strcmp(text, WORDS[i]) == 0)
            return false;
    return n > 0 && text[n] == '\0';
}

static void print_text(const char *text)
{
    cJSON *string = is_plain(text) ? NULL : cJSON_CreateString(text);
    char *quoted = string ? cJSON_PrintUnformatted(string) : NULL;

    fputs(quoted ? quoted : text, stdout); /* a JSON string is a YAML string */
    cJSON_free(quoted);
    cJSON_Delete(string);
}

static void print_scalar(const cJSON *value)
{
    if (cJSON_IsString(value)) {
        print_text(value->valuestring);
        return;
    }
    char *text = cJSON_PrintUnformatted(value); /* numbers, literals, empty containers */
    fputs(text ? text : "null", stdout);
    cJSON_free(text);
}

static bool is_nested(const cJSON *value)
{
    return (cJSON_IsObject(value) || cJSON_IsArray(value)) && value->child;
}

/* A list of scalars stands in one line. */
static bool is_short_list(const cJSON *value)
{
    for (const cJSON *item = value->child; item; item = item->next)
        if (is_nested(item))
            return false;
    return cJSON_IsArray(value);
}

static void print_yaml(const cJSON *value, int depth) /* NOLINT(misc-no-recursion) */
{
    for (const cJSON *item = value->child; item; item = item->next) {
        print_indent(depth);
        if (cJSON_IsArray(value)) {
            putchar('-');
        } else {
            print_text(item->string);
            putchar(':');
        }
        if (is_nested(item) && !is_short_list(item)) {
            putchar('\n');
            print_yaml(item, depth + 1);
            continue;
        }
        putchar(' ');
        print_scalar(item);
        putchar('\n');
    }
}

static int print_openapi(void)
{
    _cleanup_buf_ struct buf text = {0};

    openapi_write(&text, NULL);
    cJSON *tree = text.failed ? NULL : cJSON_ParseWithLength(text.data, text.len);
    if (!tree) {
        fprintf(stderr, "the description is not JSON near: %.200s\n",
                cJSON_GetErrorPtr() ? cJSON_GetErrorPtr() : "");
        return 1;
    }
    puts("# Made by scripts/docs from server/field_table.c and server/openapi.c.");
    print_yaml(tree, 0);
    cJSON_Delete(tree);
    return 0;
}

/* --- Markdown ------------------------------------------------------------------------------ */

static const char *type_of(const struct field *field)
{
    static const char *const NAMES[] = {
        [FIELD_BOOL] = "boolean", [FIELD_UINT] = "integer",  [FIELD_INT] = "integer",
        [FIELD_FLOAT] = "number", [FIELD_DOUBLE] = "number", [FIELD_STRING] = "string",
    };
    return field->kind <= FIELD_STRING ? NAMES[field->kind] : "see text";
}

static void print_field(const struct field *field, enum field_route route)
{
    printf("| `%s` | %s | ", field->name, type_of(field));
    if (field->max > field->min && field->max >= 2147483647.0)
        printf("%.10g or more", field->min);
    else if (field->max > field->min)
        printf("%.10g to %.10g", field->min, field->max);
    printf(" | %s | %s |\n",
           field->required & route ? "required"
           : field->preset         ? field->preset
                                   : "",
           field->help);
}

static void print_names(enum field_route route, enum field_kind kind, const char *title)
{
    size_t n, n_found = 0;
    const struct field *table = field_table(&n);

    for (size_t i = 0; i < n; i++) {
        if (!(table[i].routes & route) || table[i].kind != kind)
            continue;
        printf("%s`%s`", n_found++ ? ", " : title, table[i].name);
        if (table[i].neutral)
            printf(" (but `%s`)", table[i].neutral);
    }
    if (n_found)
        puts(".\n");
}

static void print_operation(const struct operation *operation)
{
    size_t n;
    const struct field *table = field_table(&n);

    printf("### %s %s\n\n%s%s\n\n", operation->method, operation->path, operation->summary,
           operation->streams ? " With `stream` as server-sent events." : "");
    if (!operation->route)
        return;
    puts("| field | type | range | default | meaning |\n| --- | --- | --- | --- | --- |");
    for (size_t i = 0; i < n; i++)
        if ((table[i].routes & operation->route) && table[i].kind < FIELD_ACCEPTED)
            print_field(&table[i], operation->route);
    puts("");
    print_names(operation->route, FIELD_ACCEPTED, "Taken, without an effect on the answer: ");
    print_names(operation->route, FIELD_UNSUPPORTED,
                "Refused with `unsupported_parameter` unless null, false or empty: ");
}

static const char INTRODUCTION[] =
    "<!-- Made by scripts/docs from server/field_table.c and server/openapi.c: change those. -->\n"
    "# HTTP API\n\n"
    "The same description for machines: [openapi.yaml](openapi.yaml), served at `/openapi.json`.\n"
    "A field that is in no table below is accepted, has no effect and is named in the server's "
    "log\n"
    "once. null stands for a field that is not there.\n\n"
    "## Errors\n\n"
    "`{\"error\":{\"message\",\"type\",\"param\",\"code\"}}`, all four always there; `param` names "
    "the\n"
    "field at fault, `code` is a string or null. Under `/v1/messages` it is Anthropic's\n"
    "`{\"type\":\"error\",\"error\":{\"type\",\"message\",...}}`. A prompt that does not fit has "
    "the code\n"
    "`context_length_exceeded` and the members `n_prompt_tokens` and `n_ctx`.\n\n"
    "| status | when |\n| --- | --- |\n"
    "| 400 | the body is not JSON, a field is wrong, unsupported or out of range, or the prompt is "
    "too long |\n"
    "| 401 | a key is needed and was not sent, or is not known |\n"
    "| 404, 405 | no such route or model; another method is allowed (header `allow`) |\n"
    "| 408 | headers or body did not arrive in time |\n"
    "| 413 | the body is larger than `max-body` |\n"
    "| 429 | the queue is full, or the key's rate is used up: `retry-after`, `retry-after-ms` |\n"
    "| 503 | loading, shutting down, or no memory for this request: `retry-after` |\n"
    "| 500 | a fault of the server; never the answer to a client's mistake |\n\n"
    "After the first byte of a stream an error is an event with the same object, and the body is\n"
    "left without its end, so that no client takes it for a whole answer.\n\n"
    "What does not get as far as a route is answered by the HTTP library, as HTML, without an id, "
    "and\n"
    "the connection ends: 414 and 431 for a request line and headers of more than 16 KiB "
    "together,\n"
    "505 for another version than HTTP/1, 400 for what is not HTTP.\n\n"
    "## Headers\n\n"
    "Every other reply has `x-request-id`: the client's own if it is up to 64 plain characters, "
    "else one "
    "of\n"
    "ours. A key comes as `Authorization: Bearer KEY` or `X-Api-Key: KEY`. With rate limits set, "
    "replies\n"
    "of the generation routes have `x-ratelimit-limit-requests`, "
    "`x-ratelimit-remaining-requests`,\n"
    "`x-ratelimit-reset-requests` and the same three for `tokens`. HEAD is answered where GET is,\n"
    "OPTIONS everywhere; origins listed in `cors-origins` get the CORS headers. Bodies are "
    "neither\n"
    "taken nor sent compressed.\n\n"
    "## Routes\n\n"
    "`/chat/completions`, `/responses` and `/models` are taken as if they began with `/v1`, and\n"
    "`/v1/health` as `/health`: clients of llama-server send them.\n";

static int print_markdown(void)
{
    puts(INTRODUCTION);
    for (size_t i = 0; i < N_OPERATIONS; i++)
        print_operation(&OPERATIONS[i]);
    return 0;
}

int main(int argc, char **argv)
{
    if (argc == 2 && strcmp(argv[1], "openapi") == 0)
        return print_openapi();
    if (argc == 2 && strcmp(argv[1], "markdown") == 0)
        return print_markdown();
    fputs("usage: api_docs openapi|markdown\n", stderr);
    return 2;
}
