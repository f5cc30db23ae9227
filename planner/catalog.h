// The catalog: the ordered list of a model's tensors, grouped into units.
//
// A unit is what is gathered and released together: an embedding, one block, the head. Models repeat one block many
// times, so the catalog stores runs of equal units and never expands them: 126 blocks cost as much as one. Names are
// put together when they are asked for.
//
// A Catalog is a plain value: copyable, comparable, without a file or a model behind it. Readers in planner/formats
// and the families in planner/families make one; make_step_plan (planner/step_plan.h) consumes it.
#pragma once

#include <boost/container/small_vector.hpp>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "base/dtype.h"

namespace shardplan {

// Dims of a tensor, outermost first. Empty for a scalar (1 element); a dim of 0 makes a tensor of 0 elements.
using Shape = boost::container::small_vector<std::uint64_t, 4>;

// The product of the dims. Throws ArithmeticOverflow.
std::uint64_t elements(const Shape& shape);

struct Tensor {
  // Below the unit's name in a numbered run ("self_attn.q_proj.weight"), whole elsewhere ("lm_head.weight").
  std::string name;
  Shape shape;
  // Set where the model fixes the type (a quantised base, an fp32 router); empty where the precision policy decides.
  std::optional<DType> dtype{};
  // A frozen tensor has no gradient and no optimizer state.
  bool trainable = true;
  // The whole name of the tensor whose elements this one uses: a tied head. A tied tensor owns no elements.
  std::string tied_to{};
  // Of an expert whose ranks on the data axis are others than the rest's (planner/parallelism.h).
  bool expert = false;
  // Scales of the quantised tensor before it: bytes like those of any frozen tensor, but no parameters.
  bool scales = false;

  bool operator==(const Tensor&) const = default;
};

// `count` equal units in a row. A numbered run's units are name.first_number, name.first_number+1, ... and its tensors'
// whole names start with that; a run that is not numbered holds one unit.
struct UnitRun {
  std::string name;
  bool numbered = false;
  std::uint64_t first_number = 0;
  std::uint64_t count = 1;
  std::vector<Tensor> tensors;

  bool operator==(const UnitRun&) const = default;
};

// One unit of the model: a run and a place in it.
struct UnitPlace {
  std::size_t run = 0;
  std::uint64_t index = 0;  // within the run
};

struct Catalog {
  std::string name;    // of the model: a preset's, a file's
  std::string family;  // the model_type, or "tensors" where only tensors are known
  std::vector<UnitRun> runs;
  // Of the state dict, but no parameters: neither trained nor sharded. Not in the counts below.
  std::vector<Tensor> buffers{};
  // In which the file says its weights are (dtype, torch_dtype); the precision policy decides what training holds.
  std::optional<DType> stored_dtype{};
  // For models that know it (mixture of experts): the parameters that one token uses. Otherwise all of them.
  std::optional<std::uint64_t> active_parameters;
  // True where only a count of parameters is known (--params): model states can be sized, units cannot.
  bool count_only = false;
  // What the reader wants the user to know ("tie_word_embeddings absent: taken as true").
  std::vector<std::string> notes;

  bool operator==(const Catalog&) const = default;
};

std::uint64_t unit_count(const Catalog& catalog);
std::uint64_t tensor_count(const Catalog& catalog);  // tied ones included

// Elements, each tied tensor's counted once, with its owner; scales are not counted.
std::uint64_t parameter_elements(const Catalog& catalog);
std::uint64_t trainable_elements(const Catalog& catalog);

// Whether a tensor has this whole name.
bool has_tensor(const Catalog& catalog, std::string_view whole_name);

UnitPlace place_of_unit(const Catalog& catalog, std::uint64_t unit);
std::string unit_name(const UnitRun& run, std::uint64_t index);
std::string tensor_name(const UnitRun& run, std::uint64_t index, const Tensor& tensor);

// Calls visit(whole name, tensor) for every tensor in order, expanded. For tests, listings and writers.
template <typename Visitor>
void for_each_tensor(const Catalog& catalog, Visitor&& visit) {
  for (const UnitRun& run : catalog.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) {
      for (const Tensor& tensor : run.tensors) visit(tensor_name(run, i, tensor), tensor);
    }
  }
}

// For each unit that holds a tensor tied to one in another, earlier unit: (unit, owner's unit), in order of unit. Ties
// inside a unit are not listed. Throws ConfigError for a tie to a tensor that does not exist, comes later, is tied
// itself or has another shape.
struct UnitTie {
  std::uint64_t unit = 0;
  std::uint64_t owner = 0;
  bool operator==(const UnitTie&) const = default;
};
std::vector<UnitTie> unit_ties(const Catalog& catalog);

// Freezes every tensor whose whole name matches the glob (base/glob.h). Splits runs where units come to differ. Returns
// how many tensors matched. Throws ConfigError for a tied tensor whose owner stays trainable, and for more than a
// million units.
std::uint64_t freeze(Catalog& catalog, std::string_view glob);

// Builds a catalog from tensors with whole names in order: consecutive tensors of one unit are grouped, and
// consecutive numbered units that are equal but for their number become one run.
class CatalogBuilder {
 public:
  explicit CatalogBuilder(std::string name, std::string family);

  // Starts a unit without a number; tensors that follow carry whole names.
  void begin_unit(std::string unit);
  // Starts unit `prefix`.`number`; tensors that follow carry the rest of their names.
  void begin_unit(std::string prefix, std::uint64_t number);
  void add(Tensor tensor);
  // `count` equal units prefix.first, prefix.first+1, ... at once.
  void add_run(std::string prefix, std::uint64_t first, std::uint64_t count, std::vector<Tensor> tensors);

  Catalog finish();

 private:
  void close_unit();

  Catalog catalog_;
  std::optional<UnitRun> open_;
};

}  // namespace shardplan
