/* SPDX-License-Identifier: Apache-2.0 */
/* JSON where each allocation fails once: a text is whole or not there, and what is read is what was
 * written or NO_MEMORY. */
#include "file/json.h"
#include "unit/test_allocations.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static const char long_key[] = "a member whose name does not fit into what jansson has at first";

/* Built as callers do: who does not look at what the builders return. */
static json_t *document(void)
{
    json_t *root = json_object(), *list = json_array();
    for (int i = 0; i < 20; i++) {
        char name[16];
        snprintf(name, sizeof name, "number %d", i);
        json_array_append_new(list, json_pack("{s:s, s:i}", "name", name, "value", i));
    }
    json_object_set_new(root, "list", list);
    json_object_set_new(root, long_key, json_real_or_null(0.5));
    return root;
}

/* Whether the allocation that was to fail has come. */
static bool lacked(void)
{
    return atomic_exchange(&allocations_until_one_fails, 0) == 0;
}

static void a_text_is_whole_or_not_there(void **state)
{
    (void)state;
    size_t size;
    json_t *root = document();
    char *want = json_text(root, &size);
    json_decref(root);
    assert_non_null(want);
    bool more = ALLOCATIONS_COUNTED;
    int n = 0, none = 0;
    while (more) {
        allocations_until_one_fails = ++n;
        root = document();
        char *got = json_text(root, NULL);
        more = lacked();
        assert_true(got ? strcmp(got, want) == 0 : more);
        none += !got;
        free(got);
        json_decref(root);
        root = document();
        got = json_text(root, NULL); /* forgotten with the text that failed */
        assert_string_equal(got, want);
        free(got);
        json_decref(root);
    }
    assert_true(!ALLOCATIONS_COUNTED || none > 100);
    free(want);
}

static void a_document_is_read_or_there_is_no_memory(void **state)
{
    (void)state;
    size_t size;
    struct err e;
    json_t *root = document(), *got;
    char *text = json_text(root, &size);
    bool more = ALLOCATIONS_COUNTED;
    int n = 0, none = 0;
    while (more) {
        allocations_until_one_fails = ++n;
        got = NULL;
        const int rc = json_parse(text, size, &got, &e);
        more = lacked();
        assert_true(rc == 0 || (rc == -FAIL_NO_MEMORY && more));
        assert_true(rc != 0 || json_equal(got, root));
        none += rc != 0;
        json_decref(got);
    }
    assert_true(!ALLOCATIONS_COUNTED || none > 100);
    free(text);
    json_decref(root);
}

static void what_was_told_is_forgotten(void **state)
{
    (void)state;
    if (!ALLOCATIONS_COUNTED)
        skip();
    allocations_until_one_fails = 1;
    assert_null(json_object());
    json_forget();
    json_t *root = document();
    char *text = json_text(root, NULL);
    assert_non_null(text);
    free(text);
    json_decref(root);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_text_is_whole_or_not_there),
        cmocka_unit_test(a_document_is_read_or_there_is_no_memory),
        cmocka_unit_test(what_was_told_is_forgotten),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
