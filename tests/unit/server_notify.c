/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timing.h"
#include "server/notify.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static struct err e;
static char folder[] = "/tmp/jemd-notify-XXXXXX";

/* A datagram socket as systemd has it; name[0] '@' means abstract. */
static int listen_as_systemd(const char *name)
{
    struct sockaddr_un a = {.sun_family = AF_UNIX};
    const struct timeval patience = {.tv_sec = 5};
    const int fd = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    strcpy(a.sun_path, name);
    socklen_t size = sizeof a;
    if (name[0] == '@') {
        a.sun_path[0] = '\0';
        size = (socklen_t)(offsetof(struct sockaddr_un, sun_path) + strlen(name));
    }
    assert_int_equal(bind(fd, (struct sockaddr *)&a, size), 0);
    setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &patience, sizeof patience);
    setenv("NOTIFY_SOCKET", name, 1);
    return fd;
}

static const char *hear(int fd)
{
    static char text[512];
    const ssize_t n = recv(fd, text, sizeof text - 1, 0);
    text[n > 0 ? n : 0] = '\0';
    return text;
}

static void assert_every_message_arrives(const char *name)
{
    struct notify n;
    long long us = 0;
    const int fd = listen_as_systemd(name);
    assert_int_equal(notify_init(&n, &e), 0);
    assert_null(getenv("NOTIFY_SOCKET"));
    notify_ready(&n);
    assert_string_equal(hear(fd), "READY=1");
    notify_status(&n, "%d models,\n%s", 3, "no job");
    assert_string_equal(hear(fd), "STATUS=3 models, no job");
    const int64_t before = timing_ns() / 1000;
    notify_reloading(&n);
    assert_int_equal(sscanf(hear(fd), "RELOADING=1\nMONOTONIC_USEC=%lld", &us), 1);
    assert_true(us >= before && us <= timing_ns() / 1000);
    notify_watchdog(&n);
    assert_string_equal(hear(fd), "WATCHDOG=1");
    notify_stopping(&n);
    assert_string_equal(hear(fd), "STOPPING=1");
    notify_fini(&n);
    close(fd);
}

static void systemd_hears_every_message(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof name, "%s/notify", folder);
    assert_every_message_arrives(name);
    assert_int_equal(unlink(name), 0);
}

static void an_abstract_socket_works_as_well(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof name, "@%s/abstract", folder);
    assert_every_message_arrives(name);
}

static void without_systemd_nothing_happens(void **state)
{
    (void)state;
    struct notify n;
    int fd = 7;
    assert_int_equal(notify_init(&n, &e), 0);
    assert_int_equal(n.fd, -1);
    assert_int_equal(n.watchdog_ns, 0);
    notify_ready(&n);
    notify_status(&n, "nobody %s", "listens");
    notify_fini(&n);
    assert_int_equal(notify_listen_fd(&fd, &e), 0);
    assert_int_equal(fd, -1);
}

static void a_strange_address_is_an_error_but_harmless(void **state)
{
    (void)state;
    char giant[200];
    struct notify n;
    memset(giant, 'a', sizeof giant - 1);
    giant[0] = '/';
    giant[sizeof giant - 1] = '\0';
    const char *const strange[] = {"", "relative", "vsock:2:1", giant};
    for (size_t i = 0; i < sizeof strange / sizeof strange[0]; i++) {
        setenv("NOTIFY_SOCKET", strange[i], 1);
        assert_int_equal(notify_init(&n, &e), -FAIL_IO);
        assert_null(getenv("NOTIFY_SOCKET"));
        notify_ready(&n);
        notify_fini(&n);
    }
    setenv("NOTIFY_SOCKET", "/nonexistent/notify", 1);
    assert_int_equal(notify_init(&n, &e), 0);
    notify_ready(&n);
    notify_fini(&n);
}

static int64_t watchdog(const char *us, long pid)
{
    struct notify n;
    char text[32], name[64];
    snprintf(name, sizeof name, "@%s/watchdog", folder);
    const int fd = listen_as_systemd(name);
    snprintf(text, sizeof text, "%ld", pid);
    setenv("WATCHDOG_USEC", us, 1);
    if (pid)
        setenv("WATCHDOG_PID", text, 1);
    assert_int_equal(notify_init(&n, &e), 0);
    assert_null(getenv("WATCHDOG_USEC"));
    assert_null(getenv("WATCHDOG_PID"));
    notify_fini(&n);
    close(fd);
    return n.watchdog_ns;
}

static void the_watchdog_is_for_this_process_only(void **state)
{
    (void)state;
    assert_int_equal(watchdog("30000000", getpid()), 30000000000);
    assert_int_equal(watchdog("30000000", 0), 30000000000);
    assert_int_equal(watchdog("30000000", 1), 0);
    assert_int_equal(watchdog("soon", getpid()), 0);
    assert_int_equal(watchdog("-5", getpid()), 0);
    assert_int_equal(watchdog("9223372036854775807", getpid()), 0);
}

static int open_socket(int type, int backlog)
{
    struct sockaddr_in a = {.sin_family = AF_INET, .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    const int fd = socket(AF_INET, type, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&a, sizeof a), 0);
    if (backlog)
        assert_int_equal(listen(fd, backlog), 0);
    return fd;
}

/* Takes `fd` over as descriptor 3 in a child and returns what notify_listen_fd found there:
 * 0 a socket, 1 none, 2 an error, 3 something is wrong. */
static int inherit(int fd, const char *count, int pid_offset)
{
    const pid_t child = fork();
    if (child == 0) {
        char pid[32];
        int got = -7;
        snprintf(pid, sizeof pid, "%d", getpid() + pid_offset);
        setenv("LISTEN_PID", pid, 1);
        setenv("LISTEN_FDS", count, 1);
        setenv("LISTEN_FDNAMES", "jemd.socket", 1);
        dup2(fd, 3);
        const int code = notify_listen_fd(&got, &e);
        if (getenv("LISTEN_PID") || getenv("LISTEN_FDS") || getenv("LISTEN_FDNAMES"))
            _exit(3);
        if (code)
            _exit(got == -7 && code == -FAIL_BAD_SETTING ? 2 : 3);
        if (got == -1)
            _exit(1);
        _exit(got == 3 && fcntl(3, F_GETFD) == FD_CLOEXEC ? 0 : 3);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFEXITED(status));
    close(fd);
    return WEXITSTATUS(status);
}

static void a_listening_socket_is_taken_over(void **state)
{
    (void)state;
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 4), "1", 0), 0);
}

static void sockets_for_another_process_are_left_alone(void **state)
{
    (void)state;
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 4), "1", 1), 1);
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 4), "0", 0), 1);
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 4), "x", 0), 1);
}

static void sockets_that_cannot_be_served_are_refused(void **state)
{
    (void)state;
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 4), "2", 0), 2);
    assert_int_equal(inherit(open_socket(SOCK_STREAM, 0), "1", 0), 2);
    assert_int_equal(inherit(open_socket(SOCK_DGRAM, 0), "1", 0), 2);
    assert_int_equal(inherit(open("/dev/null", O_RDONLY), "1", 0), 2);
}

static int set_up(void **state)
{
    (void)state;
    unsetenv("NOTIFY_SOCKET");
    unsetenv("WATCHDOG_USEC");
    unsetenv("WATCHDOG_PID");
    unsetenv("LISTEN_PID");
    return mkdtemp(folder) ? 0 : -1;
}

static int tear_down(void **state)
{
    (void)state;
    return rmdir(folder);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(systemd_hears_every_message),
        cmocka_unit_test(an_abstract_socket_works_as_well),
        cmocka_unit_test(without_systemd_nothing_happens),
        cmocka_unit_test(a_strange_address_is_an_error_but_harmless),
        cmocka_unit_test(the_watchdog_is_for_this_process_only),
        cmocka_unit_test(a_listening_socket_is_taken_over),
        cmocka_unit_test(sockets_for_another_process_are_left_alone),
        cmocka_unit_test(sockets_that_cannot_be_served_are_refused),
    };
    return cmocka_run_group_tests(tests, set_up, tear_down);
}
