// Profile torchtune: the forward of its TransformerDecoder for Llama (torchtune/modules at commit bd2a0fc) and the losses of its
// recipes:
//   eager      nn.CrossEntropyLoss on logits of all tokens in fp32 (v0.1 to v0.4), which the recipe holds until the backward
//              has ended
//   chunked=N  CEWithChunkedOutputLoss: logits of all tokens in N parts, each cast to fp32 for its loss
//   fused      LinearCrossEntropyLoss: head and loss of one of eight parts after the other
#pragma once

#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Why the profile cannot compute this; empty where it can.
std::string torchtune_refuses(const Model& model, const Setup& setup, const ClientSetup& client);

// As run_profile (planner/activations/profiles.h).
void run_torchtune(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                   const ClientSetup& client, std::vector<SavedByUnit>* saved);

}  // namespace shardplan
