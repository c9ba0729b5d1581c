/* The bench's stand-in provider: OpenAI chat completions over one epoll loop, so lean that it is never what is measured.

Run as `provider [PORT]`; it prints its port and serves until standard input closes. What to answer stands in the text of
the request, so that it passes through any gateway:

    bench=KIND,EVENTS,GAP_US,FIRST_US,ID;

KIND is `plain` (one JSON body) or `stream`. A stream has EVENTS events, the first FIRST_US after the request, the others
GAP_US apart on a timetable that does not slip. Each event is one write, even if we are late and several are due: how
many a gateway finds in one read decides what an event costs it. It carries its time and that of the request's arrival
(see `common.h`). A provider whose client does not read waits, as a real one would. An ID that is not 0 has the end of its
connection noted. `GET /bench/stats` tells who we are and what has been seen, and forgets the latter; `GET /bench/drop`
hangs up on every answer that is under way. */

#include "common.h"

#define EVENTS_AT_ONCE 512
#define CLOSED_MAX 65536
#define BODY_MAX (64 << 20)

static const char EVENT[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
    "\"choices\":[{\"index\":0,\"delta\":{\"content\":\"@00000000000000000000000000000000\"},\"finish_reason\":null}],"
    "\"usage\":null}\n\n";
static const char FINISH[] =
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
    "\"choices\":[{\"index\":0,\"delta\":{},\"finish_reason\":\"stop\"}],\"usage\":null}\n\n"
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\",\"created\":1700000000,\"model\":\"bench\","
    "\"choices\":[],\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":%ld,\"total_tokens\":%ld}}\n\ndata: [DONE]\n\n";
static const char PLAIN[] =
    "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":1700000000,\"model\":\"bench\",\"choices\":[{"
    "\"index\":0,\"message\":{\"role\":\"assistant\",\"content\":\"Hello from the bench.\"},\"finish_reason\":\"stop\"}],"
    "\"usage\":{\"prompt_tokens\":10,\"completion_tokens\":5,\"total_tokens\":15}}";
static const char STREAM_HEAD[] = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\nx-request-id: bench\r\n"
                                  "transfer-encoding: chunked\r\n\r\n";

typedef struct {
    int fd;
    int writing, want_write, paced, begun, scheduled;
    uint32_t generation; /* a timer of an earlier connection on this descriptor must not touch this one */
    char *in;
    size_t in_used, in_room;
    char *out;
    size_t out_used, out_sent, out_room;
    long left, total;
    int64_t arrived, gap, due;
    uint32_t id;
} conn;

typedef struct {
    int64_t at;
    int fd;
    uint32_t generation;
} timer;

static struct {
    uint32_t id;
    int64_t at;
} closed[CLOSED_MAX];

static conn **conns;
static int conns_room, epoll, listener;
static timer *heap;
static size_t heap_used, heap_room;
static uint32_t generations;
static size_t closed_used;
static long requests, events_sent, open_streams;
static hist lag;
static char plain_answer[1024], frame[512];
static size_t plain_length, frame_length, stamp_at;

static void heap_push(timer t) {
    if (heap_used == heap_room) heap = grown(heap, (heap_room = heap_room ? heap_room * 2 : 1024) * sizeof *heap);
    size_t i = heap_used++;
    while (i && heap[(i - 1) / 2].at > t.at) heap[i] = heap[(i - 1) / 2], i = (i - 1) / 2;
    heap[i] = t;
}

static timer heap_pop(void) {
    timer top = heap[0], last = heap[--heap_used];
    size_t i = 0;
    for (;;) {
        size_t child = 2 * i + 1;
        if (child >= heap_used) break;
        if (child + 1 < heap_used && heap[child + 1].at < heap[child].at) child++;
        if (heap[child].at >= last.at) break;
        heap[i] = heap[child], i = child;
    }
    heap[i] = last;
    return top;
}

static void wants_write(conn *c, int wanted) {
    if (c->want_write == wanted) return;
    struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP | (wanted ? EPOLLOUT : 0), .data.fd = c->fd};
    epoll_ctl(epoll, EPOLL_CTL_MOD, c->fd, &e);
    c->want_write = wanted;
}

static void hang_up(conn *c) {
    if (c->id && closed_used < CLOSED_MAX) closed[closed_used].id = c->id, closed[closed_used++].at = now_ns();
    if (c->writing) open_streams--;
    conns[c->fd] = NULL;
    close(c->fd);
    free(c->in);
    free(c->out);
    free(c);
}

/* Send bytes now, or keep what does not go. Gives -1 if the connection is gone; then so is `c`. */
static int put(conn *c, const char *data, size_t length) {
    if (!c->out_used) {
        ssize_t sent = send(c->fd, data, length, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) return hang_up(c), -1;
            sent = 0;
        }
        data += sent, length -= (size_t)sent;
        if (!length) return 0;
    }
    if (c->out_used + length > c->out_room) c->out = grown(c->out, c->out_room = (c->out_used + length) * 2);
    memcpy(c->out + c->out_used, data, length);
    c->out_used += length;
    wants_write(c, 1);
    return 0;
}

static void put_clock(char *to, int64_t at) {
    static const char digits[] = "0123456789abcdef";
    for (int i = CLOCK_DIGITS - 1; i >= 0; i--, at >>= 4) to[i] = digits[at & 15];
}

static int put_event(conn *c) {
    put_clock(frame + stamp_at, now_ns());
    put_clock(frame + stamp_at + CLOCK_DIGITS, c->arrived);
    c->left--;
    events_sent++;
    return put(c, frame, frame_length);
}

static int put_end(conn *c) {
    char text[1024], framed[1200];
    int length = snprintf(text, sizeof text, FINISH, c->total, c->total + 10);
    int whole = snprintf(framed, sizeof framed, "%x\r\n%s\r\n0\r\n\r\n", (unsigned)length, text);
    c->writing = 0;
    c->id = 0;
    open_streams--;
    return put(c, framed, (size_t)whole);
}

static void schedule(conn *c) {
    if (c->scheduled) return;
    c->scheduled = 1;
    heap_push((timer){c->due, c->fd, c->generation});
}

/* Write what is due of a paced stream; one that its client holds up goes on when there is room again. */
static void on_due(conn *c) {
    if (c->out_used) return; /* `on_writable` schedules it */
    if (c->gap || !c->begun) hist_add(&lag, now_ns() - c->due);
    if (!c->paced) { /* one body, after its time */
        c->writing = 0;
        open_streams--;
        c->id = 0;
        put(c, plain_answer, plain_length);
        return;
    }
    c->begun = 1;
    if (c->gap) {
        if (put_event(c)) return;
        c->due += c->gap;
    } else
        for (int i = 0; i < 64 && c->left && !c->out_used; i++)
            if (put_event(c)) return;
    if (!c->left)
        put_end(c);
    else if (!c->out_used)
        schedule(c);
}

static void answer(conn *c, const char *body, size_t length) {
    requests++;
    const char *at = memmem(body, length, "bench=", 6);
    char kind[8] = "plain";
    long total = 0, gap_us = 0, first_us = 0;
    unsigned id = 0;
    if (at) {
        char text[80];
        size_t rest = (size_t)(body + length - at), most = rest < sizeof text - 1 ? rest : sizeof text - 1;
        memcpy(text, at, most);
        text[most] = 0;
        sscanf(text, "bench=%7[a-z],%ld,%ld,%ld,%8x;", kind, &total, &gap_us, &first_us, &id);
    }
    int stream = kind[0] == 's' && total > 0;
    if (!stream && !first_us) {
        put(c, plain_answer, plain_length);
        return;
    }
    c->id = id;
    c->writing = 1;
    c->paced = stream;
    c->begun = 0;
    c->left = c->total = total;
    c->gap = gap_us * 1000;
    c->arrived = now_ns();
    c->due = c->arrived + first_us * 1000;
    open_streams++;
    if (stream && put(c, STREAM_HEAD, sizeof STREAM_HEAD - 1)) return;
    schedule(c);
}

static void tell_stats(conn *c) {
    char *text = NULL;
    size_t length = 0;
    FILE *out = open_memstream(&text, &length), *usual = stdout;
    stdout = out;
    printf("{\"pid\":%d,\"requests\":%ld,\"events\":%ld,\"open\":%ld,", getpid(), requests, events_sent, open_streams);
    hist_print("lag_ms", &lag);
    printf(",\"closed\":[");
    for (size_t i = 0; i < closed_used; i++)
        printf("%s[%u,%lld]", i ? "," : "", closed[i].id, (long long)closed[i].at);
    printf("]}");
    stdout = usual;
    fclose(out);
    char head[128];
    int n = snprintf(head, sizeof head, "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %zu\r\n\r\n", length);
    requests = events_sent = 0;
    closed_used = 0;
    memset(&lag, 0, sizeof lag);
    if (!put(c, head, (size_t)n)) put(c, text, length);
    free(text);
}

/* Nobody waits for these answers any more, but some gateways read on: the next measurement is to have us to itself. */
static void drop(conn *asking) {
    for (int fd = 0; fd < conns_room; fd++)
        if (conns[fd] && conns[fd] != asking && conns[fd]->writing) hang_up(conns[fd]);
    static const char done[] = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 2\r\n\r\n{}";
    put(asking, done, sizeof done - 1);
}

/* The length of a body in chunks that is whole, framing included, or 0; the content is moved to `start`. */
static size_t unchunk(char *start, size_t used, size_t *content) {
    size_t at = 0, kept = 0;
    for (int moving = 0; moving < 2; moving++)
        for (at = kept = 0;;) {
            char *line = memmem(start + at, used - at, "\r\n", 2);
            if (!line) return 0;
            size_t size = strtoul(start + at, NULL, 16), data = (size_t)(line - start) + 2;
            if (data + size + 2 > used) return 0;
            if (moving && size) memmove(start + kept, start + data, size);
            kept += size;
            at = data + size + 2;
            if (!size) {
                if (moving) return *content = kept, at;
                break;
            }
        }
    return 0;
}

static void on_readable(conn *c) {
    int fd = c->fd;
    if (c->in_room - c->in_used < 65536) c->in = grown(c->in, c->in_room = (c->in_room + 65536) * 2);
    ssize_t got = recv(fd, c->in + c->in_used, c->in_room - c->in_used - 1, 0);
    if (got < 0 && errno == EAGAIN) return;
    if (got <= 0) {
        hang_up(c);
        return;
    }
    c->in_used += (size_t)got;
    while (c->in_used && conns[fd] == c) {
        c->in[c->in_used] = 0;
        char *end = memmem(c->in, c->in_used, "\r\n\r\n", 4);
        if (!end) return;
        *end = 0;
        char *body = end + 4;
        size_t there = c->in_used - (size_t)(body - c->in), whole = 0, content = 0;
        const char *length = header(c->in, "\r\ncontent-length:"), *chunked = header(c->in, "\r\ntransfer-encoding: chunked");
        int missing = 0;
        if (chunked)
            missing = !(whole = unchunk(body, there, &content));
        else {
            whole = content = length ? strtoul(length, NULL, 10) : 0;
            missing = there < whole;
        }
        if (missing) {
            *end = '\r';
            if (whole > BODY_MAX || c->in_used > BODY_MAX) {
                hang_up(c);
                return;
            }
            if (whole > c->in_room - (size_t)(body - c->in)) c->in = grown(c->in, c->in_room = whole + 131072);
            return;
        }
        if (!strncmp(c->in, "GET /bench/stats", 16))
            tell_stats(c);
        else if (!strncmp(c->in, "GET /bench/drop", 15))
            drop(c);
        else
            answer(c, body, content);
        if (conns[fd] != c) return;
        size_t used = (size_t)(body - c->in) + whole;
        memmove(c->in, c->in + used, c->in_used -= used);
    }
    if (!c->in_used && c->in_room > 262144) { /* ten thousand idle streams keep no large buffers */
        free(c->in);
        c->in = NULL;
        c->in_room = 0;
    }
}

static void on_writable(conn *c) {
    while (c->out_sent < c->out_used) {
        ssize_t sent = send(c->fd, c->out + c->out_sent, c->out_used - c->out_sent, MSG_NOSIGNAL);
        if (sent < 0) {
            if (errno != EAGAIN) hang_up(c);
            return;
        }
        c->out_sent += (size_t)sent;
    }
    c->out_used = c->out_sent = 0;
    wants_write(c, 0);
    if (!c->writing) return;
    if (c->left)
        schedule(c);
    else
        put_end(c);
}

static void on_connection(void) {
    for (;;) {
        int fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC), one = 1;
        if (fd < 0) return;
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &one, sizeof one);
        if (fd >= conns_room) {
            int room = fd * 2 + 64;
            conns = grown(conns, (size_t)room * sizeof *conns);
            memset(conns + conns_room, 0, (size_t)(room - conns_room) * sizeof *conns);
            conns_room = room;
        }
        conn *c = calloc(1, sizeof *c);
        if (!c) die("memory");
        c->fd = fd;
        c->generation = ++generations;
        conns[fd] = c;
        struct epoll_event e = {.events = EPOLLIN | EPOLLRDHUP, .data.fd = fd};
        epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &e);
    }
}

static void prepare(void) {
    plain_length = (size_t)snprintf(plain_answer, sizeof plain_answer,
                                    "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nx-request-id: bench\r\n"
                                    "content-length: %zu\r\n\r\n%s", sizeof PLAIN - 1, PLAIN);
    frame_length = (size_t)snprintf(frame, sizeof frame, "%zx\r\n%s\r\n", sizeof EVENT - 1, EVENT);
    stamp_at = (size_t)(strchr(frame, STAMP) - frame) + 1;
}

int main(int count, char **arguments) {
    struct sockaddr_in at = {.sin_family = AF_INET, .sin_port = htons(count > 1 ? (uint16_t)atoi(arguments[1]) : 0),
                             .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    socklen_t size = sizeof at;
    int one = 1;
    prepare();
    listener = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0);
    setsockopt(listener, SOL_SOCKET, SO_REUSEADDR, &one, sizeof one);
    if (bind(listener, (struct sockaddr *)&at, size) || listen(listener, 4096)) die("listen");
    getsockname(listener, (struct sockaddr *)&at, &size);
    printf("%d\n", ntohs(at.sin_port));
    fflush(stdout);
    epoll = epoll_create1(EPOLL_CLOEXEC);
    struct epoll_event e = {.events = EPOLLIN, .data.fd = listener}, got[EVENTS_AT_ONCE];
    epoll_ctl(epoll, EPOLL_CTL_ADD, listener, &e);
    e = (struct epoll_event){.events = EPOLLIN, .data.fd = STDIN_FILENO};
    if (epoll_ctl(epoll, EPOLL_CTL_ADD, STDIN_FILENO, &e) && errno != EPERM) die("standard input");
    for (;;) {
        int n = wait_until(epoll, got, EVENTS_AT_ONCE, heap_used ? heap[0].at : now_ns() + 3600 * SECOND);
        for (int i = 0; i < n; i++) {
            int fd = got[i].data.fd;
            if (fd == listener) {
                on_connection();
                continue;
            }
            if (fd == STDIN_FILENO) {
                char dropped[256];
                if (read(fd, dropped, sizeof dropped) <= 0) return 0;
                continue;
            }
            conn *c = fd < conns_room ? conns[fd] : NULL;
            if (!c) continue;
            if (got[i].events & (EPOLLRDHUP | EPOLLHUP | EPOLLERR)) {
                hang_up(c);
                continue;
            }
            if (got[i].events & EPOLLIN) on_readable(c);
            if ((got[i].events & EPOLLOUT) && conns[fd] == c) on_writable(c);
        }
        int64_t now = now_ns();
        for (int budget = 4096; heap_used && heap[0].at <= now && budget; budget--) {
            timer t = heap_pop();
            conn *c = t.fd < conns_room ? conns[t.fd] : NULL;
            if (!c || c->generation != t.generation) continue;
            c->scheduled = 0;
            if (c->writing) on_due(c);
        }
    }
}
