#include "tools/train/stop_signal.h"

#include <csignal>

namespace shardplan::train {
namespace {

volatile std::sig_atomic_t watched = 0;
volatile std::sig_atomic_t asked = 0;

void ask(int /*signal*/) {
  asked = 1;
}

}  // namespace

void watch_stop_signal() {
  struct sigaction action{};
  action.sa_handler = ask;
  action.sa_flags = SA_RESTART;
  sigemptyset(&action.sa_mask);
  sigaction(SIGTERM, &action, nullptr);
  watched = 1;
}

bool watches_stop_signal() {
  return watched != 0;
}

bool stop_asked() {
  return asked != 0;
}

}  // namespace shardplan::train
