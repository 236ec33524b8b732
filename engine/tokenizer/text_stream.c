/* Tokens to text in two steps: bytes become whole characters, and characters wait while they may
 * belong to a stop string. See text_stream.h. */
#include "engine/tokenizer/text_stream.h"

#include "engine/tokenizer/utf8.h"

#include <string.h>

void text_stream_init(struct text_stream *stream, const struct tokenizer *tokenizer,
                      const struct stop_string *stops, size_t n_stops)
{
    *stream = (struct text_stream){.tokenizer = tokenizer, .stops = stops, .n_stops = n_stops};
    for (size_t i = 0; i < n_stops; i++)
        if (stops[i].len > stream->max_stop_bytes)
            stream->max_stop_bytes = stops[i].len;
}

void text_stream_free(struct text_stream *stream)
{
    buf_free(&stream->held);
}

/* Appends bytes[len] to held as characters; what may go on in the next token stays in cut. */
static void hold_bytes(struct text_stream *stream, const char *bytes, size_t len)
{
    size_t n;

    while (stream->n_cut &&
           len) { /* at most three rounds: a character is then complete or not one */
        stream->cut[stream->n_cut++] = *bytes;
        enum utf8_step step = utf8_next(stream->cut, stream->n_cut, &n);
        if (step == UTF8_INVALID) { /* the byte just added does not go on with it */
            buf_append_str(&stream->held, UTF8_REPLACEMENT);
            stream->n_cut = 0;
            break;
        }
        bytes++;
        len--;
        if (step == UTF8_CHARACTER) {
            buf_append(&stream->held, stream->cut, stream->n_cut);
            stream->n_cut = 0;
        }
    }
    for (; len; bytes += n, len -= n) {
        enum utf8_step step = utf8_next(bytes, len, &n);
        if (step == UTF8_CUT) {
            memcpy(stream->cut, bytes, n);
            stream->n_cut = n;
        } else if (step == UTF8_INVALID) {
            buf_append_str(&stream->held, UTF8_REPLACEMENT);
        } else {
            buf_append(&stream->held, bytes, n);
        }
    }
}

/* Where in held the text ends because of a stop string, or SIZE_MAX. Only strings that end after
 * the first n_old bytes are new. */
static size_t find_stop(const struct text_stream *stream, size_t n_old)
{
    size_t first_end = SIZE_MAX, start = SIZE_MAX;

    for (size_t i = 0; i < stream->n_stops; i++) {
        const struct stop_string *stop = &stream->stops[i];
        if (stop->len == 0 || stream->held.len < stop->len)
            continue;
        size_t from = n_old >= stop->len ? n_old - stop->len + 1 : 0;
        const char *found =
            memmem(stream->held.data + from, stream->held.len - from, stop->data, stop->len);
        if (!found)
            continue;
        size_t at = (size_t)(found - stream->held.data), end = at + stop->len;
        if (end < first_end || (end == first_end && at < start)) {
            first_end = end;
            start = at;
        }
    }
    return start;
}

/* Bytes at the end of held that are the beginning of a stop string. */
static size_t count_waiting(const struct text_stream *stream)
{
    size_t n = stream->held.len;
    if (stream->max_stop_bytes == 0)
        return 0;
    if (n > stream->max_stop_bytes - 1)
        n = stream->max_stop_bytes - 1;
    for (; n > 0; n--) {
        const char *end = stream->held.data + stream->held.len - n;
        for (size_t i = 0; i < stream->n_stops; i++)
            if (stream->stops[i].len > n && memcmp(end, stream->stops[i].data, n) == 0)
                return n;
    }
    return 0;
}

/* Moves the first n bytes of held to out. */
static void release(struct text_stream *stream, size_t n, struct buf *out)
{
    if (n == 0)
        return;
    buf_append(out, stream->held.data, n);
    stream->held.len -= n;
    memmove(stream->held.data, stream->held.data + n, stream->held.len);
}

/* True when held now has a stop string: then what is before it is out, and the stream is over. */
static bool stop_at(struct text_stream *stream, size_t n_old, struct buf *out)
{
    size_t start = find_stop(stream, n_old);
    if (start == SIZE_MAX)
        return false;
    release(stream, start, out);
    stream->held.len = 0;
    stream->n_cut = 0;
    stream->stopped = true;
    return true;
}

bool text_stream_push(struct text_stream *stream, int32_t token, struct buf *out)
{
    size_t len = 0, n_old = stream->held.len;
    const char *piece = tokenizer_piece(stream->tokenizer, token, &len);

    if (stream->stopped)
        return true;
    if (!piece || tokenizer_is_control(stream->tokenizer, token))
        return false;
    hold_bytes(stream, piece, len);
    if (stop_at(stream, n_old, out))
        return true;
    release(stream, stream->held.len - count_waiting(stream), out);
    return false;
}

void text_stream_flush(struct text_stream *stream, struct buf *out)
{
    size_t n_old = stream->held.len;

    if (stream->stopped)
        return;
    if (stream->n_cut) { /* the text ends inside a character */
        buf_append_str(&stream->held, UTF8_REPLACEMENT);
        stream->n_cut = 0;
        if (stop_at(stream, n_old, out))
            return;
    }
    release(stream, stream->held.len, out);
}
