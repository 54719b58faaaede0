// Work in parts, on several threads.

#pragma once

#include <cstdint>
#include <exception>

namespace crossearth {

// Runs task(0) … task(count - 1) on up to `threads` threads; the first exception is thrown on. OpenMP, because
// torch's threads are OpenMP's too: one pool, instead of a second one that the first one's waiting threads
// keep from the processors.
template <typename Task>
void run_tasks(std::int64_t count, int threads, const Task& task) {
    std::exception_ptr failure;
#pragma omp parallel for schedule(dynamic) num_threads(threads)
    for (std::int64_t i = 0; i < count; ++i) {
        try {
            task(i);
        } catch (...) {
#pragma omp critical
            if (!failure) failure = std::current_exception();
        }
    }
    if (failure) std::rethrow_exception(failure);
}

}  // namespace crossearth
