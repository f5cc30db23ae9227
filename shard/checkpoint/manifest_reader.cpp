// Reading a manifest: nothing of it is believed before it is checked.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <set>
#include <tuple>

#include "base/error.h"
#include "planner/formats/json.h"
#include "planner/formats/safetensors.h"
#include "shard/checkpoint/manifest.h"

namespace shardplan {
namespace {

constexpr std::string_view kBeginning = R"({"format": "shardplan-checkpoint", "version": )";
constexpr std::string_view kEnd = "\"}\n";

void check_version(std::string_view text, const std::string& path) {
  if (!text.starts_with(kBeginning)) throw CheckpointError(path, "is no manifest of a checkpoint");
  const char* const first = text.data() + kBeginning.size();
  std::uint64_t version = 0;
  const auto [end, error] = std::from_chars(first, text.data() + text.size(), version);
  if (error != std::errc() || version == 0) throw CheckpointError(path, "has a version that is no number");
  if (version > kCheckpointVersion) {
    throw CheckpointError(path,
                          fmt::format("is of version {}, from the future: expected {}", version, kCheckpointVersion));
  }
}

void check_digest(std::string_view text, const std::string& path) {
  const std::size_t tail = kDigestDigits + kEnd.size();
  if (text.size() < tail || !text.ends_with(kEnd)) throw CheckpointError(path, "is cut short");
  const std::string_view covered = text.substr(0, text.size() - tail);
  const std::string_view said = text.substr(covered.size(), kDigestDigits);
  const std::string found = hex(digest_of(std::as_bytes(std::span(covered))));
  if (said != found) throw CheckpointError(path, fmt::format("has the digest {}: expected {}", found, said));
}

DType dtype_of(JsonView view) {
  const auto dtype = parse_dtype(view.as_string());
  if (!dtype) view.fail_expected("a dtype");
  return *dtype;
}

std::string bytes_of_hex(JsonView view) {
  const std::string_view digits = view.as_string();
  if (digits.size() % 2 != 0 || digits.size() / 2 > kLargestClientBlob) view.fail_expected("at most 16 MiB in hex");
  std::string bytes;
  bytes.reserve(digits.size() / 2);
  for (std::size_t i = 0; i < digits.size(); i += 2) {
    unsigned value = 0;
    const auto [end, error] = std::from_chars(digits.data() + i, digits.data() + i + 2, value, 16);
    if (error != std::errc() || end != digits.data() + i + 2) view.fail_expected("hex digits");
    bytes += static_cast<char>(value);
  }
  return bytes;
}

Tensor tensor_of(JsonView view) {
  Tensor tensor;
  tensor.name = view["name"].as_string();
  for (const JsonView dim : view["shape"].elements()) tensor.shape.push_back(dim.as_digits());
  if (view["dtype"].exists()) tensor.dtype = dtype_of(view["dtype"]);
  tensor.trainable = !view["frozen"].as_bool_or(false);
  if (view["tied_to"].exists()) tensor.tied_to = view["tied_to"].as_string();
  return tensor;
}

Catalog catalog_of(JsonView view) {
  Catalog catalog;
  catalog.name = view["name"].as_string();
  catalog.family = view["family"].as_string();
  std::uint64_t tensors = 0;
  for (const JsonView entry : view["runs"].elements()) {
    UnitRun run;
    run.name = entry["name"].as_string();
    run.numbered = !entry["first_number"].is_null();
    if (run.numbered) run.first_number = entry["first_number"].as_digits();
    run.count = entry["count"].as_positive(kMostCheckpointTensors);
    if (!run.numbered && run.count > 1) entry["count"].fail_expected("1, for a unit without a number");
    for (const JsonView tensor : entry["tensors"].elements()) run.tensors.push_back(tensor_of(tensor));
    tensors = checked_add(tensors, checked_multiply(run.count, std::max<std::uint64_t>(run.tensors.size(), 1)));
    if (tensors > kMostCheckpointTensors) entry.fail(fmt::format("more than {} tensors", kMostCheckpointTensors));
    catalog.runs.push_back(std::move(run));
  }
  unit_ties(catalog);
  return catalog;
}

Policy policy_of(JsonView view) {
  Policy policy;
  policy.name = view["name"].as_string();
  policy.compute = dtype_of(view["compute"]);
  policy.parameter = dtype_of(view["parameter"]);
  policy.gradient = dtype_of(view["gradient"]);
  policy.gradient_accumulator = dtype_of(view["gradient_accumulator"]);
  policy.master.reset();
  if (!view["master"].is_null()) policy.master = dtype_of(view["master"]);
  policy.first_moment = dtype_of(view["first_moment"]);
  policy.second_moment = dtype_of(view["second_moment"]);
  policy.wire = dtype_of(view["wire"]);
  return policy;
}

SavedBy saved_by_of(JsonView view) {
  SavedBy saved;
  saved.world_size = view["world_size"].as_positive();
  saved.replicate = view["replicate"].as_positive();
  saved.stage = static_cast<int>(view["stage"].as_count(3));
  saved.optimizer = optimizer_named(view["optimizer"].as_string()).kind;
  saved.clip_norm = view["clip_norm"].as_number();
  saved.policy = policy_of(view["policy"]);
  for (const JsonView group : view["groups"].elements()) {
    saved.groups.push_back({.match = std::string(group["match"].as_string()),
                            .values = {.learning_rate = group["learning_rate"].as_number(),
                                       .beta1 = group["beta1"].as_number(),
                                       .beta2 = group["beta2"].as_number(),
                                       .eps = group["eps"].as_number(),
                                       .weight_decay = group["weight_decay"].as_number()}});
  }
  return saved;
}

// A name in the checkpoint's own folder: no path, no hidden file, not the manifest.
bool is_plain_name(std::string_view name) {
  const auto plain = [](char c) {
    return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '-' || c == '_' ||
           c == '.';
  };
  return !name.empty() && name.size() <= 255 && name.front() != '.' && name.ends_with(".safetensors") &&
         std::all_of(name.begin(), name.end(), plain);
}

StateKind kind_of(JsonView view) {
  const std::string_view text = view.as_string();
  for (std::uint64_t i = 0; i < kStateKinds; ++i) {
    if (name(static_cast<StateKind>(i)) == text) return static_cast<StateKind>(i);
  }
  view.fail_expected("parameter, first_moment, second_moment or ema");
}

void add_slice(CheckpointFile& file, JsonView view, const std::vector<TensorEntry>& table, std::uint64_t block_bytes,
               std::uint64_t& reached) {
  if (view.size() != 5) view.fail_expected("[tensor, kind, first element, elements, digests]");
  auto parts = view.elements().begin();
  const JsonView tensor = *parts;
  const JsonView kind = *++parts;
  const JsonView first = *++parts;
  const JsonView elements = *++parts;
  const JsonView digests = *++parts;
  Slice slice;
  slice.tensor = tensor.as_digits();
  if (slice.tensor >= table.size() || table[slice.tensor].tied) tensor.fail_expected("a tensor that owns elements");
  const TensorEntry& owner = table[slice.tensor];
  slice.kind = kind_of(kind);
  slice.first = first.as_digits();
  slice.elements = elements.as_positive();
  if (slice.first >= owner.elements || slice.elements > owner.elements - slice.first) {
    elements.fail(fmt::format("'{}' has {} elements", owner.name, owner.elements));
  }
  slice.begin = reached;
  slice.first_block = file.blocks.size();
  const std::uint64_t slice_bytes = bytes_for(file.dtype, slice.elements).count();
  reached = checked_add(reached, slice_bytes);
  if (reached > file.bytes) elements.fail(fmt::format("slices are longer than the file's {} bytes", file.bytes));
  const std::string_view text = digests.as_string();
  const std::uint64_t blocks = block_count(slice_bytes, block_bytes);
  if (text.size() / kDigestDigits != blocks || text.size() % kDigestDigits != 0) {
    digests.fail(fmt::format("expected {} digests", blocks));
  }
  for (std::uint64_t i = 0; i < blocks; ++i) {
    const auto digest = parse_digest(text.substr(i * kDigestDigits, kDigestDigits));
    if (!digest) digests.fail_expected("digests");
    file.blocks.push_back(*digest);
  }
  file.slices.push_back(slice);
}

CheckpointFile file_of(JsonView view, const std::vector<TensorEntry>& table, std::uint64_t block_bytes) {
  CheckpointFile file;
  file.name = view["name"].as_string();
  if (!is_plain_name(file.name)) view["name"].fail_expected("the name of a safetensors file beside the manifest");
  file.dtype = dtype_of(view["dtype"]);
  if (!safetensors_dtype_name(file.dtype) || bits(file.dtype) % 8 != 0 || bits(file.dtype) > 64) {
    view["dtype"].fail_expected("a dtype of whole bytes that safetensors has");
  }
  file.bytes = view["bytes"].as_digits();
  file.data_begin = view["header_bytes"].as_count(8 + kLargestSafetensorsHeader);
  const auto header = parse_digest(view["header"].as_string());
  if (!header) view["header"].fail_expected("a digest");
  file.header = *header;
  std::uint64_t reached = file.data_begin;
  for (const JsonView slice : view["slices"].elements()) add_slice(file, slice, table, block_bytes, reached);
  if (reached != file.bytes) view["bytes"].fail(fmt::format("header and slices make {} bytes", reached));
  return file;
}

struct Part {
  std::uint64_t tensor;
  StateKind kind;
  std::uint64_t first;
  std::uint64_t elements;
  DType dtype;
};

// Every kind of a tensor's state is there as a whole, once, in one dtype; parameters always.
void check_cover(const Manifest& manifest, const std::vector<TensorEntry>& table, const std::string& path) {
  std::vector<Part> parts;
  for (const CheckpointFile& file : manifest.files) {
    for (const Slice& slice : file.slices) {
      parts.push_back({slice.tensor, slice.kind, slice.first, slice.elements, file.dtype});
    }
  }
  std::sort(parts.begin(), parts.end(), [](const Part& a, const Part& b) {
    return std::tie(a.tensor, a.kind, a.first) < std::tie(b.tensor, b.kind, b.first);
  });
  const auto fail = [&](std::uint64_t tensor, StateKind kind, const std::string& problem) {
    throw CheckpointError(path, fmt::format("{}/{}: {}", name(kind), table[tensor].name, problem));
  };
  std::vector<bool> found(table.size(), false);
  for (std::size_t i = 0; i < parts.size();) {
    const Part& start = parts[i];
    if (manifest.content == CheckpointContent::weights && start.kind != StateKind::parameter) {
      fail(start.tensor, start.kind, "is no weight");
    }
    std::uint64_t reached = 0;
    for (; i < parts.size() && parts[i].tensor == start.tensor && parts[i].kind == start.kind; ++i) {
      if (parts[i].first != reached) {
        fail(start.tensor, start.kind,
             fmt::format("element {} is {}", std::min(reached, parts[i].first),
                         parts[i].first < reached ? "there twice" : "missing"));
      }
      if (parts[i].dtype != start.dtype) fail(start.tensor, start.kind, "has two dtypes");
      reached += parts[i].elements;
    }
    if (reached != table[start.tensor].elements) {
      fail(start.tensor, start.kind, fmt::format("element {} is missing", reached));
    }
    if (start.kind == StateKind::parameter) found[start.tensor] = true;
  }
  for (std::size_t tensor = 0; tensor < table.size(); ++tensor) {
    const bool expected = !table[tensor].tied && table[tensor].elements > 0;
    if (expected && !found[tensor]) fail(tensor, StateKind::parameter, "is missing");
  }
}

Manifest manifest_of(JsonView root) {
  Manifest manifest;
  const std::string_view content = root["content"].as_string();
  if (content != name(CheckpointContent::state) && content != name(CheckpointContent::weights)) {
    root["content"].fail_expected("state or weights");
  }
  manifest.content = content == name(CheckpointContent::state) ? CheckpointContent::state : CheckpointContent::weights;
  const JsonView step = root["step"];
  manifest.step = {.steps_applied = step["steps_applied"].as_digits(),
                   .loss_scale = step["loss_scale"].as_number(),
                   .clean_steps = step["clean_steps"].as_digits(),
                   .hysteresis_left = step["hysteresis_left"].as_digits()};
  manifest.client = bytes_of_hex(root["client"]);
  manifest.saved_by = saved_by_of(root["saved_by"]);
  manifest.catalog = catalog_of(root["catalog"]);
  manifest.block_bytes = root["block_bytes"].as_positive(kLargestCheckpointBlock);
  if (manifest.block_bytes % 8 != 0) root["block_bytes"].fail_expected("a multiple of 8");
  const std::vector<TensorEntry> table = tensor_table(manifest.catalog);
  std::set<std::string> names;
  for (const JsonView file : root["files"].elements()) {
    manifest.files.push_back(file_of(file, table, manifest.block_bytes));
    if (!names.insert(manifest.files.back().name).second) file["name"].fail("is there twice");
  }
  check_cover(manifest, table, root.source());
  return manifest;
}

}  // namespace

Manifest parse_manifest(std::string_view text, const std::string& path) {
  check_version(text, path);
  check_digest(text, path);
  try {
    const JsonDocument document(text, path);
    return manifest_of(document.root());
  } catch (const ConfigError& error) {
    throw CheckpointError(path, error.key().empty() ? error.problem() : error.key() + ": " + error.problem());
  } catch (const ArithmeticOverflow& error) {
    throw CheckpointError(path, error.what());
  }
}

}  // namespace shardplan
