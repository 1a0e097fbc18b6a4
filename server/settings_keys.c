/* SPDX-License-Identifier: Apache-2.0 */
#include "server/settings_keys.h"

#include "base/logger.h"
#include "ebm/chains.h"

#include <arpa/inet.h>
#include <ctype.h>
#include <errno.h>
#include <netinet/in.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

enum { SECONDS_YEAR = 365 * 86400, HOUR_MS = 3600 * 1000 };

#define KIB 1024LL
#define MIB (1024 * KIB)
#define GIB (1024 * MIB)
#define FIELD(section, name)                                                                       \
#section, #name, offsetof(struct settings, section.name),                                      \
        sizeof(((struct settings *)0)->section.name)

/* clang-format off */
const struct key keys[] = {
    {FIELD(http, address), ADDRESS, 0, 0, "", "127.0.0.1",
     "Address to listen on. Anything but a loopback address needs auth.keys or auth.allow_anonymous."},
    {FIELD(http, port), INTEGER, 0, 65535, "", "8080", "TCP port; 0 = any free one."},
    {FIELD(http, threads), INTEGER, 1, 64, "threads", "2",
     "Threads that parse requests and send replies. They never compute, so two go a long way."},
    {FIELD(http, max_connections), INTEGER, 1, 65536, "connections", "1024",
     "Open connections in all; more are refused."},
    {FIELD(http, max_connections_per_ip), INTEGER, 0, 65536, "connections", "256",
     "Open connections from one address; 0 = no limit (behind a proxy all come from one)."},
    {FIELD(http, max_header_bytes), BYTES, KIB, 64 * KIB, "bytes", "32k",
     "Request line and headers together; more is answered 431."},
    {FIELD(http, max_body_bytes), BYTES, KIB, 4 * GIB, "bytes", "32M",
     "Body of one request; more is answered 413."},
    {FIELD(http, header_timeout_ms), INTEGER, 100, HOUR_MS, "ms", "10000",
     "From the connection to the end of the headers."},
    {FIELD(http, body_timeout_ms), INTEGER, 100, HOUR_MS, "ms", "60000",
     "From the headers to the last byte of the body, however slowly it comes."},
    {FIELD(http, idle_timeout_ms), INTEGER, 100, HOUR_MS, "ms", "60000",
     "A kept connection without a request is closed."},
    {FIELD(http, write_timeout_ms), INTEGER, 100, HOUR_MS, "ms", "30000",
     "A client that takes nothing of its reply is cut off."},
    {FIELD(http, tls_certificate), TEXT, 0, 0, "", "",
     "PEM file with the certificate chain; empty = plain HTTP."},
    {FIELD(http, tls_key), TEXT, 0, 0, "", "", "PEM file with the certificate's private key."},

    {FIELD(auth, keys), TEXT, 0, 0, "", "",
     "File of API key digests (`jemd key new` prints its lines); empty = no keys. Read again on SIGHUP."},
    {FIELD(auth, allow_anonymous), BOOLEAN, 0, 0, "", "no",
     "Serve requests without a key even where others can reach the address."},
    {FIELD(auth, metrics_public), BOOLEAN, 0, 0, "", "no", "Serve /metrics without a key."},

    {FIELD(models, directory), TEXT, 0, 0, "", "/var/lib/jemd/models",
     "Every *.safetensors file in it is served; empty = none. Scanned again on SIGHUP."},
    {FIELD(models, model), TEXT, 0, 0, "", "", "One more model file to serve."},
    {FIELD(models, default_model), TEXT, 0, 0, "", "",
     "Name of the model that /v1/predict means; empty = the first by name."},
    {FIELD(models, cache), TEXT, 0, 0, "", "/var/cache/jemd",
     "Directory for digests of model files, so that a start need not read them all; empty = none."},

    {FIELD(memory, budget_bytes), BYTES, 0, 1024 * GIB, "bytes", "0",
     "All models and workspaces together; a model beyond it is not loaded. 0 = half of the machine's memory."},

    {FIELD(compute, precision), PRECISION, 0, 0, "", "float",
     "Products of convolutions: float; bfloat16 (8 significant bits, 1.6 times as fast) on CPUs with AVX512_BF16 or AMX tiles; bfloat16x3 (16 bits) with AMX tiles. One word for all models, then exceptions: `float, sprites=bfloat16`."},
    {FIELD(compute, share), TEXT, 0, 0, "", "/dev/shm",
     "Directory of memory for packed weights that daemons of one user share and find again after a restart."},
    {FIELD(compute, share_limit_bytes), BYTES, 0, 1024 * GIB, "bytes", "4G",
     "All packed weights in it; a model beyond it is packed in private memory. 0 = share nothing."},
    {FIELD(compute, pin), BOOLEAN, 0, 0, "", "no",
     "Prediction thread i and sampler worker i stay on core i of those the daemon may use. Helps on many cores or several sockets that the daemon has to itself; harms where others compute on the same cores."},

    {FIELD(predict, batch_max), INTEGER, 1, 1024, "images", "32",
     "Images in one forward pass. The batcher never waits for a batch to fill."},
    {FIELD(predict, queue_max), INTEGER, 1, 65536, "images", "256",
     "Images waiting for a prediction; more are answered 503."},
    {FIELD(predict, queue_ms), INTEGER, 0, HOUR_MS, "ms", "250",
     "A prediction that would wait longer is answered 503, and while that is so for more than a few, one that would wait longer than a 25th of it, so that others are answered as fast as ever. 0 = no limit."},
    {FIELD(predict, timeout_ms), INTEGER, 10, HOUR_MS, "ms", "10000",
     "Deadline of a prediction that names none."},
    {FIELD(predict, threads), INTEGER, 0, 1024, "threads", "0",
     "Threads of the forward pass; 0 = one a core."},
    {FIELD(predict, max_images), INTEGER, 1, 65536, "images", "64", "Images in one request."},
    {FIELD(predict, decode_threads), INTEGER, 1, 256, "threads", "2",
     "Threads that turn image files into pixels."},
    {FIELD(predict, max_pixels), COUNT, 1, 1 << 30, "pixels", "16777216",
     "Width times height of an image file; checked before anything is decoded."},
    {FIELD(predict, max_side), INTEGER, 1, 65535, "pixels", "8192",
     "Width or height of an image file."},
    {FIELD(predict, job_images), INTEGER, 1, 100000, "images", "4096",
     "Images in one prediction job; more are answered 413."},
    {FIELD(predict, job_bytes), BYTES, KIB, 512 * MIB, "bytes", "32M",
     "All images of one prediction job as they are stored; more are answered 413. What is sent is bounded by http.max_body_bytes, too."},

    {FIELD(sampler, workers), INTEGER, 0, 1024, "threads", "0",
     "Threads that move chains; 0 = one a core."},
    {FIELD(sampler, slots), INTEGER, 1, CHAINS_SLOTS_MAX, "chains", "16", "Chains a worker moves at once."},
    {FIELD(sampler, quantum_steps), INTEGER, 1, 100000, "steps", "32",
     "Steps a chain keeps its slot while others wait."},
    {FIELD(sampler, quantum_ms), INTEGER, 1, 60000, "ms", "50",
     "Time a chain keeps its slot while others wait; the shorter of the two counts."},
    {FIELD(sampler, max_images), INTEGER, 1, 1000000, "images", "1024", "Images a job may ask for."},
    {FIELD(sampler, max_steps), INTEGER, 1, 100000000, "steps", "100000",
     "Steps a job may ask for, per image."},
    {FIELD(sampler, nice), INTEGER, 0, 19, "", "10",
     "Added to the niceness of sampler threads, so that predictions come first. Above 0 they also "
     "sleep while one computes, but for a tenth of the time."},
    {FIELD(sampler, checkpoint_ms), INTEGER, 100, HOUR_MS, "ms", "5000",
     "Between two checkpoints of a running chain: what a crash may cost."},

    {FIELD(jobs, max_queued), INTEGER, 1, 1000000, "jobs", "1000",
     "Jobs that wait or run; more are answered 503."},
    {FIELD(jobs, max_queued_per_client), INTEGER, 1, 1000000, "jobs", "100",
     "The same for one key or address; more are answered 429."},
    {FIELD(jobs, max_running_per_client), INTEGER, 0, 1000000, "jobs", "32",
     "So many jobs of one key or address run at once; its others wait. 0 = no limit."},
    {FIELD(jobs, max_store_bytes), BYTES, MIB, 1024 * 1024 * GIB, "bytes", "1G",
     "Results kept; a job that would go beyond it is answered 507."},
    {FIELD(jobs, retention_seconds), INTEGER, 60, SECONDS_YEAR, "seconds", "86400",
     "A finished job and its results are kept this long."},
    {FIELD(jobs, retention_jobs), INTEGER, 0, 10000000, "jobs", "10000",
     "So many finished jobs are kept; beyond, those that ended first go before their time. 0 = no limit."},
    {FIELD(jobs, retention_bytes), BYTES, 0, 1024 * 1024 * GIB, "bytes", "768M",
     "The same for what finished jobs hold, so that new ones find room. 0 = no limit."},
    {FIELD(jobs, lease_ms), INTEGER, 1000, HOUR_MS, "ms", "30000",
     "A daemon that does not renew its claim on a job for this long loses it."},

    {FIELD(store, kind), STORE, 0, 0, "", "auto",
     "Where jobs are kept: sqlite survives everything (docs/store.md), memory ends with the daemon. auto = sqlite where there is a store.directory."},
    {FIELD(store, directory), TEXT, 0, 0, "", "",
     "Folder of the sqlite store, made if it is not there; one daemon at a time. Empty = jobs in systemd's state directory, if there is one."},

    {FIELD(train, enabled), BOOLEAN, 0, 0, "", "no",
     "Take training jobs. Needs train.data_root."},
    {FIELD(train, data_root), TEXT, 0, 0, "", "",
     "Folder of data sets; a job names one by its path below it, and links out of it are not followed."},
    {FIELD(train, directory), TEXT, 0, 0, "", "/var/lib/jemd/training",
     "Folder of runs with their checkpoints. They stay until somebody removes them."},
    {FIELD(train, threads), INTEGER, 0, 1024, "threads", "0",
     "Threads of the one training that goes on; 0 = one a core. The result does not depend on it."},
    {FIELD(train, nice), INTEGER, 0, 19, "", "15",
     "Added to the niceness of these threads, so that predictions and sampling come first. Above 0 "
     "they also sleep while a prediction computes, but for a tenth of the time."},
    {FIELD(train, max_steps), COUNT, 1, 100000000, "steps", "1000000", "Steps a recipe may ask for."},
    {FIELD(train, max_parameters), COUNT, 1, 1 << 30, "parameters", "20000000",
     "Parameters of a recipe's network."},
    {FIELD(train, max_recipe_bytes), BYTES, KIB, 16 * MIB, "bytes", "256k", "Text of a recipe."},
    {FIELD(train, max_seconds), INTEGER, 1, SECONDS_YEAR, "seconds", "86400",
     "A training that takes longer ends as expired, with a checkpoint to go on from."},
    {FIELD(train, max_data_bytes), BYTES, KIB, 1024 * GIB, "bytes", "1G", "One split of a data set."},
    {FIELD(train, max_memory_bytes), BYTES, MIB, 1024 * GIB, "bytes", "2G",
     "What a training holds, with the evaluation at its end. Not part of memory.budget_bytes."},

    {FIELD(log, level), LEVEL, 0, 0, "", "info", "Least severe level that is logged."},
    {FIELD(log, access), BOOLEAN, 0, 0, "", "yes", "Log one line a request."},

    {FIELD(shutdown, drain_ms), INTEGER, 0, HOUR_MS, "ms", "20000",
     "On SIGTERM, requests in flight have this long to finish; chains are checkpointed at once."},
};
/* clang-format on */

void key_name(const struct key *k, char out[64])
{
    snprintf(out, 64, "%s.%s", k->section, k->name);
}

void key_variable(const struct key *k, char out[64])
{
    snprintf(out, 64, "JEMD_%s_%s", k->section, k->name);
    for (char *p = out; *p; p++)
        *p = (char)toupper((unsigned char)*p);
}

/* Bytes in the largest binary unit that leaves no rest. */
static void format_bytes(long long bytes, char out[32])
{
    static const char suffix[] = {0, 'k', 'M', 'G', 0};
    int i = 0;
    for (; bytes && bytes % 1024 == 0 && suffix[i + 1]; i++)
        bytes /= 1024;
    snprintf(out, 32, "%lld%.1s", bytes, &suffix[i]);
}

void key_allowed(const struct key *k, char *out, size_t size)
{
    char low[32], high[32];
    switch (k->type) {
    case INTEGER:
    case COUNT:
        snprintf(out, size, "a whole number from %lld to %lld", k->min, k->max);
        return;
    case BYTES:
        format_bytes(k->min, low);
        format_bytes(k->max, high);
        snprintf(out, size, "a size from %s to %s (k, M and G are powers of 1024)", low, high);
        return;
    case BOOLEAN:
        snprintf(out, size, "yes or no");
        return;
    case TEXT:
        snprintf(out, size, "text of at most %zu bytes", k->size - 1);
        return;
    case ADDRESS:
        snprintf(out, size, "a numeric IPv4 or IPv6 address");
        return;
    case LEVEL:
        snprintf(out, size, "debug, info, warn or error");
        return;
    case PRECISION:
        snprintf(out, size, PRECISIONS_WORDS "; MODEL=WORD for one model");
        return;
    case STORE:
        snprintf(out, size, "auto, sqlite or memory");
        return;
    }
}

/* Decimal digits, for BYTES with a suffix. Returns 0 and *out, or -1. */
static int parse_number(const struct key *k, const char *text, long long *out)
{
    char *end;
    if (!isdigit((unsigned char)text[0]))
        return -1;
    errno = 0;
    long long value = strtoll(text, &end, 10), scale = 1;
    if (errno)
        return -1;
    if (k->type == BYTES && *end) {
        static const struct {
            char suffix;
            long long scale;
        } scales[] = {{'k', KIB}, {'K', KIB}, {'M', MIB}, {'G', GIB}};
        for (size_t i = 0; i < sizeof scales / sizeof scales[0] && scale == 1; i++)
            if (*end == scales[i].suffix)
                scale = scales[i].scale;
        end += scale > 1;
    }
    if (*end || __builtin_mul_overflow(value, scale, &value) || value < k->min || value > k->max)
        return -1;
    *out = value;
    return 0;
}

static int parse_boolean(const char *text, bool *out)
{
    static const char *const words[] = {"no", "yes", "false", "true", "off", "on"};
    for (int i = 0; i < 6; i++) {
        if (strcmp(text, words[i]) == 0) {
            *out = i % 2;
            return 0;
        }
    }
    return -1;
}

static bool text_fits(const struct key *k, const char *text)
{
    enum logger_level level;
    unsigned char binary[sizeof(struct in6_addr)];
    if (strlen(text) >= k->size)
        return false;
    if (k->type == ADDRESS)
        return inet_pton(AF_INET, text, binary) == 1 || inet_pton(AF_INET6, text, binary) == 1;
    if (k->type == PRECISION)
        return precisions_check(text, NULL) == 0;
    if (k->type == STORE)
        return strcmp(text, "auto") == 0 || strcmp(text, "sqlite") == 0 ||
               strcmp(text, "memory") == 0;
    return k->type != LEVEL || logger_parse_level(text, &level) == 0;
}

int key_store(const struct key *k, const char *text, struct settings *s)
{
    void *field = (char *)s + k->offset;
    long long number = 0;
    switch (k->type) {
    case INTEGER:
        if (parse_number(k, text, &number))
            return -1;
        *(int *)field = (int)number;
        return 0;
    case COUNT:
    case BYTES:
        return parse_number(k, text, field);
    case BOOLEAN:
        return parse_boolean(text, field);
    case TEXT:
    case ADDRESS:
    case LEVEL:
    case PRECISION:
    case STORE:
        if (!text_fits(k, text))
            return -1;
        snprintf(field, k->size, "%s", text);
        return 0;
    }
    return -1;
}

void key_format(const struct key *k, const struct settings *s, char out[256])
{
    const void *field = (const char *)s + k->offset;
    char bytes[32];
    switch (k->type) {
    case INTEGER:
        snprintf(out, 256, "%d", *(const int *)field);
        return;
    case COUNT:
        snprintf(out, 256, "%lld", *(const long long *)field);
        return;
    case BYTES:
        format_bytes(*(const long long *)field, bytes);
        snprintf(out, 256, "%s", bytes);
        return;
    case BOOLEAN:
        snprintf(out, 256, "%s", *(const bool *)field ? "yes" : "no");
        return;
    case TEXT:
    case ADDRESS:
    case LEVEL:
    case PRECISION:
    case STORE:
        snprintf(out, 256, "%s", (const char *)field);
        return;
    }
}
