/* SPDX-License-Identifier: Apache-2.0 */
#include "server/settings.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <cmocka.h>

static struct err e;

static int parse(struct settings *s, const char *text)
{
    memset(&e, 0, sizeof e);
    return settings_parse(s, "test.conf", text, strlen(text), &e);
}

static void assert_refused(const char *text, const char *part)
{
    struct settings s;
    memset(&s, 0x5a, sizeof s);
    const struct settings before = s;
    assert_int_equal(parse(&s, text), -FAIL_BAD_SETTING);
    assert_int_equal(e.code, FAIL_BAD_SETTING);
    if (!strstr(e.text, part))
        fail_msg("\"%s\" does not say \"%s\"", e.text, part);
    assert_memory_equal(&s, &before, sizeof s);
}

static void write_file(const char *path, const char *text)
{
    FILE *f = fopen(path, "w");
    assert_non_null(f);
    assert_int_equal(fputs(text, f) >= 0, 1);
    assert_int_equal(fclose(f), 0);
}

static void assert_file_is(const char *path, void (*print)(FILE *out))
{
    char *want = NULL, *have = calloc(1, 1 << 20);
    size_t size;
    FILE *out = open_memstream(&want, &size);
    print(out);
    fclose(out);
    FILE *in = fopen(path, "r");
    assert_non_null(in);
    assert_true(fread(have, 1, (1 << 20) - 1, in) > 0);
    fclose(in);
    assert_string_equal(have, want);
    free(want);
    free(have);
}

static void an_empty_file_gives_the_defaults(void **state)
{
    (void)state;
    struct settings s;
    assert_int_equal(parse(&s, ""), 0);
    assert_string_equal(s.http.address, "127.0.0.1");
    assert_int_equal(s.http.port, 8080);
    assert_int_equal(s.http.max_header_bytes, 32 << 10);
    assert_int_equal(s.http.max_body_bytes, 32 << 20);
    assert_int_equal(s.predict.max_side, 8192);
    assert_int_equal(s.predict.max_pixels, 16 << 20);
    assert_int_equal(s.predict.queue_max, 256);
    assert_int_equal(s.predict.batch_max, 32);
    assert_int_equal(s.sampler.slots, 16);
    assert_int_equal(s.sampler.quantum_steps, 32);
    assert_int_equal(s.sampler.quantum_ms, 50);
    assert_int_equal(s.sampler.max_images, 1024);
    assert_int_equal(s.sampler.max_steps, 100000);
    assert_string_equal(s.log.level, "info");
    assert_true(s.log.access);
    assert_false(s.auth.allow_anonymous);
}

static void zeros_become_what_the_machine_has(void **state)
{
    (void)state;
    struct settings s;
    assert_int_equal(parse(&s, "[predict]\nthreads = 0\n[sampler]\nworkers = 0\n"), 0);
    assert_true(s.predict.threads >= 1);
    assert_true(s.sampler.workers >= 1);
    assert_true(s.memory.budget_bytes > 1 << 20);
    assert_int_equal(parse(&s, "[predict]\nthreads=3\n[memory]\nbudget_bytes=5M"), 0);
    assert_int_equal(s.predict.threads, 3);
    assert_int_equal(s.memory.budget_bytes, 5 << 20);
}

static void jobs_are_kept_where_there_is_a_directory(void **state)
{
    (void)state;
    struct settings s;
    unsetenv("STATE_DIRECTORY");
    assert_int_equal(parse(&s, ""), 0);
    assert_string_equal(s.store.kind, "memory");
    assert_int_equal(parse(&s, "[store]\ndirectory = /a/b\n"), 0);
    assert_string_equal(s.store.kind, "sqlite");
    assert_string_equal(s.store.directory, "/a/b");
    assert_int_equal(parse(&s, "[store]\ndirectory = /a/b\nkind = memory\n"), 0);
    assert_string_equal(s.store.kind, "memory");
    assert_refused("[store]\nkind = sqlite\n", "store.kind = sqlite needs store.directory");
    assert_refused("[store]\nkind = disk\n", "store.kind must be auto, sqlite or memory");
    setenv("STATE_DIRECTORY", "/var/lib/jemd:/var/lib/jemd/models", 1); /* as systemd does */
    assert_int_equal(parse(&s, ""), 0);
    assert_string_equal(s.store.kind, "sqlite");
    assert_string_equal(s.store.directory, "/var/lib/jemd/jobs");
    assert_int_equal(parse(&s, "[store]\ndirectory = /a/b\n"), 0);
    assert_string_equal(s.store.directory, "/a/b");
    unsetenv("STATE_DIRECTORY");
}

static void sizes_take_binary_suffixes(void **state)
{
    (void)state;
    struct settings s;
    const char *text = "[http]\nmax_header_bytes = 2048\nmax_body_bytes = 2M\n"
                       "[jobs]\nmax_store_bytes = 3G\n";
    assert_int_equal(parse(&s, text), 0);
    assert_int_equal(s.http.max_header_bytes, 2048);
    assert_int_equal(s.http.max_body_bytes, 2 << 20);
    assert_true(s.jobs.max_store_bytes == 3LL << 30);
    assert_refused("[http]\nmax_body_bytes = 2T\n", "test.conf:2: http.max_body_bytes must be a "
                                                    "size from 1k to 4G");
    assert_refused("[http]\nmax_body_bytes = 2MM\n", "a size from");
    assert_refused("[http]\nmax_body_bytes = 9223372036854775807G\n", "a size from");
    assert_refused("[http]\nmax_body_bytes = -1\n", "a size from");
    assert_refused("[http]\nport = 8k\n", "http.port must be a whole number from 0 to 65535, not "
                                          "\"8k\"");
}

static void numbers_outside_their_range_are_refused(void **state)
{
    (void)state;
    assert_refused("[http]\nport = 65536\n", "test.conf:2: http.port must be a whole number");
    assert_refused("[http]\nport = 99999999999999999999\n", "not \"99999999999999999999\"");
    assert_refused("[http]\nport =\n", "not \"\"");
    assert_refused("[http]\nport = +1\n", "whole number");
    assert_refused("[http]\nheader_timeout_ms = 10s\n", "http.header_timeout_ms");
    assert_refused("[sampler]\nslots = 0\n", "from 1 to 256");
    assert_refused("[sampler]\nslots = 257\n", "from 1 to 256"); /* CHAINS_SLOTS_MAX */
}

static void words_are_checked(void **state)
{
    (void)state;
    struct settings s;
    assert_refused("[log]\nlevel = loud\n", "must be debug, info, warn or error, not \"loud\"");
    assert_refused("[log]\naccess = maybe\n", "must be yes or no");
    assert_refused("[http]\naddress = localhost\n", "must be a numeric IPv4 or IPv6 address");
    assert_int_equal(
        parse(&s, "[log]\nlevel = warn\naccess = off\n[auth]\nmetrics_public = true\n"), 0);
    assert_string_equal(s.log.level, "warn");
    assert_false(s.log.access);
    assert_true(s.auth.metrics_public);
}

static void a_precision_is_for_all_models_or_for_one(void **state)
{
    (void)state;
    struct settings s;
    assert_int_equal(parse(&s, ""), 0);
    assert_int_equal(settings_precision_of(&s, NULL), PRECISION_FLOAT);
    assert_int_equal(settings_precision_of(&s, "sprites"), PRECISION_FLOAT);
    assert_int_equal(parse(&s, "[compute]\nprecision = bfloat16\n"), 0);
    assert_int_equal(settings_precision_of(&s, "sprites"), PRECISION_BFLOAT16);
    assert_int_equal(
        parse(&s, "[compute]\nprecision = a=bfloat16,b.2-c_d=float ,  bfloat16x3 ; x\n"), 0);
    assert_int_equal(settings_precision_of(&s, NULL), PRECISION_BFLOAT16X3);
    assert_int_equal(settings_precision_of(&s, "a"), PRECISION_BFLOAT16);
    assert_int_equal(settings_precision_of(&s, "b.2-c_d"), PRECISION_FLOAT);
    assert_int_equal(settings_precision_of(&s, "b"), PRECISION_BFLOAT16X3);
    assert_int_equal(settings_precision_of(&s, ""), PRECISION_BFLOAT16X3);
    assert_int_equal(parse(&s, "[compute]\nprecision = sprites=bfloat16\n"), 0);
    assert_int_equal(settings_precision_of(&s, NULL), PRECISION_FLOAT);
    assert_int_equal(settings_precision_of(&s, "sprites"), PRECISION_BFLOAT16);
    const char *const flags[] = {"compute.precision=bfloat16 sprites=float", NULL};
    assert_int_equal(settings_load(&s, NULL, flags, &e), 0);
    assert_int_equal(settings_precision_of(&s, "sprites"), PRECISION_FLOAT);
}

static void a_wrong_precision_is_refused_with_its_word(void **state)
{
    (void)state;
    char text[400] = "[compute]\nprecision = ";
    assert_refused("[compute]\nprecision = half\n",
                   "test.conf:2: compute.precision: \"half\" is not float, bfloat16x3 or bfloat16");
    assert_refused("[compute]\nprecision = float, a=int8\n", "\"int8\" is not float");
    assert_refused("[compute]\nprecision = a=\n", "\"\" is not float");
    assert_refused("[compute]\nprecision = a=b=float\n", "\"b=float\" is not float");
    assert_refused("[compute]\nprecision = =bfloat16\n", "\"bfloat16\" has an empty model name");
    assert_refused("[compute]\nprecision = float, bfloat16\n",
                   "\"bfloat16\" is a second word for all models");
    assert_refused("[compute]\nprecision = a=float b=float a=bfloat16\n",
                   "the model \"a\" has two precisions");
    memset(text + strlen(text), 'm', 64);
    strcat(text, "=float");
    assert_refused(text, "a model's name has at most 63 bytes, not 64: \"mmm");
    struct settings s;
    memset(text, ' ', 256);
    setenv("JEMD_COMPUTE_PRECISION", text, 1);
    assert_int_equal(settings_load(&s, NULL, NULL, &e), -FAIL_BAD_SETTING);
    assert_string_equal(e.text, "JEMD_COMPUTE_PRECISION: compute.precision: more than 255 bytes");
    unsetenv("JEMD_COMPUTE_PRECISION");
}

static void a_text_too_long_for_its_field_is_refused(void **state)
{
    (void)state;
    char text[160] = "[models]\ndefault_model = ";
    memset(text + strlen(text), 'm', 64);
    assert_refused(text, "text of at most 63 bytes");
}

static void an_unknown_key_names_its_line_and_the_nearest_key(void **state)
{
    (void)state;
    assert_refused("# a comment\n\n[http]\nport = 1\nadress = ::1\n",
                   "test.conf:5: section http has no key "
                   "\"adress\"; did you mean \"address\"?");
    assert_string_equal(e.did_you_mean, "address");
    assert_refused("[http]\nzzzzzz = 1\n", "docs/settings.md");
    assert_string_equal(e.did_you_mean, "");
}

static void an_unknown_section_is_refused(void **state)
{
    (void)state;
    assert_refused("[htpp]\nport = 1\n", "test.conf:2: unknown section \"htpp\"; did you mean "
                                         "\"http\"?");
    assert_refused("port = 1\n", "unknown section");
}

static void a_key_set_twice_is_refused(void **state)
{
    (void)state;
    assert_refused("[http]\nport = 1\n[log]\naccess=no\n[http]\nport = 1\n",
                   "test.conf:6: http.port is already set in line 2");
}

static void lines_that_are_no_settings_are_refused(void **state)
{
    (void)state;
    char text[600] = "[http]\n";
    assert_refused("[http]\nport\n", "test.conf:2: neither [section] nor key = value");
    assert_refused("[http\n", "test.conf:1:");
    memset(text + 7, 'x', 500);
    assert_refused(text, "test.conf:2: a line of more than");
    text[7] = '#';
    struct settings s;
    assert_int_equal(parse(&s, text), 0);
    assert_int_equal(settings_parse(&s, "n", "[http]\np\0rt=1\n", 14, &e), -FAIL_BAD_SETTING);
    assert_string_equal(e.text, "n:2: a NUL byte");
}

static void indentation_and_inline_comments_are_harmless(void **state)
{
    (void)state;
    struct settings s;
    const char *text = "[http]\r\n  port = 81 ; mine\r\n    threads = 3\r\n\t# x\r\n ; y\r\n";
    assert_int_equal(parse(&s, text), 0);
    assert_int_equal(s.http.port, 81);
    assert_int_equal(s.http.threads, 3);
}

static void an_open_address_needs_keys_or_consent(void **state)
{
    (void)state;
    struct settings s;
    assert_refused("[http]\naddress = 0.0.0.0\n", "others can reach 0.0.0.0: set auth.keys");
    assert_refused("[http]\naddress = ::\n", "others can reach ::");
    assert_refused("[http]\naddress = ::ffff:10.0.0.1\n", "others can reach");
    assert_int_equal(parse(&s, "[http]\naddress = ::1\n"), 0);
    assert_int_equal(parse(&s, "[http]\naddress = 127.9.9.9\n"), 0);
    assert_int_equal(parse(&s, "[http]\naddress = ::ffff:127.0.0.1\n"), 0);
    assert_int_equal(parse(&s, "[http]\naddress = 0.0.0.0\n[auth]\nkeys = k\n"), 0);
    assert_int_equal(parse(&s, "[http]\naddress = ::\n[auth]\nallow_anonymous = yes\n"), 0);
}

static void combinations_that_cannot_work_are_refused(void **state)
{
    (void)state;
    struct settings s;
    assert_refused("[http]\ntls_key = a\n", "http.tls_certificate is empty");
    assert_refused("[http]\ntls_certificate = a\n", "http.tls_key is empty");
    assert_int_equal(parse(&s, "[http]\ntls_key = a\ntls_certificate = b\n"), 0);
    assert_refused("[predict]\nmax_images = 100\nqueue_max = 99\n", "could never be served");
}

static int bound(int family, const struct sockaddr *a, socklen_t size)
{
    const int fd = socket(family, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_true(fd >= 0);
    assert_int_equal(bind(fd, a, size), 0);
    return fd;
}

static void an_inherited_socket_is_checked_like_the_address(void **state)
{
    (void)state;
    struct settings s;
    struct sockaddr_in open = {.sin_family = AF_INET}, local = open;
    struct sockaddr_un named = {.sun_family = AF_UNIX};
    local.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    assert_int_equal(parse(&s, ""), 0);
    int fd = bound(AF_INET, (struct sockaddr *)&local, sizeof local);
    assert_int_equal(settings_check_socket(&s, fd, &e), 0);
    close(fd);
    fd = bound(AF_UNIX, (struct sockaddr *)&named, sizeof(sa_family_t));
    assert_int_equal(settings_check_socket(&s, fd, &e), 0);
    close(fd);
    fd = bound(AF_INET, (struct sockaddr *)&open, sizeof open);
    assert_int_equal(settings_check_socket(&s, fd, &e), -FAIL_BAD_SETTING);
    s.auth.allow_anonymous = true;
    assert_int_equal(settings_check_socket(&s, fd, &e), 0);
    close(fd);
    assert_int_equal(settings_check_socket(&s, fd, &e), -FAIL_IO);
}

static void flags_override_environment_overrides_file(void **state)
{
    const char *path = *state;
    struct settings s;
    write_file(path, "[http]\nport = 1\nthreads = 5\nidle_timeout_ms = 101\n");
    setenv("JEMD_HTTP_PORT", "2", 1);
    setenv("JEMD_HTTP_THREADS", "6", 1);
    const char *const flags[] = {"http.port=3", "log.level=debug", "http.port=4", NULL};
    assert_int_equal(settings_load(&s, path, flags, &e), 0);
    assert_int_equal(s.http.port, 4);
    assert_int_equal(s.http.threads, 6);
    assert_int_equal(s.http.idle_timeout_ms, 101);
    assert_string_equal(s.log.level, "debug");
    unsetenv("JEMD_HTTP_PORT");
    unsetenv("JEMD_HTTP_THREADS");
}

static void mistakes_in_environment_and_flags_are_named(void **state)
{
    (void)state;
    struct settings s;
    setenv("JEMD_HTTP_PROT", "2", 1);
    setenv("JEMD_URL", "not a setting", 1);
    assert_int_equal(settings_load(&s, NULL, NULL, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "\"JEMD_HTTP_PROT\"; did you mean \"JEMD_HTTP_PORT\"?"));
    unsetenv("JEMD_HTTP_PROT");
    setenv("JEMD_HTTP_PORT", "tcp://10.0.0.1:8080", 1);
    assert_int_equal(settings_load(&s, NULL, NULL, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "JEMD_HTTP_PORT: http.port must be"));
    unsetenv("JEMD_HTTP_PORT");
    unsetenv("JEMD_URL");

    const char *const unknown[] = {"http.prot=1", NULL}, *const shapeless[] = {"port=1", NULL},
                      *const bad[] = {"http.port=x", NULL};
    assert_int_equal(settings_load(&s, NULL, unknown, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "--http.prot: section http has no key \"prot\"; did you mean "
                                   "\"port\"?"));
    assert_int_equal(settings_load(&s, NULL, shapeless, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "--section.key=value"));
    assert_int_equal(settings_load(&s, NULL, bad, &e), -FAIL_BAD_SETTING);
    assert_non_null(strstr(e.text, "--http.port: http.port must be"));
}

static void a_missing_file_is_an_io_error(void **state)
{
    (void)state;
    struct settings s;
    assert_int_equal(settings_load(&s, "/nonexistent/jemd.conf", NULL, &e), -FAIL_IO);
    assert_non_null(strstr(e.text, "/nonexistent/jemd.conf"));
}

static void the_effective_values_say_where_they_come_from(void **state)
{
    const char *path = *state;
    char *text = NULL, where[200];
    size_t size;
    write_file(path, "[http]\n\nport = 8181\nmax_body_bytes = 3145728\n");
    setenv("JEMD_LOG_ACCESS", "no", 1);
    const char *const flags[] = {"predict.batch_max=7", NULL};
    FILE *out = open_memstream(&text, &size);
    assert_int_equal(settings_print_effective(out, path, flags, &e), 0);
    fclose(out);
    unsetenv("JEMD_LOG_ACCESS");
    snprintf(where, sizeof where, "port = 8181                             ; %s:3\n", path);
    assert_non_null(strstr(text, where));
    assert_non_null(strstr(text, "max_body_bytes = 3M "));
    assert_non_null(strstr(text, "access = no                             ; JEMD_LOG_ACCESS\n"));
    assert_non_null(
        strstr(text, "batch_max = 7                           ; --predict.batch_max\n"));
    assert_non_null(strstr(text, "max_side = 8192                         ; default\n"));
    struct settings s;
    assert_int_equal(parse(&s, text), 0);
    assert_int_equal(s.http.port, 8181);
    assert_int_equal(s.predict.batch_max, 7);
    free(text);
}

static void nothing_is_printed_for_wrong_settings(void **state)
{
    (void)state;
    char *text = NULL;
    size_t size;
    const char *const flags[] = {"predict.batch_max=0", NULL};
    FILE *out = open_memstream(&text, &size);
    assert_int_equal(settings_print_effective(out, NULL, flags, &e), -FAIL_BAD_SETTING);
    fclose(out);
    assert_int_equal(size, 0);
    free(text);
}

static void the_shipped_file_is_the_printed_defaults(void **state)
{
    (void)state;
    struct settings shipped, none;
    assert_file_is(TEST_SOURCE_DIR "/config/jemd.conf", settings_print_defaults);
    assert_int_equal(settings_load(&shipped, TEST_SOURCE_DIR "/config/jemd.conf", NULL, &e), 0);
    assert_int_equal(settings_load(&none, NULL, NULL, &e), 0);
    assert_int_equal(shipped.http.max_body_bytes, none.http.max_body_bytes);
    assert_int_equal(shipped.jobs.retention_seconds, none.jobs.retention_seconds);
    assert_string_equal(shipped.models.directory, none.models.directory);
}

static void the_reference_page_is_the_printed_one(void **state)
{
    (void)state;
    assert_file_is(TEST_SOURCE_DIR "/docs/settings.md", settings_print_reference);
}

static char path[] = "/tmp/jemd-settings-XXXXXX";

static int make_path(void **state)
{
    const int fd = mkstemp(path);
    *state = path;
    return fd < 0 ? -1 : close(fd);
}

static int remove_path(void **state)
{
    return unlink(*state);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(an_empty_file_gives_the_defaults),
        cmocka_unit_test(zeros_become_what_the_machine_has),
        cmocka_unit_test(jobs_are_kept_where_there_is_a_directory),
        cmocka_unit_test(sizes_take_binary_suffixes),
        cmocka_unit_test(numbers_outside_their_range_are_refused),
        cmocka_unit_test(words_are_checked),
        cmocka_unit_test(a_precision_is_for_all_models_or_for_one),
        cmocka_unit_test(a_wrong_precision_is_refused_with_its_word),
        cmocka_unit_test(a_text_too_long_for_its_field_is_refused),
        cmocka_unit_test(an_unknown_key_names_its_line_and_the_nearest_key),
        cmocka_unit_test(an_unknown_section_is_refused),
        cmocka_unit_test(a_key_set_twice_is_refused),
        cmocka_unit_test(lines_that_are_no_settings_are_refused),
        cmocka_unit_test(indentation_and_inline_comments_are_harmless),
        cmocka_unit_test(an_open_address_needs_keys_or_consent),
        cmocka_unit_test(combinations_that_cannot_work_are_refused),
        cmocka_unit_test(an_inherited_socket_is_checked_like_the_address),
        cmocka_unit_test(flags_override_environment_overrides_file),
        cmocka_unit_test(mistakes_in_environment_and_flags_are_named),
        cmocka_unit_test(a_missing_file_is_an_io_error),
        cmocka_unit_test(the_effective_values_say_where_they_come_from),
        cmocka_unit_test(nothing_is_printed_for_wrong_settings),
        cmocka_unit_test(the_shipped_file_is_the_printed_defaults),
        cmocka_unit_test(the_reference_page_is_the_printed_one),
    };
    return cmocka_run_group_tests(tests, make_path, remove_path);
}
