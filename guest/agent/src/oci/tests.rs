use protobuf::{Message, MessageDyn, MessageFull};

use super::*;

/// Fills every field of a message, recursively, with values that are not zero.
fn fill<M: MessageFull>() -> M {
    let mut message = M::new();
    fill_dyn(&mut message, 0);
    message
}

fn fill_dyn(message: &mut dyn MessageDyn, depth: usize) {
    use protobuf::reflect::{ReflectValueBox, RuntimeFieldType, RuntimeType};
    fn value(kind: &RuntimeType, name: &str, depth: usize) -> ReflectValueBox {
        match kind {
            RuntimeType::Bool => ReflectValueBox::Bool(true),
            RuntimeType::String => ReflectValueBox::String(format!("some-{name}")),
            RuntimeType::U32 => ReflectValueBox::U32(7),
            RuntimeType::U64 => ReflectValueBox::U64(8),
            RuntimeType::I64 => ReflectValueBox::I64(9),
            RuntimeType::Message(descriptor) => {
                let mut nested = descriptor.new_instance();
                fill_dyn(&mut *nested, depth + 1);
                ReflectValueBox::Message(nested)
            }
            other => panic!("no value for {other:?}"),
        }
    }
    assert!(depth < 8);
    for field in message.descriptor_dyn().fields() {
        match field.runtime_field_type() {
            RuntimeFieldType::Singular(kind) => field.set_singular_field(message, value(&kind, field.name(), depth)),
            RuntimeFieldType::Repeated(kind) => field.mut_repeated(message).push(value(&kind, field.name(), depth)),
            RuntimeFieldType::Map(_, _) => field
                .mut_map(message)
                .insert(ReflectValueBox::String("key".into()), ReflectValueBox::String("value".into())),
        }
    }
}

/// Counts the leaves of a message that carry a value.
fn message_leaves(message: &dyn MessageDyn) -> usize {
    use protobuf::reflect::{ReflectFieldRef, ReflectValueRef};
    fn count(value: &ReflectValueRef<'_>) -> usize {
        match value {
            ReflectValueRef::Message(nested) => message_leaves(&**nested),
            _ => 1,
        }
    }
    let descriptor = message.descriptor_dyn();
    let fields = descriptor.fields().filter(|field| !matches!(field.name(), "Solaris" | "Windows" | "ApparmorProfile"));
    fields
        .map(|field| match field.get_reflect(message) {
            ReflectFieldRef::Optional(value) => value.value().as_ref().map_or(0, count),
            ReflectFieldRef::Repeated(items) => items.into_iter().map(|item| count(&item)).sum(),
            ReflectFieldRef::Map(map) => map.len(),
        })
        .sum()
}

fn json_leaves(value: &Value) -> usize {
    match value {
        Value::Object(fields) => fields.values().map(json_leaves).sum(),
        Value::Array(items) => items.iter().map(json_leaves).sum(),
        _ => 1,
    }
}

#[test]
fn no_field_of_the_message_is_lost() {
    let message: oci::Spec = fill();
    assert!(message.compute_size() > 500);
    assert_eq!(json_leaves(&spec(&message)), message_leaves(&message));
}

#[test]
fn names_are_those_of_the_specification() {
    let text = spec(&fill()).to_string();
    for name in [
        "\"additionalGids\":[7]",
        "\"noNewPrivileges\":true",
        "\"oomScoreAdj\":9",
        "\"rootfsPropagation\"",
        "\"errnoRet\":7",
        "\"valueTwo\":8",
        "\"hugepageLimits\":[{\"limit\":8,\"pageSize\"",
        "\"throttleReadIOPSDevice\"",
        "\"disableOOMKiller\":true",
        "\"l3CacheSchema\"",
        "\"kernelTCP\":9",
        "\"readonly\":true",
        "\"type\":\"some-type\"",
    ] {
        assert!(text.contains(name), "{name} in {text}");
    }
    assert!(!text.contains("pparmor"), "profiles of the host mean nothing here");
}

#[test]
fn an_empty_process_is_complete() {
    let process = process(&oci::Process::default());
    assert_eq!(process, json!({"user": {"uid": 0, "gid": 0}, "args": [], "cwd": "/", "noNewPrivileges": false}));
}

#[test]
fn empty_capability_sets_drop_everything() {
    let message = oci::Process { Capabilities: Some(oci::LinuxCapabilities::default()).into(), ..Default::default() };
    assert_eq!(process(&message)["capabilities"]["bounding"], json!([]));
}

#[test]
fn device_rules_know_wildcards() {
    let rule = |major, minor| {
        let device = oci::LinuxDeviceCgroup { Major: major, Minor: minor, Type: "c".into(), ..Default::default() };
        let resources = oci::LinuxResources { Devices: vec![device], ..Default::default() };
        let linux = oci::Linux { Resources: Some(resources).into(), ..Default::default() };
        spec(&oci::Spec { Linux: Some(linux).into(), ..Default::default() })["linux"]["resources"]["devices"][0].clone()
    };
    assert_eq!(rule(0, 0), json!({"allow": false, "type": "c"}));
    assert_eq!(rule(136, -1), json!({"allow": false, "type": "c", "major": 136}));
    assert_eq!(rule(5, 0), json!({"allow": false, "type": "c", "major": 5, "minor": 0}));
}
