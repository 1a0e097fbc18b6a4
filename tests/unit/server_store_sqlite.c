/* SPDX-License-Identifier: Apache-2.0 */
/* The suite on the SQLite store: as it is, opened again and again, and what is durable about it. */
#include "sqlite_kind.h"
#include "store_anew.h"
#include "store_suite.h"
#include "store_suite_durable.h"

static int open_anew(struct store **out, const struct store_limits *limits, struct err *err)
{
    return anew_begin(out, limits, err, sqlite_open);
}

int main(void)
{
    static const struct store_kind again = {
        .name = "store_sqlite_opened_again", .open = open_anew, .empty = sqlite_empty};
    sqlite_begin();
    int rc = store_suite_run(&sqlite_kind);
    rc += store_suite_run(&again);
    rc += store_suite_run_durable(&sqlite_kind);
    return sqlite_end(rc);
}
