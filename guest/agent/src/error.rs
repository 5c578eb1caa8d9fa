//! One error type for everything the agent answers.
//!
//! Owns: the mapping from a cause to a ttrpc status. Must never happen: a code chosen by looking at a message.
//!
//! A message reads `step: object: cause`, as the host's own errors do.

use std::fmt::Display;

pub use ttrpc::Code;

/// The result of everything that can fail.
pub type Result<T> = std::result::Result<T, Error>;

/// A status code of ttrpc and the sentence that goes with it.
#[derive(Debug, Clone)]
pub struct Error {
    /// What the caller may decide by.
    pub code: Code,
    /// What a person reads.
    pub text: String,
}

impl Error {
    /// An error with the given code.
    pub fn new(code: Code, text: impl Into<String>) -> Self {
        Self { code, text: text.into() }
    }

    /// The request itself is wrong.
    pub fn invalid(text: impl Into<String>) -> Self {
        Self::new(Code::INVALID_ARGUMENT, text)
    }

    /// The named object does not exist (any more).
    pub fn not_found(text: impl Into<String>) -> Self {
        Self::new(Code::NOT_FOUND, text)
    }

    /// The object exists, but not in a state that allows this.
    pub fn precondition(text: impl Into<String>) -> Self {
        Self::new(Code::FAILED_PRECONDITION, text)
    }

    /// The guest could not do it.
    pub fn internal(text: impl Into<String>) -> Self {
        Self::new(Code::INTERNAL, text)
    }

    /// Waiting for something took longer than its limit.
    pub fn timeout(text: impl Into<String>) -> Self {
        Self::new(Code::DEADLINE_EXCEEDED, text)
    }
}

impl Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.text)
    }
}

impl std::error::Error for Error {}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        ttrpc::Error::RpcStatus(ttrpc::get_status(error.code, error.text))
    }
}

/// Says what was being done, and to what, when a cause struck.
pub trait Context<T> {
    /// Turns the cause into an `INTERNAL` error that reads `step: object: cause`.
    fn at(self, step: &str, object: impl Display) -> Result<T>;
}

impl<T, E: Display> Context<T> for std::result::Result<T, E> {
    fn at(self, step: &str, object: impl Display) -> Result<T> {
        self.map_err(|cause| Error::internal(format!("{step}: {object}: {cause}")))
    }
}
