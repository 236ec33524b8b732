/* Which of the tokenizers that we know is this tokenizer.json? Its normalizer and pre_tokenizer are
 * small programs; we do not run them but compare them with those of the families. See hf.h. */
#include "engine/base/buf.h"
#include "engine/model/hf.h"

#include <stdio.h>
#include <string.h>

#define SPACE_PIECE "\xe2\x96\x81" /* U+2581, SentencePiece's space */

/* One line for a pre_tokenizer: its steps, joined by " | ". */
static void describe_step(const cJSON *step, struct buf *out)
{
    const char *type = json_text(step, "type");
    const cJSON *steps = json_array(step, "pretokenizers");

    if (strcmp(type, "Sequence") == 0 && steps) {
        for (const cJSON *s = steps->child; s; s = s->next) {
            /* a sequence in a sequence is no tokenizer that we know: its steps stay out */
            if (strcmp(json_text(s, "type"), "Sequence") == 0)
                buf_append_str(out, "Sequence");
            else
                describe_step(s, out);
            if (s->next)
                buf_append_str(out, " | ");
        }
        return;
    }
    buf_append_str(out, *type ? type : "none");
    if (strcmp(type, "ByteLevel") == 0) {
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(step, "add_prefix_space")))
            buf_append_str(out, " prefix");
        if (!cJSON_IsFalse(cJSON_GetObjectItemCaseSensitive(step, "use_regex")))
            buf_append_str(out, " regex");
    } else if (strcmp(type, "Digits") == 0) {
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(step, "individual_digits")))
            buf_append_str(out, " individual");
    } else if (strcmp(type, "Punctuation") == 0 || strcmp(type, "Split") == 0) {
        const cJSON *pattern = json_object(step, "pattern");
        const char *regex = json_text(pattern, "Regex");
        buf_printf(out, " %s%s%s", json_text(step, "behavior"), *regex ? " " : "", regex);
        if (cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(step, "invert")))
            buf_append_str(out, " inverted");
    }
}

static const struct {
    const char *steps;
    const char *pre; /* as GGUF's tokenizer.ggml.pre */
} byte_level[] = {
    {"ByteLevel regex", "gpt-2"},
    {"Digits individual | ByteLevel regex", "smollm"},
    {"Punctuation Contiguous | ByteLevel regex | Digits | Split Isolated [0-9][0-9][0-9]",
     "falcon"},
    {"Split Isolated (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+ | ByteLevel",
     "llama-bpe"},
    {"Split Isolated (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}|"
     " ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+ | ByteLevel",
     "qwen2"},
};

static int recognise_byte_level(const cJSON *tokenizer, struct vocab *vocab, struct error *err)
{
    _cleanup_buf_ struct buf steps = {0};

    describe_step(json_object(tokenizer, "pre_tokenizer"), &steps);
    if (steps.failed || !steps.data)
        return error_memory(err, "pre_tokenizer", steps.len);
    for (size_t i = 0; i < sizeof(byte_level) / sizeof(byte_level[0]); i++) {
        if (strcmp(steps.data, byte_level[i].steps) == 0) {
            vocab->model = VOCAB_BPE;
            snprintf(vocab->pre, sizeof(vocab->pre), "%s", byte_level[i].pre);
            return 0;
        }
    }
    return error_set(
        err, ERROR_UNSUPPORTED,
        "key pre_tokenizer: that of gpt-2, smollm, falcon, llama-bpe or qwen2 expected, "
        "found %.200s",
        steps.data);
}

/* Does the step turn spaces into U+2581, or put one in front? */
static void read_space_step(const cJSON *step, bool *replaces, bool *prepends)
{
    const char *type = json_text(step, "type");

    if (strcmp(type, "Replace") == 0 &&
        strcmp(json_text(json_object(step, "pattern"), "String"), " ") == 0 &&
        strcmp(json_text(step, "content"), SPACE_PIECE) == 0)
        *replaces = true;
    if (strcmp(type, "Prepend") == 0 && strcmp(json_text(step, "prepend"), SPACE_PIECE) == 0)
        *prepends = true;
    if (strcmp(type, "Metaspace") == 0) {
        const char *scheme = json_text(step, "prepend_scheme");
        *replaces = true;
        if (*scheme ? strcmp(scheme, "never") != 0
                    : cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(step, "add_prefix_space")))
            *prepends = true;
    }
}

static void read_space_steps(const cJSON *step, const char *list, bool *replaces, bool *prepends)
{
    const cJSON *steps = json_array(step, list);

    read_space_step(step, replaces, prepends);
    for (const cJSON *s = steps ? steps->child : NULL; s; s = s->next)
        read_space_step(s, replaces, prepends);
}

int hf_recognise_tokenizer(const cJSON *tokenizer, struct vocab *vocab, struct error *err)
{
    const cJSON *model = json_object(tokenizer, "model");
    bool replaces = false, prepends = false;

    read_space_steps(json_object(tokenizer, "normalizer"), "normalizers", &replaces, &prepends);
    read_space_steps(json_object(tokenizer, "pre_tokenizer"), "pretokenizers", &replaces,
                     &prepends);
    if (!replaces)
        return recognise_byte_level(tokenizer, vocab, err);
    if (!cJSON_IsTrue(cJSON_GetObjectItemCaseSensitive(model, "byte_fallback")))
        return error_set(err, ERROR_UNSUPPORTED,
                         "key model.byte_fallback: true expected of a tokenizer with U+2581 for "
                         "spaces");
    vocab->model = VOCAB_SPM;
    snprintf(vocab->pre, sizeof(vocab->pre), "default");
    vocab->add_space_prefix = prepends;
    return 0;
}
