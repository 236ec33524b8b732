/* Pre-tokenisers as a table of regular expressions, and their use. The expressions are those of the
 * families' tokenizer.json, in the form in which llama.cpp applies them: each one cuts the pieces
 * that the one before it left, and what it does not match is a piece too. See pre_tokenizer.h. */
#define PCRE2_CODE_UNIT_WIDTH 8
#include "engine/tokenizer/pre_tokenizer.h"

#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/tokenizer/utf8.h"

#include <pcre2.h>
#include <stdint.h>
#include <string.h>

#define MAX_PATTERNS 4

/* Unicode's White_Space. PCRE2's \s has U+180E as well, the tokenizers' do not. */
#define SPACES                                                                                     \
    "\\x09-\\x0d\\x20\\x85\\xa0\\x{1680}\\x{2000}-\\x{200a}\\x{2028}\\x{2029}\\x{202f}\\x{205f}"   \
    "\\x{3000}"
#define SPACE_RUN "[" SPACES "]+(?![^" SPACES "])"

#define GPT2 "'s|'t|'re|'ve|'m|'ll|'d| ?\\p{L}+| ?\\p{N}+| ?[^" SPACES "\\p{L}\\p{N}]+|" SPACE_RUN
/* The pattern since GPT-4; `digits` is what a number is cut into. */
#define GPT4(digits)                                                                               \
    "'[sS]|'[tT]|'[rR][eE]|'[vV][eE]|'[mM]|'[lL][lL]|'[dD]|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|" digits  \
    "| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n]*|[" SPACES "]*[\\r\\n]+|" SPACE_RUN "|[" SPACES "]+"
#define UPPER "\\p{Lu}\\p{Lt}\\p{Lm}\\p{Lo}\\p{M}"
#define LOWER "\\p{Ll}\\p{Lm}\\p{Lo}\\p{M}"
#define TEKKEN                                                                                     \
    "[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]*[" LOWER "]+|[^\\r\\n\\p{L}\\p{N}]?[" UPPER "]+[" LOWER     \
    "]*|\\p{N}| ?[^" SPACES "\\p{L}\\p{N}]+[\\r\\n/]*|[" SPACES "]*[\\r\\n]+|" SPACE_RUN           \
    "|[" SPACES "]+"

static const struct family {
    const char *names[6];
    const char *patterns[MAX_PATTERNS];
    bool ignores_merges;
} families[] = {
    {.names = {"smollm", "starcoder"}, .patterns = {"\\p{N}", GPT2}},
    {.names = {"gpt-2", "phi-2"}, .patterns = {GPT2}},
    {.names = {"llama-bpe", "llama3", "llama-v3", "falcon3"},
     .patterns = {GPT4("\\p{N}{1,3}")},
     .ignores_merges = true},
    {.names = {"qwen2", "qwen3", "deepseek-r1-qwen", "stablelm2", "megrez"},
     .patterns = {GPT4("\\p{N}")}},
    {.names = {"tekken"}, .patterns = {TEKKEN}, .ignores_merges = true},
    {.names = {"falcon"}, .patterns = {"[\\p{P}$+<=>^~|`]+", GPT2, "[0-9][0-9][0-9]"}},
    {.names = {"default"}, .patterns = {"[\\p{P}$+<=>^~|]+", GPT2, "\\p{N}+", "[0-9][0-9][0-9]"}},
};
#define N_FAMILIES (sizeof(families) / sizeof(families[0]))

/* Far above what any of the patterns needs; they cannot backtrack more than once over a run. What
 * runs into a limit is left as one word. */
#define MATCH_LIMIT 100000000u
#define HEAP_LIMIT_KIB 65536u

struct pre_tokenizer {
    const struct family *family;
    pcre2_general_context *memory;
    pcre2_match_context *limits;
    pcre2_code *codes[MAX_PATTERNS];
    size_t n_codes;
};

static void *pcre_alloc(size_t bytes, void *user)
{
    (void)user;
    return mem_alloc(bytes);
}

static void pcre_free(void *p, void *user)
{
    (void)user;
    mem_free(p);
}

static const struct family *find_family(const char *name)
{
    for (size_t f = 0; f < N_FAMILIES; f++)
        for (size_t i = 0; i < 6 && families[f].names[i]; i++)
            if (strcmp(families[f].names[i], name) == 0)
                return &families[f];
    return NULL;
}

static int refuse(const char *name, struct error *err)
{
    _cleanup_buf_ struct buf known = {0};
    for (size_t f = 0; f < N_FAMILIES; f++)
        for (size_t i = 0; i < 6 && families[f].names[i]; i++)
            buf_printf(&known, "%s%s", known.len ? ", " : "", families[f].names[i]);
    return error_set(err, ERROR_UNSUPPORTED,
                     "tokenizer.ggml.pre: pre-tokeniser %.40s is not known; known are %s", name,
                     known.data ? known.data : "");
}

static int compile(struct pre_tokenizer *pre, const char *pattern, struct error *err)
{
    int code = 0;
    PCRE2_SIZE offset = 0;
    pcre2_compile_context *context = pcre2_compile_context_create(pre->memory);

    if (!context)
        return error_memory(err, "pattern context", 0);
    pcre2_code *compiled = pcre2_compile((PCRE2_SPTR)pattern, PCRE2_ZERO_TERMINATED,
                                         PCRE2_UTF | PCRE2_UCP, &code, &offset, context);
    pcre2_compile_context_free(context);
    if (!compiled && code == PCRE2_ERROR_HEAP_FAILED)
        return error_memory(err, "pattern", strlen(pattern));
    if (!compiled)
        return error_set(err, ERROR_INTERNAL, "pattern \"%.60s\": PCRE2 error %d at %zu", pattern,
                         code, (size_t)offset);
    /* Where no code may be generated, pcre2_match interprets: slower, the same words. */
    (void)pcre2_jit_compile(compiled, PCRE2_JIT_COMPLETE);
    pre->codes[pre->n_codes++] = compiled;
    return 0;
}

int pre_tokenizer_open(const char *name, struct pre_tokenizer **ret, struct error *err)
{
    const struct family *family = find_family(name);
    int rc = 0;

    if (!family)
        return refuse(name, err);
    struct pre_tokenizer *pre = mem_calloc(1, sizeof(*pre));
    if (!pre)
        return error_memory(err, "pre-tokeniser", sizeof(*pre));
    pre->family = family;
    pre->memory = pcre2_general_context_create(pcre_alloc, pcre_free, NULL);
    pre->limits = pre->memory ? pcre2_match_context_create(pre->memory) : NULL;
    if (!pre->limits) {
        pre_tokenizer_close(pre);
        return error_memory(err, "pattern context", 0);
    }
    pcre2_set_match_limit(pre->limits, MATCH_LIMIT);
    pcre2_set_heap_limit(pre->limits, HEAP_LIMIT_KIB);
    for (size_t i = 0; i < MAX_PATTERNS && family->patterns[i] && rc == 0; i++)
        rc = compile(pre, family->patterns[i], err);
    if (rc)
        pre_tokenizer_close(pre);
    else
        *ret = pre;
    return rc;
}

void pre_tokenizer_close(struct pre_tokenizer *pre)
{
    if (!pre)
        return;
    for (size_t i = 0; i < pre->n_codes; i++)
        pcre2_code_free(pre->codes[i]);
    pcre2_match_context_free(pre->limits);
    pcre2_general_context_free(pre->memory);
    mem_free(pre);
}

bool pre_tokenizer_ignores_merges(const struct pre_tokenizer *pre)
{
    return pre->family->ignores_merges;
}

struct split {
    const struct pre_tokenizer *pre;
    pcre2_match_data *match[MAX_PATTERNS]; /* one a pattern: they nest */
    pre_tokenizer_word_fn *word;
    void *user;
};

/* The next match of pattern i in text[start, len). A failed match (a limit, no stack for generated
 * code) is tried again by the interpreter, then counts as no match: the rest is one piece. */
static bool find(struct split *s, size_t i, const char *text, size_t len, size_t start,
                 size_t *ret_start, size_t *ret_end)
{
    const pcre2_code *code = s->pre->codes[i];
    uint32_t options = PCRE2_NO_UTF_CHECK;

    int rc = pcre2_match(code, (PCRE2_SPTR)text, len, start, options, s->match[i], s->pre->limits);
    if (rc < 0 && rc != PCRE2_ERROR_NOMATCH)
        rc = pcre2_match(code, (PCRE2_SPTR)text, len, start, options | PCRE2_NO_JIT, s->match[i],
                         s->pre->limits);
    if (rc < 0)
        return false;
    const PCRE2_SIZE *bounds = pcre2_get_ovector_pointer(s->match[i]);
    *ret_start = bounds[0];
    *ret_end = bounds[1];
    return bounds[1] > bounds[0];
}

/* Cuts text[len], valid UTF-8, with pattern i and the ones after it. The depth is the number of
 * patterns. */
static int split_with(struct split *s, size_t i, const char *text, size_t len, struct error *err)
{
    size_t at = 0;
    int rc = 0;

    if (len == 0)
        return 0;
    if (i == MAX_PATTERNS || !s->pre->codes[i])
        return s->word(s->user, text, len, err);
    while (at < len && rc == 0) {
        size_t start = len, end = len;
        if (!find(s, i, text, len, at, &start, &end))
            start = end = len;
        rc = split_with(s, i + 1, text + at, start - at, err);
        if (rc == 0)
            rc = split_with(s, i + 1, text + start, end - start, err);
        at = end;
    }
    return rc;
}

/* Bytes of the valid UTF-8 at the start of text[len]. */
static size_t valid_bytes(const char *text, size_t len)
{
    size_t at = 0, step;
    while (at < len && utf8_next(text + at, len - at, &step) == UTF8_CHARACTER)
        at += step;
    return at;
}

static int split_all(struct split *s, const char *text, size_t len, struct error *err)
{
    int rc = 0;
    for (size_t at = 0; at < len && rc == 0;) {
        size_t valid = valid_bytes(text + at, len - at);
        rc = split_with(s, 0, text + at, valid, err);
        at += valid;
        if (rc == 0 && at < len)
            rc = s->word(s->user, text + at++, 1, err);
    }
    return rc;
}

int pre_tokenizer_split(const struct pre_tokenizer *pre, const char *text, size_t len,
                        pre_tokenizer_word_fn *word, void *user, struct error *err)
{
    struct split s = {.pre = pre, .word = word, .user = user};
    bool ready = true;
    int rc;

    for (size_t i = 0; i < pre->n_codes; i++) {
        s.match[i] = pcre2_match_data_create(1, pre->memory);
        ready = ready && s.match[i];
    }
    rc = ready ? split_all(&s, text, len, err) : error_memory(err, "pattern match", 0);
    for (size_t i = 0; i < pre->n_codes; i++)
        pcre2_match_data_free(s.match[i]);
    return rc;
}
