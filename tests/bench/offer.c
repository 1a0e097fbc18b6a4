/* SPDX-License-Identifier: Apache-2.0 */
/*
 * offer PORT REQUEST RATE SECONDS CONNECTIONS: offers a daemon on 127.0.0.1 load, for overload.py.
 *
 * REQUEST is a file with one complete HTTP request, which is sent again and again. With RATE > 0
 * requests are due at the times of a Poisson process of so many a second, whatever becomes of the
 * others (open loop): one that is due while no connection is free waits here, and latency counts
 * from when it was due. To cost little it then looks around every four milliseconds and not for every
 * request or answer, so latencies are too long by four on average, and hands what it has to send and
 * to receive to the kernel in one call (io_uring, Linux 6.1). With RATE 0 every connection sends its
 * next request when it has its answer.
 *
 * One line of JSON on standard output: numbers of answers, latencies in ms of
 * those with status 200 and of the others, Retry-After of the others, and what it cost.
 */
#include <arpa/inet.h>
#include <errno.h>
#include <liburing.h>
#include <math.h>
#include <netinet/tcp.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

enum { CONNECTIONS_MAX = 1024, ANSWER_MAX = 4096, TICK_NS = 4000000, PATIENCE_S = 10 };

struct connection {
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
    int n;
    struct io_uring ring;                     /* its file i is the socket of all[i] */
    struct connection *idle[CONNECTIONS_MAX]; /* a ring */
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

static void set_up_ring(struct io_uring *ring)
{
    /* An operation's end is dealt with when this thread asks, not whenever an answer arrives. */
    const unsigned flags = IORING_SETUP_SINGLE_ISSUER | IORING_SETUP_DEFER_TASKRUN;
    errno = -io_uring_queue_init(2 * CONNECTIONS_MAX, ring, flags);
    if (errno)
        die("io_uring");
}

/* The one that rests since the shortest time, whose memory is in caches; now and then the one that rests
 * longest, lest the daemon closes it. */
static struct connection *wake(struct offer *o)
{
    if (o->sent % 16 > 0)
        return o->idle[(o->first_idle + --o->n_idle) % CONNECTIONS_MAX];
    struct connection *c = o->idle[o->first_idle];
    o->first_idle = (o->first_idle + 1) % CONNECTIONS_MAX;
    o->n_idle--;
    return c;
}

static void dial(struct offer *o, int port)
{
    const struct sockaddr_in to = {.sin_family = AF_INET,
                                   .sin_port = htons((uint16_t)port),
                                   .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int on = 1;
    int sockets[CONNECTIONS_MAX];
    for (int i = 0; i < o->n; i++) {
        sockets[i] = socket(AF_INET, SOCK_STREAM, 0);
        if (sockets[i] < 0 || connect(sockets[i], (const struct sockaddr *)&to, sizeof to) != 0)
            die("connect");
        setsockopt(sockets[i], IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        rest(o, &o->all[i]);
    }
    errno = -io_uring_register_files(&o->ring, sockets, (unsigned)o->n);
    if (errno)
        die("io_uring: sockets");
}

/* An operation on c's socket, for the next submission. Never more than two a connection, so there is room. */
static struct io_uring_sqe *next_operation(struct offer *o)
{
    struct io_uring_sqe *op = io_uring_get_sqe(&o->ring);
    if (!op)
        die("io_uring: no room");
    return op;
}

static void expect(struct offer *o, struct connection *c)
{
    struct io_uring_sqe *op = next_operation(o);
    io_uring_prep_recv(op, (int)(c - o->all), c->answer + c->got, ANSWER_MAX - 1 - c->got, 0);
    op->ioprio = IORING_RECVSEND_POLL_FIRST; /* nothing has come yet */
    io_uring_sqe_set_flags(op, IOSQE_FIXED_FILE);
    io_uring_sqe_set_data(op, c);
}

static void send_one(struct offer *o, int64_t due_ns, int64_t now)
{
    struct connection *c = wake(o);
    struct io_uring_sqe *op = next_operation(o);
    c->busy = true;
    c->due_ns = due_ns;
    c->got = 0;
    io_uring_prep_send(op, (int)(c - o->all), o->request, o->request_bytes,
                       MSG_NOSIGNAL | MSG_WAITALL);
    io_uring_sqe_set_flags(op, IOSQE_FIXED_FILE | IOSQE_CQE_SKIP_SUCCESS);
    io_uring_sqe_set_data(op, NULL); /* heard of only if it fails */
    expect(o, c);
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

/* Books an answer when it is whole, ANSWER_MAX being more than any, and false while more of it is to come. */
static bool take_answer(struct offer *o, struct connection *c, size_t n)
{
    c->got += n;
    c->answer[c->got] = '\0';
    char *end = strstr(c->answer, "\r\n\r\n");
    if (!end)
        return false;
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
    return whole;
}

/*
 * Hands over what is to be sent and received, waits at most so long for something to come, and takes
 * some of what came: the kernel deals with 20 ends a call. Their number.
 */
static unsigned hear_some(struct offer *o, int timeout_ms)
{
    struct __kernel_timespec patience = {.tv_nsec = timeout_ms * 1000000LL};
    struct io_uring_cqe *ends[2 * CONNECTIONS_MAX];
    const int rc = timeout_ms ? io_uring_submit_and_wait_timeout(&o->ring, ends, 1, &patience, NULL)
                              : io_uring_submit_and_get_events(&o->ring);
    if (rc < 0 && rc != -ETIME && rc != -EINTR) {
        errno = -rc;
        die("io_uring");
    }
    const unsigned n = io_uring_peek_batch_cqe(&o->ring, ends, 2 * CONNECTIONS_MAX);
    for (unsigned i = 0; i < n; i++) {
        struct connection *c = io_uring_cqe_get_data(ends[i]);
        errno = ends[i]->res < 0 ? -ends[i]->res : 0;
        if (!c || ends[i]->res <= 0)
            die(c ? "a connection was closed, or an answer is too long" : "send");
        if (!take_answer(o, c, (size_t)ends[i]->res))
            expect(o, c);
    }
    io_uring_cq_advance(&o->ring, n);
    return n;
}

static void hear_all(struct offer *o)
{
    while (hear_some(o, 0) > 0)
        ;
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
        hear_all(o);
        for (int64_t now; due <= (double)(now = now_ns()) && o->n_idle > 0;) {
            send_one(o, (int64_t)due, now);
            due += interval_ns(rate);
        }
        io_uring_submit(&o->ring);
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
        hear_some(o, 100);
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
    if (!o.all)
        die("no memory");
    set_up_ring(&o.ring);
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
        hear_all(&o);
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
