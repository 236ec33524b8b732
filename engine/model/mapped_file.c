/* A whole file mapped read-only. See mapped_file.h. */
#include "engine/model/mapped_file.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

static int map_descriptor(int fd, struct mapped_file *ret_map, struct error *err)
{
    struct stat st;
    if (fstat(fd, &st))
        return error_set(err, ERROR_IO, "%s", strerror(errno));
    if (!S_ISREG(st.st_mode))
        return error_set(err, ERROR_INVALID, "not a regular file");
    if ((uint64_t)st.st_size > SIZE_MAX)
        return error_set(err, ERROR_UNSUPPORTED, "too large to map");
    if (st.st_size == 0) {
        *ret_map = (struct mapped_file){0};
        return 0;
    }
    void *data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
    if (data == MAP_FAILED)
        return error_set(err, ERROR_IO, "cannot map the file: %s", strerror(errno));
    *ret_map = (struct mapped_file){
        .data = data,
        .bytes = (size_t)st.st_size,
        .modified_ns = (int64_t)st.st_mtim.tv_sec * 1000000000 + st.st_mtim.tv_nsec,
    };
    return 0;
}

int mapped_file_open(const char *path, struct mapped_file *ret_map, struct error *err)
{
    /* O_NONBLOCK: opening a FIFO must not hang */
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK);
    if (fd < 0)
        return error_set(err, ERROR_IO, "%s", strerror(errno));
    int rc = map_descriptor(fd, ret_map, err);
    close(fd);
    return rc;
}

/* Piece by piece, so that the file's pages and the copy are not in memory together. */
static void copy_pages(uint8_t *to, const uint8_t *from, size_t bytes)
{
    enum { PIECE = 8 << 20 };
    for (size_t at = 0; at < bytes; at += PIECE) {
        size_t n = bytes - at < PIECE ? bytes - at : PIECE;
        memcpy(to + at, from + at, n);
        mapped_file_forget(from + at, n);
    }
}

/* A private page that was written is not enough: cutting the file takes it away too. So the copy is
 * memory of its own that is moved to where the pages are. */
int mapped_file_keep(const void *data, size_t bytes, struct error *err)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = (uintptr_t)data & ~(page - 1);
    size_t whole = ((uintptr_t)data + bytes - start + page - 1) & ~(page - 1);

    if (bytes == 0)
        return 0;
    void *copy = mmap(NULL, whole, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (copy == MAP_FAILED)
        return error_memory(err, "pages of the file", whole);
    copy_pages(copy, (const uint8_t *)start, whole);
    if (mprotect(copy, whole, PROT_READ) == 0 &&
        mremap(copy, whole, whole, MREMAP_MAYMOVE | MREMAP_FIXED, start) != MAP_FAILED)
        return 0;
    int rc = error_set(err, ERROR_IO, "cannot keep the file's pages: %s", strerror(errno));
    munmap(copy, whole);
    return rc;
}

void mapped_file_forget(const void *data, size_t bytes)
{
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t start = ((uintptr_t)data + page - 1) & ~(page - 1); /* whole pages only */
    uintptr_t end = ((uintptr_t)data + bytes) & ~(page - 1);
    if (start < end)
        madvise((void *)start, end - start, MADV_DONTNEED); /* clean pages of a file: no loss */
}

void mapped_file_close(struct mapped_file *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (struct mapped_file){0};
}
