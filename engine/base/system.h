/* What this process may use of the machine: CPUs, memory, disk, clock. Thread-safe. */
#ifndef OVERFILL_ENGINE_BASE_SYSTEM_H
#define OVERFILL_ENGINE_BASE_SYSTEM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

/* min(CPU affinity, floor(cgroup cpu.max)), at least 1. */
unsigned system_cpu_count(void);
/* true when a cgroup limits CPU time: spinning then burns the quota of the working threads. */
bool system_has_cpu_quota(void);
/* min(physical memory, cgroup memory.max) in bytes. */
size_t system_memory_bytes(void);
/* What may still be written in the folder of that file. */
bool system_disk_free(const char *path, size_t *ret_bytes);
/* Monotonic clock. */
uint64_t system_now_ns(void);
/* The CPU has AMX tiles of int8, and the kernel lets this process use them: without its leave the
 * first instruction on a tile ends the process. The leave is asked for here, for all threads; it is
 * refused where a signal stack is too small to save the tiles. */
bool system_allows_amx(void);
/* Peak resident memory of this process so far in bytes. */
size_t system_peak_rss_bytes(void);

#endif
