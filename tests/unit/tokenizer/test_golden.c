/* Ids against published ones: llama.cpp's vocabulary tests, and SmolLM2's chat prompts. */
#include "engine/tokenizer/chat_template.h"
#include "tests/unit/check.h"
#include "tests/unit/tokenizer/vocabs.h"

#include <cjson/cJSON.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#define SEPARATOR "\n__ggml_vocab_test__\n"
#define MODEL "SmolLM2-135M-Instruct.Q4_1.gguf"

static void check_case(const struct tokenizer *tokenizer, size_t number, const char *text,
                       size_t len, char *expected)
{
    struct token_list list = encode(tokenizer, text, len, 0);
    size_t n = 0;
    for (char *word = strtok(expected, " "); word; word = strtok(NULL, " "), n++)
        if (n >= list.n || list.ids[n] != atoi(word))
            fail_msg("case %zu, token %zu: %s expected, found %d", number, n, word,
                     n < list.n ? list.ids[n] : -1);
    assert_int_equal(list.n, n);
    token_list_free(&list);
}

/* NAME.gguf.inp: texts with separators; NAME.gguf.out: a line of ids for each. */
static void check_vocab(const char *name)
{
    char path[4096], cases_path[4200];
    struct loaded l;
    size_t n_inputs, n_outputs, number = 0;

    load(find_shared(name, path, sizeof(path)), &l);
    snprintf(cases_path, sizeof(cases_path), "%s.inp", path);
    char *inputs = read_file(cases_path, &n_inputs);
    snprintf(cases_path, sizeof(cases_path), "%s.out", path);
    char *outputs = read_file(cases_path, &n_outputs), *line = outputs;
    for (char *at = inputs, *end; (end = strstr(at, SEPARATOR)); at = end + strlen(SEPARATOR)) {
        char *line_end = strchr(line, '\n');
        assert_non_null(line_end);
        *line_end = '\0';
        check_case(l.tokenizer, number++, at, (size_t)(end - at), line);
        line = line_end + 1;
    }
    assert_true(number > 40);
    free(inputs);
    free(outputs);
    unload(&l);
}

static void gpt2_ids_are_llama_cpps(void **state)
{
    check_vocab("data/tokenizer/ggml-vocab-gpt-2.gguf");
}

static void starcoder_ids_are_llama_cpps(void **state)
{
    check_vocab("data/tokenizer/ggml-vocab-starcoder.gguf");
}

static void falcon_ids_are_llama_cpps(void **state)
{
    check_vocab("data/tokenizer/ggml-vocab-falcon.gguf");
}

static void llama_spm_ids_are_llama_cpps(void **state)
{
    check_vocab("data/tokenizer/ggml-vocab-llama-spm.gguf");
}

static void phi3_ids_are_llama_cpps(void **state)
{
    check_vocab("data/tokenizer/ggml-vocab-phi-3.gguf");
}

static void render(const struct loaded *l, const cJSON *messages, struct chat_prompt *ret)
{
    const struct chat_template *tmpl;
    struct chat_message list[16];
    size_t n = 0;
    struct error err = {0};

    for (const cJSON *m = messages->child; m && n < 16; m = m->next, n++) {
        list[n].role = cJSON_GetObjectItem(m, "role")->valuestring;
        list[n].content = cJSON_GetObjectItem(m, "content")->valuestring;
        list[n].content_len = strlen(list[n].content);
    }
    assert_int_equal(chat_template_find(NULL, l->vocab.chat_template, &tmpl, &err), 0);
    assert_string_equal(chat_template_name(tmpl), "smollm");
    assert_int_equal(chat_template_render(tmpl, list, n, true, ret, &err), 0);
}

static void check_row(const struct loaded *l, const cJSON *row, int number)
{
    const char *text = cJSON_GetObjectItem(row, "text")->valuestring;
    const cJSON *messages = cJSON_GetObjectItem(row, "messages");
    const cJSON *ids = cJSON_GetObjectItem(row, "prompt_tokens");
    struct token_list list = {0};
    struct error err = {0};
    size_t n = 0;

    if (cJSON_IsArray(messages)) {
        struct chat_prompt prompt;
        render(l, messages, &prompt);
        assert_string_equal(prompt.text.data, text);
        assert_int_equal(chat_prompt_encode(&prompt, l->tokenizer, &list, &err), 0);
        chat_prompt_free(&prompt);
    } else {
        list = encode(l->tokenizer, text, strlen(text), TOKENIZER_ADD_SPECIAL);
        assert_pieces(l->tokenizer, &list, text, strlen(text));
    }
    for (const cJSON *id = ids->child; id; id = id->next, n++)
        if (n >= list.n || list.ids[n] != id->valueint)
            fail_msg("row %d, token %zu: %d expected", number, n, id->valueint);
    assert_int_equal(list.n, n);
    token_list_free(&list);
}

static void smollm2_prompts_are_the_golden_ones(void **state)
{
    char path[4096];
    struct loaded l;
    size_t len;
    int n_rows = 0;
    char *rows =
        read_file(find_shared("data/golden/smollm2-greedy.jsonl", path, sizeof(path)), &len);

    load(find_model(MODEL, path, sizeof(path)), &l);
    for (char *line = strtok(rows, "\n"); line; line = strtok(NULL, "\n"), n_rows++) {
        cJSON *row = cJSON_Parse(line);
        assert_non_null(row);
        check_row(&l, row, n_rows);
        cJSON_Delete(row);
    }
    assert_int_equal(n_rows, 17);
    free(rows);
    unload(&l);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(gpt2_ids_are_llama_cpps),
        cmocka_unit_test(starcoder_ids_are_llama_cpps),
        cmocka_unit_test(falcon_ids_are_llama_cpps),
        cmocka_unit_test(llama_spm_ids_are_llama_cpps),
        cmocka_unit_test(phi3_ids_are_llama_cpps),
        cmocka_unit_test(smollm2_prompts_are_the_golden_ones),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
