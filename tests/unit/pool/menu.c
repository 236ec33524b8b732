/* See menu.h. */
#include "tests/unit/pool/menu.h"

#include <stdlib.h>

uint32_t menu_random(uint32_t *seed, uint32_t n)
{
    *seed = *seed * 1664525u + 1013904223u;
    return (*seed >> 16) % n;
}

/* Prompts begin alike, some for several pages. */
static size_t make_prompt(uint32_t *seed, int32_t *ret_tokens)
{
    static const uint32_t shared[] = {0, 0, 20, 64, 100, 200};
    uint32_t n_shared = shared[menu_random(seed, 6)];
    uint32_t n = n_shared + 1 + menu_random(seed, menu_random(seed, 3) ? 20 : 70);
    rig_prompt(1 + menu_random(seed, 2), n_shared, ret_tokens);
    rig_prompt(*seed, n - n_shared, ret_tokens + n_shared);
    return n;
}

static struct engine_request make_request(uint32_t *seed, int32_t *prompt)
{
    size_t n = make_prompt(seed, prompt);
    struct engine_request r = rig_request(prompt, n);
    r.max_tokens =
        menu_random(seed, 10) ? 1 + menu_random(seed, menu_random(seed, 3) ? 60 : 200) : 0;
    r.decode = (enum decode_mode)(DECODE_PRUNED + menu_random(seed, 4));
    r.decode_every = menu_random(seed, 3) ? 1 + menu_random(seed, 12) : 0;
    r.n = menu_random(seed, 4) ? 1 : 1 + menu_random(seed, 4);
    r.n_logprobs = (int32_t)menu_random(seed, 4) - 1;
    r.prompt_logprobs = menu_random(seed, 8) == 0;
    r.n_prompt_logprobs = (uint32_t)(r.n_logprobs > 0 ? r.n_logprobs : 0);
    r.ignore_eos = menu_random(seed, 3) != 0;
    r.min_tokens = menu_random(seed, 4) ? 0 : 10;
    r.no_cache = menu_random(seed, 8) == 0;
    r.priority = (int32_t)menu_random(seed, 3) - 1;
    r.fairness_key = menu_random(seed, 4);
    r.sampling.seed = *seed;
    r.sampling.temperature = (float)menu_random(seed, 4) / 3;
    r.sampling.top_k = menu_random(seed, 3) ? 0 : 3;
    r.sampling.top_p = menu_random(seed, 3) ? 1 : 0.8f;
    r.sampling.repeat_penalty = menu_random(seed, 4) ? 1 : 1.2f;
    r.sampling.frequency_penalty = menu_random(seed, 4) ? 0 : 0.5f;
    return r;
}

struct menu *menu_open(struct engine_options options)
{
    struct menu *menu = calloc(1, sizeof(*menu));
    uint32_t seed = 7;
    assert_non_null(menu);
    menu->alone = calloc(MENU_DISHES, sizeof(*menu->alone));
    assert_non_null(menu->alone);
    options.prefill_threads = options.decode_threads = 1;
    options.no_prefix_cache = true;
    struct engine *engine = rig_open(&options);
    for (size_t i = 0; i < MENU_DISHES; i++) {
        menu->requests[i] = make_request(&seed, menu->prompts[i]);
        rig_submit(engine, menu->requests[i], &menu->alone[i]);
        rig_collect_one(engine, &menu->alone[i]);
        rig_expect_ok(&menu->alone[i]);
        assert_int_equal(menu->alone[i].usage.cached_tokens, 0);
        assert_int_equal(menu->alone[i].usage.n_preemptions, 0);
    }
    engine_close(engine);
    return menu;
}

void menu_close(struct menu *menu)
{
    free(menu->alone);
    free(menu);
}

void menu_expect(const struct menu *menu, size_t dish, const struct rig_result *result)
{
    const struct rig_result *alone = &menu->alone[dish];
    if (result->error == ERROR_CANCELLED)
        return;
    rig_expect_ok(result);
    for (uint32_t c = 0; c < menu->requests[dish].n; c++)
        rig_expect_same_choice(&alone->choices[c], &result->choices[c]);
    assert_int_equal(alone->n_prompt, result->n_prompt);
    for (size_t i = 1; i < alone->n_prompt; i++)
        assert_true(alone->prompt_logprobs[i] == result->prompt_logprobs[i]);
    assert_int_equal(alone->usage.completion_tokens, result->usage.completion_tokens);
    assert_int_equal(alone->usage.refreshed_tokens, result->usage.refreshed_tokens);
    assert_int_equal(alone->usage.drafted_tokens, result->usage.drafted_tokens);
    assert_int_equal(alone->usage.accepted_tokens, result->usage.accepted_tokens);
}
