/* SPDX-License-Identifier: Apache-2.0 */
/* The SQLite store and damage: a page of its file after the other is overwritten. What it then hands
 * out is what was put in, or it says that the job was lost; the damaged file is kept. */
#include "base/timing.h"
#include "server/store_sqlite_internal.h"
#include "sqlite_kind.h"

#include <fcntl.h>
#include <signal.h>
#include <sys/stat.h>
#include <sys/wait.h>

enum { JOBS = 40, REMOVED = 3, PATIENCE_SECONDS = 60 };

/* Bytes that say whose they are. */
static struct blob *body(int n, int part)
{
    struct blob *b = blob_new(200 + (size_t)(n * 977 % 9000) * (size_t)(1 + part));
    assert_non_null(b);
    for (size_t i = 0; i < b->size; i++)
        b->bytes[i] = (unsigned char)((size_t)n * 31 + (size_t)part * 7 + i / 50 + i % 3);
    b->bytes[0] = (unsigned char)n;
    b->bytes[1] = (unsigned char)part;
    return b;
}

static bool is_body(const struct blob *b, int n, int part)
{
    struct blob *expected = body(n, part);
    const bool same =
        b && b->size == expected->size && memcmp(b->bytes, expected->bytes, b->size) == 0;
    blob_put(expected);
    return same;
}

static void put_with_body(int n)
{
    struct job j = new_job(n);
    blob_put(j.request);
    j.request = body(n, 0);
    j.labels = text_blob("{\"a\":\"b\"}");
    assert_int_equal(st->ops->insert(st, &j, id_of(n), "digest", NULL, &e), 0);
    job_fini(&j);
}

static void finish_with_body(int n)
{
    struct job j;
    struct job_artifact a = {.name = "grid.png", .content_type = "image/png"};
    assert_int_equal(st->ops->claim(st, JOB_SAMPLE, "w", NOW, LEASE, &j, &e), 1);
    assert_int_equal(number_of(&j), n);
    assert_int_equal(save(n, j.epoch, "x", 1), 0);
    a.body = body(n, 1);
    j.result = body(n, 2);
    j.state = JOB_SUCCEEDED;
    j.ended_ms = NOW + n;
    assert_int_equal(st->ops->finish(st, &j, &a, 1, &e), 0);
    blob_put(a.body);
    job_fini(&j);
}

/* Jobs 1..3 are removed by retention, a third has ended, one has a checkpoint, the rest waits. */
static void fill(void)
{
    uint64_t epoch = 0;
    for (int n = 1; n <= JOBS; n++)
        put_with_body(n);
    for (int n = 1; n <= JOBS / 3; n++)
        finish_with_body(n);
    assert_int_equal(tick(NOW + REMOVED + RETENTION), 0);
    assert_int_equal(claim_at(NOW, &epoch), JOBS / 3 + 1);
    struct blob *b = body(JOBS / 3 + 1, 3);
    assert_int_equal(st->ops->save_checkpoint(st, id_of(JOBS / 3 + 1), epoch, b, 50, &e), 0);
    blob_put(b);
    assert_int_equal(release(JOBS / 3 + 1, epoch), 0);
}

/* What the store has of job n; 1 = it says that it was lost. */
static int check_job(int n)
{
    struct job j;
    struct job_artifact a;
    struct blob *b = NULL;
    const int rc = st->ops->get(st, id_of(n), &j, &e);
    if (rc == -FAIL_EXPIRED) {
        assert_true(n <= REMOVED || strstr(e.text, "lost"));
        return n > REMOVED;
    }
    if (n <= REMOVED) { /* the row that remembered it was damaged */
        assert_int_equal(rc, -FAIL_NOT_FOUND);
        return 0;
    }
    assert_int_equal(rc, 0);
    assert_true(is_body(j.request, n, 0));
    assert_int_equal(j.labels->size, 9);
    if (n <= JOBS / 3) {
        assert_int_equal(j.state, JOB_SUCCEEDED);
        assert_true(is_body(j.result, n, 2));
        assert_int_equal(st->ops->artifact(st, id_of(n), "grid.png", &a, &e), 0);
        assert_true(is_body(a.body, n, 1));
        blob_put(a.body);
    } else {
        assert_int_equal(j.state, JOB_QUEUED);
    }
    if (n == JOBS / 3 + 1) {
        assert_int_equal(st->ops->load_checkpoint(st, id_of(n), &b, &e), 0);
        assert_true(b ? is_body(b, n, 3) && j.steps_done == 50 : j.steps_done == 0);
        blob_put(b);
    }
    job_fini(&j);
    return 0;
}

/* Jobs that are lost, all of which the store lists; and at most one id that no job had, where the
 * damage was in the id. */
static int check_all(void)
{
    char ids[JOBS + 1][JOB_ID_SIZE];
    int lost = 0;
    const int listed = st->ops->lost(st, ids, JOBS + 1);
    for (int n = 1; n <= JOBS; n++) {
        const int is_lost = check_job(n);
        int found = 0;
        for (int i = 0; i < listed && i <= JOBS; i++)
            found += strcmp(ids[i], id_of(n)) == 0;
        assert_int_equal(found, is_lost);
        lost += is_lost;
    }
    assert_in_range(listed, lost, lost + 1);
    return lost;
}

static void read_file(const char *name, unsigned char **bytes, size_t *size)
{
    char path[512];
    struct stat s;
    sqlite_path(name, path);
    const int fd = open(path, O_RDONLY);
    assert_true(fd >= 0);
    assert_int_equal(fstat(fd, &s), 0);
    *size = (size_t)s.st_size;
    *bytes = malloc(*size + 1);
    assert_non_null(*bytes);
    assert_int_equal(read(fd, *bytes, *size), *size);
    close(fd);
}

static void write_file(const char *name, const unsigned char *bytes, size_t size)
{
    char path[512];
    sqlite_path(name, path);
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    close(fd);
}

static bool there_is(const char *name)
{
    char path[512];
    sqlite_path(name, path);
    return access(path, F_OK) == 0;
}

static void damage(unsigned char *page, int how, unsigned *random)
{
    for (size_t i = 0; i < DATABASE_PAGE; i++) {
        *random = *random * 1664525 + 1013904223;
        if (how == 0)
            page[i] = (unsigned char)(*random >> 24);
        else if (how == 1)
            page[i] = 0;
    }
    if (how == 2) /* one bit */
        page[(*random >> 8) % DATABASE_PAGE] ^= (unsigned char)(1u << (*random >> 28) % 8);
}

/* Reads every blob, whatever comes of it. */
static void read_all(void)
{
    struct job_artifact a;
    struct job j;
    struct blob *b = NULL;
    for (int n = 1; n <= JOBS; n++) {
        if (st->ops->get(st, id_of(n), &j, &e) == 0)
            job_fini(&j);
        if (st->ops->artifact(st, id_of(n), "grid.png", &a, &e) == 0)
            blob_put(a.body);
    }
    if (st->ops->load_checkpoint(st, id_of(JOBS / 3 + 1), &b, &e) == 0)
        blob_put(b);
}

static void await_health(void)
{
    const int64_t until = timing_ns() + PATIENCE_SECONDS * 1000000000LL;
    while (st->ops->health(st, &e) != 0) {
        assert_true(timing_ns() < until);
        usleep(1000);
    }
}

static void a_damaged_page_costs_only_what_was_on_it(void **state)
{
    (void)state;
    static const char *const ways[] = {"noise", "zeros", "one bit"};
    unsigned char *whole, *broken;
    size_t size;
    unsigned random = 1;
    use_limits(&generous);
    fill();
    close_store();
    read_file("jobs.sqlite", &whole, &size);
    broken = malloc(size);
    assert_non_null(broken);
    const size_t pages = size / DATABASE_PAGE;
    for (int how = 0; how < 3; how++) {
        int most = 0, sum = 0, salvaged = 0;
        for (size_t page = 0; page < pages; page++) {
            memcpy(broken, whole, size);
            damage(broken + page * DATABASE_PAGE, how, &random);
            sqlite_empty();
            write_file("jobs.sqlite", broken, size);
            reopen();
            /* A bit in a body is found when it is read, or looked through. */
            read_all();
            await_health();
            const int lost = check_all();
            if (there_is("jobs.damaged-1.sqlite"))
                salvaged++;
            else
                assert_int_equal(lost, 0);
            assert_int_equal(put(new_job(1000)), 0);
            reopen();
            assert_int_equal(check_all(), lost);
            assert_int_equal(state_of(1000), JOB_QUEUED);
            most = lost > most ? lost : most;
            sum += lost;
        }
        close_store();
        print_message("%zu pages, %s: %d salvages, %d jobs lost, %d of one page at most\n", pages,
                      ways[how], salvaged, sum, most);
        assert_true(salvaged > 0);
        /* A page has room for so many rows of jobs, each of which is lost without its row. */
        assert_in_range(most, 1, 8);
    }
    free(whole);
    free(broken);
}

/* Overwrites a part of the artifact of job n, where only its sum can tell. */
static void damage_artifact(int n)
{
    char path[512];
    unsigned char *bytes;
    size_t size, at = 0;
    read_file("jobs.sqlite", &bytes, &size);
    struct blob *b = body(n, 1);
    while (at + 64 < size && memcmp(bytes + at, b->bytes, 64) != 0)
        at++;
    assert_true(at + 64 < size);
    free(bytes);
    blob_put(b);
    sqlite_path("jobs.sqlite", path);
    const int fd = open(path, O_WRONLY);
    assert_int_equal(pwrite(fd, "damage", 6, (off_t)at + 20), 6);
    close(fd);
}

static void assert_artifact_lost(int n)
{
    struct job_artifact a;
    assert_int_equal(check_all(), 1);
    assert_int_equal(st->ops->artifact(st, id_of(n), "grid.png", &a, &e), -FAIL_EXPIRED);
    assert_non_null(strstr(e.text, "lost"));
    assert_true(there_is("jobs.damaged-1.sqlite"));
    assert_int_equal(put(new_job(1000)), 0);
}

static void damage_that_nobody_reads_is_found_and_mended(void **state)
{
    (void)state;
    char id[1][JOB_ID_SIZE];
    use_limits(&generous);
    fill();
    close_store();
    damage_artifact(10);
    reopen();
    const int64_t until = timing_ns() + PATIENCE_SECONDS * 1000000000LL;
    while (st->ops->lost(st, id, 1) == 0) {
        assert_true(timing_ns() < until);
        usleep(1000);
    }
    await_health();
    assert_string_equal(id[0], id_of(10));
    assert_artifact_lost(10);
}

static void damage_that_a_read_finds_is_mended_while_it_runs(void **state)
{
    (void)state;
    struct job_artifact a;
    use_limits(&generous);
    fill();
    struct job large = new_job(2000); /* more than SQLite keeps in memory */
    blob_put(large.request);
    large.request = blob_new(8 << 20);
    assert_non_null(large.request);
    memset(large.request->bytes, ' ', large.request->size);
    assert_int_equal(put(large), 0);
    reopen();
    usleep(500000); /* the old jobs are looked through within the first 20 ms, and once */
    damage_artifact(10);
    assert_int_equal(st->ops->artifact(st, id_of(10), "grid.png", &a, &e), -FAIL_STORE_UNAVAILABLE);
    await_health();
    assert_artifact_lost(10);
}

/* The log of a killed process has what its file has not: it counts although the file is damaged. */
static void the_write_ahead_log_is_salvaged_too(void **state)
{
    (void)state;
    unsigned char *bytes;
    size_t size;
    int status;
    use_limits(&generous);
    close_store();
    const pid_t child = fork();
    assert_true(child >= 0);
    if (child == 0) {
        if (kind->open(&st, &limits_in_use, &e) != 0)
            _exit(1);
        fill();
        raise(SIGKILL);
    }
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    assert_true(there_is("jobs.sqlite-wal"));
    read_file("jobs.sqlite", &bytes, &size);
    memset(bytes, 0xa5, size); /* all of it, which is not much yet */
    write_file("jobs.sqlite", bytes, size);
    free(bytes);
    reopen();
    assert_int_equal(check_all(), 0);
    close_store();
}

static void a_salvage_that_was_interrupted_is_ended(void **state)
{
    (void)state;
    unsigned char *whole;
    size_t size;
    use_limits(&generous);
    fill();
    close_store();
    read_file("jobs.sqlite", &whole, &size);
    for (int step = 0; step < 3; step++) {
        sqlite_empty();
        write_file("jobs.building.sqlite", (const unsigned char *)"half", 4);
        write_file("jobs.recovered.sqlite", whole, size);
        if (step < 2)
            write_file("jobs.sqlite", (const unsigned char *)"damaged", 7);
        if (step < 1)
            write_file("jobs.sqlite-wal", (const unsigned char *)"log", 3);
        reopen();
        assert_int_equal(check_all(), 0);
        assert_false(there_is("jobs.building.sqlite"));
        assert_false(there_is("jobs.recovered.sqlite"));
        assert_int_equal(there_is("jobs.damaged-1.sqlite"), step < 2);
        assert_int_equal(there_is("jobs.damaged-1.sqlite-wal"), step < 1);
        close_store();
    }
    free(whole);
}

static int clean_up(void **state)
{
    (void)state;
    close_store();
    return 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(a_damaged_page_costs_only_what_was_on_it, clean_up),
        cmocka_unit_test_teardown(damage_that_nobody_reads_is_found_and_mended, clean_up),
        cmocka_unit_test_teardown(damage_that_a_read_finds_is_mended_while_it_runs, clean_up),
        cmocka_unit_test_teardown(the_write_ahead_log_is_salvaged_too, clean_up),
        cmocka_unit_test_teardown(a_salvage_that_was_interrupted_is_ended, clean_up),
    };
    kind = &sqlite_kind;
    sqlite_begin();
    return sqlite_end(cmocka_run_group_tests_name("store_sqlite_damage", tests, NULL, NULL));
}
