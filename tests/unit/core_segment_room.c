/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/test_segments.h"

#include <errno.h>
#include <sys/mount.h>
#include <sys/resource.h>
#include <time.h>

static void without_a_directory_memory_is_private(void **state)
{
    (void)state;
    struct work w = {.seed = 2, .bytes = BYTES};
    struct segment_options o = options();
    struct segment *s;
    struct err e;
    const char *const wrong[] = {"/absent/segments", "/dev/null", "/proc/self"};
    for (int i = 0; i < 3; i++) {
        o.directory = wrong[i];
        assert_int_equal(open_with(&s, &o, "model", &w), 0);
        assert_private(s, i < 2 ? "opened" : "made");
        assert_true(is_right(s, &w));
        segment_close(s);
    }
    o.directory = wrong[0];
    assert_int_equal(segment_sweep(&o, 0, NULL, &e), -FAIL_IO);
}

static void a_limit_of_nothing_switches_sharing_off(void **state)
{
    (void)state;
    struct work w = {.seed = 2, .bytes = BYTES};
    struct segment_options o = options();
    struct segment *s;
    leave("model", BYTES);
    o.limit_bytes = 0;
    assert_int_equal(open_with(&s, &o, "model", &w), 0);
    assert_private(s, "switched off");
    assert_true(is_right(s, &w));
    assert_int_equal(w.calls, 1);
    segment_close(s);
}

static void set_age(const char *path, int hours)
{
    struct timespec t[2];
    clock_gettime(CLOCK_REALTIME, &t[0]);
    t[0].tv_sec -= hours * 3600;
    t[1] = t[0];
    assert_int_equal(utimensat(AT_FDCWD, path, t, 0), 0);
}

static void the_limit_drops_what_was_used_longest_ago(void **state)
{
    (void)state;
    struct segment_options o = options();
    struct work w = {.seed = 1, .bytes = BYTES}, used = w;
    struct segment *s, *in_use = open_right("in use", &used);
    char paths[3][256];
    const int hours[] = {2, 3, 1};
    set_age(segment_name(in_use), 4);
    for (int i = 0; i < 3; i++) {
        const char name[] = {(char)('a' + i), '\0'};
        snprintf(paths[i], sizeof paths[i], "%s", leave(name, BYTES));
        set_age(paths[i], hours[i]);
    }
    o.limit_bytes = (uint64_t)3 * (8192 + PLACE_RECORD_BYTES);
    assert_int_equal(open_with(&s, &o, "model", &w), 0);
    assert_shared(s, false);
    assert_int_equal(access(segment_name(in_use), F_OK), 0);
    for (int i = 0; i < 3; i++)
        assert_int_equal(access(paths[i], F_OK), hours[i] == 1 ? 0 : -1);
    segment_close(s);
    segment_close(in_use);
}

static void what_cannot_fit_the_limit_is_private_and_drops_nothing(void **state)
{
    (void)state;
    struct segment_options o = options();
    struct work w = {.seed = 1, .bytes = BYTES}, used = w;
    struct segment *s, *in_use = open_right("in use", &used);
    leave("unused", BYTES);
    o.limit_bytes = (uint64_t)2 * (8192 + PLACE_RECORD_BYTES) - 1;
    assert_int_equal(open_with(&s, &o, "model", &w), 0);
    assert_private(s, "24576 bytes, more than the 24575 allowed");
    assert_true(is_right(s, &w));
    assert_int_equal(count(DAY_MS).kept, 2);
    segment_close(s);
    segment_close(in_use);
}

static void attaching_and_closing_are_uses(void **state)
{
    (void)state;
    struct work w = {.seed = 1, .bytes = BYTES};
    set_age(leave("model", BYTES), 50);
    struct segment *s = open_right("model", &w);
    struct stat st;
    assert_int_equal(stat(segment_name(s), &st), 0);
    assert_true(time(NULL) - st.st_mtime < 3600);
    set_age(segment_name(s), 50);
    segment_close(s);
    assert_int_equal(count(DAY_MS).kept, 1);
}

static void a_sweep_keeps_what_is_in_use_and_removes_what_is_old(void **state)
{
    (void)state;
    struct work w = {.bytes = BYTES};
    struct segment *s = open_right("in use", &w);
    char other[128];
    set_age(segment_name(s), 50);
    leave("young", BYTES);
    set_age(leave("old", BYTES), 25);
    snprintf(other, sizeof other, "%s/jemd-%u-notes", directory, (unsigned)geteuid());
    assert_int_equal(symlink("nowhere", other), 0);
    struct segment_census census = count(DAY_MS);
    assert_int_equal(census.removed, 1);
    assert_int_equal(census.kept, 2);
    assert_int_equal(census.kept_bytes, 2 * (8192 + PLACE_RECORD_BYTES));
    assert_int_equal(census.removed_bytes, 8192 + PLACE_RECORD_BYTES);
    census = count(0);
    assert_int_equal(census.removed, 1);
    assert_int_equal(census.kept, 1);
    assert_int_equal(access(segment_name(s), F_OK), 0);
    assert_int_equal(unlink(other), 0);
    segment_close(s);
}

static void segments_of_another_build_go_when_one_is_made_or_swept(void **state)
{
    (void)state;
    struct segment_options o = options();
    struct work w = {.bytes = BYTES}, used = w;
    struct segment *s, *in_use = open_right("in use", &used);
    leave("model", BYTES);
    o.build = "layout 2, test";
    assert_int_equal(open_with(&s, &o, "model", &w), 0);
    assert_shared(s, false);
    struct segment_census census;
    assert_int_equal(segment_sweep(&o, DAY_MS, &census, NULL), 0);
    assert_int_equal(census.kept, 2);
    segment_close(in_use);
    assert_int_equal(segment_sweep(&o, DAY_MS, &census, NULL), 0);
    assert_int_equal(census.kept, 1);
    assert_int_equal(census.removed, 1);
    segment_close(s);
}

static int open_with_file_limit(void *ctx)
{
    const struct rlimit limit = {8192, 8192};
    if (setrlimit(RLIMIT_FSIZE, &limit))
        return 1;
    return open_model(ctx);
}

static void a_limit_on_the_size_of_files_is_no_signal(void **state)
{
    (void)state;
    struct work w = {.bytes = BYTES};
    assert_int_equal(end(start(open_with_file_limit, &w)), UNSHARED << 8);
    assert_int_equal(count(0).kept, 0);
}

static void a_full_file_system_is_no_signal(void **state)
{
    (void)state;
    struct work small = {.seed = 1, .bytes = 2 << 20}, large = {.seed = 2, .bytes = 5 << 20};
    if (mount("tmpfs", directory, "tmpfs", 0, "size=4m")) {
        print_message("skipped: no tmpfs can be mounted (%s)\n", strerror(errno));
        skip();
    }
    leave("unused", 3 << 20);
    struct segment *s = open_right("model", &small), *other = open_right("larger", &large);
    const struct segment_census census = count(DAY_MS);
    assert_shared(s, false);
    assert_private(other, "no room");
    segment_close(s);
    segment_close(other);
    assert_int_equal(umount(directory), 0);
    assert_int_equal(census.kept, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_directory(without_a_directory_memory_is_private),
        in_directory(a_limit_of_nothing_switches_sharing_off),
        in_directory(the_limit_drops_what_was_used_longest_ago),
        in_directory(what_cannot_fit_the_limit_is_private_and_drops_nothing),
        in_directory(attaching_and_closing_are_uses),
        in_directory(a_sweep_keeps_what_is_in_use_and_removes_what_is_old),
        in_directory(segments_of_another_build_go_when_one_is_made_or_swept),
        in_directory(a_limit_on_the_size_of_files_is_no_signal),
        in_directory(a_full_file_system_is_no_signal),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
