"""Of `kata-shimd check`: whether pods are cloned here, and from where. Nothing depends on it, so it never fails."""

from collections.abc import Iterator
from typing import Final

from kata_shimd.config.model import Config
from kata_shimd.debug.check import Row, Scene, Verdict
from kata_shimd.errors import HostFailed
from kata_shimd.ordering import LARGER, too_small
from kata_shimd.templates import unfit
from kata_shimd.vm import accel
from kata_shimd.vm.template.store import Store
from kata_shimd.vmspec import vm_spec

_NAME: Final = "templates"
_MIB: Final = 1 << 20
_OURS: Final = "give it to root alone, mode 0700, or set factory.template_path to another place"


def templates(scene: Scene) -> Iterator[Row]:
    """What stands in the way is advice: pods are booted then."""
    config = scene.config.config
    if config is None:
        yield Row(_NAME, Verdict.SKIP, "unknown without a configuration")
    elif why := _unwanted(config):
        yield Row(_NAME, Verdict.SKIP, f"{why}: pods are booted")
    else:
        yield _state(Store(config.factory.template_path), config.hypervisor.default_memory_mib)


def _unwanted(config: Config) -> str:
    if not config.factory.enable_template:
        return "factory.enable_template is off"
    return unfit(vm_spec("check", config, accel.choose(accel.Setting(config.shimd.accelerator.value))))


def _state(store: Store, memory_mib: int) -> Row:
    try:
        store.check_place()
    except HostFailed as error:
        return Row(_NAME, Verdict.PASS, f"{error.obj}: {error.cause}: pods are booted", error.hint or _OURS)
    whole = [each for each in store.list() if not each.problem]
    taken, free = sum(each.used for each in whole) // _MIB, store.room()[0] // _MIB
    if not whole and (why := too_small(store, memory_mib)):
        return Row(_NAME, Verdict.PASS, f"{store.path}: {why}: pods are booted", LARGER)
    what = f"{len(whole)} at {store.path}, {taken} MiB; {free} MiB are free there"
    advice = (
        "" if whole else "the first pod is booted, and one is made beside it; `kata-shimd template build` makes it now"
    )
    return Row(_NAME, Verdict.PASS, f"pods are cloned: {what}", advice)
