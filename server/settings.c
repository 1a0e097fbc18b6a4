/* SPDX-License-Identifier: Apache-2.0 */
#include "server/settings.h"

#include "base/logger.h"
#include "server/settings_keys.h"

#include <ini.h>

#include <arpa/inet.h>
#include <ctype.h>
#include <netinet/in.h>
#include <sched.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

enum { FILE_BYTES_MAX = 1 << 20 };

enum origin { FROM_DEFAULT, FROM_FILE, FROM_ENVIRONMENT, FROM_FLAG };

struct loaded {
    struct settings s;
    const char *file;
    struct {
        enum origin origin;
        int line; /* FROM_FILE */
    } from[KEYS];
};

/* Where key i got its value: "default", "jemd.conf:12", "JEMD_HTTP_PORT", "--http.port". */
static void describe_origin(const struct loaded *l, int i, char *out, size_t size)
{
    char name[64];
    switch (l->from[i].origin) {
    case FROM_DEFAULT:
        snprintf(out, size, "default");
        return;
    case FROM_FILE:
        snprintf(out, size, "%s:%d", l->file, l->from[i].line);
        return;
    case FROM_ENVIRONMENT:
        key_variable(&keys[i], name);
        snprintf(out, size, "%s", name);
        return;
    case FROM_FLAG:
        key_name(&keys[i], name);
        snprintf(out, size, "--%s", name);
        return;
    }
}

static int assign(struct loaded *l, int i, const char *value, enum origin origin, struct err *e)
{
    l->from[i].origin = origin;
    if (key_store(&keys[i], value, &l->s) == 0)
        return 0;
    char where[320], allowed[96], quoted[64];
    struct err why;
    describe_origin(l, i, where, sizeof where);
    if (keys[i].type == PRECISION && precisions_check(value, &why) != 0)
        return fail(e, FAIL_BAD_SETTING, "%.250s: %s.%s: %.200s", where, keys[i].section,
                    keys[i].name, why.text);
    key_allowed(&keys[i], allowed, sizeof allowed);
    return fail(e, FAIL_BAD_SETTING, "%.300s: %s.%s must be %s, not %s", where, keys[i].section,
                keys[i].name, allowed, logger_quote(value, quoted, sizeof quoted));
}

static int find(const char *section, const char *name)
{
    for (int i = 0; i < KEYS; i++)
        if (strcmp(keys[i].section, section) == 0 && strcmp(keys[i].name, name) == 0)
            return i;
    return -1;
}

/* Key i starts a section of the table. */
static bool starts_section(int i)
{
    return i == 0 || strcmp(keys[i].section, keys[i - 1].section) != 0;
}

/* "unknown ... ; did you mean ...?" with the nearest of names[n]. */
static int unknown(const char *what, const char *word, const char *const *names, int n,
                   struct err *e)
{
    char quoted[80];
    const char *near = fail_nearest(word, names, n);
    logger_quote(word, quoted, sizeof quoted);
    if (near)
        fail(e, FAIL_BAD_SETTING, "%s %s; did you mean \"%s\"?", what, quoted, near);
    else
        fail(e, FAIL_BAD_SETTING, "%s %s; docs/settings.md lists what there is", what, quoted);
    fail_suggest(e, near);
    return -FAIL_BAD_SETTING;
}

static int unknown_key(const char *where, const char *section, const char *name, struct err *e)
{
    char what[400];
    const char *names[KEYS];
    int n = 0;
    for (int i = 0; i < KEYS; i++)
        if (strcmp(keys[i].section, section) == 0)
            names[n++] = keys[i].name;
    if (n > 0) {
        snprintf(what, sizeof what, "%.300s: section %s has no key", where, section);
        return unknown(what, name, names, n, e);
    }
    for (int i = 0; i < KEYS; i++)
        if (starts_section(i))
            names[n++] = keys[i].section;
    snprintf(what, sizeof what, "%.300s: unknown section", where);
    return unknown(what, section, names, n, e);
}

/* One pass of inih over a text. inih has no line numbers here, so the reader counts them; it also
 * takes indentation away, which inih would read as the continuation of a value. */
struct reader {
    struct loaded *l;
    const char *next, *end;
    int line, code;
    struct err *e;
};

static char *read_line(char *out, int size, void *stream)
{
    struct reader *r = stream;
    if (r->code || r->next == r->end)
        return NULL;
    const char *start = r->next, *stop = memchr(start, '\n', (size_t)(r->end - start));
    stop = stop ? stop : r->end;
    r->next = stop < r->end ? stop + 1 : stop;
    r->line++;
    while (start < stop && isspace((unsigned char)*start))
        start++;
    if (start < stop && (*start == '#' || *start == ';'))
        start = stop;
    const size_t length = (size_t)(stop - start);
    if (memchr(start, '\0', length))
        r->code = fail(r->e, FAIL_BAD_SETTING, "%.300s:%d: a NUL byte", r->l->file, r->line);
    else if (length > (size_t)size - 3)
        r->code = fail(r->e, FAIL_BAD_SETTING, "%.300s:%d: a line of more than %d bytes",
                       r->l->file, r->line, size - 3);
    if (r->code)
        return NULL;
    memcpy(out, start, length);
    out[length] = '\n';
    out[length + 1] = '\0';
    return out;
}

static int take_pair(void *user, const char *section, const char *name, const char *value)
{
    struct reader *r = user;
    struct loaded *l = r->l;
    const int i = find(section, name);
    if (r->code)
        return 0;
    if (i < 0) {
        char where[320];
        snprintf(where, sizeof where, "%.300s:%d", l->file, r->line);
        r->code = unknown_key(where, section, name, r->e);
        return 0;
    }
    if (l->from[i].origin == FROM_FILE) {
        r->code = fail(r->e, FAIL_BAD_SETTING, "%.300s:%d: %s.%s is already set in line %d",
                       l->file, r->line, section, name, l->from[i].line);
        return 0;
    }
    l->from[i].line = r->line;
    r->code = assign(l, i, value, FROM_FILE, r->e);
    return r->code == 0;
}

static int apply_text(struct loaded *l, const char *text, size_t size, struct err *e)
{
    struct reader r = {.l = l, .next = text, .end = text + size, .e = e};
    const int line = ini_parse_stream(read_line, &r, take_pair, &r);
    if (r.code)
        return r.code;
    if (line > 0)
        return fail(e, FAIL_BAD_SETTING, "%.300s:%d: neither [section] nor key = value", l->file,
                    line);
    return line < 0 ? fail(e, FAIL_NO_MEMORY, "no memory to read %.300s", l->file) : 0;
}

static int apply_file(struct loaded *l, const char *path, struct err *e)
{
    int code = 0;
    char *text = malloc(FILE_BYTES_MAX);
    if (!text)
        return fail(e, FAIL_NO_MEMORY, "no memory to read %.300s", path);
    FILE *in = fopen(path, "re");
    if (!in) {
        code = fail_errno(e, FAIL_IO, "cannot open the settings file %.300s", path);
        goto out;
    }
    const size_t size = fread(text, 1, FILE_BYTES_MAX, in);
    if (ferror(in))
        code = fail_errno(e, FAIL_IO, "cannot read the settings file %.300s", path);
    else if (size == FILE_BYTES_MAX)
        code = fail(e, FAIL_BAD_SETTING, "%.300s: more than a megabyte of settings", path);
    else
        code = apply_text(l, text, size, e);
    fclose(in);
out:
    free(text);
    return code;
}

/* A variable of ours that names no key is a mistake if it begins like one of a section. */
static int refuse_variable(const char *variable, struct err *e)
{
    char names[KEYS][64];
    const char *list[KEYS];
    bool ours = false;
    for (int i = 0; i < KEYS; i++) {
        key_variable(&keys[i], names[i]);
        list[i] = names[i];
        const size_t prefix = strlen("JEMD_") + strlen(keys[i].section) + 1;
        ours = ours || strncmp(variable, names[i], prefix) == 0;
    }
    return ours ? unknown("environment: unknown variable", variable, list, KEYS, e) : 0;
}

static int apply_variable(struct loaded *l, const char *entry, struct err *e)
{
    const char *equals = strchr(entry, '=');
    char variable[128], name[64];
    if (strncmp(entry, "JEMD_", 5) != 0 || !equals || equals - entry >= (long)sizeof variable)
        return 0;
    snprintf(variable, sizeof variable, "%.*s", (int)(equals - entry), entry);
    for (int i = 0; i < KEYS; i++) {
        key_variable(&keys[i], name);
        if (strcmp(variable, name) == 0)
            return assign(l, i, equals + 1, FROM_ENVIRONMENT, e);
    }
    return refuse_variable(variable, e);
}

static int apply_override(struct loaded *l, const char *text, struct err *e)
{
    char section[64], name[64], where[160];
    const char *dot = strchr(text, '.'), *equals = strchr(text, '=');
    if (!dot || !equals || dot > equals || dot - text >= 64 || equals - dot > 64)
        return fail(e, FAIL_BAD_SETTING, "--%.200s: write it as --section.key=value", text);
    snprintf(section, sizeof section, "%.*s", (int)(dot - text), text);
    snprintf(name, sizeof name, "%.*s", (int)(equals - dot - 1), dot + 1);
    const int i = find(section, name);
    if (i >= 0)
        return assign(l, i, equals + 1, FROM_FLAG, e);
    snprintf(where, sizeof where, "--%s.%s", section, name);
    return unknown_key(where, section, name, e);
}

static bool address_is_loopback(const char *text)
{
    struct in_addr four;
    struct in6_addr six;
    if (inet_pton(AF_INET, text, &four) == 1)
        return ntohl(four.s_addr) >> 24 == IN_LOOPBACKNET;
    if (inet_pton(AF_INET6, text, &six) != 1)
        return false;
    return IN6_IS_ADDR_LOOPBACK(&six) ||
           (IN6_IS_ADDR_V4MAPPED(&six) && six.s6_addr[12] == IN_LOOPBACKNET);
}

static int check_address(const struct settings *s, const char *address, struct err *e)
{
    if (address_is_loopback(address) || s->auth.keys[0] || s->auth.allow_anonymous)
        return 0;
    return fail(e, FAIL_BAD_SETTING,
                "others can reach %s: set auth.keys, or auth.allow_anonymous = yes to serve "
                "everybody, or listen on 127.0.0.1",
                address);
}

int settings_check_socket(const struct settings *s, int fd, struct err *e)
{
    union {
        struct sockaddr any;
        struct sockaddr_in four;
        struct sockaddr_in6 six;
        struct sockaddr_storage storage;
    } a = {0};
    socklen_t size = sizeof a;
    char text[INET6_ADDRSTRLEN];
    if (getsockname(fd, &a.any, &size))
        return fail_errno(e, FAIL_IO, "descriptor %d is not a socket to listen on", fd);
    if (a.any.sa_family == AF_INET)
        inet_ntop(AF_INET, &a.four.sin_addr, text, sizeof text);
    else if (a.any.sa_family == AF_INET6)
        inet_ntop(AF_INET6, &a.six.sin6_addr, text, sizeof text);
    else
        return 0;
    return check_address(s, text, e);
}

static int check_combinations(const struct settings *s, struct err *e)
{
    const bool certificate = s->http.tls_certificate[0], key = s->http.tls_key[0];
    if (certificate != key)
        return fail(e, FAIL_BAD_SETTING,
                    "TLS needs http.tls_certificate and http.tls_key; %s is empty",
                    certificate ? "http.tls_key" : "http.tls_certificate");
    if (s->predict.max_images > s->predict.queue_max)
        return fail(e, FAIL_BAD_SETTING,
                    "predict.max_images (%d) is more than predict.queue_max (%d): such a request "
                    "could never be served",
                    s->predict.max_images, s->predict.queue_max);
    if (s->train.enabled && !s->train.data_root[0])
        return fail(e, FAIL_BAD_SETTING,
                    "train.enabled needs train.data_root, the folder of data sets");
    return check_address(s, s->http.address, e);
}

/* Zeros that mean "as the machine has it". */
static void fit_to_machine(struct settings *s)
{
    cpu_set_t cpus;
    CPU_ZERO(&cpus);
    int cores = sched_getaffinity(0, sizeof cpus, &cpus) == 0 ? CPU_COUNT(&cpus) : 1;
    if (s->predict.threads == 0)
        s->predict.threads = cores;
    if (s->sampler.workers == 0)
        s->sampler.workers = cores;
    if (s->train.threads == 0)
        s->train.threads = cores;
    if (s->memory.budget_bytes == 0)
        s->memory.budget_bytes = sysconf(_SC_PHYS_PAGES) / 2 * sysconf(_SC_PAGESIZE);
}

/* systemd names the state directories of a unit, with colons between. */
static int fit_store(struct settings *s, struct err *e)
{
    const char *state = getenv("STATE_DIRECTORY");
    const bool automatic = strcmp(s->store.kind, "auto") == 0;
    if (!s->store.directory[0] && state && state[0] == '/') {
        const int n = (int)strcspn(state, ":");
        if ((size_t)snprintf(s->store.directory, sizeof s->store.directory, "%.*s/jobs", n,
                             state) >= sizeof s->store.directory)
            s->store.directory[0] = '\0';
    }
    if (automatic)
        strcpy(s->store.kind, s->store.directory[0] ? "sqlite" : "memory");
    if (strcmp(s->store.kind, "sqlite") == 0 && !s->store.directory[0])
        return fail(e, FAIL_BAD_SETTING,
                    "store.kind = sqlite needs store.directory, the folder to keep jobs in");
    return 0;
}

static int finish(struct loaded *l, struct err *e)
{
    int code = check_combinations(&l->s, e);
    if (code == 0)
        code = fit_store(&l->s, e);
    if (code == 0)
        fit_to_machine(&l->s);
    return code;
}

static void init_loaded(struct loaded *l, const char *file)
{
    *l = (struct loaded){.file = file};
    for (int i = 0; i < KEYS; i++)
        invariant(assign(l, i, keys[i].initial, FROM_DEFAULT, NULL) == 0);
}

static int load(struct loaded *l, const char *path, const char *const *overrides, struct err *e)
{
    init_loaded(l, path);
    int code = path ? apply_file(l, path, e) : 0;
    for (char **entry = environ; code == 0 && entry && *entry; entry++)
        code = apply_variable(l, *entry, e);
    for (; code == 0 && overrides && *overrides; overrides++)
        code = apply_override(l, *overrides, e);
    return code ? code : finish(l, e);
}

int settings_load(struct settings *out, const char *path, const char *const *overrides,
                  struct err *e)
{
    struct loaded l;
    const int code = load(&l, path, overrides, e);
    if (code == 0)
        *out = l.s;
    return code;
}

int settings_parse(struct settings *out, const char *name, const char *text, size_t size,
                   struct err *e)
{
    struct loaded l;
    init_loaded(&l, name);
    int code = apply_text(&l, text, size, e);
    if (code == 0)
        code = finish(&l, e);
    if (code == 0)
        *out = l.s;
    return code;
}

void settings_print_defaults(FILE *out)
{
    fputs(
        "# jemd settings: every key at its default. `jemd check` shows what is in force and why.\n"
        "# --section.key=value on the command line comes before JEMD_SECTION_KEY in the\n"
        "# environment, and that before this file. A ';' after a space starts a comment.\n",
        out);
    for (int i = 0; i < KEYS; i++) {
        const struct key *k = &keys[i];
        char allowed[96];
        key_allowed(k, allowed, sizeof allowed);
        if (starts_section(i))
            fprintf(out, "\n[%s]\n", k->section);
        else
            fputc('\n', out);
        fprintf(out, "# %s\n# %s%s%s\n", k->doc, allowed, k->unit[0] ? "; unit: " : "", k->unit);
        fprintf(out, "%s =%s%s\n", k->name, k->initial[0] ? " " : "", k->initial);
    }
}

int settings_print_effective(FILE *out, const char *path, const char *const *overrides,
                             struct err *e)
{
    struct loaded l;
    const int code = load(&l, path, overrides, e);
    if (code)
        return code;
    for (int i = 0; i < KEYS; i++) {
        char value[256], where[320], pair[320];
        key_format(&keys[i], &l.s, value);
        describe_origin(&l, i, where, sizeof where);
        if (starts_section(i))
            fprintf(out, "%s[%s]\n", i ? "\n" : "", keys[i].section);
        snprintf(pair, sizeof pair, "%s = %s", keys[i].name, value);
        fprintf(out, "%-39s ; %s\n", pair, where);
    }
    return 0;
}

void settings_print_reference(FILE *out)
{
    fputs(
        "# Settings\n\n"
        "Every key of `jemd.conf`. A key can also be given as `--section.key=value` on the "
        "command\n"
        "line or as `JEMD_SECTION_KEY` in the environment; the command line comes before the\n"
        "environment, the environment before the file, the file before the default. Unknown keys\n"
        "are errors. `jemd check` prints the values in force and where each came from.\n",
        out);
    for (int i = 0; i < KEYS; i++) {
        const struct key *k = &keys[i];
        char allowed[96];
        key_allowed(k, allowed, sizeof allowed);
        if (starts_section(i))
            fprintf(out,
                    "\n## %s\n\n| key | takes | unit | default | what |\n|---|---|---|---|---|\n",
                    k->section);
        fprintf(out, "| `%s.%s` | %s | %s | %s%s%s | %s |\n", k->section, k->name, allowed, k->unit,
                k->initial[0] ? "`" : "", k->initial[0] ? k->initial : "empty",
                k->initial[0] ? "`" : "", k->doc);
    }
}

enum precision settings_precision_of(const struct settings *s, const char *model_name)
{
    return precisions_of(s->compute.precision, model_name);
}
