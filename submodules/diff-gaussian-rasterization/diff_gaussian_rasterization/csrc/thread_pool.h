// A pool of sleeping threads. Waiting threads never spin: on a shared machine that costs more than it wins.
#pragma once

#include <cstdint>
#include <functional>

namespace gs {

// Calls task(0) ... task(count - 1), each once, on up to `threads` threads, the caller's among them. Tasks that start
// late take what is left, so the order of tasks is not fixed; they must write to separate memory. One call runs at a
// time; tasks must not throw.
void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task);

}  // namespace gs
