#include "planner/policy.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/error.h"

namespace shardplan {
namespace {

struct PublishedPolicy {
  const char* name;
  std::uint64_t parameter_bytes;
  std::uint64_t gradient_bytes;
  std::uint64_t optimizer_bytes;  // AdamW: master, m, v
};

constexpr PublishedPolicy kPublished[] = {
    {"fp32", 4, 4, 8},     {"fp16-mixed", 2, 2, 12}, {"bf16-mixed", 2, 2, 12},
    {"bf16", 2, 2, 4},     {"amp-fp16", 4, 4, 8},    {"bf16-mixed-fp32grad", 2, 4, 12},
    {"amp-bf16", 4, 4, 8}, {"fp8-mixed", 2, 4, 12},  {"bf16-fp32state", 2, 2, 8},
};

std::uint64_t bytes(DType dtype) {
  return bytes_for(dtype, 1).count();
}

template <typename Lookup>
void expect_unknown(Lookup lookup, const std::string& flag, const char* given,
                    std::initializer_list<const char*> known) {
  try {
    lookup();
    ADD_FAILURE() << "no error for " << given;
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.source(), flag);
    EXPECT_NE(error.problem().find(given), std::string::npos) << error.what();
    for (const char* name : known) EXPECT_NE(error.problem().find(name), std::string::npos) << error.what();
  }
}

TEST(Policies, HaveThePublishedBytesPerParameter) {
  std::set<std::string> names;
  for (const PublishedPolicy& published : kPublished) {
    SCOPED_TRACE(published.name);
    const Policy policy = policy_named(published.name);
    EXPECT_EQ(policy.name, published.name);
    EXPECT_TRUE(names.insert(policy.name).second);
    EXPECT_EQ(bytes(policy.parameter), published.parameter_bytes);
    EXPECT_EQ(bytes(policy.gradient), published.gradient_bytes);
    EXPECT_EQ((policy.master ? bytes(*policy.master) : 0) + bytes(policy.first_moment) + bytes(policy.second_moment),
              published.optimizer_bytes);
    EXPECT_EQ(policy.gradient_accumulator, DType::f32);
    EXPECT_TRUE(is_trainable_dtype(policy.gradient) && is_trainable_dtype(policy.wire));
  }
  EXPECT_EQ(all_policies().size(), names.size());
  for (const Policy& policy : all_policies()) EXPECT_TRUE(names.contains(policy.name)) << policy.name;
}

TEST(Policies, ComputeInWhatTheirNamesSay) {
  for (const Policy& policy : all_policies()) {
    SCOPED_TRACE(policy.name);
    const auto says = [&](const char* word) { return policy.name.find(word) != std::string::npos; };
    EXPECT_EQ(policy.compute == DType::bf16, says("bf16"));
    EXPECT_EQ(policy.compute == DType::f16, says("fp16"));
    EXPECT_EQ(bits(policy.compute) == 8, says("fp8"));
    // amp keeps fp32 parameters that are updated themselves; mixed keeps 16-bit ones beside a master.
    EXPECT_EQ(policy.parameter == DType::f32, says("amp") || policy.name == "fp32");
    EXPECT_EQ(policy.master.has_value(), says("mixed"));
  }
}

TEST(Policies, TheDefaultIsBf16Mixed) {
  EXPECT_EQ(Policy{}, policy_named("bf16-mixed"));
}

TEST(Policies, UnknownNamesAreErrorsThatListTheKnown) {
  for (const char* name : {"bf17", "BF16-mixed", "bf16_mixed", "mixed"}) {
    expect_unknown([&] { policy_named(name); }, "--precision", name,
                   {"fp32", "fp16-mixed", "bf16-mixed", "bf16-mixed-fp32grad", "amp-fp16", "amp-bf16", "bf16",
                    "bf16-fp32state", "fp8-mixed"});
  }
  EXPECT_THROW(policy_named(""), ConfigError);
}

TEST(PolicyFor, ATensorTheModelDoesNotFixFollowsThePolicy) {
  for (const Policy& policy : all_policies()) EXPECT_EQ(policy_for(policy, std::nullopt), policy) << policy.name;
}

TEST(PolicyFor, AFixedTypeMakesItsOwnGradientAndTravelsAsItself) {
  for (const Policy& policy : all_policies()) {
    for (const DType fixed : {DType::f64, DType::f32, DType::f16, DType::bf16}) {
      if (fixed == policy.parameter) continue;
      SCOPED_TRACE(policy.name + " " + std::string(name(fixed)));
      const Policy result = policy_for(policy, fixed);
      EXPECT_EQ(result.parameter, fixed);
      EXPECT_EQ(result.gradient, fixed);
      EXPECT_EQ(result.wire, fixed);
      const bool widens = policy.name == "bf16" && bits(fixed) >= 32;
      EXPECT_EQ(result.first_moment, widens ? DType::f32 : policy.first_moment);
      EXPECT_EQ(result.second_moment, widens ? DType::f32 : policy.second_moment);
      EXPECT_EQ(result.gradient_accumulator, policy.gradient_accumulator);
      // fp32 and fp64 are as wide as an fp32 master: none is kept. Narrower ones keep the policy's.
      EXPECT_EQ(result.master, bits(fixed) >= 32 ? std::nullopt : policy.master);
    }
  }
}

// fp32 gradients beside bf16 parameters are the policy's choice for bf16, whoever says that a tensor is bf16.
TEST(PolicyFor, ATensorOfTheParametersOwnTypeFollowsThePolicy) {
  for (const Policy& policy : all_policies()) EXPECT_EQ(policy_for(policy, policy.parameter), policy) << policy.name;
}

TEST(PolicyFor, AFrozenTypeIsKeptAsItIs) {
  for (const DType fixed : {DType::nf4, DType::i8, DType::f8_e4m3, DType::boolean}) {
    EXPECT_EQ(policy_for(policy_named("bf16-mixed"), fixed).parameter, fixed);
  }
}

TEST(Optimizers, KeepTheStatesOfTheirPapers) {
  struct Known {
    OptimizerKind kind;
    const char* name;
    bool first;
    bool second;
  };
  constexpr Known kKnown[] = {
      {OptimizerKind::adamw, "adamw", true, true},         {OptimizerKind::adam, "adam", true, true},
      {OptimizerKind::sgd, "sgd", false, false},           {OptimizerKind::sgd_momentum, "sgd-momentum", true, false},
      {OptimizerKind::lion, "lion", true, false},          {OptimizerKind::adafactor, "adafactor", false, false},
      {OptimizerKind::adam8bit, "adam8bit", false, false}, {OptimizerKind::muon, "muon", false, false}};
  for (const Known& known : kKnown) {
    SCOPED_TRACE(known.name);
    const OptimizerStates& states = optimizer_named(known.name);
    EXPECT_EQ(&states, &states_of(known.kind));
    EXPECT_EQ(states.kind, known.kind);
    EXPECT_EQ(states.name, known.name);
    EXPECT_EQ(states.first_moment, known.first);
    EXPECT_EQ(states.second_moment, known.second);
    EXPECT_FALSE(states.source.empty());
  }
  EXPECT_EQ(all_optimizers().size(), std::size(kKnown));
}

TEST(Optimizers, UnknownNamesAreErrorsThatListTheKnown) {
  expect_unknown([] { optimizer_named("adamx"); }, "--optimizer", "adamx",
                 {"adamw", "adam", "sgd", "sgd-momentum", "lion"});
}

}  // namespace
}  // namespace shardplan
