// Units from names: which tensors are gathered together, and in which order units are used.
//
//   <stack>.<number>.<rest>   is of block <number> of a stack, for the outermost number whose prefix numbers modules:
//                             somewhere in the model, <rest> has a dot ("self_attn.q_proj.weight"). The members of a
//                             Sequential of plain layers ("classifier.0.weight") are no blocks.
//   everything else           is of an embedding unit or a head unit, by its name.
//
// A model with one stack has one of each: "embedding", the blocks, "head". A model with several has towers: the last
// stack is the main one, and what the prefix of another has before it parts from the main one's names a tower
// ("model.vision_tower" beside "model.language_model.layers"; "encoder" beside "decoder.block"). A tower is used as a
// whole before the main stack: "<tower>.embedding", its blocks, "<tower>.head". Stacks are used in this order: those
// whose prefix says vision, visual, audio or vae; encoders; others; decoders; among equals, in that of the names (so an
// autoencoder's parts are in order of name, not of use).
//
// A tensor outside all stacks is an embedding where its name says so (embed, wte, wpe, cls_token ...; but embed_out is
// GPT-NeoX's head). One called "shared" beside towers is a unit of its own, the first. A projector between a tower and
// the main stack is of the last tower's head. A tied embedding is with its owner.
//
// Families and readers of tensors alike take their units from here, so a model has the same ones whatever file it is
// read from. They are what fully_shard is applied to in practice: embeddings, each block, the rest.
#pragma once

#include <cstdint>
#include <set>
#include <string>
#include <string_view>
#include <tuple>
#include <vector>

namespace shardplan {

// Names of the units of a model with one stack.
inline constexpr const char* kEmbeddingUnit = "embedding";
inline constexpr const char* kHeadUnit = "head";
inline constexpr const char* kSharedUnit = "shared";

// "<prefix>.<number>.<rest>"
struct NumberedName {
  std::string_view prefix;
  std::uint64_t number = 0;
  std::string_view rest;
};

// The prefixes that number modules in these names of tensors.
std::set<std::string, std::less<>> stacks_in(const std::vector<std::string_view>& names);

class UnitNames {
 public:
  // Where a tensor belongs. Places are equal for one unit and ordered as units are used.
  struct Place {
    std::uint32_t tower = 0;    // in order of use
    std::uint32_t section = 0;  // embedding, blocks, head
    std::uint32_t stack = 0;    // of a block, in order of use
    std::uint64_t number = 0;   // of a block
    auto operator<=>(const Place&) const = default;
    bool in_block() const { return section == kBlocks; }
    static constexpr std::uint32_t kBlocks = 1;
  };

  explicit UnitNames(const std::set<std::string, std::less<>>& stacks);

  // Of the tensor with this whole name; `tied_to` is the whole name of its owner, if it has one.
  Place place(std::string_view name, std::string_view tied_to = {}) const;
  // The name split at its stack; only for names in blocks.
  NumberedName in_stack(std::string_view name) const;
  // Of a block: the place of every other block is this with another number.
  Place block(std::string_view stack, std::uint64_t number) const;
  // The name of a unit that is no block.
  std::string name(const Place& place) const;

 private:
  std::uint32_t tower_of(std::string_view name) const;

  std::vector<std::string> stacks_;  // in order of use
  std::vector<std::string> towers_;  // in order of use; the last is the main one and has no name
  std::vector<std::uint32_t> tower_of_stack_;
};

}  // namespace shardplan
