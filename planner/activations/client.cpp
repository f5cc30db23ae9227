#include "planner/activations/client.h"

#include <fmt/format.h>

#include <array>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr std::array kProfiles{Profile::hf_eager,   Profile::hf_sdpa, Profile::hf_liger, Profile::megatron,
                               Profile::torchtitan, Profile::litgpt,  Profile::torchtune};

}  // namespace

std::string_view name(Profile profile) {
  switch (profile) {
    case Profile::hf_eager:
      return "hf-eager";
    case Profile::hf_sdpa:
      return "hf-sdpa";
    case Profile::hf_liger:
      return "hf-liger";
    case Profile::megatron:
      return "megatron";
    case Profile::torchtitan:
      return "torchtitan";
    case Profile::litgpt:
      return "litgpt";
    case Profile::torchtune:
      return "torchtune";
  }
  SHARDPLAN_CHECK(false, "an unknown profile");
  return {};
}

Profile profile_named(std::string_view wanted) {
  std::string known;
  for (const Profile profile : kProfiles) {
    if (name(profile) == wanted) return profile;
    known += fmt::format("{}{}", known.empty() ? "" : ", ", name(profile));
  }
  throw ConfigError("--profile", "", fmt::format("expected one of {}, found {}", known, wanted));
}

std::string_view name(AttentionKind attention) {
  switch (attention) {
    case AttentionKind::eager:
      return "eager";
    case AttentionKind::sdpa:
      return "sdpa";
    case AttentionKind::flash:
      return "flash";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of attention");
  return {};
}

std::string loss_words(LossKind loss, std::uint64_t chunks) {
  switch (loss) {
    case LossKind::eager:
      return "eager";
    case LossKind::fused:
      return "fused";
    case LossKind::chunked:
      return fmt::format("chunked={}", chunks);
  }
  SHARDPLAN_CHECK(false, "an unknown kind of loss");
  return {};
}

std::string recompute_words(RecomputeKind recompute, std::uint64_t every) {
  switch (recompute) {
    case RecomputeKind::none:
      return "none";
    case RecomputeKind::selective:
      return "selective";
    case RecomputeKind::full:
      return "full";
    case RecomputeKind::every:
      return fmt::format("every={}", every);
    case RecomputeKind::invert:
      return "invert";
    case RecomputeKind::adjoint:
      return "adjoint";
  }
  SHARDPLAN_CHECK(false, "an unknown kind of recomputation");
  return {};
}

bool is_of_flows(RecomputeKind recompute) {
  return recompute == RecomputeKind::invert || recompute == RecomputeKind::adjoint;
}

bool autocasts(const Policy& policy) {
  return policy.parameter == DType::f32 && bits(policy.compute) == 16;
}

AttentionKind resolved_attention(const ClientSetup& client) {
  if (client.attention) return *client.attention;
  switch (client.profile) {
    case Profile::hf_eager:
      return AttentionKind::eager;
    case Profile::hf_sdpa:
    case Profile::hf_liger:
    case Profile::torchtitan:
    case Profile::litgpt:
    case Profile::torchtune:
      return AttentionKind::sdpa;
    case Profile::megatron:
      return AttentionKind::flash;
  }
  SHARDPLAN_CHECK(false, "an unknown profile");
  return {};
}

}  // namespace shardplan
