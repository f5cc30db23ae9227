// The set-ups that fit chooses from: every combination of the axes whose flag was not given.
//
//   --zero            0 to 3
//   --tp --pp --cp --ep --virtual-stages
//                     powers of two: tp within a node, pp up to the model's layers, cp where it cuts a sequence into two parts
//                     for each rank (Megatron-LM, training/utils.py get_batch_on_this_cp_rank), ep where there are experts,
//                     virtual stages where there is a pipeline
//   --sequence-parallel  with tp
//   --offload         engine shardplan, from stage 1 on: nothing; optimizer states in host memory; gradients besides; at stage 3
//                     parameters besides
//   --replicate       engines shardplan and fsdp2, from stage 1 on: 1 or powers of two that leave shard groups of whole nodes
//   --micro-batch     powers of two that divide the sequences of a data rank, which then decide the accumulation
//   --recompute       none, selective, every=2, full, invert and adjoint, where the profile knows them
//
// Where nothing is trained there are no gradients, no optimizer states and nothing to recompute: only stages 0 and 3 differ then.
//
// Ranks that do not multiply to the world are no set-ups. What model, engine or profile refuse is one, and is rejected with the
// reason when it is looked at.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <vector>

#include "planner/families/model.h"
#include "tools/memcalc/options.h"

namespace shardplan::memcalc {

// How a model and its states are shared out.
struct Structure {
  std::uint64_t world_size = 1;  // Setup's: data and context ranks
  std::uint64_t tensor = 1;
  std::uint64_t pipeline = 1;
  std::uint64_t context = 1;
  std::uint64_t expert = 1;
  std::uint64_t virtual_stages = 1;
  std::uint64_t replicate = 1;
  int stage = 0;
  std::string_view offload{};  // as the flag says it; empty: as the base has it
};

struct Recomputation {
  RecomputeKind kind = RecomputeKind::none;
  std::uint64_t every = 1;
};

class SearchSpace {
 public:
  // `models`: the first is MODEL, whose layers and experts bound the axes. `sequences`: of a step of every set-up.
  SearchSpace(const PlanOptions& base, const FitOptions& question, const std::vector<Model>& models,
              std::uint64_t sequences);

  const std::vector<Structure>& structures() const { return structures_; }
  const std::vector<Recomputation>& recomputations() const { return recomputations_; }
  // Smaller ones first; none where the sequences do not divide.
  std::vector<std::uint64_t> micro_batches(const Structure& structure) const;

  // Makes a set-up of the space, which may have been another one, into this one. First the structure, then the rest.
  PlanOptions any() const { return base_; }
  void set(PlanOptions& options, const Structure& structure) const;
  void set(PlanOptions& options, std::uint64_t micro_batch, const Recomputation& recomputation) const;

 private:
  bool varied(const char* flag) const { return !question_.given.contains(flag); }
  std::vector<std::uint64_t> axis(const char* flag, std::uint64_t given, std::uint64_t largest) const;
  void add_recomputations();
  void add_axes();
  void add_states(const Structure& axes);
  std::vector<std::uint64_t> replicas(const Structure& structure) const;
  std::span<const std::string_view> offloads() const;

  const PlanOptions& base_;
  const FitOptions& question_;
  const Model& model_;
  bool trains_;  // any of the models
  std::uint64_t sequences_;
  std::vector<Structure> structures_;
  std::vector<Recomputation> recomputations_;
};

}  // namespace shardplan::memcalc
