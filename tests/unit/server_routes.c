/* SPDX-License-Identifier: Apache-2.0 */
/* The table of routes: patterns, methods, scopes and what is answered before a handler runs. */
#include "server/metrics.h"
#include "server/routes.h"
#include "unit/http_fixture.h"

static struct app app;
static struct fixture server; /* only its http is used */

static bool matches(const char *pattern, const char *path)
{
    char params[CALL_PARAMS][CALL_PARAM_SIZE];
    return route_match(pattern, path, params);
}

static void a_pattern_takes_its_paths_and_no_other(void **state)
{
    (void)state;
    static const struct {
        const char *pattern, *path, *first, *second;
    } good[] = {
        {"/", "/", "", ""},
        {"/v1/jobs", "/v1/jobs", "", ""},
        {"/v1/jobs/{}", "/v1/jobs/abc", "abc", ""},
        {"/v1/jobs/{}:cancel", "/v1/jobs/abc:cancel", "abc", ""},
        {"/v1/models/{}:predict", "/v1/models/a b\xc3\xbc:predict", "a b\xc3\xbc", ""},
        {"/v1/jobs/{}/events", "/v1/jobs/x/events", "x", ""},
        {"/v1/jobs/{}/artifacts/{*}", "/v1/jobs/x/artifacts/samples/000.png", "x",
         "samples/000.png"},
        {"/v1/jobs/{}/artifacts/{*}", "/v1/jobs/x/artifacts/../../etc/passwd:x", "x",
         "../../etc/passwd:x"},
    };
    static const char *const bad[][2] = {
        {"/", ""},
        {"/", "//"},
        {"/v1/jobs", "/v1/jobs/"},
        {"/v1/jobs", "/v1/job"},
        {"/v1/jobs", "/v1/jobs:validate"},
        {"/v1/jobs/{}", "/v1/jobs/"},
        {"/v1/jobs/{}", "/v1/jobs/a/b"},
        {"/v1/jobs/{}", "/v1/jobs/a:cancel"},
        {"/v1/jobs/{}", "/v1/jobs/a/"},
        {"/v1/jobs/{}:cancel", "/v1/jobs/:cancel"},
        {"/v1/jobs/{}:cancel", "/v1/jobs/a:cancel2"},
        {"/v1/jobs/{}:cancel", "/v1/jobs/a:b:cancel"},
        {"/v1/jobs/{}:cancel", "/v1/jobs/a"},
        {"/v1/jobs/{}/artifacts/{*}", "/v1/jobs/x/artifacts/"},
        {"/v1/jobs/{}/artifacts/{*}", "/v1/jobs/x/artifacts"},
        {"/V1/jobs", "/v1/jobs"},
    };
    for (size_t i = 0; i < sizeof good / sizeof good[0]; i++) {
        char params[CALL_PARAMS][CALL_PARAM_SIZE];
        assert_true(route_match(good[i].pattern, good[i].path, params));
        assert_string_equal(params[0], good[i].first);
        assert_string_equal(params[1], good[i].second);
    }
    for (size_t i = 0; i < sizeof bad / sizeof bad[0]; i++)
        if (matches(bad[i][0], bad[i][1]))
            fail_msg("%s takes %s", bad[i][0], bad[i][1]);
}

static void a_parameter_that_does_not_fit_is_no_match(void **state)
{
    (void)state;
    char path[300] = "/v1/jobs/";
    const size_t n = strlen(path);
    memset(path + n, 'a', CALL_PARAM_SIZE - 1);
    assert_true(matches("/v1/jobs/{}", path));
    path[n + CALL_PARAM_SIZE - 1] = 'a';
    assert_false(matches("/v1/jobs/{}", path));
    assert_false(matches("/{}/{}/{}", "/a/b/c")); /* more than there is room for */
}

/* ---- over HTTP ---- */

static void open_app(const char *keys, bool anonymous)
{
    const struct models_settings m = {
        .directory = "", .file = "", .default_model = "", .cache = "", .budget_bytes = 1 << 30};
    const struct batcher_settings b = {.threads = 1, .batch_max = 4, .queue_max = 4};
    const struct http_settings s = patient_settings();
    struct err e;
    memset(&app, 0, sizeof app);
    app.settings.http.max_body_bytes = 1 << 20;
    app.settings.memory.budget_bytes = 6 << 20; /* bodies may take 1.5 MB */
    app.settings.auth.allow_anonymous = anonymous;
    app.settings.auth.metrics_public = true;
    const struct http_handlers on = routes_handlers(&app);
    assert_int_equal(models_open(&app.models, &m, &e), 0);
    assert_int_equal(batcher_open(&app.batcher, &b, &e), 0);
    assert_int_equal(tasks_open(&app.tasks, 1, 4, &e), 0);
    if (keys && auth_parse(&app.auth, "keys", keys, strlen(keys), &e) != 0)
        fail_msg("%s", e.text);
    assert_int_equal(http_open(&server.http, &s, &on, &e), 0);
}

static int close_app(void **state)
{
    (void)state;
    http_close(server.http);
    batcher_stop(app.batcher);
    tasks_close(app.tasks);
    batcher_close(app.batcher);
    events_close(app.events);
    if (app.store)
        app.store->ops->close(app.store);
    models_close(app.models);
    auth_close(app.auth);
    metrics_fini();
    assert_int_equal(app.body_bytes, 0); /* whatever was set aside came back */
    return 0;
}

static int set_up(void **state)
{
    (void)state;
    alarm(120);
    open_app(NULL, false);
    return 0;
}

static const char *get(const char *line, const char *headers)
{
    char text[2048];
    const int n = snprintf(text, sizeof text,
                           "%s HTTP/1.1\r\nHost: h\r\nConnection: close\r\n%s\r\n", line, headers);
    return ask(&server, text, (size_t)n);
}

static void expect(const char *reply, int status, const char *part)
{
    char first[32];
    snprintf(first, sizeof first, "HTTP/1.1 %d ", status);
    if (strncmp(reply, first, strlen(first)) != 0 || (part && !strstr(reply, part)))
        fail_msg("wanted %d and \"%s\" in:\n%s", status, part ? part : "", reply);
}

static void a_path_that_is_not_there_is_404_in_problem_json(void **state)
{
    (void)state;
    static const char *const paths[] = {"/nothing", "/v1", "/v1/jobs/", "/v1/models/a:b/c"};
    for (int i = 0; i < 4; i++) {
        char line[64];
        snprintf(line, sizeof line, "GET %s", paths[i]);
        const char *reply = get(line, "");
        expect(reply, 404, "application/problem+json");
        expect(reply, 404, "\"code\":\"not_found\"");
        assert_non_null(strstr(reply, "\"instance\":"));
    }
    expect(get("BREW /nothing", ""), 404, "not_found");
}

static void another_method_is_405_with_allow(void **state)
{
    (void)state;
    static const char *const cases[][2] = {
        {"POST /livez", "Allow: GET, HEAD\r\n"},
        {"GET /v1/predict", "Allow: POST\r\n"},
        {"DELETE /v1/jobs", "Allow: POST, GET, HEAD\r\n"},
        {"POST /v1/jobs/abc", "Allow: GET, HEAD, PUT, PATCH, DELETE\r\n"},
        {"GET /v1/jobs/abc:cancel", "Allow: POST\r\n"},
        {"POST /v1/jobs/abc/artifacts/a/b", "Allow: GET, HEAD\r\n"},
        {"get /livez", "Allow: GET, HEAD\r\n"},
        {"GET /v1/models/m:score", "Allow: POST\r\n"},
    };
    for (size_t i = 0; i < sizeof cases / sizeof cases[0]; i++) {
        const char *reply = get(cases[i][0], "Content-Length: 0\r\n");
        expect(reply, 405, cases[i][1]);
        expect(reply, 405, "\"code\":\"method_not_allowed\"");
    }
    expect(get("OPTIONS /v1/jobs/abc", ""), 204, "Allow: GET, HEAD, PUT, PATCH, DELETE\r\n");
}

static void head_is_answered_like_get_without_a_body(void **state)
{
    (void)state;
    const char *reply = get("HEAD /livez", "");
    expect(reply, 200, "application/json");
    assert_string_equal(strstr(reply, "\r\n\r\n"), "\r\n\r\n");
}

static void head_of_a_stream_has_no_body_either(void **state)
{
    (void)state;
    const struct store_limits limits = {
        .max_queued = 9, .max_queued_per_client = 9, .max_bytes = 1 << 20, .retention_ms = 1000};
    struct job job = {.id = "0", .state = JOB_QUEUED, .request = blob_copy("{}", 2)};
    struct err e;
    assert_int_equal(store_memory_open(&app.store, &limits, &e), 0);
    assert_int_equal(events_open(&app.events, 4, 0, &e), 0);
    assert_int_equal(app.store->ops->insert(app.store, &job, NULL, NULL, NULL, &e), 0);
    blob_put(job.request);
    const char *reply = get("HEAD /v1/jobs/0/events", "");
    expect(reply, 200, "text/event-stream");
    assert_string_equal(strstr(reply, "\r\n\r\n"), "\r\n\r\n");
    expect(get("HEAD /v1/jobs/1/events", ""), 404, NULL);
}

static void accept_that_excludes_json_is_406(void **state)
{
    (void)state;
    expect(get("GET /livez", "Accept: image/png\r\n"), 406, "not_acceptable");
    expect(get("GET /livez", "Accept: image/png, */*;q=0.1\r\n"), 200, "ok");
    expect(get("GET /livez", "Accept: application/JSON\r\n"), 200, "ok");
    expect(get("GET /livez", "Accept:\r\n"), 200, "ok");
    expect(get("GET /metrics", "Accept: text/plain\r\n"), 200, NULL);
}

static void keys_open_the_routes_of_their_scopes(void **state)
{
    (void)state;
    char token[AUTH_TOKEN], line[AUTH_LINE], bearer[128], other[128];
    struct err e;
    assert_int_equal(auth_new_key("alice", AUTH_READ, token, line, &e), 0);
    open_app(line, false);
    snprintf(bearer, sizeof bearer, "Authorization: Bearer %s\r\n", token);
    snprintf(other, sizeof other, "X-API-Key: %s\r\n", token);
    expect(get("GET /v1/models", ""), 401, "WWW-Authenticate: Bearer");
    expect(get("GET /v1/models", "Authorization: Bearer jemd_wrong\r\n"), 401, NULL);
    expect(get("GET /v1/models", bearer), 200, "models");
    expect(get("GET /v1/models", other), 200, "models");
    expect(get("GET /livez", "Authorization: Bearer jemd_wrong\r\n"), 200, "ok");
    expect(get("GET /metrics", ""), 200, NULL); /* metrics_public */
    expect(get("POST /v1/predict", "Content-Length: 0\r\n"), 401, NULL);
    const char *reply = get("POST /v1/predict", bearer);
    expect(reply, 403, "predict");
    assert_non_null(strstr(reply, "alice"));
    close_app(NULL);
    open_app(line, true);
    expect(get("GET /v1/models", ""), 200, "models");
    expect(get("GET /v1/models", "Authorization: Bearer jemd_wrong\r\n"), 401, NULL);
}

static int give_time(void **state)
{
    (void)state;
    alarm(120);
    return 0;
}

static void bodies_in_flight_have_a_limit_together(void **state)
{
    (void)state;
    char out[4096];
    const int first = dial(&server);
    says(first, "POST /v1/predict HTTP/1.1\r\nHost: h\r\nContent-Length: 1000000\r\n\r\nx");
    for (int i = 0; i < 1000 && atomic_load(&app.body_bytes) == 0; i++)
        sleep_ms(5);
    assert_int_equal(app.body_bytes, 1000000);
    const char *reply = get("POST /v1/predict", "Content-Length: 900000\r\n");
    expect(reply, 503, "\"code\":\"overloaded\"");
    assert_non_null(strstr(reply, "Retry-After: "));
    assert_int_equal(app.body_bytes, 1000000);
    const int second = dial(&server); /* a smaller one still fits; no length counts as the limit */
    says(second, "POST /v1/predict HTTP/1.1\r\nHost: h\r\nContent-Length: 3\r\n\r\nabc");
    hear(second, out, sizeof out, "no model is loaded");
    close(second);
    expect(get("POST /v1/predict", "Transfer-Encoding: chunked\r\n"), 503, "overloaded");
    close(first);
    for (int i = 0; i < 1000 && atomic_load(&app.body_bytes) > 0; i++)
        sleep_ms(5);
    assert_int_equal(app.body_bytes, 0);
    expect(get("POST /v1/predict", "Content-Length: 9999999\r\n"), 413, "body_too_large");
}

static void predictions_that_cannot_be_computed_are_refused_before_their_body(void **state)
{
    (void)state;
    static struct ticket tickets[4];
    struct err e;
    for (int i = 0; i < 4; i++)
        assert_int_equal(batcher_enter(app.batcher, &tickets[i], &e), 0);
    const char *reply = get("POST /v1/predict", "Content-Length: 900000\r\n");
    expect(reply, 503, "\"code\":\"overloaded\"");
    assert_non_null(strstr(reply, "\"limit\":4"));
    assert_non_null(strstr(reply, "\r\nRetry-After: 1\r\n"));
    expect(get("POST /v1/models/m:score", "Content-Length: 900000\r\n"), 503, "overloaded");
    expect(get("GET /v1/models", ""), 200, "models");
    batcher_leave(app.batcher, &tickets[0]);
    expect(get("POST /v1/predict", "Content-Length: 0\r\n"), 404, "no model is loaded");
    for (int i = 1; i < 4; i++)
        batcher_leave(app.batcher, &tickets[i]);
}

static void what_is_not_there_for_now_says_when_to_come_again(void **state)
{
    (void)state;
    const char *reply = get("GET /readyz", ""); /* no model */
    expect(reply, 503, "not ready");
    assert_non_null(strstr(reply, "\r\nRetry-After: 1\r\n"));
    atomic_store(&app.stopped_ns, timing_ns() + INT64_C(41500000000));
    reply = get("GET /readyz", "");
    expect(reply, 503, "not ready");
    const char *at = strstr(reply, "\r\nRetry-After: ");
    assert_non_null(at);
    assert_in_range(atoi(at + 15), 2, 42);
    atomic_store(&app.stopped_ns, 0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        cmocka_unit_test(a_pattern_takes_its_paths_and_no_other),
        cmocka_unit_test(a_parameter_that_does_not_fit_is_no_match),
        cmocka_unit_test_setup_teardown(
            predictions_that_cannot_be_computed_are_refused_before_their_body, set_up, close_app),
        cmocka_unit_test_setup_teardown(what_is_not_there_for_now_says_when_to_come_again, set_up,
                                        close_app),
        cmocka_unit_test_setup_teardown(a_path_that_is_not_there_is_404_in_problem_json, set_up,
                                        close_app),
        cmocka_unit_test_setup_teardown(another_method_is_405_with_allow, set_up, close_app),
        cmocka_unit_test_setup_teardown(head_is_answered_like_get_without_a_body, set_up,
                                        close_app),
        cmocka_unit_test_setup_teardown(head_of_a_stream_has_no_body_either, set_up, close_app),
        cmocka_unit_test_setup_teardown(accept_that_excludes_json_is_406, set_up, close_app),
        cmocka_unit_test_setup_teardown(keys_open_the_routes_of_their_scopes, give_time, close_app),
        cmocka_unit_test_setup_teardown(bodies_in_flight_have_a_limit_together, set_up, close_app),
    };
    return cmocka_run_group_tests_name("routes", tests, NULL, NULL);
}
