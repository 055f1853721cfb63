"""From a name to an 8-bit store on this disk: fetch what is not here, check it, quantize it while the rest arrives."""

import shutil
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, closing, suppress
from dataclasses import replace
from pathlib import Path

from localr1.chat.template import ChatTemplate
from localr1.chat.tokenizer import Tokenizer
from localr1.errors import CorruptError, LocalR1Error, UnsupportedError
from localr1.events import Event, Notice, Progress
from localr1.hub import cache as hub_cache
from localr1.hub import catalog
from localr1.hub.download import Download
from localr1.hub.lock import only_one
from localr1.hub.lookup import look_up, newer_commit, talking_to_hub
from localr1.hub.room import require
from localr1.hub.source import HubRepo, LocalFolder, Snapshot
from localr1.model import registry
from localr1.model.linear import TensorSpec
from localr1.options import DownloadOptions, EngineOptions
from localr1.quantities import bytes_text
from localr1.session.outlook import outlook
from localr1.weights.checkpoint import Checkpoint, HeaderError
from localr1.weights.conversion import (
    Conversion,
    begun_elsewhere,
    partial_folder,
    reserved_bytes,
    take_over,
    write_store,
)
from localr1.weights.durable import replaced_folder
from localr1.weights.safetensors_file import parse_header
from localr1.weights.store import Origin

COPIED_FILES = ("config.json", "generation_config.json", "tokenizer_config.json", "chat_template.jinja")


def download(options: DownloadOptions) -> Progress[Path]:
    """Fetch what is not here, quantize it, and return the 8-bit store's folder.

    Yields a DownloadPlan before the first byte of a model from the hub: closing the generator there fetches nothing.
    With `dry_run` that is all. A model that is here already is fetched only if the hub has a newer commit of it.
    """
    source = catalog.resolve(options.model)
    here = None if options.force else hub_cache.find_store(source)
    if isinstance(source, LocalFolder):
        if hub_cache.read_store(source.path) is not None:
            yield Notice(f"{options.model} is an 8-bit store already: {source.path}")
            return source.path
        folder = hub_cache.store_folder(source) if here is None else here.folder
        if here is None:
            yield from _convert_folder(source, folder, options.dry_run)
    else:
        newest = newer_commit(source, here.revision) if here is not None else None
        if here is None or newest is not None:
            if here is not None and newest is not None:
                yield Notice(f"{options.model} has a newer version: {newest[:12]} (here is {here.revision[:12]})")
            return (yield from _from_hub(source, options))
        folder = here.folder
    if here is not None:
        _tidy(folder)
        yield from _already_here(options, folder)
    return folder


def _already_here(options: DownloadOptions, folder: Path) -> Iterator[Notice]:
    yield Notice(f"{options.model} is already here: {folder}")
    kept = str(hub_cache.read_json(folder / hub_cache.MANIFEST).get("source_folder") or "")
    if options.keep_source and not (kept and (Path(kept) / "config.json").is_file()):
        yield Notice("its 16-bit files were not kept; add --force to fetch them")


def _convert_folder(source: LocalFolder, folder: Path, dry_run: bool) -> Progress[None]:
    _check(source.path, Checkpoint(source.path))  # of what is refused nothing is left
    if dry_run:
        _extras(source.path)
        yield Notice(f"{source.path} holds a model that can be quantized; the store would be {folder}")
        return
    origin = Origin(str(source.path.resolve()), folder.name, str(source.path.resolve()))
    with _only_writer(folder, str(source.path)):
        _forget_begun(folder)
        yield from convert(source.path, folder, origin)
        new = hub_cache.read_store(folder)
        if new is not None and hub_cache.store_folder(source) != folder:  # it may hold something of both
            hub_cache.remove(new)
            raise CorruptError(f"{source.path} changed while it was converted", "try again when nothing writes to it")
        yield from _retire(source, folder)


def _forget_begun(folder: Path) -> None:
    """Remove what was begun of a checkpoint's folder when its files were others: nothing goes on with that."""
    for partial in folder.parent.glob("*.partial"):
        if partial != partial_folder(folder):
            with suppress(LocalR1Error), _only_writer(partial.with_suffix(""), folder.name):
                shutil.rmtree(partial, ignore_errors=True)


def _only_writer(folder: Path, model: str) -> AbstractContextManager[None]:
    return only_one(hub_cache.lock_path(folder), f"another process is converting {model}")


def _tidy(folder: Path) -> None:
    """Remove what a run left that was killed after the store had its name."""
    partial, old = partial_folder(folder), replaced_folder(folder)
    left = [path for path in (partial, old) if path.is_dir() and not (path / "store").exists()]
    with suppress(LocalR1Error):
        if left:
            with _only_writer(folder, folder.name):
                for path in left:
                    shutil.rmtree(path, ignore_errors=True)


def convert(source: Path, folder: Path, origin: Origin) -> Progress[None]:
    """Check the checkpoint in `source` against its config and write it as an 8-bit store at `folder`."""
    checkpoint = Checkpoint(source)
    expected, block = _check(source, checkpoint)
    extras = _extras(source)
    yield from write_store(folder, checkpoint, expected, block=block, origin=origin, extras=extras)


def _from_hub(source: HubRepo, options: DownloadOptions) -> Progress[Path]:
    with ExitStack() as stack:
        stack.enter_context(talking_to_hub(source))
        found = yield from look_up(source)
        commit = found.commit
        folder = hub_cache.store_folder(Snapshot(Path(), source.repo_id, commit))
        stack.enter_context(_only_writer(folder, source.repo_id))
        if hub_cache.read_store(folder) is not None and not options.force:
            hub_cache.record_revision(source, commit)
            yield from _already_here(options, folder)
            return folder
        if isinstance(found, Snapshot):
            if options.dry_run:
                yield Notice(f"{found.folder} holds the files of {options.model}; the store would be {folder}")
                return folder
            yield from convert(found.folder, folder, Origin(found.repo_id, commit, str(found.folder)))
            hub_cache.record_revision(source, commit)
            return folder
        files = {file.path: file.oid for file in found.files}
        same = None if options.force or options.keep_source else hub_cache.store_of_files(source, files)
        if same is not None:
            hub_cache.record_revision(source, same.revision)
            yield Notice(f"{options.model} is already here: {commit[:12]} has the same files as {same.revision[:12]}")
            return same.folder
        origin = Origin(source.repo_id, commit, source_files=files)
        begun = None if options.dry_run else begun_elsewhere(folder, origin)
        if begun is not None:
            with suppress(LocalR1Error), _only_writer(begun, source.repo_id):  # unless somebody is at work on it
                take_over(begun, folder)
        scratch = None if options.keep_source else partial_folder(folder) / "headers"
        with closing(Download(source, found, scratch=scratch, connections=options.connections)) as arriving:
            plan = arriving.plan(folder, reserved_bytes(folder))
            plan = replace(plan, outlook=tuple(outlook(source, plan.store_bytes, EngineOptions())))
            yield plan
            if options.dry_run:
                return folder
            for disk in plan.disks:
                require(disk, str(source))
            yield from _fetch_and_convert(arriving, folder, origin)
            if arriving.keeps_source:
                arriving.publish()
            arriving.release_all()
    hub_cache.record_revision(source, commit)
    yield from _retire(source, folder)
    return folder


def _fetch_and_convert(arriving: Download, folder: Path, origin: Origin) -> Progress[None]:
    small = yield from arriving.small_files()
    registry.read_config(small)  # what it cannot run needs no headers
    try:
        checkpoint, expected, block = yield from _announced(arriving, small)
    except (CorruptError, UnsupportedError):
        arriving.forget_heads()
        checkpoint, expected, block = yield from _announced(arriving, small)
    extras = _extras(small)
    origin = replace(origin, source_folder=str(small) if arriving.keeps_source else "")
    try:
        with Conversion(folder, checkpoint, expected, block=block, origin=origin) as conversion:
            yield from conversion.resume()
            shards = [name for name in checkpoint.file_names if conversion.needs(name)]
            arriving.start(checkpoint.file_names if arriving.keeps_source else shards)
            while not arriving.finished or arriving.arrived:
                if not arriving.arrived and not arriving.growing:
                    conversion.wait()  # before more arrives than the disk was meant to hold
                _let_go(arriving, conversion, shards)
                yield from arriving.news(wait=not arriving.arrived)
                yield from _take(arriving, conversion)
                yield from _take_early(arriving, conversion)
            conversion.settle()
            _let_go(arriving, conversion, shards)
            conversion.finish(extras)
    except HeaderError:
        arriving.forget_heads()
        raise


def _let_go(arriving: Download, conversion: Conversion, shards: list[str]) -> None:
    """Let go of the shards whose tensors are safe."""
    for name in shards:
        if not conversion.needs(name):
            arriving.release(name)


def _take(arriving: Download, conversion: Conversion) -> Iterator[Event]:
    """Convert the shards that are whole, telling meanwhile how the others come."""
    while arriving.arrived:
        shard = arriving.arrived.popleft()
        for event in conversion.take(shard.name, shard.path, shard.attempt):
            yield event
            yield from arriving.news(wait=False)


def _take_early(arriving: Download, conversion: Conversion) -> Iterator[Event]:
    """Convert what has come of the shards that are on their way, until one is whole."""
    for name, part in list(arriving.growing.items()):
        for event in conversion.take_early(name, part):
            yield event
            yield from arriving.news(wait=False)
            if arriving.arrived:
                return


def _announced(
    arriving: Download, small: Path
) -> Progress[tuple[Checkpoint, dict[str, TensorSpec], tuple[int, int] | None]]:
    """The checkpoint that the shards' headers announce, checked against its config."""
    heads = yield from arriving.heads()
    sizes = arriving.shard_bytes
    headers = {name: parse_header(name, head, sizes[name]) for name, head in heads.items()}
    checkpoint = Checkpoint.of_headers(arriving.snapshot.repo_id, headers)
    return checkpoint, *_check(small, checkpoint)


def _check(source: Path, checkpoint: Checkpoint) -> tuple[dict[str, TensorSpec], tuple[int, int] | None]:
    """What the config in `source` implies, once the checkpoint has just that."""
    config = registry.read_config(source)
    expected = registry.expected_tensors(config, mtp=registry.has_mtp(config, checkpoint))
    checkpoint.check(expected, lambda name: registry.ignorable(config, name), config.weight_block_size)
    return expected, config.weight_block_size


def _retire(source: HubRepo | LocalFolder, folder: Path) -> Iterator[Event]:
    """The new version is whole, so those that nobody means any more may go."""
    new = hub_cache.read_store(folder)
    if new is None:
        return
    for old in hub_cache.superseded(source, folder):
        if (last := hub_cache.last_used()) is not None and last.folder == old.folder:
            hub_cache.set_last_used(new)
        try:
            freed_bytes = hub_cache.remove(old)
        except LocalR1Error as error:
            yield Notice(f"the old version stays: {error.message}")
        else:
            yield Notice(f"updated; the old version {old.revision[:12]} is gone ({bytes_text(freed_bytes)})")


def _extras(source: Path) -> dict[str, bytes]:
    """The small files that a store needs to stand alone; a tokenizer of another kind becomes a `tokenizer.json`.

    Raises LocalR1Error when one is missing or makes no sense.
    """
    tokenizer = Tokenizer.open(source).to_json().encode()
    ChatTemplate.open(source)  # nothing can be done with a model that has none
    files = {name: (source / name).read_bytes() for name in COPIED_FILES if (source / name).is_file()}
    return files | {"tokenizer.json": tokenizer}
