/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * Settings: one table of keys (name, type, range, unit, default, one line of doc) from which come
 * the parser, `jemd check`, the commented config/jemd.conf, and the reference page.
 * Order of precedence: command line `--section.key=value` over environment `JEMD_SECTION_KEY` over
 * the INI file (inih; the only <ini.h>) over the default. Unknown keys and sections are errors with
 * a did_you_mean that name file and line. Read-only after load; SIGHUP loads a new one.
 */
#include "base/fail.h"
#include "server/precisions.h"

#include <stdbool.h>
#include <stddef.h>
#include <stdio.h>

struct settings {
    struct {
        char address[64];
        int port;
        int threads;
        int max_connections, max_connections_per_ip; /* the latter 0 = no limit */
        long long max_header_bytes, max_body_bytes;
        int header_timeout_ms, body_timeout_ms, idle_timeout_ms, write_timeout_ms;
        char tls_certificate[256], tls_key[256]; /* files, "" = plain HTTP */
    } http;
    struct {
        char keys[256]; /* file of key digests, "" = none */
        bool allow_anonymous;
        bool metrics_public; /* /metrics needs no key */
    } auth;
    struct {
        char directory[256];    /* *.safetensors in it are served; need not exist; "" = none */
        char model[256];        /* one more file, "" = none */
        char default_model[64]; /* name, "" = the only or first one */
        char cache[256];        /* digest cache directory; need not exist; "" = none */
    } models;
    struct {
        long long budget_bytes; /* of all models and workspaces; resolved, never 0 */
    } memory;
    struct {
        char precision[PRECISIONS_TEXT_MAX]; /* see settings_precision_of */
        char share[256];             /* directory of packed weights shared between processes */
        long long share_limit_bytes; /* of all of them; 0 = private memory */
        bool pin;                    /* threads that compute stay on one core each */
    } compute;
    struct {
        int batch_max;  /* images a forward pass */
        int queue_max;  /* waiting images; beyond: 503 */
        int queue_ms;   /* they may wait; 0 = no limit */
        int timeout_ms; /* default deadline of a prediction */
        int threads;    /* resolved, never 0 */
        int max_images; /* a request */
        int decode_threads;
        long long max_pixels; /* of an image file */
        int max_side;
        int job_images; /* a prediction job */
        long long job_bytes;
    } predict;
    struct {
        int workers; /* resolved, never 0 */
        int slots;   /* chains a worker moves at once */
        int quantum_steps, quantum_ms;
        int max_images, max_steps; /* a job */
        int nice;                  /* added niceness of sampler workers */
        int checkpoint_ms;
    } sampler;
    struct {
        int max_queued, max_queued_per_client, max_running_per_client;
        long long max_store_bytes; /* results kept */
        int retention_seconds;
        int retention_jobs;        /* finished ones kept; 0 = no limit */
        long long retention_bytes; /* of them; 0 = no limit */
        int lease_ms;
    } jobs;
    struct {
        char kind[8];        /* resolved: "sqlite" or "memory" */
        char directory[256]; /* of sqlite; resolved */
    } store;
    struct {
        bool enabled;
        char data_root[256]; /* data sets are named below it */
        char directory[256]; /* a folder for each run */
        int threads;         /* resolved, never 0 */
        int nice;
        long long max_steps, max_parameters, max_recipe_bytes;
        int max_seconds; /* of a job */
        long long max_data_bytes, max_memory_bytes;
    } train;
    struct {
        char level[16]; /* a word of logger_parse_level */
        bool access;    /* a line per request */
    } log;
    struct {
        int drain_ms; /* on SIGTERM */
    } shutdown;
};

/* Loads defaults, then `path` (NULL = none), then the environment, then overrides[n] of the form
 * "section.key=value" (NULL-terminated list, may be NULL; of two for one key the later wins).
 * Checks ranges and combinations (e.g. a non-loopback address without keys needs
 * auth.allow_anonymous), then replaces the zeros that mean "as the machine has it".
 * Errors: BAD_SETTING naming file:line, environment variable or flag; IO. */
int settings_load(struct settings *out, const char *path, const char *const *overrides,
                  struct err *e);
/* The same from text[size] alone, without environment and flags; `name` stands for the file in
 * messages. For tests and fuzzing. Errors: BAD_SETTING. */
int settings_parse(struct settings *out, const char *name, const char *text, size_t size,
                   struct err *e);
/* compute.precision for the model of this name; NULL = for those that it does not name. */
enum precision settings_precision_of(const struct settings *s, const char *model_name);
/* The check of http.address for a socket that somebody else has bound (socket activation): a
 * listener that others can reach needs keys or auth.allow_anonymous. Unix sockets pass, their file
 * mode is the guard. Errors: BAD_SETTING, IO. */
int settings_check_socket(const struct settings *s, int fd, struct err *e);
/* The commented INI text of every key at its default (this is config/jemd.conf, a test compares). */
void settings_print_defaults(FILE *out);
/* Every key with its effective value and where it came from (default, file:line, env, flag); valid
 * INI again. Prints nothing on failure. Errors as settings_load. */
int settings_print_effective(FILE *out, const char *path, const char *const *overrides,
                             struct err *e);
/* Markdown reference table (docs/settings.md, a test compares). */
void settings_print_reference(FILE *out);
