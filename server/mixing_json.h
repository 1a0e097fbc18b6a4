/* SPDX-License-Identifier: Apache-2.0 */
#pragma once
/* What a sampling job's result says of how its chains have mixed. Used by artifacts.c. */
#include "ebm/chains.h"
#include "file/json.h"
#include "proto/sample_request.h"

/* An array with an object for each condition: its chains and how many diverged; the share of accepted
 * proposals (null for kinds that propose nothing); R-hat and effective sizes of the energy in the second
 * half of the traces of the chains that did not diverge (diagnostics.h; null where they cannot be had).
 * Errors: NO_MEMORY. */
int mixing_json(json_t **out, const struct sample_request *q, const struct chain_group *g,
                struct err *e);
/* True if chains proposed moves and none was accepted. */
bool mixing_is_stuck(const struct sample_request *q, const struct chain_group *g);
