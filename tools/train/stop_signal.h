// SIGTERM as a wish: schedulers send it some time before they kill. For runs that can save.
#pragma once

namespace shardplan::train {

// From now on SIGTERM ends nothing by itself, in this process and in those that it forks.
void watch_stop_signal();
bool watches_stop_signal();
// Whether one has come.
bool stop_asked();

}  // namespace shardplan::train
