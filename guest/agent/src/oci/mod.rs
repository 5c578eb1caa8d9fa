//! The OCI configuration as crun reads it, from the messages that carry it.
//!
//! Owns: the names of the OCI runtime specification. Must never happen: a field that the message has is left out. Zero and empty mean
//! absent in the message, so they are absent in the text too, but where the specification requires a value.

mod linux;
pub mod untold;

use serde_json::{json, Map, Value};

use crate::protocol::oci;

/// Builds an object, leaving out what is absent.
#[derive(Default)]
pub(crate) struct Object(Map<String, Value>);

impl Object {
    /// Adds a value even if it is zero or empty.
    pub(crate) fn set(mut self, key: &str, value: impl Into<Value>) -> Self {
        self.0.insert(key.to_owned(), value.into());
        self
    }

    /// Adds a value unless it is zero, false or empty.
    pub(crate) fn put(self, key: &str, value: impl Into<Value>) -> Self {
        let value = value.into();
        if absent(&value) {
            return self;
        }
        self.set(key, value)
    }

    /// Adds a list of objects unless it is empty.
    pub(crate) fn list<T>(self, key: &str, items: &[T], convert: impl Fn(&T) -> Value) -> Self {
        self.put(key, items.iter().map(convert).collect::<Value>())
    }

    /// Adds an object if the message has it, even when all its fields are zero.
    pub(crate) fn nested<T>(self, key: &str, message: Option<&T>, convert: impl Fn(&T) -> Value) -> Self {
        match message {
            Some(message) => self.set(key, convert(message)),
            None => self,
        }
    }

    /// The object.
    pub(crate) fn build(self) -> Value {
        Value::Object(self.0)
    }
}

fn absent(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(value) => !value,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
    }
}

/// A map of strings.
pub(crate) fn strings(map: &std::collections::HashMap<String, String>) -> Value {
    map.iter().map(|(key, value)| (key.clone(), Value::from(value.clone()))).collect::<Map<_, _>>().into()
}

/// Of the specification, whatever the host's containerd writes: what is set here is in it, and `crun` refuses what it does not know.
const VERSION: &str = "1.0.2";

/// `config.json` of a container.
pub fn spec(spec: &oci::Spec) -> Value {
    Object::default()
        .set("ociVersion", VERSION)
        .nested("process", spec.Process.as_ref(), process)
        .nested("root", spec.Root.as_ref(), |root| {
            Object::default().set("path", &*root.Path).put("readonly", root.Readonly).build()
        })
        .put("hostname", &*spec.Hostname)
        .list("mounts", &spec.Mounts, mount)
        .nested("hooks", spec.Hooks.as_ref(), hooks)
        .put("annotations", strings(&spec.Annotations))
        .nested("linux", spec.Linux.as_ref(), linux::linux)
        .build()
}

/// The process of a container or of an exec. The guest confines by the VM and has no AppArmor profiles, so a name of the
/// host's is left out: crun would fail on it.
pub fn process(process: &oci::Process) -> Value {
    Object::default()
        .put("terminal", process.Terminal)
        .nested("consoleSize", process.ConsoleSize.as_ref(), |size| json!({"height": size.Height, "width": size.Width}))
        .set("user", process.User.as_ref().map_or_else(|| json!({"uid": 0, "gid": 0}), user))
        .set("args", process.Args.clone())
        .put("env", process.Env.clone())
        .set("cwd", if process.Cwd.is_empty() { "/" } else { &process.Cwd })
        .nested("capabilities", process.Capabilities.as_ref(), capabilities)
        .list("rlimits", &process.Rlimits, |limit| json!({"type": limit.Type, "hard": limit.Hard, "soft": limit.Soft}))
        .set("noNewPrivileges", process.NoNewPrivileges)
        .put("oomScoreAdj", process.OOMScoreAdj)
        .put("selinuxLabel", &*process.SelinuxLabel)
        .build()
}

fn user(user: &oci::User) -> Value {
    Object::default()
        .set("uid", user.UID)
        .set("gid", user.GID)
        .put("additionalGids", user.AdditionalGids.clone())
        .put("username", &*user.Username)
        .build()
}

/// All five sets, also when empty: an empty set is what drops capabilities.
fn capabilities(sets: &oci::LinuxCapabilities) -> Value {
    json!({
        "bounding": sets.Bounding,
        "effective": sets.Effective,
        "inheritable": sets.Inheritable,
        "permitted": sets.Permitted,
        "ambient": sets.Ambient,
    })
}

fn mount(mount: &oci::Mount) -> Value {
    Object::default()
        .set("destination", &*mount.destination)
        .put("type", &*mount.type_)
        .put("source", &*mount.source)
        .put("options", mount.options.clone())
        .build()
}

fn hooks(hooks: &oci::Hooks) -> Value {
    Object::default()
        .list("prestart", &hooks.Prestart, hook)
        .list("createRuntime", &hooks.CreateRuntime, hook)
        .list("createContainer", &hooks.CreateContainer, hook)
        .list("startContainer", &hooks.StartContainer, hook)
        .list("poststart", &hooks.Poststart, hook)
        .list("poststop", &hooks.Poststop, hook)
        .build()
}

fn hook(hook: &oci::Hook) -> Value {
    Object::default()
        .set("path", &*hook.Path)
        .put("args", hook.Args.clone())
        .put("env", hook.Env.clone())
        .put("timeout", hook.Timeout)
        .build()
}

#[cfg(test)]
mod tests;
