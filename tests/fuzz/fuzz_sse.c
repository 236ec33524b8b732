/* Framing of a stream: any tokens and stop strings go through the text stream and the JSON writer
 * into events; read back, the events' texts are what a plain reading of the bytes gives, however it
 * was cut. The input: a byte with the number of stop strings, those (length, bytes), then a byte a
 * token. */
#include "engine/base/buf.h"
#include "engine/tokenizer/text_stream.h"
#include "engine/tokenizer/tokenizer.h"
#include "server/json_read.h"
#include "server/json_write.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MAX_STOPS 4

struct input {
    struct stop_string stops[MAX_STOPS];
    size_t n_stops;
    const uint8_t *tokens;
    size_t n_tokens;
};

static struct input cut(const uint8_t *data, size_t n)
{
    struct input in = {0};
    size_t n_stops = n ? *data++ % (MAX_STOPS + 1) : 0;

    n -= n > 0;
    while (in.n_stops < n_stops && n > 0) {
        size_t len = *data % 8 + 1;
        if (len > n - 1 || !utf8_is_valid((const char *)data + 1, len))
            break; /* stop strings come out of JSON */
        in.stops[in.n_stops++] = (struct stop_string){(const char *)data + 1, len};
        data += 1 + len;
        n -= 1 + len;
    }
    in.tokens = data;
    in.n_tokens = n;
    return in;
}

/* How many bytes at data[0..n) begin a character without being one; at least 1. */
static size_t broken_len(const char *data, size_t n)
{
    static const char FILLERS[] = {'\x80', '\x90', '\xa0', '\xbf'};

    for (size_t k = n < 3 ? n : 3; k > 1; k--)
        for (size_t f = 0; f < sizeof(FILLERS); f++) {
            char whole[4] = {FILLERS[f], FILLERS[f], FILLERS[f], FILLERS[f]};
            memcpy(whole, data, k);
            if (utf8_char_len(whole, 4) > k)
                return k;
        }
    return 1;
}

/* The bytes as text: whole characters, one U+FFFD for the beginning of a character that is none and
 * for each byte beside (Unicode's "maximal subparts"). */
static void read_plainly(const struct input *in, struct buf *out)
{
    const char *bytes = (const char *)in->tokens;

    for (size_t i = 0; i < in->n_tokens;) {
        size_t len = utf8_char_len(bytes + i, in->n_tokens - i);
        if (len)
            buf_append(out, bytes + i, len);
        else
            buf_append_str(out, "\xef\xbf\xbd");
        i += len ? len : broken_len(bytes + i, in->n_tokens - i);
    }
    /* Up to the first stop string that is complete; of those that end there the longest. */
    for (size_t end = 1; end <= out->len; end++) {
        size_t longest = 0;
        for (size_t s = 0; s < in->n_stops; s++) {
            size_t len = in->stops[s].len;
            if (len <= end && len > longest &&
                memcmp(out->data + end - len, in->stops[s].data, len) == 0)
                longest = len;
        }
        if (longest) {
            out->len = end - longest;
            return;
        }
    }
}

/* Appends the text of one event, which must be one line of JSON between "data: " and "\n\n". */
static const char *read_event(const char *at, const char *end, struct buf *out)
{
    struct http_error e;
    const char *line = at + 6, *stop = memmem(at, (size_t)(end - at), "\n\n", 2);

    if (!stop || memcmp(at, "data: ", 6) != 0 ||
        memchr(line, '\n', (size_t)(stop - line)) != NULL ||
        json_check(line, (size_t)(stop - line), &e) < 0)
        abort();
    cJSON *object = cJSON_ParseWithLength(line, (size_t)(stop - line));
    const cJSON *text = cJSON_GetObjectItemCaseSensitive(object, "text");
    if (!cJSON_IsString(text))
        abort();
    buf_append_str(out, text->valuestring);
    cJSON_Delete(object);
    return stop + 2;
}

static void write_event(struct buf *events, struct buf *text)
{
    if (text->len == 0)
        return;
    if (!utf8_is_valid(text->data, text->len))
        abort(); /* a character was cut */
    buf_append_str(events, "data: {\"text\":");
    json_write_string(events, text->data, text->len);
    buf_append_str(events, "}\n\n");
    buf_clear(text);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct tokenizer *tokenizer;
    static struct vocab vocab;
    struct input in = cut(data, n);
    struct text_stream stream;
    struct buf expected = {0}, text = {0}, events = {0}, got = {0};
    bool stopped = false;

    for (size_t i = 0; i < in.n_tokens; i++)
        if (in.tokens[i] == 0)
            return 0; /* cJSON ends strings there */
    if (!tokenizer) {
        make_byte_vocab(&vocab, "gpt-2", NULL, (const char *const[]){NULL});
        tokenizer = open_tokenizer(&vocab);
    }
    text_stream_init(&stream, tokenizer, in.stops, in.n_stops);
    for (size_t i = 0; i < in.n_tokens && !stopped; i++) {
        stopped = text_stream_push(&stream, in.tokens[i], &text);
        write_event(&events, &text);
    }
    if (!stopped)
        text_stream_flush(&stream, &text);
    write_event(&events, &text);
    read_plainly(&in, &expected);
    for (const char *at = events.data; at && at < events.data + events.len;)
        at = read_event(at, events.data + events.len, &got);
    if (got.len != expected.len || (got.len && memcmp(got.data, expected.data, got.len) != 0))
        abort();
    text_stream_free(&stream);
    buf_free(&expected);
    buf_free(&text);
    buf_free(&events);
    buf_free(&got);
    return 0;
}
