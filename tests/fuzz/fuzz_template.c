/* Any Jinja source is recognised or refused, and any conversation rendered with any family: client
 * text stands in spans that are not special, and encoding it gives no control token from there. */
#include "engine/tokenizer/chat_families.h"
#include "engine/tokenizer/chat_template.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

#define MAX_MESSAGES 8

static struct tokenizer *tokenizer_of_marks(void)
{
    static struct vocab vocab;
    static const struct token EXTRA[] = {
        {"<|im_start|>", TOKEN_CONTROL, 0}, {"<|im_end|>", TOKEN_CONTROL, 0},
        {"<s>", TOKEN_CONTROL, 0},          {"</s>", TOKEN_CONTROL, 0},
        {"<|eot_id|>", TOKEN_CONTROL, 0},   {"<|start_header_id|>", TOKEN_CONTROL, 0},
        {"[INST]", TOKEN_CONTROL, 0},       {NULL, 0, 0}};

    make_byte_vocab(&vocab, "gpt-2", EXTRA, (const char *const[]){NULL});
    return open_tokenizer(&vocab);
}

/* Lines of the input: the first letter chooses the role. */
static size_t cut_messages(char *text, struct chat_message *messages)
{
    static const char *const ROLES[] = {"system", "user", "assistant", "tool", "alien"};
    size_t n = 0;

    for (char *line = strtok(text, "\n"); line && n < MAX_MESSAGES; line = strtok(NULL, "\n")) {
        messages[n].role = ROLES[(unsigned char)line[0] % 5];
        messages[n].content = line + 1;
        messages[n].content_len = strlen(line + 1);
        n++;
    }
    return n;
}

static void check_spans(const struct chat_prompt *prompt)
{
    size_t at = 0;

    for (size_t i = 0; i < prompt->n_spans; i++) {
        if (prompt->spans[i].start != at)
            abort();
        at += prompt->spans[i].len;
    }
    if (at != prompt->text.len)
        abort();
}

static void render(const struct chat_template *family, const struct chat_message *messages,
                   size_t n, const struct tokenizer *tokenizer)
{
    struct chat_prompt prompt = {0};
    struct token_list list = {0};
    struct error err;

    if (chat_template_render(family, messages, n, true, &prompt, &err) == 0) {
        check_spans(&prompt);
        if (chat_prompt_encode(&prompt, tokenizer, &list, &err) < 0)
            abort();
    }
    token_list_free(&list);
    chat_prompt_free(&prompt);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    static struct tokenizer *tokenizer;
    struct chat_message messages[MAX_MESSAGES];
    const struct chat_template *found;
    struct error err;
    char *text = malloc(n + 1);

    if (!text)
        abort();
    if (!tokenizer)
        tokenizer = tokenizer_of_marks();
    memcpy(text, data, n);
    text[n] = '\0';
    chat_template_find(NULL, text, &found, &err);
    size_t n_messages = cut_messages(text, messages);
    for (size_t i = 0; n_messages && i < n_chat_families; i++)
        render(&chat_families[i], messages, n_messages, tokenizer);
    free(text);
    return 0;
}
