// How evenly the tokens of a batch fall on the experts of a mixture. The data decides it, so a plan says what it takes for granted.
#pragma once

#include <cstdint>
#include <optional>
#include <string>

namespace shardplan {

struct ExpertLoad {
  // What the most chosen experts get, in even shares (tokens x chosen / experts): 1, all get the same; infinite, whatever routing can
  // do. It is 1 + MaxVio of Wang et al., arXiv 2408.15664. The experts of the planned rank, or the first ones, are the
  // most chosen: each gets as much until nothing is left for the others.
  double imbalance = 1;
  // An expert takes this many even shares of each rank's tokens at most, and drops the rest (Switch Transformer, arXiv
  // 2101.03961, sec. 2.2; Megatron-LM, --moe-expert-capacity-factor). Empty: nothing is dropped.
  std::optional<double> capacity_factor{};
  // Each expert computes on its whole capacity, whoever chose it (--moe-pad-expert-input-to-capacity).
  bool padded = false;

  bool operator==(const ExpertLoad&) const = default;
};

// "even", "at most 2.5 even shares", "the worst case", "the worst case, dropped beyond 1.25 even shares", "padded to 1.25 even shares"
std::string words(const ExpertLoad& load);

// Each token is computed by `chosen` different ones of `experts`.
struct Choices {
  std::uint64_t experts = 0;
  std::uint64_t chosen = 0;
  std::uint64_t tokens = 0;   // of each rank that sends
  std::uint64_t senders = 1;  // ranks
};

// Pairs of a token and an expert that the first `some` experts compute; evenly floor(some x tokens x senders x chosen / experts).
std::uint64_t pairs_of_first(std::uint64_t some, const Choices& choices, const ExpertLoad& load);

// What one of `ranks` ranks that share the experts out computes, in its even shares, where tokens are many.
double load_of_rank(std::uint64_t ranks, std::uint64_t experts, std::uint64_t chosen, const ExpertLoad& load);

}  // namespace shardplan
