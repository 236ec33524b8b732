/* overfill inspect: what a model file holds, as text or as one JSON object. A GGUF file that this
 * program cannot serve (another architecture, a vocabulary alone) is shown all the same, with the
 * reason; a file that breaks its format is an error. Strings from the file are shown as JSON
 * strings, so nothing in it reaches the terminal as a control sequence; long ones are whole in JSON
 * only. */
#include "cli/cli.h"
#include "engine/base/mem.h"
#include "engine/model/gguf.h"
#include "engine/model/model_file.h"
#include "engine/tokenizer/chat_template.h"

#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>

#define MAX_TEXT_BYTES 200 /* longer strings are cut where people read them */
#define MAX_ITEMS 4        /* of an array */

struct subject {
    const char *path;
    struct gguf_file *own_gguf;   /* opened here because the model file did not open */
    const struct gguf_file *gguf; /* NULL for a folder */
    struct model_file *model;     /* NULL: see problem */
    struct vocab own_vocab;
    const struct vocab *vocab; /* NULL: no tokenizer that we read */
    struct error problem;      /* why it cannot be served */
    uint64_t n_params;
};

static void subject_close(struct subject *s)
{
    vocab_free(&s->own_vocab);
    gguf_close(s->own_gguf);
    model_file_close(s->model);
}

static bool is_folder(const char *path)
{
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int subject_open(struct subject *s, struct error *err)
{
    if (model_file_open(s->path, &s->model, &s->problem) == 0) {
        s->gguf = model_file_gguf(s->model);
        s->vocab = model_file_vocab(s->model);
        return 0;
    }
    if (is_folder(s->path)) {
        *err = s->problem;
        return -(int)err->code;
    }
    int rc = gguf_open(s->path, &s->own_gguf, err);
    if (rc)
        return rc;
    s->gguf = s->own_gguf;
    if (gguf_read_vocab(s->gguf, &s->own_vocab, err) == 0)
        s->vocab = &s->own_vocab;
    return 0;
}

static size_t n_tensors(const struct subject *s)
{
    return s->model ? model_file_n_tensors(s->model) : gguf_n_tensors(s->gguf);
}

static const struct tensor *tensor_at(const struct subject *s, size_t i)
{
    return s->model ? model_file_tensor_at(s->model, i) : gguf_tensor_at(s->gguf, i);
}

static const char *template_family(const struct vocab *vocab)
{
    const struct chat_template *tmpl;
    struct error err;
    if (!vocab->chat_template || chat_template_find(NULL, vocab->chat_template, &tmpl, &err))
        return NULL;
    return chat_template_name(tmpl);
}

static void put_string(struct buf *out, const char *text, size_t len, size_t most)
{
    size_t shown = len < most ? len : most;
    while (shown < len && shown > 0 && ((uint8_t)text[shown] & 0xc0) == 0x80)
        shown--; /* not within a character */
    if (shown == len) {
        cli_json_string(out, text, len);
        return;
    }
    _cleanup_buf_ struct buf cut = {0};
    buf_append(&cut, text, shown);
    buf_append_str(&cut, "...");
    cli_json_string(out, cut.data ? cut.data : "", cut.len);
}

/* The shortest decimal that reads back as the same float. */
static void put_float(struct buf *out, float f)
{
    char text[32];
    int digits = 6;

    do
        snprintf(text, sizeof(text), "%.*g", digits, (double)f);
    while (strtof(text, NULL) != f && ++digits <= 9);
    buf_append_str(out, text);
}

static void put_item(struct buf *out, const struct gguf_kv *kv, uint64_t i)
{
    int64_t integer;
    double real;
    uint64_t large;

    if (gguf_kv_integer(kv, i, &integer)) {
        if (kv->type == GGUF_BOOL)
            buf_append_str(out, integer ? "true" : "false");
        else
            buf_printf(out, "%" PRId64, integer);
    } else if (gguf_kv_float(kv, i, &real)) {
        if (!isfinite(real))
            buf_append_str(out, "null"); /* JSON has no other word for it */
        else if (kv->type == GGUF_F32)
            put_float(out, (float)real);
        else
            buf_printf(out, "%.17g", real);
    } else {
        memcpy(&large, kv->data + i * sizeof(large), sizeof(large));
        buf_printf(out, "%" PRIu64, large);
    }
}

/* A scalar as itself, an array as its type, length and first items; strings up to so many bytes. */
static int put_value(struct buf *out, const struct gguf_kv *kv, size_t most, struct error *err)
{
    _cleanup_mem_ struct vocab_string *strings = NULL;
    uint64_t shown = kv->n < MAX_ITEMS ? kv->n : MAX_ITEMS;
    int rc = kv->type == GGUF_STRING ? gguf_kv_strings(kv, &strings, err) : 0;
    if (rc)
        return rc;
    if (kv->is_array)
        buf_printf(out, "{\"type\":\"%s\",\"n\":%" PRIu64 ",\"first\":[", gguf_type_name(kv->type),
                   kv->n);
    for (uint64_t i = 0; i < shown; i++) {
        if (i)
            buf_append_str(out, ",");
        if (strings)
            put_string(out, strings[i].data, strings[i].len, most);
        else
            put_item(out, kv, i);
    }
    if (kv->is_array)
        buf_append_str(out, "]}");
    return 0;
}

static void put_model_json(struct buf *out, const struct model_params *p, uint64_t n_params)
{
    buf_append_str(out, "{\"name\":");
    cli_json_string(out, p->name, strlen(p->name));
    buf_printf(out,
               ",\"architecture\":\"%s\",\"parameters\":%" PRIu64
               ",\"layers\":%u,\"hidden\":%u,\"norm_width\":%u,\"mlp\":%u,\"heads\":%u,"
               "\"kv_heads\":%u,\"head_dim\":%u,\"rope_dim\":%u,\"vocab_size\":%u,\"context\":%u",
               model_arch_name(p->arch), n_params, p->n_layers, p->hidden, p->norm_width, p->mlp,
               p->n_heads, p->n_kv_heads, p->head_dim, p->rope_dim, p->vocab_size,
               p->context_train);
    buf_append_str(out, ",\"rms_eps\":");
    put_float(out, p->rms_eps);
    buf_append_str(out, ",\"rope_theta\":");
    put_float(out, p->rope_theta);
    buf_printf(out, ",\"tied\":%s,\"qkv_bias\":%s,\"qk_norm\":%s}", p->tied ? "true" : "false",
               p->has_qkv_bias ? "true" : "false", p->has_qk_norm ? "true" : "false");
}

static void put_id_json(struct buf *out, const char *name, int32_t id)
{
    if (id >= 0)
        buf_printf(out, ",\"%s\":%" PRId32, name, id);
    else
        buf_printf(out, ",\"%s\":null", name);
}

static void put_tokenizer_json(struct buf *out, const struct vocab *v)
{
    const char *family = template_family(v);

    buf_printf(out, "{\"model\":\"%s\",\"pre\":", v->model == VOCAB_BPE ? "bpe" : "spm");
    cli_json_string(out, v->pre, strlen(v->pre));
    buf_printf(out, ",\"tokens\":%" PRIu32 ",\"merges\":%" PRIu32, v->n_tokens, v->n_merges);
    put_id_json(out, "bos", v->bos);
    put_id_json(out, "eos", v->eos);
    put_id_json(out, "eot", v->eot);
    put_id_json(out, "unk", v->unk);
    put_id_json(out, "pad", v->pad);
    buf_printf(out, ",\"add_bos\":%s,\"add_eos\":%s,\"add_space_prefix\":%s,\"chat_template\":",
               v->add_bos ? "true" : "false", v->add_eos ? "true" : "false",
               v->add_space_prefix ? "true" : "false");
    if (v->chat_template)
        cli_json_string(out, v->chat_template, strlen(v->chat_template));
    else
        buf_append_str(out, "null");
    buf_printf(out, family ? ",\"template_family\":\"%s\"}" : ",\"template_family\":null}", family);
}

static int put_metadata_json(struct buf *out, const struct gguf_file *gguf, struct error *err)
{
    buf_append_str(out, "{");
    for (size_t i = 0; gguf && i < gguf_n_kv(gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(gguf, i);
        if (i)
            buf_append_str(out, ",");
        cli_json_string(out, kv->key.data, kv->key.len);
        buf_append_str(out, ":");
        int rc = put_value(out, kv, SIZE_MAX, err);
        if (rc)
            return rc;
    }
    buf_append_str(out, "}");
    return 0;
}

static void put_shape(struct buf *out, const struct tensor *t, const char *separator)
{
    for (uint32_t d = 0; d < t->n_dims; d++)
        buf_printf(out, "%s%" PRIu64, d ? separator : "", t->dims[d]);
}

static void put_tensors_json(struct buf *out, const struct subject *s)
{
    buf_append_str(out, "[");
    for (size_t i = 0; i < n_tensors(s); i++) {
        const struct tensor *t = tensor_at(s, i);
        buf_append_str(out, i ? ",{\"name\":" : "{\"name\":");
        cli_json_string(out, t->name, strlen(t->name));
        buf_printf(out, ",\"type\":\"%s\",\"shape\":[", tensor_type_name(t->type));
        put_shape(out, t, ",");
        buf_printf(out, "],\"bytes\":%zu}", t->bytes);
    }
    buf_append_str(out, "]");
}

static int put_json(struct buf *out, const struct subject *s, struct error *err)
{
    buf_append_str(out, "{\"file\":");
    cli_json_string(out, s->path, strlen(s->path));
    if (s->gguf)
        buf_printf(out, ",\"format\":\"gguf\",\"version\":%" PRIu32 ",\"alignment\":%" PRIu32,
                   gguf_version(s->gguf), gguf_alignment(s->gguf));
    else
        buf_append_str(out, ",\"format\":\"safetensors\"");
    buf_printf(out, ",\"bytes\":%zu,\"problem\":",
               s->model ? model_file_bytes(s->model) : gguf_bytes(s->gguf));
    if (s->model)
        buf_append_str(out, "null");
    else
        cli_json_string(out, s->problem.message, strlen(s->problem.message));
    buf_append_str(out, ",\"model\":");
    if (s->model)
        put_model_json(out, model_file_params(s->model), s->n_params);
    else
        buf_append_str(out, "null");
    buf_append_str(out, ",\"tokenizer\":");
    if (s->vocab)
        put_tokenizer_json(out, s->vocab);
    else
        buf_append_str(out, "null");
    buf_append_str(out, ",\"metadata\":");
    int rc = put_metadata_json(out, s->gguf, err);
    buf_append_str(out, ",\"tensors\":");
    put_tensors_json(out, s);
    buf_append_str(out, "}\n");
    return rc;
}

static void put_model_text(struct buf *out, const struct model_params *p, uint64_t n_params)
{
    buf_append_str(out, "\nmodel ");
    cli_json_string(out, p->name, strlen(p->name));
    buf_printf(out,
               "\n  architecture %s, %.1f M parameters, %u layers, context %u\n"
               "  hidden %u%s, MLP %u, %u heads, %u KV heads, head dimension %u\n"
               "  RoPE over %u, base %g; RMSNorm epsilon %g; vocabulary %u, head %s%s%s\n",
               model_arch_name(p->arch), (double)n_params / 1e6, p->n_layers, p->context_train,
               p->hidden, p->norm_width != p->hidden ? " (padded)" : "", p->mlp, p->n_heads,
               p->n_kv_heads, p->head_dim, p->rope_dim, (double)p->rope_theta, (double)p->rms_eps,
               p->vocab_size, p->tied ? "tied" : "of its own", p->has_qkv_bias ? ", QKV bias" : "",
               p->has_qk_norm ? ", QK norm" : "");
    if (p->norm_width != p->hidden)
        buf_printf(out, "  true width %u\n", p->norm_width);
}

static void put_tokenizer_text(struct buf *out, const struct vocab *v)
{
    const char *family = template_family(v);

    buf_printf(out, "\ntokenizer\n  %s, pre-tokeniser ",
               v->model == VOCAB_BPE ? "byte-level BPE" : "SentencePiece");
    cli_json_string(out, v->pre, strlen(v->pre));
    buf_printf(out,
               ", %" PRIu32 " tokens, %" PRIu32 " merges\n  bos %" PRId32 "%s, eos %" PRId32
               ", eot %" PRId32 ", unk %" PRId32 ", pad %" PRId32
               " (-1: none)\n  chat template: %s\n",
               v->n_tokens, v->n_merges, v->bos, v->add_bos ? " (added to prompts)" : "", v->eos,
               v->eot, v->unk, v->pad,
               !v->chat_template ? "none"
               : family          ? family
                                 : "of a family that is not recognised");
}

static int put_text(struct buf *out, const struct subject *s, struct error *err)
{
    cli_json_string(out, s->path, strlen(s->path));
    if (s->gguf)
        buf_printf(out, ": GGUF version %" PRIu32 ", %zu bytes\n", gguf_version(s->gguf),
                   gguf_bytes(s->gguf));
    else
        buf_printf(out, ": safetensors, %zu bytes\n", model_file_bytes(s->model));
    if (s->model) {
        put_model_text(out, model_file_params(s->model), s->n_params);
    } else {
        buf_append_str(out, "\ncannot be served: ");
        cli_json_string(out, s->problem.message, strlen(s->problem.message));
        buf_append_str(out, "\n");
    }
    if (s->vocab)
        put_tokenizer_text(out, s->vocab);
    if (s->gguf)
        buf_printf(out, "\nmetadata (%zu)\n", gguf_n_kv(s->gguf));
    for (size_t i = 0; s->gguf && i < gguf_n_kv(s->gguf); i++) {
        const struct gguf_kv *kv = gguf_kv_at(s->gguf, i);
        buf_append_str(out, "  ");
        cli_json_string(out, kv->key.data, kv->key.len);
        buf_append_str(out, " = ");
        int rc = put_value(out, kv, MAX_TEXT_BYTES, err);
        if (rc)
            return rc;
        buf_append_str(out, "\n");
    }
    buf_printf(out, "\ntensors (%zu)\n", n_tensors(s));
    for (size_t i = 0; i < n_tensors(s); i++) {
        const struct tensor *t = tensor_at(s, i);
        _cleanup_buf_ struct buf shape = {0};
        put_shape(&shape, t, " x ");
        buf_append_str(out, "  ");
        cli_json_string(out, t->name, strlen(t->name));
        buf_printf(out, "  %s  %s  %zu bytes\n", tensor_type_name(t->type),
                   shape.data ? shape.data : "", t->bytes);
    }
    return 0;
}

int cli_inspect(int argc, char **argv)
{
    struct subject s = {0};
    bool json = false;
    const struct cli_option options[] = {
        {"json", CLI_SWITCH, &json, NULL, "one JSON object on stdout"},
    };
    const struct cli_command command = {
        .name = "inspect",
        .synopsis = "overfill inspect FILE.gguf [--json]",
        .summary =
            "Shows a model file's (or Hugging Face folder's) parameters, tokenizer, metadata "
            "and tensors.",
        .options = options,
        .n_options = 1,
        .positional = "FILE",
        .ret_positional = &s.path,
    };
    _cleanup_buf_ struct buf out = {0};
    struct error err = {0};

    int status = cli_parse(&command, argc, argv);
    if (status != CLI_DONE)
        return status == CLI_HELP_SHOWN ? CLI_DONE : status;
    if (!s.path)
        return cli_fail("inspect", CLI_WRONG_CALL, "FILE: missing; `overfill inspect --help`");

    int rc = subject_open(&s, &err);
    if (rc == 0) {
        s.n_params = s.model ? model_file_n_params(s.model) : 0;
        rc = json ? put_json(&out, &s, &err) : put_text(&out, &s, &err);
    }
    subject_close(&s);
    if (rc == 0)
        rc = cli_print(&out, &err);
    return rc ? cli_fail_with("inspect", &err) : CLI_DONE;
}
