/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/test_segments.h"

#include <pthread.h>

static void attaching_shows_the_same_bytes_without_packing(void **state)
{
    (void)state;
    struct work w = {.seed = 3, .bytes = BYTES}, other = w;
    struct segment *a = open_right("model", &w), *b = open_right("model", &other);
    assert_shared(a, false);
    assert_shared(b, true);
    assert_string_equal(segment_name(a), segment_name(b));
    assert_ptr_not_equal(segment_data(a), segment_data(b));
    assert_int_equal(w.calls, 1);
    assert_int_equal(other.calls, 0);
    assert_int_equal(end(start(open_model, &other)), ATTACHED << 8);
    segment_close(a);
    assert_true(is_right(b, &w));
    segment_close(b);
    segment_close(NULL);
}

static void a_segment_outlives_the_process_that_made_it(void **state)
{
    (void)state;
    struct work w = {.seed = 4, .bytes = BYTES};
    struct stat st;
    assert_int_equal(end(start(open_model, &w)), MADE << 8);
    struct segment *s = open_right("model", &w);
    assert_shared(s, true);
    assert_int_equal(w.calls, 0);
    assert_int_equal(stat(segment_name(s), &st), 0);
    assert_int_equal(st.st_mode, S_IFREG | 0600);
    assert_int_equal(st.st_nlink, 1);
    segment_close(s);
}

static int write_into(void *ctx)
{
    signal(SIGSEGV, SIG_DFL);
    *(volatile char *)ctx = 1;
    return 0;
}

static void nobody_can_write_into_the_data(void **state)
{
    (void)state;
    struct work w = {.bytes = BYTES};
    struct segment_options o = options();
    struct segment *made = open_right("model", &w), *attached = open_right("model", &w), *own;
    o.limit_bytes = 0;
    assert_int_equal(open_with(&own, &o, "model", &w), 0);
    const struct segment *const all[] = {made, attached, own};
    for (int i = 0; i < 3; i++) {
        void *data = (void *)(uintptr_t)segment_data(all[i]);
        const int status = end(start(write_into, data));
        assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV);
    }
    segment_close(made);
    segment_close(attached);
    segment_close(own);
}

static void another_key_or_build_is_another_segment(void **state)
{
    (void)state;
    struct work a = {.seed = 1, .bytes = BYTES}, b = {.seed = 2, .bytes = BYTES},
                c = {.seed = 3, .bytes = BYTES};
    struct segment_options o = options();
    struct segment *first = open_right("model", &a), *second = open_right("model avx2", &b), *third;
    o.build = "layout 1, tes";
    assert_int_equal(open_with(&third, &o, "tmodel", &c), 0);
    assert_true(is_right(third, &c));
    assert_int_equal(a.calls + b.calls + c.calls, 3);
    segment_close(first);
    segment_close(second);
    segment_close(third);
}

static void another_length_replaces_an_unused_segment_only(void **state)
{
    (void)state;
    leave("model", BYTES);
    struct work longer = {.seed = 2, .bytes = BYTES + 1}, shorter = {.seed = 3, .bytes = BYTES - 1};
    struct segment *s = open_right("model", &longer), *other = open_right("model", &shorter);
    assert_shared(s, false);
    assert_private(other, "in use");
    assert_true(is_right(s, &longer));
    segment_close(s);
    segment_close(other);
}

static void of_processes_that_start_together_one_packs(void **state)
{
    (void)state;
    enum { N = 5 };
    struct work w = {.seed = 5, .bytes = BYTES, .pause_ms = 150};
    int report[2], made = 0;
    char c;
    pid_t pids[N];
    assert_int_equal(pipe(report), 0);
    w.report = report[1];
    for (int i = 0; i < N; i++)
        pids[i] = start(open_model, &w);
    for (int i = 0; i < N; i++) {
        const int status = end(pids[i]);
        assert_true(status == MADE << 8 || status == ATTACHED << 8);
        made += status == MADE << 8;
    }
    close(report[1]);
    assert_int_equal(made, 1);
    assert_int_equal(read(report[0], &c, 1), 1);
    assert_int_equal(read(report[0], &c, 1), 0);
    close(report[0]);
}

static void *open_in_thread(void *ctx)
{
    struct work w = *(const struct work *)ctx;
    return (void *)(intptr_t)open_model(&w);
}

static void of_threads_that_start_together_one_packs(void **state)
{
    (void)state;
    struct work w = {.seed = 5, .bytes = BYTES, .pause_ms = 50};
    pthread_t threads[4];
    int made = 0;
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, open_in_thread, &w), 0);
    for (int i = 0; i < 4; i++) {
        void *said;
        assert_int_equal(pthread_join(threads[i], &said), 0);
        assert_true((intptr_t)said == MADE || (intptr_t)said == ATTACHED);
        made += (intptr_t)said == MADE;
    }
    assert_int_equal(made, 1);
}

static void a_process_killed_while_it_packs_leaves_a_temporary_that_is_taken_over(void **state)
{
    (void)state;
    struct work killed = {.seed = 6, .bytes = BYTES, .kill = true};
    struct work w = {.seed = 6, .bytes = BYTES};
    int status = end(start(open_model, &killed));
    assert_true(WIFSIGNALED(status) && WTERMSIG(status) == SIGKILL);
    struct segment *s = open_right("model", &w);
    assert_shared(s, false);
    assert_int_equal(access(temporary_of(segment_name(s)), F_OK), -1);
    assert_int_equal(count(DAY_MS).kept, 1);
    segment_close(s);
}

static void a_sweep_removes_what_a_killed_process_leaves(void **state)
{
    (void)state;
    struct work killed = {.seed = 6, .bytes = BYTES, .kill = true};
    end(start(open_model, &killed));
    const struct segment_census census = count(DAY_MS);
    assert_int_equal(census.removed, 1);
    assert_true(census.removed_bytes > BYTES);
    assert_int_equal(census.kept, 0);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(mkdir(directory, 0700), 0);
}

static void a_process_killed_after_publishing_leaves_a_name_that_is_swept(void **state)
{
    (void)state;
    struct work w = {.bytes = BYTES};
    struct segment *s = open_right("model", &w);
    assert_int_equal(link(segment_name(s), temporary_of(segment_name(s))), 0);
    const struct segment_census census = count(DAY_MS);
    assert_int_equal(census.removed, 1);
    assert_int_equal(census.kept, 1);
    assert_int_equal(access(segment_name(s), F_OK), 0);
    segment_close(s);
}

static void a_maker_that_takes_too_long_is_not_waited_for(void **state)
{
    (void)state;
    struct work slow = {.seed = 7, .bytes = BYTES}, w = slow;
    struct segment_options o = options();
    struct segment *s, *later;
    int report[2], block[2];
    char c;
    assert_int_equal(pipe(report), 0);
    assert_int_equal(pipe(block), 0);
    slow.report = report[1];
    slow.block = block[0];
    const pid_t pid = start(open_model, &slow);
    assert_int_equal(read(report[0], &c, 1), 1);
    o.wait_ms = 30;
    assert_int_equal(open_with(&s, &o, "model", &w), 0);
    assert_private(s, "after 30 ms");
    assert_true(is_right(s, &w));
    assert_int_equal(count(0).kept, 1);
    assert_int_equal(write(block[1], "", 1), 1);
    assert_int_equal(end(pid), MADE << 8);
    assert_int_equal(open_with(&later, &o, "model", &w), 0);
    assert_shared(later, true);
    segment_close(s);
    segment_close(later);
    for (int i = 0; i < 2; i++) {
        close(report[i]);
        close(block[i]);
    }
}

static void a_fill_that_fails_leaves_nothing(void **state)
{
    (void)state;
    struct work w = {.bytes = BYTES, .fail = true};
    struct segment_options o = options();
    struct segment *const untouched = (void *)&w, *s = untouched;
    assert_int_equal(open_with(&s, &o, "model", &w), -FAIL_BAD_MODEL);
    assert_int_equal(w.calls, 1);
    assert_int_equal(rmdir(directory), 0);
    assert_int_equal(mkdir(directory, 0700), 0);
    o.limit_bytes = 0;
    assert_int_equal(open_with(&s, &o, "model", &w), -FAIL_BAD_MODEL);
    assert_int_equal(w.calls, 2);
    assert_ptr_equal(s, untouched);
}

static void remove_temporaries(const struct work *w)
{
    char command[128];
    (void)w;
    snprintf(command, sizeof command, "rm %s/*.new", directory);
    assert_int_equal(system(command), 0);
}

static void overtake(const struct work *w)
{
    struct work own = {.seed = w->seed, .bytes = w->bytes};
    remove_temporaries(w);
    struct segment *s = open_right("model", &own);
    assert_shared(s, false);
    segment_close(s);
}

static void what_another_process_published_meanwhile_is_used(void **state)
{
    (void)state;
    struct work w = {.seed = 8, .bytes = BYTES, .meddle = overtake};
    struct segment *s = open_right("model", &w);
    assert_shared(s, false);
    assert_int_equal(count(0).kept, 1);
    segment_close(s);
}

static void memory_whose_temporary_was_removed_is_private(void **state)
{
    (void)state;
    struct work w = {.seed = 8, .bytes = BYTES, .meddle = remove_temporaries};
    struct segment *s = open_right("model", &w);
    assert_private(s, "interfered");
    assert_int_equal(w.calls, 1);
    segment_close(s);
}

/* Kilobytes that /proc/self/smaps says of the mapping at `data`; -1 when it does not. */
static long smaps_kb(const void *data, const char *field)
{
    FILE *f = fopen("/proc/self/smaps", "r");
    char line[512], start_of[32];
    long kb = -1;
    bool inside = false;
    if (!f)
        return -1;
    snprintf(start_of, sizeof start_of, "%lx-", (unsigned long)(uintptr_t)data);
    while (kb < 0 && fgets(line, sizeof line, f)) {
        if (strncmp(line, start_of, strlen(start_of)) == 0)
            inside = true;
        else if (inside && strncmp(line, field, strlen(field)) == 0)
            kb = strtol(line + strlen(field), NULL, 10);
    }
    fclose(f);
    return kb;
}

/* 0 when attaching and reading everything costs this process no memory of its own. */
static int measure_second(void *ctx)
{
    struct segment *s = ctx;
    struct work w = {.seed = 1, .bytes = BIG};
    const struct segment_options o = options();
    segment_close(s);
    if (open_with(&s, &o, "model", &w) || !segment_attached(s) || !is_right(s, &w))
        return 1;
    const void *data = segment_data(s);
    if (smaps_kb(data, "Rss:") < BIG / 1024)
        return 2;
    if (smaps_kb(data, "Anonymous:") != 0)
        return 3;
    return smaps_kb(data, "Private_Clean:") + smaps_kb(data, "Private_Dirty:") < 256 ? 0 : 4;
}

static void the_second_process_has_no_memory_of_its_own(void **state)
{
    (void)state;
    struct work w = {.seed = 1, .bytes = BIG};
    struct segment *s = open_right("model", &w);
    assert_int_equal(end(start(measure_second, s)), 0);
    segment_close(s);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_directory(attaching_shows_the_same_bytes_without_packing),
        in_directory(a_segment_outlives_the_process_that_made_it),
        in_directory(nobody_can_write_into_the_data),
        in_directory(another_key_or_build_is_another_segment),
        in_directory(another_length_replaces_an_unused_segment_only),
        in_directory(of_processes_that_start_together_one_packs),
        in_directory(of_threads_that_start_together_one_packs),
        in_directory(a_process_killed_while_it_packs_leaves_a_temporary_that_is_taken_over),
        in_directory(a_sweep_removes_what_a_killed_process_leaves),
        in_directory(a_process_killed_after_publishing_leaves_a_name_that_is_swept),
        in_directory(a_maker_that_takes_too_long_is_not_waited_for),
        in_directory(a_fill_that_fails_leaves_nothing),
        in_directory(what_another_process_published_meanwhile_is_used),
        in_directory(memory_whose_temporary_was_removed_is_private),
        in_directory(the_second_process_has_no_memory_of_its_own),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
