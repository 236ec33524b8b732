/* A GGUF file's tokenizer.* keys to struct vocab. Defaults for missing keys are llama.cpp's, so
 * that the same file gives the same ids. See gguf.h, engine/tokenizer/vocab.h. */
#include "engine/base/mem.h"
#include "engine/model/gguf.h"

#include <inttypes.h>
#include <math.h>
#include <string.h>

#define KEY(name) "tokenizer.ggml." name

static bool equals(struct vocab_string s, const char *text)
{
    return s.len == strlen(text) && memcmp(s.data, text, s.len) == 0;
}

static int read_model(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    struct vocab_string model;
    int rc = gguf_get_string(file, KEY("model"), GGUF_REQUIRED, &model, err);
    if (rc)
        return rc;
    if (equals(model, "gpt2"))
        vocab->model = VOCAB_BPE;
    else if (equals(model, "llama"))
        vocab->model = VOCAB_SPM;
    else
        return error_set(err, ERROR_UNSUPPORTED,
                         "key " KEY("model") ": tokenizer gpt2 or llama expected, found %.*s",
                         (int)(model.len < 40 ? model.len : 40), model.data);
    return 0;
}

static int read_pre(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    struct vocab_string pre = {"default", 7};
    int rc = gguf_get_string(file, KEY("pre"), GGUF_OPTIONAL, &pre, err);
    if (rc)
        return rc;
    if (pre.len >= sizeof(vocab->pre) || memchr(pre.data, 0, pre.len))
        return error_set(err, ERROR_UNSUPPORTED,
                         "key " KEY("pre") ": no known pre-tokeniser has a name like %.*s",
                         (int)(pre.len < 40 ? pre.len : 40), pre.data);
    memcpy(vocab->pre, pre.data, pre.len);
    vocab->pre[pre.len] = '\0';
    return 0;
}

static int read_texts(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_kv *tokens = gguf_find(file, KEY("tokens"));
    const struct gguf_kv *merges = gguf_find(file, KEY("merges"));

    if (!tokens || !tokens->is_array || tokens->n == 0 || tokens->n > INT32_MAX)
        return error_set(err, ERROR_FORMAT, "key " KEY("tokens") ": %s",
                         tokens ? "an array of 1 to 2^31 strings expected" : "missing");
    vocab->n_tokens = (uint32_t)tokens->n;
    int rc = gguf_kv_strings(tokens, &vocab->text, err);
    if (rc || vocab->model != VOCAB_BPE)
        return rc;

    if (!merges || !merges->is_array || merges->n > INT32_MAX)
        return error_set(err, ERROR_FORMAT, "key " KEY("merges") ": %s",
                         merges ? "an array of strings expected" : "missing");
    vocab->n_merges = (uint32_t)merges->n;
    return gguf_kv_strings(merges, &vocab->merges, err);
}

/* An optional array that must have an item for each token. *ret NULL: not there. */
static int find_per_token(const struct gguf_file *file, const char *key, uint32_t n_tokens,
                          const struct gguf_kv **ret, struct error *err)
{
    const struct gguf_kv *kv = gguf_find(file, key);
    if (kv && (!kv->is_array || kv->n != n_tokens))
        return error_set(err, ERROR_FORMAT,
                         "key %s: an array of %" PRIu32
                         " items expected (one a token), found %" PRIu64,
                         key, n_tokens, kv->n);
    *ret = kv;
    return 0;
}

static int read_kinds(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_kv *kinds = NULL;
    int rc = find_per_token(file, KEY("token_type"), vocab->n_tokens, &kinds, err);
    if (rc)
        return rc;
    vocab->kind = mem_array(vocab->n_tokens, sizeof(*vocab->kind));
    if (!vocab->kind)
        return error_memory(err, "token kinds", vocab->n_tokens);
    memset(vocab->kind, TOKEN_NORMAL, vocab->n_tokens);
    for (uint32_t i = 0; kinds && i < vocab->n_tokens; i++) {
        int64_t kind;
        if (!gguf_kv_integer(kinds, i, &kind) || kind < 0 || kind > TOKEN_BYTE)
            return error_set(err, ERROR_FORMAT,
                             "key " KEY("token_type") ": item %" PRIu32 ": 1..%d expected", i,
                             TOKEN_BYTE);
        if (kind) /* 0 is "undefined": as good as normal */
            vocab->kind[i] = (uint8_t)kind;
    }
    return 0;
}

static int read_scores(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    const struct gguf_kv *scores = NULL;

    if (vocab->model != VOCAB_SPM)
        return 0;
    int rc = find_per_token(file, KEY("scores"), vocab->n_tokens, &scores, err);
    if (rc)
        return rc;
    vocab->score = mem_calloc(vocab->n_tokens, sizeof(*vocab->score));
    if (!vocab->score)
        return error_memory(err, "token scores", vocab->n_tokens * sizeof(*vocab->score));
    for (uint32_t i = 0; scores && i < vocab->n_tokens; i++) {
        double score;
        if (!gguf_kv_float(scores, i, &score) || isnan(score))
            return error_set(err, ERROR_FORMAT,
                             "key " KEY("scores") ": item %" PRIu32 ": a number expected", i);
        vocab->score[i] = (float)score;
    }
    return 0;
}

static int read_special(const struct gguf_file *file, const char *key, uint32_t n_tokens,
                        int32_t *id, struct error *err)
{
    uint32_t value = *id < 0 ? UINT32_MAX : (uint32_t)*id;
    int rc = gguf_get_u32(file, key, GGUF_OPTIONAL, &value, err);
    /* Files in the wild name a padding or unknown token that does not exist: that is none. */
    if (rc == 0)
        *id = value < n_tokens ? (int32_t)value : -1;
    return rc;
}

static int read_specials(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    bool spm = vocab->model == VOCAB_SPM;
    vocab->bos = spm ? 1 : 11;
    vocab->eos = spm ? 2 : 11;
    vocab->unk = spm ? 0 : -1;
    vocab->pad = -1;
    vocab->eot = -1;

    int rc = read_special(file, KEY("bos_token_id"), vocab->n_tokens, &vocab->bos, err);
    if (rc == 0)
        rc = read_special(file, KEY("eos_token_id"), vocab->n_tokens, &vocab->eos, err);
    if (rc == 0)
        rc = read_special(file, KEY("eot_token_id"), vocab->n_tokens, &vocab->eot, err);
    if (rc == 0)
        rc = read_special(file, KEY("unknown_token_id"), vocab->n_tokens, &vocab->unk, err);
    if (rc == 0)
        rc = read_special(file, KEY("padding_token_id"), vocab->n_tokens, &vocab->pad, err);
    return rc;
}

/* Pre-tokenisers with which llama.cpp puts bos in front unless the file says otherwise. */
static bool pre_adds_bos(const char *pre)
{
    static const char *const names[] = {"llama3",  "llama-v3", "llama-bpe", "falcon3", "falcon-h1",
                                        "pixtral", "midm-2.0", "lfm2",      "tekken",  "chameleon"};
    for (size_t i = 0; i < sizeof(names) / sizeof(names[0]); i++)
        if (strcmp(pre, names[i]) == 0)
            return true;
    return false;
}

static int read_flags(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    bool spm = vocab->model == VOCAB_SPM;
    vocab->add_bos = spm || pre_adds_bos(vocab->pre);
    vocab->add_eos = false;
    vocab->add_space_prefix = spm;

    int rc = gguf_get_bool(file, KEY("add_bos_token"), GGUF_OPTIONAL, &vocab->add_bos, err);
    if (rc == 0)
        rc = gguf_get_bool(file, KEY("add_eos_token"), GGUF_OPTIONAL, &vocab->add_eos, err);
    if (rc == 0)
        rc = gguf_get_bool(file, KEY("add_space_prefix"), GGUF_OPTIONAL, &vocab->add_space_prefix,
                           err);
    if (vocab->bos < 0)
        vocab->add_bos = false;
    if (vocab->eos < 0)
        vocab->add_eos = false;
    return rc;
}

static int read_template(const struct gguf_file *file, struct vocab *vocab, struct error *err)
{
    struct vocab_string jinja = {NULL, 0};
    int rc = gguf_get_string(file, "tokenizer.chat_template", GGUF_OPTIONAL, &jinja, err);
    if (rc || !jinja.data)
        return rc;
    vocab->chat_template = mem_strndup(jinja.data, jinja.len);
    return vocab->chat_template ? 0 : error_memory(err, "chat template", jinja.len);
}

int gguf_read_vocab(const struct gguf_file *file, struct vocab *ret_vocab, struct error *err)
{
    typedef int step_fn(const struct gguf_file *, struct vocab *, struct error *);
    static step_fn *const steps[] = {read_model,  read_pre,      read_texts, read_kinds,
                                     read_scores, read_specials, read_flags, read_template};
    struct vocab vocab = {0};

    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]); i++) {
        int rc = steps[i](file, &vocab, err);
        if (rc) {
            vocab_free(&vocab);
            return rc;
        }
    }
    *ret_vocab = vocab;
    return 0;
}
