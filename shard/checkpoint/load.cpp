#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstring>
#include <memory>
#include <optional>
#include <utility>

#include "base/error.h"
#include "shard/checkpoint/checkpoint.h"
#include "shard/checkpoint/checkpoint_reader.h"
#include "shard/checkpoint/folder.h"
#include "shard/checkpoint/together.h"

namespace shardplan {
namespace {

// fp32 values on their way into another dtype, and initial values.
class Wide {
 public:
  std::span<float> of(std::size_t elements) {
    values_.resize(std::max(values_.size(), elements));
    return std::span(values_).first(elements);
  }

 private:
  std::vector<float> values_;
};

void zero(const Elements& to) {
  std::memset(to.data, 0, bytes_for(to.dtype, to.elements).count());
}

// A checkpoint as an optimizer's values: tensors are found by name.
class Source {
 public:
  Source(const ZeroOptimizer& optimizer, Files& files, const std::string& path)
      : reader_(files, path), place_(tensor_count(optimizer.catalog())) {
    match_catalog(optimizer.catalog());
    optimizer.list_state([&](const StateRange& range, DType dtype, std::uint64_t) { check(range, dtype); });
  }

  const Manifest& manifest() const { return reader_.manifest(); }

  void load(const StateRange& range, const Elements& to) {
    const bool weights = manifest().content == CheckpointContent::weights;
    if (!weights) {
      reader_.read(place_[range.tensor], range.kind, range.first, to);
    } else if (range.kind == StateKind::parameter || range.kind == StateKind::ema) {
      load_weights(range, to);
    } else {
      zero(to);
    }
  }

 private:
  [[noreturn]] void refuse(std::string_view tensor, const std::string& problem) const {
    throw ConfigError(reader_.folder(), std::string(tensor), problem);
  }

  // The same tensors, whatever their order and their units.
  void match_catalog(const Catalog& catalog) {
    std::uint64_t ordinal = 0;
    std::uint64_t owners = 0;
    for_each_tensor(catalog, [&](const std::string& name, const Tensor& tensor) {
      const std::uint64_t mine = ordinal++;
      if (!tensor.tied_to.empty()) return;
      const auto found = reader_.find(name);
      if (!found || reader_.tensors()[*found].tied) refuse(name, "is not in this checkpoint");
      const Shape& shape = reader_.tensors()[*found].shape;
      if (shape != tensor.shape) {
        refuse(name, fmt::format("has the shape [{}] in this checkpoint: expected [{}]", fmt::join(shape, ", "),
                                 fmt::join(tensor.shape, ", ")));
      }
      place_[mine] = *found;
      ++owners;
    });
    const auto& stored = reader_.tensors();
    const auto of_own = std::count_if(stored.begin(), stored.end(), [](const TensorEntry& t) { return !t.tied; });
    if (static_cast<std::uint64_t>(of_own) == owners) return;
    for (const TensorEntry& tensor : stored) {
      if (!tensor.tied && !has_tensor(catalog, tensor.name)) refuse(tensor.name, "is in this checkpoint alone");
    }
    refuse("", "a tensor is tied in the model, and not in this checkpoint");
  }

  void check(const StateRange& range, DType dtype) const {
    if (manifest().content == CheckpointContent::weights) return;
    const auto stored = reader_.dtype_of(place_[range.tensor], range.kind);
    if (!stored) refuse(range.name, fmt::format("has no {} in this checkpoint", name(range.kind)));
    if (*stored != dtype) {
      refuse(range.name, fmt::format("its {} is in {} in this checkpoint: expected {}", name(range.kind), name(*stored),
                                     name(dtype)));
    }
  }

  void load_weights(const StateRange& range, const Elements& to) {
    const std::uint64_t tensor = place_[range.tensor];
    const DType stored = *reader_.dtype_of(tensor, StateKind::parameter);
    if (stored == to.dtype) {
      reader_.read(tensor, StateKind::parameter, range.first, to);
      return;
    }
    stored_.resize(std::max<std::size_t>(stored_.size(), bytes_for(stored, to.elements).count()));
    const Elements values(stored, stored_.data(), to.elements);
    reader_.read(tensor, StateKind::parameter, range.first, values);
    cast(to, values);
  }

  CheckpointReader reader_;
  std::vector<std::uint64_t> place_;  // in the checkpoint's catalog, of each tensor of the optimizer's
  std::vector<std::byte> stored_;
};

// As the constructor left it.
void load_initial_values(ZeroOptimizer& optimizer) {
  Wide wide;
  const LossScaler scaler(optimizer.options().loss_scaling);
  optimizer.load_state({.steps_applied = 0,
                        .loss_scale = scaler.scale(),
                        .clean_steps = scaler.clean_steps(),
                        .hysteresis_left = scaler.hysteresis_left()},
                       [&](const StateRange& range, const Elements& to) {
                         if (range.kind != StateKind::parameter && range.kind != StateKind::ema) {
                           zero(to);
                           return;
                         }
                         const std::span<float> values = wide.of(to.elements);
                         optimizer.options().initial_values({range.name, range.tensor, range.first}, values);
                         cast(to, ConstElements(values));
                       });
}

constexpr std::string_view kItself = ".";

std::vector<std::string> names_to_try(Files& files, const std::string& folder) {
  if (files.exists(join_path(folder, kManifestName))) return {std::string(kItself)};
  return checkpoints_to_try(files, folder);
}

// Rank 0's, on every rank, whatever each sees in the folder.
std::vector<std::string> names_of_first(Communicator& world, Files& files, const std::string& folder) {
  std::vector<std::string> names;
  succeed_together(world, folder, [&] {
    if (world.rank() == 0) names = names_to_try(files, folder);
  });
  const std::string text = text_of_first(world, fmt::format("{}", fmt::join(names, "/")));
  names.clear();
  for (std::size_t begin = 0; begin < text.size();) {
    const std::size_t end = std::min(text.find('/', begin), text.size());
    names.push_back(text.substr(begin, end - begin));
    begin = end + 1;
  }
  return names;
}

}  // namespace

LoadReport load_checkpoint(ZeroOptimizer& optimizer, Communicator& world, Files& files, const std::string& folder) {
  LoadReport report;
  bool touched = false;
  for (const std::string& name : names_of_first(world, files, folder)) {
    const std::string path = name == kItself ? folder : join_path(folder, name);
    std::optional<Source> source;
    JointOutcome outcome = act_together(world, [&] { source.emplace(optimizer, files, path); });
    if (outcome.outcome == Outcome::done) {
      touched = true;
      outcome = act_together(world, [&] {
        optimizer.load_state(source->manifest().step,
                             [&](const StateRange& range, const Elements& to) { source->load(range, to); });
      });
    }
    if (outcome.outcome == Outcome::refused) throw ConfigError(path, "", outcome.problem);
    if (outcome.outcome == Outcome::done) {
      report.name = name;
      report.client = source->manifest().client;
      return report;
    }
    report.notes.push_back(outcome.problem);
  }
  if (touched) load_initial_values(optimizer);
  return report;
}

}  // namespace shardplan
