// Against the engines themselves: DeepSpeed's and torch's own code partitioned ten models, which scripts in
// tests/data/engines wrote down. Difference 0.
#include <gtest/gtest.h>

#include <algorithm>
#include <boost/json.hpp>
#include <fstream>
#include <numeric>
#include <set>
#include <sstream>

#include "planner/engines/deepspeed.h"
#include "planner/engines/fsdp2.h"
#include "planner/engines/owned.h"
#include "planner/formats/read_model.h"

namespace shardplan {
namespace {

namespace json = boost::json;

json::value read_goldens(const std::string& name) {
  std::ifstream file(std::string(ENGINE_GOLDENS) + "/" + name);
  EXPECT_TRUE(file.good()) << name;
  std::stringstream text;
  text << file.rdbuf();
  return json::parse(text.str());
}

std::uint64_t number(const json::value& value) {
  return value.to_number<std::uint64_t>();
}

struct Case {
  json::value golden;
  std::string name;
  Catalog catalog;
  shardplan::Setup setup;
};

// Reads each model once; ten models x five worlds.
template <typename Check>
void for_each_case(const std::string& file, Check&& check) {
  const json::value goldens = read_goldens(file);
  std::set<std::string> models;
  std::set<std::uint64_t> worlds;
  Case current;
  for (const json::value& golden : goldens.at("cases").as_array()) {
    const std::string name(golden.at("model").as_string());
    if (current.name != name) current.catalog = find_model(name).catalog;
    current.name = name;
    current.golden = golden;
    current.setup.world_size = number(golden.at("world"));
    models.insert(name);
    worlds.insert(current.setup.world_size);
    SCOPED_TRACE(name + ", world " + std::to_string(current.setup.world_size));
    check(current);
  }
  EXPECT_EQ(models.size(), 10U);
  EXPECT_EQ(worlds, (std::set<std::uint64_t>{1, 2, 3, 8, 64}));
}

Bytes bytes_of(const EngineTerms& terms, const std::string& name) {
  Bytes sum;
  for (const Term& term : terms.terms) {
    if (term.name == name) sum += term.bytes;
  }
  return sum;
}

TEST(DeepSpeedOracle, FlatBuffersOfStages1And2) {
  for_each_case("deepspeed.json", [](const Case& c) {
    for (const int stage : {1, 2}) {
      shardplan::Setup setup = c.setup;
      setup.stage = stage;
      const EngineTerms terms = deepspeed_terms(c.catalog, setup, {});
      EXPECT_EQ(bytes_of(terms, "parameters: flat").count(), 2 * number(c.golden.at("flat")));
      EXPECT_EQ(bytes_of(terms, "optimizer states: master").count(), 4 * number(c.golden.at("partition")));
      EXPECT_EQ(bytes_of(terms, "optimizer states: moments").count(), 8 * number(c.golden.at("partition")));
    }
  });
}

TEST(DeepSpeedOracle, Bf16Optimizer) {
  for_each_case("deepspeed.json", [](const Case& c) {
    shardplan::Setup setup = c.setup;
    setup.stage = 1;
    setup.policy = policy_named("bf16-mixed-fp32grad");
    const EngineTerms terms = deepspeed_terms(c.catalog, setup, {});
    EXPECT_EQ(bytes_of(terms, "gradients: flat").count(), 4 * number(c.golden.at("bf16_flat")));
    EXPECT_EQ(bytes_of(terms, "optimizer states: master").count(),
              4 * number(c.golden.at("bf16_flat")) / c.setup.world_size);
  });
}

TEST(DeepSpeedOracle, ShardsOfStage3) {
  for_each_case("deepspeed.json", [](const Case& c) {
    shardplan::Setup setup = c.setup;
    setup.stage = 3;
    const EngineTerms terms = deepspeed_terms(c.catalog, setup, {});
    const std::uint64_t shards = number(c.golden.at("stage3"));
    EXPECT_EQ(bytes_of(terms, "parameters: shards").count(), 2 * shards);
    EXPECT_EQ(bytes_of(terms, "gradients: shards").count(), 2 * shards);
    EXPECT_EQ(bytes_of(terms, "optimizer states: master").count(), 4 * shards);
    EXPECT_EQ(bytes_of(terms, "optimizer states: moments").count(), 8 * shards);
    const PersistentTensors persistent = deepspeed_persistent(c.catalog, setup, {});
    EXPECT_EQ(persistent.tensors, number(c.golden.at("persistent").as_array()[0]));
    EXPECT_EQ(persistent.elements, number(c.golden.at("persistent").as_array()[1]));
  });
}

// The order of tensors decides where sub-groups end. OPT's class registers its final norm before the blocks, ours has it
// in the head: there, a group may have that much more or less.
TEST(DeepSpeedOracle, SubGroups) {
  for_each_case("deepspeed.json", [](const Case& c) {
    if (!c.golden.as_object().contains("sub_groups")) return;
    DeepSpeedOptions options;
    options.sub_group_size = number(c.golden.at("sub_group_size"));
    std::vector<std::uint64_t> theirs;
    for (const json::value& group : c.golden.at("sub_groups").as_array()) theirs.push_back(number(group));
    const std::vector<std::uint64_t> ours = deepspeed_sub_groups(c.catalog, c.setup, options);
    EXPECT_EQ(std::accumulate(ours.begin(), ours.end(), std::uint64_t{0}),
              std::accumulate(theirs.begin(), theirs.end(), std::uint64_t{0}));
    if (c.name != "opt-125m") {
      EXPECT_EQ(ours, theirs);
      return;
    }
    ASSERT_EQ(ours.size(), theirs.size());
    const std::uint64_t norm = 2 * divide_up(768, c.setup.world_size);
    for (std::size_t i = 0; i < ours.size(); ++i) {
      EXPECT_LE(std::max(ours[i], theirs[i]) - std::min(ours[i], theirs[i]), norm);
    }
  });
}

TEST(Fsdp2Oracle, ShardedSizes) {
  for_each_case("fsdp2.json", [](const Case& c) {
    shardplan::Setup setup = c.setup;
    setup.stage = 3;
    const EngineTerms terms = fsdp2_terms(c.catalog, setup, {});
    EXPECT_EQ(bytes_of(terms, "parameters: sharded, the master").count(), 4 * number(c.golden.at("padded")));
    EXPECT_EQ(bytes_of(terms, "optimizer states: moments").count(), 8 * number(c.golden.at("first")));
    const auto last = [&](const Owned& owned) { return fsdp2_last_shard_elements(owned.tensor->shape, owned.ranks); };
    EXPECT_EQ(sum_elements(owned_tensors(c.catalog, setup), last), number(c.golden.at("last")));
    // Gathered in bf16: the root whole, and two blocks.
    EXPECT_EQ(bytes_of(terms, "gathered parameters: the root").count(), 2 * number(c.golden.at("root")));
    EXPECT_EQ(bytes_of(terms, "gathered parameters: blocks").count(), 2 * 2 * number(c.golden.at("largest_block")));
  });
}

}  // namespace
}  // namespace shardplan
