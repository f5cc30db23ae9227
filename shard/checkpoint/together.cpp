#include "shard/checkpoint/together.h"

#include <fmt/format.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

struct Record {
  Outcome outcome = Outcome::done;
  std::array<char, 511> problem{};
};

Record record_of(const std::function<void()>& act) {
  Record record;
  const auto keep = [&](Outcome outcome, const std::string& problem) {
    record.outcome = outcome;
    problem.copy(record.problem.data(), record.problem.size() - 1);
  };
  try {
    act();
  } catch (const CheckpointError& error) {
    keep(Outcome::damaged, error.what());
  } catch (const IoError& error) {
    keep(Outcome::damaged, error.what());
  } catch (const OutOfMemory& error) {
    keep(Outcome::damaged, error.what());
  } catch (const ConfigError& error) {
    keep(Outcome::refused, error.key().empty() ? error.problem() : error.key() + ": " + error.problem());
  }
  return record;
}

// Calls take(rank, part of its text) until all texts have been told.
template <typename Take>
void exchange_texts(Communicator& world, const std::string& mine, Take take) {
  const auto ranks = static_cast<std::size_t>(world.size());
  const std::uint64_t length = mine.size();
  std::vector<std::uint64_t> lengths(ranks);
  world.all_gather_bytes(std::as_bytes(std::span(&length, 1)), std::as_writable_bytes(std::span(lengths)));
  const std::uint64_t longest = *std::max_element(lengths.begin(), lengths.end());
  constexpr std::size_t kRound = 512 << 10;
  const std::size_t part = std::clamp<std::size_t>(kRound / ranks, 512, 64 << 10);
  std::vector<char> out(part);
  std::vector<char> all(part * ranks);
  for (std::uint64_t first = 0; first < longest; first += part) {
    if (first < length) mine.copy(out.data(), part, first);
    world.all_gather_bytes(std::as_bytes(std::span(out)), std::as_writable_bytes(std::span(all)));
    for (std::size_t rank = 0; rank < ranks; ++rank) {
      if (first >= lengths[rank]) continue;
      take(rank, std::string_view(all.data() + rank * part, std::min<std::uint64_t>(part, lengths[rank] - first)));
    }
  }
}

}  // namespace

JointOutcome act_together(Communicator& world, const std::function<void()>& act) {
  const Record mine = record_of(act);
  std::vector<Record> all(static_cast<std::size_t>(world.size()));
  world.all_gather_bytes(std::as_bytes(std::span(&mine, 1)), std::as_writable_bytes(std::span(all)));
  JointOutcome joint;
  for (std::size_t rank = 0; rank < all.size(); ++rank) {
    if (all[rank].outcome <= joint.outcome) continue;
    joint.outcome = all[rank].outcome;
    joint.problem =
        all.size() == 1 ? all[rank].problem.data() : fmt::format("rank {}: {}", rank, all[rank].problem.data());
  }
  return joint;
}

void succeed_together(Communicator& world, const std::string& path, const std::function<void()>& act) {
  const JointOutcome joint = act_together(world, act);
  if (joint.outcome == Outcome::damaged) throw CheckpointError(path, joint.problem);
  if (joint.outcome == Outcome::refused) throw ConfigError(path, "", joint.problem);
}

std::string text_of_first(Communicator& world, const std::string& mine) {
  std::string text;
  exchange_texts(world, world.rank() == 0 ? mine : std::string(), [&](std::size_t rank, std::string_view part) {
    if (rank == 0) text += part;
  });
  return text;
}

std::vector<std::string> texts_on_first(Communicator& world, const std::string& mine) {
  std::vector<std::string> texts(world.rank() == 0 ? static_cast<std::size_t>(world.size()) : 0);
  exchange_texts(world, mine, [&](std::size_t rank, std::string_view part) {
    if (rank < texts.size()) texts[rank] += part;
  });
  return texts;
}

}  // namespace shardplan
