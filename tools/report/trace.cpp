#include "tools/report/trace.h"

#include <fmt/format.h>

#include <algorithm>
#include <boost/json/serialize.hpp>
#include <cmath>
#include <iterator>

#include "base/error.h"
#include "tools/report/unicode.h"

namespace shardplan::report {
namespace {

std::string quoted(std::string_view text) {
  const auto plain = [](char c) { return c >= ' ' && c <= '~' && c != '"' && c != '\\'; };
  if (std::all_of(text.begin(), text.end(), plain)) return fmt::format("\"{}\"", text);
  return boost::json::serialize(boost::json::string_view(utf8(code_points(text))));
}

std::uint64_t nanoseconds(double seconds) {
  constexpr double kMost = 9e9;  // 285 years: what 63 bits hold
  SHARDPLAN_CHECK(seconds >= 0 && seconds <= kMost, fmt::format("a time of {} s has no place in a trace", seconds));
  return static_cast<std::uint64_t>(std::llround(seconds * 1e9));
}

std::string microseconds(std::uint64_t nanoseconds) {
  return fmt::format("{}.{:03}", nanoseconds / 1000, nanoseconds % 1000);
}

std::string json_of(std::uint64_t number) {
  return fmt::format("{}", number);
}

std::string json_of(double number) {
  SHARDPLAN_CHECK(std::isfinite(number), "JSON has no infinities");
  return fmt::format("{}", number);
}

std::string json_of(std::string_view text) {
  return quoted(text);
}

// "{...}"
std::string object(const TraceArguments& arguments) {
  std::string text = "{";
  for (const TraceArgument& argument : arguments) {
    if (text.size() > 1) text += ',';
    text += quoted(argument.name);
    text += ':';
    text += std::visit([](auto value) { return json_of(value); }, argument.value);
  }
  return text + "}";
}

std::string arguments_member(const TraceArguments& arguments) {
  return arguments.empty() ? std::string() : ",\"args\":" + object(arguments);
}

std::string position(const TraceMoment& moment) {
  return fmt::format(R"("pid":{},"tid":{},"ts":{})", moment.track.rank, moment.track.stream,
                     microseconds(nanoseconds(moment.seconds)));
}

}  // namespace

TraceWriter::TraceWriter(std::ostream& out) : out_(out) {
  out_ << R"({"displayTimeUnit":"ms","traceEvents":[)";
}

void TraceWriter::write(std::string_view event) {
  SHARDPLAN_CHECK(!finished_, "an event after finish()");
  out_ << (first_ ? "\n" : ",\n") << event;
  first_ = false;
}

void TraceWriter::process(std::uint32_t rank, std::string_view name) {
  write(fmt::format(R"({{"ph":"M","name":"process_name","pid":{},"args":{{"name":{}}}}})", rank, quoted(name)));
}

void TraceWriter::thread(TraceTrack track, std::string_view name) {
  write(fmt::format(R"({{"ph":"M","name":"thread_name","pid":{},"tid":{},"args":{{"name":{}}}}})", track.rank,
                    track.stream, quoted(name)));
}

// `ends` are the ends of the slices that contain the last begin, outermost first, so none is after the one before it.
void TraceWriter::enter(const TraceSlice& slice, std::uint64_t begin, std::uint64_t end) {
  OpenSlices& open = open_[slice.track];
  SHARDPLAN_CHECK(begin <= end, fmt::format("slice {} ends before it begins", slice.name));
  SHARDPLAN_CHECK(begin >= open.last_begin, fmt::format("slice {} begins before the one written before", slice.name));
  const auto containing =
      std::find_if(open.ends.begin(), open.ends.end(), [&](std::uint64_t at) { return at <= begin; });
  SHARDPLAN_CHECK(containing == open.ends.begin() || end <= *std::prev(containing),
                  fmt::format("slice {} ends after the one it begins in", slice.name));
  open.ends.erase(containing, open.ends.end());
  open.ends.push_back(end);
  open.last_begin = begin;
}

void TraceWriter::slice(const TraceSlice& slice, const TraceArguments& arguments) {
  const std::uint64_t begin = nanoseconds(slice.begin);
  const std::uint64_t end = nanoseconds(slice.end);
  const std::string members = arguments_member(arguments);
  enter(slice, begin, end);
  write(fmt::format(R"({{"ph":"X","name":{},"cat":{},"pid":{},"tid":{},"ts":{},"dur":{}{}}})", quoted(slice.name),
                    quoted(slice.category), slice.track.rank, slice.track.stream, microseconds(begin),
                    microseconds(end - begin), members));
}

void TraceWriter::counter(std::uint32_t rank, std::string_view name, double seconds, const TraceArguments& series) {
  for (const TraceArgument& argument : series) {
    SHARDPLAN_CHECK(!std::holds_alternative<std::string_view>(argument.value),
                    fmt::format("series {} of counter {} is not a number", argument.name, name));
  }
  write(fmt::format(R"({{"ph":"C","name":{},"pid":{},"ts":{},"args":{}}})", quoted(name), rank,
                    microseconds(nanoseconds(seconds)), object(series)));
}

void TraceWriter::memory(std::uint32_t rank, double seconds, const MemoryByClass& bytes) {
  TraceArguments series;
  series.reserve(kMemoryClasses);
  for (const MemoryClass which : kStackOrder) {
    series.push_back({shardplan::report::name(which), bytes[which].count()});
  }
  counter(rank, "memory", seconds, series);
}

void TraceWriter::instant(const TraceMoment& at, std::string_view name, InstantScope scope,
                          const TraceArguments& arguments) {
  write(fmt::format(R"({{"ph":"I","name":{},{},"s":"{}"{}}})", quoted(name), position(at), static_cast<char>(scope),
                    arguments_member(arguments)));
}

void TraceWriter::arrow(std::string_view name, const TraceMoment& from, const TraceMoment& to) {
  SHARDPLAN_CHECK(from.seconds <= to.seconds, fmt::format("arrow {} points back in time", name));
  const std::string tail = position(from);
  const std::string head = position(to);
  // A name, a category and an id of its own join the two; "bp":"e" ends it at the slice around it, not the next one.
  const std::string same = fmt::format(R"("name":{},"cat":"arrow","id":{})", quoted(name), arrows_);
  ++arrows_;
  write(fmt::format(R"({{"ph":"s",{},{}}})", same, tail));
  write(fmt::format(R"({{"ph":"f","bp":"e",{},{}}})", same, head));
}

void TraceWriter::finish() {
  SHARDPLAN_CHECK(!finished_, "finish() twice");
  finished_ = true;
  out_ << "\n]}\n";
  out_.flush();
}

}  // namespace shardplan::report
