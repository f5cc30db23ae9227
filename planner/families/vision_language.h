// Language models that see, whose parts are of whatever family their files name.
#pragma once

#include "planner/families/model.h"
#include "planner/families/model_config.h"

namespace shardplan {

void llava(ModelConfig& config, ModelBuilder& model);
void qwen2_vl(ModelConfig& config, ModelBuilder& model);
void qwen2_5_vl(ModelConfig& config, ModelBuilder& model);

// Which of a tower's features a projector reads: "default", without the token that is the tower's own, or "full". Throws ConfigError.
std::string feature_strategy(const ModelConfig& config);

}  // namespace shardplan
