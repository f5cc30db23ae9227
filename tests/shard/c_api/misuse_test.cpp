// Every family of errors as a status with a message; NULLs, wrong sizes, callbacks that fail, handles in any order.
#include <gtest/gtest.h>

#include <chrono>
#include <cstring>
#include <string>
#include <thread>
#include <vector>

#include "tests/shard/c_api/run.h"

namespace shardplan::test {
namespace {

testing::AssertionResult says(const shardplan_error& error, shardplan_status status, const std::string& words) {
  if (error.status != status) {
    return testing::AssertionFailure() << shardplan_status_name(error.status) << ": " << error.message;
  }
  if (std::string(error.message).find(words) != std::string::npos) return testing::AssertionSuccess();
  return testing::AssertionFailure() << "'" << error.message << "' lacks '" << words << "'";
}

TEST(CApiMisuse, NullIsABugWithAName) {
  shardplan_error error{};
  shardplan_catalog* catalog = nullptr;
  EXPECT_EQ(shardplan_catalog_from_model(nullptr, &catalog, &error), SHARDPLAN_BUG);
  EXPECT_TRUE(says(error, SHARDPLAN_BUG, "preset_or_path is NULL"));
  EXPECT_EQ(shardplan_catalog_from_model("gpt2", nullptr, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_catalog_from_model("gpt2", nullptr, nullptr), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_catalog_visit(nullptr, nullptr, nullptr, &error), SHARDPLAN_BUG);
  shardplan_plan* plan = nullptr;
  EXPECT_EQ(shardplan_plan_create(nullptr, nullptr, &plan, &error), SHARDPLAN_BUG);
  EXPECT_TRUE(says(error, SHARDPLAN_BUG, "catalog is NULL"));
  EXPECT_EQ(shardplan_plan_get_facts(nullptr, nullptr, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_communicator_abort(nullptr, "x", &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_communicators_create_local(1, 1000, nullptr, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_optimizer_begin(nullptr, SHARDPLAN_EVALUATE, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_optimizer_leave(nullptr, 0, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_optimizer_step(nullptr, nullptr, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_optimizer_reduce(nullptr, SHARDPLAN_LAST_MICRO_BATCH, nullptr, 0, &error), SHARDPLAN_BUG);
  EXPECT_EQ(shardplan_optimizer_visit_state(nullptr, nullptr, nullptr, &error), SHARDPLAN_BUG);
  shardplan_catalog_free(nullptr);
  shardplan_plan_free(nullptr);
  shardplan_communicator_free(nullptr);
  shardplan_optimizer_free(nullptr);
}

TEST(CApiMisuse, AStructIsAsLargeAsTheCallerKnows) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, "{}");
  shardplan_error error{};
  shardplan_plan_facts facts{};
  EXPECT_EQ(shardplan_plan_get_facts(plan.get(), &facts, &error), SHARDPLAN_BUG);
  EXPECT_TRUE(says(error, SHARDPLAN_BUG, "facts: struct_size is not sizeof the struct"));
  // A program that was built with a later header: what this library does not know of is left alone.
  struct Later {
    shardplan_plan_facts facts;
    std::uint64_t later;
  } later{};
  later.facts.struct_size = sizeof later;
  later.later = 4711;
  EXPECT_OK(shardplan_plan_get_facts(plan.get(), &later.facts, &error), error);
  EXPECT_EQ(later.facts.struct_size, sizeof later);
  EXPECT_EQ(later.later, 4711U);
  EXPECT_EQ(later.facts.units, 4U);
  // The same with an array of them.
  struct LaterTensor {
    shardplan_tensor tensor;
    std::uint64_t later;
  };
  const std::vector<std::uint64_t> shape{3};
  std::vector<LaterTensor> tensors{{tensor_of("a.weight", shape), 1}, {tensor_of("b.weight", shape), 2}};
  for (LaterTensor& one : tensors) one.tensor.struct_size = sizeof one;
  shardplan_catalog* made = nullptr;
  ASSERT_OK(shardplan_catalog_from_tensors(&tensors[0].tensor, 2, &made, &error), error);
  const CatalogHandle two(made);
  std::string names;
  const auto visit = [](void* user, std::uint64_t, std::uint64_t, const shardplan_tensor* facts_of_one) {
    *static_cast<std::string*>(user) += facts_of_one->name;
    return 0;
  };
  EXPECT_OK(shardplan_catalog_visit(two.get(), visit, &names, &error), error);
  EXPECT_EQ(names, "a.weightb.weight");
}

TEST(CApiMisuse, ALongMessageIsCutOff) {
  shardplan_error error{};
  shardplan_catalog* catalog = nullptr;
  std::string path;
  for (int i = 0; i < 3000; ++i) path += "é";
  EXPECT_NE(shardplan_catalog_from_model(path.c_str(), &catalog, &error), SHARDPLAN_OK);
  const std::size_t length = std::strlen(error.message);
  EXPECT_GE(length, sizeof error.message - 3);
  EXPECT_EQ(static_cast<unsigned char>(error.message[length - 1]), 0xa9U) << "half a character at the end";
}

TEST(CApiMisuse, ACallOutOfOrderNamesWhatWasExpected) {
  const CatalogHandle catalog = small_catalog();
  with_optimizers(*plan_of(*catalog, "{}"), 1, [](const Rank& rank) {
    shardplan_error error{};
    shardplan_unit_views views{};
    EXPECT_EQ(shardplan_optimizer_enter(rank.optimizer, 0, SHARDPLAN_FORWARD, &views, &error), SHARDPLAN_BUG);
    EXPECT_TRUE(says(error, SHARDPLAN_BUG, "expected begin()"));
    EXPECT_EQ(shardplan_optimizer_begin(rank.optimizer, 3, &error), SHARDPLAN_BUG);
    EXPECT_TRUE(says(error, SHARDPLAN_BUG, "3 is no program"));
    ASSERT_OK(shardplan_optimizer_begin(rank.optimizer, SHARDPLAN_LAST_MICRO_BATCH, &error), error);
    EXPECT_EQ(shardplan_optimizer_enter(rank.optimizer, 2, SHARDPLAN_FORWARD, &views, &error), SHARDPLAN_BUG);
    EXPECT_TRUE(says(error, SHARDPLAN_BUG, "the plan's next operation is forward 0"));
    EXPECT_EQ(shardplan_optimizer_set_learning_rate(rank.optimizer, 7, 1, &error), SHARDPLAN_BUG);
    EXPECT_EQ(shardplan_optimizer_set_learning_rate(rank.optimizer, 0, -1, &error), SHARDPLAN_CONFIG_ERROR);
  });
}

TEST(CApiMisuse, AnOptimizerThatCannotBe) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, R"({"world_size": 2})");
  const std::vector<CommunicatorHandle> world = local_ranks(1);
  shardplan_error error{};
  shardplan_optimizer* optimizer = nullptr;
  EXPECT_NE(shardplan_optimizer_create(plan.get(), "cpu", world[0].get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_OK);
  EXPECT_TRUE(says(error, SHARDPLAN_CONFIG_ERROR, "options: world_size: 2, but the communicator has 1 ranks"));
  EXPECT_EQ(optimizer, nullptr);
  const PlanHandle one = plan_of(*catalog, "{}");
  EXPECT_NE(shardplan_optimizer_create(one.get(), "tpu", world[0].get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_OK);
  EXPECT_TRUE(says(error, SHARDPLAN_CONFIG_ERROR, "device: 'tpu' is not known: expected cpu"));
  EXPECT_NE(shardplan_optimizer_create(one.get(), "cpu", world[0].get(), nullptr, nullptr, &optimizer, &error),
            SHARDPLAN_OK);
  EXPECT_TRUE(says(error, SHARDPLAN_BUG, "initial_values is NULL"));
  shardplan_communicator* none = nullptr;
  EXPECT_EQ(shardplan_communicators_create_local(0, 1000, &none, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(shardplan_communicators_create_local(1, 0, &none, &error), SHARDPLAN_CONFIG_ERROR);
  EXPECT_EQ(shardplan_communicators_create_local(1, UINT64_MAX, &none, &error), SHARDPLAN_CONFIG_ERROR);
}

TEST(CApiMisuse, AnArenaThatIsTooLargeIsOutOfMemoryWithNumbers) {
  shardplan_catalog* made = nullptr;
  shardplan_error error{};
  ASSERT_OK(shardplan_catalog_from_model("llama-3.1-405b", &made, &error), error);
  const CatalogHandle catalog(made);
  const PlanHandle plan = plan_of(*catalog, "{}");
  const std::vector<CommunicatorHandle> world = local_ranks(1);
  shardplan_optimizer* optimizer = nullptr;
  EXPECT_EQ(shardplan_optimizer_create(plan.get(), "cpu", world[0].get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_OUT_OF_MEMORY);
  EXPECT_GT(error.requested_bytes, 6'000'000'000'000U);
  EXPECT_LT(error.available_bytes, error.requested_bytes);
}

TEST(CApiMisuse, ACallbackThatFailsEndsItsCall) {
  const CatalogHandle catalog = small_catalog();
  shardplan_error error{};
  const auto third = [](void* user, std::uint64_t, std::uint64_t, const shardplan_tensor*) {
    return ++*static_cast<int*>(user) == 3 ? 42 : 0;
  };
  int calls = 0;
  EXPECT_EQ(shardplan_catalog_visit(catalog.get(), third, &calls, &error), SHARDPLAN_CALLBACK_ERROR);
  EXPECT_EQ(calls, 3);
  EXPECT_EQ(error.callback_result, 42);
  const PlanHandle plan = plan_of(*catalog, "{}");
  const std::vector<CommunicatorHandle> world = local_ranks(1);
  const auto values = [](void*, const char*, std::uint64_t, std::uint64_t, float*, std::size_t) { return -3; };
  shardplan_optimizer* optimizer = nullptr;
  EXPECT_EQ(shardplan_optimizer_create(plan.get(), "cpu", world[0].get(), values, nullptr, &optimizer, &error),
            SHARDPLAN_CALLBACK_ERROR);
  EXPECT_TRUE(says(error, SHARDPLAN_CALLBACK_ERROR, "initial_values returned -3"));
  with_optimizers(*plan, 1, [](const Rank& rank) {
    shardplan_error failure{};
    const auto load = [](void*, const shardplan_state_range*, void*) { return 9; };
    shardplan_step_state step{};
    step.struct_size = sizeof step;
    step.loss_scale = 1;
    EXPECT_EQ(shardplan_optimizer_load_state(rank.optimizer, &step, load, nullptr, &failure), SHARDPLAN_CALLBACK_ERROR);
    EXPECT_EQ(failure.callback_result, 9);
    EXPECT_EQ(shardplan_optimizer_begin(rank.optimizer, SHARDPLAN_EVALUATE, &failure), SHARDPLAN_BUG);
    EXPECT_TRUE(says(failure, SHARDPLAN_BUG, "after a load_state() that failed"));
  });
}

TEST(CApiMisuse, ARankThatGivesUpIsNamedToTheOthers) {
  const CatalogHandle catalog = small_catalog();
  const PlanHandle plan = plan_of(*catalog, R"({"world_size": 2})");
  const std::vector<CommunicatorHandle> world = local_ranks(2);
  std::thread other([&] {
    shardplan_error error{};
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
    EXPECT_OK(shardplan_communicator_abort(world[1].get(), "no data left", &error), error);
  });
  shardplan_error error{};
  shardplan_optimizer* optimizer = nullptr;
  EXPECT_EQ(shardplan_optimizer_create(plan.get(), "cpu", world[0].get(), initial_values, nullptr, &optimizer, &error),
            SHARDPLAN_COMMUNICATION_ERROR);
  EXPECT_TRUE(says(error, SHARDPLAN_COMMUNICATION_ERROR, "no data left"));
  EXPECT_EQ(error.rank, 1);
  other.join();
}

TEST(CApiMisuse, RanksWithDifferentOptionsHearOfItAtTheStart) {
  const CatalogHandle catalog = small_catalog();
  const std::vector<CommunicatorHandle> world = local_ranks(2);
  const auto create = [&](std::size_t rank) {
    const PlanHandle plan =
        plan_of(*catalog, R"({"world_size": 2, "learning_rate": 0.)" + std::to_string(rank + 1) + "}");
    shardplan_error error{};
    shardplan_optimizer* optimizer = nullptr;
    EXPECT_EQ(
        shardplan_optimizer_create(plan.get(), "cpu", world[rank].get(), initial_values, nullptr, &optimizer, &error),
        SHARDPLAN_CONFIG_ERROR);
    EXPECT_TRUE(says(error, SHARDPLAN_CONFIG_ERROR, "expected the same on every rank"));
  };
  std::thread other([&] { create(1); });
  create(0);
  other.join();
}

TEST(CApiMisuse, HandlesMayBeFreedInAnyOrder) {
  CatalogHandle catalog = small_catalog();
  PlanHandle plan = plan_of(*catalog, R"({"precision": "fp32"})");
  std::vector<CommunicatorHandle> world = local_ranks(1);
  shardplan_error error{};
  shardplan_optimizer* made = nullptr;
  ASSERT_OK(shardplan_optimizer_create(plan.get(), "cpu", world[0].get(), initial_values, nullptr, &made, &error),
            error);
  const OptimizerHandle optimizer(made);
  catalog.reset();
  plan.reset();
  world.clear();
  EXPECT_EQ(run_step({made, 0}, Client::hands_in_gradients, 0, 1).step, 1U);
}

}  // namespace
}  // namespace shardplan::test
