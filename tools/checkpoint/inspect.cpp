#include "tools/checkpoint/inspect.h"

#include <fmt/format.h>

#include <array>
#include <map>

#include "planner/formats/json_writer.h"

namespace shardplan::checkpoint_tool {
namespace {

struct KindTotal {
  std::uint64_t elements = 0;
  std::uint64_t bytes = 0;
};

// By kind and dtype.
std::map<std::pair<StateKind, DType>, KindTotal> totals_of(const Manifest& manifest) {
  std::map<std::pair<StateKind, DType>, KindTotal> totals;
  for (const CheckpointFile& file : manifest.files) {
    for (const Slice& slice : file.slices) {
      KindTotal& total = totals[{slice.kind, file.dtype}];
      total.elements += slice.elements;
      total.bytes += bytes_for(file.dtype, slice.elements).count();
    }
  }
  return totals;
}

std::uint64_t bytes_of(const Manifest& manifest) {
  std::uint64_t bytes = 0;
  for (const CheckpointFile& file : manifest.files) bytes += file.bytes;
  return bytes;
}

}  // namespace

std::string inspect_text(const CheckpointReader& reader) {
  const Manifest& m = reader.manifest();
  std::string text = fmt::format(
      "{}\n"
      "  model        {} ({}), {} tensors, {} parameters\n"
      "  content      {}, after {} steps; loss scale {}\n"
      "  saved by     {} ranks, stage {}, {}, {}\n"
      "  files        {}, {}\n",
      reader.folder(), m.catalog.name, m.catalog.family, tensor_count(m.catalog), parameter_elements(m.catalog),
      name(m.content), m.step.steps_applied, m.step.loss_scale, m.saved_by.world_size, m.saved_by.stage,
      m.saved_by.policy.name, states_of(m.saved_by.optimizer).name, m.files.size(), in_gb(Bytes{bytes_of(m)}));
  for (const auto& [key, total] : totals_of(m)) {
    text += fmt::format("  {:<12} {:<5} {:>16} elements  {:>10}\n", name(key.first), name(key.second), total.elements,
                        in_gb(Bytes{total.bytes}));
  }
  return text;
}

std::string inspect_json(const CheckpointReader& reader) {
  const Manifest& m = reader.manifest();
  JsonWriter json;
  json.add("schema", "shardplan.checkpoint/1").add("path", std::string_view(reader.folder()));
  json.add("content", name(m.content));
  json.open("model")
      .add("name", std::string_view(m.catalog.name))
      .add("family", std::string_view(m.catalog.family))
      .add("tensors", tensor_count(m.catalog))
      .add("parameters", parameter_elements(m.catalog))
      .close();
  json.open("step")
      .add("steps_applied", m.step.steps_applied)
      .add("loss_scale", m.step.loss_scale)
      .add("clean_steps", m.step.clean_steps)
      .add("hysteresis_left", m.step.hysteresis_left)
      .close();
  json.open("saved_by")
      .add("world_size", m.saved_by.world_size)
      .add("replicate", m.saved_by.replicate)
      .add("zero_stage", static_cast<std::uint64_t>(m.saved_by.stage))
      .add("precision", std::string_view(m.saved_by.policy.name))
      .add("optimizer", states_of(m.saved_by.optimizer).name)
      .close();
  json.add("files", static_cast<std::uint64_t>(m.files.size())).add("bytes", bytes_of(m));
  json.add("client_bytes", static_cast<std::uint64_t>(m.client.size()));
  json.open("state");
  for (const auto& [key, total] : totals_of(m)) {
    json.open(fmt::format("{}.{}", name(key.first), name(key.second)))
        .add("elements", total.elements)
        .add("bytes", total.bytes)
        .close();
  }
  return json.close().finish();
}

}  // namespace shardplan::checkpoint_tool
