//! A mutex lock that cannot fail: a panic aborts the process, so a lock is never poisoned.

use std::sync::{Mutex, MutexGuard, PoisonError};

/// Locks `mutex`. Never hold the guard over an await.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
