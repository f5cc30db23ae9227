// Writes a trace that Perfetto (ui.perfetto.dev) and chrome://tracing open, event by event: nothing is kept but the
// open slices of each track.
//
//   TraceWriter trace(file);
//   trace.process(3, "rank 3");
//   trace.thread({.rank = 3, .stream = 1}, "communication");
//   trace.slice({.track = {3, 1}, .name = "gather", .category = "communication", .begin = 0.5, .end = 0.75},
//               {{"unit", "model.layers.0"}, {"bytes", bytes}});
//   trace.finish();
//
// Format: the Trace Event Format's JSON object form. pid is the rank, tid the stream, times are microseconds with
// three decimals. The same calls write the same bytes, whatever the locale.
//
// Times are given in seconds from 0 and rounded to whole nanoseconds, begin and end alike: slices that nest or touch
// before rounding do so after it, which a begin and a duration would not promise.
//
// A call that breaks a rule stated here is a CheckFailure and writes nothing. Whether the stream took the bytes is for
// its owner to ask, after finish(): without finish() the text is not whole. One thread.
#pragma once

#include <cstdint>
#include <map>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include "tools/report/memory_classes.h"

namespace shardplan::report {

struct TraceTrack {
  std::uint32_t rank = 0;
  std::uint32_t stream = 0;
  auto operator<=>(const TraceTrack&) const = default;
};

struct TraceArgument {
  std::string_view name{};
  std::variant<std::uint64_t, double, std::string_view> value;  // a double is finite
};
using TraceArguments = std::vector<TraceArgument>;  // different names

struct TraceSlice {
  TraceTrack track;
  std::string_view name{};
  std::string_view category{};
  double begin = 0;
  double end = 0;
};

struct TraceMoment {
  TraceTrack track;
  double seconds = 0;
};

// How wide an instant is drawn: over its stream, its rank or everything.
enum class InstantScope : char { thread = 't', process = 'p', global = 'g' };

class TraceWriter {
 public:
  explicit TraceWriter(std::ostream& out);
  TraceWriter(const TraceWriter&) = delete;
  TraceWriter& operator=(const TraceWriter&) = delete;

  void process(std::uint32_t rank, std::string_view name);
  void thread(TraceTrack track, std::string_view name);

  // The slices of a track come in the order of their begins, one that contains others before them, and either nest or
  // do not overlap.
  void slice(const TraceSlice& slice, const TraceArguments& arguments = {});

  // One series per argument, numbers, constant until the next value; drawn as one counter each.
  void counter(std::uint32_t rank, std::string_view name, double seconds, const TraceArguments& series);
  // The counter "memory", one series for each class.
  void memory(std::uint32_t rank, double seconds, const MemoryByClass& bytes);

  void instant(const TraceMoment& at, std::string_view name, InstantScope scope, const TraceArguments& arguments = {});

  // An arrow between two slices: each moment lies inside a slice of its track, before its end.
  void arrow(std::string_view name, const TraceMoment& from, const TraceMoment& to);

  void finish();

 private:
  struct OpenSlices {
    std::uint64_t last_begin = 0;
    std::vector<std::uint64_t> ends;
  };
  void enter(const TraceSlice& slice, std::uint64_t begin, std::uint64_t end);
  void write(std::string_view event);

  std::ostream& out_;
  std::map<TraceTrack, OpenSlices> open_;
  std::uint64_t arrows_ = 0;
  bool first_ = true;
  bool finished_ = false;
};

}  // namespace shardplan::report
