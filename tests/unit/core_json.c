/* SPDX-License-Identifier: Apache-2.0 */
#include "file/clip.h"
#include "file/json.h"

#include <math.h>
#include <setjmp.h>
#include <signal.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cmocka.h>

static json_t *parsed(const char *text)
{
    json_t *value = NULL;
    struct err e = {0};
    if (json_parse(text, strlen(text), &value, &e))
        fail_msg("%s: %s", text, e.text);
    return value;
}

static void contains(const char *text, const char *part)
{
    if (!strstr(text, part))
        fail_msg("\"%s\" does not contain \"%s\"", text, part);
}

static struct err refused_bytes(const char *bytes, size_t size, enum fail_code code)
{
    json_t *const untouched = (json_t *)&code;
    json_t *value = untouched;
    struct err e = {0};
    assert_int_equal(json_parse(bytes, size, &value, &e), -(int)code);
    assert_int_equal(e.code, code);
    assert_ptr_equal(value, untouched);
    return e;
}

static struct err refused(const char *text, enum fail_code code)
{
    return refused_bytes(text, strlen(text), code);
}

static void any_value_may_stand_at_the_top(void **state)
{
    (void)state;
    static const char *const texts[] = {"{}", "[]", "1", "-2.5e3", "\"x\"", "true", "null"};
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        json_decref(parsed(texts[i]));
}

static void malformed_text_is_refused_with_line_and_column(void **state)
{
    (void)state;
    const struct err e = refused("{\"a\": 1,\n \"b\": }", FAIL_MALFORMED_JSON);
    contains(e.text, "line 2, column 7");
    contains(e.text, "near '}'");
}

static void every_kind_of_malformed_text_is_refused(void **state)
{
    (void)state;
    static const char *const texts[] = {
        "",
        " ",
        "{",
        "}",
        "{\"a\"}",
        "[1,]",
        "{\"a\":1,}",
        "nul",
        "01",
        "+1",
        "1.",
        ".5",
        "NaN",
        "Infinity",
        "'a'",
        "\"a",
        "\"\\x\"",
        "\"\\u12\"",
        "\"\t\"",
        "\"\\ud800\"",
        "[1] [2]",
        "{} x",
        "\"\xff\"",
        "\"\xc0\x80\"",
        "/**/1",
        "1e999",
        "9223372036854775808",
        "\xef\xbb\xbf{}",
        "\"\\u0000\"",
        "{\"\\u0000\":1}",
        "[\"a\\",
    };
    for (size_t i = 0; i < sizeof texts / sizeof *texts; i++)
        refused(texts[i], FAIL_MALFORMED_JSON);
    refused_bytes("{}\0", 3, FAIL_MALFORMED_JSON);
    refused_bytes("\"a\0b\"", 5, FAIL_MALFORMED_JSON);
}

static void trailing_bytes_are_refused_and_trailing_spaces_are_not(void **state)
{
    (void)state;
    json_decref(parsed("  {} \r\n\t "));
    contains(refused("{}}", FAIL_MALFORMED_JSON).text, "line 1, column 3");
}

static void a_duplicate_key_is_refused_by_name(void **state)
{
    (void)state;
    const struct err e =
        refused("{\"steps\":1,\n\"a\":{\"steps\":2},\"steps\":3}", FAIL_DUPLICATE_KEY);
    contains(e.text, "\"steps\"");
    contains(e.text, "line 2");
    contains(refused("{\"\":1,\"\":2}", FAIL_DUPLICATE_KEY).text, "\"\"");
    contains(refused("{\"a\\\"b\":1,\"a\\\"b\":2}", FAIL_DUPLICATE_KEY).text, "\"a\\\"b\"");
    contains(refused("{\"\\\\\":1,\"\\\\\":2}", FAIL_DUPLICATE_KEY).text, "\"\\\\\"");
    contains(refused("{\"a\":1,\"\\u0061\" :2}", FAIL_DUPLICATE_KEY).text, "\"\\u0061\"");
}

static void a_long_duplicate_key_is_cut_at_a_character(void **state)
{
    (void)state;
    char key[600] = "x", text[2 * sizeof key + 20];
    for (int i = 0; i < 200; i++)
        strcat(key, "ü");
    snprintf(text, sizeof text, "{\"%s\":1,\"%s\":2}", key, key);
    const struct err e = refused(text, FAIL_DUPLICATE_KEY);
    contains(e.text, "\"xüü");
    contains(e.text, "ü...\"");
    assert_true(clip_is_utf8(e.text));
}

static char *nested(int depth, char open, char close)
{
    char *text = calloc(1, 2 * (size_t)depth + 1);
    memset(text, open, (size_t)depth);
    memset(text + depth, close, (size_t)depth);
    return text;
}

static void nesting_up_to_the_limit_is_accepted_and_one_more_is_refused(void **state)
{
    (void)state;
    char *text = nested(JSON_DEPTH_MAX, '[', ']');
    json_decref(parsed(text));
    free(text);
    text = nested(JSON_DEPTH_MAX + 1, '[', ']');
    const struct err e = refused(text, FAIL_TOO_DEEP);
    assert_int_equal(e.has_limit, 1);
    assert_int_equal(e.limit, JSON_DEPTH_MAX);
    free(text);
    text = nested(1000000, '{', '}');
    refused(text, FAIL_TOO_DEEP);
    free(text);
}

static void brackets_in_strings_do_not_count_as_nesting(void **state)
{
    (void)state;
    char *brackets = nested(100, '[', '{'), text[300];
    snprintf(text, sizeof text, "[\"\\\"%s\\\\\", \"%s\"]", brackets, "\\\"");
    json_decref(parsed(text));
    free(brackets);
}

static void brackets_side_by_side_do_not_count_as_nesting(void **state)
{
    (void)state;
    char text[5 * 100 + 2] = "[";
    for (int i = 0; i < 100; i++)
        strcat(text, i ? ",[{}]" : "[]");
    strcat(text, "]");
    json_decref(parsed(text));
}

static void stricter_limits_bound_depth_and_number_of_values(void **state)
{
    (void)state;
    const struct json_limits limits = {.depth = 2, .values = 5};
    json_t *value = NULL;
    struct err e = {0};
    assert_int_equal(json_parse_limited("[1,2,3,\",[,\"]", 13, &limits, &value, &e), 0);
    json_decref(value);
    value = NULL;
    assert_int_equal(json_parse_limited("[1,2,3,4,5]", 11, &limits, &value, &e),
                     -FAIL_OUT_OF_RANGE);
    assert_int_equal(e.limit, 5);
    assert_int_equal(json_parse_limited("[[[]]]", 6, &limits, &value, &e), -FAIL_TOO_DEEP);
    assert_null(value);
}

static void an_error_may_be_thrown_away(void **state)
{
    (void)state;
    json_t *value = NULL;
    assert_int_equal(json_parse("{", 1, &value, NULL), -FAIL_MALFORMED_JSON);
    assert_int_equal(json_parse("{\"a\":1,\"a\":1}", 13, &value, NULL), -FAIL_DUPLICATE_KEY);
    assert_null(value);
}

static void text_keeps_order_and_float_precision(void **state)
{
    (void)state;
    json_t *value =
        parsed("{\"z\": 0.1, \"a\": [1, true, null, \"é\\n\"], \"m\": 3.14159265358979}");
    size_t size = 0;
    char *text = json_text(value, &size);
    assert_string_equal(text, "{\"z\":0.1,\"a\":[1,true,null,\"é\\n\"],\"m\":3.14159265}");
    assert_int_equal(size, strlen(text));
    free(text);
    json_decref(value);
    for (float f = 1e-30f; f < 1e30f; f *= 7.3f) {
        json_t *real = json_real((double)f);
        text = json_text(real, NULL);
        assert_true(strtof(text, NULL) == f);
        free(text);
        json_decref(real);
    }
}

struct sampler {
    json_t *document;
    struct json_reader r;
};

static int open_sampler(void **state)
{
    static struct sampler s;
    struct err e = {0};
    s.document = parsed("{\"steps\":100,\"rate\":0.5,\"whole\":2,\"kind\":\"sgld\",\"on\":true,"
                        "\"off\":false,\"none\":null,\"list\":[1,2,3],\"child\":{\"a\":1},"
                        "\"big\":1e3,\"minimum\":-9223372036854775808}");
    *state = &s;
    return json_reader_init(&s.r, s.document, "/sampler", &e);
}

static int close_sampler(void **state)
{
    json_decref(((struct sampler *)*state)->document);
    return 0;
}

static void getters_read_what_is_there(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    struct err e = {0};
    long long steps = 0, minimum = 0;
    double rate = 0, whole = 0;
    bool on = false, off = true;
    const char *kind = NULL;
    const json_t *list = NULL, *child = NULL, *any = NULL;
    static const char *const kinds[] = {"gibbs", "sgld"};
    int word = -1;
    assert_int_equal(json_get_int(r, "steps", 1, 100, &steps, &e), 1);
    assert_int_equal(steps, 100);
    assert_int_equal(json_get_int(r, "minimum", INT64_MIN, 0, &minimum, &e), 1);
    assert_true(minimum == INT64_MIN);
    assert_int_equal(json_get_number(r, "rate", 0, 1, &rate, &e), 1);
    assert_true(rate == 0.5);
    assert_int_equal(json_get_number(r, "whole", 0, 2, &whole, &e), 1);
    assert_true(whole == 2.0);
    assert_int_equal(json_get_bool(r, "on", &on, &e), 1);
    assert_int_equal(json_get_bool(r, "off", &off, &e), 1);
    assert_true(on && !off);
    assert_int_equal(json_get_string(r, "kind", 4, &kind, &e), 1);
    assert_string_equal(kind, "sgld");
    assert_int_equal(json_get_word(r, "kind", kinds, 2, &word, &e), 1);
    assert_int_equal(word, 1);
    assert_int_equal(json_get_array(r, "list", 3, &list, &e), 1);
    assert_int_equal(json_array_size(list), 3);
    assert_int_equal(json_get_object(r, "child", &child, &e), 1);
    assert_true(json_is_object(child));
    assert_int_equal(json_get(r, "big", &any), 1);
    assert_true(json_is_real(any));
}

static void absent_and_null_members_leave_the_output_alone(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    static const char *const names[] = {"none", "absent"};
    struct err e = {0};
    for (int i = 0; i < 2; i++) {
        long long number = 7;
        double real = 7;
        bool flag = true;
        int word = 7;
        const char *text = "seven";
        const json_t *value = r->object;
        assert_int_equal(json_get(r, names[i], &value), 0);
        assert_int_equal(json_get_int(r, names[i], 0, 1, &number, &e), 0);
        assert_int_equal(json_get_number(r, names[i], 0, 1, &real, &e), 0);
        assert_int_equal(json_get_bool(r, names[i], &flag, &e), 0);
        assert_int_equal(json_get_string(r, names[i], 0, &text, &e), 0);
        assert_int_equal(json_get_word(r, names[i], NULL, 0, &word, &e), 0);
        assert_int_equal(json_get_array(r, names[i], 0, &value, &e), 0);
        assert_int_equal(json_get_object(r, names[i], &value, &e), 0);
        assert_true(number == 7 && real == 7 && flag && word == 7 && value == r->object);
        assert_string_equal(text, "seven");
    }
    assert_int_equal(e.code, FAIL_NONE);
}

static void wrong(int rc, const struct err *e, const char *pointer, const char *part)
{
    assert_int_equal(rc, -FAIL_WRONG_TYPE);
    assert_int_equal(e->code, FAIL_WRONG_TYPE);
    assert_string_equal(e->pointer, pointer);
    contains(e->text, part);
}

static void wrong_types_are_refused_with_a_pointer(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    struct err e = {0};
    long long number = 7;
    double real = 7;
    bool flag = true;
    int word = 7;
    const char *text = "seven";
    const json_t *value = r->object;
    wrong(json_get_int(r, "rate", 0, 9, &number, &e), &e, "/sampler/rate",
          "/sampler/rate must be an integer, not a real number");
    wrong(json_get_int(r, "big", 0, 9999, &number, &e), &e, "/sampler/big", "an integer");
    wrong(json_get_int(r, "on", 0, 9, &number, &e), &e, "/sampler/on", "not true");
    wrong(json_get_number(r, "kind", 0, 9, &real, &e), &e, "/sampler/kind", "not a string");
    wrong(json_get_bool(r, "steps", &flag, &e), &e, "/sampler/steps", "not an integer");
    wrong(json_get_string(r, "list", 9, &text, &e), &e, "/sampler/list", "not an array");
    wrong(json_get_word(r, "child", NULL, 0, &word, &e), &e, "/sampler/child", "not an object");
    wrong(json_get_array(r, "off", 9, &value, &e), &e, "/sampler/off", "not false");
    wrong(json_get_object(r, "list", &value, &e), &e, "/sampler/list", "must be an object");
    assert_true(number == 7 && real == 7 && flag && word == 7 && value == r->object);
    assert_string_equal(text, "seven");
}

static void beyond(int rc, const struct err *e, long long limit)
{
    assert_int_equal(rc, -FAIL_OUT_OF_RANGE);
    assert_int_equal(e->code, FAIL_OUT_OF_RANGE);
    assert_int_equal(e->has_limit, 1);
    assert_int_equal(e->limit, limit);
}

static void values_out_of_range_are_refused_with_the_limit(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    struct err e = {0};
    long long number = 7;
    double real = 7;
    const char *text = NULL;
    const json_t *value = NULL;
    beyond(json_get_int(r, "steps", 1, 99, &number, &e), &e, 99);
    assert_string_equal(e.pointer, "/sampler/steps");
    contains(e.text, "between 1 and 99, not 100");
    beyond(json_get_int(r, "steps", 101, 200, &number, &e), &e, 101);
    beyond(json_get_number(r, "rate", 1, 2, &real, &e), &e, 1);
    beyond(json_get_number(r, "whole", 0, 1, &real, &e), &e, 1);
    beyond(json_get_string(r, "kind", 3, &text, &e), &e, 3);
    beyond(json_get_array(r, "list", 2, &value, &e), &e, 2);
    assert_int_equal(json_get_number(r, "rate", 0, 0.25, &real, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(e.has_limit, 0);
    contains(e.text, "at most 0.25, not 0.5");
    assert_int_equal(json_get_number(r, "rate", 0.75, HUGE_VAL, &real, &e), -FAIL_OUT_OF_RANGE);
    contains(e.text, "at least 0.75");
    assert_true(number == 7 && real == 7 && !text && !value);
}

static void an_unknown_word_gets_a_suggestion(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    static const char *const kinds[] = {"gibbs", "sgd", "mala"};
    struct err e = {0};
    int word = 7;
    assert_int_equal(json_get_word(r, "kind", kinds, 3, &word, &e), -FAIL_OUT_OF_RANGE);
    assert_int_equal(word, 7);
    assert_string_equal(e.did_you_mean, "sgd");
    contains(e.text, "\"gibbs\", \"sgd\", \"mala\", not \"sgld\"");
}

static void a_long_list_of_words_is_cut_short(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    const char *words[40];
    struct err e = {0};
    int word = 7;
    for (int i = 0; i < 40; i++)
        words[i] = "a-rather-long-word";
    assert_int_equal(json_get_word(r, "kind", words, 40, &word, &e), -FAIL_OUT_OF_RANGE);
    contains(e.text, "\"a-rather-long-word\", ..., not \"sgld\"");
    assert_string_equal(e.did_you_mean, "");
}

static void members_that_nobody_asked_for_are_refused(void **state)
{
    (void)state;
    json_t *document = parsed("{\"steps\":1,\"stpes\":2}");
    struct json_reader r;
    struct err e = {0};
    long long steps;
    assert_int_equal(json_reader_init(&r, document, "", &e), 0);
    json_get_int(&r, "noise", 0, 9, &steps, &e);
    json_get_int(&r, "steps", 0, 9, &steps, &e);
    assert_int_equal(json_reader_finish(&r, &e), -FAIL_UNKNOWN_FIELD);
    assert_string_equal(e.pointer, "/stpes");
    assert_string_equal(e.did_you_mean, "steps");
    contains(e.text, "did you mean \"steps\"?");
    json_get_int(&r, "stpes", 0, 9, &steps, &e);
    assert_int_equal(json_reader_finish(&r, &e), 0);
    json_decref(document);
}

static void asking_again_takes_no_more_room(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    static char names[JSON_READER_FIELDS][16];
    const json_t *value;
    for (int again = 0; again < 3; again++) {
        for (int i = 0; i < JSON_READER_FIELDS; i++) {
            snprintf(names[i], sizeof names[i], "n%d", i);
            json_get(r, names[i], &value);
        }
    }
    assert_int_equal(r->n_known, JSON_READER_FIELDS);
    assert_string_equal(r->known[JSON_READER_FIELDS - 1], "n47");
}

static void more_names_than_the_reader_can_hold_abort(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        static char names[JSON_READER_FIELDS + 1][16];
        const json_t *value;
        if (!freopen("/dev/null", "w", stderr) || signal(SIGABRT, SIG_DFL) == SIG_ERR)
            _exit(1);
        for (int i = 0; i <= JSON_READER_FIELDS; i++) {
            snprintf(names[i], sizeof names[i], "n%d", i);
            json_get(r, names[i], &value);
        }
        _exit(0);
    }
    int status = 0;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGABRT);
}

static void only_an_object_can_be_read_by_members(void **state)
{
    (void)state;
    struct json_reader r = {.n_known = 7};
    struct err e = {0};
    json_t *array = json_array();
    wrong(json_reader_init(&r, array, "/a", &e), &e, "/a", "/a must be an object, not an array");
    wrong(json_reader_init(&r, array, "", &e), &e, "", "the JSON document must be an object");
    wrong(json_reader_init(&r, NULL, "/a", &e), &e, "/a", "not null");
    assert_int_equal(r.n_known, 7);
    json_decref(array);
}

static void pointers_are_escaped_and_cut_at_a_character(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    char out[64], small[13];
    json_reader_pointer(r, "a/b~c", out, sizeof out);
    assert_string_equal(out, "/sampler/a~1b~0c");
    json_reader_pointer(r, "aé/", small, sizeof small);
    assert_string_equal(small, "/sampler/aé");
    json_reader_pointer(r, "abcé", small, sizeof small);
    assert_string_equal(small, "/sampler/abc");
    json_reader_pointer(r, "ab~~", small, sizeof small);
    assert_string_equal(small, "/sampler/ab");
}

static void a_missing_member_is_reported_where_it_should_be(void **state)
{
    struct json_reader *r = &((struct sampler *)*state)->r;
    struct err e = {0};
    assert_int_equal(json_missing(r, "noise", &e), -FAIL_MISSING_FIELD);
    assert_string_equal(e.pointer, "/sampler/noise");
    contains(e.text, "/sampler lacks the field \"noise\"");
}

static void clipped_text_is_printable_utf8(void **state)
{
    (void)state;
    assert_string_equal(clip_text("plain é").text, "plain é");
    assert_string_equal(clip_text("a\nb\x1b[0m\x7f").text, "a?b?[0m?");
    assert_string_equal(clip_text("\xff\xc3(").text, "?\?(");
    assert_string_equal(clip_text("\xed\xa0\x80\xc2\x85\xf4\x90\x80\x80").text, "????????");
    char path[400];
    memset(path, 'd', sizeof path);
    memcpy(path + 395, "/x.y", 5);
    const struct clip tail = clip_path(path);
    assert_int_equal(strlen(tail.text), CLIP_PATH + 3);
    assert_memory_equal(tail.text, "...d", 4);
    assert_string_equal(tail.text + CLIP_PATH - 1, "/x.y");
    for (int shift = 0; shift < 3; shift++) {
        char text[400] = "aa";
        text[shift] = '\0';
        for (int i = 0; i < 120; i++)
            strcat(text, "€");
        assert_true(clip_is_utf8(clip_text(text).text));
        assert_true(clip_is_utf8(clip_path(text).text));
        strcat(text, "a");
        assert_true(clip_is_utf8(clip_path(text).text));
        assert_null(strchr(clip_path(text).text, '?'));
    }
}

static void utf8_is_told_from_other_bytes(void **state)
{
    (void)state;
    static const char *const good[] = {"",
                                       "a",
                                       "\xc2\x80",
                                       "\xe0\xa0\x80",
                                       "\xed\x9f\xbf",
                                       "\xf0\x90\x80\x80",
                                       "\xf4\x8f\xbf\xbf"};
    static const char *const bad[] = {"\x80",
                                      "\xc1\xbf",
                                      "\xc2",
                                      "\xe0\x9f\xbf",
                                      "\xed\xa0\x80",
                                      "\xf0\x8f\xbf\xbf",
                                      "\xf4\x90\x80\x80",
                                      "\xf5\x80\x80\x80",
                                      "a\xe2\x82",
                                      "\xe2\x28\xa1"};
    for (size_t i = 0; i < sizeof good / sizeof *good; i++)
        assert_true(clip_is_utf8(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++)
        assert_false(clip_is_utf8(bad[i]));
}

#define with_sampler(f) cmocka_unit_test_setup_teardown(f, open_sampler, close_sampler)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(any_value_may_stand_at_the_top),
        cmocka_unit_test(malformed_text_is_refused_with_line_and_column),
        cmocka_unit_test(every_kind_of_malformed_text_is_refused),
        cmocka_unit_test(trailing_bytes_are_refused_and_trailing_spaces_are_not),
        cmocka_unit_test(a_duplicate_key_is_refused_by_name),
        cmocka_unit_test(a_long_duplicate_key_is_cut_at_a_character),
        cmocka_unit_test(nesting_up_to_the_limit_is_accepted_and_one_more_is_refused),
        cmocka_unit_test(brackets_in_strings_do_not_count_as_nesting),
        cmocka_unit_test(brackets_side_by_side_do_not_count_as_nesting),
        cmocka_unit_test(stricter_limits_bound_depth_and_number_of_values),
        cmocka_unit_test(an_error_may_be_thrown_away),
        cmocka_unit_test(text_keeps_order_and_float_precision),
        with_sampler(getters_read_what_is_there),
        with_sampler(absent_and_null_members_leave_the_output_alone),
        with_sampler(wrong_types_are_refused_with_a_pointer),
        with_sampler(values_out_of_range_are_refused_with_the_limit),
        with_sampler(an_unknown_word_gets_a_suggestion),
        with_sampler(a_long_list_of_words_is_cut_short),
        cmocka_unit_test(members_that_nobody_asked_for_are_refused),
        with_sampler(asking_again_takes_no_more_room),
        with_sampler(more_names_than_the_reader_can_hold_abort),
        cmocka_unit_test(only_an_object_can_be_read_by_members),
        with_sampler(pointers_are_escaped_and_cut_at_a_character),
        with_sampler(a_missing_member_is_reported_where_it_should_be),
        cmocka_unit_test(clipped_text_is_printable_utf8),
        cmocka_unit_test(utf8_is_told_from_other_bytes),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
