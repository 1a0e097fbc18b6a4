/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* Models that lie in the test's folder. */
#include "server/models.h"
#include "unit/server_help.h"

static inline struct models_settings settings_of_folder(void)
{
    return (struct models_settings){
        .directory = folder,
        .file = "",
        .default_model = "",
        .cache = "",
        .budget_bytes = 1LL << 30,
        .users = {.batcher = {.threads = 2}, .chains = {.workers = 2, .slots = 4}}};
}
