#include "shard/checkpoint/manifest.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cmath>

#include "planner/formats/json_writer.h"

namespace shardplan {
namespace {

std::string hex_of(std::string_view bytes) {
  std::string text;
  text.reserve(2 * bytes.size());
  for (const char byte : bytes) text += fmt::format("{:02x}", static_cast<unsigned char>(byte));
  return text;
}

// 1 as 1.0, so that a reader sees that it is no count.
std::string real(double value) {
  if (std::isnan(value)) return "NaN";
  if (std::isinf(value)) return value > 0 ? "Infinity" : "-Infinity";
  std::string text = fmt::format("{}", value);
  return text.find_first_of(".e") == std::string::npos ? text + ".0" : text;
}

std::string tensor_text(const Tensor& tensor) {
  std::string text =
      fmt::format(R"({{"name": {}, "shape": [{}])", json_quoted(tensor.name), fmt::join(tensor.shape, ", "));
  if (tensor.dtype) text += fmt::format(R"(, "dtype": "{}")", name(*tensor.dtype));
  if (!tensor.trainable) text += R"(, "frozen": true)";
  if (!tensor.tied_to.empty()) text += fmt::format(R"(, "tied_to": {})", json_quoted(tensor.tied_to));
  return text + "}";
}

std::string catalog_text(const Catalog& catalog) {
  std::string runs;
  for (const UnitRun& run : catalog.runs) {
    std::string tensors;
    for (const Tensor& tensor : run.tensors) {
      tensors += fmt::format("{}\n      {}", tensors.empty() ? "" : ",", tensor_text(tensor));
    }
    runs += fmt::format(R"({}
    {{"name": {}, "first_number": {}, "count": {}, "tensors": [{}]}})",
                        runs.empty() ? "" : ",", json_quoted(run.name),
                        run.numbered ? fmt::format("{}", run.first_number) : "null", run.count, tensors);
  }
  return fmt::format(R"({{"name": {}, "family": {}, "runs": [{}]}})", json_quoted(catalog.name),
                     json_quoted(catalog.family), runs);
}

std::string policy_text(const Policy& policy) {
  return fmt::format(
      R"({{"name": {}, "compute": "{}", "parameter": "{}", "gradient": "{}", "gradient_accumulator": "{}", "master": {}, )"
      R"("first_moment": "{}", "second_moment": "{}", "wire": "{}"}})",
      json_quoted(policy.name), name(policy.compute), name(policy.parameter), name(policy.gradient),
      name(policy.gradient_accumulator), policy.master ? fmt::format("\"{}\"", name(*policy.master)) : "null",
      name(policy.first_moment), name(policy.second_moment), name(policy.wire));
}

std::string saved_by_text(const SavedBy& saved) {
  std::string groups;
  for (const ParameterGroup& group : saved.groups) {
    const Hyperparameters& h = group.values;
    groups += fmt::format(
        R"({}{{"match": {}, "learning_rate": {}, "beta1": {}, "beta2": {}, "eps": {}, "weight_decay": {}}})",
        groups.empty() ? "" : ", ", json_quoted(group.match), real(h.learning_rate), real(h.beta1), real(h.beta2),
        real(h.eps), real(h.weight_decay));
  }
  return fmt::format(
      R"({{"world_size": {}, "replicate": {}, "stage": {}, "optimizer": "{}", "clip_norm": {},
    "policy": {},
    "groups": [{}]}})",
      saved.world_size, saved.replicate, saved.stage, states_of(saved.optimizer).name, real(saved.clip_norm),
      policy_text(saved.policy), groups);
}

}  // namespace

std::string_view name(CheckpointContent content) {
  return content == CheckpointContent::state ? "state" : "weights";
}

bool SavedBy::operator==(const SavedBy& other) const {
  return saved_by_text(*this) == saved_by_text(other);
}

std::vector<TensorEntry> tensor_table(const Catalog& catalog) {
  std::vector<TensorEntry> table;
  for_each_tensor(catalog, [&](std::string whole_name, const Tensor& tensor) {
    table.push_back({std::move(whole_name), tensor.shape, elements(tensor.shape), !tensor.tied_to.empty()});
  });
  return table;
}

std::uint64_t block_count(std::uint64_t slice_bytes, std::uint64_t block_bytes) {
  return slice_bytes / block_bytes + (slice_bytes % block_bytes != 0 ? 1 : 0);
}

std::uint64_t bytes_of_block(std::uint64_t slice_bytes, std::uint64_t block_bytes, std::uint64_t block) {
  return std::min(block_bytes, slice_bytes - block * block_bytes);
}

std::string slice_name(StateKind kind, std::string_view tensor, std::uint64_t first, std::uint64_t elements) {
  return fmt::format("{}/{}[{}:{}]", name(kind), tensor, first, first + elements);
}

std::string file_text(const CheckpointFile& file) {
  std::string text =
      fmt::format(R"(  {{"name": {}, "dtype": "{}", "bytes": {}, "header_bytes": {}, "header": "{}",
   "slices": [)",
                  json_quoted(file.name), name(file.dtype), file.bytes, file.data_begin, hex(file.header));
  for (std::size_t i = 0; i < file.slices.size(); ++i) {
    const Slice& slice = file.slices[i];
    const std::size_t end = i + 1 < file.slices.size() ? file.slices[i + 1].first_block : file.blocks.size();
    text += fmt::format("{}\n    [{}, \"{}\", {}, {}, \"", i == 0 ? "" : ",", slice.tensor, name(slice.kind),
                        slice.first, slice.elements);
    for (std::size_t block = slice.first_block; block < end; ++block) text += hex(file.blocks[block]);
    text += "\"]";
  }
  return text + "]}";
}

std::string manifest_text(const Manifest& manifest, std::string_view files) {
  std::string text = fmt::format(
      R"({{"format": "shardplan-checkpoint", "version": {},
"content": "{}",
"step": {{"steps_applied": {}, "loss_scale": {}, "clean_steps": {}, "hysteresis_left": {}}},
"client": "{}",
"saved_by": {},
"catalog": {},
"block_bytes": {},
"files": [
)",
      kCheckpointVersion, name(manifest.content), manifest.step.steps_applied, real(manifest.step.loss_scale),
      manifest.step.clean_steps, manifest.step.hysteresis_left, hex_of(manifest.client),
      saved_by_text(manifest.saved_by), catalog_text(manifest.catalog), manifest.block_bytes);
  text += files;
  text += "],\n\"digest\": \"";
  const Digest digest = digest_of(std::as_bytes(std::span(text)));
  return text + hex(digest) + "\"}\n";
}

std::string manifest_text(const Manifest& manifest) {
  std::string files;
  for (const CheckpointFile& file : manifest.files) files += (files.empty() ? "" : ",\n") + file_text(file);
  return manifest_text(manifest, files);
}

}  // namespace shardplan
