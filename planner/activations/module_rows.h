// How many tokens pass each module, by the forward that the client's profile has of the model. Activations and times are then of
// the same rows.
#pragma once

#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/families/module_rows.h"
#include "planner/setup.h"

namespace shardplan {

// Of one sample. A module without a tensor, of which the forward does not say what passes it, has the rows of the one before it in the
// unit; so have experts, each of which has a part of them. Empty where the profile does not know the model; and for profile
// megatron, whose models are decoders with modules of their own: their rows are the text.
RowsOfModules rows_of_modules(const Model& model, const Setup& setup, const ClientSetup& client);

}  // namespace shardplan
