/* What the sandbox takes away and what it leaves, each in a child process, because it is for good.
 * Skipped where the kernel has neither Landlock nor seccomp. */
#include "server/sandbox.h"
#include "tests/unit/check.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <pthread.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

enum { CHILD_GOOD, CHILD_BAD, CHILD_SKIP };

static int report(bool is_good, const char *what)
{
    if (!is_good)
        fprintf(stderr, "sandbox: %s (%s)\n", what, strerror(errno));
    return is_good ? CHILD_GOOD : CHILD_BAD;
}

static void run_in_child(int (*check)(void))
{
    int status;
    pid_t pid = fork();

    if (pid == 0)
        _exit(check());
    assert_int_equal(waitpid(pid, &status, 0), pid);
    assert_true(WIFEXITED(status));
    if (WEXITSTATUS(status) == CHILD_SKIP)
        skip();
    assert_int_equal(WEXITSTATUS(status), CHILD_GOOD);
}

/* Opens for reading, or for writing; -errno on failure. */
static int try_open(const char *path, int flags)
{
    int fd = open(path, flags | O_CLOEXEC, 0600);

    if (fd < 0)
        return -errno;
    close(fd);
    return 0;
}

/* A folder with a file and a link to one outside, and one that may be written to. */
static char folder[] = "/tmp/overfill-sandbox-XXXXXX", file[64], link_to[64], other[64];
static char writable[] = "/tmp/overfill-writable-XXXXXX", made[64], moved[64];

static int make_files(void **state)
{
    if (!mkdtemp(folder) || !mkdtemp(writable))
        return -1;
    snprintf(made, sizeof(made), "%s/made", writable);
    snprintf(moved, sizeof(moved), "%s/moved", writable);
    snprintf(file, sizeof(file), "%s/file", folder);
    snprintf(link_to, sizeof(link_to), "%s/link", folder);
    snprintf(other, sizeof(other), "%s-other", folder);
    return try_open(file, O_CREAT | O_WRONLY) || try_open(other, O_CREAT | O_WRONLY) ||
           symlink(other, link_to);
}

static int remove_files(void **state)
{
    unlink(moved);
    unlink(made);
    unlink(link_to);
    unlink(file);
    unlink(other);
    return rmdir(folder) || rmdir(writable);
}

static int check_files(void)
{
    const char *const readable[] = {folder, NULL, "/no/such/path"};
    struct error err;

    int code = sandbox_files(readable, 3, (const char *const[]){NULL, writable}, 2, &err);
    if (code == -ERROR_UNSUPPORTED)
        return CHILD_SKIP;
    return report(code == 0, err.message) ||
           report(try_open(file, O_RDONLY) == 0, "a named folder's file cannot be read") ||
           report(try_open(link_to, O_RDONLY) == 0, "a link in a named folder does not count") ||
           report(try_open("/etc/passwd", O_RDONLY) == -EACCES, "another file can be read") ||
           report(try_open(file, O_WRONLY) == -EACCES, "a named file can be written") ||
           report(try_open("/tmp/overfill-new", O_CREAT | O_WRONLY) == -EACCES,
                  "a file can be made") ||
           report(try_open(made, O_CREAT | O_TRUNC | O_WRONLY) == 0 && rename(made, moved) == 0 &&
                      try_open(moved, O_RDONLY) == 0 && unlink(moved) == 0,
                  "no file can be made, moved or removed where it is allowed") ||
           report(unlink(other) < 0 && errno == EACCES, "a file can be removed") ||
           report(execl("/bin/true", "true", NULL) < 0 && errno == EACCES, "a program can start");
}

static int connect_anywhere(void)
{
    struct sockaddr_in address = {
        .sin_family = AF_INET, .sin_port = htons(9), .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int fd = socket(AF_INET, SOCK_STREAM, 0);
    int result = connect(fd, (struct sockaddr *)&address, sizeof(address)) < 0 ? -errno : 0;

    close(fd);
    return result;
}

/* A thread that was there before: the filter must hold for it too. */
struct early {
    pthread_barrier_t barrier;
    int result;
};

static void *connect_later(void *user)
{
    struct early *early = user;

    pthread_barrier_wait(&early->barrier);
    early->result = connect_anywhere();
    return NULL;
}

static int check_calls(void)
{
    struct early early;
    struct error err;
    pthread_t thread;

    pthread_barrier_init(&early.barrier, NULL, 2);
    if (pthread_create(&thread, NULL, connect_later, &early))
        return CHILD_BAD;
    int code = sandbox_calls(&err);
    pthread_barrier_wait(&early.barrier);
    pthread_join(thread, NULL);
    if (code == -ERROR_UNSUPPORTED)
        return CHILD_SKIP;
    return report(code == 0, err.message) ||
           report(connect_anywhere() == -EPERM, "it can connect") ||
           report(early.result == -EPERM, "a thread from before can connect") ||
           report(execl("/bin/true", "true", NULL) < 0 && errno == EPERM, "a program can start") ||
           report(try_open("/etc/passwd", O_RDONLY) == 0, "files are another step's");
}

static void only_named_files_can_be_read(void **state)
{
    run_in_child(check_files);
}

static void no_program_and_no_connection_can_be_started(void **state)
{
    run_in_child(check_calls);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(only_named_files_can_be_read, make_files, remove_files),
        cmocka_unit_test(no_program_and_no_connection_can_be_started),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
