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
    *ret_map = (struct mapped_file){data, (size_t)st.st_size};
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

void mapped_file_close(struct mapped_file *map)
{
    if (map->data)
        munmap((void *)(uintptr_t)map->data, map->bytes);
    *map = (struct mapped_file){0};
}
