/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/http_fixture.h"

#include <malloc.h>
#include <stdbool.h>

#define CLOSE "Host: h\r\nConnection: close\r\n"

static struct fixture *f;

static int setup(void **state)
{
    (void)state;
    const struct http_settings s = patient_settings();
    f = open_with(&s);
    return 0;
}

static int teardown(void **state)
{
    (void)state;
    close_fixture(f);
    return 0;
}

static const char *get(const char *text)
{
    return ask(f, text, strlen(text));
}

static int status_of(const char *reply)
{
    return strncmp(reply, "HTTP/1.1 ", 9) == 0 ? atoi(reply + 9) : 0;
}

static void expect(const char *reply, const char *part)
{
    if (!strstr(reply, part))
        fail_msg("\"%s\" is not in:\n%s", part, reply);
}

static void a_request_is_answered(void **state)
{
    (void)state;
    const char *reply = get("POST /a%20b?p=1&q=x+%C3%A4 HTTP/1.1\r\n" CLOSE
                            "X-Said: word  \r\nContent-Length: 5\r\n\r\nhello");
    assert_int_equal(status_of(reply), 200);
    expect(reply, "POST /a b q=x \xc3\xa4 said=word peer=127.0.0.1 body=hello");
    expect(reply, "X-Content-Type-Options: nosniff\r\n");
    expect(reply, "X-Request-Id: ");
    expect(reply, "Content-Type: text/plain\r\n");
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->last_status), 200);
    assert_true(atomic_load(&f->last_sent) > 50);
    assert_int_equal(atomic_load(&f->gone_done), 0);
    wait_for(&f->freed, 1);
    assert_int_equal(http_in_flight(f->http), 0);
}

static void a_reply_from_another_thread_arrives(void **state)
{
    (void)state;
    const char *reply = get("GET /later HTTP/1.1\r\n" CLOSE "\r\n");
    assert_int_equal(status_of(reply), 200);
    expect(reply, "\r\n\r\nlater");
}

static void a_reply_within_admit_keeps_the_connection(void **state)
{
    (void)state;
    char out[4096];
    const int fd = dial(f);
    says(fd, "GET /forbidden HTTP/1.1\r\nHost: h\r\n\r\n");
    hear(fd, out, sizeof out, "\r\n\r\nno");
    assert_int_equal(status_of(out), 403);
    says(fd, "POST /forbidden HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    hear(fd, out, sizeof out, "\r\n\r\nno");
    assert_int_equal(status_of(out), 403);
    says(fd, "GET /again HTTP/1.1\r\nHost: h\r\n\r\n");
    hear(fd, out, sizeof out, "body=");
    assert_int_equal(status_of(out), 200);
    close(fd);
    assert_int_equal(atomic_load(&f->handled), 1);
}

static void pipelined_requests_are_answered_in_order(void **state)
{
    (void)state;
    char out[1 << 14];
    const int fd = dial(f);
    says(fd, "GET /later HTTP/1.1\r\nHost: h\r\n\r\nPOST /two HTTP/1.1\r\nHost: h\r\n"
             "Content-Length: 2\r\n\r\nxyGET /three HTTP/1.1\r\n" CLOSE "\r\n");
    hear(fd, out, sizeof out, NULL);
    const char *one = strstr(out, "later"), *two = strstr(out, "/two"), *three;
    three = strstr(out, "/three");
    assert_true(one && two && three && one < two && two < three);
    close(fd);
}

static void a_chunked_body_is_collected(void **state)
{
    (void)state;
    expect(get("PUT /c HTTP/1.1\r\n" CLOSE "Transfer-Encoding: chunked\r\n\r\n"
               "3\r\nabc\r\n4;x=y\r\ndefg\r\n0\r\n\r\n"),
           "body=abcdefg");
}

static void a_large_body_arrives_unharmed(void **state)
{
    (void)state;
    enum { SIZE = BODY_LIMIT };
    char *body = malloc(SIZE), *out = malloc(SIZE + 4096), head[128];
    for (size_t i = 0; i < SIZE; i++)
        body[i] = (char)('a' + i % 23);
    const int fd = dial(f);
    snprintf(head, sizeof head, "POST / HTTP/1.1\r\n" CLOSE "Content-Length: %d\r\n\r\n", SIZE);
    says(fd, head);
    say(fd, body, SIZE);
    const long n = hear(fd, out, SIZE + 4096, NULL);
    assert_true(n > SIZE);
    assert_memory_equal(out + n - SIZE, body, SIZE);
    close(fd);
    free(body);
    free(out);
}

static void a_chunked_body_over_the_limit_gets_413(void **state)
{
    (void)state;
    static char chunk[65536];
    char out[4096];
    const int fd = dial(f);
    memset(chunk, 'x', sizeof chunk);
    says(fd, "POST /c HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n");
    for (int i = 0; i < BODY_LIMIT / (int)sizeof chunk + 2; i++) {
        says(fd, "10000\r\n");
        say(fd, chunk, sizeof chunk);
        says(fd, "\r\n");
    }
    says(fd, "0\r\n\r\n");
    hear(fd, out, sizeof out, NULL);
    assert_int_equal(status_of(out), 413);
    expect(out, "ours: body_too_large");
    close(fd);
    assert_int_equal(atomic_load(&f->handled), 0);
}

static void a_declared_body_over_the_limit_gets_413_at_once(void **state)
{
    (void)state;
    const char *reply = get("POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 1048577\r\n\r\n");
    assert_int_equal(status_of(reply), 413);
    expect(reply, "Connection: close");
}

static void a_client_that_sends_first_and_reads_then_still_sees_413(void **state)
{
    (void)state;
    enum { SIZE = 8 << 20 };
    char *body = calloc(1, SIZE), out[4096];
    const int fd = dial(f);
    says(fd, "POST /c HTTP/1.1\r\nHost: h\r\nContent-Length: 8388608\r\n\r\n");
    say(fd, body, SIZE);
    assert_true(hear(fd, out, sizeof out, NULL) > 0);
    assert_int_equal(status_of(out), 413);
    close(fd);
    free(body);
}

static void expect_continue_is_answered(void **state)
{
    (void)state;
    char out[4096];
    int fd = dial(f);
    says(fd, "POST /c HTTP/1.1\r\n" CLOSE "Content-Length: 2\r\nExpect: 100-continue\r\n\r\n");
    hear(fd, out, sizeof out, "\r\n\r\n");
    assert_string_equal(out, "HTTP/1.1 100 Continue\r\n\r\n");
    says(fd, "ok");
    hear(fd, out, sizeof out, NULL);
    expect(out, "body=ok");
    close(fd);
    fd = dial(f);
    says(fd, "POST /forbidden HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\n"
             "Expect: 100-continue\r\n\r\n");
    hear(fd, out, sizeof out, NULL);
    assert_int_equal(status_of(out), 403);
    close(fd);
}

static void head_has_the_length_and_no_body(void **state)
{
    (void)state;
    const char *reply = get("HEAD /part HTTP/1.1\r\n" CLOSE "\r\n");
    assert_int_equal(status_of(reply), 206);
    expect(reply, "Content-Length: 4\r\n");
    assert_string_equal(strstr(reply, "\r\n\r\n"), "\r\n\r\n");
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->last_sent), 0);
}

static void any_method_passes(void **state)
{
    (void)state;
    expect(get("OPTIONS * HTTP/1.1\r\n" CLOSE "\r\n"), "OPTIONS / q=-");
    expect(get("BREW /pot HTTP/1.1\r\n" CLOSE "\r\n"), "BREW /pot q=-");
    expect(get("PATCH http://h/x?q=1 HTTP/1.1\r\n" CLOSE "\r\n"), "PATCH /x q=1");
}

static void a_part_of_a_blob_is_sent(void **state)
{
    (void)state;
    const char *reply = get("GET /part HTTP/1.1\r\n" CLOSE "\r\n");
    expect(reply, "Content-Range: bytes 3-6/10\r\n");
    expect(reply, "\r\n\r\n3456");
    assert_null(strstr(reply, "34567"));
}

static void large_headers_get_431_and_a_long_target_414(void **state)
{
    (void)state;
    static char text[70000];
    char pad[60001];
    memset(pad, 'p', sizeof pad);
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" CLOSE "X-Pad: %.33000s\r\n\r\n", pad);
    expect(get(text), "ours: headers_too_large");
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" CLOSE "X-Pad: %.30000s\r\n\r\n", pad);
    assert_int_equal(status_of(get(text)), 200);
    snprintf(text, sizeof text, "GET /%.60000s HTTP/1.1\r\n" CLOSE "\r\n", pad);
    const char *reply = get(text);
    assert_int_equal(status_of(reply), 414);
    expect(reply, "ours: uri_too_long");
    char *at = text + sprintf(text, "GET / HTTP/1.1\r\n" CLOSE);
    for (int i = 0; i < 200; i++)
        at += sprintf(at, "X-%d: y\r\n", i);
    strcpy(at, "\r\n");
    assert_int_equal(status_of(get(text)), 431);
}

static void what_two_readers_could_read_differently_is_refused(void **state)
{
    (void)state;
    static const char *const heads[] = {
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\nContent-Length: 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2\r\ncontent-length: 3\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n"
        "0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n"
        "0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length : 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding : chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTransfer-Encoding: "
        "chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length:\r\n\t2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: +2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 2, 2\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: -1\r\n\r\nab",
        "POST / HTTP/1.1\r\nHost: h\r\nContent-Length: 0x2\r\n\r\nab",
        "POST / HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n",
        "GET / HTTP/1.1\r\nX: y\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: a b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX Y: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\n: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX\x01: z\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\x01\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\rY: b\r\n\r\n",
        "GET / HTTP/1.1\r\nHost: h\r\nX: a\r\n folded\r\n\r\n",
        "G@T / HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET nowhere HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /%zz HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /%0 HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /a%00b HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /%c0%af HTTP/1.1\r\nHost: h\r\n\r\n",
        "GET /?a=%f HTTP/1.1\r\nHost: h\r\n\r\n",
    };
    for (size_t i = 0; i < sizeof heads / sizeof *heads; i++) {
        const char *reply = get(heads[i]);
        if (status_of(reply) != 400 || !strstr(reply, "Connection: close"))
            fail_msg("not refused: %s\n%s", heads[i], reply);
    }
    assert_int_equal(atomic_load(&f->admitted), 0);
}

static void a_nul_in_a_header_is_refused(void **state)
{
    (void)state;
    static const char value[] = "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\nY: c\r\n\r\n";
    static const char last[] = "GET / HTTP/1.1\r\nHost: h\r\nX: a\0b\r\n\r\n";
    static const char end[] = "GET / HTTP/1.1\r\nHost: h\r\nX: a\0\r\nY: c\r\n\r\n";
    assert_int_equal(status_of(ask(f, value, sizeof value - 1)), 400);
    assert_int_equal(status_of(ask(f, last, sizeof last - 1)), 400);
    assert_int_equal(status_of(ask(f, end, sizeof end - 1)), 400);
    assert_int_equal(atomic_load(&f->admitted), 0);
}

static void what_the_library_refuses_itself_is_counted(void **state)
{
    (void)state;
    assert_int_equal(status_of(get("GET / HTTP/1.1\r\nHost h\r\n\r\n")), 400);
    wait_for(&f->malformed, 1);
    assert_int_equal(status_of(get("GET / HTTP/2.0\r\nHost: h\r\n\r\n")), 505);
    assert_int_equal(atomic_load(&f->admitted), 0);
    assert_int_equal(
        status_of(get("POST / HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n"
                      "no number\r\n")),
        400);
    wait_for(&f->malformed, 2);
    wait_for(&f->done, 1);
    assert_int_equal(atomic_load(&f->last_status), 0);
}

static void odd_but_lawful_heads_pass(void **state)
{
    (void)state;
    assert_int_equal(status_of(get("\r\nGET / HTTP/1.1\r\n" CLOSE "\r\n")), 200);
    assert_int_equal(status_of(get("GET / HTTP/1.0\r\n\r\n")), 200);
    assert_int_equal(status_of(get("GET / HTTP/1.0\n\n")), 200);
    assert_int_equal(status_of(get("GET / HTTP/1.1\nHost:h\nConnection:\t close\n\n")), 200);
    assert_int_equal(status_of(get("GET / HTTP/1.1\r\nHost:\r\nX:\r\nConnection: close\r\n\r\n")),
                     200);
    assert_int_equal(status_of(get("GET / HTTP/1.1\r\nHost: [::1]:80\r\nCookie: a=b; c=d\r\n"
                                   "Accept: a\r\nAccept: b\r\nConnection: close\r\n\r\n")),
                     200);
}

static void a_half_closed_client_is_answered(void **state)
{
    (void)state;
    char out[4096];
    int idle[4];
    for (int i = 0; i < 4; i++) /* older connections: ours is not the next in line */
        idle[i] = dial(f);
    const int fd = dial(f);
    says(fd, "GET /later HTTP/1.1\r\nHost: h\r\n\r\n");
    shutdown(fd, SHUT_WR);
    hear(fd, out, sizeof out, NULL);
    expect(out, "\r\n\r\nlater");
    close(fd);
    for (int i = 0; i < 4; i++)
        close(idle[i]);
}

static void request_ids_are_made_or_kept(void **state)
{
    (void)state;
    char first[27], text[256], longest[66];
    const char *id = strstr(get("GET / HTTP/1.1\r\n" CLOSE "\r\n"), "X-Request-Id: ");
    assert_non_null(id);
    assert_int_equal(strspn(id + 14, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), 26);
    memcpy(first, id + 14, 26);
    id =
        strstr(get("GET / HTTP/1.1\r\n" CLOSE "X-Request-Id: not valid\r\n\r\n"), "X-Request-Id: ");
    assert_memory_not_equal(id + 14, first, 26);
    assert_int_equal(strspn(id + 14, "0123456789ABCDEFGHJKMNPQRSTVWXYZ"), 26);
    expect(get("GET / HTTP/1.1\r\n" CLOSE "X-Request-Id: Mine_0-9.z\r\n\r\n"),
           "X-Request-Id: Mine_0-9.z\r\n");
    memset(longest, 'i', 65);
    longest[65] = '\0';
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" CLOSE "X-Request-Id: %s\r\n\r\n", longest);
    assert_null(strstr(get(text), longest));
    snprintf(text, sizeof text, "GET / HTTP/1.1\r\n" CLOSE "X-Request-Id: %s\r\n\r\n", longest + 1);
    expect(get(text), longest + 1);
}

static void connections_beyond_the_limit_of_an_address_are_refused(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    s.max_connections_per_ip = 3;
    struct fixture *g = open_with(&s);
    int fds[4];
    char out[4096];
    for (int i = 0; i < 4; i++)
        fds[i] = dial(g);
    assert_true(hear(fds[3], out, sizeof out, NULL) <= 0);
    wait_for(&g->per_ip, 1);
    says(fds[2], "GET / HTTP/1.1\r\n" CLOSE "\r\n");
    hear(fds[2], out, sizeof out, NULL);
    assert_int_equal(status_of(out), 200);
    close(fds[2]);
    int status = 0;
    for (int i = 0; i < 100 && status != 200; i++) {
        sleep_ms(5);
        const int fd = dial(g);
        send(fd, "GET / HTTP/1.0\r\n\r\n", 18, MSG_NOSIGNAL);
        hear(fd, out, sizeof out, NULL);
        status = status_of(out);
        close(fd);
    }
    assert_int_equal(status, 200);
    for (int i = 0; i < 4; i++)
        close(i == 2 ? dial(g) : fds[i]);
    close_fixture(g);
}

static void without_a_limit_an_address_may_have_all_connections(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    s.max_connections_per_ip = 0;
    struct fixture *g = open_with(&s);
    const int first = dial(g), second = dial(g);
    char out[4096];
    says(second, "GET / HTTP/1.1\r\n" CLOSE "\r\n");
    hear(second, out, sizeof out, NULL);
    assert_int_equal(status_of(out), 200);
    close(first), close(second);
    close_fixture(g);
}

static void connections_beyond_the_limit_are_refused(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    s.max_connections = 2;
    s.threads = 1;
    struct fixture *g = open_with(&s);
    char out[64];
    const int a = dial(g), b = dial(g), c = dial(g);
    assert_true(hear(c, out, sizeof out, NULL) <= 0);
    wait_for(&g->full, 1);
    close(a), close(b), close(c);
    close_fixture(g);
}

static void an_address_in_use_is_an_error_that_says_so(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    const struct http_handlers none = {0};
    struct http *h = NULL;
    struct err e;
    s.port = http_port(f->http);
    assert_int_equal(http_open(&h, &s, &none, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "Address already in use"));
    s.address = "no such place";
    assert_int_equal(http_open(&h, &s, &none, &e), -FAIL_BAD_SETTING);
    assert_null(h);
}

static void a_certificate_that_is_none_is_an_error(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    const struct http_handlers none = {0};
    struct http *h = NULL;
    struct err e;
    s.tls_cert = s.tls_key = "not a certificate";
    assert_int_equal(http_open(&h, &s, &none, &e), -FAIL_BAD_SETTING);
    s.tls_key = NULL;
    assert_int_equal(http_open(&h, &s, &none, &e), -FAIL_BAD_SETTING);
    assert_null(h);
}

static char *read_text(const char *directory, const char *name)
{
    char path[128];
    static char texts[2][8192];
    char *text = texts[name[0] == 'k'];
    snprintf(path, sizeof path, "%s/%s", directory, name);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    text[fread(text, 1, sizeof texts[0] - 1, in)] = '\0';
    fclose(in);
    return text;
}

static void tls_carries_requests(void **state)
{
    (void)state;
    char directory[] = "/tmp/jemd-tls-XXXXXX", command[512], out[4096] = "";
    assert_non_null(mkdtemp(directory));
    snprintf(command, sizeof command,
             "cd %s && command -v curl >/dev/null && openssl req -x509 -newkey ec "
             "-pkeyopt ec_paramgen_curve:prime256v1 -nodes -keyout key -out cert -days 2 "
             "-subj /CN=localhost -addext subjectAltName=IP:127.0.0.1 >/dev/null 2>&1",
             directory);
    if (system(command) != 0) {
        print_message("skipped: needs openssl and curl\n");
        rmdir(directory);
        return;
    }
    struct http_settings s = patient_settings();
    s.tls_cert = read_text(directory, "cert");
    s.tls_key = read_text(directory, "key");
    struct fixture *g = open_with(&s);
    snprintf(command, sizeof command,
             "cd %s && curl -s -m 10 --cacert cert -d body https://127.0.0.1:%u/later "
             "https://127.0.0.1:%u/tls; rm -r %s",
             directory, http_port(g->http), http_port(g->http), directory);
    FILE *p = popen(command, "r");
    out[fread(out, 1, sizeof out - 1, p)] = '\0';
    pclose(p);
    expect(out, "later");
    expect(out, "POST /tls q=- said=- peer=127.0.0.1 body=body");
    wait_for(&g->done, 2);
    close_fixture(g);
}

static void an_inherited_socket_is_served(void **state)
{
    (void)state;
    struct http_settings s = patient_settings();
    const struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    s.listen_fd = socket(AF_INET, SOCK_STREAM, 0);
    s.address = NULL;
    assert_int_equal(bind(s.listen_fd, (const struct sockaddr *)&a, sizeof a), 0);
    assert_int_equal(listen(s.listen_fd, 8), 0);
    struct fixture *g = open_with(&s);
    assert_int_equal(status_of(ask(g, "GET / HTTP/1.0\r\n\r\n", 18)), 200);
    close_fixture(g);
}

static void exchange(int fd, const char *text, int times)
{
    char out[4096];
    for (int i = 0; i < times; i++) {
        says(fd, text);
        hear(fd, out, sizeof out, "body=0123456789");
        assert_int_equal(status_of(out), 200);
    }
}

static void ten_thousand_requests_leave_no_memory_behind(void **state)
{
    (void)state;
    static const char text[] = "POST /x?q=1 HTTP/1.1\r\nHost: h\r\nContent-Length: 10\r\n\r\n"
                               "0123456789";
    int fd = dial(f);
    exchange(fd, text, 500);
    const size_t before = mallinfo2().uordblks;
    exchange(fd, text, 9500);
    for (int i = 0; i < 100; i++) {
        close(fd);
        fd = dial(f);
        exchange(fd, text, 5);
    }
    wait_for(&f->done, 10500);
    wait_for(&f->freed, 10500);
    const size_t after = mallinfo2().uordblks;
    assert_true(after < before + (64 << 10));
    close(fd);
}

int main(void)
{
#define EACH(test) cmocka_unit_test_setup_teardown(test, setup, teardown)
    const struct CMUnitTest tests[] = {
        EACH(a_request_is_answered),
        EACH(a_reply_from_another_thread_arrives),
        EACH(a_reply_within_admit_keeps_the_connection),
        EACH(pipelined_requests_are_answered_in_order),
        EACH(a_chunked_body_is_collected),
        EACH(a_large_body_arrives_unharmed),
        EACH(a_chunked_body_over_the_limit_gets_413),
        EACH(a_declared_body_over_the_limit_gets_413_at_once),
        EACH(a_client_that_sends_first_and_reads_then_still_sees_413),
        EACH(expect_continue_is_answered),
        EACH(head_has_the_length_and_no_body),
        EACH(any_method_passes),
        EACH(a_part_of_a_blob_is_sent),
        EACH(large_headers_get_431_and_a_long_target_414),
        EACH(what_two_readers_could_read_differently_is_refused),
        EACH(a_nul_in_a_header_is_refused),
        EACH(what_the_library_refuses_itself_is_counted),
        EACH(odd_but_lawful_heads_pass),
        EACH(a_half_closed_client_is_answered),
        EACH(request_ids_are_made_or_kept),
        cmocka_unit_test(connections_beyond_the_limit_of_an_address_are_refused),
        cmocka_unit_test(without_a_limit_an_address_may_have_all_connections),
        cmocka_unit_test(connections_beyond_the_limit_are_refused),
        EACH(an_address_in_use_is_an_error_that_says_so),
        cmocka_unit_test(a_certificate_that_is_none_is_an_error),
        cmocka_unit_test(tls_carries_requests),
        cmocka_unit_test(an_inherited_socket_is_served),
        EACH(ten_thousand_requests_leave_no_memory_behind),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
