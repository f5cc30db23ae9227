// Profiles: whose code computes the model. Each turns a rank's part of a model and a client into an Activity.
//
// A profile is a table of families: for each model_type a function that writes the forward of one block, beside one that
// writes the model around it. Families whose blocks are alike share a file, as in planner/families.
#pragma once

#include <optional>
#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

struct ActivityResult {
  std::optional<Activity> activity;
  std::string unknown_because;  // where there is none
};

// Why the profile cannot compute this; empty where it can.
std::string profile_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client);

// Runs forward and backward of one micro-batch. `saved` is filled between the two, if given. Only where the profile does not
// refuse; throws autograd::NotModelled (hf/hf_modules.h) for what shows only on the way, ArithmeticOverflow.
void run_profile(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                 const ClientSetup& client, std::vector<SavedByUnit>* saved = nullptr);

// Of the ranks that hold `held` (planner/parallel.h) of `model`. Throws ArithmeticOverflow for sizes beyond 63 bits.
ActivityResult activity_of(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                           const autograd::TapeOptions& options = {});

}  // namespace shardplan
