/* SPDX-License-Identifier: Apache-2.0 */
/* Runs of many predictions: the same lines whatever happens on the way, and everybody's share. */
#include "server/bulk.h"
#include "server/metrics.h"
#include "unit/server_help.h"

enum { IMAGES = 400, RUNS = 5 };

static struct model *model;
static struct bulk *bulk;
static unsigned char pixels[IMAGES * HELP_ELEMENTS];

/* A run with what it borrows. */
struct job {
    struct predict_request q;
    struct blob *input;
    struct bulk_task task;
    struct bulk_run *run;
    atomic_int over; /* calls */
};

static void on_over(void *ctx)
{
    struct job *j = ctx;
    atomic_fetch_add(&j->over, 1);
}

static void open_bulk(int threads)
{
    const struct bulk_settings s = {
        .batcher = {.threads = threads, .batch_max = 32, .queue_max = 32, .hidden = true},
        .image = {.max_side = 64, .max_pixels = 4096, .max_memory_bytes = 1 << 20}};
    struct err e;
    assert_int_equal(bulk_open(&bulk, &s, &e), 0);
}

static void close_bulk(void)
{
    bulk_stop(bulk);
    bulk_close(bulk);
    bulk = NULL;
}

/* n images that are pixels from `first` on. */
static void prepare(struct job *j, int first, int n)
{
    struct image_packer p;
    struct err e;
    *j = (struct job){.q = {.model = model, .input = {IMAGE_PACK_UINT8, n, 4, 4, 1}}};
    predict_options_init(&j->q.options, false, 0);
    j->q.options.include |= PREDICT_LOGITS | PREDICT_APPROXIMATE_MASS;
    assert_int_equal(image_packer_init(&p, &j->q.input, (size_t)n * HELP_ELEMENTS, &e), 0);
    for (int i = 0; i < n; i++)
        image_packer_add(&p, "", pixels + (size_t)(first + i) * HELP_ELEMENTS, HELP_ELEMENTS);
    j->input = image_packer_end(&p);
    j->task = (struct bulk_task){.request = &j->q,
                                 .input = j->input,
                                 .owner = "ann",
                                 .weight = 1,
                                 .over = on_over,
                                 .ctx = j};
}

static void start(struct job *j, const struct blob *checkpoint)
{
    struct err e;
    if (bulk_start(bulk, &j->task, checkpoint, &j->run, &e) != 0)
        fail_msg("%s", e.text);
}

static void drop(struct job *j)
{
    if (j->run)
        bulk_run_free(j->run);
    blob_put(j->input);
    predict_options_fini(&j->q.options);
}

static int done_of(const struct job *j)
{
    struct bulk_progress p;
    bulk_run_progress(j->run, &p);
    return p.images_done;
}

/* The caller's to blob_put. */
static struct blob *lines_of(struct job *j)
{
    struct blob *b;
    struct err e;
    wait_until(atomic_load(&j->over) == 1);
    assert_int_equal(bulk_run_end(j->run), BULK_DONE);
    assert_int_equal(bulk_run_lines(j->run, &b, &e), 0);
    return b;
}

static struct blob *undisturbed(int first, int n)
{
    struct job j;
    prepare(&j, first, n);
    start(&j, NULL);
    struct blob *b = lines_of(&j);
    drop(&j);
    return b;
}

static void expect_same(struct blob *a, struct blob *b)
{
    assert_int_equal(a->size, b->size);
    assert_memory_equal(a->bytes, b->bytes, a->size);
    blob_put(a);
}

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    make_folder();
    model = load_model("one", 1);
    for (size_t i = 0; i < sizeof pixels; i++)
        pixels[i] = (unsigned char)(i * i * 31 + i / 7);
    open_bulk(2);
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    close_bulk();
    model_put(model);
    metrics_fini();
    drop_folder();
    return 0;
}

static void lines_do_not_depend_on_threads_or_neighbours(void **state)
{
    (void)state;
    static struct job list[RUNS];
    struct blob *want = undisturbed(0, 100);
    close_bulk();
    open_bulk(1);
    for (int i = 0; i < RUNS; i++)
        prepare(&list[i], 0, 100);
    for (int i = 0; i < RUNS; i++)
        start(&list[i], NULL);
    for (int i = 0; i < RUNS; i++) {
        expect_same(lines_of(&list[i]), want);
        drop(&list[i]);
    }
    blob_put(want);
}

static void a_run_goes_on_from_its_checkpoint_to_the_same_bytes(void **state)
{
    (void)state;
    struct job j;
    struct err e;
    struct blob *want = undisturbed(0, IMAGES), *checkpoint;
    for (int stop = 1; stop >= 0; stop--) { /* stopped by a client; the daemon ends */
        prepare(&j, 0, IMAGES);
        start(&j, NULL);
        wait_until(done_of(&j) > 0);
        if (stop)
            bulk_run_stop(j.run);
        else
            bulk_stop(bulk);
        wait_until(!stop || atomic_load(&j.over) == 1);
        const int done = done_of(&j);
        assert_int_equal(bulk_run_checkpoint(j.run, &checkpoint, &e), 0);
        bulk_run_free(j.run);
        if (!stop) {
            close_bulk();
            open_bulk(1);
        }
        atomic_store(&j.over, 0);
        start(&j, checkpoint);
        assert_true(done_of(&j) >= done);
        expect_same(lines_of(&j), want);
        blob_put(checkpoint);
        drop(&j);
    }
    blob_put(want);
}

static void a_checkpoint_of_a_finished_run_finishes_at_once(void **state)
{
    (void)state;
    struct job j;
    struct err e;
    struct blob *want = undisturbed(0, 10), *checkpoint;
    prepare(&j, 0, 10);
    start(&j, NULL);
    blob_put(lines_of(&j));
    assert_int_equal(bulk_run_checkpoint(j.run, &checkpoint, &e), 0);
    bulk_run_free(j.run);
    atomic_store(&j.over, 0);
    start(&j, checkpoint);
    expect_same(lines_of(&j), want);
    drop(&j);
    blob_put(want);
    blob_put(checkpoint);
}

static void a_damaged_or_foreign_checkpoint_or_pack_is_refused(void **state)
{
    (void)state;
    static const char *const bad[] = {"",
                                      "x",
                                      "jemd-lines",
                                      "jemd-lines a 1\n",
                                      "jemd-lines %s 1 0\n",
                                      "jemd-lines %s 11 0\n",
                                      "jemd-lines %s -1 0\n",
                                      "jemd-lines %s 0 1\n"};
    struct job j;
    struct err e;
    char text[200];
    prepare(&j, 0, 10);
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++) {
        const char *percent = strchr(bad[i], '%');
        snprintf(text, sizeof text, "%.*s%s%s", percent ? (int)(percent - bad[i]) : 200, bad[i],
                 percent ? model_fingerprint(model) : "", percent ? percent + 2 : "");
        struct blob *b = blob_copy(text, strlen(text));
        if (bulk_start(bulk, &j.task, b, &j.run, &e) != -FAIL_BAD_FILE)
            fail_msg("%s", text);
        blob_put(b);
    }
    j.q.input.n = 9;
    assert_int_equal(bulk_start(bulk, &j.task, NULL, &j.run, &e), -FAIL_BAD_FILE);
    j.q.input.n = 10;
    struct blob *foreign = blob_copy("jemd-lines other 0 0\n", 21);
    assert_int_equal(bulk_start(bulk, &j.task, foreign, &j.run, &e), -FAIL_BAD_FILE);
    assert_non_null(strstr(e.text, "other kernels"));
    blob_put(foreign);
    drop(&j);
}

/* Images of each when the first of them is over. */
static void race(struct job *list, const char *const *owners, const double *weights, int n)
{
    for (int i = 0; i < n; i++) {
        prepare(&list[i], 0, IMAGES);
        list[i].task.owner = owners[i];
        list[i].task.weight = weights[i];
    }
    for (int i = 0; i < n; i++)
        start(&list[i], NULL);
}

static void priorities_and_clients_have_their_shares(void **state)
{
    (void)state;
    static struct job list[4];
    static const char *const owners[] = {"ann", "bob", "bob", "bob"};
    static const double same[] = {1, 1, 1, 1}, ranked[] = {4, 1, 1, 1};
    double left[2];
    for (int turn = 0; turn < 2; turn++) {
        race(list, owners, turn ? ranked : same, 4);
        wait_until(atomic_load(&list[0].over) == 1);
        int others = 0;
        for (int i = 1; i < 4; i++)
            others += done_of(&list[i]);
        left[turn] = (double)others / IMAGES;
        for (int i = 0; i < 4; i++)
            bulk_run_stop(list[i].run);
        for (int i = 0; i < 4; i++) {
            wait_until(atomic_load(&list[i].over) == 1);
            drop(&list[i]);
        }
    }
    /* Alike, bob's three make together what ann's makes; of a lower priority, a quarter. */
    assert_true(left[0] > 0.3 && left[0] < 2.2);
    assert_true(left[1] < 0.8);
}

static void many_runs_stopped_at_any_time_end_once(void **state)
{
    (void)state;
    static struct job list[RUNS];
    for (int round = 0; round < 20; round++) {
        for (int i = 0; i < RUNS; i++) {
            prepare(&list[i], i, 50);
            start(&list[i], NULL);
        }
        usleep((unsigned)round * 300);
        for (int i = 0; i < RUNS; i++)
            bulk_run_stop(list[i].run);
        for (int i = 0; i < RUNS; i++) {
            wait_until(atomic_load(&list[i].over) == 1);
            const enum bulk_end end = bulk_run_end(list[i].run);
            assert_true(end == BULK_STOPPED || (end == BULK_DONE && done_of(&list[i]) == 50));
            drop(&list[i]);
        }
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_setup_teardown(lines_do_not_depend_on_threads_or_neighbours, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_run_goes_on_from_its_checkpoint_to_the_same_bytes, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_checkpoint_of_a_finished_run_finishes_at_once, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(a_damaged_or_foreign_checkpoint_or_pack_is_refused, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(priorities_and_clients_have_their_shares, set_up,
                                        tear_down),
        cmocka_unit_test_setup_teardown(many_runs_stopped_at_any_time_end_once, set_up, tear_down),
    };
    return cmocka_run_group_tests_name("bulk", tests, NULL, NULL);
}
