/* SPDX-License-Identifier: Apache-2.0 */
#include "server/train_run.h"

#include "base/background.h"
#include "base/logger.h"
#include "base/pool.h"
#include "base/timing.h"
#include "base/witness.h"
#include "ebm/model.h"
#include "learn/export.h"
#include "learn/gradient.h"
#include "net/walk.h"
#include "proto/image.h"
#include "server/data_open.h"
#include "server/metrics.h"
#include "server/run_directory.h"
#include "server/versions.h"

#include <math.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum {
    ROW_STEPS = 50, /* a row of metrics.csv */
    GRID_IMAGES = 64,
    GRID_COLUMNS = 8,
    GRID_SIDE = 96,       /* smaller images are enlarged */
    PREVIEW_MS = 1000,    /* between two pictures */
    METRICS_MAX = 8 << 20 /* of metrics.csv as an artifact */
};

struct train_run {
    struct train_task t;
    pthread_t thread;
    bool joined; /* of who closes */
    atomic_bool stop;
    atomic_int end; /* enum train_end */
    struct err error;
    struct train_result result;
    pthread_mutex_t mu;
    struct train_progress progress; /* guarded by mu */
    struct blob *preview;           /* guarded by mu */
    /* The thread's own. */
    int lock;
    struct source *data;
    struct pool *pool;
    struct trainer *trainer;
    FILE *metrics, *log;
    int64_t begin_ns, preview_ns;
};

/* ---- before it begins ---- */

static struct data_request data_of(const struct train_task *t)
{
    return (struct data_request){.dir = t->data,
                                 .split = t->split,
                                 .attributes = &t->recipe->model.attributes,
                                 .input = t->recipe->model.input,
                                 .calib_share = t->calib_share,
                                 .stop = t->stop,
                                 .max_bytes = t->max_data_bytes};
}

static struct train_report_task report_of(const struct train_task *t)
{
    return (struct train_report_task){.data = t->data,
                                      .calib_share = t->calib_share,
                                      .max_data_bytes = t->max_data_bytes,
                                      .threads = t->threads,
                                      .cancel = t->stop};
}

/* Images are decoded when the run begins, those that the model will be measured on, too: a broken
 * one then ends it before it has a checkpoint. */
static int open_data(struct train_run *r, struct err *e)
{
    struct data_request want = data_of(&r->t);
    struct train_report_task report = report_of(&r->t);
    const bool first = run_directory_step(r->t.directory) < 0;
    want.pool = r->pool;
    want.decode = first;
    want.stop = report.cancel = &r->stop;
    const int rc = data_open(&r->data, &want, e);
    return rc == 0 && first ? train_report_look(&report, &r->t.recipe->model, r->pool, e) : rc;
}

/* An error about recipe or data where it has no pointer yet. */
static int blame(struct err *e, const char *pointer)
{
    if (!e)
        return -FAIL_BAD_RECIPE;
    if (e->code == FAIL_BAD_MODEL)
        e->code = FAIL_BAD_RECIPE;
    if (e->code == FAIL_SHUTTING_DOWN)
        return -FAIL_SHUTTING_DOWN;
    return e->pointer[0] ? -(int)e->code : fail_at(e, pointer);
}

/* What the training will take at its end, where the trainer is still there: the model file is made,
 * then it is measured. Errors: BAD_MODEL, NO_MEMORY; those of train_report_estimate. */
static int measure(struct train_cost *out, const struct train_task *t, const struct source *d,
                   struct err *e)
{
    const int threads = t->threads > 0 ? t->threads : pool_cores();
    const struct trainer_options o = {.recipe = t->recipe, .data = d};
    struct train_report_task report = report_of(t);
    struct trainer_cost c;
    size_t end;
    report.threads = threads;
    int rc = trainer_estimate(&c, &o, threads, e);
    if (rc != 0)
        return blame(e, "/recipe/model/layers");
    rc = train_report_estimate(&end, &report, &t->recipe->model, c.walkers_bytes, e);
    if (rc != 0)
        return blame(e, "/data/path");
    end = end > c.export_bytes ? end : c.export_bytes;
    *out =
        (struct train_cost){.images = (long long)d->n,
                            .parameters = (long long)c.parameters,
                            .memory_bytes = mem_sum(d->held_bytes, mem_sum(c.memory_bytes, end))};
    memcpy(out->note, d->note, sizeof out->note);
    return 0;
}

int train_run_check(struct train_cost *out, const struct train_task *t, size_t max_memory_bytes,
                    struct err *e)
{
    struct source *data;
    struct trainer *trainer;
    const struct data_request want = data_of(t);
    int rc = data_open(&data, &want, e);
    if (rc != 0)
        return blame(e, rc == -FAIL_NOT_FOUND ? "/data" : "/data/path");
    const struct trainer_options o = {.recipe = t->recipe, .data = data};
    rc = measure(out, t, data, e);
    if (rc == 0 && out->memory_bytes > max_memory_bytes) {
        fail(e, FAIL_OUT_OF_RANGE, "the training would take %zu MB, the daemon allows %zu MB",
             out->memory_bytes >> 20, max_memory_bytes >> 20);
        fail_limit(e, (long long)max_memory_bytes);
        rc = fail_at(e, "/recipe");
    }
    if (rc == 0) {
        rc = trainer_open(&trainer, &o, e);
        if (rc == 0)
            trainer_close(trainer);
        else
            rc = blame(e, "/recipe");
    }
    source_close(data);
    return rc;
}

/* ---- pictures of the replay buffer ---- */

static void to_pixels(const struct recipe *r, const float *x, unsigned char *out)
{
    const struct net_shape in = r->model.input;
    const size_t area = (size_t)in.h * (size_t)in.w;
    const float scale = 255 / (r->model.range_hi - r->model.range_lo);
    for (size_t i = 0; i < area; i++) {
        for (int c = 0; c < in.c; c++) {
            const float v = (x[(size_t)c * area + i] - r->model.range_lo) * scale;
            *out++ = (unsigned char)(!(v > 0) ? 0 : v >= 255 ? 255 : lrintf(v));
        }
    }
}

/* Entries from all over the buffer; NULL without one, or without memory. */
static struct blob *draw_buffer(const struct trainer *t)
{
    const struct recipe *r = trainer_recipe(t);
    const struct net_shape in = r->model.input;
    const size_t elements = net_shape_elements(in);
    const struct image shape = {
        .width = (uint32_t)in.w, .height = (uint32_t)in.h, .channels = in.c};
    const int scale = in.w < GRID_SIDE ? (GRID_SIDE + in.w - 1) / in.w : 1;
    const float *x;
    const uint8_t *y;
    struct image grid = {0};
    struct blob *png = NULL;
    const int all = trainer_buffer(t, &x, &y), n = all < GRID_IMAGES ? all : GRID_IMAGES;
    unsigned char *tiles = n > 0 ? malloc((size_t)n * elements) : NULL;
    for (int i = 0; tiles && i < n; i++)
        to_pixels(r, x + (size_t)((long long)i * all / n) * elements, tiles + (size_t)i * elements);
    if (tiles &&
        image_grid(&grid, tiles, n, &shape, n < GRID_COLUMNS ? n : GRID_COLUMNS, 4, scale, NULL) ==
            0 &&
        image_encode_png(&png, &grid, 6, NULL) != 0)
        png = NULL;
    image_fini(&grid);
    free(tiles);
    return png;
}

static void make_preview(struct train_run *r, long long step)
{
    const int every = r->t.preview_every_steps;
    const int64_t now = timing_ns();
    if (every == 0 || step % every != 0 || now - r->preview_ns < (int64_t)PREVIEW_MS * 1000000)
        return;
    struct blob *png = draw_buffer(r->trainer);
    if (!png)
        return;
    r->preview_ns = now;
    pthread_mutex_lock(&r->mu);
    struct blob *old = r->preview;
    r->preview = png;
    r->progress.previews++;
    pthread_mutex_unlock(&r->mu);
    blob_put(old);
}

/* ---- its thread ---- */

static void publish(struct train_run *r, const struct trainer_step *s)
{
    struct run_directory_pace pace;
    pthread_mutex_lock(&r->mu);
    struct train_progress *p = &r->progress;
    if (run_directory_pace(&pace, r->trainer, p->first, r->begin_ns)) {
        p->images_per_second = pace.images;
        p->eta_seconds = pace.left_seconds;
    }
    if (s->trouble == HEALTH_GOOD)
        p->last = *s;
    else
        p->trouble = s->trouble;
    p->last.step = trainer_done(r->trainer); /* a checkpoint's after a rollback */
    p->last.rollbacks = s->rollbacks;
    pthread_mutex_unlock(&r->mu);
}

/* What was amiss with checkpoints. */
static void log_note(const struct train_run *r)
{
    char text[4096];
    if (!trainer_note(r->trainer)[0])
        return;
    fprintf(r->log, "%s\n", trainer_note(r->trainer));
    logger(LOGGER_WARN, "training_checkpoints", "run=%s note=%s", r->t.directory,
           logger_quote(trainer_note(r->trainer), text, sizeof text));
}

static void count(const struct train_run *r, double seconds)
{
    metrics_add(METRIC_TRAIN_STEPS, 1);
    metrics_add(METRIC_TRAIN_IMAGES, (uint64_t)trainer_images(r->trainer));
    metrics_observe(METRIC_TRAIN_STEP_SECONDS, seconds);
}

static void note_rollback(const struct train_run *r, const struct trainer_step *s)
{
    char text[300], quoted[200];
    metrics_add(METRIC_TRAIN_ROLLBACKS, 1);
    run_directory_rolled_back(text, sizeof text, r->trainer, s);
    fprintf(r->log, "%s\n", text);
    logger(LOGGER_WARN, "training_rolled_back",
           "run=%s step=%lld to_step=%lld rollbacks=%d reason=%s", r->t.directory, s->step,
           trainer_done(r->trainer), s->rollbacks,
           logger_quote(health_texts[s->trouble], quoted, sizeof quoted));
    log_note(r);
}

static int begin_log(struct train_run *r, struct err *e)
{
    char text[512], quoted[2 * SOURCE_NOTE];
    const int rc = run_directory_log(&r->log, r->t.directory, e);
    if (rc != 0)
        return rc;
    run_directory_begun(text, sizeof text, r->trainer, r->data, pool_threads(r->pool));
    fprintf(r->log, "%s\n", text);
    if (!r->data->note[0])
        return 0;
    memcpy(r->result.note, r->data->note, sizeof r->result.note);
    fprintf(r->log, "%s\n", r->data->note);
    logger(LOGGER_WARN, "training_data_noted", "run=%s note=%s", r->t.directory,
           logger_quote(r->data->note, quoted, sizeof quoted));
    return 0;
}

static int begin(struct train_run *r, struct err *e)
{
    background_thread(r->t.nice);
    int rc = run_directory_lock(r->t.directory, &r->lock, e);
    if (rc == 0)
        rc = pool_open(&r->pool, r->t.threads, e); /* its threads have this one's priority */
    if (rc == 0)
        rc = open_data(r, e);
    const struct trainer_options o = {.recipe = r->t.recipe,
                                      .data = r->data,
                                      .pool = r->pool,
                                      .directory = r->t.directory,
                                      .stop = &r->stop};
    if (rc == 0)
        rc = trainer_open(&r->trainer, &o, e);
    if (rc == 0) /* not before it is known that the checkpoints are of this recipe */
        rc = run_directory_write(r->t.directory, r->t.request, e);
    if (rc == 0)
        rc = begin_log(r, e);
    if (rc != 0)
        return rc;
    log_note(r);
    pthread_mutex_lock(&r->mu);
    r->progress.first = r->progress.last.step = trainer_done(r->trainer);
    r->progress.last.rollbacks = trainer_rollbacks(r->trainer);
    r->progress.began = true;
    pthread_mutex_unlock(&r->mu);
    r->begin_ns = timing_ns();
    return run_directory_metrics(&r->metrics, r->t.directory, trainer_done(r->trainer), e);
}

/* 1 when all steps are done, 0 when stopped. */
static int make_steps(struct train_run *r, struct err *e)
{
    while (!atomic_load(&r->stop)) {
        struct trainer_step s;
        const int64_t before = timing_ns();
        const int rc = trainer_step(r->trainer, &s, e);
        if (rc != 0)
            return rc;
        if (s.trouble == HEALTH_GOOD && s.step % ROW_STEPS == 0)
            run_directory_row(r->metrics, &s);
        count(r, (double)(timing_ns() - before) * 1e-9);
        if (s.trouble != HEALTH_GOOD) /* in the logs before anybody is told */
            note_rollback(r, &s);
        publish(r, &s);
        make_preview(r, s.step);
    }
    return trainer_save(r->trainer, e);
}

static struct blob *read_metrics(const struct train_run *r)
{
    rewind(r->metrics);
    struct blob *whole = NULL;
    char *text = malloc(METRICS_MAX);
    if (text)
        whole = blob_copy(text, fread(text, 1, METRICS_MAX, r->metrics));
    free(text);
    return whole;
}

static int look_at_staged(struct train_run *r, const char *path, struct err *e)
{
    struct model *m;
    const int rc = model_open(&m, path, NULL, false, e);
    if (rc != 0)
        return rc;
    memcpy(r->result.digest, m->digest, sizeof r->result.digest);
    r->result.bytes = (long long)m->file_bytes;
    model_put(m);
    return 0;
}

/* The model file, measured and calibrated, as a staged version. */
static int stage(struct train_run *r, struct err *e)
{
    const struct description *d = &r->t.recipe->model;
    char path[VERSIONS_PATH];
    const struct run_directory_data data = {
        .sha256 = r->data->sha256, .split = r->t.split, .calib_share = r->t.calib_share};
    json_t *from = run_directory_provenance(r->t.recipe, &data, trainer_done(r->trainer));
    struct train_report_task t = report_of(&r->t);
    const struct export_task file = {
        .pool = r->pool, .provenance = from, .path = path, .stop = &r->stop};
    t.model = path;
    t.cancel = &r->stop;
    int rc = versions_prepare(r->t.models, d->name, d->version, path, e);
    const bool prepared = rc == 0;
    if (rc == 0)
        rc = export_model(r->trainer, &file, e);
    if (rc == 0)
        rc = train_report(&r->result.report, &t, e);
    if (rc == 0)
        rc = look_at_staged(r, path, e);
    if (rc == 0)
        rc = versions_install(r->t.models, d->name, d->version, e);
    if (rc != 0 && prepared)
        unlink(path);
    json_decref(from);
    return rc;
}

static int finish(struct train_run *r, struct err *e)
{
    pthread_mutex_lock(&r->mu);
    r->progress.evaluating = true;
    r->progress.eta_seconds = 0;
    r->result.rollbacks = r->progress.last.rollbacks;
    pthread_mutex_unlock(&r->mu);
    const int rc = stage(r, e);
    if (rc != 0)
        return rc;
    r->result.steps = trainer_done(r->trainer);
    r->result.exact = trainer_exact(r->trainer);
    r->result.grid = draw_buffer(r->trainer);
    r->result.metrics = read_metrics(r);
    return 0;
}

/* The last line of log.txt. */
static void close_log(struct train_run *r, enum train_end end)
{
    const struct description *d = &r->t.recipe->model;
    if (!r->log)
        return;
    if (end == TRAIN_DONE)
        fprintf(r->log, "made version %s of the model %s\n", d->version, d->name);
    else if (end == TRAIN_STOPPED)
        fprintf(r->log, "stopped at step %lld of %lld\n", trainer_done(r->trainer),
                r->t.recipe->steps);
    else
        fprintf(r->log, "%s\n", r->error.text);
    fclose(r->log);
}

static void let_go(struct train_run *r)
{
    if (r->metrics)
        fclose(r->metrics);
    trainer_close(r->trainer);
    pool_close(r->pool);
    source_close(r->data);
    if (r->lock >= 0)
        close(r->lock);
}

static void *run_main(void *arg)
{
    struct train_run *r = arg;
    enum train_end end = TRAIN_FAILED;
    witness_set(witness_of(r->t.name));
    int rc = begin(r, &r->error);
    if (rc == 0)
        rc = make_steps(r, &r->error);
    if (rc == 0) {
        end = TRAIN_STOPPED;
    } else if (rc > 0) {
        rc = finish(r, &r->error);
        if (rc == 0)
            end = TRAIN_DONE;
    }
    if (rc == -FAIL_SHUTTING_DOWN) /* stopped; the last step, if any, has its checkpoint */
        end = TRAIN_STOPPED;
    close_log(r, end);
    let_go(r);
    atomic_store(&r->end, end);
    r->t.over(r->t.ctx);
    return NULL;
}

/* ---- from outside ---- */

int train_run_open(struct train_run **out, const struct train_task *t, struct err *e)
{
    struct train_run *r = calloc(1, sizeof *r);
    if (!r)
        return fail(e, FAIL_NO_MEMORY, "cannot allocate a training");
    r->t = *t;
    r->lock = -1;
    r->preview_ns = INT64_MIN / 2;
    pthread_mutex_init(&r->mu, NULL);
    *out = r; /* before `over` can be called */
    if (pthread_create(&r->thread, NULL, run_main, r) == 0)
        return 0;
    *out = NULL;
    pthread_mutex_destroy(&r->mu);
    free(r);
    return fail(e, FAIL_IO, "cannot start a thread to train");
}

void train_run_stop(struct train_run *r)
{
    atomic_store(&r->stop, true);
}

enum train_end train_run_end(struct train_run *r)
{
    return (enum train_end)atomic_load(&r->end);
}

void train_run_progress(struct train_run *r, struct train_progress *out)
{
    pthread_mutex_lock(&r->mu);
    *out = r->progress;
    pthread_mutex_unlock(&r->mu);
}

struct blob *train_run_preview(struct train_run *r)
{
    pthread_mutex_lock(&r->mu);
    struct blob *png = r->preview ? blob_get(r->preview) : NULL;
    pthread_mutex_unlock(&r->mu);
    return png;
}

const struct err *train_run_error(const struct train_run *r)
{
    return &r->error;
}

const struct train_result *train_run_result(const struct train_run *r)
{
    return &r->result;
}

void train_run_join(struct train_run *r)
{
    train_run_stop(r);
    if (!r->joined)
        pthread_join(r->thread, NULL);
    r->joined = true;
}

void train_run_close(struct train_run *r)
{
    if (!r)
        return;
    train_run_join(r);
    blob_put(r->preview);
    blob_put(r->result.report.json);
    blob_put(r->result.report.html);
    blob_put(r->result.grid);
    blob_put(r->result.metrics);
    pthread_mutex_destroy(&r->mu);
    free(r);
}
