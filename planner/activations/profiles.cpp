#include "planner/activations/profiles.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <optional>
#include <string_view>
#include <utility>

#include "planner/activations/hf/hf_model.h"
#include "planner/activations/hf/hf_modules.h"
#include "planner/activations/hf/hf_ulysses.h"
#include "planner/activations/litgpt/litgpt_model.h"
#include "planner/activations/megatron/megatron_model.h"
#include "planner/activations/torch_programs/torchtitan_model.h"
#include "planner/activations/torch_programs/torchtune_model.h"

namespace shardplan {

namespace {

using autograd::find_hf_family;
using autograd::ForwardContext;
using autograd::NotModelled;
using autograd::Tape;
using autograd::TapeOptions;
using autograd::Value;

// Whether a tensor's name has this in it: of what a profile does not know beside a model's own.
bool has_tensor_like(const Catalog& held, std::string_view part) {
  return std::any_of(held.runs.begin(), held.runs.end(), [&](const UnitRun& run) {
    return std::any_of(run.tensors.begin(), run.tensors.end(),
                       [&](const Tensor& tensor) { return tensor.name.find(part) != std::string::npos; });
  });
}

const autograd::HfFamily* family_of(const Model& model, const ClientSetup& client) {
  return client.profile == Profile::hf_liger ? autograd::find_liger_family(model.catalog.family)
                                             : find_hf_family(model.catalog.family);
}

// Whose forwards agree with PyTorch's under torch.autocast too (tests/data/activations/amp.json, autocast.json, dit.json).
bool known_under_autocast(std::string_view family) {
  static constexpr std::array kFamilies{"llama",       "mistral",  "qwen2",       "qwen3",
                                        "gemma",       "gemma2",   "gemma3_text", "phi3",
                                        "olmo",        "olmo2",    "olmo3",       "cohere",
                                        "granite",     "gpt2",     "gpt_bigcode", "gpt_neo",
                                        "gptj",        "gpt_neox", "falcon",      "opt",
                                        "bloom",       "mpt",      "phi",         "mixtral",
                                        "qwen2_moe",   "olmoe",    "qwen3_moe",   "phimoe",
                                        "deepseek_v2", "bert",     "roberta",     "electra",
                                        "albert",      "t5",       "distilbert",  "starcoder2",
                                        "stablelm",    "mt5",      "xlm-roberta", "whisper",
                                        "vit",         "dinov2",   "DiT",         "clip_vision_model"};
  return std::find(kFamilies.begin(), kFamilies.end(), family) != kFamilies.end();
}

// Recomputation that only flows have, and what continuous ones do not have: a block is one solution of an equation.
std::string flow_refuses(const Model& model, RecomputeKind recompute) {
  const std::string& family = model.catalog.family;
  if (recompute == RecomputeKind::invert && family != "glow") {
    return fmt::format("recompute invert is of layers that can be inverted; {} has none", family);
  }
  if (recompute == RecomputeKind::adjoint && family != "cnf") {
    return fmt::format("recompute adjoint is of continuous flows; {} is none", family);
  }
  if (family == "cnf" && recompute != RecomputeKind::none && recompute != RecomputeKind::adjoint) {
    return "a cnf is recomputed by its adjoint equation (--recompute adjoint), not otherwise";
  }
  return {};
}

// How many tokens' positions a table of the model has; nothing where positions are computed, or of images.
std::optional<std::uint64_t> rows_of_positions(const Model& model) {
  static constexpr std::array kTables{"wpe", "position_embeddings", "embed_positions"};
  const auto is_table = [](const Module& module) {
    const std::string_view name = std::string_view(module.name).substr(module.name.rfind('.') + 1);
    return module.kind == ModuleKind::embedding && std::find(kTables.begin(), kTables.end(), name) != kTables.end();
  };
  const bool any = std::any_of(model.modules.begin(), model.modules.end(), [&](const ModuleRun& run) {
    return std::any_of(run.modules.begin(), run.modules.end(), is_table);
  });
  if (!any || model.architecture.vocabulary == 0 || model.architecture.max_positions == 0) return std::nullopt;
  return model.architecture.max_positions;
}

std::string hf_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client) {
  const std::string_view profile = name(client.profile);
  const Parallelism& parallel = setup.parallel;
  if (parallel.tensor > 1 || parallel.expert > 1) {
    return fmt::format("profile {} shares out no layer and no experts (--tp, --ep)", profile);
  }
  if (parallel.context > 1) {
    if (std::string why = ulysses_refuses(model, setup, client); !why.empty()) return why;
  }
  if (setup.policy.compute != setup.policy.parameter && !autocasts(setup.policy)) {
    return fmt::format("profile {} computes in the parameters' dtype, or by autocast over fp32: {} is neither", profile,
                       setup.policy.name);
  }
  if (client.attention == AttentionKind::flash) {
    return fmt::format("profile {} does not know attention flash yet", profile);
  }
  // Beside sounds there are the decoder's tokens alone.
  const bool hears = model.catalog.family == "whisper" && client.target != 0;
  const std::uint64_t tokens = hears ? client.target : std::max(client.sequence, client.target);
  if (const auto rows = rows_of_positions(model); rows && tokens > *rows) {
    return fmt::format("{} has positions for {} tokens, not for {}", model.catalog.name, *rows, tokens);
  }
  if (client.loss != LossKind::eager) {
    return fmt::format("profile {} has the loss of its models alone, not --loss {}", profile,
                       loss_words(client.loss, client.loss_chunks));
  }
  if (client.expert_load.capacity_factor && model.catalog.active_parameters) {
    return fmt::format("profile {} drops no tokens (--moe-capacity-factor)", profile);
  }
  if (std::string why = flow_refuses(model, client.recompute); !why.empty()) return why;
  if (client.recompute == RecomputeKind::selective) {
    return fmt::format("profile {} does not know recompute {} yet", profile,
                       recompute_words(client.recompute, client.recompute_every));
  }
  for (const auto& [part, what] : {std::pair{".lora_embedding_A.", "adapters of embeddings"},
                                   {".modules_to_save.", "modules that are saved beside adapters"}}) {
    if (has_tensor_like(held, part)) return fmt::format("profile {} does not know {} yet", profile, what);
  }
  if (family_of(model, client) == nullptr) {
    return fmt::format("profile {} does not know {} yet", profile, model.catalog.family);
  }
  if (autocasts(setup.policy) && !known_under_autocast(model.catalog.family)) {
    return fmt::format("profile {} does not know {} under autocast yet", profile, model.catalog.family);
  }
  return {};
}

void run_hf(Tape& tape, const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
            std::vector<SavedByUnit>* saved) {
  const ClientSetup seen = seen_by_a_rank(setup, client);
  ForwardContext context{tape, model, held, setup, seen};
  context.unfolded = !tape.options().folds;
  if (autocasts(setup.policy)) tape.begin_autocast(setup.policy.compute);
  Value loss = family_of(model, client)->forward(context);
  tape.end_autocast();
  if (!client.keeps_outputs) tape.release_kept();
  if (saved != nullptr) *saved = saved_tensors(tape);
  // The loss's own gradient is a tensor of one; what comes from the next stage is as large as what went there.
  const Value gradient = tape.allocate("gradient", loss.shape(), loss.dtype());
  tape.backward(std::move(loss), gradient);
  tape.release_kept();
}

}  // namespace

std::string profile_refuses(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client) {
  if (model.modules.empty()) return "only the model's tensors are known, not what its forward does with them";
  if (client.sequence == 0 && (model.architecture.vocabulary > 0 || client.profile == Profile::megatron)) {
    return "the sequence length is not known (--seq)";
  }
  const bool one_attention = client.profile == Profile::torchtitan || client.profile == Profile::torchtune ||
                             client.profile == Profile::litgpt;
  if (one_attention && client.attention && *client.attention != AttentionKind::sdpa) {
    return fmt::format("profile {} has attention sdpa alone, not {}", name(client.profile), name(*client.attention));
  }
  if (client.profile == Profile::torchtitan) return torchtitan_refuses(model, held, setup, client);
  if (client.profile == Profile::torchtune) return torchtune_refuses(model, setup, client);
  if (client.profile == Profile::litgpt) return litgpt_refuses(model, held, setup, client);
  if (client.profile != Profile::megatron) return hf_refuses(model, held, setup, client);
  if (client.loss == LossKind::chunked || client.recompute == RecomputeKind::every || is_of_flows(client.recompute)) {
    return "profile megatron has neither loss chunked=N nor recompute every=N, invert or adjoint";
  }
  // moe_layer.py, MoELayer.forward.
  if (model.catalog.active_parameters && setup.parallel.tensor > 1 && !setup.parallel.sequence_parallel) {
    return "Megatron trains no mixture of experts with --tp and without --sequence-parallel";
  }
  return megatron_refuses(model, held);
}

void run_profile(Tape& tape, const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                 std::vector<SavedByUnit>* saved) {
  if (client.profile == Profile::megatron) {
    run_megatron(tape, model, held, setup, client, saved);
  } else if (client.profile == Profile::torchtitan) {
    run_torchtitan(tape, model, held, setup, client, saved);
  } else if (client.profile == Profile::torchtune) {
    run_torchtune(tape, model, held, setup, client, saved);
  } else if (client.profile == Profile::litgpt) {
    run_litgpt(tape, model, held, setup, client, saved);
  } else {
    run_hf(tape, model, held, setup, client, saved);
  }
}

ActivityResult activity_of(const Model& model, const Catalog& held, const Setup& setup, const ClientSetup& client,
                           const TapeOptions& options) {
  if (std::string why = profile_refuses(model, held, setup, client); !why.empty()) return {{}, std::move(why)};
  Tape tape(options);
  ActivityResult result;
  result.activity.emplace();
  try {
    run_profile(tape, model, held, setup, client, &result.activity->saved);
  } catch (const NotModelled& unknown) {
    return {
        {},
        fmt::format("profile {} does not know {} of {}", name(client.profile), unknown.what(), model.catalog.family)};
  }
  result.activity->spans = spans_of(tape);
  return result;
}

}  // namespace shardplan
