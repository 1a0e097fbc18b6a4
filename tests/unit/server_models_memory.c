/* SPDX-License-Identifier: Apache-2.0 */
/* What a model is said to need, beside what is taken when it has been used in every way. */
#include "server/metrics.h"
#include "server/models.h"
#include "unit/server_help.h"

enum { THREADS = 3, SLOTS = 4, IMAGES = 5, ENOUGH = 100000000 };

/* Weights so large that an engine for one image pays. */
static const char large_json[] =
    "{\"format\":1,\"name\":\"large\",\"version\":\"1\",\"family\":\"jem\","
    "\"input\":{\"channels\":3,\"height\":8,\"width\":8,\"range\":[0,1]},\"layers\":["
    "{\"kind\":\"conv\",\"weights\":\"a\",\"in\":3,\"out\":512,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"lrelu\",\"slope\":0.1},"
    "{\"kind\":\"conv\",\"weights\":\"b\",\"in\":512,\"out\":512,\"kernel\":3,\"pad\":1},"
    "{\"kind\":\"lrelu\",\"slope\":0.1},"
    "{\"kind\":\"conv\",\"weights\":\"c\",\"in\":512,\"out\":8,\"kernel\":1,\"pad\":0},"
    "{\"kind\":\"flatten\"},"
    "{\"kind\":\"linear\",\"weights\":\"l\",\"in\":512,\"out\":5}],"
    "\"attributes\":[{\"name\":\"colour\",\"values\":[\"red\",\"blue\"]},"
    "{\"name\":\"shape\",\"values\":[\"disc\",\"ring\",\"star\"]}],"
    "\"sampler\":{\"kind\":\"sgld\",\"steps\":20,\"step_rule\":\"fixed\",\"step_size\":0.1,"
    "\"noise\":0.01,\"clamp\":[0,1]}}";

struct use {
    struct model *model;
    struct models_users users;
    struct batcher *batcher;
    struct chains *chains;
    struct model_plan plan;
    size_t need;
};

static void open_use(struct use *u, const char *json, int threads)
{
    struct err e;
    struct test_weights w = {.seed = 1};
    *u =
        (struct use){.model = test_model(json, &w, NULL, 0),
                     .users = {.batcher = {.threads = threads, .batch_max = 32, .queue_max = 32},
                               .chains = {.workers = threads, .slots = SLOTS, .quantum_steps = 4}}};
    assert_int_equal(models_need_bytes(&u->need, u->model, PRECISION_FLOAT, &u->users, &e), 0);
    assert_int_equal(model_plan_open(&u->plan, u->model, PRECISION_FLOAT, &e), 0);
    assert_int_equal(batcher_open(&u->batcher, &u->users.batcher, &e), 0);
    assert_int_equal(chains_open(&u->chains, &u->users.chains, &e), 0);
}

static void close_use(struct use *u)
{
    batcher_close(u->batcher);
    chains_close(u->chains);
    model_plan_close(&u->plan);
    assert_int_equal(u->model->refs, 1);
    model_put(u->model);
    metrics_fini();
}

static atomic_int done;

static void on_ticket(struct ticket *t, int result)
{
    (void)t;
    assert_int_equal(result, 0);
    atomic_fetch_add(&done, 1);
}

static void predict(struct use *u)
{
    struct err e;
    const size_t n = IMAGES * model_elements(u->model);
    float *x = calloc(n, sizeof *x), logits[IMAGES * HELP_LOGITS];
    struct ticket t = {.model = u->model,
                       .n = IMAGES,
                       .x = x,
                       .logits = logits,
                       .deadline_ns = INT64_MAX,
                       .done = on_ticket};
    assert_non_null(x);
    atomic_store(&done, 0);
    assert_int_equal(batcher_submit(u->batcher, &t, &e), 0);
    wait_until(atomic_load(&done) == 1);
    free(x);
}

static void on_group(void *ctx, struct chain_group *g)
{
    (void)ctx;
    (void)g;
    atomic_fetch_add(&done, 1);
}

static size_t chains_bytes(struct use *u)
{
    struct chains_status status;
    chains_get_status(u->chains, &status);
    return status.workspace_bytes;
}

/* Until every worker has its workspaces; returns their bytes. */
static size_t sample(struct use *u, size_t expected)
{
    struct err e;
    struct condition any;
    const struct condition *conditions[THREADS * SLOTS];
    struct sampler sampler = u->model->d.sampler;
    struct chain_group *g;
    sampler.steps = ENOUGH;
    assert_int_equal(condition_init(&any, &u->model->d.attributes, 1, &e), 0);
    for (int i = 0; i < THREADS * SLOTS; i++)
        conditions[i] = &any;
    const struct chain_task t = {.model = u->model,
                                 .n_chains = u->users.chains.workers * SLOTS,
                                 .conditions = conditions,
                                 .sampler = &sampler,
                                 .weight = 1,
                                 .done = on_group};
    atomic_store(&done, 0);
    assert_int_equal(chains_submit(u->chains, &t, NULL, &g, &e), 0);
    wait_until(chains_bytes(u) >= expected);
    const size_t bytes = chains_bytes(u);
    chain_group_cancel(g);
    wait_until(atomic_load(&done) == 1);
    chain_group_free(g);
    condition_fini(&any);
    return bytes;
}

static void assert_near(size_t estimate, size_t actual)
{
    if (estimate < actual || (double)estimate > 1.5 * (double)actual)
        fail_msg("%zu bytes estimated, %zu taken", estimate, actual);
}

static void check(const char *json, int threads, bool has_single)
{
    struct use u;
    struct model_packed packed;
    open_use(&u, json, threads);
    const size_t predicting = batcher_estimate(&u.users.batcher, u.model, &u.plan);
    const size_t sampling = chains_estimate(&u.users.chains, u.model, u.plan.engine);
    predict(&u);
    const size_t sampled = sample(&u, sampling), predicted = batcher_bytes(u.batcher);
    assert_near(predicting, predicted);
    assert_near(sampling, sampled);
    model_packed(u.model, &packed);
    assert_int_equal(u.plan.single != NULL, has_single);
    assert_int_equal(u.model->single != NULL, has_single);
    assert_near(u.need,
                u.model->file_bytes + u.model->private_bytes + packed.bytes + predicted + sampled);
    close_use(&u);
}

static void a_small_model_needs_what_it_takes(void **state)
{
    (void)state;
    char json[sizeof help_json + 8];
    snprintf(json, sizeof json, help_json, "small", 1);
    check(json, 1, false);
    check(json, THREADS, false);
}

static void a_model_with_an_engine_for_one_image_needs_what_it_takes(void **state)
{
    (void)state;
    check(large_json, 1, true);
    check(large_json, THREADS, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_small_model_needs_what_it_takes),
        cmocka_unit_test(a_model_with_an_engine_for_one_image_needs_what_it_takes),
    };
    return cmocka_run_group_tests_name("models_memory", tests, NULL, NULL);
}
