/* What the machine gives this process: plausible, and honest about CPU affinity. */
#include "engine/base/system.h"
#include "tests/unit/check.h"

#include <sched.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

static void cpu_count_follows_the_affinity(void **state)
{
    cpu_set_t all;
    cpu_set_t one;
    int first = 0;

    assert_int_equal(sched_getaffinity(0, sizeof(all), &all), 0);
    assert_in_range(system_cpu_count(), 1, (unsigned)CPU_COUNT(&all));
    while (!CPU_ISSET(first, &all))
        first++;
    CPU_ZERO(&one);
    CPU_SET(first, &one);
    assert_int_equal(sched_setaffinity(0, sizeof(one), &one), 0);
    assert_int_equal(system_cpu_count(), 1);
    assert_int_equal(sched_setaffinity(0, sizeof(all), &all), 0);
}

static void memory_is_plausible(void **state)
{
    assert_true(system_memory_bytes() >= (size_t)64 << 20);
    assert_true(system_memory_bytes() < (size_t)1 << 48);
}

static void clock_goes_forward(void **state)
{
    struct timespec wait = {.tv_nsec = 2000000};
    uint64_t before = system_now_ns();

    nanosleep(&wait, NULL);
    uint64_t passed = system_now_ns() - before;
    assert_true(passed >= 2000000 && passed < 60000000000u);
}

static void peak_memory_grows_with_what_was_touched(void **state)
{
    size_t before = system_peak_rss_bytes();
    size_t bytes = before + ((size_t)32 << 20);
    volatile char *p = malloc(bytes);

    assert_non_null((void *)p);
    for (size_t i = 0; i < bytes; i += 4096)
        p[i] = 1;
    assert_true(before > 0);
    assert_true(system_peak_rss_bytes() >= before + ((size_t)16 << 20));
    free((void *)p);
}

static void disk_is_asked_for_in_the_files_folder(void **state)
{
    size_t in_tmp = 0;
    size_t untouched = 7;
    assert_true(system_disk_free(P_tmpdir "/not-there-yet", &in_tmp));
    assert_true(in_tmp > 0);
    assert_true(system_disk_free("not-there-yet", &in_tmp));
    assert_false(system_disk_free("/no/such/folder/file", &untouched));
    assert_int_equal(untouched, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(cpu_count_follows_the_affinity),
        cmocka_unit_test(memory_is_plausible),
        cmocka_unit_test(disk_is_asked_for_in_the_files_folder),
        cmocka_unit_test(clock_goes_forward),
        cmocka_unit_test(peak_memory_grows_with_what_was_touched),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
