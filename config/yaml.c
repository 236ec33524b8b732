/* The settings file. libcyaml checks its shape against a schema made from the key table: which
 * mappings, which keys, no key twice, scalars only. What it cannot tell, the line of every key,
 * comes from a second look through libyaml's events. Values are text to both: settings_set checks
 * them, so that file, environment and flags obey one parser. */
#include "config/settings.h"
#include "engine/base/mem.h"

#include <cyaml/cyaml.h>
#include <errno.h>
#include <stdio.h>
#include <string.h>
#include <yaml.h>

#define MAX_FILE_BYTES ((size_t)1 << 20)
#define MAX_GROUPS 4
#define MAX_POSITIONS 128

/* Where a key stands. depth 1: a group, 2: a key of the group before it. */
struct position {
    char name[48];
    char group[48];
    unsigned depth;
    unsigned line;
};

struct positions {
    struct position items[MAX_POSITIONS];
    size_t n;
};

/* What libcyaml said first, and the innermost line that it named. */
struct complaint {
    char text[200];
    unsigned line;
};

/* The loaded file: a pointer for every key, NULL when it is absent. */
struct file_group {
    char *values[SETTINGS_MAX_KEYS];
};
struct file_values {
    struct file_group *groups[MAX_GROUPS];
};

struct schema {
    cyaml_schema_field_t keys[MAX_GROUPS][SETTINGS_MAX_KEYS + 1];
    cyaml_schema_field_t groups[MAX_GROUPS + 1];
    const char *group_names[MAX_GROUPS];
    size_t n_groups;
    cyaml_schema_value_t top;
};

static int read_file(const char *path, struct buf *out, struct error *err)
{
    FILE *file = fopen(path, "re");
    size_t n = 0;

    if (!file)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    if (buf_reserve(out, MAX_FILE_BYTES + 1))
        n = fread(out->data, 1, MAX_FILE_BYTES + 1, file);
    int failed = ferror(file);
    int reason = errno;
    fclose(file);
    if (out->failed)
        return error_memory(err, "settings file", MAX_FILE_BYTES);
    if (failed)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(reason));
    if (n > MAX_FILE_BYTES)
        return error_set(err, ERROR_FORMAT, "%s: at most %zu bytes expected", path, MAX_FILE_BYTES);
    out->len = n;
    return 0;
}

static void schema_make(struct schema *schema)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    size_t n_in_group[MAX_GROUPS] = {0};

    *schema = (struct schema){0};
    for (size_t i = 0; i < n_keys; i++) {
        size_t g = 0;
        while (g < schema->n_groups && strcmp(schema->group_names[g], keys[i].group) != 0)
            g++;
        if (g == schema->n_groups)
            schema->group_names[schema->n_groups++] = keys[i].group;
        schema->keys[g][n_in_group[g]++] = (cyaml_schema_field_t){
            .key = keys[i].name,
            .data_offset = (uint32_t)(i * sizeof(char *)),
            .value = {CYAML_VALUE_STRING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL, char, 0,
                                         CYAML_UNLIMITED)},
        };
    }
    for (size_t g = 0; g < schema->n_groups; g++)
        schema->groups[g] = (cyaml_schema_field_t){
            .key = schema->group_names[g],
            .data_offset = (uint32_t)(g * sizeof(struct file_group *)),
            .value = {CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER | CYAML_FLAG_OPTIONAL,
                                          struct file_group, schema->keys[g])},
        };
    schema->top = (cyaml_schema_value_t){
        CYAML_VALUE_MAPPING(CYAML_FLAG_POINTER, struct file_values, schema->groups)};
}

/* cyaml_log_fn_t: nothing is printed; the first message and the first line number stay. */
__attribute__((format(printf, 3, 0))) static void take_complaint(cyaml_log_t level, void *context,
                                                                 const char *fmt, va_list args)
{
    struct complaint *complaint = context;
    char text[sizeof(complaint->text)];

    if (level < CYAML_LOG_ERROR)
        return;
    vsnprintf(text, sizeof(text), fmt, args);
    text[strcspn(text, "\n")] = '\0';
    const char *line = strstr(text, "(line: ");
    if (line && !complaint->line)
        sscanf(line, "(line: %u", &complaint->line);
    const char *message = strncmp(text, "Load: ", 6) == 0 ? text + 6 : text;
    if (!complaint->text[0])
        snprintf(complaint->text, sizeof(complaint->text), "%s", message);
}

/* cyaml_mem_fn_t */
static void *cyaml_memory(void *context, void *p, size_t bytes)
{
    if (bytes == 0) {
        mem_free(p);
        return NULL;
    }
    return mem_realloc(p, bytes, 1);
}

static void positions_add(struct positions *positions, unsigned depth, const char *name,
                          unsigned line)
{
    if (positions->n == MAX_POSITIONS)
        return;
    struct position *item = &positions->items[positions->n];
    *item = (struct position){.depth = depth, .line = line};
    snprintf(item->name, sizeof(item->name), "%s", name);
    for (size_t i = positions->n; depth == 2 && i-- > 0;)
        if (positions->items[i].depth == 1) {
            memcpy(item->group, positions->items[i].name, sizeof(item->group));
            break;
        }
    positions->n++;
}

/* Collects the keys of the two outer mappings. On a syntax error what was read so far is kept and
 * the error says where. */
static int positions_find(const struct buf *text, const char *path, struct positions *positions,
                          struct error *err)
{
    yaml_parser_t parser;
    yaml_event_t event;
    bool is_key[3] = {false};
    unsigned depth = 0;
    int status = 0;

    if (!yaml_parser_initialize(&parser))
        return error_memory(err, "YAML parser", sizeof(parser));
    yaml_parser_set_input_string(&parser, (const unsigned char *)text->data, text->len);
    for (bool is_done = false; !is_done;) {
        if (!yaml_parser_parse(&parser, &event)) {
            status = error_set(err, ERROR_FORMAT, "%s:%zu: %s", path, parser.problem_mark.line + 1,
                               parser.problem ? parser.problem : "this is not YAML");
            break;
        }
        bool is_start =
            event.type == YAML_MAPPING_START_EVENT || event.type == YAML_SEQUENCE_START_EVENT;
        bool is_scalar = event.type == YAML_SCALAR_EVENT;
        if (is_scalar && depth >= 1 && depth <= 2 && is_key[depth])
            positions_add(positions, depth, (const char *)event.data.scalar.value,
                          (unsigned)event.start_mark.line + 1);
        if ((is_start || is_scalar || event.type == YAML_ALIAS_EVENT) && depth >= 1 && depth <= 2)
            is_key[depth] = !is_key[depth];
        if (is_start && ++depth <= 2)
            is_key[depth] = event.type == YAML_MAPPING_START_EVENT;
        if (event.type == YAML_MAPPING_END_EVENT || event.type == YAML_SEQUENCE_END_EVENT)
            depth--;
        is_done = event.type == YAML_DOCUMENT_END_EVENT || event.type == YAML_STREAM_END_EVENT;
        yaml_event_delete(&event);
    }
    yaml_parser_delete(&parser);
    return status;
}

static bool is_known(const struct position *item)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);

    for (size_t i = 0; i < n_keys; i++)
        if (item->depth == 1
                ? strcmp(keys[i].group, item->name) == 0
                : strcmp(keys[i].name, item->name) == 0 && strcmp(keys[i].group, item->group) == 0)
            return true;
    return false;
}

static unsigned positions_line(const struct positions *positions, const struct setting_key *key)
{
    for (size_t i = 0; i < positions->n; i++)
        if (positions->items[i].depth == 2 && strcmp(positions->items[i].name, key->name) == 0 &&
            strcmp(positions->items[i].group, key->group) == 0)
            return positions->items[i].line;
    return 0;
}

static const struct position *find_repeated(const struct positions *positions)
{
    for (size_t i = 1; i < positions->n; i++)
        for (size_t j = 0; j < i; j++)
            if (positions->items[i].depth == positions->items[j].depth &&
                strcmp(positions->items[i].name, positions->items[j].name) == 0 &&
                strcmp(positions->items[i].group, positions->items[j].group) == 0)
                return &positions->items[i];
    return NULL;
}

/* libcyaml refused the file. For a key that it does not know or has seen before it names the line
 * of the key before, so these lines come from the positions. */
static int explain(const char *path, const struct complaint *complaint,
                   const struct positions *positions, cyaml_err_t status, struct error *err)
{
    for (size_t i = 0; i < positions->n && status == CYAML_ERR_INVALID_KEY; i++) {
        const struct position *item = &positions->items[i];
        if (is_known(item))
            continue;
        const struct setting_key *key = settings_find(item->name);
        if (key)
            return error_set(err, ERROR_FORMAT, "%s:%u: the key \"%s\" belongs under \"%s:\"", path,
                             item->line, item->name, key->group);
        return error_set(err, ERROR_FORMAT, "%s:%u: unknown key \"%s%s%s\"", path, item->line,
                         item->group, item->depth == 2 ? ": " : "", item->name);
    }
    const struct position *repeated =
        status == CYAML_ERR_UNEXPECTED_EVENT ? find_repeated(positions) : NULL;
    if (repeated)
        return error_set(err, ERROR_FORMAT, "%s:%u: the key \"%s\" stands here for the second time",
                         path, repeated->line, repeated->name);
    if (status == CYAML_ERR_OOM)
        return error_memory(err, path, 0);
    return error_set(err, ERROR_FORMAT, "%s:%u: %s", path, complaint->line ? complaint->line : 1,
                     complaint->text[0] ? complaint->text : cyaml_strerror(status));
}

static int apply(struct settings *settings, const char *path, const struct schema *schema,
                 const struct file_values *values, const struct positions *positions,
                 struct error *err)
{
    size_t n_keys;
    const struct setting_key *keys = settings_keys(&n_keys);
    char where[300];

    for (size_t g = 0; g < schema->n_groups; g++) {
        for (size_t i = 0; i < n_keys && values->groups[g]; i++) {
            const char *text = values->groups[g]->values[i];
            if (!text)
                continue;
            unsigned line = positions_line(positions, &keys[i]);
            snprintf(where, sizeof(where), "%s:%u: %s", path, line, keys[i].name);
            int status = settings_set(settings, &keys[i], text, SOURCE_FILE, line, where, err);
            if (status < 0)
                return status;
        }
    }
    return 0;
}

int settings_load_file(struct settings *settings, const char *path, struct error *err)
{
    _cleanup_buf_ struct buf text = {0};
    _cleanup_mem_ struct schema *schema = mem_calloc(1, sizeof(*schema));
    _cleanup_mem_ struct positions *positions = mem_calloc(1, sizeof(*positions));
    struct complaint complaint = {0};
    struct file_values *values = NULL;
    const cyaml_config_t config = {
        .log_fn = take_complaint,
        .log_ctx = &complaint,
        .mem_fn = cyaml_memory,
        .log_level = CYAML_LOG_ERROR,
    };
    int status;

    if (!schema || !positions)
        return error_memory(err, "schema of the settings file", sizeof(*schema));
    if ((status = read_file(path, &text, err)) < 0 ||
        (status = positions_find(&text, path, positions, err)) < 0)
        return status;
    schema_make(schema);
    cyaml_err_t refused = cyaml_load_data((const uint8_t *)text.data, text.len, &config,
                                          &schema->top, (cyaml_data_t **)&values, NULL);
    if (refused != CYAML_OK)
        return explain(path, &complaint, positions, refused, err);
    status = values ? apply(settings, path, schema, values, positions, err) : 0;
    cyaml_free(&config, &schema->top, values, 0);
    return status;
}
