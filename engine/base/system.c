/* CPUs, memory, disk and clock of this process. See system.h. cgroup v2 files, then v1. */
#include "engine/base/system.h"

#include <sched.h>
#include <stdio.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/statvfs.h>
#include <sys/sysinfo.h>
#include <time.h>
#include <unistd.h>
#if defined(__x86_64__)
#include <cpuid.h>
#include <sys/syscall.h>
#endif

/* Reads up to two numbers ("max" is none). Returns how many were read, 0 when the file is absent.
 */
static int read_numbers(const char *path, long long *a, long long *b)
{
    char text[128];
    FILE *f = fopen(path, "re");
    if (!f)
        return 0;
    char *ok = fgets(text, sizeof(text), f);
    fclose(f);
    if (!ok)
        return 0;
    return sscanf(text, b ? "%lld %lld" : "%lld", a, b);
}

/* Returns the quota in CPUs, or 0 when there is none. */
static double cpu_quota(void)
{
    long long quota;
    long long period;

    if (read_numbers("/sys/fs/cgroup/cpu.max", &quota, &period) == 2 && period > 0)
        return (double)quota / (double)period;
    if (read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_quota_us", &quota, NULL) == 1 && quota > 0 &&
        read_numbers("/sys/fs/cgroup/cpu/cpu.cfs_period_us", &period, NULL) == 1 && period > 0)
        return (double)quota / (double)period;
    return 0;
}

unsigned system_cpu_count(void)
{
    cpu_set_t set;
    int n = sched_getaffinity(0, sizeof(set), &set) == 0 ? CPU_COUNT(&set) : 1;
    double quota = cpu_quota();
    if (quota >= 1 && quota < n)
        n = (int)quota;
    else if (quota > 0 && quota < 1)
        n = 1;
    return n > 0 ? (unsigned)n : 1;
}

bool system_has_cpu_quota(void)
{
    return cpu_quota() > 0;
}

size_t system_memory_bytes(void)
{
    struct sysinfo info;
    size_t bytes = sysinfo(&info) == 0 ? (size_t)info.totalram * info.mem_unit : (size_t)1 << 30;
    long long limit;

    if (read_numbers("/sys/fs/cgroup/memory.max", &limit, NULL) == 1 ||
        read_numbers("/sys/fs/cgroup/memory/memory.limit_in_bytes", &limit, NULL) == 1)
        if (limit > 0 && (size_t)limit < bytes)
            bytes = (size_t)limit;
    return bytes;
}

bool system_disk_free(const char *path, size_t *ret_bytes)
{
    struct statvfs fs;
    const char *slash = strrchr(path, '/');
    char folder[4096] = ".";
    if (slash && (size_t)(slash - path) + 2 > sizeof(folder))
        return false;
    if (slash) { /* with the slash, so that the root stays one */
        memcpy(folder, path, (size_t)(slash - path) + 1);
        folder[slash - path + 1] = '\0';
    }
    if (statvfs(folder, &fs))
        return false;
    *ret_bytes = (size_t)fs.f_bavail * fs.f_frsize;
    return true;
}

uint64_t system_now_ns(void)
{
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (uint64_t)now.tv_sec * 1000000000u + (uint64_t)now.tv_nsec;
}

size_t system_peak_rss_bytes(void)
{
    struct rusage usage;
    return getrusage(RUSAGE_SELF, &usage) == 0 ? (size_t)usage.ru_maxrss * 1024 : 0;
}

bool system_allows_amx(void)
{
#if defined(__x86_64__)
    enum { ARCH_REQ_XCOMP_PERM = 0x1023, XFEATURE_XTILEDATA = 18 };
    const unsigned tile_and_int8 = 1u << 24 | 1u << 25;
    unsigned a;
    unsigned b;
    unsigned c;
    unsigned d;
    return __get_cpuid_count(7, 0, &a, &b, &c, &d) && (d & tile_and_int8) == tile_and_int8 &&
           syscall(SYS_arch_prctl, ARCH_REQ_XCOMP_PERM, XFEATURE_XTILEDATA) == 0;
#else
    return false;
#endif
}
