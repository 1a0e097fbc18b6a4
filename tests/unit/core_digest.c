/* SPDX-License-Identifier: Apache-2.0 */
#include "file/digest.h"

#include <dirent.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cmocka.h>

static char folder[] = "/tmp/jemd-digest-XXXXXX";
static char cache[64];

static const char *in_folder(const char *name)
{
    static char path[128];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    return path;
}

static int make_folder(void **state)
{
    (void)state;
    if (!mkdtemp(folder))
        return -1;
    snprintf(cache, sizeof cache, "%s/cache", folder);
    return mkdir(cache, 0700);
}

/* The only file in the cache, or NULL when it is empty. */
static const char *cache_file(void)
{
    static char path[512];
    int n = 0;
    DIR *d = opendir(cache);
    assert_non_null(d);
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (strcmp(entry->d_name, ".") == 0 || strcmp(entry->d_name, "..") == 0)
            continue;
        snprintf(path, sizeof path, "%s/%s", cache, entry->d_name);
        n++;
    }
    closedir(d);
    assert_in_range(n, 0, 1);
    return n ? path : NULL;
}

static int empty_cache(void **state)
{
    (void)state;
    const char *path = cache_file();
    return path ? unlink(path) : 0;
}

static int remove_folder(void **state)
{
    if (empty_cache(state) || rmdir(cache))
        return -1;
    return rmdir(folder);
}

/* A new file, open and already without a name. */
static int file_of(const void *bytes, size_t size)
{
    const char *path = in_folder("file");
    const int fd = open(path, O_RDWR | O_CREAT | O_EXCL, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, bytes, size), size);
    assert_int_equal(unlink(path), 0);
    return fd;
}

static void wait_until_settled(void)
{
    usleep(150000);
}

/* The same file, but only to be asked about: reading its bytes fails. */
static int unreadable(int fd)
{
    char link[64];
    snprintf(link, sizeof link, "/proc/self/fd/%d", fd);
    const int path_fd = open(link, O_PATH);
    assert_true(path_fd >= 0);
    return path_fd;
}

static void known_vectors_of_fips_180_4_agree(void **state)
{
    (void)state;
    char hex[DIGEST_HEX];
    digest_bytes("", 0, hex);
    assert_string_equal(hex, "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855");
    digest_bytes("abc", 3, hex);
    assert_string_equal(hex, "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    digest_bytes("abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq", 56, hex);
    assert_string_equal(hex, "248d6a61d20638b8e5c026930c3e6039a33ce45964ff2167f6ecedd419db06c1");
}

static void a_file_has_the_digest_of_its_bytes(void **state)
{
    (void)state;
    static const size_t sizes[] = {0, 1, 65535, 65536, 65537, 1000000};
    char *bytes = malloc(1000000), expected[DIGEST_HEX], hex[DIGEST_HEX];
    struct err e = {0};
    assert_non_null(bytes);
    memset(bytes, 'a', 1000000);
    for (size_t i = 0; i < sizeof sizes / sizeof *sizes; i++) {
        const int fd = file_of(bytes, sizes[i]);
        const off_t at = lseek(fd, 1, SEEK_SET);
        digest_bytes(bytes, sizes[i], expected);
        assert_int_equal(digest_file(fd, NULL, false, hex, &e), 0);
        assert_string_equal(hex, expected);
        assert_int_equal(lseek(fd, 0, SEEK_CUR), at);
        close(fd);
    }
    assert_string_equal(expected,
                        "cdc76e5c9914fb9281a1c7e284d73e67f1809a48a497200e046d39ccc7112cd0");
    free(bytes);
}

static void only_a_regular_file_that_can_be_read_is_digested(void **state)
{
    (void)state;
    char hex[DIGEST_HEX] = "untouched";
    struct err e = {0};
    const int directory = open(folder, O_RDONLY);
    assert_int_equal(digest_file(directory, NULL, false, hex, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "regular file"));
    close(directory);
    assert_int_equal(digest_file(-1, NULL, false, hex, &e), -FAIL_IO);
    const int fd = file_of("abc", 3), blind = unreadable(fd);
    assert_int_equal(digest_file(blind, NULL, false, hex, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "cannot be read"));
    assert_string_equal(hex, "untouched");
    close(blind);
    close(fd);
}

static void a_settled_file_is_read_once(void **state)
{
    (void)state;
    char hex[DIGEST_HEX] = "", again[DIGEST_HEX] = "";
    struct err e = {0};
    const int fd = file_of("once", 4), blind = unreadable(fd);
    wait_until_settled();
    assert_int_equal(digest_file(fd, NULL, false, hex, &e), 0);
    assert_int_equal(digest_file(blind, NULL, false, again, &e), 0);
    assert_string_equal(again, hex);
    assert_int_equal(digest_file(blind, NULL, true, again, &e), -FAIL_IO);
    close(blind);
    close(fd);
}

static void a_file_that_was_just_written_is_not_cached(void **state)
{
    (void)state;
    char hex[DIGEST_HEX];
    struct err e = {0};
    const int fd = file_of("fresh", 5), blind = unreadable(fd);
    assert_int_equal(fchmod(fd, 0640), 0);
    assert_int_equal(digest_file(fd, cache, false, hex, &e), 0);
    assert_int_equal(digest_file(blind, cache, false, hex, &e), -FAIL_IO);
    assert_null(cache_file());
    close(blind);
    close(fd);
}

static void a_changed_file_is_read_again(void **state)
{
    (void)state;
    char hex[DIGEST_HEX], expected[DIGEST_HEX];
    struct err e = {0};
    const int fd = file_of("before", 6);
    wait_until_settled();
    assert_int_equal(digest_file(fd, cache, false, hex, &e), 0);
    assert_int_equal(pwrite(fd, "after!", 6, 0), 6);
    digest_bytes("after!", 6, expected);
    assert_int_equal(digest_file(fd, cache, false, hex, &e), 0);
    assert_string_equal(hex, expected);
    close(fd);
}

/* A settled file that is in the disk cache and, thanks to 64 others, no longer in memory. */
static int cached_on_disk(const char *text, char hex[DIGEST_HEX])
{
    struct err e = {0};
    char other[DIGEST_HEX];
    int fillers[64];
    const int fd = file_of(text, strlen(text));
    for (int i = 0; i < 64; i++)
        fillers[i] = file_of("filler", 6);
    wait_until_settled();
    assert_int_equal(digest_file(fd, cache, false, hex, &e), 0);
    for (int i = 0; i < 64; i++) {
        assert_int_equal(digest_file(fillers[i], NULL, false, other, &e), 0);
        close(fillers[i]);
    }
    return fd;
}

static void the_disk_cache_answers_when_memory_has_forgotten(void **state)
{
    (void)state;
    char hex[DIGEST_HEX], again[DIGEST_HEX] = "";
    struct err e = {0};
    struct stat st;
    const int fd = cached_on_disk("kept on disk", hex), blind = unreadable(fd);
    assert_int_equal(digest_file(blind, NULL, false, again, &e), -FAIL_IO);
    assert_int_equal(digest_file(blind, cache, true, again, &e), -FAIL_IO);
    assert_int_equal(digest_file(blind, cache, false, again, &e), 0);
    assert_string_equal(again, hex);
    assert_int_equal(digest_file(blind, NULL, false, again, &e), 0);
    assert_int_equal(stat(cache_file(), &st), 0);
    assert_int_equal(st.st_mode & 0777, 0600);
    close(blind);
    close(fd);
}

static char *slurp(const char *path, size_t *size)
{
    char *text = calloc(1, 1024);
    const int fd = open(path, O_RDONLY);
    assert_non_null(text);
    assert_true(fd >= 0);
    const ssize_t n = read(fd, text, 1023);
    assert_true(n > DIGEST_HEX && n < 512);
    close(fd);
    *size = (size_t)n;
    return text;
}

static void spit(const char *path, const char *text, size_t size)
{
    const int fd = open(path, O_WRONLY | O_CREAT | O_TRUNC, 0600);
    assert_true(fd >= 0);
    assert_int_equal(write(fd, text, size), size);
    close(fd);
}

static void a_damaged_or_foreign_cache_file_is_ignored(void **state)
{
    (void)state;
    char hex[DIGEST_HEX], again[DIGEST_HEX];
    struct err e = {0};
    size_t size;
    const int fd = cached_on_disk("damaged", hex), blind = unreadable(fd);
    const char *path = cache_file();
    char *good = slurp(path, &size), bad[1024];
    const struct {
        size_t at; /* the byte that is replaced, counted from the end when it is the digest */
        char byte;
        size_t size;
    } damages[] = {{size, 0, size - 1},    {size, 'x', size + 1}, {size - 1, 'x', size},
                   {size - 2, 'G', size},  {size - 2, 'A', size}, {0, 'J', size},
                   {size - 70, '~', size}, {size, 0, 0},          {size - 65, ' ', size}};
    for (size_t i = 0; i < sizeof damages / sizeof *damages; i++) {
        memcpy(bad, good, 1024);
        bad[damages[i].at] = damages[i].byte;
        spit(path, bad, damages[i].size);
        assert_int_equal(digest_file(blind, cache, false, again, &e), -FAIL_IO);
    }
    spit(path, good, size);
    assert_int_equal(chmod(path, 0622), 0);
    assert_int_equal(digest_file(blind, cache, false, again, &e), -FAIL_IO);
    assert_int_equal(chmod(path, 0600), 0);
    assert_int_equal(digest_file(blind, cache, false, again, &e), 0);
    assert_string_equal(again, hex);
    free(good);
    close(blind);
    close(fd);
}

static void recomputing_refreshes_a_cache_that_lies(void **state)
{
    (void)state;
    char hex[DIGEST_HEX], again[DIGEST_HEX];
    struct err e = {0};
    size_t size;
    const int fd = cached_on_disk("lied about", hex);
    const char *path = cache_file();
    char *text = slurp(path, &size);
    text[size - 2] = text[size - 2] == '0' ? '1' : '0';
    spit(path, text, size);
    assert_int_equal(digest_file(fd, cache, false, again, &e), 0);
    assert_string_not_equal(again, hex);
    assert_int_equal(digest_file(fd, cache, true, again, &e), 0);
    assert_string_equal(again, hex);
    assert_int_equal(digest_file(fd, cache, false, again, &e), 0);
    assert_string_equal(again, hex);
    free(text);
    text = slurp(path, &size);
    assert_memory_equal(text + size - DIGEST_HEX, hex, DIGEST_HEX - 1);
    free(text);
    close(fd);
}

static void a_cache_that_cannot_be_written_is_no_error(void **state)
{
    (void)state;
    char hex[DIGEST_HEX], expected[DIGEST_HEX];
    struct err e = {0};
    const int fd = file_of("no cache", 8);
    wait_until_settled();
    digest_bytes("no cache", 8, expected);
    assert_int_equal(digest_file(fd, in_folder("absent"), false, hex, &e), 0);
    assert_string_equal(hex, expected);
    assert_int_equal(digest_file(fd, "/dev/null", true, hex, &e), 0);
    assert_int_equal(access(in_folder("absent"), F_OK), -1);
    close(fd);
}

struct crowd {
    int fd[4];
    char expected[4][DIGEST_HEX];
};

static void *digest_often(void *arg)
{
    const struct crowd *c = arg;
    intptr_t wrong = 0;
    for (int i = 0; i < 40; i++) {
        char hex[DIGEST_HEX];
        if (digest_file(c->fd[i % 4], cache, i % 8 == 7, hex, NULL) ||
            strcmp(hex, c->expected[i % 4]) != 0)
            wrong++;
    }
    return (void *)wrong;
}

static void threads_may_digest_the_same_files(void **state)
{
    (void)state;
    struct crowd c;
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) {
        char text[8] = {(char)('0' + i)};
        c.fd[i] = file_of(text, 8);
        digest_bytes(text, 8, c.expected[i]);
    }
    wait_until_settled();
    for (int i = 0; i < 4; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, digest_often, &c), 0);
    for (int i = 0; i < 4; i++) {
        void *wrong = &c;
        assert_int_equal(pthread_join(threads[i], &wrong), 0);
        assert_null(wrong);
    }
    for (int i = 0; i < 4; i++)
        close(c.fd[i]);
}

static int empty_crowded_cache(void **state)
{
    (void)state;
    DIR *d = opendir(cache);
    int n = 0;
    if (!d)
        return -1;
    for (const struct dirent *entry; (entry = readdir(d));) {
        if (unlinkat(dirfd(d), entry->d_name, 0) == 0)
            n++;
    }
    closedir(d);
    return n == 4 ? 0 : -1;
}

#define with_cache(f) cmocka_unit_test_teardown(f, empty_cache)

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(known_vectors_of_fips_180_4_agree),
        cmocka_unit_test(a_file_has_the_digest_of_its_bytes),
        cmocka_unit_test(only_a_regular_file_that_can_be_read_is_digested),
        cmocka_unit_test(a_settled_file_is_read_once),
        with_cache(a_file_that_was_just_written_is_not_cached),
        with_cache(a_changed_file_is_read_again),
        with_cache(the_disk_cache_answers_when_memory_has_forgotten),
        with_cache(a_damaged_or_foreign_cache_file_is_ignored),
        with_cache(recomputing_refreshes_a_cache_that_lies),
        cmocka_unit_test(a_cache_that_cannot_be_written_is_no_error),
        cmocka_unit_test_teardown(threads_may_digest_the_same_files, empty_crowded_cache),
    };
    return cmocka_run_group_tests(tests, make_folder, remove_folder);
}
