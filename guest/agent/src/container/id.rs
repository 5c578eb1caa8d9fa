//! Names that come from outside and become names of files.

use crate::error::{Error, Result};
use crate::paths::RESERVED;

/// Longer than any id containerd accepts (76), short enough for a path of a socket.
const LONGEST: usize = 128;

/// Checks the id of a container.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn check_container(id: &str) -> Result<()> {
    check(id, "container id")?;
    if RESERVED.contains(&id) {
        return Err(Error::invalid(format!("container id: {id}: this name is reserved")));
    }
    Ok(())
}

/// Checks the id of a process.
///
/// # Errors
/// `INVALID_ARGUMENT`.
pub fn check_exec(id: &str) -> Result<()> {
    check(id, "exec id")
}

/// Letters, digits and `._-`, beginning with a letter or digit: no path can climb with it and no option begins with it.
fn check(id: &str, what: &str) -> Result<()> {
    let allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    let first = id.bytes().next().is_some_and(|byte| byte.is_ascii_alphanumeric());
    if first && id.len() <= LONGEST && id.bytes().all(allowed) {
        return Ok(());
    }
    let shown: String = id.chars().take(LONGEST).collect();
    Err(Error::invalid(format!("{what}: {shown:?}: must be 1 to {LONGEST} letters, digits, '.', '_' or '-'")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn usual_ids() {
        let hex = "a1".repeat(32);
        for id in [hex.as_str(), "web-1", "a.b_c", "0", &"x".repeat(LONGEST)] {
            check_container(id).unwrap();
            check_exec(id).unwrap();
        }
    }

    #[test]
    fn ids_that_could_do_harm() {
        for id in ["", ".", "..", "../x", "a/b", "-rf", "a b", "a\0", "ä", &"x".repeat(LONGEST + 1)] {
            assert!(check_container(id).is_err(), "{id:?}");
            assert!(check_exec(id).is_err(), "{id:?}");
        }
        assert!(check_container("shared").is_err());
        assert!(check_container("sandbox").is_err());
    }
}
