// shardplan-train: trains a small GPT with N ranks at any ZeRO stage. The client's side is in training.cpp.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <exception>
#include <mutex>
#include <thread>

#include "base/error.h"
#include "runtime/cpu_device.h"
#include "runtime/local_communicator.h"
#include "tools/train/command_line.h"
#include "tools/train/training.h"

namespace shardplan::train {
namespace {

// Ranks are threads. The first exception aborts the others and is thrown once all have ended.
std::vector<RankResult> train(const Training& training) {
  const std::size_t ranks = training.options.ranks;
  std::vector<std::unique_ptr<Communicator>> worlds = make_local_communicators(static_cast<int>(ranks));
  std::vector<RankResult> results(ranks);
  CpuDevice cpu;
  std::mutex mutex;
  std::exception_ptr failure;
  std::vector<std::thread> threads;
  for (std::size_t rank = 0; rank < ranks; ++rank) {
    threads.emplace_back([&, rank] {
      try {
        results[rank] = train_rank(training, *worlds[rank], cpu);
      } catch (const std::exception& error) {
        const std::scoped_lock lock(mutex);
        if (!failure) failure = std::current_exception();
        worlds[rank]->abort(error.what());
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  if (failure) std::rethrow_exception(failure);
  return results;
}

template <typename Get>
boost::json::array per_rank(const std::vector<RankResult>& results, Get get) {
  boost::json::array array;
  for (const RankResult& result : results) array.push_back(boost::json::value(get(result)));
  return array;
}

boost::json::array array_of(const std::vector<double>& values) {
  boost::json::array array;
  for (const double value : values) array.emplace_back(value);
  return array;
}

std::string json_of(const Training& training, const std::vector<RankResult>& results) {
  const RankResult& first = results.front();
  const ArenaPlan& plan = training.plan.device;
  const boost::json::object object{
      {"losses", array_of(first.losses)},
      {"first_step", 0},
      {"held_out_loss", first.held_out_loss},
      {"bigram_entropy", bigram_entropy(training.text)},
      {"norms", array_of(first.norms)},
      {"scales", array_of(first.scales)},
      {"skipped_steps", first.skipped_steps},
      {"parameters_digest", first.parameters_digest},
      {"plan_hash", training.plan.hash},
      {"planned_peak_bytes", per_rank(results, [&](const RankResult&) { return plan.bytes.count(); })},
      {"measured_peak_bytes", per_rank(results, [](const RankResult& r) { return r.device.high_water.count(); })},
      {"planned_live_peak_bytes", per_rank(results, [&](const RankResult&) { return plan.live_peak.count(); })},
      {"measured_live_peak_bytes", per_rank(results, [](const RankResult& r) { return r.device.live_peak.count(); })},
      {"resident_growth_bytes", first.resident_growth},
      {"seconds_per_step", first.seconds_per_step},
      {"communication_seconds", first.communication_seconds},
      {"optimizer_seconds", first.optimizer_seconds}};
  return boost::json::serialize(object) + "\n";
}

int run(const TrainingOptions& options) {
  Catalog catalog = gpt_catalog(options.model);
  StepPlan plan = make_step_plan(catalog, options.setup);
  const Training training{options, Text::read(options.text, options.model.context), std::move(catalog),
                          std::move(plan)};
  const std::vector<RankResult> results = train(training);
  if (options.json) {
    fmt::print("{}", json_of(training, results));
    return 0;
  }
  const RankResult& first = results.front();
  fmt::print("held-out loss  {:.4f} nats per byte (pairs of bytes alone reach {:.4f})\n", first.held_out_loss,
             bigram_entropy(training.text));
  fmt::print("parameters     {}\n", first.parameters_digest);
  fmt::print("device memory  planned {}, measured {} per rank: difference {} B\n", in_gb(training.plan.device.bytes),
             in_gb(first.device.high_water), signed_difference(first.device.high_water, training.plan.device.bytes));
  return 0;
}

}  // namespace

// Everything that is thrown becomes one line on stderr and an exit status.
int main_with_errors(int argc, char** argv) {
  const ParseResult parsed = parse_command_line(argc, argv);
  if (parsed.exit_status) return *parsed.exit_status;
  try {
    return run(parsed.options);
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardplan-train: {}\n", error.what());
    return 3;
  }
}

}  // namespace shardplan::train

int main(int argc, char** argv) {
  return shardplan::train::main_with_errors(argc, argv);
}
