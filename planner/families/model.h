// A model: its catalog, and what the catalog was made from.
#pragma once

#include <cstddef>
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "planner/catalog.h"
#include "planner/families/module.h"

namespace shardplan {

class ModelConfig;

// The sizes that describe a transformer; 0 where the model has no such thing or it is not known. Of a model made of
// several, those of its main part: the language model.
struct Architecture {
  std::uint64_t vocabulary = 0;
  std::uint64_t hidden = 0;        // features of a token between blocks
  std::uint64_t intermediate = 0;  // features inside the MLP
  std::uint64_t layers = 0;
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head_size = 0;
  std::uint64_t max_positions = 0;
  std::uint64_t block_uses = 1;  // of each numbered block in a forward: ALBERT's layers share blocks
  std::uint64_t image_side = 0;  // pixels, or latent ones, of the images that it was made for
  bool use_cache = true;         // transformers copies keys and values into a cache, in training too
  bool operator==(const Architecture&) const = default;
};

// `count` blocks of the same modules, numbered like a UnitRun; or, not numbered, the modules of one unit.
struct ModuleRun {
  std::string name;
  bool numbered = false;
  std::uint64_t first_number = 0;
  std::uint64_t count = 1;
  Modules modules;
  bool operator==(const ModuleRun&) const = default;
};

struct Model {
  Catalog catalog;
  Architecture architecture;
  // In the order of the catalog's units. Empty where only tensors are known (safetensors, a tensor list).
  std::vector<ModuleRun> modules;
  bool operator==(const Model&) const = default;
};

// The modules of the unit that a run of the model's catalog, or of a rank's part of it, is of. Runs may have been split
// since (a pipeline, frozen tensors), never renamed. Null where there are none.
const ModuleRun* modules_of(const Model& model, const UnitRun& run);

// Puts a model together from its modules, in the order of the state dict; which unit a module is of follows from its
// name (planner/units.h).
class ModelBuilder {
 public:
  ModelBuilder(ModelConfig& config, Model& model);

  // The sizes of this model; the whole model's too, unless this is a tower of it.
  void describe(const Architecture& architecture);
  // Modules of the base model. Everything of it is named below its prefix ("model."), which falls away where the file's
  // architecture is the bare base model.
  void add(Modules modules);
  // `count` equal blocks stack.0, stack.1, ... of the base model; further calls for the same stack go on counting.
  void blocks(const std::string& stack, std::uint64_t count, const Modules& modules);
  // `count` blocks of several kinds: block i is make(kind_of(i)). Equal kinds in a row are made once.
  template <typename KindOf, typename Make>
  void blocks(const std::string& stack, std::uint64_t count, const KindOf& kind_of, const Make& make);
  // Modules outside the base model: a head.
  void add_outside(Modules modules);
  // The head of the file's architecture, if it has one that is a linear module on the described hidden features. A
  // language model's uses the weight of the base model's module `embedding` where the file (or, if it says nothing,
  // `tied_by_default`) ties them.
  void head(const std::string& embedding, bool tied_by_default);
  // A tensor of the base model's state dict that is no parameter.
  void buffer(const std::string& name, Shape shape);
  void buffer_outside(const std::string& name, Shape shape);
  // The whole model of a nested config, below `prefix` in this one's base model.
  enum class Part : std::uint8_t { main, tower, frozen_tower };
  void nested(const std::string& prefix, ModelConfig config, Part part);

  // The name of a module of the base model with all prefixes.
  std::string whole(const std::string& name) const;

 private:
  ModelBuilder(ModelConfig& config, const ModelBuilder& outer, std::string prefix, Part part);
  Modules placed(std::string_view prefix, Modules modules) const;
  void require_listable(std::uint64_t layers) const;

  ModelConfig& config_;
  Model& model_;
  std::string prefix_;  // of the whole nested model
  Part part_ = Part::main;
  Architecture architecture_;
  std::shared_ptr<std::size_t> listed_;  // modules so far, in all builders of the model
};

// Sorts what a builder collected into units and makes the catalog.
void finish_model(Model& model, std::string name, std::string family);

// For a model with experts: the parameters that one token uses. Sums must fit into 64 bits (require_countable).
std::optional<std::uint64_t> active_parameters(const std::vector<ModuleRun>& runs);

// The catalog that consists of the modules' tensors.
Catalog make_catalog(std::string name, std::string family, const std::vector<ModuleRun>& runs);

template <typename KindOf, typename Make>
void ModelBuilder::blocks(const std::string& stack, std::uint64_t count, const KindOf& kind_of, const Make& make) {
  require_listable(count);
  for (std::uint64_t first = 0, next = 0; first < count; first = next) {
    const auto kind = kind_of(first);
    for (next = first + 1; next < count && kind_of(next) == kind;) ++next;
    blocks(stack, next - first, make(kind));
  }
}

}  // namespace shardplan
