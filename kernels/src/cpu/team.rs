//! Threads that wait for the next operation instead of being woken for it.
//!
//! An operation of a streaming step takes tens of microseconds, and so does waking a thread. Within [`team`] the crew, threads
//! that the process keeps, serves one caller: they take parts of its operations as those come, look out for the next one for a
//! moment, and only then sleep. Nothing waits for a thread that has not come: parts are claimed, and the caller claims them too.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// How long a thread looks out before it sleeps: longer than what lies between two operations of a step.
const ALERT: Duration = Duration::from_micros(200);

type Part<'a> = dyn Fn(usize) + Sync + 'a;

struct Crew {
    /// Whether somebody leads it. One at a time: a second caller works with the pool, as without a crew.
    led: AtomicBool,
    /// Threads there are, beside the leader.
    hired: AtomicU32,
    /// How many of them serve the leader.
    serving: AtomicU32,
    /// Parts of the current operation in the upper half, parts claimed in the lower.
    claims: AtomicU64,
    /// What the operation does; read only between a claim and its `done`.
    operation: UnsafeCell<Option<*const Part<'static>>>,
    done: AtomicU32,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    asleep: AtomicU32,
    door: Mutex<()>,
    bell: Condvar,
}

// SAFETY: `operation` is written by the leader alone, of whom there is one, and only while every claimed part is done and none
// is left to claim; what it points to is `Sync`.
unsafe impl Sync for Crew {}

static CREW: Crew = Crew {
    led: AtomicBool::new(false),
    hired: AtomicU32::new(0),
    serving: AtomicU32::new(0),
    claims: AtomicU64::new(0),
    operation: UnsafeCell::new(None),
    done: AtomicU32::new(0),
    panic: Mutex::new(None),
    asleep: AtomicU32::new(0),
    door: Mutex::new(()),
    bell: Condvar::new(),
};

#[derive(Clone, Copy)]
enum Role {
    Alone,
    Leader,
    /// Inside a part: what it calls runs on this thread.
    Busy,
}

thread_local! {
    static ROLE: Cell<Role> = const { Cell::new(Role::Alone) };
}

/// Sets this thread's role until dropped.
struct Acting(Role);

impl Acting {
    fn as_role(role: Role) -> Acting {
        Acting(ROLE.replace(role))
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        ROLE.set(self.0);
    }
}

/// Runs `work` on this thread, with as many threads at hand for the operations in it as the current pool has, unless they serve
/// another caller. For work of many short operations, such as a step of a stream; results are the same without.
pub fn team<R>(work: impl FnOnce() -> R) -> R {
    struct Leave;
    impl Drop for Leave {
        fn drop(&mut self) {
            CREW.led.store(false, Ordering::Release);
        }
    }
    let helpers = rayon::current_num_threads() - 1;
    if helpers == 0 || !matches!(ROLE.get(), Role::Alone) || CREW.led.swap(true, Ordering::Acquire) {
        return work();
    }
    let _leave = Leave;
    CREW.hire(u32::try_from(helpers).unwrap_or(u32::MAX));
    let _role = Acting::as_role(Role::Leader);
    work()
}

/// Calls `part(i)` for each `i` below `n`, on all threads.
pub(super) fn run(n: usize, part: &Part) {
    match (ROLE.get(), u32::try_from(n)) {
        _ if n < 2 => (0..n).for_each(part),
        (Role::Busy, _) => (0..n).for_each(part),
        (Role::Leader, Ok(n)) => CREW.run(n, part),
        _ => {
            use rayon::prelude::*;
            (0..n).into_par_iter().for_each(part);
        }
    }
}

/// What an operation must be worth, in simple steps of arithmetic, before a second thread helps.
pub(super) fn grain() -> usize {
    if matches!(ROLE.get(), Role::Leader) { 1 << 13 } else { 1 << 16 }
}

impl Crew {
    /// Has `helpers` threads serve, or as many as the system grants. For the leader.
    fn hire(&'static self, helpers: u32) {
        self.serving.store(helpers, Ordering::SeqCst);
        for number in self.hired.load(Ordering::Relaxed)..helpers {
            let thread = std::thread::Builder::new().name(format!("swara-{}", number + 1));
            if thread.spawn(move || self.serve(number)).is_err() {
                return;
            }
            self.hired.store(number + 1, Ordering::Relaxed);
        }
    }

    fn run(&self, n: u32, part: &Part) {
        // SAFETY: only the lifetime changes; this function returns after the last call.
        let part: *const Part<'static> = unsafe { std::mem::transmute(std::ptr::from_ref(part)) };
        // SAFETY: all parts of the operation before are done, so that nobody reads.
        unsafe { *self.operation.get() = Some(part) };
        self.done.store(0, Ordering::Relaxed);
        self.claims.store((n as u64) << 32, Ordering::SeqCst);
        if self.asleep.load(Ordering::SeqCst) > 0 {
            self.wake();
        }
        {
            let _busy = Acting::as_role(Role::Busy);
            while self.help() {}
        }
        let mut spins = 0;
        while self.done.load(Ordering::Acquire) < n {
            spins += 1;
            if spins < 1000 { std::hint::spin_loop() } else { std::thread::yield_now() }
        }
        if let Some(panic) = lock(&self.panic).take() {
            resume_unwind(panic);
        }
    }

    /// Claims a part and runs it; false if there is none.
    fn help(&self) -> bool {
        let claim = |claims: u64| ((claims as u32) < (claims >> 32) as u32).then_some(claims + 1);
        let Ok(claims) = self.claims.fetch_update(Ordering::SeqCst, Ordering::SeqCst, claim) else { return false };
        // SAFETY: of a claimed part the operation is there and stays until it is done.
        let result = unsafe { (*self.operation.get()).map(|part| catch_unwind(AssertUnwindSafe(|| (*part)(claims as u32 as usize)))) };
        if let Some(Err(panic)) = result {
            lock(&self.panic).get_or_insert(panic);
        }
        self.done.fetch_add(1, Ordering::Release);
        true
    }

    fn has_work(&self) -> bool {
        let claims = self.claims.load(Ordering::SeqCst);
        (claims as u32) < (claims >> 32) as u32
    }

    fn serve(&self, number: u32) {
        ROLE.set(Role::Busy);
        let wanted = || self.has_work() && number < self.serving.load(Ordering::SeqCst);
        loop {
            let alert = Instant::now();
            while !wanted() {
                if alert.elapsed() > ALERT {
                    self.sleep(wanted);
                }
                (0..16).for_each(|_| std::hint::spin_loop());
            }
            while self.help() {}
        }
    }

    fn sleep(&self, wanted: impl Fn() -> bool) {
        let mut door = lock(&self.door);
        self.asleep.fetch_add(1, Ordering::SeqCst);
        while !wanted() {
            door = self.bell.wait(door).unwrap_or_else(PoisonError::into_inner);
        }
        self.asleep.fetch_sub(1, Ordering::SeqCst);
    }

    fn wake(&self) {
        let _door = lock(&self.door);
        self.bell.notify_all();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicUsize;

    fn pool(threads: usize) -> rayon::ThreadPool {
        rayon::ThreadPoolBuilder::new().num_threads(threads).build().unwrap()
    }

    #[test]
    fn every_part_runs_once_however_many_threads_and_operations() {
        for threads in [1, 2, 3, 5] {
            pool(threads).install(|| {
                team(|| {
                    for n in (0..400).map(|i| i * 7 % 23) {
                        let ran: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
                        run(n, &|i| {
                            ran[i].fetch_add(1, Ordering::Relaxed);
                            // An operation inside a part is the part's own.
                            run(3, &|_| {
                                ran[i].fetch_add(10, Ordering::Relaxed);
                            });
                        });
                        assert!(ran.iter().all(|r| r.load(Ordering::Relaxed) == 31));
                        if n == 5 {
                            std::thread::sleep(2 * ALERT);
                        }
                    }
                })
            });
        }
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_team_goes_on() {
        pool(2).install(|| {
            team(|| {
                for bad in 0..8 {
                    let caught = catch_unwind(AssertUnwindSafe(|| run(8, &|i| assert!(i != bad, "part {i}"))));
                    assert!(caught.is_err());
                    let sum = AtomicUsize::new(0);
                    run(8, &|i| {
                        sum.fetch_add(i, Ordering::Relaxed);
                    });
                    assert_eq!(sum.into_inner(), 28);
                }
            })
        });
        assert!(matches!(ROLE.get(), Role::Alone));
    }

    #[test]
    fn teams_of_many_sessions_share_a_pool() {
        let pool = pool(2);
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        pool.install(|| {
                            team(|| {
                                let sum = AtomicUsize::new(0);
                                run(100, &|i| {
                                    sum.fetch_add(i, Ordering::Relaxed);
                                });
                                assert_eq!(sum.into_inner(), 4950);
                            })
                        });
                    }
                });
            }
        });
    }
}
