#include "planner/activations/live_tensors.h"

#include <algorithm>
#include <deque>
#include <map>
#include <tuple>

#include "planner/activations/client_rank.h"
#include "planner/activations/pipeline.h"
#include "planner/activations/profiles.h"

namespace shardplan {
namespace {

using autograd::Event;
using autograd::Storage;
using autograd::Tape;

std::string kin_of(const std::string& unit) {
  const std::size_t digits = unit.find_last_not_of("0123456789") + 1;
  return digits == unit.size() || digits == 0 ? unit : unit.substr(0, digits) + "*";
}

// How many events bring a tape to its highest point.
std::size_t events_to_peak(const Tape& tape) {
  std::uint64_t level = 0;
  std::uint64_t highest = 0;
  std::size_t events = 0;
  for (std::size_t i = 0; i < tape.events().size(); ++i) {
    const Event& event = tape.events()[i];
    const std::uint64_t bytes = tape.storages()[event.storage].bytes;
    level = event.allocated ? level + bytes : level - bytes;
    if (level > highest) {
      highest = level;
      events = i + 1;
    }
  }
  return events;
}

// Adds what is live after so many events, `times` each.
class Census {
 public:
  void add(const Tape& tape, std::size_t events, std::uint64_t times) {
    if (times == 0) return;
    std::vector<bool> live(tape.storages().size());
    for (std::size_t i = 0; i < events; ++i) live[tape.events()[i].storage] = tape.events()[i].allocated;
    for (std::size_t i = 0; i < live.size(); ++i) {
      if (live[i]) add(tape, tape.storages()[i], times);
    }
  }

  std::vector<LiveTensors> take() {
    std::stable_sort(tensors_.begin(), tensors_.end(),
                     [](const LiveTensors& a, const LiveTensors& b) { return a.count * a.bytes > b.count * b.bytes; });
    return std::move(tensors_);
  }

 private:
  void add(const Tape& tape, const Storage& storage, std::uint64_t times) {
    const std::string& unit = tape.units()[storage.unit].name;
    LiveTensors tensor{.unit = kin_of(unit),
                       .module = module_of(storage.parameter, unit),
                       .operation = std::string(storage.name),
                       .shape = storage.shape,
                       .dtype = storage.dtype,
                       .purpose = storage.purpose,
                       .bytes = Bytes{storage.bytes}};
    const auto [place, added] =
        places_.try_emplace({tensor.unit, tensor.module, tensor.operation, tensor.purpose, tensor.dtype,
                             std::vector<std::uint64_t>(tensor.shape.begin(), tensor.shape.end())},
                            tensors_.size());
    if (added) tensors_.push_back(std::move(tensor));
    tensors_[place->second].count += times;
  }

  using Kind = std::tuple<std::string, std::string, std::string, autograd::Purpose, DType, std::vector<std::uint64_t>>;
  std::map<Kind, std::size_t> places_;
  std::vector<LiveTensors> tensors_;
};

}  // namespace

std::vector<LiveTensors> live_at_peak(const Model& model, const Catalog& held, const Setup& setup,
                                      const ClientSetup& client, std::uint64_t stage) {
  if (unit_count(held) > kMostReplayedUnits) return {};
  std::deque<Tape> tapes;
  std::vector<Activity> chunks;
  for (const Catalog& chunk : chunks_of(model, held, setup.parallel, stage)) {
    Tape& tape = tapes.emplace_back(autograd::TapeOptions{.folds = false, .keeps_gradients = false});
    run_profile(tape, model, chunk, setup, client);
    chunks.push_back({.spans = spans_of(tape), .saved = {}});
  }
  const PipelinePeak peak = peak_of(chunks, setup.parallel, stage, setup.accumulation);
  Census census;
  for (std::size_t c = 0; c < tapes.size(); ++c) {
    const bool running = c == peak.chunk;
    if (running) census.add(tapes[c], events_to_peak(tapes[c]), 1);
    census.add(tapes[c], end_of_forward(tapes[c]), peak.held[c] - (running ? 1 : 0));
  }
  return census.take();
}

}  // namespace shardplan
