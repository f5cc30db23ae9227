// What TraceWriter writes, read back and held against every rule of the format.
#include "tools/report/trace.h"

#include <gtest/gtest.h>
#include <rapidcheck.h>
#include <rapidcheck/gtest.h>

#include <boost/json.hpp>
#include <cmath>
#include <functional>
#include <limits>
#include <locale>
#include <set>
#include <sstream>

#include "base/error.h"

namespace shardplan::report {
namespace {

namespace json = boost::json;

std::string written(const std::function<void(TraceWriter&)>& calls) {
  std::ostringstream out;
  TraceWriter trace(out);
  calls(trace);
  trace.finish();
  return out.str();
}

double number(const json::object& event, const char* key) {
  EXPECT_TRUE(event.at(key).is_number()) << event;
  return event.at(key).to_number<double>();
}

// Exact, from the text of a time with three decimals.
std::int64_t nanoseconds(const json::object& event, const char* key) {
  return std::llround(number(event, key) * 1000);
}

void check_slices_nest(const std::vector<std::pair<std::int64_t, std::int64_t>>& slices) {
  for (std::size_t i = 0; i < slices.size(); ++i) {
    for (std::size_t j = i + 1; j < slices.size(); ++j) {
      const auto [a, a_end] = slices[i];
      const auto [b, b_end] = slices[j];
      const bool apart = a_end <= b || b_end <= a;
      const bool inside = (a <= b && b_end <= a_end) || (b <= a && a_end <= b_end);
      EXPECT_TRUE(apart || inside) << a << ".." << a_end << " and " << b << ".." << b_end;
    }
  }
}

void check_event(const json::object& event) {
  const json::string& phase = event.at("ph").as_string();
  ASSERT_TRUE((std::set<std::string>{"X", "C", "I", "M", "s", "f"}.contains(phase.c_str()))) << phase;
  EXPECT_TRUE(event.at("name").is_string());
  EXPECT_TRUE(event.at("pid").is_int64() || event.at("pid").is_uint64());
  if (phase != "C" && event.at("name") != "process_name") {
    EXPECT_GE(number(event, "tid"), 0) << event;
  }
  if (phase == "M") {
    EXPECT_TRUE(event.at("name") == "process_name" || event.at("name") == "thread_name");
    EXPECT_TRUE(event.at("args").at("name").is_string());
  } else {
    EXPECT_GE(number(event, "ts"), 0) << event;
  }
  if (phase == "X") {
    EXPECT_GE(number(event, "dur"), 0) << event;
  }
  if (phase == "X" || phase == "s" || phase == "f") {
    EXPECT_TRUE(event.at("cat").is_string()) << event;
  }
  if (phase == "C") {
    for (const auto& [series, value] : event.at("args").as_object()) EXPECT_TRUE(value.is_number()) << series;
  }
  if (phase == "I") {
    const json::string& scope = event.at("s").as_string();
    EXPECT_TRUE(scope == "p" || scope == "t" || scope == "g") << scope;
  }
}

// Each flow has one start and one end, alike in name and category, and the end is not before the start.
void check_flows(const std::vector<json::object>& events) {
  std::map<std::uint64_t, json::object> starts;
  std::set<std::uint64_t> ends;
  for (const json::object& event : events) {
    const bool end = event.at("ph") == "f";
    if (!end && event.at("ph") != "s") continue;
    const auto id = event.at("id").to_number<std::uint64_t>();
    if (!end) {
      EXPECT_TRUE(starts.emplace(id, event).second) << id;
      continue;
    }
    ASSERT_TRUE(starts.contains(id)) << id;
    EXPECT_TRUE(ends.insert(id).second) << id;
    EXPECT_EQ(event.at("name"), starts[id].at("name"));
    EXPECT_EQ(event.at("cat"), starts[id].at("cat"));
    EXPECT_EQ(event.at("bp"), "e");
    EXPECT_GE(number(event, "ts"), number(starts[id], "ts"));
  }
  EXPECT_EQ(starts.size(), ends.size());
}

std::vector<json::object> checked(const std::string& text) {
  const json::object root = json::parse(text).as_object();
  EXPECT_EQ(root.at("displayTimeUnit"), "ms");
  std::vector<json::object> events;
  std::map<std::pair<std::int64_t, std::int64_t>, std::vector<std::pair<std::int64_t, std::int64_t>>> tracks;
  for (const json::value& value : root.at("traceEvents").as_array()) {
    const json::object& event = value.as_object();
    check_event(event);
    events.push_back(event);
    if (event.at("ph") != "X") continue;
    const std::int64_t begin = nanoseconds(event, "ts");
    tracks[{event.at("pid").as_int64(), event.at("tid").as_int64()}].emplace_back(begin,
                                                                                  begin + nanoseconds(event, "dur"));
  }
  for (const auto& [track, slices] : tracks) check_slices_nest(slices);
  check_flows(events);
  return events;
}

void write_everything(TraceWriter& trace) {
  trace.process(3, "rank 3");
  trace.thread({3, 1}, "communication");
  trace.slice({.track = {3, 1}, .name = "gather", .category = "communication", .begin = 0.5, .end = 0.75},
              {{"unit", "model.layers.0"}, {"bytes", std::uint64_t{1} << 53}, {"share", 0.125}});
  trace.slice({.track = {3, 1}, .name = "inner", .category = "communication", .begin = 0.5, .end = 0.6});
  MemoryByClass held;
  held[MemoryClass::parameters] = 14_GB;
  held[MemoryClass::activations] = 1_B;
  trace.memory(3, 0.5, held);
  trace.instant({{3, 1}, 0.6}, "killed", InstantScope::process, {{"operation", std::uint64_t{17}}});
  trace.arrow("gather", {{3, 1}, 0.5}, {{4, 1}, 0.625});
}

TEST(Trace, EveryByte) {
  EXPECT_EQ(written(write_everything),
            R"({"displayTimeUnit":"ms","traceEvents":[
{"ph":"M","name":"process_name","pid":3,"args":{"name":"rank 3"}},
{"ph":"M","name":"thread_name","pid":3,"tid":1,"args":{"name":"communication"}},
{"ph":"X","name":"gather","cat":"communication","pid":3,"tid":1,"ts":500000.000,"dur":250000.000,"args":{"unit":"model.layers.0","bytes":9007199254740992,"share":0.125}},
{"ph":"X","name":"inner","cat":"communication","pid":3,"tid":1,"ts":500000.000,"dur":100000.000},
{"ph":"C","name":"memory","pid":3,"ts":500000.000,"args":{"parameters":14000000000,"optimizer states":0,"gradients":0,"gathered parameters":0,"communication buffers":0,"activations":1}},
{"ph":"I","name":"killed","pid":3,"tid":1,"ts":600000.000,"s":"p","args":{"operation":17}},
{"ph":"s","name":"gather","cat":"arrow","id":0,"pid":3,"tid":1,"ts":500000.000},
{"ph":"f","bp":"e","name":"gather","cat":"arrow","id":0,"pid":4,"tid":1,"ts":625000.000}
]}
)");
}

TEST(Trace, KeepsTheRulesOfTheFormat) {
  EXPECT_EQ(checked(written(write_everything)).size(), 8U);
  EXPECT_EQ(checked(written([](TraceWriter&) {})).size(), 0U);
}

TEST(Trace, NamesMayBeAnything) {
  const std::string hostile = "\"quoted\\\" \n \t \x01 µ </script>";
  const auto events = checked(written([&](TraceWriter& trace) {
    trace.process(0, hostile);
    trace.slice({.track = {}, .name = hostile, .category = hostile}, {{hostile, hostile}});
    trace.process(1, "bad\xff");
  }));
  EXPECT_EQ(events[0].at("args").at("name").as_string(), hostile);
  EXPECT_EQ(events[1].at("name").as_string(), hostile);
  EXPECT_EQ(events[1].at("args").at(hostile).as_string(), hostile);
  EXPECT_EQ(events[2].at("args").at("name"), "bad\uFFFD");
}

struct CommaForPoint : std::numpunct<char> {
  char do_decimal_point() const override { return ','; }
  char do_thousands_sep() const override { return '.'; }
  std::string do_grouping() const override { return "\3"; }
};

TEST(Trace, DoesNotDependOnTheLocale) {
  const std::string expected = written(write_everything);
  const std::locale before = std::locale::global(std::locale(std::locale(), new CommaForPoint));
  const std::string there = written(write_everything);
  std::locale::global(before);
  EXPECT_EQ(there, expected);
}

// 0.1 + 0.2 is beyond 0.3: as durations the two would overlap after rounding at places like these.
RC_GTEST_PROP(Trace, SlicesThatTouchInSecondsTouchInTheText, ()) {
  const auto steps = *rc::gen::nonEmpty(rc::gen::container<std::vector<int>>(rc::gen::inRange(0, 5000)));
  const double start = *rc::gen::inRange(0, 1000000) * 1.1;
  const std::string text = written([&](TraceWriter& trace) {
    double now = start;
    std::vector<double> times{now};
    for (const int step : steps) times.push_back(now += step * 0.37e-9);
    trace.slice({.track = {}, .name = "step", .category = "c", .begin = times.front(), .end = times.back()});
    for (std::size_t i = 1; i < times.size(); ++i) {
      trace.slice({.track = {}, .name = "part", .category = "c", .begin = times[i - 1], .end = times[i]});
    }
  });
  const auto events = checked(text);
  RC_ASSERT(events.size() == steps.size() + 1);
  RC_ASSERT(!testing::Test::HasFailure());
  for (std::size_t i = 2; i < events.size(); ++i) {
    const std::int64_t end = nanoseconds(events[i - 1], "ts") + nanoseconds(events[i - 1], "dur");
    RC_ASSERT(nanoseconds(events[i], "ts") == end);
  }
}

TEST(Trace, RefusesWhatBreaksARule) {
  const auto slice = [](double begin, double end) {
    return TraceSlice{.track = {}, .name = "s", .category = "c", .begin = begin, .end = end};
  };
  const double infinity = std::numeric_limits<double>::infinity();
  const std::vector<std::function<void(TraceWriter&)>> wrong{
      [&](TraceWriter& trace) { trace.slice(slice(2, 3)); },       // ends after the one it begins in
      [&](TraceWriter& trace) { trace.slice(slice(0.5, 0.75)); },  // before the last
      [&](TraceWriter& trace) { trace.slice(slice(1.5, 1.25)); },  // backwards
      [&](TraceWriter& trace) { trace.slice(slice(-1, 1)); },
      [&](TraceWriter& trace) { trace.slice(slice(3, infinity)); },
      [&](TraceWriter& trace) { trace.slice(slice(3, 4), {{"x", infinity}}); },
      [&](TraceWriter& trace) { trace.counter(0, "c", 0, {{"x", "text"}}); },
      [&](TraceWriter& trace) { trace.counter(0, "c", std::nan(""), {{"x", 1.0}}); },
      [&](TraceWriter& trace) { trace.instant({{}, -1e-9}, "i", InstantScope::global); },
      [&](TraceWriter& trace) { trace.arrow("a", {{}, 2}, {{1, 0}, 1}); }};
  std::string expected;
  for (std::size_t i = 0; i <= wrong.size(); ++i) {
    const std::string text = written([&](TraceWriter& trace) {
      trace.slice(slice(1, 2.5));
      if (i < wrong.size()) {
        EXPECT_THROW(wrong[i](trace), CheckFailure) << i;
      }
      trace.slice(slice(2, 2.5));
      trace.slice(slice(2.5, 3));
      trace.arrow("a", {{}, 2}, {{1, 0}, 2});
    });
    if (i == 0) expected = text;
    EXPECT_EQ(text, expected) << i << ": what was refused left something behind";
    checked(text);
  }
  std::ostringstream out;
  TraceWriter trace(out);
  trace.finish();
  EXPECT_THROW(trace.process(0, "late"), CheckFailure);
  EXPECT_THROW(trace.finish(), CheckFailure);
}

TEST(Trace, ArrowsOfOneNameStayApart) {
  const auto events = checked(written([](TraceWriter& trace) {
    for (std::uint32_t rank = 1; rank < 4; ++rank) trace.arrow("gather", {{0, 1}, 0.25}, {{rank, 1}, 0.5});
  }));
  EXPECT_EQ(events.size(), 6U);
}

TEST(Trace, TracksDoNotKnowOfEachOther) {
  checked(written([](TraceWriter& trace) {
    trace.slice({.track = {0, 0}, .name = "a", .category = "c", .begin = 1, .end = 3});
    trace.slice({.track = {0, 1}, .name = "b", .category = "c", .begin = 0, .end = 2});
    trace.slice({.track = {1, 0}, .name = "c", .category = "c", .begin = 2, .end = 4});
  }));
}

}  // namespace
}  // namespace shardplan::report
