/* Whole runs over tiny models: what is equal for an identity twin, what differs for another one,
 * and what a run says when it cannot be. */
#include "engine/base/mem.h"
#include "engine/eval/eval.h"
#include "tests/unit/pool/rig.h"

#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static const struct rig_files *files;
static char data_path[96];

/* Writes the run's data file; is_text: without the .jsonl. */
static void put_data(const char *text, bool is_text)
{
    snprintf(data_path, sizeof(data_path), "%s/data.%s", files->folder, is_text ? "txt" : "jsonl");
    FILE *f = fopen(data_path, "w");
    assert_non_null(f);
    assert_true(fputs(text, f) >= 0);
    assert_int_equal(fclose(f), 0);
}

static int set_up(void **state)
{
    int rc = rig_write_files(state);
    files = *state;
    return rc;
}

static int tear_down(void **state)
{
    static const char *const ENDINGS[] = {"txt", "jsonl"};
    for (int i = 0; i < 2; i++) {
        snprintf(data_path, sizeof(data_path), "%s/data.%s", files->folder, ENDINGS[i]);
        remove(data_path);
    }
    return rig_remove_files(state);
}

static struct eval_options options_of(enum eval_task task, enum eval_system system)
{
    struct eval_options o = {
        .engine = rig_options(files),
        .task = task,
        .system = system,
        .data_path = data_path,
        .prompt_tokens = 20,
        .score_tokens = 30,
    };
    o.engine.pruned_path = files->other;
    return o;
}

static struct eval_report run_ok(const struct eval_options *options)
{
    struct eval_report report;
    struct error err = {0};
    if (eval_run(options, &report, &err))
        fail_msg("%s", err.message);
    return report;
}

static void expect_same_rows(const struct eval_report *a, const struct eval_report *b)
{
    assert_int_equal(a->n_rows, b->n_rows);
    assert_int_equal(a->n_metrics, b->n_metrics);
    for (size_t i = 0; i < a->n_rows; i++) {
        assert_int_equal(a->lines[i], b->lines[i]);
        for (size_t m = 0; m < a->n_metrics; m++)
            if (a->values[i * EVAL_MAX_METRICS + m] != b->values[i * EVAL_MAX_METRICS + m])
                fail_msg("row %zu, %s: %.17g and %.17g", i, a->metrics[m].name,
                         a->values[i * EVAL_MAX_METRICS + m], b->values[i * EVAL_MAX_METRICS + m]);
    }
}

static double value_of(const struct eval_report *report, const char *name)
{
    for (size_t m = 0; m < report->n_metrics; m++)
        if (strcmp(report->metrics[m].name, name) == 0)
            return report->metrics[m].value;
    fail_msg("no metric %s", name);
    return 0;
}

/* n lines, each with its own letters. */
static void put_texts(size_t n, size_t n_letters)
{
    char *all = calloc(n, n_letters + 40);
    uint32_t seed = 7;
    for (size_t i = 0; i < n; i++) {
        strcat(all, "{\"text\":\"");
        size_t len = strlen(all);
        for (size_t k = 0; k < n_letters; k++) {
            seed = seed * 1664525u + 1013904223u;
            all[len + k] = "abc"[(seed >> 16) % 3];
        }
        strcat(all, "\"}\n");
    }
    put_data(all, false);
    free(all);
}

static void put_questions(size_t n)
{
    static const char *const CHOICES[] = {"aab", "abcabc", "c", "bb"};
    char *all = calloc(n, 200);
    uint32_t seed = 3;
    for (size_t i = 0; i < n; i++) {
        char row[200];
        seed = seed * 1664525u + 1013904223u;
        snprintf(row, sizeof(row),
                 "{\"query\":\"%c%c\",\"choices\":[\"%s\",\"%s\",\"%s\"],\"gold\":%u}\n",
                 'a' + (int)(seed >> 20) % 3, 'a' + (int)(seed >> 24) % 3,
                 CHOICES[(seed >> 16) % 4], CHOICES[(seed >> 18) % 4], CHOICES[(seed >> 22) % 4],
                 (seed >> 26) % 3);
        strcat(all, row);
    }
    put_data(all, false);
    free(all);
}

static const char LAMBADA[] = "{\"context\":\"abc ab\",\"continuation\":\"abc\"}\n"
                              "{\"context\":\"ab b\",\"continuation\":\"a\"}\n"
                              "\n"
                              "{\"context\":\"c\",\"continuation\":\"cabcab\"}\n";
static const char PROMPTS[] = "{\"prompt\":\"abc ab\",\"completion\":\"ab abc<|endoftext|>\"}\n"
                              "{\"turns\":[\"ab b\",\"c\"],\"completion\":\"a\"}\n";

static void put_data_of(enum eval_task task)
{
    if (task == EVAL_NLL)
        put_texts(9, 120);
    else if (task == EVAL_CHOICES)
        put_questions(12);
    else
        put_data(task == EVAL_LAMBADA ? LAMBADA : PROMPTS, false);
}

static void identity_twin_gives_every_system_the_same_figures(void **state)
{
    for (enum eval_task task = EVAL_NLL; task <= EVAL_ANSWERS; task++) {
        struct eval_report reports[3];
        put_data_of(task);
        for (enum eval_system system = EVAL_FULL; system <= EVAL_OVERFILL; system++) {
            struct eval_options o = options_of(task, system);
            o.engine.pruned_path = files->full;
            reports[system] = run_ok(&o);
        }
        expect_same_rows(&reports[0], &reports[1]);
        expect_same_rows(&reports[0], &reports[2]);
        if (task == EVAL_NLL) {
            assert_int_equal(reports[0].n_rows, 9);
            assert_true(value_of(&reports[1], "kl") == 0 && value_of(&reports[2], "kl") == 0);
            assert_true(value_of(&reports[1], "agree") == 1 && value_of(&reports[2], "agree") == 1);
            assert_true(value_of(&reports[2], "nll") > 0);
            for (int i = 0; i < 3; i++)
                assert_float_equal(reports[i].full_nll, value_of(&reports[0], "nll"), 1e-5);
        }
        for (int i = 0; i < 3; i++)
            eval_report_free(&reports[i]);
    }
}

static void first_token_is_the_full_models_unless_the_decoder_is_asked(void **state)
{
    put_texts(6, 120);
    struct eval_options o = options_of(EVAL_NLL, EVAL_OVERFILL);
    struct eval_report overfill = run_ok(&o);
    o.decoder_first = true;
    struct eval_report decoder = run_ok(&o);
    o = options_of(EVAL_NLL, EVAL_PRUNED);
    struct eval_report pruned = run_ok(&o);
    o = options_of(EVAL_NLL, EVAL_FULL);
    struct eval_report full = run_ok(&o);
    assert_float_equal(overfill.full_nll, value_of(&full, "nll"), 1e-5);
    assert_true(fabs(overfill.full_nll - value_of(&overfill, "nll")) > 1e-4);
    eval_report_free(&full);
    assert_true(overfill.buckets[0].kl == 0 && overfill.buckets[0].agree == 1);
    assert_true(decoder.buckets[0].kl > 1e-4);
    assert_true(pruned.buckets[0].kl > 1e-4);
    for (int b = 1; b < 3; b++) {
        assert_true(overfill.buckets[b].kl > 1e-4);
        assert_true(overfill.buckets[b].kl != pruned.buckets[b].kl);
        assert_int_equal(overfill.buckets[b].begin, overfill.buckets[b - 1].end);
    }
    assert_int_equal(overfill.buckets[overfill.n_buckets - 1].end, 30);
    assert_int_equal(overfill.n_tokens, 6 * 30);
    eval_report_free(&overfill);
    eval_report_free(&decoder);
    eval_report_free(&pruned);
}

/* What the engine shows for the same tokens, put together in double. */
struct seen {
    float logits[30][TINY_TOKENS];
};

static void see(void *user, uint32_t choice, uint32_t i_token, const float *logits,
                uint32_t n_vocab)
{
    struct rig_result *result = user;
    memcpy(((struct seen *)(result + 1))->logits[i_token], logits, n_vocab * sizeof(float));
}

static struct rig_result *force(struct engine *engine, const int32_t *tokens,
                                enum decode_mode decode)
{
    struct rig_result *result = calloc(1, sizeof(*result) + sizeof(struct seen));
    const struct engine_given given = {tokens + 20, 30};
    struct engine_request r = rig_request(tokens, 20);
    r.given = &given;
    r.decode = decode;
    r.on_logits = see;
    rig_submit(engine, r, result);
    rig_collect_one(engine, result);
    rig_expect_ok(result);
    return result;
}

static double log_sum(const float *logits)
{
    double total = 0;
    for (int i = 0; i < TINY_TOKENS; i++)
        total += exp((double)logits[i]);
    return log(total);
}

static void figures_are_those_of_the_engines_logits(void **state)
{
    put_texts(1, 120);
    struct eval_options o = options_of(EVAL_NLL, EVAL_OVERFILL);
    struct eval_report report = run_ok(&o);
    struct engine *engine = rig_open(&o.engine);
    struct token_list tokens = {0};
    char text[121] = "";
    FILE *f = fopen(data_path, "r");
    assert_int_equal(fscanf(f, "{\"text\":\"%120[abc]", text), 1);
    fclose(f);
    assert_int_equal(
        tokenizer_encode(engine_tokenizer(engine), text, 120, TOKENIZER_ADD_SPECIAL, &tokens, NULL),
        0);
    struct rig_result *full = force(engine, tokens.ids, DECODE_FULL);
    struct rig_result *twin = force(engine, tokens.ids, DECODE_PRUNED);
    double nll = 0, kl = 0;
    for (int t = 0; t < 30; t++) {
        const float *p = ((struct seen *)(full + 1))->logits[t];
        const float *q = ((struct seen *)(twin + 1))->logits[t];
        double p_sum = log_sum(p), q_sum = log_sum(q);
        nll += q_sum - (double)q[tokens.ids[20 + t]];
        for (int i = 0; i < TINY_TOKENS; i++)
            kl += exp((double)p[i] - p_sum) * ((double)p[i] - p_sum - ((double)q[i] - q_sum));
    }
    assert_true(fabs(value_of(&report, "nll") - nll / 30) < 1e-5);
    assert_true(fabs(value_of(&report, "kl") - kl / 30) < 1e-5);
    free(full);
    free(twin);
    token_list_free(&tokens);
    engine_close(engine);
    eval_report_free(&report);
}

static void full_rows_in_a_file_change_nothing(void **state)
{
    char path[96];
    struct eval_report fresh, kept, again;
    struct error err = {0};
    put_texts(9, 120);
    struct eval_options o = options_of(EVAL_NLL, EVAL_OVERFILL);
    fresh = run_ok(&o);
    snprintf(path, sizeof(path), "%s/rows", files->folder);
    o.full_rows_path = path;
    kept = run_ok(&o);
    again = run_ok(&o);
    expect_same_rows(&fresh, &kept);
    expect_same_rows(&fresh, &again);

    struct eval_report none;
    o.engine.model_path = files->other; /* another full model */
    assert_int_equal(eval_run(&o, &none, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "another model"));
    o.rows_as_given = true; /* the twin's are near the first full model's rows, as they were */
    struct eval_report other = run_ok(&o);
    assert_true(fabs(value_of(&other, "kl") - value_of(&fresh, "kl")) > 1e-6);
    eval_report_free(&other);
    o.rows_as_given = false;
    o.engine.model_path = files->full;
    assert_int_equal(eval_run(&o, &none, &err), 0);
    expect_same_rows(&fresh, &none);
    eval_report_free(&none);
    o = options_of(EVAL_NLL, EVAL_OVERFILL);
    o.full_rows_path = path;
    o.limit = 3;
    assert_int_equal(eval_run(&o, &none, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "other data"));
    o.full_rows_path = data_path; /* no such file at all */
    assert_int_equal(eval_run(&o, &none, &err), -ERROR_INVALID);
    unlink(path);
    eval_report_free(&fresh);
    eval_report_free(&kept);
    eval_report_free(&again);
}

static void smaller_limit_takes_a_part_of_the_same_rows(void **state)
{
    put_questions(40);
    struct eval_options o = options_of(EVAL_CHOICES, EVAL_FULL);
    o.limit = 20;
    struct eval_report more = run_ok(&o);
    o.limit = 7;
    struct eval_report fewer = run_ok(&o);
    assert_int_equal(more.n_rows, 20);
    assert_int_equal(fewer.n_rows, 7);
    bool are_first = true;
    for (size_t i = 0; i < 7; i++) {
        assert_int_equal(fewer.lines[i], more.lines[i]);
        are_first &= fewer.lines[i] <= 7;
    }
    assert_false(are_first);
    eval_report_free(&more);
    eval_report_free(&fewer);
}

static void short_documents_and_articles_that_return_are_passed_over(void **state)
{
    char rows[1000];
    const char *article =
        "abcacbbacabcabcacbacbacbabacabacbcabacbacbacbacabcabcabcbabcbabcabcabcabc";
    snprintf(
        rows, sizeof(rows),
        "{\"prompt\":\"a. %s\",\"completion\":\"a\"}\n{\"prompt\":\"%s.bb\"}\n{\"text\":\"ab\"}\n",
        article, article);
    put_data(rows, false);
    struct eval_options o = options_of(EVAL_NLL, EVAL_FULL);
    o.prompt_tokens = 4;
    struct eval_report report = run_ok(&o);
    assert_int_equal(report.n_rows, 1);
    assert_int_equal(report.n_of_same_article, 1);
    assert_int_equal(report.n_too_short, 1);
    eval_report_free(&report);
}

static void text_is_cut_into_documents(void **state)
{
    char text[1000];
    for (int i = 0; i < 999; i++)
        text[i] = "abcbac ccab"[i * i % 11];
    text[999] = '\0';
    put_data(text, true);
    struct eval_options o = options_of(EVAL_NLL, EVAL_OVERFILL);
    struct eval_report all = run_ok(&o);
    assert_true(all.n_rows > 5 && all.n_rows < 20);
    o.limit = 2;
    struct eval_report two = run_ok(&o);
    assert_int_equal(two.n_rows, 2);
    assert_int_equal(two.lines[1], all.lines[1]);
    eval_report_free(&all);
    eval_report_free(&two);
}

/* gold is what the model prefers, or not. */
static void choices_are_judged_by_their_likelihood(void **state)
{
    put_data("{\"query\":\"ab\",\"choices\":[\"ab\",\"cab\"],\"gold\":0}\n"
             "{\"query\":\"ab\",\"choices\":[\"ab\",\"cab\"],\"gold\":1}\n",
             false);
    struct eval_options o = options_of(EVAL_CHOICES, EVAL_FULL);
    struct eval_report report = run_ok(&o);
    assert_true(value_of(&report, "acc") == 0.5);
    assert_true(value_of(&report, "acc_norm") == 0.5);
    eval_report_free(&report);
}

static void answers_are_scored_by_the_full_model(void **state)
{
    put_data(PROMPTS, false);
    struct eval_options o = options_of(EVAL_ANSWERS, EVAL_OVERFILL);
    struct eval_report twin = run_ok(&o);
    o.system = EVAL_FULL;
    struct eval_report full = run_ok(&o);
    assert_true(value_of(&full, "agree") == 1 && value_of(&full, "own_agree") == 1);
    assert_true(value_of(&twin, "agree") < 1 && value_of(&twin, "own_agree") < 1);
    assert_true(value_of(&twin, "nll") > value_of(&full, "nll"));
    assert_true(value_of(&full, "length") <= 30);
    eval_report_free(&full);
    eval_report_free(&twin);
}

static void expect_error(const struct eval_options *o, enum error_code code, const char *says)
{
    struct eval_report report;
    struct error err = {0};
    assert_int_equal(eval_run(o, &report, &err), -(int)code);
    if (!strstr(err.message, says))
        fail_msg("message \"%s\"", err.message);
}

static void run_that_cannot_be_says_why(void **state)
{
    put_data("{\"query\":\"a\",\"choices\":[\"a\",\"b\"],\"gold\":2}\n", false);
    struct eval_options o = options_of(EVAL_CHOICES, EVAL_FULL);
    expect_error(&o, ERROR_FORMAT, "line 1: expected `gold`");
    put_data("\n{\"query\":\"a\",\"choices\":[\"a\"],\"gold\":0}\n", false);
    expect_error(&o, ERROR_FORMAT, "line 2: expected `choices`");
    put_data("{\"query\":\"a\",\"choices\":[\"a\",\"\"],\"gold\":0}\n", false);
    expect_error(&o, ERROR_FORMAT, "expected `choices`");
    put_data("{\"choices\":[]}\n", false);
    expect_error(&o, ERROR_FORMAT, "expected a string `query`");
    put_data("{\"query\":\n", false);
    expect_error(&o, ERROR_FORMAT, "expected a JSON object");
    put_data(" \n\n", false);
    expect_error(&o, ERROR_INVALID, "empty");
    put_texts(3, 10);
    o = options_of(EVAL_NLL, EVAL_FULL);
    expect_error(&o, ERROR_INVALID, "no document has 50 tokens");
    o.prompt_tokens = 500;
    expect_error(&o, ERROR_INVALID, "530 together, the context has room for 512");
    o = options_of(EVAL_NLL, EVAL_PRUNED);
    o.engine.pruned_path = NULL;
    expect_error(&o, ERROR_INVALID, "needs a pruned model");
    put_data("abc", true);
    o = options_of(EVAL_LAMBADA, EVAL_FULL);
    expect_error(&o, ERROR_INVALID, "expects a .jsonl file");
    o.data_path = "/nonexistent.jsonl";
    expect_error(&o, ERROR_IO, "/nonexistent.jsonl");
    o = options_of(EVAL_ANSWERS, EVAL_OVERFILL);
    o.decoder_first = true;
    expect_error(&o, ERROR_INVALID, "decoder-first");
}

/* Every allocation fails once, in every task. */
static void shortage_of_memory_is_an_error_of_the_run(void **state)
{
    for (enum eval_task task = EVAL_NLL; task <= EVAL_ANSWERS; task++) {
        put_data_of(task);
        struct eval_options o = options_of(task, EVAL_PRUNED);
        unsigned long stride = 1 + (unsigned long)task % 2 * 2;
        unsigned n_failed = 0;
        for (unsigned long k = 1, n_beyond = 0; n_beyond < 3; k += stride) {
            struct eval_report report;
            struct error err = {0};
            mem_fail_at(k);
            int rc = eval_run(&o, &report, &err);
            n_beyond = mem_count_allocations() >= k ? 0 : n_beyond + 1;
            mem_fail_at(0);
            if (rc && rc != -ERROR_MEMORY)
                fail_msg("allocation %lu: code %d, message \"%s\"", k, rc, err.message);
            n_failed += rc != 0;
            if (rc == 0)
                eval_report_free(&report);
        }
        assert_true(n_failed > 30);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(identity_twin_gives_every_system_the_same_figures),
        cmocka_unit_test(first_token_is_the_full_models_unless_the_decoder_is_asked),
        cmocka_unit_test(figures_are_those_of_the_engines_logits),
        cmocka_unit_test(full_rows_in_a_file_change_nothing),
        cmocka_unit_test(smaller_limit_takes_a_part_of_the_same_rows),
        cmocka_unit_test(short_documents_and_articles_that_return_are_passed_over),
        cmocka_unit_test(text_is_cut_into_documents),
        cmocka_unit_test(choices_are_judged_by_their_likelihood),
        cmocka_unit_test(answers_are_scored_by_the_full_model),
        cmocka_unit_test(run_that_cannot_be_says_why),
        cmocka_unit_test(shortage_of_memory_is_an_error_of_the_run),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
