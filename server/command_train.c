/* SPDX-License-Identifier: Apache-2.0 */
/* `jemd train`: trains a model by a recipe, in a directory that holds all of the run. */
#include "base/pool.h"
#include "base/timing.h"
#include "learn/export.h"
#include "learn/trainer.h"
#include "server/commands.h"
#include "server/data_open.h"
#include "server/option_number.h"
#include "server/run_directory.h"

#include <getopt.h>
#include <inttypes.h>
#include <math.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <unistd.h>

enum { EXIT_FAILED = 1, EXIT_USAGE = 2, EXIT_INTERRUPTED = 3 };
enum {
    PATH_BYTES = 1200,
    RECIPE_MAX = 16 << 20,
    LIVE_MS = 250,
    LINE_MS = 30000,
    COLUMNS = 80 /* of a terminal that does not say */
};

static const char usage_text[] =
    "usage: jemd train RECIPE.json --data DIR --out RUN [option ...]\n"
    "\n"
    "Trains the model of a recipe (docs/training.md) on labelled images and writes it to\n"
    "RUN/model.safetensors. RUN also holds metrics.csv, log.txt, the four newest checkpoints and "
    "the\n"
    "best one. The same command goes on from them after an interruption, and the result is the "
    "same, bit for "
    "bit.\n"
    "\n"
    "  --data DIR      IDX files, CIFAR's, images by class, or images with a table\n"
    "                  (docs/datasets.md)\n"
    "  --split SPLIT   default: train\n"
    "  --split-calib S the share S (0 to 0.9) of the rows of train is kept out of it, for --split\n"
    "                  calib with the same S (default 0)\n"
    "  --resize HOW    images of another size: fit (default), fill, center_crop or reject\n"
    "  --out RUN       a directory, made if missing\n"
    "  --threads N     default: all cores; does not change the result\n"
    "  --log-every N   steps a row of metrics.csv (default 50)\n"
    "  --export WHICH  do not train: write the model of the last checkpoint, or of the best one "
    "to\n"
    "                  RUN/model-best.safetensors\n"
    "  --help          this text\n"
    "\n"
    "exit codes: 0 done, 1 failed or given up (the last line says why), 2 wrong usage,\n"
    "            3 interrupted, in training or while the model was being written: there is a\n"
    "            checkpoint that the same command goes on from, and no model file was written\n";

enum export { EXPORT_NONE, EXPORT_LAST, EXPORT_BEST };

struct options {
    const char *recipe, *data, *split, *out;
    long threads, log_every;
    enum export export;
    enum image_resize resize;
    double calib_share;
    bool help;
};

/* A run and what it shows. */
struct run {
    const struct options *o;
    struct recipe recipe;
    struct source *data;
    struct pool *pool;
    struct trainer *trainer;
    FILE *metrics, *log;
    int64_t begin_ns, shown_ns, line_ns;
    long long first; /* steps done before this run */
    bool live;       /* standard error is a terminal */
    int lock;        /* of the directory, -1 = not yet */
};

static atomic_bool interrupted;

static void on_signal(int number)
{
    (void)number;
    atomic_store(&interrupted, true);
}

static int read_recipe(struct recipe *r, const char *path, struct err *e)
{
    FILE *f = fopen(path, "rb");
    if (!f)
        return fail_errno(e, FAIL_IO, "cannot open %.300s", path);
    char *text = malloc(RECIPE_MAX);
    const size_t n = text ? fread(text, 1, RECIPE_MAX, f) : 0;
    int rc = 0;
    if (!text)
        rc = fail(e, FAIL_NO_MEMORY, "no memory for the recipe");
    else if (ferror(f))
        rc = fail_errno(e, FAIL_IO, "cannot read %.300s", path);
    else if (n == RECIPE_MAX)
        rc = fail(e, FAIL_OUT_OF_RANGE, "%.300s is larger than %d bytes", path, RECIPE_MAX - 1);
    else
        rc = recipe_parse(r, text, n, path, e);
    free(text);
    fclose(f);
    return rc;
}

static void say(struct run *r, const char *text)
{
    if (r->live)
        fputs("\r\033[K", stderr);
    fprintf(stderr, "%s\n", text);
    if (r->log)
        fprintf(r->log, "%s\n", text);
}

static int open_log(struct run *r, struct err *e)
{
    char text[512];
    const int rc = run_directory_log(&r->log, r->o->out, e);
    if (rc != 0)
        return rc;
    run_directory_begun(text, sizeof text, r->trainer, r->data, pool_threads(r->pool));
    say(r, text);
    if (r->data->note[0])
        say(r, r->data->note);
    if (trainer_note(r->trainer)[0])
        say(r, trainer_note(r->trainer));
    return 0;
}

static int open_data(struct run *r, struct err *e)
{
    const struct data_request want = {.dir = r->o->data,
                                      .split = r->o->split,
                                      .attributes = &r->recipe.model.attributes,
                                      .input = r->recipe.model.input,
                                      .resize = r->o->resize,
                                      .calib_share = r->o->calib_share,
                                      .pool = r->pool,
                                      .decode = run_directory_step(r->o->out) < 0};
    return data_open(&r->data, &want, e);
}

/* Until then signals end the program: while the data are looked through there is nothing to save. */
static void catch_signals(void)
{
    const struct sigaction action = {.sa_handler = on_signal};
    sigaction(SIGINT, &action, NULL);
    sigaction(SIGTERM, &action, NULL);
}

/* Nothing is made where there is nothing to export. */
static int check_export(const struct options *o, struct err *e)
{
    char best[PATH_BYTES];
    snprintf(best, sizeof best, "%s/best.safetensors", o->out);
    if (o->export == EXPORT_NONE || run_directory_step(o->out) >= 0 ||
        (o->export == EXPORT_BEST && access(best, F_OK) == 0))
        return 0;
    return fail(e, FAIL_NOT_FOUND,
                "there is no checkpoint in %.300s: give the --out of a training that has begun",
                o->out);
}

static int run_open(struct run *r, struct err *e)
{
    const struct options *o = r->o;
    int rc = check_export(o, e);
    if (rc == 0)
        rc = read_recipe(&r->recipe, o->recipe, e);
    if (rc != 0)
        return rc;
    rc = pool_open(&r->pool, (int)o->threads, e);
    if (rc == 0)
        rc = open_data(r, e);
    if (rc == 0)
        rc = run_directory_lock(o->out, &r->lock, e);
    const struct trainer_options t = {.recipe = &r->recipe,
                                      .data = r->data,
                                      .pool = r->pool,
                                      .directory = o->out,
                                      .existing = o->export != EXPORT_NONE};
    if (rc == 0)
        rc = trainer_open(&r->trainer, &t, e);
    if (rc != 0)
        return rc;
    catch_signals();
    r->first = trainer_done(r->trainer);
    r->begin_ns = timing_ns();
    r->live = isatty(STDERR_FILENO);
    if (o->export == EXPORT_NONE)
        rc = run_directory_metrics(&r->metrics, o->out, r->first, e);
    return rc == 0 ? open_log(r, e) : rc;
}

static void run_close(struct run *r)
{
    if (r->metrics)
        fclose(r->metrics);
    if (r->log)
        fclose(r->log);
    trainer_close(r->trainer);
    pool_close(r->pool);
    source_close(r->data);
    recipe_fini(&r->recipe);
    if (r->lock >= 0)
        close(r->lock);
}

/* A line of fields, as many of them as `room` characters take, those that come first. */
struct line {
    char text[400];
    size_t used, room;
    bool full;
};

__attribute__((format(printf, 2, 3))) static void put(struct line *l, const char *format, ...)
{
    char field[100];
    va_list values;
    va_start(values, format);
    vsnprintf(field, sizeof field, format, values);
    va_end(values);
    const size_t gap = l->used ? 2 : 0, n = strlen(field);
    l->full |= l->used + gap + n > l->room;
    if (l->full)
        return;
    memset(l->text + l->used, ' ', gap);
    memcpy(l->text + l->used + gap, field, n + 1);
    l->used += gap + n;
}

/* Characters of a line of the terminal as it is now; the last stays free, or some would wrap. */
static size_t terminal_room(void)
{
    struct winsize size;
    const bool known = ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 1;
    return known ? size.ws_col - 1u : COLUMNS - 1;
}

/* One line that is written over on a terminal, else one now and then. */
static void show(struct run *r, const struct trainer_step *s)
{
    const int64_t now = timing_ns();
    if (now - (r->live ? r->shown_ns : r->line_ns) <
        (int64_t)(r->live ? LIVE_MS : LINE_MS) * 1000000)
        return;
    r->shown_ns = r->line_ns = now;
    struct line l = {.room = sizeof l.text - 1};
    const size_t room = r->live ? terminal_room() : l.room;
    l.room = room < l.room ? room : l.room;
    struct run_directory_pace pace;
    const bool known = run_directory_pace(&pace, r->trainer, r->first, r->begin_ns);
    const long left = known ? (long)pace.left_seconds : 0;
    put(&l, "step %lld/%lld", s->step, r->recipe.steps);
    if (known)
        put(&l, "%ld:%02ld:%02ld left", left / 3600, left / 60 % 60, left % 60);
    put(&l, "loss %.3f", s->loss);
    put(&l, "accuracy %.3f", s->accuracy);
    put(&l, "log p %.2f / %.2f", s->log_p_data, s->log_p_chains);
    if (known)
        put(&l, "%.0f images/s", pace.images);
    put(&l, "newborn %.2f", s->newborn);
    put(&l, "|g| %.4f", s->health.gradient);
    if (known)
        put(&l, "%.1f steps/s", pace.steps);
    if (r->live)
        fprintf(stderr, "\r\033[K%s", l.text);
    else
        say(r, l.text);
}

static int write_model(struct run *r, struct err *e)
{
    char path[PATH_BYTES], text[PATH_BYTES + 100];
    const struct run_directory_data data = {
        .sha256 = r->data->sha256, .split = r->o->split, .calib_share = r->o->calib_share};
    json_t *from = run_directory_provenance(&r->recipe, &data, trainer_done(r->trainer));
    snprintf(path, sizeof path, "%s/model%s.safetensors", r->o->out,
             r->o->export == EXPORT_BEST ? "-best" : "");
    const struct export_task task = {
        .pool = r->pool, .provenance = from, .path = path, .stop = &interrupted};
    say(r, "writing the model");
    const int rc = export_model(r->trainer, &task, e);
    json_decref(from);
    if (rc == 0) {
        snprintf(text, sizeof text, "wrote %s after %.0f s", path,
                 (double)(timing_ns() - r->begin_ns) * 1e-9);
        say(r, text);
    }
    return rc;
}

static void say_rollback(struct run *r, const struct trainer_step *s)
{
    char text[300];
    run_directory_rolled_back(text, sizeof text, r->trainer, s);
    say(r, text);
    if (trainer_note(r->trainer)[0])
        say(r, trainer_note(r->trainer));
}

static int say_interrupted(struct run *r)
{
    char text[200];
    snprintf(text, sizeof text, "interrupted at step %lld of %lld; the same command goes on",
             trainer_done(r->trainer), r->recipe.steps);
    say(r, text);
    return 1;
}

/* Steps to the end and writes the model: 0; 1: interrupted, with a checkpoint. */
static int run_steps(struct run *r, struct err *e)
{
    struct trainer_step s;
    int rc;
    if (r->o->export == EXPORT_BEST && trainer_load_best(r->trainer, e) != 0)
        return -e->code;
    while (r->o->export == EXPORT_NONE && !interrupted) {
        rc = trainer_step(r->trainer, &s, e);
        if (rc < 0)
            return rc;
        if (rc > 0)
            break;
        if (s.trouble != HEALTH_GOOD)
            say_rollback(r, &s);
        else if (s.step % r->o->log_every == 0)
            run_directory_row(r->metrics, &s);
        if (s.trouble == HEALTH_GOOD)
            show(r, &s);
    }
    if (r->live)
        fputc('\n', stderr);
    if (!interrupted) { /* all steps are done, and have their checkpoint */
        rc = write_model(r, e);
        return rc == -FAIL_SHUTTING_DOWN ? say_interrupted(r) : rc;
    }
    rc = r->o->export == EXPORT_NONE ? trainer_save(r->trainer, e) : 0;
    return rc == 0 ? say_interrupted(r) : rc;
}

static int read_export(const char *text, enum export *out)
{
    *out = strcmp(text, "best") == 0   ? EXPORT_BEST
           : strcmp(text, "last") == 0 ? EXPORT_LAST
                                       : EXPORT_NONE;
    if (*out == EXPORT_NONE)
        fprintf(stderr, "jemd train: --export takes best or last, not \"%.40s\"\n", text);
    return *out == EXPORT_NONE ? -1 : 0;
}

static int parse(int argc, char **argv, struct options *o)
{
    static const struct option known[] = {{"data", required_argument, NULL, 'd'},
                                          {"split", required_argument, NULL, 's'},
                                          {"split-calib", required_argument, NULL, 'c'},
                                          {"resize", required_argument, NULL, 'r'},
                                          {"out", required_argument, NULL, 'o'},
                                          {"threads", required_argument, NULL, 't'},
                                          {"log-every", required_argument, NULL, 'l'},
                                          {"export", required_argument, NULL, 'x'},
                                          {"help", no_argument, NULL, 'h'},
                                          {NULL, 0, NULL, 0}};
    for (int c; (c = getopt_long(argc, argv, "", known, NULL)) != -1;) {
        int rc = 0;
        if (c == 'd')
            o->data = optarg;
        else if (c == 's')
            o->split = optarg;
        else if (c == 'c')
            rc = data_option_share("train", optarg, &o->calib_share);
        else if (c == 'r')
            rc = data_option_resize("train", optarg, &o->resize);
        else if (c == 'o')
            o->out = optarg;
        else if (c == 't')
            rc = option_number("train", optarg, 1, 1024, &o->threads);
        else if (c == 'l')
            rc = option_number("train", optarg, 1, 1000000, &o->log_every);
        else if (c == 'x')
            rc = read_export(optarg, &o->export);
        else if (c == 'h')
            o->help = true;
        else
            return -1;
        if (rc != 0)
            return -1;
    }
    if (o->help)
        return 0;
    if (optind + 1 != argc || !o->data || !o->out || strlen(o->out) > 1000) {
        fprintf(stderr, "jemd train: give one recipe, --data DIR and --out RUN\n");
        return -1;
    }
    o->recipe = argv[optind];
    return 0;
}

int command_train(int argc, char **argv)
{
    struct options o = {.split = "train", .log_every = 50};
    struct run r = {.o = &o, .lock = -1};
    struct err e;
    if (parse(argc, argv, &o) != 0) {
        fputs(usage_text, stderr);
        return EXIT_USAGE;
    }
    if (o.help) {
        fputs(usage_text, stdout);
        return 0;
    }
    int rc = run_open(&r, &e);
    if (rc == 0)
        rc = run_steps(&r, &e);
    if (rc < 0) {
        fprintf(stderr, "jemd train: %s\n", e.text);
        if (r.log)
            fprintf(r.log, "%s\n", e.text);
    }
    run_close(&r);
    return rc < 0 ? EXIT_FAILED : rc > 0 ? EXIT_INTERRUPTED : 0;
}
