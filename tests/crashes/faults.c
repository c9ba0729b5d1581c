/* Preloaded into a gateway, makes its disk fail or crawl as a page tells that the test has mapped, too.
 *
 * What is meant is told by the name of the file: the journal's segments and spares, or the store's files. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

struct page {
    uint32_t loaded;           /* set by us: somebody obeys */
    uint32_t met;              /* counted by us: calls that were made to fail */
    uint32_t journal_syncs;    /* so many syncs of the journal fail with EIO */
    uint32_t journal_writes;   /* so many writes to it do */
    uint32_t journal_shorts;   /* so many writes to it write half of what they should */
    uint32_t journal_errno;    /* while it is not 0, writes and syncs of the journal fail so, and new files get no room */
    uint32_t store_errno;      /* while it is not 0, writes and syncs of the store fail so */
    uint32_t store_delay_ms;   /* each sync of the store takes that much longer */
};

static struct page *page;

__attribute__((constructor)) static void load(void) {
    const char *path = getenv("FAULTS_PAGE");
    int descriptor = path ? open(path, O_RDWR | O_CLOEXEC) : -1;
    if (descriptor < 0) return;
    void *mapped = mmap(NULL, sizeof *page, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    close(descriptor);
    if (mapped == MAP_FAILED) return;
    page = mapped;
    page->loaded = 1;
}

enum { OTHER, JOURNAL, STORE };

static int meant(int descriptor) {
    char link[32], path[4096];
    if (!page) return OTHER;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, path, sizeof path - 1);
    if (length < 0) return OTHER;
    path[length] = 0;
    if (strstr(path, "/journal/")) return JOURNAL;
    return strstr(path, "/books.duckdb") ? STORE : OTHER;
}

static int take(uint32_t *count) {
    uint32_t left = __atomic_load_n(count, __ATOMIC_SEQ_CST);
    while (left)
        if (__atomic_compare_exchange_n(count, &left, left - 1, 0, __ATOMIC_SEQ_CST, __ATOMIC_SEQ_CST)) return 1;
    return 0;
}

static int fails(int with) {
    __atomic_add_fetch(&page->met, 1, __ATOMIC_SEQ_CST);
    errno = with;
    return -1;
}

/* What a write is to do: as ever (0), fail (-1, errno says how), or write only half (1). */
static int judge_write(int descriptor) {
    switch (meant(descriptor)) {
    case JOURNAL:
        if (page->journal_errno) return fails((int)page->journal_errno);
        if (take(&page->journal_writes)) return fails(EIO);
        if (take(&page->journal_shorts)) { fails(0); return 1; }
        return 0;
    case STORE:
        return page->store_errno ? fails((int)page->store_errno) : 0;
    default:
        return 0;
    }
}

static int judge_sync(int descriptor) {
    switch (meant(descriptor)) {
    case JOURNAL:
        if (page->journal_errno) return fails((int)page->journal_errno);
        return take(&page->journal_syncs) ? fails(EIO) : 0;
    case STORE:
        if (page->store_delay_ms) {
            struct timespec pause = {page->store_delay_ms / 1000, page->store_delay_ms % 1000 * 1000000L};
            nanosleep(&pause, NULL);
        }
        return page->store_errno ? fails((int)page->store_errno) : 0;
    default:
        return 0;
    }
}

#define REAL(name) static __typeof__(&name) real; if (!real) real = (__typeof__(&name))dlsym(RTLD_NEXT, #name)

#define PWRITE(name, offset_type)                                                        \
    ssize_t name(int descriptor, const void *data, size_t size, offset_type offset) {    \
        REAL(name);                                                                      \
        int judged = judge_write(descriptor);                                            \
        return judged < 0 ? -1 : real(descriptor, data, judged ? (size + 1) / 2 : size, offset); \
    }

PWRITE(pwrite, off_t)
PWRITE(pwrite64, off64_t)

ssize_t write(int descriptor, const void *data, size_t size) {
    REAL(write);
    return judge_write(descriptor) < 0 ? -1 : real(descriptor, data, size);
}

int fsync(int descriptor) {
    REAL(fsync);
    return judge_sync(descriptor) ? -1 : real(descriptor);
}

int fdatasync(int descriptor) {
    REAL(fdatasync);
    return judge_sync(descriptor) ? -1 : real(descriptor);
}

#define FALLOCATE(name, offset_type)                                              \
    int name(int descriptor, offset_type offset, offset_type size) {              \
        REAL(name);                                                               \
        if (meant(descriptor) == JOURNAL && page->journal_errno) {                \
            fails(0);                                                             \
            return (int)page->journal_errno;                                      \
        }                                                                         \
        return real(descriptor, offset, size);                                    \
    }

FALLOCATE(posix_fallocate, off_t)
FALLOCATE(posix_fallocate64, off64_t)
