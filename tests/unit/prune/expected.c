/* See expected.h; scripts/make-tiny-models writes the files. */
#include "tests/unit/prune/expected.h"

#include "engine/model/json_file.h"
#include "tests/unit/check.h"

#include <stdlib.h>
#include <string.h>

static void read_tokens(const cJSON *json, struct expected *e)
{
    const cJSON *tokens = json_array(json, "text_tokens");
    e->text_tokens = calloc((size_t)cJSON_GetArraySize(tokens), sizeof(*e->text_tokens));
    assert_non_null(e->text_tokens);
    for (const cJSON *t = tokens->child; t; t = t->next)
        e->text_tokens[e->n_text_tokens++] = t->valueint;
}

static void read_logits(const cJSON *json, struct expected *e)
{
    const cJSON *rows = json_array(json, "logits");
    double unit = cJSON_GetObjectItemCaseSensitive(json, "unit")->valuedouble;
    size_t n = 0;
    assert_int_equal(cJSON_GetArraySize(rows), e->n_tokens);
    e->n_vocab = (uint32_t)cJSON_GetArraySize(rows->child);
    e->logits = calloc((size_t)e->n_tokens * e->n_vocab, sizeof(float));
    assert_non_null(e->logits);
    for (const cJSON *row = rows->child; row; row = row->next) {
        assert_int_equal(cJSON_GetArraySize(row), e->n_vocab);
        for (const cJSON *value = row->child; value; value = value->next)
            e->logits[n++] = (float)(value->valuedouble * unit);
    }
}

void expected_read(const char *folder, struct expected *ret_expected)
{
    struct expected e = {0};
    struct error err = {0};
    cJSON *json = NULL;
    if (json_file_read(folder, "expected.json", (size_t)4 << 20, &json, &err) || !json)
        fail_msg("%s/expected.json: %s", folder, json ? "" : err.message);
    assert_int_equal(json_need_u32(json, "n_tokens", &e.n_tokens, &err), 0);
    assert_int_equal(json_need_u32(json, "n_prefill", &e.n_prefill, &err), 0);
    e.text = strdup(json_text(json, "text"));
    read_tokens(json, &e);
    read_logits(json, &e);
    cJSON_Delete(json);
    *ret_expected = e;
}

void expected_free(struct expected *e)
{
    free(e->text);
    free(e->text_tokens);
    free(e->logits);
}
