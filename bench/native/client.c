/* The bench's client: many connections over one epoll loop, measured from outside; prints marks and one line of JSON.

Run as `client NAME=VALUE …`:

    host= port=          where to (IPv4)
    request=PATH         the bytes of one request; `#0000000` in them is replaced by a number for each
    mode=                loop: each connection asks again when it has its answer
                         open: `rate` requests a second on a timetable, whether answered or not; waiting counts as latency
                         once: every connection asks once, all at the same instant
                         hold: every connection asks once, and is kept for `seconds` after the last has its first event
                         leave: each hangs up after its first events, and comes again
    connections= seconds= warm= ramp= drain= rate= expect=   (seconds; `expect` events in a whole answer)

It writes `begin` and `end` lines around the window that is measured, for whoever reads /proc meanwhile, and the figures
after that. Events are told by their stamps (see `common.h`), so nothing is parsed and any framing will do.

`added_first_ms` is, request by request, the time from its sending to its first event, less the provider's own time: the
way there and back, through whatever lies between, and never negative. The sockets of client and provider are in it, as
the figures of a run without a gateway show; how late the client was by its own timetable is not (`send_late_ms`). */

#include "common.h"
#include <arpa/inet.h>
#include <sys/resource.h>

#define EVENTS_AT_ONCE 512
#define HEAD_MAX 16384
#define READ_BYTES (256 << 10)
#define AGAIN_NS (50 * SECOND / 1000)
#define LEFT_MAX 65536

enum { IDLE, CONNECTING, HEAD, BODY, OVER };

typedef struct {
    int fd, state, index, status, chunked, close_after;
    long length, got, events;
    size_t sent;
    int64_t asked, sent_at, first, last_read, last_delay, again;
    uint64_t stamp[2];
    int stamp_digits, tail_used, reused;
    char tail[8];
    char *head;
    size_t head_used;
    uint32_t id;
    long leave_after;
} conn;

static struct sockaddr_in address;
static char *request, mode[8] = "loop", trouble[400];
static size_t request_length, id_at;
static long connections = 1, expect = 0;
static double seconds = 1, warm = 0, ramp = 0, drain = 5, rate = 0;
static conn *conns;
static int epoll, measuring, asking = 1;
static long answers, failed, short_answers, events, busy, first_events, reconnects, late;
static long bytes_in;
static hist first_hist, added_hist, send_hist, whole_hist, delay_hist, stretch_hist, gap_hist;
static uint32_t next_id;
static struct {
    uint32_t id;
    int64_t at;
} left_at[LEFT_MAX];
static size_t left_used;
static char buffer[READ_BYTES];
static int *free_list;
static long free_used;

static int mode_is(const char *name) { return !strcmp(mode, name); }

static void note(const char *what, const char *more) {
    if (*trouble) return;
    size_t at = (size_t)snprintf(trouble, sizeof trouble, "%s: %.300s", what, more);
    for (size_t i = 0; i < at && i < sizeof trouble; i++)
        if (trouble[i] < 32 || trouble[i] == '"' || trouble[i] == '\\') trouble[i] = ' ';
}

static void forget(conn *c) {
    if (c->fd >= 0) close(c->fd);
    c->fd = -1;
    if (c->state != IDLE) busy--;
    c->state = IDLE;
}

static void put(conn *c) {
    if (id_at) { /* the bytes are everybody's: the number in them is whose turn it is */
        char digits[8];
        snprintf(digits, sizeof digits, "%07x", c->id & 0xfffffff);
        memcpy(request + id_at, digits, 7);
    }
    while (c->sent < request_length) {
        ssize_t n = send(c->fd, request + c->sent, request_length - c->sent, MSG_NOSIGNAL);
        if (n < 0) {
            if (errno != EAGAIN) return; /* the answer, or its absence, says what it was */
            struct epoll_event e = {.events = EPOLLIN | EPOLLOUT, .data.u32 = (uint32_t)c->index};
            epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
            return;
        }
        c->sent += (size_t)n;
    }
}

static void ask(conn *c, int64_t at) {
    if (c->state == IDLE) busy++;
    c->asked = at;
    c->sent_at = now_ns();
    if (measuring) hist_add(&send_hist, c->sent_at - at);
    c->first = c->last_read = 0;
    c->last_delay = -1;
    c->length = -1;
    c->got = c->events = 0;
    c->chunked = c->close_after = c->status = 0;
    c->stamp_digits = -1;
    c->tail_used = 0;
    c->head_used = 0;
    c->sent = 0;
    c->id = ++next_id;
    c->leave_after = 2 + (long)(c->id % 5);
    if (c->fd >= 0) {
        c->state = HEAD;
        put(c);
        return;
    }
    int one = 1;
    c->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    if (c->fd < 0) die("socket");
    setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
    int status = connect(c->fd, (struct sockaddr *)&address, sizeof address);
    if (status && errno != EINPROGRESS) {
        note("connect", strerror(errno));
        failed++;
        forget(c);
        c->again = now_ns() + AGAIN_NS;
        return;
    }
    c->state = status ? CONNECTING : HEAD;
    struct epoll_event e = {.events = EPOLLIN | (status ? EPOLLOUT : 0), .data.u32 = (uint32_t)c->index};
    epoll_ctl(epoll, EPOLL_CTL_ADD, c->fd, &e);
    if (!status) put(c);
}

static void next(conn *c) {
    if (!asking || mode_is("once") || mode_is("hold")) return;
    if (mode_is("open"))
        free_list[free_used++] = c->index;
    else
        ask(c, now_ns());
}

static void fail(conn *c, const char *what, const char *more) {
    note(what, more);
    failed++;
    forget(c);
    c->again = now_ns() + AGAIN_NS;
    if (mode_is("open")) free_list[free_used++] = c->index;
}

static void finish(conn *c, int64_t now) {
    if (c->status != 200) {
        char said[32];
        snprintf(said, sizeof said, "%d without a body", c->status);
        note("answered", said); /* one with a body has been noted already */
        failed++;
    } else if (expect && c->events != expect) {
        short_answers++;
    } else if (measuring) {
        answers++;
        hist_add(&whole_hist, now - c->asked);
    }
    busy--;
    c->state = IDLE;
    if (c->close_after) {
        close(c->fd);
        c->fd = -1;
    }
    next(c);
}

static void leave(conn *c) {
    int64_t now = now_ns();
    close(c->fd);
    c->fd = -1;
    busy--;
    c->state = IDLE;
    if (measuring && left_used < LEFT_MAX) left_at[left_used].id = c->id, left_at[left_used++].at = now;
    c->again = now + 2000000;
}

static void on_stamp(conn *c, int64_t now) {
    int64_t written = (int64_t)c->stamp[0], arrived = (int64_t)c->stamp[1], delay = now - written;
    if (measuring) {
        if (c->events == 1) hist_add(&added_hist, (now - c->sent_at) - (written - arrived));
        hist_add(&delay_hist, delay);
        /* how much longer, or shorter, the gap before this event was than at the provider */
        if (c->last_delay >= 0) hist_add(&stretch_hist, delay - c->last_delay);
    }
    c->last_delay = delay < 0 ? 0 : delay;
}

/* Count the events in a piece of a body: their stamps may lie across the borders of reads and of chunks. */
static void scan(conn *c, const char *data, size_t length, int64_t now) {
    const char *at = data, *end = data + length;
    while (at < end) {
        if (c->stamp_digits >= 0) {
            while (at < end && c->stamp_digits < STAMP_DIGITS) {
                int digit = hex_digit((unsigned char)*at);
                if (digit < 0) break;
                uint64_t *clock = &c->stamp[c->stamp_digits++ / CLOCK_DIGITS];
                *clock = *clock << 4 | (uint64_t)digit;
                at++;
            }
            if (c->stamp_digits == STAMP_DIGITS)
                on_stamp(c, now);
            else if (at == end)
                return;
            else
                c->last_delay = -1; /* a border of chunks lies within it */
            c->stamp_digits = -1;
            continue;
        }
        at = memchr(at, STAMP, (size_t)(end - at));
        if (!at) return;
        at++;
        c->stamp_digits = 0;
        c->stamp[0] = c->stamp[1] = 0;
        if (!c->events++) first_events++;
        if (measuring) events++;
    }
}

static int has_ended(conn *c, const char *data, size_t length) {
    if (c->length >= 0) return c->got >= c->length;
    if (!c->chunked) return 0;
    static const char last[] = "\r\n0\r\n\r\n";
    if (length >= 7) return !memcmp(data + length - 7, last, 7);
    char joined[16];
    memcpy(joined, c->tail, (size_t)c->tail_used);
    memcpy(joined + c->tail_used, data, length);
    size_t all = (size_t)c->tail_used + length;
    return all >= 7 && !memcmp(joined + all - 7, last, 7);
}

static void keep_tail(conn *c, const char *data, size_t length) {
    if (length >= 7) {
        memcpy(c->tail, data + length - 7, 7);
        c->tail_used = 7;
        return;
    }
    size_t kept = (size_t)c->tail_used + length > 7 ? 7 - length : (size_t)c->tail_used;
    memmove(c->tail, c->tail + c->tail_used - kept, kept);
    memcpy(c->tail + kept, data, length);
    c->tail_used = (int)(kept + length);
}

/* Take the head of an answer; gives how much of the data belongs to it, or -1 while it is not whole. */
static long read_head(conn *c, const char *data, size_t length) {
    if (!c->head) c->head = grown(NULL, HEAD_MAX + 1);
    size_t before = c->head_used, room = HEAD_MAX - before, taken = length < room ? length : room;
    memcpy(c->head + before, data, taken);
    c->head[c->head_used = before + taken] = 0;
    char *end = strstr(c->head, "\r\n\r\n");
    if (!end) return c->head_used == HEAD_MAX ? -2 : -1;
    end[2] = 0; /* so that the last header has its line end, and no header is looked for in the body */
    c->status = atoi(c->head + 9);
    const char *size = header(c->head, "\r\ncontent-length:");
    c->chunked = header(c->head, "\r\ntransfer-encoding: chunked") != NULL;
    c->length = size && !c->chunked ? atol(size) : -1;
    c->close_after = header(c->head, "\r\nconnection: close") != NULL || (c->length < 0 && !c->chunked);
    c->state = BODY;
    long used = (long)(end + 4 - c->head) - (long)before;
    if (mode_is("hold")) { /* ten thousand of them need no buffers */
        free(c->head);
        c->head = NULL;
    }
    return used;
}

static void on_data(conn *c, const char *data, size_t length) {
    int64_t now = now_ns();
    if (measuring) bytes_in += (long)length;
    if (c->state == HEAD) {
        long used = read_head(c, data, length);
        if (used == -2) {
            fail(c, "head", "too long");
            return;
        }
        if (used < 0) return;
        data += used, length -= (size_t)used;
        if (!length && c->length != 0) return;
    }
    if (!c->first) {
        c->first = now;
        if (measuring && c->status == 200) hist_add(&first_hist, now - c->asked);
    } else if (measuring)
        hist_add(&gap_hist, now - c->last_read);
    c->last_read = now;
    c->got += (long)length;
    if (c->status == 200)
        scan(c, data, length, now);
    else if (length && !*trouble) {
        char said[256];
        snprintf(said, sizeof said, "%d %.*s", c->status, (int)(length < 200 ? length : 200), data);
        note("answered", said);
    }
    if (has_ended(c, data, length)) {
        finish(c, now);
        return;
    }
    keep_tail(c, data, length);
    if (mode_is("leave") && c->events >= c->leave_after && asking) leave(c);
}

static void on_event(conn *c, uint32_t what) {
    if (c->fd < 0) return;
    if (c->state == CONNECTING) {
        int error = 0;
        socklen_t size = sizeof error;
        getsockopt(c->fd, SOL_SOCKET, SO_ERROR, &error, &size);
        if (error) {
            fail(c, "connect", strerror(error));
            return;
        }
        c->state = HEAD;
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)c->index};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
        put(c);
        return;
    }
    if (what & EPOLLOUT) {
        struct epoll_event e = {.events = EPOLLIN, .data.u32 = (uint32_t)c->index};
        epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
        put(c);
    }
    if (!(what & (EPOLLIN | EPOLLHUP | EPOLLERR))) return;
    ssize_t got = recv(c->fd, buffer, sizeof buffer, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got > 0) {
        if (c->state != IDLE) {
            c->reused = 0;
            on_data(c, buffer, (size_t)got);
        }
        return;
    }
    if (c->state == IDLE) { /* an idle connection that the other side closes is no failure */
        close(c->fd);
        c->fd = -1;
        reconnects++;
    } else if (c->state == BODY && c->length < 0 && !c->chunked)
        finish(c, now_ns());
    else
        fail(c, "closed", c->state == HEAD ? "without an answer" : "in the middle of an answer");
}

static void poll_for(int64_t until) {
    struct epoll_event got[EVENTS_AT_ONCE];
    int n = wait_until(epoll, got, EVENTS_AT_ONCE, until);
    for (int i = 0; i < n; i++) on_event(&conns[got[i].data.u32], got[i].events);
}

static void begin(void) {
    measuring = 1;
    printf("begin\n");
    fflush(stdout);
}

static void read_arguments(int count, char **arguments) {
    char host[64] = "127.0.0.1", path[4096] = "";
    int port = 0;
    for (int i = 1; i < count; i++) {
        char *value = strchr(arguments[i], '=');
        if (!value) continue;
        *value++ = 0;
        const char *name = arguments[i];
        if (!strcmp(name, "host")) snprintf(host, sizeof host, "%s", value);
        else if (!strcmp(name, "port")) port = atoi(value);
        else if (!strcmp(name, "request")) snprintf(path, sizeof path, "%s", value);
        else if (!strcmp(name, "mode")) snprintf(mode, sizeof mode, "%s", value);
        else if (!strcmp(name, "connections")) connections = atol(value);
        else if (!strcmp(name, "seconds")) seconds = atof(value);
        else if (!strcmp(name, "warm")) warm = atof(value);
        else if (!strcmp(name, "ramp")) ramp = atof(value);
        else if (!strcmp(name, "drain")) drain = atof(value);
        else if (!strcmp(name, "rate")) rate = atof(value);
        else if (!strcmp(name, "expect")) expect = atol(value);
    }
    address = (struct sockaddr_in){.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    if (inet_pton(AF_INET, host, &address.sin_addr) != 1) die(host);
    FILE *file = fopen(path, "rb");
    if (!file) die(path);
    fseek(file, 0, SEEK_END);
    request_length = (size_t)ftell(file);
    rewind(file);
    request = grown(NULL, request_length + 1);
    if (fread(request, 1, request_length, file) != request_length) die(path);
    fclose(file);
    char *place = memmem(request, request_length, "#0000000", 8);
    if (place) *place = '0', id_at = (size_t)(place - request) + 1;
}

/* Start what is due by now: connections of the ramp, requests of the timetable, and those that failed before. */
static int64_t start_due(int64_t began, long *started) {
    int64_t now = now_ns(), soonest = now + SECOND / 20;
    if (mode_is("open")) {
        for (;;) {
            int64_t due = began + (int64_t)((double)*started * 1e9 / rate);
            if (!asking) return soonest;
            if (due > now) return due < soonest ? due : soonest;
            ++*started;
            if (!free_used)
                late++; /* nobody is free: the other side is far behind */
            else
                ask(&conns[free_list[--free_used]], due);
        }
    }
    for (; *started < connections; ++*started) {
        int64_t due = began + (int64_t)((double)*started * ramp * 1e9 / (double)connections);
        if (due > now) return due < soonest ? due : soonest;
        ask(&conns[*started], now_ns());
    }
    if (asking && !mode_is("once"))
        for (long i = 0; i < connections; i++)
            if (conns[i].again && conns[i].state == IDLE) {
                if (conns[i].again > now) {
                    if (conns[i].again < soonest) soonest = conns[i].again;
                    continue;
                }
                conns[i].again = 0;
                ask(&conns[i], now);
            }
    return soonest;
}

static void report(int64_t window, long cut) {
    struct rusage used;
    getrusage(RUSAGE_SELF, &used);
    long held = 0; /* streams that have begun and are still open */
    for (long i = 0; i < connections; i++) held += conns[i].state == BODY && conns[i].events > 0;
    double cpu = (double)(used.ru_utime.tv_sec + used.ru_stime.tv_sec) + (double)(used.ru_utime.tv_usec + used.ru_stime.tv_usec) / 1e6;
    printf("{\"seconds\":%.6f,\"answers\":%ld,\"failed\":%ld,\"short\":%ld,\"cut\":%ld,\"late\":%ld,\"reconnects\":%ld,"
           "\"events\":%ld,\"bytes\":%ld,\"streams_begun\":%ld,\"asked\":%u,\"held\":%ld,\"client_cpu_seconds\":%.6f,\"trouble\":\"%s\",",
           (double)window / 1e9, answers, failed, short_answers, cut, late, reconnects, events, bytes_in, first_events, next_id, held, cpu,
           trouble);
    hist_print("first_byte_ms", &first_hist);
    printf(",");
    hist_print("added_first_ms", &added_hist);
    printf(",");
    hist_print("send_late_ms", &send_hist);
    printf(",");
    hist_print("whole_answer_ms", &whole_hist);
    printf(",");
    hist_print("event_delay_ms", &delay_hist);
    printf(",");
    hist_print("gap_stretch_ms", &stretch_hist);
    printf(",");
    hist_print("read_gap_ms", &gap_hist);
    printf(",\"left\":[");
    for (size_t i = 0; i < left_used; i++) printf("%s[%u,%lld]", i ? "," : "", left_at[i].id, (long long)left_at[i].at);
    printf("]}\n");
}

int main(int count, char **arguments) {
    read_arguments(count, arguments);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    conns = calloc((size_t)connections, sizeof *conns);
    free_list = calloc((size_t)connections, sizeof *free_list);
    if (!conns || !free_list) die("memory");
    for (long i = 0; i < connections; i++) {
        conns[i].fd = -1;
        conns[i].index = (int)i;
        if (mode_is("open")) free_list[free_used++] = (int)(connections - 1 - i);
    }
    long started = 0;
    int once = mode_is("once"), hold = mode_is("hold");
    int64_t began = now_ns(), opened = began + (int64_t)(ramp * 1e9), window_from, window_to;
    if (once) begin();
    if (hold) { /* the window begins when all are there, or will not come */
        measuring = 1;
        int64_t deadline = opened + (int64_t)(drain * 1e9);
        while ((started < connections || first_events < connections) && now_ns() < deadline) poll_for(start_due(began, &started));
        printf("begin\n");
        fflush(stdout);
        window_from = now_ns();
    } else if (once)
        window_from = began;
    else {
        window_from = opened + (int64_t)(warm * 1e9);
        while (now_ns() < window_from) {
            int64_t due = start_due(began, &started);
            poll_for(due < window_from ? due : window_from);
        }
        begin();
        window_from = now_ns();
    }
    window_to = window_from + (int64_t)(seconds * 1e9);
    while (now_ns() < window_to) {
        int64_t due = start_due(began, &started);
        poll_for(due < window_to ? due : window_to);
        if (once && started == connections && !busy) break;
    }
    int64_t window = now_ns() - window_from;
    measuring = 0;
    asking = 0;
    printf("end\n");
    fflush(stdout);
    int64_t deadline = now_ns() + (int64_t)(hold ? 0 : drain * 1e9);
    while (busy && now_ns() < deadline) poll_for(deadline);
    report(window, hold ? 0 : busy);
    return 0;
}
