// RapidCheck properties with a number of cases of their own.
//
// A run draws other cases each time and a failure prints how to reproduce it; RC_PARAMS="seed=... max_success=..."
// (RapidCheck's variable) fixes the seed or multiplies the cases by max_success / 100.
#pragma once

#include <gtest/gtest.h>
#include <rapidcheck.h>

#include <sstream>
#include <utility>

namespace shardplan::test_support {

template <typename Property>
void check_property(int cases, Property&& property) {
  rc::detail::TestParams params = rc::detail::configuration().testParams;
  params.maxSuccess = cases * params.maxSuccess / 100;
  rc::detail::TestMetadata metadata;
  metadata.id = ::testing::UnitTest::GetInstance()->current_test_info()->name();
  const auto result = rc::detail::checkTestable(std::forward<Property>(property), metadata, params);
  if (result.template is<rc::detail::SuccessResult>()) return;
  std::ostringstream message;
  rc::detail::printResultMessage(result, message);
  ADD_FAILURE() << message.str();
}

}  // namespace shardplan::test_support
