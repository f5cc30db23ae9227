#include "tools/simulate/client_memory.h"

#include <algorithm>
#include <map>
#include <unordered_map>
#include <utility>

#include "base/error.h"
#include "planner/activations/profiles.h"

namespace shardplan {
namespace {

using autograd::Event;
using autograd::Mark;
using autograd::Tape;

// Where on the way through a micro-batch something happens: unit u's forward is place u, its backward 2 units - 1 - u.
using Place = std::uint64_t;

std::unordered_map<std::string, std::uint64_t> numbers_of_units(const Catalog& held) {
  std::unordered_map<std::string, std::uint64_t> numbers;
  std::uint64_t number = 0;
  for (const UnitRun& run : held.runs) {
    for (std::uint64_t i = 0; i < run.count; ++i) numbers[unit_name(run, i)] = number++;
  }
  return numbers;
}

// The place of each of the tape's marks. A forward that comes back to an earlier unit (a tied head, a decoder beside its encoder)
// does so while a later one has its turn; its backward mirrors that.
std::vector<Place> places_of(const Tape& tape, const Catalog& held) {
  const auto numbers = numbers_of_units(held);
  const std::uint64_t units = numbers.size();
  const auto unit_of = [&](const Mark& mark) {
    const auto found = numbers.find(tape.units()[mark.unit].name);
    return found == numbers.end() ? 0 : found->second;
  };
  const std::vector<Mark>& marks = tape.marks();
  std::vector<Place> places(marks.size());
  std::uint64_t furthest = 0;
  for (std::size_t i = 0; i < marks.size(); ++i) {
    if (marks[i].pass != autograd::Pass::forward) continue;
    furthest = std::max(furthest, unit_of(marks[i]));
    places[i] = furthest;
  }
  furthest = 0;
  for (std::size_t i = marks.size(); i-- > 0;) {
    if (marks[i].pass != autograd::Pass::backward) continue;
    furthest = std::max(furthest, unit_of(marks[i]));
    places[i] = 2 * units - 1 - furthest;
  }
  return places;
}

// The walk over a tape's events, place by place.
class Walk {
 public:
  Walk(const Tape& tape, const Catalog& held) : tape_(tape), units_(unit_count(held)) {
    memory_.forward.resize(units_);
    memory_.backward.resize(units_);
    born_.resize(tape.storages().size());
    live_.resize(tape.storages().size());
    const std::vector<Place> places = places_of(tape, held);
    for (std::size_t i = 0; i < places.size(); ++i) {
      const std::size_t first = i == 0 ? 0 : tape.marks()[i].event;
      const std::size_t end = i + 1 < places.size() ? tape.marks()[i + 1].event : tape.events().size();
      for (std::size_t e = first; e < end; ++e) visit(tape.events()[e], places[i]);
    }
    // What is left of a micro-batch goes at its end.
    for (std::size_t i = 0; i < live_.size(); ++i) {
      if (live_[i]) lifetimes_[{born_[i], 2 * units_ - 1}] += bytes_of(static_cast<std::uint32_t>(i));
    }
    add_blocks();
  }
  ClientMemory take() { return std::move(memory_); }

 private:
  Bytes bytes_of(std::uint32_t storage) const { return Bytes{tape_.storages()[storage].bytes}; }
  ClientPass& pass(Place place) {
    return place < units_ ? memory_.forward[place] : memory_.backward[2 * units_ - 1 - place];
  }

  void visit(const Event& event, Place place) {
    if (place != place_) {
      SHARDPLAN_CHECK(place > place_, "a tape's marks in the order of the plan's passes");
      place_ = place;
      begin_ = level_;
    }
    live_[event.storage] = event.allocated;
    if (event.allocated) {
      born_[event.storage] = place;
      level_ += bytes_of(event.storage);
      if (level_ > begin_) pass(place).highest = std::max(pass(place).highest, level_ - begin_);
    } else {
      level_ -= bytes_of(event.storage);
      if (born_[event.storage] != place) lifetimes_[{born_[event.storage], place}] += bytes_of(event.storage);
    }
  }

  void add_blocks() {
    for (const auto& [lifetime, bytes] : lifetimes_) {
      const auto block = static_cast<std::uint32_t>(memory_.blocks.size());
      memory_.blocks.push_back(bytes);
      pass(lifetime.first).held.push_back(block);
      pass(lifetime.second).freed.push_back(block);
    }
  }

  const Tape& tape_;
  std::uint64_t units_;
  ClientMemory memory_;
  std::vector<Place> born_;  // by storage
  std::vector<bool> live_;
  std::map<std::pair<Place, Place>, Bytes> lifetimes_;
  Place place_ = 0;
  Bytes begin_;
  Bytes level_;
};

}  // namespace

const ClientPass* ClientMemory::of(Pass pass, std::uint64_t unit) const {
  if (pass == Pass::forward) return &forward.at(unit);
  return pass == Pass::backward ? &backward.at(unit) : nullptr;
}

ClientMemory client_memory(const Model& model, const Setup& setup, const ClientSetup& client,
                           const std::optional<MegatronMachine>& machine) {
  // As the planner's own run, but unit by unit.
  Tape tape({.folds = false, .keeps_gradients = false});
  run_profile(tape, model, model.catalog, setup, client);
  ClientMemory memory = Walk(tape, model.catalog).take();
  for (const ClientTerm& term : client_terms(model, model.catalog, setup, client, machine)) {
    if (term.at_peak) memory.resident.push_back(term.bytes);
  }
  return memory;
}

// An allocation of its own whose range is in use from begin to end.
class BookedClient::Allocation {
 public:
  explicit Allocation(std::unique_ptr<Memory> memory) : memory_(std::move(memory)) {
    memory_->handed_out(0, memory_->bytes(), kClientPurpose);
  }
  ~Allocation() { memory_->given_back(0, memory_->bytes()); }
  Allocation(const Allocation&) = delete;
  Allocation& operator=(const Allocation&) = delete;

 private:
  std::unique_ptr<Memory> memory_;
};

BookedClient::BookedClient(const ClientMemory& memory, Device& device) : memory_(memory), device_(device) {
  blocks_.resize(memory.blocks.size());
}

BookedClient::~BookedClient() = default;

std::unique_ptr<BookedClient::Allocation> BookedClient::take(Bytes bytes) {
  if (bytes == Bytes{}) return nullptr;
  return std::make_unique<Allocation>(device_.allocate({.tier = MemoryTier::device, .bytes = bytes}));
}

void BookedClient::begin(Pass pass, std::uint64_t unit) {
  if (resident_.empty()) {
    for (const Bytes bytes : memory_.resident) resident_.push_back(take(bytes));
  }
  const ClientPass* of_unit = memory_.of(pass, unit);
  if (of_unit != nullptr) on_the_way_ = take(of_unit->highest);
}

void BookedClient::end(Pass pass, std::uint64_t unit) {
  const ClientPass* of_unit = memory_.of(pass, unit);
  if (of_unit == nullptr) return;
  on_the_way_.reset();
  for (const std::uint32_t block : of_unit->freed) blocks_[block].reset();
  for (const std::uint32_t block : of_unit->held) blocks_[block] = take(memory_.blocks[block]);
}

}  // namespace shardplan
