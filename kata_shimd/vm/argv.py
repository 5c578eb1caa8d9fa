"""`VmSpec` → QEMU's command line, a pure function held by golden files.

Every socket is a descriptor bound by us beforehand: nobody waits for a path to appear, QEMU needs no access to the pod's
directory, and a later daemon can connect again. Order is Kata's where it matters: the image is the first disk.
"""

from collections.abc import Iterator
from typing import Final

from kata_shimd.pod.network import Nic
from kata_shimd.vm.accel import Accelerator
from kata_shimd.vm.kernel import command_line
from kata_shimd.vm.spec import AGENT_PORT_NAME, SHARE_TAG, ExtraMonitor, VmSpec, Wires

#: What a container host's guest never uses, each of which firmware and kernel would probe.
_MACHINE_WITHOUT: Final = "hpet=off,smbus=off,sata=off,vmport=off,smm=off"

#: The model that has everything the accelerator can give. Five-level paging only makes an emulated walk longer. ERMS says that a
#: copy byte by byte is a fast one, and everybody in the guest copies so; emulated, that is eight times the steps of one by words.
_CPU: Final = {Accelerator.KVM: "host,pmu=off", Accelerator.TCG: "max,la57=off,erms=off"}
_ACCEL: Final = {Accelerator.KVM: "kvm", Accelerator.TCG: "tcg,thread=multi"}

SHARE_CHARDEV: Final = "share"
_SHARE_DRIVER: Final = "vhost-user-fs-pci"

#: Of the slots on the root bus: 0 is the host bridge, 31 the ISA bridge; devices without an address fill from 1 on.
_ROOT_PORT_SLOT: Final = 0x10
_FUNCTIONS: Final = 8

_MONITOR_MODE: Final = {
    ExtraMonitor.HMP: "mode=readline",
    ExtraMonitor.QMP: "mode=control",
    ExtraMonitor.QMP_PRETTY: "mode=control,pretty=on",
}


def argv(spec: VmSpec, wires: Wires) -> list[str]:
    """The whole command line, program first."""
    return [str(spec.qemu), *(word for pair in _options(spec, wires) for word in pair)]


def _options(spec: VmSpec, wires: Wires) -> Iterator[tuple[str, ...]]:
    yield from _identity(spec)
    yield from _board(spec)
    yield from _memory(spec, wires)
    yield from _boot_files(spec)
    yield from _monitors(spec, wires)
    yield from _serial(wires)
    yield from _image(spec)
    yield from _entropy(spec)
    yield from _root_ports(spec)
    yield from _vsock(wires)
    yield from _share(spec, wires)
    for nic in spec.nics:
        yield from _nic(nic)


def _identity(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    yield "-name", _value(spec.name) + ",debug-threads=on"
    yield "-uuid", spec.uuid
    yield ("-no-user-config",)
    yield ("-nodefaults",)
    # Not -nographic, which also makes the firmware speak on the serial port, slowly.
    yield "-display", "none"
    yield "-vga", "none"
    yield ("-no-reboot",)
    if spec.sandbox:
        yield "-sandbox", spec.sandbox
    if spec.paused or spec.incoming:
        yield ("-S",)
    if spec.incoming:
        yield "-incoming", "defer"


def _board(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    yield "-machine", _joined("q35", _MACHINE_WITHOUT, "memory-backend=ram", spec.machine_options)
    yield "-accel", _ACCEL[spec.accelerator]
    yield "-cpu", _joined(_CPU[spec.accelerator], spec.cpu_features)
    most = max(spec.vcpus, spec.max_vcpus)
    yield "-smp", f"{spec.vcpus},cores=1,threads=1,sockets={most},maxcpus={most}"
    if spec.accelerator is Accelerator.KVM:
        yield "-rtc", "base=utc,driftfix=slew,clock=host"
        yield "-global", "kvm-pit.lost_tick_policy=discard"


def _memory(spec: VmSpec, wires: Wires) -> Iterator[tuple[str, ...]]:
    """RAM is shared: virtiofsd reads and writes the guest's buffers in place."""
    grows = spec.max_memory_mib > spec.memory_mib and spec.memory_slots > 0
    room = f",slots={spec.memory_slots},maxmem={spec.max_memory_mib}M" if grows else ""
    yield "-m", f"{spec.memory_mib}M{room}"
    size = f"id=ram,size={spec.memory_mib}M,share=on"
    if wires.memory is None:
        yield "-object", f"memory-backend-memfd,{size}"
    else:
        yield "-object", f"memory-backend-file,{size},mem-path=/proc/self/fd/{wires.memory}"


def _boot_files(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    yield "-kernel", str(spec.kernel)
    if spec.initrd is not None:
        yield "-initrd", str(spec.initrd)
    yield "-append", command_line(spec)


def _monitors(spec: VmSpec, wires: Wires) -> Iterator[tuple[str, ...]]:
    yield from _monitor("qmp", wires.monitor, "mode=control")
    yield from _monitor("qmp-debug", wires.debug_monitor, "mode=control")
    if wires.extra_monitor is not None and spec.extra_monitor is not ExtraMonitor.NONE:
        yield from _monitor("extra", wires.extra_monitor, _MONITOR_MODE[spec.extra_monitor])


def _monitor(name: str, fd: int, mode: str) -> Iterator[tuple[str, ...]]:
    yield "-chardev", _listening(name, fd)
    yield "-mon", f"chardev={name},{mode}"


def _serial(wires: Wires) -> Iterator[tuple[str, ...]]:
    """The console: an ISA port heard from the first instruction, and hvc0, on one socket. Then the agent's port."""
    yield "-chardev", _listening("console", wires.console) + ",mux=on"
    yield "-device", "isa-serial,chardev=console"
    yield "-device", "virtio-serial-pci,id=serial0"
    yield "-device", "virtconsole,chardev=console,bus=serial0.0"
    if wires.agent is not None:
        yield "-chardev", _listening("agent", wires.agent)
        yield "-device", f"virtserialport,chardev=agent,bus=serial0.0,name={AGENT_PORT_NAME}"


def _image(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    file = f"file.driver=file,file.filename={_value(spec.image)}"
    yield "-blockdev", f"driver=raw,node-name=image,read-only=on,{file}"
    yield "-device", "virtio-blk-pci,drive=image,id=image0,share-rw=on"


def _entropy(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    yield "-object", f"rng-random,id=rng0,filename={_value(spec.entropy)}"
    yield "-device", "virtio-rng-pci,rng=rng0"


def _root_ports(spec: VmSpec) -> Iterator[tuple[str, ...]]:
    for index in range(spec.root_ports):
        several = ",multifunction=on" if index % _FUNCTIONS == 0 else ""
        address = f"0x{root_port_address(index)}"
        yield "-device", f"pcie-root-port,id=rp{index},bus=pcie.0,chassis={index + 1},addr={address}{several}"


def root_port_address(index: int) -> str:
    """Slot and function of the root port ``rp<index>`` on the root bus, in hexadecimal: ``10.0``."""
    slot, function = divmod(index, _FUNCTIONS)
    return f"{_ROOT_PORT_SLOT + slot:02x}.{function}"


def _vsock(wires: Wires) -> Iterator[tuple[str, ...]]:
    if wires.vsock is not None:
        yield "-device", f"vhost-vsock-pci,id=vsock0,vhostfd={wires.vsock.vhost_fd},guest-cid={wires.vsock.cid}"


def _share(spec: VmSpec, wires: Wires) -> Iterator[tuple[str, ...]]:
    if wires.share is None:
        return
    yield "-chardev", f"socket,id={SHARE_CHARDEV},fd={wires.share}"
    if not spec.incoming:
        options = ",".join(f"{name}={value}" for name, value in share_device(spec).items() if name != "driver")
        yield "-device", f"{_SHARE_DRIVER},{options}"


def share_device(spec: VmSpec) -> dict[str, object]:
    """The shared directory's device, as ``device_add`` takes it but for its bus."""
    return {
        "driver": _SHARE_DRIVER,
        "chardev": SHARE_CHARDEV,
        "tag": SHARE_TAG,
        "queue-size": spec.share.queue_size,
    }


def _nic(nic: Nic) -> Iterator[tuple[str, ...]]:
    vhost = f",vhost=on,vhostfds={_fds(nic.vhost_fds)}" if nic.vhost_fds else ""
    yield "-netdev", f"tap,id={nic.id},fds={_fds(nic.fds)}{vhost}"
    # An empty romfile: no network boot, and no option ROM for firmware to run.
    queues = f",mq=on,vectors={2 * len(nic.fds) + 2}" if len(nic.fds) > 1 else ""
    yield "-device", f"virtio-net-pci,netdev={nic.id},id={nic.id}-nic,mac={nic.mac},romfile={queues}"


def _listening(name: str, fd: int) -> str:
    return f"socket,id={name},fd={fd},server=on,wait=off"


def _fds(fds: tuple[int, ...]) -> str:
    return ":".join(map(str, fds))


def _joined(*parts: str) -> str:
    return ",".join(part for part in parts if part)


def _value(text: object) -> str:
    """An option's value; QEMU reads a doubled comma as one."""
    return str(text).replace(",", ",,")
