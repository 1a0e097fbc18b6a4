/* SPDX-License-Identifier: Apache-2.0 */
#include "base/timing.h"
#include "server/metrics.h"

#include <math.h>
#include <pthread.h>
#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

/* The page as a string; free it. */
static char *render(void)
{
    struct blob *page = NULL;
    struct err e;
    assert_int_equal(metrics_render(&page, &e), 0);
    char *text = malloc(page->size + 1);
    assert_non_null(text);
    memcpy(text, page->bytes, page->size);
    text[page->size] = '\0';
    blob_put(page);
    return text;
}

/* Lines of the metrics whose name begins with `name`, comments included. */
static char *render_only(const char *name)
{
    char *text = render(), *out = calloc(1, strlen(text) + 1), *rest = NULL;
    for (char *line = strtok_r(text, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        const char *subject = line[0] == '#' ? line + strlen("# HELP ") : line;
        if (strncmp(subject, name, strlen(name)) == 0)
            strcat(strcat(out, line), "\n");
    }
    free(text);
    return out;
}

static void assert_page(const char *name, const char *want)
{
    char *have = render_only(name);
    assert_string_equal(have, want);
    free(have);
}

static int forget(void **state)
{
    (void)state;
    metrics_fini();
    return 0;
}

static void counters_are_sorted_by_their_labels(void **state)
{
    (void)state;
    metrics_add(METRIC_HTTP_REQUESTS, 1, "/v1/predict", "POST", "200");
    metrics_add(METRIC_HTTP_REQUESTS, 2, "/livez", "GET", "200");
    metrics_add(METRIC_HTTP_REQUESTS, 41, "/v1/predict", "POST", "200");
    metrics_add(METRIC_HTTP_REQUESTS, 1, "/v1/predict", "POST", "413");
    assert_page("jemd_http_requests_total",
                "# HELP jemd_http_requests_total Requests answered.\n"
                "# TYPE jemd_http_requests_total counter\n"
                "jemd_http_requests_total{route=\"/livez\",method=\"GET\",code=\"200\"} 2\n"
                "jemd_http_requests_total{route=\"/v1/predict\",method=\"POST\",code=\"200\"} 42\n"
                "jemd_http_requests_total{route=\"/v1/predict\",method=\"POST\",code=\"413\"} 1\n");
}

static void neighbouring_label_values_do_not_mix(void **state)
{
    (void)state;
    metrics_add(METRIC_ATTRIBUTE_POSITIVE, 1, "a", "bc", "d");
    metrics_add(METRIC_ATTRIBUTE_POSITIVE, 2, "ab", "c", "d");
    metrics_add(METRIC_ATTRIBUTE_POSITIVE, 3, "", "abc", "d");
    char *page = render_only("jemd_attribute_positive_total{");
    assert_string_equal(
        page, "jemd_attribute_positive_total{model=\"\",attribute=\"abc\",value=\"d\"} 3\n"
              "jemd_attribute_positive_total{model=\"a\",attribute=\"bc\",value=\"d\"} 1\n"
              "jemd_attribute_positive_total{model=\"ab\",attribute=\"c\",value=\"d\"} 2\n");
    free(page);
}

static void a_metric_without_labels_shows_zero_from_the_start(void **state)
{
    (void)state;
    assert_page("jemd_chain_steps_total",
                "# HELP jemd_chain_steps_total MCMC steps, summed over chains.\n"
                "# TYPE jemd_chain_steps_total counter\n"
                "jemd_chain_steps_total 0\n");
    metrics_add(METRIC_CHAIN_STEPS, 5000000000);
    char *page = render_only("jemd_chain_steps_total ");
    assert_non_null(strstr(page, "\njemd_chain_steps_total 5000000000\n"));
    free(page);
}

static void a_gauge_keeps_its_last_value(void **state)
{
    (void)state;
    metrics_set(METRIC_CHAIN_SLOTS, 3, "busy");
    metrics_set(METRIC_CHAIN_SLOTS, -0.1, "busy");
    metrics_set(METRIC_CHAIN_SLOTS, HUGE_VAL, "free");
    metrics_set(METRIC_CHAIN_SLOTS, (double)NAN, "lost");
    char *page = render_only("jemd_chain_slots{");
    assert_string_equal(page, "jemd_chain_slots{state=\"busy\"} -0.1\n"
                              "jemd_chain_slots{state=\"free\"} +Inf\n"
                              "jemd_chain_slots{state=\"lost\"} NaN\n");
    free(page);
}

static void a_histogram_counts_up_to_each_bound(void **state)
{
    (void)state;
    const double seen[] = {0, 1, 1.5, 32, 33, 1000};
    for (size_t i = 0; i < sizeof seen / sizeof seen[0]; i++)
        metrics_observe(METRIC_PREDICT_BATCH_SIZE, seen[i]);
    assert_page("jemd_predict_batch_size",
                "# HELP jemd_predict_batch_size Images in one forward pass.\n"
                "# TYPE jemd_predict_batch_size histogram\n"
                "jemd_predict_batch_size_bucket{le=\"1\"} 2\n"
                "jemd_predict_batch_size_bucket{le=\"2\"} 3\n"
                "jemd_predict_batch_size_bucket{le=\"4\"} 3\n"
                "jemd_predict_batch_size_bucket{le=\"8\"} 3\n"
                "jemd_predict_batch_size_bucket{le=\"16\"} 3\n"
                "jemd_predict_batch_size_bucket{le=\"32\"} 4\n"
                "jemd_predict_batch_size_bucket{le=\"64\"} 5\n"
                "jemd_predict_batch_size_bucket{le=\"128\"} 5\n"
                "jemd_predict_batch_size_bucket{le=\"256\"} 5\n"
                "jemd_predict_batch_size_bucket{le=\"+Inf\"} 6\n"
                "jemd_predict_batch_size_sum 1067.5\n"
                "jemd_predict_batch_size_count 6\n");
}

static void a_nan_is_counted_but_does_not_spoil_the_sum(void **state)
{
    (void)state;
    metrics_observe(METRIC_INPUT_ENERGY, -20, "sprites");
    metrics_observe(METRIC_INPUT_ENERGY, (double)NAN, "sprites");
    char *page = render_only("jemd_input_energy_");
    assert_non_null(strstr(page, "jemd_input_energy_bucket{model=\"sprites\",le=\"-30\"} 0\n"));
    assert_non_null(strstr(page, "jemd_input_energy_bucket{model=\"sprites\",le=\"-20\"} 1\n"));
    assert_non_null(strstr(page, "jemd_input_energy_bucket{model=\"sprites\",le=\"+Inf\"} 2\n"));
    assert_non_null(strstr(page, "jemd_input_energy_sum{model=\"sprites\"} -20\n"));
    assert_non_null(strstr(page, "jemd_input_energy_count{model=\"sprites\"} 2\n"));
    free(page);
}

static void label_values_are_escaped_and_valid_utf8(void **state)
{
    (void)state;
    metrics_add(METRIC_HTTP_REJECTED, 1, "a\"b\\c\nd");
    metrics_add(METRIC_HTTP_REJECTED, 1, "wei\xc3\x9f \xe2\x82\xac \xf0\x9f\x99\x82");
    metrics_add(METRIC_HTTP_REJECTED, 1, "z\xff \xc3 \xed\xa0\x80 \xc0\xaf \xf0\x9f");
    char *page = render_only("jemd_http_rejected_total{");
    assert_string_equal(page, "jemd_http_rejected_total{reason=\"a\\\"b\\\\c\\nd\"} 1\n"
                              "jemd_http_rejected_total{reason=\"wei\xc3\x9f \xe2\x82\xac "
                              "\xf0\x9f\x99\x82\"} 1\n"
                              "jemd_http_rejected_total{reason=\"z? ? ??? ?? ??\"} 1\n");
    free(page);
}

static void too_many_label_values_become_other(void **state)
{
    (void)state;
    char name[16];
    for (int i = 0; i < METRICS_CHILDREN_MAX + 100; i++) {
        snprintf(name, sizeof name, "m%04d", i);
        metrics_add(METRIC_OOD_FLAGGED, 1, name);
    }
    metrics_add(METRIC_OOD_FLAGGED, 1, "m0000");
    char *page = render_only("jemd_ood_flagged_total{");
    int lines = 0;
    for (const char *p = page; *p; p++)
        lines += *p == '\n';
    assert_int_equal(lines, METRICS_CHILDREN_MAX + 1);
    assert_non_null(strstr(page, "{model=\"m0000\"} 2\n"));
    assert_non_null(strstr(page, "{model=\"m0511\"} 1\n"));
    assert_null(strstr(page, "m0512"));
    assert_non_null(strstr(page, "{model=\"other\"} 100\n"));
    free(page);
}

static void emit_two(void *ctx, struct metrics_scrape *s)
{
    int *calls = ctx;
    metrics_emit(s, METRIC_JOBS, ++*calls, "queued", "sample");
    metrics_emit(s, METRIC_JOB_BACKLOG_WORK_SECONDS, 1.25);
    if (*calls == 1)
        metrics_emit(s, METRIC_MODEL_INFO, 1, "sprites", "1", "abc");
}

static void what_is_emitted_exists_for_one_scrape(void **state)
{
    (void)state;
    int calls = 0;
    metrics_collect(emit_two, &calls);
    char *page = render();
    assert_non_null(strstr(page, "\njemd_jobs{state=\"queued\",type=\"sample\"} 1\n"));
    assert_non_null(strstr(page, "\njemd_job_backlog_work_seconds 1.25\n"));
    assert_null(strstr(page, "\njemd_job_backlog_work_seconds 0\n"));
    assert_non_null(
        strstr(page, "\njemd_model_info{model=\"sprites\",version=\"1\",digest=\"abc\"} 1\n"));
    free(page);
    page = render();
    assert_non_null(strstr(page, "\njemd_jobs{state=\"queued\",type=\"sample\"} 2\n"));
    assert_null(strstr(page, "\njemd_model_info{"));
    free(page);
}

static double value_of(const char *page, const char *name)
{
    char prefix[80];
    snprintf(prefix, sizeof prefix, "\n%s ", name);
    const char *p = strstr(page, prefix);
    assert_non_null(p);
    return strtod(p + strlen(prefix), NULL);
}

static void the_process_describes_itself(void **state)
{
    (void)state;
    char *page = render();
    const double now = (double)timing_wall_ms() / 1000, before = value_of(page, "process_open_fds");
    assert_true(value_of(page, "process_cpu_seconds_total") > 0);
    assert_true(value_of(page, "process_resident_memory_bytes") > 1e5);
    assert_true(value_of(page, "process_virtual_memory_bytes") > 1e5);
    assert_true(value_of(page, "process_threads") >= 1);
    assert_true(value_of(page, "process_max_fds") > before);
    assert_true(fabs(value_of(page, "process_start_time_seconds") - now) < 600);
    free(page);
    FILE *one_more = fopen("/dev/null", "r");
    page = render();
    assert_true(value_of(page, "process_open_fds") - before > 0.5);
    assert_true(value_of(page, "process_open_fds") - before < 1.5);
    free(page);
    fclose(one_more);
}

static bool ends_with(const char *word, const char *end)
{
    return strlen(word) > strlen(end) && strcmp(word + strlen(word) - strlen(end), end) == 0;
}

static void assert_named_well(const char *name, const char *type)
{
    static const char *const dimensionless[] = {
        "jemd_predict_batch_size", "jemd_input_energy", "jemd_jobs",      "jemd_chain_slots",
        "process_open_fds",        "process_max_fds",   "process_threads"};
    const bool counter = strcmp(type, "counter") == 0;
    if (strncmp(name, "jemd_", 5) != 0 && strncmp(name, "process_", 8) != 0)
        fail_msg("%s has no prefix", name);
    if (strspn(name, "abcdefghijklmnopqrstuvwxyz_") != strlen(name))
        fail_msg("%s has odd characters", name);
    if (counter != ends_with(name, "_total"))
        fail_msg("%s is a %s", name, type);
    bool good = counter || ends_with(name, "_seconds") || ends_with(name, "_bytes") ||
                ends_with(name, "_info") || ends_with(name, "_ratio");
    for (size_t i = 0; i < sizeof dimensionless / sizeof dimensionless[0]; i++)
        good = good || strcmp(name, dimensionless[i]) == 0;
    if (!good)
        fail_msg("%s has no unit", name);
}

static void every_metric_has_help_type_and_unit(void **state)
{
    (void)state;
    char *page = render(), *rest = NULL, name[80] = "", type[16];
    int n = 0;
    for (char *line = strtok_r(page, "\n", &rest); line; line = strtok_r(NULL, "\n", &rest)) {
        char again[80], help[200];
        if (sscanf(line, "# HELP %79s %199[^\n]", name, help) == 2) {
            assert_true(strlen(help) > 5);
            if (help[strlen(help) - 1] != '.')
                fail_msg("the help of %s is no sentence", name);
            n++;
        } else if (sscanf(line, "# TYPE %79s %15s", again, type) == 2) {
            assert_string_equal(again, name);
            assert_named_well(name, type);
        } else {
            assert_int_equal(strncmp(line, name, strlen(name)), 0);
        }
    }
    assert_int_equal(n, METRIC_COUNT);
    free(page);
}

enum { THREADS = 4, ROUNDS = 5000 };

static void *count(void *arg)
{
    char own[16];
    snprintf(own, sizeof own, "route%d", *(int *)arg);
    for (int i = 0; i < ROUNDS; i++) {
        metrics_add(METRIC_CHAIN_STEPS, 2);
        metrics_add(METRIC_HTTP_REQUESTS, 1, i % 2 ? "shared" : own, "GET", "200");
        metrics_observe(METRIC_PREDICT_QUEUE_SECONDS, 0.25);
        metrics_set(METRIC_MODEL_MAPPED_BYTES, i);
    }
    return NULL;
}

static void nothing_is_lost_when_many_threads_count(void **state)
{
    (void)state;
    pthread_t threads[THREADS];
    int numbers[THREADS] = {0, 1, 2, 3};
    for (int i = 0; i < THREADS; i++)
        assert_int_equal(pthread_create(&threads[i], NULL, count, &numbers[i]), 0);
    for (int i = 0; i < 20; i++)
        free(render());
    for (int i = 0; i < THREADS; i++)
        pthread_join(threads[i], NULL);
    char *page = render();
    assert_true(value_of(page, "jemd_chain_steps_total") == 2 * THREADS * ROUNDS);
    assert_true(value_of(page, "jemd_predict_queue_seconds_count") == THREADS * ROUNDS);
    assert_true(value_of(page, "jemd_predict_queue_seconds_sum") == 0.25 * THREADS * ROUNDS);
    assert_true(value_of(page, "jemd_model_mapped_bytes") == ROUNDS - 1);
    assert_non_null(strstr(page, "{route=\"shared\",method=\"GET\",code=\"200\"} 10000\n"));
    assert_non_null(strstr(page, "{route=\"route3\",method=\"GET\",code=\"200\"} 2500\n"));
    free(page);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test_teardown(counters_are_sorted_by_their_labels, forget),
        cmocka_unit_test_teardown(neighbouring_label_values_do_not_mix, forget),
        cmocka_unit_test_teardown(a_metric_without_labels_shows_zero_from_the_start, forget),
        cmocka_unit_test_teardown(a_gauge_keeps_its_last_value, forget),
        cmocka_unit_test_teardown(a_histogram_counts_up_to_each_bound, forget),
        cmocka_unit_test_teardown(a_nan_is_counted_but_does_not_spoil_the_sum, forget),
        cmocka_unit_test_teardown(label_values_are_escaped_and_valid_utf8, forget),
        cmocka_unit_test_teardown(too_many_label_values_become_other, forget),
        cmocka_unit_test_teardown(what_is_emitted_exists_for_one_scrape, forget),
        cmocka_unit_test_teardown(the_process_describes_itself, forget),
        cmocka_unit_test_teardown(every_metric_has_help_type_and_unit, forget),
        cmocka_unit_test_teardown(nothing_is_lost_when_many_threads_count, forget),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
