/* SPDX-License-Identifier: Apache-2.0 */
/* Jobs of a daemon before: with a checkpoint that cannot be used, limits that were higher, and a model
 * that does not serve any more. */
#include "server/metrics.h"
#include "unit/jobs_help.h"

enum { IMAGES = 40, LONG = 40000, CHAINS = 5 };

static struct sample_limits limits;
static struct err e;

static void open_jobs(void)
{
    open_engines(&(struct jobs_settings){
        .limits = limits, .budget_bytes = 1 << 26, .lease_ms = 30000, .checkpoint_ms = 100});
}

static void open_models(void)
{
    const struct models_settings s = settings_of_folder();
    assert_int_equal(models_open(&models, &s, &e), 0);
}

static int set_up(void **state)
{
    (void)state;
    const struct store_limits l = {.max_queued = 200,
                                   .max_queued_per_client = 200,
                                   .max_bytes = 1 << 28,
                                   .retention_ms = 3600000};
    alarm(120);
    make_folder();
    put_model("a.safetensors", "ant", 1);
    limits = (struct sample_limits){
        .max_images = 64,
        .max_steps = 10 * LONG,
        .image = {.max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20}};
    open_models();
    assert_int_equal(store_memory_open(&store, &l, &e), 0);
    assert_int_equal(events_open(&events, 64, 0, &e), 0);
    open_jobs();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close_jobs();
    events_close(events);
    store->ops->close(store);
    models_close(models);
    metrics_fini();
    empty_folder("ant");
    drop_folder();
    return 0;
}

struct id {
    char text[JOB_ID_SIZE];
};

static struct id submit_root(json_t *root, struct blob *input)
{
    const struct job_origin by = {.client = "ann", .input = input};
    struct job job;
    struct id id;
    if (jobs_submit(jobs, root, &by, &job, &e) != 0)
        fail_msg("%s", e.text);
    memcpy(id.text, job.id, sizeof id.text);
    job_fini(&job);
    json_decref(root);
    blob_put(input);
    return id;
}

static struct id submit_samples(int steps, int count)
{
    json_t *root =
        json_pack("{s:s, s:[{s:i}], s:{s:i}, s:s, s:[s]}", "type", "sample", "conditions", "count",
                  count, "sampler", "steps", steps, "seed", "5", "outputs", "tensor");
    assert_non_null(root);
    return submit_root(root, NULL);
}

static struct id submit_predictions(void)
{
    static unsigned char pixels[IMAGES * HELP_ELEMENTS];
    const struct image_pack_head head = {IMAGE_PACK_UINT8, IMAGES, 4, 4, 1};
    const struct predict_limits l = {.images = IMAGES, .bytes = 1 << 20};
    json_t *root = json_pack("{s:s}", "type", "predict");
    struct blob *input;
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (unsigned char)(i * i * 31 + i / 7);
    if (predict_request_pack_tensor(root, &head, pixels, sizeof pixels, &l, &input, &e) != 0)
        fail_msg("%s", e.text);
    return submit_root(root, input);
}

/* The caller's to job_fini. */
static struct job get(const struct id *id)
{
    struct job job;
    assert_int_equal(store->ops->get(store, id->text, &job, &e), 0);
    return job;
}

static enum job_state state_of(const struct id *id)
{
    struct job job = get(id);
    const enum job_state state = job.state;
    job_fini(&job);
    return state;
}

static long long steps_of(const struct id *id)
{
    struct job job = get(id);
    const long long steps = job.steps_done;
    job_fini(&job);
    return steps;
}

/* Until it has succeeded; the bytes of an artifact are the caller's to blob_put. */
static struct blob *made_by(const struct id *id, const char *artifact)
{
    struct job_artifact a;
    wait_until(job_state_is_terminal(state_of(id)));
    struct job job = get(id);
    if (job.state != JOB_SUCCEEDED)
        fail_msg("%s", job.error);
    assert_int_equal(job.steps_done, job.steps_total);
    job_fini(&job);
    if (store->ops->artifact(store, id->text, artifact, &a, &e) != 0)
        fail_msg("%s", e.text);
    return a.body;
}

static void expect_same(struct blob *got, const struct blob *want)
{
    assert_int_equal(got->size, want->size);
    assert_memory_equal(got->bytes, want->bytes, want->size);
    blob_put(got);
}

/* What a worker that had the job leaves: this checkpoint. Nobody else claims. */
static void leave(const struct id *id, enum job_type type, struct blob *checkpoint, long long steps)
{
    const int64_t now = timing_wall_ms();
    struct job job;
    assert_int_equal(store->ops->claim(store, type, "me", now, 30000, &job, &e), 1);
    assert_string_equal(job.id, id->text);
    assert_int_equal(store->ops->save_checkpoint(store, job.id, job.epoch, checkpoint, steps, &e),
                     0);
    assert_int_equal(store->ops->release(store, job.id, job.epoch, now, &e), 0);
    job_fini(&job);
    blob_put(checkpoint);
}

/* It was begun anew, and says so. */
static void expect_anew(const struct id *id)
{
    struct job job = get(id);
    assert_int_equal(job.attempts, 2);
    assert_int_equal(job.resumed_from_step, -1);
    job_fini(&job);
}

static void an_unusable_checkpoint_costs_a_sampling_job_time_only(void **state)
{
    (void)state;
    const struct id whole = submit_samples(50, 3);
    struct blob *want = made_by(&whole, "samples.safetensors");
    jobs_drain(jobs);
    const struct id id = submit_samples(50, 3);
    leave(&id, JOB_SAMPLE, blob_copy("jemdchk3, of another version", 28), 60);
    close_jobs();
    open_jobs();
    expect_same(made_by(&id, "samples.safetensors"), want);
    expect_anew(&id);
    blob_put(want);
}

/* What a fingerprint begins with is made another. */
static struct blob *of_other_kernels(const struct blob *checkpoint)
{
    struct model *m;
    assert_int_equal(models_find(models, "", &m, &e), 0);
    struct blob *b = blob_copy(checkpoint->bytes, checkpoint->size);
    const char *mine = model_fingerprint(m);
    unsigned char *at = memmem(b->bytes, 400, mine, strlen(mine));
    assert_non_null(at);
    at[0] ^= 1;
    model_put(m);
    return b;
}

static void chains_that_other_kernels_have_begun_begin_anew(void **state)
{
    (void)state;
    struct blob *left = NULL;
    const struct id whole = submit_samples(LONG, CHAINS);
    struct blob *want = made_by(&whole, "samples.safetensors");
    const struct id id = submit_samples(LONG, CHAINS);
    wait_until(steps_of(&id) > 0);
    close_jobs();
    assert_int_equal(store->ops->load_checkpoint(store, id.text, &left, &e), 0);
    assert_non_null(left);
    struct blob *foreign = of_other_kernels(left);
    blob_put(left);
    struct job job;
    const int64_t now = timing_wall_ms();
    assert_int_equal(store->ops->claim(store, JOB_SAMPLE, "me", now, 30000, &job, &e), 1);
    assert_true(job.resumed_from_step > 0);
    assert_int_equal(store->ops->save_checkpoint(store, job.id, job.epoch, foreign, 60, &e), 0);
    assert_int_equal(store->ops->release(store, job.id, job.epoch, now, &e), 0);
    job_fini(&job);
    blob_put(foreign);
    open_jobs();
    expect_same(made_by(&id, "samples.safetensors"), want);
    job = get(&id);
    assert_int_equal(job.attempts, 3);
    assert_int_equal(job.resumed_from_step, -1);
    job_fini(&job);
    blob_put(want);
}

static void an_unusable_checkpoint_costs_a_prediction_job_time_only(void **state)
{
    (void)state;
    static const char *const left[] = {"no lines",
                                       "jemd-lines another/kernel 5 0\n1\n2\n3\n4\n5\n"};
    const struct id whole = submit_predictions();
    struct blob *want = made_by(&whole, "predictions.jsonl");
    for (int i = 0; i < 2; i++) {
        jobs_drain(jobs);
        const struct id id = submit_predictions();
        leave(&id, JOB_PREDICT, blob_copy(left[i], strlen(left[i])), 5);
        close_jobs();
        open_jobs();
        expect_same(made_by(&id, "predictions.jsonl"), want);
        expect_anew(&id);
    }
    blob_put(want);
}

static void limits_that_are_lowered_do_not_count_for_accepted_jobs(void **state)
{
    (void)state;
    jobs_drain(jobs);
    const struct id samples = submit_samples(50, 3), predictions = submit_predictions();
    close_jobs();
    limits = (struct sample_limits){.max_images = 1, .max_steps = 1, .image = {1, 1, 1}};
    open_jobs();
    blob_put(made_by(&samples, "samples.safetensors"));
    blob_put(made_by(&predictions, "predictions.jsonl"));
}

static void promote(const char *version)
{
    struct models_promotion p;
    if (models_promote(models, "ant", version, &p, &e) != 0)
        fail_msg("%s", e.text);
    model_put(p.model);
}

/* Another daemon on the same store. */
static void start_again(void)
{
    close_jobs();
    models_close(models);
    open_models();
    open_jobs();
}

static void jobs_keep_their_version_through_promotions_and_starts(void **state)
{
    (void)state;
    const struct id whole[] = {submit_samples(50, 3), submit_predictions()};
    struct blob *want[] = {made_by(&whole[0], "samples.safetensors"),
                           made_by(&whole[1], "predictions.jsonl")};
    jobs_drain(jobs);
    const struct id id[] = {submit_samples(50, 3), submit_predictions()};
    stage("ant", "2", 2);
    promote("2");
    struct job waiting = get(&id[0]);
    struct model *used = NULL;
    start_again();
    wait_until(models_find_digest(models, waiting.digest, &used, &e) == 0);
    job_fini(&waiting);
    expect_same(made_by(&id[0], "samples.safetensors"), want[0]);
    expect_same(made_by(&id[1], "predictions.jsonl"), want[1]);
    const struct id next = submit_samples(50, 3); /* which is of the new one */
    blob_put(made_by(&next, "samples.safetensors"));
    struct job old = get(&id[0]), fresh = get(&next);
    assert_string_equal(old.version, "1");
    assert_string_equal(fresh.version, "2");
    wait_until(used->refs == 1); /* nobody else needs it any more */
    assert_string_equal(used->d.version, "1");
    model_put(used);
    job_fini(&old);
    job_fini(&fresh);
    for (int i = 0; i < 2; i++)
        blob_put(want[i]);
}

static void a_job_whose_file_was_changed_fails_and_says_so(void **state)
{
    (void)state;
    stage("ant", "2", 2);
    stage("ant", "3", 3);
    promote("2");
    jobs_drain(jobs);
    const struct id id = submit_samples(50, 3);
    promote("3");
    put_model("made", "ant", 4);
    assert_int_equal(rename(in_folder("made"), in_folder("ant/2.safetensors")), 0);
    start_again();
    wait_until(state_of(&id) == JOB_FAILED);
    struct job job = get(&id);
    assert_int_equal(job.error_code, FAIL_MODEL_GONE);
    if (!strstr(job.error, "\"ant\" has no version \"2\""))
        fail_msg("%s", job.error);
    job_fini(&job);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(an_unusable_checkpoint_costs_a_sampling_job_time_only),
        TEST(chains_that_other_kernels_have_begun_begin_anew),
        TEST(an_unusable_checkpoint_costs_a_prediction_job_time_only),
        TEST(limits_that_are_lowered_do_not_count_for_accepted_jobs),
        TEST(jobs_keep_their_version_through_promotions_and_starts),
        TEST(a_job_whose_file_was_changed_fails_and_says_so),
    };
    return cmocka_run_group_tests_name("jobs_kept", tests, NULL, NULL);
}
