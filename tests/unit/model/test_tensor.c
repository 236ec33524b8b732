/* Element types against what ggml's own Python package reads and writes (blocks.bin, made by
 * make_blocks.py), and the properties that hold for any input. */
#include "engine/base/mem.h"
#include "engine/model/tensor.h"
#include "tests/unit/check.h"

#include <math.h>
#include <stdio.h>
#include <string.h>

struct record {
    uint32_t type, direction, n, n_bytes;
    uint8_t *bytes;
    float *floats;
};

static FILE *open_blocks(void)
{
    FILE *stream = fopen(OVERFILL_SOURCE_ROOT "/tests/unit/model/blocks.bin", "rb");
    assert_non_null(stream);
    return stream;
}

static bool next_record(FILE *stream, struct record *r)
{
    if (fread(r, sizeof(uint32_t), 4, stream) != 4)
        return false;
    r->bytes = mem_alloc(r->n_bytes);
    r->floats = mem_array(r->n, sizeof(float));
    assert_int_equal(fread(r->bytes, 1, r->n_bytes, stream), r->n_bytes);
    assert_int_equal(fread(r->floats, sizeof(float), r->n, stream), r->n);
    return true;
}

static void free_record(struct record *r)
{
    mem_free(r->bytes);
    mem_free(r->floats);
}

static void blocks_read_as_ggml_reads_them(void **state)
{
    FILE *stream = open_blocks();
    struct record r;
    int n_read = 0;

    while (next_record(stream, &r)) {
        size_t bytes;
        float *got = mem_array(r.n, sizeof(float));
        assert_true(tensor_type_bytes(r.type, r.n, &bytes));
        assert_int_equal(bytes, r.n_bytes);
        if (r.direction == 0) {
            n_read++;
            tensor_dequantize(r.type, r.bytes, r.n, got);
            for (uint32_t i = 0; i < r.n; i++)
                if (fabsf(got[i] - r.floats[i]) > 1e-6f * fabsf(r.floats[i]))
                    fail_msg("%s element %u: %.9g expected, found %.9g", tensor_type_name(r.type),
                             i, (double)r.floats[i], (double)got[i]);
        }
        mem_free(got);
        free_record(&r);
    }
    assert_int_equal(n_read, 10);
    fclose(stream);
}

static void floats_are_written_as_ggml_writes_them(void **state)
{
    FILE *stream = open_blocks();
    struct record r;
    int n_written = 0;

    while (next_record(stream, &r)) {
        uint8_t *got = mem_alloc(r.n_bytes);
        if (r.direction == 1) {
            n_written++;
            assert_int_equal(tensor_quantize(r.type, r.floats, r.n, got, NULL), 0);
            for (uint32_t i = 0; i < r.n_bytes; i++)
                if (got[i] != r.bytes[i])
                    fail_msg("%s byte %u: %u expected, found %u", tensor_type_name(r.type), i,
                             r.bytes[i], got[i]);
        }
        mem_free(got);
        free_record(&r);
    }
    assert_int_equal(n_written, 5);
    fclose(stream);
}

/* The largest error of a block of each type, in shares of the block's largest magnitude. */
static void a_round_trip_stays_within_the_types_step(void **state)
{
    static const struct {
        enum tensor_type type;
        float share;
    } cases[] = {
        {TENSOR_F32, 0},
        {TENSOR_F16, 0x1p-11f},
        {TENSOR_BF16, 0x1p-8f},
        {TENSOR_Q8_0, 0.5f / 127 + 0x1p-10f},
        {TENSOR_Q4_0, 1.0f / 8 + 0x1p-10f},     /* 8 is not among -8..7 */
        {TENSOR_Q4_1, 2 * 0.5f / 15 + 0x1p-9f}, /* the range is up to twice the magnitude */
        /* some values clip a little so that most lie nearer */
        {TENSOR_Q5_0, 1.0f / 8},
        {TENSOR_Q5_1, 1.0f / 8},
        {TENSOR_Q2_K, 1.0f / 2},
        {TENSOR_Q3_K, 1.0f / 3},
        {TENSOR_Q4_K, 1.0f / 6},
        {TENSOR_Q5_K, 1.0f / 8},
        {TENSOR_Q6_K, 1.0f / 16},
    };
    float values[256], back[256];
    uint8_t bytes[256 * 4];

    for (int i = 0; i < 256; i++)
        values[i] = sinf((float)i * 1.7f) * (float)(1 + i / 32);
    for (size_t c = 0; c < sizeof(cases) / sizeof(cases[0]); c++) {
        assert_int_equal(tensor_quantize(cases[c].type, values, 256, bytes, NULL), 0);
        tensor_dequantize(cases[c].type, bytes, 256, back);
        for (int i = 0; i < 256; i++)
            if (fabsf(back[i] - values[i]) > cases[c].share * (float)(1 + i / 32))
                fail_msg("%s: %g came back as %g", tensor_type_name(cases[c].type),
                         (double)values[i], (double)back[i]);
    }
}

static void data_may_lie_at_an_odd_address(void **state)
{
    static const enum tensor_type types[] = {
        TENSOR_F32,  TENSOR_F16,  TENSOR_BF16, TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1, TENSOR_Q5_0,
        TENSOR_Q5_1, TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K, TENSOR_Q5_K, TENSOR_Q6_K};
    for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
        uint8_t even[1024], odd[1025];
        float a[256], b[256];
        for (int i = 0; i < 1024; i++)
            even[i] = odd[i + 1] = (uint8_t)(i * 37 % 61); /* scales stay finite */
        tensor_dequantize(types[t], even, 256, a);
        tensor_dequantize(types[t], odd + 1, 256, b);
        assert_memory_equal(a, b, sizeof(a));
    }
}

static void values_that_a_block_cannot_hold_are_refused(void **state)
{
    static const float bad[] = {NAN, INFINITY, -INFINITY, 1e6f};
    static const enum tensor_type types[] = {TENSOR_Q8_0, TENSOR_Q4_0, TENSOR_Q4_1};
    float values[64] = {0};
    uint8_t bytes[256];

    for (size_t b = 0; b < 4; b++) {
        for (size_t t = 0; t < 3; t++) {
            struct error err = {0};
            values[40] = bad[b];
            assert_int_equal(tensor_quantize(types[t], values, 64, bytes, &err), -ERROR_INVALID);
            assert_non_null(strstr(err.message, "element 40"));
        }
    }
}

/* Every bit of a block is somewhere in the numbers it is taken apart into. */
static void blocks_are_put_together_as_they_were(void **state)
{
    FILE *stream = open_blocks();
    struct record r;
    int n_blocks = 0;
    while (next_record(stream, &r)) {
        uint32_t size = tensor_block_bytes(r.type);
        for (uint32_t at = 0; r.direction == 0 && at < r.n_bytes; at += size, n_blocks++) {
            struct tensor_block b;
            uint8_t again[256];
            memset(again, 0xa5, sizeof(again));
            tensor_get_block(r.type, r.bytes + at, &b);
            tensor_put_block(r.type, &b, again);
            assert_memory_equal(again, r.bytes + at, size);
        }
        free_record(&r);
    }
    assert_int_equal(n_blocks, 5 * 512 / 32 + 5 * 512 / 256);
    fclose(stream);
}

static double square_error(enum tensor_type type, const float *values)
{
    float back[256];
    uint8_t bytes[1024];
    double sum = 0;
    assert_int_equal(tensor_quantize(type, values, 256, bytes, NULL), 0);
    tensor_dequantize(type, bytes, 256, back);
    for (int i = 0; i < 256; i++)
        sum += (double)(back[i] - values[i]) * (back[i] - values[i]);
    return sum;
}

/* Groups of sizes far apart: each type is better than that of a bit less, on either side of zero
 * and on both. */
static void more_bits_are_nearer(void **state)
{
    static const enum tensor_type types[] = {TENSOR_Q2_K, TENSOR_Q3_K, TENSOR_Q4_K,
                                             TENSOR_Q5_K, TENSOR_Q6_K, TENSOR_Q8_0};
    for (int shift = -1; shift <= 1; shift++) {
        float values[256];
        double before = 0;
        for (int i = 0; i < 256; i++) {
            values[i] = (sinf((float)(i * i) * 0.7f) + (float)shift) * (float)(1 + i / 16);
            before += (double)values[i] * values[i];
        }
        for (size_t t = 0; t < sizeof(types) / sizeof(types[0]); t++) {
            double error = square_error(types[t], values);
            print_message("%s, shifted by %d: %.3g\n", tensor_type_name(types[t]), shift, error);
            assert_true(error < before);
            before = error;
        }
    }
}

static void rows_that_are_no_super_blocks_fall_back(void **state)
{
    assert_int_equal(tensor_type_for_rows(TENSOR_Q4_K, 512), TENSOR_Q4_K);
    assert_int_equal(tensor_type_for_rows(TENSOR_Q4_K, 576), TENSOR_Q5_0);
    assert_int_equal(tensor_type_for_rows(TENSOR_Q2_K, 576), TENSOR_Q4_0);
    assert_int_equal(tensor_type_for_rows(TENSOR_Q6_K, 576), TENSOR_Q8_0);
    assert_int_equal(tensor_type_for_rows(TENSOR_Q4_0, 576), TENSOR_Q4_0);
}

static void names_go_both_ways(void **state)
{
    assert_int_equal(tensor_type_from_name("q8_0"), TENSOR_Q8_0);
    assert_int_equal(tensor_type_from_name("bf16"), TENSOR_BF16);
    assert_int_equal(tensor_type_from_name("Q4_K"), TENSOR_Q4_K);
    assert_int_equal(tensor_type_from_name("IQ2_XS"), -1); /* known by name only */
    assert_int_equal(tensor_type_from_name(""), -1);
    assert_string_equal(tensor_type_name(TENSOR_Q5_1), "Q5_1");
    assert_string_equal(tensor_type_name(17), "IQ2_XS");
    assert_string_equal(tensor_type_name(4000000000u), "unknown");
    assert_false(tensor_type_is_known(17));
    assert_false(tensor_type_is_known(4));
    assert_false(tensor_type_is_known(UINT32_MAX));
    assert_true(tensor_type_is_known(TENSOR_BF16));
}

static void sizes_that_overflow_or_break_a_block_are_refused(void **state)
{
    size_t bytes = 5;

    assert_false(tensor_type_bytes(TENSOR_Q8_0, 33, &bytes));
    assert_false(tensor_type_bytes(TENSOR_F32, UINT64_MAX / 2, &bytes));
    assert_int_equal(bytes, 5);
    assert_true(tensor_type_bytes(TENSOR_Q6_K, 512, &bytes));
    assert_int_equal(bytes, 420);
}

/* The definition: sign, five bits of exponent, ten of mantissa. */
static double half_value(uint16_t h)
{
    int exponent = h >> 10 & 31, mantissa = h & 0x3ff;
    double magnitude = exponent ? ldexp(1024 + mantissa, exponent - 25) : ldexp(mantissa, -24);
    return h & 0x8000 ? -magnitude : magnitude;
}

static void every_half_is_its_value_and_comes_back(void **state)
{
    for (uint32_t h = 0; h < 0x10000; h++) {
        uint16_t bits = (uint16_t)h;
        float got = half_to_float(bits);
        if ((h & 0x7c00) == 0x7c00) {
            assert_true(h & 0x3ff ? isnan(got) : isinf(got));
            assert_true(isnan(half_to_float(float_to_half(got))) == isnan(got));
            continue;
        }
        assert_true((double)got == half_value(bits) && !signbit(got) == !(h & 0x8000));
        assert_int_equal(float_to_half(got), bits);
    }
}

static void floats_round_to_the_nearest_half_and_ties_to_even(void **state)
{
    for (uint32_t i = 0; i < 2000000; i++) {
        float f = float_from_bits(i * 1431655777u); /* odd: all over the range of floats */
        uint16_t h = float_to_half(f);
        if (isnan(f) || fabsf(f) >= 65520) {
            assert_true(isnan(f) || (h & 0x7fff) == 0x7c00);
            continue;
        }
        double error = fabs((double)f - half_value(h));
        for (int step = -1; step <= 1; step += 2) { /* the neighbours are no nearer */
            uint16_t near = (uint16_t)(h + step);
            if ((near ^ h) & 0x8000 || (near & 0x7c00) == 0x7c00)
                continue;
            double other = fabs((double)f - half_value(near));
            if (other < error || (other == error && h & 1))
                fail_msg("%.9g became half %04x, %04x is nearer", (double)f, h, near);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(blocks_read_as_ggml_reads_them),
        cmocka_unit_test(floats_are_written_as_ggml_writes_them),
        cmocka_unit_test(a_round_trip_stays_within_the_types_step),
        cmocka_unit_test(data_may_lie_at_an_odd_address),
        cmocka_unit_test(values_that_a_block_cannot_hold_are_refused),
        cmocka_unit_test(blocks_are_put_together_as_they_were),
        cmocka_unit_test(more_bits_are_nearer),
        cmocka_unit_test(rows_that_are_no_super_blocks_fall_back),
        cmocka_unit_test(names_go_both_ways),
        cmocka_unit_test(sizes_that_overflow_or_break_a_block_are_refused),
        cmocka_unit_test(every_half_is_its_value_and_comes_back),
        cmocka_unit_test(floats_round_to_the_nearest_half_and_ties_to_even),
    };
    return cmocka_run_group_tests_name("tensor", tests, NULL, NULL);
}
