// What a manifest says, for people and for programs.
#pragma once

#include <string>

#include "shard/checkpoint/checkpoint_reader.h"

namespace shardplan::checkpoint_tool {

std::string inspect_text(const CheckpointReader& reader);
// "shardplan.checkpoint/1": see docs/checkpoints.md.
std::string inspect_json(const CheckpointReader& reader);

}  // namespace shardplan::checkpoint_tool
