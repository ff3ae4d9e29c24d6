"""`pilot objects`: look after large values and files."""

from __future__ import annotations

import getpass
import re
import socket
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict

import click

from pilot import mentions
from pilot.cli import text
from pilot.cli.common import Command, Opened, console, duration, emit, escaped, json_option, now, opened, size
from pilot.config import find_project
from pilot.errors import InvalidInput, PilotError
from pilot.mentions import Named
from pilot.progress import bar
from pilot.store import care, named, provenance
from pilot.store.named import Use
from pilot.store.objects import Objects

_HASH = re.compile(r"[0-9a-f]{8,64}")
_SHOWN = 20
_DROPPABLE = ("value", "file")


@click.group(invoke_without_command=True)
@click.pass_context
def objects(ctx: click.Context) -> None:
    """Look after large values and files: verify, collect, drop."""
    if ctx.invoked_subcommand is None:
        click.echo(ctx.get_help())


# -- stat -------------------------------------------------------------------------------------------


@objects.command(cls=Command)
@json_option
def stat(as_json: bool) -> None:
    """Say how many objects there are, and how large they are together."""
    repository = Objects(find_project().objects_folder)
    found = care.figures(repository)
    if as_json:
        emit({"folder": repository.root, **asdict(found)})
        return
    click.echo(f"{text.count(found.objects, 'object')}, {text.size(found.bytes)}, in {repository.root}")
    if found.dropped:
        click.echo(f"{found.dropped:,} of which the bytes were dropped")
    if found.places:
        click.echo(f"{text.count(found.places, 'file')} in place")
    if found.trash_objects:
        click.echo(f"{found.trash_objects:,} in the trash, {text.size(found.trash_bytes)}")


# -- verify -----------------------------------------------------------------------------------------


@objects.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[ID]...")
@json_option
def verify(names: tuple[str, ...], as_json: bool) -> int:
    """Read objects again and compare them with their hashes, and see that all that records name is there.

    ID is a task, a record, or the hash of an object (8 digits at least); default: all. Files that lie in place are read
    where they lie. Exit code 1 if something is damaged or missing; it is named with the records that need it.
    """
    with opened() as project:
        repository = Objects(project.config.objects_folder)
        if names:
            records, hashes = _resolved(project, repository, names)
            uses = named.of_records(project.store, repository.get, records)
        else:
            uses, hashes = _everything(project, repository), [one.hash for one in care.kept(repository)]
        users, problems = _used(uses)
        damages = []
        wanted = {(one.hash, one.place): one for one in [*users, *(Named(hash, "value") for hash in hashes)]}
        with bar("verifying", len(wanted), shown_from=1) as advance:
            for one in wanted.values():
                found = care.verify(repository, one)
                if found is not None:
                    damages.append(found)
                advance(1)
    return _report(len(wanted), damages, problems, users, as_json)


def _everything(project: Opened, repository: Objects) -> Iterator[Use]:
    return named.everything(project.store, repository.get, project.config.spool_folder)


def _used(uses: Iterable[Use]) -> tuple[dict[Named, list[str]], list[str]]:
    """Return who names each content, and what could not be read."""
    users: dict[Named, list[str]] = defaultdict(list)
    problems = []
    for use in uses:
        if use.named is None:
            problems.append(f"{use.by}: {use.problem}")
        elif len(users[use.named]) < _SHOWN and use.by not in users[use.named]:
            users[use.named].append(use.by)
    return users, problems


def _report(
    count: int, damages: Sequence[care.Damage], problems: Sequence[str], users: dict[Named, list[str]], as_json: bool
) -> int:  # fmt: skip
    by: dict[str, list[str]] = defaultdict(list)
    for one, users_ in users.items():
        by[one.hash] += [user for user in users_ if user not in by[one.hash]]
    if as_json:
        found = [{**damage._asdict(), "named_by": by[damage.hash]} for damage in damages]
        emit({"verified": count, "damaged": found, "unreadable": list(problems)})
    else:
        for damage in damages:
            who = ", ".join(by[damage.hash][:4]) or "nothing"
            more = f" and {len(by[damage.hash]) - 4} more" if len(by[damage.hash]) > 4 else ""
            console().print(escaped(f"{damage.hash}: {damage.why}; named by {who}{more}"), soft_wrap=True)
        for problem in problems:
            console().print(escaped(problem), soft_wrap=True)
        bad = f", {len(damages):,} damaged or missing" if damages or problems else ", all as they should be"
        click.echo(f"{text.count(count, 'object')} verified{bad}")
    return 1 if damages or problems else 0


# -- what people name -------------------------------------------------------------------------------


def _resolved(project: Opened, repository: Objects, names: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the records that are meant, of a task the official one, and the objects that are named by hash.

    Raises:
        InvalidInput: several objects are meant.
        TaskNotFound, RecordNotFound: as of `provenance.meant`.
    """
    records: list[str] = []
    hashes: list[str] = []
    for name in names:
        found = _by_hash(repository, name)
        if found:
            hashes.append(found)
        else:
            records.append(provenance.meant(project.store, name)[-1])
    return records, hashes


def _by_hash(repository: Objects, name: str) -> str:
    """Return the one object whose hash begins so; "" if `name` is no such beginning.

    Raises:
        InvalidInput: several do.
    """
    if not _HASH.fullmatch(name):
        return ""
    fitting = [one.hash for one in care.kept(repository) if one.hash.startswith(name)]
    if len(fitting) > 1:
        raise InvalidInput(f"{name!r} fits {len(fitting)} objects; give more digits")
    return fitting[0] if fitting else name if len(name) == 64 else ""


# -- collect ----------------------------------------------------------------------------------------


@objects.command(cls=Command)
@click.option(
    "--older", callback=duration, default=f"{care.COLLECT_S / 86400:g}d", show_default=True, metavar="T",
    help="Spare what was written or named anew within this time.",
)  # fmt: skip
@click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")
@json_option
def collect(older: float, yes: bool, as_json: bool) -> None:
    """Throw away objects that no record, task, function or spooled result names.

    What is thrown away lies in a trash folder, from which it comes back should something name it after all; a
    collection a day later deletes it.
    """
    care.check_age(older)
    moment = time.time()
    with opened() as project:
        repository = Objects(project.config.objects_folder)
        before = moment - older
        hashes = _hashes(project, repository)
        found = list(care.unnamed(repository, hashes, before))
        deleted = care.Figures()
        if yes:
            found = care.throw_away(repository, found, before, moment)
            hashes = _hashes(project, repository)  # what has come since is spared
            deleted = care.empty_trash(repository, hashes, moment - care.TRASH_S)
            found = [one for one in found if one.hash not in hashes]
            care.tidy(repository, hashes, before)
    total = sum(one.size for one in found)
    if as_json:
        listed = [{"hash": one.hash, "size": one.size} for one in found]
        emit(
            {
                "done": yes, "objects": listed, "bytes": total, "deleted": deleted.objects,
                "deleted_bytes": deleted.bytes,
            }
        )  # fmt: skip
        return
    what = f"{text.count(len(found), 'object')} that nothing names, {text.size(total)}"
    if yes:
        click.echo(f"{what}: in the trash; a collection after {text.span(care.TRASH_S)} deletes them")
        if deleted.objects:
            click.echo(f"{text.count(deleted.objects, 'object')} of the trash deleted, {text.size(deleted.bytes)}")
        return
    _list([(one.hash, one.size) for one in found])
    click.echo(f"{what}{': --yes throws them away' if found else ''}")


def _hashes(project: Opened, repository: Objects) -> set[str]:
    """Return what anything names.

    Raises:
        PilotError: that cannot be told, so nothing may be removed.
    """
    found = set()
    for use in _everything(project, repository):
        if use.named is None:
            why = f"what {use.by} names cannot be read: {use.problem}"
            raise PilotError(f"cannot collect: {why}; `pilot objects verify` lists all such") from use.problem
        found.add(use.named.hash)
    return found


def _list(found: Sequence[tuple[str, int]]) -> None:
    for hash, bytes_ in sorted(found, key=lambda pair: -pair[1])[:_SHOWN]:
        click.echo(f"{hash}  {text.size(bytes_)}")
    if len(found) > _SHOWN:
        click.echo(f"… {len(found) - _SHOWN:,} more")


# -- drop -------------------------------------------------------------------------------------------


@objects.command(cls=Command)
@click.argument("names", nargs=-1, metavar="[ID]...")
@click.option("--larger", callback=size, metavar="SIZE", help="Only objects larger than this; without ID, all of them.")
@click.option("--yes", is_flag=True, help="Do it; without, only say what would be done.")
@json_option
@click.pass_context
def drop(ctx: click.Context, names: tuple[str, ...], larger: int | None, yes: bool, as_json: bool) -> None:
    """Give up the bytes of objects for good; records, hashes and sizes stay.

    ID is a task or record, whose outputs are meant, or the hash of an object (8 digits at least). Whoever reads such a
    value is told who dropped it and when; running its task again brings it back. What tasks that have not ended need is
    spared.
    """
    if not names and larger is None:
        raise click.UsageError("name tasks or objects, or say --larger", ctx)
    with opened() as project:
        repository = Objects(project.config.objects_folder)
        candidates = _droppable(project, repository, names)
        spared = named.needed(project.store, repository.get)
        there = {one.hash: one.size for one in care.kept(repository)}
        found = [
            (hash, there[hash]) for hash in candidates
            if hash in there and hash not in spared and (larger is None or there[hash] > larger)
        ]  # fmt: skip
        if yes:
            who = f"{getpass.getuser()} on {socket.gethostname()} at {text.iso(now())}"
            care.drop(repository, {hash for hash, _ in found}, who)
    needed = sum(hash in there for hash in spared.intersection(candidates))
    total = sum(bytes_ for _, bytes_ in found)
    if as_json:
        listed = [{"hash": hash, "size": bytes_} for hash, bytes_ in found]
        emit({"done": yes, "objects": listed, "bytes": total, "needed": needed})
        return
    if not yes:
        _list(found)
    kept_back = f" ({needed:,} more are needed by tasks that have not ended)" if needed else ""
    how = "dropped" if yes else "to be dropped: --yes does it" if found else "to be dropped"
    click.echo(f"{text.count(len(found), 'object')}, {text.size(total)}, {how}{kept_back}")


def _droppable(project: Opened, repository: Objects, names: Sequence[str]) -> list[str]:
    """Return the hashes that are meant; without names, those of all values and files.

    Raises:
        InvalidInput: one that is named holds a list, a manifest or a function.
    """
    every = [use.named for use in _everything(project, repository) if use.named is not None and not use.named.place]
    whole = {one.hash for one in every if one.kind not in _DROPPABLE}
    if not names:
        return list(dict.fromkeys(one.hash for one in every if one.hash not in whole))
    records, hashes = _resolved(project, repository, names)
    for hash in whole.intersection(hashes):
        raise InvalidInput(
            f"the object {hash} holds a function, the manifest of a directory, or part of a record: it has to stay"
        )
    for doc in provenance.get(project.store, records, ["outputs"]).values():
        outputs = mentions.of_record(doc, repository.get)
        hashes += [one.hash for one in outputs if one.hash not in whole and not one.place]
    return list(dict.fromkeys(hashes))
