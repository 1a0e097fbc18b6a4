/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offer PORT REQUEST RATE SECONDS CONNECTIONS: offers a daemon on 127.0.0.1 load, for overload.py.
 *
 * REQUEST is a file with one complete HTTP request, which is sent again and again. With RATE > 0
 * requests are due at the times of a Poisson process of so many a second, whatever becomes of the
 * others (open loop): one that is due while no connection is free waits here, and latency counts
 * from when it was due. To cost little it then looks around every four milliseconds and not for every
 * request or answer, so latencies are too long by four on average. With RATE 0 every connection sends
 * its next request when it has its answer.
 *
 * One line of JSON on standard output: numbers of answers, latencies in ms of
 * those with status 200 and of the others, Retry-After of the others, and what it cost.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024, ANSWER_MAX = 65536, TICK_NS = 4000000, PATIENCE_S = 10 };

struct connection {
    int fd;
    bool busy;
    int64_t due_ns; /* of the request it is busy with */
    size_t got;
    char answer[ANSWER_MAX];
};

struct latencies {
    float *ms;
    size_t n, room;
};

struct offer {
    struct connection *all; /* [n] */
    int n, epoll_fd;
    struct connection *idle[CONNECTIONS_MAX]; /* a ring: each is used, lest the daemon closes it */
    int first_idle, n_idle;
    const char *request;
    size_t request_bytes;
    struct latencies good, refused;
    long long sent, other, without_retry;
    int retry_least, retry_most;
    double late_most_ms; /* from due to sent */
};

_Noreturn static void die(const char *what)
{
    fprintf(stderr, "offer: %s: %s\n", what, strerror(errno));
    exit(1);
}

static int64_t now_ns(void)
{
    struct timespec t;
    clock_gettime(CLOCK_MONOTONIC, &t);
    return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

static void note(struct latencies *l, int64_t ns)
{
    if (l->n == l->room) {
        l->room = l->room ? 2 * l->room : 1 << 16;
        l->ms = realloc(l->ms, l->room * sizeof *l->ms);
        if (!l->ms)
            die("no memory");
    }
    l->ms[l->n++] = (float)((double)ns * 1e-6);
}

static char *read_request(const char *path, size_t *size)
{
    enum { MOST = 1 << 20 };
    FILE *f = fopen(path, "rb");
    char *text = malloc(MOST);
    if (!f || !text)
        die(path);
    *size = fread(text, 1, MOST, f);
    fclose(f);
    return text;
}

static void rest(struct offer *o, struct connection *c)
{
    o->idle[(o->first_idle + o->n_idle++) % CONNECTIONS_MAX] = c;
}

static void dial(struct offer *o, int port)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int on = 1;
    for (int i = 0; i < o->n; i++) {
        struct connection *c = &o->all[i];
        struct epoll_event ev = {.events = EPOLLIN | EPOLLET, .data.ptr = c};
        c->fd = socket(AF_INET, SOCK_STREAM, 0);
        if (c->fd < 0 || connect(c->fd, (const struct sockaddr *)&to, sizeof to) != 0)
            die("connect");
        setsockopt(c->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        if (epoll_ctl(o->epoll_fd, EPOLL_CTL_ADD, c->fd, &ev) != 0)
            die("epoll");
        rest(o, c);
    }
}

static void send_one(struct offer *o, int64_t due_ns, int64_t now)
{
    struct connection *c = o->idle[o->first_idle];
    o->first_idle = (o->first_idle + 1) % CONNECTIONS_MAX;
    o->n_idle--;
    c->busy = true;
    c->due_ns = due_ns;
    c->got = 0;
    if (send(c->fd, o->request, o->request_bytes, MSG_NOSIGNAL) != (ssize_t)o->request_bytes)
        die("send");
    const double late = (double)(now - due_ns) * 1e-6;
    o->late_most_ms = late > o->late_most_ms ? late : o->late_most_ms;
    o->sent++;
}

/* The number that a header begins with, or -1. */
static long header(const char *head, const char *name)
{
    const char *at = strcasestr(head, name);
    return at ? strtol(at + strlen(name), NULL, 10) : -1;
}

static void take_refusal(struct offer *o, const char *head, int64_t ns)
{
    const long retry = header(head, "\r\nRetry-After: ");
    note(&o->refused, ns);
    if (retry < 0) {
        o->without_retry++;
        return;
    }
    o->retry_least = retry < o->retry_least ? (int)retry : o->retry_least;
    o->retry_most = retry > o->retry_most ? (int)retry : o->retry_most;
}

/* Reads all there is, ANSWER_MAX being more than any answer; at its end, books it. */
static void hear(struct offer *o, struct connection *c)
{
    const ssize_t n = recv(c->fd, c->answer + c->got, ANSWER_MAX - 1 - c->got, MSG_DONTWAIT);
    if (n < 0 && errno == EAGAIN)
        return;
    if (n <= 0)
        die("a connection was closed");
    c->got += (size_t)n;
    c->answer[c->got] = '\0';
    char *end = strstr(c->answer, "\r\n\r\n");
    if (!end)
        return;
    end[2] = '\0'; /* headers only, for as long as they are read */
    const long length = header(c->answer, "\r\nContent-Length: ");
    const bool whole = length >= 0 && c->got >= (size_t)(end + 4 - c->answer) + (size_t)length;
    if (whole) {
        const int status = atoi(c->answer + 9);
        const int64_t ns = now_ns() - c->due_ns;
        if (status == 200)
            note(&o->good, ns);
        else if (status == 503 || status == 429)
            take_refusal(o, c->answer, ns);
        else
            o->other++;
        c->busy = false;
        rest(o, c);
    }
    end[2] = '\r';
}

static void hear_all(struct offer *o, int timeout_ms)
{
    struct epoll_event events[256];
    const int n = epoll_wait(o->epoll_fd, events, 256, timeout_ms);
    for (int i = 0; i < n; i++)
        hear(o, events[i].data.ptr);
}

static void sleep_a_tick(int64_t *tick)
{
    const int64_t now = now_ns();
    *tick = *tick + TICK_NS > now ? *tick + TICK_NS : now + TICK_NS;
    const struct timespec until = {.tv_sec = *tick / 1000000000, .tv_nsec = *tick % 1000000000};
    clock_nanosleep(CLOCK_MONOTONIC, TIMER_ABSTIME, &until, NULL);
}

static double interval_ns(double rate)
{
    return -log1p(-drand48()) / rate * 1e9;
}

static long long offer_open(struct offer *o, double rate, int64_t begin, int64_t end)
{
    double due = (double)begin + interval_ns(rate);
    long long unsent = 0;
    for (int64_t tick = begin; now_ns() < end;) {
        sleep_a_tick(&tick);
        hear_all(o, 0);
        for (int64_t now; due <= (double)(now = now_ns()) && o->n_idle > 0;) {
            send_one(o, (int64_t)due, now);
            due += interval_ns(rate);
        }
    }
    for (; due <= (double)end; due += interval_ns(rate))
        unsent++;
    return unsent;
}

static void offer_closed(struct offer *o, int64_t end)
{
    for (int64_t now = now_ns(); now < end; now = now_ns()) {
        while (o->n_idle > 0)
            send_one(o, now, now);
        hear_all(o, 100);
    }
}

static int ascending(const void *a, const void *b)
{
    const float x = *(const float *)a, y = *(const float *)b;
    return (x > y) - (x < y);
}

static void print_latencies(const char *name, struct latencies *l)
{
    static const double parts[] = {.5, .9, .99, .999, 1};
    static const char *const words[] = {"p50", "p90", "p99", "p999", "max"};
    if (l->n)
        qsort(l->ms, l->n, sizeof *l->ms, ascending);
    printf("\"%s\":{\"n\":%zu", name, l->n);
    for (int i = 0; i < 5 && l->n; i++)
        printf(",\"%s\":%.3f", words[i], (double)l->ms[(size_t)ceil(parts[i] * (double)l->n) - 1]);
    printf("},");
}

static double cpu_seconds(void)
{
    struct rusage u;
    getrusage(RUSAGE_SELF, &u);
    return (double)(u.ru_utime.tv_sec + u.ru_stime.tv_sec) +
           (double)(u.ru_utime.tv_usec + u.ru_stime.tv_usec) * 1e-6;
}

int main(int argc, char **argv)
{
    static struct offer o;
    if (argc != 6)
        die("PORT REQUEST RATE SECONDS CONNECTIONS");
    const double rate = atof(argv[3]), seconds = atof(argv[4]);
    o.n = atoi(argv[5]);
    o.retry_least = INT32_MAX;
    if (o.n < 1 || o.n > CONNECTIONS_MAX || rate < 0 || !(seconds > 0))
        die("RATE >= 0, SECONDS > 0, CONNECTIONS 1..1024");
    o.request = read_request(argv[2], &o.request_bytes);
    o.all = calloc((size_t)o.n, sizeof *o.all);
    o.epoll_fd = epoll_create1(0);
    if (!o.all || o.epoll_fd < 0)
        die("no memory");
    prctl(PR_SET_TIMERSLACK, 1);
    setpriority(PRIO_PROCESS, 0,
                getpriority(PRIO_PROCESS, 0) -
                    10); /* clients have machines of their own; needs to be allowed */
    srand48(7);
    dial(&o, atoi(argv[1]));
    const double cpu = cpu_seconds();
    const int64_t begin = now_ns(), end = begin + (int64_t)(seconds * 1e9);
    long long unsent = 0;
    if (rate > 0)
        unsent = offer_open(&o, rate, begin, end);
    else
        offer_closed(&o, end);
    const double wall = (double)(now_ns() - begin) * 1e-9, used = cpu_seconds() - cpu;
    const size_t in_time = o.good.n;
    for (int64_t tick = end; o.n_idle < o.n && now_ns() < end + PATIENCE_S * INT64_C(1000000000);) {
        sleep_a_tick(&tick);
        hear_all(&o, 0);
    }
    printf("{\"sent\":%lld,\"unsent\":%lld,\"unanswered\":%d,\"other\":%lld,", o.sent, unsent,
           o.n - o.n_idle, o.other);
    print_latencies("good", &o.good);
    print_latencies("refused", &o.refused);
    printf("\"good_per_second\":%.3f,\"without_retry_after\":%lld,\"retry_after_least\":%d,"
           "\"retry_after_most\":%d,\"late_most_ms\":%.3f,\"wall_seconds\":%.3f,"
           "\"cpu_seconds\":%.3f}\n",
           (double)in_time / wall, o.without_retry, o.refused.n ? o.retry_least : 0, o.retry_most,
           o.late_most_ms, wall, used);
    return 0;
}
