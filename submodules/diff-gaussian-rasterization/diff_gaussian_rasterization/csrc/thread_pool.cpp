#include "thread_pool.h"

#include <algorithm>
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if !defined(_WIN32)
#include <unistd.h>
#endif

namespace gs {
namespace {

class ThreadPool {
  public:
    void run(int64_t count, int helpers, const std::function<void(int64_t)>& task) {
        const std::lock_guard<std::mutex> one_call(calls_);
        grow(helpers);
        helpers = std::min<int>(helpers, static_cast<int>(workers_.size()));
        {
            const std::lock_guard<std::mutex> lock(mutex_);
            task_ = &task;
            count_ = count;
            next_.store(0, std::memory_order_relaxed);
            wanted_ = busy_ = helpers;
            ++round_;
        }
        wake_.notify_all();
        work();
        std::unique_lock<std::mutex> lock(mutex_);
        done_.wait(lock, [this] { return busy_ == 0; });
    }

  private:
    void work() {
        for (int64_t i; (i = next_.fetch_add(1, std::memory_order_relaxed)) < count_;) (*task_)(i);
    }

    void grow(int helpers) {
        while (static_cast<int>(workers_.size()) < helpers) {
            const int rank = static_cast<int>(workers_.size());
            try {
                workers_.emplace_back([this, rank, seen = round_]() mutable { serve(rank, seen); });
            } catch (const std::system_error&) {
                return;  // the machine gives no more threads: those at hand do the work
            }
            workers_.back().detach();
        }
    }

    void serve(int rank, uint64_t seen) {
        std::unique_lock<std::mutex> lock(mutex_);
        for (;;) {
            wake_.wait(lock, [&] { return round_ != seen; });
            seen = round_;
            if (rank >= wanted_) continue;
            lock.unlock();
            work();
            lock.lock();
            if (--busy_ == 0) done_.notify_one();
        }
    }

    std::mutex calls_, mutex_;
    std::condition_variable wake_, done_;
    std::vector<std::thread> workers_;
    const std::function<void(int64_t)>* task_ = nullptr;
    std::atomic<int64_t> next_{0};
    int64_t count_ = 0;
    uint64_t round_ = 0;
    int wanted_ = 0, busy_ = 0;
};

// Threads do not survive a fork, so a child process gets a pool of its own. Pools are never destroyed: their threads
// sleep until the process ends.
ThreadPool& pool() {
    static std::mutex mutex;
    static ThreadPool* current = nullptr;
#if defined(_WIN32)
    const long process = 0;
#else
    const long process = static_cast<long>(getpid());
#endif
    static long owner = -1;
    const std::lock_guard<std::mutex> lock(mutex);
    if (owner != process) {
        current = new ThreadPool;
        owner = process;
    }
    return *current;
}

}  // namespace

void parallel_for(int64_t count, int threads, const std::function<void(int64_t)>& task) {
    const int helpers = static_cast<int>(std::min<int64_t>(threads, count)) - 1;
    if (helpers > 0)
        pool().run(count, helpers, task);
    else
        for (int64_t i = 0; i < count; ++i) task(i);
}

}  // namespace gs
