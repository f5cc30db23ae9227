// How many tokens pass each module, by the forward that the client's profile has of the model. Activations and times are then of
// the same rows.
#pragma once

#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/families/module_rows.h"
#include "planner/setup.h"

namespace shardplan {

// Of one sample. A module that the forward passes without a tensor of its own (an activation function) has the rows of the one before
// it in the unit; experts those of their router. Empty where the profile does not know the model, and for a profile's own
// modules (Megatron's arguments describe decoders, whose rows are their text).
RowsOfModules rows_of_modules(const Model& model, const Setup& setup, const ClientSetup& client);

}  // namespace shardplan
