/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs over the real store, hub of events, chain engine and task pool, with a tiny model. */
#include "server/job_json.h"
#include "server/metrics.h"
#include "unit/jobs_help.h"
#include "unit/set_clock.h"

enum { LONG = 9000000, ARTIFACTS_MAX = 32 };

static long long store_bytes, budget_bytes;

static void open_jobs(void)
{
    open_engines(&(struct jobs_settings){
        .limits = {.max_images = 64,
                   .max_steps = 2 * LONG,
                   .image = {.max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20}},
        .budget_bytes = budget_bytes,
        .lease_ms = 30000,
        .checkpoint_ms = 100});
}

static void open_all(void)
{
    const struct models_settings m = settings_of_folder();
    const struct store_limits l = {.max_queued = 200,
                                   .max_queued_per_client = 200,
                                   .max_bytes = store_bytes,
                                   .retention_ms = 3600000};
    struct err e;
    assert_int_equal(models_open(&models, &m, &e), 0);
    assert_int_equal(store_memory_open(&store, &l, &e), 0);
    assert_int_equal(events_open(&events, 64, 0, &e), 0);
    open_jobs();
}

static int set_up(void **state)
{
    (void)state;
    alarm(240);
    make_folder();
    put_model("a.safetensors", "ant", 1);
    store_bytes = 1 << 28;
    budget_bytes = 1 << 26;
    open_all();
    return 0;
}

static void close_all(void)
{
    close_jobs();
    events_close(events);
    store->ops->close(store);
    models_close(models);
}

static int tear_down(void **state)
{
    (void)state;
    close_all();
    metrics_fini();
    drop_folder();
    return 0;
}

/* ---- words ---- */

/* rc of jobs_submit; *out only where it is >= 0. */
static int try(const char *json, const char *key, struct job *out, struct err *e)
{
    json_t *root;
    assert_int_equal(json_parse(json, strlen(json), &root, e), 0);
    const struct job_origin by = {.client = "alice", .key = key};
    const int rc = jobs_submit(jobs, root, &by, out, e);
    json_decref(root);
    return rc;
}

struct id {
    char text[JOB_ID_SIZE];
};

static struct id submit(const char *json)
{
    struct job job;
    struct err e;
    struct id id;
    if (try(json, NULL, &job, &e) != 0)
        fail_msg("%s", e.text);
    memcpy(id.text, job.id, sizeof id.text);
    job_fini(&job);
    return id;
}

static const char *plain(int steps, int count)
{
    static char json[256];
    snprintf(json, sizeof json,
             "{\"type\":\"sample\",\"conditions\":[{\"count\":%d}],\"sampler\":{\"steps\":%d},"
             "\"seed\":5,\"outputs\":[\"grid\",\"images\",\"tensor\",\"trace\"]}",
             count, steps);
    return json;
}

static struct id submit_steps(int steps, int count)
{
    return submit(plain(steps, count));
}

/* The caller's to job_fini. */
static struct job get(const struct id *id)
{
    struct job job;
    struct err e;
    if (store->ops->get(store, id->text, &job, &e) != 0)
        fail_msg("%s", e.text);
    return job;
}

static enum job_state state_of(const struct id *id)
{
    struct job job = get(id);
    const enum job_state s = job.state;
    job_fini(&job);
    return s;
}

static long long steps_of(const struct id *id)
{
    struct job job = get(id);
    const long long steps = job.steps_done;
    job_fini(&job);
    return steps;
}

static void expect_error(const struct id *id, enum fail_code code)
{
    struct job job = get(id);
    assert_int_equal(job.error_code, code);
    assert_true(job.error[0]);
    job_fini(&job);
}

static enum job_state cancel(const struct id *id)
{
    struct job job;
    struct err e;
    assert_int_equal(jobs_cancel(jobs, id->text, &job, &e), 0);
    const enum job_state s = job.state;
    job_fini(&job);
    return s;
}

/* Names, digests and bytes of all artifacts agree. */
static void expect_same_artifacts(const struct id *a, const struct id *b)
{
    struct job_artifact list[ARTIFACTS_MAX], one, two;
    struct err e;
    const int n = store->ops->artifacts(store, a->text, list, ARTIFACTS_MAX, &e);
    assert_in_range(n, 5, ARTIFACTS_MAX);
    assert_int_equal(store->ops->artifacts(store, b->text, list, ARTIFACTS_MAX, &e), n);
    for (int i = 0; i < n; i++) {
        assert_int_equal(store->ops->artifact(store, a->text, list[i].name, &one, &e), 0);
        assert_int_equal(store->ops->artifact(store, b->text, list[i].name, &two, &e), 0);
        if (one.body->size != two.body->size ||
            memcmp(one.body->bytes, two.body->bytes, one.body->size) != 0)
            fail_msg("%s differs", list[i].name);
        blob_put(one.body);
        blob_put(two.body);
    }
}

/* ---- tests ---- */

static void a_job_runs_to_its_end_and_leaves_its_artifacts(void **state)
{
    (void)state;
    const struct id id = submit_steps(50, 3), twin = submit_steps(50, 3);
    wait_until(state_of(&id) == JOB_SUCCEEDED && state_of(&twin) == JOB_SUCCEEDED);
    struct job job = get(&id);
    assert_int_equal(job.steps_done, 150);
    assert_int_equal(job.steps_total, 150);
    assert_int_equal(job.attempts, 1);
    assert_string_equal(job.model, "ant");
    assert_string_equal(job.client, "alice");
    assert_non_null(job.result);
    json_t *root = job_json(&job, true);
    assert_non_null(root);
    const json_t *result = json_object_get(root, "result");
    assert_int_equal(json_array_size(json_object_get(result, "samples")), 3);
    json_decref(root);
    job_fini(&job);
    expect_same_artifacts(&id, &twin);
}

static void the_stored_request_says_what_the_daemon_chose(void **state)
{
    (void)state;
    struct err e;
    const struct id id = submit("{\"type\":\"sample\",\"conditions\":[{}],\"sampler\":{"
                                "\"steps\":1},\"labels\":{\"who\":\"\\u00fc\"}}");
    struct job job = get(&id);
    json_t *root;
    assert_int_equal(json_parse((const char *)job.request->bytes, job.request->size, &root, &e), 0);
    assert_string_equal(json_string_value(json_object_get(root, "model")), "ant");
    assert_true(json_is_string(json_object_get(root, "seed")));
    assert_non_null(job.labels);
    json_decref(root);
    job_fini(&job);
}

static void an_idempotency_key_makes_one_job(void **state)
{
    (void)state;
    static const char json[] = "{\"type\":\"sample\",\"conditions\":[{}]}";
    struct job one, two;
    struct err e;
    assert_int_equal(try(json, "key", &one, &e), 0);
    assert_int_equal(try(json, "key", &two, &e), 1);
    assert_string_equal(one.id, two.id);
    job_fini(&one);
    job_fini(&two);
    assert_int_equal(try("{\"type\":\"sample\",\"conditions\":[{\"count\":2}]}", "key", &two, &e),
                     -FAIL_IDEMPOTENCY_MISMATCH);
    assert_int_equal(try(json, "other", &two, &e), 0);
    job_fini(&two);
}

static void a_known_key_is_answered_whatever_has_changed_since(void **state)
{
    (void)state;
    static const char json[] = "{\"type\":\"sample\",\"conditions\":[{\"count\":4}]}";
    static const char more[] = "{\"type\":\"sample\",\"conditions\":[{\"count\":5}]}";
    struct job one, two;
    struct err e;
    assert_int_equal(try(json, "key", &one, &e), 0);
    jobs_set_gate(jobs, JOBS_DRAINING);
    assert_int_equal(try(json, "key", &two, &e), 1);
    assert_string_equal(one.id, two.id);
    job_fini(&two);
    assert_int_equal(try(more, "key", &two, &e), -FAIL_IDEMPOTENCY_MISMATCH);
    assert_int_equal(try(json, "other", &two, &e), -FAIL_OVERLOADED);
    close_jobs();
    budget_bytes = 1; /* no job is small enough */
    open_jobs();
    assert_int_equal(try(json, "key", &two, &e), 1);
    assert_string_equal(one.id, two.id);
    job_fini(&two);
    assert_int_equal(try(json, "other", &two, &e), -FAIL_OUT_OF_RANGE);
    unlink(in_folder("a.safetensors"));
    assert_int_equal(models_rescan(models), 1);
    assert_int_equal(try(json, "key", &two, &e), 1);
    assert_string_equal(one.id, two.id);
    job_fini(&two);
    assert_int_equal(try(json, "other", &two, &e), -FAIL_NOT_FOUND);
    job_fini(&one);
}

static void a_request_is_judged_as_a_whole_before_it_is_kept(void **state)
{
    (void)state;
    struct job_estimate est;
    struct store_stats stats;
    struct job job;
    struct err e;
    json_t *root;
    static const char good[] =
        "{\"type\":\"sample\",\"conditions\":[{\"count\":4}],\"sampler\":{\"steps\":100}}";
    assert_int_equal(json_parse(good, sizeof good - 1, &root, &e), 0);
    assert_int_equal(jobs_validate(jobs, root, &est, &e), 0);
    json_decref(root);
    assert_int_equal(est.chains, 4);
    assert_int_equal(est.chain_steps, 400);
    assert_true(est.memory_bytes > 4 * HELP_ELEMENTS * 4 && est.run_seconds >= 0);
    assert_int_equal(try("{\"type\":\"paint\",\"conditions\":[{}]}", NULL, &job, &e),
                     -FAIL_UNSUPPORTED);
    assert_int_equal(try("{\"type\":\"train\"}", NULL, &job, &e), -FAIL_FORBIDDEN); /* it is off */
    assert_int_equal(
        try("{\"type\":\"sample\",\"model\":\"ent\",\"conditions\":[{}]}", NULL, &job, &e),
        -FAIL_NOT_FOUND);
    assert_string_equal(e.did_you_mean, "ant");
    assert_int_equal(try("{\"type\":\"sample\",\"conditions\":[{\"count\":65}]}", NULL, &job, &e),
                     -FAIL_OUT_OF_RANGE);
    store->ops->stats(store, &stats);
    for (int i = 0; i < JOB_STATES; i++)
        assert_int_equal(stats.jobs[i][JOB_SAMPLE], 0);
}

static void a_job_too_large_for_the_daemon_is_refused(void **state)
{
    (void)state;
    struct job job;
    struct err e;
    close_all();
    budget_bytes = 1000;
    open_all();
    assert_int_equal(try("{\"type\":\"sample\",\"conditions\":[{\"count\":64}]}", NULL, &job, &e),
                     -FAIL_OUT_OF_RANGE);
    assert_true(e.has_limit && e.limit == 1000);
}

static void a_queued_job_is_canceled_at_once(void **state)
{
    (void)state;
    jobs_drain(jobs);
    const struct id id = submit_steps(10, 1);
    usleep(250000); /* nobody claims it */
    assert_int_equal(state_of(&id), JOB_QUEUED);
    assert_int_equal(cancel(&id), JOB_CANCELED);
    assert_int_equal(cancel(&id), JOB_CANCELED);
    struct err e;
    assert_int_equal(jobs_remove(jobs, id.text, &e), 0);
    assert_int_equal(jobs_remove(jobs, id.text, &e), -FAIL_NOT_FOUND);
    struct job job;
    assert_int_equal(jobs_cancel(jobs, id.text, &job, &e), -FAIL_NOT_FOUND);
}

static void a_running_job_is_canceled_soon(void **state)
{
    (void)state;
    struct err e;
    const struct id id = submit_steps(LONG, 6);
    wait_until(steps_of(&id) > 0);
    assert_int_equal(state_of(&id), JOB_RUNNING);
    assert_int_equal(jobs_remove(jobs, id.text, &e), -FAIL_CONFLICT);
    const int64_t begin = timing_ns();
    cancel(&id);
    wait_until(state_of(&id) == JOB_CANCELED);
    assert_true(timing_ns() - begin < 5000000000);
    assert_true(steps_of(&id) > 0 && steps_of(&id) < 6LL * LONG);
    assert_int_equal(cancel(&id), JOB_CANCELED);
}

static void a_deadline_ends_a_running_job(void **state)
{
    (void)state;
    char when[25], json[256];
    timing_format(timing_wall_ms() + 1000, when);
    snprintf(json, sizeof json,
             "{\"type\":\"sample\",\"conditions\":[{}],\"sampler\":{\"steps\":%d},"
             "\"deadline\":\"%s\"}",
             LONG, when);
    const struct id id = submit(json);
    wait_until(state_of(&id) == JOB_RUNNING);
    wait_until(state_of(&id) == JOB_EXPIRED);
    expect_error(&id, FAIL_DEADLINE);
}

static void set_true(void *flag)
{
    atomic_store((atomic_bool *)flag, true);
}

static void a_clock_that_is_set_back_stops_nothing(void **state)
{
    (void)state;
    static atomic_bool called;
    struct event_watch *watch;
    struct err e;
    usleep(50000); /* the jobs thread waits */
    atomic_store(&clock_ahead_s, 3600);
    const int64_t begin = timing_ns();
    assert_int_equal(events_watch(events, "job", begin + 400000000, set_true, &called, &watch, &e),
                     0);
    wait_until(atomic_load(&called));
    atomic_store(&clock_ahead_s, 0);
    assert_true(timing_ns() - begin < 10000000000);
}

static void a_job_keeps_its_model_after_that_has_been_unloaded(void **state)
{
    (void)state;
    struct job_estimate est;
    struct err e;
    json_t *root;
    const char *json = plain(LONG, 3);
    assert_int_equal(json_parse(json, strlen(json), &root, &e), 0);
    assert_int_equal(jobs_validate(jobs, root, &est, &e), 0);
    json_decref(root);
    close_all();
    budget_bytes = (long long)est.memory_bytes; /* one long job fills it: the next one waits */
    open_all();
    const struct id first = submit_steps(LONG, 3);
    wait_until(state_of(&first) == JOB_RUNNING);
    const struct id second = submit_steps(20, 1);
    unlink(in_folder("a.safetensors"));
    put_model("b.safetensors", "bee", 2);
    assert_int_equal(models_rescan(models), 2);
    chains_forget(chains);
    assert_int_equal(state_of(&second), JOB_QUEUED);
    cancel(&first);
    wait_until(state_of(&second) == JOB_SUCCEEDED);
    struct job job = get(&second);
    assert_string_equal(job.model, "ant");
    job_fini(&job);
}

static void a_job_whose_model_is_gone_fails(void **state)
{
    (void)state;
    jobs_drain(jobs);
    const struct id id = submit_steps(20, 1);
    close_jobs(); /* what was pinned is let go */
    unlink(in_folder("a.safetensors"));
    assert_int_equal(models_rescan(models), 1);
    open_jobs();
    wait_until(state_of(&id) == JOB_FAILED);
    expect_error(&id, FAIL_MODEL_GONE);
}

static void a_drained_job_goes_on_from_its_checkpoint_with_the_same_outcome(void **state)
{
    (void)state;
    const struct id whole = submit_steps(40000, 5);
    wait_until(state_of(&whole) == JOB_SUCCEEDED);
    const struct id parts = submit_steps(40000, 5);
    for (int i = 1; i <= 2; i++) {
        struct chain_progress seen = {0};
        wait_until(state_of(&parts) == JOB_RUNNING);
        usleep(30000);
        close_jobs();
        struct job job = get(&parts);
        seen.steps_done = job.steps_done;
        assert_int_equal(job.state, JOB_QUEUED);
        assert_int_equal(job.attempts, i);
        job_fini(&job);
        assert_in_range(seen.steps_done, 1, 5 * 40000 - 1);
        open_jobs();
    }
    wait_until(state_of(&parts) == JOB_SUCCEEDED);
    struct job job = get(&parts);
    assert_int_equal(job.attempts, 3);
    assert_true(job.resumed_from_step > 0);
    assert_int_equal(job.steps_done, 5 * 40000);
    job_fini(&job);
    expect_same_artifacts(&whole, &parts);
}

static void a_full_store_fails_the_job_and_says_so(void **state)
{
    (void)state;
    close_all();
    store_bytes = 3 * STORE_JOB_BYTES;
    open_all();
    const struct id id = submit_steps(5, 20);
    wait_until(state_of(&id) == JOB_FAILED);
    expect_error(&id, FAIL_STORE_FULL);
    struct store_stats stats;
    store->ops->stats(store, &stats);
    assert_true(stats.bytes <= (size_t)store_bytes);
}

static bool preview_is_gone(const struct id *id)
{
    struct blob *preview = NULL;
    struct err e;
    const int rc = jobs_preview(jobs, id->text, &preview, &e);
    blob_put(preview);
    return rc == -FAIL_NOT_FOUND;
}

static void a_stream_of_a_job_begins_with_a_snapshot_and_ends_with_end(void **state)
{
    (void)state;
    static char text[1 << 16];
    struct subscription *s;
    struct err e;
    size_t size = 0;
    long n;
    char json[256];
    snprintf(json, sizeof json,
             "{\"type\":\"sample\",\"conditions\":[{}],\"sampler\":{\"steps\":%d},"
             "\"preview_every_steps\":100}",
             LONG);
    const struct id id = submit(json);
    struct job job = get(&id);
    assert_int_equal(subscription_open(&s, events, id.text, -1, job_json_line(&job), false, &e), 0);
    job_fini(&job);
    struct blob *preview = NULL;
    wait_until(jobs_preview(jobs, id.text, &preview, &e) == 0);
    assert_true(preview->size > 8 && memcmp(preview->bytes, "\x89PNG", 4) == 0);
    blob_put(preview);
    cancel(&id);
    wait_until(state_of(&id) == JOB_CANCELED);
    for (int i = 0; i < 5000; i++) {
        while ((n = subscription_read(s, text + size, sizeof text - 1 - size)) > 0)
            size += (size_t)n;
        if (n < 0)
            break;
        usleep(1000);
    }
    assert_int_equal(n, -1);
    text[size] = '\0';
    subscription_close(s);
    assert_non_null(strstr(text, "event: snapshot"));
    assert_non_null(strstr(text, "event: preview"));
    assert_non_null(strstr(text, "event: end"));
    assert_non_null(strstr(strstr(text, "event: end"), "\"canceled\""));
    wait_until(preview_is_gone(&id));
}

enum { RACES = 60 };

static void *cancel_all(void *arg)
{
    const struct id *list = arg;
    for (int i = 0; i < RACES; i++)
        cancel(&list[i]);
    return NULL;
}

static void cancels_race_with_ends_and_every_job_ends_once(void **state)
{
    (void)state;
    static struct id list[RACES];
    pthread_t thread[2];
    for (int i = 0; i < RACES; i++)
        list[i] = submit_steps(i % 5 * 40, 1 + i % 3);
    for (int t = 0; t < 2; t++)
        assert_int_equal(pthread_create(&thread[t], NULL, cancel_all, list), 0);
    for (int t = 0; t < 2; t++)
        pthread_join(thread[t], NULL);
    for (int i = 0; i < RACES; i++)
        wait_until(job_state_is_terminal(state_of(&list[i])));
    for (int i = 0; i < RACES; i++)
        assert_true(state_of(&list[i]) == JOB_CANCELED || state_of(&list[i]) == JOB_SUCCEEDED);
}

static void closing_with_work_of_all_kinds_loses_no_job(void **state)
{
    (void)state;
    struct id list[12];
    for (int i = 0; i < 12; i++)
        list[i] = submit_steps(i % 2 ? LONG : 30, 2);
    usleep(50000);
    cancel(&list[1]);
    cancel(&list[3]);
    close_jobs();
    for (int i = 0; i < 12; i++) {
        const enum job_state s = state_of(&list[i]);
        assert_true(s == JOB_QUEUED || s == JOB_SUCCEEDED || s == JOB_CANCELED);
        assert_true(s != JOB_CANCELED || i == 1 || i == 3);
        assert_true(s != JOB_SUCCEEDED || i % 2 == 0);
    }
    assert_int_equal(state_of(&list[1]), JOB_CANCELED);
    open_jobs();
    for (int i = 0; i < 12; i += 2)
        wait_until(state_of(&list[i]) == JOB_SUCCEEDED);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(a_job_runs_to_its_end_and_leaves_its_artifacts, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(the_stored_request_says_what_the_daemon_chose, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(an_idempotency_key_makes_one_job, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_known_key_is_answered_whatever_has_changed_since, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_request_is_judged_as_a_whole_before_it_is_kept, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_job_too_large_for_the_daemon_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_queued_job_is_canceled_at_once, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_running_job_is_canceled_soon, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_deadline_ends_a_running_job, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_clock_that_is_set_back_stops_nothing, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_job_keeps_its_model_after_that_has_been_unloaded, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_job_whose_model_is_gone_fails, set_up, tear_down),
        cmocka_unit_test_setup_teardown(
            a_drained_job_goes_on_from_its_checkpoint_with_the_same_outcome, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_full_store_fails_the_job_and_says_so, set_up, tear_down),
        cmocka_unit_test_setup_teardown(a_stream_of_a_job_begins_with_a_snapshot_and_ends_with_end,
                                        set_up, tear_down),
        cmocka_unit_test_setup_teardown(cancels_race_with_ends_and_every_job_ends_once, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(closing_with_work_of_all_kinds_loses_no_job, set_up,
                                        tear_down),
    };
    return cmocka_run_group_tests_name("jobs", tests, NULL, NULL);
}
