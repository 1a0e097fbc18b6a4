/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Shared by jobs.c (acceptance, cancel, life cycle), jobs_run.c (the jobs thread: from claim to
 * commit), jobs_kept.c (jobs of a daemon before), jobs_train.c (acceptance of training jobs) and
 * jobs_train_run.c (their run), jobs_predict.c and jobs_predict_run.c (the same of predictions),
 * jobs_estimate.c (when they end); private to them. */
#include "server/crash.h"
#include "server/jobs.h"
#include "server/train_run.h"

#include <pthread.h>
#include <stdatomic.h>

enum { RUN_PATH = 512, MISSED_MAX = 64 };
enum { JOBS_PLACES = 64 /* jobs for sampling, and for predictions, that run at once */ };

/* A claimed job on its way through the engine. The jobs thread makes and frees it. */
struct run {
    struct jobs *owner;
    struct task task; /* rendering, on the task pool */
    struct job job;
    char name[CRASH_NAME_SIZE]; /* for base/witness.h */
    json_t *root;               /* the request text parsed; outlives q */
    struct sample_request *q;
    struct chain_group *group;
    size_t bytes;
    int64_t renewed_ms, checkpoint_ms;
    long long preview_steps;     /* done at the last preview */
    long long first_steps;       /* done when it was claimed */
    _Atomic int64_t deadline_ms; /* 0 = none; a client may change it */
    _Atomic int64_t cancel_ns;   /* when the cancel arrived, 0 = none */
    atomic_bool late;            /* its deadline passed while it ran */
    atomic_bool parked;          /* stopped to be given back, so that another can run alone */
    atomic_bool committed;       /* its end is in the store: may be freed */
    struct blob *preview;        /* guarded by mu */
    int pins;         /* guarded by mu: callers of jobs_cancel and jobs_change holding it */
    struct run *next; /* guarded by mu */
};

/* An accepted job keeps its model alive until its end. */
struct pin {
    char id[JOB_ID_SIZE];
    struct model *model;
    double estimate_s; /* first estimate of the time until its end; 0 = there was none */
    int64_t told_ns;   /* when that was */
    struct pin *next;
};

/* What an accepted training job has for itself until its end: the run's directory, and the version
 * that it will stage. */
struct booking {
    char id[JOB_ID_SIZE], run[TRAIN_RUN_MAX + 1];
    char name[DESCRIPTION_NAME_MAX], version[DESCRIPTION_NAME_MAX];
    struct booking *next;
};

/* The training going on. The jobs thread makes and frees it. */
struct training {
    struct job job;
    char name[CRASH_NAME_SIZE]; /* for base/witness.h */
    json_t *root;
    struct train_request *q;
    struct blob *request; /* text of root, with all digits */
    char data[4096], directory[RUN_PATH];
    struct train_run *run;
    int64_t begin_ms, renewed_ms;
    _Atomic int64_t deadline_ms; /* 0 = none; a client may change it */
    int previews;                /* that were announced */
    int64_t cancel_ns;           /* when the cancel arrived, 0 = none; guarded by mu */
    const char *late;            /* why it was stopped for good, or NULL */
    bool began;                  /* known to have loaded its checkpoint */
};

/* A claimed prediction job. The jobs thread makes and frees it. */
struct predicting {
    struct job job;
    json_t *root; /* the request text parsed; outlives q */
    struct predict_request *q;
    struct blob *input;
    struct bulk_run *run;
    char name[CRASH_NAME_SIZE]; /* for base/witness.h */
    size_t bytes;
    int64_t renewed_ms, checkpoint_ms;
    int first, saved;            /* images in the checkpoint it began from, and in the last one */
    _Atomic int64_t deadline_ms; /* 0 = none; a client may change it */
    _Atomic int64_t cancel_ns;   /* when the cancel arrived, 0 = none */
    bool late, lost;             /* its deadline passed while it ran; somebody else has it */
    struct predicting *next;     /* guarded by mu */
};

struct jobs {
    struct jobs_settings settings;
    char data_root[256], train_directory[256]; /* settings.train points to them */
    struct jobs_parts p;
    char owner[JOB_CLIENT_SIZE];
    pthread_t thread;
    pthread_mutex_t mu;
    pthread_cond_t wake;
    bool stop, work;               /* guarded by mu; work: something to look at now */
    atomic_bool draining;          /* set with mu held */
    enum jobs_gate gate;           /* guarded by mu */
    struct run *runs;              /* guarded by mu */
    int n_runs;                    /* guarded by mu */
    size_t bytes;                  /* of running groups; guarded by mu */
    struct pin *pins;              /* guarded by mu */
    struct training *training;     /* guarded by mu; NULL = none */
    struct predicting *predicting; /* guarded by mu; their number and bytes are the jobs thread's */
    int n_predicting;
    size_t predicting_bytes;
    struct booking *bookings; /* guarded by mu */
    /* Whose change is still to be told, since the store could not be asked; guarded by mu. */
    char missed[MISSED_MAX][JOB_ID_SIZE];
    int n_missed;
    bool kept_known; /* pins and bookings of jobs that were kept are there; guarded by mu */
    bool joined;     /* of who stops and closes */
};

/* What the request of an accepted job is parsed with: it was within the limits of then, and those of
 * now do not count. */
extern const struct sample_limits jobs_accepted_samples;
extern const struct train_limits jobs_accepted_training;

/* Wakes the jobs thread. */
void jobs_poke(struct jobs *j);
/* Tells the watchers of a changed job; at its end closes its streams and lets its model go. */
void jobs_announce(struct jobs *j, const struct job *job);
/* The model a job was accepted for, one reference. Errors: MODEL_GONE, NO_MEMORY. */
int jobs_pinned_model(struct jobs *j, const struct job *job, struct model **out, struct err *e);
/* Keeps m alive until the job ends, if it does not already. */
void jobs_pin_model(struct jobs *j, const char *id, struct model *m);
/* jobs_kept.c: pins the model that an earlier daemon accepted the job for, and hands out a reference.
 * Errors: MODEL_GONE, NO_MEMORY. */
int jobs_keep_model(struct jobs *j, const struct job *job, struct model **out, struct err *e);
/* Once, as soon as the store can be asked: jobs that an earlier daemon accepted have their
 * models and bookings again. Errors: those of list, NO_MEMORY. */
int jobs_find_kept(struct jobs *j, struct err *e);
/* jobs_announce of what the store has of the job now; where it cannot say, as soon as it can. */
void jobs_announce_stored(struct jobs *j, const char *id);
/* Fills in who submits: client and id. Errors: IO. */
int jobs_sign(struct job *job, const struct job_origin *by, struct err *e);
/* Fills in what every request may say of its job, and when it was made. Errors: NO_MEMORY. */
int jobs_take_members(struct job *job, const struct job_members *m, struct err *e);
/* Both, and the model that it is for. Errors: as these. */
int jobs_describe(struct job *job, const struct model *m, const struct job_members *members,
                  const struct job_origin *by, struct err *e);
/* Stores a described job: 0 with the job as stored, 1 with an earlier one of the same key. */
int jobs_insert(struct jobs *j, const struct job *job, const char *key, const char *digest,
                struct job *out, struct err *e);
/* The same of a job for this model, which it keeps alive; wakes the jobs thread. */
int jobs_accept(struct jobs *j, const struct job *job, struct model *m, const struct job_origin *by,
                const char *digest, struct job *out, struct err *e);
/* Commits the end of a claimed job as failed; or gives it back, if the error may pass. */
void jobs_fail_claimed(struct jobs *j, const struct job *job, const struct err *why);
/* Gives a claimed job back if the error may pass: that of the store without more ado, others as a fault.
 * False: it will not pass. */
bool jobs_excuse(struct jobs *j, const struct job *job, const struct err *why);
/* Has a claimed job enter its engine from its checkpoint (NULL = there is none). One that `enter` finds
 * to be a BAD_FILE is thrown away, and the job begins anew. Errors: the store's, and those of enter. */
int jobs_continue(struct jobs *j, struct job *job,
                  int (*enter)(void *ctx, const struct blob *checkpoint, struct err *e), void *ctx,
                  struct err *e);
/* Whether the first checkpoint is not to be waited for: the job was there when daemons were killed,
 * and has gone on. What crashed has to get past the place instead, which is before the next regular one. */
bool jobs_is_proving(const struct job *job, bool went_on);
/* Commits the end of a claimed job, which goes back to the queue while the disk is full; where it is
 * over a limit of the store it ends as failed, without result and artifacts. False: it is not
 * committed, and the log says why. Otherwise end->state is what it ended as. */
bool jobs_finish(struct jobs *j, struct job *end, const struct err *why,
                 const struct job_artifact *artifacts, int n);
/* Metrics of a job that was claimed. */
void jobs_count_start(const struct job *job, int64_t now_ms);
/* Metrics of an ended job; canceled_ns: when that was asked for, 0 = it was not. */
void jobs_count_end(const struct job *end, int64_t canceled_ns);
/* The error of an ended job, cut to what fits at a character's end (it becomes JSON); NULL = none. */
void jobs_put_error(struct job *end, const struct err *why);

/* jobs_train.c: jobs_validate and jobs_submit for training. */
int train_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e);
int train_submit(struct jobs *j, json_t *root, const struct job_origin *by, const char *digest,
                 struct job *out, struct err *e);
/* Books what a job that was kept has booked before. Errors: NO_MEMORY. */
int train_book_again(struct jobs *j, const struct job *job, struct err *e);
/* Lets the job's booking go, if it has one. */
void train_unbook(struct jobs *j, const char *id);
/* Where the data of a request are, with every link followed. Errors: NOT_FOUND, FORBIDDEN (outside of
 * the data root). */
int train_find_data(const struct jobs *j, const struct train_request *q, char out[4096],
                    struct err *e);
void train_run_path(const struct jobs *j, const char *run, char out[RUN_PATH]);

/* jobs_train_run.c, of the jobs thread: claims one if none runs; looks after it. */
void train_claim(struct jobs *j);
void train_tend(struct jobs *j, int64_t now_ms);
/* The same after the thread has ended: back to the queue, with a checkpoint. */
void train_release(struct jobs *j);

/* jobs_predict.c: jobs_validate and jobs_submit for predictions. */
int predict_validate(struct jobs *j, json_t *root, struct job_estimate *out, struct err *e);
int predict_submit(struct jobs *j, json_t *root, const struct job_origin *by, const char *digest,
                   struct job *out, struct err *e);

/* jobs_predict_run.c, of the jobs thread: claims what there is room for; looks after it. */
void predict_claim(struct jobs *j);
void predict_tend(struct jobs *j, int64_t now_ms);
/* From any thread: what a client wants of a job that runs, if it does here. */
void predict_change(struct jobs *j, const struct job *job);
void predict_cancel(struct jobs *j, const char *id, int64_t now_ns);
/* After the thread has ended and bulk is stopped: every run goes back to the queue. */
void predict_release(struct jobs *j);

/* jobs_estimate.c: seconds the engine takes for so many chain-steps at its present speed. */
double jobs_seconds(struct jobs *j, long long chain_steps);
/* Until a job that runs ends, of which so much is left; 0 = not known. */
double jobs_left_seconds(struct jobs *j, const struct job *job, long long steps_left);
/* Notes when an accepted job is said to end; of all that have waited for the end of a pause. */
void jobs_note_estimate(struct jobs *j, const char *id);
void jobs_note_estimates(struct jobs *j);
/* The group's description for the engine, without callbacks. */
struct chain_task jobs_task(const struct sample_request *q);

/* The jobs thread; arg is the jobs. */
void *jobs_main(void *arg);
/* After the thread has ended and the chains are stopped: gives every unfinished run back to the
 * store and frees all. */
void jobs_release_runs(struct jobs *j);
