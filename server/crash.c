/* SPDX-License-Identifier: Apache-2.0 */
#include "server/crash.h"

#include "base/witness.h"

#include <fcntl.h>
#include <inttypes.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

/* A note: "signal N\n", "ID EPOCH\n" for each job, "end\n". */

static const char file_name[] = "crash";
static const char end_line[] = "end\n";
static const int signals[] = {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGABRT, SIGTRAP, SIGSYS};
enum { SIGNALS = sizeof signals / sizeof signals[0] };

void crash_name(const struct job *j, char out[CRASH_NAME_SIZE])
{
    snprintf(out, CRASH_NAME_SIZE, "%s %" PRIu64, j->id, j->epoch);
}

/* ---- reading ---- */

/* A decimal number up to a newline; NULL = it is none. */
static const char *read_number(const char *at, uint64_t *out)
{
    uint64_t n = 0;
    const char *begin = at;
    for (; *at >= '0' && *at <= '9'; at++) {
        if (n > (UINT64_MAX - 9) / 10)
            return NULL;
        n = n * 10 + (uint64_t)(*at - '0');
    }
    *out = n;
    return at > begin && *at == '\n' ? at + 1 : NULL;
}

static const char *read_job(const char *at, char id[JOB_ID_SIZE], uint64_t *epoch)
{
    const size_t size = strspn(at, "0123456789abcdef-");
    if (size != JOB_ID_SIZE - 1 || at[size] != ' ')
        return NULL;
    memcpy(id, at, size);
    id[size] = '\0';
    return read_number(at + size + 1, epoch);
}

bool crash_parse(const char *text, size_t size, struct crash *out)
{
    static const char head[] = "signal ";
    char note[CRASH_NOTE_MAX + 1];
    struct crash c = {0};
    uint64_t number;
    if (size > CRASH_NOTE_MAX)
        return false;
    memcpy(note, text, size);
    note[size] = '\0';
    const char *at = note;
    if (strncmp(at, head, sizeof head - 1) != 0 ||
        !(at = read_number(at + sizeof head - 1, &number)) || number < 1 || number > 64)
        return false;
    c.signal = (int)number;
    for (; c.n < CRASH_JOBS && strncmp(at, end_line, sizeof end_line - 1) != 0; c.n++)
        if (!(at = read_job(at, c.jobs[c.n].id, &c.jobs[c.n].epoch)))
            return false;
    if (strncmp(at, end_line, sizeof end_line - 1) != 0)
        return false;
    *out = c;
    return true;
}

static int open_note(const char *directory, int flags)
{
    char path[4096];
    const int n = snprintf(path, sizeof path, "%s/%s", directory, file_name);
    return n < (int)sizeof path ? open(path, flags | O_CLOEXEC | O_NOFOLLOW, 0600) : -1;
}

bool crash_read(const char *directory, struct crash *out)
{
    char note[CRASH_NOTE_MAX];
    const int fd = open_note(directory, O_RDONLY);
    if (fd < 0)
        return false;
    const ssize_t n = read(fd, note, sizeof note);
    close(fd);
    return n > 0 && crash_parse(note, (size_t)n, out);
}

bool crash_blames(const struct crash *c, const struct job *j)
{
    for (int i = 0; i < c->n; i++)
        if (c->jobs[i].epoch == j->epoch && strcmp(c->jobs[i].id, j->id) == 0)
            return true;
    return false;
}

void crash_describe(const struct crash *c, char *out, size_t size)
{
    const char *what = sigdescr_np(c->signal);
    snprintf(out, size, "signal %d (%s)", c->signal, what ? what : "unknown");
}

/* ---- writing, in the process that dies ---- */

static struct {
    int fd;
    atomic_flag told;
    struct sigaction before[SIGNALS];
} watch = {.fd = -1, .told = ATOMIC_FLAG_INIT};

static char *put(char *at, const char *end, const char *text)
{
    while (*text && at < end)
        *at++ = *text++;
    return at;
}

static void write_note(int sig)
{
    static char note[CRASH_NOTE_MAX];
    static struct witness_names blamed;
    const char *end = note + sizeof note;
    const char number[] = {(char)('0' + sig / 10), (char)('0' + sig % 10), '\n', '\0'};
    char *at = put(note, end, "signal ");
    at = put(at, end, number);
    witness_ask(&blamed);
    for (int i = 0; i < blamed.n; i++) {
        at = put(at, end, blamed.names[i]);
        at = put(at, end, "\n");
    }
    at = put(at, end, end_line);
    const ssize_t written = pwrite(watch.fd, note, (size_t)(at - note), 0);
    (void)written;
}

/* A signal that another process sent is no fault of the thread that it met. */
static void on_fault(int sig, siginfo_t *info, void *context)
{
    (void)context;
    const bool sent = info->si_code <= 0;
    if ((!sent || info->si_pid == getpid()) && !atomic_flag_test_and_set(&watch.told))
        write_note(sig);
    for (int i = 0; i < SIGNALS; i++)
        if (signals[i] == sig)
            sigaction(sig, &watch.before[i], NULL);
    if (sent) /* what was not sent comes again by itself */
        raise(sig);
}

int crash_watch(const char *directory, struct err *e)
{
    struct sigaction action = {.sa_sigaction = on_fault, .sa_flags = SA_SIGINFO};
    watch.fd = open_note(directory, O_WRONLY | O_CREAT | O_TRUNC);
    if (watch.fd < 0)
        return fail_errno(e, FAIL_IO, "cannot write %s/%s", directory, file_name);
    if (posix_fallocate(watch.fd, 0, CRASH_NOTE_MAX) != 0) {
        /* a full disk: what is written then may be lost */
    }
    for (int i = 0; i < SIGNALS; i++)
        sigaction(signals[i], &action, &watch.before[i]);
    return 0;
}
