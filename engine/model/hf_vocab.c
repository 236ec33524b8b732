/* tokenizer.json (and tokenizer_config.json, chat_template.jinja, generation_config.json beside it)
 * to struct vocab. All strings are copied into one block, vocab.storage. See hf.h. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/model/hf.h"
#include "engine/model/mapped_file.h"

#include <assert.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define MAX_TOKENIZER_BYTES ((size_t)128 << 20)
#define MAX_CONFIG_BYTES ((size_t)16 << 20)
#define MAX_TEMPLATE_BYTES ((size_t)1 << 20)
#define FILLER_BYTES 24 /* of "[PAD4294967295]" */

/* Of a token that no merge makes. Ranks stay below 2^24, so that -rank is exact in a float. */
#define SCORE_UNMERGED (-1e9f)
#define MAX_MERGES (1u << 24)

struct reader {
    const char *folder;
    const cJSON *config; /* config.json */
    cJSON *tokenizer;    /* tokenizer.json */
    cJSON *settings;     /* tokenizer_config.json, or NULL */
    cJSON *generation;   /* generation_config.json, or NULL */
    const cJSON *model;  /* tokenizer.model */
    struct vocab vocab;
    char *at, *end;                     /* free part of vocab.storage */
    const struct vocab_string **sorted; /* tokens by text */
};

static struct vocab_string store(struct reader *r, const char *text, size_t len)
{
    struct vocab_string s = {r->at, (uint32_t)len};
    assert(len <= (size_t)(r->end - r->at));
    memcpy(r->at, text, len);
    r->at += len;
    return s;
}

/* Upper bound of what store() will be asked for. */
static size_t count_bytes(const struct reader *r)
{
    const cJSON *tokens = json_object(r->model, "vocab");
    const cJSON *added = json_array(r->tokenizer, "added_tokens");
    const cJSON *merges = json_array(r->model, "merges");
    size_t bytes = (size_t)r->vocab.n_tokens * FILLER_BYTES;

    for (const cJSON *t = tokens ? tokens->child : NULL; t; t = t->next)
        bytes += strlen(t->string);
    for (const cJSON *t = added ? added->child : NULL; t; t = t->next)
        bytes += strlen(json_text(t, "content"));
    for (const cJSON *m = merges ? merges->child : NULL; m; m = m->next) {
        if (cJSON_IsString(m))
            bytes += strlen(m->valuestring);
        for (const cJSON *part = m->child; part; part = part->next)
            bytes += 1 + (cJSON_IsString(part) ? strlen(part->valuestring) : 0);
    }
    return bytes;
}

static int allocate(struct reader *r, struct error *err)
{
    struct vocab *v = &r->vocab;
    size_t bytes = count_bytes(r);

    v->storage = mem_alloc(bytes + 1);
    v->text = mem_calloc(v->n_tokens, sizeof(*v->text));
    v->kind = mem_calloc(v->n_tokens, sizeof(*v->kind));
    r->sorted = mem_calloc(v->n_tokens, sizeof(void *));
    if (!v->storage || !v->text || !v->kind || !r->sorted)
        return error_memory(err, "vocabulary", bytes);
    r->at = v->storage;
    r->end = r->at + bytes;
    return 0;
}

static bool is_byte_token(const char *text)
{
    static const char digits[] = "0123456789ABCDEF";
    return strlen(text) == 6 && memcmp(text, "<0x", 3) == 0 && strchr(digits, text[3]) &&
           strchr(digits, text[4]) && text[5] == '>';
}

/* may_replace: for tokens that stand in the vocabulary as well. A kind of 0 is an id without a
 * token yet. */
static int read_token(struct reader *r, const cJSON *id_item, const char *text,
                      enum token_kind kind, bool may_replace, struct error *err)
{
    struct vocab *v = &r->vocab;
    uint64_t id;

    if (!json_whole(id_item, &id) || id > INT32_MAX)
        return error_set(err, ERROR_FORMAT, "token \"%.40s\": an id 0..2^31-1 expected", text);
    if (id >= v->n_tokens)
        return 0; /* the embedding has no row for it: it can never be fed to the model */
    if (v->kind[id] && !may_replace)
        return error_set(err, ERROR_FORMAT, "token \"%.40s\": id %" PRIu64 " is taken twice", text,
                         id);
    v->text[id] = store(r, text, strlen(text));
    v->kind[id] = (uint8_t)kind;
    return 0;
}

static int read_tokens(struct reader *r, struct error *err)
{
    const cJSON *tokens = json_object(r->model, "vocab");
    bool spm = r->vocab.model == VOCAB_SPM;

    if (!tokens)
        return error_set(err, ERROR_FORMAT, "key model.vocab: an object expected");
    for (const cJSON *t = tokens->child; t; t = t->next) {
        enum token_kind kind = spm && is_byte_token(t->string) ? TOKEN_BYTE : TOKEN_NORMAL;
        int rc = read_token(r, t, t->string, kind, false, err);
        if (rc)
            return rc;
    }
    return 0;
}

/* As llama.cpp's converter tells them apart: special ones, and those that look special. */
static bool is_control(const cJSON *token, const char *text)
{
    size_t len = strlen(text);
    return cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(token, "special")) ||
           (len > 4 && memcmp(text, "<|", 2) == 0 && memcmp(text + len - 2, "|>", 2) == 0);
}

static int read_added_tokens(struct reader *r, struct error *err)
{
    const cJSON *added = json_array(r->tokenizer, "added_tokens");
    const char *unknown = json_text(r->model, "unk_token");

    for (const cJSON *t = added ? added->child : NULL; t; t = t->next) {
        const char *text = json_text(t, "content");
        enum token_kind kind = is_control(t, text) ? TOKEN_CONTROL : TOKEN_USER_DEFINED;
        if (r->vocab.model == VOCAB_SPM && *text && strcmp(text, unknown) == 0)
            kind = TOKEN_UNKNOWN;
        int rc = read_token(r, cJSON_GetObjectItemCaseSensitive(t, "id"), text, kind, true, err);
        if (rc)
            return rc;
    }
    for (uint32_t id = 0; id < r->vocab.n_tokens; id++) {
        char filler[FILLER_BYTES];
        if (r->vocab.kind[id])
            continue;
        int len = snprintf(filler, sizeof(filler), "[PAD%" PRIu32 "]", id);
        r->vocab.text[id] = store(r, filler, (size_t)len);
        r->vocab.kind[id] = TOKEN_UNUSED;
    }
    return 0;
}

static int compare_text(const void *a, const void *b)
{
    const struct vocab_string *x = *(const struct vocab_string *const *)a;
    const struct vocab_string *y = *(const struct vocab_string *const *)b;
    uint32_t least = x->len < y->len ? x->len : y->len;
    int order = least ? memcmp(x->data, y->data, least) : 0;
    return order ? order : (x->len > y->len) - (x->len < y->len);
}

static void sort_tokens(struct reader *r)
{
    for (uint32_t i = 0; i < r->vocab.n_tokens; i++)
        r->sorted[i] = &r->vocab.text[i];
    qsort(r->sorted, r->vocab.n_tokens, sizeof(void *), compare_text);
}

/* -1: no such token. */
static int32_t find_token(const struct reader *r, const char *text, size_t len)
{
    struct vocab_string wanted = {text, (uint32_t)len};
    const struct vocab_string *p = &wanted, **found;
    if (len == 0)
        return -1;
    found = bsearch(&p, r->sorted, r->vocab.n_tokens, sizeof(void *), compare_text);
    return found ? (int32_t)(*found - r->vocab.text) : -1;
}

/* The two sides of a merge: "left right", or ["left", "right"] since tokenizers 0.20. */
static bool split_merge(const cJSON *merge, struct vocab_string *left, struct vocab_string *right)
{
    if (cJSON_IsString(merge)) {
        const char *text = merge->valuestring, *space = strchr(text, ' ');
        if (!space || space == text || !space[1] || strchr(space + 1, ' '))
            return false;
        *left = (struct vocab_string){text, (uint32_t)(space - text)};
        *right = (struct vocab_string){space + 1, (uint32_t)strlen(space + 1)};
        return true;
    }
    if (cJSON_GetArraySize(merge) != 2 || !cJSON_IsString(merge->child) ||
        !cJSON_IsString(merge->child->next))
        return false;
    const char *a = merge->child->valuestring, *b = merge->child->next->valuestring;
    *left = (struct vocab_string){a, (uint32_t)strlen(a)};
    *right = (struct vocab_string){b, (uint32_t)strlen(b)};
    return left->len && right->len && !strchr(a, ' ') && !strchr(b, ' ');
}

/* SentencePiece merges the pair whose result scores best; BPE the pair of the lowest rank. With
 * -rank as the score of what a merge makes, both choose the same: such files list for each token,
 * in the order of its score, every pair that makes it. */
static void score_merge(struct reader *r, uint32_t rank, struct vocab_string left,
                        struct vocab_string right, char *joined)
{
    memcpy(joined, left.data, left.len);
    memcpy(joined + left.len, right.data, right.len);
    int32_t id = find_token(r, joined, (size_t)left.len + right.len);
    if (id >= 0 && r->vocab.score[id] == SCORE_UNMERGED)
        r->vocab.score[id] = -(float)rank;
}

static void keep_merge(struct reader *r, uint32_t rank, struct vocab_string left,
                       struct vocab_string right)
{
    struct vocab_string *merge = &r->vocab.merges[rank];
    merge->data = r->at;
    merge->len = left.len + 1 + right.len;
    store(r, left.data, left.len);
    store(r, " ", 1);
    store(r, right.data, right.len);
}

static int allocate_merges(struct reader *r, uint32_t n, struct error *err)
{
    struct vocab *v = &r->vocab;

    if (v->model == VOCAB_BPE) {
        v->n_merges = n;
        v->merges = mem_calloc((size_t)n + 1, sizeof(*v->merges));
        return v->merges ? 0 : error_memory(err, "merges", n * sizeof(*v->merges));
    }
    v->score = mem_array(v->n_tokens, sizeof(*v->score));
    for (uint32_t i = 0; i < v->n_tokens && v->score; i++)
        v->score[i] = SCORE_UNMERGED;
    return v->score ? 0 : error_memory(err, "scores", v->n_tokens * sizeof(*v->score));
}

static int read_merges(struct reader *r, struct error *err)
{
    const cJSON *merges = json_array(r->model, "merges");
    int n = cJSON_GetArraySize(merges);
    _cleanup_mem_ char *joined = mem_alloc((size_t)(r->end - (char *)r->vocab.storage) + 1);
    uint32_t rank = 0;

    if (!merges || (uint32_t)n > MAX_MERGES)
        return error_set(err, ERROR_FORMAT, "key model.merges: an array of up to %u expected",
                         MAX_MERGES);
    if (!joined)
        return error_memory(err, "merges", (unsigned long long)n);
    int rc = allocate_merges(r, (uint32_t)n, err);
    if (rc)
        return rc;
    for (const cJSON *m = merges->child; m; m = m->next, rank++) {
        struct vocab_string left, right;
        if (!split_merge(m, &left, &right))
            return error_set(err, ERROR_FORMAT,
                             "key model.merges: item %" PRIu32 ": two tokens expected", rank);
        if (r->vocab.model == VOCAB_BPE)
            keep_merge(r, rank, left, right);
        else
            score_merge(r, rank, left, right, joined);
    }
    return 0;
}

/* A token that tokenizer_config.json names: "text" or {"content": "text"}. -1: none. */
static int32_t named_token(const struct reader *r, const char *key)
{
    const char *text = json_text(r->settings, key);
    if (!*text)
        text = json_text(json_object(r->settings, key), "content");
    return find_token(r, text, strlen(text));
}

/* The i-th id of config.json's or generation_config.json's key, a number or an array. -1: none. */
static int32_t configured_token(const struct reader *r, const cJSON *config, const char *key, int i)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(config, key);
    uint64_t id;

    if (cJSON_IsArray(item))
        item = cJSON_GetArrayItem(item, i);
    else if (i > 0)
        return -1;
    return json_whole(item, &id) && id < r->vocab.n_tokens ? (int32_t)id : -1;
}

/* The tokenizer's own word first, then the model's. */
static int32_t special_token(const struct reader *r, const char *name, const char *id_key)
{
    int32_t id = named_token(r, name);
    if (id < 0)
        id = configured_token(r, r->config, id_key, 0);
    if (id < 0)
        id = configured_token(r, r->generation, id_key, 0);
    return id;
}

static const cJSON *find_template_processing(const cJSON *step)
{
    const cJSON *steps = json_array(step, "processors");

    if (strcmp(json_text(step, "type"), "TemplateProcessing") == 0)
        return step;
    for (const cJSON *s = steps ? steps->child : NULL; s; s = s->next)
        if (strcmp(json_text(s, "type"), "TemplateProcessing") == 0)
            return s;
    return NULL;
}

/* Does the post-processor put `id` at this end of a single text? */
static bool template_adds(const struct reader *r, bool at_end, int32_t id)
{
    const cJSON *step = find_template_processing(json_object(r->tokenizer, "post_processor"));
    const cJSON *single = json_array(step, "single");
    int n = cJSON_GetArraySize(single);
    const cJSON *item = n ? cJSON_GetArrayItem(single, at_end ? n - 1 : 0) : NULL;
    const char *text = json_text(json_object(item, "SpecialToken"), "id");

    return id >= 0 && find_token(r, text, strlen(text)) == id;
}

static int read_specials(struct reader *r, struct error *err)
{
    struct vocab *v = &r->vocab;

    v->bos = special_token(r, "bos_token", "bos_token_id");
    v->eos = special_token(r, "eos_token", "eos_token_id");
    v->pad = special_token(r, "pad_token", "pad_token_id");
    v->unk = named_token(r, "unk_token");
    if (v->unk < 0)
        v->unk = find_token(r, json_text(r->model, "unk_token"),
                            strlen(json_text(r->model, "unk_token")));
    v->eot = -1; /* a second end, if generation has one */
    for (int i = 0; v->eot < 0 && i < 8; i++) {
        v->eot = configured_token(r, r->generation, "eos_token_id", i);
        if (v->eot == v->eos)
            v->eot = -1;
    }
    v->add_bos = template_adds(r, false, v->bos);
    v->add_eos = template_adds(r, true, v->eos);
    int rc = json_get_bool(r->settings, "add_bos_token", &v->add_bos, err);
    if (rc == 0)
        rc = json_get_bool(r->settings, "add_eos_token", &v->add_eos, err);
    v->add_bos = v->add_bos && v->bos >= 0;
    v->add_eos = v->add_eos && v->eos >= 0;
    return rc;
}

/* chat_template.jinja in the folder. *ret NULL: there is none. */
static int read_template_file(const char *folder, char **ret, struct error *err)
{
    _cleanup_buf_ struct buf path = {0};
    struct mapped_file map;

    buf_printf(&path, "%s/chat_template.jinja", folder);
    if (path.failed)
        return error_memory(err, "path", strlen(folder));
    *ret = NULL;
    if (access(path.data, F_OK))
        return 0;
    int rc = mapped_file_open(path.data, &map, err);
    if (rc)
        return error_prefix(err, "%s", path.data);
    if (map.bytes > MAX_TEMPLATE_BYTES)
        rc = error_set(err, ERROR_FORMAT, "%s: at most %zu bytes expected, found %zu", path.data,
                       MAX_TEMPLATE_BYTES, map.bytes);
    else if (!(*ret = mem_strndup(map.data ? (const char *)map.data : "", map.bytes)))
        rc = error_memory(err, "chat template", map.bytes);
    mapped_file_close(&map);
    return rc;
}

static int read_template(struct reader *r, struct error *err)
{
    const cJSON *list = json_array(r->settings, "chat_template");
    const char *text = json_text(r->settings, "chat_template");

    int rc = read_template_file(r->folder, &r->vocab.chat_template, err);
    if (rc || r->vocab.chat_template)
        return rc;
    for (const cJSON *item = list ? list->child : NULL; item && !*text; item = item->next)
        if (strcmp(json_text(item, "name"), "default") == 0)
            text = json_text(item, "template");
    if (*text && !(r->vocab.chat_template = mem_strdup(text)))
        return error_memory(err, "chat template", strlen(text));
    return 0;
}

static int read_files(struct reader *r, struct error *err)
{
    int rc = json_file_read(r->folder, "tokenizer.json", MAX_TOKENIZER_BYTES, &r->tokenizer, err);
    if (rc == 0 && !r->tokenizer)
        rc = error_set(err, ERROR_INVALID, "%s/tokenizer.json: missing", r->folder);
    if (rc == 0)
        rc =
            json_file_read(r->folder, "tokenizer_config.json", MAX_CONFIG_BYTES, &r->settings, err);
    if (rc == 0)
        rc = json_file_read(r->folder, "generation_config.json", MAX_CONFIG_BYTES, &r->generation,
                            err);
    return rc;
}

static int read_tokenizer(struct reader *r, struct error *err)
{
    typedef int step_fn(struct reader *, struct error *);
    static step_fn *const steps[] = {allocate, read_tokens, read_added_tokens};
    const char *type;

    r->model = json_object(r->tokenizer, "model");
    type = json_text(r->model, "type");
    if (strcmp(type, "BPE") != 0)
        return error_set(err, ERROR_UNSUPPORTED, "key model.type: BPE expected, found %.40s",
                         *type ? type : "none");
    int rc = hf_recognise_tokenizer(r->tokenizer, &r->vocab, err);
    for (size_t i = 0; i < sizeof(steps) / sizeof(steps[0]) && rc == 0; i++)
        rc = steps[i](r, err);
    if (rc)
        return rc;
    sort_tokens(r);
    return read_merges(r, err);
}

int hf_read_vocab(const char *folder, const cJSON *config, uint32_t n_tokens,
                  struct vocab *ret_vocab, struct error *err)
{
    struct reader r = {.folder = folder, .config = config};

    r.vocab.n_tokens = n_tokens;
    int rc = read_files(&r, err);
    if (rc == 0 && (rc = read_tokenizer(&r, err)) != 0)
        error_prefix(err, "%s/tokenizer.json", folder);
    if (rc == 0 && (rc = read_specials(&r, err)) != 0)
        error_prefix(err, "%s/tokenizer_config.json", folder);
    if (rc == 0)
        rc = read_template(&r, err);
    cJSON_Delete(r.tokenizer);
    cJSON_Delete(r.settings);
    cJSON_Delete(r.generation);
    mem_free(r.sorted);
    if (rc)
        vocab_free(&r.vocab);
    else
        *ret_vocab = r.vocab;
    return rc;
}
