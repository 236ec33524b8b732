/* From a calibration file to samples. See samples.h. */
#include "engine/prune/samples.h"

#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/kernels/kernels.h"
#include "engine/prune/jsonl.h"

/* Shorter ones have no prompt of a page and an answer worth fitting to. */
#define MIN_SAMPLE_TOKENS 64
#define MIN_ANSWER_TOKENS 16
/* Every so many samples one is held back, once there are so many. */
#define HOLD_EVERY 16

/* Prompt lengths of successive samples: short ones leave more to fit to. */
static size_t choose_prompt(size_t i)
{
    static const size_t PAGES[] = {1, 2, 1, 4};
    return PAGES[i % (sizeof(PAGES) / sizeof(PAGES[0]))] * KERNEL_PAGE_TOKENS;
}

/* Whole pages of a prompt of so many tokens: one at least, and an answer behind. */
static uint32_t prompt_pages(size_t n_prompt, size_t n)
{
    size_t most = (n - MIN_ANSWER_TOKENS) / KERNEL_PAGE_TOKENS;
    size_t pages = n_prompt / KERNEL_PAGE_TOKENS;
    pages = pages < 1 ? 1 : pages;
    return (uint32_t)((pages < most ? pages : most) * KERNEL_PAGE_TOKENS);
}

/* The last n tokens of the set become a sample. n_prompt 0: chosen by its number. */
static int add_sample(struct sample_set *set, uint32_t n, size_t n_prompt, bool hold,
                      struct error *err)
{
    if (set->n_samples == set->cap) {
        size_t cap = set->cap ? 2 * set->cap : 64;
        struct sample *samples = mem_realloc(set->samples, cap, sizeof(*samples));
        if (!samples)
            return error_memory(err, "samples", cap * sizeof(*samples));
        set->samples = samples;
        set->cap = cap;
    }
    size_t i = set->n_samples++;
    struct sample *s = &set->samples[i];
    *s = (struct sample){
        .begin = set->tokens.n - n,
        .n = n,
        .n_prompt = prompt_pages(n_prompt ? n_prompt : choose_prompt(i), n),
        .answer = set->n_answer,
        .page = set->n_pages,
        .held = hold && i % HOLD_EVERY == HOLD_EVERY / 2,
    };
    set->n_answer += n - s->n_prompt;
    set->n_pages += (n + KERNEL_PAGE_TOKENS - 1) / KERNEL_PAGE_TOKENS;
    set->hash = hash_bytes(set->hash, set->tokens.ids + s->begin, n * sizeof(int32_t));
    set->hash = hash_bytes(set->hash, &n, sizeof(n));
    return 0;
}

/* A file's way into the set: until it holds `end` tokens. */
struct filling {
    struct sample_set *set;
    size_t end;
    bool hold;
};

/* How many of n tokens one sample takes. */
static size_t sample_length(const struct filling *filling, size_t n)
{
    size_t n_left = filling->end - filling->set->tokens.n;
    n = n < SAMPLE_TOKENS ? n : SAMPLE_TOKENS;
    return n < n_left ? n : n_left;
}

static int append_sample(const struct filling *filling, const int32_t *ids, size_t n,
                         size_t n_prompt, struct error *err)
{
    int rc = token_list_append(&filling->set->tokens, ids, n, err);
    return rc ? rc : add_sample(filling->set, (uint32_t)n, n_prompt, filling->hold, err);
}

/* One sample of a row; too short ones, and chats without an answer, are left out. */
static int add_row(void *user, const struct token_list *ids, size_t n_prompt, bool *ret_enough,
                   struct error *err)
{
    const struct filling *filling = user;
    size_t n = sample_length(filling, ids->n);
    int rc = 0;
    if (n >= MIN_SAMPLE_TOKENS && n_prompt + MIN_ANSWER_TOKENS <= n)
        rc = append_sample(filling, ids->ids, n, n_prompt, err);
    *ret_enough = filling->set->tokens.n >= filling->end;
    return rc;
}

/* A text is cut up. */
static int add_text(void *user, const struct token_list *ids, size_t n_prompt, bool *ret_enough,
                    struct error *err)
{
    const struct filling *filling = user;
    int rc = 0;
    for (size_t i = 0; rc == 0 && i < ids->n;) {
        size_t n = sample_length(filling, ids->n - i);
        if (n < MIN_SAMPLE_TOKENS)
            break;
        rc = append_sample(filling, ids->ids + i, n, 0, err);
        i += n;
    }
    *ret_enough = true;
    return rc;
}

/* A file that gives samples for its share of the tokens, or what others left of theirs. */
static int read_file(const char *path, const struct corpus_text *how, size_t end, bool hold,
                     struct sample_set *set, struct error *err)
{
    size_t n_before = set->n_samples;
    struct filling filling = {.set = set, .end = end, .hold = hold};
    struct corpus corpus = {
        .path = path,
        .how = *how,
        .n_tokens = end - set->tokens.n,
        .each = path_is_jsonl(path) ? add_row : add_text,
        .user = &filling,
    };
    int rc = corpus_read(&corpus, err);
    if (rc == 0 && set->n_samples == n_before)
        rc = error_set(err, ERROR_INVALID, "calibration %s: it holds no text of %d tokens and more",
                       path, MIN_SAMPLE_TOKENS);
    return rc;
}

int samples_read(const char *const *paths, size_t n_paths, const struct corpus_text *how,
                 size_t n_tokens, bool hold, struct sample_set *ret_set, struct error *err)
{
    struct sample_set set = {.hash = HASH_START};
    int rc = 0;
    for (size_t i = 0; i < n_paths && rc == 0; i++) {
        size_t share = (n_tokens - set.tokens.n) / (n_paths - i);
        rc = read_file(paths[i], how, set.tokens.n + share, hold, &set, err);
    }
    if (rc) {
        samples_free(&set);
        return rc;
    }
    *ret_set = set;
    return 0;
}

void samples_free(struct sample_set *set)
{
    token_list_free(&set->tokens);
    mem_free(set->samples);
    *set = (struct sample_set){0};
}
