/* What the bench's provider and client share: a clock, histograms of delays, and small things about sockets. */
#ifndef FAREBOX_BENCH_COMMON_H
#define FAREBOX_BENCH_COMMON_H

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <time.h>
#include <unistd.h>

#define SECOND 1000000000LL
/* A mark in an event: `@`, and by the clock below, as hexadecimal digits, when it was written and when its request had
   arrived. The difference is the provider's own time, its delays included: what is left of a first event's time is the
   way there and back. */
#define STAMP '@'
#define CLOCK_DIGITS 16
#define STAMP_DIGITS (2 * CLOCK_DIGITS)

static inline int64_t now_ns(void) {
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t); /* one clock for all processes of a machine, so stamps can be compared */
    return (int64_t)t.tv_sec * SECOND + t.tv_nsec;
}

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline void *grown(void *old, size_t bytes) {
    void *got = realloc(old, bytes);
    if (!got) die("memory");
    return got;
}

/* Wait for events until a moment, to the microsecond where the kernel can (epoll_pwait2, Linux 5.11). */
static inline int wait_until(int epoll, struct epoll_event *events, int most, int64_t until_ns) {
    int64_t left = until_ns - now_ns();
    if (left < 0) left = 0;
#ifdef SYS_epoll_pwait2
    static int missing = 0;
    if (!missing) {
        struct timespec t = {left / SECOND, left % SECOND};
        int n = (int)syscall(SYS_epoll_pwait2, epoll, events, most, &t, NULL, 0);
        if (n >= 0 || errno != ENOSYS) return n;
        missing = 1;
    }
#endif
    return epoll_wait(epoll, events, most, (int)((left + 999999) / 1000000));
}

/* Counts of values in buckets that are less than 0.1 % wide, so that half a millisecond on top of fifty can be told:
   any number of them in 900 kB. */
#define HIST_BITS 11
typedef struct {
    uint64_t count, buckets[(64 - HIST_BITS) << HIST_BITS];
    int64_t max;
    double sum;
} hist;

static inline void hist_add(hist *h, int64_t value) {
    if (value < 0) value = 0;
    uint64_t v = (uint64_t)value;
    int e = v < (1u << HIST_BITS) ? 0 : 63 - __builtin_clzll(v) - HIST_BITS + 1;
    uint64_t low = e ? (v >> (e - 1)) & ((1u << HIST_BITS) - 1) : v;
    h->buckets[((uint64_t)e << HIST_BITS) | low]++;
    h->count++;
    h->sum += (double)value;
    if (value > h->max) h->max = value;
}

/* The value below which a share of all lies, as the middle of its bucket. */
static inline double hist_at(const hist *h, double share) {
    uint64_t rank = (uint64_t)(share * (double)h->count), seen = 0;
    if (rank >= h->count) rank = h->count - 1;
    for (uint64_t i = 0; i < sizeof h->buckets / sizeof *h->buckets; i++) {
        seen += h->buckets[i];
        if (seen > rank) {
            uint64_t e = i >> HIST_BITS, low = i & ((1u << HIST_BITS) - 1);
            double value = e ? ((double)((1u << HIST_BITS) | low) + 0.5) * (double)(1ull << (e - 1)) : (double)low;
            return value < (double)h->max ? value : (double)h->max;
        }
    }
    return (double)h->max;
}

static inline void hist_print(const char *name, const hist *h) {
    if (!h->count) {
        printf("\"%s\":null", name);
        return;
    }
    printf("\"%s\":{\"count\":%llu,\"mean\":%.6f,\"p50\":%.6f,\"p90\":%.6f,\"p95\":%.6f,\"p99\":%.6f,\"p999\":%.6f,\"max\":%.6f}",
           name, (unsigned long long)h->count, h->sum / (double)h->count / 1e6, hist_at(h, 0.5) / 1e6,
           hist_at(h, 0.9) / 1e6, hist_at(h, 0.95) / 1e6, hist_at(h, 0.99) / 1e6, hist_at(h, 0.999) / 1e6,
           (double)h->max / 1e6);
}

static inline int hex_digit(unsigned char c) {
    if (c >= '0' && c <= '9') return c - '0';
    if (c >= 'a' && c <= 'f') return c - 'a' + 10;
    return -1;
}

/* Find a header in a head that is a string; gives its value or NULL. */
static inline const char *header(const char *head, const char *name) {
    const char *at = strcasestr(head, name);
    return at ? at + strlen(name) : NULL;
}

#endif
