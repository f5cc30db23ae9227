// Ranks as threads over the C interface, and a model to train: least squares, y = W x + b, whose gradients are a
// function of (rank, step, micro-batch), different in each element.
#pragma once

#include <gtest/gtest.h>

#include <cstdint>
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "shard/c_api/shardplan.h"

namespace shardplan::test {

struct Free {
  void operator()(shardplan_catalog* handle) const { shardplan_catalog_free(handle); }
  void operator()(shardplan_plan* handle) const { shardplan_plan_free(handle); }
  void operator()(shardplan_communicator* handle) const { shardplan_communicator_free(handle); }
  void operator()(shardplan_optimizer* handle) const { shardplan_optimizer_free(handle); }
};
using CatalogHandle = std::unique_ptr<shardplan_catalog, Free>;
using PlanHandle = std::unique_ptr<shardplan_plan, Free>;
using CommunicatorHandle = std::unique_ptr<shardplan_communicator, Free>;
using OptimizerHandle = std::unique_ptr<shardplan_optimizer, Free>;

// EXPECT_OK(shardplan_...(..., &error), error)
#define EXPECT_OK(call, error) EXPECT_EQ((call), SHARDPLAN_OK) << (error).message
#define ASSERT_OK(call, error) ASSERT_EQ((call), SHARDPLAN_OK) << (error).message

shardplan_tensor tensor_of(const char* name, const std::vector<std::uint64_t>& shape);

// embed.weight [19, 5], layers.0 and layers.1 with weight [70, 3] and bias [7], head.weight tied to the embedding, and
// head.norm [5].
CatalogHandle small_catalog();
PlanHandle plan_of(const shardplan_catalog& catalog, const std::string& options);
std::vector<CommunicatorHandle> local_ranks(int ranks, std::uint64_t deadline_milliseconds = 20'000);

// A function of (tensor, element); `user` is not used.
int initial_values(void* user, const char* name, std::uint64_t tensor, std::uint64_t first, float* values,
                   std::size_t count);

enum class Client : std::uint8_t { enters_units, hands_in_gradients };

struct Rank {
  shardplan_optimizer* optimizer = nullptr;
  int rank = 0;
};

// One optimizer per rank, each on a thread of its own. What goes wrong is a failure of the test.
void with_optimizers(const shardplan_plan& plan, int ranks, const std::function<void(const Rank&)>& body);

// A step of `micro_batches` micro-batches; returns its report.
shardplan_step_report run_step(const Rank& rank, Client client, std::uint64_t step, std::uint64_t micro_batches);

// Every parameter, in the catalog's order.
std::vector<float> parameters_of(const Rank& rank);

}  // namespace shardplan::test
