//! Out-of-memory kills of containers, in the order they happened.
//!
//! Owns: the queue `GetOOMEvent` reads. Must never happen: a process's end is announced before the kill that ended it.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use tokio::sync::Notify;
use tokio::task::AbortHandle;

use super::{value, Cgroup};
use crate::sync::lock;

/// Events kept while nobody asks for them.
const KEPT: usize = 1024;

/// Containers that had a process killed.
#[derive(Default)]
pub struct Queue {
    containers: Mutex<VecDeque<String>>,
    arrived: Notify,
}

impl Queue {
    fn push(&self, container: &str) {
        let mut containers = lock(&self.containers);
        if containers.len() == KEPT {
            containers.pop_front();
        }
        containers.push_back(container.to_owned());
        drop(containers);
        self.arrived.notify_one();
    }

    /// Waits for the next event. A cancelled wait takes none.
    pub async fn next(&self) -> String {
        loop {
            if let Some(container) = lock(&self.containers).pop_front() {
                return container;
            }
            self.arrived.notified().await;
        }
    }
}

/// The count of kills in one container.
pub struct Watch {
    container: String,
    cgroup: Cgroup,
    queue: Arc<Queue>,
    seen: AtomicU64,
}

impl Watch {
    /// Watches a container's group; call `follow` once the group exists.
    pub fn new(container: &str, cgroup: Cgroup, queue: Arc<Queue>) -> Arc<Self> {
        Arc::new(Self { container: container.to_owned(), cgroup, queue, seen: AtomicU64::new(0) })
    }

    /// Looks now, and queues an event if there was a kill since the last look.
    pub fn check(&self) {
        // Gone with the container: then there is nothing to report.
        let events = self.cgroup.read("memory.events").unwrap_or_default();
        let kills = value(&events, "oom_kill").unwrap_or(0);
        if self.seen.fetch_max(kills, Ordering::Relaxed) < kills {
            log::warn!("container {}: out of memory, {kills} processes killed so far", self.container);
            self.queue.push(&self.container);
        }
    }

    /// Looks whenever the kernel says that the file changed. Ends when aborted.
    pub fn follow(self: &Arc<Self>) -> Option<AbortHandle> {
        let changes = self.cgroup.watch("memory.events").inspect_err(|error| {
            log::warn!("container {}: no notice of OOM kills: {error}", self.container);
        });
        let (watch, changes) = (self.clone(), changes.ok()?);
        let task = tokio::spawn(async move {
            while changes.changed().await.is_ok() {
                watch.check();
            }
        });
        Some(task.abort_handle())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_come_in_order_and_wake_the_waiter() {
        let queue = Arc::new(Queue::default());
        let waiter = tokio::spawn({
            let queue = queue.clone();
            async move { (queue.next().await, queue.next().await) }
        });
        tokio::task::yield_now().await;
        queue.push("a");
        queue.push("b");
        assert_eq!(waiter.await.unwrap(), ("a".into(), "b".into()));
    }

    #[tokio::test]
    async fn the_queue_is_bounded() {
        let queue = Queue::default();
        for number in 0..KEPT + 10 {
            queue.push(&number.to_string());
        }
        assert_eq!(queue.next().await, "10");
    }
}
