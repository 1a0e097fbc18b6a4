/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Part of store_suite.h: lists, idempotency, limits, bytes, retention, artifacts. */
#include "store_suite_base.h"

/* One page; the numbers of its jobs go to numbers[], which has room for max. */
static int page(const struct job_filter *f, char cursor[STORE_CURSOR_SIZE], int max, int *numbers)
{
    struct job out[32];
    int n = -1;
    assert_in_range(max, 1, 32);
    assert_int_equal(st->ops->list(st, f, cursor, out, max, &n, &e), 0);
    assert_in_range(n, 0, max);
    for (int i = 0; i < n; i++) {
        numbers[i] = number_of(&out[i]);
        job_fini(&out[i]);
    }
    return n;
}

static const struct job_filter everything = {.state = -1, .type = -1};

static void a_list_is_newest_first_in_pages(void **state)
{
    (void)state;
    char cursor[STORE_CURSOR_SIZE] = "";
    int numbers[3], next = 7;
    assert_int_equal(page(&everything, cursor, 3, numbers), 0);
    assert_string_equal(cursor, "");
    for (int n = 1; n <= 7; n++)
        put_number(n);
    for (int p = 0; p < 3; p++) {
        const int n = page(&everything, cursor, 3, numbers);
        assert_int_equal(n, p < 2 ? 3 : 1);
        for (int i = 0; i < n; i++)
            assert_int_equal(numbers[i], next--);
        assert_int_equal(cursor[0] == '\0', p == 2);
    }
    assert_int_equal(next, 0);
}

static void a_full_last_page_has_no_cursor(void **state)
{
    (void)state;
    char cursor[STORE_CURSOR_SIZE] = "";
    int numbers[4];
    for (int n = 1; n <= 4; n++)
        put_number(n);
    assert_int_equal(page(&everything, cursor, 4, numbers), 4);
    assert_string_equal(cursor, "");
}

static void a_cursor_is_stable_under_inserts_and_removals(void **state)
{
    (void)state;
    enum { JOBS = 300 };
    char cursor[STORE_CURSOR_SIZE] = "";
    int numbers[7], next = JOBS, n;
    for (int i = 1; i <= JOBS; i++)
        put_number(i);
    for (int added = JOBS + 1; next > 0; added++) {
        n = page(&everything, cursor, 7, numbers);
        for (int i = 0; i < n; i++)
            assert_int_equal(numbers[i], next--);
        put_number(added);
        if (n) { /* the very job that the cursor stands on goes */
            assert_int_equal(cancel(numbers[n - 1]), JOB_CANCELED);
            assert_int_equal(st->ops->remove(st, id_of(numbers[n - 1]), &e), 0);
        }
    }
    assert_string_equal(cursor, "");
}

static void a_list_finds_its_way_among_many_removed_jobs(void **state)
{
    (void)state;
    enum { JOBS = 1000 };
    char cursor[STORE_CURSOR_SIZE] = "";
    int numbers[2], expected = JOBS / 100 * 100, n;
    for (int i = 1; i <= JOBS; i++) {
        put_number(i);
        assert_int_equal(cancel(i), JOB_CANCELED);
    }
    for (int i = 1; i <= JOBS; i++)
        if (i % 100)
            assert_int_equal(st->ops->remove(st, id_of(i), &e), 0);
    do {
        n = page(&everything, cursor, 2, numbers);
        for (int i = 0; i < n; i++, expected -= 100)
            assert_int_equal(numbers[i], expected);
    } while (cursor[0]);
    assert_int_equal(expected, 0);
}

static void a_foreign_cursor_is_refused(void **state)
{
    (void)state;
    static const char *const cursors[] = {"x", "-1", " 1", "0", "01", "1 ", "ffffffffffffffffff"};
    put_number(1);
    for (size_t i = 0; i < sizeof cursors / sizeof cursors[0]; i++) {
        char cursor[STORE_CURSOR_SIZE];
        struct job out[1];
        int n = -5;
        strcpy(cursor, cursors[i]);
        assert_int_equal(st->ops->list(st, &everything, cursor, out, 1, &n, &e), -FAIL_BAD_REQUEST);
        assert_int_equal(n, -5);
        assert_string_equal(cursor, cursors[i]);
    }
}

static void put_labelled(int n, const char *client, const char *labels)
{
    struct job j = new_job(n);
    strcpy(j.client, client);
    j.labels = text_blob(labels);
    assert_int_equal(put(j), 0);
}

static int count(const struct job_filter *f)
{
    char cursor[STORE_CURSOR_SIZE] = "";
    int numbers[32];
    return page(f, cursor, 32, numbers);
}

static void a_list_can_be_filtered(void **state)
{
    (void)state;
    put_labelled(1, "ann", "{\"team\":\"red\",\"run\":\"1\"}");
    put_labelled(2, "ann", "{ \"run\": \"2\", \"team\": \"bl\\u0075e\" }");
    put_labelled(3, "bob", "{\"team\":\"red\",\"\":\"empty\",\"e\":\"\"}");
    put_labelled(4, "bob", "{}");
    put_number(5);
    assert_int_equal(cancel(5), JOB_CANCELED);
    struct job_filter f = everything;
    f.state = JOB_CANCELED;
    assert_int_equal(count(&f), 1);
    f.state = JOB_QUEUED;
    f.type = JOB_SAMPLE;
    assert_int_equal(count(&f), 4);
    f = everything;
    f.client = "bob";
    assert_int_equal(count(&f), 2);
    f.client = "bo";
    assert_int_equal(count(&f), 0);
    f = everything;
    f.label_key = "team";
    assert_int_equal(count(&f), 3);
    f.label_value = "red";
    assert_int_equal(count(&f), 2);
    f.label_value = "blue";
    assert_int_equal(count(&f), 1);
    f.label_key = "run";
    assert_int_equal(count(&f), 0);
    f.label_key = "blue"; /* a value is no key */
    f.label_value = NULL;
    assert_int_equal(count(&f), 0);
    f.label_key = "";
    f.label_value = "empty";
    assert_int_equal(count(&f), 1);
    f.label_key = "e";
    f.label_value = "";
    assert_int_equal(count(&f), 1);
    f.label_key = "team";
    f.label_value = "red";
    f.client = "ann";
    assert_int_equal(count(&f), 1);
}

static void labels_that_are_no_object_of_strings_are_refused(void **state)
{
    (void)state;
    static const struct {
        const char *labels;
        int code;
    } cases[] = {{"[]", FAIL_WRONG_TYPE},
                 {"{\"a\":1}", FAIL_WRONG_TYPE},
                 {"{\"a\":\"b\",\"c\":null}", FAIL_WRONG_TYPE},
                 {"{\"a\"", FAIL_MALFORMED_JSON},
                 {"{\"a\":\"1\",\"a\":\"2\"}", FAIL_DUPLICATE_KEY}};
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        struct job j = new_job(1);
        j.labels = text_blob(cases[i].labels);
        assert_int_equal(put(j), -cases[i].code);
        assert_int_equal(e.code, cases[i].code);
    }
    assert_int_equal(stats().bytes, 0);
}

static int put_with_key(int n, const char *client, const char *key, const char *digest, int *old)
{
    struct job existing, j = new_job(n);
    strcpy(j.client, client);
    const int rc = st->ops->insert(st, &j, key, digest, &existing, &e);
    job_fini(&j);
    *old = 0;
    if (rc == 1) {
        *old = number_of(&existing);
        job_fini(&existing);
    }
    return rc;
}

static void an_idempotent_insert_is_made_once(void **state)
{
    (void)state;
    int old;
    assert_int_equal(put_with_key(1, "ann", "k", "d1", &old), 0);
    assert_int_equal(put_with_key(2, "ann", "k", "d1", &old), 1);
    assert_int_equal(old, 1);
    assert_int_equal(put_with_key(1, "ann", "k", "d1", &old), 1);
    assert_int_equal(put_with_key(3, "ann", "k", "d2", &old), -FAIL_IDEMPOTENCY_MISMATCH);
    assert_int_equal(put_with_key(4, "ann", "K", "d1", &old), 0);
    assert_int_equal(put_with_key(5, "bob", "k", "d2", &old), 0);
    assert_int_equal(put_with_key(6, "bob", "k", "d2", &old), 1);
    assert_int_equal(old, 5);
    assert_int_equal(put_with_key(7, "annk", "", "d", &old), 0);
    assert_int_equal(put_with_key(8, "an", "nk", "d", &old), 0);
    assert_int_equal(stats().jobs[JOB_QUEUED][JOB_SAMPLE], 5);
}

static void a_replay_is_answered_whatever_the_job_has_become(void **state)
{
    (void)state;
    struct store_limits l = generous;
    int old;
    l.max_queued = l.max_queued_per_client = 1;
    use_limits(&l);
    assert_int_equal(put_with_key(1, "ann", "k", "d", &old), 0);
    assert_int_equal(put_with_key(2, "ann", "k", "d", &old), 1); /* also when the queue is full */
    assert_int_equal(cancel(1), JOB_CANCELED);
    assert_int_equal(put_with_key(3, "ann", "k", "d", &old), 1);
    assert_int_equal(old, 1);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_int_equal(put_with_key(4, "ann", "k", "other", &old), 0);
}

static void a_taken_id_is_a_conflict(void **state)
{
    (void)state;
    put_number(1);
    assert_int_equal(put(new_job(1)), -FAIL_CONFLICT);
    assert_int_equal(cancel(1), JOB_CANCELED);
    assert_int_equal(put(new_job(1)), -FAIL_CONFLICT);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_int_equal(put(new_job(1)), 0);
}

static void a_client_may_have_so_many_jobs_and_the_queue_too(void **state)
{
    (void)state;
    struct store_limits l = generous;
    uint64_t epoch = 0;
    l.max_queued = 3;
    l.max_queued_per_client = 2;
    use_limits(&l);
    put_number(1);
    assert_int_equal(claim_at(NOW, &epoch), 1); /* what runs counts */
    struct job j = new_job(2);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 100;
    assert_int_equal(put(j), 0);
    assert_int_equal(put(new_job(3)), -FAIL_QUOTA);
    assert_int_equal(e.code, FAIL_QUOTA);
    assert_true(e.has_limit);
    assert_int_equal(e.limit, 2);
    put_labelled(4, "bob", "{}");
    j = new_job(5);
    strcpy(j.client, "cyd");
    assert_int_equal(put(j), -FAIL_OVERLOADED);
    assert_true(e.has_limit);
    assert_int_equal(e.limit, 3);
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, NULL), 0);
    assert_int_equal(put(new_job(6)), 0);
    assert_int_equal(put(new_job(7)), -FAIL_QUOTA);
    assert_int_equal(cancel(2), JOB_CANCELED);
    assert_int_equal(cancel(4), JOB_CANCELED);
    assert_int_equal(put(new_job(8)), 0);
}

static struct job_artifact artifact(const char *name, const char *body)
{
    struct job_artifact a = {.content_type = "image/png", .body = text_blob(body)};
    strcpy(a.name, name);
    memset(a.sha256, 'a', 64);
    return a;
}

/* Claims job n and finishes it with two artifacts of 4 and 6 bytes and a result of 3. */
static int finish_with_artifacts(int n)
{
    struct job j = {0};
    struct job_artifact a[2] = {artifact("grid.png", "grid"),
                                artifact("samples/000.png", "sample")};
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "w", NOW, LEASE, &j, &e), 1);
    assert_int_equal(number_of(&j), n);
    j.state = JOB_SUCCEEDED;
    j.ended_ms = NOW + 10;
    j.result = text_blob("[1]");
    const int rc = st->ops->finish(st, &j, a, 2, &e);
    if (rc) { /* as jobs do it when the store is full */
        blob_put(j.result);
        j.result = NULL;
        j.state = JOB_FAILED;
        j.error_code = FAIL_STORE_FULL;
        assert_int_equal(st->ops->finish(st, &j, NULL, 0, &e), 0);
    }
    job_fini(&j);
    blob_put(a[0].body);
    blob_put(a[1].body);
    return rc;
}

static void artifacts_come_with_the_terminal_state(void **state)
{
    (void)state;
    struct job_artifact a, all[3];
    put_number(1);
    assert_int_equal(st->ops->artifact(st, id_of(1), "grid.png", &a, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->artifacts(st, id_of(1), all, 3, &e), 0);
    assert_int_equal(finish_with_artifacts(1), 0);
    assert_int_equal(st->ops->artifact(st, id_of(1), "samples/000.png", &a, &e), 0);
    assert_string_equal(a.name, "samples/000.png");
    assert_string_equal(a.content_type, "image/png");
    assert_int_equal(strlen(a.sha256), 64);
    assert_int_equal(a.size_bytes, 6);
    assert_int_equal(a.body->size, 6);
    assert_memory_equal(a.body->bytes, "sample", 6);
    assert_int_equal(st->ops->artifact(st, id_of(1), "grid.pn", &all[0], &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->artifacts(st, id_of(1), all, 1, &e), 2);
    assert_string_equal(all[0].name, "grid.png");
    assert_int_equal(st->ops->artifacts(st, id_of(1), all, 3, &e), 2);
    assert_string_equal(all[1].name, "samples/000.png");
    assert_int_equal(all[1].size_bytes, 6);
    assert_null(all[1].body);
    /* What has been handed out outlives the job. */
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_memory_equal(a.body->bytes, "sample", 6);
    blob_put(a.body);
}

static void only_ended_jobs_can_be_removed(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    struct job j = new_job(1);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 50;
    assert_int_equal(put(j), 0);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_CONFLICT);
    assert_int_equal(tick(NOW + 50), 1);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_CONFLICT);
    assert_int_equal(claim_at(NOW + 50, &epoch), 1);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_CONFLICT);
    assert_int_equal(cancel(1), JOB_CANCELING);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_CONFLICT);
    assert_int_equal(finish(1, epoch, JOB_CANCELED, NULL), 0);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_int_equal(st->ops->get(st, id_of(1), &j, &e), -FAIL_NOT_FOUND);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_NOT_FOUND);
}

static void bytes_are_counted_exactly_and_return_to_zero(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    size_t held = STORE_JOB_BYTES + 2;
    put_number(1);
    assert_int_equal(stats().bytes, held);
    put_labelled(2, "bob", "{\"a\":\"b\"}");
    assert_int_equal(stats().bytes, 2 * held + 9);
    assert_int_equal(finish_with_artifacts(1), 0);
    held = 2 * held + 9 + 3 + 4 + 6 + 2 * STORE_ARTIFACT_BYTES;
    assert_int_equal(stats().bytes, held);
    assert_int_equal(claim_at(NOW, &epoch), 2);
    assert_int_equal(save(2, epoch, "12345", 1), 0);
    assert_int_equal(stats().bytes, held + 5);
    assert_int_equal(save(2, epoch, "123", 2), 0);
    assert_int_equal(save(2, epoch + 1, "1234567", 2), -FAIL_CONFLICT);
    assert_int_equal(stats().bytes, held + 3);
    assert_int_equal(release(2, epoch), 0);
    assert_int_equal(stats().bytes, held + 3);
    assert_int_equal(cancel(2), JOB_CANCELED);
    assert_int_equal(stats().bytes, held);
    assert_int_equal(put(new_job(1)), -FAIL_CONFLICT);
    assert_int_equal(stats().bytes, held);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_int_equal(stats().bytes, STORE_JOB_BYTES + 2 + 9);
    assert_int_equal(tick(NOW + 2 * RETENTION), 0);
    const struct store_stats s = stats();
    assert_int_equal(s.bytes, 0);
    assert_int_equal(s.queued_steps, 0);
    assert_int_equal(s.oldest_queued_ms, 0);
    for (int i = 0; i < JOB_STATES; i++)
        assert_int_equal(s.jobs[i][JOB_SAMPLE], 0);
}

static void what_belongs_to_a_request_is_kept_with_it(void **state)
{
    (void)state;
    struct blob *b = NULL;
    struct job j = new_job(1);
    j.type = JOB_PREDICT;
    j.input = text_blob("images");
    assert_int_equal(put(j), 0);
    assert_int_equal(put(new_job(2)), 0);
    assert_int_equal(stats().queued_images, 100);
    assert_int_equal(stats().queued_steps, 100);
    assert_int_equal(stats().bytes, 2 * (STORE_JOB_BYTES + 2) + 6);
    assert_int_equal(st->ops->claim(st, JOB_PREDICT, "w", NOW, LEASE, &j, &e), 1);
    assert_string_equal(j.id, id_of(1));
    j.state = JOB_FAILED;
    j.ended_ms = NOW;
    assert_int_equal(st->ops->finish(st, &j, NULL, 0, &e), 0);
    job_fini(&j);
    assert_int_equal(stats().queued_images, 0);
    assert_int_equal(st->ops->input(st, id_of(1), &b, &e), 0); /* it may be tried again */
    assert_int_equal(b->size, 6);
    assert_memory_equal(b->bytes, "images", 6);
    blob_put(b);
    assert_int_equal(st->ops->input(st, id_of(2), &b, &e), 0);
    assert_null(b);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    assert_int_equal(st->ops->input(st, id_of(1), &b, &e), -FAIL_NOT_FOUND);
    assert_int_equal(stats().bytes, STORE_JOB_BYTES + 2);
}

static void a_full_store_refuses_what_does_not_fit(void **state)
{
    (void)state;
    struct store_limits l = generous;
    uint64_t epoch = 0;
    l.max_bytes = 2 * (STORE_JOB_BYTES + 2) + 10;
    use_limits(&l);
    put_number(1);
    put_number(2);
    assert_int_equal(put(new_job(3)), -FAIL_STORE_FULL);
    assert_true(e.has_limit);
    assert_int_equal(e.limit, l.max_bytes);
    assert_int_equal(finish_with_artifacts(1), -FAIL_STORE_FULL);
    assert_int_equal(state_of(1), JOB_FAILED);
    assert_int_equal(claim_at(NOW, &epoch), 2);
    assert_int_equal(save(2, epoch, "1234567890", 1), 0);
    assert_int_equal(save(2, epoch, "abcdefghij", 1), 0); /* in place of the other */
    assert_int_equal(save(2, epoch, "12345678901", 2), -FAIL_STORE_FULL);
    assert_int_equal(e.limit, l.max_bytes);
    struct blob *b = NULL;
    assert_int_equal(st->ops->load_checkpoint(st, id_of(2), &b, &e), 0);
    assert_int_equal(b->size, 10);
    blob_put(b);
    /* The checkpoint makes room for the result. */
    assert_int_equal(finish(2, epoch, JOB_SUCCEEDED, "[2345678901]"), -FAIL_STORE_FULL);
    assert_int_equal(state_of(2), JOB_RUNNING);
    assert_int_equal(stats().bytes, l.max_bytes);
    assert_int_equal(finish(2, epoch, JOB_SUCCEEDED, "[23456789]"), 0);
    assert_int_equal(stats().bytes, l.max_bytes);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), 0);
    put_number(3);
}

static void retention_removes_the_oldest_and_says_so(void **state)
{
    (void)state;
    struct job j = {0};
    struct job_artifact a;
    struct blob *b = NULL;
    int old;
    assert_int_equal(put_with_key(1, "ann", "k", "d", &old), 0);
    assert_int_equal(finish_with_artifacts(1), 0); /* ended at NOW + 10 */
    put_number(2);
    assert_int_equal(cancel(2), JOB_CANCELED); /* at NOW + 3000 */
    put_number(3);
    assert_int_equal(tick(NOW + 9 + RETENTION), 0);
    assert_int_equal(state_of(1), JOB_SUCCEEDED);
    assert_int_equal(tick(NOW + 10 + RETENTION), 0);
    assert_int_equal(st->ops->get(st, id_of(1), &j, &e), -FAIL_EXPIRED);
    assert_non_null(strstr(e.text, "succeeded"));
    assert_non_null(strstr(e.text, id_of(1)));
    assert_int_equal(st->ops->artifact(st, id_of(1), "grid.png", &a, &e), -FAIL_EXPIRED);
    assert_int_equal(st->ops->artifacts(st, id_of(1), &a, 1, &e), -FAIL_EXPIRED);
    assert_int_equal(st->ops->load_checkpoint(st, id_of(1), &b, &e), -FAIL_EXPIRED);
    assert_int_equal(st->ops->cancel(st, id_of(1), NOW, &j, &e), -FAIL_EXPIRED);
    assert_int_equal(st->ops->remove(st, id_of(1), &e), -FAIL_EXPIRED);
    assert_int_equal(put(new_job(1)), -FAIL_EXPIRED);
    assert_int_equal(put_with_key(4, "ann", "k", "other", &old), 0); /* its key is free */
    assert_int_equal(state_of(2), JOB_CANCELED);
    assert_int_equal(tick(NOW + 3000 + RETENTION), 0);
    assert_int_equal(st->ops->get(st, id_of(2), &j, &e), -FAIL_EXPIRED);
    assert_int_equal(state_of(3), JOB_QUEUED);
}

static void retention_keeps_so_many_jobs_and_bytes(void **state)
{
    (void)state;
    struct store_limits l = generous;
    struct job j = {0};
    uint64_t epoch = 0;
    l.keep_jobs = 3;
    l.keep_bytes = 3 * (STORE_JOB_BYTES + 2) + 4;
    use_limits(&l);
    for (int n = 1; n <= 5; n++)
        put_number(n);
    /* They end in the order 5, 4, 3, 2 while the clock goes backwards. */
    for (int n = 5; n >= 2; n--) {
        assert_int_equal(st->ops->cancel(st, id_of(n), NOW + 1000 * n, &j, &e), 0);
        job_fini(&j);
    }
    assert_int_equal(tick(NOW), 0);
    assert_int_equal(st->ops->get(st, id_of(5), &j, &e), -FAIL_EXPIRED);
    for (int n = 2; n <= 4; n++)
        assert_int_equal(state_of(n), JOB_CANCELED);
    assert_int_equal(claim_at(NOW, &epoch), 1); /* what has not ended does not count */
    assert_int_equal(tick(NOW), 0);
    assert_int_equal(state_of(4), JOB_CANCELED);
    assert_int_equal(st->ops->remove(st, id_of(2), &e), 0);
    /* With the result there are three, but too many bytes. */
    assert_int_equal(finish(1, epoch, JOB_SUCCEEDED, "[2,4]"), 0);
    assert_int_equal(tick(NOW), 0);
    assert_int_equal(st->ops->get(st, id_of(4), &j, &e), -FAIL_EXPIRED);
    assert_int_equal(state_of(3), JOB_CANCELED);
    assert_int_equal(state_of(1), JOB_SUCCEEDED);
}

static void so_many_removed_jobs_are_remembered(void **state)
{
    (void)state;
    enum { FIRST = 10 };
    struct job j = {0};
    for (int n = 1; n <= FIRST; n++) {
        put_number(n);
        assert_int_equal(cancel(n), JOB_CANCELED);
    }
    assert_int_equal(tick(NOW + 3000 + RETENTION), 0);
    for (int n = FIRST + 1; n <= STORE_REMOVED + FIRST - 1; n++) {
        put_number(n);
        assert_int_equal(cancel(n), JOB_CANCELED);
    }
    assert_int_equal(tick(NOW + 3000 + RETENTION), 0);
    int forgotten = 0;
    for (int n = 1; n <= STORE_REMOVED + FIRST - 1; n++) {
        const int rc = st->ops->get(st, id_of(n), &j, &e);
        assert_int_equal(rc, n < FIRST ? -FAIL_NOT_FOUND : -FAIL_EXPIRED);
        forgotten += rc == -FAIL_NOT_FOUND;
    }
    assert_int_equal(forgotten, FIRST - 1);
}

static void stats_follow_every_transition(void **state)
{
    (void)state;
    uint64_t epoch = 0;
    struct job j = new_job(1);
    j.priority = JOB_HIGH;
    assert_int_equal(put(j), 0);
    put_number(2);
    j = new_job(3);
    j.state = JOB_SCHEDULED;
    j.scheduled_ms = NOW + 100;
    assert_int_equal(put(j), 0);
    struct store_stats s = stats();
    assert_int_equal(s.jobs[JOB_QUEUED][JOB_SAMPLE], 2);
    assert_int_equal(s.jobs[JOB_SCHEDULED][JOB_SAMPLE], 1);
    assert_int_equal(s.queued[JOB_HIGH], 1);
    assert_int_equal(s.queued[JOB_NORMAL], 1);
    assert_int_equal(s.oldest_queued_ms, NOW + 1);
    assert_int_equal(s.queued_steps, 200);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(renew(1, epoch, NOW + 50, 30), 0);
    s = stats();
    assert_int_equal(s.jobs[JOB_RUNNING][JOB_SAMPLE], 1);
    assert_int_equal(s.queued[JOB_HIGH], 0);
    assert_int_equal(s.oldest_queued_ms, NOW + 2);
    assert_int_equal(s.queued_steps, 170);
    assert_int_equal(tick(NOW + 100), 2); /* the lease of 1 and the schedule of 3 */
    s = stats();
    assert_int_equal(s.queued[JOB_HIGH], 1);
    assert_int_equal(s.queued[JOB_NORMAL], 2);
    assert_int_equal(s.queued_steps, 300);
    assert_int_equal(cancel(2), JOB_CANCELED);
    assert_int_equal(stats().oldest_queued_ms, NOW + 100);
    assert_int_equal(claim_at(NOW, &epoch), 1);
    assert_int_equal(cancel(1), JOB_CANCELING);
    s = stats();
    assert_int_equal(s.jobs[JOB_CANCELING][JOB_SAMPLE], 1);
    assert_int_equal(s.jobs[JOB_CANCELED][JOB_SAMPLE], 1);
    assert_int_equal(s.jobs[JOB_RUNNING][JOB_SAMPLE], 0);
    assert_int_equal(s.queued_steps, 100);
}
