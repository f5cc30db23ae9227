// optimizer_update against PyTorch: tests/data/adamw_pytorch.json, written by tests/data/make_adamw_goldens.py.
//
// Where PyTorch rounds every operation once, the bits are equal after every step. Stock PyTorch does not: with AVX2 it
// fuses multiplications with additions, and its square root is MKL's, which is not rounded correctly. There the last
// parameter is within four roundings per step of the largest value that it had.
#include <gtest/gtest.h>

#include <boost/json.hpp>

#include <bit>
#include <cmath>
#include <fstream>
#include <iterator>
#include <string>
#include <vector>

#include "shard/kernels/optimizer_update.h"

namespace shardplan {
namespace {

std::vector<float> floats(const boost::json::value& hex) {
  const std::string text(hex.as_string());
  std::vector<float> values;
  for (std::size_t at = 0; at < text.size(); at += 8) {
    values.push_back(std::bit_cast<float>(static_cast<std::uint32_t>(std::stoul(text.substr(at, 8), nullptr, 16))));
  }
  return values;
}

UpdateOptions options_of(const boost::json::object& golden) {
  const boost::json::object& theirs = golden.at("options").as_object();
  const auto number = [&](const char* key, double otherwise) {
    return theirs.contains(key) ? theirs.at(key).to_number<double>() : otherwise;
  };
  UpdateOptions options{.kind = optimizer_named(std::string_view(golden.at("kind").as_string())).kind,
                        .lr = number("lr", 0),
                        .momentum = number("momentum", 0),
                        .eps = number("eps", 0),
                        .weight_decay = number("weight_decay", 0),
                        .ema_decay = golden.at("ema_decay").to_number<double>()};
  if (theirs.contains("betas")) {
    options.beta1 = theirs.at("betas").at(0).to_number<double>();
    options.beta2 = theirs.at("betas").at(1).to_number<double>();
  }
  return options;
}

struct State {
  std::vector<float> p, m, v, ema;
};

State start_of(const boost::json::object& golden) {
  State state{.p = floats(golden.at("initial")), .m = {}, .v = {}, .ema = floats(golden.at("initial"))};
  if (golden.contains("first_moment")) state.m.resize(state.p.size());
  if (golden.contains("second_moment")) state.v.resize(state.p.size());
  return state;
}

void expect_bits(const std::vector<float>& ours, const std::vector<float>& theirs, const std::string& what) {
  ASSERT_EQ(ours.size(), theirs.size()) << what;
  for (std::size_t i = 0; i < ours.size(); ++i) {
    ASSERT_EQ(std::bit_cast<std::uint32_t>(ours[i]), std::bit_cast<std::uint32_t>(theirs[i]))
        << what << " [" << i << "]";
  }
}

void follow(const boost::json::object& golden, const OptimizerKernels& kernels) {
  UpdateOptions options = options_of(golden);
  State state = start_of(golden);
  const boost::json::array& gradients = golden.at("gradients").as_array();
  ASSERT_GE(gradients.size(), 10U);
  std::vector<double> largest(state.p.size());
  for (std::size_t step = 0; step < gradients.size(); ++step) {
    const std::vector<float> gradient = floats(gradients[step]);
    options.step = step + 1;
    optimizer_update(options,
                     {.parameter = std::span(state.p),
                      .gradient = std::span<const float>(gradient),
                      .first_moment = std::span(state.m),
                      .second_moment = std::span(state.v),
                      .ema = state.ema},
                     kernels);
    for (std::size_t i = 0; i < largest.size(); ++i) largest[i] = std::fmax(largest[i], std::fabs(state.p[i]));
    expect_bits(state.p, floats(golden.at("parameters").at(step)), "parameter, step " + std::to_string(step + 1));
  }
  if (golden.contains("first_moment")) expect_bits(state.m, floats(golden.at("first_moment")), "first moment");
  if (golden.contains("second_moment")) expect_bits(state.v, floats(golden.at("second_moment")), "second moment");
  expect_bits(state.ema, floats(golden.at("ema")), "ema");

  const std::vector<float> stock = floats(golden.at("parameter_stock"));
  const double roundings = 4 * static_cast<double>(gradients.size()) * 0x1p-23;
  for (std::size_t i = 0; i < state.p.size(); ++i) EXPECT_NEAR(state.p[i], stock[i], roundings * largest[i]);
}

TEST(PyTorch, EveryStepHasTheSameBits) {
  std::ifstream file(ADAMW_GOLDENS);
  const std::string text{std::istreambuf_iterator<char>(file), {}};
  const boost::json::value root = boost::json::parse(text);
  const boost::json::array& cases = root.at("cases").as_array();
  ASSERT_EQ(cases.size(), 8U);
  for (const boost::json::value& golden : cases) {
    for (const OptimizerKernels& kernels : optimizer_kernels()) {
      SCOPED_TRACE(std::string(kernels.level) + " " + boost::json::serialize(golden.at("kind")) +
                   boost::json::serialize(golden.at("options")));
      follow(golden.as_object(), kernels);
    }
  }
}

}  // namespace
}  // namespace shardplan
