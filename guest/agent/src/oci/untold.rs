//! Parts of the OCI configuration that the protocol has no field for.
//!
//! Owns: the annotation in which the host sends them, and which parts they may be. Must never happen: anything else of the
//! configuration is changed by it.

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// An object of paths and values, as JSON. The host writes it; what a pod's author wrote under this name it takes away.
pub const ANNOTATION: &str = "io.kata-shimd.oci";

const PATHS: [&str; 3] = ["linux.resources.unified", "linux.seccomp.defaultErrnoRet", "process.user.umask"];

/// Moves what the annotation says to where it belongs.
///
/// # Errors
/// `INVALID_ARGUMENT` when it is no object, or names another part.
pub fn apply(config: &mut Value) -> Result<()> {
    let notes = config.get_mut("annotations").and_then(Value::as_object_mut);
    let Some(text) = notes.and_then(|notes| notes.remove(ANNOTATION)) else { return Ok(()) };
    let parts: Map<String, Value> =
        serde_json::from_str(text.as_str().unwrap_or_default()).map_err(|error| refused(&error.to_string()))?;
    for (path, value) in parts {
        if !PATHS.contains(&path.as_str()) {
            return Err(refused(&format!("{path:.128} is not a part it may have")));
        }
        *path.split('.').fold(&mut *config, |place, key| &mut place[key]) = value;
    }
    Ok(())
}

fn refused(cause: &str) -> Error {
    Error::invalid(format!("create container: annotation {ANNOTATION}: {cause}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn applied(note: &str) -> Result<Value> {
        let mut config = json!({"annotations": {"a": "b", ANNOTATION: note}, "process": {"user": {"uid": 5}}});
        apply(&mut config).map(|()| config)
    }

    #[test]
    fn parts_go_where_they_belong_and_the_annotation_goes() {
        let made = applied(r#"{"process.user.umask": 63, "linux.resources.unified": {"memory.high": "9"}}"#).unwrap();
        assert_eq!(made["process"]["user"], json!({"uid": 5, "umask": 63}));
        assert_eq!(made["linux"], json!({"resources": {"unified": {"memory.high": "9"}}}));
        assert_eq!(made["annotations"], json!({"a": "b"}));
    }

    #[test]
    fn other_parts_and_other_texts_are_refused() {
        for note in [r#"{"process.capabilities": {}}"#, r#"{"process": {}}"#, "[]", "", "{"] {
            assert!(applied(note).is_err(), "{note}");
        }
    }

    #[test]
    fn nothing_said_is_nothing_changed() {
        let mut config = json!({"process": {}});
        apply(&mut config).unwrap();
        assert_eq!(config, json!({"process": {}}));
    }
}
