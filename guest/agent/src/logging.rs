//! Log lines on the guest's console.
//!
//! Owns: the console. Must never happen: the agent waits for a console nobody reads, or a flood of lines drowns the
//! kernel's. Lines that do not fit are dropped and counted.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::os::fd::AsFd;
use std::os::unix::fs::OpenOptionsExt;
use std::sync::Mutex;
use std::time::Instant;

use log::{LevelFilter, Log, Metadata, Record};

use crate::sync::lock;

/// Lines at once, and lines per second after that.
const BURST: f64 = 200.0;
const RATE: f64 = 50.0;
/// Bytes of one line.
const LINE: usize = 1024;

struct Console {
    file: File,
    start: Instant,
    bucket: Mutex<Bucket>,
}

/// A token bucket that counts what it refused.
struct Bucket {
    tokens: f64,
    filled: Instant,
    refused: u64,
}

impl Bucket {
    fn new(now: Instant) -> Self {
        Self { tokens: BURST, filled: now, refused: 0 }
    }

    /// Whether a line may be written now; if so, how many were refused before it.
    fn take(&mut self, now: Instant) -> Option<u64> {
        let gained = now.saturating_duration_since(self.filled).as_secs_f64() * RATE;
        self.tokens = (self.tokens + gained).min(BURST);
        self.filled = now;
        if self.tokens < 1.0 {
            self.refused += 1;
            return None;
        }
        self.tokens -= 1.0;
        Some(std::mem::take(&mut self.refused))
    }
}

impl Log for Console {
    fn enabled(&self, metadata: &Metadata<'_>) -> bool {
        metadata.level() <= log::max_level()
    }

    fn log(&self, record: &Record<'_>) {
        if !self.enabled(record.metadata()) {
            return;
        }
        let now = Instant::now();
        let Some(refused) = lock(&self.bucket).take(now) else { return };
        let seconds = now.duration_since(self.start).as_secs_f64();
        let refused = if refused > 0 { format!(" ({refused} lines dropped)") } else { String::new() };
        let text = format!("[{seconds:9.3}] kata-agent {}: {}{refused}", record.level(), record.args());
        // A console that is full or gone is no reason to do anything else.
        let _ = (&self.file).write_all(&line(&text));
    }

    fn flush(&self) {}
}

/// One line: bounded, and with nothing in it that could steer a terminal or pretend to be another line.
fn line(text: &str) -> Vec<u8> {
    let clean = text.chars().map(|c| if c.is_control() { '\u{fffd}' } else { c });
    let mut line: String = clean.take(LINE).collect();
    line.push_str("\r\n");
    line.into_bytes()
}

/// Sends log lines to the console (`init`) or to standard error.
pub fn start(init: bool, level: LevelFilter) {
    let now = Instant::now();
    let Some(file) = open(init) else { return };
    let console = Console { file, start: now, bucket: Mutex::new(Bucket::new(now)) };
    if log::set_boxed_logger(Box::new(console)).is_ok() {
        log::set_max_level(level);
    }
}

fn open(init: bool) -> Option<File> {
    if init {
        let flags = libc::O_NONBLOCK | libc::O_NOCTTY | libc::O_CLOEXEC;
        return OpenOptions::new().write(true).custom_flags(flags).open("/dev/console").ok();
    }
    std::io::stderr().as_fd().try_clone_to_owned().ok().map(File::from)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn a_flood_is_cut_and_counted() {
        let start = Instant::now();
        let mut bucket = Bucket::new(start);
        let written = (0..1000).filter(|_| bucket.take(start).is_some()).count();
        assert_eq!(written, 200);
        assert_eq!(bucket.take(start + Duration::from_secs(1)), Some(800));
        let more = (0..100).filter(|_| bucket.take(start + Duration::from_secs(1)).is_some()).count();
        assert_eq!(more, 49);
    }

    #[test]
    fn control_characters_do_not_reach_the_console() {
        assert_eq!(line("a\nb\x1b[2J"), "a\u{fffd}b\u{fffd}[2J\r\n".as_bytes());
        assert!(line(&"x".repeat(5000)).len() < 1100);
    }
}
