/* The file of packed weights: a page with the header, then the parts. See packed_cache.h. Numbers
 * lie as in memory. What goes in and when is model_open's. */
#include "engine/model/packed_cache.h"

#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/base/system.h"

#include <errno.h>
#include <fcntl.h>
#include <inttypes.h>
#include <stdio.h>
#include <string.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <zlib.h>

#define MAGIC "OVERFPK" /* with its NUL 8 bytes */
#define HEADER_BYTES 4096
#define PIECE_BYTES ((size_t)64 << 20) /* between two reports of progress */

struct header {
    char magic[8];
    uint32_t version;
    uint32_t weights;
    uint64_t file_hash, file_bytes;
    int64_t modified_ns;
    uint64_t bytes; /* of the parts */
    uint32_t tile, block, block_bytes[KERNEL_LAYOUTS];
    uint32_t checksum; /* CRC-32 of the parts */
    uint64_t hash;     /* of all before it */
};

_Static_assert(sizeof(struct header) <= HEADER_BYTES, "the header fits its page");

static void fill_header(const struct packed_cache_key *key, uint64_t bytes, uint32_t checksum,
                        struct header *ret_header)
{
    struct header h;
    memset(&h, 0, sizeof(h)); /* holes too: its bytes are compared */
    memcpy(h.magic, MAGIC, sizeof(h.magic));
    h.version = PACKED_CACHE_VERSION;
    h.weights = key->weights;
    h.file_hash = key->file_hash;
    h.file_bytes = key->file_bytes;
    h.modified_ns = key->modified_ns;
    h.bytes = bytes;
    h.tile = KERNEL_TILE;
    h.block = KERNEL_BLOCK;
    for (int layout = 0; layout < KERNEL_LAYOUTS; layout++)
        h.block_bytes[layout] = (uint32_t)kernel_block_bytes((enum kernel_layout)layout);
    h.checksum = checksum;
    h.hash = hash_bytes(HASH_START, &h, offsetof(struct header, hash));
    *ret_header = h;
}

static int path_of(const char *dir, const struct packed_cache_key *key, struct buf *path,
                   struct error *err)
{
    static const char *const names[] = {
        [MODEL_WEIGHTS_AUTO] = "auto", [MODEL_WEIGHTS_Q8] = "q8", [MODEL_WEIGHTS_F32] = "f32"};
    buf_printf(path, "%s/%016" PRIx64 "-%s.packed", dir, key->file_hash, names[key->weights]);
    return path->failed ? error_memory(err, "path", strlen(dir)) : 0;
}

/* --- reading ------------------------------------------------------------------------------- */

static int check_header(const struct mapped_file *map, const struct packed_cache_key *key,
                        struct header *ret_header, struct error *err)
{
    struct header h, expected;
    if (map->bytes < HEADER_BYTES)
        return error_set(err, ERROR_FORMAT, "it ends in its header");
    memcpy(&h, map->data, sizeof(h));
    if (memcmp(h.magic, MAGIC, sizeof(h.magic)) != 0 || h.version != PACKED_CACHE_VERSION)
        return error_set(err, ERROR_FORMAT, "not packed weights of this version");
    if (h.hash != hash_bytes(HASH_START, &h, offsetof(struct header, hash)))
        return error_set(err, ERROR_FORMAT, "its header is corrupt");
    fill_header(key, h.bytes, h.checksum, &expected);
    if (memcmp(&h, &expected, sizeof(h)) != 0)
        return error_set(err, ERROR_FORMAT, "made of another model file or for other kernels");
    if (h.bytes != map->bytes - HEADER_BYTES)
        return error_set(err, ERROR_FORMAT, "%" PRIu64 " bytes of weights expected, %zu found",
                         h.bytes, map->bytes - HEADER_BYTES);
    *ret_header = h;
    return 0;
}

static int check_weights(const uint8_t *weights, const struct header *header,
                         model_progress_fn *progress, void *user, struct error *err)
{
    uLong crc = crc32_z(0, NULL, 0);
    for (size_t at = 0; at < header->bytes; at += PIECE_BYTES) {
        size_t rest = header->bytes - at;
        crc = crc32_z(crc, weights + at, rest < PIECE_BYTES ? rest : PIECE_BYTES);
        if (progress)
            progress(user, (double)at / (double)header->bytes);
    }
    return crc == header->checksum ? 0 : error_set(err, ERROR_FORMAT, "its weights are corrupt");
}

int packed_cache_open(const char *dir, const struct packed_cache_key *key,
                      model_progress_fn *progress, void *user, struct weight_arena *ret_arena,
                      struct error *err)
{
    _cleanup_buf_ struct buf path = {0};
    struct mapped_file map = {0};
    struct header header;
    int rc = path_of(dir, key, &path, err);
    if (rc == 0 && access(path.data, F_OK) < 0 && errno == ENOENT) {
        *ret_arena = (struct weight_arena){0};
        return 0;
    }
    if (rc == 0)
        rc = mapped_file_open(path.data, &map, err);
    if (rc == 0)
        rc = check_header(&map, key, &header, err);
    if (rc == 0)
        rc = check_weights(map.data + HEADER_BYTES, &header, progress, user, err);
    if (rc) {
        mapped_file_close(&map);
        return error_prefix(err, "%s", path.data ? path.data : dir);
    }
    *ret_arena =
        (struct weight_arena){.map = map, .given = map.data + HEADER_BYTES, .size = header.bytes};
    return 0;
}

/* --- writing ------------------------------------------------------------------------------- */

static size_t rounded(size_t bytes)
{
    return (bytes + MEM_ALIGN - 1) / MEM_ALIGN * MEM_ALIGN;
}

/* errno tells why not. */
static bool write_at(int fd, const void *data, size_t bytes, size_t at)
{
    const uint8_t *p = data;
    while (bytes) {
        ssize_t n = pwrite(fd, p, bytes, (off_t)at);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return false;
        p += n;
        at += (size_t)n;
        bytes -= (size_t)n;
    }
    return true;
}

/* The header comes last, so that a file that was not finished has none. */
static bool write_parts(int fd, const struct packed_cache_key *key, const struct packed_part *parts,
                        size_t n_parts)
{
    static const uint8_t zeros[MEM_ALIGN];
    uint8_t page[HEADER_BYTES] = {0};
    struct header header;
    uLong crc = crc32_z(0, NULL, 0);
    size_t at = HEADER_BYTES;
    for (size_t i = 0; i < n_parts; i++) {
        size_t rest = rounded(parts[i].bytes) - parts[i].bytes;
        if (!write_at(fd, parts[i].data, parts[i].bytes, at) ||
            !write_at(fd, zeros, rest, at + parts[i].bytes))
            return false;
        crc = crc32_z(crc32_z(crc, parts[i].data, parts[i].bytes), zeros, rest);
        at += parts[i].bytes + rest;
    }
    fill_header(key, at - HEADER_BYTES, (uint32_t)crc, &header);
    memcpy(page, &header, sizeof(header));
    return write_at(fd, page, sizeof(page), 0);
}

/* One writer at a time has the new file: the one that holds its lock while it is still there. */
static int open_new(const char *path, int *ret_fd, struct error *err)
{
    struct stat mine, there;
    int fd = open(path, O_WRONLY | O_CREAT | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    if (flock(fd, LOCK_EX | LOCK_NB) < 0 || fstat(fd, &mine) < 0 || stat(path, &there) < 0 ||
        mine.st_ino != there.st_ino) {
        close(fd);
        return error_set(err, ERROR_BUSY, "%s: another process is writing it", path);
    }
    if (ftruncate(fd, 0) < 0) {
        int why = errno;
        close(fd);
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(why));
    }
    *ret_fd = fd;
    return 0;
}

static int check_room(const char *path, size_t needed, struct error *err)
{
    size_t free_bytes;
    if (!system_disk_free(path, &free_bytes) || needed <= free_bytes)
        return 0;
    return error_set(err, ERROR_IO, "%s: needs %zu bytes of disk, %zu are free", path, needed,
                     free_bytes);
}

static int write_file(const char *path, const char *path_new, const struct packed_cache_key *key,
                      const struct packed_part *parts, size_t n_parts, struct error *err)
{
    int fd;
    int rc = open_new(path_new, &fd, err);
    if (rc)
        return rc;
    bool ok = write_parts(fd, key, parts, n_parts) && rename(path_new, path) == 0;
    int why = errno;
    if (!ok)
        unlink(path_new);
    close(fd);
    return ok ? 0 : error_set(err, ERROR_IO, "%s: %s", path_new, strerror(why));
}

int packed_cache_write(const char *dir, const struct packed_cache_key *key,
                       const struct packed_part *parts, size_t n_parts, size_t *ret_bytes,
                       struct error *err)
{
    _cleanup_buf_ struct buf path = {0}, path_new = {0};
    size_t bytes = HEADER_BYTES;
    for (size_t i = 0; i < n_parts; i++)
        bytes += rounded(parts[i].bytes);
    int rc = path_of(dir, key, &path, err);
    if (rc)
        return rc;
    buf_printf(&path_new, "%s.new", path.data);
    if (path_new.failed)
        return error_memory(err, "path", path.len);
    if (mkdir(dir, 0700) < 0 && errno != EEXIST)
        return error_set(err, ERROR_IO, "%s: %s", dir, strerror(errno));
    rc = check_room(path.data, bytes, err);
    if (rc == 0)
        rc = write_file(path.data, path_new.data, key, parts, n_parts, err);
    if (rc == 0)
        *ret_bytes = bytes;
    return rc;
}
