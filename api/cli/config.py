"""`idefics-chat config`: what the settings are, and whether they can be used."""

import typer

from idefics_chat.cli.common import Config, loaded_settings
from idefics_chat.server.settings import Settings
from idefics_chat.server.settings_sources import shown_value

app = typer.Typer(help="The settings that serve would start with.", no_args_is_help=True)


@app.command()
def check(config: Config = None) -> None:
    """Whether serve could start with these settings; exit status 2 and a sentence for each that it could not use."""
    settings = loaded_settings({}, config).settings
    from idefics_chat.server.start_checks import problems_of

    problems = problems_of(settings)
    for problem in problems:
        typer.echo(f"error: {problem}", err=True)
    if problems:
        raise typer.Exit(2)
    typer.echo("These settings can be used.")


@app.command()
def show(config: Config = None) -> None:
    """Every setting, its value, and where that comes from. Passwords are not shown."""
    loaded = loaded_settings({}, config)
    for name in Settings.model_fields:
        typer.echo(f"{name} = {shown_value(name, getattr(loaded.settings, name))}  ({loaded.origins[name]})")
