/* Log-probabilities in the two shapes OpenAI gives them: chat's list of objects and the four
 * parallel lists of legacy completions. Items are written as JSON text while tokens arrive; the
 * braces around them come at the end, or once an event in a stream. */
#ifndef OVERFILL_SERVER_LOGPROBS_H
#define OVERFILL_SERVER_LOGPROBS_H

#include "engine/engine.h"

struct logprob_text {
    struct buf tokens;  /* chat: the items of `content`; legacy: of `tokens` */
    struct buf values;  /* legacy: `token_logprobs`, */
    struct buf tops;    /*   `top_logprobs`, */
    struct buf offsets; /*   `text_offset` */
};
void logprob_text_clear(struct logprob_text *l);
void logprob_text_free(struct logprob_text *l);
bool logprob_text_failed(const struct logprob_text *l);
void logprob_text_append(struct logprob_text *l, const struct logprob_text *more);

/* `top` is the record's own list, [record->n_top]. */
void logprobs_add_chat(struct logprob_text *l, const struct tokenizer *tokenizer,
                       const struct engine_token *record, const struct token_logprob *top);
/* *offset: characters before this token, moved on by the token's own. A NAN log-probability (the
 * first token of a prompt) is null in both lists. */
void logprobs_add_legacy(struct logprob_text *l, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top,
                         size_t *offset);

/* One item of vLLM's prompt_logprobs: null, or {"id": {"logprob", "rank", "decoded_token"}, ...}
 * with the token itself first. */
void logprobs_add_prompt(struct buf *out, const struct tokenizer *tokenizer,
                         const struct engine_token *record, const struct token_logprob *top);

void logprobs_write_chat(struct buf *out, const struct logprob_text *l);
/* with_top false: `top_logprobs` is null. */
void logprobs_write_legacy(struct buf *out, const struct logprob_text *l, bool with_top);

#endif
