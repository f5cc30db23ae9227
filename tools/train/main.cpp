// shardplan-train: trains a small GPT with N ranks at any ZeRO stage. The client's side is in training.cpp, where ranks
// come from in ranks.h.
#include <fmt/format.h>

#include <boost/json.hpp>
#include <cstdio>
#include <exception>

#include "base/error.h"
#include "tools/train/command_line.h"
#include "tools/train/stop_signal.h"

namespace shardplan::train {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 3;

template <typename Get>
boost::json::array per_rank(const RankResult& result, Get get) {
  boost::json::array array;
  for (const RankMemory& memory : result.memory) array.push_back(boost::json::value(get(memory)));
  return array;
}

boost::json::array array_of(const std::vector<double>& values) {
  boost::json::array array;
  for (const double value : values) array.emplace_back(value);
  return array;
}

// Of the run: ranks that share a process all saw the growth of that one.
std::int64_t resident_growth(const RankKind& kind, const RankResult& result) {
  if (!kind.own_processes) return result.memory.front().resident_growth;
  std::int64_t sum = 0;
  for (const RankMemory& memory : result.memory) sum += memory.resident_growth;
  return sum;
}

std::string json_of(const RankKind& kind, const Training& training, const RankResult& result) {
  const boost::json::object object{
      {"losses", array_of(result.losses)},
      {"first_step", result.first_step},
      {"stopped", result.stopped},
      {"held_out_loss", result.held_out_loss ? boost::json::value(*result.held_out_loss) : nullptr},
      {"bigram_entropy", bigram_entropy(training.text)},
      {"norms", array_of(result.norms)},
      {"scales", array_of(result.scales)},
      {"skipped_steps", result.skipped_steps},
      {"parameters_digest", result.parameters_digest},
      {"plan_hash", training.plan.hash},
      {"planned_peak_bytes", per_rank(result, [](const RankMemory& m) { return m.planned_peak; })},
      {"measured_peak_bytes", per_rank(result, [](const RankMemory& m) { return m.measured_peak; })},
      {"planned_live_peak_bytes", per_rank(result, [](const RankMemory& m) { return m.planned_live_peak; })},
      {"measured_live_peak_bytes", per_rank(result, [](const RankMemory& m) { return m.measured_live_peak; })},
      {"planned_snapshot_bytes", result.planned_snapshot},
      {"measured_snapshot_bytes", result.measured_snapshot},
      {"resident_growth_bytes", resident_growth(kind, result)},
      {"seconds_per_step", result.seconds_per_step},
      {"communication_seconds", result.communication_seconds},
      {"optimizer_seconds", result.optimizer_seconds}};
  return boost::json::serialize(object) + "\n";
}

std::string text_of(const Training& training, const RankResult& result) {
  const RankMemory& memory = result.memory.front();
  const std::string loss =
      !result.held_out_loss ? ""
                            : fmt::format("held-out loss  {:.4f} nats per byte (pairs of bytes alone reach {:.4f})\n",
                                          *result.held_out_loss, bigram_entropy(training.text));
  return loss + fmt::format("parameters     {}\n", result.parameters_digest) +
         fmt::format("device memory  planned {}, measured {} per rank: difference {} B\n",
                     in_gb(Bytes{memory.planned_peak}), in_gb(Bytes{memory.measured_peak}),
                     signed_difference(Bytes{memory.measured_peak}, Bytes{memory.planned_peak}));
}

}  // namespace

// Everything that is thrown becomes one line on stderr and an exit status.
int main_with_errors(int argc, char** argv) {
  const ParseResult parsed = parse_command_line(argc, argv);
  if (parsed.exit_status) return *parsed.exit_status;
  try {
    if (!parsed.options.checkpoints.save.empty()) watch_stop_signal();
    parsed.kind->train(parsed.options, [&](const Training& training, const RankResult& first) {
      fmt::print("{}", parsed.options.json ? json_of(*parsed.kind, training, first) : text_of(training, first));
      std::fflush(stdout);
    });
    return kDone;
  } catch (const SaidElsewhere&) {
    return kFailed;
  } catch (const std::exception& error) {
    fmt::print(stderr, "shardplan-train: {}\n", error.what());
    return kFailed;
  }
}

}  // namespace shardplan::train

int main(int argc, char** argv) {
  return shardplan::train::main_with_errors(argc, argv);
}
