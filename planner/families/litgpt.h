// Models of transformers as LitGPT has them.
#pragma once

#include "planner/families/model.h"

namespace shardplan {

// The same model as a litgpt.GPT (family litgpt, planner/families/litgpt.cpp): the head apart from the embedding, names as there;
// sizes as litgpt/config.py has them for the models that it knows, but vocabularies, which stay as they are. Of families llama,
// mistral, qwen2, gemma, gemma2, phi3, falcon, phi and gpt_neox. Throws ConfigError for others, and for a model whose
// architecture is not known.
Model litgpt_model(const Model& model);

}  // namespace shardplan
