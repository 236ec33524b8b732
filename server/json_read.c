/* The grammar of RFC 8259 as a small machine with a bit stack: one bit a nesting level says array
 * or object, so depth costs no recursion. See json_read.h. */
#include "server/json_read.h"

#include "engine/base/mem.h"
#include "server/json_write.h"

#include <stdint.h>
#include <string.h>

#define EXACT_DIGITS 15  /* a double holds any integer of so many */
#define MOST_INTEGERS 16 /* longer ones of an object that keep their digits */

/* A member of the outermost object that is an integer of many digits. */
struct integer {
    size_t i_member;
    size_t start, len; /* in the text */
};

struct scan {
    const char *text;
    size_t len;
    size_t at;
    const char *fault; /* what was expected, or which limit; NULL while all is well */
    size_t n_members;  /* of the outermost object so far */
    struct integer integers[MOST_INTEGERS];
    size_t n_integers;
};

void json_setup(void)
{
    cJSON_Hooks hooks = {.malloc_fn = mem_alloc, .free_fn = mem_free};
    cJSON_InitHooks(&hooks);
}

static bool fail(struct scan *s, const char *fault)
{
    if (!s->fault)
        s->fault = fault;
    return false;
}

static int peek(const struct scan *s)
{
    return s->at < s->len ? (unsigned char)s->text[s->at] : -1;
}

static void skip_space(struct scan *s)
{
    while (s->at < s->len && strchr(" \t\n\r", s->text[s->at]) && s->text[s->at])
        s->at++;
}

static int hex4(struct scan *s)
{
    int value = 0;
    for (int i = 0; i < 4; i++, s->at++) {
        int c = peek(s);
        if (c >= '0' && c <= '9')
            value = value * 16 + c - '0';
        else if (c >= 'a' && c <= 'f')
            value = value * 16 + c - 'a' + 10;
        else if (c >= 'A' && c <= 'F')
            value = value * 16 + c - 'A' + 10;
        else
            return -1;
    }
    return value;
}

/* After the backslash. */
static bool scan_escape(struct scan *s)
{
    int c = peek(s);
    s->at++;
    if (c != 'u')
        return (c > 0 && strchr("\"\\/bfnrt", c)) || fail(s, "invalid escape in a string");
    int unit = hex4(s);
    if (unit < 0)
        return fail(s, "\\u needs four hexadecimal digits");
    if (unit == 0)
        return fail(s, "the character U+0000 is not allowed in strings");
    if (unit >= 0xdc00 && unit <= 0xdfff)
        return fail(s, "a low surrogate without its high half");
    if (unit >= 0xd800 && unit <= 0xdbff) {
        if (s->len - s->at < 6 || s->text[s->at] != '\\' || s->text[s->at + 1] != 'u')
            return fail(s, "a high surrogate without its low half");
        s->at += 2;
        unit = hex4(s);
        if (unit < 0xdc00 || unit > 0xdfff)
            return fail(s, "a high surrogate without its low half");
    }
    return true;
}

static bool scan_string(struct scan *s)
{
    s->at++; /* the opening quote */
    while (s->at < s->len) {
        unsigned char c = (unsigned char)s->text[s->at];
        if (c == '"') {
            s->at++;
            return true;
        }
        if (c < 0x20)
            return fail(s, "a control character in a string must be escaped");
        if (c == '\\') {
            s->at++;
            if (!scan_escape(s))
                return false;
            continue;
        }
        size_t n = utf8_char_len(s->text + s->at, s->len - s->at);
        if (n == 0)
            return fail(s, "a string holds bytes that are not UTF-8");
        s->at += n;
    }
    return fail(s, "a string has no end");
}

static size_t scan_digits(struct scan *s)
{
    size_t start = s->at;
    while (peek(s) >= '0' && peek(s) <= '9')
        s->at++;
    return s->at - start;
}

static bool scan_number(struct scan *s)
{
    size_t start = s->at;
    if (peek(s) == '-')
        s->at++;
    if (peek(s) == '0')
        s->at++;
    else if (scan_digits(s) == 0)
        return fail(s, "a value expected");
    if (peek(s) == '.') {
        s->at++;
        if (scan_digits(s) == 0)
            return fail(s, "digits expected after the decimal point");
    }
    if (peek(s) == 'e' || peek(s) == 'E') {
        s->at++;
        if (peek(s) == '+' || peek(s) == '-')
            s->at++;
        if (scan_digits(s) == 0)
            return fail(s, "digits expected in the exponent");
    }
    /* cJSON copies a number into 64 bytes and would go on in the middle of a longer one. */
    if (s->at - start > 60)
        return fail(s, "a number has more than 60 characters");
    return true;
}

static bool scan_literal(struct scan *s, const char *word)
{
    size_t n = strlen(word);
    if (s->len - s->at < n || memcmp(s->text + s->at, word, n) != 0)
        return fail(s, "a value expected");
    s->at += n;
    return true;
}

static bool scan_scalar(struct scan *s)
{
    switch (peek(s)) {
    case '"':
        return scan_string(s);
    case 't':
        return scan_literal(s, "true");
    case 'f':
        return scan_literal(s, "false");
    case 'n':
        return scan_literal(s, "null");
    default:
        return scan_number(s);
    }
}

/* "key": up to the value. */
static bool scan_key(struct scan *s)
{
    skip_space(s);
    if (peek(s) != '"')
        return fail(s, "a member name in quotes expected");
    if (!scan_string(s))
        return false;
    skip_space(s);
    if (peek(s) != ':')
        return fail(s, "':' expected after a member name");
    s->at++;
    return true;
}

/* Of the outermost object, whose value was scanned from `start` to here. */
static void note_integer(struct scan *s, size_t start)
{
    size_t len = s->at - start, sign = s->text[start] == '-';
    if (len - sign <= EXACT_DIGITS || s->n_integers == MOST_INTEGERS)
        return;
    for (size_t i = start + sign; i < s->at; i++)
        if (s->text[i] < '0' || s->text[i] > '9')
            return;
    s->integers[s->n_integers++] = (struct integer){s->n_members - 1, start, len};
}

static bool scan_document(struct scan *s)
{
    uint64_t is_object = 0; /* bit 0: the innermost open container */
    unsigned depth = 0;
    size_t n_values = 0;

    for (;;) {
        /* A value starts here. */
        skip_space(s);
        if (++n_values > JSON_MAX_VALUES)
            return fail(s, "too many values in one request");
        int c = peek(s);
        if (c == '{' || c == '[') {
            if (depth == JSON_MAX_DEPTH)
                return fail(s, "nested too deeply");
            s->at++;
            skip_space(s);
            if (peek(s) != (c == '{' ? '}' : ']')) {
                depth++;
                is_object = is_object << 1 | (c == '{');
                s->n_members += depth == 1;
                if (c == '{' && !scan_key(s))
                    return false;
                continue;
            }
            s->at++;
        } else {
            size_t start = s->at;
            if (!scan_scalar(s))
                return false;
            if (depth == 1)
                note_integer(s, start);
        }
        /* A value has ended: close what it closes, or go on to the next one. */
        for (;;) {
            skip_space(s);
            if (depth == 0)
                return s->at == s->len || fail(s, "the end expected after the value");
            c = peek(s);
            s->at++;
            if (c == ',')
                break;
            if (c != ((is_object & 1) ? '}' : ']')) {
                s->at--;
                return fail(s, (is_object & 1) ? "',' or '}' expected" : "',' or ']' expected");
            }
            depth--;
            is_object >>= 1;
        }
        s->n_members += depth == 1;
        if ((is_object & 1) && !scan_key(s))
            return false;
    }
}

static int check(struct scan *s, struct http_error *ret_error)
{
    if (scan_document(s))
        return 0;
    return http_invalid(ret_error, NULL, NULL,
                        "We could not parse the JSON body of your request: %s (at byte %zu of "
                        "%zu). The OpenAI API expects a JSON payload, but what was sent was not "
                        "valid JSON.",
                        s->fault, s->at, s->len);
}

int json_check(const char *text, size_t len, struct http_error *ret_error)
{
    struct scan s = {.text = text, .len = len};

    return check(&s, ret_error);
}

/* cJSON frees a number's valuestring with it, and otherwise leaves it alone. */
static bool keep_digits(const struct scan *s, cJSON *object)
{
    size_t i_member = 0, i = 0;

    for (cJSON *item = object->child; item && i < s->n_integers; item = item->next, i_member++) {
        const struct integer *integer = &s->integers[i];
        if (integer->i_member != i_member)
            continue;
        item->valuestring = mem_strndup(s->text + integer->start, integer->len);
        if (!item->valuestring)
            return false;
        i++;
    }
    return true;
}

int json_parse_object(const char *text, size_t len, cJSON **ret_object,
                      struct http_error *ret_error)
{
    struct scan s = {.text = text, .len = len};

    if (len == 0)
        return http_invalid(ret_error, NULL, NULL,
                            "We could not parse the JSON body of your request: the body is empty.");
    if (check(&s, ret_error) < 0)
        return -1;
    cJSON *object = cJSON_ParseWithLength(text, len);
    if (!object)
        return http_out_of_memory(ret_error); /* the grammar is known to hold */
    if (!cJSON_IsObject(object)) {
        cJSON_Delete(object);
        return http_invalid(ret_error, NULL, NULL, "The JSON body of a request must be an object.");
    }
    if (!keep_digits(&s, object)) {
        cJSON_Delete(object);
        return http_out_of_memory(ret_error);
    }
    *ret_object = object;
    return 0;
}
