/* SPDX-License-Identifier: Apache-2.0 */
#include "server/run_directory.h"

#include "base/timing.h"
#include "learn/trainer.h"

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <unistd.h>

enum { REQUEST_MAX = 32 << 20 };

static void join(char out[RUN_DIRECTORY_PATH], const char *path, const char *file)
{
    snprintf(out, RUN_DIRECTORY_PATH, "%.1100s/%s", path, file);
}

int run_directory_lock(const char *path, int *fd, struct err *e)
{
    char file[RUN_DIRECTORY_PATH];
    join(file, path, "lock");
    if (mkdir(path, 0777) != 0 && errno != EEXIST)
        return fail_errno(e, FAIL_IO, "cannot make %.300s", path);
    const int made = open(file, O_RDWR | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0666);
    if (made < 0)
        return fail_errno(e, FAIL_IO, "cannot open %.300s", file);
    if (flock(made, LOCK_EX | LOCK_NB) == 0) {
        *fd = made;
        return 0;
    }
    const int why = errno;
    close(made);
    errno = why;
    return why == EWOULDBLOCK
               ? fail(e, FAIL_CONFLICT, "another training is going on in %.300s", path)
               : fail_errno(e, FAIL_IO, "cannot lock %.300s", file);
}

long long run_directory_step(const char *path)
{
    long long newest = -1;
    DIR *d = opendir(path);
    for (const struct dirent *at; d && (at = readdir(d));) {
        const long long step = trainer_checkpoint_step(at->d_name);
        newest = step > newest ? step : newest;
    }
    if (d)
        closedir(d);
    return newest;
}

int run_directory_read(const char *path, json_t **request, struct err *e)
{
    char file[RUN_DIRECTORY_PATH];
    join(file, path, "run.json");
    FILE *f = fopen(file, "re");
    if (!f)
        return errno == ENOENT ? fail(e, FAIL_NOT_FOUND, "there is no run in %.300s", path)
                               : fail_errno(e, FAIL_IO, "cannot open %.300s", file);
    char *text = malloc(REQUEST_MAX);
    const size_t n = text ? fread(text, 1, REQUEST_MAX, f) : 0;
    const int rc = !text || n == REQUEST_MAX || ferror(f)
                       ? fail(e, FAIL_BAD_FILE, "%.300s cannot be read", file)
                       : json_parse(text, n, request, e);
    free(text);
    fclose(f);
    return rc;
}

int run_directory_write(const char *path, const struct blob *request, struct err *e)
{
    char file[RUN_DIRECTORY_PATH], fresh[RUN_DIRECTORY_PATH];
    join(file, path, "run.json");
    join(fresh, path, "run.json.new");
    FILE *f = fopen(fresh, "we");
    if (!f)
        return fail_errno(e, FAIL_IO, "cannot write %.300s", fresh);
    const bool good = fwrite(request->bytes, 1, request->size, f) == request->size &&
                      fflush(f) == 0 && fsync(fileno(f)) == 0;
    if (fclose(f) != 0 || !good || rename(fresh, file) != 0)
        return fail_errno(e, FAIL_IO, "cannot write %.300s", file);
    return 0;
}

static const char metrics_head[] =
    "step,loss,cross_entropy,accuracy,log_p_data,log_p_chains,gap,"
    "chain_gradient,parameter_gradient,"
    "rate,log_p_newborn,buffer_age,rollbacks,chain_drift,chain_cosine,"
    "fresh_right,fresh_log_p,fresh_lag,kl,best_step\n";

int run_directory_metrics(FILE **out, const char *path, long long first, struct err *e)
{
    char file[RUN_DIRECTORY_PATH], line[1024];
    long long step;
    join(file, path, "metrics.csv");
    FILE *f = fopen(file, "a+e");
    if (!f)
        return fail_errno(e, FAIL_IO, "cannot open %.300s", file);
    rewind(f);
    long end = 0;
    while (
        fgets(line, sizeof line, f) && strchr(line, '\n') &&
        (strcmp(line, metrics_head) == 0 || (sscanf(line, "%lld,", &step) == 1 && step <= first)))
        end = ftell(f);
    if (ftruncate(fileno(f), end) != 0) {
        fail_errno(e, FAIL_IO, "cannot cut %.300s", file);
        fclose(f);
        return -FAIL_IO;
    }
    fseek(f, end, SEEK_SET);
    if (end == 0)
        fputs(metrics_head, f);
    *out = f;
    return 0;
}

void run_directory_row(FILE *metrics, const struct trainer_step *s)
{
    fprintf(metrics, "%lld,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%d,", s->step,
            s->loss, s->cross_entropy, s->accuracy, s->log_p_data, s->log_p_chains, s->health.gap,
            s->gradient, s->norm, s->rate, s->newborn, s->age, s->rollbacks);
    fprintf(metrics, "%.6g,%.6g,%.6g,%.6g,%.6g,%.6g,%lld\n", s->drift, s->cosine, s->right,
            s->fresh_log_p, s->fresh_lag, s->kl, s->best);
    fflush(metrics);
}

bool run_directory_pace(struct run_directory_pace *out, const struct trainer *t, long long first,
                        int64_t begin_ns)
{
    const long long done = trainer_done(t);
    const double seconds = (double)(timing_ns() - begin_ns) * 1e-9;
    if (done <= first || seconds <= 0)
        return false;
    out->steps = (double)(done - first) / seconds;
    out->images = out->steps * trainer_images(t);
    out->left_seconds = (double)(trainer_recipe(t)->steps - done) / out->steps;
    return true;
}

int run_directory_log(FILE **out, const char *path, struct err *e)
{
    char file[RUN_DIRECTORY_PATH];
    join(file, path, "log.txt");
    FILE *f = fopen(file, "ae");
    if (!f)
        return fail_errno(e, FAIL_IO, "cannot open %.300s", file);
    setvbuf(f, NULL, _IOLBF, BUFSIZ);
    *out = f;
    return 0;
}

void run_directory_begun(char *out, size_t size, const struct trainer *t, const struct source *data,
                         int threads)
{
    const struct recipe *r = trainer_recipe(t);
    const long long first = trainer_done(t);
    char now[25];
    timing_format(timing_wall_ms(), now);
    snprintf(out, size, "%s %s: %s from step %lld of %lld, %zu parameters, %zu images, %d threads",
             now, r->model.name, first ? "goes on" : "begins", first, r->steps,
             trainer_parameters(t)->n, data->n, threads);
}

void run_directory_rolled_back(char *out, size_t size, const struct trainer *t,
                               const struct trainer_step *s)
{
    snprintf(out, size, "step %lld: %s; rolled back to step %lld, slower (%d of %d)", s->step,
             health_texts[s->trouble], trainer_done(t), s->rollbacks,
             trainer_recipe(t)->health.retries);
}

json_t *run_directory_provenance(const struct recipe *r, const struct run_directory_data *d,
                                 long long steps)
{
    json_t *from = json_pack("{s:s, s:s, s:s, s:I, s:s}", "trained_by", "jemd " JEMD_VERSION,
                             "recipe_sha256", r->sha256, "data_sha256", d->sha256, "steps",
                             (json_int_t)steps, "split", d->split);
    if (d->calib_share > 0)
        json_object_set_new(from, "split_calib", json_real(d->calib_share));
    return from;
}
