//! A thread that owns what computes; in a simulation, which has one thread, a task.

use std::panic::{AssertUnwindSafe, catch_unwind};

use tokio::sync::{mpsc, oneshot};

use crate::Error;

type Job<T> = Box<dyn FnOnce(&mut T) + Send>;

/// Owns a `T` on a thread of its own and runs jobs on it, one at a time, in order. Cheap to clone; the thread ends with
/// its last handle.
pub struct ComputeThread<T> {
    jobs: mpsc::Sender<Job<T>>,
}

impl<T> Clone for ComputeThread<T> {
    fn clone(&self) -> Self {
        ComputeThread { jobs: self.jobs.clone() }
    }
}

impl<T: Send + 'static> ComputeThread<T> {
    /// Starts the thread; at most `queue` jobs wait.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start(name: &str, queue: usize, value: T) -> Result<Self, Error> {
        Self::start_with(name, queue, value, |_| {})
    }

    /// As [`start`](Self::start), with `begin` before the first job: what a thread says to the system about itself.
    ///
    /// # Errors
    /// If the system gives no thread.
    pub fn start_with(
        name: &str,
        queue: usize,
        mut value: T,
        begin: impl FnOnce(&mut T) + Send + 'static,
    ) -> Result<Self, Error> {
        let (jobs, mut inbox) = mpsc::channel::<Job<T>>(queue);
        let run = move || {
            begin(&mut value);
            while let Some(job) = inbox.blocking_recv() {
                job(&mut value);
            }
        };
        let started = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        started.map(|_| ComputeThread { jobs }).map_err(|e| Error::Compute(format!("no thread: {e}")))
    }

    /// Runs the jobs as a task of the runtime it is called on: a simulation has one thread, and its order is the same again.
    pub fn here(queue: usize, mut value: T) -> Self {
        let (jobs, mut inbox) = mpsc::channel::<Job<T>>(queue);
        tokio::spawn(async move {
            while let Some(job) = inbox.recv().await {
                job(&mut value);
            }
        });
        ComputeThread { jobs }
    }

    /// Queues a job without waiting for its end; waits while the queue is full. A panic in it ends there.
    ///
    /// # Errors
    /// If the thread is gone.
    pub async fn send(&self, job: impl FnOnce(&mut T) + Send + 'static) -> Result<(), Error> {
        let guarded: Job<T> = Box::new(move |value| {
            // A panic is reported by whoever waits for the job's result; the thread goes on.
            let _ = catch_unwind(AssertUnwindSafe(|| job(value)));
        });
        self.jobs.send(guarded).await.map_err(|_| Error::Compute("the compute thread is gone".to_owned()))
    }

    /// Runs a job and waits for its result.
    ///
    /// # Errors
    /// If the thread is gone or the job panicked.
    pub async fn call<R: Send + 'static>(&self, job: impl FnOnce(&mut T) -> R + Send + 'static) -> Result<R, Error> {
        let (reply, answer) = oneshot::channel();
        self.send(move |value| {
            let _ = reply.send(job(value));
        })
        .await?;
        answer.await.map_err(|_| Error::Compute("it panicked; its request is lost, the worker is not".to_owned()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_panic_costs_its_job_alone() {
        let thread = ComputeThread::start("test", 2, 41).unwrap();
        let lost = thread.call(|_| -> i32 { panic!("one request's trouble") }).await;
        assert!(lost.unwrap_err().to_string().contains("panicked"));
        assert_eq!(thread.call(|x| *x + 1).await.unwrap(), 42);
    }
}
