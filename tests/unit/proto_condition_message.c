/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/condition_message.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static const char *no_yes[] = {"no", "yes"}, *hairs[] = {"none", "long", "short"},
                  *classes[] = {"0", "1", "2", "3"};
static struct attribute list[] = {
    {.name = "beard", .n_values = 2, .values = no_yes, .first = 0, .temperature = 1},
    {.name = "hair", .n_values = 3, .values = hairs, .first = 2, .temperature = 1},
    {.name = "class", .n_values = 4, .values = classes, .first = 5, .temperature = 1}};
static struct attributes attributes = {.n = 3, .n_logits = 9, .head = -1, .list = list};

static int read(const char *json, struct condition *c, struct err *e)
{
    const struct condition before = *c;
    struct json_reader r;
    json_t *root;
    memset(e, 0, sizeof *e);
    if (json_parse(json, strlen(json), &root, e) != 0)
        fail_msg("%s: %s", json, e->text);
    int rc = json_reader_init(&r, root, "/c", e);
    if (rc == 0)
        rc = condition_message_read(c, &r, &attributes, e);
    if (rc == 0 && (rc = json_reader_finish(&r, e)) != 0) {
        condition_fini(c);
        *c = before;
    }
    json_decref(root);
    return rc;
}

/* The allowed sets of every alternative as text: "01 111 1111|..." */
static void write_sets(const struct condition *c, char *out)
{
    for (int j = 0; j < c->n_alternatives; j++) {
        if (j)
            *out++ = '|';
        for (int k = 0; k < attributes.n; k++) {
            if (k)
                *out++ = ' ';
            for (int v = 0; v < list[k].n_values; v++)
                *out++ = (char)('0' + c->allowed[j * attributes.n_logits + list[k].first + v]);
        }
    }
    *out = '\0';
}

static void conditions_mean_what_they_say(void **state)
{
    (void)state;
    static const char *const good[][2] = {
        {"{}", "11 111 1111"},
        {"{\"attributes\":{}}", "11 111 1111"},
        {"{\"attributes\":null,\"weights\":null,\"any_of\":null}", "11 111 1111"},
        {"{\"attributes\":{\"beard\":true}}", "01 111 1111"},
        {"{\"attributes\":{\"beard\":false}}", "10 111 1111"},
        {"{\"attributes\":{\"beard\":\"yes\"}}", "01 111 1111"},
        {"{\"attributes\":{\"hair\":[\"long\",\"short\",\"long\"]}}", "11 011 1111"},
        {"{\"attributes\":{\"hair\":{\"not\":\"none\"}}}", "11 011 1111"},
        {"{\"attributes\":{\"hair\":{\"not\":[\"none\",\"long\"]}}}", "11 001 1111"},
        {"{\"attributes\":{\"beard\":{\"not\":true}}}", "10 111 1111"},
        {"{\"attributes\":{\"class\":3}}", "11 111 0001"},
        {"{\"attributes\":{\"class\":[0,\"2\"],\"beard\":[true,false]}}", "11 111 1010"},
        {"{\"any_of\":[{}]}", "11 111 1111"},
        {"{\"any_of\":[{\"attributes\":{\"hair\":\"long\"}},{\"attributes\":{\"class\":1}}]}",
         "11 010 1111|11 111 0100"},
        {"{\"attributes\":{\"beard\":true},\"any_of\":[{\"attributes\":{\"hair\":\"long\"}},"
         "{\"attributes\":{\"beard\":[true,false]}}]}",
         "01 010 1111|01 111 1111"},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        struct condition c = {0};
        struct err e;
        char sets[256];
        if (read(good[i][0], &c, &e) != 0)
            fail_msg("%s: %s", good[i][0], e.text);
        write_sets(&c, sets);
        assert_string_equal(sets, good[i][1]);
        condition_fini(&c);
    }
}

static void weights_hold_for_all_alternatives_unless_one_has_its_own(void **state)
{
    (void)state;
    struct condition c = {0};
    struct err e;
    assert_int_equal(read("{\"weights\":{\"beard\":2,\"hair\":0},\"any_of\":[{},{\"weights\":"
                          "{\"beard\":0.5}}]}",
                          &c, &e),
                     0);
    const float want[] = {2, 0, 1, 0.5f, 0, 1};
    assert_int_equal(c.n_alternatives, 2);
    assert_memory_equal(c.weights, want, sizeof want);
    condition_fini(&c);
}

struct refusal {
    const char *json;
    enum fail_code code;
    const char *pointer, *meant;
};

static void expect(const struct refusal *r)
{
    uint8_t untouched;
    struct condition c = {.n_alternatives = -7, .allowed = &untouched};
    struct err e;
    const int rc = read(r->json, &c, &e);
    if (rc != -(int)r->code || strcmp(e.pointer, r->pointer) != 0 ||
        strcmp(e.did_you_mean, r->meant ? r->meant : "") != 0 || !e.text[0])
        fail_msg("%s: %s at \"%s\", did you mean \"%s\": %s", r->json,
                 rc ? fail_name(e.code) : "ok", e.pointer, e.did_you_mean, e.text);
    assert_true(c.n_alternatives == -7 && c.allowed == &untouched);
}

static void what_is_wrong_is_named_with_its_place(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"{\"attributes\":{\"baerd\":true}}", FAIL_UNKNOWN_ATTRIBUTE, "/c/attributes/baerd",
         "beard"},
        {"{\"attributes\":{\"a/b~\":true}}", FAIL_UNKNOWN_ATTRIBUTE, "/c/attributes/a~1b~0", NULL},
        {"{\"attributes\":{\"hair\":\"lnog\"}}", FAIL_UNKNOWN_VALUE, "/c/attributes/hair", "long"},
        {"{\"attributes\":{\"hair\":[\"long\",\"shot\"]}}", FAIL_UNKNOWN_VALUE,
         "/c/attributes/hair", "short"},
        {"{\"attributes\":{\"class\":4}}", FAIL_UNKNOWN_VALUE, "/c/attributes/class", "0"},
        {"{\"attributes\":{\"hair\":true}}", FAIL_WRONG_TYPE, "/c/attributes/hair", NULL},
        {"{\"attributes\":{\"class\":1.0}}", FAIL_WRONG_TYPE, "/c/attributes/class", NULL},
        {"{\"attributes\":{\"hair\":null}}", FAIL_WRONG_TYPE, "/c/attributes/hair", NULL},
        {"{\"attributes\":{\"hair\":[[\"long\"]]}}", FAIL_WRONG_TYPE, "/c/attributes/hair", NULL},
        {"{\"attributes\":{\"hair\":[]}}", FAIL_EMPTY_VALUE_SET, "/c/attributes/hair", NULL},
        {"{\"attributes\":{\"hair\":{\"not\":[\"none\",\"long\",\"short\"]}}}",
         FAIL_EMPTY_VALUE_SET, "/c/attributes/hair", NULL},
        {"{\"attributes\":{\"hair\":{}}}", FAIL_MISSING_FIELD, "/c/attributes/hair/not", NULL},
        {"{\"attributes\":{\"hair\":{\"nto\":\"long\"}}}", FAIL_MISSING_FIELD,
         "/c/attributes/hair/not", NULL},
        {"{\"attributes\":{\"hair\":{\"not\":\"long\",\"nor\":1}}}", FAIL_UNKNOWN_FIELD,
         "/c/attributes/hair/nor", "not"},
        {"{\"attributes\":[]}", FAIL_WRONG_TYPE, "/c/attributes", NULL},
        {"{\"attributs\":{}}", FAIL_UNKNOWN_FIELD, "/c/attributs", "attributes"},
        {"{\"weights\":{\"beard\":-1}}", FAIL_OUT_OF_RANGE, "/c/weights/beard", NULL},
        {"{\"weights\":{\"beard\":1000.5}}", FAIL_OUT_OF_RANGE, "/c/weights/beard", NULL},
        {"{\"weights\":{\"haar\":1}}", FAIL_UNKNOWN_ATTRIBUTE, "/c/weights/haar", "hair"},
        {"{\"weights\":1}", FAIL_WRONG_TYPE, "/c/weights", NULL},
        {"{\"any_of\":[]}", FAIL_EMPTY_VALUE_SET, "/c/any_of", NULL},
        {"{\"any_of\":[1]}", FAIL_WRONG_TYPE, "/c/any_of/0", NULL},
        {"{\"any_of\":[{},{\"attributes\":{\"hair\":\"x\"}}]}", FAIL_UNKNOWN_VALUE,
         "/c/any_of/1/attributes/hair", NULL},
        {"{\"any_of\":[{\"any_of\":[{}]}]}", FAIL_UNKNOWN_FIELD, "/c/any_of/0/any_of", NULL},
        {"{\"attributes\":{\"beard\":true},\"any_of\":[{\"attributes\":{\"beard\":false}}]}",
         FAIL_EMPTY_VALUE_SET, "/c/any_of/0/attributes/beard", NULL},
        {"{\"any_of\":[{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{},{}]}", FAIL_OUT_OF_RANGE,
         "/c/any_of", NULL},
        {"[]", FAIL_WRONG_TYPE, "/c", NULL},
    };
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        expect(&bad[i]);
}

static void a_weight_that_is_no_number_is_a_wrong_type(void **state)
{
    (void)state;
    const struct refusal bad = {"{\"weights\":{\"beard\":\"2\"}}", FAIL_WRONG_TYPE,
                                "/c/weights/beard", NULL};
    expect(&bad);
}

static void a_model_with_an_energy_head_has_no_conditions(void **state)
{
    (void)state;
    static const struct refusal bad[] = {
        {"{\"attributes\":{\"beard\":true}}", FAIL_UNSUPPORTED, "/c", NULL},
        {"{\"weights\":{\"beard\":2}}", FAIL_UNSUPPORTED, "/c", NULL}};
    struct condition c = {0};
    struct err e;
    attributes.head = 9;
    for (size_t i = 0; i < 2; i++)
        expect(&bad[i]);
    assert_int_equal(read("{\"attributes\":{\"beard\":[true,false]}}", &c, &e), 0);
    condition_fini(&c);
    attributes.head = -1;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(conditions_mean_what_they_say),
        cmocka_unit_test(weights_hold_for_all_alternatives_unless_one_has_its_own),
        cmocka_unit_test(what_is_wrong_is_named_with_its_place),
        cmocka_unit_test(a_weight_that_is_no_number_is_a_wrong_type),
        cmocka_unit_test(a_model_with_an_energy_head_has_no_conditions),
    };
    return cmocka_run_group_tests_name("condition_message", tests, NULL, NULL);
}
