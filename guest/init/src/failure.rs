//! A step that failed, and the end of the machine when one does.

use std::fmt;
use std::fs::OpenOptions;
use std::io::Write;

use rustix::io::Errno;
use rustix::system::{RebootCommand, reboot};

/// `step: object: cause; hint`, the form of every error of the project.
#[derive(Debug)]
pub struct Failure {
    step: &'static str,
    object: String,
    cause: String,
    hint: &'static str,
}

impl Failure {
    /// A failure that is no system call's.
    #[must_use]
    pub fn new(step: &'static str, object: impl Into<String>, cause: impl Into<String>) -> Self {
        Self { step, object: object.into(), cause: cause.into(), hint: "" }
    }

    /// The same with advice for whoever reads the console.
    #[must_use]
    pub fn hint(mut self, hint: &'static str) -> Self {
        self.hint = hint;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}: {}", self.step, self.object, self.cause)?;
        if self.hint.is_empty() { Ok(()) } else { write!(f, "; {}", self.hint) }
    }
}

/// Names the step and the object of a failed system call.
pub trait During<T> {
    /// # Errors
    /// The system call's, as a [`Failure`].
    fn during(self, step: &'static str, object: &str) -> Result<T, Failure>;
}

impl<T> During<T> for Result<T, Errno> {
    fn during(self, step: &'static str, object: &str) -> Result<T, Failure> {
        self.map_err(|errno| Failure::new(step, object, errno.to_string()))
    }
}

impl<T> During<T> for std::io::Result<T> {
    fn during(self, step: &'static str, object: &str) -> Result<T, Failure> {
        self.map_err(|error| Failure::new(step, object, error.to_string()))
    }
}

/// One line on the kernel log. The console may not exist yet; the kernel replays its log to each console that appears.
pub fn say(program: &str, text: impl fmt::Display) {
    if let Ok(mut log) = OpenOptions::new().write(true).open("/dev/kmsg") {
        // One write is one record; <2> is "critical", which `quiet` does not hide. Nobody is left to hear of a failure.
        let _ = log.write_all(format!("<2>{program}: {text}\n").as_bytes());
    }
}

/// Says why, and restarts the machine: a first process that returned would be a kernel panic without a reason.
pub fn die(program: &str, failure: &Failure) -> ! {
    say(program, failure);
    let _ = reboot(RebootCommand::Restart);
    std::process::exit(1)
}
