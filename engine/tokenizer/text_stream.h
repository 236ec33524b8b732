/* Generated tokens to text that may be sent: whole UTF-8 characters only, nothing that could be the
 * start of a stop string, nothing after one. Of several stop strings the one that is complete first
 * counts, of those the longest. Concatenated output is the same however it is cut into tokens.
 * One per choice, used by one thread at a time; allocation-free once its buffers have grown. */
#ifndef OVERFILL_ENGINE_TOKENIZER_TEXT_STREAM_H
#define OVERFILL_ENGINE_TOKENIZER_TEXT_STREAM_H

#include "engine/base/buf.h"
#include "engine/tokenizer/tokenizer.h"

struct stop_string {
    const char *data;
    size_t len;
};

struct text_stream {
    const struct tokenizer *tokenizer;
    const struct stop_string *stops; /* owned by the request, outlives the stream */
    size_t n_stops;
    size_t max_stop_bytes;
    struct buf held; /* whole characters that may be the start of a stop string */
    bool stopped;    /* a stop string was found; everything later is dropped */
    char cut[4];     /* the beginning of a character */
    size_t n_cut;
};

void text_stream_init(struct text_stream *stream, const struct tokenizer *tokenizer,
                      const struct stop_string *stops, size_t n_stops);
void text_stream_free(struct text_stream *stream);

/* Takes one token; appends the bytes that are now safe to *out. Returns true when a stop string was
 * completed: generation ends, the stop string and what follows it are not in the text. Control
 * tokens give no text. Invalid UTF-8 becomes U+FFFD. A failed allocation shows in held.failed /
 * out->failed. */
bool text_stream_push(struct text_stream *stream, int32_t token, struct buf *out);
/* The end of generation without a stop string: appends everything held. */
void text_stream_flush(struct text_stream *stream, struct buf *out);

#endif
