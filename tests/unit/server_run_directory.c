/* SPDX-License-Identifier: Apache-2.0 */
#include "server/run_directory.h"
#include "unit/server_help.h"

#include <sys/wait.h>

static struct err e;

static int set_up(void **state)
{
    (void)state;
    make_folder();
    return 0;
}

static int tear_down(void **state)
{
    (void)state;
    drop_folder();
    return 0;
}

static void a_run_has_one_who_trains(void **state)
{
    (void)state;
    int one = -1, two = -1;
    assert_int_equal(run_directory_lock(folder, &one, &e), 0);
    assert_int_equal(run_directory_lock(folder, &two, &e), -FAIL_CONFLICT);
    assert_int_equal(two, -1);
    close(one);
    assert_int_equal(run_directory_lock(folder, &one, &e), 0);
    close(one);
    assert_int_equal(run_directory_lock("/proc/nothing", &two, &e), -FAIL_IO);
}

static void the_lock_goes_with_the_process(void **state)
{
    (void)state;
    int fd;
    const pid_t child = fork();
    if (child == 0) {
        if (run_directory_lock(folder, &fd, &e) == 0)
            abort();
        _exit(1);
    }
    int status;
    assert_int_equal(waitpid(child, &status, 0), child);
    assert_true(WIFSIGNALED(status));
    assert_int_equal(run_directory_lock(folder, &fd, &e), 0);
    close(fd);
}

static void the_newest_checkpoint_counts(void **state)
{
    (void)state;
    assert_int_equal(run_directory_step(folder), -1);
    put_text("checkpoint-0.safetensors", "");
    assert_int_equal(run_directory_step(folder), 0);
    put_text("checkpoint-120.safetensors", "");
    put_text("checkpoint-90.safetensors", "");
    put_text("checkpoint-500.safetensors.tmp", "");
    put_text("checkpoint-x.safetensors", "");
    put_text("model.safetensors", "");
    assert_int_equal(run_directory_step(folder), 120);
    assert_int_equal(run_directory_step("/tmp/jemd-unit-is-not-there"), -1);
}

static void the_request_comes_back(void **state)
{
    (void)state;
    json_t *root;
    assert_int_equal(run_directory_read(folder, &root, &e), -FAIL_NOT_FOUND);
    for (int i = 1; i <= 2; i++) {
        struct blob *text = json_blob(json_pack("{s:i}", "a", i));
        assert_int_equal(run_directory_write(folder, text, &e), 0);
        blob_put(text);
        assert_int_equal(run_directory_read(folder, &root, &e), 0);
        assert_int_equal(json_integer_value(json_object_get(root, "a")), i);
        json_decref(root);
    }
    put_text("run.json", "{\"a\":");
    assert_int_equal(run_directory_read(folder, &root, &e), -FAIL_MALFORMED_JSON);
}

static void write_rows(long long first, long long from, long long to)
{
    FILE *f;
    assert_int_equal(run_directory_metrics(&f, folder, first, &e), 0);
    for (long long step = from; step <= to; step++)
        run_directory_row(f, &(struct trainer_step){.step = step});
    fclose(f);
}

static int rows(void)
{
    FILE *f = fopen(in_folder("metrics.csv"), "r");
    char line[512];
    int n = 0;
    while (fgets(line, sizeof line, f))
        n++;
    fclose(f);
    return n;
}

static void rows_after_the_step_gone_on_from_are_cut(void **state)
{
    (void)state;
    write_rows(0, 1, 5);
    assert_int_equal(rows(), 1 + 5);
    write_rows(3, 4, 9);
    assert_int_equal(rows(), 1 + 9);
    FILE *f = fopen(in_folder("metrics.csv"), "a");
    fputs("10,0.1", f); /* half a row */
    fclose(f);
    write_rows(10, 11, 11);
    assert_int_equal(rows(), 1 + 10);
}

int main(void)
{
#define TEST(f) cmocka_unit_test_setup_teardown(f, set_up, tear_down)
    const struct CMUnitTest tests[] = {
        TEST(a_run_has_one_who_trains),
        TEST(the_lock_goes_with_the_process),
        TEST(the_newest_checkpoint_counts),
        TEST(the_request_comes_back),
        TEST(rows_after_the_step_gone_on_from_are_cut),
    };
    return cmocka_run_group_tests_name("run_directory", tests, NULL, NULL);
}
