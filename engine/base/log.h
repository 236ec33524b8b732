/* Log lines on stderr: "2026-01-31T12:00:00.000Z LEVEL message". One write(2) a line, so lines of
 * several threads do not mix. The level is process-wide (with CPU detection the only global). */
#ifndef OVERFILL_ENGINE_BASE_LOG_H
#define OVERFILL_ENGINE_BASE_LOG_H

enum log_level { LOG_LEVEL_ERROR, LOG_LEVEL_WARN, LOG_LEVEL_INFO, LOG_LEVEL_DEBUG };

void log_set_level(enum log_level level);
int log_level_from_name(const char *name); /* "error|warn|info|debug"; -1 if none of them */
__attribute__((format(printf, 2, 3))) void log_write(enum log_level level, const char *fmt, ...);

#define log_error(...) log_write(LOG_LEVEL_ERROR, __VA_ARGS__)
#define log_warn(...) log_write(LOG_LEVEL_WARN, __VA_ARGS__)
#define log_info(...) log_write(LOG_LEVEL_INFO, __VA_ARGS__)
#define log_debug(...) log_write(LOG_LEVEL_DEBUG, __VA_ARGS__)

#endif
