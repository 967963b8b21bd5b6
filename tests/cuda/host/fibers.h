// The threads of a block as fibers of one thread, which take turns at barriers: many times faster than threads where
// nobody looks for races. A fiber runs until it has to wait.
#pragma once
#include <csetjmp>
#include <cstddef>
#include <functional>
#include <memory>
#include <vector>

#include <ucontext.h>

class Fibers {
 public:
  // Calls `run(t)` for t below `count`, each in a fiber; `resumed(t)` before a fiber goes on.
  static void run_all(int count, const std::function<void(int)>& run, const std::function<void(int)>& resumed) {
    static std::vector<std::unique_ptr<char[]>> stacks;  // kept: the next kernel needs them again
    while (int(stacks.size()) < count) stacks.emplace_back(new char[kStack]);
    std::vector<Fiber> fibers(static_cast<size_t>(count));
    body_ = &run;
    for (int left = count; left > 0;)
      for (int t = 0; t < count; ++t) {
        Fiber& fiber = fibers[size_t(t)];
        if (fiber.done) continue;
        current_ = &fiber;
        resumed(t);
        if (_setjmp(scheduler_) == 0) {
          if (fiber.started) _longjmp(fiber.place, 1);
          fiber.started = true;
          fiber.index = t;
          getcontext(&fiber.context);
          fiber.context.uc_stack.ss_sp = stacks[size_t(t)].get();
          fiber.context.uc_stack.ss_size = kStack;
          fiber.context.uc_link = nullptr;
          makecontext(&fiber.context, &Fibers::enter, 0);
          setcontext(&fiber.context);
        }
        if (fiber.done) --left;
      }
  }

  // Lets the others go on.
  static void yield() {
    if (_setjmp(current_->place) == 0) _longjmp(scheduler_, 1);
  }

 private:
  static constexpr size_t kStack = 256 * 1024;

  struct Fiber {
    ucontext_t context;
    std::jmp_buf place;
    int index = 0;
    bool started = false, done = false;
  };

  static void enter() {
    (*body_)(current_->index);
    current_->done = true;
    _longjmp(scheduler_, 1);
  }

  static inline std::jmp_buf scheduler_;
  static inline Fiber* current_ = nullptr;
  static inline const std::function<void(int)>* body_ = nullptr;
};

// std::barrier for fibers.
class Meeting {
 public:
  explicit Meeting(std::ptrdiff_t count) : count_(count) {}

  void arrive_and_wait() {
    const unsigned round = round_;
    if (++arrived_ == count_) {
      arrived_ = 0;
      ++round_;
      return;
    }
    while (round_ == round) Fibers::yield();
  }

 private:
  std::ptrdiff_t count_, arrived_ = 0;
  unsigned round_ = 0;
};
