/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/models_help.h"

static struct models *models;
static struct models_settings settings;
static struct models_version list[MODELS_VERSIONS_MAX];
static struct err e;

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
    empty_folder("bee");
    drop_folder();
    return 0;
}

static void open_models(void)
{
    models_close(models);
    if (models_open(&models, &settings, &e) != 0)
        fail_msg("%s", e.text);
}

static int version_of(const char *name)
{
    struct model *m = NULL;
    if (models_find(models, name, &m, &e) != 0)
        return 0;
    const int version = atoi(m->d.version);
    model_put(m);
    return version;
}

static int promote(const char *name, const char *version, bool changed)
{
    struct models_promotion p;
    const int rc = models_promote(models, name, version, &p, &e);
    if (rc != 0)
        return rc;
    assert_string_equal(p.model->d.version, version);
    assert_int_equal(p.changed, changed);
    model_put(p.model);
    return 0;
}

/* "1 serving, 2 staged" */
static const char *versions(const char *name)
{
    static char text[400];
    const int n = models_versions(models, name, list, &e);
    text[0] = '\0';
    for (char c = '1'; c <= '9'; c++) /* in order of their names */
        for (int i = 0; i < n; i++)
            if (list[i].version[0] == c)
                snprintf(text + strlen(text), sizeof text - strlen(text), "%s%.20s %.20s",
                         text[0] ? ", " : "", list[i].version, models_state_names[list[i].state]);
    return n < 0 ? "none" : text;
}

static void names_that_could_lead_elsewhere_are_none(void **state)
{
    (void)state;
    static const char *const good[] = {"a", "A-1_2.b", "1"};
    static const char *const bad[] = {"", ".", "..", ".a", "a/b", "../x", "a b", "a\n", "\xc3\xa9"};
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++)
        assert_true(versions_is_name(good[i]));
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        assert_false(versions_is_name(bad[i]));
    char name[VERSIONS_NAME + 1];
    memset(name, 'a', VERSIONS_NAME);
    name[VERSIONS_NAME] = '\0';
    assert_false(versions_is_name(name));
    name[VERSIONS_NAME - 1] = '\0';
    assert_true(versions_is_name(name));
}

static void a_staged_version_serves_when_it_is_promoted_and_after_a_restart(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    open_models();
    assert_int_equal(version_of("ant"), 1);
    assert_string_equal(versions("ant"), "1 serving, 2 staged");
    assert_true(models_has_version(models, "ant", "2"));
    assert_false(models_has_version(models, "ant", "3"));
    struct model *old;
    assert_int_equal(models_find(models, "ant", &old, &e), 0);
    assert_int_equal(promote("ant", "2", true), 0);
    assert_int_equal(version_of("ant"), 2);
    assert_int_equal(old->refs, 1); /* who holds it keeps it, nobody else does */
    assert_int_equal(models_self_test(old, &e), 0);
    model_put(old);
    assert_string_equal(versions("ant"), "1 previous, 2 serving");
    assert_int_equal(promote("ant", "2", false), 0);
    assert_int_equal(models_rescan(models), 0);
    assert_int_equal(version_of("ant"), 2);
    open_models();
    assert_int_equal(version_of("ant"), 2);
    assert_string_equal(versions("ant"), "1 previous, 2 serving");
    struct models_refusal refusals[MODELS_MAX];
    assert_int_equal(models_refusals(models, refusals), 0);
}

static void a_version_is_rolled_back_by_promoting_the_previous_one(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    stage("ant", "3", 3);
    open_models();
    assert_int_equal(promote("ant", "3", true), 0);
    assert_int_equal(promote("ant", "2", true), 0);
    assert_string_equal(versions("ant"), "1 staged, 2 serving, 3 previous");
    assert_int_equal(promote("ant", "1", true), 0);
    assert_string_equal(versions("ant"), "1 serving, 2 previous, 3 staged");
    open_models();
    assert_int_equal(version_of("ant"), 1);
    assert_string_equal(versions("ant"), "1 serving, 2 previous, 3 staged");
}

static void a_model_may_have_no_version_that_serves(void **state)
{
    (void)state;
    stage("bee", "1", 1);
    open_models();
    assert_int_equal(version_of("bee"), 0);
    assert_string_equal(versions("bee"), "1 staged");
    assert_string_equal(versions("cow"), "none");
    assert_int_equal(e.code, FAIL_NOT_FOUND);
    assert_int_equal(promote("bee", "1", true), 0);
    assert_int_equal(version_of("bee"), 1);
}

static void the_default_stays_when_it_is_promoted(void **state)
{
    (void)state;
    char named[400];
    put_model("a.safetensors", "bee", 1);
    put_model("b.safetensors", "ant", 1);
    put_model("elsewhere", "bee", 7);
    stage("bee", "2", 2);
    open_models();
    assert_int_equal(promote("bee", "2", true), 0);
    struct model *m;
    assert_int_equal(models_find(models, NULL, &m, &e), 0);
    assert_string_equal(m->d.name, "ant");
    model_put(m);
    snprintf(named, sizeof named, "%s", in_folder("elsewhere"));
    settings.file = named; /* its name comes first, whatever serves under it */
    open_models();
    assert_int_equal(version_of(NULL), 2);
    assert_string_equal(versions("bee"), "1 previous, 2 serving, 7 staged");
    assert_int_equal(promote("bee", "7", true), 0);
    open_models();
    assert_int_equal(version_of(NULL), 7);
}

static void what_cannot_serve_changes_nothing(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    stage("ant", "4", 5);
    stage("ant", "6", 6);
    put_text("x", "this is no model");
    assert_int_equal(rename(in_folder("x"), in_folder("ant/3.safetensors")), 0);
    put_model("y", "bee", 5);
    assert_int_equal(rename(in_folder("y"), in_folder("ant/5.safetensors")), 0);
    open_models();
    assert_int_equal(promote("ant", "3", true), -FAIL_BAD_FILE);
    assert_int_equal(promote("ant", "4", true), -FAIL_CONFLICT); /* it says that it is 5 */
    assert_int_equal(promote("ant", "5", true), -FAIL_BAD_MODEL);
    assert_int_equal(promote("ant", "7", true), -FAIL_NOT_FOUND);
    assert_int_equal(promote("ant", "../a", true), -FAIL_NOT_FOUND);
    assert_int_equal(promote("..", "a", true), -FAIL_NOT_FOUND);
    assert_int_equal(version_of("ant"), 1);
    assert_int_not_equal(access(in_folder("ant/serving"), F_OK), 0);
    assert_int_equal(versions_install(folder, "ant", "2", &e), -FAIL_IO); /* nothing prepared */
    assert_int_equal(promote("ant", "6", true), 0);
}

static void to_install_what_is_there_already_is_no_conflict(void **state)
{
    (void)state;
    stage("ant", "2", 2);
    stage("ant", "2", 2);
    assert_int_not_equal(access(in_folder("ant/.new-2.safetensors"), F_OK), 0);
    put_model("z", "ant", 3);
    assert_int_equal(rename(in_folder("z"), in_folder("ant/.new-2.safetensors")), 0);
    assert_int_equal(versions_install(folder, "ant", "2", &e), -FAIL_CONFLICT);
    assert_int_equal(access(in_folder("ant/.new-2.safetensors"), F_OK), 0);
    open_models();
    assert_int_equal(promote("ant", "2", true), 0);
}

static void a_promotion_needs_room_for_both(void **state)
{
    (void)state;
    struct model *probe = load_model("probe", 9);
    size_t need;
    assert_int_equal(models_need_bytes(&need, probe, PRECISION_FLOAT, &settings.users, &e), 0);
    model_put(probe);
    unlink(in_folder("one.safetensors"));
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    settings.budget_bytes = (long long)(2 * need - 1);
    open_models();
    assert_int_equal(promote("ant", "2", true), -FAIL_NO_MEMORY);
    assert_non_null(strstr(e.text, "are taken"));
    assert_int_equal(version_of("ant"), 1);
    settings.budget_bytes = (long long)(2 * need);
    open_models();
    assert_int_equal(promote("ant", "2", true), 0);
    settings.budget_bytes = (long long)(2 * need - 1); /* to serve it takes one's room */
    open_models();
    assert_int_equal(version_of("ant"), 2);
}

static void a_promoted_file_that_is_gone_or_broken_leaves_the_other(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    open_models();
    assert_int_equal(promote("ant", "2", true), 0);
    put_text("x", "this is no model");
    assert_int_equal(rename(in_folder("x"), in_folder("ant/2.safetensors")), 0);
    models_rescan(models);
    assert_int_equal(version_of("ant"), 2); /* the old one goes on */
    open_models();
    assert_int_equal(version_of("ant"), 1);
    put_model("x", "ant", 2);
    assert_int_equal(rename(in_folder("x"), in_folder("ant/2.safetensors")), 0);
    models_rescan(models);
    assert_int_equal(version_of("ant"), 2);
    unlink(in_folder("ant/2.safetensors"));
    models_rescan(models);
    assert_int_equal(version_of("ant"), 1);
}

static void a_version_whose_file_was_replaced_by_a_broken_one_serves_with_its_own_size(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    open_models();
    assert_string_equal(versions("ant"), "1 serving");
    const long long bytes = list[0].bytes;
    assert_true(bytes > 0);
    put_text("x", "");
    assert_int_equal(rename(in_folder("x"), in_folder("a.safetensors")), 0);
    models_rescan(models);
    assert_string_equal(versions("ant"), "1 serving");
    assert_int_equal(list[0].bytes, bytes);
}

static atomic_bool stop;

/* Asks for the model all the time; there is always one. Returns how often another one came. */
static void *ask(void *arg)
{
    long changes = 0;
    char last[DIGEST_HEX] = "";
    (void)arg;
    while (!atomic_load(&stop)) {
        struct model *m;
        if (models_find(models, "ant", &m, NULL) != 0)
            return (void *)-1L;
        changes += strcmp(last, m->digest) != 0;
        snprintf(last, sizeof last, "%s", m->digest);
        model_put(m);
    }
    return (void *)changes;
}

static void there_is_always_a_model_while_versions_change(void **state)
{
    (void)state;
    enum { TIMES = 12 };
    pthread_t threads[2];
    put_model("a.safetensors", "ant", 1);
    stage("ant", "2", 2);
    open_models();
    atomic_store(&stop, false);
    for (int i = 0; i < 2; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, ask, NULL), 0);
    for (int i = 0; i < TIMES; i++)
        assert_int_equal(promote("ant", i % 2 ? "1" : "2", true), 0);
    atomic_store(&stop, true);
    for (int i = 0; i < 2; i++) {
        void *changes;
        pthread_join(threads[i], &changes);
        assert_in_range((long)changes, 1, TIMES + 1);
    }
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(names_that_could_lead_elsewhere_are_none),
        TEST(a_staged_version_serves_when_it_is_promoted_and_after_a_restart),
        TEST(a_version_is_rolled_back_by_promoting_the_previous_one),
        TEST(a_model_may_have_no_version_that_serves),
        TEST(the_default_stays_when_it_is_promoted),
        TEST(what_cannot_serve_changes_nothing),
        TEST(to_install_what_is_there_already_is_no_conflict),
        TEST(a_promotion_needs_room_for_both),
        TEST(a_promoted_file_that_is_gone_or_broken_leaves_the_other),
        TEST(a_version_whose_file_was_replaced_by_a_broken_one_serves_with_its_own_size),
        TEST(there_is_always_a_model_while_versions_change),
    };
    return cmocka_run_group_tests_name("models_versions", tests, NULL, NULL);
}
