/* See sandbox.h. Both interfaces are used without a library: a handful of structs and numbers of
 * the kernel's, see landlock(7) and seccomp(2). */
#include "server/sandbox.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/landlock.h>
#include <linux/seccomp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <unistd.h>

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
#define IS_INSTRUMENTED 1 /* the leak checker traces its own process */
#elif defined(__has_feature)
#if __has_feature(address_sanitizer) || __has_feature(thread_sanitizer)
#define IS_INSTRUMENTED 1
#endif
#endif
#ifndef IS_INSTRUMENTED
#define IS_INSTRUMENTED 0
#endif

/* --- files --------------------------------------------------------------------------------- */

/* The rights that the first version of Landlock knows are bits 0 to 12; later ones added rights,
 * which older headers lack: REFER (version 2), TRUNCATE (3), and TCP (4). */
#define RIGHTS_1 ((UINT64_C(1) << 13) - 1)
#define RIGHT_REFER (UINT64_C(1) << 13)
#define RIGHT_TRUNCATE (UINT64_C(1) << 14)
#define NET_BIND_AND_CONNECT UINT64_C(3)

/* struct landlock_ruleset_attr as of version 4; older kernels get its first member only. */
struct ruleset {
    uint64_t files;
    uint64_t net;
};

static int landlock_version(void)
{
    return (int)syscall(SYS_landlock_create_ruleset, NULL, 0, LANDLOCK_CREATE_RULESET_VERSION);
}

static int open_ruleset(int version)
{
    struct ruleset r = {.files = RIGHTS_1};

    if (version >= 2)
        r.files |= RIGHT_REFER;
    if (version >= 3)
        r.files |= RIGHT_TRUNCATE;
    if (version >= 4)
        r.net = NET_BIND_AND_CONNECT;
    return (int)syscall(SYS_landlock_create_ruleset, &r, version >= 4 ? sizeof(r) : sizeof(r.files),
                        0);
}

/* Reading, and what is named in more_rights. */
static int allow(int ruleset, const char *path, uint64_t more_rights, bool *ret_is_folder)
{
    struct landlock_path_beneath_attr rule = {.allowed_access = LANDLOCK_ACCESS_FS_READ_FILE};
    struct stat st;
    int fd = open(path, O_PATH | O_CLOEXEC), result = 0;

    *ret_is_folder = false;
    if (fd < 0)
        return 0;
    if (fstat(fd, &st) == 0 && S_ISDIR(st.st_mode)) {
        *ret_is_folder = true;
        rule.allowed_access |= LANDLOCK_ACCESS_FS_READ_DIR | more_rights;
    }
    rule.parent_fd = fd;
    if (syscall(SYS_landlock_add_rule, ruleset, LANDLOCK_RULE_PATH_BENEATH, &rule, 0) < 0)
        result = -1;
    close(fd);
    return result;
}

/* A folder's entries may be links to elsewhere, as in a hub's cache: each is named by itself. */
static int allow_entries(int ruleset, const char *folder)
{
    DIR *dir = opendir(folder);
    char path[4096];
    bool is_folder;
    int result = 0;

    if (!dir)
        return 0;
    for (const struct dirent *e; result == 0 && (e = readdir(dir));) {
        if (e->d_type != DT_LNK)
            continue;
        int n = snprintf(path, sizeof(path), "%s/%s", folder, e->d_name);
        if (n > 0 && (size_t)n < sizeof(path))
            result = allow(ruleset, path, 0, &is_folder);
    }
    closedir(dir);
    return result;
}

static uint64_t writing_rights(int version)
{
    uint64_t rights = LANDLOCK_ACCESS_FS_WRITE_FILE | LANDLOCK_ACCESS_FS_MAKE_REG |
                      LANDLOCK_ACCESS_FS_REMOVE_FILE;

    return version >= 3 ? rights | RIGHT_TRUNCATE : rights;
}

int sandbox_files(const char *const *readable, size_t n_readable, const char *const *writable,
                  size_t n_writable, struct error *err)
{
    int version = landlock_version(), result = 0;
    bool is_folder;

    if (IS_INSTRUMENTED || version < 1)
        return error_set(err, ERROR_UNSUPPORTED, "no Landlock here");
    int ruleset = open_ruleset(version);
    if (ruleset < 0)
        return error_set(err, ERROR_IO, "Landlock: %s", strerror(errno));
    for (size_t i = 0; i < n_readable && result == 0; i++) {
        if (!readable[i] || !readable[i][0])
            continue;
        result = allow(ruleset, readable[i], 0, &is_folder);
        if (result == 0 && is_folder)
            result = allow_entries(ruleset, readable[i]);
    }
    for (size_t i = 0; i < n_writable && result == 0; i++)
        if (writable[i] && writable[i][0])
            result = allow(ruleset, writable[i], writing_rights(version), &is_folder);
    if (result == 0 && (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
                        syscall(SYS_landlock_restrict_self, ruleset, 0) < 0))
        result = -1;
    if (result < 0)
        result = error_set(err, ERROR_IO, "Landlock: %s", strerror(errno));
    close(ruleset);
    return result;
}

/* --- system calls -------------------------------------------------------------------------- */

#if defined(__x86_64__)
#define THIS_ARCH AUDIT_ARCH_X86_64
#elif defined(__aarch64__)
#define THIS_ARCH AUDIT_ARCH_AARCH64
#endif

#ifdef THIS_ARCH

/* What a server that has its model and its socket never does. */
static const int DENIED[] = {
    SYS_execve,        SYS_execveat,     SYS_ptrace,        SYS_process_vm_readv,
    SYS_connect,       SYS_bind,         SYS_listen,        SYS_process_vm_writev,
    SYS_mount,         SYS_umount2,      SYS_pivot_root,    SYS_chroot,
    SYS_setns,         SYS_unshare,      SYS_bpf,           SYS_perf_event_open,
    SYS_init_module,   SYS_finit_module, SYS_delete_module, SYS_kexec_load,
    SYS_keyctl,        SYS_add_key,      SYS_request_key,   SYS_userfaultfd,
    SYS_reboot,        SYS_swapon,       SYS_swapoff,       SYS_settimeofday,
    SYS_clock_settime, SYS_acct,         SYS_quotactl,      SYS_open_by_handle_at,
    SYS_setuid,        SYS_setgid,       SYS_setresuid,     SYS_setresgid,
    SYS_personality,   SYS_syslog,       SYS_sethostname,   SYS_io_uring_setup,
};
#define N_DENIED (sizeof(DENIED) / sizeof(DENIED[0]))

/* Loads a word of struct seccomp_data. */
#define LOAD(member)                                                                               \
    (struct sock_filter) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, member))
#define RETURN(value) (struct sock_filter) BPF_STMT(BPF_RET | BPF_K, (value))

/* Layout: arch check, then one comparison for each denied call, which jumps to the last line. */
static size_t write_filter(struct sock_filter *f)
{
    size_t n = 0;

    f[n++] = LOAD(arch);
    f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, THIS_ARCH, 1, 0);
    f[n++] = RETURN(SECCOMP_RET_ERRNO | EPERM); /* 32-bit calls: nobody here makes any */
    f[n++] = LOAD(nr);
    for (size_t i = 0; i < N_DENIED; i++)
        f[n++] = (struct sock_filter)BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (unsigned)DENIED[i],
                                              (uint8_t)(N_DENIED - i), 0);
    f[n++] = RETURN(SECCOMP_RET_ALLOW);
    f[n++] = RETURN(SECCOMP_RET_ERRNO | EPERM);
    return n;
}

int sandbox_calls(struct error *err)
{
    struct sock_filter filter[N_DENIED + 8];
    struct sock_fprog program = {.len = (unsigned short)write_filter(filter), .filter = filter};

    if (IS_INSTRUMENTED)
        return error_set(err, ERROR_UNSUPPORTED, "no system call filter under a sanitizer");
    if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) < 0 ||
        syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) != 0)
        return error_set(err, errno == ENOSYS || errno == EINVAL ? ERROR_UNSUPPORTED : ERROR_IO,
                         "seccomp: %s", strerror(errno));
    return 0;
}

#else

int sandbox_calls(struct error *err)
{
    return error_set(err, ERROR_UNSUPPORTED, "no system call filter for this processor");
}

#endif
