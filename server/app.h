/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What the handlers work with: the daemon's parts, put together by daemon.c. Set up before the first
 * request and unchanged afterwards (the parts have their own locks). */
#include "ebm/chains.h"
#include "server/auth.h"
#include "server/batcher.h"
#include "server/events.h"
#include "server/http.h"
#include "server/jobs.h"
#include "server/models.h"
#include "server/settings.h"
#include "server/store.h"
#include "server/tasks.h"

#include <stdatomic.h>

struct app {
    struct settings settings;
    struct auth *auth; /* NULL = no keys */
    struct models *models;
    struct tasks *tasks;
    struct tasks
        *chores; /* one thread for what takes seconds: promotions, judging a training job */
    struct batcher *batcher;
    struct chains *chains;
    struct bulk *bulk;
    struct store *store;
    struct events *events;
    struct jobs *jobs;
    struct http *http;
    int64_t started_ms; /* wall clock */
    atomic_bool draining;
    _Atomic int64_t stopped_ns; /* monotonic; when that will be over at the latest; 0 = not begun */
    _Atomic size_t body_bytes;  /* set aside for bodies of requests that are not over */
};
