/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/description.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>

#include <cmocka.h>

/* The smallest description there is, with more members behind. */
static struct description parsed(const char *more)
{
    struct description d = {0};
    struct err e = {0};
    char json[512];
    snprintf(json, sizeof json,
             "{\"format\":1,\"name\":\"a\",\"version\":\"1\","
             "\"input\":{\"channels\":1,\"height\":2,\"width\":2,\"range\":[0,1]},"
             "\"layers\":[],\"attributes\":[{\"name\":\"b\",\"values\":[\"no\",\"yes\"]}]%s}",
             more);
    if (description_parse(&d, json, "test", &e) != 0)
        fail_msg("%s", e.text);
    return d;
}

static void expect_steps(const char *more, int steps, int steps_buffer)
{
    struct description d = parsed(more);
    assert_int_equal(d.sampler.steps, steps);
    assert_int_equal(d.steps_buffer, steps_buffer);
    description_fini(&d);
}

static void steps_from_the_buffer_default_to_steps(void **state)
{
    (void)state;
    expect_steps("", 100, 100);
    expect_steps(",\"sampler\":{}", 100, 100);
    expect_steps(",\"sampler\":{\"steps\":30}", 30, 30);
    expect_steps(",\"sampler\":{\"steps\":30,\"steps_buffer\":7}", 30, 7);
    expect_steps(",\"sampler\":{\"steps_buffer\":7}", 100, 7);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(steps_from_the_buffer_default_to_steps),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
