// Engine and client together: the worse of the two moments of a step.
#include "planner/activations/client_memory.h"

#include <gtest/gtest.h>

namespace shardplan {
namespace {

using autograd::Pass;

// activation, loss, gradient, workspace
Activity two_passes() {
  return {.spans = {{"embed", Pass::forward, 1, {10, 0, 0, 0}, {10, 0, 0, 0}},
                    {"layers.0", Pass::forward, 5, {100, 0, 0, 0}, {130, 0, 0, 0}},
                    {"head", Pass::forward, 1, {0, 40, 0, 0}, {0, 60, 0, 0}},
                    {"head", Pass::backward, 1, {20, -40, 8, 0}, {20, 30, 8, 0}},
                    {"layers.0", Pass::backward, 5, {-100, 0, 50, 0}, {10, 0, 50, 5}}},
          .saved = {}};
}

DeviceMemory device_with(Bytes after_step) {
  DeviceMemory device;
  device.allocated_after_step = after_step;
  return device;
}

TEST(ClientMemory, ThePeakIsTheWorstMoment) {
  const ActivityPeak peak = peak_of(two_passes());
  // Behind the forward of the head: 510 of activations and 40 of the loss; then 20, 30 and 8 more.
  EXPECT_EQ(sum(peak.held), 510 + 40 + 20 + 30 + 8);
  EXPECT_EQ(peak.unit, "head");
  EXPECT_EQ(peak.pass, Pass::backward);
  EXPECT_EQ(sum(after_forward(two_passes())), 550);
}

TEST(ClientMemory, EqualUnitsAreNamedByTheirPlace) {
  Activity growing{.spans = {{"layers.3", Pass::forward, 4, {10, 0, 0, 0}, {15, 0, 0, 0}}}, .saved = {}};
  EXPECT_EQ(peak_of(growing).unit, "layers.6");
  growing.spans[0].pass = Pass::backward;
  EXPECT_EQ(peak_of(growing).unit, "layers.3");
  growing.spans[0].net = {-10, 0, 0, 0};
  EXPECT_EQ(peak_of(growing).unit, "layers.6");
}

TEST(ClientMemory, PartsSumToThePeak) {
  DeviceMemory device = device_with(Bytes{1000});
  EngineHolds engine;
  engine.computing.parameters = Bytes{1000};
  engine.updating = engine.computing;
  add_client(device, engine,
             {.peak = peak_of(two_passes()), .resident_at_peak = {0, 0, 0, 7}, .resident_after_step = {0, 0, 0, 5}});
  EXPECT_EQ(device.peak_allocated, Bytes{1000 + 608 + 7});
  EXPECT_EQ(sum(device.at_peak), *device.peak_allocated);
  EXPECT_EQ(device.at_peak.activations, Bytes{530});
  EXPECT_EQ(device.at_peak.loss, Bytes{70});
  EXPECT_EQ(device.at_peak.gradients, Bytes{8});
  EXPECT_EQ(device.at_peak.workspace, Bytes{7});
  EXPECT_EQ(device.allocated_after_step, Bytes{1005});
  EXPECT_EQ(device.peak_at, "backward of head");
}

// What is kept beside is in the line that it is of: {activation, loss, gradient, workspace}.
TEST(ClientMemory, WhatIsKeptBesideHasAClass) {
  DeviceMemory device = device_with(Bytes{1000});
  EngineHolds engine;
  engine.computing.parameters = Bytes{1000};
  engine.computing.gradients = Bytes{100};
  engine.updating = engine.computing;
  add_client(device, engine,
             {.peak = peak_of(two_passes()), .resident_at_peak = {1, 2, 3, 4}, .resident_after_step = {0, 2, 0, 4}});
  EXPECT_EQ(device.at_peak.activations, Bytes{530 + 1});
  EXPECT_EQ(device.at_peak.loss, Bytes{70 + 2});
  EXPECT_EQ(device.at_peak.gradients, Bytes{100 + 8 + 3});
  EXPECT_EQ(device.at_peak.workspace, Bytes{4});
  EXPECT_EQ(device.peak_allocated, Bytes{1000 + 100 + 608 + 10});
  EXPECT_EQ(device.allocated_after_step, Bytes{1006});
}

TEST(ClientMemory, TheUpdateMayBeWorse) {
  DeviceMemory device = device_with(Bytes{1000});
  EngineHolds engine;
  engine.computing.parameters = Bytes{1000};
  engine.updating.parameters = Bytes{1000};
  engine.updating.optimizer_states = Bytes{609};
  add_client(device, engine,
             {.peak = peak_of(two_passes()), .resident_at_peak = {0, 0, 0, 7}, .resident_after_step = {0, 0, 0, 7}});
  EXPECT_EQ(device.peak_allocated, Bytes{1616});
  EXPECT_EQ(device.peak_at, "the optimizer's update");
}

}  // namespace
}  // namespace shardplan
