//! Parts without which packets go nowhere. One that panics ends the process: whoever started it starts it anew, and a
//! process that lives on without one of them would look healthy.

use std::io;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread::JoinHandle;

use tokio::task::{AbortHandle, JoinHandle as Task};

/// A running task that ends the process if it panics.
pub(crate) struct VitalTask {
    abort: AbortHandle,
    watcher: Task<()>,
}

impl VitalTask {
    /// Starts it on the running tokio runtime.
    pub(crate) fn spawn(
        part: &'static str,
        task: impl Future<Output = ()> + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(task);
        let abort = task.abort_handle();
        let watch = async move {
            if task.await.is_err_and(|error| error.is_panic()) {
                end(part);
            }
        };
        let watcher = tokio::spawn(watch);
        Self { abort, watcher }
    }

    /// Ends it and waits until it has ended.
    pub(crate) async fn stop(self) {
        self.abort.abort();
        // The watcher has nothing to tell.
        let _ = self.watcher.await;
    }
}

/// Starts a thread that ends the process if it panics.
pub(crate) fn spawn_thread(
    part: &'static str,
    run: impl FnOnce() + Send + 'static,
) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new()
        .name(part.into())
        .spawn(move || {
            // Nothing that the closure leaves behind is looked at again.
            if catch_unwind(AssertUnwindSafe(run)).is_err() {
                end(part);
            }
        })
}

fn end(part: &str) -> ! {
    tracing::error!(
        part,
        "a vital part has panicked; ending the process, to be started anew"
    );
    std::process::abort()
}

#[cfg(test)]
mod tests {
    use std::os::unix::process::ExitStatusExt as _;
    use std::process::Command;

    use super::*;

    const INSIDE: &str = "CULVERT_TEST_VITAL_PART";

    /// Runs the test `name` alone in a process of its own that is to panic, and returns the signal that ended it.
    fn signal_of(name: &str) -> Option<i32> {
        let test = std::env::current_exe().unwrap();
        let output = Command::new(test)
            .args(["--exact", name, "--test-threads=1"])
            .env(INSIDE, "1")
            .output()
            .unwrap();
        output.status.signal()
    }

    fn is_inside() -> bool {
        std::env::var_os(INSIDE).is_some()
    }

    #[test]
    fn a_thread_that_panics_ends_the_process() {
        if is_inside() {
            let thread = spawn_thread("outbound", || panic!("as the test wants it"));
            return thread.unwrap().join().unwrap();
        }
        let signal = signal_of("vital::tests::a_thread_that_panics_ends_the_process");
        assert_eq!(signal, Some(nix::libc::SIGABRT));
    }

    #[tokio::test]
    async fn a_task_that_panics_ends_the_process_and_one_that_is_stopped_does_not() {
        let forever = VitalTask::spawn("driver", std::future::pending());
        forever.stop().await;
        if is_inside() {
            let task = VitalTask::spawn("driver", async { panic!("as the test wants it") });
            return task.watcher.await.unwrap();
        }
        let signal = signal_of(
            "vital::tests::a_task_that_panics_ends_the_process_and_one_that_is_stopped_does_not",
        );
        assert_eq!(signal, Some(nix::libc::SIGABRT));
    }
}
