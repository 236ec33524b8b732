/* A GGUF file of any content: opened, every value looked at, its vocabulary made a tokenizer, and
 * if it says it is a model, loaded as one. */
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/model/gguf.h"
#include "engine/model/model.h"
#include "engine/model/model_file.h"
#include "engine/tokenizer/chat_template.h"
#include "engine/tokenizer/tokenizer.h"
#include "tests/fuzz/file.h"

#include <stdlib.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n);

/* Reads all bytes that a range promises. */
static volatile unsigned long sink;
static void touch(const uint8_t *data, size_t n)
{
    unsigned long sum = 0;
    for (size_t i = 0; i < n; i++)
        sum += data[i];
    sink += sum;
}

static void look_at_values(const struct gguf_file *file)
{
    struct error err;

    for (size_t i = 0; i < gguf_n_kv(file); i++) {
        const struct gguf_kv *kv = gguf_kv_at(file, i);
        struct vocab_string *strings;
        int64_t integer;
        double number;
        touch(kv->data, kv->bytes);
        for (uint64_t k = 0; k < kv->n && k < 16; k++) {
            gguf_kv_integer(kv, k, &integer);
            gguf_kv_float(kv, k, &number);
        }
        if (kv->type == GGUF_STRING && gguf_kv_strings(kv, &strings, &err) == 0) {
            for (uint64_t k = 0; k < kv->n; k++)
                touch((const uint8_t *)strings[k].data, strings[k].len);
            mem_free(strings);
        }
    }
    for (size_t i = 0; i < gguf_n_tensors(file); i++) {
        const struct tensor *t = gguf_tensor_at(file, i);
        touch(t->data, t->bytes);
        if (gguf_tensor(file, t->name) == NULL)
            abort();
    }
}

static void use_vocab(const struct vocab *vocab)
{
    static const char TEXT[] = "Hello, <|im_start|> 1234 \xc3\xa9\xf0\x9f\x98\x80 \xff</s>";
    const struct chat_template *template;
    struct token_list list = {0};
    struct tokenizer *tokenizer;
    struct error err;

    if (tokenizer_open(vocab, &tokenizer, &err) < 0)
        return;
    if (tokenizer_encode(tokenizer, TEXT, sizeof(TEXT) - 1,
                         TOKENIZER_ADD_SPECIAL | TOKENIZER_PARSE_SPECIAL, &list, &err) == 0)
        for (size_t i = 0; i < list.n; i++) {
            size_t len;
            if (!tokenizer_piece(tokenizer, list.ids[i], &len))
                abort(); /* an id that is none */
        }
    token_list_free(&list);
    tokenizer_close(tokenizer);
    chat_template_find(NULL, vocab->chat_template, &template, &err);
}

static void load(const char *path)
{
    struct model_file *file;
    struct model *model;
    struct error err;

    if (model_file_open(path, &file, &err) < 0)
        return;
    sink += model_file_hash(file) + model_file_n_params(file);
    if (model_open(file,
                   &(struct model_open_options){.weights = MODEL_WEIGHTS_AUTO, .n_positions = 64},
                   &model, &err) == 0)
        model_close(model);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t n)
{
    struct gguf_file *file;
    struct vocab vocab = {0};
    struct error err;

    if (gguf_open_memory(data, n, &file, &err) < 0)
        return 0;
    look_at_values(file);
    if (gguf_read_vocab(file, &vocab, &err) == 0) {
        use_vocab(&vocab);
        vocab_free(&vocab);
    }
    gguf_close(file);
    /* Packing takes a hundred times as long as the rest: for some inputs, always the same. */
    if (hash_bytes(HASH_START, data, n) % 16 == 0)
        load(fuzz_file(data, n));
    return 0;
}
