#include "tools/simulate/fault_spec.h"

#include <fmt/format.h>
#include <fmt/ranges.h>

#include <algorithm>
#include <cstdlib>
#include <iterator>
#include <random>
#include <vector>

#include "base/error.h"

namespace shardplan {
namespace {

constexpr FaultKind kKinds[] = {FaultKind::kill, FaultKind::stall,   FaultKind::slow_rank,    FaultKind::slow_link,
                                FaultKind::drop, FaultKind::corrupt, FaultKind::out_of_memory};

[[noreturn]] void fail(const std::string& problem) {
  throw ConfigError("--fault", "", problem);
}

FaultKind kind_named(std::string_view text) {
  std::vector<std::string_view> names;
  for (const FaultKind kind : kKinds) {
    if (name(kind) == text) return kind;
    names.push_back(name(kind));
  }
  fail(fmt::format("'{}' is no fault: expected {} or random", text, fmt::join(names, ", ")));
}

double number(std::string_view key, const std::string& text) {
  char* end = nullptr;
  const double value = std::strtod(text.c_str(), &end);
  if (text.empty() || end != text.c_str() + text.size() || !(value >= 0 && value < 1e18)) {
    fail(fmt::format("{}: expected a number from 0, found '{}'", key, text));
  }
  return value;
}

std::uint64_t count(std::string_view key, const std::string& text) {
  const double value = number(key, text);
  const auto whole = static_cast<std::uint64_t>(value);
  if (static_cast<double>(whole) != value) fail(fmt::format("{}: expected a whole number, found '{}'", key, text));
  return whole;
}

// Of an undisturbed run, so that the fault happens in it.
Fault random_fault(std::uint64_t seed, const std::vector<FaultRange>& ranges) {
  std::mt19937_64 generator(seed);
  const auto below = [&](std::uint64_t bound) { return generator() % std::max<std::uint64_t>(bound, 1); };
  Fault fault{.kind = kKinds[below(std::size(kKinds))], .rank = static_cast<int>(below(ranges.size()))};
  const FaultRange& range = ranges[static_cast<std::size_t>(fault.rank)];
  const bool of_message = fault.kind == FaultKind::drop || fault.kind == FaultKind::corrupt;
  fault.operation = 1 + below(of_message ? range.collectives : range.operations);
  fault.seconds = static_cast<double>(1 + below(100));
  fault.factor = static_cast<double>(2 + below(8));
  fault.bytes = Bytes{below(range.bytes.count())};
  return fault;
}

// What a kind needs to do anything.
void check(const Fault& fault) {
  const auto require = [&](bool holds, const char* what) {
    if (!holds) fail(fmt::format("{} needs {}", name(fault.kind), what));
  };
  require(fault.operation > 0, "an operation from 1");
  require(fault.kind != FaultKind::stall || fault.seconds > 0, "seconds");
  const bool slow = fault.kind == FaultKind::slow_rank || fault.kind == FaultKind::slow_link;
  require(!slow || fault.factor > 1, "a factor above 1");
  require(fault.kind != FaultKind::out_of_memory || fault.bytes > Bytes{}, "bytes");
}

}  // namespace

Fault parse_fault(const std::string& text, int ranks) {
  std::vector<std::string> parts(1);
  for (const char c : text) {
    if (c == ',') {
      parts.emplace_back();
    } else {
      parts.back() += c;
    }
  }
  Fault fault{.kind = kind_named(parts[0]), .operation = 1};
  for (std::size_t i = 1; i < parts.size(); ++i) {
    const std::size_t equals = parts[i].find('=');
    const std::string key = parts[i].substr(0, equals);
    const std::string value = equals == std::string::npos ? "" : parts[i].substr(equals + 1);
    if (key == "rank") {
      const std::uint64_t rank = count(key, value);
      if (rank >= static_cast<std::uint64_t>(ranks))
        fail(fmt::format("rank: expected less than {}, found {}", ranks, rank));
      fault.rank = static_cast<int>(rank);
    } else if (key == "operation") {
      fault.operation = count(key, value);
    } else if (key == "seconds") {
      fault.seconds = number(key, value);
    } else if (key == "factor") {
      fault.factor = number(key, value);
    } else if (key == "bytes") {
      fault.bytes = Bytes{count(key, value)};
    } else {
      fail(fmt::format("'{}' is not known: expected rank, operation, seconds, factor or bytes", key));
    }
  }
  check(fault);
  return fault;
}

std::vector<Fault> parse_faults(const std::vector<std::string>& texts, int ranks, std::uint64_t seed,
                                const std::function<std::vector<FaultRange>()>& undisturbed) {
  constexpr std::string_view kRandom = "random";
  std::vector<Fault> faults;
  for (const std::string& text : texts) faults.push_back(text == kRandom ? Fault{} : parse_fault(text, ranks));
  std::vector<FaultRange> ranges;
  for (std::size_t i = 0; i < texts.size(); ++i) {
    if (texts[i] != kRandom) continue;
    if (ranges.empty()) ranges = undisturbed();
    faults[i] = random_fault(seed + i, ranges);
  }
  return faults;
}

std::string describe(const Fault& fault) {
  const std::string start = fmt::format("{},rank={}", name(fault.kind), fault.rank);
  switch (fault.kind) {
    case FaultKind::stall:
      return fmt::format("{},operation={},seconds={}", start, fault.operation, fault.seconds);
    case FaultKind::slow_rank:
    case FaultKind::slow_link:
      return fmt::format("{},operation={},factor={}", start, fault.operation, fault.factor);
    case FaultKind::out_of_memory:
      return fmt::format("{},bytes={}", start, fault.bytes.count());
    case FaultKind::kill:
    case FaultKind::drop:
    case FaultKind::corrupt:
      break;
  }
  return fmt::format("{},operation={}", start, fault.operation);
}

}  // namespace shardplan
