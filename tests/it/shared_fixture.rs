//! Fixtures that several tests share, because setting one up costs more than a test on it. The first test that runs sets
//! it up, the last one that this run of the test binary selects takes it down: the binary's own `--list` counts them, so
//! every filter works, and a run without such a test sets nothing up.
//!
//! A fixture has a thread and a runtime apart from its tests'. The kernel ends a host's namespaces with the thread that
//! created them (`PR_SET_PDEATHSIG`), and a child process is awaited by the runtime that spawned it; a test's thread and
//! runtime end with the test. If the process ends before the last test has run, the thread ends too, and the kernel ends
//! all hosts with it.

use skep::sync::{lock, read, write};
use std::any::Any;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::process::Command;
use std::sync::{Arc, Mutex, RwLock, mpsc};
use std::thread::{self, JoinHandle};
use tokio::runtime::Runtime;

/// What tests stand on.
pub trait Fixture: Sized + Send + Sync + 'static {
    async fn set_up() -> Self;
    async fn take_down(self);
}

/// A fixture of all tests in a module and below it, in a `static` of that module. A test there that does not use it, or is
/// ignored, delays the end of the fixture to the end of the process.
pub struct SharedFixture<T> {
    module: &'static str,
    state: Mutex<State<T>>,
}

struct State<T> {
    /// Tests of this run that have not started; `None` before the first one starts.
    pending: Option<usize>,
    /// Tests that are running or wait for their turn.
    active: usize,
    running: Option<Arc<Running<T>>>,
    /// Why it could not be set up: one attempt per process.
    failure: Option<String>,
}

struct Running<T> {
    fixture: RwLock<T>,
    runtime: Arc<Runtime>,
    /// Ends when `end` is dropped.
    thread: JoinHandle<()>,
    end: mpsc::Sender<()>,
}

impl<T: Fixture> SharedFixture<T> {
    /// `module` is the `module_path!()` of the tests.
    pub const fn new(module: &'static str) -> Self {
        Self { module, state: Mutex::new(State { pending: None, active: 0, running: None, failure: None }) }
    }

    /// Runs a test that others may run beside on the same fixture.
    pub fn concurrent_case(&self, case: impl AsyncFnOnce(&T)) {
        self.run(|running| running.runtime.block_on(case(&read(&running.fixture))));
    }

    /// Runs a test that changes the fixture, or that counts or captures what other tests cause: no other runs meanwhile.
    pub fn exclusive_case(&self, case: impl AsyncFnOnce(&mut T)) {
        self.run(|running| running.runtime.block_on(case(&mut write(&running.fixture))));
    }

    fn run(&self, case: impl FnOnce(&Running<T>)) {
        let running = self.enter();
        let result = catch_unwind(AssertUnwindSafe(|| case(&running)));
        drop(running);
        self.leave();
        if let Err(panic) = result {
            resume_unwind(panic);
        }
    }

    fn enter(&self) -> Arc<Running<T>> {
        let mut state = lock(&self.state);
        let pending = state.pending.unwrap_or_else(|| selected_tests(self.module));
        // A listing in another format than the usual one counts none: then each test has a fixture to itself.
        state.pending = Some(pending.saturating_sub(1));
        if state.running.is_none() && state.failure.is_none() {
            match Running::start() {
                Ok(running) => state.running = Some(Arc::new(running)),
                Err(why) => state.failure = Some(why),
            }
        }
        let State { running: Some(running), .. } = &*state else {
            panic!("the fixture of {} could not be set up: {}", self.module, state.failure.as_deref().unwrap_or_default());
        };
        let running = Arc::clone(running);
        state.active += 1;
        running
    }

    fn leave(&self) {
        let mut state = lock(&self.state);
        state.active -= 1;
        if state.active == 0
            && state.pending == Some(0)
            && let Some(running) = state.running.take()
        {
            Arc::into_inner(running).expect("every test has returned its reference").take_down();
        }
    }
}

impl<T: Fixture> Running<T> {
    fn start() -> Result<Self, String> {
        let runtime = Arc::new(Runtime::new().expect("a runtime"));
        let (send, receive) = mpsc::channel();
        let (end, ended) = mpsc::channel();
        let own = Arc::clone(&runtime);
        let thread = thread::spawn(move || {
            let _ = send.send(catch_unwind(AssertUnwindSafe(|| own.block_on(T::set_up()))));
            drop(own);
            // Hosts live as long as this thread.
            let _ = ended.recv();
        });
        let fixture = receive.recv().expect("the thread sends before it ends").map_err(|panic| text(&*panic))?;
        Ok(Self { fixture: RwLock::new(fixture), runtime, thread, end })
    }

    fn take_down(self) {
        let Self { fixture, runtime, thread, end } = self;
        let fixture = fixture.into_inner().unwrap_or_else(std::sync::PoisonError::into_inner);
        runtime.block_on(fixture.take_down());
        drop(end);
        thread.join().expect("no panic");
    }
}

/// The text of a panic.
fn text(panic: &(dyn Any + Send)) -> String {
    let text = panic.downcast_ref::<String>().cloned();
    text.or_else(|| panic.downcast_ref::<&str>().map(|text| (*text).to_owned())).unwrap_or_default()
}

/// Number of tests in a module and below it that this run of the test binary selects.
fn selected_tests(module: &str) -> usize {
    let program = std::env::current_exe().expect("the test binary");
    let listed = Command::new(program).args(std::env::args_os().skip(1)).arg("--list").output().expect("the test binary runs");
    let below = format!("{}::", module.split_once("::").map_or(module, |(_crate, path)| path));
    let listed = String::from_utf8_lossy(&listed.stdout);
    listed.lines().filter(|line| line.starts_with(&below) && line.ends_with(": test")).count()
}

mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};

    /// Counts how often it was set up, and how often taken down.
    struct Counting<const ID: usize>;

    static SET_UP: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];
    static TAKEN_DOWN: [AtomicUsize; 2] = [AtomicUsize::new(0), AtomicUsize::new(0)];

    impl<const ID: usize> Fixture for Counting<ID> {
        async fn set_up() -> Self {
            SET_UP[ID].fetch_add(1, Ordering::SeqCst);
            Self
        }
        async fn take_down(self) {
            TAKEN_DOWN[ID].fetch_add(1, Ordering::SeqCst);
        }
    }

    fn counts(id: usize) -> (usize, usize) {
        (SET_UP[id].load(Ordering::SeqCst), TAKEN_DOWN[id].load(Ordering::SeqCst))
    }

    #[test]
    fn the_last_case_takes_the_fixture_down_though_one_failed() {
        let shared = SharedFixture::<Counting<0>>::new("it::none");
        lock(&shared.state).pending = Some(3);
        shared.concurrent_case(async |_| {});
        let failed = catch_unwind(AssertUnwindSafe(|| shared.exclusive_case(async |_| panic!("this case fails"))));
        assert_eq!(text(&*failed.expect_err("the case's panic")), "this case fails");
        assert_eq!(counts(0), (1, 0), "a case is still to run");
        shared.exclusive_case(async |_| {});
        assert_eq!(counts(0), (1, 1));
    }

    #[test]
    fn a_case_that_was_not_counted_has_a_fixture_to_itself() {
        let shared = SharedFixture::<Counting<1>>::new("it::none");
        shared.concurrent_case(async |_| {});
        shared.concurrent_case(async |_| {});
        assert_eq!(counts(1), (2, 2));
    }

    struct Broken;

    impl Fixture for Broken {
        async fn set_up() -> Self {
            panic!("no engine")
        }
        async fn take_down(self) {}
    }

    #[test]
    fn every_case_names_why_the_fixture_could_not_be_set_up() {
        let shared = SharedFixture::<Broken>::new("it::none");
        for _ in 0..2 {
            let failed = catch_unwind(AssertUnwindSafe(|| shared.concurrent_case(async |_| {})));
            assert!(text(&*failed.expect_err("no fixture")).ends_with("could not be set up: no engine"));
        }
    }

    #[test]
    fn selected_tests_are_counted_by_module() {
        let here = selected_tests(module_path!());
        assert!((1..=4).contains(&here), "at least this one, and none of another module: {here}");
        assert_eq!(selected_tests("it::shared_fixture::test"), 0, "a whole module name");
    }
}
