"""`localr1 verify`: hash what is here again and say what is no longer as it was written."""

from localr1.errors import CorruptError, ExitStatus, NotFoundError, typed
from localr1.options import VerifyOptions
from localr1.terminal.environment import Environment
from localr1.terminal.progress import follow


def run(environment: Environment, options: VerifyOptions) -> ExitStatus:
    """Hash the files of a model, or of all, and compare them with what was written."""
    from localr1.hub import cache
    from localr1.hub.housekeeping import belongings, damaged, verify_all

    stores = list(belongings(options.model).stores) if options.model else cache.stores()
    if not stores and options.model:
        raise NotFoundError(
            f"{options.model} is here in part only", f"go on with `localr1 download {typed(options.model)}`"
        )
    unreadable = [] if options.model else damaged()
    if not stores and not unreadable and not options.quiet:
        environment.status("No model was downloaded yet.")
    for folder in unreadable:
        hint = "see `localr1 models` for its name, and download it again"
        environment.error(CorruptError(f"{folder} has no manifest.json that can be read", hint))
    wrong = follow(environment, verify_all(stores), quiet=options.quiet)
    for store in stores:
        error = wrong.get(str(store.folder))
        if error is not None:
            environment.error(error)
        elif not options.quiet:
            environment.status(f"{store.name} {store.revision[:12]}: whole")
    return ExitStatus.CORRUPT if wrong or unreadable else ExitStatus.OK
