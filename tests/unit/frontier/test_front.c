/* Who is on the frontier, who is best within a budget, and what the picture shows of it. */
#include "engine/frontier/frontier.h"
#include "tests/unit/check.h"

#include <math.h>
#include <string.h>

static void those_that_another_beats_are_not_on_the_frontier(void **state)
{
    static const struct frontier_score SCORES[] = {
        {30, 2.0}, /* reads least */
        {40, 2.1}, /* dearer and farther than the first */
        {50, 1.0}, /* */
        {50, 1.2}, /* as dear as the one before, farther */
        {60, 1.0}, /* as near as the third, dearer */
        {70, 0.5}, /* nearest */
    };
    static const bool EXPECTED[] = {true, false, true, false, false, true};
    bool found[6];
    frontier_mark_front(SCORES, 6, found);
    assert_memory_equal(found, EXPECTED, sizeof(found));
}

static void equals_count_once_and_noise_never(void **state)
{
    static const struct frontier_score SCORES[] = {
        {30, NAN}, {40, 1}, {40, 1}, {10, INFINITY}, {50, 0.5}};
    static const bool EXPECTED[] = {false, true, false, false, true};
    bool found[5];
    frontier_mark_front(SCORES, 5, found);
    assert_memory_equal(found, EXPECTED, sizeof(found));
    assert_int_equal(frontier_best(SCORES, 5, 35), 5);
    frontier_mark_front(SCORES, 1, found);
    assert_false(found[0]);
}

static void best_is_the_nearest_within_the_budget(void **state)
{
    static const struct frontier_score SCORES[] = {{70, 0.5}, {30, 2.0}, {50, 1.0}, {45, 1.0}};
    assert_int_equal(frontier_best(SCORES, 4, 29.9), 4);
    assert_int_equal(frontier_best(SCORES, 4, 30), 1);
    assert_int_equal(frontier_best(SCORES, 4, 60), 3);
    assert_int_equal(frontier_best(SCORES, 4, 1e9), 0);
}

static size_t count(const struct buf *svg, const char *what)
{
    size_t n = 0;
    for (const char *at = svg->data; (at = strstr(at, what)); at++)
        n++;
    return n;
}

/* Two budgets whose best is one point, and a third with another. */
static void picture_names_points_and_rings_the_best(void **state)
{
    static const struct model_params FULL = {.hidden = 576, .mlp = 1536};
    static const struct frontier_dot DOTS[] = {
        {{320, 832, TENSOR_Q4_0, TENSOR_Q4_0}, {30.6e6, 2.1}, true},
        {{320, 832, TENSOR_Q8_0, TENSOR_Q8_0}, {57.8e6, 2.08}, false},
        {{576, 1248, TENSOR_Q4_0, TENSOR_Q4_0}, {67.3e6, 0.4}, true},
        {{576, 1536, TENSOR_Q4_1, TENSOR_Q4_1}, {84.0e6, NAN}, false},
    };
    static const double BUDGETS[] = {34e6, 50e6, 68e6};
    const struct frontier_plot plot = {.full = &FULL,
                                       .full_bytes = 96.4e6,
                                       .dots = DOTS,
                                       .n = 4,
                                       .budgets = BUDGETS,
                                       .n_budgets = 3};
    _cleanup_buf_ struct buf svg = {0};
    frontier_draw(&plot, &svg);
    assert_false(svg.failed);
    assert_int_equal(count(&svg, ">320x832:q4_0</text>"), 1);
    assert_int_equal(count(&svg, ">320x832:q8_0</text>"), 1);
    assert_int_equal(count(&svg, ">576x1248:q4_0</text>"), 1);
    assert_int_equal(count(&svg, ">576x1536:q4_1</text>"), 0);
    assert_int_equal(count(&svg, "r=\"9\""), 3); /* two points, and the legend's */
    assert_int_equal(count(&svg, ">34 MB<") + count(&svg, ">full 96.4 MB<"), 2);
    assert_int_equal(count(&svg, "nan") + count(&svg, "inf"), 0);
}

/* Nothing measured, or only twins that lose nothing: a picture all the same. */
static void picture_of_little_is_drawn(void **state)
{
    static const struct model_params FULL = {.hidden = 64, .mlp = 96};
    static const struct frontier_dot SAME[] = {{{64, 96, TENSOR_F32, TENSOR_F32}, {1e5, 0}, true}};
    for (size_t n = 0; n < 2; n++) {
        const struct frontier_plot plot = {.full = &FULL, .dots = SAME, .n = n};
        _cleanup_buf_ struct buf svg = {0};
        frontier_draw(&plot, &svg);
        assert_int_equal(count(&svg, "</svg>"), 1);
        assert_int_equal(count(&svg, "nan") + count(&svg, "inf"), 0);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(those_that_another_beats_are_not_on_the_frontier),
        cmocka_unit_test(equals_count_once_and_noise_never),
        cmocka_unit_test(best_is_the_nearest_within_the_budget),
        cmocka_unit_test(picture_names_points_and_rings_the_best),
        cmocka_unit_test(picture_of_little_is_drawn),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
