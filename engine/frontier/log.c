/* The file of measures: read when it is opened, then one line for each thing that is put. See
 * frontier.h. */
#include "engine/base/mem.h"
#include "engine/frontier/frontier.h"

#include <cjson/cJSON.h>
#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <math.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

#define FULL_NAME "full"
#define MOST_BYTES ((off_t)64 << 20)

struct frontier_log {
    char *path;
    int fd;
    struct frontier_key key;
    struct frontier_row *rows; /* [n], room for cap */
    size_t n, cap;
    struct frontier_speed full;
    bool has_full;
};

static int io_error(const struct frontier_log *log, struct error *err)
{
    return error_set(err, ERROR_IO, "%s: %s", log->path, strerror(errno));
}

static struct frontier_row *find(const struct frontier_log *log, const struct frontier_point *point)
{
    for (size_t i = 0; i < log->n; i++)
        if (frontier_point_equal(&log->rows[i].point, point))
            return &log->rows[i];
    return NULL;
}

/* The point's row, a new one if there is none yet. */
static struct frontier_row *row_of(struct frontier_log *log, const struct frontier_point *point,
                                   struct error *err)
{
    struct frontier_row *row = find(log, point);
    if (row)
        return row;
    if (!log->rows || log->n == log->cap) {
        size_t cap = log->cap ? 2 * log->cap : 16;
        struct frontier_row *rows = mem_realloc(log->rows, cap, sizeof(*rows));
        if (!rows) {
            error_memory(err, "rows", cap * sizeof(*rows));
            return NULL;
        }
        log->rows = rows;
        log->cap = cap;
    }
    row = &log->rows[log->n++];
    *row = (struct frontier_row){.point = *point};
    return row;
}

static double number_of(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsNumber(item) ? item->valuedouble : NAN;
}

static const char *text_of(const cJSON *object, const char *name)
{
    const cJSON *item = cJSON_GetObjectItemCaseSensitive(object, name);
    return cJSON_IsString(item) ? item->valuestring : "";
}

static bool is_hash(const cJSON *line, const char *name, uint64_t hash)
{
    char text[20];
    snprintf(text, sizeof(text), "%016" PRIx64, hash);
    return strcmp(text_of(line, name), text) == 0;
}

static void read_quality(const cJSON *object, struct frontier_quality *ret_quality)
{
    double n_tokens = number_of(object, "tokens");
    *ret_quality = (struct frontier_quality){
        .kl = number_of(object, "kl"),
        .kl_low = number_of(object, "kl_low"),
        .kl_high = number_of(object, "kl_high"),
        .agree = number_of(object, "agree"),
        .nll = number_of(object, "nll"),
        .full_nll = number_of(object, "full_nll"),
        .n_tokens = n_tokens > 0 && n_tokens < 1e15 ? (size_t)n_tokens : 0,
    };
}

static void read_speed(const cJSON *object, struct frontier_speed *ret_speed)
{
    double n_threads = number_of(object, "threads");
    double step_bytes = number_of(object, "step_bytes");
    *ret_speed = (struct frontier_speed){
        .step_bytes = step_bytes > 0 && step_bytes < 1e15 ? (size_t)step_bytes : 0,
        .tok_s_1 = number_of(object, "tok_s_1"),
        .tok_s_16 = number_of(object, "tok_s_16"),
        .n_threads = n_threads > 0 && n_threads < 1e6 ? (uint32_t)n_threads : 0,
    };
    snprintf(ret_speed->kernels, sizeof(ret_speed->kernels), "%s", text_of(object, "kernels"));
}

static bool is_of_key(const struct frontier_log *log, const cJSON *line)
{
    return number_of(line, "pruner") == (double)log->key.pruner &&
           is_hash(line, "source", log->key.source) &&
           is_hash(line, "calibration", log->key.calibration) &&
           number_of(line, "calibration_tokens") == (double)log->key.n_tokens;
}

/* A whole line of this key to its row. */
static int take(struct frontier_log *log, const cJSON *line, struct error *err)
{
    const cJSON *held = cJSON_GetObjectItemCaseSensitive(line, "held");
    const cJSON *eval = cJSON_GetObjectItemCaseSensitive(line, "eval");
    const cJSON *speed = cJSON_GetObjectItemCaseSensitive(line, "speed");
    struct frontier_point point;
    if (cJSON_IsObject(speed) && strcmp(text_of(line, "point"), FULL_NAME) == 0) {
        read_speed(speed, &log->full);
        log->has_full = true;
        return 0;
    }
    if (!frontier_point_parse(text_of(line, "point"), &point))
        return error_set(err, ERROR_FORMAT, "point \"%s\": expected HIDDENxMLP:TYPE",
                         text_of(line, "point"));
    struct frontier_row *row = row_of(log, &point, err);
    if (!row)
        return -ERROR_MEMORY;
    if (cJSON_IsObject(held)) {
        read_quality(held, &row->held);
        row->has_held = true;
    }
    if (cJSON_IsObject(eval) && is_hash(line, "evaluation", log->key.evaluation)) {
        read_quality(eval, &row->eval);
        row->has_eval = true;
    }
    if (cJSON_IsObject(speed)) {
        read_speed(speed, &row->speed);
        row->has_speed = true;
    }
    return 0;
}

static int read_line(struct frontier_log *log, const char *text, size_t len, size_t number,
                     struct error *err)
{
    cJSON *line = cJSON_ParseWithLength(text, len);
    int rc = 0;
    if (!cJSON_IsObject(line) || !*text_of(line, "source"))
        rc = error_set(err, ERROR_FORMAT, "expected a line of measures");
    else if (is_of_key(log, line))
        rc = take(log, line, err);
    cJSON_Delete(line);
    return rc ? error_prefix(err, "%s: line %zu", log->path, number) : 0;
}

/* Every line; what is behind the last line's end was cut off and goes. */
static int read_lines(struct frontier_log *log, const char *text, size_t len, struct error *err)
{
    const char *at = text;
    size_t number = 1;
    for (const char *end; (end = memchr(at, '\n', len - (size_t)(at - text))); at = end + 1) {
        int rc = read_line(log, at, (size_t)(end - at), number++, err);
        if (rc)
            return rc;
    }
    return ftruncate(log->fd, at - text) ? io_error(log, err) : 0;
}

static int load(struct frontier_log *log, struct error *err)
{
    struct stat st;
    if (flock(log->fd, LOCK_EX | LOCK_NB))
        return error_set(err, ERROR_BUSY, "%s: another run is at work on it", log->path);
    if (fstat(log->fd, &st))
        return io_error(log, err);
    if (st.st_size > MOST_BYTES)
        return error_set(err, ERROR_FORMAT, "%s: at most %lld bytes expected, %lld found",
                         log->path, (long long)MOST_BYTES, (long long)st.st_size);
    size_t len = (size_t)st.st_size;
    _cleanup_mem_ char *text = mem_alloc(len + 1);
    if (!text)
        return error_memory(err, "measures", len);
    for (size_t done = 0; done < len;) {
        ssize_t n = pread(log->fd, text + done, len - done, (off_t)done);
        if (n <= 0)
            return io_error(log, err);
        done += (size_t)n;
    }
    return read_lines(log, text, len, err);
}

int frontier_log_open(const char *path, const struct frontier_key *key,
                      struct frontier_log **ret_log, struct error *err)
{
    struct frontier_log *log = mem_calloc(1, sizeof(*log));
    if (!log || !(log->path = mem_strdup(path))) {
        mem_free(log);
        return error_memory(err, "measures", sizeof(*log));
    }
    log->key = *key;
    log->fd = open(path, O_RDWR | O_CREAT | O_APPEND | O_CLOEXEC, 0666);
    int rc = log->fd < 0 ? io_error(log, err) : load(log, err);
    if (rc) {
        frontier_log_close(log);
        return rc;
    }
    *ret_log = log;
    return 0;
}

void frontier_log_close(struct frontier_log *log)
{
    if (!log)
        return;
    if (log->fd >= 0)
        close(log->fd);
    mem_free(log->rows);
    mem_free(log->path);
    mem_free(log);
}

const struct frontier_row *frontier_log_rows(const struct frontier_log *log, size_t *ret_n)
{
    *ret_n = log->n;
    return log->rows;
}

const struct frontier_row *frontier_log_find(const struct frontier_log *log,
                                             const struct frontier_point *point)
{
    return find(log, point);
}

const struct frontier_speed *frontier_log_full(const struct frontier_log *log)
{
    return log->has_full ? &log->full : NULL;
}

static void put_number(struct buf *out, const char *name, double value)
{
    if (isfinite(value))
        buf_printf(out, "\"%s\":%.9g,", name, value);
}

static void put_quality(struct buf *out, const char *name, const struct frontier_quality *q)
{
    buf_printf(out, ",\"%s\":{", name);
    put_number(out, "kl", q->kl);
    put_number(out, "kl_low", q->kl_low);
    put_number(out, "kl_high", q->kl_high);
    put_number(out, "agree", q->agree);
    put_number(out, "nll", q->nll);
    put_number(out, "full_nll", q->full_nll);
    buf_printf(out, "\"tokens\":%zu}", q->n_tokens);
}

/* The line's beginning; the caller appends what was measured. */
static void begin_line(const struct frontier_log *log, const struct frontier_point *point,
                       struct buf *out)
{
    char name[FRONTIER_NAME_BYTES] = FULL_NAME;
    if (point)
        frontier_point_name(point, name);
    buf_printf(out,
               "{\"pruner\":%u,\"source\":\"%016" PRIx64 "\",\"calibration\":\"%016" PRIx64
               "\",\"calibration_tokens\":%zu,\"point\":\"%s\"",
               log->key.pruner, log->key.source, log->key.calibration, log->key.n_tokens, name);
}

static int append_line(struct frontier_log *log, struct buf *line, struct error *err)
{
    buf_append_str(line, "}\n");
    if (line->failed)
        return error_memory(err, "line of measures", line->len);
    for (size_t done = 0; done < line->len;) {
        ssize_t n = write(log->fd, line->data + done, line->len - done);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return io_error(log, err);
        done += (size_t)n;
    }
    return fsync(log->fd) && errno != EINVAL ? io_error(log, err) : 0;
}

/* Of the documents, else of the calibration held back. */
static int put_measured(struct frontier_log *log, const struct frontier_point *point, bool is_eval,
                        const struct frontier_quality *quality, struct error *err)
{
    _cleanup_buf_ struct buf line = {0};
    struct frontier_row *row = row_of(log, point, err);
    if (!row)
        return -ERROR_MEMORY;
    begin_line(log, point, &line);
    if (is_eval)
        buf_printf(&line, ",\"evaluation\":\"%016" PRIx64 "\"", log->key.evaluation);
    put_quality(&line, is_eval ? "eval" : "held", quality);
    int rc = append_line(log, &line, err);
    if (rc)
        return rc;
    *(is_eval ? &row->eval : &row->held) = *quality;
    *(is_eval ? &row->has_eval : &row->has_held) = true;
    return 0;
}

int frontier_log_put_held(struct frontier_log *log, const struct frontier_point *point,
                          const struct frontier_quality *quality, struct error *err)
{
    return put_measured(log, point, false, quality, err);
}

int frontier_log_put_eval(struct frontier_log *log, const struct frontier_point *point,
                          const struct frontier_quality *quality, struct error *err)
{
    return put_measured(log, point, true, quality, err);
}

static void put_speed(struct buf *out, const struct frontier_speed *speed)
{
    buf_append_str(out, ",\"speed\":{");
    put_number(out, "tok_s_1", speed->tok_s_1);
    put_number(out, "tok_s_16", speed->tok_s_16);
    buf_printf(out, "\"step_bytes\":%zu,\"kernels\":\"%s\",\"threads\":%u}", speed->step_bytes,
               speed->kernels, speed->n_threads);
}

int frontier_log_put_speed(struct frontier_log *log, const struct frontier_point *point,
                           const struct frontier_speed *speed, struct error *err)
{
    _cleanup_buf_ struct buf line = {0};
    struct frontier_row *row = point ? row_of(log, point, err) : NULL;
    if (point && !row)
        return -ERROR_MEMORY;
    begin_line(log, point, &line);
    put_speed(&line, speed);
    int rc = append_line(log, &line, err);
    if (rc)
        return rc;
    if (row) {
        row->speed = *speed;
        row->has_speed = true;
    } else {
        log->full = *speed;
        log->has_full = true;
    }
    return 0;
}
