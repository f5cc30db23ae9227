// shardplan-train: trains a small GPT with N ranks at any ZeRO stage. The client's side is in training.cpp, where ranks
// come from in ranks.h.
#include <fmt/format.h>

#include <array>
#include <boost/json.hpp>
#include <cstdio>
#include <exception>
#include <utility>

#include "base/error.h"
#include "tools/train/command_line.h"
#include "tools/train/stop_signal.h"

namespace shardplan::train {
namespace {

constexpr int kDone = 0;
constexpr int kFailed = 3;

// What was planned and what was seen of one tier, rank by rank.
void add_memory(boost::json::object& object, const char* prefix, const RankResult& result,
                TierMemory RankMemory::* tier) {
  constexpr std::array kFields{std::pair{"planned_peak_bytes", &TierMemory::planned_peak},
                               std::pair{"measured_peak_bytes", &TierMemory::measured_peak},
                               std::pair{"planned_live_peak_bytes", &TierMemory::planned_live_peak},
                               std::pair{"measured_live_peak_bytes", &TierMemory::measured_live_peak}};
  for (const auto& [name, field] : kFields) {
    boost::json::array array;
    for (const RankMemory& memory : result.memory) array.emplace_back(memory.*tier.*field);
    object[fmt::format("{}{}", prefix, name)] = std::move(array);
  }
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
  boost::json::object object{
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
      {"planned_snapshot_bytes", result.planned_snapshot},
      {"measured_snapshot_bytes", result.measured_snapshot},
      {"resident_growth_bytes", resident_growth(kind, result)},
      {"seconds_per_step", result.seconds_per_step},
      {"communication_seconds", result.communication_seconds},
      {"optimizer_seconds", result.optimizer_seconds}};
  add_memory(object, "", result, &RankMemory::device);
  if (training.plan.setup.offload.any()) {
    add_memory(object, "host_", result, &RankMemory::host);
    add_memory(object, "file_", result, &RankMemory::file);
  }
  return boost::json::serialize(object) + "\n";
}

std::string text_of(const Training& training, const RankResult& result) {
  const RankMemory& memory = result.memory.front();
  std::string text;
  if (result.held_out_loss) {
    text = fmt::format("held-out loss  {:.4f} nats per byte (pairs of bytes alone reach {:.4f})\n",
                       *result.held_out_loss, bigram_entropy(training.text));
  }
  text += fmt::format("parameters     {}\n", result.parameters_digest);
  for (const auto& [name, tier] :
       {std::pair{"device", &memory.device}, {"host", &memory.host}, {"file", &memory.file}}) {
    if (tier->planned_peak == 0) continue;
    text += fmt::format("{:<15}planned {}, measured {} per rank: difference {} B\n", fmt::format("{} memory", name),
                        in_gb(Bytes{tier->planned_peak}), in_gb(Bytes{tier->measured_peak}),
                        signed_difference(Bytes{tier->measured_peak}, Bytes{tier->planned_peak}));
  }
  return text;
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
