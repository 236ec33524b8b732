/* Calibration files to samples. */
#include "engine/model/model_file.h"
#include "engine/prune/samples.h"
#include "tests/unit/check.h"
#include "tests/unit/model/tiny.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
#include <zlib.h>

struct rig {
    char folder[64], model[96], path[96];
    struct model_file *file;
    struct tokenizer *tokenizer;
};

static int open_rig(void **state)
{
    struct rig *r = calloc(1, sizeof(*r));
    struct error err;
    struct tiny tiny = tiny_default();
    if (!r)
        return -1;
    *state = r;
    snprintf(r->folder, sizeof(r->folder), P_tmpdir "/overfill-test-XXXXXX");
    if (!mkdtemp(r->folder))
        return -1;
    snprintf(r->model, sizeof(r->model), "%s/model.gguf", r->folder);
    tiny_write_gguf(&tiny, r->model);
    if (model_file_open(r->model, &r->file, &err))
        return -1;
    return tokenizer_open(model_file_vocab(r->file), &r->tokenizer, &err);
}

static int close_rig(void **state)
{
    struct rig *r = *state;
    tokenizer_close(r->tokenizer);
    model_file_close(r->file);
    unlink(r->model);
    unlink(r->path);
    int rc = rmdir(r->folder);
    free(r);
    return rc;
}

/* The file `name` with this content. */
static void put(struct rig *r, const char *name, const char *content)
{
    unlink(r->path);
    snprintf(r->path, sizeof(r->path), "%s/%s", r->folder, name);
    gzFile f = gzopen(r->path, strstr(name, ".gz") ? "wb" : "wbT");
    assert_non_null(f);
    assert_int_equal(gzwrite(f, content, (unsigned)strlen(content)), strlen(content));
    gzclose(f);
}

/* n characters of the tiny vocabulary, others for another seed. */
static char *words(size_t n, unsigned seed)
{
    char *s = malloc(n + 1);
    for (size_t i = 0; i < n; i++) {
        seed = seed * 1664525u + 1013904223u;
        s[i] = "abcdef"[(seed >> 16) % 6];
    }
    s[n] = 0;
    return s;
}

static int read_set(const struct rig *r, size_t n_tokens, struct sample_set *set, struct error *err)
{
    const char *path = r->path;
    struct corpus_text how = {.tokenizer = r->tokenizer};
    return samples_read(&path, 1, &how, n_tokens, true, set, err);
}

/* Text is cut into samples of 512 tokens; every one has a prompt of whole pages and an answer. */
static void text_is_cut_up(void **state)
{
    struct rig *r = *state;
    struct sample_set set;
    struct error err;
    char *text = words(30000, 1);
    put(r, "text.txt", text);
    assert_int_equal(read_set(r, 5000, &set, &err), 0);
    assert_int_equal(set.tokens.n, 5000);
    assert_int_equal(set.n_samples, 10);
    size_t n_answer = 0;
    for (size_t i = 0; i < set.n_samples; i++) {
        const struct sample *s = &set.samples[i];
        assert_int_equal(s->begin, i * SAMPLE_TOKENS);
        assert_int_equal(s->n, i < 9 ? SAMPLE_TOKENS : 5000 - 9 * SAMPLE_TOKENS);
        assert_int_equal(s->n_prompt % 32, 0);
        assert_true(s->n_prompt > 0 && s->n_prompt < s->n);
        assert_int_equal(s->answer, n_answer);
        n_answer += s->n - s->n_prompt;
    }
    assert_int_equal(set.n_answer, n_answer);
    samples_free(&set);
    free(text);
}

/* Rows that share their longest line are one document; the file may be gzipped. */
static void documents_count_once(void **state)
{
    struct rig *r = *state;
    struct sample_set set;
    struct sample_set zipped;
    struct error err;
    char *article = words(700, 2);
    char *other = words(400, 3);
    char *json = malloc(8000);
    snprintf(json, 8000,
             "{\"prompt\":\"ab\\n%s\",\"completion\":\"cd\"}\n"
             "{\"prompt\":\"%s\\nfe\",\"completion\":\"dd\"}\n\n"
             "{\"text\":\"%s\"}\n"
             "{\"text\":\"too short\"}\n",
             article, article, other);
    put(r, "rows.jsonl", json);
    assert_int_equal(read_set(r, 100000, &set, &err), 0);
    assert_int_equal(set.n_samples, 2);
    put(r, "rows.jsonl.gz", json);
    assert_int_equal(read_set(r, 100000, &zipped, &err), 0);
    assert_true(zipped.hash == set.hash);
    samples_free(&set);
    samples_free(&zipped);
    free(json);
    free(article);
    free(other);
}

/* A chat goes through the template, its last message is the answer; a file of its own gets its
 * share of the tokens. */
static void chats_are_rendered(void **state)
{
    struct rig *r = *state;
    struct sample_set set;
    struct sample_set plain;
    struct error err;
    char *question = words(120, 4);
    char *answer = words(150, 5);
    char *json = malloc(8000);
    struct corpus_text how = {.tokenizer = r->tokenizer};
    snprintf(json, 8000,
             "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"},"
             "{\"role\":\"assistant\",\"content\":\"%s\"}]}\n"
             "{\"messages\":[{\"role\":\"user\",\"content\":\"%s\"},"
             "{\"role\":\"assistant\",\"content\":\"\"}]}\n",
             question, answer, answer);
    put(r, "chats.jsonl", json);
    assert_int_equal(read_set(r, 4000, &set, &err), -ERROR_UNSUPPORTED);
    assert_int_equal(chat_template_find("chatml", NULL, &how.chat_template, &err), 0);
    const char *const paths[] = {r->path, r->path};
    assert_int_equal(samples_read(paths, 1, &how, 4000, true, &set, &err), 0);
    assert_int_equal(set.n_samples, 1); /* the other has no answer */
    const struct sample *s = &set.samples[0];
    struct token_list ids = {0};
    assert_int_equal(tokenizer_encode(r->tokenizer, answer, 150, 0, &ids, &err), 0);
    size_t before = s->n - ids.n; /* the question, and what the template puts around both */
    assert_true(s->n_prompt <= before && s->n_prompt + 32 + 16 > before);
    token_list_free(&ids);
    assert_int_equal(samples_read(paths, 2, &how, s->n + 70, true, &plain, &err), 0);
    assert_int_equal(plain.n_samples, 2);
    assert_int_equal(plain.samples[0].n, (s->n + 70) / 2);
    samples_free(&set);
    samples_free(&plain);
    put(r, "chats.jsonl", "{\"messages\":[{\"role\":\"user\"}]}\n");
    assert_int_equal(samples_read(paths, 1, &how, 4000, true, &set, &err), -ERROR_FORMAT);
    assert_non_null(strstr(err.message, "messages[0]"));
    free(json);
    free(question);
    free(answer);
}

static void bad_files_are_named(void **state)
{
    struct rig *r = *state;
    struct sample_set set;
    struct error err;
    put(r, "bad.jsonl", "{\"text\":\"ab\"}\n[1]\n");
    assert_int_equal(read_set(r, 1000, &set, &err), -ERROR_FORMAT);
    assert_non_null(strstr(err.message, "line 2"));
    put(r, "bad.jsonl", "{\"answer\":\"ab\"}\n");
    assert_int_equal(read_set(r, 1000, &set, &err), -ERROR_FORMAT);
    assert_non_null(strstr(err.message, "`prompt`"));
    put(r, "short.txt", "ab");
    assert_int_equal(read_set(r, 1000, &set, &err), -ERROR_INVALID);
    unlink(r->path);
    assert_int_equal(read_set(r, 1000, &set, &err), -ERROR_IO);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_cut_up),
        cmocka_unit_test(documents_count_once),
        cmocka_unit_test(chats_are_rendered),
        cmocka_unit_test(bad_files_are_named),
    };
    return cmocka_run_group_tests(tests, open_rig, close_rig);
}
