/* SPDX-License-Identifier: Apache-2.0 */
#include "unit/test_segments.h"

/* Whether the next process makes the segment anew, with the right bytes. */
static void assert_made_anew(void)
{
    struct work w = {.seed = 9, .bytes = BYTES};
    struct segment *s = open_right("model", &w);
    assert_shared(s, false);
    assert_int_equal(w.calls, 1);
    segment_close(s);
}

static void damage_anywhere_in_the_record_is_noticed(void **state)
{
    (void)state;
    for (size_t i = 0; i < sizeof(struct place_record); i++) {
        const int fd = open(leave("model", BYTES), O_RDWR);
        unsigned char c;
        struct stat st;
        assert_int_equal(fstat(fd, &st), 0);
        const off_t at = st.st_size - PLACE_RECORD_BYTES + (off_t)i;
        assert_int_equal(pread(fd, &c, 1, at), 1);
        c ^= 1;
        assert_int_equal(pwrite(fd, &c, 1, at), 1);
        close(fd);
        assert_made_anew();
        assert_int_equal(count(0).removed, 1);
    }
}

static void a_file_of_another_length_is_not_mapped(void **state)
{
    (void)state;
    const off_t whole = 8192 + PLACE_RECORD_BYTES;
    const off_t lengths[] = {0,         1,         4096,      whole - 4096,
                             whole - 1, whole + 1, whole + 8, whole + 4096};
    for (size_t i = 0; i < sizeof lengths / sizeof *lengths; i++) {
        const char *path = leave("model", BYTES);
        struct stat st;
        assert_int_equal(stat(path, &st), 0);
        assert_int_equal(st.st_size, whole);
        assert_int_equal(truncate(path, lengths[i]), 0);
        assert_made_anew();
        assert_int_equal(count(0).removed, 1);
    }
}

static void a_record_behind_fewer_or_more_data_than_it_says_is_not_believed(void **state)
{
    (void)state;
    const off_t wrong[] = {4096, 12288};
    for (int i = 0; i < 2; i++) {
        char record[PLACE_RECORD_BYTES];
        const int fd = open(leave("model", BYTES), O_RDWR);
        assert_int_equal(pread(fd, record, sizeof record, 8192), sizeof record);
        assert_int_equal(ftruncate(fd, wrong[i] + PLACE_RECORD_BYTES), 0);
        assert_int_equal(pwrite(fd, record, sizeof record, wrong[i]), sizeof record);
        close(fd);
        assert_made_anew();
        assert_int_equal(count(0).removed, 1);
    }
}

static void a_segment_of_another_mode_is_not_attached(void **state)
{
    (void)state;
    const mode_t modes[] = {0644, 0620, 0400, 0700, 01600, 04600};
    for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
        assert_int_equal(chmod(leave("model", BYTES), modes[i]), 0);
        if (modes[i] & 0200 || geteuid() == 0)
            assert_made_anew();
        assert_int_equal(count(0).removed, 1);
    }
}

static void an_unusual_umask_does_no_harm(void **state)
{
    (void)state;
    const mode_t before = umask(0277);
    leave("model", BYTES);
    umask(before);
    struct work w = {.seed = 1, .bytes = BYTES};
    struct segment *s = open_right("model", &w);
    assert_shared(s, true);
    segment_close(s);
}

static void links_are_removed_and_never_followed(void **state)
{
    (void)state;
    char path[256], target[128];
    snprintf(path, sizeof path, "%s", leave("model", BYTES));
    snprintf(target, sizeof target, "%s/target", directory);
    for (int temporary = 0; temporary < 2; temporary++) {
        assert_int_equal(rename(path, target), 0);
        assert_int_equal(symlink(target, temporary ? temporary_of(path) : path), 0);
        assert_made_anew();
        const int fd = open(target, O_RDONLY);
        unsigned char c;
        assert_int_equal(pread(fd, &c, 1, 0), 1);
        assert_int_equal(c, byte_at(temporary ? 9 : 1, 0));
        close(fd);
    }
    assert_int_equal(unlink(target), 0);
}

static void a_fifo_is_replaced_and_a_folder_is_left_alone(void **state)
{
    (void)state;
    char path[256];
    snprintf(path, sizeof path, "%s", leave("model", BYTES));
    for (int temporary = 0; temporary < 2; temporary++) {
        const char *name = temporary ? temporary_of(path) : path;
        struct work w = {.bytes = BYTES};
        assert_int_equal(count(0).removed, 1);
        assert_int_equal(mkfifo(name, 0600), 0);
        assert_made_anew();
        assert_int_equal(count(0).removed, 1);
        assert_int_equal(mkdir(name, 0600), 0);
        struct segment *s = open_right("model", &w);
        assert_private(s, "not ours");
        segment_close(s);
        assert_int_equal(rmdir(name), 0);
        assert_made_anew();
    }
}

static void a_segment_of_another_user_is_neither_used_nor_removed(void **state)
{
    (void)state;
    if (geteuid() != 0) {
        print_message("skipped: only root can give a file away\n");
        skip();
    }
    char path[256];
    snprintf(path, sizeof path, "%s", leave("model", BYTES));
    for (int temporary = 0; temporary < 2; temporary++) {
        struct work w = {.bytes = BYTES};
        const char *name = temporary ? temporary_of(path) : path;
        if (temporary)
            assert_int_equal(rename(path, name), 0);
        assert_int_equal(chown(name, 65534, 65534), 0);
        struct segment *s = open_right("model", &w);
        assert_private(s, "not ours");
        segment_close(s);
        assert_int_equal(count(0).kept, 0);
        assert_int_equal(access(name, F_OK), 0);
        assert_int_equal(chown(name, 0, 0), 0);
    }
}

static void a_segment_of_another_boot_is_not_attached_and_swept(void **state)
{
    (void)state;
    for (int swept = 0; swept < 2; swept++) {
        struct place_record r;
        const int fd = open(leave("model", BYTES), O_RDWR);
        assert_int_equal(pread(fd, &r, sizeof r, 8192), sizeof r);
        r.boot[0] = r.boot[0] == '0' ? '1' : '0';
        digest_bytes(&r, offsetof(struct place_record, check), r.check);
        assert_int_equal(pwrite(fd, &r, sizeof r, 8192), sizeof r);
        close(fd);
        if (!swept)
            assert_made_anew();
        assert_int_equal(count(swept ? DAY_MS : 0).removed, 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        in_directory(damage_anywhere_in_the_record_is_noticed),
        in_directory(a_file_of_another_length_is_not_mapped),
        in_directory(a_record_behind_fewer_or_more_data_than_it_says_is_not_believed),
        in_directory(a_segment_of_another_mode_is_not_attached),
        in_directory(an_unusual_umask_does_no_harm),
        in_directory(links_are_removed_and_never_followed),
        in_directory(a_fifo_is_replaced_and_a_folder_is_left_alone),
        in_directory(a_segment_of_another_user_is_neither_used_nor_removed),
        in_directory(a_segment_of_another_boot_is_not_attached_and_swept),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
