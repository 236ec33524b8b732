/* The prefix index in a file: a header, then the pages, each with its tokens and its parent's place
 * in the file. One hash runs through all of it and is written after the header and after each
 * page, so a changed, missing or exchanged byte is found before its page is used. Numbers lie as in
 * memory: the file is for the next process on this machine. See kv.h. */
#include "engine/base/buf.h"
#include "engine/base/hash.h"
#include "engine/base/mem.h"
#include "engine/kv/kv_internal.h"

#include <assert.h>
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define MAGIC "OVERFKV" /* with its NUL 8 bytes */
#define VERSION 1

struct header {
    char magic[8];
    uint32_t version;
    uint32_t n_pages;
    uint32_t n_layers, n_kv_heads, head_dim, element_bytes, format, page_tokens;
    uint64_t page_bytes;
    char fingerprint[KV_FINGERPRINT_MAX + 1];
    uint64_t hash; /* of all before it */
};

/* In front of a page's bytes. */
struct record {
    uint64_t hash;   /* goes on from the one before over parent, tokens and bytes */
    uint32_t parent; /* its place in the file, which is before this one; NO_PAGE if none */
    int32_t tokens[KERNEL_PAGE_TOKENS];
    uint32_t reserved;
};

_Static_assert(sizeof(struct header) % 8 == 0 && sizeof(struct record) % 8 == 0, "no holes");

static void fill_header(const struct kv_pool *pool, const char *fingerprint, uint32_t n_pages,
                        struct header *ret_header)
{
    const struct kv_layout *layout = &pool->layout;
    struct header h = {
        .magic = MAGIC,
        .version = VERSION,
        .n_pages = n_pages,
        .n_layers = layout->n_layers,
        .n_kv_heads = layout->n_kv_heads,
        .head_dim = layout->head_dim,
        .element_bytes = layout->element_bytes,
        .format = layout->format,
        .page_tokens = KERNEL_PAGE_TOKENS,
        .page_bytes = pool->page_bytes,
    };
    assert(strlen(fingerprint) <= KV_FINGERPRINT_MAX);
    memcpy(h.fingerprint, fingerprint, strlen(fingerprint));
    h.hash = hash_bytes(HASH_START, &h, offsetof(struct header, hash));
    *ret_header = h;
}

static uint64_t hash_record(uint64_t hash, const struct record *r, const uint8_t *bytes,
                            size_t n_bytes)
{
    hash = hash_bytes(hash, &r->parent, sizeof(*r) - offsetof(struct record, parent));
    return hash_bytes(hash, bytes, n_bytes);
}

static uint8_t *page_bytes_of(const struct kv_pool *pool, uint32_t page)
{
    return pool->base + page * pool->page_bytes;
}

/* --- saving -------------------------------------------------------------------------------- */

/* What goes into the file. */
struct listing {
    uint32_t *pages;   /* [n], by place */
    uint32_t *parents; /* [n], their places */
    uint32_t n;
};

/* From the page used last to the first: a page was let go no later than the one before it in its
 * prompt, so parents come first. A page whose parent is not among them could never be found. */
static int list_pages(const struct kv_pool *pool, uint32_t most, struct listing *l,
                      struct error *err)
{
    _cleanup_mem_ uint32_t *places = mem_array(pool->n_pages, sizeof(uint32_t));
    l->pages = mem_array(pool->n_pages, sizeof(uint32_t));
    l->parents = mem_array(pool->n_pages, sizeof(uint32_t));
    if (!places || !l->pages || !l->parents)
        return error_memory(err, "list of the prefix cache", pool->n_pages * sizeof(uint32_t));
    for (uint32_t i = 0; i < pool->n_pages; i++)
        places[i] = NO_PAGE;
    for (uint32_t page = pool->newest; page != NO_PAGE && l->n < most;
         page = pool->pages[page].older) {
        uint32_t parent = pool->pages[page].parent;
        if (parent != NO_PAGE && places[parent] == NO_PAGE)
            continue;
        l->pages[l->n] = page;
        l->parents[l->n] = parent == NO_PAGE ? NO_PAGE : places[parent];
        places[page] = l->n++;
    }
    return 0;
}

static int write_all(int fd, const void *data, size_t bytes)
{
    const uint8_t *p = data;
    while (bytes) {
        ssize_t n = write(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n <= 0)
            return -1;
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int write_pages(const struct kv_pool *pool, const struct listing *l, const char *fingerprint,
                       int fd)
{
    struct header header;
    fill_header(pool, fingerprint, l->n, &header);
    uint64_t hash = header.hash;
    int rc = write_all(fd, &header, sizeof(header));
    for (uint32_t i = 0; i < l->n && rc == 0; i++) {
        const uint8_t *bytes = page_bytes_of(pool, l->pages[i]);
        struct record record = {.parent = l->parents[i]};
        memcpy(record.tokens, pool->pages[l->pages[i]].tokens, sizeof(record.tokens));
        record.hash = hash = hash_record(hash, &record, bytes, pool->page_bytes);
        rc = write_all(fd, &record, sizeof(record));
        if (rc == 0)
            rc = write_all(fd, bytes, pool->page_bytes);
    }
    return rc;
}

/* Some file systems tell of a full disk only when the file is closed. */
static int write_file(const struct kv_pool *pool, const struct listing *l, const char *fingerprint,
                      const char *path, const char *path_new, struct error *err)
{
    int fd = open(path_new, O_WRONLY | O_CREAT | O_TRUNC | O_NOFOLLOW | O_CLOEXEC, 0600);
    if (fd < 0)
        return error_set(err, ERROR_IO, "%s: %s", path_new, strerror(errno));
    int rc = write_pages(pool, l, fingerprint, fd);
    int why = errno;
    if (close(fd) < 0 && rc == 0) {
        rc = -1;
        why = errno;
    }
    if (rc == 0 && rename(path_new, path) < 0) {
        rc = -1;
        why = errno;
    }
    if (rc == 0)
        return 0;
    unlink(path_new);
    return error_set(err, ERROR_IO, "%s: %s", path_new, strerror(why));
}

int kv_state_save(struct kv_pool *pool, const char *path, const char *fingerprint, size_t max_bytes,
                  uint32_t *ret_n_pages, struct error *err)
{
    _cleanup_buf_ struct buf path_new = {0};
    struct listing listing = {0};
    size_t most = max_bytes > sizeof(struct header) ? (max_bytes - sizeof(struct header)) /
                                                          (sizeof(struct record) + pool->page_bytes)
                                                    : 0;
    buf_printf(&path_new, "%s.new", path);
    int rc = path_new.failed ? error_memory(err, "path", strlen(path)) : 0;
    if (rc == 0)
        rc = list_pages(pool, most < pool->n_pages ? (uint32_t)most : pool->n_pages, &listing, err);
    if (rc == 0 && listing.n)
        rc = write_file(pool, &listing, fingerprint, path, path_new.data, err);
    if (rc == 0)
        *ret_n_pages = listing.n;
    mem_free(listing.pages);
    mem_free(listing.parents);
    return rc;
}

/* --- loading ------------------------------------------------------------------------------- */

static int broken(struct error *err, const char *path, const char *what)
{
    return error_set(err, ERROR_FORMAT, "%s: %s", path, what);
}

static int read_all(int fd, void *data, size_t bytes, const char *path, struct error *err)
{
    uint8_t *p = data;
    while (bytes) {
        ssize_t n = read(fd, p, bytes);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
        if (n == 0)
            return broken(err, path, "it ends too early");
        p += n;
        bytes -= (size_t)n;
    }
    return 0;
}

static int read_header(const struct kv_pool *pool, int fd, const char *path,
                       const char *fingerprint, struct header *ret_header, struct error *err)
{
    struct header header, expected;
    struct stat st;
    size_t bytes;
    int rc = read_all(fd, &header, sizeof(header), path, err);
    if (rc)
        return rc;
    if (memcmp(header.magic, MAGIC, sizeof(header.magic)) != 0 || header.version != VERSION)
        return broken(err, path, "not a prefix cache of this version");
    if (header.hash != hash_bytes(HASH_START, &header, offsetof(struct header, hash)))
        return broken(err, path, "its header is corrupt");
    fill_header(pool, fingerprint, header.n_pages, &expected);
    if (memcmp(&header, &expected, sizeof(header)) != 0)
        return broken(err, path, "made by other models, number types or kernels");
    if (fstat(fd, &st) < 0)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    if (!mem_mul(header.n_pages, sizeof(struct record) + pool->page_bytes, &bytes) ||
        st.st_size < 0 || (size_t)st.st_size - sizeof(header) != bytes)
        return broken(err, path, "its size is not what its header says");
    *ret_header = header;
    return 0;
}

/* One page into the next free one, which stays free unless all is well. */
static int read_page(struct kv_pool *pool, int fd, uint32_t place, uint32_t *pages, uint64_t *hash,
                     const char *path, struct error *err)
{
    uint32_t page = pool->free_pages[pool->n_free - 1];
    uint8_t *bytes = page_bytes_of(pool, page);
    struct record record;
    int rc = read_all(fd, &record, sizeof(record), path, err);
    if (rc == 0)
        rc = read_all(fd, bytes, pool->page_bytes, path, err);
    if (rc)
        return rc;
    *hash = hash_record(*hash, &record, bytes, pool->page_bytes);
    if (record.hash != *hash)
        return broken(err, path, "a page is corrupt");
    if (record.parent != NO_PAGE && record.parent >= place)
        return broken(err, path, "a page comes before the one it follows");
    uint32_t parent = record.parent == NO_PAGE ? NO_PAGE : pages[record.parent];
    if (!prefix_insert(pool, page, parent, record.tokens))
        return broken(err, path, "it has a page twice");
    pool->n_free--;
    page_keep_as_oldest(pool, page);
    pages[place] = page;
    return 0;
}

static int read_pages(struct kv_pool *pool, int fd, const struct header *header, const char *path,
                      uint32_t *ret_n_pages, struct error *err)
{
    uint32_t n = header->n_pages < pool->n_free ? header->n_pages : pool->n_free;
    _cleanup_mem_ uint32_t *pages = mem_array(n, sizeof(uint32_t));
    uint64_t hash = header->hash;
    int rc = 0;
    if (!pages && n)
        return error_memory(err, "list of the prefix cache", n * sizeof(uint32_t));
    for (uint32_t i = 0; i < n && rc == 0; i++)
        rc = read_page(pool, fd, i, pages, &hash, path, err);
    if (rc) { /* with the bytes: no number of a broken file is to be met in a page again */
        pages_forget_kept(pool);
        madvise(pool->base, pool->mapped_bytes, MADV_DONTNEED);
        return rc;
    }
    *ret_n_pages = n;
    return 0;
}

int kv_state_load(struct kv_pool *pool, const char *path, const char *fingerprint,
                  uint32_t *ret_n_pages, struct error *err)
{
    struct header header;
    assert(pool->n_free == pool->n_pages);
    int fd = open(path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
    if (fd < 0 && errno == ENOENT) {
        *ret_n_pages = 0;
        return 0;
    }
    if (fd < 0)
        return error_set(err, ERROR_IO, "%s: %s", path, strerror(errno));
    int rc = read_header(pool, fd, path, fingerprint, &header, err);
    if (rc == 0)
        rc = read_pages(pool, fd, &header, path, ret_n_pages, err);
    close(fd);
    return rc;
}
