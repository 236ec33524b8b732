/* Which twins are made for a budget, what they cost, and points as text. */
#include "engine/frontier/frontier.h"
#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

/* SmolLM2-135M. */
static const struct model_params FULL = {
    .n_layers = 30,
    .hidden = 576,
    .mlp = 1536,
    .n_heads = 9,
    .n_kv_heads = 3,
    .head_dim = 64,
    .vocab_size = 49152,
    .tied = true,
};

static struct frontier_grid choose(const double *megabytes, size_t n)
{
    struct frontier_grid grid;
    struct error err = {0};
    double budgets[FRONTIER_MOST_BUDGETS];
    for (size_t i = 0; i < n; i++)
        budgets[i] = megabytes[i] * 1e6;
    if (frontier_grid_choose(&FULL, budgets, n, &grid, &err))
        fail_msg("%s", err.message);
    return grid;
}

static double bytes_of(const struct frontier_point *p)
{
    return (double)frontier_point_cost(p, &FULL).bytes;
}

/* By hand: rows times columns, 18 bytes a block of 32 in Q4_0, 34 in Q8_0. */
static void cost_is_that_of_the_matrices(void **state)
{
    const struct frontier_point p = {320, 832, TENSOR_Q4_0, TENSOR_Q8_0};
    struct model_cost cost = frontier_point_cost(&p, &FULL);
    double layers = 30 * 320.0 * (2 * 576 + 2 * 192 + 3 * 832);
    double head = 49152.0 * 320;
    assert_true(cost.multiply_adds == layers + head);
    assert_true((double)cost.bytes == layers / 32 * 18 + head / 32 * 34);
}

static void point_lies_within_its_budget_and_the_next_size_does_not(void **state)
{
    static const double BUDGETS[] = {34, 54, 68, 90, 200};
    for (size_t b = 0; b < sizeof(BUDGETS) / sizeof(BUDGETS[0]); b++) {
        struct frontier_grid grid = choose(&BUDGETS[b], 1);
        assert_true(grid.n >= 2 && grid.n <= FRONTIER_FAMILIES);
        for (size_t i = 0; i < grid.n; i++) {
            struct error err;
            struct frontier_point p = grid.points[i];
            assert_true(bytes_of(&p) <= BUDGETS[b] * 1e6);
            assert_int_equal(frontier_point_check(&p, &FULL, &err), 0);
            if (p.mlp < FULL.mlp) {
                p.mlp += 32;
                assert_true(bytes_of(&p) > BUDGETS[b] * 1e6);
            }
            if (p.hidden < FULL.hidden) {
                p.hidden += 32;
                p.mlp = (uint32_t)lround(1536.0 / 576 * p.hidden / 32) * 32;
                assert_true(bytes_of(&p) > BUDGETS[b] * 1e6);
            }
        }
    }
}

/* 34 MB hold two narrow twins, 68 another three, 85 a whole one in two ways. */
static void families_are_those_that_are_told(void **state)
{
    static const double BUDGETS[] = {34, 68, 85};
    static const struct frontier_point EXPECTED[] = {
        {192, 768, TENSOR_Q8_0, TENSOR_Q8_0},  {320, 1024, TENSOR_Q4_0, TENSOR_Q4_0},
        {352, 928, TENSOR_Q8_0, TENSOR_Q8_0},  {512, 1536, TENSOR_Q4_0, TENSOR_Q4_0},
        {576, 1248, TENSOR_Q4_0, TENSOR_Q4_0}, {384, 1248, TENSOR_Q8_0, TENSOR_Q8_0},
        {576, 1536, TENSOR_Q4_0, TENSOR_Q4_0}, {576, 1536, TENSOR_Q4_1, TENSOR_Q4_1},
    };
    struct frontier_grid grid = choose(BUDGETS, 3);
    assert_int_equal(grid.n, sizeof(EXPECTED) / sizeof(EXPECTED[0]));
    for (size_t k = 0; k < grid.n; k++) {
        size_t i = 0;
        while (i < grid.n && !frontier_point_equal(&grid.points[i], &EXPECTED[k]))
            i++;
        if (i == grid.n)
            fail_msg("%ux%u is missing", EXPECTED[k].hidden, EXPECTED[k].mlp);
    }
}

static void each_point_comes_once_and_the_cheapest_first(void **state)
{
    static const double BUDGETS[] = {84, 34, 84, 83.9, 1000, 54};
    struct frontier_grid grid = choose(BUDGETS, 6);
    assert_true(grid.n > 6);
    for (size_t i = 0; i < grid.n; i++)
        for (size_t k = 0; k < i; k++) {
            assert_false(frontier_point_equal(&grid.points[i], &grid.points[k]));
            assert_true(bytes_of(&grid.points[k]) <= bytes_of(&grid.points[i]));
        }
}

static void budget_below_every_twin_is_refused_with_the_least(void **state)
{
    struct frontier_grid grid;
    struct error err = {0};
    const double budgets[] = {54e6, 1e6};
    assert_int_equal(frontier_grid_choose(&FULL, budgets, 2, &grid, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "budget of 1 MB: the narrowest twin reads "));
    struct model_params thin = FULL;
    thin.hidden = 16;
    assert_int_equal(frontier_grid_choose(&thin, budgets, 1, &grid, &err), -ERROR_INVALID);
}

/* Widths that fill no blocks of 32 are not offered. */
static void odd_widths_give_whole_blocks(void **state)
{
    struct model_params odd = FULL;
    struct frontier_grid grid;
    struct error err = {0};
    const double budget = 1e9;
    odd.mlp = 1516;
    assert_int_equal(frontier_grid_choose(&odd, &budget, 1, &grid, &err), 0);
    for (size_t i = 0; i < grid.n; i++)
        assert_int_equal(frontier_point_check(&grid.points[i], &odd, &err), 0);
    struct frontier_point p = {576, 1516, TENSOR_Q4_0, TENSOR_Q4_0};
    assert_int_equal(frontier_point_check(&p, &odd, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "576x1516:q4_0: rows of 1516 do not fill"));
    p.type = TENSOR_F16;
    assert_int_equal(frontier_point_check(&p, &odd, &err), 0);
    p.mlp = 1500;
    assert_int_equal(frontier_point_check(&p, &odd, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "mlp 1500: 1516, or a multiple of 32 below it, expected"));
}

static void points_read_as_they_are_written(void **state)
{
    static const struct {
        const char *text;
        struct frontier_point point;
    } cases[] = {
        {"320x832:q4_0", {320, 832, TENSOR_Q4_0, TENSOR_Q4_0}},
        {"576x1536:q8_0/q6_k", {576, 1536, TENSOR_Q8_0, TENSOR_Q6_K}},
    };
    struct frontier_point p;
    char name[FRONTIER_NAME_BYTES];
    for (size_t i = 0; i < 2; i++) {
        assert_true(frontier_point_parse(cases[i].text, &p));
        assert_true(frontier_point_equal(&p, &cases[i].point));
        frontier_point_name(&p, name);
        assert_string_equal(name, cases[i].text);
    }
    frontier_point_file(&p, name);
    assert_string_equal(name, "576x1536-q8_0-q6_k");
    static const char *const WRONG[] = {"",
                                        "320",
                                        "320x832",
                                        "320x832:",
                                        "x832:q4_0",
                                        "320x:q4_0",
                                        "320x832:q9_9",
                                        "-320x832:q4_0",
                                        "320x832:q4_0/",
                                        "320x832:/q4_0",
                                        "99999999999x32:q4_0",
                                        "320x832:q4_0/q8_0/q8_0",
                                        "320x832:q4_0 "};
    for (size_t i = 0; i < sizeof(WRONG) / sizeof(WRONG[0]); i++)
        if (frontier_point_parse(WRONG[i], &p))
            fail_msg("\"%s\" was taken", WRONG[i]);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cost_is_that_of_the_matrices),
        cmocka_unit_test(point_lies_within_its_budget_and_the_next_size_does_not),
        cmocka_unit_test(families_are_those_that_are_told),
        cmocka_unit_test(each_point_comes_once_and_the_cheapest_first),
        cmocka_unit_test(budget_below_every_twin_is_refused_with_the_least),
        cmocka_unit_test(odd_widths_give_whole_blocks),
        cmocka_unit_test(points_read_as_they_are_written),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
