/* SPDX-License-Identifier: Apache-2.0 */
#include "proto/predict_request.h"
#include "unit/tiny_model.h"

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
#include <unistd.h>

static struct model *model;
static struct err e;
static const struct predict_limits limits = {.images = 4, .bytes = 24};
static const struct image_limits image_limits = {
    .max_side = 64, .max_pixels = 1024, .max_memory_bytes = 1 << 20};

static int open_model(void **state)
{
    (void)state;
    char path[] = "/tmp/jemd-unit-XXXXXX";
    close(mkstemp(path));
    assert_int_equal(tiny_model_write(path, &e), 0);
    assert_int_equal(model_open(&model, path, NULL, false, &e), 0);
    unlink(path);
    return 0;
}

static int close_model(void **state)
{
    (void)state;
    model_put(model);
    return 0;
}

/* A request with these members; ' stands for ". */
static json_t *request(const char *members)
{
    char text[1000];
    json_t *root;
    snprintf(text, sizeof text, "{\"type\":\"predict\"%s%s}", members[0] ? "," : "", members);
    for (char *at = text; (at = strchr(at, '\''));)
        *at = '"';
    if (json_parse(text, strlen(text), &root, &e) != 0)
        fail_msg("%s: %s", text, e.text);
    return root;
}

static void images_are_packed_and_the_document_tells_of_them(void **state)
{
    (void)state;
    struct predict_request *q;
    struct image_pack p;
    struct image_pack_item item;
    struct blob *b;
    json_t *root = request("'images':[{'id':'a','b64':'YWJj'},{'b64':''},{'b64':'ZGVm Z2g='}],"
                           "'priority':'high'");
    assert_int_equal(predict_request_pack(root, &limits, &b, &e), 0);
    assert_null(json_object_get(root, "images"));
    assert_int_equal(predict_request_parse(&q, root, model, &image_limits, &e), 0);
    assert_int_equal(q->input.n, 3);
    assert_int_equal(q->input_bytes, 8);
    assert_int_equal(q->members.priority, 2);
    assert_int_equal(q->options.include, PREDICT_PROBABILITIES);
    assert_int_equal(image_pack_open(&p, b, &e), 0);
    assert_memory_equal(&p.head, &q->input, sizeof p.head);
    image_pack_item(&p, 2, &item);
    assert_int_equal(item.size, 5);
    assert_memory_equal(item.bytes, "defgh", 5);
    image_pack_item(&p, 0, &item);
    assert_string_equal(item.name, "a");
    image_pack_close(&p);
    blob_put(b);
    predict_request_free(q);
    json_decref(root);
}

static void a_tensor_is_packed_image_by_image(void **state)
{
    (void)state;
    struct predict_request *q;
    struct image_pack p;
    struct image_pack_item item;
    struct blob *b;
    json_t *root = request("'tensor':{'shape':[3,2,2,1],'b64':'YWJjZGVmZ2hpamts'}");
    assert_int_equal(predict_request_pack(root, &limits, &b, &e), 0);
    assert_int_equal(predict_request_parse(&q, root, model, &image_limits, &e), 0);
    assert_int_equal(q->input.kind, IMAGE_PACK_UINT8);
    assert_int_equal(image_pack_open(&p, b, &e), 0);
    image_pack_item(&p, 1, &item);
    assert_int_equal(item.size, 4);
    assert_memory_equal(item.bytes, "efgh", 4);
    image_pack_close(&p);
    blob_put(b);
    predict_request_free(q);
    json_decref(root);
}

static void options_are_those_of_a_query(void **state)
{
    (void)state;
    struct predict_request *q;
    struct blob *b;
    json_t *root = request("'images':[{'b64':''}],'include':['logits','approximate_mass'],"
                           "'attributes':['shape'],'given':{'colour':'blue'},'resize':'reject',"
                           "'alpha':0.25,'score_only':true");
    assert_int_equal(predict_request_pack(root, &limits, &b, &e), 0);
    assert_int_equal(predict_request_parse(&q, root, model, &image_limits, &e), 0);
    const struct predict_options *o = &q->options;
    assert_true(o->score_only && !o->wanted[0] && o->wanted[1]);
    assert_int_equal(o->include, PREDICT_LOGITS | PREDICT_APPROXIMATE_MASS);
    assert_int_equal(o->given[0], 1);
    assert_int_equal(o->given[1], -1);
    assert_int_equal(o->resize, IMAGE_REJECT);
    assert_true(o->alpha == 0.25);
    blob_put(b);
    predict_request_free(q);
    json_decref(root);
}

/* Packing or parsing refuses it. */
static void refused(const char *members, enum fail_code code, const char *pointer)
{
    struct predict_request *q;
    struct blob *b = NULL;
    json_t *root = request(members);
    int rc = predict_request_pack(root, &limits, &b, &e);
    if (rc == 0)
        rc = predict_request_parse(&q, root, model, &image_limits, &e);
    if (rc != -(int)code || strcmp(e.pointer, pointer) != 0)
        fail_msg("%s: %d at \"%s\" (%s)", members, rc, e.pointer, e.text);
    blob_put(b);
    json_decref(root);
}

static void what_is_wrong_is_said_with_its_place(void **state)
{
    (void)state;
    refused("", FAIL_MISSING_FIELD, "/images");
    refused("'images':[]", FAIL_MISSING_FIELD, "");
    refused("'images':[{}]", FAIL_MISSING_FIELD, "/images/0/b64");
    refused("'images':[1]", FAIL_WRONG_TYPE, "/images/0");
    refused("'images':[{'b64':''}],'input':{}", FAIL_UNKNOWN_FIELD, "/input");
    refused("'images':[{'b64':''}],'tensor':{}", FAIL_BAD_REQUEST, "");
    refused("'images':[{'b64':'a'}]", FAIL_BAD_BASE64, "/images/0/b64");
    refused("'tensor':{'b64':''}", FAIL_MISSING_FIELD, "/tensor/shape");
    refused("'tensor':{'b64':'','shape':[1,1,1]}", FAIL_OUT_OF_RANGE, "/tensor/shape");
    refused("'tensor':{'b64':'','shape':[1,1,1,0]}", FAIL_OUT_OF_RANGE, "/tensor/shape");
    refused("'tensor':{'b64':'YQ==','shape':[1,1,1,2]}", FAIL_BAD_REQUEST, "/tensor");
    refused("'tensor':{'b64':'YWJj','shape':[1,1,1,3]}", FAIL_IMAGE_SIZE_MISMATCH, "");
    refused("'tensor':{'b64':'YWJjZA==','shape':[1,1,1,1],'type':'float32'}",
            FAIL_IMAGE_SIZE_MISMATCH, "");
    refused("'images':[{'b64':''}],'alpha':1", FAIL_OUT_OF_RANGE, "/alpha");
    refused("'images':[{'b64':''}],'given':{'colour':1}", FAIL_WRONG_TYPE, "/given/colour");
    refused("'images':[{'b64':''}],'attributes':['sahpe']", FAIL_UNKNOWN_ATTRIBUTE,
            "/attributes/0");
    refused("'images':[{'b64':''}],'seed':1", FAIL_UNKNOWN_FIELD, "/seed");
}

static void limits_are_kept_and_named(void **state)
{
    (void)state;
    refused("'images':[{'b64':''},{'b64':''},{'b64':''},{'b64':''},{'b64':''}]",
            FAIL_BODY_TOO_LARGE, "");
    assert_int_equal(e.limit, 4);
    refused("'images':[{'b64':'YWJjZGVmZ2hpamts'},{'b64':'YWJjZGVmZ2hpamtsbQ=='}]",
            FAIL_BODY_TOO_LARGE, "");
    assert_int_equal(e.limit, 24);
    refused("'tensor':{'b64':'YWJjZGVmZ2hpamtsbW5vcHFyc3R1dnd4eQ==','shape':[1,5,5,1]}",
            FAIL_BODY_TOO_LARGE, "/tensor");
    refused("'tensor':{'b64':'YWJjZGU=','shape':[5,1,1,1]}", FAIL_BODY_TOO_LARGE, "/tensor");
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(images_are_packed_and_the_document_tells_of_them),
        cmocka_unit_test(a_tensor_is_packed_image_by_image),
        cmocka_unit_test(options_are_those_of_a_query),
        cmocka_unit_test(what_is_wrong_is_said_with_its_place),
        cmocka_unit_test(limits_are_kept_and_named),
    };
    return cmocka_run_group_tests_name("predict_request", tests, open_model, close_model);
}
