#include "tests/shard/c_api/run.h"

#include <algorithm>
#include <cstring>
#include <thread>

#include "base/half.h"

namespace shardplan::test {
namespace {

constexpr std::size_t kUnits = 4;

float number(std::uint64_t a, std::uint64_t b, std::uint64_t c) {
  std::uint64_t bits = (a * 0x9e3779b97f4a7c15U) ^ (b * 0xbf58476d1ce4e5b9U) ^ (c * 0x94d049bb133111ebU);
  bits = (bits ^ (bits >> 31)) * 0xff51afd7ed558ccdU;
  return static_cast<float>(static_cast<std::int64_t>(bits >> 40) - (1 << 23)) * 0x1p-24F;
}

float gradient(const Rank& rank, std::uint64_t micro_batch, std::uint64_t tensor, std::uint64_t element) {
  return number(static_cast<std::uint64_t>(rank.rank) + 1, micro_batch * 100 + tensor, element);
}

struct TensorFacts {
  std::uint64_t unit = 0;
  std::uint64_t elements = 1;
};

// Of small_catalog: written out, so that the catalog is not asked about itself.
const std::vector<TensorFacts> kTensors{{0, 95}, {1, 210}, {1, 7}, {2, 210}, {2, 7}, {3, 95}, {3, 5}};

void add(const shardplan_view& view, std::uint64_t element, float value) {
  if (view.dtype == SHARDPLAN_F32) {
    static_cast<float*>(view.data)[element] += value;
    return;
  }
  ASSERT_EQ(view.dtype, SHARDPLAN_BF16);
  std::uint16_t& at = static_cast<std::uint16_t*>(view.data)[element];
  at = fp32_to_bf16(bf16_to_fp32(at) + value);
}

void pass(const Rank& rank, std::uint64_t unit, shardplan_pass pass, std::uint64_t micro_batch) {
  shardplan_error error{};
  shardplan_unit_views views{};
  ASSERT_OK(shardplan_optimizer_enter(rank.optimizer, unit, pass, &views, &error), error);
  std::uint64_t tensor = 0;
  while (kTensors[tensor].unit != unit) ++tensor;
  for (std::size_t i = 0; i < views.count; ++i, ++tensor) {
    ASSERT_EQ(views.parameters[i].elements, kTensors[tensor].elements);
    if (pass != SHARDPLAN_BACKWARD) continue;
    for (std::uint64_t e = 0; e < kTensors[tensor].elements; ++e) {
      add(views.gradients[i], e, gradient(rank, micro_batch, tensor, e));
    }
  }
  ASSERT_EQ(views.gradients != nullptr, pass == SHARDPLAN_BACKWARD);
  ASSERT_OK(shardplan_optimizer_leave(rank.optimizer, unit, &error), error);
}

void hand_in(const Rank& rank, shardplan_program program, std::uint64_t micro_batch) {
  std::vector<std::vector<float>> values;
  std::vector<shardplan_view> views;
  for (std::uint64_t tensor = 0; tensor < kTensors.size(); ++tensor) {
    std::vector<float>& one = values.emplace_back(kTensors[tensor].elements);
    for (std::uint64_t e = 0; e < one.size(); ++e) one[e] = gradient(rank, micro_batch, tensor, e);
    views.push_back({one.data(), one.size(), SHARDPLAN_F32});
  }
  shardplan_error error{};
  ASSERT_OK(shardplan_optimizer_reduce(rank.optimizer, program, views.data(), views.size(), &error), error);
}

}  // namespace

shardplan_tensor tensor_of(const char* name, const std::vector<std::uint64_t>& shape) {
  shardplan_tensor tensor{};
  tensor.struct_size = sizeof tensor;
  tensor.name = name;
  tensor.shape = shape.data();
  tensor.rank = shape.size();
  return tensor;
}

CatalogHandle small_catalog() {
  const std::vector<std::uint64_t> embedding{19, 5};
  const std::vector<std::uint64_t> weight{70, 3};
  const std::vector<std::uint64_t> bias{7};
  const std::vector<std::uint64_t> norm{5};
  std::vector<shardplan_tensor> tensors{tensor_of("embed.weight", embedding), tensor_of("layers.0.weight", weight),
                                        tensor_of("layers.0.bias", bias),     tensor_of("layers.1.weight", weight),
                                        tensor_of("layers.1.bias", bias),     tensor_of("head.weight", embedding),
                                        tensor_of("head.norm", norm)};
  const char* const units[] = {"embed", "layers.0", "layers.0", "layers.1", "layers.1", "head", "head"};
  for (std::size_t i = 0; i < tensors.size(); ++i) tensors[i].unit = units[i];
  tensors[5].tied_to = "embed.weight";
  shardplan_catalog* catalog = nullptr;
  shardplan_error error{};
  EXPECT_OK(shardplan_catalog_from_tensors(tensors.data(), tensors.size(), &catalog, &error), error);
  return CatalogHandle(catalog);
}

PlanHandle plan_of(const shardplan_catalog& catalog, const std::string& options) {
  shardplan_plan* plan = nullptr;
  shardplan_error error{};
  EXPECT_OK(shardplan_plan_create(&catalog, options.c_str(), &plan, &error), error);
  return PlanHandle(plan);
}

std::vector<CommunicatorHandle> local_ranks(int ranks, std::uint64_t deadline_milliseconds) {
  std::vector<shardplan_communicator*> made(static_cast<std::size_t>(ranks));
  shardplan_error error{};
  EXPECT_OK(shardplan_communicators_create_local(ranks, deadline_milliseconds, made.data(), &error), error);
  std::vector<CommunicatorHandle> handles;
  for (shardplan_communicator* handle : made) handles.emplace_back(handle);
  return handles;
}

int initial_values(void*, const char*, std::uint64_t tensor, std::uint64_t first, float* values, std::size_t count) {
  for (std::size_t i = 0; i < count; ++i) values[i] = number(77, tensor, first + i);
  return 0;
}

void with_optimizers(const shardplan_plan& plan, int ranks, const std::function<void(const Rank&)>& body) {
  std::vector<CommunicatorHandle> communicators = local_ranks(ranks);
  std::vector<std::thread> threads;
  for (int rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      CommunicatorHandle& world = communicators[static_cast<std::size_t>(rank)];
      shardplan_optimizer* made = nullptr;
      shardplan_error error{};
      EXPECT_OK(shardplan_optimizer_create(&plan, "cpu", world.get(), initial_values, nullptr, &made, &error), error);
      const OptimizerHandle optimizer(made);
      world.reset();  // the optimizer goes on without it
      if (made != nullptr) body({made, rank});
    });
  }
  for (std::thread& thread : threads) thread.join();
}

shardplan_step_report run_step(const Rank& rank, Client client, std::uint64_t step, std::uint64_t micro_batches) {
  shardplan_error error{};
  for (std::uint64_t i = 0; i < micro_batches; ++i) {
    const auto program = i + 1 == micro_batches ? SHARDPLAN_LAST_MICRO_BATCH : SHARDPLAN_TRAIN_MICRO_BATCH;
    const std::uint64_t micro_batch = step * 10 + i;
    if (client == Client::hands_in_gradients) {
      hand_in(rank, program, micro_batch);
      continue;
    }
    EXPECT_OK(shardplan_optimizer_begin(rank.optimizer, program, &error), error);
    for (std::uint64_t unit = 0; unit < kUnits; ++unit) pass(rank, unit, SHARDPLAN_FORWARD, micro_batch);
    for (std::uint64_t unit = kUnits; unit-- > 0;) pass(rank, unit, SHARDPLAN_BACKWARD, micro_batch);
  }
  shardplan_step_report report{};
  report.struct_size = sizeof report;
  EXPECT_OK(shardplan_optimizer_step(rank.optimizer, &report, &error), error);
  return report;
}

std::vector<float> parameters_of(const Rank& rank) {
  std::vector<float> all;
  const auto visit = [](void* user, const char*, std::uint64_t, const float* values, std::size_t count) {
    auto& to = *static_cast<std::vector<float>*>(user);
    to.insert(to.end(), values, values + count);
    return 0;
  };
  shardplan_error error{};
  EXPECT_OK(shardplan_optimizer_visit_parameters(rank.optimizer, visit, &all, &error), error);
  return all;
}

}  // namespace shardplan::test
