#include "tests/support/device_client.h"

#include "tests/support/reference_reduction.h"

namespace shardplan::test {
namespace {

std::vector<std::byte> read(Stream& stream, const TensorView& view) {
  std::vector<std::byte> bytes(bytes_for(view.dtype, view.elements).count());
  stream.copy(bytes.data(), view.data, Bytes{bytes.size()});
  stream.synchronize();
  return bytes;
}

void add_gradient(Stream& stream, const TensorView& view, const Script& script, const GradientPlace& place,
                  float loss_scale) {
  const std::uint64_t width = bits(view.dtype) / 8;
  std::vector<std::byte> bytes = read(stream, view);
  for (std::uint64_t i = 0; i < view.elements; ++i) {
    std::byte* at = bytes.data() + i * width;
    store(view.dtype, load(view.dtype, at) + synthetic_gradient(script, place, i, view.elements) * loss_scale, at);
  }
  stream.copy(view.data, bytes.data(), Bytes{bytes.size()});
  stream.synchronize();
}

std::uint64_t run_program(ZeroOptimizer& optimizer, ProgramKind kind, const Script& script, std::uint64_t units,
                          GradientPlace place) {
  std::uint64_t seen = kEmptyDigest;
  const auto visit = [&](std::uint64_t unit, Pass pass) {
    const UnitViews views = optimizer.enter(unit, pass);
    Stream& stream = optimizer.compute_stream();
    for (const TensorView& view : views.parameters) seen = digest(read(stream, view), seen);
    place.unit = unit;
    for (std::size_t t = 0; t < views.gradients.size() && adds_gradient(script, place.step, unit); ++t) {
      place.tensor = t;
      add_gradient(stream, views.gradients[t], script, place, static_cast<float>(optimizer.loss_scale()));
    }
    optimizer.leave(unit);
  };
  optimizer.begin(kind);
  for (std::uint64_t unit = 0; unit < units; ++unit) visit(unit, Pass::forward);
  for (std::uint64_t unit = units; unit-- > 0 && kind != ProgramKind::evaluate;) visit(unit, Pass::backward);
  return seen;
}

}  // namespace

Trained run_on_device(ZeroOptimizer& optimizer, const Script& script, const StepPlan& plan, int rank) {
  Trained outcome;
  const auto run = [&](ProgramKind kind, std::uint64_t step, std::uint64_t micro_batch) {
    outcome.digests.push_back(run_program(optimizer, kind, script, plan.layout.units,
                                          {.step = step, .micro_batch = micro_batch, .rank = rank}));
  };
  for (std::uint64_t step = 0; step < script.micro_batches.size(); ++step) {
    for (std::uint64_t i = 0; i + 1 < script.micro_batches[step]; ++i) run(ProgramKind::train_micro_batch, step, i);
    run(ProgramKind::last_micro_batch, step, script.micro_batches[step] - 1);
    outcome.reports.push_back(optimizer.step());
  }
  run(ProgramKind::evaluate, 0, 0);
  outcome.parameters = parameters_of(optimizer);
  return outcome;
}

}  // namespace shardplan::test
