/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * The numbers of GET /metrics, in Prometheus' text format 0.0.4. All metrics stand in one table
 * (metrics.c): name, help, type, label names, buckets. Counting is lock-free and takes some tens of
 * nanoseconds, from any thread; there is one registry for the process, as there is one log.
 *
 *     metrics_add(METRIC_HTTP_REQUESTS, 1, "/v1/predict", "POST", "200");
 *     metrics_observe(METRIC_PREDICT_QUEUE_SECONDS, 0.0031);
 *
 * Label values follow in the order of the table, as many as it declares. A metric remembers at most
 * METRICS_CHILDREN_MAX combinations; further ones are counted together with "other" for every
 * value. Values that a client chooses freely (an unknown path, a made-up method) do not belong here
 * all the same.
 */
#include "base/fail.h"
#include "base/mem.h"

#include <stddef.h>
#include <stdint.h>

enum metric {
    METRIC_BUILD_INFO,                   /* gauge {version,isa,fingerprint}, always 1 */
    METRIC_HTTP_REQUESTS,                /* counter {route,method,code} */
    METRIC_HTTP_REQUEST_DURATION,        /* histogram {route} */
    METRIC_HTTP_REJECTED,                /* counter {reason} */
    METRIC_PREDICT_QUEUE_SECONDS,        /* histogram */
    METRIC_PREDICT_COMPUTE_SECONDS,      /* histogram */
    METRIC_PREDICT_BATCH_SIZE,           /* histogram */
    METRIC_PREDICT_JOB_IMAGES,           /* counter {result} */
    METRIC_IMAGE_DECODE_SECONDS,         /* histogram {format} */
    METRIC_INPUT_ENERGY,                 /* histogram {model} */
    METRIC_OOD_FLAGGED,                  /* counter {model} */
    METRIC_ATTRIBUTE_POSITIVE,           /* counter {model,attribute,value} */
    METRIC_JOBS,                         /* gauge {state,type} */
    METRIC_JOB_QUEUE_WAIT_SECONDS,       /* histogram */
    METRIC_JOB_RUN_SECONDS,              /* histogram */
    METRIC_JOB_ESTIMATE_ERROR_RATIO,     /* histogram */
    METRIC_JOB_QUEUE_OLDEST_AGE_SECONDS, /* gauge */
    METRIC_JOB_BACKLOG_WORK_SECONDS,     /* gauge */
    METRIC_JOB_CANCEL_LATENCY_SECONDS,   /* histogram */
    METRIC_JOB_RESUMES,                  /* counter */
    METRIC_JOB_CRASHES,                  /* counter */
    METRIC_CHAIN_STEPS,                  /* counter */
    METRIC_CHAIN_SLOTS,                  /* gauge {state} */
    METRIC_CHAIN_SLOT_SECONDS,           /* counter {state} */
    METRIC_CHAIN_STEP_SECONDS,           /* histogram */
    METRIC_MCMC_DIVERGENCES,             /* counter */
    METRIC_TRAIN_STEPS,                  /* counter */
    METRIC_TRAIN_IMAGES,                 /* counter */
    METRIC_TRAIN_ROLLBACKS,              /* counter */
    METRIC_TRAIN_STEP_SECONDS,           /* histogram */
    METRIC_MODEL_PROMOTIONS,             /* counter {model} */
    METRIC_MODEL_INFO,                   /* gauge {model,version,digest}, always 1 */
    METRIC_MODEL_MAPPED_BYTES,           /* gauge */
    METRIC_MODEL_PACKED_BYTES,           /* gauge {memory} */
    METRIC_STORE_OP_SECONDS,             /* histogram {op} */
    METRIC_PROCESS_CPU_SECONDS,          /* from here on filled in by metrics_render itself */
    METRIC_PROCESS_START_TIME_SECONDS,
    METRIC_PROCESS_RESIDENT_BYTES,
    METRIC_PROCESS_VIRTUAL_BYTES,
    METRIC_PROCESS_OPEN_FDS,
    METRIC_PROCESS_MAX_FDS,
    METRIC_PROCESS_THREADS,
    METRIC_COUNT
};

enum { METRICS_LABELS_MAX = 3, METRICS_CHILDREN_MAX = 512 };
#define METRICS_CONTENT_TYPE "text/plain; version=0.0.4; charset=utf-8"

/* The label values of a call, closed by NULLs. */
#define METRICS_LABELS(...) ((const char *const[METRICS_LABELS_MAX + 2]){"", __VA_ARGS__} + 1)

/* Counters: adds amount. Histograms: counts value (a NaN is counted, but not summed). Gauges: sets
 * value. A wrong type or number of labels is a broken invariant. None of them fails: without memory
 * for a new combination of labels the number is lost. */
#define metrics_add(metric, amount, ...)                                                           \
    metrics_add_labels(metric, amount, METRICS_LABELS(__VA_ARGS__))
#define metrics_observe(metric, value, ...)                                                        \
    metrics_observe_labels(metric, value, METRICS_LABELS(__VA_ARGS__))
#define metrics_set(metric, value, ...)                                                            \
    metrics_set_labels(metric, value, METRICS_LABELS(__VA_ARGS__))
void metrics_add_labels(enum metric metric, uint64_t amount, const char *const *labels);
void metrics_observe_labels(enum metric metric, double value, const char *const *labels);
void metrics_set_labels(enum metric metric, double value, const char *const *labels);

/* Numbers that a module knows anyway (queue lengths, loaded models) are asked for at each scrape:
 * f calls metrics_emit for them. A metric is either emitted or kept here, not both; what is emitted
 * exists for this scrape only. Register at start-up, before the first metrics_render; f runs on the
 * thread that renders, several at once if several scrape. */
struct metrics_scrape;
void metrics_collect(void (*f)(void *ctx, struct metrics_scrape *s), void *ctx);
#define metrics_emit(scrape, metric, value, ...)                                                   \
    metrics_emit_labels(scrape, metric, value, METRICS_LABELS(__VA_ARGS__))
void metrics_emit_labels(struct metrics_scrape *s, enum metric metric, double value,
                         const char *const *labels);

/* The page, METRICS_CONTENT_TYPE. Errors: NO_MEMORY. */
int metrics_render(struct blob **out, struct err *e);
/* Forgets all numbers and collectors. At shut-down, when nobody counts any more, and in tests. */
void metrics_fini(void);
