/* SPDX-License-Identifier: Apache-2.0 */
/* The SQLite store on a disk that fails: full, unwritable, unreadable, a sync that did not succeed.
 * A script of operations is run with the n-th call failing, for every n; each operation is asked for
 * until the store says yes, and everything it said yes to must be there at the end. */
#include "base/timing.h"
#include "server_store_sqlite_vfs.h"
#include "sqlite_kind.h"

enum { PATIENCE_SECONDS = 120, MOST_CALLS = 4000 };

static bool is_outage(int rc)
{
    return rc == -FAIL_STORE_FULL || rc == -FAIL_STORE_UNAVAILABLE || rc == -FAIL_NO_MEMORY;
}

/* Repeats an operation until it is something else than an outage. *failed says whether it once was
 * none: then nobody knows whether it came about. */
static int insist(int (*operation)(void), bool *failed)
{
    const int64_t until = timing_ns() + PATIENCE_SECONDS * 1000000000LL;
    int rc;
    *failed = false;
    while (is_outage(rc = operation())) {
        *failed = true;
        assert_true(timing_ns() < until);
        usleep(2000);
    }
    return rc;
}

static struct job claimed;
static int number, other;

static int do_insert(void)
{
    return put(new_job(number));
}

static int do_claim(void)
{
    /* A claim that was made although it was said to have failed: its lease lapses. */
    const int64_t later = NOW + (int64_t)++other * 10 * LEASE;
    st->ops->tick(st, later - 1, note_change, &ticked);
    const int rc = st->ops->claim(st, JOB_SAMPLE, "worker", later, LEASE, &claimed, &e);
    return rc == 0 ? -FAIL_STORE_UNAVAILABLE : rc; /* it is not back in the queue yet */
}

static int do_save(void)
{
    struct blob *b = blob_new(30000);
    assert_non_null(b);
    memset(b->bytes, 'c', b->size);
    const int rc = st->ops->save_checkpoint(st, claimed.id, claimed.epoch, b, 42, &e);
    blob_put(b);
    return rc;
}

static int do_finish(void)
{
    struct job_artifact a = {.name = "grid.png", .content_type = "image/png"};
    struct job end = {.epoch = claimed.epoch, .state = JOB_SUCCEEDED, .ended_ms = NOW};
    a.body = blob_new(50000);
    assert_non_null(a.body);
    memset(a.body->bytes, 'a', a.body->size);
    end.result = text_blob("[1,2]");
    strcpy(end.id, claimed.id);
    const int rc = st->ops->finish(st, &end, &a, 1, &e);
    blob_put(end.result);
    blob_put(a.body);
    return rc;
}

static int do_cancel(void)
{
    struct job now;
    const int rc = st->ops->cancel(st, id_of(number), NOW, &now, &e);
    if (rc == 0)
        job_fini(&now);
    return rc;
}

static int do_remove(void)
{
    return st->ops->remove(st, id_of(number), &e);
}

static int do_look(void)
{
    struct job now;
    const int rc = st->ops->get(st, id_of(number), &now, &e);
    if (rc == 0)
        job_fini(&now);
    return rc;
}

static int do_open(void)
{
    close_store();
    return kind->open(&st, &limits_in_use, &e);
}

/* What all operations of a script come to. */
static void check_end(void)
{
    struct job_artifact a;
    struct job j = get(1);
    assert_int_equal(j.state, JOB_SUCCEEDED);
    assert_memory_equal(j.result->bytes, "[1,2]", 5);
    job_fini(&j);
    assert_int_equal(st->ops->artifact(st, id_of(1), "grid.png", &a, &e), 0);
    assert_int_equal(a.body->size, 50000);
    for (size_t i = 0; i < a.body->size; i++)
        assert_int_equal(a.body->bytes[i], 'a');
    blob_put(a.body);
    assert_int_equal(st->ops->get(st, id_of(2), &j, &e), -FAIL_NOT_FOUND);
    assert_int_equal(state_of(3), JOB_CANCELED);
    assert_int_equal(state_of(4), JOB_QUEUED);
    assert_int_equal(stats().jobs[JOB_QUEUED][JOB_SAMPLE], 1);
    assert_int_equal(st->ops->health(st, &e), 0);
    assert_int_equal(st->ops->lost(st, NULL, 0), 0);
}

static void run_script(void)
{
    bool failed = false;
    other = 0;
    number = 1;
    int rc = insist(do_insert, &failed);
    assert_true(rc == 0 || (failed && rc == -FAIL_CONFLICT));
    assert_int_equal(insist(do_claim, &failed), 1);
    assert_int_equal(number_of(&claimed), 1);
    assert_int_equal(insist(do_save, &failed), 0);
    rc = insist(do_finish, &failed);
    assert_true(rc == 0 || (failed && rc == -FAIL_CONFLICT));
    job_fini(&claimed);
    for (number = 2; number <= 4; number++) {
        rc = insist(do_insert, &failed);
        assert_true(rc == 0 || (failed && rc == -FAIL_CONFLICT));
    }
    for (number = 2; number <= 3; number++)
        assert_int_equal(insist(do_cancel, &failed), 0);
    number = 2;
    rc = insist(do_remove, &failed);
    assert_true(rc == 0 || (failed && rc == -FAIL_NOT_FOUND));
    number = 4;
    assert_int_equal(insist(do_open, &failed), 0);
    assert_int_equal(insist(do_look, &failed), 0);
}

/* Waits until the store is well. */
static void await_health(void)
{
    const int64_t until = timing_ns() + PATIENCE_SECONDS * 1000000000LL;
    while (st->ops->health(st, &e) != 0) {
        assert_true(timing_ns() < until);
        usleep(2000);
    }
}

static void walk(enum fault fault)
{
    long n = 0, injected = 1;
    for (; injected && n < MOST_CALLS; n++) {
        sqlite_empty();
        faulty_set(fault, n, false);
        assert_int_equal(kind->open(&st, &limits_in_use, &e), 0);
        run_script();
        injected = atomic_load(&faulty.injected);
        faulty_set(FAULT_NONE, 0, false);
        await_health();
        check_end();
        reopen();
        check_end();
        close_store();
    }
    print_message("%ld calls, each failed once\n", n - 1);
    assert_in_range(n, 2, MOST_CALLS - 1);
}

static void a_write_without_room_loses_nothing(void **state)
{
    (void)state;
    walk(FAULT_FULL);
}

static void a_failed_write_loses_nothing(void **state)
{
    (void)state;
    walk(FAULT_WRITE);
}

static void a_failed_sync_loses_nothing(void **state)
{
    (void)state;
    walk(FAULT_SYNC);
}

static void a_failed_open_loses_nothing(void **state)
{
    (void)state;
    walk(FAULT_OPEN);
}

static void a_failed_read_loses_nothing(void **state)
{
    (void)state;
    walk(FAULT_READ);
}

/* From some call on everything fails: the store says so and keeps what it has; then all is well. */
static void outlast(enum fault fault, long begin, enum fail_code expected)
{
    struct job j = {0};
    bool failed;
    sqlite_empty();
    faulty_set(FAULT_NONE, 0, false);
    assert_int_equal(kind->open(&st, &limits_in_use, &e), 0);
    put_number(1);
    put_number(2);
    assert_int_equal(cancel(2), JOB_CANCELED);
    faulty_set(fault, begin, true);
    int rc = 0, n = 3;
    for (; rc == 0 && n < 200; n++)
        rc = put(new_job(n));
    const int refused = --n;
    assert_int_equal(rc, -(int)expected);
    for (int i = 0; i < 3; i++) {
        assert_true(is_outage(put(new_job(refused + 1 + i))));
        assert_true(is_outage(st->ops->health(st, &e)));
        const int claim = st->ops->claim(st, JOB_SAMPLE, "w", NOW, LEASE, &j, &e);
        assert_true(is_outage(claim));
        assert_true(is_outage(st->ops->remove(st, id_of(2), &e)));
    }
    faulty_set(FAULT_NONE, 0, false);
    await_health();
    number = 1;
    assert_int_equal(insist(do_look, &failed), 0);
    for (int round = 0; round < 2; round++) {
        assert_int_equal(state_of(2), JOB_CANCELED);
        for (int i = 1; i < refused; i++)
            if (i != 2)
                assert_int_equal(state_of(i), JOB_QUEUED);
        reopen();
    }
    assert_int_equal(put(new_job(1000)), 0);
    close_store();
}

static void a_full_disk_is_waited_for(void **state)
{
    (void)state;
    outlast(FAULT_FULL, 0, FAIL_STORE_FULL);
    outlast(FAULT_FULL, 20, FAIL_STORE_FULL);
}

static void a_broken_disk_is_waited_for(void **state)
{
    (void)state;
    outlast(FAULT_WRITE, 0, FAIL_STORE_UNAVAILABLE);
    outlast(FAULT_WRITE, 17, FAIL_STORE_UNAVAILABLE);
    outlast(FAULT_SYNC, 0, FAIL_STORE_UNAVAILABLE);
    outlast(FAULT_SYNC, 5, FAIL_STORE_UNAVAILABLE);
}

static void a_store_can_begin_on_a_broken_disk(void **state)
{
    (void)state;
    struct job j = {0};
    bool failed;
    reopen();
    put_number(1);
    close_store();
    static const enum fault faults[] = {FAULT_OPEN, FAULT_READ, FAULT_WRITE};
    for (int i = 0; i < 3; i++) {
        faulty_set(faults[i], 0, true);
        assert_int_equal(kind->open(&st, &limits_in_use, &e), 0);
        if (faults[i] != FAULT_WRITE) { /* without writing it can be read */
            assert_int_equal(st->ops->health(st, &e), -FAIL_STORE_UNAVAILABLE);
            assert_int_equal(st->ops->get(st, id_of(1), &j, &e), -FAIL_STORE_UNAVAILABLE);
        }
        assert_true(is_outage(put(new_job(2))));
        faulty_set(FAULT_NONE, 0, false);
        await_health();
        number = 1;
        assert_int_equal(insist(do_look, &failed), 0);
        close_store();
    }
}

static void a_directory_has_one_owner(void **state)
{
    (void)state;
    struct store *second = NULL;
    char file[512];
    reopen();
    put_number(1);
    assert_int_equal(sqlite_open(&second, &generous, &e), -FAIL_CONFLICT);
    assert_non_null(strstr(e.text, sqlite_directory));
    snprintf(file, sizeof file, "process %ld", (long)getpid());
    assert_non_null(strstr(e.text, file));
    assert_null(second);
    assert_int_equal(state_of(1), JOB_QUEUED);
    close_store();
    assert_int_equal(store_sqlite_open(&second, "/proc/none/such", &generous, &e),
                     -FAIL_BAD_SETTING);
    sqlite_path("file", file);
    FILE *f = fopen(file, "w");
    assert_non_null(f);
    fclose(f);
    assert_int_equal(store_sqlite_open(&second, file, &generous, &e), -FAIL_BAD_SETTING);
    assert_int_equal(store_sqlite_open(&second, "", &generous, &e), -FAIL_BAD_SETTING);
}

static void change_file(const char *path, const char *statements)
{
    sqlite3 *db = NULL;
    assert_int_equal(sqlite3_open(path, &db), SQLITE_OK);
    assert_int_equal(sqlite3_exec(db, statements, NULL, NULL, NULL), SQLITE_OK);
    assert_int_equal(sqlite3_close(db), SQLITE_OK);
}

static void a_file_of_a_newer_version_is_refused(void **state)
{
    (void)state;
    char path[512];
    reopen();
    put_number(1);
    close_store();
    sqlite_path("jobs.sqlite", path);
    change_file(path, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA user_version = 99");
    assert_int_equal(kind->open(&st, &limits_in_use, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "newer"));
    change_file(path, "PRAGMA locking_mode = EXCLUSIVE; PRAGMA user_version = 1");
    reopen();
    assert_int_equal(state_of(1), JOB_QUEUED);
}

static int prepare(void **state)
{
    (void)state;
    close_store();
    faulty_set(FAULT_NONE, 0, false);
    sqlite_empty();
    kind = &sqlite_kind;
    limits_in_use = generous;
    return 0;
}

static int clean_up(void **state)
{
    (void)state;
    faulty_set(FAULT_NONE, 0, false);
    close_store();
    return 0;
}

int main(void)
{
#define FAULT_TEST(f) cmocka_unit_test_setup_teardown(f, prepare, clean_up)
    const struct CMUnitTest tests[] = {
        FAULT_TEST(a_directory_has_one_owner),
        FAULT_TEST(a_file_of_a_newer_version_is_refused),
        FAULT_TEST(a_full_disk_is_waited_for),
        FAULT_TEST(a_broken_disk_is_waited_for),
        FAULT_TEST(a_store_can_begin_on_a_broken_disk),
        FAULT_TEST(a_write_without_room_loses_nothing),
        FAULT_TEST(a_failed_write_loses_nothing),
        FAULT_TEST(a_failed_sync_loses_nothing),
        FAULT_TEST(a_failed_open_loses_nothing),
        FAULT_TEST(a_failed_read_loses_nothing),
    };
#undef FAULT_TEST
    sqlite_begin();
    faulty_install();
    return sqlite_end(cmocka_run_group_tests_name("store_sqlite_faults", tests, NULL, NULL));
}
