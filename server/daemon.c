/* SPDX-License-Identifier: Apache-2.0 */
#include "server/daemon.h"

#include "base/logger.h"
#include "base/timing.h"
#include "server/app.h"
#include "server/crash.h"
#include "server/metrics.h"
#include "server/notify.h"
#include "server/predict.h"
#include "server/routes.h"

#include <inttypes.h>
#include <malloc.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

enum { SUBSCRIBERS_MAX = 1024, TASK_QUEUE_MAX = 1024, CHORES_MAX = 16, PEM_MAX = 1 << 20 };
enum { EVENT_IDS_PER_MS = 1024 }; /* more than a daemon gives; so ids are below 2^53 until 2248 */

static void log_error(const char *event, const struct err *e)
{
    char text[600];
    logger(LOGGER_ERROR, event, "code=%s error=%s", fail_name(e->code),
           logger_quote(e->text, text, sizeof text));
}

/* ---- what /metrics asks the parts for ---- */

static void collect_jobs(const struct app *a, struct metrics_scrape *s)
{
    struct store_stats stats;
    a->store->ops->stats(a->store, &stats);
    for (int i = 0; i < JOB_STATES; i++)
        for (int t = 0; t < JOB_TYPES; t++)
            metrics_emit(s, METRIC_JOBS, stats.jobs[i][t], job_state_names[i], job_type_names[t]);
    metrics_emit(s, METRIC_JOB_QUEUE_OLDEST_AGE_SECONDS,
                 stats.oldest_queued_ms ? (double)(timing_wall_ms() - stats.oldest_queued_ms) * 1e-3
                                        : 0.0);
    metrics_emit(s, METRIC_JOB_BACKLOG_WORK_SECONDS, jobs_backlog_seconds(a->jobs));
}

static void collect_chains(const struct app *a, struct metrics_scrape *s)
{
    struct chains_status c;
    chains_get_status(a->chains, &c);
    metrics_emit(s, METRIC_CHAIN_STEPS, (double)c.steps_total);
    metrics_emit(s, METRIC_CHAIN_SLOTS, c.slots_busy, "busy");
    metrics_emit(s, METRIC_CHAIN_SLOTS, c.slots - c.slots_busy, "free");
    metrics_emit(s, METRIC_CHAIN_SLOT_SECONDS, c.busy_seconds, "busy");
    metrics_emit(s, METRIC_CHAIN_SLOT_SECONDS, c.free_seconds, "free");
}

static void collect_models(const struct app *a, struct metrics_scrape *s)
{
    struct models_entry *list = calloc(MODELS_MAX, sizeof *list);
    const int n = list ? models_list(a->models, list) : 0;
    double bytes = 0, shared = 0, private = 0;
    for (int i = 0; i < n; i++) {
        const struct model *m = list[i].model;
        struct model_packed packed;
        model_packed(m, &packed);
        shared += (double)packed.shared_bytes;
        private += (double)(packed.bytes - packed.shared_bytes);
        metrics_emit(s, METRIC_MODEL_INFO, 1, m->d.name, m->d.version, m->digest);
        bytes += (double)m->file_bytes;
        model_put(list[i].model);
    }
    metrics_emit(s, METRIC_MODEL_MAPPED_BYTES, bytes);
    metrics_emit(s, METRIC_MODEL_PACKED_BYTES, shared, "shared");
    metrics_emit(s, METRIC_MODEL_PACKED_BYTES, private, "private");
    free(list);
}

static void collect(void *ctx, struct metrics_scrape *s)
{
    collect_jobs(ctx, s);
    collect_chains(ctx, s);
    collect_models(ctx, s);
}

/* ---- start ---- */

static void observe_step(double seconds)
{
    metrics_observe(METRIC_CHAIN_STEP_SECONDS, seconds);
}

static struct models_users users_of(const struct settings *s)
{
    return (struct models_users){.batcher = {.threads = s->predict.threads,
                                             .batch_max = s->predict.batch_max,
                                             .queue_max = s->predict.queue_max,
                                             .queue_ms = s->predict.queue_ms,
                                             .pin = s->compute.pin},
                                 .bulk = {.threads = s->predict.threads,
                                          .batch_max = s->predict.batch_max,
                                          .queue_max = s->predict.batch_max,
                                          .pin = s->compute.pin,
                                          .nice = s->sampler.nice,
                                          .hidden = true},
                                 .chains = {.workers = s->sampler.workers,
                                            .slots = s->sampler.slots,
                                            .quantum_steps = s->sampler.quantum_steps,
                                            .quantum_ms = s->sampler.quantum_ms,
                                            .nice = s->sampler.nice,
                                            .pin = s->compute.pin,
                                            .on_step = observe_step}};
}

static int open_models(struct app *a, struct err *e)
{
    const struct settings *s = &a->settings;
    const struct models_settings m = {.directory = s->models.directory,
                                      .file = s->models.model,
                                      .default_model = s->models.default_model,
                                      .cache = s->models.cache,
                                      .budget_bytes = s->memory.budget_bytes,
                                      .precision = s->compute.precision,
                                      .share = s->compute.share,
                                      .share_bytes = s->compute.share_limit_bytes,
                                      .users = users_of(s)};
    if (s->models.cache[0])
        mkdir(s->models.cache, 0700);
    return models_open(&a->models, &m, e);
}

static int open_engine(struct app *a, struct err *e)
{
    const struct settings *s = &a->settings;
    const struct models_users u = users_of(s);
    int rc = tasks_open(&a->tasks, s->predict.decode_threads, TASK_QUEUE_MAX, e);
    if (rc == 0)
        rc = tasks_open(&a->chores, 1, CHORES_MAX, e);
    if (rc == 0)
        rc = batcher_open(&a->batcher, &u.batcher, e);
    const struct bulk_settings b = {.batcher = u.bulk, .image = predict_image_limits(s)};
    if (rc == 0)
        rc = bulk_open(&a->bulk, &b, e);
    return rc == 0 ? chains_open(&a->chains, &u.chains, e) : rc;
}

static int open_jobs(struct app *a, struct err *e)
{
    const struct settings *s = &a->settings;
    const struct store_limits limits = {.max_queued = s->jobs.max_queued,
                                        .max_queued_per_client = s->jobs.max_queued_per_client,
                                        .max_running_per_client = s->jobs.max_running_per_client,
                                        .max_bytes = s->jobs.max_store_bytes,
                                        .retention_ms = (int64_t)s->jobs.retention_seconds * 1000,
                                        .keep_jobs = s->jobs.retention_jobs,
                                        .keep_bytes = s->jobs.retention_bytes};
    const struct jobs_settings j = {
        .limits = {.max_images = s->sampler.max_images,
                   .max_steps = s->sampler.max_steps,
                   .image = predict_image_limits(s)},
        .predict = {.images = s->predict.job_images, .bytes = (size_t)s->predict.job_bytes},
        .train = {.enabled = s->train.enabled,
                  .data_root = s->train.data_root,
                  .directory = s->train.directory,
                  .limits = {.recipe_bytes = s->train.max_recipe_bytes,
                             .steps = s->train.max_steps,
                             .parameters = s->train.max_parameters},
                  .max_seconds = s->train.max_seconds,
                  .max_data_bytes = (size_t)s->train.max_data_bytes,
                  .max_memory_bytes = (size_t)s->train.max_memory_bytes,
                  .threads = s->train.threads,
                  .nice = s->train.nice},
        .budget_bytes = s->memory.budget_bytes / 4,
        .lease_ms = s->jobs.lease_ms,
        .checkpoint_ms = s->sampler.checkpoint_ms};
    int rc = strcmp(s->store.kind, "sqlite") == 0
                 ? store_sqlite_open(&a->store, s->store.directory, &limits, e)
                 : store_memory_open(&a->store, &limits, e);
    struct err why; /* the directory cannot be written now, as the store says itself */
    if (rc == 0 && strcmp(s->store.kind, "sqlite") == 0 &&
        crash_watch(s->store.directory, &why) != 0)
        log_error("crash_watch_failed", &why);
    if (rc == 0)
        rc = events_open(&a->events, SUBSCRIBERS_MAX, (uint64_t)timing_wall_ms() * EVENT_IDS_PER_MS,
                         e);
    const struct jobs_parts p = {.models = a->models,
                                 .chains = a->chains,
                                 .bulk = a->bulk,
                                 .store = a->store,
                                 .events = a->events,
                                 .tasks = a->tasks};
    return rc == 0 ? jobs_open(&a->jobs, &j, &p, e) : rc;
}

/* A PEM file as text; "" gives NULL. */
static int read_pem(const char *path, char **out, struct err *e)
{
    *out = NULL;
    if (!path[0])
        return 0;
    FILE *f = fopen(path, "re");
    if (!f)
        return fail_errno(e, FAIL_BAD_SETTING, "cannot read %s", path);
    char *text = malloc(PEM_MAX);
    const size_t n = text ? fread(text, 1, PEM_MAX - 1, f) : 0;
    fclose(f);
    if (n == 0) {
        free(text);
        return fail(e, FAIL_BAD_SETTING, "%s is empty", path);
    }
    text[n] = '\0';
    *out = text;
    return 0;
}

static int open_http(struct app *a, int listen_fd, struct err *e)
{
    const struct settings *s = &a->settings;
    char *certificate = NULL, *key = NULL;
    const struct http_handlers handlers = routes_handlers(a);
    int rc = read_pem(s->http.tls_certificate, &certificate, e);
    if (rc == 0)
        rc = read_pem(s->http.tls_key, &key, e);
    const struct http_settings h = {.address = s->http.address,
                                    .port = (uint16_t)s->http.port,
                                    .listen_fd = listen_fd,
                                    .threads = s->http.threads,
                                    .max_connections = s->http.max_connections,
                                    .max_connections_per_ip = s->http.max_connections_per_ip,
                                    .max_header_bytes = (size_t)s->http.max_header_bytes,
                                    .header_timeout_ms = s->http.header_timeout_ms,
                                    .body_timeout_ms = s->http.body_timeout_ms,
                                    .idle_timeout_ms = s->http.idle_timeout_ms,
                                    .write_timeout_ms = s->http.write_timeout_ms,
                                    .tls_cert = certificate,
                                    .tls_key = key};
    if (rc == 0)
        rc = http_open(&a->http, &h, &handlers, e);
    if (key)
        explicit_bzero(key, strlen(key));
    free(key);
    free(certificate);
    return rc;
}

static int start(struct app *a, int listen_fd, struct err *e)
{
    const char *compute = model_fingerprint_of(settings_precision_of(&a->settings, NULL));
    char isa[32];
    snprintf(isa, sizeof isa, "%.*s", (int)strcspn(compute, "/"), compute);
    metrics_set(METRIC_BUILD_INFO, 1, JEMD_VERSION, isa, compute);
    int rc = a->settings.auth.keys[0] ? auth_open(&a->auth, a->settings.auth.keys, e) : 0;
    if (rc == 0)
        rc = open_models(a, e);
    if (rc == 0)
        rc = open_engine(a, e);
    if (rc == 0)
        rc = open_jobs(a, e);
    if (rc == 0) {
        metrics_collect(collect, a);
        rc = open_http(a, listen_fd, e);
    }
    return rc;
}

/* ---- stop ---- */

/* Waits until the requests in flight (streams apart) are answered, at most drain_ms. */
static void let_finish(struct app *a)
{
    const int64_t until = timing_ns() + (int64_t)a->settings.shutdown.drain_ms * 1000000;
    while (http_in_flight(a->http) > 0 && timing_ns() < until)
        usleep(5000);
}

/* Stop accepting, answer what is in flight, park the chains, close the store, free. Copes with an
 * app that was only half started. */
static void stop(struct app *a)
{
    atomic_store(&a->stopped_ns, timing_ns() + (int64_t)a->settings.shutdown.drain_ms * 1000000);
    atomic_store(&a->draining, true);
    if (a->jobs)
        jobs_drain(a->jobs);
    if (a->http) {
        http_quiesce(a->http);
        http_end_streams(a->http);
        events_tick(a->events, INT64_MAX); /* answers long polls */
        let_finish(a);
    }
    jobs_stop(a->jobs); /* who stays may post tasks, so the tasks end after it and the batcher */
    if (a->chains)
        chains_stop(a->chains);
    bulk_stop(a->bulk);
    if (a->http)
        http_close(a->http);
    batcher_stop(a->batcher);
    tasks_close(a->chores);
    tasks_close(a->tasks);
    jobs_close(a->jobs);
    bulk_close(a->bulk);
    batcher_close(a->batcher);
    metrics_fini();
    if (a->events)
        events_close(a->events);
    if (a->store)
        a->store->ops->close(a->store);
    chains_close(a->chains);
    models_close(a->models);
    auth_close(a->auth);
}

/* ---- running ---- */

/* What SIGHUP changes: log level, keys, models. Anything broken leaves the old one in force. */
static void reload(struct app *a, const char *config, const char *const *overrides)
{
    struct settings *fresh = malloc(sizeof *fresh);
    enum logger_level level;
    struct err e;
    if (fresh && settings_load(fresh, config, overrides, &e) != 0)
        log_error("reload_settings_refused", &e);
    else if (fresh && logger_parse_level(fresh->log.level, &level) == 0)
        logger_set_level(level);
    free(fresh);
    if (a->auth && auth_reload(a->auth, &e) != 0)
        log_error("reload_keys_refused", &e);
    const int changed = models_rescan(a->models);
    if (changed) {
        chains_forget(a->chains);
        batcher_forget(a->batcher);
        bulk_forget(a->bulk);
    }
    logger(LOGGER_INFO, "reloaded", "models_changed=%d keys=%d", changed,
           a->auth ? auth_count(a->auth) : 0);
}

/* Libraries start threads before main (OpenBLAS does) that block no signal, and what the kernel
 * gives to one of them would end the process: it is passed on to the thread that waits. */
static _Atomic pthread_t receiver;

static void pass_on(int sig)
{
    pthread_kill(atomic_load(&receiver), sig);
}

static void take_signals(sigset_t *set)
{
    static const int ours[] = {SIGTERM, SIGINT, SIGHUP};
    const struct sigaction action = {.sa_handler = pass_on, .sa_flags = SA_RESTART};
    signal(SIGPIPE, SIG_IGN);
    sigemptyset(set);
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        sigaddset(set, ours[i]);
    pthread_sigmask(SIG_BLOCK, set, NULL);
    atomic_store(&receiver, pthread_self());
    for (size_t i = 0; i < sizeof ours / sizeof ours[0]; i++)
        sigaction(ours[i], &action, NULL);
}

static void *end_at_once(void *arg)
{
    const sigset_t *set = arg;
    int sig;
    atomic_store(&receiver, pthread_self());
    do
        sigwait(set, &sig);
    while (sig == SIGHUP);
    logger(LOGGER_WARN, "ended_at_once", "signal=%d", sig);
    _exit(1);
}

static void run(struct app *a, const char *config, const char *const *overrides,
                const struct notify *n, const sigset_t *set)
{
    int sig = 0;
    for (;;) {
        notify_ready(n);
        sigwait(set, &sig);
        if (sig != SIGHUP)
            break;
        notify_reloading(n);
        reload(a, config, overrides);
    }
    notify_stopping(n);
    logger(LOGGER_INFO, "stopping", "signal=%d in_flight=%d", sig, http_in_flight(a->http));
}

static void say_hello(const struct app *a)
{
    struct model *m;
    const char *compute = model_fingerprint_of(settings_precision_of(&a->settings, NULL));
    char name[64] = "none";
    if (models_find(a->models, NULL, &m, NULL) == 0) {
        snprintf(name, sizeof name, "%s", m->d.name);
        compute = model_fingerprint(m);
        model_put(m);
    }
    logger(LOGGER_INFO, "ready", "address=%s port=%d model=%s compute=%s store=%s pid=%ld",
           a->settings.http.address, http_port(a->http), name, compute, a->store->ops->name,
           (long)getpid());
}

/* Left alone, the C library keeps tens of megabytes a thread once large bodies have come and gone. */
static void give_memory_back(void)
{
    enum { LARGE = 1 << 20 };
    mallopt(M_MMAP_THRESHOLD, LARGE);
    mallopt(M_TRIM_THRESHOLD, LARGE);
}

int daemon_serve(const char *config, const char *const *overrides)
{
    static struct app app;
    static sigset_t set;
    struct notify notify;
    struct err e;
    enum logger_level level;
    int listen_fd = -1;
    if (settings_load(&app.settings, config, overrides, &e) != 0 ||
        notify_listen_fd(&listen_fd, &e) != 0 ||
        (listen_fd >= 0 && settings_check_socket(&app.settings, listen_fd, &e) != 0)) {
        log_error("settings_refused", &e);
        return 2;
    }
    if (logger_parse_level(app.settings.log.level, &level) == 0)
        logger_set_level(level);
    give_memory_back();
    take_signals(&set);
    if (notify_init(&notify, &e) != 0)
        log_error("notify_refused", &e);
    app.started_ms = timing_wall_ms();
    const int rc = start(&app, listen_fd, &e);
    if (rc == 0) {
        say_hello(&app);
        run(&app, config, overrides, &notify, &set);
        pthread_t impatient;
        if (pthread_create(&impatient, NULL, end_at_once, &set) == 0)
            pthread_detach(impatient);
    } else {
        log_error("start_failed", &e);
    }
    stop(&app);
    logger(LOGGER_INFO, "stopped", "code=%d", rc == 0 ? 0 : 1);
    notify_fini(&notify);
    return rc == 0 ? 0 : 1;
}
