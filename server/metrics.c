/* SPDX-License-Identifier: Apache-2.0 */
#include "server/metrics.h"

#include "base/timing.h"
#include "server/metrics_text.h"

#include <dirent.h>
#include <inttypes.h>
#include <math.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <unistd.h>

enum type { COUNTER, GAUGE, HISTOGRAM };
enum { SLOTS = 1024, COLLECTORS_MAX = 16 }; /* SLOTS: a power of two, twice the children */

struct buckets {
    int n;
    double upper[20]; /* ascending; +Inf is implied */
};

static const struct buckets fast = {
    15, {5e-5, 1e-4, 2.5e-4, 5e-4, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 5}};
static const struct buckets interactive = {
    14, {.0005, .001, .0025, .005, .01, .025, .05, .1, .25, .5, 1, 2.5, 5, 10}};
static const struct buckets patient = {
    14, {.1, .5, 1, 2.5, 5, 10, 30, 60, 300, 600, 1800, 3600, 14400, 86400}};
static const struct buckets ratios = {11, {.1, .25, .5, .67, .8, 1, 1.25, 1.5, 2, 4, 10}};
static const struct buckets sizes = {9, {1, 2, 4, 8, 16, 32, 64, 128, 256}};
static const struct buckets energies = {
    17, {-1000, -300, -100, -50, -30, -20, -10, -5, 0, 5, 10, 20, 30, 50, 100, 300, 1000}};

struct row {
    const char *name, *help;
    enum type type;
    const char *labels[METRICS_LABELS_MAX];
    const struct buckets *buckets; /* HISTOGRAM */
};

/* clang-format off */
static const struct row table[METRIC_COUNT] = {
    [METRIC_BUILD_INFO] = {"jemd_build_info",
        "Always 1; what this daemon is. Equal fingerprints give bit-identical samples.",
        GAUGE, {"version", "isa", "fingerprint"}, NULL},
    [METRIC_HTTP_REQUESTS] = {"jemd_http_requests_total",
        "Requests answered.", COUNTER, {"route", "method", "code"}, NULL},
    [METRIC_HTTP_REQUEST_DURATION] = {"jemd_http_request_duration_seconds",
        "From complete headers to the last byte of the reply.",
        HISTOGRAM, {"route"}, &interactive},
    [METRIC_HTTP_REJECTED] = {"jemd_http_rejected_total",
        "Connections and requests refused before they reached a route.",
        COUNTER, {"reason"}, NULL},
    [METRIC_PREDICT_QUEUE_SECONDS] = {"jemd_predict_queue_seconds",
        "Time a decoded image waited for its forward pass.", HISTOGRAM, {0}, &interactive},
    [METRIC_PREDICT_COMPUTE_SECONDS] = {"jemd_predict_compute_seconds",
        "Time of one batch in the network.", HISTOGRAM, {0}, &interactive},
    [METRIC_PREDICT_BATCH_SIZE] = {"jemd_predict_batch_size",
        "Images in one forward pass.", HISTOGRAM, {0}, &sizes},
    [METRIC_PREDICT_JOB_IMAGES] = {"jemd_predict_job_images_total",
        "Images of prediction jobs, by whether they could be read.", COUNTER, {"result"}, NULL},
    [METRIC_IMAGE_DECODE_SECONDS] = {"jemd_image_decode_seconds",
        "Time to decode and resize one image.", HISTOGRAM, {"format"}, &interactive},
    [METRIC_INPUT_ENERGY] = {"jemd_input_energy",
        "Energy of predicted images; a shift means that the inputs drift.",
        HISTOGRAM, {"model"}, &energies},
    [METRIC_OOD_FLAGGED] = {"jemd_ood_flagged_total",
        "Images judged out of distribution.", COUNTER, {"model"}, NULL},
    [METRIC_ATTRIBUTE_POSITIVE] = {"jemd_attribute_positive_total",
        "Images by the value predicted for an attribute.",
        COUNTER, {"model", "attribute", "value"}, NULL},
    [METRIC_JOBS] = {"jemd_jobs", "Jobs in the store.", GAUGE, {"state", "type"}, NULL},
    [METRIC_JOB_QUEUE_WAIT_SECONDS] = {"jemd_job_queue_wait_seconds",
        "From acceptance of a job, or when it was due, to when it first began.", HISTOGRAM, {0}, &patient},
    [METRIC_JOB_RUN_SECONDS] = {"jemd_job_run_seconds",
        "From when a job first began to its end.", HISTOGRAM, {0}, &patient},
    [METRIC_JOB_ESTIMATE_ERROR_RATIO] = {"jemd_job_estimate_error_ratio",
        "Time a sampling or prediction job took over the first estimate of it; 1 is right.",
        HISTOGRAM, {0}, &ratios},
    [METRIC_JOB_QUEUE_OLDEST_AGE_SECONDS] = {"jemd_job_queue_oldest_age_seconds",
        "Age of the job that has waited longest; 0 when none waits.", GAUGE, {0}, NULL},
    [METRIC_JOB_BACKLOG_WORK_SECONDS] = {"jemd_job_backlog_work_seconds",
        "Time that the accepted jobs will still take at the present speed.", GAUGE, {0}, NULL},
    [METRIC_JOB_CANCEL_LATENCY_SECONDS] = {"jemd_job_cancel_latency_seconds",
        "From the request to cancel to the moment the last chain stopped.",
        HISTOGRAM, {0}, &interactive},
    [METRIC_JOB_RESUMES] = {"jemd_job_resumes_total",
        "Jobs resumed from a checkpoint.", COUNTER, {0}, NULL},
    [METRIC_JOB_CRASHES] = {"jemd_job_crashes_total",
        "Crashes and failures of workers that a job was held responsible for.", COUNTER, {0}, NULL},
    [METRIC_CHAIN_STEPS] = {"jemd_chain_steps_total",
        "MCMC steps, summed over chains.", COUNTER, {0}, NULL},
    [METRIC_CHAIN_SLOTS] = {"jemd_chain_slots",
        "Chain slots of all sampler workers.", GAUGE, {"state"}, NULL},
    [METRIC_CHAIN_SLOT_SECONDS] = {"jemd_chain_slot_seconds_total",
        "Time of all chain slots: with a chain that was being moved (busy), or not (free).",
        COUNTER, {"state"}, NULL},
    [METRIC_CHAIN_STEP_SECONDS] = {"jemd_chain_step_seconds",
        "Time of one step of all chains in a worker's slots.", HISTOGRAM, {0}, &fast},
    [METRIC_MCMC_DIVERGENCES] = {"jemd_mcmc_divergences_total",
        "Chains that were stopped because they diverged.", COUNTER, {0}, NULL},
    [METRIC_TRAIN_STEPS] = {"jemd_train_steps_total",
        "Steps of training jobs.", COUNTER, {0}, NULL},
    [METRIC_TRAIN_IMAGES] = {"jemd_train_images_total",
        "Images of data that these steps were given.", COUNTER, {0}, NULL},
    [METRIC_TRAIN_ROLLBACKS] = {"jemd_train_rollbacks_total",
        "Times that a training went back to an earlier checkpoint.", COUNTER, {0}, NULL},
    [METRIC_TRAIN_STEP_SECONDS] = {"jemd_train_step_seconds",
        "Time of one training step.", HISTOGRAM, {0}, &interactive},
    [METRIC_MODEL_PROMOTIONS] = {"jemd_model_promotions_total",
        "Times that another version of a model was let serve.", COUNTER, {"model"}, NULL},
    [METRIC_MODEL_INFO] = {"jemd_model_info",
        "Always 1; one series a loaded model.", GAUGE, {"model", "version", "digest"}, NULL},
    [METRIC_MODEL_MAPPED_BYTES] = {"jemd_model_mapped_bytes",
        "Bytes of model files that are mapped.", GAUGE, {0}, NULL},
    [METRIC_MODEL_PACKED_BYTES] = {"jemd_model_packed_bytes",
        "Bytes of weights packed for this CPU: in memory shared between processes, or private.",
        GAUGE, {"memory"}, NULL},
    [METRIC_STORE_OP_SECONDS] = {"jemd_store_op_seconds",
        "Time of one operation of the job store.", HISTOGRAM, {"op"}, &fast},
    [METRIC_PROCESS_CPU_SECONDS] = {"process_cpu_seconds_total",
        "User and system CPU time.", COUNTER, {0}, NULL},
    [METRIC_PROCESS_START_TIME_SECONDS] = {"process_start_time_seconds",
        "Start of the process since the Unix epoch.", GAUGE, {0}, NULL},
    [METRIC_PROCESS_RESIDENT_BYTES] = {"process_resident_memory_bytes",
        "Resident memory.", GAUGE, {0}, NULL},
    [METRIC_PROCESS_VIRTUAL_BYTES] = {"process_virtual_memory_bytes",
        "Virtual memory.", GAUGE, {0}, NULL},
    [METRIC_PROCESS_OPEN_FDS] = {"process_open_fds", "Open file descriptors.", GAUGE, {0}, NULL},
    [METRIC_PROCESS_MAX_FDS] = {"process_max_fds",
        "Limit of open file descriptors.", GAUGE, {0}, NULL},
    [METRIC_PROCESS_THREADS] = {"process_threads", "Threads.", GAUGE, {0}, NULL},
};
/* clang-format on */

/* One combination of label values. Never moved or freed before metrics_fini. */
struct child {
    uint64_t hash;
    char *labels[METRICS_LABELS_MAX + 1]; /* NULL-terminated */
    /* Counter: cells[0]. Gauge: cells[0], the bits of a double. Histogram: a count for each bucket,
     * one for +Inf, then the bits of the sum. */
    _Atomic uint64_t cells[];
};

/* Open addressing; filled under mu, read without. */
static struct child *_Atomic slots[METRIC_COUNT][SLOTS];
static _Atomic int n_children[METRIC_COUNT];
static pthread_mutex_t mu = PTHREAD_MUTEX_INITIALIZER;

static struct {
    void (*f)(void *ctx, struct metrics_scrape *s);
    void *ctx;
} collectors[COLLECTORS_MAX];
static int n_collectors;

static int label_count(const struct row *r)
{
    int n = 0;
    while (n < METRICS_LABELS_MAX && r->labels[n])
        n++;
    return n;
}

/* FNV-1a over the values with their NULs. */
static uint64_t hash_labels(const struct row *r, const char *const *labels)
{
    uint64_t h = 0xcbf29ce484222325;
    int i = 0;
    for (; i < METRICS_LABELS_MAX && r->labels[i]; i++) {
        invariant(labels[i]);
        const unsigned char *p = (const unsigned char *)labels[i];
        do
            h = (h ^ *p) * 0x100000001b3;
        while (*p++);
    }
    invariant(!labels[i]);
    return h ^ h >> 32;
}

static bool same_labels(const struct child *c, const char *const *labels)
{
    for (int i = 0; c->labels[i]; i++)
        if (strcmp(c->labels[i], labels[i]) != 0)
            return false;
    return true;
}

/* The slot of these labels: the child, or NULL in the empty slot where it would go. */
static struct child *probe(enum metric metric, uint64_t hash, const char *const *labels, int *slot)
{
    for (int i = (int)(hash % SLOTS);; i = (i + 1) % SLOTS) {
        struct child *c = atomic_load_explicit(&slots[metric][i], memory_order_acquire);
        if (!c || (c->hash == hash && same_labels(c, labels))) {
            *slot = i;
            return c;
        }
    }
}

static void free_child(struct child *c)
{
    for (int i = 0; c && c->labels[i]; i++)
        free(c->labels[i]);
    free(c);
}

static struct child *new_child(const struct row *r, uint64_t hash, const char *const *labels)
{
    const size_t cells = r->type == HISTOGRAM ? (size_t)r->buckets->n + 2 : 1;
    const size_t size = arena_round(sizeof(struct child) + cells * sizeof(uint64_t));
    struct child *c = aligned_alloc(MEM_ALIGN, size); /* no two children share a cache line */
    if (!c)
        return NULL;
    memset(c, 0, size);
    c->hash = hash;
    for (int i = 0; i < label_count(r); i++) {
        c->labels[i] = strdup(labels[i]);
        if (!c->labels[i]) {
            free_child(c);
            return NULL;
        }
    }
    return c;
}

/* What a combination beyond the limit is counted as. */
static const char *const *other_labels(enum metric metric)
{
    static const char *const other[METRICS_LABELS_MAX + 1] = {"other", "other", "other"};
    return other + METRICS_LABELS_MAX - label_count(&table[metric]);
}

static struct child *insert(enum metric metric, const char *const *labels)
{
    int slot;
    pthread_mutex_lock(&mu);
    if (atomic_load(&n_children[metric]) >= METRICS_CHILDREN_MAX)
        labels = other_labels(metric);
    const uint64_t hash = hash_labels(&table[metric], labels);
    struct child *c = probe(metric, hash, labels, &slot);
    if (!c) {
        c = new_child(&table[metric], hash, labels);
        atomic_store_explicit(&slots[metric][slot], c, memory_order_release);
        atomic_fetch_add(&n_children[metric], c != NULL);
    }
    pthread_mutex_unlock(&mu);
    return c;
}

/* NULL when there is no memory. */
static struct child *child_of(enum metric metric, const char *const *labels)
{
    int slot;
    const struct row *r = &table[metric];
    struct child *c = probe(metric, hash_labels(r, labels), labels, &slot);
    if (!c && atomic_load(&n_children[metric]) >= METRICS_CHILDREN_MAX) {
        labels = other_labels(metric);
        c = probe(metric, hash_labels(r, labels), labels, &slot);
    }
    return c ? c : insert(metric, labels);
}

static uint64_t to_bits(double value)
{
    uint64_t bits;
    memcpy(&bits, &value, sizeof bits);
    return bits;
}

static double from_bits(uint64_t bits)
{
    double value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

void metrics_add_labels(enum metric metric, uint64_t amount, const char *const *labels)
{
    invariant(table[metric].type == COUNTER);
    struct child *c = child_of(metric, labels);
    if (c)
        atomic_fetch_add_explicit(&c->cells[0], amount, memory_order_relaxed);
}

void metrics_set_labels(enum metric metric, double value, const char *const *labels)
{
    invariant(table[metric].type == GAUGE);
    struct child *c = child_of(metric, labels);
    if (c)
        atomic_store_explicit(&c->cells[0], to_bits(value), memory_order_relaxed);
}

void metrics_observe_labels(enum metric metric, double value, const char *const *labels)
{
    invariant(table[metric].type == HISTOGRAM);
    const struct buckets *b = table[metric].buckets;
    struct child *c = child_of(metric, labels);
    if (!c)
        return;
    int i = 0;
    while (i < b->n && !(value <= b->upper[i]))
        i++;
    atomic_fetch_add_explicit(&c->cells[i], 1, memory_order_relaxed);
    if (isnan(value))
        return;
    _Atomic uint64_t *sum = &c->cells[b->n + 1];
    uint64_t old = atomic_load_explicit(sum, memory_order_relaxed);
    while (!atomic_compare_exchange_weak_explicit(sum, &old, to_bits(from_bits(old) + value),
                                                  memory_order_relaxed, memory_order_relaxed))
        ;
}

void metrics_collect(void (*f)(void *ctx, struct metrics_scrape *s), void *ctx)
{
    invariant(n_collectors < COLLECTORS_MAX);
    collectors[n_collectors].f = f;
    collectors[n_collectors++].ctx = ctx;
}

/* One scrape: what was emitted, by metric. */
struct metrics_scrape {
    struct {
        FILE *file; /* NULL = nothing yet */
        char *text;
        size_t size;
    } emitted[METRIC_COUNT];
    bool failed;
};

static void write_line(FILE *out, const struct row *r, const char *suffix,
                       const char *const *labels, double value)
{
    char number[32];
    fprintf(out, "%s%s", r->name, suffix);
    metrics_text_labels(out, r->labels, labels, label_count(r));
    fprintf(out, " %s\n", metrics_text_number(value, number));
}

void metrics_emit_labels(struct metrics_scrape *s, enum metric metric, double value,
                         const char *const *labels)
{
    const struct row *r = &table[metric];
    invariant(r->type != HISTOGRAM);
    hash_labels(r, labels); /* checks their number */
    FILE **file = &s->emitted[metric].file;
    if (!*file)
        *file = open_memstream(&s->emitted[metric].text, &s->emitted[metric].size);
    if (!*file) {
        s->failed = true;
        return;
    }
    write_line(*file, r, "", labels, value);
}

/* A child that was never seen (NULL) has zeros. */
static uint64_t load(const struct child *c, int cell)
{
    return c ? atomic_load_explicit(&c->cells[cell], memory_order_relaxed) : 0;
}

static void render_histogram(FILE *out, const struct row *r, const struct child *c,
                             const char *const *labels)
{
    const char *names[METRICS_LABELS_MAX + 1], *values[METRICS_LABELS_MAX + 1];
    char bound[32];
    uint64_t count = 0;
    const int n = label_count(r), n_buckets = r->buckets->n;
    for (int i = 0; i < n; i++) {
        names[i] = r->labels[i];
        values[i] = labels[i];
    }
    names[n] = "le";
    for (int i = 0; i <= n_buckets; i++) {
        count += load(c, i);
        values[n] = metrics_text_number(i < n_buckets ? r->buckets->upper[i] : HUGE_VAL, bound);
        fprintf(out, "%s_bucket", r->name);
        metrics_text_labels(out, names, values, n + 1);
        fprintf(out, " %" PRIu64 "\n", count);
    }
    write_line(out, r, "_sum", labels, from_bits(load(c, n_buckets + 1)));
    write_line(out, r, "_count", labels, (double)count);
}

static void render_child(FILE *out, const struct row *r, const struct child *c)
{
    static const char *const none[METRICS_LABELS_MAX + 1] = {0};
    const char *const *labels = c ? (const char *const *)c->labels : none;
    if (r->type == HISTOGRAM)
        render_histogram(out, r, c, labels);
    else
        write_line(out, r, "", labels,
                   r->type == COUNTER ? (double)load(c, 0) : from_bits(load(c, 0)));
}

static int by_labels(const void *a, const void *b)
{
    const struct child *x = *(struct child *const *)a, *y = *(struct child *const *)b;
    for (int i = 0; x->labels[i]; i++) {
        const int order = strcmp(x->labels[i], y->labels[i]);
        if (order)
            return order;
    }
    return 0;
}

static void render_metric(FILE *out, enum metric metric, const struct metrics_scrape *s)
{
    static const char *const types[] = {"counter", "gauge", "histogram"};
    const struct row *r = &table[metric];
    struct child *found[SLOTS];
    size_t n = 0;
    fprintf(out, "# HELP %s %s\n# TYPE %s %s\n", r->name, r->help, r->name, types[r->type]);
    for (int i = 0; i < SLOTS; i++) {
        found[n] = atomic_load_explicit(&slots[metric][i], memory_order_acquire);
        n += found[n] != NULL;
    }
    qsort(found, n, sizeof found[0], by_labels);
    for (size_t i = 0; i < n; i++)
        render_child(out, r, found[i]);
    if (s->emitted[metric].file)
        fwrite(s->emitted[metric].text, 1, s->emitted[metric].size, out);
    else if (n == 0 && !r->labels[0])
        render_child(out, r, NULL);
}

struct process {
    unsigned long long threads, start_ticks, virtual_bytes, resident_pages;
};

/* proc(5), /proc/self/stat; the fields after the command's closing parenthesis. */
static bool read_process(struct process *out)
{
    char text[1024];
    FILE *in = fopen("/proc/self/stat", "re");
    if (!in)
        return false;
    const size_t size = fread(text, 1, sizeof text - 1, in);
    fclose(in);
    text[size] = '\0';
    const char *p = strrchr(text, ')');
    return p &&
           sscanf(p + 1,
                  " %*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %*u %*u %*d %*d %*d %*d"
                  " %llu %*d %llu %llu %llu",
                  &out->threads, &out->start_ticks, &out->virtual_bytes, &out->resident_pages) == 4;
}

static double count_fds(void)
{
    DIR *d = opendir("/proc/self/fd");
    if (!d)
        return (double)NAN;
    int n = -3; /* ".", ".." and d itself */
    while (readdir(d))
        n++;
    closedir(d);
    return n;
}

static double started_seconds;

/* Once, since the answer would move with every adjustment of the clock. */
static void find_start(void)
{
    struct process p;
    if (!read_process(&p))
        return;
    const double age = (double)timing_read(CLOCK_BOOTTIME) * 1e-9 -
                       (double)p.start_ticks / (double)sysconf(_SC_CLK_TCK);
    started_seconds = (double)timing_read(CLOCK_REALTIME) * 1e-9 - age;
}

static void emit_process(struct metrics_scrape *s)
{
    static pthread_once_t once = PTHREAD_ONCE_INIT;
    struct process p;
    struct rlimit fds;
    pthread_once(&once, find_start);
    metrics_emit(s, METRIC_PROCESS_CPU_SECONDS,
                 (double)timing_read(CLOCK_PROCESS_CPUTIME_ID) * 1e-9);
    metrics_emit(s, METRIC_PROCESS_START_TIME_SECONDS, started_seconds);
    metrics_emit(s, METRIC_PROCESS_OPEN_FDS, count_fds());
    if (getrlimit(RLIMIT_NOFILE, &fds) == 0)
        metrics_emit(s, METRIC_PROCESS_MAX_FDS,
                     fds.rlim_cur == RLIM_INFINITY ? HUGE_VAL : (double)fds.rlim_cur);
    if (!read_process(&p))
        return;
    metrics_emit(s, METRIC_PROCESS_THREADS, (double)p.threads);
    metrics_emit(s, METRIC_PROCESS_VIRTUAL_BYTES, (double)p.virtual_bytes);
    metrics_emit(s, METRIC_PROCESS_RESIDENT_BYTES,
                 (double)p.resident_pages * (double)sysconf(_SC_PAGESIZE));
}

static void collect(struct metrics_scrape *s)
{
    emit_process(s);
    for (int i = 0; i < n_collectors; i++)
        collectors[i].f(collectors[i].ctx, s);
    for (int m = 0; m < METRIC_COUNT; m++)
        if (s->emitted[m].file && (fclose(s->emitted[m].file) != 0 || !s->emitted[m].text))
            s->failed = true; /* closing wants memory, too, and may succeed without */
}

int metrics_render(struct blob **out, struct err *e)
{
    struct metrics_scrape s = {0};
    char *text = NULL;
    size_t size = 0;
    struct blob *page = NULL;
    collect(&s);
    FILE *file = s.failed ? NULL : open_memstream(&text, &size);
    for (int m = 0; file && m < METRIC_COUNT; m++)
        render_metric(file, (enum metric)m, &s);
    if (file && fclose(file) == 0 && text)
        page = blob_copy(text, size);
    free(text);
    for (int m = 0; m < METRIC_COUNT; m++)
        free(s.emitted[m].text);
    if (!page)
        return fail(e, FAIL_NO_MEMORY, "no memory to print the metrics");
    *out = page;
    return 0;
}

void metrics_fini(void)
{
    for (int m = 0; m < METRIC_COUNT; m++) {
        for (int i = 0; i < SLOTS; i++)
            free_child(atomic_exchange(&slots[m][i], NULL));
        atomic_store(&n_children[m], 0);
    }
    n_collectors = 0;
}
