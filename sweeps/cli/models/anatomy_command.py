"""`mms anatomy`: writers, blocks, streams and readers of somebody else's model."""

import click

from meanmode.sweeps.cli.options import json_option, show_json


@click.command()
@click.argument("target", metavar="MODULE:FUNCTION")
@json_option
def anatomy(target: str, as_json: bool) -> None:
    """Show what a model is made of: residual writers, blocks, streams, readers, norms, and what is in doubt.

    MODULE:FUNCTION names a function without arguments that returns the model and a batch, or the model and a
    function that runs one forward pass. MODULE is imported, also from the current folder.
    """
    from meanmode.sim.anatomy.anatomy_tree import tree
    from meanmode.sim.anatomy.discovery import discover
    from meanmode.sweeps.cli.models.model_function import model_and_run

    found = discover(*model_and_run(target))
    show_json(found.document()) if as_json else click.echo(tree(found))
