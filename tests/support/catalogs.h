// Catalogs and setups to test with: shapes of known models, and generators that reach every corner of a catalog.
//
// The shapes are written out here, apart from planner/families: a mistake there must not hide one in the planner.
#pragma once

#include <rapidcheck.h>

#include <cstdint>
#include <iosfwd>
#include <string>
#include <vector>

#include "planner/catalog.h"
#include "planner/setup.h"

namespace shardplan {

// RapidCheck prints the smallest case that fails with these.
void showValue(const Catalog& catalog, std::ostream& out);
void showValue(const Setup& setup, std::ostream& out);

namespace test_support {

struct LlamaShape {
  std::string name;
  std::uint64_t vocabulary = 0;
  std::uint64_t hidden = 0;
  std::uint64_t layers = 0;
  std::uint64_t intermediate = 0;
  std::uint64_t key_value = 0;  // width of the keys: key-value heads x head size
  bool tied_head = false;
};

// Embedding, `layers` blocks, and a head that holds the last norm: three runs.
Catalog llama_catalog(const LlamaShape& shape);

struct Gpt2Shape {
  std::string name;
  std::uint64_t hidden = 0;
  std::uint64_t layers = 0;
};

// Tied head; biases everywhere, so that no unit is a round number of elements.
Catalog gpt2_catalog(const Gpt2Shape& shape);

// tinyllama, llama-2-7b to 70b, llama-3.1-8b to 405b, and tied ones: llama-3.2-3b, smollm-360m, gpt2 to gpt2-xl.
std::vector<Catalog> known_catalogs();

// One numbered run of `units` units, each one bf16-mixed tensor of `elements` elements.
Catalog uniform_catalog(std::uint64_t units, std::uint64_t elements);

// The same units in the same order, each in a run of its own: nothing is folded.
Catalog unfolded(const Catalog& catalog);

enum class Sizes { any, small };  // any: up to more than 2^32 elements

// Up to 6 runs: single units, runs of up to 9 equal ones, some without a tensor; flat buffers of mixed fixed dtypes and
// frozen tensors; tensors of 0, 1, prime and huge numbers of elements; up to 4 ties from any unit to any earlier
// one, several to one owner and owners inside a run included.
rc::Gen<Catalog> any_catalog(Sizes sizes = Sizes::any);

// Any setup that validate() takes: worlds 1..64, 1000 and 4096, every stage, replicas, precision, override and switch.
rc::Gen<Setup> any_setup();

}  // namespace test_support
}  // namespace shardplan
