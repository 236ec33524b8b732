/* Reading a request: defaults, every kind of field, and what the errors say. The whole table of
 * mistakes is in tests/http/test_errors.py; here is what can be seen only from inside. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "server/fields.h"
#include "server/json_read.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>

static const struct engine_info INFO = {
    .model_id = "m", .vocab_size = 100, .pruned_path = "p.gguf", .context = 1000};

static int read_into(struct params *p, enum field_route route, const char *rest,
                     struct http_error *e)
{
    struct buf text = {0}, unknown = {0};
    cJSON *tree = NULL;

    buf_printf(&text, "{\"model\":\"m\",%s}", rest);
    assert_int_equal(json_parse_object(text.data, text.len, &tree, e), 0);
    int result = params_read(p, route, tree, &INFO, &unknown, e);
    buf_free(&text);
    buf_free(&unknown);
    return result;
}

#define CHAT "\"messages\":[{\"role\":\"user\",\"content\":\"hi\"}]"
#define PROMPT "\"prompt\":\"hi\""

static void read_chat(struct params *p, const char *rest)
{
    char text[500];
    struct http_error e;

    snprintf(text, sizeof(text), CHAT "%s%s", rest[0] ? "," : "", rest);
    if (read_into(p, ON_CHAT, text, &e) < 0)
        fail_msg("%s: %s", rest, e.message);
}

static void read_completion(struct params *p, const char *rest)
{
    struct http_error e;

    if (read_into(p, ON_COMPLETIONS, rest, &e) < 0)
        fail_msg("%s: %s", rest, e.message);
}

static void defaults_are_openais(void **state)
{
    struct params p;

    read_chat(&p, "");
    assert_int_equal(p.n, 1);
    assert_int_equal(p.max_tokens, PARAMS_NO_LIMIT);
    assert_int_equal(p.n_logprobs, -1);
    assert_false(p.stream || p.echo || p.ignore_eos || p.seed_given || p.include_usage);
    assert_true(p.sampling.temperature == 1 && p.sampling.top_p == 1 && p.sampling.top_k == 0);
    assert_int_equal(p.decode, DECODE_DEFAULT);
    assert_true(isnan(p.ping_s));
    assert_int_equal(p.n_messages, 1);
    assert_string_equal(p.messages[0].role, "user");
    assert_memory_equal(p.messages[0].content, "hi", 2);
    params_free(&p);
}

static void every_kind_of_field_is_read(void **state)
{
    struct params p;

    read_chat(
        &p, "\"temperature\":0.5,\"top_k\":-1,\"n\":3,\"max_completion_tokens\":7,\"max_tokens\":9,"
            "\"stream\":true,\"stream_options\":{\"include_usage\":true},\"stop\":[\"a\",\"bc\"],"
            "\"logprobs\":true,\"top_logprobs\":4,\"logit_bias\":{\"7\":-100,\"42\":1.5},"
            "\"repetition_penalty\":1.1,\"overfill\":{\"decode\":\"full\"},\"seed\":-1");
    assert_true(p.sampling.temperature == 0.5f && p.sampling.top_k == 0);
    assert_int_equal(p.n, 3);
    assert_int_equal(p.max_tokens, 7);
    assert_true(p.stream && p.include_usage);
    assert_int_equal(p.n_stops, 2);
    assert_memory_equal(p.stops[1].data, "bc", 2);
    assert_int_equal(p.n_logprobs, 4);
    assert_int_equal(p.sampling.n_bias, 2);
    assert_int_equal(p.sampling.bias[1].token, 42);
    assert_true(p.sampling.bias[1].bias == 1.5f);
    assert_true(p.sampling.repeat_penalty == 1.1f);
    assert_int_equal(p.decode, DECODE_FULL);
    assert_true(p.seed_given && p.sampling.seed == UINT64_MAX);
    params_free(&p);
}

static void seeds_above_2_53_keep_their_digits(void **state)
{
    struct params p;

    read_chat(&p, "\"seed\":\"9007199254740993\"");
    assert_true(p.sampling.seed == 9007199254740993u);
    params_free(&p);
    read_chat(&p, "\"n\":1,\"seed\":9007199254740993,\"top_k\":3");
    assert_true(p.sampling.seed == 9007199254740993u);
    assert_int_equal(p.sampling.top_k, 3);
    params_free(&p);
    read_chat(&p, "\"seed\":-9223372036854775807");
    assert_true(p.sampling.seed == (uint64_t)-INT64_MAX);
    params_free(&p);
    read_chat(&p, "\"overfill\":{\"decode\":\"full\"},\"seed\":9223372036854775807");
    assert_true(p.sampling.seed == INT64_MAX);
    params_free(&p);
}

static void prompts_take_every_form(void **state)
{
    struct params p;

    read_completion(&p, "\"prompt\":\"\"");
    assert_true(p.n_prompts == 1 && p.prompts[0].text && p.prompts[0].text_len == 0);
    params_free(&p);
    read_completion(&p, "\"prompt\":[1,2,3]");
    assert_true(p.n_prompts == 1 && !p.prompts[0].text && p.prompts[0].n_tokens == 3);
    assert_int_equal(p.prompts[0].tokens[2], 3);
    params_free(&p);
    read_completion(&p, "\"prompt\":[\"a\",[4,5],\"b\"]");
    assert_int_equal(p.n_prompts, 3);
    assert_int_equal(p.prompts[1].n_tokens, 2);
    assert_string_equal(p.prompts[2].text, "b");
    params_free(&p);
}

static void parts_of_a_message_are_joined(void **state)
{
    struct params p;
    struct http_error e;

    assert_int_equal(
        read_into(&p, ON_CHAT,
                  "\"messages\":[{\"role\":\"developer\",\"content\":[{\"type\":\"text\","
                  "\"text\":\"a\"},{\"type\":\"text\",\"text\":\"b\"}]},"
                  "{\"role\":\"assistant\",\"content\":null}]",
                  &e),
        0);
    assert_string_equal(p.messages[0].role, "system");
    assert_int_equal(p.messages[0].content_len, 3);
    assert_memory_equal(p.messages[0].content, "a\nb", 3);
    assert_int_equal(p.messages[1].content_len, 0);
    params_free(&p);
}

static void the_last_of_two_equal_fields_counts(void **state)
{
    struct params p;

    read_chat(&p, "\"n\":2,\"n\":5,\"stop\":\"x\",\"stop\":[\"y\"]");
    assert_int_equal(p.n, 5);
    assert_int_equal(p.n_stops, 1);
    assert_memory_equal(p.stops[0].data, "y", 1);
    params_free(&p);
}

static void unknown_fields_are_named(void **state)
{
    static const char TEXT[] = "{\"model\":\"m\"," PROMPT ",\"foo\":1,\"bar\":null}";
    struct buf unknown = {0};
    struct params p;
    struct http_error e;
    cJSON *tree = NULL;

    assert_int_equal(json_parse_object(TEXT, sizeof(TEXT) - 1, &tree, &e), 0);
    assert_int_equal(params_read(&p, ON_COMPLETIONS, tree, &INFO, &unknown, &e), 0);
    assert_string_equal(unknown.data, "foo bar");
    params_free(&p);
    buf_free(&unknown);
}

static void assert_fails(enum field_route route, const char *rest, const char *param,
                         const char *message)
{
    struct params p;
    struct http_error e;

    assert_int_equal(read_into(&p, route, rest, &e), -1);
    assert_int_equal(e.status, 400);
    assert_string_equal(e.param, param);
    assert_string_equal(e.message, message);
}

static void errors_have_openais_words(void **state)
{
    assert_fails(ON_CHAT, CHAT ",\"temperature\":9", "temperature",
                 "Invalid 'temperature': decimal above maximum value. Expected a value <= 2, but "
                 "got 9 instead.");
    assert_fails(ON_CHAT, CHAT ",\"n\":0", "n",
                 "Invalid 'n': integer below minimum value. Expected a value >= 1, but got 0 "
                 "instead.");
    assert_fails(ON_CHAT, CHAT ",\"stream\":1", "stream",
                 "Invalid type for 'stream': expected a boolean, but got an integer instead.");
    assert_fails(ON_CHAT, "\"messages\":[]", "messages",
                 "Invalid 'messages': empty array. Expected an array with minimum length 1, but "
                 "got an empty array instead.");
    assert_fails(ON_COMPLETIONS, "\"n\":1", "prompt", "Missing required parameter: 'prompt'.");
    assert_fails(ON_COMPLETIONS, PROMPT ",\"stop\":[\"a\",\"b\",\"c\",\"d\",\"e\"]", "stop",
                 "Invalid 'stop': array too long. Expected an array with maximum length 4, but "
                 "got an array with length 5 instead.");
    assert_fails(ON_COMPLETIONS, "\"prompt\":[100]", "prompt",
                 "Invalid 'prompt': token id 100 is not in the model's vocabulary of 100.");
}

/* Each allocation fails once: an error of 503, nothing leaked (AddressSanitizer), no crash. */
static void a_request_survives_any_failed_allocation(void **state)
{
    static const char TEXT[] =
        "{\"model\":\"m\",\"prompt\":[\"a\",[4,5]],\"logit_bias\":{\"7\":1}}";
    static const char PARTS[] = "{\"model\":\"m\",\"messages\":[{\"role\":\"user\",\"content\":"
                                "[{\"type\":\"text\",\"text\":\"a\"}]}]}";
    bool was_read = false;

    for (unsigned long k = 1; !was_read; k++) {
        struct buf unknown = {0};
        struct http_error e = {0};
        struct params p;
        cJSON *tree = NULL;
        bool is_chat = k % 2;
        const char *text = is_chat ? PARTS : TEXT;

        mem_fail_at((k + 1) / 2);
        int result = json_parse_object(text, strlen(text), &tree, &e);
        if (result == 0)
            result = params_read(&p, is_chat ? ON_CHAT : ON_COMPLETIONS, tree, &INFO, &unknown, &e);
        mem_fail_at(0);
        if (result == 0)
            params_free(&p);
        else
            assert_int_equal(e.status, 503);
        was_read = result == 0 && !is_chat;
        buf_free(&unknown);
    }
}

static int setup(void **state)
{
    json_setup();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(defaults_are_openais),
        cmocka_unit_test(every_kind_of_field_is_read),
        cmocka_unit_test(seeds_above_2_53_keep_their_digits),
        cmocka_unit_test(prompts_take_every_form),
        cmocka_unit_test(parts_of_a_message_are_joined),
        cmocka_unit_test(the_last_of_two_equal_fields_counts),
        cmocka_unit_test(unknown_fields_are_named),
        cmocka_unit_test(errors_have_openais_words),
        cmocka_unit_test(a_request_survives_any_failed_allocation),
    };
    return cmocka_run_group_tests(tests, setup, NULL);
}
