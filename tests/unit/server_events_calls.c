/* SPDX-License-Identifier: Apache-2.0 */
/* Calls out of the hub: wakes, watches, and many threads at once. */
#include "events_help.h"

/* Wakes */

static atomic_int woken;

static void note_wake(void *ctx)
{
    assert_ptr_equal(ctx, &woken);
    atomic_fetch_add(&woken, 1);
}

static void a_wake_comes_once_for_each_read_that_had_nothing(void **state)
{
    (void)state;
    woken = 0;
    struct subscription *s = subscribe(-1, "{}", false);
    subscription_set_wake(s, note_wake, &woken);
    read_text(s);
    assert_int_equal(woken, 0);
    publish("state", "{}", NULL);
    assert_int_equal(woken, 1);
    publish("state", "{}", NULL);
    assert_int_equal(woken, 1);
    assert_int_equal(subscription_read(s, got, 10), 10);
    publish("state", "{}", NULL);
    assert_int_equal(woken, 1);
    read_text(s);
    events_tick(ev, ms(0));
    assert_int_equal(woken, 1);
    events_tick(ev, ms(15000));
    assert_int_equal(woken, 2); /* the ping */
    read_text(s);
    events_publish(ev, "other", "state", NULL, NULL);
    assert_int_equal(woken, 2);
    publish("progress", "{}", NULL);
    read_text(s);
    publish("progress", "{}", NULL);
    assert_int_equal(woken, 3);
    events_tick(ev, ms(15500));
    events_tick(ev, ms(16000));
    assert_int_equal(woken, 4); /* the merged progress */
    read_text(s);
    publish("end", "{}", NULL);
    assert_int_equal(woken, 5);
    read_text(s);
    events_forget(ev, "job");
    subscription_close(s);
    publish("state", "{}", NULL);
    assert_int_equal(woken, 5);
}

static void a_forgotten_job_wakes_its_streams(void **state)
{
    (void)state;
    woken = 0;
    struct subscription *s = subscribe(-1, "{}", false);
    subscription_set_wake(s, note_wake, &woken);
    read_text(s);
    events_forget(ev, "job");
    assert_int_equal(woken, 1);
    assert_over(s);
    subscription_close(s);
}

static void close_self(void *ctx)
{
    struct subscription **s = ctx;
    subscription_close(*s);
    *s = NULL;
    publish("preview", "{}", NULL);
}

static void a_wake_may_close_its_subscription_and_publish(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    struct subscription *t = subscribe(-1, "{}", false);
    subscription_set_wake(s, close_self, &s);
    subscription_set_wake(t, close_self, &t);
    publish("state", "{}", NULL);
    assert_null(s);
    assert_null(t);
}

static void close_another(void *ctx)
{
    struct subscription **s = ctx;
    subscription_close(*s);
    *s = NULL;
}

static void a_subscription_closed_while_its_wake_waits_is_not_woken(void **state)
{
    (void)state;
    woken = 0;
    struct subscription *first = subscribe(-1, "{}", false);
    struct subscription *second = subscribe(-1, "{}", false);
    struct subscription *third = subscribe(-1, "{}", false);
    subscription_set_wake(first, note_wake, &woken);
    subscription_set_wake(third, close_another, &first); /* the newest is woken first */
    subscription_set_wake(second, note_wake, &woken);
    publish("state", "{}", NULL);
    assert_null(first);
    assert_int_equal(woken, 1);
    subscription_close(second);
    subscription_close(third);
}

static struct {
    pthread_mutex_t mu;
    atomic_bool inside, leave, left;
} module = {.mu = PTHREAD_MUTEX_INITIALIZER};

static void linger(void *ctx)
{
    (void)ctx;
    atomic_store(&module.inside, true);
    while (!atomic_load(&module.leave))
        sched_yield();
    atomic_store(&module.left, true);
}

static void *publish_one(void *arg)
{
    (void)arg;
    publish("state", "{}", NULL);
    return NULL;
}

static void *leave_soon(void *arg)
{
    (void)arg;
    nanosleep(&(struct timespec){.tv_nsec = 50000000}, NULL);
    atomic_store(&module.leave, true);
    return NULL;
}

static void close_waits_for_a_wake_in_another_thread_and_nothing_else_does(void **state)
{
    (void)state;
    pthread_t publisher, leaver;
    module.inside = module.leave = module.left = false;
    struct subscription *s = subscribe(-1, "{}", false);
    struct subscription *t = subscribe(-1, "{}", false);
    subscription_set_wake(s, linger, NULL);
    assert_int_equal(pthread_create(&publisher, NULL, publish_one, NULL), 0);
    while (!atomic_load(&module.inside))
        sched_yield();
    publish("state", "{\"a\":2}", NULL); /* the hub goes on meanwhile */
    events_tick(ev, ms(0));
    assert_non_null(strstr(read_text(t), "{\"a\":2}"));
    subscription_close(t);
    assert_false(module.left);
    assert_int_equal(pthread_create(&leaver, NULL, leave_soon, NULL), 0);
    subscription_close(s);
    assert_true(module.left);
    pthread_join(publisher, NULL);
    pthread_join(leaver, NULL);
}

static void lock_module(void *ctx)
{
    (void)ctx;
    pthread_mutex_lock(&module.mu);
    pthread_mutex_unlock(&module.mu);
}

static void *publish_many(void *arg)
{
    (void)arg;
    for (int i = 0; i < 2000; i++)
        publish("preview", "{}", NULL);
    publish("end", "{}", NULL);
    return NULL;
}

static void a_wake_may_take_a_lock_that_its_module_holds_while_it_reads(void **state)
{
    (void)state;
    pthread_t publisher;
    struct subscription *s = subscribe(-1, "{}", false);
    subscription_set_wake(s, lock_module, NULL);
    assert_int_equal(pthread_create(&publisher, NULL, publish_many, NULL), 0);
    long n;
    do {
        pthread_mutex_lock(&module.mu);
        n = subscription_read(s, got, sizeof got);
        pthread_mutex_unlock(&module.mu);
    } while (n >= 0);
    subscription_close(s);
    pthread_join(publisher, NULL);
}

/* Watches */

static atomic_int called;

static void note_call(void *ctx)
{
    assert_ptr_equal(ctx, &called);
    atomic_fetch_add(&called, 1);
}

static struct event_watch *watch(const char *job_id, int64_t deadline_ns)
{
    struct event_watch *w = NULL;
    assert_int_equal(events_watch(ev, job_id, deadline_ns, note_call, &called, &w, &e), 0);
    assert_non_null(w);
    return w;
}

static void a_watch_is_called_once_when_the_state_changes_or_the_job_ends(void **state)
{
    (void)state;
    called = 0;
    struct event_watch *w = watch("job", ms(100000));
    watch("job", ms(100000));
    publish("progress", "{}", NULL);
    publish("preview", "{}", NULL);
    events_publish(ev, "other", "state", NULL, NULL);
    events_tick(ev, ms(0));
    assert_int_equal(called, 0);
    publish("state", "{}", NULL);
    assert_int_equal(called, 2);
    publish("state", "{}", NULL);
    events_tick(ev, ms(100000));
    assert_int_equal(called, 2);
    assert_false(events_unwatch(ev, w));
    watch("job", ms(200000));
    publish("end", "{}", NULL);
    assert_int_equal(called, 3);
}

static void a_watch_is_called_at_its_deadline(void **state)
{
    (void)state;
    called = 0;
    watch("job", ms(1000));
    watch("job", ms(2000));
    events_tick(ev, ms(999));
    assert_int_equal(called, 0);
    events_tick(ev, ms(1000));
    assert_int_equal(called, 1);
    events_tick(ev, ms(5000));
    assert_int_equal(called, 2);
    events_tick(ev, ms(5000));
    assert_int_equal(called, 2);
}

static void a_stopped_watch_is_never_called(void **state)
{
    (void)state;
    called = 0;
    struct event_watch *w[5];
    for (int i = 0; i < 5; i++)
        w[i] = watch("job", ms(1000));
    assert_true(events_unwatch(ev, w[2]));
    assert_false(events_unwatch(ev, w[2]));
    assert_true(events_unwatch(ev, w[4]));
    assert_true(events_unwatch(ev, w[0]));
    publish("state", "{}", NULL);
    assert_int_equal(called, 2);
    for (int i = 0; i < 5; i++)
        assert_false(events_unwatch(ev, w[i]));
    /* An old handle does not stop a new watch. */
    watch("job", ms(1000));
    for (int i = 0; i < 5; i++)
        assert_false(events_unwatch(ev, w[i]));
    publish("state", "{}", NULL);
    assert_int_equal(called, 3);
}

static void a_watch_of_a_job_known_to_have_ended_is_called_by_the_next_tick(void **state)
{
    (void)state;
    called = 0;
    publish("end", "{}", NULL);
    watch("job", ms(1000000));
    assert_int_equal(called, 0);
    events_tick(ev, ms(0));
    assert_int_equal(called, 1);
}

static void a_watch_is_called_when_the_job_is_forgotten_or_the_hub_closes(void **state)
{
    (void)state;
    called = 0;
    watch("job", ms(1000));
    events_forget(ev, "job");
    assert_int_equal(called, 1);
    watch("job", ms(1000));
    watch("other", ms(1000));
    events_close(ev);
    assert_int_equal(called, 3);
    assert_int_equal(events_open(&ev, SUBSCRIBERS, 0, &e), 0);
}

static void an_ended_subscriber_tells_the_watches(void **state)
{
    (void)state;
    called = 0;
    watch("job", ms(1000));
    struct subscription *s = subscribe(-1, "{}", true);
    assert_int_equal(called, 1);
    subscription_close(s);
}

static void watch_again(void *ctx)
{
    struct event_watch *w;
    if (atomic_fetch_add(&called, 1) < 3)
        events_watch(ev, "job", ms(1000), watch_again, ctx, &w, &e);
}

static void a_watch_may_watch_again(void **state)
{
    (void)state;
    struct event_watch *w;
    called = 0;
    assert_int_equal(events_watch(ev, "job", ms(1000), watch_again, NULL, &w, &e), 0);
    for (int i = 1; i <= 4; i++) {
        publish("state", "{}", NULL);
        assert_int_equal(called, i);
    }
    publish("state", "{}", NULL);
    assert_int_equal(called, 4);
}

/* Races */

enum { JOBS = 3, PUBLISHERS = 2, FOLLOWERS = 4, EVENTS_EACH = 600 };

static atomic_int trouble, publishing, ends, stray_wakes, watch_calls, watch_stops, watches_made;

static atomic_bool finished; /* what the store would say of the jobs */

static void try_to(bool ok)
{
    atomic_fetch_add(&trouble, !ok);
}

static const char *job_name(int i)
{
    static const char *const names[JOBS] = {"job-0", "job-1", "job-2"};
    return names[i];
}

static void *publisher(void *arg)
{
    static const char *const kinds[] = {"preview", "progress", "preview", "state"};
    (void)arg;
    for (int i = 0; i < EVENTS_EACH; i++)
        for (int j = 0; j < JOBS; j++)
            events_publish(ev, job_name(j), kinds[i % 4], text("{}"),
                           i % 3 ? NULL : text("{\"snap\":1}"));
    if (atomic_fetch_sub(&publishing, 1) == 1) {
        atomic_store(&finished, true);
        for (int j = 0; j < JOBS; j++)
            events_publish(ev, job_name(j), "end", NULL, NULL);
    }
    return NULL;
}

static void *ticker(void *arg)
{
    (void)arg;
    for (int64_t t = 0; atomic_load(&ends) < FOLLOWERS; t += 250) {
        events_tick(ev, ms(t));
        sched_yield();
    }
    return NULL;
}

/* What a wake points to; open is false once close has returned. */
struct follower {
    atomic_bool open, ready;
};

static void wake_follower(void *ctx)
{
    struct follower *f = ctx;
    if (!atomic_load(&f->open))
        atomic_fetch_add(&stray_wakes, 1);
    atomic_store(&f->ready, true);
}

/* One connection as its client sees it. */
struct reader {
    char bytes[4096]; /* not yet a whole event */
    size_t used;
    long long last; /* id, over all connections */
    bool after_snapshot;
};

/* Nothing is left out and nothing comes twice, but for what a snapshot does not show. */
static void check_event(struct reader *r, const char *event)
{
    char kind[16];
    long long id;
    if (strcmp(event, ": ping") == 0)
        return;
    if (sscanf(event, "id: %lld\nevent: %15s\ndata: {", &id, kind) != 2) {
        try_to(false);
        return;
    }
    const bool snapshot = strcmp(kind, "snapshot") == 0;
    try_to(snapshot || id == r->last + 1 || (r->after_snapshot && id <= r->last));
    r->after_snapshot = snapshot;
    r->last = id;
}

static void check_bytes(struct reader *r)
{
    char *begin = r->bytes, *end;
    r->bytes[r->used] = '\0';
    while ((end = strstr(begin, "\n\n"))) {
        *end = '\0';
        check_event(r, begin);
        begin = end + 2;
    }
    r->used -= (size_t)(begin - r->bytes);
    memmove(r->bytes, begin, r->used);
}

/* Follows a job over one connection, at most `reads` of them; true if the stream was over. */
static bool follow(struct follower *f, const char *job, struct reader *r, int reads)
{
    struct err err;
    struct subscription *s;
    long n = 0;
    const bool ended = atomic_load(&finished);
    atomic_store(&f->open, true);
    atomic_store(&f->ready, true);
    if (subscription_open(&s, ev, job, r->last, text("{}"), ended, &err) != 0) {
        try_to(false);
        return true;
    }
    if (!ended && atomic_load(&finished)) /* and maybe forgotten already */
        reads = 0;
    subscription_set_wake(s, wake_follower, f);
    r->used = 0;
    r->after_snapshot = false;
    while (reads > 0 && n >= 0) {
        if (!atomic_exchange(&f->ready, false)) {
            sched_yield();
            continue;
        }
        while ((n = subscription_read(s, r->bytes + r->used, 1024)) > 0) {
            r->used += (size_t)n;
            check_bytes(r);
            reads--;
        }
    }
    subscription_close(s);
    atomic_store(&f->open, false);
    return n < 0;
}

static void count_call(void *ctx)
{
    (void)ctx;
    atomic_fetch_add(&watch_calls, 1);
}

static void *follower(void *arg)
{
    const char *job = arg;
    struct follower f;
    struct event_watch *w;
    struct err err;
    struct reader r = {.last = -1};
    bool over = false;
    for (int round = 0; !over; round++) {
        over = follow(&f, job, &r, 1 + round % 7);
        atomic_fetch_add(&watches_made, 1);
        try_to(events_watch(ev, job, ms(round % 50 * 1000), count_call, NULL, &w, &err) == 0);
        if (round % 2 && events_unwatch(ev, w))
            atomic_fetch_add(&watch_stops, 1);
    }
    events_forget(ev, job);
    atomic_fetch_add(&ends, 1);
    return NULL;
}

static void many_threads_may_publish_and_follow(void **state)
{
    (void)state;
    static char names[FOLLOWERS][8];
    pthread_t publishers[PUBLISHERS], followers[FOLLOWERS], clock;
    finished = false;
    trouble = ends = stray_wakes = watch_calls = watch_stops = watches_made = 0;
    publishing = PUBLISHERS;
    for (int i = 0; i < FOLLOWERS; i++) {
        strcpy(names[i], job_name(i % JOBS));
        assert_int_equal(pthread_create(&followers[i], NULL, follower, names[i]), 0);
    }
    assert_int_equal(pthread_create(&clock, NULL, ticker, NULL), 0);
    for (int i = 0; i < PUBLISHERS; i++)
        assert_int_equal(pthread_create(&publishers[i], NULL, publisher, NULL), 0);
    for (int i = 0; i < PUBLISHERS; i++)
        pthread_join(publishers[i], NULL);
    for (int i = 0; i < FOLLOWERS; i++)
        pthread_join(followers[i], NULL);
    pthread_join(clock, NULL);
    events_tick(ev, ms(100000000));
    assert_int_equal(trouble, 0);
    assert_int_equal(stray_wakes, 0);
    assert_int_equal(ends, FOLLOWERS);
    assert_int_equal(watch_calls + watch_stops, watches_made);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVENTS_TEST(a_wake_comes_once_for_each_read_that_had_nothing),
        EVENTS_TEST(a_forgotten_job_wakes_its_streams),
        EVENTS_TEST(a_wake_may_close_its_subscription_and_publish),
        EVENTS_TEST(a_subscription_closed_while_its_wake_waits_is_not_woken),
        EVENTS_TEST(close_waits_for_a_wake_in_another_thread_and_nothing_else_does),
        EVENTS_TEST(a_wake_may_take_a_lock_that_its_module_holds_while_it_reads),
        EVENTS_TEST(a_watch_is_called_once_when_the_state_changes_or_the_job_ends),
        EVENTS_TEST(a_watch_is_called_at_its_deadline),
        EVENTS_TEST(a_stopped_watch_is_never_called),
        EVENTS_TEST(a_watch_of_a_job_known_to_have_ended_is_called_by_the_next_tick),
        EVENTS_TEST(a_watch_is_called_when_the_job_is_forgotten_or_the_hub_closes),
        EVENTS_TEST(an_ended_subscriber_tells_the_watches),
        EVENTS_TEST(a_watch_may_watch_again),
        EVENTS_TEST(many_threads_may_publish_and_follow),
    };
    return cmocka_run_group_tests_name("events_calls", tests, NULL, NULL);
}
