// fio, where it is installed: what a disk can do, by a program that others know.
#pragma once

#include <optional>
#include <string>

namespace shardplan::bench {

// The time, as fio says it, of the jobs that `arguments` ask for, past the page cache; of reads and writes that run at
// once, the slower one's. Nothing where there is no fio.
std::optional<double> fio_seconds(const std::string& arguments);

}  // namespace shardplan::bench
