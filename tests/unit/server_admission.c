/* SPDX-License-Identifier: Apache-2.0 */
#include "server/admission.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

#include <cmocka.h>

static const int64_t MS = 1000000, SECOND = 1000000000;

/* 10 ms an image: 25 may wait in calm times, in overload as many as keep the cores busy. */
static struct admission fresh(void)
{
    struct admission a = {.queue_max = 100, .queue_ms = 250, .least = 4};
    admission_learn(&a, 10, 0.1);
    return a;
}

static int asks(struct admission *a, int images, int64_t now)
{
    const int rc = admission_check(a, images, now, NULL);
    if (rc == 0) {
        admission_accept(a, now);
        a->waiting += images;
    } else {
        admission_refuse(a, now);
    }
    return rc;
}

/* Asks until one is refused; how many were not. */
static int fill(struct admission *a, int64_t now)
{
    int n = 0;
    while (asks(a, 1, now) == 0)
        n++;
    return n;
}

static void a_burst_may_wait_as_long_as_is_set(void **state)
{
    (void)state;
    struct admission a = fresh();
    struct err e;
    assert_int_equal(fill(&a, SECOND), 26); /* the last waits 250 ms */
    assert_int_equal(admission_check(&a, 1, SECOND, &e), -FAIL_OVERLOADED);
    assert_non_null(strstr(e.text, "260 ms"));
    assert_false(e.has_limit);
}

static void in_overload_only_what_keeps_the_cores_busy_may_wait(void **state)
{
    (void)state;
    struct admission a = fresh();
    fill(&a, SECOND);
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 500 * MS), 4);
    a.image_seconds = 0.001; /* 10 ms are more than 4 images */
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 500 * MS), 11);
}

static void a_second_without_many_refusals_ends_the_overload(void **state)
{
    (void)state;
    struct admission a = fresh();
    fill(&a, SECOND);
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 999 * MS), 4);
    for (int i = 0; i < 3; i++)
        assert_int_equal(asks(&a, 1, SECOND + 999 * MS), -FAIL_OVERLOADED); /* prolonged */
    a.waiting = 0;
    assert_int_equal(asks(&a, 4, SECOND + 1998 * MS), 0);
    assert_int_equal(admission_check(&a, 1, SECOND + 1998 * MS, NULL), -FAIL_OVERLOADED);
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 2000 * MS), 26);
}

static void a_few_refusals_do_not_prolong_it(void **state)
{
    (void)state;
    struct admission a = fresh();
    fill(&a, SECOND);
    for (int i = 0; i < 20; i++) { /* one of 21 */
        a.waiting = i < 19 ? 0 : 4;
        asks(&a, 1, SECOND + 900 * MS);
    }
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 1100 * MS), 26);
}

static void what_is_being_computed_and_who_has_a_place_are_waited_for_too(void **state)
{
    (void)state;
    struct admission a = fresh();
    admission_begin(&a, 20, SECOND);
    assert_float_equal((float)admission_seconds(&a, SECOND), 0.2f, 1e-6);
    assert_float_equal((float)admission_seconds(&a, SECOND + 50 * MS), 0.15f, 1e-6);
    assert_float_equal((float)admission_seconds(&a, SECOND + 900 * MS), 0, 1e-6); /* late */
    a.places = 3;
    a.waiting = 2;
    assert_float_equal((float)admission_seconds(&a, SECOND), 0.25f, 1e-6);
    assert_int_equal(fill(&a, SECOND), 1);
    admission_begin(&a, 0, SECOND);
    assert_float_equal((float)admission_seconds(&a, SECOND), 0.06f, 1e-6);
}

static void there_is_room_for_so_many_and_for_anything_when_nothing_waits(void **state)
{
    (void)state;
    struct admission a = fresh();
    struct err e;
    a.queue_ms = 0; /* no limit of time */
    assert_int_equal(asks(&a, 300, SECOND), 0);
    assert_int_equal(admission_check(&a, 1, SECOND, &e), -FAIL_OVERLOADED);
    assert_true(e.has_limit && e.limit == 100);
    a.waiting = 60;
    assert_int_equal(admission_check(&a, 41, SECOND, &e), -FAIL_OVERLOADED);
    assert_int_equal(admission_check_room(&a, 41, &e), -FAIL_OVERLOADED);
    assert_int_equal(admission_check(&a, 40, SECOND, &e), 0);
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND), 100);
    a.waiting = 0;
    assert_int_equal(fill(&a, SECOND + 1), 100); /* nor in overload */
}

static void a_large_request_is_not_worse_off_than_a_small_one(void **state)
{
    (void)state;
    struct admission a = fresh();
    fill(&a, SECOND);
    a.waiting = 3;
    assert_int_equal(admission_check(&a, 64, SECOND + 1, NULL), 0);
    a.waiting = 4;
    assert_int_equal(admission_check(&a, 64, SECOND + 1, NULL), -FAIL_OVERLOADED);
}

static void who_is_refused_comes_again_when_all_who_were_could_be_served(void **state)
{
    (void)state;
    struct admission a = fresh();
    fill(&a, SECOND);
    for (int i = 0; i < 999; i++)
        admission_refuse(&a, SECOND);
    const double now = admission_retry_seconds(&a, SECOND);
    assert_float_equal((float)now, 0.26f + 10.0f, 1e-3);
    const double later = admission_retry_seconds(&a, 2 * SECOND);
    assert_float_equal((float)later, 0.26f + 10.0f / 2.71828f, 1e-3);
    a.waiting = 0;
    assert_true(admission_retry_seconds(&a, 20 * SECOND) < 0.001);
    for (int i = 0; i < 9000; i++)
        admission_refuse(&a, 20 * SECOND);
    assert_true(admission_retry_seconds(&a, 20 * SECOND) == 60);
}

static void nothing_is_known_of_the_first_ones(void **state)
{
    (void)state;
    struct admission a = {.queue_max = 100, .queue_ms = 250, .least = 4};
    assert_int_equal(fill(&a, SECOND), 100);
    assert_true(admission_retry_seconds(&a, SECOND) == 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_burst_may_wait_as_long_as_is_set),
        cmocka_unit_test(in_overload_only_what_keeps_the_cores_busy_may_wait),
        cmocka_unit_test(a_second_without_many_refusals_ends_the_overload),
        cmocka_unit_test(a_few_refusals_do_not_prolong_it),
        cmocka_unit_test(what_is_being_computed_and_who_has_a_place_are_waited_for_too),
        cmocka_unit_test(there_is_room_for_so_many_and_for_anything_when_nothing_waits),
        cmocka_unit_test(a_large_request_is_not_worse_off_than_a_small_one),
        cmocka_unit_test(who_is_refused_comes_again_when_all_who_were_could_be_served),
        cmocka_unit_test(nothing_is_known_of_the_first_ones),
    };
    return cmocka_run_group_tests_name("admission", tests, NULL, NULL);
}
