/* See rig.h. */
#include "tests/unit/pool/rig.h"

#include "engine/base/system.h"

#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

#define PATIENCE_MS 60000

static void no_template(struct gguf_writer *w)
{
    gguf_writer_remove(w, "tokenizer.chat_template");
}

static void chatml(struct gguf_writer *w)
{
    gguf_writer_set_string(w, "tokenizer.chat_template",
                           "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}"
                           "<|im_end|>\n{% endfor %}");
}

struct tiny rig_full_model(void)
{
    struct tiny tiny = tiny_default();
    tiny.untied = true;
    tiny.hidden = 32;
    tiny.mlp = 48;
    tiny.head_dim = 8;
    tiny.change = no_template;
    return tiny;
}

struct tiny rig_other_model(void)
{
    struct tiny tiny = rig_full_model();
    tiny.hidden = 24;
    tiny.mlp = 20;
    tiny.seed = 5;
    return tiny;
}

static void put_path(char *out, size_t size, const char *folder, const char *name)
{
    assert_true((size_t)snprintf(out, size, "%s/%s", folder, name) < size);
}

int rig_write_files(void **state)
{
    struct rig_files *f = calloc(1, sizeof(*f));
    if (!f)
        return -1;
    *state = f;
    snprintf(f->folder, sizeof(f->folder), P_tmpdir "/overfill-test-XXXXXX");
    if (!mkdtemp(f->folder))
        return -1;
    put_path(f->full, sizeof(f->full), f->folder, "full.gguf");
    put_path(f->other, sizeof(f->other), f->folder, "other.gguf");
    put_path(f->templated, sizeof(f->templated), f->folder, "templated.gguf");
    struct tiny full = rig_full_model(), other = rig_other_model(), templated = full;
    templated.change = chatml;
    tiny_write_gguf(&full, f->full);
    tiny_write_gguf(&other, f->other);
    tiny_write_gguf(&templated, f->templated);
    return 0;
}

int rig_remove_files(void **state)
{
    struct rig_files *f = *state;
    unlink(f->full);
    unlink(f->other);
    unlink(f->templated);
    int rc = rmdir(f->folder);
    free(f);
    return rc;
}

struct engine_options rig_options(const struct rig_files *files)
{
    return (struct engine_options){
        .model_path = files->full,
        .weights = WEIGHT_F32,
        .kv_type = KV_F32,
        .context = 512,
        .kv_bytes = (size_t)16 << 20,
        .prefill_threads = 2,
        .decode_threads = 2,
        .max_sequences = 16,
        .no_background = true,
    };
}

struct engine *rig_open(const struct engine_options *options)
{
    struct engine *engine = NULL;
    struct error err = {0};
    if (engine_open(options, &engine, &err))
        fail_msg("%s", err.message);
    return engine;
}

struct engine_request rig_request(const int32_t *tokens, size_t n_tokens)
{
    struct engine_request request = {
        .tokens = tokens,
        .n_tokens = n_tokens,
        .n = 1,
        .max_tokens = 40,
        .sampling = SAMPLING_DEFAULTS,
        .n_logprobs = -1,
    };
    request.sampling.seed = 1;
    return request;
}

void rig_prompt(uint32_t seed, size_t n_tokens, int32_t *ret_tokens)
{
    for (size_t i = 0; i < n_tokens; i++) {
        seed = seed * 1664525u + 1013904223u;
        ret_tokens[i] = RIG_A + (int32_t)((seed >> 16) % 5);
    }
}

void rig_submit(struct engine *engine, struct engine_request request, struct rig_result *result)
{
    struct error err = {0};
    memset(result, 0, sizeof(*result));
    request.user = result;
    if (engine_submit(engine, &request, &result->id, &err))
        fail_msg("%s", err.message);
}

static void add_record(struct rig_result *result, const struct engine_output *out,
                       const struct engine_token *token)
{
    assert_true(token->choice < RIG_MAX_CHOICES);
    struct rig_choice *c = &result->choices[token->choice];
    assert_int_equal(c->finish, FINISH_NONE); /* nothing comes after the end */
    c->n_records++;
    c->finish = token->finish;
    size_t room = sizeof(c->text) - c->text_len;
    size_t len = token->text_len < room ? token->text_len : room;
    if (len)
        memcpy(c->text + c->text_len, out->text + token->text_start, len);
    c->text_len += len;
    if (token->token < 0) {
        assert_int_not_equal(token->finish, FINISH_NONE);
        return;
    }
    if (c->n < RIG_MAX_TOKENS) {
        c->tokens[c->n] = token->token;
        c->logprobs[c->n] = token->logprob;
        c->n_top[c->n] = token->n_top;
        for (uint32_t i = 0; i < token->n_top && i < RIG_MAX_TOP; i++)
            c->top[c->n][i] = out->top[token->top_start + i];
    }
    c->n++;
}

static void add_prompt(struct rig_result *result, const struct engine_output *out)
{
    if (out->prompt_ids) {
        assert_int_equal(result->n_prompt_ids, 0);
        result->n_prompt_ids = out->usage.prompt_tokens;
        for (size_t i = 0; i < result->n_prompt_ids && i < RIG_MAX_TOKENS; i++)
            result->prompt_ids[i] = out->prompt_ids[i];
    }
    if (!out->prompt)
        return;
    assert_int_equal(result->n_prompt, 0);
    result->n_prompt = out->n_prompt;
    for (size_t i = 0; i < out->n_prompt && i < RIG_MAX_TOKENS; i++) {
        assert_int_equal(out->prompt[i].token, result->prompt_ids[i]);
        result->prompt_logprobs[i] = out->prompt[i].logprob;
        result->prompt_ranks[i] = out->prompt[i].rank;
        for (uint32_t k = 0; k < out->prompt[i].n_top && k < RIG_MAX_TOP; k++)
            result->prompt_top[i][k] = out->prompt_top[out->prompt[i].top_start + k];
    }
}

bool rig_take(struct engine *engine, int timeout_ms)
{
    const struct engine_output *out = engine_wait(engine, timeout_ms);
    if (!out)
        return false;
    struct rig_result *result = out->user;
    assert_non_null(result);
    assert_false(result->done); /* an id is gone after its last output */
    result->accepted |= out->accepted;
    add_prompt(result, out);
    for (size_t i = 0; i < out->n_tokens; i++)
        add_record(result, out, &out->tokens[i]);
    result->n_prompt_tokens = out->n_prompt_tokens;
    result->usage = out->usage;
    assert_true(out->done || !out->error);
    if (out->error) {
        result->error = out->error->code;
        snprintf(result->message, sizeof(result->message), "%s", out->error->message);
    }
    result->done = out->done;
    return true;
}

void rig_collect(struct engine *engine, struct rig_result *const *results, size_t n)
{
    for (size_t i = 0; i < n; i++)
        while (!results[i]->done)
            if (!rig_take(engine, PATIENCE_MS))
                fail_msg("nothing came for %d ms", PATIENCE_MS);
}

void rig_collect_one(struct engine *engine, struct rig_result *result)
{
    rig_collect(engine, &result, 1);
}

struct rig_result *rig_run(struct engine *engine, struct engine_request request)
{
    struct rig_result *result = malloc(sizeof(*result));
    assert_non_null(result);
    rig_submit(engine, request, result);
    rig_collect_one(engine, result);
    return result;
}

void rig_expect_ok(const struct rig_result *result)
{
    if (result->error)
        fail_msg("%s", result->message);
    assert_true(result->done && result->accepted);
}

void rig_expect_same_choice(const struct rig_choice *a, const struct rig_choice *b)
{
    size_t n = a->n < RIG_MAX_TOKENS ? a->n : RIG_MAX_TOKENS;
    assert_int_equal(a->n, b->n);
    for (size_t i = 0; i < n; i++)
        if (a->tokens[i] != b->tokens[i])
            fail_msg("token %zu is %d and %d", i, a->tokens[i], b->tokens[i]);
    assert_memory_equal(a->logprobs, b->logprobs, n * sizeof(float));
    assert_memory_equal(a->n_top, b->n_top, n * sizeof(a->n_top[0]));
    assert_memory_equal(a->top, b->top, n * sizeof(a->top[0]));
    assert_int_equal(a->finish, b->finish);
    assert_int_equal(a->text_len, b->text_len);
    assert_memory_equal(a->text, b->text, a->text_len);
}

void rig_wait_until(struct engine *engine, rig_condition *holds)
{
    uint64_t end = system_now_ns() + PATIENCE_MS * 1000000ull;
    struct engine_stats stats;
    do {
        engine_get_stats(engine, &stats);
        if (holds(&stats))
            return;
        rig_take(engine, 1);
    } while (system_now_ns() < end);
    fail_msg("not so after %d ms: waiting %u, prefilling %u, decoding %u, pages %u", PATIENCE_MS,
             stats.requests_waiting, stats.requests_prefilling, stats.sequences_decoding,
             stats.kv_pages_used);
}

bool rig_is_idle(const struct engine_stats *stats)
{
    return stats->requests_waiting == 0 && stats->requests_prefilling == 0 &&
           stats->sequences_decoding == 0 && stats->kv_pages_used == 0;
}
