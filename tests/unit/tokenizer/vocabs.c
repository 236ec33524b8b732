/* Vocabularies for tests. See vocabs.h. */
#include "tests/unit/tokenizer/vocabs.h"

#include "engine/base/mem.h"
#include "engine/tokenizer/byte_alphabet.h"
#include "tests/unit/check.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const char *find(const char *variable, const char *fallback, const char *name, char *path,
                        size_t size)
{
    const char *root = getenv(variable);
    snprintf(path, size, "%s/%s", root ? root : fallback, name);
    if (access(path, R_OK) != 0) {
        print_message("SKIP: %s is missing; set %s\n", path, variable);
        skip();
    }
    return path;
}

const char *find_shared(const char *name, char *path, size_t size)
{
    return find("OVERFILL_SHARED", OVERFILL_SOURCE_ROOT "/../shared", name, path, size);
}

const char *find_model(const char *name, char *path, size_t size)
{
    return find("OVERFILL_MODELS", OVERFILL_SOURCE_ROOT "/models", name, path, size);
}

char *read_file(const char *path, size_t *ret_len)
{
    FILE *f = fopen(path, "rb");
    assert_non_null(f);
    fseek(f, 0, SEEK_END);
    long len = ftell(f);
    rewind(f);
    char *data = malloc((size_t)len + 1);
    assert_non_null(data);
    assert_int_equal(fread(data, 1, (size_t)len, f), (size_t)len);
    data[len] = '\0';
    fclose(f);
    *ret_len = (size_t)len;
    return data;
}

void load(const char *path, struct loaded *ret)
{
    struct error err = {0};
    if (gguf_open(path, &ret->file, &err) || gguf_read_vocab(ret->file, &ret->vocab, &err) ||
        tokenizer_open(&ret->vocab, &ret->tokenizer, &err))
        fail_msg("%s: %s", path, err.message);
}

void unload(struct loaded *loaded)
{
    tokenizer_close(loaded->tokenizer);
    vocab_free(&loaded->vocab);
    gguf_close(loaded->file);
}

/* Strings are the caller's and outlive the vocabulary. */
void make_vocab(struct vocab *vocab, enum vocab_model model, const char *pre,
                const struct token *tokens, const char *const *merges)
{
    uint32_t n = 0, n_merges = 0;
    while (tokens[n].text)
        n++;
    while (merges && merges[n_merges])
        n_merges++;
    *vocab = (struct vocab){.model = model,
                            .n_tokens = n,
                            .n_merges = n_merges,
                            .bos = -1,
                            .eos = -1,
                            .eot = -1,
                            .unk = -1,
                            .pad = -1};
    snprintf(vocab->pre, sizeof(vocab->pre), "%s", pre);
    vocab->text = mem_calloc(n, sizeof(*vocab->text));
    vocab->kind = mem_calloc(n, sizeof(*vocab->kind));
    vocab->score = mem_calloc(n, sizeof(*vocab->score));
    vocab->merges = mem_calloc(n_merges + 1, sizeof(*vocab->merges));
    for (uint32_t i = 0; i < n; i++) {
        vocab->text[i] = (struct vocab_string){tokens[i].text, (uint32_t)strlen(tokens[i].text)};
        vocab->kind[i] = (uint8_t)(tokens[i].kind ? tokens[i].kind : TOKEN_NORMAL);
        vocab->score[i] = tokens[i].score;
    }
    for (uint32_t i = 0; i < n_merges; i++)
        vocab->merges[i] = (struct vocab_string){merges[i], (uint32_t)strlen(merges[i])};
}

void make_byte_vocab(struct vocab *vocab, const char *pre, const struct token *extra,
                     const char *const *merges)
{
    static char texts[256][3];
    struct token tokens[512] = {0};
    size_t n = 256;

    for (size_t byte = 0; byte < 256; byte++) {
        texts[byte][byte_alphabet_write((uint8_t)byte, texts[byte])] = '\0';
        tokens[byte].text = texts[byte];
    }
    for (; extra && extra->text; extra++)
        tokens[n++] = *extra;
    make_vocab(vocab, VOCAB_BPE, pre, tokens, merges);
}

struct tokenizer *open_tokenizer(const struct vocab *vocab)
{
    struct tokenizer *tokenizer = NULL;
    struct error err = {0};
    if (tokenizer_open(vocab, &tokenizer, &err))
        fail_msg("%s", err.message);
    return tokenizer;
}

void close_vocab(struct vocab *vocab, struct tokenizer *tokenizer)
{
    tokenizer_close(tokenizer);
    vocab_free(vocab);
}

struct token_list encode(const struct tokenizer *tokenizer, const char *text, size_t len,
                         unsigned flags)
{
    struct token_list list = {0};
    struct error err = {0};
    if (tokenizer_encode(tokenizer, text, len, flags, &list, &err))
        fail_msg("%s", err.message);
    return list;
}

void assert_pieces(const struct tokenizer *tokenizer, const struct token_list *list,
                   const char *text, size_t len)
{
    size_t at = 0;
    for (size_t i = 0; i < list->n; i++) {
        size_t n = 0;
        const char *piece = tokenizer_piece(tokenizer, list->ids[i], &n);
        assert_non_null(piece);
        if (n > len - at || memcmp(piece, text + at, n) != 0)
            fail_msg("piece of token %d at byte %zu is not the text", list->ids[i], at);
        at += n;
    }
    assert_int_equal(at, len);
}

void assert_ids(const struct tokenizer *tokenizer, const char *text, unsigned flags,
                const int32_t *ids)
{
    struct token_list list = encode(tokenizer, text, strlen(text), flags);
    size_t n = 0;
    while (ids[n] >= 0)
        n++;
    for (size_t i = 0; i < list.n && i < n; i++)
        if (list.ids[i] != ids[i])
            fail_msg("\"%s\": token %zu: %d expected, found %d", text, i, ids[i], list.ids[i]);
    if (list.n != n)
        fail_msg("\"%s\": %zu tokens expected, found %zu", text, n, list.n);
    token_list_free(&list);
}
