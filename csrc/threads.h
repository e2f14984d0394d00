// Threads that all kernels share.

#pragma once

#include <atomic>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

#if defined(__unix__) || defined(__APPLE__)
#include <pthread.h>
#endif

namespace threads {

// Threads that wait for work. Shares are numbered, so a result never depends on who takes which, or on how many
// threads the system would give.
class Pool {
  public:
    void run(int64_t shares, void (*job)(void *, int64_t), void *argument) {
        std::lock_guard<std::mutex> one_at_a_time(entry_);
        {
            std::unique_lock<std::mutex> lock(mutex_);
            while (static_cast<int64_t>(threads_.size()) < shares - 1) {
                try {
                    threads_.emplace_back(&Pool::wait, this);
                } catch (const std::system_error &) {
                    break;
                }
            }
            job_ = job, argument_ = argument, shares_ = shares, next_ = 0, done_ = 0;
            generation_++;
        }
        wake_.notify_all();
        take();
        std::unique_lock<std::mutex> lock(mutex_);
        finished_.wait(lock, [&] { return done_ == shares_; });
    }

  private:
    void take() {
        std::unique_lock<std::mutex> lock(mutex_);
        while (next_ < shares_) {
            const int64_t share = next_++;
            lock.unlock();
            job_(argument_, share);
            lock.lock();
            if (++done_ == shares_) finished_.notify_all();
        }
    }

    void wait() {
        uint64_t seen = 0;
        for (;;) {
            {
                std::unique_lock<std::mutex> lock(mutex_);
                wake_.wait(lock, [&] { return generation_ != seen; });
                seen = generation_;
            }
            take();
        }
    }

    std::mutex entry_, mutex_;
    std::condition_variable wake_, finished_;
    std::vector<std::thread> threads_;
    void (*job_)(void *, int64_t) = nullptr;
    void *argument_ = nullptr;
    int64_t shares_ = 0, next_ = 0, done_ = 0;
    uint64_t generation_ = 0;
};

inline std::atomic<Pool *> pool{nullptr};   // never freed: its threads wait until the process ends

inline void run(int64_t shares, void (*job)(void *, int64_t), void *argument) {
    if (shares <= 1) return job(argument, 0);
    Pool *found = pool.load();
    if (!found) {
        Pool *made = new Pool;
        if (pool.compare_exchange_strong(found, made)) {
            found = made;
#if defined(__unix__) || defined(__APPLE__)
            static bool once = (pthread_atfork(nullptr, nullptr, [] { pool.store(nullptr); }), true);
            (void)once;              // a forked child has no threads; it starts its own
#endif
        } else {
            delete made;             // it has no threads yet
        }
    }
    found->run(shares, job, argument);
}

// ROWS(work, low, high) on work.threads shares of its rows.
template <class Work, void (*ROWS)(const Work &, int64_t, int64_t)>
void share_out(const Work &work) {
    Work all = work;
    run(work.threads, [](void *argument, int64_t t) {
        const Work &w = *static_cast<Work *>(argument);
        ROWS(w, w.rows * t / w.threads, w.rows * (t + 1) / w.threads);
    }, &all);
}

}  // namespace threads
