/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/models_help.h"

static struct models *models;
static struct models_settings settings;
static struct models_entry entries[MODELS_MAX];
static int n;

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    make_folder();
    models = NULL;
    settings = settings_of_folder();
    return 0;
}

static void drop_list(void)
{
    for (int i = 0; i < n; i++)
        model_put(entries[i].model);
    n = 0;
}

static int tear_down(void **state)
{
    (void)state;
    drop_list();
    models_close(models);
    drop_folder();
    return 0;
}

static void open_models(void)
{
    struct err e;
    if (models_open(&models, &settings, &e) != 0)
        fail_msg("%s", e.text);
}

static void list(void)
{
    drop_list();
    n = models_list(models, entries);
}

static struct model *find(const char *name)
{
    struct model *m = NULL;
    struct err e;
    return models_find(models, name, &m, &e) == 0 ? m : NULL;
}

/* The version that answers to a name, 0 = none. */
static int version_of(const char *name)
{
    struct model *m = find(name);
    const int version = m ? atoi(m->d.version) : 0;
    model_put(m);
    return version;
}

static void an_empty_or_missing_folder_serves_nothing(void **state)
{
    (void)state;
    struct err e;
    struct model *m;
    settings.directory = "/tmp/jemd-unit-is-not-there";
    open_models();
    list();
    assert_int_equal(n, 0);
    assert_int_equal(models_find(models, NULL, &m, &e), -FAIL_NOT_FOUND);
    assert_int_equal(models_find_digest(models, "00", &m, &e), -FAIL_MODEL_GONE);
    assert_int_equal(models_rescan(models), 0);
}

static void the_files_of_the_folder_are_served_by_name(void **state)
{
    (void)state;
    struct err e;
    struct model *m;
    put_model("b.safetensors", "bee", 2);
    put_model("a.safetensors", "ant", 1);
    put_model("c.txt", "not", 3);
    put_model(".hidden.safetensors", "hidden", 4);
    open_models();
    list();
    assert_int_equal(n, 2);
    assert_int_equal(version_of("ant"), 1);
    assert_int_equal(version_of("bee"), 2);
    assert_int_equal(models_find(models, "bea", &m, &e), -FAIL_NOT_FOUND);
    assert_string_equal(e.did_you_mean, "bee");
    m = find("bee");
    struct model *same;
    assert_int_equal(models_find_digest(models, m->digest, &same, &e), 0);
    assert_ptr_equal(m, same);
    model_put(same);
    model_put(m);
    assert_int_equal(models_rescan(models), 0); /* nothing has changed */
    unlink(in_folder(".hidden.safetensors"));
}

static void the_default_is_the_named_one_or_the_first(void **state)
{
    (void)state;
    struct err e;
    struct model *m;
    put_model("a.safetensors", "ant", 1);
    put_model("b.safetensors", "bee", 2);
    open_models();
    assert_int_equal(version_of(NULL), 1);
    assert_int_equal(version_of(""), 1);
    list();
    assert_true(entries[0].is_default && !entries[1].is_default);
    drop_list();
    models_close(models);
    settings.default_model = "bee";
    open_models();
    assert_int_equal(version_of(NULL), 2);
    list();
    assert_true(!entries[0].is_default && entries[1].is_default);
    drop_list();
    models_close(models);
    settings.default_model = "cow"; /* not loaded: no other one takes its place */
    open_models();
    assert_int_equal(models_find(models, NULL, &m, &e), -FAIL_NOT_FOUND);
    assert_int_equal(version_of("ant"), 1);
}

static void a_rescan_finds_new_changed_and_removed_files(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    put_model("b.safetensors", "bee", 2);
    open_models();
    put_model("c.safetensors", "cow", 3);
    assert_int_equal(models_rescan(models), 1);
    assert_int_equal(version_of("cow"), 3);
    put_model("a.safetensors", "ant", 4);
    put_model("d.safetensors", "dog", 5);
    unlink(in_folder("b.safetensors"));
    struct model *bee = find("bee");
    assert_int_equal(models_rescan(models), 3);
    assert_int_equal(version_of("ant"), 4);
    assert_int_equal(version_of("bee"), 0);
    assert_int_equal(version_of("dog"), 5);
    assert_string_equal(bee->d.name, "bee"); /* who holds a reference keeps it */
    assert_int_equal(bee->refs, 1);
    assert_int_equal(models_self_test(bee, NULL), 0);
    model_put(bee);
}

static void a_broken_new_version_leaves_the_old_one_serving(void **state)
{
    (void)state;
    put_model("a.safetensors", "ant", 1);
    open_models();
    put_text("x", "this is no model");
    assert_int_equal(rename(in_folder("x"), in_folder("a.safetensors")), 0);
    put_text("new.safetensors", "");
    assert_int_equal(models_rescan(models), 0);
    assert_int_equal(version_of("ant"), 1);
    list();
    assert_int_equal(n, 1);
    assert_true(entries[0].error[0]);
    drop_list();
    put_model("a.safetensors", "ant", 2);
    put_model("new.safetensors", "new", 3);
    assert_int_equal(models_rescan(models), 2);
    list();
    assert_int_equal(n, 2);
    assert_true(!entries[0].error[0] && !entries[1].error[0]);
    assert_int_equal(version_of("ant"), 2);
}

static void broken_files_are_left_out_at_the_start_but_not_the_named_one(void **state)
{
    (void)state;
    struct err e;
    put_text("a.safetensors", "broken");
    put_model("b.safetensors", "bee", 2);
    open_models();
    list();
    assert_int_equal(n, 1);
    drop_list();
    models_close(models);
    models = NULL;
    char named[400];
    snprintf(named, sizeof named, "%s", in_folder("a.safetensors"));
    settings.directory = "";
    settings.file = named;
    assert_true(models_open(&models, &settings, &e) < 0);
    assert_true(e.text[0]);
    settings.file = "/tmp/jemd-unit-is-not-there";
    assert_int_equal(models_open(&models, &settings, &e), -FAIL_IO);
    snprintf(named, sizeof named, "%s", in_folder("b.safetensors"));
    settings.file = named;
    open_models();
    assert_int_equal(version_of(NULL), 2);
}

static void a_name_is_taken_by_the_first_file_until_that_goes(void **state)
{
    (void)state;
    put_model("a.safetensors", "twin", 1);
    put_model("b.safetensors", "twin", 2);
    open_models();
    list();
    assert_int_equal(n, 1);
    assert_int_equal(version_of("twin"), 1);
    drop_list();
    unlink(in_folder("a.safetensors"));
    assert_true(models_rescan(models) > 0);
    assert_int_equal(version_of("twin"), 2);
}

static void a_renamed_file_goes_on_serving(void **state)
{
    (void)state;
    put_model("m.safetensors", "ant", 1);
    open_models();
    assert_int_equal(rename(in_folder("m.safetensors"), in_folder("a.safetensors")), 0);
    models_rescan(models);
    assert_int_equal(version_of("ant"), 1);
    assert_int_equal(rename(in_folder("a.safetensors"), in_folder("z.safetensors")), 0);
    models_rescan(models);
    assert_int_equal(version_of("ant"), 1);
    list();
    assert_int_equal(n, 1);
}

static size_t need_of(const struct model *m)
{
    struct err e;
    size_t need = 0;
    assert_int_equal(models_need_bytes(&need, m, PRECISION_FLOAT, &settings.users, &e), 0);
    return need;
}

static void a_model_beyond_the_budget_is_refused_with_the_sum_until_there_is_room(void **state)
{
    (void)state;
    struct model *probe = load_model("probe", 9);
    const size_t need = need_of(probe);
    settings.users.chains.slots++;
    assert_true(need < need_of(probe));
    settings.users.chains.slots--;
    model_put(probe);
    unlink(in_folder("one.safetensors"));
    put_model("a.safetensors", "ant", 1);
    put_model("b.safetensors", "bee", 2);
    settings.budget_bytes = (long long)(need * 2 - 1);
    open_models();
    list();
    assert_int_equal(n, 1);
    drop_list();
    put_model("a.safetensors", "ant", 3); /* a new version needs its own room only */
    assert_int_equal(models_rescan(models), 1);
    assert_int_equal(version_of("ant"), 3);
    assert_int_equal(version_of("bee"), 0);
    unlink(in_folder("a.safetensors"));
    models_rescan(models);
    assert_int_equal(version_of("bee"), 2);
}

/* A bfloat16 model is served as such, or, on a CPU that cannot, refused alone and by its name. */
static void a_model_has_the_precision_that_its_name_is_given(void **state)
{
    (void)state;
    const char *fast = model_fingerprint_of(PRECISION_BFLOAT16);
    const bool can = strcmp(fast, "none") != 0;
    struct models_refusal refusals[MODELS_MAX];
    put_model("a.safetensors", "ant", 1);
    put_model("b.safetensors", "bee", 2);
    static const char *const texts[] = {"float, bee=bfloat16", "ant=float bfloat16"};
    for (int i = 0; i < 2; i++) {
        settings.precision = texts[i];
        open_models();
        struct model *ant = find("ant"), *bee = find("bee");
        assert_string_equal(model_fingerprint(ant), model_fingerprint_of(PRECISION_FLOAT));
        assert_int_equal(bee != NULL, can);
        if (bee)
            assert_string_equal(model_fingerprint(bee), fast);
        assert_int_equal(models_refusals(models, refusals), !can);
        if (!can) {
            assert_string_equal(refusals[0].file, "b.safetensors");
            assert_non_null(strstr(refusals[0].error, "b.safetensors: bfloat16 needs a CPU"));
        }
        model_put(ant);
        model_put(bee);
        models_close(models);
        models = NULL;
    }
}

static void the_self_test_refuses_numbers_that_are_not_finite(void **state)
{
    (void)state;
    struct err e;
    struct model *m = load_model("bad", 1);
    assert_int_equal(models_self_test(m, &e), 0);
    model_put(m);
    char json[sizeof help_json + 80], made[64];
    struct test_weights w = {.seed = 1};
    snprintf(json, sizeof json, help_json, "bad", 1);
    test_model_draw_weights(json, &w);
    for (size_t i = 0; i < w.list[0].elements; i++)
        w.list[0].data[i] = 3e38f;
    assert_int_equal(test_model_write(made, json, &w, NULL, 0, &e), 0);
    test_weights_free(&w);
    assert_int_equal(rename(made, in_folder("bad.safetensors")), 0);
    unlink(in_folder("one.safetensors"));
    open_models();
    list();
    assert_int_equal(n, 0);
}

struct reader {
    pthread_t thread;
    atomic_bool stop;
    int found;
};

static void *read_on(void *arg)
{
    struct reader *r = arg;
    while (!atomic_load(&r->stop)) {
        struct models_entry own[MODELS_MAX];
        struct model *m;
        const int k = models_list(models, own);
        for (int i = 0; i < k; i++)
            model_put(own[i].model);
        if (models_find(models, "ant", &m, NULL) == 0) {
            r->found++;
            model_put(m);
        }
    }
    return NULL;
}

static void readers_and_rescans_do_not_disturb_each_other(void **state)
{
    (void)state;
    struct reader r = {0};
    put_model("a.safetensors", "ant", 1);
    open_models();
    assert_int_equal(pthread_create(&r.thread, NULL, read_on, &r), 0);
    for (int i = 2; i < 30; i++) {
        put_model("a.safetensors", "ant", i);
        put_model("b.safetensors", "bee", i);
        assert_int_equal(models_rescan(models), 2);
        unlink(in_folder("b.safetensors"));
        assert_int_equal(models_rescan(models), 1);
    }
    atomic_store(&r.stop, true);
    pthread_join(r.thread, NULL);
    assert_true(r.found > 0);
    assert_int_equal(version_of("ant"), 29);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(an_empty_or_missing_folder_serves_nothing, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_files_of_the_folder_are_served_by_name, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_default_is_the_named_one_or_the_first, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_rescan_finds_new_changed_and_removed_files, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_broken_new_version_leaves_the_old_one_serving, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(
            broken_files_are_left_out_at_the_start_but_not_the_named_one, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_name_is_taken_by_the_first_file_until_that_goes, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_renamed_file_goes_on_serving, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            a_model_beyond_the_budget_is_refused_with_the_sum_until_there_is_room, set_up,
            tear_down),
        cmocka_unit_test_setup_teardown(a_model_has_the_precision_that_its_name_is_given, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_self_test_refuses_numbers_that_are_not_finite, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(readers_and_rescans_do_not_disturb_each_other, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests_name("models", tests, NULL, NULL);
}
