/* SPDX-License-Identifier: Apache-2.0 */
/* The bytes of event streams: what is sent, when, and what is not. */
#include "events_help.h"

static void assert_open(struct subscription *s)
{
    assert_int_equal(subscription_read(s, got, sizeof got), 0);
}

static void a_subscriber_gets_the_snapshot_then_the_events(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{\"state\":\"queued\"}", false);
    assert_string_equal(read_text(s), "id: 0\nevent: snapshot\ndata: {\"state\":\"queued\"}\n\n");
    publish("state", "{\"a\":1}", "{\"b\":1}");
    publish("preview", "{\"a\":2}", NULL);
    assert_string_equal(read_text(s), "id: 1\nevent: state\ndata: {\"a\":1}\n\n"
                                      "id: 2\nevent: preview\ndata: {\"a\":2}\n\n");
    assert_open(s);
    struct subscription *t = subscribe(-1, "{\"b\":0}", false);
    assert_string_equal(read_text(t), "id: 2\nevent: snapshot\ndata: {\"b\":1}\n\n");
    subscription_close(s);
    subscription_close(t);
}

static void events_of_another_job_are_not_seen(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, NULL, false);
    read_text(s);
    events_publish(ev, "other", "state", text("{}"), text("{}"));
    assert_open(s);
    subscription_close(s);
}

static void what_is_published_between_open_and_read_is_not_lost(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    publish("preview", "{\"a\":1}", NULL);
    assert_string_equal(read_text(s), "id: 0\nevent: snapshot\ndata: {}\n\n"
                                      "id: 1\nevent: preview\ndata: {\"a\":1}\n\n");
    subscription_close(s);
}

static void a_small_buffer_gets_the_same_bytes(void **state)
{
    (void)state;
    char whole[4096];
    for (size_t size = 1; size < 90; size++) {
        struct subscription *s = subscribe(-1, "{\"state\":\"queued\"}", false);
        struct subscription *t = subscribe(-1, "{\"state\":\"queued\"}", false);
        publish("state", "{\"a\":1}", NULL);
        publish("preview", NULL, NULL);
        strcpy(whole, read_text(s));
        assert_non_null(strstr(whole, "event: preview\ndata: {}\n\n"));
        assert_string_equal(read_by(t, size), whole);
        assert_int_equal(subscription_read(s, got, 0), 0);
        subscription_close(s);
        subscription_close(t);
    }
}

static void a_stream_may_be_closed_in_the_middle_of_an_event(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{\"long\":\"enough\"}", false);
    assert_int_equal(subscription_read(s, got, 25), 25);
    subscription_close(s);
    s = subscribe(-1, "{}", false);
    subscription_close(s);
    subscription_close(NULL);
}

static void line_ends_cannot_break_the_framing(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{\n}", false);
    assert_string_equal(read_text(s), "id: 0\nevent: snapshot\ndata: { }\n\n");
    publish("state", "{\r\n\"a\":1}\n\nevent: end", NULL);
    assert_string_equal(read_text(s), "id: 1\nevent: state\ndata: {  \"a\":1}  event: end\n\n");
    subscription_close(s);
}

static void a_reconnecting_client_continues_from_the_ring(void **state)
{
    (void)state;
    char line[32], expected[96];
    for (int i = 1; i <= 100; i++) {
        snprintf(line, sizeof line, "{\"a\":%d}", i);
        publish("preview", line, "{\"snap\":1}");
    }
    struct subscription *s = subscribe(98, "{}", false);
    assert_string_equal(read_text(s), "id: 99\nevent: preview\ndata: {\"a\":99}\n\n"
                                      "id: 100\nevent: preview\ndata: {\"a\":100}\n\n");
    subscription_close(s);
    s = subscribe(100, "{}", false);
    assert_open(s);
    publish("preview", "{}", NULL);
    assert_string_equal(read_text(s), "id: 101\nevent: preview\ndata: {}\n\n");
    subscription_close(s);
    /* The oldest event kept is 101 - 63 = 38. */
    s = subscribe(37, "{}", false);
    snprintf(expected, sizeof expected, "id: 38\nevent: preview\ndata: {\"a\":38}\n\n");
    assert_memory_equal(read_text(s), expected, strlen(expected));
    subscription_close(s);
}

static void an_id_that_the_ring_cannot_continue_gets_a_snapshot(void **state)
{
    (void)state;
    static const long long ids[] = {-1, 35, 0, 101, INT64_MAX, INT64_MIN};
    for (int i = 1; i <= 100; i++)
        publish("preview", "{}", "{\"snap\":1}");
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        struct subscription *s = subscribe(ids[i], "{}", false);
        assert_string_equal(read_text(s), "id: 100\nevent: snapshot\ndata: {\"snap\":1}\n\n");
        subscription_close(s);
    }
    events_forget(ev, "job");
    publish("state", "{\"a\":1}", NULL);
    struct subscription *s = subscribe(0, "{}", false); /* has seen a snapshot with id 0 */
    assert_string_equal(read_text(s), "id: 1\nevent: state\ndata: {\"a\":1}\n\n");
    subscription_close(s);
}

static void a_slow_subscriber_gets_a_snapshot_instead_of_what_it_missed(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    read_text(s);
    for (int i = 1; i <= EVENTS_RING; i++)
        publish("preview", "{}", "{\"snap\":1}");
    /* Exactly a ring behind: nothing is missing. */
    assert_memory_equal(read_text(s), "id: 1\nevent: preview", 20);
    for (int i = 0; i <= EVENTS_RING; i++)
        publish("preview", "{}", "{\"snap\":2}");
    assert_string_equal(read_text(s), "id: 129\nevent: snapshot\ndata: {\"snap\":2}\n\n");
    publish("state", "{\"a\":1}", NULL);
    assert_string_equal(read_text(s), "id: 130\nevent: state\ndata: {\"a\":1}\n\n");
    subscription_close(s);
}

static int count(const char *in, const char *what)
{
    int n = 0;
    for (const char *p = in; (p = strstr(p, what)); p++)
        n++;
    return n;
}

static void progress_is_merged_to_two_a_second(void **state)
{
    (void)state;
    char line[32];
    int seen = 0;
    struct subscription *s = subscribe(-1, "{}", false);
    events_tick(ev, ms(0));
    read_text(s);
    for (int t = 1; t <= 10000; t++) { /* ten seconds, an event every 5 ms, a tick every 70 */
        if (t % 5 == 0) {
            snprintf(line, sizeof line, "{\"t\":%d}", t);
            publish("progress", line, NULL);
        }
        if (t % 70 == 0)
            events_tick(ev, ms(t));
        seen += count(read_text(s), "event: progress");
        assert_true(seen <= 1 + t / EVENTS_PROGRESS_MS);
    }
    assert_in_range(seen, 15, 20);
    events_tick(ev, ms(11000));
    assert_non_null(strstr(read_text(s), "{\"t\":10000}"));
    events_tick(ev, ms(20000));
    assert_open(s);
    subscription_close(s);
}

static void two_progress_events_are_half_a_second_apart(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    events_tick(ev, ms(0));
    read_text(s);
    publish("progress", "{\"a\":1}", NULL); /* some time before the next tick */
    assert_non_null(strstr(read_text(s), "{\"a\":1}"));
    publish("progress", "{\"a\":2}", NULL);
    publish("progress", "{\"a\":3}", NULL);
    events_tick(ev, ms(100));
    events_tick(ev, ms(599));
    assert_open(s);
    events_tick(ev, ms(600));
    assert_string_equal(read_text(s), "id: 2\nevent: progress\ndata: {\"a\":3}\n\n");
    events_tick(ev, ms(1100));
    publish("progress", "{\"a\":4}", NULL);
    assert_string_equal(read_text(s), "id: 3\nevent: progress\ndata: {\"a\":4}\n\n");
    subscription_close(s);
}

static void a_state_or_the_end_supersedes_pending_progress(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    publish("progress", "{\"a\":1}", NULL);
    publish("progress", "{\"a\":2}", NULL);
    publish("preview", "{}", NULL);
    publish("state", "{}", NULL);
    events_tick(ev, ms(0));
    events_tick(ev, ms(5000));
    assert_null(strstr(read_text(s), "{\"a\":2}"));
    publish("progress", "{\"a\":3}", NULL);
    publish("progress", "{\"a\":4}", NULL);
    publish("end", "{}", NULL);
    events_tick(ev, ms(10000));
    events_tick(ev, ms(15000));
    assert_null(strstr(read_text(s), "{\"a\":4}"));
    assert_over(s);
    subscription_close(s);
}

static void a_late_subscriber_gets_the_newest_progress_after_the_snapshot(void **state)
{
    (void)state;
    publish("state", "{}", "{\"snap\":1}");
    publish("progress", "{\"a\":1}", NULL);
    publish("preview", "{}", NULL);
    struct subscription *s = subscribe(-1, "{}", false);
    assert_string_equal(read_text(s), "id: 3\nevent: snapshot\ndata: {\"snap\":1}\n\n"
                                      "id: 2\nevent: progress\ndata: {\"a\":1}\n\n"
                                      "id: 3\nevent: preview\ndata: {}\n\n");
    subscription_close(s);
    publish("state", "{}", "{\"snap\":2}");
    s = subscribe(-1, "{}", false);
    assert_string_equal(read_text(s), "id: 4\nevent: snapshot\ndata: {\"snap\":2}\n\n");
    subscription_close(s);
}

static void silence_is_broken_by_a_ping_every_15_seconds(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    read_text(s);
    events_tick(ev, ms(0));
    events_tick(ev, ms(14999));
    assert_open(s);
    events_tick(ev, ms(15000));
    events_tick(ev, ms(15100));
    assert_string_equal(read_text(s), ": ping\n\n");
    events_tick(ev, ms(15200));
    events_tick(ev, ms(30199));
    assert_open(s);
    events_tick(ev, ms(30200));
    assert_string_equal(read_text(s), ": ping\n\n");
    events_tick(ev, ms(30300));
    publish("state", "{}", NULL);
    assert_non_null(strstr(read_text(s), "state"));
    events_tick(ev, ms(40000));
    events_tick(ev, ms(54999));
    assert_open(s);
    events_tick(ev, ms(55000));
    publish("preview", "{}", NULL); /* what is said takes the place of the ping */
    assert_string_equal(read_text(s), "id: 2\nevent: preview\ndata: {}\n\n");
    subscription_close(s);
}

static void end_ends_the_stream_and_what_comes_after_it_is_ignored(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    publish("state", "{\"a\":1}", "{\"snap\":1}");
    publish("end", "{\"a\":2}", NULL);
    publish("state", "{\"a\":3}", "{\"snap\":3}");
    publish("progress", "{\"a\":4}", NULL);
    publish("end", "{\"a\":5}", NULL);
    events_tick(ev, ms(0));
    events_tick(ev, ms(16000));
    assert_string_equal(read_text(s), "id: 0\nevent: snapshot\ndata: {}\n\n"
                                      "id: 1\nevent: state\ndata: {\"a\":1}\n\n"
                                      "id: 2\nevent: end\ndata: {\"a\":2}\n\n");
    assert_over(s);
    subscription_close(s);
    s = subscribe(-1, "{}", false); /* the hub knows better than the subscriber */
    assert_string_equal(read_text(s), "id: 2\nevent: snapshot\ndata: {\"snap\":1}\n\n"
                                      "id: 2\nevent: end\ndata: {\"a\":2}\n\n");
    assert_over(s);
    subscription_close(s);
}

static void an_ended_job_gives_snapshot_and_end(void **state)
{
    (void)state;
    static const char both[] = "id: 1\nevent: snapshot\ndata: {\"done\":1}\n\n"
                               "id: 1\nevent: end\ndata: {\"done\":1}\n\n";
    static const long long ids[] = {-1, 1, 57};
    struct subscription *live = subscribe(-1, "{}", false);
    read_text(live);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        struct subscription *s = subscribe(ids[i], "{\"done\":1}", true);
        assert_string_equal(read_text(s), both);
        assert_over(s);
        subscription_close(s);
    }
    assert_string_equal(read_text(live), "id: 1\nevent: end\ndata: {\"done\":1}\n\n");
    assert_over(live);
    subscription_close(live);
}

static void a_client_that_lost_only_the_end_gets_it(void **state)
{
    (void)state;
    publish("state", "{\"a\":1}", "{\"snap\":1}");
    publish("end", "{\"a\":2}", NULL);
    struct subscription *s = subscribe(1, "{}", true);
    assert_string_equal(read_text(s), "id: 2\nevent: end\ndata: {\"a\":2}\n\n");
    assert_over(s);
    subscription_close(s);
}

static void a_slow_subscriber_of_an_ended_job_still_gets_the_end(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    read_text(s);
    for (int i = 0; i < 2 * EVENTS_RING; i++)
        publish("preview", "{}", "{\"snap\":1}");
    publish("end", "{}", "{\"snap\":2}");
    assert_string_equal(read_text(s), "id: 129\nevent: snapshot\ndata: {\"snap\":2}\n\n"
                                      "id: 129\nevent: end\ndata: {}\n\n");
    assert_over(s);
    subscription_close(s);
}

static void only_so_many_may_subscribe(void **state)
{
    (void)state;
    struct subscription *s[SUBSCRIBERS], *more = NULL;
    for (int i = 0; i < SUBSCRIBERS; i++)
        s[i] = subscribe(-1, "{}", false);
    assert_int_equal(subscription_open(&more, ev, "other", -1, text("{}"), true, &e),
                     -FAIL_OVERLOADED);
    assert_null(more);
    assert_true(e.has_limit);
    assert_int_equal(e.limit, SUBSCRIBERS);
    subscription_close(s[3]);
    s[3] = subscribe(-1, "{}", false);
    for (int i = 0; i < SUBSCRIBERS; i++)
        subscription_close(s[i]);
}

static void a_forgotten_job_is_over_for_its_streams(void **state)
{
    (void)state;
    struct subscription *s = subscribe(-1, "{}", false);
    struct subscription *t = subscribe(-1, "{}", false);
    publish("state", "{\"a\":1}", NULL);
    events_forget(ev, "job");
    events_forget(ev, "job");
    publish("state", "{\"a\":2}", NULL); /* of a new job with this id */
    assert_string_equal(read_text(s), "id: 0\nevent: snapshot\ndata: {}\n\n"
                                      "id: 1\nevent: state\ndata: {\"a\":1}\n\n");
    assert_over(s);
    subscription_close(s);
    subscription_close(t);
    s = subscribe(0, "{}", false);
    assert_string_equal(read_text(s), "id: 1\nevent: state\ndata: {\"a\":2}\n\n");
    subscription_close(s);
}

static void the_ring_of_an_ended_job_is_kept_for_a_minute(void **state)
{
    (void)state;
    events_tick(ev, ms(0));
    publish("state", "{\"a\":1}", NULL);
    publish("end", "{}", NULL);
    events_tick(ev, ms(1000));
    events_tick(ev, ms(60999));
    struct subscription *s = subscribe(0, "{}", true);
    assert_non_null(strstr(read_text(s), "{\"a\":1}"));
    events_tick(ev, ms(61000)); /* a subscriber keeps it */
    subscription_close(s);
    s = subscribe(0, "{}", true);
    assert_non_null(strstr(read_text(s), "{\"a\":1}"));
    subscription_close(s);
    events_tick(ev, ms(61100));
    s = subscribe(1, "{\"late\":1}", true);
    assert_string_equal(read_text(s), "id: 1\nevent: snapshot\ndata: {\"late\":1}\n\n"
                                      "id: 1\nevent: end\ndata: {\"late\":1}\n\n");
    subscription_close(s);
}

static void a_running_job_keeps_its_ring(void **state)
{
    (void)state;
    events_tick(ev, ms(0));
    publish("state", "{\"a\":1}", NULL);
    events_tick(ev, ms(10000000));
    struct subscription *s = subscribe(0, "{}", false);
    assert_non_null(strstr(read_text(s), "{\"a\":1}"));
    subscription_close(s);
}

static void an_id_of_another_daemon_gets_a_snapshot(void **state)
{
    (void)state;
    enum { BEFORE = 5000 };
    static const long long ids[] = {0, 1, 2, 3, BEFORE - 1, BEFORE + 4, INT64_MAX, INT64_MIN};
    events_close(ev);
    assert_int_equal(events_open(&ev, SUBSCRIBERS, BEFORE, &e), 0);
    struct subscription *s = subscribe(BEFORE, "{}", false); /* nothing has happened yet */
    assert_string_equal(read_text(s), "id: 5000\nevent: snapshot\ndata: {}\n\n");
    for (int i = 0; i < 3; i++)
        publish("state", "{}", "{\"snap\":1}");
    assert_string_equal(read_text(s), "id: 5001\nevent: state\ndata: {}\n\n"
                                      "id: 5002\nevent: state\ndata: {}\n\n"
                                      "id: 5003\nevent: state\ndata: {}\n\n");
    subscription_close(s);
    for (size_t i = 0; i < sizeof ids / sizeof ids[0]; i++) {
        s = subscribe(ids[i], "{}", false);
        assert_string_equal(read_text(s), "id: 5003\nevent: snapshot\ndata: {\"snap\":1}\n\n");
        subscription_close(s);
    }
    s = subscribe(BEFORE + 2, "{}", false);
    assert_string_equal(read_text(s), "id: 5003\nevent: state\ndata: {}\n\n");
    subscription_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        EVENTS_TEST(a_subscriber_gets_the_snapshot_then_the_events),
        EVENTS_TEST(events_of_another_job_are_not_seen),
        EVENTS_TEST(what_is_published_between_open_and_read_is_not_lost),
        EVENTS_TEST(a_small_buffer_gets_the_same_bytes),
        EVENTS_TEST(a_stream_may_be_closed_in_the_middle_of_an_event),
        EVENTS_TEST(line_ends_cannot_break_the_framing),
        EVENTS_TEST(a_reconnecting_client_continues_from_the_ring),
        EVENTS_TEST(an_id_that_the_ring_cannot_continue_gets_a_snapshot),
        EVENTS_TEST(a_slow_subscriber_gets_a_snapshot_instead_of_what_it_missed),
        EVENTS_TEST(progress_is_merged_to_two_a_second),
        EVENTS_TEST(two_progress_events_are_half_a_second_apart),
        EVENTS_TEST(a_state_or_the_end_supersedes_pending_progress),
        EVENTS_TEST(a_late_subscriber_gets_the_newest_progress_after_the_snapshot),
        EVENTS_TEST(silence_is_broken_by_a_ping_every_15_seconds),
        EVENTS_TEST(end_ends_the_stream_and_what_comes_after_it_is_ignored),
        EVENTS_TEST(an_ended_job_gives_snapshot_and_end),
        EVENTS_TEST(a_client_that_lost_only_the_end_gets_it),
        EVENTS_TEST(a_slow_subscriber_of_an_ended_job_still_gets_the_end),
        EVENTS_TEST(only_so_many_may_subscribe),
        EVENTS_TEST(a_forgotten_job_is_over_for_its_streams),
        EVENTS_TEST(the_ring_of_an_ended_job_is_kept_for_a_minute),
        EVENTS_TEST(a_running_job_keeps_its_ring),
        EVENTS_TEST(an_id_of_another_daemon_gets_a_snapshot),
    };
    return cmocka_run_group_tests_name("events", tests, NULL, NULL);
}
