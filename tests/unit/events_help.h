/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the tests of events share: one hub for each test, and short words for its operations. */
#include "server/events.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>
#include <unistd.h>

enum { SUBSCRIBERS = 16 };

static struct events *ev;
static struct err e;
static char got[1 << 16];

static int64_t ms(int64_t n)
{
    return (1000000 + n) * 1000000; /* long after the start of the machine */
}

static int set_up(void **state)
{
    (void)state;
    alarm(120); /* a deadlock fails */
    return events_open(&ev, SUBSCRIBERS, 0, &e);
}

static int tear_down(void **state)
{
    (void)state;
    events_close(ev);
    ev = NULL;
    return 0;
}

static struct blob *text(const char *line)
{
    return line ? blob_copy(line, strlen(line)) : NULL;
}

static void publish(const char *kind, const char *data, const char *snapshot)
{
    events_publish(ev, "job", kind, text(data), text(snapshot));
}

static struct subscription *subscribe(long long last_event_id, const char *snapshot, bool ended)
{
    struct subscription *s = NULL;
    assert_int_equal(subscription_open(&s, ev, "job", last_event_id, text(snapshot), ended, &e), 0);
    return s;
}

/* Everything there is, in pieces of at most `size` bytes, as one text. */
static const char *read_by(struct subscription *s, size_t size)
{
    size_t used = 0;
    long n;
    while ((n = subscription_read(s, got + used, size)) > 0) {
        assert_in_range(n, 1, size);
        used += (size_t)n;
        assert_true(used + size < sizeof got);
    }
    got[used] = '\0';
    return got;
}

static const char *read_text(struct subscription *s)
{
    return read_by(s, 4096);
}

static void assert_over(struct subscription *s)
{
    assert_int_equal(subscription_read(s, got, sizeof got), -1);
    assert_int_equal(subscription_read(s, got, sizeof got), -1);
}

#define EVENTS_TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
