/* Checked allocation: overflow, alignment, zeroing, copies, and the fault injection that every
 * other room's tests build on. */
#include "engine/base/mem.h"
#include "tests/unit/check.h"

#include <string.h>

static void products_and_sums_that_overflow_are_refused(void **state)
{
    size_t r = 77;

    assert_false(mem_mul(SIZE_MAX, 2, &r));
    assert_false(mem_mul((size_t)1 << 33, (size_t)1 << 31, &r));
    assert_false(mem_add(SIZE_MAX, 1, &r));
    assert_int_equal(r, 77);
    assert_true(mem_mul(SIZE_MAX, 1, &r));
    assert_true(r == SIZE_MAX);
    assert_true(mem_mul(0, SIZE_MAX, &r));
    assert_int_equal(r, 0);
    assert_true(mem_add(SIZE_MAX - 1, 1, &r));
    assert_true(r == SIZE_MAX);
}

static void arrays_whose_size_overflows_are_null(void **state)
{
    char *p = mem_alloc(4);

    assert_null(mem_array((size_t)1 << 33, (size_t)1 << 31));
    assert_null(mem_calloc((size_t)1 << 33, (size_t)1 << 31));
    memcpy(p, "abc", 4);
    assert_null(mem_realloc(p, (size_t)1 << 33, (size_t)1 << 31));
    assert_string_equal(p, "abc"); /* still valid */
    mem_free(p);
}

static void zero_bytes_are_an_allocation_too(void **state)
{
    void *items[] = {mem_alloc(0), mem_array(0, 8), mem_calloc(0, 8), mem_alloc_aligned(0),
                     mem_realloc(NULL, 0, 1)};

    for (size_t i = 0; i < sizeof(items) / sizeof(items[0]); i++) {
        assert_non_null(items[i]);
        mem_free(items[i]);
    }
    mem_free(NULL);
}

static void calloc_is_zeroed(void **state)
{
    unsigned char *p = mem_calloc(1000, 3);

    for (size_t i = 0; i < 3000; i++)
        assert_int_equal(p[i], 0);
    mem_free(p);
}

static void aligned_memory_is_aligned(void **state)
{
    const size_t sizes[] = {1, 63, 65, 4096, (size_t)5 << 20};

    for (size_t i = 0; i < sizeof(sizes) / sizeof(sizes[0]); i++) {
        unsigned char *p = mem_alloc_aligned(sizes[i]);
        assert_non_null(p);
        assert_int_equal((uintptr_t)p % MEM_ALIGN, 0);
        p[sizes[i] - 1] = 1;
        mem_free(p);
    }
}

static void strings_are_copied_with_their_end(void **state)
{
    char *whole = mem_strdup("hello");
    char *part = mem_strndup("hello", 2);
    char *with_nul = mem_strndup("a\0b", 3);

    assert_string_equal(whole, "hello");
    assert_string_equal(part, "he");
    assert_memory_equal(with_nul, "a\0b", 4);
    assert_null(mem_strndup("x", SIZE_MAX));
    mem_free(whole);
    mem_free(part);
    mem_free(with_nul);
}

static void *allocate_one_way(int way)
{
    static const char text[] = "text";
    switch (way) {
    case 0:
        return mem_alloc(8);
    case 1:
        return mem_calloc(2, 8);
    case 2:
        return mem_array(2, 8);
    case 3:
        return mem_realloc(NULL, 2, 8);
    case 4:
        return mem_alloc_aligned(8);
    case 5:
        return mem_strdup(text);
    default:
        return mem_strndup(text, 2);
    }
}

static void the_chosen_allocation_fails_once_whatever_its_kind(void **state)
{
    for (int way = 0; way < 7; way++) {
        mem_fail_at(2);
        void *first = allocate_one_way(way);
        void *second = allocate_one_way(way);
        void *third = allocate_one_way(way);
        assert_int_equal(mem_count_allocations(), 3);
        mem_fail_at(0);
        assert_non_null(first);
        assert_null(second);
        assert_non_null(third);
        mem_free(first);
        mem_free(third);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(products_and_sums_that_overflow_are_refused),
        cmocka_unit_test(arrays_whose_size_overflows_are_null),
        cmocka_unit_test(zero_bytes_are_an_allocation_too),
        cmocka_unit_test(calloc_is_zeroed),
        cmocka_unit_test(aligned_memory_is_aligned),
        cmocka_unit_test(strings_are_copied_with_their_end),
        cmocka_unit_test(the_chosen_allocation_fails_once_whatever_its_kind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
