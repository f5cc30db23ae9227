// Worlds of optimizers for tests of their state: any number of ranks at any stage, over one catalog.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

#include "tests/support/synthetic_client.h"

namespace shardplan::test {

// The odd catalog (training_run.h), and a tensor of more elements than one call of a visitor carries.
Catalog state_catalog();
// Two groups, clipping, a loss scale that moves.
ZeroOptions state_options();
// The same, with other initial values: what a load must overwrite.
ZeroOptions other_initial_values();
Setup setup_of(const char* precision, std::uint64_t world, std::uint64_t replicas, int stage);
// Worlds of 1, 2 and 3 ranks and of 2 x 2, at every stage.
std::vector<Setup> small_worlds(const char* precision);
// Steps of two micro-batches.
Script script_of(std::size_t steps);

// One rank of a world.
struct Rank {
  ZeroOptimizer& optimizer;
  SyntheticClient& client;
  Communicator& world;
  int rank;
};

void with_world(const Setup& setup, const Catalog& catalog, const ZeroOptions& options, const Script& script,
                const std::function<void(const Rank&)>& body);

}  // namespace shardplan::test
