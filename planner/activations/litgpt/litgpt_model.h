// Profile litgpt: the forward of LitGPT's GPT and the losses of its recipes (litgpt/model.py, lora.py, utils.py, finetune/), on
// family litgpt.
//
// What it is told apart by, besides ClientSetup::litgpt:
//   adapters in the catalog     finetune/lora.py, whose head computes the logits of 128 tokens at a time; else finetune/full.py
//   4-bit weights               bitsandbytes 0.41 or 0.42, which keeps the input of a product; in today's code a
//                               StableEmbedding besides, whose weight has a gradient that no optimizer ever clears
// The logits stay until the backward has ended: the recipes' loops hold them.
#pragma once

#include <string>
#include <vector>

#include "planner/activations/activity.h"
#include "planner/activations/client.h"
#include "planner/families/model.h"
#include "planner/setup.h"

namespace shardplan {

// Why the profile cannot compute this; empty where it can.
std::string litgpt_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client);

// As run_profile (planner/activations/profiles.h).
void run_litgpt(autograd::Tape& tape, const Model& model, const Catalog& held, const Setup& setup,
                const ClientSetup& client, std::vector<SavedByUnit>* saved);

}  // namespace shardplan
