"""`localr1 rm`: delete a model, whole or in part, and say how much room that gave."""

import dataclasses

from localr1.cli.download import ask, is_asking_possible
from localr1.errors import ExitStatus, NotFoundError, UsageError
from localr1.options import RemoveOptions
from localr1.quantities import bytes_text, count_text
from localr1.terminal.environment import Environment


def run(environment: Environment, options: RemoveOptions) -> ExitStatus:
    """Delete a model: every version that is here, what unfinished downloads left, and conversations with it alone.

    Name one version with NAME@REVISION. Files that other programs share in the Hugging Face cache stay.
    """
    from localr1.hub.housekeeping import belongings, remove

    doomed = belongings(options.model)
    if options.partial:
        doomed = dataclasses.replace(doomed, stores=(), conversations=())
        if not doomed.partials:
            raise NotFoundError(f"of {options.model} nothing unfinished is here", "see `localr1 models`")
    if options.keep_conversations:
        doomed = dataclasses.replace(doomed, conversations=())
    for store in doomed.stores:
        environment.status(f"{store.name} {store.revision[:12]}: {bytes_text(store.size_bytes)}")
    for part in doomed.partials:
        environment.status(f"{part.name} {part.revision[:12]} (partial): {bytes_text(part.size_bytes)}")
    if doomed.conversations:
        environment.status(
            f"{count_text(len(doomed.conversations), 'conversation')} (--keep-conversations leaves them)"
        )
    if not options.yes:
        if not is_asking_possible(environment):
            raise UsageError("there is no terminal to ask on", "say --yes to delete without being asked")
        if not ask(environment, f"Delete {bytes_text(doomed.size_bytes)}?"):
            environment.status("Nothing was deleted.")
            return ExitStatus.ERROR
    environment.status(f"Freed {bytes_text(remove(doomed))}")
    return ExitStatus.OK
