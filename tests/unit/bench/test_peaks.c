/* The peaks of this machine: whole, in a sane order, and an error where memory is missing. */
#include "engine/base/mem.h"
#include "engine/bench/peaks.h"
#include "tests/unit/check.h"

#include <string.h>

static void every_limit_that_binds_is_measured(void **state)
{
    struct peaks p;
    struct error err;
    (void)state;
    assert_int_equal(peaks_measure(1, &p, &err), 0);
    assert_int_equal(p.n_threads, 1);
    assert_true(p.int8.gops > 0 && p.int8.with);
    assert_true(p.int4.gops >= p.int8.gops); /* a nibble is a byte too */
    assert_true(p.fp32.gops > 0 && p.fp32.with);
    assert_true(p.ram_gbs > 0);
    assert_true((p.l3_gbs > 0) == (p.l3_bytes > 0));
}

static void memory_that_is_missing_is_an_error(void **state)
{
    struct peaks p = {.n_threads = 77};
    struct error err;
    (void)state;
    mem_fail_at(1);
    assert_int_equal(peaks_measure(1, &p, &err), -ERROR_MEMORY);
    mem_fail_at(0);
    assert_non_null(strstr(err.message, "bench threads"));
    assert_int_equal(p.n_threads, 77);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(every_limit_that_binds_is_measured),
        cmocka_unit_test(memory_that_is_missing_is_an_error),
    };
    return cmocka_run_group_tests_name("bench", tests, NULL, NULL);
}
