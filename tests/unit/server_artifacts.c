/* SPDX-License-Identifier: Apache-2.0 */
#include "ebm/score.h"
#include "file/digest.h"
#include "file/json.h"
#include "file/safetensors.h"
#include "server/artifacts.h"
#include "unit/server_help.h"
#include "unit/test_allocations.h"

enum { CHAINS = 5 };

static const char request_json[] =
    "{\"type\":\"sample\",\"conditions\":[{\"count\":3,\"attributes\":{\"colour\":\"blue\"}},"
    "{\"count\":2}],\"sampler\":{\"steps\":30},\"seed\":\"18446744073709551615\","
    "\"outputs\":[\"grid\",\"images\",\"tensor\",\"trace\"],\"labels\":{\"k\":\"v\"}}";

static struct model *model;
static struct chains *engine;
static json_t *root;
static struct sample_request *request;
static struct chain_group *group;
static struct blob *text;

static void on_done(void *ctx, struct chain_group *g)
{
    (void)g;
    atomic_store((atomic_int *)ctx, 1);
}

/* Samples what json asks for. */
static void run(const char *json)
{
    static const struct sample_limits limits = {.max_images = 64, .max_steps = 1000};
    static atomic_int done;
    struct err e;
    atomic_store(&done, 0);
    text = blob_copy(json, strlen(json));
    assert_int_equal(json_parse(json, strlen(json), &root, &e), 0);
    if (sample_request_parse(&request, root, model, &limits, &e) != 0)
        fail_msg("%s", e.text);
    const struct chain_task t = {.model = model,
                                 .n_chains = request->n_chains,
                                 .conditions = request->of_chain,
                                 .sampler = &request->sampler,
                                 .seed = request->seed,
                                 .weight = 1,
                                 .done = on_done,
                                 .ctx = &done};
    assert_int_equal(chains_submit(engine, &t, NULL, &group, &e), 0);
    wait_until(atomic_load(&done));
}

static int set_up(void **state)
{
    (void)state;
    const struct chains_settings s = {.workers = 2, .slots = 2, .quantum_steps = 7};
    struct err e;
    alarm(120);
    make_folder();
    model = load_model("one", 1);
    return chains_open(&engine, &s, &e);
}

static int tear_down(void **state)
{
    (void)state;
    chains_stop(engine);
    chain_group_free(group);
    sample_request_free(request);
    json_decref(root);
    blob_put(text);
    chains_close(engine);
    assert_int_equal(model->refs, 1);
    model_put(model);
    drop_folder();
    return 0;
}

static struct artifacts render(void)
{
    struct artifacts a;
    struct err e;
    if (artifacts_render(&a, request, group, text, &e) != 0)
        fail_msg("%s", e.text);
    return a;
}

static const struct blob *body_of(const struct artifacts *a, const char *name)
{
    for (int i = 0; i < a->n; i++)
        if (strcmp(a->list[i].name, name) == 0)
            return a->list[i].body;
    fail_msg("there is no artifact %s", name);
    return NULL;
}

static json_t *json_of(const struct blob *b)
{
    json_t *value = NULL;
    struct err e;
    if (json_parse((const char *)b->bytes, b->size, &value, &e) != 0)
        fail_msg("%s", e.text);
    return value;
}

static void two_renders_give_identical_bytes(void **state)
{
    (void)state;
    run(request_json);
    struct artifacts a = render(), b = render();
    assert_int_equal(a.n, CHAINS + 4);
    assert_int_equal(a.n, b.n);
    for (int i = 0; i < a.n; i++) {
        char digest[DIGEST_HEX];
        assert_string_equal(a.list[i].name, b.list[i].name);
        assert_int_equal(a.list[i].body->size, b.list[i].body->size);
        assert_memory_equal(a.list[i].body->bytes, b.list[i].body->bytes, a.list[i].body->size);
        digest_bytes(a.list[i].body->bytes, a.list[i].body->size, digest);
        assert_string_equal(a.list[i].sha256, digest);
    }
    assert_int_equal(a.result->size, b.result->size);
    assert_memory_equal(a.result->bytes, b.result->bytes, a.result->size);
    artifacts_fini(&a);
    artifacts_fini(&b);
    assert_null(a.list);
}

static void the_same_bytes(const struct artifacts *a, const struct artifacts *b)
{
    assert_int_equal(a->n, b->n);
    for (int i = 0; i < a->n; i++) {
        assert_string_equal(a->list[i].name, b->list[i].name);
        assert_string_equal(a->list[i].sha256, b->list[i].sha256);
    }
    assert_int_equal(a->result->size, b->result->size);
    assert_memory_equal(a->result->bytes, b->result->bytes, a->result->size);
}

/* Each allocation fails once. The chains rest meanwhile. */
static void what_lacks_memory_is_not_rendered_in_part(void **state)
{
    (void)state;
    run(request_json);
    struct artifacts want = render();
    bool more = ALLOCATIONS_COUNTED;
    int n = 0, refused = 0;
    while (more) {
        struct artifacts got;
        struct err e;
        allocations_until_one_fails = ++n;
        const int rc = artifacts_render(&got, request, group, text, &e);
        more = atomic_exchange(&allocations_until_one_fails, 0) == 0;
        assert_true(rc == 0 || (rc == -FAIL_NO_MEMORY && more));
        refused += rc != 0;
        if (rc != 0)
            continue;
        the_same_bytes(&got, &want);
        artifacts_fini(&got);
    }
    assert_true(!ALLOCATIONS_COUNTED || refused > 100);
    artifacts_fini(&want);
}

static void the_images_are_the_chains_results(void **state)
{
    (void)state;
    const struct image_limits limits = {
        .max_side = 4096, .max_pixels = 1 << 22, .max_memory_bytes = 1 << 26};
    struct image im;
    struct err e;
    run(request_json);
    struct artifacts a = render();
    for (int i = 0; i < CHAINS; i++) {
        char name[40];
        unsigned char want[HELP_ELEMENTS];
        struct chain_result r;
        snprintf(name, sizeof name, "samples/%03d.png", i);
        const struct blob *b = body_of(&a, name);
        assert_int_equal(image_decode(&im, b->bytes, b->size, 1, &limits, &e), 0);
        assert_true(im.width == 4 && im.height == 4);
        chain_group_result(group, i, &r);
        model_to_pixels(model, r.x, want);
        assert_memory_equal(im.data, want, sizeof want);
        image_fini(&im);
    }
    const struct blob *grid = body_of(&a, "grid.png");
    assert_int_equal(image_decode(&im, grid->bytes, grid->size, 1, &limits, &e), 0);
    assert_true(im.width > 3 * 96 && im.height > 2 * 96 && im.width > im.height); /* 3 + 2 tiles */
    image_fini(&im);
    artifacts_fini(&a);
}

static void the_tensor_file_holds_every_chain(void **state)
{
    (void)state;
    struct safetensors *file;
    struct err e;
    run(request_json);
    struct artifacts a = render();
    const struct blob *b = body_of(&a, "samples.safetensors");
    FILE *f = fopen(in_folder("samples"), "w");
    assert_non_null(f);
    assert_int_equal(fwrite(b->bytes, 1, b->size, f), b->size);
    fclose(f);
    if (safetensors_open(&file, in_folder("samples"), &e) != 0)
        fail_msg("%s", e.text);
    const struct tensor *x = safetensors_find(file, "x"),
                        *logits = safetensors_find(file, "logits");
    const struct tensor *energy = safetensors_find(file, "energy");
    const struct tensor *condition = safetensors_find(file, "condition");
    assert_true(x && logits && energy && condition && x->shape[0] == CHAINS);
    for (int i = 0; i < CHAINS; i++) {
        struct chain_result r;
        chain_group_result(group, i, &r);
        assert_memory_equal((const float *)x->data + i * HELP_ELEMENTS, r.x,
                            HELP_ELEMENTS * sizeof *r.x);
        assert_memory_equal((const float *)logits->data + i * HELP_LOGITS, r.logits,
                            HELP_LOGITS * sizeof *r.logits);
        assert_true(((const float *)energy->data)[i] ==
                    -score_log_px(&model->d.attributes, r.logits, NULL));
        assert_int_equal(((const int32_t *)condition->data)[i], i >= 3);
    }
    safetensors_close(file);
    artifacts_fini(&a);
}

static void provenance_names_what_made_the_images_and_no_clock(void **state)
{
    (void)state;
    run(request_json);
    struct artifacts a = render();
    json_t *p = json_of(body_of(&a, "provenance.json")), *again;
    struct err e;
    assert_string_equal(json_string_value(json_object_get(p, "seed")), "18446744073709551615");
    assert_string_equal(json_string_value(json_object_get(json_object_get(p, "model"), "digest")),
                        model->digest);
    assert_int_equal(json_integer_value(json_object_get(json_object_get(p, "sampler"), "steps")),
                     30);
    assert_int_equal(json_parse(request_json, strlen(request_json), &again, &e), 0);
    assert_true(json_equal(json_object_get(p, "request"), again));
    assert_int_equal(json_object_size(p), 7);
    json_decref(again);
    json_decref(p);
    artifacts_fini(&a);
}

static void the_result_lists_artifacts_samples_and_diagnostics(void **state)
{
    (void)state;
    run(request_json);
    struct artifacts a = render();
    json_t *result = json_of(a.result);
    const json_t *files = json_object_get(result, "artifacts");
    assert_int_equal(json_array_size(files), (size_t)a.n);
    for (int i = 0; i < a.n; i++) {
        const json_t *one = json_array_get(files, (size_t)i);
        assert_string_equal(json_string_value(json_object_get(one, "name")), a.list[i].name);
        assert_string_equal(json_string_value(json_object_get(one, "sha256")), a.list[i].sha256);
        assert_int_equal(json_integer_value(json_object_get(one, "size_bytes")),
                         a.list[i].body->size);
    }
    const json_t *samples = json_object_get(result, "samples"), *sample;
    size_t i;
    assert_int_equal(json_array_size(samples), CHAINS);
    json_array_foreach(samples, i, sample)
    {
        const json_t *p = json_object_get(sample, "probabilities");
        const json_t *colour = json_object_get(p, "colour");
        assert_int_equal(json_object_size(p), i < 3); /* of conditioned attributes only */
        assert_true(i >= 3 || fabs(json_real_value(json_object_get(colour, "red")) +
                                   json_real_value(json_object_get(colour, "blue")) - 1) < 1e-6);
        assert_true(i < 3 || json_is_true(json_object_get(sample, "condition_satisfied")));
        assert_int_equal(json_integer_value(json_object_get(sample, "steps")), 30);
    }
    const json_t *d = json_object_get(result, "diagnostics");
    assert_int_equal(json_integer_value(json_object_get(d, "chain_steps")), 30 * CHAINS);
    assert_int_equal(json_integer_value(json_object_get(d, "chains")), CHAINS);
    json_t *trace = json_of(body_of(&a, "trace.json"));
    assert_int_equal(json_array_size(json_object_get(trace, "chains")), CHAINS);
    json_decref(trace);
    json_decref(result);
    artifacts_fini(&a);
}

static void only_what_was_asked_for_is_rendered(void **state)
{
    (void)state;
    run("{\"type\":\"sample\",\"conditions\":[{\"count\":1}],\"sampler\":{\"steps\":0},"
        "\"seed\":1,\"outputs\":[]}");
    struct artifacts a = render();
    assert_int_equal(a.n, 1);
    assert_string_equal(a.list[0].name, "provenance.json");
    artifacts_fini(&a);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(two_renders_give_identical_bytes, set_up, tear_down),
        cmocka_unit_test_setup_teardown(what_lacks_memory_is_not_rendered_in_part, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_images_are_the_chains_results, set_up, tear_down),
        cmocka_unit_test_setup_teardown(the_tensor_file_holds_every_chain, set_up, tear_down),
        cmocka_unit_test_setup_teardown(provenance_names_what_made_the_images_and_no_clock, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_result_lists_artifacts_samples_and_diagnostics, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(only_what_was_asked_for_is_rendered, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("artifacts", tests, NULL, NULL);
}
