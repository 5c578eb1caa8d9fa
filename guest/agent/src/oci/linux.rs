//! The `linux` part of the OCI configuration.

use serde_json::{json, Value};

use super::{strings, Object};
use crate::protocol::oci;

pub(super) fn linux(linux: &oci::Linux) -> Value {
    Object::default()
        .list("uidMappings", &linux.UIDMappings, id_mapping)
        .list("gidMappings", &linux.GIDMappings, id_mapping)
        .put("sysctl", strings(&linux.Sysctl))
        .nested("resources", linux.Resources.as_ref(), resources)
        .put("cgroupsPath", &*linux.CgroupsPath)
        .list("namespaces", &linux.Namespaces, |ns| {
            Object::default().set("type", &*ns.Type).put("path", &*ns.Path).build()
        })
        .list("devices", &linux.Devices, device)
        .nested("seccomp", linux.Seccomp.as_ref(), seccomp)
        .put("rootfsPropagation", &*linux.RootfsPropagation)
        .put("maskedPaths", linux.MaskedPaths.clone())
        .put("readonlyPaths", linux.ReadonlyPaths.clone())
        .put("mountLabel", &*linux.MountLabel)
        .nested("intelRdt", linux.IntelRdt.as_ref(), |rdt| json!({"l3CacheSchema": rdt.L3CacheSchema}))
        .build()
}

fn id_mapping(mapping: &oci::LinuxIDMapping) -> Value {
    json!({"hostID": mapping.HostID, "containerID": mapping.ContainerID, "size": mapping.Size})
}

fn device(device: &oci::LinuxDevice) -> Value {
    Object::default()
        .set("path", &*device.Path)
        .set("type", &*device.Type)
        .set("major", device.Major)
        .set("minor", device.Minor)
        .put("fileMode", device.FileMode)
        .set("uid", device.UID)
        .set("gid", device.GID)
        .build()
}

fn resources(resources: &oci::LinuxResources) -> Value {
    Object::default()
        .list("devices", &resources.Devices, device_rule)
        .nested("memory", resources.Memory.as_ref(), memory)
        .nested("cpu", resources.CPU.as_ref(), cpu)
        .nested("pids", resources.Pids.as_ref(), |pids| json!({"limit": pids.Limit}))
        .nested("blockIO", resources.BlockIO.as_ref(), block_io)
        .list(
            "hugepageLimits",
            &resources.HugepageLimits,
            |page| json!({"pageSize": page.Pagesize, "limit": page.Limit}),
        )
        .nested("network", resources.Network.as_ref(), network)
        .build()
}

/// The message has no way to say "any number" but -1. A major number of 0 is no device's and means the same; a minor of 0
/// is a device's.
fn device_rule(rule: &oci::LinuxDeviceCgroup) -> Value {
    let mut object = Object::default().set("allow", rule.Allow).put("type", &*rule.Type);
    if rule.Major > 0 {
        object = object.set("major", rule.Major);
        if rule.Minor >= 0 {
            object = object.set("minor", rule.Minor);
        }
    }
    object.put("access", &*rule.Access).build()
}

fn memory(memory: &oci::LinuxMemory) -> Value {
    Object::default()
        .put("limit", memory.Limit)
        .put("reservation", memory.Reservation)
        .put("swap", memory.Swap)
        .put("kernel", memory.Kernel)
        .put("kernelTCP", memory.KernelTCP)
        .put("swappiness", memory.Swappiness)
        .put("disableOOMKiller", memory.DisableOOMKiller)
        .build()
}

fn cpu(cpu: &oci::LinuxCPU) -> Value {
    Object::default()
        .put("shares", cpu.Shares)
        .put("quota", cpu.Quota)
        .put("period", cpu.Period)
        .put("realtimeRuntime", cpu.RealtimeRuntime)
        .put("realtimePeriod", cpu.RealtimePeriod)
        .put("cpus", &*cpu.Cpus)
        .put("mems", &*cpu.Mems)
        .build()
}

fn block_io(io: &oci::LinuxBlockIO) -> Value {
    Object::default()
        .put("weight", io.Weight)
        .put("leafWeight", io.LeafWeight)
        .list("weightDevice", &io.WeightDevice, weight_device)
        .list("throttleReadBpsDevice", &io.ThrottleReadBpsDevice, throttle)
        .list("throttleWriteBpsDevice", &io.ThrottleWriteBpsDevice, throttle)
        .list("throttleReadIOPSDevice", &io.ThrottleReadIOPSDevice, throttle)
        .list("throttleWriteIOPSDevice", &io.ThrottleWriteIOPSDevice, throttle)
        .build()
}

fn weight_device(device: &oci::LinuxWeightDevice) -> Value {
    Object::default()
        .set("major", device.Major)
        .set("minor", device.Minor)
        .put("weight", device.Weight)
        .put("leafWeight", device.LeafWeight)
        .build()
}

fn throttle(device: &oci::LinuxThrottleDevice) -> Value {
    json!({"major": device.Major, "minor": device.Minor, "rate": device.Rate})
}

fn network(network: &oci::LinuxNetwork) -> Value {
    Object::default()
        .put("classID", network.ClassID)
        .list("priorities", &network.Priorities, |entry| json!({"name": entry.Name, "priority": entry.Priority}))
        .build()
}

fn seccomp(seccomp: &oci::LinuxSeccomp) -> Value {
    Object::default()
        .set("defaultAction", &*seccomp.DefaultAction)
        .put("architectures", seccomp.Architectures.clone())
        .put("flags", seccomp.Flags.clone())
        .list("syscalls", &seccomp.Syscalls, syscall)
        .build()
}

fn syscall(syscall: &oci::LinuxSyscall) -> Value {
    let mut object = Object::default().set("names", syscall.Names.clone()).set("action", &*syscall.Action);
    if syscall.has_errnoret() {
        object = object.set("errnoRet", syscall.errnoret());
    }
    object.list("args", &syscall.Args, argument).build()
}

fn argument(argument: &oci::LinuxSeccompArg) -> Value {
    Object::default()
        .set("index", argument.Index)
        .set("value", argument.Value)
        .put("valueTwo", argument.ValueTwo)
        .set("op", &*argument.Op)
        .build()
}
