/* The fake engine's tokenizer: 256 single bytes, every pair of printable ASCII characters, two
 * control tokens. Characters outside ASCII are one token a byte, so that the server meets tokens
 * that are parts of a character. */
#include "tests/unit/server/fake_tokenizer.h"

#include "engine/base/mem.h"
#include "engine/tokenizer/chat_template.h"

#include <string.h>

struct tokenizer {
    struct vocab vocab; /* only what says something of the special tokens */
    char pieces[FAKE_CONTROL][2];
};

static bool is_pairable(unsigned char c)
{
    return c >= 0x20 && c < 0x7f;
}

struct tokenizer *fake_tokenizer_open(void)
{
    struct tokenizer *t = mem_calloc(1, sizeof(*t));
    if (!t)
        return NULL;
    t->vocab =
        (struct vocab){.bos = FAKE_CONTROL, .eos = FAKE_END, .eot = -1, .unk = -1, .pad = -1};
    for (int i = 0; i < 256; i++)
        t->pieces[i][0] = (char)i;
    for (int a = 0; a < FAKE_PAIRS; a++)
        for (int b = 0; b < FAKE_PAIRS; b++) {
            t->pieces[256 + a * FAKE_PAIRS + b][0] = (char)(0x20 + a);
            t->pieces[256 + a * FAKE_PAIRS + b][1] = (char)(0x20 + b);
        }
    return t;
}

const struct vocab *tokenizer_vocab(const struct tokenizer *tokenizer)
{
    return &tokenizer->vocab;
}

void tokenizer_close(struct tokenizer *tokenizer)
{
    mem_free(tokenizer);
}

const char *tokenizer_piece(const struct tokenizer *tokenizer, int32_t id, size_t *ret_len)
{
    static const char *const CONTROL[] = {"<|start|>", "<|end|>"};

    if (id < 0 || id >= FAKE_VOCAB)
        return NULL;
    if (id >= FAKE_CONTROL) {
        *ret_len = strlen(CONTROL[id - FAKE_CONTROL]);
        return CONTROL[id - FAKE_CONTROL];
    }
    *ret_len = id < 256 ? 1 : 2;
    return tokenizer->pieces[id];
}

bool tokenizer_is_control(const struct tokenizer *tokenizer, int32_t id)
{
    return id >= FAKE_CONTROL;
}

bool tokenizer_is_end(const struct tokenizer *tokenizer, int32_t id)
{
    return id == FAKE_END;
}

int token_list_append(struct token_list *list, const int32_t *ids, size_t n, struct error *err)
{
    if (list->n + n > list->cap) {
        size_t cap = (list->n + n) * 2 + 16;
        int32_t *grown = mem_realloc(list->ids, cap, sizeof(*grown));
        if (!grown)
            return error_memory(err, "tokens", cap * sizeof(*grown));
        list->ids = grown;
        list->cap = cap;
    }
    if (n)
        memcpy(list->ids + list->n, ids, n * sizeof(*ids));
    list->n += n;
    return 0;
}

void token_list_free(struct token_list *list)
{
    mem_free(list->ids);
    *list = (struct token_list){0};
}

int tokenizer_encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                     unsigned flags, struct token_list *list, struct error *err)
{
    for (size_t i = 0; i < len;) {
        unsigned char a = (unsigned char)text[i];
        int32_t id = a;
        size_t used = 1;
        if ((flags & TOKENIZER_PARSE_SPECIAL) && len - i >= 7 &&
            memcmp(text + i, "<|end|>", 7) == 0) {
            id = FAKE_END;
            used = 7;
        } else if (i + 1 < len && is_pairable(a) && is_pairable((unsigned char)text[i + 1])) {
            id = 256 + (a - 0x20) * FAKE_PAIRS + ((unsigned char)text[i + 1] - 0x20);
            used = 2;
        }
        if (token_list_append(list, &id, 1, err) < 0)
            return -(int)err->code;
        i += used;
    }
    return 0;
}

void chat_prompt_free(struct chat_prompt *prompt)
{
    buf_free(&prompt->text);
    mem_free(prompt->spans);
    *prompt = (struct chat_prompt){0};
}

int chat_prompt_encode(const struct chat_prompt *prompt, const struct tokenizer *tokenizer,
                       struct token_list *list, struct error *err)
{
    return tokenizer_encode(tokenizer, prompt->text.data, prompt->text.len, 0, list, err);
}
