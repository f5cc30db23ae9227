// A model: its catalog, and what the catalog was made from.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/families/module.h"

namespace shardplan {

class ModelConfig;

// The sizes that describe a transformer; 0 where the model has no such thing or it is not known.
struct Architecture {
  std::uint64_t vocabulary = 0;
  std::uint64_t hidden = 0;        // features of a token between blocks
  std::uint64_t intermediate = 0;  // features inside the MLP
  std::uint64_t layers = 0;
  std::uint64_t heads = 0;
  std::uint64_t kv_heads = 0;
  std::uint64_t head_size = 0;
  std::uint64_t max_positions = 0;
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

// Names of the units that are no block; every reader uses them.
inline constexpr const char* kEmbeddingUnit = "embedding";
inline constexpr const char* kHeadUnit = "head";

// Puts a model together from its embeddings, its blocks and what follows them. Everything is named below the base
// model's prefix ("model."), which falls away where the file's architecture is the bare base model.
class ModelBuilder {
 public:
  ModelBuilder(ModelConfig& config, const Architecture& architecture);

  void embeddings(std::initializer_list<Modules> parts);
  // `count` equal blocks name.0, name.1, ...; further calls with the same name go on counting.
  void blocks(const std::string& name, std::uint64_t count, std::initializer_list<Modules> parts);
  // The modules after the blocks, and then the head of the file's architecture. A language model's head uses the
  // weight of the module `embedding` where the file (or, if it says nothing, `tied_by_default`) ties them.
  void head(std::initializer_list<Modules> parts, const std::string& embedding, bool tied_by_default);

  Model finish();

 private:
  std::string whole(const std::string& name) const;

  ModelConfig& config_;
  Model model_;
};

// The catalog that consists of the modules' tensors.
Catalog make_catalog(std::string name, std::string family, const std::vector<ModuleRun>& runs);

}  // namespace shardplan
