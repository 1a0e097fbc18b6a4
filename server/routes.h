/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/*
 * From a request to its handler: the table of routes with method, scope and body limit, access
 * control, and the access log. Handlers get a `struct call` and answer it exactly once through the
 * respond_ functions, now or later.
 */
#include "base/fail.h"
#include "file/json.h"
#include "server/app.h"

/* JSON_BODY_VALUES: what a JSON body may hold. Parsed, a value can take eighty times its text. */
enum { CALL_PARAMS = 2, CALL_PARAM_SIZE = 128, JSON_BODY_VALUES = 100000 };

struct route;

/* One request on its way; freed with it. */
struct call {
    struct app *app;
    struct request *request;
    const struct route *route;
    char params[CALL_PARAMS][CALL_PARAM_SIZE]; /* what the {} of the path stand for */
    struct auth_identity who;                  /* key name, or the peer's address */
    bool has_key;                              /* it is the former */
    size_t body_bytes;                         /* set aside for the body */
    struct event_watch *watch;                 /* of a long poll */
    atomic_int let_go;                         /* of a long poll: see handlers_jobs.c */
};

/* A path pattern: segments are literal, "{}" matches one or more characters except '/' and ':',
 * "{*}" the rest of the path. Returns true and fills params[CALL_PARAMS]. */
bool route_match(const char *pattern, const char *path, char params[CALL_PARAMS][CALL_PARAM_SIZE]);
/* The callbacks to give to http_open; ctx is the app. */
struct http_handlers routes_handlers(struct app *a);

/* Whether the caller has one of these scopes. Errors: UNAUTHORIZED, FORBIDDEN. */
int call_allows(const struct call *c, unsigned scope, struct err *e);
/* Whether a header of conditions is "*" or lists this ETag: If-None-Match by weak comparison, If-Match
 * by strong (RFC 9110 13.1). */
bool call_lists(const struct call *c, const char *header, const char *etag);
/* Whether the request has the representation with this ETag already: If-None-Match. */
bool call_knows(const struct call *c, const char *etag);

/* The answers. Each ends the call (c and its request are invalid afterwards). */
void respond_json(struct call *c, int status, json_t *body); /* takes the reference; NULL = 503 */
void respond_error(struct call *c, const struct err *e);
/* Any reply of one's own. */
void respond(struct call *c, struct http_reply *reply);
