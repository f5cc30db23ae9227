#include "planner/activations/activity.h"

#include <fmt/format.h>

#include <algorithm>
#include <numeric>
#include <set>

#include "base/checked.h"

namespace shardplan {
namespace {

using autograd::Event;
using autograd::Pass;
using autograd::Storage;
using autograd::Tape;

// The name of one of the equal units that a span stands for: "model.layers.1" and 28 after it. The backward comes to the
// last of them first.
std::string nth_unit(const ActivitySpan& span, std::uint64_t place) {
  if (span.times == 1) return span.unit;
  const std::size_t digits = span.unit.find_last_not_of("0123456789") + 1;
  const std::uint64_t further = span.pass == Pass::forward ? place : span.times - 1 - place;
  return fmt::format("{}{}", span.unit.substr(0, digits), std::stoull(span.unit.substr(digits)) + further);
}

std::int64_t checked_sum(std::int64_t left, std::int64_t right) {
  std::int64_t result = 0;
  if (__builtin_add_overflow(left, right, &result)) {
    throw_overflow("+", static_cast<std::uint64_t>(left), static_cast<std::uint64_t>(right));
  }
  return result;
}

}  // namespace

void add_times(HeldBytes& sum, const HeldBytes& each, std::uint64_t times) {
  for (std::size_t i = 0; i < sum.size(); ++i) {
    std::int64_t product = 0;
    if (__builtin_mul_overflow(each[i], times, &product)) {
      throw_overflow("*", static_cast<std::uint64_t>(each[i]), times);
    }
    sum[i] = checked_sum(sum[i], product);
  }
}

std::int64_t sum(const HeldBytes& held) {
  return std::accumulate(held.begin(), held.end(), std::int64_t{0}, checked_sum);
}

std::string module_of(std::string_view parameter, std::string_view unit) {
  for (const std::string_view kind : {".weight", ".bias"}) {
    if (parameter.ends_with(kind)) parameter.remove_suffix(kind.size());
  }
  if (parameter.size() > unit.size() && parameter.starts_with(unit) && parameter[unit.size()] == '.') {
    parameter.remove_prefix(unit.size() + 1);
  }
  return std::string(parameter);
}

std::vector<ActivitySpan> spans_of(const Tape& tape) {
  std::vector<ActivitySpan> spans;
  const auto& marks = tape.marks();
  for (std::size_t i = 0; i < marks.size(); ++i) {
    const std::size_t end = i + 1 < marks.size() ? marks[i + 1].event : tape.events().size();
    if (end == marks[i].event) continue;
    const autograd::TapeUnit& unit = tape.units()[marks[i].unit];
    ActivitySpan span{.unit = unit.name, .pass = marks[i].pass, .times = unit.times};
    std::int64_t highest = 0;
    for (std::size_t e = marks[i].event; e < end; ++e) {
      const Event& event = tape.events()[e];
      const Storage& storage = tape.storages()[event.storage];
      const auto bytes = static_cast<std::int64_t>(storage.bytes * event.times) * (event.allocated ? 1 : -1);
      std::int64_t& net = span.net[static_cast<std::size_t>(storage.purpose)];
      net = checked_sum(net, bytes);
      const std::int64_t level = sum(span.net);
      if (level > highest) {
        highest = level;
        span.peak = span.net;
      }
    }
    spans.push_back(std::move(span));
  }
  return spans;
}

std::size_t end_of_forward(const Tape& tape) {
  const auto backward = std::find_if(tape.marks().begin(), tape.marks().end(),
                                     [](const autograd::Mark& mark) { return mark.pass == Pass::backward; });
  return backward == tape.marks().end() ? tape.events().size() : backward->event;
}

std::vector<SavedByUnit> saved_tensors(const Tape& tape) {
  std::vector<SavedByUnit> saved;
  std::set<std::uint32_t> counted;
  for (std::uint32_t unit = 0; unit < tape.units().size(); ++unit) {
    SavedByUnit of_unit{.unit = tape.units()[unit].name, .times = tape.units()[unit].times};
    for (const autograd::SavedStorage& kept : tape.saved_by(unit)) {
      if (!counted.insert(kept.storage).second) continue;
      const Storage& storage = tape.storages()[kept.storage];
      SavedTensor& tensor = of_unit.tensors.emplace_back();
      tensor = {std::string(storage.name), storage.shape, storage.dtype, Bytes{storage.bytes}};
      tensor.module = module_of(storage.parameter, tape.units()[storage.unit].name);
      for (const autograd::Keeper& keeper : kept.keepers) {
        const std::string module = module_of(keeper.parameter, of_unit.unit);
        tensor.kept_by.push_back(fmt::format("{}{}{}", module, module.empty() ? "" : ": ", keeper.operation));
      }
      of_unit.bytes += Bytes{storage.bytes};
    }
    if (!of_unit.tensors.empty()) saved.push_back(std::move(of_unit));
  }
  return saved;
}

ActivityPeak peak_of(const Activity& activity) {
  ActivityPeak peak;
  std::int64_t highest = -1;
  HeldBytes level{};
  for (const ActivitySpan& span : activity.spans) {
    // Equal steps up or down: the worst of them is the last or the first.
    const std::uint64_t worst = sum(span.net) > 0 ? span.times - 1 : 0;
    HeldBytes held = level;
    add_times(held, span.net, worst);
    add_times(held, span.peak, 1);
    if (sum(held) > highest) {
      highest = sum(held);
      peak = {held, nth_unit(span, worst), span.pass};
    }
    add_times(level, span.net, span.times);
  }
  return peak;
}

HeldBytes after_forward(const Activity& activity) {
  HeldBytes held{};
  for (const ActivitySpan& span : activity.spans) {
    if (span.pass == Pass::forward) add_times(held, span.net, span.times);
  }
  return held;
}

}  // namespace shardplan
