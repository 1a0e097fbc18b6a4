/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/train_request.h"

/* clang-format off */
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <setjmp.h>
#include <cmocka.h>
/* clang-format on */

#include <stdio.h>
#include <string.h>

static const struct train_limits limits = {.recipe_bytes = 4096, .steps = 1000, .parameters = 200};
static struct err e;

/* 2 x (1 x 9) + 2 + 16 x 2 + 2 = 54 parameters. */
static const char model[] =
    "{\"format\":1,\"name\":\"tiny\",\"version\":\"1\",\"input\":{\"channels\":1,\"height\":2,"
    "\"width\":4,\"range\":[0,1]},\"layers\":[{\"kind\":\"conv\",\"weights\":\"c\",\"in\":1,"
    "\"out\":2,\"kernel\":3,\"pad\":1},{\"kind\":\"flatten\"},{\"kind\":\"linear\",\"weights\":"
    "\"l\",\"in\":16,\"out\":2}],\"attributes\":[{\"name\":\"a\",\"values\":[\"x\",\"y\"]}]}";

/* A request with these training settings and more members ("" = none). */
static json_t *request(const char *training, const char *more)
{
    char text[2000];
    json_t *root;
    snprintf(text, sizeof text,
             "{\"type\":\"train\",\"recipe\":{\"model\":%s,\"training\":{%s}},"
             "\"data\":{\"path\":\"a/b\"}%s%s}",
             model, training, more[0] ? "," : "", more);
    if (json_parse(text, strlen(text), &root, &e) != 0)
        fail_msg("%s: %s", text, e.text);
    return root;
}

static int parse(json_t *root, struct train_request **q)
{
    const int rc = train_request_complete(root, &e);
    return rc == 0 ? train_request_parse(q, root, &limits, &e) : rc;
}

static void refused(json_t *root, enum fail_code code, const char *pointer)
{
    struct train_request *q;
    assert_int_equal(parse(root, &q), -(int)code);
    assert_string_equal(e.pointer, pointer);
    assert_true(e.text[0]);
    json_decref(root);
}

static void a_request_says_what_to_train_on_what(void **state)
{
    (void)state;
    struct train_request *q;
    json_t *root = request("\"steps\":7", "");
    assert_int_equal(parse(root, &q), 0);
    assert_int_equal(q->recipe.steps, 7);
    assert_int_equal(train_request_parameters(&q->recipe), 54);
    assert_string_equal(q->data, "a/b");
    assert_string_equal(q->split, "train");
    assert_null(q->run);
    assert_null(q->resume_from);
    assert_int_equal(q->preview_every_steps, TRAIN_PREVIEW_STEPS);
    assert_int_equal(q->members.priority, 1);
    train_request_free(q);
    json_decref(root);
}

static void name_version_and_seed_replace_those_of_the_recipe(void **state)
{
    (void)state;
    struct train_request *q;
    json_t *root = request("\"steps\":7,\"seed\":1",
                           "\"name\":\"big\",\"version\":\"2.1\",\"seed\":\"12\",\"run\":\"r\"");
    assert_int_equal(parse(root, &q), 0);
    assert_string_equal(q->recipe.model.name, "big");
    assert_string_equal(q->recipe.model.version, "2.1");
    assert_int_equal(q->recipe.seed, 12);
    assert_null(json_object_get(root, "seed"));
    assert_string_equal(q->run, "r");
    train_request_free(q);
    json_decref(root);
    /* A recipe without "training" gets one. */
    root = request("", "\"seed\":9223372036854775807");
    json_object_del(json_object_get(root, "recipe"), "training");
    json_object_set_new(json_object_get(root, "recipe"), "training",
                        json_pack("{s:i}", "steps", 5));
    assert_int_equal(parse(root, &q), 0);
    assert_true(q->recipe.seed == INT64_MAX);
    train_request_free(q);
    json_decref(root);
}

static void the_stored_text_is_the_same_request(void **state)
{
    (void)state;
    struct train_request *q, *again;
    json_t *stored,
        *root = request("\"steps\":7,\"optimiser\":{\"rate\":0.12345678901234567}",
                        "\"version\":\"2\",\"labels\":{\"k\":\"v\"},\"priority\":\"low\"");
    assert_int_equal(parse(root, &q), 0);
    struct blob *text = train_request_text(root);
    assert_int_equal(json_parse((const char *)text->bytes, text->size, &stored, &e), 0);
    assert_true(json_equal(stored, root));
    assert_int_equal(train_request_parse(&again, stored, &limits, &e), 0);
    assert_true(again->recipe.rate == q->recipe.rate);
    assert_string_equal(again->recipe.sha256, q->recipe.sha256);
    assert_int_equal(again->members.priority, 0);
    assert_int_equal(json_object_size(again->members.labels), 1);
    train_request_free(again);
    train_request_free(q);
    json_decref(stored);
    json_decref(root);
    blob_put(text);
}

static void paths_stay_below_the_root(void **state)
{
    (void)state;
    static const char *const bad[] = {"",       "/",    "/a", "..", "../a", "a/..",
                                      "a/../b", "a//b", "a/", ".",  "./a",  "a/./b"};
    static const char *const good[] = {"a", "a/b", "a..b", "..a/b", "a b", ".a"};
    struct train_request *q;
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        json_t *root = request("\"steps\":7", "");
        json_object_set_new(json_object_get(root, "data"), "path", json_string(bad[i]));
        refused(root, FAIL_OUT_OF_RANGE, "/data/path");
    }
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        json_t *root = request("\"steps\":7", "");
        json_object_set_new(json_object_get(root, "data"), "path", json_string(good[i]));
        assert_int_equal(parse(root, &q), 0);
        train_request_free(q);
        json_decref(root);
    }
}

/* A request whose data have these members beside the path. */
static json_t *with_data(const char *split, double share)
{
    json_t *root = request("\"steps\":7", ""), *data = json_object_get(root, "data");
    if (split)
        json_object_set_new(data, "split", json_string(split));
    json_object_set_new(data, "split_calib", json_real(share));
    return root;
}

static void a_share_of_train_is_kept_for_calibration(void **state)
{
    (void)state;
    struct train_request *q;
    json_t *root = with_data(NULL, 0.25);
    assert_int_equal(parse(root, &q), 0);
    assert_true(q->calib_share == 0.25);
    train_request_free(q);
    json_decref(root);
    root = with_data("other", 0);
    assert_int_equal(parse(root, &q), 0);
    assert_true(q->calib_share == 0);
    train_request_free(q);
    json_decref(root);
    /* "calib" would be trained and calibrated on the same rows */
    refused(with_data("calib", 0.25), FAIL_OUT_OF_RANGE, "/data/split_calib");
    refused(with_data("other", 0.25), FAIL_OUT_OF_RANGE, "/data/split_calib");
    refused(with_data(NULL, 0.91), FAIL_OUT_OF_RANGE, "/data/split_calib");
    refused(with_data(NULL, -0.1), FAIL_OUT_OF_RANGE, "/data/split_calib");
}

static void what_is_wrong_is_named(void **state)
{
    (void)state;
    refused(request("\"steps\":0", ""), FAIL_OUT_OF_RANGE, "/recipe/training/steps");
    refused(request("\"steps\":1001", ""), FAIL_OUT_OF_RANGE, "/recipe/training/steps");
    assert_int_equal(e.limit, 1000);
    refused(request("\"stepz\":1", ""), FAIL_UNKNOWN_FIELD, "/recipe/training/stepz");
    refused(request("\"steps\":7", "\"run\":\"../x\""), FAIL_OUT_OF_RANGE, "/run");
    refused(request("\"steps\":7", "\"run\":\".x\""), FAIL_OUT_OF_RANGE, "/run");
    refused(request("\"steps\":7", "\"seed\":\"9223372036854775808\""), FAIL_OUT_OF_RANGE, "/seed");
    refused(request("\"steps\":7", "\"seed\":1.5"), FAIL_OUT_OF_RANGE, "/seed");
    refused(request("\"steps\":7", "\"name\":5"), FAIL_WRONG_TYPE, "/name");
    refused(request("\"steps\":7", "\"version\":\"..\""), FAIL_BAD_RECIPE, "/recipe/model/version");
    refused(request("\"steps\":7", "\"version\":\"a/b\""), FAIL_BAD_RECIPE, "/recipe/model");
    refused(request("\"steps\":7", "\"stepz\":5"), FAIL_UNKNOWN_FIELD, "/stepz");
    json_t *root = request("\"steps\":7", "\"version\":\"2\"");
    json_object_del(root, "recipe");
    refused(root, FAIL_MISSING_FIELD, "/version");
    root = request("\"steps\":7", "");
    json_object_del(root, "recipe");
    refused(root, FAIL_MISSING_FIELD, "/recipe");
    root = request("\"steps\":7", "");
    json_object_set_new(json_object_get(root, "data"), "split", json_string("a/b"));
    refused(root, FAIL_OUT_OF_RANGE, "/data/split");
    json_t *unknown = json_pack("[]");
    struct train_request *q;
    assert_int_equal(train_request_parse(&q, unknown, &limits, &e), -FAIL_WRONG_TYPE);
    json_decref(unknown);
}

static void sizes_are_bounded_before_anything_is_made(void **state)
{
    (void)state;
    json_t *root = request("\"steps\":7", "");
    json_t *layer = json_array_get(
        json_object_get(json_object_get(json_object_get(root, "recipe"), "model"), "layers"), 2);
    json_object_set_new(layer, "out", json_integer(65536));
    json_object_set_new(layer, "in", json_integer(65536));
    refused(root, FAIL_OUT_OF_RANGE, "/recipe/model/layers");
    assert_int_equal(e.limit, 200);
    root = request("\"steps\":7", "");
    char text[5000];
    memset(text, 'x', sizeof text - 1);
    text[sizeof text - 1] = '\0';
    json_object_set_new(json_object_get(root, "recipe"), "note", json_string(text));
    refused(root, FAIL_OUT_OF_RANGE, "/recipe");
    assert_int_equal(e.limit, 4096);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_request_says_what_to_train_on_what),
        cmocka_unit_test(name_version_and_seed_replace_those_of_the_recipe),
        cmocka_unit_test(the_stored_text_is_the_same_request),
        cmocka_unit_test(paths_stay_below_the_root),
        cmocka_unit_test(a_share_of_train_is_kept_for_calibration),
        cmocka_unit_test(what_is_wrong_is_named),
        cmocka_unit_test(sizes_are_bounded_before_anything_is_made),
    };
    return cmocka_run_group_tests_name("train_request", tests, NULL, NULL);
}
