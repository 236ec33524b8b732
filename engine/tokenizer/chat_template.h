/* Chat messages to prompt text, for the template families we know: ChatML, Llama 3, Llama
 * 2/Mistral, Qwen, Gemma, (more as they come). The family is recognised from the Jinja source that
 * the model file carries; no Jinja is run. The result is a list of spans: special spans come from
 * the template and may hold control tokens, the others are client text in which control tokens are
 * never parsed. Immutable, thread-safe. */
#ifndef OVERFILL_ENGINE_TOKENIZER_CHAT_TEMPLATE_H
#define OVERFILL_ENGINE_TOKENIZER_CHAT_TEMPLATE_H

#include "engine/base/buf.h"
#include "engine/base/error.h"
#include "engine/tokenizer/tokenizer.h"

struct chat_message {
    const char *role;    /* "system", "user", "assistant", ... NUL-terminated */
    const char *content; /* not NUL-terminated */
    size_t content_len;
};

struct chat_template; /* a family, plus what the file's template fixes (e.g. its default system
                         text) */

/* name: a family's name ("chatml", "smollm", "llama3", "mistral", "qwen", "gemma", ...), or NULL to
 * recognise it from jinja (may be NULL too: then ERROR_UNSUPPORTED). Unknown: ERROR_UNSUPPORTED
 * with the hint `--chat-template NAME` and the known names. Static storage, never freed. */
int chat_template_find(const char *name, const char *jinja,
                       const struct chat_template **ret_template, struct error *err);
const char *chat_template_name(const struct chat_template *tmpl);
const char *chat_template_names(void); /* "chatml, llama3, ..." */

/* Renders the messages and, if asked, the opening of the assistant's turn. Bytes go to *text,
 * span i covers text[spans[i].start, +len). The caller frees with chat_prompt_free.
 * A role the family has no place for is ERROR_INVALID and says messages[i].role. */
struct chat_span {
    size_t start;
    size_t len;
    bool special;
};
struct chat_prompt {
    struct buf text;
    struct chat_span *spans;
    size_t n_spans, cap_spans;
};
int chat_template_render(const struct chat_template *tmpl, const struct chat_message *messages,
                         size_t n_messages, bool add_generation_prompt,
                         struct chat_prompt *ret_prompt, struct error *err);
void chat_prompt_free(struct chat_prompt *prompt);

/* Token ids of a rendered prompt. Adds bos only if the vocabulary asks and the text has none. */
int chat_prompt_encode(const struct chat_prompt *prompt, const struct tokenizer *tokenizer,
                       struct token_list *list, struct error *err);

#endif
