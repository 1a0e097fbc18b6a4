/* SPDX-License-Identifier: Apache-2.0 */
/* Models that jobs need: they count as long as they are held, and come from their file again. */
#include "unit/models_help.h"

static struct models *models;
static struct models_settings settings;
static struct err e;

static void open_models(void)
{
    models_close(models);
    if (models_open(&models, &settings, &e) != 0)
        fail_msg("%s", e.text);
}

static struct model *serving(void)
{
    struct model *m;
    if (models_find(models, "ant", &m, &e) != 0)
        fail_msg("%s", e.text);
    return m;
}

static int promote(const char *version)
{
    struct models_promotion p;
    const int rc = models_promote(models, "ant", version, &p, &e);
    if (rc == 0)
        model_put(p.model);
    return rc;
}

/* Version 1 in a file, 2 and 3 in the folder; what one of them takes. */
static size_t make_three(char digest[DIGEST_HEX])
{
    size_t need;
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    stage("ant", "3", 3);
    open_models();
    struct model *first = serving();
    assert_int_equal(models_need_bytes(&need, first, PRECISION_FLOAT, &settings.users, &e), 0);
    strcpy(digest, first->digest);
    model_put(first);
    return need;
}

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    make_folder();
    models = NULL;
    settings = settings_of_folder();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    models_close(models);
    empty_folder("ant");
    drop_folder();
    return 0;
}

static int find_kept(const char *version, const char *digest, struct model **out)
{
    return models_find_kept(models, "ant", version, digest, out, &e);
}

static void a_held_model_counts_until_it_is_let_go_as_often(void **state)
{
    (void)state;
    char digest[DIGEST_HEX];
    const size_t need = make_three(digest);
    settings.budget_bytes = (long long)(2 * need + need / 2);
    open_models();
    struct model *old = serving();
    models_hold(models, old);
    models_hold(models, old);
    assert_int_equal(promote("2"), 0);
    assert_int_equal(promote("3"), -FAIL_NO_MEMORY);
    assert_false(models_let_go(models, old));
    assert_int_equal(promote("3"), -FAIL_NO_MEMORY);
    assert_true(models_let_go(models, old));
    assert_int_equal(old->refs, 1);
    model_put(old);
    assert_int_equal(promote("3"), 0);
    struct model *last = serving(); /* one that serves counts once */
    models_hold(models, last);
    assert_int_equal(promote("2"), 0);
    model_put(last);
    last = serving();
    assert_false(models_let_go(models, last)); /* it was never held */
    model_put(last);
}

static void a_held_model_serves_again_as_it_is(void **state)
{
    (void)state;
    char digest[DIGEST_HEX];
    const size_t need = make_three(digest);
    settings.budget_bytes = (long long)(2 * need);
    open_models();
    struct model *old = serving();
    models_hold(models, old);
    assert_int_equal(promote("2"), 0);
    assert_int_equal(promote("1"), 0);
    struct model *again = serving();
    assert_ptr_equal(again, old);
    model_put(again);
    assert_false(models_let_go(models, old)); /* it serves */
    model_put(old);
}

static void a_kept_model_comes_from_its_file_once(void **state)
{
    (void)state;
    char digest[2][DIGEST_HEX];
    struct model *kept, *same;
    const size_t need = make_three(digest[0]);
    assert_int_equal(promote("2"), 0);
    struct model *second = serving();
    strcpy(digest[1], second->digest);
    model_put(second);
    assert_int_equal(promote("3"), 0);
    for (int i = 0; i < 2; i++) { /* beside the folders, and in the folder */
        const char *version = i ? "2" : "1";
        settings.budget_bytes = (long long)(2 * need);
        open_models();
        assert_int_equal(models_find_digest(models, digest[i], &kept, &e), -FAIL_MODEL_GONE);
        assert_int_equal(find_kept(version, digest[i], &kept), 0);
        assert_string_equal(kept->d.version, version);
        assert_int_equal(models_self_test(kept, &e), 0);
        assert_int_equal(find_kept(version, digest[i], &same), 0);
        assert_ptr_equal(same, kept);
        model_put(same);
        assert_int_equal(promote(i ? "1" : "2"), -FAIL_NO_MEMORY);
        assert_false(models_let_go(models, kept));
        assert_true(models_let_go(models, kept));
        assert_int_equal(kept->refs, 1);
        model_put(kept);
        assert_int_equal(models_find_digest(models, digest[i], &kept, &e), -FAIL_MODEL_GONE);
    }
    same = serving();
    assert_string_equal(same->d.version, "3");
    assert_int_equal(find_kept("3", same->digest, &kept), 0);
    assert_ptr_equal(same, kept);
    assert_false(models_let_go(models, kept));
    model_put(same);
    model_put(kept);
}

static void expect_gone(const char *version, const char *digest, const char *why)
{
    struct model *kept;
    assert_int_equal(find_kept(version, digest, &kept), -FAIL_MODEL_GONE);
    if (!strstr(e.text, why) || !strstr(e.text, "has no version"))
        fail_msg("%s", e.text);
}

static void a_kept_model_whose_file_is_not_the_same_is_gone_and_it_is_said_why(void **state)
{
    (void)state;
    char digest[DIGEST_HEX];
    struct model *kept;
    const size_t need = make_three(digest);
    assert_int_equal(promote("2"), 0);
    struct model *second = serving();
    strcpy(digest, second->digest);
    model_put(second);
    assert_int_equal(promote("3"), 0);
    settings.budget_bytes = (long long)(2 * need - 1);
    open_models();
    expect_gone("2", digest, "memory.budget_bytes");
    settings = settings_of_folder();
    open_models();
    expect_gone("../ant/2", digest, "not there");
    put_model("made", "ant", 4);
    assert_int_equal(rename(in_folder("made"), in_folder("ant/2.safetensors")), 0);
    expect_gone("2", digest, "another file");
    put_text("ant/2.safetensors", "no model");
    expect_gone("2", digest, "2.safetensors");
    unlink(in_folder("ant/2.safetensors"));
    expect_gone("2", digest, "not there");
    stage("ant", "2", 2);
    assert_int_equal(find_kept("2", digest, &kept), 0);
    models_let_go(models, kept);
    model_put(kept);
}

static void a_model_that_was_refused_at_the_start_is_found_as_soon_as_there_is_room(void **state)
{
    (void)state;
    char digest[DIGEST_HEX];
    struct model *kept;
    const size_t need = make_three(digest);
    put_model("0.safetensors", "bee", 1);
    settings.budget_bytes = (long long)(need + need / 2);
    open_models();
    assert_int_equal(models_find(models, "ant", &kept, &e), -FAIL_NOT_FOUND);
    expect_gone("1", digest, "memory.budget_bytes");
    unlink(in_folder("0.safetensors"));
    models_rescan(models);
    models_rescan(models);
    assert_int_equal(find_kept("1", digest, &kept), 0);
    models_let_go(models, kept);
    model_put(kept);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_held_model_counts_until_it_is_let_go_as_often),
        TEST(a_held_model_serves_again_as_it_is),
        TEST(a_kept_model_comes_from_its_file_once),
        TEST(a_kept_model_whose_file_is_not_the_same_is_gone_and_it_is_said_why),
        TEST(a_model_that_was_refused_at_the_start_is_found_as_soon_as_there_is_room),
    };
    return cmocka_run_group_tests_name("models_held", tests, NULL, NULL);
}
