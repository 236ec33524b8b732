/* GGUF read and written: what goes in comes out, a file that lies is refused with a line that says
 * where, and no damage to a file makes the reader crash. */
#include "engine/base/buf.h"
#include "engine/base/mem.h"
#include "engine/model/gguf_write.h"
#include "tests/unit/check.h"

#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <unistd.h>

/* A file put together by hand, so that any part of it can be wrong. */
static void put_u32(struct buf *b, uint32_t v)
{
    buf_append(b, &v, sizeof(v));
}

static void put_u64(struct buf *b, uint64_t v)
{
    buf_append(b, &v, sizeof(v));
}

static void put_string(struct buf *b, const char *s)
{
    put_u64(b, strlen(s));
    buf_append_str(b, s);
}

static void put_header(struct buf *b, uint32_t version, uint64_t n_tensors, uint64_t n_kv)
{
    buf_append(b, "GGUF", 4);
    put_u32(b, version);
    put_u64(b, n_tensors);
    put_u64(b, n_kv);
}

static void put_tensor(struct buf *b, const char *name, uint32_t type, uint64_t columns,
                       uint64_t rows, uint64_t offset)
{
    put_string(b, name);
    put_u32(b, 2);
    put_u64(b, columns);
    put_u64(b, rows);
    put_u32(b, type);
    put_u64(b, offset);
}

static void put_data(struct buf *b, size_t bytes)
{
    while (b->len % 32)
        buf_append(b, "", 1);
    for (size_t i = 0; i < bytes; i++)
        buf_append(b, "\x2a", 1);
}

static char folder[] = P_tmpdir "/overfill-test-XXXXXX";
static char target[64];

static int make_folder(void **state)
{
    if (!mkdtemp(folder))
        return -1;
    snprintf(target, sizeof(target), "%s/a.gguf", folder);
    return 0;
}

static int remove_folder(void **state)
{
    unlink(target);
    return rmdir(folder); /* fails when a temporary file was left behind */
}

static const float f32_zeros[16];
static const uint64_t dims_a[] = {32, 3}, dims_b[] = {5}, dims_c[] = {2, 3, 4};

static void set_every_type(struct gguf_writer *w)
{
    static const struct vocab_string strings[] = {{"one", 3}, {"", 0}, {"t\0ree", 5}};
    const int32_t i32s[] = {-1, 7};
    const float f32s[] = {0.5f, -2};
    const uint32_t u32s[] = {9};
    const uint8_t u8 = 200, bools[] = {1, 0, 1};
    const int8_t i8 = -100;
    const uint16_t u16 = 60000;
    const int16_t i16 = -30000;
    const int64_t i64 = -5000000000;
    const double f64 = 0.1;

    gguf_writer_set_u32(w, "a.u32", 4000000000u);
    gguf_writer_set_u64(w, "a.u64", UINT64_MAX);
    gguf_writer_set_i32(w, "a.i32", -7);
    gguf_writer_set_f32(w, "a.f32", 1.5f);
    gguf_writer_set_bool(w, "a.bool", true);
    gguf_writer_set_string(w, "a.string", "text");
    gguf_writer_set_items(w, "a.u8", GGUF_U8, false, &u8, 1);
    gguf_writer_set_items(w, "a.i8", GGUF_I8, false, &i8, 1);
    gguf_writer_set_items(w, "a.u16", GGUF_U16, false, &u16, 1);
    gguf_writer_set_items(w, "a.i16", GGUF_I16, false, &i16, 1);
    gguf_writer_set_items(w, "a.i64", GGUF_I64, false, &i64, 1);
    gguf_writer_set_items(w, "a.f64", GGUF_F64, false, &f64, 1);
    gguf_writer_set_items(w, "b.i32s", GGUF_I32, true, i32s, 2);
    gguf_writer_set_items(w, "b.f32s", GGUF_F32, true, f32s, 2);
    gguf_writer_set_items(w, "b.u32s", GGUF_U32, true, u32s, 1);
    gguf_writer_set_items(w, "b.bools", GGUF_BOOL, true, bools, 3);
    gguf_writer_set_items(w, "b.none", GGUF_F32, true, NULL, 0);
    gguf_writer_set_strings(w, "b.strings", strings, 3);
}

/* Writes the file with every metadata type and three tensors to `target`. */
static void write_file(void)
{
    struct gguf_writer *w;
    struct error err = {0};
    uint8_t data[96 / 32 * 34 + 5 * 4 + 24 * 2];

    for (size_t i = 0; i < sizeof(data); i++)
        data[i] = (uint8_t)(i * 7);
    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    set_every_type(w);
    gguf_writer_set_u32(w, "a.u32", 12); /* replaces */
    gguf_writer_set_u32(w, "a.gone", 1);
    gguf_writer_remove(w, "a.gone");
    gguf_writer_add_tensor(w, "a.weight", TENSOR_Q8_0, 2, dims_a);
    gguf_writer_add_tensor(w, "b.weight", TENSOR_F32, 1, dims_b);
    gguf_writer_add_tensor(w, "c.weight", TENSOR_F16, 3, dims_c);
    /* cut across the tensors' borders */
    assert_int_equal(gguf_writer_write(w, data, 1, &err), 0);
    assert_int_equal(gguf_writer_write(w, data + 1, 110, &err), 0);
    assert_int_equal(gguf_writer_write(w, data + 111, sizeof(data) - 111, &err), 0);
    assert_int_equal(gguf_writer_finish(w, &err), 0);
}

static int64_t integer_of(const struct gguf_file *f, const char *key)
{
    int64_t value = 0;
    assert_non_null(gguf_find(f, key));
    assert_true(gguf_kv_integer(gguf_find(f, key), 0, &value));
    return value;
}

static void check_metadata(const struct gguf_file *f)
{
    struct vocab_string *strings, text;
    uint32_t u32 = 0;
    bool flag = false;
    float f32 = 0;
    double f64 = 0;
    int64_t item;

    assert_int_equal(gguf_n_kv(f), 18);
    assert_int_equal(integer_of(f, "a.u32"), 12);
    assert_int_equal(integer_of(f, "a.i32"), -7);
    assert_int_equal(integer_of(f, "a.u8"), 200);
    assert_int_equal(integer_of(f, "a.i8"), -100);
    assert_int_equal(integer_of(f, "a.u16"), 60000);
    assert_int_equal(integer_of(f, "a.i16"), -30000);
    assert_int_equal(integer_of(f, "a.i64"), -5000000000);
    assert_false(gguf_kv_integer(gguf_find(f, "a.u64"), 0, &item)); /* no int64 */
    assert_int_equal(gguf_get_u32(f, "a.u32", GGUF_REQUIRED, &u32, NULL), 0);
    assert_int_equal(u32, 12);
    assert_int_equal(gguf_get_f32(f, "a.f32", GGUF_REQUIRED, &f32, NULL), 0);
    assert_true(f32 == 1.5f);
    assert_true(gguf_kv_float(gguf_find(f, "a.f64"), 0, &f64) && f64 == 0.1);
    assert_int_equal(gguf_get_bool(f, "a.bool", GGUF_REQUIRED, &flag, NULL), 0);
    assert_true(flag);
    assert_int_equal(gguf_get_string(f, "a.string", GGUF_REQUIRED, &text, NULL), 0);
    assert_int_equal(text.len, 4);
    assert_memory_equal(text.data, "text", 4);
    assert_true(gguf_kv_integer(gguf_find(f, "b.i32s"), 0, &item) && item == -1);
    assert_true(gguf_kv_integer(gguf_find(f, "b.i32s"), 1, &item) && item == 7);
    assert_false(gguf_kv_integer(gguf_find(f, "b.i32s"), 2, &item));
    assert_true(gguf_kv_float(gguf_find(f, "b.f32s"), 1, &f64) && f64 == -2);
    assert_int_equal(gguf_find(f, "b.none")->n, 0);
    assert_int_equal(gguf_find(f, "b.strings")->n, 3);
    assert_int_equal(gguf_kv_strings(gguf_find(f, "b.strings"), &strings, NULL), 0);
    assert_int_equal(strings[1].len, 0);
    assert_int_equal(strings[2].len, 5);
    assert_memory_equal(strings[2].data, "t\0ree", 5);
    mem_free(strings);
}

static void what_is_written_is_read_back(void **state)
{
    struct gguf_file *f;
    struct error err = {0};
    const struct tensor *t;

    write_file();
    assert_int_equal(gguf_open(target, &f, &err), 0);
    assert_int_equal(gguf_version(f), 3);
    check_metadata(f);
    assert_int_equal(gguf_n_tensors(f), 3);
    assert_string_equal(gguf_tensor_at(f, 1)->name, "b.weight");
    t = gguf_tensor(f, "c.weight");
    assert_non_null(t);
    assert_int_equal(t->type, TENSOR_F16);
    assert_int_equal(t->n_dims, 3);
    assert_int_equal(t->dims[2], 4);
    assert_int_equal(t->dims[3], 1);
    assert_int_equal(t->bytes, 48);
    for (size_t i = 0; i < t->bytes; i++)
        assert_int_equal(((const uint8_t *)t->data)[i], (uint8_t)((102 + 20 + i) * 7));
    assert_null(gguf_tensor(f, "d.weight"));
    assert_null(gguf_find(f, "a.gone"));
    gguf_close(f);
}

static void a_wrong_type_or_range_names_the_key(void **state)
{
    struct gguf_file *f;
    struct error err = {0};
    uint32_t u32 = 77;
    float f32 = 7;
    bool flag = true;
    struct vocab_string text = {"x", 1};

    write_file();
    assert_int_equal(gguf_open(target, &f, &err), 0);
    assert_int_equal(gguf_get_u32(f, "a.i32", GGUF_REQUIRED, &u32, &err), -ERROR_FORMAT);
    assert_string_equal(err.message, "key a.i32: an unsigned 32-bit integer expected, found -7");
    assert_int_equal(gguf_get_u32(f, "a.u64", GGUF_OPTIONAL, &u32, &err), -ERROR_FORMAT);
    assert_int_equal(gguf_get_u32(f, "b.u32s", GGUF_OPTIONAL, &u32, &err), -ERROR_FORMAT);
    assert_string_equal(err.message,
                        "key b.u32s: an unsigned 32-bit integer expected, found an array of u32");
    assert_int_equal(gguf_get_f32(f, "a.string", GGUF_OPTIONAL, &f32, &err), -ERROR_FORMAT);
    assert_int_equal(gguf_get_bool(f, "a.u8", GGUF_OPTIONAL, &flag, &err), -ERROR_FORMAT);
    assert_int_equal(gguf_get_string(f, "a.f32", GGUF_OPTIONAL, &text, &err), -ERROR_FORMAT);
    assert_int_equal(gguf_get_u32(f, "no.key", GGUF_REQUIRED, &u32, &err), -ERROR_FORMAT);
    assert_string_equal(err.message, "key no.key: missing, an unsigned 32-bit integer expected");
    assert_int_equal(gguf_get_u32(f, "no.key", GGUF_OPTIONAL, &u32, &err), 0);
    assert_int_equal(u32, 77);
    assert_true(f32 == 7 && flag && text.len == 1);
    gguf_close(f);
}

/* One thing wrong each. */
struct malformed {
    const char *name;
    void (*build)(struct buf *b);
    enum error_code code;
    const char *says;
};

static void build_magic(struct buf *b)
{
    buf_append_str(b, "GGML and more");
}

static void build_version_1(struct buf *b)
{
    put_header(b, 1, 0, 0);
}

static void build_big_endian(struct buf *b)
{
    put_header(b, 0x03000000, 0, 0);
}

static void build_many_kv(struct buf *b)
{
    put_header(b, 3, 0, UINT64_MAX / 2);
}

static void build_many_tensors(struct buf *b)
{
    put_header(b, 3, 1000000, 0);
    put_data(b, 64);
}

static void build_long_key(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_u64(b, UINT64_MAX);
    put_data(b, 64);
}

static void build_value_type(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k\n\xff");
    put_u32(b, 13);
    put_data(b, 64);
}

static void build_nested_array(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k");
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_ARRAY);
    put_u64(b, 1);
    put_data(b, 64);
}

static void build_huge_array(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k");
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_U64);
    put_u64(b, (uint64_t)1 << 61);
    put_data(b, 64);
}

static void build_huge_string_array(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k");
    put_u32(b, GGUF_ARRAY);
    put_u32(b, GGUF_STRING);
    put_u64(b, UINT64_MAX);
    for (int i = 0; i < 9; i++)
        put_string(b, "");
}

static void build_long_string(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k");
    put_u32(b, GGUF_STRING);
    put_u64(b, 65);
    put_data(b, 0);
}

static void build_bool(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "k");
    put_u32(b, GGUF_BOOL);
    buf_append(b, "\2", 1);
}

static void build_same_key(struct buf *b)
{
    put_header(b, 3, 0, 2);
    for (int i = 0; i < 2; i++) {
        put_string(b, "k");
        put_u32(b, GGUF_U32);
        put_u32(b, 1);
    }
}

static void put_alignment(struct buf *b, uint32_t alignment)
{
    put_string(b, "general.alignment");
    put_u32(b, GGUF_U32);
    put_u32(b, alignment);
}

static void build_alignment_0(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_alignment(b, 0);
}

static void build_alignment_48(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_alignment(b, 48);
}

static void build_alignment_string(struct buf *b)
{
    put_header(b, 3, 0, 1);
    put_string(b, "general.alignment");
    put_u32(b, GGUF_STRING);
    put_string(b, "32");
}

static void build_tensor_past_end(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 4, 0);
    put_data(b, 63);
}

static void build_offset_past_end(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 4, 0xffffffffffffffe0u);
    put_data(b, 64);
}

static void build_offset_unaligned(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 4, 16);
    put_data(b, 128);
}

static void build_dims_overflow(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, (uint64_t)1 << 33, (uint64_t)1 << 33, 0);
    put_data(b, 64);
}

static void build_bytes_overflow(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, (uint64_t)1 << 31, (uint64_t)1 << 32, 0);
    put_data(b, 64);
}

static void build_dim_0(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 0, 0);
    put_data(b, 64);
}

static void build_dims_5(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_string(b, "t");
    put_u32(b, 5);
    for (int i = 0; i < 5; i++)
        put_u64(b, 1);
    put_u32(b, TENSOR_F32);
    put_u64(b, 0);
    put_data(b, 64);
}

static void build_dims_none(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_string(b, "t");
    put_u32(b, 0);
    put_u32(b, TENSOR_F32);
    put_u64(b, 0);
    put_data(b, 64);
}

static void build_broken_block(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", TENSOR_Q8_0, 48, 2, 0);
    put_data(b, 256);
}

static void build_unsupported_type(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", 16, 256, 2, 0);
    put_data(b, 256);
}

static void build_unknown_type(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "t", 0xfffffff0u, 256, 2, 0);
    put_data(b, 256);
}

static void build_same_tensor(struct buf *b)
{
    put_header(b, 3, 2, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 2, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 2, 32);
    put_data(b, 64);
}

static void build_overlap(struct buf *b)
{
    put_header(b, 3, 2, 0);
    put_tensor(b, "t", TENSOR_F32, 4, 2, 32);
    put_tensor(b, "u", TENSOR_F32, 4, 3, 0);
    put_data(b, 64);
}

static void build_long_name(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "0123456789012345678901234567890123456789012345678901234567890123", TENSOR_F32, 4,
               2, 0);
    put_data(b, 64);
}

static void build_empty_name(struct buf *b)
{
    put_header(b, 3, 1, 0);
    put_tensor(b, "", TENSOR_F32, 4, 2, 0);
    put_data(b, 64);
}

static void build_nothing(struct buf *b)
{
    buf_append(b, "GGU", 3);
}

static const struct malformed malformed[] = {
    {"magic", build_magic, ERROR_FORMAT, "not a GGUF file"},
    {"nothing", build_nothing, ERROR_FORMAT, "not a GGUF file"},
    {"version 1", build_version_1, ERROR_UNSUPPORTED, "version 2 or 3 expected, found 1"},
    {"big-endian", build_big_endian, ERROR_UNSUPPORTED, "big-endian"},
    {"many kv", build_many_kv, ERROR_FORMAT, "metadata entries claimed"},
    {"many tensors", build_many_tensors, ERROR_FORMAT, "1000000 tensors claimed"},
    {"long key", build_long_key, ERROR_FORMAT, "metadata entry 1 of 1: the key at byte"},
    {"value type", build_value_type, ERROR_FORMAT, "key k??: value type 0..12 expected, found 13"},
    {"nested array", build_nested_array, ERROR_UNSUPPORTED, "key k: arrays of arrays"},
    {"huge array", build_huge_array, ERROR_FORMAT, "key k: 2305843009213693952 items of type u64"},
    {"huge string array", build_huge_string_array, ERROR_FORMAT, "key k: a string at byte"},
    {"long string", build_long_string, ERROR_FORMAT, "key k: a string at byte"},
    {"bool", build_bool, ERROR_FORMAT, "key k: a bool must be 0 or 1, found 2"},
    {"same key", build_same_key, ERROR_FORMAT, "key k: stands in the file twice"},
    {"alignment 0", build_alignment_0, ERROR_FORMAT, "key general.alignment: a power of two"},
    {"alignment 48", build_alignment_48, ERROR_FORMAT, "found 48"},
    {"alignment string", build_alignment_string, ERROR_FORMAT, "found string"},
    {"past end", build_tensor_past_end, ERROR_FORMAT, "tensor t: 64 bytes at offset 0 expected"},
    {"offset", build_offset_past_end, ERROR_FORMAT, "tensor t: 64 bytes at offset"},
    {"unaligned", build_offset_unaligned, ERROR_FORMAT, "not a multiple of the alignment 32"},
    {"dims overflow", build_dims_overflow, ERROR_FORMAT, "dimensions overflow"},
    {"bytes overflow", build_bytes_overflow, ERROR_FORMAT, "tensor t: "},
    {"dim 0", build_dim_0, ERROR_FORMAT, "tensor t: dimension 1 is 0"},
    {"5 dims", build_dims_5, ERROR_FORMAT, "1 to 4 dimensions expected, found 5"},
    {"no dims", build_dims_none, ERROR_FORMAT, "1 to 4 dimensions expected, found 0"},
    {"broken block", build_broken_block, ERROR_FORMAT, "multiple of 32, found 48"},
    {"unsupported", build_unsupported_type, ERROR_UNSUPPORTED, "tensor t: element type IQ2_XXS"},
    {"unknown", build_unknown_type, ERROR_UNSUPPORTED, "element type unknown (4294967280)"},
    {"same tensor", build_same_tensor, ERROR_FORMAT, "tensor t: stands in the file twice"},
    {"overlap", build_overlap, ERROR_FORMAT, "tensor t: its data overlaps that of tensor u"},
    {"long name", build_long_name, ERROR_FORMAT, "1 to 63 bytes"},
    {"empty name", build_empty_name, ERROR_FORMAT, "1 to 63 bytes"},
};

/* Copied to the end of a fresh allocation, so that AddressSanitizer sees a read past the end. */
static int open_copy(const char *data, size_t len, struct gguf_file **ret, uint8_t **ret_copy,
                     struct error *err)
{
    uint8_t *copy = mem_alloc(len);
    if (len)
        memcpy(copy, data, len);
    *ret = NULL;
    *ret_copy = copy;
    return gguf_open_memory(copy, len, ret, err);
}

static void a_file_that_lies_is_refused_with_its_reason(void **state)
{
    for (size_t i = 0; i < sizeof(malformed) / sizeof(malformed[0]); i++) {
        const struct malformed *m = &malformed[i];
        struct buf b = {0};
        struct error err = {0};
        struct gguf_file *f;
        uint8_t *copy;
        m->build(&b);
        int rc = open_copy(b.data, b.len, &f, &copy, &err);
        if (rc != -(int)m->code || !strstr(err.message, m->says))
            fail_msg("%s: code %d, message \"%s\"", m->name, rc, err.message);
        assert_null(strchr(err.message, '\n'));
        assert_null(f);
        mem_free(copy);
        buf_free(&b);
    }
}

/* Touches everything that an open file hands out; the sum keeps the reads alive. */
static unsigned read_everything(struct gguf_file *f)
{
    unsigned sum = 0;
    struct vocab vocab;

    for (size_t i = 0; i < gguf_n_kv(f); i++) {
        const struct gguf_kv *kv = gguf_kv_at(f, i);
        struct vocab_string *strings;
        for (size_t j = 0; j < kv->bytes; j++)
            sum += kv->data[j];
        if (gguf_kv_strings(kv, &strings, NULL) == 0) {
            for (size_t j = 0; j < kv->n; j++)
                for (size_t k = 0; k < strings[j].len; k++)
                    sum += (uint8_t)strings[j].data[k];
            mem_free(strings);
        }
    }
    for (size_t i = 0; i < gguf_n_tensors(f); i++)
        for (size_t j = 0; j < gguf_tensor_at(f, i)->bytes; j++)
            sum += ((const uint8_t *)gguf_tensor_at(f, i)->data)[j];
    if (gguf_read_vocab(f, &vocab, NULL) == 0)
        vocab_free(&vocab);
    return sum;
}

static char *read_target(size_t *ret_len)
{
    struct stat st;
    assert_int_equal(stat(target, &st), 0);
    char *data = mem_alloc((size_t)st.st_size);
    FILE *stream = fopen(target, "rb");
    assert_non_null(stream);
    assert_int_equal(fread(data, 1, (size_t)st.st_size, stream), st.st_size);
    fclose(stream);
    *ret_len = (size_t)st.st_size;
    return data;
}

static void a_file_cut_short_anywhere_is_refused(void **state)
{
    size_t len;
    write_file();
    char *data = read_target(&len);
    len -= -(24 * 2) & 31; /* padding behind the last tensor may be missing */

    for (size_t cut = 0; cut < len; cut++) {
        struct error err = {0};
        struct gguf_file *f;
        uint8_t *copy;
        if (open_copy(data, cut, &f, &copy, &err) >= 0)
            fail_msg("accepted after %zu of %zu bytes", cut, len);
        assert_true(err.message[0]);
        mem_free(copy);
    }
    mem_free(data);
}

static void damage_anywhere_never_crashes_the_reader(void **state)
{
    static const uint8_t values[] = {0, 1, 0x7f, 0x80, 0xff};
    size_t len;
    write_file();
    char *data = read_target(&len);
    volatile unsigned sum = 0;

    for (size_t at = 0; at < len; at++) {
        for (size_t v = 0; v < sizeof(values); v++) {
            struct error err = {0};
            struct gguf_file *f;
            uint8_t *copy;
            char old = data[at];
            data[at] = (char)values[v];
            if (open_copy(data, len, &f, &copy, &err) == 0)
                sum = sum + read_everything(f);
            gguf_close(f);
            mem_free(copy);
            data[at] = old;
        }
    }
    mem_free(data);
}

static void a_failed_allocation_is_an_error(void **state)
{
    struct gguf_file *f = NULL;
    struct error err = {0};
    unsigned long k = 0;
    int rc;

    write_file();
    do {
        mem_fail_at(++k);
        rc = gguf_open(target, &f, &err);
        if (rc)
            assert_int_equal(err.code, ERROR_MEMORY);
    } while (rc);
    mem_fail_at(0);
    assert_in_range(k, 4, 20);
    gguf_close(f);

    for (k = 1, rc = -1; rc; k++) { /* the writer */
        struct gguf_writer *w;
        mem_fail_at(k);
        rc = gguf_writer_open(target, &w, &err);
        if (rc == 0) {
            set_every_type(w);
            gguf_writer_add_tensor(w, "b", TENSOR_F32, 1, dims_b);
            rc = gguf_writer_write(w, f32_zeros, 20, &err);
            if (rc)
                gguf_writer_abort(w);
            else
                rc = gguf_writer_finish(w, &err);
        }
        if (rc)
            assert_int_equal(err.code, ERROR_MEMORY);
    }
    mem_fail_at(0);
    assert_in_range(k, 20, 200);
}

static void a_full_disk_is_an_error_and_leaves_the_old_file(void **state)
{
    struct rlimit old, small;
    struct gguf_writer *w;
    struct error err = {0};
    const uint64_t dims[] = {1 << 16};
    struct stat before, after;
    int rc = 0;

    write_file();
    assert_int_equal(stat(target, &before), 0);
    signal(SIGXFSZ, SIG_IGN);
    getrlimit(RLIMIT_FSIZE, &old);
    small = old;
    small.rlim_cur = 100000;
    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    gguf_writer_add_tensor(w, "t", TENSOR_F32, 1, dims);
    setrlimit(RLIMIT_FSIZE, &small);
    for (int i = 0; i < 1 << 12 && rc == 0; i++)
        rc = gguf_writer_write(w, f32_zeros, 64, &err);
    if (rc == 0)
        rc = gguf_writer_finish(w, &err);
    else
        gguf_writer_abort(w);
    setrlimit(RLIMIT_FSIZE, &old);
    signal(SIGXFSZ, SIG_DFL);
    assert_int_equal(rc, -ERROR_IO);
    assert_non_null(strstr(err.message, "cannot write: File too large"));
    assert_int_equal(stat(target, &after), 0);
    assert_true(before.st_ino == after.st_ino && before.st_size == after.st_size);
}

static void misuse_of_the_writer_is_an_error(void **state)
{
    struct gguf_writer *w;
    struct error err = {0};

    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    gguf_writer_add_tensor(w, "b", TENSOR_F32, 1, dims_b);
    assert_int_equal(gguf_writer_write(w, f32_zeros, 19, &err), 0);
    assert_int_equal(gguf_writer_finish(w, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "tensor b: 20 bytes expected, 19 written"));

    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    gguf_writer_add_tensor(w, "b", TENSOR_F32, 1, dims_b);
    assert_int_equal(gguf_writer_write(w, f32_zeros, 21, &err), -ERROR_INVALID);
    gguf_writer_abort(w);

    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    gguf_writer_add_tensor(w, "b", TENSOR_F32, 1, dims_b);
    gguf_writer_add_tensor(w, "b", TENSOR_F32, 1, dims_b);
    assert_int_equal(gguf_writer_finish(w, &err), -ERROR_INVALID);
    assert_non_null(strstr(err.message, "tensor b: added twice"));

    assert_int_equal(gguf_writer_open(target, &w, &err), 0);
    gguf_writer_add_tensor(w, "b", TENSOR_Q8_0, 1, dims_b);
    assert_int_equal(gguf_writer_finish(w, &err), -ERROR_INVALID);

    assert_int_equal(gguf_writer_open("/no/such/folder/a.gguf", &w, &err), -ERROR_IO);
}

static void what_is_no_file_is_an_error(void **state)
{
    struct gguf_file *f;
    struct error err = {0};

    assert_int_equal(gguf_open("/no/such.gguf", &f, &err), -ERROR_IO);
    assert_string_equal(err.message, "/no/such.gguf: No such file or directory");
    assert_int_equal(gguf_open(folder, &f, &err), -ERROR_INVALID);
    assert_int_equal(gguf_open("/dev/null", &f, &err), -ERROR_INVALID);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(what_is_written_is_read_back),
        cmocka_unit_test(a_wrong_type_or_range_names_the_key),
        cmocka_unit_test(a_file_that_lies_is_refused_with_its_reason),
        cmocka_unit_test(a_file_cut_short_anywhere_is_refused),
        cmocka_unit_test(damage_anywhere_never_crashes_the_reader),
        cmocka_unit_test(a_failed_allocation_is_an_error),
        cmocka_unit_test(a_full_disk_is_an_error_and_leaves_the_old_file),
        cmocka_unit_test(misuse_of_the_writer_is_an_error),
        cmocka_unit_test(what_is_no_file_is_an_error),
    };
    return cmocka_run_group_tests_name("gguf", tests, make_folder, remove_folder);
}
