/* SPDX-License-Identifier: Apache-2.0 */
/* The page of an evaluation; that a real one is whole is tests/clients/test_eval.py's matter. */
#include "proto/base64.h"
#include "proto/html.h"
#include "proto/report.h"

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#include <cmocka.h>

static char *page(const char *json, const struct report_picture *pictures, int n)
{
    json_t *report;
    char *text;
    struct err e;
    if (json_parse(json, strlen(json), &report, &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(report_html(&text, report, pictures, n, &e), 0);
    json_decref(report);
    return text;
}

static void text_is_escaped(void **state)
{
    (void)state;
    struct html h = {0};
    html_text(&h, "a<b>&\"'c");
    html_text(&h, "");
    html_text(&h, "\x01é\n");
    html_format(&h, " %d", 7);
    assert_string_equal(h.text, "a&lt;b&gt;&amp;&quot;&#39;c?é\n 7");
    assert_int_equal(h.size, strlen(h.text));
    assert_false(h.failed);
    free(h.text);
}

static void much_text_is_kept_whole(void **state)
{
    (void)state;
    struct html h = {0};
    for (int i = 0; i < 20000; i++)
        html_put(&h, "0123456789");
    assert_int_equal(h.size, 200000);
    for (size_t i = 0; i < h.size; i++)
        assert_int_equal(h.text[i], '0' + (char)(i % 10));
    free(h.text);
}

static void a_line_too_long_is_a_failure_not_a_part(void **state)
{
    (void)state;
    struct html h = {0};
    html_format(&h, "%600d", 1);
    assert_true(h.failed);
    html_put(&h, "more");
    assert_null(h.text);
}

static void base64_goes_there_and_back(void **state)
{
    (void)state;
    static const char *const known[] = {"",         "Zg==",     "Zm8=",    "Zm9v",
                                        "Zm9vYg==", "Zm9vYmE=", "Zm9vYmFy"};
    for (size_t n = 0; n <= 6; n++) { /* RFC 4648, section 10 */
        char *text = base64_from_bytes("foobar", n);
        assert_string_equal(text, known[n]);
        free(text);
    }
    unsigned char bytes[256], *back;
    size_t size;
    struct err e;
    for (int i = 0; i < 256; i++)
        bytes[i] = (unsigned char)i;
    char *text = base64_from_bytes(bytes, sizeof bytes);
    assert_int_equal(base64_to_bytes(text, strlen(text), &back, &size, &e), 0);
    assert_int_equal(size, sizeof bytes);
    assert_memory_equal(back, bytes, sizeof bytes);
    free(back);
    free(text);
}

/* Every text that a report takes from outside. */
#define EVIL "<script>alert(1)</script>\\\"'"
static const char evil[] =
    "{\"model\":{\"name\":\"" EVIL "\",\"version\":\"" EVIL "\",\"digest\":\"" EVIL "\"},"
    "\"arithmetic\":\"" EVIL "\",\"command\":[\"" EVIL "\"],\"data\":\"" EVIL "\",\"split\":\"" EVIL
    "\",\"data_sha256\":\"" EVIL "\",\"preprocessing\":\"" EVIL "\",\"n\":3,"
    "\"attributes\":[{\"name\":\"" EVIL "\",\"n\":3,\"accuracy\":0.5,"
    "\"bins\":[{\"confidence\":0.5,\"accuracy\":0.5,\"n\":3}],\"bins_before\":[]}],"
    "\"ood\":[{\"name\":\"" EVIL
    "\",\"score\":\"log_px\",\"n\":2,\"auroc\":0.5,\"curve\":[[0,0],[1,1]],"
    "\"energy_histogram\":{\"edges\":[0,1,2],\"familiar\":[1,2],\"foreign\":[0,3]}},"
    "{\"name\":\"" EVIL "\",\"score\":\"" EVIL "\"}],"
    "\"best_score\":{\"chosen_on\":\"" EVIL "\",\"by_transformation\":[],"
    "\"overall\":{\"score\":\"" EVIL "\",\"mean_auroc_calibration\":0.5,\"sets\":[]}},"
    "\"robustness\":{\"clean\":{\"plain\":{\"right\":{\"share\":0.5,\"n\":1}},\"refined\":[{\"k\":"
    "1}]},"
    "\"points\":[{\"norm\":\"" EVIL "\",\"eps\":0.1},{\"norm\":\"linf\",\"eps\":0.1}]},"
    "\"samples\":{\"judge\":{\"name\":\"" EVIL "\"},\"conditions\":[{\"split\":\"" EVIL
    "\",\"kind\":\"novel\",\"real\":{\"attributes\":{\"" EVIL
    "\":{\"n\":1,\"share\":1}}},\"samples\":[{\"start\":\"noise\",\"attributes\":{\"" EVIL
    "\":{\"n\":1,\"share\":1}},\"pairs\":{\"" EVIL "\":{\"n\":1,\"share\":1}}}]}],"
    "\"frechet\":[{\"of\":\"" EVIL "\",\"distance\":1}]},"
    "\"pictures\":[{\"kind\":\"samples\",\"start\":\"noise\",\"split\":\"" EVIL
    "\",\"steps\":3,\"condition\":{\"" EVIL "\":\"" EVIL "\"}}]}";

static void names_cannot_become_markup(void **state)
{
    (void)state;
    struct blob *png = blob_copy("x", 1);
    const struct report_picture picture = {.png = png, .width = 1, .height = 1};
    char *text = page(evil, &picture, 1);
    assert_null(strstr(text, "<script"));
    assert_null(strstr(text, "\"'"));
    assert_non_null(strstr(text, "&lt;script&gt;alert(1)&lt;/script&gt;&quot;&#39;"));
    assert_non_null(strstr(text, "src=\"data:image/png;base64,eA==\""));
    free(text);
    blob_put(png);
}

/* Whatever is missing or of another type is left out; no number is printed as nan. */
static void a_report_may_lack_anything(void **state)
{
    (void)state;
    static const char *const reports[] = {
        "{}",
        "{\"model\":3,\"attributes\":{},\"ood\":7,\"pictures\":\"x\",\"samples\":[],\"reports\":[1]"
        "}",
        "{\"attributes\":[1,null,{}],\"ood\":[{},{}],\"transformations\":[null],\"robustness\":{}}",
        "{\"ood\":[{\"curve\":[[],[1]],\"energy_histogram\":{\"edges\":[1],\"familiar\":[1],"
        "\"foreign\":[]}}],\"samples\":{\"frechet\":[{}],\"conditions\":[{}]},\"best_score\":{}}"};
    for (size_t i = 0; i < sizeof reports / sizeof *reports; i++) {
        char *text = page(reports[i], NULL, 0);
        assert_non_null(strstr(text, "</html>"));
        assert_null(strstr(text, "nan"));
        free(text);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(text_is_escaped),
        cmocka_unit_test(much_text_is_kept_whole),
        cmocka_unit_test(a_line_too_long_is_a_failure_not_a_part),
        cmocka_unit_test(base64_goes_there_and_back),
        cmocka_unit_test(names_cannot_become_markup),
        cmocka_unit_test(a_report_may_lack_anything),
    };
    return cmocka_run_group_tests(tests, NULL, NULL);
}
