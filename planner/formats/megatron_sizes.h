// The model that Megatron-LM builds from its arguments (planner/families/megatron.h), with the rules of
// training/arguments.py, validate_args, d98e8a64:
//
//   ffn-hidden-size             absent: 4 x hidden; with swiglu int((4 x hidden x 2/3) / 64) x 64, rounded down
//   kv-channels                 absent: hidden / heads, which must be whole
//   num-query-groups            only with group-query-attention
//   moe-ffn-hidden-size         absent: ffn-hidden-size
//   moe-layer-freq              N: layer i has experts where i mod N is 0; or a list with an entry for each layer
//   num-experts 0               none
//   vocab-size                  absent: that of the tokenizer's usual vocabulary (GPT-2's 50257, BERT's 30522 and 28996),
//                               with a note; vocab-extra-ids more
//
// Which model: `script` says it where it names one (pretrain_bert.py); else hybrid-layer-pattern is a hybrid,
// encoder-num-layers or decoder-seq-length T5, bert- arguments or --spec local BERT; everything else GPT.
#pragma once

#include <string>
#include <vector>

#include "planner/families/megatron.h"
#include "planner/formats/megatron_arguments.h"

namespace shardplan {

// Notes say what was assumed. Throws ConfigError.
MegatronSizes read_megatron_sizes(MegatronArguments& arguments, const std::string& script,
                                  std::vector<std::string>& notes);

}  // namespace shardplan
