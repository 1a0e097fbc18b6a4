/* SPDX-License-Identifier: Apache-2.0 */
/* Slow clients, clients that leave, streams, and the end of the server. */
#include "unit/http_fixture.h"
#include "unit/set_clock.h"

#include <stdbool.h>

static struct fixture *impatient(int header_ms, int body_ms, int idle_ms, int write_ms)
{
    struct http_settings s = patient_settings();
    s.header_timeout_ms = header_ms ? header_ms : s.header_timeout_ms;
    s.body_timeout_ms = body_ms ? body_ms : s.body_timeout_ms;
    s.idle_timeout_ms = idle_ms ? idle_ms : s.idle_timeout_ms;
    s.write_timeout_ms = write_ms ? write_ms : s.write_timeout_ms;
    return open_with(&s);
}

/* Sends text and then more of the same, a byte at a time, until the other side closes; returns the
 * milliseconds it took. */
static int drip(int fd, const char *text)
{
    const int64_t start = timing_ns();
    const size_t size = strlen(text);
    char byte;
    for (size_t i = 0; i < 1000; i++) {
        if (send(fd, i < size ? text + i : "x", 1, MSG_NOSIGNAL) < 0 ||
            recv(fd, &byte, 1, MSG_DONTWAIT | MSG_PEEK) == 0)
            return (int)((timing_ns() - start) / 1000000);
        sleep_ms(10);
    }
    fail_msg("nobody cut the slow client");
    return 0;
}

static void slow_headers_are_cut_in_time(void **state)
{
    (void)state;
    struct fixture *f = impatient(200, 0, 0, 0);
    int fd = dial(f);
    const int took = drip(fd, "GET /slow HTTP/1.1\r\nHost: h\r\nX: ");
    assert_in_range(took, 150, 3000);
    close(fd);
    wait_for(&f->slow_headers, 1);
    fd = dial(f); /* and one that says nothing at all */
    char out[16];
    assert_true(hear(fd, out, sizeof out, NULL) <= 0);
    wait_for(&f->slow_headers, 2);
    close(fd);
    close_fixture(f);
}

static void a_slow_next_request_is_cut_like_the_first(void **state)
{
    (void)state;
    struct fixture *f = impatient(200, 0, 60000, 0);
    char out[4096];
    const int fd = dial(f);
    says(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    hear(fd, out, sizeof out, "body=");
    sleep_ms(500); /* idle is allowed */
    const int took = drip(fd, "GET /slow");
    assert_in_range(took, 150, 3000);
    wait_for(&f->slow_headers, 1);
    close(fd);
    close_fixture(f);
}

static void a_slow_body_is_cut_in_time(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 200, 0, 0);
    const int fd = dial(f);
    says(fd, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 1000\r\n\r\n");
    const int took = drip(fd, "body");
    assert_in_range(took, 150, 3000);
    wait_for(&f->slow_body, 1);
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->last_status), 408);
    assert_int_equal(atomic_load(&f->gone_done), 1);
    assert_int_equal(atomic_load(&f->handled), 0);
    close(fd);
    close_fixture(f);
}

static void an_idle_connection_ends(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 200, 0);
    char out[4096];
    const int fd = dial(f);
    says(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    const int64_t start = timing_ns();
    assert_true(hear(fd, out, sizeof out, NULL) > 0);
    assert_in_range((timing_ns() - start) / 1000000, 150, 3000);
    close(fd);
    assert_int_equal(atomic_load(&f->slow_headers), 0);
    close_fixture(f);
}

static void a_client_that_does_not_read_is_cut(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 200);
    const int a = dial(f), b = dial(f);
    says(a, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n");
    says(b, "GET /flood HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_for(&f->done, 2);
    assert_int_equal(atomic_load(&f->gone_done), 2);
    wait_for(&f->closed_streams, 1);
    close(a);
    close(b);
    close_fixture(f);
}

static void a_client_that_reads_slowly_is_not_cut(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 400);
    static char piece[1 << 16];
    size_t total = 0;
    const int64_t start = timing_ns();
    const int fd = dial(f);
    says(fd, "GET /big HTTP/1.0\r\n\r\n");
    for (;;) {
        const ssize_t n = recv(fd, piece, sizeof piece, 0);
        assert_true(n >= 0);
        if (n == 0)
            break;
        total += (size_t)n;
        if (total < 6 << 20)
            sleep_ms(10);
    }
    assert_true(timing_ns() - start > 600000000);
    assert_true(total > 8 << 20);
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->gone_done), 0);
    close(fd);
    close_fixture(f);
}

static struct request *wait_held(struct fixture *f)
{
    for (int i = 0; i < 2500 && !atomic_load(&f->held); i++)
        sleep_ms(2);
    assert_non_null(atomic_load(&f->held));
    return atomic_load(&f->held);
}

static int hang(struct fixture *f)
{
    const int fd = dial(f);
    says(fd, "GET /hang HTTP/1.1\r\nHost: h\r\n\r\n");
    wait_held(f);
    return fd;
}

static void a_client_that_leaves_is_noticed_while_its_request_waits(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int fd = hang(f);
    struct request *r = atomic_load(&f->held);
    assert_int_equal(http_in_flight(f->http), 1);
    assert_false(request_gone(r));
    close(fd);
    wait_for(&f->on_gone, 1);
    assert_true(request_gone(r));
    assert_int_equal(atomic_load(&f->done), 0);
    request_on_gone(r, count_gone, f); /* late: runs at once */
    assert_int_equal(atomic_load(&f->on_gone), 2);
    reply_text(r, 200, "nobody reads this");
    wait_for(&f->done, 1);
    wait_for(&f->freed, 1);
    assert_int_equal(atomic_load(&f->on_gone), 2);
    close_fixture(f);
}

static void a_client_that_has_left_before_is_known_at_handle(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int fd = dial(f);
    says(fd, "GET /later HTTP/1.1\r\nHost: h\r\n\r\nGET /hang HTTP/1.1\r\nHost: h\r\n\r\n");
    shutdown(fd, SHUT_WR);
    wait_for(&f->on_gone, 1);
    assert_int_equal(atomic_load(&f->request_gone_at_handle), 1);
    reply_text(wait_held(f), 200, "still answered");
    char out[4096];
    hear(fd, out, sizeof out, NULL);
    assert_non_null(strstr(out, "still answered"));
    close(fd);
    close_fixture(f);
}

static void no_gone_callback_comes_after_the_reply(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    for (int i = 0; i < 100; i++) {
        atomic_store(&f->held, NULL);
        const int fd = hang(f), before = atomic_load(&f->on_gone);
        close(fd);
        if (i % 2)
            wait_for(&f->on_gone, before + 1);
        reply_text(atomic_load(&f->held), 200, "x");
        const int seen = atomic_load(&f->on_gone);
        assert_int_equal(atomic_load(&f->gone_left), seen);
        wait_for(&f->done, i + 1);
        assert_int_equal(atomic_load(&f->on_gone), seen);
    }
    close_fixture(f);
}

static int open_stream(struct fixture *f)
{
    char out[1024];
    const int fd = dial(f);
    says(fd, "GET /events HTTP/1.1\r\nHost: h\r\n\r\n");
    hear(fd, out, sizeof out, "\r\n\r\n"); /* the head comes before the first event */
    assert_non_null(strstr(out, "text/event-stream"));
    return fd;
}

static void let_events(struct fixture *f, int n)
{
    atomic_store(&f->events, n);
    http_wake(atomic_load(&f->waker));
}

static void events_arrive_as_they_are_woken(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    char out[1024], mark[32];
    const int fd = open_stream(f);
    for (int i = 1; i <= EVENTS; i++) {
        http_wake(atomic_load(&f->waker)); /* spurious */
        const int64_t start = timing_ns();
        let_events(f, i);
        snprintf(mark, sizeof mark, "data: %d\n\n", i);
        hear(fd, out, sizeof out, mark);
        assert_true(timing_ns() - start < 1000000000);
    }
    let_events(f, EVENTS + 1);
    wait_for(&f->closed_streams, 1);
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->last_sent), EVENTS * 9);
    assert_int_equal(atomic_load(&f->gone_done), 0);
    http_wake(atomic_load(&f->waker)); /* late */
    says(fd, "GET / HTTP/1.1\r\nHost: h\r\n\r\n");
    hear(fd, out, sizeof out, "body=");
    assert_non_null(strstr(out, "HTTP/1.1 200"));
    close(fd);
    close_fixture(f);
}

static void a_silent_stream_costs_no_cpu(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int fd = open_stream(f);
    const int64_t before = timing_read(CLOCK_PROCESS_CPUTIME_ID);
    sleep_ms(400);
    assert_true(timing_read(CLOCK_PROCESS_CPUTIME_ID) - before < 50000000);
    close(fd);
    close_fixture(f);
}

static void a_silent_stream_outlives_every_timeout(void **state)
{
    (void)state;
    struct fixture *f = impatient(100, 100, 100, 100);
    char out[256];
    const int fd = open_stream(f);
    sleep_ms(600);
    let_events(f, 1);
    hear(fd, out, sizeof out, "data: 1\n\n");
    assert_non_null(strstr(out, "data: 1"));
    close(fd);
    close_fixture(f);
}

static void a_stream_ends_when_its_client_leaves(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int fd = open_stream(f);
    close(fd);
    wait_for(&f->closed_streams, 1);
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->gone_done), 1);
    close_fixture(f);
}

static void a_stream_to_http_1_0_ends_by_closing(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    atomic_store(&f->events, EVENTS);
    const char *reply = ask(f, "GET /events HTTP/1.0\r\n\r\n", 24);
    assert_null(strstr(reply, "chunked"));
    assert_non_null(strstr(reply, "data: 5\n\n"));
    close_fixture(f);
}

static void streams_can_be_ended(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    char out[256];
    const int fd = open_stream(f);
    http_end_streams(f->http);
    hear(fd, out, sizeof out, "0\r\n\r\n");
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->gone_done), 0);
    assert_int_equal(http_in_flight(f->http), 0);
    close(fd);
    close_fixture(f);
}

static void a_quiesced_server_finishes_what_it_has(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    char out[4096];
    const int fd = hang(f);
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons(http_port(f->http)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    http_quiesce(f->http);
    http_quiesce(f->http);
    const int late = socket(AF_INET, SOCK_STREAM, 0);
    assert_int_equal(connect(late, (const struct sockaddr *)&a, sizeof a), -1);
    close(late);
    reply_text(atomic_load(&f->held), 200, "finished");
    hear(fd, out, sizeof out, "finished");
    assert_non_null(strstr(out, "finished"));
    assert_non_null(strstr(out, "Connection: close\r\n"));
    close(fd);
    close_fixture(f);
}

static void closing_drops_waiting_requests_and_their_late_replies_are_legal(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int a = hang(f), b = open_stream(f), c = dial(f), d = dial(f);
    says(c, "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 100\r\n\r\nhalf");
    struct request *r = atomic_load(&f->held);
    wait_for(&f->admitted, 3);
    const int64_t start = timing_ns();
    http_close(f->http);
    assert_true(timing_ns() - start < 3000000000);
    assert_int_equal(atomic_load(&f->on_gone), 1);
    assert_int_equal(atomic_load(&f->closed_streams), 1);
    assert_int_equal(atomic_load(&f->done), 3);
    assert_true(request_gone(r));
    assert_string_equal(request_path(r), "/hang");
    assert_int_equal(atomic_load(&f->freed), 1); /* the stream's */
    reply_text(r, 200, "too late");
    assert_int_equal(atomic_load(&f->freed), 2);
    http_wake(atomic_load(&f->waker));
    http_waker_put(atomic_load(&f->waker));
    free(f);
    close(a), close(b), close(c), close(d);
}

static void a_clock_that_is_set_back_does_not_keep_a_server_from_closing(void **state)
{
    (void)state;
    struct fixture *f = impatient(0, 0, 0, 0);
    const int fd = dial(f);
    says(fd, "GET /big HTTP/1.1\r\nHost: h\r\n\r\n"); /* and never reads */
    wait_for(&f->handled, 1);
    sleep_ms(100);
    atomic_store(&clock_ahead_s, 3600);
    const int64_t begin = timing_ns();
    close_fixture(f);
    atomic_store(&clock_ahead_s, 0);
    const int64_t took = timing_ns() - begin;
    assert_true(took > 400000000); /* something was to be waited for */
    assert_true(took < 10000000000);
    close(fd);
}

struct caller {
    struct fixture *f;
    const char *text;
    _Atomic bool *stop;
};

static void *call_until_refused(void *arg)
{
    const struct caller *c = arg;
    const struct sockaddr_in a = {.sin_family = AF_INET,
                                  .sin_port = htons(http_port(c->f->http)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    char out[4096];
    while (!atomic_load(c->stop)) {
        const int fd = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
        const struct timeval limit = {.tv_sec = 5};
        setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit);
        if (connect(fd, (const struct sockaddr *)&a, sizeof a) != 0) {
            close(fd);
            break;
        }
        for (int i = 0; i < 20; i++) {
            if (send(fd, c->text, strlen(c->text), MSG_NOSIGNAL) < 0 ||
                recv(fd, out, sizeof out, 0) <= 0)
                break;
        }
        close(fd);
    }
    return NULL;
}

static void the_server_can_be_closed_under_load(void **state)
{
    (void)state;
    for (int round = 0; round < 20; round++) {
        struct fixture *f = impatient(0, 0, 0, 0);
        _Atomic bool stop = false;
        pthread_t t[4];
        struct caller callers[4];
        for (int i = 0; i < 4; i++) {
            callers[i] = (struct caller){f,
                                         i % 2 ? "GET /later HTTP/1.1\r\nHost: h\r\n\r\n"
                                               : "GET / HTTP/1.1\r\nHost: h\r\n\r\n",
                                         &stop};
            pthread_create(&t[i], NULL, call_until_refused, &callers[i]);
        }
        sleep_ms(30);
        http_close(f->http);
        atomic_store(&stop, true);
        for (int i = 0; i < 4; i++)
            pthread_join(t[i], NULL);
        sleep_ms(60); /* the late replies of /later */
        assert_true(atomic_load(&f->handled) > 0);
        assert_int_equal(atomic_load(&f->freed), atomic_load(&f->handled));
        free(f);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(slow_headers_are_cut_in_time),
        cmocka_unit_test(a_slow_next_request_is_cut_like_the_first),
        cmocka_unit_test(a_slow_body_is_cut_in_time),
        cmocka_unit_test(an_idle_connection_ends),
        cmocka_unit_test(a_client_that_does_not_read_is_cut),
        cmocka_unit_test(a_clock_that_is_set_back_does_not_keep_a_server_from_closing),
        cmocka_unit_test(a_client_that_reads_slowly_is_not_cut),
        cmocka_unit_test(a_client_that_leaves_is_noticed_while_its_request_waits),
        cmocka_unit_test(a_client_that_has_left_before_is_known_at_handle),
        cmocka_unit_test(no_gone_callback_comes_after_the_reply),
        cmocka_unit_test(events_arrive_as_they_are_woken),
        cmocka_unit_test(a_silent_stream_costs_no_cpu),
        cmocka_unit_test(a_silent_stream_outlives_every_timeout),
        cmocka_unit_test(a_stream_ends_when_its_client_leaves),
        cmocka_unit_test(a_stream_to_http_1_0_ends_by_closing),
        cmocka_unit_test(streams_can_be_ended),
        cmocka_unit_test(a_quiesced_server_finishes_what_it_has),
        cmocka_unit_test(closing_drops_waiting_requests_and_their_late_replies_are_legal),
        cmocka_unit_test(the_server_can_be_closed_under_load),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
