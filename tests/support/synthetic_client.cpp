#include "tests/support/synthetic_client.h"

#include <algorithm>
#include <cmath>

#include "tests/support/allocation_count.h"
#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

// splitmix64 (Steele, Lea and Flood, OOPSLA 2014).
std::uint64_t mixed(std::uint64_t state, std::uint64_t next) {
  std::uint64_t bits = (state ^ next) + 0x9e3779b97f4a7c15U;
  bits = (bits ^ (bits >> 30)) * 0xbf58476d1ce4e5b9U;
  bits = (bits ^ (bits >> 27)) * 0x94d049bb133111ebU;
  return bits ^ (bits >> 31);
}

// A sign, 23 bits of significand and one of `orders` binary orders of magnitude below 1/2.
float number_of(std::uint64_t bits, int orders) {
  const float significand = 1.0F + static_cast<float>(bits & 0x7fffffU) * 0x1p-23F;
  const auto order = static_cast<int>((bits >> 23) % static_cast<std::uint64_t>(orders));
  return std::ldexp((bits >> 40 & 1U) != 0 ? -significand : significand, -2 - order);
}

}  // namespace

float synthetic_gradient(const Script& script, const GradientPlace& place, std::uint64_t element,
                         std::uint64_t elements) {
  if (element == elements / 2) {
    for (const Script::Poison& poison : script.poisons) {
      if (poison.place == place) return poison.value;
    }
  }
  std::uint64_t bits = script.seed;
  for (const std::uint64_t coordinate :
       {place.step, place.micro_batch, static_cast<std::uint64_t>(place.rank), place.unit, place.tensor, element}) {
    bits = mixed(bits, coordinate);
  }
  return number_of(bits, 11);
}

bool adds_gradient(const Script& script, std::uint64_t step, std::uint64_t unit) {
  return script.silent_unit != unit || step % 2 == 0;
}

void synthetic_values(const TensorRange& range, std::span<float> values) {
  for (std::size_t i = 0; i < values.size(); ++i) {
    values[i] = number_of(mixed(mixed(0x5eed, range.tensor), range.first + i), 6);
  }
}

std::uint64_t digest(std::span<const std::byte> bytes, std::uint64_t before) {
  for (const std::byte byte : bytes) before = (before ^ static_cast<std::uint64_t>(byte)) * 0x100000001b3U;
  return before;
}

template <typename Call>
auto SyntheticClient::counted(Call&& call) {
  struct Count {
    std::uint64_t& total;
    std::uint64_t before = allocations_of_this_thread();
    ~Count() { total += allocations_of_this_thread() - before; }
  } count{allocations_};
  return call();
}

void SyntheticClient::add_gradients(const UnitViews& views, const GradientPlace& unit, float loss_scale) const {
  GradientPlace place = unit;
  for (std::size_t t = 0; t < views.gradients.size(); ++t) {
    place.tensor = t;
    const TensorView& view = views.gradients[t];
    const std::uint64_t width = bits(view.dtype) / 8;
    for (std::uint64_t i = 0; i < view.elements; ++i) {
      std::byte* at = view.data + i * width;
      store(view.dtype, load(view.dtype, at) + synthetic_gradient(script_, place, i, view.elements) * loss_scale, at);
    }
  }
}

void SyntheticClient::run(ZeroOptimizer& optimizer, ProgramKind kind, std::uint64_t step, std::uint64_t micro_batch) {
  std::uint64_t seen = kEmptyDigest;
  const auto visit = [&](std::uint64_t unit, Pass pass) {
    const UnitViews views = counted([&] { return optimizer.enter(unit, pass); });
    for (const TensorView& view : views.parameters) {
      seen = digest({view.data, bytes_for(view.dtype, view.elements).count()}, seen);
    }
    if (pass == Pass::backward && adds_gradient(script_, step, unit)) {
      add_gradients(views, {.step = step, .micro_batch = micro_batch, .rank = rank_, .unit = unit},
                    static_cast<float>(optimizer.loss_scale()));
    }
    counted([&] { optimizer.leave(unit); });
  };
  counted([&] { optimizer.begin(kind); });
  for (std::uint64_t unit = 0; unit < units_; ++unit) visit(unit, Pass::forward);
  if (kind != ProgramKind::evaluate) {
    for (std::uint64_t unit = units_; unit-- > 0;) {
      if (setup_.recompute == Recompute::full) visit(unit, Pass::recompute);
      visit(unit, Pass::backward);
    }
  }
  digests_.push_back(seen);
}

StepReport SyntheticClient::run_step(ZeroOptimizer& optimizer, std::uint64_t step) {
  const std::uint64_t count = script_.micro_batches[step];
  for (std::uint64_t i = 0; i < count; ++i) {
    const bool last = i + 1 == count;
    run(optimizer, last ? ProgramKind::last_micro_batch : ProgramKind::train_micro_batch, step, i);
  }
  return counted([&] { return optimizer.step(); });
}

}  // namespace shardplan::test
